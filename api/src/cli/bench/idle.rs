//! What an idle connection costs: many of them, each with a whole handshake and one answered request behind it, then nothing.

use super::super::limits::parse_bytes;
use super::super::supervise::{Supervisor, ourselves, program};
use super::super::{Context, Failure};
use super::client::Drained;
use super::cpu::Memory;
use super::report::{Metric, Report};
use super::stack::{Daemon, Wanted};
use super::workload::Workload;
use rustix::process::{Resource, Rlimit};
use std::time::Duration;

/// For each connection's step: opening, or a line of progress.
const SILENCE: Duration = Duration::from_secs(30);

/// After the last connection stood, or the last byte went: time for delayed acknowledgements and for memory to be given back.
const SETTLE: Duration = Duration::from_secs(2);

/// Descriptors each process needs beside its connections.
const SPARE: u64 = 500;

/// The daemon's memory per idle TLS connection, and before and after a long transfer
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=28_000))]
    conns: u32,
    /// Length of the file of the long transfer (with K, M or G: powers of 1024)
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    file_size: u64,
}

/// Runs the benchmark. The caller has entered a namespace.
pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    program("openssl", "openssl")?;
    raise_descriptors(u64::from(args.conns) + SPARE)?;
    let mut workload = Workload::new("bench")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    workload.make_file(args.file_size)?;
    workload.settle()?;
    let wanted = Wanted::new(77, 1500);
    let daemon = Daemon::start(&supervisor, workload.folder(), &wanted)?;
    let server = daemon.serve(&supervisor, &workload, "1.2")?;
    let address = daemon.stack(443).to_string();

    // First the transfer, twice: what the daemon keeps after the first (code pages, pools) must serve the second.
    let drain = || -> Result<Memory, Failure> {
        let mut command = ourselves()?;
        command
            .args(["bench", "drain", "--connect", &address])
            .args(["--bytes", &args.file_size.to_string()]);
        let mut client = supervisor.spawn("client", command)?;
        let line = supervisor.line(&mut client, Duration::from_secs(110))?;
        let _: Drained =
            serde_json::from_str(&line).context(|| format!("the client said {line:?}"))?;
        supervisor.ended(&mut client, SILENCE)?;
        client.reap()?;
        supervisor.pause(SETTLE)?;
        Memory::of(daemon.child.pid())
    };
    let fresh = Memory::of(server.pid()).and(Memory::of(daemon.child.pid()))?;
    say("one transfer, and the same again");
    let first = drain()?;
    let second = drain()?;

    let kernel_before = Kernel::look();
    let server_before = Memory::of(server.pid())?;
    say(&format!("opening {} connections", args.conns));
    let mut command = ourselves()?;
    command
        .args(["bench", "hold", "--connect", &address])
        .args(["--conns", &args.conns.to_string()]);
    let mut client = supervisor.spawn("client", command)?;
    while !supervisor.line(&mut client, SILENCE)?.starts_with("held ") {}
    supervisor.pause(SETTLE)?;
    let full = Memory::of(daemon.child.pid())?;
    let server_full = Memory::of(server.pid())?;
    let kernel_full = Kernel::look();
    // Both must still be there, or there is nothing to divide by.
    let open = established(&address)?;
    if open < args.conns as usize {
        return Err(daemon.child.failure(format_args!(
            "holds only {open} of {} connections",
            args.conns
        )));
    }
    client.stop();

    let each =
        |before: u64, after: u64| after.saturating_sub(before) as f64 / f64::from(args.conns);
    let mut report = Report::default();
    report.metric(Metric::alone(
        "idle",
        "bytes_per_connection",
        "bytes",
        each(second.resident, full.resident),
    ));
    report.note(format!(
        "{} connections over TLS 1.2, each after one answered request. Resident memory of the daemon: {} KiB before, {} KiB with them.",
        args.conns,
        second.resident >> 10,
        full.resident >> 10
    ));
    report.note(format!(
        "Beside it, per connection: {:.0} bytes in `uktls serve`, {}.",
        each(server_before.resident, server_full.resident),
        kernel_full.beside(&kernel_before, args.conns)
    ));
    report.note(format!(
        "A transfer of {} bytes through one connection: the daemon had {} KiB before the first, {} KiB after it, {} KiB after the second.",
        args.file_size,
        fresh.resident >> 10,
        first.resident >> 10,
        second.resident >> 10
    ));
    Ok(report)
}

/// Raises the limit on descriptors for this process and those it starts.
fn raise_descriptors(needed: u64) -> Result<(), Failure> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(now.current) {
        return Ok(());
    }
    let maximum = match enough(now.maximum) {
        true => now.maximum,
        false => Some(needed), // for root
    };
    let wanted = Rlimit {
        current: Some(needed),
        maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, wanted).map_err(|errno| {
        Failure::new(format_args!(
            "{needed} open files are needed and the limit is {}: {errno}; raise it (`ulimit -Hn`, as root) or take fewer --conns",
            now.maximum.map_or("none".into(), |limit| limit.to_string())
        ))
    })
}

