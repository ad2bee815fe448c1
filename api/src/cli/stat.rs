//! `uktls stat`: what the daemon's sockets do, and its counters.

use super::options::SocketOption;
use super::{Failure, Globals, Outcome};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use uktls::client::Reason;
use uktls::protocol::{KeyStat, SocketKind, SocketStat};

/// Show sockets and counters of a running stack.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls stat                  a table of sockets, then counters that are not 0
  uktls stat --json | jq 'select(.socket.state == \"ESTAB\") | .socket.tcp.srtt_us'

The columns TX and RX say version, cipher and the next record's sequence number of the keys
in force; the keys themselves are never shown. Counters that begin with Tls are those of
Linux's /proc/net/tls_stat.")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketOption,
    /// One line of JSON a socket, {"socket":…}, and one a counter, {"counter":…,"value":…}
    #[arg(long)]
    json: bool,
    /// Show counters that are 0 as well
    #[arg(long)]
    all: bool,
}

/// Prints both.
pub(crate) fn run(args: Args, _globals: &Globals) -> Outcome {
    let daemon = args.socket.daemon();
    let sockets = daemon.sockets().map_err(Failure::new)?;
    let counters = daemon.counters().map_err(Failure::new)?;
    let mut out = String::new();
    if args.json {
        for socket in &sockets {
            out.push_str(&json!({ "socket": socket }).to_string());
            out.push('\n');
        }
        for (name, value) in &counters {
            out.push_str(&json!({ "counter": name, "value": value }).to_string());
            out.push('\n');
        }
    } else {
        out.push_str(&table(&sockets));
        for (name, value) in counters.iter().filter(|(_, value)| args.all || *value != 0) {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<32}{value:>16}");
        }
    }
    match std::io::stdout().write_all(out.as_bytes()) {
        // `uktls stat | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            format_args!("cannot write to stdout: {error}"),
        )),
        _ => Ok(ExitCode::SUCCESS),
    }
}

const HEADINGS: [&str; 12] = [
    "ID", "KIND", "STATE", "LOCAL", "REMOTE", "CWND", "RTT", "RETR", "SENT", "RECEIVED", "TX", "RX",
];

fn table(sockets: &[SocketStat]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(sockets.iter().map(row));
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out.push('\n');
    out
}

fn row(socket: &SocketStat) -> [String; 12] {
    let kind = match socket.kind {
        SocketKind::Tcp => "tcp",
        SocketKind::TcpListener => "listener",
        SocketKind::Udp => "udp",
    };
    let state = match (&socket.state, socket.reason) {
        (Some(state), Reason::Open) => state.clone(),
        (Some(state), reason) => format!("{state} ({reason:?})"),
        (None, _) => "-".into(),
    };
    let tcp = socket.tcp.as_ref();
    let figure = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    [
        // The number counts up within its shard, whose number is in front.
        format!("{}:{}", socket.shard, socket.id & ((1 << 56) - 1)),
        kind.into(),
        state,
        socket.local.to_string(),
        figure(socket.remote.map(|remote| remote.to_string())),
        figure(tcp.map(|tcp| bytes(tcp.cwnd))),
        figure(
            tcp.and_then(|tcp| tcp.srtt_us)
                .map(|us| format!("{}.{:03}ms", us / 1000, us % 1000)),
        ),
        figure(tcp.map(|tcp| tcp.retransmits.to_string())),
        figure(tcp.map(|tcp| bytes(tcp.bytes_sent))),
        figure(tcp.map(|tcp| bytes(tcp.bytes_received))),
        keys(socket.tx.as_ref(), socket.ulp),
        keys(socket.rx.as_ref(), socket.ulp),
    ]
}

fn keys(keys: Option<&KeyStat>, ulp: bool) -> String {
    let Some(keys) = keys else {
        return if ulp {
            "plain (ulp)".into()
        } else {
            "-".into()
        };
    };
    let version = match keys.version {
        0x0303 => "1.2",
        0x0304 => "1.3",
        _ => "?",
    };
    let cipher = match keys.cipher {
        51 => "aes128gcm",
        52 => "aes256gcm",
        54 => "chacha20",
        _ => "?",
    };
    format!("{version} {cipher} #{}", keys.rec_seq)
}

/// Bytes with a binary prefix, three digits that count.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["", "Ki", "Mi", "Gi", "Ti"];
    let mut unit = 0;
    let mut value = count as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => count.to_string(),
        _ if value < 9.995 => format!("{value:.2}{}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1}{}", UNITS[unit]),
        _ => format!("{value:.0}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uktls::protocol::TcpStat;

    #[test]
    fn the_table_shows_every_socket_in_a_line() {
        let connection = SocketStat {
            id: (1 << 56) | 7,
            kind: SocketKind::Tcp,
            shard: 1,
            uid: 1000,
            local: "10.77.0.2:443".parse().expect("an address"),
            remote: Some("10.77.0.1:50000".parse().expect("an address")),
            state: Some("ESTAB".into()),
            tcp: Some(TcpStat {
                cwnd: 15_000,
                srtt_us: Some(1_250),
                retransmits: 3,
                ..TcpStat::default()
            }),
            ulp: true,
            tx: Some(KeyStat {
                version: 0x0304,
                cipher: 51,
                rec_seq: 42,
                records_left: 1,
            }),
            rx: None,
            records_sent: 42,
            records_received: 0,
            reason: Reason::Open,
            memory: 0,
        };
        let text = table(&[connection]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "1:7 tcp ESTAB 10.77.0.2:443 10.77.0.1:50000 14.6Ki 1.250ms 3 0 0 1.3 aes128gcm #42 plain (ulp)"
        );
        assert_eq!(lines[0].find("REMOTE"), lines[1].find("10.77.0.1:"));
    }

    #[test]
    fn bytes_have_three_digits_that_count() {
        for (count, want) in [
            (0, "0"),
            (999, "999"),
            (1000, "0.98Ki"),
            (1 << 20, "1.00Mi"),
            (10 << 20, "10.0Mi"),
            (1 << 60, "1048576Ti"),
        ] {
            assert_eq!(bytes(count), want);
        }
    }
}
