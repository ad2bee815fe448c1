//! A run as a capture file: every packet that a host sends, with the names of hosts, what became of it, and the secrets that open it.
//!
//! A packet's comment says which records begin in it (for DTLS their epochs and numbers), why it is sent again, and what happened to it on its way ("lost"). That is known
//! only later, and so are the secrets that must stand in front of the first packet they open. So packets wait in memory
//! until the run is over; recording is for looking at a run, not for long ones.
//!
//! Decryption needs a handshake in the file: a key log names a master secret by the ClientHello's random, and keys are derived from it. For
//! DTLS 1.2 Wireshark has to see ClientHello, ServerHello and each side's ChangeCipherSpec. Keys that a program makes up and sets on its sockets, as
//! most tests of DTLS do, open nothing there: what is to be seen then is headers, epochs, numbers and comments.
//!
//! Each packet is there once, as it left its host; what arrives when is not in the file. The interface is named after the host. Times are virtual time since [`EPOCH`], so the
//! same run gives the same file.

use super::decode::{Names, RecordStart, View, dtls_records};
use crate::clock::{Duration, Instant};
use crate::device::capture::{Capture, Direction, InterfaceId};
use crate::device::{CsumRequest, Offload, checksum};
use crate::packet::{TCP, UDP};
use crate::tcp::HEADER_LEN;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What virtual time zero is on a calendar: 2030-01-01 00:00:00 UTC, in seconds since the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_893_456_000);

const HEADER_OF_UDP: usize = 8;

/// How far back the packet is looked for that something happened to.
const LOOK_BACK: usize = 256;

/// TLS secrets of a run, lines in the format of `SSLKEYLOGFILE`. Copies write to the same place.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Arc<Mutex<Vec<u8>>>);

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are appended whole, so what a panicking thread left behind is still good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines so far.
    pub fn lines(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }
}

impl Write for Secrets {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Packet {
    now: Instant,
    host: u32,
    /// Where its bytes end; they start where the packet's before end.
    end: usize,
    comment: String,
}

/// The packets of a run, until they are written.
#[derive(Debug)]
pub(super) struct Recording {
    path: PathBuf,
    secrets: Secrets,
    bytes: Vec<u8>,
    packets: Vec<Packet>,
    /// By host number.
    hosts: Vec<Option<String>>,
}

impl Recording {
    /// Will be written to `path`; that this is possible is found out now.
    pub(super) fn create(path: &Path, secrets: Secrets) -> io::Result<Recording> {
        std::fs::File::create(path)?;
        Ok(Recording {
            path: path.to_owned(),
            secrets,
            bytes: Vec::new(),
            packets: Vec::new(),
            hosts: Vec::new(),
        })
    }

    pub(super) fn sent(
        &mut self,
        now: Instant,
        host: u32,
        name: impl FnOnce() -> String,
        packet: &[u8],
        records: &[RecordStart],
        note: &str,
    ) {
        let number = host as usize;
        if self.hosts.len() <= number {
            self.hosts.resize(number + 1, None);
        }
        self.hosts[number].get_or_insert_with(name);
        let mut comment = String::new();
        for record in records {
            let lead = if comment.is_empty() { "record" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(comment, "{lead} #{}", record.number);
        }
        if let Some(view) = View::parse(packet).filter(|view| view.protocol == UDP) {
            for header in dtls_records(view.transport.get(HEADER_OF_UDP..).unwrap_or_default()) {
                let lead = if comment.is_empty() { "record" } else { "," };
                let _ = write!(
                    comment,
                    "{lead} epoch {} #{}",
                    header.epoch, header.sequence
                );
            }
        }
        self.bytes.extend_from_slice(packet);
        self.packets.push(Packet {
            now,
            host,
            end: self.bytes.len(),
            comment,
        });
        if !note.is_empty() {
            self.add_note(self.packets.len() - 1, note);
        }
    }

    /// Something happened to a packet that was sent lately.
    pub(super) fn happened(&mut self, name: &str, packet: &[u8]) {
        let newest = (0..self.packets.len()).rev().take(LOOK_BACK);
        if let Some(index) = newest
            .into_iter()
            .find(|&index| self.bytes_of(index) == packet)
        {
            self.add_note(index, name);
        }
    }

    fn add_note(&mut self, index: usize, note: &str) {
        let comment = &mut self.packets[index].comment;
        if !comment.is_empty() {
            comment.push_str("; ");
        }
        comment.push_str(note);
    }

    fn bytes_of(&self, index: usize) -> &[u8] {
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.packets[before].end);
        &self.bytes[start..self.packets[index].end]
    }

    /// Writes the file.
    pub(super) fn write(&self, names: &Names) -> io::Result<()> {
        let file = std::fs::File::create(&self.path)?;
        let capture = Capture::new(Box::new(BufWriter::new(file)))?;
        self.write_to(&capture, names)?;
        capture.flush()
    }