/// How many connections of the kernel's TCP in this namespace are established with `server`.
fn established(server: &str) -> Result<usize, Failure> {
    let table =
        std::fs::read_to_string("/proc/net/tcp").context(|| "cannot count connections".into())?;
    let server: std::net::SocketAddrV4 = server
        .parse()
        .context(|| "cannot count connections".into())?;
    Ok(count_established(&table, server))
}

/// From the text of /proc/net/tcp, whose addresses are hexadecimal in memory order, and where state 01 is ESTABLISHED.
fn count_established(table: &str, server: std::net::SocketAddrV4) -> usize {
    let address = u32::from_ne_bytes(server.ip().octets());
    let wanted = format!("{address:08X}:{:04X}", server.port());
    table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&wanted) && fields.next() == Some("01")
        })
        .count()
}

/// What the kernel keeps for sockets, as far as it tells.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kernel {
    /// Sockets of any kind in this namespace: two Unix ones and the client's for each connection.
    sockets: u64,
    /// Memory of all TCP sockets' queues, in bytes; the whole machine's.
    tcp: u64,
    /// All kernel caches of socket objects, in bytes; the whole machine's. `None` when only root may read it.
    slabs: Option<u64>,
}

impl Kernel {
    fn look() -> Kernel {
        let sockstat = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        Kernel {
            sockets: sockstat_field(&sockstat, "sockets:", "used"),
            tcp: sockstat_field(&sockstat, "TCP:", "mem") * rustix::param::page_size() as u64,
            slabs: std::fs::read_to_string("/proc/slabinfo")
                .ok()
                .map(|text| socket_slabs(&text)),
        }
    }

    fn beside(&self, before: &Kernel, conns: u32) -> String {
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / f64::from(conns);
        let sockstat = format!(
            "{:.1} sockets of the kernel's, the client's included, and {:.0} bytes in TCP queues (sockstat)",
            each(self.sockets, before.sockets),
            each(self.tcp, before.tcp),
        );
        match (self.slabs, before.slabs) {
            (Some(now), Some(before)) => format!(
                "{sockstat}, {:.0} bytes in the kernel's caches for the daemon's and the server's Unix sockets and their files (slabinfo), the client's TCP sockets not counted",
                each(now, before)
            ),
            _ => format!(
                "{sockstat}; what its caches hold for the Unix sockets only root may read (/proc/slabinfo)"
            ),
        }
    }
}

/// A number of /proc/net/sockstat, whose lines are a name and pairs of a field and its value.
fn sockstat_field(text: &str, line: &str, field: &str) -> u64 {
    let mut words = text
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .unwrap_or_default()
        .split_whitespace();
    words.find(|word| *word == field);
    words.next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Bytes in caches of Unix sockets, their inodes, directory entries, open files and queued buffers.
fn socket_slabs(text: &str) -> u64 {
    const CACHES: [&str; 6] = [
        "UNIX",
        "UNIX-STREAM",
        "sock_inode_cache",
        "dentry",
        "filp",
        "skbuff_head_cache",
    ];
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            let active: u64 = fields.next()?.parse().ok()?;
            let size: u64 = fields.nth(1)?.parse().ok()?;
            CACHES.contains(&name).then_some(active * size)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_to_one_server_are_counted() {
        let table = "  sl  local_address rem_address   st\n\
             0: 01004D0A:8000 02004D0A:01BB 01 00000000\n\
             1: 01004D0A:8001 02004D0A:01BB 06 00000000\n\
             2: 01004D0A:8002 02004D0A:01BC 01 00000000\n\
             3: 01004D0A:8003 02004D0A:01BB 01 00000000\n";
        assert_eq!(
            count_established(table, "10.77.0.2:443".parse().unwrap()),
            2
        );
    }

    #[test]
    fn sockstat_is_read_by_name() {
        let text =
            "sockets: used 142\nTCP: inuse 9 orphan 0 tw 2 alloc 11 mem 3\nUDP: inuse 4 mem 7\n";
        assert_eq!(sockstat_field(text, "sockets:", "used"), 142);
        assert_eq!(sockstat_field(text, "TCP:", "mem"), 3);
        assert_eq!(sockstat_field(text, "TCP:", "none"), 0);
    }

    #[test]
    fn slabs_of_sockets_are_added_up() {
        let text = "slabinfo - version: 2.1\n\
             # name            <active_objs> <num_objs> <objsize>\n\
             UNIX-STREAM           10     16   1152\n\
             filp                 100    128    192\n\
             TCP                   99     99   2000\n";
        assert_eq!(socket_slabs(text), 10 * 1152 + 100 * 192);
    }
}
