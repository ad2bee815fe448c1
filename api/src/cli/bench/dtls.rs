//! DTLS 1.2 AES-128-GCM out of an AF_KTLS socket, beside OpenSSL's `SSL_write` over a kernel UDP socket on loopback.
//!
//! One payload a record, one record a datagram, to a kernel UDP socket that throws everything away: ours over the TUN, the
//! peer's over loopback. The sink opens nothing, on either side, so that what is measured is sealing and sending. Time is the
//! sender's; nothing paces UDP, so records that arrived are what counts, and the report says how many of those sent did. CPU
//! time is the sending thread's, ours with the daemon's added; the sink's thread is in neither.
//!
//! What a [`sink`] sets on its socket matters, so all of it is done twice: with `UDP_GRO`, and (`…_plain_sink_…`) without.

mod sink;

use super::super::limits::parse_bytes;
use super::super::options::Switch;
use super::super::supervise::Supervisor;
use super::super::{Context, Failure};
use super::cpu::CpuTime;
use super::report::{Metric, Report};
use super::stack::{Daemon, Wanted};
use super::stats::median;
use super::workload::Workload;
use openssl::ssl::{Ssl, SslStream};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};
use rustix::time::{ClockId, clock_gettime};
use sink::Sink;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket as KernelSocket};
use std::time::{Duration, Instant};
use uktls::client::af_ktls::{
    AF_KTLS, DatagramFlags, KTLS_SET_MTU, KtlsAddress, KtlsSocket, KtlsType,
};
use uktls::handshake::openssl::context;
use uktls::{CipherSuite, UdpSocket};
use uktls_record::dtls::{DtlsVersion, EpochKeys};

const PEER: &str = "openssl-kernel-udp";
const PORT: u16 = 4433;
/// What a pipe holds.
const PIPE: usize = 1 << 20;

/// Send DTLS records: records/s and CPU-µs a record, by sendfile, splice and send, beside OpenSSL
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Length of the file (with K, M or G: powers of 1024)
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    file_size: u64,
    /// Plaintext of a record
    #[arg(long, default_value_t = 1400, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    payload: u16,
    /// MTU of the TUN device
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,
    /// Rounds that count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Way>,
    /// Whether sinks set UDP_GRO; not given: first all of them do, then none
    #[arg(long)]
    sink_gro: Option<Switch>,
}

/// One pass of a sender.
#[derive(Debug, Clone, Copy)]
struct Pass {
    records_per_second: f64,
    cpu_micros: f64,
    arrived: f64,
}

/// Seconds of processor time of this thread.
fn thread_cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs `send`, which gives the number of records it sent.
fn measure(
    sink: &Sink,
    daemon: Option<u32>,
    send: impl FnOnce() -> Result<u64, Failure>,
) -> Result<Pass, Failure> {
    let daemon: Vec<u32> = daemon.into_iter().collect();
    let received = sink.received();
    let (cpu, own, start) = (CpuTime::of(&daemon)?, thread_cpu(), Instant::now());
    let records = send()?;
    let seconds = start.elapsed().as_secs_f64();
    let own = thread_cpu() - own;
    let arrived = sink.settled() - received;
    let spent = own + CpuTime::of(&daemon)?.since(&cpu);
    Ok(Pass {
        records_per_second: arrived as f64 / seconds,
        cpu_micros: spent * 1e6 / records as f64,
        arrived: arrived as f64 / records as f64,
    })
}

/// The stack's side: a KTLS socket towards the sink, keys set by hand.
fn ktls(daemon: &Daemon, sink: SocketAddr, payload: u16) -> Result<KtlsSocket, Failure> {
    let failed = || "cannot set up a KTLS socket".into();
    let handle = uktls::Daemon::at(&daemon.socket);
    let udp = UdpSocket::bind_on(&handle, daemon.stack(0), None).context(failed)?;
    udp.connect(sink).context(failed)?;
    let mut ktls = KtlsSocket::new(KtlsType::Datagram, 0).context(failed)?;
    ktls.bind(&udp, KtlsAddress::LATEST).context(failed)?;
    let cipher = CipherSuite::Aes128Gcm;
    let keys = EpochKeys::dtls12(cipher, &[7; 16], &[9; 4], 1, 0)
        .map_err(|error| Failure::new(format_args!("{error}")))?;
    ktls.set_send_keys(&keys).context(failed)?;
    let mtu = usize::from(payload) + DtlsVersion::Dtls12.overhead(cipher);
    ktls.setsockopt(AF_KTLS, KTLS_SET_MTU, &mtu.to_ne_bytes())
        .context(failed)?;
    Ok(ktls)
}

/// What was sealed so far; asking comes behind everything that was sent.
fn sealed(ktls: &KtlsSocket) -> Result<u64, Failure> {
    Ok(ktls
        .stat()
        .context(|| "the daemon does not answer".into())?
        .sealed)
}

