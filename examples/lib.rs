//! Lessons and uses, a file each; this library itself is empty.
//!
//! | file | what it shows | how to run it |
//! | --- | --- | --- |
//! | `record_by_hand.rs` | one record in each version, sealed and opened, the role of every byte printed | `cargo run -p uktls-examples --example record_by_hand` |
//! | `simulations/` | deterministic network tests: an echo over a lossy link, a forged bit, a truncation attack, HTTPS over 3G, DTLS records on a wild link, a bug found by its seed | `cargo test -p uktls-examples --test simulations` |
//! | `ktls_echo.rs` | an echo server on the kTLS calls: a handshake in the program, records in the stack | `cargo build -p uktls-examples --examples && cargo run -- run -- target/debug/examples/ktls_echo` |
//! | `dtls_ktls.rs` | AF_KTLS: a DTLS client that hands its keys to a KTLS socket, against OpenSSL on the kernel's UDP | `cargo build -p uktls-examples --examples && cargo run -- run -- target/debug/examples/dtls_ktls` |
