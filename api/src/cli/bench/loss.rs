//! TCP under loss: our sender beside Linux's CUBIC, over the same [emulated wire](uktls_stack::sim::wire) to the same receiver; and our receiver beside Linux's.
//!
//! A cell is a kind of trouble at a round-trip time; a run of it transfers for some seconds and counts the bytes that arrive. Both
//! sides of a pair meet the same seeds, so the nth packet of one is lost when the other's is, and the two runs of a pair go on at the same time,
//! so that what else the machine does hits both. A cell's figure is the geometric mean of its pairs' ratios, with the
//! interval that Student's t gives at 95 %. Then several flows share the bottleneck, and Jain's index tells how evenly.
//!
//! | module | what |
//! | --- | --- |
//! | [`ends`] | who sends and who receives |
//! | [`run`] | one run, in a process of its own |

mod ends;
pub(crate) mod run;

use super::super::supervise::{Child, Supervisor, ourselves};
use super::super::{Context, Failure};
use super::report::{Metric, Report};
use super::stats::{Interval, median};
use run::Outcomes;
use std::collections::VecDeque;
use std::time::Duration;
use uktls_stack::sim::link::{Dice, Knobs, Loss, Rate, Reorder};
use uktls_stack::sim::random::{Chance, Stream};

const BENCH: &str = "loss";
/// A cell whose whole interval lies below this ratio fails the requirement.
const WORST: f64 = 0.95;
const PEER: &str = "linux-cubic";

/// The bottleneck.
const RATE: Rate = Rate::mbit(100);
/// What a run may take besides what it counts: connecting over a wire that loses SYNs, and ending.
const PATIENCE: Duration = Duration::from_secs(90);
/// How many packets the burst takes, and how many lie between two bursts.
const BURST: u64 = 5;
const BETWEEN_BURSTS: u64 = 4_000;

/// Goodput under loss and reordering beside Linux's CUBIC, and fairness among flows
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds that a run counts
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Pairs of runs a cell
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Only cells whose name contains one of these, such as `1pct`, `50ms`, `burst` or `fairness`
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Runs at a time; 0 is two a processor
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

/// Whose TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Whose {
    Linux,
    Uktls,
}

/// What a cell compares; the other end is Linux's on both sides of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Senders,
    Receivers,
}

/// What kind of trouble the wire makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Each packet by chance.
    Random,
    /// Five in a row, every 4,000 packets.
    Burst,
    /// As netem does it: packets overtake all that are still on the way.
    Reorder,
}

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub(super) struct Trouble {
    /// The kind of trouble
    #[arg(long, value_enum)]
    kind: Kind,
    /// Packets of a million that are lost, or overtake
    #[arg(long, default_value_t = 0)]
    ppm: u32,
    /// Round-trip time without queueing, in milliseconds
    #[arg(long)]
    rtt: u64,
}

impl Trouble {
    /// The wire's two directions. What is lost is lost on the way there; acknowledgements have a clear way back.
    ///
    /// The bottleneck's queue holds what the path does (one bandwidth-delay product), but not less than 50 packets.
    pub(super) fn knobs(&self) -> [Knobs; 2] {
        let round_trip = Duration::from_millis(self.rtt);
        let full = RATE.time_for(1500).as_nanos();
        let path = (round_trip.as_nanos() / full) as usize;
        let wire = Knobs {
            delay: round_trip / 2,
            rate: RATE,
            limit: path.max(50),
            ..Knobs::default()
        };
        let chance = Chance::ppm(self.ppm);
        let there = match self.kind {
            Kind::Random => Knobs {
                loss: Loss::random(chance),
                ..wire.clone()
            },
            Kind::Burst => Knobs {
                loss: Loss::List(bursts()),
                ..wire.clone()
            },
            Kind::Reorder => Knobs {
                reorder: Reorder {
                    dice: Dice::of(chance),
                    gap: 0,
                    ahead: None,
                },
                ..wire.clone()
            },
        };
        [
            there,
            Knobs {
                limit: 10_000,
                ..wire
            },
        ]
    }
}

