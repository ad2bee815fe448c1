//! One peer, from the handshake to close_notify: what the three commands have in common.

use super::super::host::{self, Host};
use super::super::options::{Cipher, cipher_name};
use super::super::{Context, Failure, Globals, Outcome};
use super::options::PeerOptions;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContextBuilder, SslVerifyMode};
use openssl::x509::X509;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uktls::client::af_ktls::{DatagramFlags, KtlsSocket};
use uktls::handshake::openssl::{Session, close, context};
use uktls::server::privileges;
use uktls::{Daemon, UdpSocket};

/// How long the peer has to answer close_notify. It is told once: peers exist that a record behind their association's end, such as
/// the same once more, keeps busy for good.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long what is under way has to arrive behind a close_notify that overtook it.
const STRAGGLERS: Duration = Duration::from_millis(250);

/// Where peers come from: a socket of the stack's, and how hands are shaken on it.
#[derive(Debug)]
pub(super) struct Meeting {
    socket: UdpSocket,
    place: Place,
    context: ContextFor,
    limit: Duration,
}

#[derive(Debug)]
enum Place {
    Listening(SocketAddr),
    Connected(String),
}

/// Runs `work` with a meeting place until it is done or a signal comes, and takes the stack down if it is one of our own.
///
/// `taken`: stdout is for what is received. `interrupted` is what a signal means.
pub(super) fn run(
    options: PeerOptions,
    globals: &Globals,
    taken: bool,
    interrupted: Outcome,
    work: impl FnOnce(Meeting, Voice) -> Outcome + Send + 'static,
) -> Outcome {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "cannot wait for signals".into())?;
    let voice = Voice {
        json: options.json,
        quiet: globals.quiet,
        taken,
    };
    let identity = options
        .role
        .listen
        .map(|at| identity(&options, at))
        .transpose()?;
    let (daemon, host) = Host::find_or_start(&options.socket, &options.stack)?;
    privileges::drop_all().context(|| "cannot drop privileges".into())?;
    let meeting = Meeting::open(&options, identity, &daemon, host.as_ref())?;
    if let Place::Listening(at) = meeting.place {
        voice.say(
            &json!({ "ready": true, "listen": at.to_string(), "pid": std::process::id() }),
            &format!("uktls: waiting at {at}   (Ctrl-C ends it)"),
        )?;
    }
    // The work may block anywhere; whoever comes first, it or a signal, ends the command.
    let (done, outcome) = crossbeam_channel::bounded(2);
    let signalled = done.clone();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = signalled.send(interrupted);
        }
    });
    std::thread::spawn(move || {
        let _ = done.send(work(meeting, voice));
    });
    let outcome = outcome
        .recv()
        .unwrap_or_else(|_| Err(Failure::new("the transfer panicked")));
    if let Some(host) = host {
        host.stop()?;
    }
    outcome
}

/// What a signal means to a transfer.
pub(super) fn broken_off() -> Outcome {
    Err(Failure::new("interrupted by a signal"))
}

