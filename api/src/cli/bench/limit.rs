//! How fast the path could be at best: the stack's work left out piece by piece.
//!
//! A sender with next to no TCP writes super-segments to a TUN of its own: one connection, no loss expected, no congestion window, only the
//! peer's window and cumulative acknowledgements (what goes missing is sent again from there). The kernel's TCP at the other
//! end and the client are the ones of the other figures. What fills the segments is
//!
//! - `limit_write`: bytes that are already there, so that only device writes remain,
//! - `limit_write_read`: the file, read into a ring of records,
//! - `limit_write_read_seal`: the same, each record sealed in place.
//!
//! The receiver throws the bytes away unread, so it does not matter that a byte sent again may by then be another.

use super::super::supervise::{Child, Supervisor, ourselves};
use super::super::{Context, Failure, Outcome};
use super::workload::Workload;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::File;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, ProtocolVersion, Sealer};
use uktls_stack::device::checksum;
use uktls_stack::device::interface;
use uktls_stack::device::tun::{Tun, TunOptions, TunQueue};
use uktls_stack::device::{CsumRequest, Device, Gso, GsoKind, MAX_PACKET, Offload};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
const PORT: u16 = 443;
/// IPv4 and TCP header, neither with options once the connection stands.
const HEADERS: usize = 40;
const PLAINTEXT: usize = 16_384;
/// As with TLS 1.2 and AES-GCM.
const RECORD: usize = PLAINTEXT + 29;
/// 16 records, about 256 KiB: it stays in the processor's second-level cache, as nothing has to be kept for retransmission.
const RING: usize = 4 * GROUP;
/// Records that one read fills, leaving the gaps for headers and tags.
const AT_ONCE: usize = 4;
const GROUP: usize = AT_ONCE * RECORD;
/// Our window: the client's request is all that ever comes.
const WINDOW: u16 = 65_535;
/// No progress for this long: send again from what was acknowledged.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// No progress for this long: give up.
const SILENCE: Duration = Duration::from_secs(15);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What is put into the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pieces {
    /// Whatever lies in the buffer.
    Write,
    /// The file.
    WriteRead,
    /// The file, sealed.
    WriteReadSeal,
}

impl Pieces {
    /// All of them, with their names in the figures.
    pub(crate) const ALL: [(Pieces, &str); 3] = [
        (Pieces::Write, "limit_write"),
        (Pieces::WriteRead, "limit_write_read"),
        (Pieces::WriteReadSeal, "limit_write_read_seal"),
    ];

    fn argument(self) -> &'static str {
        match self {
            Pieces::Write => "write",
            Pieces::WriteRead => "write-read",
            Pieces::WriteReadSeal => "write-read-seal",
        }
    }
}

/// Send a file with next to no TCP (the limit of the benchmarks).
#[derive(Debug, clap::Args)]
pub(crate) struct LimitArgs {
    #[arg(long)]
    pieces: Pieces,
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    mtu: usize,
}

/// Starts the sender, and gives the address to connect to. It serves one connection.
pub(crate) fn start(
    supervisor: &Supervisor,
    workload: &Workload,
    pieces: Pieces,
    mtu: usize,
) -> Result<(Child, SocketAddr), Failure> {
    let mut command = ourselves()?;
    command
        .args(["bench", "limit", "--pieces", pieces.argument()])
        .args(["--mtu", &mtu.to_string()])
        .arg("--file")
        .arg(workload.file());
    let mut child = supervisor.spawn("limit sender", command)?;
    supervisor.line(&mut child, Duration::from_secs(10))?;
    Ok((child, (SENDER, PORT).into()))
}

/// Runs the sender.
pub(crate) fn run(args: LimitArgs) -> Outcome {
    let options = TunOptions {
        mtu: args.mtu,
        ..TunOptions::default()
    };
    let mut queues = Tun::open_with("uklimit", &options).map_err(Failure::new)?;
    let host = format!("{HOST}/24")
        .parse()
        .map_err(|()| Failure::new("bad host address"))?;
    interface::configure("uklimit", args.mtu, &[host]).map_err(Failure::new)?;
    let tun = queues
        .pop()
        .ok_or_else(|| Failure::new("the TUN device has no queue"))?;
    let filler = Filler::new(&args)?;
    println!("ready");
    Sender::new(tun, filler, args.mtu).run()?;
    Ok(ExitCode::SUCCESS)
}

