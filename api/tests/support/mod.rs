//! What the socket tests share: a server on a path of its own over [`mock::MockStack`].

#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)] // each test file uses its own part

mod common;
pub mod mock;

pub use common::{eventually, keys};

use mock::MockStack;
use std::net::SocketAddr;
use uktls::client::Daemon;
use uktls::server::{Running, Server, ServerConfig};
use uktls::{ProtocolVersion, TcpListener, TcpStream};

/// A daemon without a network: sockets reach each other through the mock's records.
pub struct World {
    pub stack: MockStack,
    pub daemon: Daemon,
    pub directory: tempfile::TempDir,
    server: Option<Running>,
}

impl World {
    pub fn new() -> World {
        World::with(ServerConfig::default())
    }

    pub fn with(config: ServerConfig) -> World {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("uktls.sock");
        let stack = MockStack::default();
        let server = Server::bind(&path, stack.clone(), config).expect("a fresh path");
        let server = Some(server.spawn().expect("a thread"));
        World {
            stack,
            daemon: Daemon::at(path),
            directory,
            server,
        }
    }

    /// The daemon dies: its sockets and its control socket go.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().expect("a sound server");
        }
        self.stack.die();
    }

    /// A connected pair: the one that connected, the one that was accepted.
    pub fn pair(&self) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind_on(&self.daemon, any()).expect("bind");
        let client = TcpStream::connect_on(&self.daemon, listener.local_addr().expect("bound"))
            .expect("connect");
        let (server, peer) = listener.accept().expect("accept");
        assert_eq!(peer, client.local_addr().expect("connected"));
        (client, server)
    }

    /// A connected pair with keys in both directions on both sides.
    pub fn tls_pair(&self, version: ProtocolVersion) -> (TcpStream, TcpStream) {
        let (client, server) = self.pair();
        for (stream, tx, rx) in [(&client, 1, 2), (&server, 2, 1)] {
            stream.set_ulp_tls().expect("ulp");
            stream.set_tls_tx(&keys(version, tx)).expect("tx");
            stream.set_tls_rx(&keys(version, rx)).expect("rx");
        }
        (client, server)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn any() -> SocketAddr {
    "10.77.0.2:0".parse().expect("a literal")
}

/// The errno of an error.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result
        .expect_err("an error was expected")
        .raw_os_error()
        .expect("an errno")
}
