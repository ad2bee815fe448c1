//! A stack and its daemon in this process: what `up`, `run` and a `serve` without a daemon have in common.

use super::options::{Addresses, DEFAULT_TUN, SocketOption, StackOptions, Switch};
use super::{Context, Failure};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};
use uktls::server::{Running, Server, ServerConfig, privileges};
use uktls::{Daemon, paths};
use uktls_stack::device::capture::Capture;
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::plain_tun::PlainTun;
use uktls_stack::device::tun::{Tun, TunOptions};
use uktls_stack::device::{Capabilities, Device};
use uktls_stack::stack::{Stack, StackConfig};
use uktls_stack::tcp;

/// Under TLS 1.3 a client's secrets open the rest of the packet that it has them from: how long packets wait for them.
const SECRETS_WAIT: Duration = Duration::from_secs(1);

/// A device queue that can go to its shard's thread.
type Queue = Box<dyn Device + Send>;

/// A running stack with its daemon. Dropping it without [`stop`](Self::stop) resets its connections just the same.
pub(crate) struct Host {
    server: Running,
    stack: Stack,
    capture: Option<Capture>,
    pub(crate) tun: String,
    pub(crate) addresses: Addresses,
    pub(crate) capabilities: Capabilities,
}

impl Host {
    /// The daemon to use, and the stack in this process if it is that one: where no daemon answers, or options ask for it.
    pub(crate) fn find_or_start(
        socket: &SocketOption,
        options: &StackOptions,
    ) -> Result<(Daemon, Option<Host>), Failure> {
        let daemon = socket.daemon();
        let named = socket.socket.is_some() || std::env::var_os(paths::SOCKET_VARIABLE).is_some();
        if !options.any_given() {
            match daemon.capabilities() {
                Ok(_) => return Ok((daemon, None)),
                // One that was named and does not answer is a mistake, not a wish for another.
                Err(error) if named => return Err(Failure::new(error)),
                Err(_) => {}
            }
        }
        let socket = socket.socket.clone().unwrap_or_else(paths::default_socket);
        let host = Host::start(options, &socket)?;
        Ok((Daemon::at(socket), Some(host)))
    }

    /// Opens the device, sets its interface up and starts stack and daemon. The threads of both have no privileges; the
    /// calling thread keeps its own.
    pub(crate) fn start(options: &StackOptions, socket: &Path) -> Result<Host, Failure> {
        let addresses = options.addresses()?;
        if Daemon::at(socket).capabilities().is_ok() {
            return Err(Failure::new(format_args!(
                "a daemon already runs at {}: stop it, or give this one another --socket (and --tun and --addr)",
                socket.display()
            )));
        }
        let capture = options
            .pcap
            .as_ref()
            .map(|path| {
                Capture::create(path)
                    .inspect(|capture| capture.hold_back(SECRETS_WAIT))
                    .context(|| format!("cannot write the capture {}", path.display()))
            })
            .transpose()?;
        let (tun, queues) = open(options)?;
        let capabilities = queues[0].capabilities();
        let hosts: Vec<IpCidr> = addresses
            .pairs
            .iter()
            .map(|pair| IpCidr::new(pair.host.ip.into(), pair.host.prefix))
            .collect();
        interface::configure(&tun, options.mtu, &hosts).map_err(Failure::new)?;
        let queues = match &capture {
            Some(capture) => {
                tapped(capture, &tun, queues).context(|| "cannot write the capture".into())?
            }
            None => queues,
        };
        let config = StackConfig {
            addresses: addresses
                .pairs
                .iter()
                .map(|pair| (pair.stack.ip, pair.stack.prefix))
                .collect(),
            mtu: options.mtu,
            tcp: tcp::Config::default(),
            limits: options.limits.stack(),
        };
        let server_config = options.limits.server(ServerConfig {
            no_key_export: options.no_key_export,
            capture: capture.clone(),
            ..ServerConfig::default()
        });
        let (stack, server) = std::thread::scope(|scope| {
            // Capabilities are a thread's, and threads inherit them: everything started from this one has none.
            scope
                .spawn(|| launch(config, queues, socket, server_config))
                .join()
        })
        .unwrap_or_else(|_| Err(Failure::new("the stack panicked while it started")))?;
        Ok(Host {
            server,
            stack,
            capture,
            tun,
            addresses,
            capabilities,
        })
    }

    /// Ends daemon and stack: connections are reset, clients' sockets end, the socket file and the interface go.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        let served = self.server.stop();
        self.stack.stop();
        if let Some(capture) = self.capture {
            capture
                .flush()
                .context(|| "the capture is not complete".into())?;
        }
        served.context(|| "the daemon ended badly".into())
    }
}

/// Why nothing can be had at an address, as a person says it.
pub(crate) fn cannot_listen(
    address: SocketAddr,
    error: &io::Error,
    host: Option<&Host>,
) -> Failure {
    let what = match error.kind() {
        ErrorKind::AddrInUse => "something else listens there: choose another port".into(),
        ErrorKind::AddrNotAvailable => match host {
            Some(host) => {
                let pairs = host.addresses.pairs.iter();
                let own: Vec<String> = pairs.map(|pair| pair.stack.ip.to_string()).collect();
                format!("the stack has only {}", own.join(" and "))
            }
            None => "that is none of the stack's addresses (those of `uktls up`)".into(),
        },
        _ => error.to_string(),
    };
    Failure::new(format_args!("cannot listen on {address}: {what}"))
}

fn launch(
    config: StackConfig,
    queues: Vec<Queue>,
    socket: &Path,
    server_config: ServerConfig,
) -> Result<(Stack, Running), Failure> {
    // The socket's directory may need what is about to be dropped (/run belongs to root).
    privileges::drop_all().context(|| "cannot drop privileges".into())?;
    let stack = Stack::start(config, queues).context(|| "cannot start the stack".into())?;
    match Server::bind(socket, stack.handle(), server_config).and_then(Server::spawn) {
        Ok(server) => Ok((stack, server)),
        Err(error) => {
            stack.stop();
            Err(Failure::new(error))
        }
    }
}

fn open(options: &StackOptions) -> Result<(String, Vec<Queue>), Failure> {
    let name = options.tun.as_deref().unwrap_or(DEFAULT_TUN);
    match options.offload {
        Switch::On => {
            let wanted = TunOptions {
                queues: usize::from(options.shards),
                mtu: options.mtu,
                ..TunOptions::default()
            };
            let queues = Tun::open_with(name, &wanted).map_err(Failure::new)?;
            let name = queues.first().map_or(name, |queue| queue.name()).to_owned();
            Ok((
                name,
                queues
                    .into_iter()
                    .map(|queue| Box::new(queue) as Queue)
                    .collect(),
            ))
        }
        Switch::Off => {
            let device = PlainTun::open(name, options.mtu).map_err(Failure::new)?;
            Ok((device.name().to_owned(), vec![Box::new(device)]))
        }
    }
}

fn tapped(capture: &Capture, tun: &str, queues: Vec<Queue>) -> io::Result<Vec<Queue>> {
    let interface = capture.add_interface(tun)?;
    let now = || {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    Ok(queues
        .into_iter()
        .map(|queue| Box::new(capture.tap(queue, interface, now)) as Queue)
        .collect())
}
