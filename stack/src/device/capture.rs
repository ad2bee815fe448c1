//! Packet capture: a tap around any device that writes what the wire would show, as pcapng.
//!
//! A [`Capture`] is the file; a [`Tap`] wraps one queue of a device and records every packet that goes through it, in both directions, in
//! the order of the calls. Super-segments are cut and partial checksums completed in the copy that is recorded, so Wireshark has nothing to
//! complain about; what travels stays as it is. TLS secrets go into the file too, as a Decryption Secrets Block, in front of the packets that
//! need them. A client under TLS 1.3 learns its secrets from the very packet whose other half they open: with [`Capture::hold_back`] packets
//! wait in memory for a moment, and secrets that come meanwhile go in front of them.
//!
//! Timestamps are an argument (nanoseconds since the Unix epoch, from a closure): the daemon passes the system's clock, the
//! simulator virtual time, and the same run gives the same file. A disk that fills up ends the capture, not the traffic; [`Capture::flush`] tells.
//!
//! The format is draft-ietf-opsawg-pcapng; link type 101 (RAW: the packet starts with its IP header).

use super::{Capabilities, Device, Offload, segment};
use bytes::BytesMut;
use pcap_file::pcapng::Block;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::name_resolution::{
    Ipv4Record, Ipv6Record, NameResolutionBlock, Record,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::blocks::unknown::UnknownBlock;
use pcap_file::{DataLink, Endianness, PcapError};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IoSlice, Write};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Block type of a Decryption Secrets Block.
const DECRYPTION_SECRETS_BLOCK: u32 = 0x0000_000a;
/// Secrets type "TLS Key Log": lines in the format of `SSLKEYLOGFILE`.
const TLS_KEY_LOG: u32 = 0x544c_534b;
/// `if_tsresol`: timestamps count units of 10⁻⁹ s.
const NANOSECONDS: u8 = 9;

/// Bytes of packets that are held back at most, whatever the time is.
const MAX_HELD: usize = 16 << 20;

/// Which way a packet went, seen from the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the stack.
    Inbound,
    /// Sent by the stack.
    Outbound,
}

/// An interface of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceId(u32);

/// A capture file. Clones write to the same file.
#[derive(Clone)]
pub struct Capture {
    file: Arc<Mutex<CaptureFile>>,
}

struct CaptureFile {
    writer: PcapNgWriter<Box<dyn Write + Send>>,
    interfaces: u32,
    scratch: Vec<u8>,
    /// How long packets wait for secrets, in nanoseconds.
    hold: u64,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Why nothing is recorded any more.
    failed: Option<(io::ErrorKind, String)>,
}

/// A packet, cut as the wire would have it, that waits to be written.
struct Held {
    interface: InterfaceId,
    nanos: u64,
    direction: Direction,
    packet: Vec<u8>,
    comment: Option<String>,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.lock();
        f.debug_struct("Capture")
            .field("interfaces", &file.interfaces)
            .field("failed", &file.failed)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Creates the file at `path`, or empties it.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Capture> {
        Capture::new(Box::new(BufWriter::with_capacity(
            1 << 20,
            File::create(path)?,
        )))
    }

