//! Foreign servers on the kernel's TCP.

use crate::process::Process;
use crate::{Folder, HOST, HOST6, Network};
use std::path::{Path, PathBuf};

/// A self-signed certificate for the host's addresses.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate in PEM form.
    pub cert: PathBuf,
    /// Its key in PEM form.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in `folder`.
    pub fn make(folder: &Folder) -> Certificate {
        let names = [HOST, HOST6, "localhost"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Certificate {
            cert: folder.write("host-cert.pem", made.cert.pem().as_bytes()),
            key: folder.write("host-key.pem", made.signing_key.serialize_pem().as_bytes()),
        }
    }

    /// The certificate's path, as an argument.
    pub fn path(&self) -> &str {
        self.cert.to_str().expect("a path of our own making")
    }
}

/// A running `openssl s_server -WWW`: it answers `GET /FILE` with HTTP/1.0 and ends the connection.
#[derive(Debug)]
pub struct SServer {
    /// The program.
    pub process: Process,
    /// Where it listens.
    pub port: u16,
}

impl SServer {
    /// Serves the files of `dir` at the host's address.
    #[track_caller]
    pub fn start(
        network: &Network,
        dir: &Path,
        port: u16,
        certificate: &Certificate,
        options: &[&str],
    ) -> SServer {
        let mut command = network.command("openssl");
        command.args(["s_server", "-quiet"]).args(options);
        command.args(["-accept", &format!("{HOST}:{port}")]);
        command.arg("-cert").arg(&certificate.cert);
        command.arg("-key").arg(&certificate.key);
        command.current_dir(dir);
        let process = Process::start_piped(command);
        network.wait_for_listener(port, &process);
        SServer { process, port }
    }

    /// The URL of a file.
    pub fn url(&self, name: &str) -> String {
        format!("https://{HOST}:{}/{name}", self.port)
    }
}

/// A running nginx with one worker.
#[derive(Debug)]
pub struct Nginx {
    /// The program.
    pub process: Process,
    port: u16,
    _folder: Folder,
}

impl Nginx {
    /// Serves the files of `dir` at the host's addresses; `tls` are lines for its `server` block.
    #[track_caller]
    pub fn start(
        network: &Network,
        dir: &Path,
        port: u16,
        certificate: &Certificate,
        tls: &str,
    ) -> Nginx {
        let folder = Folder::new();
        // Workers of a root's master would change their user, and could not read the test's folder.
        let user = match rustix::process::geteuid().is_root() {
            true => "user root;",
            false => "",
        };
        let config = format!(
            "{user}\n\
             daemon off; worker_processes 1; pid nginx.pid; error_log stderr notice;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               access_log off; sendfile on; default_type application/octet-stream;\n\
               client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
               uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
               server {{\n\
                 listen 0.0.0.0:{port} ssl; listen [::]:{port} ssl ipv6only=on;\n\
                 ssl_certificate {}; ssl_certificate_key {};\n\
                 ssl_protocols TLSv1.2 TLSv1.3;\n\
                 {tls}\n\
                 root {};\n\
               }}\n\
             }}\n",
            certificate.cert.display(),
            certificate.key.display(),
            dir.display(),
        );
        let config = folder.write("nginx.conf", config.as_bytes());
        let mut command = network.command("nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(config);
        command.args(["-e", "stderr"]);
        let process = Process::start(command, &[]);
        network.wait_for_listener(port, &process);
        Nginx {
            process,
            port,
            _folder: folder,
        }
    }

    /// The URL of a file at the host's IPv4 address.
    pub fn url(&self, name: &str) -> String {
        format!("https://{HOST}:{}/{name}", self.port)
    }

    /// The URL of a file at the host's IPv6 address.
    pub fn url6(&self, name: &str) -> String {
        format!("https://[{HOST6}]:{}/{name}", self.port)
    }
}

/// The options by which `openssl s_client` and `s_server` allow one version and cipher alone, named as in
/// [`VERSIONS`](crate::VERSIONS) and [`CIPHERS`](crate::CIPHERS).
#[track_caller]
pub fn openssl_options(version: &str, cipher: &str) -> [&'static str; 3] {
    match (version, cipher) {
        ("1.2", "aes128gcm") => ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        ("1.2", "aes256gcm") => ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        ("1.2", "chacha20") => ["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
        ("1.3", "aes128gcm") => ["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
        ("1.3", "aes256gcm") => ["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"],
        ("1.3", "chacha20") => ["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
        other => panic!("no such version and cipher: {other:?}"),
    }
}
