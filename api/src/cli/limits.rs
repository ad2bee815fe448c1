//! Options that bound what clients of a stack may take, of each kind for one and for all.

use super::Failure;
use uktls::server::ServerConfig;
use uktls_stack::stack::Limits;

/// What clients may take. None of it refuses what is already held: a full sender waits, a full receiver's window stays shut, and
/// one socket too many is an error for who asked for it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Limits (a SIZE is in bytes, or as in 64K, 512M, 2G)")]
pub(crate) struct LimitOptions {
    /// Stream bytes that all sockets may hold in the daemon, both ways [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_memory: Option<u64>,
    /// … those of one user [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_memory_per_user: Option<u64>,
    /// Sealed bytes of one socket that wait to be acknowledged [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_send_memory: Option<u64>,
    /// Largest receive window of one socket, whatever its owner asks for [default: 16M]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_receive_memory: Option<u64>,
    /// Sockets altogether [default: 262144]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_sockets: Option<u32>,
    /// … those of one user [default: 131072]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_sockets_per_user: Option<u32>,
    /// Programs connected to the daemon [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_clients: Option<u32>,
    /// … those of one user [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_clients_per_user: Option<u32>,
    /// Threads that wait for files in the shards' place [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    helper_threads: Option<u32>,
    /// … those that one user may keep busy [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    helper_threads_per_user: Option<u32>,
}

impl LimitOptions {
    /// The stack's limits with these.
    pub(crate) fn stack(&self) -> Limits {
        let default = Limits::default();
        let bytes = |given: Option<u64>, otherwise| given.map_or(otherwise, saturating);
        let count = |given: Option<u32>, otherwise| bytes(given.map(u64::from), otherwise);
        Limits {
            sockets: count(self.max_sockets, default.sockets),
            sockets_per_uid: count(self.max_sockets_per_user, default.sockets_per_uid),
            memory_per_socket: bytes(self.max_send_memory, default.memory_per_socket),
            receive_per_socket: bytes(self.max_receive_memory, default.receive_per_socket),
            memory_per_uid: bytes(self.max_memory_per_user, default.memory_per_uid),
            memory_total: bytes(self.max_memory, default.memory_total),
            helper_threads: count(self.helper_threads, default.helper_threads),
            helpers_per_uid: count(self.helper_threads_per_user, default.helpers_per_uid),
        }
    }

    /// The daemon's configuration `config` with these.
    pub(crate) fn server(&self, mut config: ServerConfig) -> ServerConfig {
        let count = |given: Option<u32>, place: &mut usize| {
            if let Some(given) = given {
                *place = saturating(given.into());
            }
        };
        count(self.max_clients, &mut config.max_clients);
        count(self.max_clients_per_user, &mut config.max_clients_per_uid);
        config
    }
}

fn saturating(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A length as people write it: `2G` is 2 · 1024³ bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, Failure> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        other => {
            return Err(Failure::new(format_args!(
                "{other:?} is no unit: K, M or G"
            )));
        }
    };
    match digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
    {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(Failure::new("expected a length, such as 512M or 2G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitOptions,
    }

    fn limits(line: &str) -> LimitOptions {
        let words = std::iter::once("uktls").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("good options").limits
    }

    /// The help texts name the defaults, which stand elsewhere.
    #[test]
    fn the_defaults_are_those_that_the_help_names() {
        let named = "--max-memory 1G --max-memory-per-user 512M --max-send-memory 2M \
            --max-receive-memory 16M --max-sockets 262144 --max-sockets-per-user 131072 \
            --max-clients 4096 --max-clients-per-user 1024 --helper-threads 4 --helper-threads-per-user 2";
        let (none, named) = (LimitOptions::default(), limits(named));
        assert_eq!(
            format!("{:?}", none.stack()),
            format!("{:?}", named.stack())
        );
        let server =
            |limits: &LimitOptions| format!("{:?}", limits.server(ServerConfig::default()));
        assert_eq!(server(&none), server(&named));
    }

    #[test]
    fn each_option_sets_its_own_limit() {
        let given = limits(
            "--max-memory 1 --max-memory-per-user 2 --max-send-memory 3 --max-receive-memory 4 \
            --max-sockets 5 --max-sockets-per-user 6 --helper-threads 7 --helper-threads-per-user 8 \
            --max-clients 9 --max-clients-per-user 10",
        );
        let stack = given.stack();
        assert_eq!((stack.memory_total, stack.memory_per_uid), (1, 2));
        assert_eq!((stack.memory_per_socket, stack.receive_per_socket), (3, 4));
        assert_eq!((stack.sockets, stack.sockets_per_uid), (5, 6));
        assert_eq!((stack.helper_threads, stack.helpers_per_uid), (7, 8));
        let server = given.server(ServerConfig::default());
        assert_eq!((server.max_clients, server.max_clients_per_uid), (9, 10));
    }

    #[test]
    fn lengths_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("17"), Ok(17));
        for wrong in ["", "0", "G", "2T", "-1", "1.5G", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
