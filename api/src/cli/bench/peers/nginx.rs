//! nginx with OpenSSL, one worker, as an administrator who wants speed would set it up.

use super::super::super::supervise::{Child, Supervisor, program};
use super::super::super::{Context, Failure};
use super::super::client::accepts;
use super::super::workload::Workload;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// Its name in the figures.
pub(crate) const NAME: &str = "nginx-openssl-loopback";

/// Starts nginx on `address`, serving the workload's site over TLS 1.2 with AES-128-GCM. Everything it writes goes to the workload's folder.
pub(crate) fn start(
    supervisor: &Supervisor,
    workload: &Workload,
    address: SocketAddr,
) -> Result<Child, Failure> {
    let nginx = program("nginx", "nginx-light")?;
    let file = workload.folder().join("nginx.conf");
    std::fs::write(&file, configuration(workload, address))
        .context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(nginx);
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(workload.folder())
        .arg("-c")
        .arg(&file);
    let mut child = supervisor.spawn("nginx", command)?;
    supervisor.until(
        "answer on its port",
        Duration::from_secs(10),
        &mut [&mut child],
        || Ok(accepts(address).then_some(())),
    )?;
    Ok(child)
}

fn configuration(workload: &Workload, address: SocketAddr) -> String {
    // Debian's nginx, started by root, gives its workers to www-data, who may not look into the scratch folder. Whoever is not root
    // (a user namespace counts as root) is not asked.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root root;",
        false => "",
    };
    format!(
        "{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    server {{
        listen {address} ssl;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2;
        ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256;
        ssl_buffer_size 16k;
        root {site};
    }}
}}
",
        folder = workload.folder().display(),
        cert = workload.cert().display(),
        key = workload.key().display(),
        site = workload.site().display(),
    )
}
