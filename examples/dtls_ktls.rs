//! Lesson: AF_KTLS over UDP. A client on the stack shakes hands with OpenSSL, lays a KTLS socket over its UDP socket, and from
//! then on sends and receives plaintext: a message is a record is a datagram. The peer is the program `openssl` on the
//! kernel's UDP, which knows nothing of all this; somebody sits there, reads each line and types it back in capitals.
//!
//! It needs a stack. `uktls run` brings one up around it:
//!
//! ```text
//! cargo build -p uktls-examples --examples
//! cargo run -- run -- target/debug/examples/dtls_ktls
//! ```

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use uktls::client::af_ktls::{AF_KTLS, DatagramFlags, KTLS_GET_IV_SEND};
use uktls::handshake::openssl::{Session, close, context};
use uktls::{Daemon, UdpSocket};

const SERVER: &str = "10.77.0.1:4433";
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    let mut server = Server::start()?;

    // A connected UDP socket of the stack, and a handshake on it in the raw.
    let udp = UdpSocket::bind_on(&Daemon::default(), "10.77.0.2:0".parse()?, None)?;
    udp.connect(SERVER)?;
    let session = Session::connect(&udp, context()?, "localhost", LIMIT)?;
    println!("agreed on {}", session.tx.cipher());

    // socket(AF_KTLS, SOCK_DGRAM, 0), bind, setsockopt(KTLS_SET_*).
    let ktls = session.bind(&udp)?;
    ktls.set_read_timeout(Some(LIMIT))?;

    for line in ["a message", "is a record", "is a datagram"] {
        ktls.send(format!("{line}\n").as_bytes(), DatagramFlags::empty())?;
        server.read_and_type_back()?;
        let mut buffer = [0; 1024];
        let received = ktls.recv(&mut buffer, DatagramFlags::empty())?;
        let answer = String::from_utf8_lossy(&buffer[..received.len]);
        println!("{line:?} came back as {:?}", answer.trim_end());
    }

    let mut iv = [0; 8];
    ktls.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut iv)?;
    println!("next record: epoch {}, number {}", iv[1], iv[7]);
    // close_notify, sealed by the stack: OpenSSL's own numbers have been overtaken.
    close(&ktls)?;
    Ok(())
}

/// A running `openssl s_server`, with a certificate of its own, ended with the lesson.
struct Server {
    program: Child,
    reads: BufReader<ChildStdout>,
    types: ChildStdin,
}

impl Server {
    fn start() -> Result<Server, Box<dyn Error>> {
        let folder = std::env::temp_dir().join(format!("uktls-dtls-ktls-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-subj", "/CN=localhost", "-days", "1"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(&folder)
            .stderr(Stdio::null())
            .status()?;
        if !made.success() {
            return Err("openssl made no certificate".into());
        }
        let mut program = Command::new("openssl")
            .args(["s_server", "-dtls1_2", "-quiet", "-accept", SERVER])
            .args(["-key", "key.pem", "-cert", "cert.pem"])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (reads, types) = (program.stdout.take(), program.stdin.take());
        let (Some(reads), Some(types)) = (reads, types) else {
            return Err("openssl was started with pipes".into());
        };
        Ok(Server {
            program,
            reads: BufReader::new(reads),
            types,
        })
    }

    fn read_and_type_back(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.reads.read_line(&mut line)?;
        self.types.write_all(line.to_uppercase().as_bytes())?;
        self.types.flush()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let folder = std::env::temp_dir().join(format!("uktls-dtls-ktls-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(folder);
    }
}