/// The numbers of packets that bursts take, for longer than any run.
fn bursts() -> Vec<u64> {
    let starts = (1..250).map(|burst| burst * BETWEEN_BURSTS);
    starts.flat_map(|start| start..start + BURST).collect()
}

/// One cell of the grid.
struct Cell {
    name: String,
    compared: Compared,
    trouble: Trouble,
    flows: usize,
    /// Part of the mean over all.
    grid: bool,
}

/// All cells: the grid, a burst, reordering, and flows that share.
fn cells() -> Vec<Cell> {
    let cell = |name: String, kind, ppm, rtt, flows, grid| Cell {
        name,
        compared: Compared::Senders,
        trouble: Trouble { kind, ppm, rtt },
        flows,
        grid,
    };
    let mut cells = Vec::new();
    for (loss, ppm) in [
        ("0pct", 0),
        ("0.1pct", 1_000),
        ("1pct", 10_000),
        ("3pct", 30_000),
    ] {
        for rtt in [10, 50, 100] {
            cells.push(cell(
                format!("goodput_{loss}_{rtt}ms"),
                Kind::Random,
                ppm,
                rtt,
                1,
                true,
            ));
        }
    }
    cells.push(cell(
        "goodput_burst5_50ms".into(),
        Kind::Burst,
        0,
        50,
        1,
        false,
    ));
    cells.push(cell(
        "goodput_reorder2pct_50ms".into(),
        Kind::Reorder,
        20_000,
        50,
        1,
        false,
    ));
    for flows in [4, 16, 64] {
        cells.push(cell(
            format!("fairness_{flows}"),
            Kind::Random,
            0,
            20,
            flows,
            false,
        ));
    }
    for (loss, kind, ppm, rtt) in [
        ("0pct", Kind::Random, 0, 100),
        ("1pct", Kind::Random, 10_000, 50),
        ("reorder2pct", Kind::Reorder, 20_000, 50),
    ] {
        cells.push(Cell {
            compared: Compared::Receivers,
            ..cell(format!("receive_{loss}_{rtt}ms"), kind, ppm, rtt, 1, false)
        });
    }
    cells
}

/// Runs the benchmark. Each run makes its own namespaces.
pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let folder = tempfile::Builder::new()
        .prefix("uktls-bench-")
        .tempdir()
        .context(|| "cannot make a folder for logs".into())?;
    let supervisor = Supervisor::new(folder.path())?;
    let wanted = |cell: &Cell| {
        args.cells.is_empty()
            || args
                .cells
                .iter()
                .any(|part| cell.name.contains(part.as_str()))
    };
    let cells: Vec<Cell> = cells().into_iter().filter(wanted).collect();
    if cells.is_empty() {
        return Err(Failure::new("no cell has such a name"));
    }
    let jobs = match args.jobs {
        0 => 2 * std::thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    // Pairs first, then runs: neighbours in this order run at the same time.
    let plan = (0..args.runs).flat_map(|run| {
        let pairs = move |cell| [(cell, run, Whose::Uktls), (cell, run, Whose::Linux)];
        (0..cells.len()).flat_map(pairs)
    });
    let mut results: Vec<[Vec<Outcomes>; 2]> = vec![Default::default(); cells.len()];
    let mut running: VecDeque<(usize, Whose, Child)> = VecDeque::new();
    let mut finish = |(cell, side, mut child): (usize, Whose, Child)| -> Result<(), Failure> {
        let limit = PATIENCE + Duration::from_secs_f64(args.seconds * 2.0);
        let line = supervisor.line(&mut child, limit)?;
        let outcomes: Outcomes =
            serde_json::from_str(&line).context(|| format!("the run said {line:?}"))?;
        supervisor.ended(&mut child, PATIENCE)?;
        child.reap()?;
        say(&format!(
            "  {:26} {:6} {:8.3} Mbit/s  late {:5.0} us",
            cells[cell].name,
            name_of(side),
            goodput(&outcomes),
            outcomes.late_mean,
        ));
        results[cell][side as usize].push(outcomes);
        Ok(())
    };
    for (cell, run, side) in plan {
        if running.len() == jobs
            && let Some(oldest) = running.pop_front()
        {
            finish(oldest)?;
        }
        let child = start(&supervisor, &cells[cell], run, side, args.seconds)?;
        running.push_back((cell, side, child));
    }
    for oldest in running {
        finish(oldest)?;
    }
    let mut report = report(&cells, &results);
    report.note(format!(
        "goodput_*: one flow to Linux's TCP, 100 Mbit/s, queue of one bandwidth-delay product, MTU 1500; {} pairs of {} s a cell.",
        args.runs, args.seconds,
    ));
    report.note(
        "Ratios are geometric means over pairs of one seed; intervals are Student's t at 95 %.",
    );
    report.note("receive_*: Linux's CUBIC sends, to us or to Linux. Reordering is netem's: 2 % overtake all packets on the way.");
    report.note("fairness_*: Jain's index of flows that share a bottleneck of 20 ms.");
    Ok(report)
}