/// Fills the ring, a group of records at a time.
struct Filler {
    pieces: Pieces,
    file: File,
    file_bytes: u64,
    sealer: Sealer,
    ring: Vec<u8>,
    /// Stream offset up to which the ring has been filled.
    filled: u64,
}

impl Filler {
    fn new(args: &LimitArgs) -> Result<Filler, Failure> {
        let failed = || format!("cannot read {}", args.file.display());
        let file = File::open(&args.file).context(failed)?;
        let file_bytes = file.metadata().context(failed)?.len();
        // A key of this run's own that protects nothing: nobody opens the records.
        let keys = CryptoInfo::new(
            ProtocolVersion::Tls12,
            CipherSuite::Aes128Gcm,
            &[7; 16],
            &[1; 4],
            &[2; 8],
            0,
        );
        let sealer = keys
            .and_then(|keys| Sealer::new(&keys))
            .context(|| "cannot seal records".into())?;
        Ok(Filler {
            pieces: args.pieces,
            file,
            file_bytes,
            sealer,
            ring: vec![0x5a; RING],
            filled: 0,
        })
    }

    /// Length of the stream: whole groups of records, with a tail of padding at most.
    fn stream_bytes(&self) -> u64 {
        self.file_bytes.div_ceil((AT_ONCE * PLAINTEXT) as u64) * GROUP as u64
    }

    /// Makes the ring hold the stream up to `offset`.
    fn fill_to(&mut self, offset: u64) -> Result<(), Failure> {
        while self.filled < offset {
            let number = self.filled / GROUP as u64;
            let at = (self.filled % RING as u64) as usize;
            let group = &mut self.ring[at..at + GROUP];
            if self.pieces != Pieces::Write {
                let from = number * (AT_ONCE * PLAINTEXT) as u64;
                let prefix = self.sealer.prefix_len();
                let mut gaps: Vec<IoSliceMut<'_>> = group
                    .chunks_mut(RECORD)
                    .map(|record| IoSliceMut::new(&mut record[prefix..prefix + PLAINTEXT]))
                    .collect();
                let read = rustix::io::preadv(&self.file, &mut gaps, from)
                    .context(|| "cannot read the file".into())?;
                if (read as u64) < (self.file_bytes - from).min((AT_ONCE * PLAINTEXT) as u64) {
                    return Err(Failure::new("the file got shorter"));
                }
            }
            if self.pieces == Pieces::WriteReadSeal {
                for record in group.chunks_mut(RECORD) {
                    self.sealer
                        .seal_in_place(ContentType::APPLICATION_DATA, record)
                        .context(|| "cannot seal".into())?;
                }
            }
            self.filled += GROUP as u64;
        }
        Ok(())
    }

    /// The ring's bytes at these stream offsets, in two pieces where it wraps.
    fn slices(&self, offset: u64, length: usize) -> [IoSlice<'_>; 2] {
        let at = (offset % RING as u64) as usize;
        let first = length.min(RING - at);
        [
            IoSlice::new(&self.ring[at..at + first]),
            IoSlice::new(&self.ring[..length - first]),
        ]
    }
}

/// What a segment that came in says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Incoming {
    from: (Ipv4Addr, u16),
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    /// As it stands in the header, not yet scaled.
    window: u16,
    /// From a SYN.
    window_scale: u8,
    payload: usize,
}