impl Meeting {
    fn open(
        options: &PeerOptions,
        identity: Option<Identity>,
        daemon: &Daemon,
        host: Option<&Host>,
    ) -> Result<Meeting, Failure> {
        let secrets = options.key_log.secrets(daemon)?;
        let context = ContextFor {
            ciphers: ciphers(&options.cipher),
            identity,
            trust: match (&options.cacert, options.insecure) {
                (_, true) => Trust::Anybody,
                (Some(file), false) => Trust::These(certificates(file)?),
                (None, false) => Trust::System,
            },
            secrets: secrets.map(|secrets| Arc::new(Mutex::new(secrets))),
        };
        let limit = Duration::from_secs(options.timeout);
        let (local, place) = match (&options.role.listen, &options.role.connect) {
            (Some(at), _) => (*at, Place::Listening(*at)),
            (None, Some(server)) => {
                let failed = || format!("cannot find the address of {server}");
                let nothing = || Failure::new(format_args!("{server} has no address"));
                let found = server.to_socket_addrs().context(failed)?.next();
                let any: IpAddr = match found.ok_or_else(nothing)? {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                (SocketAddr::new(any, 0), Place::Connected(server.clone()))
            }
            (None, None) => return Err(Failure::new("neither --listen nor --connect")),
        };
        let socket = UdpSocket::bind_on(daemon, local, None)
            .map_err(|error| host::cannot_listen(local, &error, host))?;
        let place = match place {
            Place::Listening(_) => Place::Listening(
                socket
                    .local_addr()
                    .context(|| "a socket without an address".into())?,
            ),
            connected => connected,
        };
        Ok(Meeting {
            socket,
            place,
            context,
            limit,
        })
    }

    /// Whether peers come here, one after the other.
    pub(super) fn is_server(&self) -> bool {
        matches!(self.place, Place::Listening(_))
    }

    /// How long anything is waited for.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The next peer, once hands are shaken with it.
    pub(super) fn associate(&self) -> Result<Association, Failure> {
        let context = self.context.build().context(|| "OpenSSL refuses".into())?;
        let failed = || "cannot go on".to_owned();
        let socket = self.socket.try_clone().context(failed)?;
        let session = match &self.place {
            Place::Listening(at) => {
                Session::accept(&socket, context, self.limit).map_err(|error| {
                    match error.kind() {
                        ErrorKind::TimedOut => Failure::new(format_args!(
                            "no DTLS client at {at} within {} s",
                            self.limit.as_secs()
                        )),
                        _ => Failure::new(format_args!("no DTLS handshake at {at}: {error}")),
                    }
                })?
            }
            Place::Connected(server) => {
                socket
                    .connect(server)
                    .context(|| format!("cannot connect to {server}"))?;
                let name = server
                    .rsplit_once(':')
                    .map_or(&server[..], |(name, _)| name);
                let name = name.trim_start_matches('[').trim_end_matches(']');
                Session::connect(&socket, context, name, self.limit).map_err(|error| match error
                    .kind()
                {
                    ErrorKind::TimedOut => Failure::new(format_args!(
                        "{server} does not answer by DTLS within {} s",
                        self.limit.as_secs()
                    )),
                    _ => Failure::new(format_args!("no DTLS association with {server}: {error}")),
                })?
            }
        };
        let ktls = session.bind(&socket).context(failed)?;
        Ok(Association {
            first: session.rx.sequence(),
            session,
            ktls,
            socket,
            closed: false,
            begun: Instant::now(),
        })
    }
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// A record waits.
    Record,
    /// The peer has said close_notify, and nothing waits any more.
    Close,
    /// Nothing.
    Silence,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) ktls: KtlsSocket,
    pub(super) begun: Instant,
    session: Session,
    socket: UdpSocket,
    /// Number of the first record that the stack opens.
    first: u64,
    closed: bool,
}

impl Association {
    /// Who it is.
    pub(super) fn peer(&self) -> Result<SocketAddr, Failure> {
        self.ktls.peer_addr().context(|| "the peer is gone".into())
    }

