//! rustls with aws-lc-rs over kernel TCP: the same crypto library as ours, so that what remains is the path.
//!
//! A server as its author would write it first: read a piece of the file, write it to the TLS stream, again. It runs as a process of
//! its own, so that its CPU time can be told apart.

use super::super::super::supervise::{Child, Supervisor, ourselves};
use super::super::super::{Context, Failure, Outcome};
use super::super::workload::Workload;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ServerConfig, ServerConnection, StreamOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Its name in the figures, whichever size of writes was the better.
pub(crate) const NAME: &str = "rustls-aws-lc-loopback";

/// A client that takes nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(15);

/// Serve one file with rustls over kernel TCP (a peer of the benchmarks).
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    file: PathBuf,
    /// Bytes given to rustls at a time
    #[arg(long)]
    write: usize,
}

/// Starts the server on a loopback port, and gives its address.
pub(crate) fn start(
    supervisor: &Supervisor,
    workload: &Workload,
    write: usize,
) -> Result<(Child, SocketAddr), Failure> {
    let mut command = ourselves()?;
    command
        .args(["bench", "rustls-server", "--listen", "127.0.0.1:0"])
        .args(["--write", &write.to_string()])
        .arg("--cert")
        .arg(workload.cert())
        .arg("--key")
        .arg(workload.key())
        .arg("--file")
        .arg(workload.file());
    let mut child = supervisor.spawn(&format!("rustls server ({write})"), command)?;
    let line = supervisor.line(&mut child, Duration::from_secs(10))?;
    let address = line
        .parse()
        .context(|| format!("the rustls server said {line:?} instead of its address"))?;
    Ok((child, address))
}

/// Runs the server: prints its address, then serves until it is ended.
pub(crate) fn serve(args: ServerArgs) -> Outcome {
    let config = Arc::new(config(&args)?);
    let listener =
        TcpListener::bind(args.listen).context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener
        .local_addr()
        .context(|| "cannot read the listener's address".into())?;
    println!("{address}");
    loop {
        let (stream, _) = listener.accept().context(|| "cannot accept".into())?;
        if let Err(failure) = answer(stream, Arc::clone(&config), &args) {
            eprintln!("{failure}");
        }
    }
}

fn config(args: &ServerArgs) -> Result<ServerConfig, Failure> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    let cert = CertificateDer::from_pem_file(&args.cert)
        .context(|| format!("cannot read {}", args.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&args.key)
        .context(|| format!("cannot read {}", args.key.display()))?;
    ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![cert], key)
        })
        .context(|| "rustls refuses its configuration".into())
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, args: &ServerArgs) -> Result<(), Failure> {
    let failed = || "connection".to_string();
    stream.set_nodelay(true).context(failed)?;
    stream.set_read_timeout(Some(SILENCE)).context(failed)?;
    stream.set_write_timeout(Some(SILENCE)).context(failed)?;
    let connection = ServerConnection::new(config).context(failed)?;
    let mut tls = StreamOwned::new(connection, stream);
    let mut request = Vec::new();
    let mut piece = vec![0; args.write];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match tls.read(&mut piece) {
            // Someone who only looked whether the port is open.
            Ok(0) => return Ok(()),
            Ok(length) => request.extend_from_slice(&piece[..length]),
            Err(_) if request.is_empty() => return Ok(()),
            Err(error) => return Err(error).context(failed),
        }
    }
    let mut file = File::open(&args.file).context(failed)?;
    let length = file.metadata().context(failed)?.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    tls.write_all(head.as_bytes()).context(failed)?;
    loop {
        let length = file.read(&mut piece).context(failed)?;
        if length == 0 {
            break;
        }
        tls.write_all(&piece[..length]).context(failed)?;
    }
    tls.conn.send_close_notify();
    tls.flush().context(failed)
}
