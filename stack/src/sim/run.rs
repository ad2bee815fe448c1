//! Running: to the end, with many seeds, twice each, and down to the least that fails.

use super::decode::Names;
use super::invariant::{AssociationReport, StreamReport, Totals, Violation};
use super::net::Net;
use super::schedule::Schedule;
use super::shrink::shrink;
use super::trace::Journal;
use super::world::{Stuck, World};
use crate::clock::{Duration, Instant};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;
use uktls_record::dtls::DiscardKind;

/// Runs that shrinking may take.
const MAX_SHRINK_RUNS: usize = 500;

/// What a run was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its identity: a hash over every packet and event. The same seed gives the same one, on every machine and in every build.
    pub hash: u64,
    /// Virtual time at its end.
    pub ended: Instant,
    /// Packets and events.
    pub events: u64,
    /// Totals.
    pub totals: Totals,
    /// Every direction of every connection, in the order of their first packets.
    pub streams: Vec<StreamReport>,
    /// Every host's view of every DTLS association, in the order of their first keys.
    pub associations: Vec<AssociationReport>,
    /// Who is who.
    pub names: Names,
    /// What went wrong, the dice's and the programs' doing included.
    pub schedule: Schedule,
}

impl fmt::Display for Report {
    /// What a person wants to know of a run, a line for each direction of each connection.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals {
            packets,
            data_packets,
            retransmitted,
            delivered,
            ..
        } = self.totals;
        write!(
            f,
            "seed {}: {} of virtual time, hash {:016x}\n{packets} packets sent ({data_packets} with data, {retransmitted} of them again), {delivered} delivered",
            self.seed, self.ended, self.hash
        )?;
        for stream in &self.streams {
            let counts = &stream.counts;
            write!(
                f,
                "\n  {}: {} packets, {} bytes, {} sent again, {} records sealed, {} opened",
                self.names.connection(&stream.flow),
                counts.packets,
                counts.payload,
                counts.retransmitted,
                counts.sealed,
                counts.opened
            )?;
            if let Some(inside) = stream.inside.filter(|inside| *inside > 0) {
                write!(f, ", {inside} bytes that nobody read")?;
            }
        }
        for association in &self.associations {
            write!(
                f,
                "\n  {}: {} DTLS records sealed, {} opened",
                self.names.connection(&association.flow),
                association.sealed,
                association.opened
            )?;
            let kinds = DiscardKind::ALL.into_iter().zip(association.dropped);
            for (kind, count) in kinds.filter(|(_, count)| *count > 0) {
                write!(f, ", {count} dropped as {}", kind.name())?;
            }
        }
        Ok(())
    }
}

/// Why a run failed. Its `Display` is what a person needs: what, where, the last packets, and the command that repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// Virtual time.
    pub at: Instant,
    /// What kind of failure.
    pub kind: FailureKind,
    /// More on it, several lines.
    pub detail: String,
    /// The last packets and events, a line each, oldest first.
    pub last: Vec<String>,
    /// What had gone wrong until then.
    pub schedule: Schedule,
    /// The least of it that still fails so, when that was asked for. `None` too when not even the whole of it fails again: then
    /// something is at work that no schedule knows.
    pub shrunk: Option<Schedule>,
}

/// What kind of failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// A task, or the closure that builds the network, panicked; and where.
    Panic(String),
    /// Something that must hold in every run did not.
    Invariant,
    /// Tasks wait, and nothing will ever happen again.
    Deadlock,
    /// Something happens all the time and the clock stands still.
    Livelock,
    /// The run took more virtual time than it may.
    TimeLimit,
    /// Two runs of the same seed differ.
    Nondeterminism,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureKind::Panic(place) => write!(f, "a panic at {place}"),
            FailureKind::Invariant => write!(f, "an invariant is broken"),
            FailureKind::Deadlock => write!(f, "a deadlock: tasks wait, and nothing will happen"),
            FailureKind::Livelock => {
                write!(f, "time does not go on: something happens without end")
            }
            FailureKind::TimeLimit => write!(f, "the run takes more virtual time than it may"),
            FailureKind::Nondeterminism => write!(f, "two runs of the same seed differ"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "simulation with seed {}, at {}: {}",
            self.seed, self.at, self.kind
        )?;
        for line in self.detail.lines() {
            writeln!(f, "  {line}")?;
        }
        if !self.last.is_empty() {
            writeln!(f, "the last packets and events:")?;
            for line in &self.last {
                writeln!(f, "  {line}")?;
            }
        }
        if let Some(shrunk) = &self.shrunk {
            writeln!(
                f,
                "it still fails with this alone (`net.replay(&…)`):\n{shrunk}"
            )?;
        }
        write!(f, "repeat it with:\n  {}", command(self.seed))
    }
}

