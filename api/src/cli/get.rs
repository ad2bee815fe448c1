//! `uktls get`: an HTTPS client whose records the stack opens (`TLS_RX`).
//!
//! Where the body goes to a file, the stack writes it there itself (`recvfile`): neither plaintext nor cryptography in this
//! process. Elsewhere (a pipe, a terminal), and for what is short, it is read in large pieces and written.

use super::options::{SocketOption, TlsOptions, cipher_name};
use super::progress::Progress;
use super::{Context, Failure, Globals, Outcome};
use crate::http::response::{self, Body, Head};
use rustls::pki_types::ServerName;
use serde_json::json;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uktls::client::ConnectOptions;
use uktls::handshake::rustls::{TlsStream, Trust, client_config};
use uktls::{CipherSuite, ProtocolVersion, TcpStream};
use url::{Host, Url};

/// Bytes asked for by one read: large enough that system calls do not count, small enough to stay in the CPU's cache.
const PIECE: usize = 256 * 1024;
/// A rest of a body, or of a chunk of it, that is longer than this is left to the stack.
const WORTH_ASKING: u64 = 4 * PIECE as u64;
/// Bytes that the stack is asked for at first, and at most, at a time: in between, this process looks after the progress bar.
const PIECES: std::ops::RangeInclusive<u64> = (8 << 20)..=(128 << 20);
/// A piece that takes longer than this is not followed by a larger one.
const PIECE_TIME: Duration = Duration::from_millis(250);
/// A response head larger than this is refused.
const MAX_HEAD: usize = 64 * 1024;

/// Fetch a URL through the stack, decrypting in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls get https://10.77.0.1:8443/big.iso
  uktls get --insecure --tls 1.2 --cipher aes256gcm https://10.77.0.1/ -o -
  uktls get --cacert ca.pem --range 0-99 --json https://files.test/x -o /dev/null

Names are looked up as the system does (/etc/hosts, DNS). Redirects are not followed. The
exit status is 0 only if the whole body arrived: a connection that ends early is an error.")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketOption,
    /// https:// or http:// and so on
    url: Url,
    /// Where the body goes; - is stdout [default: the last part of the URL's path]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ask for a part only, as in 0-99, 100- or -50
    #[arg(long, value_name = "FIRST-LAST")]
    range: Option<String>,
    /// Accept any certificate
    #[arg(short = 'k', long, conflicts_with = "cacert")]
    insecure: bool,
    /// Accept certificates signed by those in this PEM file, and no others
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Seconds to wait for the connection, and for each piece of the response
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Print a summary as one line of JSON (to stderr when the body goes to stdout)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: TlsOptions,
}

/// Where the response comes from.
enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.read(buf),
            Connection::Tls(stream) => stream.read(buf),
        }
    }
}

impl Connection {
    /// Has the stack write up to `count` bytes to the file.
    fn recvfile(&mut self, file: &File, count: u64) -> io::Result<u64> {
        match self {
            Connection::Plain(stream) => stream.recvfile(file, None, count),
            Connection::Tls(stream) => stream.recvfile(file, None, count),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.write(buf),
            Connection::Tls(stream) => stream.write(buf),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => stream.flush(),
            Connection::Tls(stream) => stream.flush(),
        }
    }
}