    /// The cipher, by the name that `--cipher` has for it.
    pub(super) fn cipher(&self) -> &'static str {
        cipher_name(self.session.tx.cipher())
    }

    /// The largest UDP payload that leaves without being fragmented.
    pub(super) fn datagram(&self) -> Result<usize, Failure> {
        let headers = match self.peer()? {
            SocketAddr::V4(_) => 28,
            SocketAddr::V6(_) => 48,
        };
        let mtu = self
            .socket
            .path_mtu()
            .context(|| "cannot ask for the path's MTU".into())?;
        Ok(mtu - headers)
    }

    /// Bytes that a record has beside its payload.
    pub(super) fn overhead(&self) -> usize {
        self.session.tx.version().overhead(self.session.tx.cipher())
    }

    /// Waits for a record or the peer's close_notify.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Heard, Failure> {
        let failed = || "the association broke off".to_owned();
        let deadline = Instant::now() + limit;
        let mut until = deadline;
        loop {
            if self.closed {
                // What was sent before may come behind it; nothing that is known to be missing is worth more than a moment.
                let late = self.lost()? > 0;
                until = until.min(Instant::now() + if late { STRAGGLERS } else { Duration::ZERO });
            }
            let raw = if self.closed {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            let mut fds = [
                PollFd::new(&self.ktls, PollFlags::IN),
                PollFd::new(&self.socket, raw),
            ];
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(failed),
            }
            let [record, raw] = fds.map(|fd| !fd.revents().is_empty());
            if record {
                return Ok(Heard::Record);
            }
            if raw && !self.closed {
                self.closed = self.session.peer_closed().context(failed)?;
            } else if Instant::now() >= until {
                return Ok(if self.closed {
                    Heard::Close
                } else {
                    Heard::Silence
                });
            }
        }
    }

    /// Takes the next record, which waits.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.ktls
            .recv(buffer, DatagramFlags::empty())
            .map(|received| received.len)
            .context(|| "cannot receive".into())
    }

    /// How many records the peer numbered that did not come: gaps among those that came, and with close_notify those before it.
    pub(super) fn lost(&self) -> Result<u64, Failure> {
        let stat = self
            .ktls
            .stat()
            .context(|| "the daemon does not answer".into())?;
        let next = stat.rx.map_or(self.first, |rx| rx.sequence);
        let next = match self.session.closing_number() {
            Some(number) => next.max(number),
            None => next,
        };
        Ok(next.saturating_sub(self.first).saturating_sub(stat.opened))
    }

    /// How many records were opened and then dropped, because this process did not read them in time.
    pub(super) fn unread(&self) -> Result<u64, Failure> {
        let stat = self
            .ktls
            .stat()
            .context(|| "the daemon does not answer".into())?;
        Ok(stat.full)
    }

    /// Says close_notify, and waits a moment for the peer to say it too. Gives whether it did.
    pub(super) fn close(mut self) -> Result<bool, Failure> {
        let failed = || "cannot close".to_owned();
        close(&self.ktls).context(failed)?;
        let deadline = Instant::now() + FAREWELL;
        while !self.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait(left)? {
                // Nobody wants it any more.
                Heard::Record if !left.is_zero() => drop(self.receive(&mut [])?),
                Heard::Record | Heard::Close | Heard::Silence => break,
            }
        }
        self.ktls.unattach().context(failed)?;
        Ok(self.closed)
    }
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice {
    json: bool,
    quiet: bool,
    /// stdout is taken.
    taken: bool,
}

impl Voice {
    /// Says something, to programs or to people.
    pub(super) fn say(self, message: &serde_json::Value, words: &str) -> Result<(), Failure> {
        match (self.json, self.taken) {
            (true, true) => eprintln!("{message}"),
            (true, false) => {
                let mut stdout = io::stdout().lock();
                writeln!(stdout, "{message}")
                    .and_then(|()| stdout.flush())
                    .context(|| "cannot write to stdout".into())?;
            }
            (false, _) if self.quiet => {}
            (false, _) => eprintln!("{words}"),
        }
        Ok(())
    }
}

/// "12.3 MB/s" and how long it took.
pub(super) fn pace(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let rate = super::super::stat::bytes((bytes as f64 / seconds.max(1e-9)) as u64);
    format!("in {seconds:.2} s ({rate}B/s)")
}

/// "1 record", "2 records".
pub(super) fn records(count: u64) -> String {
    match count {
        1 => "1 record".into(),
        count => format!("{count} records"),
    }
}

pub(super) fn done() -> Outcome {
    Ok(ExitCode::SUCCESS)
}

// ---- contexts ---------------------------------------------------------------------------------------------------------

/// What every handshake's context is made from.
#[derive(Debug)]
struct ContextFor {
    ciphers: Option<String>,
    identity: Option<Identity>,
    trust: Trust,
    secrets: Option<Arc<Mutex<super::super::options::Secrets>>>,
}