impl std::error::Error for Failure {}

/// The command that repeats a run.
fn command(seed: u64) -> String {
    let package = std::env::var("CARGO_PKG_NAME").ok();
    let test = std::thread::current().name().map(str::to_owned);
    match (package, test) {
        (Some(package), Some(test)) if test != "main" => {
            format!("UKTLS_SEED={seed} cargo test -p {package} -- --exact {test}")
        }
        _ => {
            let arguments: Vec<String> = std::env::args().collect();
            format!("UKTLS_SEED={seed} {}", arguments.join(" "))
        }
    }
}

thread_local! {
    static IN_RUN: Cell<bool> = const { Cell::new(false) };
    /// Message and place of the panic that ended a run.
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Takes note of panics inside runs, which are reported with the run; others are reported as ever.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IN_RUN.get() {
                return before(info);
            }
            let place = info
                .location()
                .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
            PANIC.set(Some((message(info.payload()), place)));
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    payload
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// Runs `act` with panics caught and noted.
fn catching<T>(act: impl FnOnce() -> T) -> Result<T, (String, String)> {
    note_panics();
    let outer = IN_RUN.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(act));
    IN_RUN.set(outer);
    outcome.map_err(|payload| {
        PANIC
            .take()
            .unwrap_or_else(|| (message(&*payload), "an unknown place".to_owned()))
    })
}

fn failure(world: &World, kind: FailureKind, detail: String) -> Box<Failure> {
    Box::new(Failure {
        seed: world.seed,
        at: world.now(),
        kind,
        detail,
        last: world.watch.checker().last_lines(),
        schedule: world.whole_schedule(),
        shrunk: None,
    })
}

fn broken(world: &World, violation: &Violation) -> Box<Failure> {
    let kind = if violation.what.starts_with("two runs") {
        FailureKind::Nondeterminism
    } else {
        FailureKind::Invariant
    };
    failure(world, kind, violation.to_string())
}