/// Waits until the daemon has sealed `records` more: a message taken is not a datagram sent yet.
fn until_sealed(ktls: &KtlsSocket, goal: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while sealed(ktls)? < goal {
        if Instant::now() > deadline {
            return Err(Failure::new("the daemon does not send what it took"));
        }
    }
    Ok(())
}

fn by_sendfile(ktls: &KtlsSocket, file: &File, size: u64, payload: u64) -> Result<u64, Failure> {
    let sent = ktls
        .sendfile(file, 0, size)
        .context(|| "sendfile failed".into())?;
    Ok(sent.div_ceil(payload))
}

fn by_send(ktls: &KtlsSocket, records: u64, payload: u16) -> Result<u64, Failure> {
    let goal = sealed(ktls)? + records;
    let plaintext = vec![0x5A; usize::from(payload)];
    for _ in 0..records {
        ktls.send(&plaintext, DatagramFlags::empty())
            .context(|| "send failed".into())?;
    }
    until_sealed(ktls, goal)?;
    Ok(records)
}

fn by_splice(ktls: &KtlsSocket, file: &File, size: u64) -> Result<u64, Failure> {
    let failed = || "splice failed".into();
    let (reader, writer) = io::pipe().context(failed)?;
    let room = fcntl_setpipe_size(&writer, PIPE).context(failed)?;
    let (before, mut offset) = (sealed(ktls)?, 0);
    while offset < size {
        let wanted = (size - offset).min(room as u64) as usize;
        let n = splice(
            file,
            Some(&mut offset),
            &writer,
            None,
            wanted,
            SpliceFlags::empty(),
        )
        .context(failed)?;
        if n == 0 {
            break;
        }
        let mut left = n;
        while left > 0 {
            left -= ktls.splice_from(&reader, left).context(failed)?;
        }
    }
    // A pipe's end cuts a record now and then, so they are counted, not computed.
    let mut count = sealed(ktls)?;
    loop {
        std::thread::yield_now();
        let now = sealed(ktls)?;
        if now == count {
            return Ok(now - before);
        }
        count = now;
    }
}

/// A kernel UDP socket as OpenSSL reads and writes it.
#[derive(Debug)]
struct Kernel(KernelSocket);

impl Read for Kernel {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf)
    }
}

impl Write for Kernel {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The peer: an OpenSSL client that has shaken hands with an OpenSSL server over loopback, and the sink that the server's socket
/// becomes afterwards.
fn openssl(workload: &Workload, gro: bool) -> Result<(SslStream<Kernel>, Sink), Failure> {
    let failed = || "cannot set up OpenSSL over loopback".into();
    let socket = || KernelSocket::bind("127.0.0.1:0").context(failed);
    let (near, far) = (socket()?, socket()?);
    let connect = |from: &KernelSocket, to: &KernelSocket| {
        from.connect(to.local_addr()?)?;
        from.set_read_timeout(Some(Duration::from_secs(10)))
    };
    connect(&near, &far).context(failed)?;
    connect(&far, &near).context(failed)?;
    let drained = far.try_clone().context(failed)?;

    let stream = |socket, server: bool| -> io::Result<SslStream<Kernel>> {
        let mut context = context()?;
        context.set_cipher_list("ECDHE-ECDSA-AES128-GCM-SHA256")?;
        if server {
            context.set_certificate_chain_file(workload.cert())?;
            context.set_private_key_file(workload.key(), openssl::ssl::SslFiletype::PEM)?;
        }
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_mtu(16_000)?;
        Ok(SslStream::new(ssl, Kernel(socket))?)
    };
    let mut server = stream(far, true).context(failed)?;
    let accepting = std::thread::spawn(move || server.accept().map_err(io::Error::other));
    let mut client = stream(near, false).context(failed)?;
    client.connect().map_err(io::Error::other).context(failed)?;
    accepting
        .join()
        .map_err(|_| Failure::new("the accepting thread panicked"))?
        .context(failed)?;
    Ok((client, Sink::start(drained, gro)?))
}

fn by_openssl(stream: &mut SslStream<Kernel>, records: u64, payload: u16) -> Result<u64, Failure> {
    let plaintext = vec![0x5A; usize::from(payload)];
    for _ in 0..records {
        stream
            .write_all(&plaintext)
            .context(|| "SSL_write failed".into())?;
    }
    Ok(records)
}

/// Who sends, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    Sendfile,
    Splice,
    Send,
    Openssl,
}

impl Way {
    const ALL: [Way; 4] = [Way::Sendfile, Way::Splice, Way::Send, Way::Openssl];

    fn name(self) -> &'static str {
        match self {
            Way::Sendfile => "sendfile",
            Way::Splice => "splice",
            Way::Send => "send",
            Way::Openssl => "openssl",
        }
    }
}

