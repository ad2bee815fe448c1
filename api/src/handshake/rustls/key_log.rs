//! A key log in the format that Wireshark reads (`SSLKEYLOGFILE`), for captures.

use rustls::KeyLog;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Writes every secret of every handshake to a writer, a line each. With it a capture can be decrypted: it is for
/// looking, never for production.
pub struct KeyLogWriter {
    sink: Mutex<Box<dyn Write + Send>>,
}

impl KeyLogWriter {
    /// Writes to `sink`, flushing behind each line, so that the lines are there before the first packet they open.
    pub fn new(sink: impl Write + Send + 'static) -> KeyLogWriter {
        KeyLogWriter {
            sink: Mutex::new(Box::new(sink)),
        }
    }
}

impl std::fmt::Debug for KeyLogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyLogWriter")
    }
}

impl KeyLog for KeyLogWriter {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line =
            String::with_capacity(label.len() + 2 * (client_random.len() + secret.len()) + 3);
        line.push_str(label);
        for bytes in [client_random, secret] {
            line.push(' ');
            for byte in bytes {
                write!(line, "{byte:02x}").expect("writing to a String cannot fail");
            }
        }
        line.push('\n');
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = sink.write_all(line.as_bytes()).and_then(|()| sink.flush()) {
            tracing::warn!("cannot write the key log: {error}");
        }
    }
}