/// Starts one run.
fn start(
    supervisor: &Supervisor,
    cell: &Cell,
    run: u64,
    side: Whose,
    seconds: f64,
) -> Result<Child, Failure> {
    let (sender, receiver) = match cell.compared {
        Compared::Senders => (side, Whose::Linux),
        Compared::Receivers => (Whose::Linux, side),
    };
    let mut command = ourselves()?;
    // The seed of a pair depends on the cell, or every cell would lose the same packets.
    let seed = Stream::new(run, &cell.name, "seed").bits();
    command
        .args(["bench", "loss-run"])
        .args(["--kind", &name_of(cell.trouble.kind)])
        .args(["--ppm", &cell.trouble.ppm.to_string()])
        .args(["--rtt", &cell.trouble.rtt.to_string()])
        .args(["--sender", &name_of(sender)])
        .args(["--receiver", &name_of(receiver)])
        .args(["--seed", &seed.to_string()])
        .args(["--flows", &cell.flows.to_string()])
        .args(["--seconds", &seconds.to_string()]);
    if cell.flows > 1 {
        command.args(["--warm-up", &(seconds / 5.0).to_string()]);
    }
    supervisor.spawn(&format!("{} {run} {side:?}", cell.name), command)
}

/// A value as the command line writes it.
fn name_of(value: impl clap::ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What all flows of a run got together, in Mbit/s.
fn goodput(outcomes: &Outcomes) -> f64 {
    // A run that got nothing through counts as one byte, so that ratios and logarithms exist.
    outcomes.bytes.iter().sum::<u64>().max(1) as f64 * 8.0 / 1e6 / outcomes.seconds
}

/// Jain's index: 1 when all flows got the same, 1/n when one got everything.
fn jain(outcomes: &Outcomes) -> f64 {
    let shares = || outcomes.bytes.iter().map(|&bytes| bytes as f64);
    let squares: f64 = shares().map(|share| share * share).sum();
    match squares {
        0.0 => 0.0,
        squares => shares().sum::<f64>().powi(2) / (squares * outcomes.bytes.len() as f64),
    }
}

/// The geometric mean.
fn geometric(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

fn report(cells: &[Cell], results: &[[Vec<Outcomes>; 2]]) -> Report {
    let mut report = Report::default();
    let mut late: Vec<f64> = Vec::new();
    // By run, the logarithms of the ratios of the grid's cells.
    let mut grid: Vec<Vec<f64>> = Vec::new();
    let mut below: Vec<&str> = Vec::new();
    for (cell, [linux, ours]) in cells.iter().zip(results) {
        late.extend(linux.iter().chain(ours).map(|run| run.late_mean));
        if cell.flows > 1 {
            let index = |runs: &[Outcomes]| median(&runs.iter().map(jain).collect::<Vec<_>>());
            if let (Some(value), Some(peer)) = (index(ours), index(linux)) {
                report.metric(Metric::beside(
                    BENCH, &cell.name, "index", value, PEER, peer,
                ));
            }
            continue;
        }
        let ratios: Vec<f64> = (ours.iter().zip(linux))
            .map(|(ours, linux)| (goodput(ours) / goodput(linux)).ln())
            .collect();
        let [value, peer] = [ours, linux].map(|runs| geometric(runs.iter().map(goodput)));
        let metric = Metric::beside(BENCH, &cell.name, "Mbit/s", value, PEER, peer);
        let interval = Interval::of_logarithms(&ratios);
        if interval.is_some_and(|interval| interval.high < WORST) {
            below.push(&cell.name);
        }
        report.metric(metric.between(interval));
        if cell.grid {
            grid.resize(grid.len().max(ratios.len()), Vec::new());
            for (run, ratio) in ratios.into_iter().enumerate() {
                grid[run].push(ratio);
            }
        }
    }
    if !grid.is_empty() {
        let means: Vec<f64> = (grid.iter())
            .map(|run| run.iter().sum::<f64>() / run.len() as f64)
            .collect();
        let mean = (means.iter().sum::<f64>() / means.len() as f64).exp();
        let metric = Metric::beside(BENCH, "geometric_mean", "ratio", mean, PEER, 1.0);
        report.metric(metric.between(Interval::of_logarithms(&means)));
    }
    report.note(match &below[..] {
        [] => format!("No cell's interval lies wholly below {WORST} of Linux's goodput."),
        below => format!(
            "Wholly below {WORST} of Linux's goodput: {}.",
            below.join(", ")
        ),
    });
    if let Some(late) = median(&late) {
        report.metric(Metric::alone(BENCH, "wire_late", "us", late));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(bytes: &[u64]) -> Outcomes {
        Outcomes {
            bytes: bytes.to_vec(),
            seconds: 8.0,
            late_mean: 0.0,
            lost: 0,
            overflowed: 0,
            timeouts: 0,
            retransmits: 0,
        }
    }

    #[test]
    fn jain_knows_fair_from_unfair() {
        assert_eq!(jain(&outcomes(&[7, 7, 7, 7])), 1.0);
        assert_eq!(jain(&outcomes(&[9, 0, 0, 0])), 0.25);
        assert_eq!(jain(&outcomes(&[0, 0])), 0.0);
    }

    #[test]
    fn the_grid_has_the_cells_that_are_asked_for() {
        let cells = cells();
        assert_eq!(cells.iter().filter(|cell| cell.grid).count(), 12);
        let names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        for name in [
            "goodput_0pct_10ms",
            "goodput_0.1pct_50ms",
            "goodput_3pct_100ms",
            "fairness_64",
        ] {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_burst_is_five_packets_in_a_row() {
        let lost = bursts();
        assert!(lost.is_sorted());
        assert_eq!(lost[..6], [4_000, 4_001, 4_002, 4_003, 4_004, 8_000]);
    }

    #[test]
    fn the_report_pairs_runs_and_averages_the_grid() {
        let cells: Vec<Cell> = (cells().into_iter())
            .filter(|cell| {
                ["goodput_1pct_10ms", "goodput_1pct_50ms", "fairness_4"]
                    .contains(&cell.name.as_str())
            })
            .collect();
        let runs = |bytes: [u64; 2]| bytes.map(|bytes| outcomes(&[bytes * 1_000_000])).to_vec();
        let results = [
            [runs([10, 20]), runs([20, 40])],
            [runs([10, 10]), runs([5, 5])],
            [vec![outcomes(&[1, 1, 1, 1])], vec![outcomes(&[1, 1, 1, 1])]],
        ];
        let report = report(&cells, &results);
        let below = "Wholly below 0.95 of Linux's goodput: goodput_1pct_50ms.";
        assert!(report.table().contains(below), "{}", report.table());
        let json = report.json();
        let lines: Vec<&str> = json.lines().collect();
        assert!(
            lines[0].contains(r#""metric":"goodput_1pct_10ms","unit":"Mbit/s","value":28.28"#),
            "{}",
            lines[0]
        );
        assert!(
            lines[0].ends_with(r#""ratio":2.0,"ratio_low":2.0,"ratio_high":2.0}"#),
            "{}",
            lines[0]
        );
        assert!(lines[1].contains(r#""ratio":0.5"#));
        assert!(lines[2].contains(r#""fairness_4","unit":"index","value":1.0"#));
        assert!(lines[3].contains(r#""geometric_mean""#) && lines[3].contains(r#""ratio":1.0"#));
    }
}
