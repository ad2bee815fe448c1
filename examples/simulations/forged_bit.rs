//! Somebody on the path flips one bit of a file that comes over TLS, and makes TCP's checksum fit again.
//!
//! TCP cannot notice; the record layer does: reading gives what came before the forged record, and then `EBADMSG`.
//! The handshake is rustls's, with every random byte from the run's seed, so that even the ciphertext is the same each time. Then the keys go
//! to the sockets, as in kernel TLS, and the stacks seal and open.

use std::io;
use std::sync::Arc;
use uktls::handshake::rustls::dangerous_seeded::Seeded;
use uktls::handshake::rustls::{Choice, Complete, Handshake, KeyLogWriter};
use uktls_record::ContentType;
use uktls_stack::clock::Duration;
use uktls_stack::sim::damage::Corruption;
use uktls_stack::sim::fault::{Action, Fault};
use uktls_stack::sim::link::Knobs;
use uktls_stack::sim::{self, Net, TcpListener, TcpStream, Way};
use uktls_stack::socket_info::Reason;

/// What Linux says when a record does not authenticate.
const EBADMSG: i32 = 74;
/// The plaintext of a full record.
const RECORD: usize = 16 * 1024;

fn file() -> Vec<u8> {
    (0..10 * RECORD).map(|i| (i / 3) as u8).collect()
}

/// Three calls turn a TCP socket into a TLS one.
fn set_keys(stream: &TcpStream, complete: &Complete) -> io::Result<()> {
    stream.set_ulp_tls()?;
    stream.set_tls_tx(&complete.tx)?;
    stream.set_tls_rx(&complete.rx, &complete.early)
}

/// Everything until the end, or until what went wrong.
async fn receive(stream: &TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    let mut buffer = vec![0; RECORD];
    loop {
        match stream.recv_record(&mut buffer).await {
            Ok(received) if received.content_type == ContentType::APPLICATION_DATA => {
                if received.len == 0 {
                    return (all, Ok(()));
                }
                all.extend_from_slice(&buffer[..received.len]);
            }
            // TLS 1.3 sends tickets behind the handshake; an alert here is close_notify, and the end comes next.
            Ok(_) => {}
            Err(error) => return (all, Err(error)),
        }
    }
}

/// Builds the network and starts its programs.
pub(crate) fn scenario(net: &Net) {
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let link = net.link(
        &client,
        &server,
        Knobs {
            delay: Duration::from_millis(10),
            ..Knobs::default()
        },
    );
    // The fifth packet from the server in which a record with application data begins.
    let forged = Fault::new(Action::CorruptBit(Corruption::Forged, 4_321))
        .content_type(23)
        .nth(5);
    link.fault(Way::Back, forged);

    let identity = Seeded::new(net.seed(), "server")
        .identity(vec!["server".to_owned()])
        .expect("a name");
    let choice = Choice::default();
    // For a recording: tshark and Wireshark show what was inside.
    let key_log = Arc::new(KeyLogWriter::new(net.secrets()));
    let client_config = Seeded::new(net.seed(), "client")
        .client_config(&[&identity], &choice, Some(key_log))
        .expect("a configuration");
    let server_config = Seeded::new(net.seed(), "server")
        .server_config(identity, &choice, None)
        .expect("a configuration");

    server.spawn_background(async move {
        let listener = TcpListener::bind("0.0.0.0:443").await.expect("a free port");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let handshake = Handshake::server(server_config).expect("a configuration for it");
        let complete = handshake.run(&mut stream).await.expect("an honest client");
        set_keys(&stream, &complete).expect("keys of a cipher that the stack has");
        // The client hangs up in the middle: that is what this is about.
        let _ = stream.sendfile(file()).await;
    });

    client.spawn(async move {
        let mut stream = TcpStream::connect("server:443").await.expect("a listener");
        let name = "server".try_into().expect("a name");
        let handshake = Handshake::client(client_config, name).expect("a configuration for it");
        let complete = handshake.run(&mut stream).await.expect("an honest server");
        set_keys(&stream, &complete).expect("keys of a cipher that the stack has");

        let (received, outcome) = receive(&stream).await;
        let error = outcome.expect_err("a forged record must not open");
        assert_eq!(error.raw_os_error(), Some(EBADMSG), "{error}");
        assert_eq!(stream.reason(), Reason::BadRecord(EBADMSG));
        // Whole records came before it, and not a byte of the forged one.
        assert!(
            !received.is_empty() && received.len().is_multiple_of(RECORD),
            "{}",
            received.len()
        );
        assert!(received == file()[..received.len()]);
    });
}

#[test]
fn a_forged_bit_is_a_bad_message() {
    let report = sim::run(scenario);
    println!("{report}");
}
