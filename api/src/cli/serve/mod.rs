//! `uktls serve`: an HTTPS/1.1 file server on the stack.
//!
//! One thread and one mio loop ([`event_loop`]) over connections that are small state machines ([`connection`]). File
//! bodies never pass through here: each is handed to the stack by non-blocking `sendfile`, which takes a few MiB at a time
//! and makes the socket writable when it is ready for more.

mod connection;
mod event_loop;

use super::host::{self, Host};
use super::options::{SocketOption, StackOptions, Switch, TlsOptions};
use super::up::{self, ReadyOptions};
use super::{Context, Failure, Globals, Outcome};
use crate::http::site::Site;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use uktls::client::ListenOptions;
use uktls::handshake::rustls::{Identity, server_config};
use uktls::server::privileges;
use uktls::{Daemon, TcpListener};

/// Serve a folder by HTTPS.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls serve --listen 10.77.0.2:443 .      on the daemon's stack, or on one of its own
  uktls serve --tun t0 --addr 10.1.0.2/24 --listen 10.1.0.2:443 --tls 1.2 /srv
  uktls serve --listen 10.77.0.2:443 --cert chain.pem --key key.pem /srv

Without --cert a certificate for the listening addresses is made up; --cert-out writes it
to a file for `curl --cacert` or `uktls get --cacert`. GET, HEAD and single ranges are
answered; folders by their index.html or a listing; symbolic links only as long as they
stay beneath DIR.")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketOption,
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Address and port to listen on; may be given several times
    #[arg(long, value_name = "ADDR:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// The certificate chain in PEM form [default: a fresh self-signed one]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The certificate's private key in PEM form
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Write the self-signed certificate here
    #[arg(long, value_name = "FILE", conflicts_with = "cert")]
    cert_out: Option<PathBuf>,
    /// Short records while the connection is slow or was idle, full ones in bulk
    #[arg(long, value_enum, value_name = "ON|OFF", default_value = "on")]
    adaptive: Switch,
    /// Connections at the same time; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Seconds that an idle connection is kept
    #[arg(long, value_name = "SECONDS", default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: u64,
    #[command(flatten)]
    ready: ReadyOptions,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    stack: StackOptions,
}

/// What the event loop needs to know.
pub(super) struct Settings {
    pub(super) site: Site,
    pub(super) tls: Arc<rustls::ServerConfig>,
    pub(super) adaptive: bool,
    pub(super) max_connections: usize,
    pub(super) idle_timeout: Duration,
    /// A line a request on stderr.
    pub(super) log: bool,
}

/// Serves until a signal comes.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    let site = Site::open(&args.dir).context(|| format!("cannot serve {}", args.dir.display()))?;
    let identity = identity(&args)?;
    let fingerprint = fingerprint(identity.certificate());
    if let (Some(path), Some(pem)) = (&args.cert_out, identity.self_signed_pem()) {
        std::fs::write(path, pem)
            .context(|| format!("cannot write the certificate {}", path.display()))?;
    }
    // Before a stack is brought up: what is wrong with the certificate, or cannot be had of TLS.
    let mut tls = server_config(identity, &args.tls.choice(), None).map_err(Failure::new)?;
    let signals = event_loop::Signals::listen().context(|| "cannot wait for signals".into())?;

    let (daemon, host) = Host::find_or_start(&args.socket, &args.stack)?;
    if let Some(key_log) = args.tls.key_log.for_rustls(&daemon)? {
        Arc::make_mut(&mut tls).key_log = key_log;
    }
    // The files are opened as this user, with no more rights than that.
    privileges::drop_all().context(|| "cannot drop privileges".into())?;
    let listeners = args
        .listen
        .iter()
        .map(|&address| listen(&daemon, address, host.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;

    let bound: Vec<SocketAddr> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    announce(&args, globals, &daemon, host.as_ref(), &bound, &fingerprint)?;
    let settings = Settings {
        site,
        tls,
        adaptive: args.adaptive == Switch::On,
        max_connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
        idle_timeout: Duration::from_secs(args.idle_timeout),
        log: globals.verbose > 0,
    };
    let served = event_loop::run(&settings, listeners, signals);
    if let Some(host) = host {
        host.stop()?;
    }
    served.context(|| "cannot go on serving".into())?;
    Ok(ExitCode::SUCCESS)
}

fn identity(args: &Args) -> Result<Identity, Failure> {
    let identity = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => Identity::from_pem_files(cert, key),
        _ => {
            let mut names = vec!["localhost".to_owned()];
            let addresses = args
                .stack
                .addresses()
                .map(|found| found.pairs)
                .unwrap_or_default();
            let own = addresses.iter().map(|pair| pair.stack.ip);
            names.extend(
                args.listen
                    .iter()
                    .map(SocketAddr::ip)
                    .chain(own)
                    .map(|ip: IpAddr| ip.to_string()),
            );
            names.dedup();
            Identity::self_signed(names)
        }
    };
    identity.map_err(Failure::new)
}

fn listen(
    daemon: &Daemon,
    address: SocketAddr,
    host: Option<&Host>,
) -> Result<TcpListener, Failure> {
    let options = ListenOptions {
        backlog: 4096,
        ..ListenOptions::default()
    };
    TcpListener::bind_with(daemon, address, &options)
        .map_err(|error| host::cannot_listen(address, &error, host))
}

/// SHA-256 of a certificate as browsers and OpenSSL print it.
fn fingerprint(der: &[u8]) -> String {
    let mut text = String::with_capacity(95);
    for (i, byte) in Sha256::digest(der).iter().enumerate() {
        let colon = if i > 0 { ":" } else { "" };
        write!(text, "{colon}{byte:02X}").expect("writing to a String cannot fail");
    }
    text
}

fn announce(
    args: &Args,
    globals: &Globals,
    daemon: &Daemon,
    host: Option<&Host>,
    bound: &[SocketAddr],
    fingerprint: &str,
) -> Result<(), Failure> {
    let mut message = match host {
        Some(host) => up::message(host, daemon.path()),
        None => json!({ "ready": true, "socket": daemon.path(), "pid": std::process::id() }),
    };
    message["listen"] = json!(bound.iter().map(SocketAddr::to_string).collect::<Vec<_>>());
    message["certificate_sha256"] = json!(fingerprint);
    let urls: Vec<String> = bound
        .iter()
        .map(|address| match address.port() {
            443 if address.is_ipv6() => format!("https://[{}]/", address.ip()),
            443 => format!("https://{}/", address.ip()),
            _ => format!("https://{address}/"),
        })
        .collect();
    let own = if args.cert.is_some() {
        ""
    } else {
        " (self-signed: curl -k, or --cert-out)"
    };
    let words = format!(
        "uktls: serving {} at {}   (Ctrl-C ends it)\nuktls: certificate SHA-256 {fingerprint}{own}",
        args.dir.display(),
        urls.join(" "),
    );
    args.ready.announce(globals, &message, &words)
}