#[derive(Debug)]
enum Trust {
    Anybody,
    These(Vec<X509>),
    System,
}

/// A server's certificate and key.
#[derive(Debug)]
struct Identity {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl ContextFor {
    fn build(&self) -> io::Result<SslContextBuilder> {
        let mut made = context()?;
        if let Some(ciphers) = &self.ciphers {
            made.set_cipher_list(ciphers)?;
        }
        if let Some(secrets) = self.secrets.clone() {
            made.set_keylog_callback(move |_, line| {
                let mut secrets = secrets.lock().unwrap_or_else(PoisonError::into_inner);
                // As with rustls: a transfer does not fail because nobody can look at it.
                if let Err(error) = secrets.write_all(format!("{line}\n").as_bytes()) {
                    tracing::warn!("cannot log the handshake's secrets: {error}");
                }
            });
        }
        if let Some(Identity { chain, key }) = &self.identity {
            if let [own, further @ ..] = &chain[..] {
                made.set_certificate(own)?;
                for certificate in further {
                    made.add_extra_chain_cert(certificate.clone())?;
                }
            }
            made.set_private_key(key)?;
            made.check_private_key()?;
            return Ok(made);
        }
        match &self.trust {
            Trust::Anybody => made.set_verify(SslVerifyMode::NONE),
            Trust::These(certificates) => {
                made.set_verify(SslVerifyMode::PEER);
                for certificate in certificates {
                    made.cert_store_mut().add_cert(certificate.clone())?;
                }
            }
            Trust::System => {
                made.set_verify(SslVerifyMode::PEER);
                made.set_default_verify_paths()?;
            }
        }
        Ok(made)
    }
}

/// OpenSSL's names of these ciphers' suites, in this order; all that [`context`] has if none is named.
fn ciphers(wanted: &[Cipher]) -> Option<String> {
    let suites = |cipher: &Cipher| match cipher {
        Cipher::Aes128gcm => "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
        Cipher::Aes256gcm => "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384",
        Cipher::Chacha20 => "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
    };
    let suites: Vec<&str> = wanted.iter().map(suites).collect();
    (!suites.is_empty()).then(|| suites.join(":"))
}

/// Reads `--cert` and `--key`, or makes a certificate for the listening address.
fn identity(options: &PeerOptions, at: SocketAddr) -> Result<Identity, Failure> {
    if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
        let chain = certificates(cert)?;
        let bytes = read(key, "private key")?;
        let name = key.display();
        let key = PKey::private_key_from_pem(&bytes)
            .map_err(|_| Failure::new(format_args!("{name} holds no private key in PEM form")))?;
        let fits = chain
            .first()
            .and_then(|own| own.public_key().ok())
            .is_some_and(|public| public.public_eq(&key));
        if !fits {
            return Err(Failure::new(format_args!(
                "{name} is not the key of the certificate {}",
                cert.display()
            )));
        }
        return Ok(Identity { chain, key });
    }
    let failed = || "cannot make a certificate".to_owned();
    let names = vec!["localhost".to_owned(), at.ip().to_string()];
    let made = rcgen::generate_simple_self_signed(names).context(failed)?;
    let pem = made.cert.pem();
    if let Some(path) = &options.cert_out {
        std::fs::write(path, &pem)
            .context(|| format!("cannot write the certificate {}", path.display()))?;
    }
    Ok(Identity {
        chain: X509::stack_from_pem(pem.as_bytes()).context(failed)?,
        key: PKey::private_key_from_pem(made.signing_key.serialize_pem().as_bytes())
            .context(failed)?,
    })
}

fn certificates(path: &Path) -> Result<Vec<X509>, Failure> {
    let bytes = read(path, "certificate")?;
    match X509::stack_from_pem(&bytes) {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(Failure::new(format_args!(
            "{} holds no certificate in PEM form",
            path.display()
        ))),
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).context(|| format!("cannot read the {what} {}", path.display()))
}
