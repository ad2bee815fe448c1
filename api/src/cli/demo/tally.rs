//! What the daemon counted, as `uktls stat --json` tells it.

use super::super::Failure;
use super::super::bench::stack::Daemon;
use super::super::supervise::Supervisor;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Counters by name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Asks the daemon.
    pub(super) fn read(daemon: &Daemon, supervisor: &Supervisor) -> Result<Tally, Failure> {
        const LIMIT: Duration = Duration::from_secs(10);
        let mut stat = supervisor.spawn("uktls stat", daemon.stat()?)?;
        let text = supervisor.rest(&mut stat, LIMIT)?;
        supervisor.ended(&mut stat, LIMIT)?;
        stat.reap()?;
        Ok(Tally(parse(&text)))
    }
}

/// Lines `{"counter":NAME,"value":N}`; others are about sockets.
fn parse(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some((
                line["counter"].as_str()?.to_owned(),
                line["value"].as_u64()?,
            ))
        })
        .collect()
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |name: &str| self.0.get(name).copied().unwrap_or(0);
        write!(
            f,
            "Records sealed {}, opened {}; TCP segments sent {} (as {} packets to the device), packets received {}; retransmitted {}.",
            count("RecordsSealed"),
            count("RecordsOpened"),
            count("SegmentsOut"),
            count("PacketsOut"),
            count("PacketsIn"),
            count("Retransmits"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_from_sockets() {
        let text = "{\"socket\":{\"id\":1}}\n{\"counter\":\"SegmentsOut\",\"value\":7}\nnonsense\n";
        assert_eq!(parse(text), BTreeMap::from([("SegmentsOut".into(), 7)]));
    }
}