/// Fetches.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    let started = Instant::now();
    let mut connection = connect(&args)?;
    let connected = started.elapsed();
    let request = request(&args);
    connection
        .write_all(request.as_bytes())
        .context(|| format!("cannot send the request to {}", args.url))?;

    let mut buffer = vec![0; PIECE];
    let (head, body_start, filled) = read_head(&mut connection, &mut buffer, &args.url)?;
    if globals.verbose > 0 {
        eprintln!(
            "{}",
            String::from_utf8_lossy(&buffer[..body_start]).trim_end()
        );
    }
    if !(200..300).contains(&head.status) {
        let whither = head
            .location
            .as_ref()
            .map_or(String::new(), |to| format!(" (it points to {to})"));
        return Err(Failure::new(format_args!(
            "{} answered {} {}{whither}",
            args.url, head.status, head.reason
        )));
    }
    if args.range.is_some() && head.status != 206 {
        return Err(Failure::new(format_args!(
            "{} does not serve ranges (it answered {})",
            args.url, head.status
        )));
    }
    let (output, name) = open_output(&args)?;
    let progress = Progress::new(
        globals,
        match head.body {
            Body::Length(len) => Some(len),
            Body::Chunked | Body::UntilClose => None,
        },
    );
    let mut sink = Sink {
        output,
        copied: 0,
        progress,
    };
    let outcome = copy(
        &mut connection,
        &mut buffer,
        body_start..filled,
        head.body,
        &mut sink,
    );
    let Sink {
        mut output,
        copied,
        progress,
    } = sink;
    drop(progress);
    match outcome {
        Ok(()) => {}
        Err(CopyError::Sink(error)) => {
            return Err(error).context(|| format!("cannot write to {name}"));
        }
        Err(CopyError::Source(error)) => {
            return Err(error).context(|| format!("{} broke off after {copied} bytes", args.url));
        }
    }
    output
        .flush()
        .context(|| format!("cannot write to {name}"))?;
    let seconds = started.elapsed();
    let tls = negotiated(&connection);
    if let Connection::Tls(stream) = &mut connection {
        // The body is complete; whether the peer still hears the farewell does not matter.
        drop(stream.close_notify());
    }
    summarise(
        &args,
        globals,
        &name,
        &Summary {
            head,
            copied,
            connected,
            seconds,
            tls,
        },
    );
    Ok(ExitCode::SUCCESS)
}

struct Summary {
    head: Head,
    copied: u64,
    connected: Duration,
    seconds: Duration,
    tls: Option<(ProtocolVersion, CipherSuite)>,
}

fn summarise(args: &Args, globals: &Globals, name: &str, summary: &Summary) {
    let (version, cipher) = match summary.tls {
        None => (None, None),
        Some((version, cipher)) => (
            Some(match version {
                ProtocolVersion::Tls12 => "1.2",
                ProtocolVersion::Tls13 => "1.3",
            }),
            Some(cipher_name(cipher)),
        ),
    };
    let seconds = summary.seconds.as_secs_f64();
    if args.json {
        let line = json!({
            "url": args.url.as_str(),
            "status": summary.head.status,
            "output": name,
            "bytes": summary.copied,
            "seconds": seconds,
            "connect_seconds": summary.connected.as_secs_f64(),
            "tls": version,
            "cipher": cipher,
        });
        if name == "stdout" {
            eprintln!("{line}")
        } else {
            println!("{line}")
        }
    } else if !globals.quiet && name != "stdout" {
        let rate = super::stat::bytes((summary.copied as f64 / seconds.max(1e-9)) as u64);
        let tls = match (version, cipher) {
            (Some(version), Some(cipher)) => format!("TLS {version} {cipher}"),
            _ => "no TLS".into(),
        };
        eprintln!(
            "{name}: {} bytes in {seconds:.2} s ({rate}B/s, {tls})",
            summary.copied
        );
    }
}

fn negotiated(connection: &Connection) -> Option<(ProtocolVersion, CipherSuite)> {
    match connection {
        Connection::Plain(_) => None,
        Connection::Tls(stream) => stream.negotiated().ok(),
    }
}

fn connect(args: &Args) -> Result<Connection, Failure> {
    let url = &args.url;
    let secure = match url.scheme() {
        "https" => true,
        "http" => false,
        other => {
            return Err(Failure::new(format_args!(
                "{url}: {other}:// is not supported, only https:// and http://"
            )));
        }
    };
    let host = url
        .host()
        .ok_or_else(|| Failure::new(format_args!("{url} names no host")))?;
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses: Vec<SocketAddr> = match host {
        Host::Ipv4(ip) => vec![(ip, port).into()],
        Host::Ipv6(ip) => vec![(ip, port).into()],
        Host::Domain(name) => (name, port)
            .to_socket_addrs()
            .context(|| format!("cannot find the address of {name}"))?
            .collect(),
    };
    let timeout = Duration::from_secs(args.timeout);
    let daemon = args.socket.daemon();
    let config = secure
        .then(|| {
            let trust = match (&args.cacert, args.insecure) {
                (Some(file), _) => Trust::File(file.clone()),
                (None, true) => Trust::Anybody,
                (None, false) => Trust::WebRoots,
            };
            client_config(
                &trust,
                &args.tls.choice(),
                args.tls.key_log.for_rustls(&daemon)?,
            )
            .map_err(Failure::new)
        })
        .transpose()?;
    daemon.capabilities().map_err(Failure::new)?;
    let stream = connect_to_any(&daemon, &addresses, timeout)
        .context(|| format!("cannot connect to {url}"))?;
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .context(|| "cannot set a timeout".into())?;
    let Some(config) = config else {
        return Ok(Connection::Plain(stream));
    };
    let name = match host {
        Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::V4(ip)),
        Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::V6(ip)),
        Host::Domain(name) => ServerName::try_from(name.to_owned())
            .context(|| format!("{name} cannot be the name in a certificate"))?,
    };
    let stream = TlsStream::connect(stream, config, name)
        .context(|| format!("no TLS connection to {url}"))?;
    Ok(Connection::Tls(Box::new(stream)))
}