impl Incoming {
    /// A TCP segment over IPv4 for our port; `None` for anything else.
    fn parse(packet: &[u8]) -> Option<Incoming> {
        let ip_header = usize::from(packet.first()? & 0x0f) * 4;
        if packet[0] >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let tcp = packet.get(ip_header..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
        let long = |at: usize| Some(u32::from(word(at)?) << 16 | u32::from(word(at + 2)?));
        let tcp_header = usize::from(*tcp.get(12)? >> 4) * 4;
        let mut options = tcp.get(20..tcp_header)?;
        let mut window_scale = 0;
        while let Some((&kind, rest)) = options.split_first() {
            match (kind, rest.first()) {
                (0, _) => break,
                (1, _) => options = rest,
                (3, Some(3)) => {
                    // RFC 7323 §2.3: "If a Window Scale option is received with a shift.cnt value larger than 14, the TCP SHOULD […] use 14".
                    window_scale = (*rest.get(1)?).min(14);
                    options = rest.get(2..)?;
                }
                (_, Some(&length)) => options = options.get(usize::from(length).max(2)..)?,
                (_, None) => return None,
            }
        }
        let from = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
        (word(2)? == PORT).then_some(Incoming {
            from: (from.into(), word(0)?),
            flags: tcp[13],
            sequence: long(4)?,
            acknowledged: long(8)?,
            window: word(14)?,
            window_scale,
            payload: tcp.len() - tcp_header,
        })
    }
}

/// One end of one connection.
struct Sender {
    tun: TunQueue,
    filler: Filler,
    mss: usize,
    peer: (Ipv4Addr, u16),
    /// Next byte expected from the client.
    rcv_nxt: u32,
    /// Offsets in the stream; its first byte has sequence number 1.
    snd_una: u64,
    snd_nxt: u64,
    /// Offset up to which the client has room.
    window_end: u64,
    window_scale: u8,
}

impl Sender {
    fn new(tun: TunQueue, filler: Filler, mtu: usize) -> Sender {
        Sender {
            tun,
            filler,
            mss: mtu - HEADERS,
            peer: (Ipv4Addr::UNSPECIFIED, 0),
            rcv_nxt: 0,
            snd_una: 0,
            snd_nxt: 0,
            window_end: 0,
            window_scale: 0,
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        self.wait_for(|incoming| incoming.flags & (SYN | ACK) == SYN, "SYN")?;
        // MSS and window scale 0, which allows the client to scale its own.
        let mss = (self.mss as u16).to_be_bytes();
        let options = [2, 4, mss[0], mss[1], 3, 3, 0, 1];
        self.control(0, SYN | ACK, &options)?;
        self.wait_for(|incoming| incoming.payload > 0, "request")?;
        let end = self.filler.stream_bytes();
        // The largest super-segment of whole segments.
        let most = (MAX_PACKET - HEADERS) / self.mss * self.mss;
        let mut progress = Instant::now();
        let mut told = (0, 0);
        while self.snd_una < end {
            let room = self.window_end.min(end).saturating_sub(self.snd_nxt);
            let length = (most as u64).min(room) as usize;
            // Silly windows are waited out, as RFC 9293 §3.8.6.2.1 wants of a sender.
            if length == most || (length > 0 && self.snd_nxt + length as u64 == end) {
                self.filler.fill_to(self.snd_nxt + length as u64)?;
                self.data(length)?;
                continue;
            }
            // Acknowledgements are looked at only when the window is used up: fewer system calls than a stack could do with.
            while self.take()? {}
            if told != (self.snd_una, self.window_end) {
                told = (self.snd_una, self.window_end);
                progress = Instant::now();
                continue;
            }
            self.wait(RETRANSMIT)?;
            if progress.elapsed() > SILENCE {
                return Err(Failure::new("the client has stopped reading"));
            }
            if progress.elapsed() > RETRANSMIT && self.snd_nxt > self.snd_una {
                self.snd_nxt = self.snd_una;
            }
        }
        // Sequence number of the FIN: one behind the last byte.
        self.control((end as u32).wrapping_add(1), FIN | ACK, &[])?;
        self.wait_for(
            |incoming| incoming.flags & (FIN | RST) != 0,
            "end of the connection",
        )?;
        self.control((end as u32).wrapping_add(2), ACK, &[])
    }

    /// Waits for a segment of this kind.
    fn wait_for(&mut self, wanted: impl Fn(&Incoming) -> bool, name: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + SILENCE;
        while Instant::now() < deadline {
            if let Some(incoming) = self.receive()? {
                if wanted(&incoming) {
                    return Ok(());
                }
            } else {
                self.wait(RETRANSMIT)?;
            }
        }
        Err(Failure::new(format_args!("the client sent no {name}")))
    }

    /// Takes what the client acknowledges; whether there was a packet.
    fn take(&mut self) -> Result<bool, Failure> {
        match self.receive()? {
            Some(incoming) if incoming.flags & RST != 0 => {
                Err(Failure::new("the client has reset the connection"))
            }
            other => Ok(other.is_some()),
        }
    }

    fn receive(&mut self) -> Result<Option<Incoming>, Failure> {
        let mut packet = [0; 2048];
        let length = match self.tun.receive(&mut packet) {
            Ok((length, _)) => length.min(packet.len()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context(|| "cannot read from the TUN".into()),
        };
        let Some(incoming) = Incoming::parse(&packet[..length]) else {
            return Ok(None);
        };
        if incoming.flags & SYN != 0 {
            self.peer = incoming.from;
            self.window_scale = incoming.window_scale;
        }
        let moves = incoming.flags & (SYN | FIN) != 0;
        self.rcv_nxt = incoming
            .sequence
            .wrapping_add(incoming.payload as u32 + u32::from(moves));
        if incoming.flags & ACK != 0 {
            // The stream is longer than a sequence number: what is acknowledged lies within 2 GiB of what was before.
            let ahead = incoming
                .acknowledged
                .wrapping_sub(1)
                .wrapping_sub(self.snd_una as u32);
            if ahead < 1 << 31 {
                self.snd_una += u64::from(ahead);
                self.snd_nxt = self.snd_nxt.max(self.snd_una);
                let window = u64::from(incoming.window) << self.window_scale;
                self.window_end = self.snd_una + window;
            }
        }
        Ok(Some(incoming))
    }

    fn wait(&self, time: Duration) -> Result<(), Failure> {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let Some(fd) = self.tun.fd() else {
            return Err(Failure::new("the TUN has no descriptor"));
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).context(|| "cannot wait for the TUN".into()),
        }
    }

    fn data(&mut self, length: usize) -> Result<(), Failure> {
        let headers = self.headers((self.snd_nxt as u32).wrapping_add(1), ACK, &[], length);
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: 20,
                offset: 16,
            }),
            gso: (length > self.mss).then_some(Gso {
                kind: GsoKind::Tcp4,
                hdr_len: HEADERS as u16,
                size: self.mss as u16,
            }),
            verified: false,
        };
        let payload = self.filler.slices(self.snd_nxt, length);
        self.tun
            .send(&offload, &headers, &payload)
            .context(|| "cannot write to the TUN".into())?;
        self.snd_nxt += length as u64;
        Ok(())
    }

    fn control(&mut self, sequence: u32, flags: u8, options: &[u8]) -> Result<(), Failure> {
        let headers = self.headers(sequence, flags, options, 0);
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: 20,
                offset: 16,
            }),
            ..Offload::NONE
        };
        self.tun
            .send(&offload, &headers, &[])
            .context(|| "cannot write to the TUN".into())
    }

    /// IPv4 and TCP header, with the TCP checksum left partial.
    fn headers(&self, sequence: u32, flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
        let tcp_length = 20 + options.len() + payload;
        let mut packet = Vec::with_capacity(HEADERS + options.len());
        packet.extend_from_slice(&[0x45, 0]);
        packet.extend_from_slice(&((20 + tcp_length) as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]); // don't fragment, TTL 64, TCP
        packet.extend_from_slice(&SENDER.octets());
        packet.extend_from_slice(&self.peer.0.octets());
        let sum = checksum::checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend_from_slice(&PORT.to_be_bytes());
        packet.extend_from_slice(&self.peer.1.to_be_bytes());
        packet.extend_from_slice(&sequence.to_be_bytes());
        packet.extend_from_slice(&self.rcv_nxt.to_be_bytes());
        packet.push((((20 + options.len()) / 4) << 4) as u8);
        packet.push(flags);
        packet.extend_from_slice(&WINDOW.to_be_bytes());
        let pseudo = checksum::pseudo_header_v4(SENDER, self.peer.0, 6, tcp_length as u32);
        packet.extend_from_slice(&pseudo.fold().to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(options);
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_is_understood_with_its_window_scale() {
        let mut packet = vec![
            0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 79, 0, 1, 10, 79, 0, 2,
        ];
        packet.extend([0x9c, 0x40, 0x01, 0xbb]); // ports 40000 and 443
        packet.extend([0, 0, 0, 9, 0, 0, 0, 0, 0x70, SYN, 0xfa, 0xf0, 0, 0, 0, 0]);
        packet.extend([2, 4, 5, 0xb4, 1, 3, 3, 7]);
        let incoming = Incoming::parse(&packet).unwrap();
        assert_eq!(
            incoming,
            Incoming {
                from: (HOST, 40_000),
                flags: SYN,
                sequence: 9,
                acknowledged: 0,
                window: 64_240,
                window_scale: 7,
                payload: 0
            }
        );
        for cut in 0..packet.len() {
            assert_eq!(Incoming::parse(&packet[..cut]), None, "{cut} bytes");
        }
        packet[9] = 17;
        assert_eq!(Incoming::parse(&packet), None, "UDP");
    }
}