/// What one way of sending to one kind of sink gave.
struct Series {
    way: Way,
    gro: bool,
    passes: Vec<Pass>,
}

impl Series {
    fn name(&self) -> String {
        let sink = if self.gro { "" } else { "_plain_sink" };
        format!("{}{sink}", self.way.name())
    }

    fn middle(&self, figure: fn(&Pass) -> f64) -> f64 {
        median(&self.passes.iter().map(figure).collect::<Vec<_>>()).unwrap_or_default()
    }
}

/// Runs the benchmark. The caller has entered a namespace.
pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let mut workload = Workload::new("bench")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    say(&format!("writing a file of {} bytes", args.file_size));
    workload.make_file(args.file_size)?;
    workload.settle()?;
    let file = File::open(workload.file()).context(|| "cannot open the file".into())?;
    let daemon = Daemon::start(
        &supervisor,
        workload.folder(),
        &Wanted::new(77, usize::from(args.mtu)),
    )?;
    let payload = u64::from(args.payload);
    let records = args.file_size.div_ceil(payload);
    let pid = Some(daemon.child.pid());

    let sinks: &[bool] = match args.sink_gro {
        None => &[true, false],
        Some(Switch::On) => &[true],
        Some(Switch::Off) => &[false],
    };
    let ways = Way::ALL
        .into_iter()
        .filter(|way| args.only.is_empty() || args.only.contains(way));
    let mut series: Vec<Series> = sinks
        .iter()
        .flat_map(|&gro| {
            ways.clone().map(move |way| Series {
                way,
                gro,
                passes: Vec::new(),
            })
        })
        .collect();
    for round in 0..=args.rounds {
        match round {
            0 => say("warm-up"),
            _ => say(&format!("round {round} of {}", args.rounds)),
        }
        for series in &mut series {
            let pass = if series.way == Way::Openssl {
                let (mut peer, sink) = openssl(&workload, series.gro)?;
                measure(&sink, None, || by_openssl(&mut peer, records, args.payload))?
            } else {
                let sink = KernelSocket::bind(daemon.host(PORT))
                    .context(|| "cannot bind the sink".into())?;
                let sink = Sink::start(sink, series.gro)?;
                // New keys each time: one key seals only so many records.
                let ktls = ktls(&daemon, sink.address, args.payload)?;
                measure(&sink, pid, || match series.way {
                    Way::Sendfile => by_sendfile(&ktls, &file, args.file_size, payload),
                    Way::Splice => by_splice(&ktls, &file, args.file_size),
                    _ => by_send(&ktls, records, args.payload),
                })?
            };
            say(&format!(
                "  {:19} {:9.0} records/s {:6.3} CPU-µs/record {:5.1} % arrived",
                series.name(),
                pass.records_per_second,
                pass.cpu_micros,
                pass.arrived * 100.0
            ));
            if round > 0 {
                series.passes.push(pass);
            }
        }
    }
    Ok(report(args, &series))
}

/// The name of a figure behind its way of sending, its unit, and where it is found.
type Figure = (&'static str, &'static str, fn(&Pass) -> f64);

/// What is printed of a pass, but for how much arrived.
const FIGURES: [Figure; 2] = [
    ("records_per_s", "records/s", |pass| pass.records_per_second),
    ("cpu_us_per_record", "µs/record", |pass| pass.cpu_micros),
];

fn report(args: &Args, series: &[Series]) -> Report {
    let mut report = Report::default();
    for ours in series.iter().filter(|series| series.way != Way::Openssl) {
        let theirs = series
            .iter()
            .find(|series| series.way == Way::Openssl && series.gro == ours.gro);
        for (metric, unit, figure) in FIGURES {
            let (name, value) = (format!("{}_{metric}", ours.name()), ours.middle(figure));
            report.metric(match theirs {
                Some(theirs) => {
                    Metric::beside("dtls", name, unit, value, PEER, theirs.middle(figure))
                }
                None => Metric::alone("dtls", name, unit, value),
            });
        }
    }
    for series in series {
        report.metric(Metric::alone(
            "dtls",
            format!("{}_arrived", series.name()),
            "of 1",
            series.middle(|pass| pass.arrived),
        ));
    }
    report.note(format!(
        "DTLS 1.2 AES-128-GCM, {}-byte payloads, MTU {}, a file of {} bytes, medians of {} rounds; records/s that arrived.",
        args.payload, args.mtu, args.file_size, args.rounds
    ));
    report.note(
        "CPU time is the sending thread's (ours: with `up`'s), which includes the kernel's work on the way to the sink's socket.",
    );
    report.note(
        "Sinks, ours and the peer's alike, set UDP_GRO; a plain_sink does not, and the kernel cuts super-datagrams for it, in the sender's time.",
    );
    report
}