/// Runs until all foreground tasks have ended, and ends everything else.
pub(super) fn run_to_end(world: &Rc<World>, limit: Duration) -> Result<Report, Box<Failure>> {
    let outcome = catching(|| {
        let _entered = world.enter();
        world.begin();
        let outcome = drive(world, Instant::ZERO + limit);
        world.end();
        outcome
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        // What broke an invariant may be what the program's own assertion then met: the invariant says more.
        Err((message, place)) => Err(match world.watch.take_violation() {
            Some(violation) => broken(world, &violation),
            None => failure(world, FailureKind::Panic(place), message),
        }),
    };
    let mut checker = world.watch.checker();
    if let Err(error) = checker.write_recording() {
        eprintln!("the recording of this run could not be written: {error}");
    }
    drop(checker);
    outcome?;
    let checker = world.watch.checker();
    let finished = checker.finish(world.now());
    let report = Report {
        seed: world.seed,
        hash: checker.hash(),
        ended: world.now(),
        events: checker.events(),
        totals: checker.totals(),
        streams: checker.streams().collect(),
        associations: checker.associations().to_vec(),
        names: checker.names().clone(),
        schedule: world.whole_schedule(),
    };
    drop(checker);
    match finished {
        Ok(()) => Ok(report),
        Err(violation) => Err(broken(world, &violation)),
    }
}

fn drive(world: &World, limit: Instant) -> Result<(), Box<Failure>> {
    loop {
        let settled = world.settle();
        if let Some(violation) = world.watch.take_violation() {
            return Err(broken(world, &violation));
        }
        if settled.is_ok() && world.executor.foreground() == 0 {
            return Ok(());
        }
        let stuck = match settled.and_then(|()| world.advance(limit)) {
            Ok(true) => continue,
            Ok(false) => None,
            Err(stuck) => Some(stuck),
        };
        let waiting = world
            .executor
            .waiting(|node| format!("host {:?}", world.node_name(node)))
            .join("\n");
        let kind = match stuck {
            Some(Stuck::Nothing) => FailureKind::Deadlock,
            Some(Stuck::NoTime) => FailureKind::Livelock,
            None => FailureKind::TimeLimit,
        };
        return Err(failure(world, kind, waiting));
    }
}

/// What becomes of a run's events.
enum Journaling {
    None,
    Keep,
    Compare(Journal),
}

/// How a test is run; from the environment, as a rule.
///
/// | variable | what |
/// | --- | --- |
/// | `UKTLS_SEED=n` | the seed, or the first of several (1 otherwise) |
/// | `UKTLS_SEEDS=n` | n seeds, one after the other |
/// | `UKTLS_CHECK_DETERMINISM=1` | runs each seed twice, and fails at the first packet that differs |
/// | `UKTLS_SHRINK=1` | looks for the least that still fails, and prints it as code |
/// | `UKTLS_PCAP=path` | records the run, the last of several, to a capture file: [`Net::record`] |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    first: u64,
    count: u64,
    twice: bool,
    shrink: bool,
    limit: Duration,
    pcap: Option<PathBuf>,
}