    /// A capture that goes to any writer. What it wants buffered is its own business; [`Capture::flush`] flushes it.
    pub fn new(writer: Box<dyn Write + Send>) -> io::Result<Capture> {
        let section = SectionHeaderBlock {
            // Fixed, not the machine's own: the same run gives the same bytes everywhere.
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed("uktls"))],
            ..Default::default()
        };
        let writer = PcapNgWriter::with_section_header(writer, section).map_err(to_io)?;
        let file = CaptureFile {
            writer,
            interfaces: 0,
            scratch: Vec::new(),
            hold: 0,
            held: VecDeque::new(),
            held_bytes: 0,
            failed: None,
        };
        Ok(Capture {
            file: Arc::new(Mutex::new(file)),
        })
    }

    /// From now on every packet waits in memory until one comes that is `time` younger (or many come), or until [`flush`](Self::flush).
    pub fn hold_back(&self, time: Duration) {
        self.lock().hold = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Adds an interface under the name that Wireshark shows for its packets.
    pub fn add_interface(&self, name: &str) -> io::Result<InterfaceId> {
        let mut file = self.lock();
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: 0, // no limit
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        file.writer
            .write_block(&Block::InterfaceDescription(block))
            .map_err(to_io)?;
        file.interfaces += 1;
        Ok(InterfaceId(file.interfaces - 1))
    }

    /// Wraps `device`, whose packets are recorded as `interface`'s from now on. `now` gives nanoseconds since the Unix epoch.
    pub fn tap<D: Device, N: FnMut() -> u64>(
        &self,
        device: D,
        interface: InterfaceId,
        now: N,
    ) -> Tap<D, N> {
        Tap {
            device,
            capture: self.clone(),
            interface,
            now,
            comment: None,
            packet: Vec::new(),
        }
    }

    /// Records one packet, cut into what the wire would show if it is a super-segment; a comment goes with the first piece.
    pub fn record(
        &self,
        interface: InterfaceId,
        nanos: u64,
        direction: Direction,
        offload: &Offload,
        packet: &[u8],
        comment: Option<&str>,
    ) {
        let mut file = self.lock();
        let CaptureFile {
            writer,
            scratch,
            hold,
            held,
            held_bytes,
            failed,
            ..
        } = &mut *file;
        if failed.is_some() {
            return;
        }
        let mut outcome = Ok(());
        let mut comment = comment;
        let mut write = |packet: &[u8]| {
            if *hold > 0 {
                *held_bytes += packet.len();
                held.push_back(Held {
                    interface,
                    nanos,
                    direction,
                    packet: packet.to_vec(),
                    comment: comment.take().map(str::to_owned),
                });
            } else if outcome.is_ok() {
                outcome = write_packet(writer, interface, nanos, direction, packet, comment.take());
            }
        };
        if segment::cut(packet, offload, scratch, &mut write).is_err() {
            // Nothing this stack sends; but if a device ever gives such a packet, the capture is where somebody will look for it.
            write(packet);
        }
        let outcome = outcome.and_then(|()| file.let_go(nanos));
        file.note(outcome);
    }

    /// Writes TLS secrets (lines in the format of `SSLKEYLOGFILE`), for the packets that follow and those that are held back.
    pub fn write_secrets(&self, key_log: &str) {
        let mut file = self.lock();
        if file.failed.is_some() || key_log.is_empty() {
            return;
        }
        let mut lines = Cow::Borrowed(key_log);
        if !lines.ends_with('\n') {
            lines.to_mut().push('\n');
        }
        let mut body = Vec::with_capacity(8 + lines.len() + 3);
        body.extend_from_slice(&TLS_KEY_LOG.to_le_bytes());
        body.extend_from_slice(&(lines.len() as u32).to_le_bytes());
        body.extend_from_slice(lines.as_bytes());
        body.resize(body.len().next_multiple_of(4), 0);
        let block = UnknownBlock::new(DECRYPTION_SECRETS_BLOCK, (body.len() + 12) as u32, &body);
        let outcome = file
            .writer
            .write_block(&Block::Unknown(block))
            .map(drop)
            .map_err(to_io);
        file.note(outcome);
    }

    /// Writes who is called what, for programs that show names in the place of addresses.
    pub fn write_names<'a>(&self, names: impl Iterator<Item = (IpAddr, &'a str)>) {
        let mut file = self.lock();
        if file.failed.is_some() {
            return;
        }
        let records = names.map(|(address, name)| {
            let names = vec![Cow::Borrowed(name)];
            match address {
                IpAddr::V4(v4) => Record::Ipv4(Ipv4Record {
                    ip_addr: Cow::Owned(v4.octets().to_vec()),
                    names,
                }),
                IpAddr::V6(v6) => Record::Ipv6(Ipv6Record {
                    ip_addr: Cow::Owned(v6.octets().to_vec()),
                    names,
                }),
            }
        });
        let block = NameResolutionBlock {
            records: records.collect(),
            options: Vec::new(),
        };
        let outcome = file
            .writer
            .write_block(&Block::NameResolution(block))
            .map(drop)
            .map_err(to_io);
        file.note(outcome);
    }

    /// Brings everything recorded so far to the file; the last clone to be dropped does so too.
    ///
    /// # Errors
    /// Those of this call, or the one that ended the capture earlier.
    pub fn flush(&self) -> io::Result<()> {
        let mut file = self.lock();
        if let Some((kind, why)) = &file.failed {
            return Err(io::Error::new(*kind, why.clone()));
        }
        file.let_go(u64::MAX)?;
        file.writer.get_mut().flush()
    }

    /// Blocks are written whole or the capture has failed, so a file that a panicking thread left behind is still one.
    fn lock(&self) -> MutexGuard<'_, CaptureFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CaptureFile {
    /// Writes those of the held packets that have waited long enough at this time, and those that are too many.
    fn let_go(&mut self, now: u64) -> io::Result<()> {
        while let Some(first) = self.held.front() {
            let due = now == u64::MAX || first.nanos.saturating_add(self.hold) <= now;
            if !due && self.held_bytes <= MAX_HELD {
                break;
            }
            let outcome = write_packet(
                &mut self.writer,
                first.interface,
                first.nanos,
                first.direction,
                &first.packet,
                first.comment.as_deref(),
            );
            self.held_bytes -= first.packet.len();
            self.held.pop_front();
            outcome?;
        }
        Ok(())
    }

    /// Ends the capture if `outcome` is an error.
    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            tracing::warn!(%error, "the packet capture ends here; traffic goes on");
            self.failed = Some((error.kind(), error.to_string()));
        }
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let written = self.let_go(u64::MAX);
        if let Err(error) = written.and_then(|()| self.writer.get_mut().flush()) {
            tracing::warn!(%error, "the end of the packet capture is missing");
        }
    }
}

