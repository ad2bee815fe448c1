//! hyper and rustls, as they are, over a 3G connection: a page with its round trips, its losses and its 0.8 Mbit/s.
//!
//! The TLS is the program's own (tokio-rustls); the stack sees bytes. What in such a program is *not* deterministic has to be switched off, or given from the
//! seed; each place says so below.

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use uktls::handshake::rustls::dangerous_seeded::Seeded;
use uktls::handshake::rustls::{Choice, KeyLogWriter};
use uktls_stack::clock::Duration;
use uktls_stack::sim::{self, Net, TcpListener, TcpStream, presets};

const PAGE: usize = 200_000;

async fn page(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/page");
    Ok(Response::new(Full::new(Bytes::from(vec![b'x'; PAGE]))))
}

/// Builds the network and starts its programs.
pub(crate) fn scenario(net: &Net) {
    let phone = net.host("phone", "10.64.0.1");
    let server = net.host("server", "192.0.2.80");
    net.link(&phone, &server, presets::umts());

    let choice = Choice::default();
    // Not deterministic in rustls: key exchange, certificate, signature, tickets, clock. All from the seed here.
    let party = Seeded::new(net.seed(), "server");
    let identity = party.identity(vec!["server".to_owned()]).expect("a name");
    let key_log = std::sync::Arc::new(KeyLogWriter::new(net.secrets()));
    let connector = TlsConnector::from(
        Seeded::new(net.seed(), "phone")
            .client_config(&[&identity], &choice, Some(key_log))
            .expect("a configuration"),
    );
    let acceptor = TlsAcceptor::from(
        party
            .server_config(identity, &choice, None)
            .expect("a configuration"),
    );

    server.program(move || {
        let acceptor = acceptor.clone();
        async move {
            let listener = TcpListener::bind("0.0.0.0:443").await.expect("a free port");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let acceptor = acceptor.clone();
                sim::spawn_background(async move {
                    let tls = acceptor.accept(stream).await.expect("an honest client");
                    hyper::server::conn::http1::Builder::new()
                        // Not deterministic in hyper: the Date header.
                        .auto_date_header(false)
                        .serve_connection(TokioIo::new(tls), hyper::service::service_fn(page))
                        .await
                        .expect("a request");
                });
            }
        }
    });

    phone.spawn(async move {
        let stream = TcpStream::connect("server:443").await.expect("a listener");
        let name = "server".try_into().expect("a name");
        let tls = connector
            .connect(name, stream)
            .await
            .expect("an honest server");
        let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .expect("a connection");
        // hyper's side task; in a tokio program this is tokio::spawn.
        sim::spawn_background(async move {
            let _ = connection.await;
        });
        let request = Request::get("/page")
            .header("host", "server")
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let response = requests.send_request(request).await.expect("a response");
        assert_eq!(response.status(), 200);
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert_eq!(body.len(), PAGE);
        // 200 kB at 3 Mbit/s take half a second, and connection, handshake and request three round trips of 150 ms.
        let took = sim::now().since(uktls_stack::clock::Instant::ZERO);
        assert!(
            took > Duration::from_millis(900) && took < Duration::from_secs(20),
            "{took:?}"
        );
    });
}

#[test]
fn a_page_comes_over_3g() {
    let report = sim::run(scenario);
    println!("{report}");
}