fn connect_to_any(
    daemon: &uktls::Daemon,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::AddrNotAvailable, "the name has no address");
    for &address in addresses {
        let options = ConnectOptions {
            timeout: Some(timeout),
            ..ConnectOptions::default()
        };
        match TcpStream::connect_with(daemon, address, &options) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn request(args: &Args) -> String {
    let url = &args.url;
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    let query = url
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let range = args
        .range
        .as_ref()
        .map_or(String::new(), |range| format!("Range: bytes={range}\r\n"));
    format!(
        "GET {}{query} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: uktls/{}\r\nAccept: */*\r\n{range}Connection: close\r\n\r\n",
        url.path(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Reads until the head is complete. Gives it, where the body starts in `buffer` and how much of `buffer` is filled.
fn read_head(
    connection: &mut Connection,
    buffer: &mut [u8],
    url: &Url,
) -> Result<(Head, usize, usize), Failure> {
    let mut filled = 0;
    loop {
        let got = connection
            .read(&mut buffer[filled..MAX_HEAD])
            .context(|| format!("no response from {url}"))?;
        filled += got;
        let parsed = response::parse(&buffer[..filled])
            .context(|| format!("{url} does not speak HTTP/1"))?;
        match parsed {
            Some((head, len)) => return Ok((head, len, filled)),
            None if got == 0 => {
                return Err(Failure::new(format_args!(
                    "{url} closed without a response"
                )));
            }
            None if filled == MAX_HEAD => {
                return Err(Failure::new(format_args!(
                    "{url} answers with a head of more than 64 KiB"
                )));
            }
            None => {}
        }
    }
}

enum CopyError {
    Source(io::Error),
    Sink(io::Error),
}

/// Where the body goes.
struct Sink {
    output: Output,
    copied: u64,
    progress: Progress,
}

enum Output {
    /// A file that the stack can write to.
    File(File),
    /// Anything else.
    Other(Box<dyn Write>),
}

impl Output {
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::File(file) => file.flush(),
            Output::Other(output) => output.flush(),
        }
    }
}

impl Sink {
    fn write(&mut self, piece: &[u8]) -> Result<(), CopyError> {
        match &mut self.output {
            Output::File(file) => file.write_all(piece),
            Output::Other(output) => output.write_all(piece),
        }
        .map_err(CopyError::Sink)?;
        self.copied += piece.len() as u64;
        self.progress.at(self.copied);
        Ok(())
    }

    /// Has the stack bring up to `limit` bytes, as many as come without another end. Gives their number: 0 when it cannot,
    /// or when that is not worth it.
    fn receive(&mut self, connection: &mut Connection, limit: u64) -> Result<u64, CopyError> {
        let Output::File(file) = &self.output else {
            return Ok(0);
        };
        let (mut received, mut piece) = (0, *PIECES.start());
        while limit - received >= WORTH_ASKING {
            let started = Instant::now();
            let want = piece.min(limit - received);
            let got = match connection.recvfile(file, want) {
                Ok(got) => got,
                // A read and a write meet the same error, and tell which side's it is.
                Err(error)
                    if error.kind() != ErrorKind::WouldBlock && error.raw_os_error().is_some() =>
                {
                    break;
                }
                Err(error) => return Err(late(error)),
            };
            if got == 0 {
                break;
            }
            received += got;
            self.copied += got;
            self.progress.at(self.copied);
            if started.elapsed() < PIECE_TIME {
                piece = (piece * 2).min(*PIECES.end());
            }
        }
        Ok(received)
    }
}

/// Brings the body to `sink`, of which `buffer[first]` has arrived already.
fn copy(
    connection: &mut Connection,
    buffer: &mut [u8],
    first: std::ops::Range<usize>,
    body: Body,
    sink: &mut Sink,
) -> Result<(), CopyError> {
    match body {
        Body::Length(len) => {
            let mut left = len;
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(first.len());
            sink.write(&buffer[first.start..first.start + here])?;
            left -= here as u64;
            left -= sink.receive(connection, left)?;
            while left > 0 {
                let want = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let got = read_some(connection, &mut buffer[..want])?;
                if got == 0 {
                    let what = format!("{left} bytes are missing");
                    return Err(CopyError::Source(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        what,
                    )));
                }
                sink.write(&buffer[..got])?;
                left -= got as u64;
            }
            Ok(())
        }
        Body::Chunked => {
            let mut chunks = response::Chunks::default();
            let mut piece = first;
            loop {
                let mut at = piece.start;
                while at < piece.end {
                    let step = chunks
                        .next(&buffer[at..piece.end])
                        .map_err(CopyError::Source)?;
                    sink.write(&buffer[at + step.data.start..at + step.data.end])?;
                    at += step.used;
                    if step.done {
                        return Ok(());
                    }
                }
                // The rest of a chunk needs nobody to look at it.
                let received = sink.receive(connection, chunks.rest())?;
                chunks.skip(received);
                let got = read_some(connection, buffer)?;
                if got == 0 {
                    let error =
                        io::Error::new(ErrorKind::UnexpectedEof, "the last chunk is missing");
                    return Err(CopyError::Source(error));
                }
                piece = 0..got;
            }
        }
        Body::UntilClose => {
            sink.write(&buffer[first])?;
            sink.receive(connection, u64::MAX)?;
            loop {
                // TLS gives 0 behind close_notify only; a plain end that is not in order is an error too.
                match read_some(connection, buffer)? {
                    0 => return Ok(()),
                    got => sink.write(&buffer[..got])?,
                }
            }
        }
    }
}

fn read_some(connection: &mut Connection, buffer: &mut [u8]) -> Result<usize, CopyError> {
    loop {
        match connection.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other.map_err(late),
        }
    }
}