impl Runs {
    /// As the environment says.
    ///
    /// # Panics
    /// When a variable is no number: a typo must not look like a run that passed.
    pub fn from_env() -> Runs {
        let number = |name: &str, usual: u64| match std::env::var(name) {
            Err(_) => usual,
            Ok(text) => match text.trim().strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => text.trim().parse(),
            }
            .unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        };
        Runs {
            first: number("UKTLS_SEED", 1),
            count: number("UKTLS_SEEDS", 1).max(1),
            twice: number("UKTLS_CHECK_DETERMINISM", 0) != 0,
            shrink: number("UKTLS_SHRINK", 0) != 0,
            limit: super::world::TIME_LIMIT,
            pcap: std::env::var_os("UKTLS_PCAP").map(PathBuf::from),
        }
    }

    /// `count` seeds from `first` on, unless `UKTLS_SEED` says which: the command that a failure prints must repeat that failure.
    pub fn seeds(self, first: u64, count: u64) -> Runs {
        if std::env::var_os("UKTLS_SEED").is_some() {
            return self;
        }
        self.only(first, count)
    }

    /// `count` seeds from `first` on, whatever the environment says of seeds: for tests that know what these seeds do.
    pub fn only(mut self, first: u64, count: u64) -> Runs {
        (self.first, self.count) = (first, count.max(1));
        self
    }

    /// `count` seeds unless the environment says how many.
    pub fn at_least(mut self, count: u64) -> Runs {
        if std::env::var_os("UKTLS_SEED").is_none() && std::env::var_os("UKTLS_SEEDS").is_none() {
            self.count = count.max(1);
        }
        self
    }

    /// Runs each seed twice, and compares.
    pub fn check_determinism(mut self, on: bool) -> Runs {
        self.twice = on;
        self
    }

    /// Looks for the least that still fails.
    pub fn shrink(mut self, on: bool) -> Runs {
        self.shrink = on;
        self
    }

    /// How long a run may take in virtual time; a day otherwise.
    pub fn time_limit(mut self, limit: Duration) -> Runs {
        self.limit = limit;
        self
    }

    /// Builds and runs the network for every seed. Gives the last run's report.
    ///
    /// # Panics
    /// At the first run that fails; see [`Net::run`].
    pub fn run(&self, build: impl Fn(&Net)) -> Report {
        match self.try_run(build) {
            Ok(report) => report,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As [`run`](Self::run), for tests that want a failure.
    ///
    /// # Errors
    /// The first [`Failure`].
    pub fn try_run(&self, build: impl Fn(&Net)) -> Result<Report, Box<Failure>> {
        let mut last = None;
        for seed in self.first..self.first.saturating_add(self.count) {
            match self.run_seed(seed, &build) {
                Ok(report) => last = Some(report),
                Err(failure) if self.shrink => return Err(self.shrunk(failure, &build)),
                Err(failure) => return Err(failure),
            }
        }
        Ok(last.expect("there is at least one seed"))
    }

    fn run_seed(&self, seed: u64, build: &impl Fn(&Net)) -> Result<Report, Box<Failure>> {
        if !self.twice {
            return self.once(seed, None, Journaling::None, build).0;
        }
        let (first, journal) = self.once(seed, None, Journaling::Keep, build);
        let journal = journal.expect("it was asked for");
        let (second, _) = self.once(seed, None, Journaling::Compare(journal), build);
        match (first, second) {
            // A failure that only one of the two has is best explained by where they part.
            (_, Err(second)) if second.kind == FailureKind::Nondeterminism => Err(second),
            (Err(first), _) => Err(first),
            (Ok(_), Err(second)) => Err(second),
            (Ok(report), Ok(_)) => Ok(report),
        }
    }

    fn once(
        &self,
        seed: u64,
        replay: Option<&Schedule>,
        journaling: Journaling,
        build: &impl Fn(&Net),
    ) -> (Result<Report, Box<Failure>>, Option<Journal>) {
        let net = Net::new(seed);
        match journaling {
            Journaling::None => {}
            Journaling::Keep => net.world.watch.checker().keep_journal(),
            Journaling::Compare(journal) => net.world.watch.checker().compare_with(journal),
        }
        match (replay, &self.pcap) {
            (Some(schedule), _) => net.replay(schedule),
            (None, Some(path)) => net
                .record(path)
                .unwrap_or_else(|error| panic!("UKTLS_PCAP={}: {error}", path.display())),
            (None, None) => {}
        }
        let built = catching(|| {
            let _entered = net.world.enter();
            build(&net);
        });
        if let Err((message, place)) = built {
            net.world.end();
            let failure = failure(&net.world, FailureKind::Panic(place), message);
            let journal = net.world.watch.checker().take_journal();
            return (Err(failure), journal);
        }
        let outcome = run_to_end(&net.world, self.limit);
        let journal = net.world.watch.checker().take_journal();
        (outcome, journal)
    }

    fn shrunk(&self, mut failure: Box<Failure>, build: &impl Fn(&Net)) -> Box<Failure> {
        let fails = |schedule: &Schedule| {
            let outcome = self
                .once(failure.seed, Some(schedule), Journaling::None, build)
                .0;
            outcome.is_err_and(|other| other.kind == failure.kind)
        };
        failure.shrunk =
            shrink(&failure.schedule, MAX_SHRINK_RUNS, fails).map(|least| least.schedule);
        failure
    }
}

/// Builds and runs a network as the environment says: the whole of most tests.
///
/// # Panics
/// When a run fails; see [`Net::run`].
pub fn run(build: impl Fn(&Net)) -> Report {
    Runs::from_env().run(build)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invariant_that_breaks_goes_before_the_panic_that_follows() {
        let net = Net::new(1);
        let host = net.host("host", "10.0.0.1");
        let world = net.world.clone();
        host.spawn(async move {
            world.watch.note(Err(Box::new(Violation {
                now: world.now(),
                what: "the planted violation".to_owned(),
                packet: String::new(),
            })));
            panic!("what the program makes of it");
        });
        let failure = net.try_run().expect_err("both are failures");
        assert_eq!(failure.kind, FailureKind::Invariant);
        assert!(
            failure.detail.contains("the planted violation"),
            "{failure}"
        );
    }
}
