//! Lessons and uses, a file each; this library itself is empty.
//!
//! | file | what it shows | how to run it |
//! | --- | --- | --- |
//! | `record_by_hand.rs` | one record in each version, sealed and opened, the role of every byte printed | `cargo run -p uktls-examples --example record_by_hand` |
//! | `simulations/` | deterministic network tests: an echo over a lossy link, a forged bit, a truncation attack, HTTPS over 3G, DTLS records on a wild link, a bug found by its seed | `cargo test -p uktls-examples --test simulations` |
//! | `ktls_echo.rs` | an echo server on the kTLS calls: a handshake in the program, records in the stack | `cargo build -p uktls-examples --examples && cargo run -- run -- target/debug/examples/ktls_echo` |
//! | `dtls_ktls.rs` | AF_KTLS: a DTLS client that hands its keys to a KTLS socket, against OpenSSL on the kernel's UDP | `cargo build -p uktls-examples --examples && cargo run -- run -- target/debug/examples/dtls_ktls` |
//! | `af_ktls_tls.rs` | AF_KTLS over TCP in forty lines: a line to a TLS 1.2 server, its answer, alerts both ways | `cargo build -p uktls-examples --examples`; in `uktls run -- bash`: `target/debug/examples/af_ktls_tls 10.77.0.1:4433` beside `openssl s_server -tls1_2 -quiet -rev` |
//! | `af_ktls_dtls.rs` | AF_KTLS over UDP in forty lines: a message to a DTLS 1.2 server and its answer | the same with `af_ktls_dtls`, beside `gnutls-serv --udp --echo` |
//! | `relay.rs` | plaintext from one AF_KTLS socket to another through a pipe, by `splice`: a relay between a DTLS and a TLS server | the same with `relay dtls:10.77.0.1:4433 tls:10.77.0.1:4434`, beside two servers |