/// A read that waited in vain is no longer just that.
fn late(error: io::Error) -> CopyError {
    CopyError::Source(if error.kind() == ErrorKind::WouldBlock {
        io::Error::new(
            ErrorKind::TimedOut,
            "nothing came for as long as --timeout says",
        )
    } else {
        error
    })
}

/// Opens what `-o` names, or what the URL does; gives its name for messages.
fn open_output(args: &Args) -> Result<(Output, String), Failure> {
    let path = match &args.output {
        Some(path) if path.as_os_str() == "-" => {
            return Ok((Output::Other(Box::new(io::stdout())), "stdout".into()));
        }
        Some(path) => path.clone(),
        None => PathBuf::from(default_name(&args.url)),
    };
    let name = path.display().to_string();
    let file = File::create(&path).context(|| format!("cannot write to {name}"))?;
    Ok((Output::File(file), name))
}

/// The last part of the path, decoded; never one that means another folder.
fn default_name(url: &Url) -> String {
    let last = url
        .path_segments()
        .and_then(|mut parts| parts.next_back())
        .unwrap_or_default();
    let name = percent_encoding::percent_decode_str(last)
        .decode_utf8_lossy()
        .into_owned();
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        "index.html".into()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_stay_in_this_folder() {
        for (url, want) in [
            ("https://x/a/b.iso?q", "b.iso"),
            ("https://x/a%20b", "a b"),
            ("https://x/", "index.html"),
            ("https://x/a/", "index.html"),
            ("https://x/..%2f..%2fetc%2fpasswd", "index.html"),
        ] {
            assert_eq!(default_name(&url.parse().expect("a URL")), want, "{url}");
        }
    }
}