fn write_packet(
    writer: &mut PcapNgWriter<Box<dyn Write + Send>>,
    interface: InterfaceId,
    nanos: u64,
    direction: Direction,
    packet: &[u8],
    comment: Option<&str>,
) -> io::Result<()> {
    // epb_flags, bits 0-1: 01 inbound, 10 outbound.
    let direction = match direction {
        Direction::Inbound => 1,
        Direction::Outbound => 2,
    };
    let mut options = vec![EnhancedPacketOption::Flags(direction)];
    options.extend(comment.map(|comment| EnhancedPacketOption::Comment(Cow::Borrowed(comment))));
    let block = EnhancedPacketBlock {
        interface_id: interface.0,
        timestamp: Duration::from_nanos(nanos),
        original_len: packet.len() as u32,
        data: Cow::Borrowed(packet),
        options,
    };
    writer
        .write_block(&Block::EnhancedPacket(block))
        .map(drop)
        .map_err(to_io)
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// A device that records everything it passes on.
pub struct Tap<D, N> {
    device: D,
    capture: Capture,
    interface: InterfaceId,
    now: N,
    comment: Option<String>,
    /// Where the pieces of a sent packet are gathered for the file.
    packet: Vec<u8>,
}

impl<D: fmt::Debug, N> fmt::Debug for Tap<D, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("device", &self.device)
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

impl<D, N> Tap<D, N> {
    /// Attaches a comment to the next packet sent.
    pub fn comment_next(&mut self, comment: impl Into<String>) {
        self.comment = Some(comment.into());
    }

    /// The capture that this tap records to.
    pub fn capture(&self) -> &Capture {
        &self.capture
    }
}

impl<D, N: FnMut() -> u64> Tap<D, N> {
    fn inbound(&mut self, packet: &[u8], offload: &Offload) {
        let nanos = (self.now)();
        self.capture.record(
            self.interface,
            nanos,
            Direction::Inbound,
            offload,
            packet,
            None,
        );
    }
}

impl<D: Device, N: FnMut() -> u64> Device for Tap<D, N> {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        // The time before the packet leaves: an answer must not seem older than what it answers.
        let nanos = (self.now)();
        self.device.send(offload, headers, payload)?;
        self.packet.clear();
        self.packet.extend_from_slice(headers);
        payload
            .iter()
            .for_each(|slice| self.packet.extend_from_slice(slice));
        let comment = self.comment.take();
        self.capture.record(
            self.interface,
            nanos,
            Direction::Outbound,
            offload,
            &self.packet,
            comment.as_deref(),
        );
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let (length, offload) = self.device.receive(packet)?;
        self.inbound(&packet[..length], &offload);
        Ok((length, offload))
    }

    fn receive_split(&mut self, room: &mut BytesMut) -> io::Result<(BytesMut, Offload)> {
        let (packet, offload) = self.device.receive_split(room)?;
        self.inbound(&packet, &offload);
        Ok((packet, offload))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CsumRequest, Gso, GsoKind, MAX_PACKET, memory};
    use super::*;
    use pcap_file::pcapng::PcapNgReader;

    /// A writer whose bytes can be looked at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn bytes(&self) -> Vec<u8> {
            self.0.lock().expect("no test panics while writing").clone()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("no test panics while writing")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// IPv4 and TCP headers, 10.0.0.1:8080 to 10.0.0.2:80, for `payload` bytes; the checksum is the pseudo header's.
    fn tcp_headers(payload: usize) -> Vec<u8> {
        let mut headers = vec![0u8; 40];
        headers[0] = 0x45;
        headers[2..4].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
        headers[8..10].copy_from_slice(&[64, 6]);
        headers[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let header_checksum = super::super::checksum::checksum(&headers[..20]);
        headers[10..12].copy_from_slice(&header_checksum.to_be_bytes());
        headers[20..24].copy_from_slice(&[0x1f, 0x90, 0, 80]);
        headers[32] = 5 << 4;
        headers[33] = 0x18;
        let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let partial =
            super::super::checksum::pseudo_header_v4(src, dst, 6, (20 + payload) as u32).fold();
        headers[36..38].copy_from_slice(&partial.to_be_bytes());
        headers
    }

    const PARTIAL: Option<CsumRequest> = Some(CsumRequest {
        start: 20,
        offset: 16,
    });

    /// A super-segment of three there, an answer back, secrets in between.
    fn record_three_and_one(capture: &Capture) {
        let interface = capture
            .add_interface("u0")
            .expect("a writer that takes everything");
        let (left, mut right) = memory::pair(1500, true);
        let mut times = [1_000_000_001, 1_000_000_002, 1_000_000_003].into_iter();
        let mut tap = capture.tap(left, interface, || times.next().expect("two packets pass"));
        capture.write_secrets("CLIENT_RANDOM 00 11");
        tap.comment_next("records 0 to 2");
        let gso = Some(Gso {
            kind: GsoKind::Tcp4,
            hdr_len: 40,
            size: 1000,
        });
        let offload = Offload {
            needs_csum: PARTIAL,
            gso,
            verified: false,
        };
        tap.send(
            &offload,
            &tcp_headers(2_500),
            &[IoSlice::new(&[1; 1_500]), IoSlice::new(&[2; 1_000])],
        )
        .unwrap();
        let mut packet = vec![0; MAX_PACKET];
        let (length, passed_on) = right.receive(&mut packet).unwrap();
        assert_eq!(
            (length, passed_on.gso),
            (2_540, gso),
            "what travels is not cut"
        );
        right
            .send(
                &Offload {
                    needs_csum: PARTIAL,
                    ..Offload::NONE
                },
                &tcp_headers(5),
                &[IoSlice::new(b"hello")],
            )
            .unwrap();
        tap.receive(&mut packet).unwrap();
        assert_eq!(
            packet[36..38],
            tcp_headers(5)[36..38],
            "what travels is not completed"
        );
        capture.flush().unwrap();
    }

    #[test]
    fn reads_back_as_the_wire_would_have_been() {
        let file = Shared::default();
        record_three_and_one(&Capture::new(Box::new(file.clone())).unwrap());
        let bytes = file.bytes();
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut packets = Vec::new();
        let mut secrets = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::EnhancedPacket(packet) => packets.push(packet.into_owned()),
                Block::Unknown(block) => {
                    assert!(packets.is_empty(), "secrets come first");
                    secrets.push((block.type_, block.value.to_vec()));
                }
                Block::InterfaceDescription(interface) => {
                    assert_eq!(interface.linktype, DataLink::RAW);
                    assert!(
                        interface
                            .options
                            .contains(&InterfaceDescriptionOption::IfName("u0".into()))
                    );
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(
            secrets,
            [(10, b"KSLT\x14\0\0\0CLIENT_RANDOM 00 11\n".to_vec())]
        );
        let lengths: Vec<usize> = packets.iter().map(|packet| packet.data.len()).collect();
        assert_eq!(lengths, [1_040, 1_040, 540, 45]);
        let nanos: Vec<u128> = packets
            .iter()
            .map(|packet| packet.timestamp.as_nanos())
            .collect();
        assert_eq!(
            nanos,
            [1_000_000_001, 1_000_000_001, 1_000_000_001, 1_000_000_002]
        );
        let comment = EnhancedPacketOption::Comment("records 0 to 2".into());
        let commented: Vec<bool> = packets
            .iter()
            .map(|packet| packet.options.contains(&comment))
            .collect();
        assert_eq!(commented, [true, false, false, false]);
        for packet in &packets {
            assert!(super::super::checksum::ip_header_is_valid(&packet.data));
            let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
            let (src, dst) = (std::net::Ipv4Addr::into(src), std::net::Ipv4Addr::into(dst));
            assert!(super::super::checksum::transport_is_valid(
                src,
                dst,
                6,
                &packet.data[20..]
            ));
        }
    }

    #[test]
    fn tshark_finds_nothing_to_complain_about() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("three-and-one.pcapng");
        record_three_and_one(&Capture::create(&path).unwrap());
        let arguments = "-n -o tcp.check_checksum:TRUE -o ip.check_checksum:TRUE -T fields -e ip.len -e tcp.checksum.status -e ip.checksum.status -e frame.interface_name -e frame.comment";
        let tshark = std::process::Command::new("tshark")
            .arg("-r")
            .arg(&path)
            .args(arguments.split(' '))
            .output();
        let output = match tshark {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("tshark is not installed: its view of the capture was not checked");
                return;
            }
            Err(error) => panic!("tshark: {error}"),
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = String::from_utf8(output.stdout).unwrap();
        // Status 1 is "good".
        assert_eq!(
            lines,
            "1040\t1\t1\tu0\trecords 0 to 2\n1040\t1\t1\tu0\t\n540\t1\t1\tu0\t\n45\t1\t1\tu0\t\n"
        );
    }

    #[test]
    fn secrets_go_in_front_of_packets_that_are_held_back() {
        let file = Shared::default();
        let capture = Capture::new(Box::new(file.clone())).unwrap();
        let interface = capture.add_interface("u0").unwrap();
        capture.hold_back(Duration::from_nanos(100));
        let record = |nanos, comment| {
            let direction = Direction::Inbound;
            let packet = [0x45; 60];
            capture.record(
                interface,
                nanos,
                direction,
                &Offload::NONE,
                &packet,
                comment,
            );
        };
        let written = || {
            let bytes = file.bytes();
            let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
            let mut blocks = Vec::new();
            while let Some(block) = reader.next_block() {
                match block.unwrap() {
                    Block::EnhancedPacket(packet) => blocks.push(packet.timestamp.as_nanos()),
                    Block::Unknown(_) => blocks.push(0),
                    _ => {}
                }
            }
            blocks
        };
        record(1_000, None);
        record(1_050, Some("half of it was in clear"));
        assert_eq!(written(), []);
        capture.write_secrets("SERVER_HANDSHAKE_TRAFFIC_SECRET 00 11");
        record(1_100, None);
        assert_eq!(written(), [0, 1_000]);
        capture.write_secrets("CLIENT_TRAFFIC_SECRET_0 00 22");
        capture.flush().unwrap();
        assert_eq!(written(), [0, 1_000, 0, 1_050, 1_100]);
        // As much as fits, and the last goes with the capture.
        let large = vec![0x45; 60_000];
        for _ in 0..MAX_HELD / large.len() + 2 {
            capture.record(
                interface,
                1_150,
                Direction::Inbound,
                &Offload::NONE,
                &large,
                None,
            );
        }
        assert_eq!(written()[5..], [1_150; 2]);
        drop(capture);
        assert_eq!(written().len(), 5 + MAX_HELD / large.len() + 2);
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_traffic() {
        let capture = Capture::create("/dev/full").unwrap();
        let interface = capture.add_interface("u0").unwrap();
        let (left, mut right) = memory::pair(1500, false);
        let mut tap = capture.tap(left, interface, || 0);
        let mut packet = vec![0; 1500];
        for _ in 0..2_000 {
            tap.send(&Offload::NONE, &[0x45; 1500], &[]).unwrap();
            right.receive(&mut packet).unwrap();
        }
        assert_eq!(
            capture.flush().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