    fn write_to(&self, capture: &Capture, names: &Names) -> io::Result<()> {
        capture.write_names(names.iter());
        let interfaces: Vec<Option<InterfaceId>> = self
            .hosts
            .iter()
            .map(|name| {
                name.as_deref()
                    .map(|name| capture.add_interface(name))
                    .transpose()
            })
            .collect::<io::Result<_>>()?;
        capture.write_secrets(&self.secrets.lines());
        for (index, packet) in self.packets.iter().enumerate() {
            let Some(interface) = interfaces[packet.host as usize] else {
                continue;
            };
            let nanos = EPOCH.as_nanos() as u64 + packet.now.as_nanos();
            let comment = (!packet.comment.is_empty()).then_some(packet.comment.as_str());
            let mut bytes = self.bytes_of(index).to_vec();
            complete_checksum(&mut bytes);
            capture.record(
                interface,
                nanos,
                Direction::Outbound,
                &Offload::NONE,
                &bytes,
                comment,
            );
        }
        Ok(())
    }
}

/// Gives a TCP segment the checksum that the wire would show. Simulated hosts leave it to a network card that is not there, unless
/// something is to be damaged.
fn complete_checksum(packet: &mut [u8]) {
    let Some(view) = View::parse(packet) else {
        return;
    };
    let (start, length) = (packet.len() - view.transport.len(), view.transport.len());
    let whole = view.fragment.is_none() && length == view.transport_len;
    if view.protocol != TCP || !whole || length < HEADER_LEN {
        return;
    }
    let Some(partial) = checksum::pseudo_header(view.src, view.dst, TCP, length as u32) else {
        return;
    };
    packet[start + 16..start + 18].copy_from_slice(&partial.fold().to_be_bytes());
    let request = CsumRequest {
        start: start as u16,
        offset: 16,
    };
    // The field lies within the header that was just looked at.
    let _ = checksum::complete(packet, request);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::invariant::{Cause, Checker};
    use crate::sim::packets::tcp;
    use crate::tcp::Flags;
    use std::process::Command;

    const CLIENT: &str = "10.0.0.1:40000";
    const SERVER: &str = "10.0.0.2:443";

    fn record(path: &Path) {
        let mut secrets = Secrets::default();
        let mut checker = Checker::new(1);
        checker.name("10.0.0.1".parse().expect("literal"), "client");
        checker.name("10.0.0.2".parse().expect("literal"), "server");
        checker
            .record_to(path, secrets.clone())
            .expect("a temporary file");
        let mut records = vec![23, 3, 3, 0, 2, 9, 9];
        records.extend_from_slice(&[23, 3, 3, 0, 1, 9]);
        let data = tcp(CLIENT, SERVER, 2, Some(8), Flags::PSH, &records);
        let steps: [(u32, Vec<u8>, Cause); 4] = [
            (
                0,
                tcp(CLIENT, SERVER, 1, None, Flags::SYN, b""),
                Cause::First,
            ),
            (
                1,
                tcp(SERVER, CLIENT, 7, Some(2), Flags::SYN, b""),
                Cause::First,
            ),
            (0, data.clone(), Cause::First),
            (0, data, Cause::Timeout),
        ];
        for (i, (host, packet, cause)) in steps.iter().enumerate() {
            let now = Instant::from_millis(i as u64);
            checker
                .sent(now, *host, packet, *cause)
                .expect("no invariant is broken");
            if i == 2 {
                checker
                    .event(now, *host, "lost", packet, 0)
                    .expect("an event");
            }
        }
        secrets
            .write_all(b"CLIENT_RANDOM 00 11\n")
            .expect("memory takes everything");
        checker.write_recording().expect("a temporary file");
    }

    #[test]
    fn tshark_shows_names_records_and_what_became_of_packets() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("run.pcapng");
        record(&path);
        let arguments = "-N n -t e -o tcp.check_checksum:TRUE -T fields -e frame.time_epoch -e frame.interface_name -e ip.dst_host -e tcp.checksum.status -e frame.comment";
        let tshark = Command::new("tshark")
            .arg("-r")
            .arg(&path)
            .args(arguments.split(' '))
            .output();
        let output = match tshark {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("tshark is not installed: its view of the recording was not checked");
                return;
            }
            Err(error) => panic!("tshark: {error}"),
        };
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        let lines = String::from_utf8(output.stdout).expect("tshark writes text");
        let expected = [
            "1893456000.000000000\tclient\tserver\t1\t",
            "1893456000.001000000\tserver\tclient\t1\t",
            "1893456000.002000000\tclient\tserver\t1\trecord #0, #1; lost",
            "1893456000.003000000\tclient\tserver\t1\tsent again: RTO",
        ];
        assert_eq!(lines.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_same_run_is_the_same_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [one, two] = ["one", "two"].map(|name| {
            let path = directory.path().join(name);
            record(&path);
            std::fs::read(path).expect("it was written")
        });
        assert!(one == two);
        let log = b"CLIENT_RANDOM 00 11\n";
        assert!(
            one.windows(log.len()).any(|window| window == log),
            "secrets are in it"
        );
    }
}
