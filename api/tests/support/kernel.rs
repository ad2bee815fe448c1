//! What the tests share in which the socket API is used over the real stack, with the kernel's TCP as the peer: each test in a
//! network namespace of its own.

#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)] // each test file uses its own part

#[path = "common.rs"]
mod common;
#[path = "../../../stack/tests/namespace/mod.rs"]
mod namespace;

pub use common::{eventually, keys};

use namespace::Namespace;
use rustix::io::Errno;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use uktls::server::{Running, Server, ServerConfig};
use uktls::{ContentType, Daemon, TcpStream};
use uktls_record::{Opener, Sealer};
use uktls_stack::device::Device;
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::tun::{Tun, TunOptions};
use uktls_stack::stack::{Limits, Stack, StackConfig};

pub const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const STACK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const MTU: usize = 1500;

/// A stack on a TUN device whose other side is this namespace's kernel.
pub struct Net {
    pub daemon: Daemon,
    server: Option<Running>,
    pub stack: Option<Stack>,
    _directory: tempfile::TempDir,
}

impl Net {
    pub fn new() -> Net {
        let options = TunOptions {
            queues: 1,
            mtu: MTU,
            ..TunOptions::default()
        };
        let queues = Tun::open_with("uktls0", &options).expect("a TUN device");
        interface::configure("uktls0", MTU, &[IpCidr::new(KERNEL.into(), 24)])
            .expect("an interface");
        let queues = queues
            .into_iter()
            .map(|queue| Box::new(queue) as Box<dyn Device + Send>)
            .collect();
        let config = StackConfig {
            addresses: vec![(IpAddr::V4(STACK), 24)],
            mtu: MTU,
            tcp: Default::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, queues).expect("a stack");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("uktls.sock");
        let server =
            Server::bind(&path, stack.handle(), ServerConfig::default()).expect("a fresh path");
        let server = Some(server.spawn().expect("a thread"));
        Net {
            daemon: Daemon::at(path),
            server,
            stack: Some(stack),
            _directory: directory,
        }
    }

    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().expect("a sound server");
        }
        if let Some(stack) = self.stack.take() {
            stack.stop();
        }
    }

    /// A socket of the stack and the kernel's socket at the other end; the kernel accepted.
    pub fn pair(&self) -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind((KERNEL, 0)).expect("bind");
        let ours = TcpStream::connect_on(&self.daemon, listener.local_addr().expect("bound"))
            .expect("connect");
        let (theirs, peer) = listener.accept().expect("accept");
        assert_eq!(peer, ours.local_addr().expect("connected"));
        theirs
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        (ours, theirs)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn inside(name: &str, body: impl FnOnce(&mut Net)) {
    namespace::run(name, Namespace::Network, || body(&mut Net::new()));
}

pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    let error = result.expect_err("an error was expected");
    Errno::from_io_error(&error).expect("an errno")
}

/// The next record on the kernel's socket: type and plaintext.
pub fn open_next(stream: &mut std::net::TcpStream, opener: &mut Opener) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).expect("a header");
    let parsed = opener.parse_header(&header).expect("a sound header");
    let mut record = header.to_vec();
    record.resize(parsed.record_len(), 0);
    stream.read_exact(&mut record[5..]).expect("a record");
    let opened = opener.open_in_place(&mut record).expect("it authenticates");
    (opened.content_type.0, record[opened.plaintext].to_vec())
}

pub fn seal(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut record)
        .expect("sealed");
    record
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}
