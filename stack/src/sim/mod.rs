//! The simulator: the same stack under a virtual clock, on links that lose, delay and damage packets as told.
//!
//! A simulation is an ordinary `#[test]`. It builds a network, starts programs on its hosts, and runs until they have ended.
//! Everything that happens follows from the seed: the same seed gives the same packets, byte for byte, at the same virtual
//! times. A minute of virtual time takes as long as the packets in it take to be computed.
//!
//! # A first test
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use uktls_stack::clock::Duration;
//! use uktls_stack::sim::{self, TcpListener, TcpStream};
//! use uktls_stack::sim::link::{Knobs, Loss};
//! use uktls_stack::sim::random::Chance;
//!
//! // In a test file: #[test] fn echo_survives_loss()
//! let report = sim::run(|net| {
//!     let server = net.host("server", "10.0.0.1");
//!     let client = net.host("client", "10.0.0.2");
//!     net.link(&client, &server, Knobs {
//!         delay: Duration::from_millis(20),
//!         loss: Loss::random(Chance::percent(5)),
//!         ..Knobs::default()
//!     });
//!
//!     // A program runs in the background, and again after a restart of its host.
//!     server.program(|| async {
//!         let listener = TcpListener::bind("0.0.0.0:7").await.unwrap();
//!         loop {
//!             let (mut stream, _) = listener.accept().await.unwrap();
//!             sim::spawn_background(async move {
//!                 let (mut read, mut write) = tokio::io::split(&mut stream);
//!                 tokio::io::copy(&mut read, &mut write).await.unwrap();
//!                 write.shutdown().await.unwrap();
//!             });
//!         }
//!     });
//!
//!     // The run ends when what was spawned has ended.
//!     client.spawn(async {
//!         let mut stream = TcpStream::connect("server:7").await.unwrap();
//!         stream.write_all(b"hello").await.unwrap();
//!         let mut answer = [0; 5];
//!         stream.read_exact(&mut answer).await.unwrap();
//!         assert_eq!(&answer, b"hello");
//!     });
//! });
//! assert!(report.totals.data_delivered >= 2);
//! ```
//!
//! The sockets implement tokio's `AsyncRead` and `AsyncWrite`, so rustls, hyper and others run on them unchanged; no tokio runtime
//! is needed, or wanted. [`sleep`], [`timeout`] and [`now`] are virtual. Keys are set on a [`TcpStream`] exactly as in
//! the daemon: [`TcpStream::set_ulp_tls`], [`TcpStream::set_tls_tx`], [`TcpStream::set_tls_rx`]. For DTLS a [`KtlsSocket`] is laid over a
//! [`UdpSocket`], and takes the keys of each epoch.
//!
//! # When it fails
//!
//! A panic in any task, a broken [invariant], or a deadlock ends the run: the message has the seed, the virtual time, the last packets a
//! line each, and the one command that repeats it. [`Runs`] has the environment's variables:
//! `UKTLS_SEEDS=1000 cargo test` tries a thousand seeds, `UKTLS_CHECK_DETERMINISM=1` runs each twice and names the first packet
//! that differs, `UKTLS_SHRINK=1` finds the least that still fails and prints it as code, for [`Net::replay`].
//!
//! # What makes a run differ from itself
//!
//! Nothing in here. In what runs on it: real time (`std::time`, hyper's `Date` header), real randomness, the order of a `HashMap` with
//! the usual `RandomState`, tokio's `select!` (say `biased;`), threads. TLS libraries draw randomness of their own, and not only from where they say.
//!
//! # What it leaves out
//!
//! Computing takes no virtual time. There is no Ethernet, so no ARP and no collisions. Routers have no sockets: they answer pings,
//! and nothing else. Files are sent from memory.
//!
//! | module | what |
//! | --- | --- |
//! | `net` | building: hosts, switches, routers, links, and what can be done to them |
//! | `run` | running: seeds, twice, shrinking; reports and failures |
//! | `world` | one run: the event heap, and what moves when |
//! | `host` | what a host's engine stands on; `route` what switches and routers do |
//! | `raw` | hosts without a stack: for another TCP, middleboxes, floods |
//! | `executor`, `time`, `tcp`, `udp`, `ktls` | what programs see; `association` is both sides' view of DTLS |
//! | [`random`] | one seeded stream per entity and purpose; chances in parts per million |
//! | [`link`] | one direction of a link with netem's knobs: what becomes of a packet, and when it arrives |
//! | [`distribution`] | the shapes of jitter, as integer tables |
//! | [`damage`] | flipped bits with and without repaired checksums, congestion marks |
//! | [`fault`] | targeted faults: by address, flag, content type, record, epoch |
//! | [`presets`] | links people know: wifi, 4g, 3g, leo, geo, dsl |
//! | [`schedule`] | what goes wrong in a run, as data that prints as code |
//! | [`shrink`] | the least of a schedule that still fails |
//! | [`records`] | where TLS and DTLS records begin in passing packets |
//! | [`invariant`] | what must hold in every run, checked on every packet |
//! | [`decode`] | a packet as a readable line |
//! | [`recording`] | a run as a capture file |
//! | [`wire`] | the link model in real time, between two devices |

mod association;
pub mod damage;
pub mod decode;
pub mod distribution;
mod executor;
pub mod fault;
mod host;
pub mod invariant;
mod ktls;
pub mod link;
mod net;
#[cfg(test)]
mod packets;
pub mod presets;
pub mod random;
mod raw;
pub mod recording;
pub mod records;
mod route;
mod run;
pub mod schedule;
pub mod shrink;
mod source;
mod tcp;
mod time;
mod trace;
mod udp;
mod watch;
pub mod wire;
mod world;

pub use executor::{Crashed, JoinHandle, spawn, spawn_background};
pub use ktls::{KtlsReceived, KtlsSocket};
pub use net::{
    Addresses, BothKnobs, Host, Link, Net, Node, Resolver, Router, Switch, ToAddress, Way,
};
pub use raw::RawHost;
pub use run::{Failure, FailureKind, Report, Runs, run};
pub use tcp::{Received, TcpListener, TcpStream};
pub use time::{Elapsed, Sleep, now, sleep, sleep_until, timeout};
pub use trace::Journal;
pub use udp::UdpSocket;
