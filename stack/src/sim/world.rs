//! One run: nodes, wires and time.
//!
//! Everything that will happen stands in one heap, ordered by time and, at one time, by the order in which it was put there.
//! Between two events the run settles: tasks run, what they did to their sockets is told to the engines, what the engines
//! send is offered to the wires, until nothing moves. Only then does time go on.
//!
//! Packets that arrive in the order in which they were sent wait in a queue of their wire, of which only the first stands in the
//! heap, so that the heap stays small whatever is in flight. The order of events is the same as if all did.

mod changes;
mod core;

use super::executor::Executor;
use super::host::{Frame, Place, SimHost, Touches};
use super::invariant::{Cause, Checker};
use super::link::{Delivery, Direction, Knobs};
use super::raw::Inbox;
use super::recording::Secrets;
use super::route::Prefix;
use super::schedule::{Change, Schedule};
use super::watch::Watch;
use crate::clock::{Duration, Instant};
use crate::counters::Counters;
use crate::engine::Engine;
use crate::stack::StackConfig;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

/// How often tasks may run, or engines be told something, without time going on.
const SETTLING: u64 = 10_000_000;

thread_local! {
    /// The run that this thread is in.
    static CURRENT: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// The run that this thread is in.
pub(super) fn current() -> Option<Rc<World>> {
    CURRENT.with_borrow(Clone::clone)
}

pub(super) fn expect_current() -> Rc<World> {
    current().expect(
        "a simulator's function was called outside a simulation: call it from a task of `Host::spawn`",
    )
}

/// Makes a world the current one until it is dropped.
pub(super) struct Entered(Option<Rc<World>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Something that will happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first packet of a wire's queue arrives.
    Wire(usize),
    /// A packet arrives that overtook others.
    Straggler(usize),
    /// A host's engine has timers to fire.
    Timer(usize),
    /// A task is woken.
    Wake(usize),
    /// Something of the schedule changes.
    Change(usize),
}

/// A timer: its place, which another one may have after it, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerId {
    place: usize,
    number: u64,
}

/// What a node is.
enum Kind {
    /// `None` while it is down.
    Host(Option<Box<Engine<SimHost>>>),
    /// A program of the test's is its stack.
    Raw(Rc<RefCell<Inbox>>),
    /// Passes packets on and is not seen.
    Switch,
    /// Passes packets on, counts hops, and says why it does not.
    Router,
}

/// A program that starts with its host.
pub(super) type Program = Rc<dyn Fn()>;

pub(super) struct Node {
    pub(super) name: String,
    pub(super) addresses: Vec<(IpAddr, u8)>,
    kind: Kind,
    /// Wires that lead away from it.
    wires: Vec<usize>,
    /// Static routes, as given.
    routes: Vec<(Prefix, usize)>,
    /// Next wire by destination; made when first needed.
    table: BTreeMap<IpAddr, Option<usize>>,
    config: StackConfig,
    counters: Arc<Counters>,
    pub(super) incarnation: u32,
    armed: Option<Instant>,
    dirty: bool,
    pub(super) programs: Vec<Program>,
}

/// A packet in a wire's queue.
struct Flying {
    at: Instant,
    sequence: u64,
    frame: Frame,
}

/// One direction of a link, and where it leads.
struct Wire {
    name: String,
    from: usize,
    to: usize,
    direction: Direction,
    queue: VecDeque<Flying>,
}

#[derive(Default)]
struct Core {
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    sequence: u64,
    nodes: Vec<Node>,
    wires: Vec<Wire>,
    stragglers: Slab<(usize, Frame)>,
    /// Who waits for a time, and which of those that ever had this place it is.
    timers: Slab<(u64, Option<Waker>)>,
    /// How many timers there were.
    timed: u64,
    names: BTreeMap<String, usize>,
    owners: BTreeMap<IpAddr, usize>,
    /// Pairs of hosts of which the first does not reach the second.
    severed: BTreeSet<(usize, usize)>,
    dirty: VecDeque<usize>,
    deliveries: Vec<Delivery<Frame>>,
    /// The front of the packet that is being offered, to be shown.
    front: Vec<u8>,
    /// What goes wrong as told, and whether the dice are not rolled.
    given: Schedule,
    replaying: bool,
    /// What the dice and programs did.
    rolled: Schedule,
    changes: Vec<Change>,
    /// Changes that are due.
    due: Vec<usize>,
}

/// A run. See the [module](self).
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) executor: Executor,
    pub(super) watch: Rc<Watch>,
    pub(super) secrets: Secrets,
    touches: Rc<Touches>,
    core: RefCell<Core>,
    settling: Cell<u64>,
    /// It is no longer being built.
    running: Cell<bool>,
}

/// Why a run cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stuck {
    /// Nothing will ever happen again.
    Nothing,
    /// Something happens all the time and the clock stands still.
    NoTime,
}

impl World {
    pub(super) fn new(seed: u64) -> Rc<World> {
        Rc::new(World {
            seed,
            executor: Executor::default(),
            watch: Rc::new(Watch::new(Checker::new(seed))),
            secrets: Secrets::default(),
            touches: Rc::default(),
            core: RefCell::default(),
            settling: Cell::new(0),
            running: Cell::new(false),
        })
    }

    pub(super) fn enter(self: &Rc<Self>) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }

    pub(super) fn now(&self) -> Instant {
        self.watch.now()
    }

    pub(super) fn touches(&self) -> &Touches {
        &self.touches
    }

    pub(super) fn shared_touches(&self) -> Rc<Touches> {
        self.touches.clone()
    }

    // --- building ---

    pub(super) fn add_node(&self, name: &str, addresses: Vec<(IpAddr, u8)>, role: Role) -> usize {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        let number = core.nodes.len();
        assert!(
            core.names.insert(name.to_owned(), number).is_none(),
            "two nodes are called {name:?}"
        );
        for (address, _) in &addresses {
            assert!(
                core.owners.insert(*address, number).is_none(),
                "two nodes have the address {address}"
            );
            self.watch.checker().name(*address, name);
            if matches!(role, Role::Raw(_)) {
                self.watch.checker().foreign(*address);
            }
        }
        core.nodes.push(Node {
            name: name.to_owned(),
            kind: match &role {
                Role::Host => Kind::Host(None),
                Role::Raw(inbox) => Kind::Raw(inbox.clone()),
                Role::Switch => Kind::Switch,
                Role::Router => Kind::Router,
            },
            wires: Vec::new(),
            routes: Vec::new(),
            table: BTreeMap::new(),
            config: StackConfig {
                addresses: addresses.clone(),
                mtu: 0,
                tcp: crate::tcp::Config::default(),
                limits: crate::stack::Limits::default(),
            },
            counters: Arc::default(),
            addresses,
            incarnation: 0,
            armed: None,
            dirty: false,
            programs: Vec::new(),
        });
        if matches!(role, Role::Host) {
            core.start(self, number);
        }
        number
    }

    /// Changes a host's settings; it starts afresh.
    pub(super) fn configure(&self, node: usize, change: impl FnOnce(&mut StackConfig)) {
        let mut core = self.core.borrow_mut();
        change(&mut core.nodes[node].config);
        core.start(self, node);
    }

    /// Joins two nodes; gives the wire from `a` to `b`, the other direction is the next.
    pub(super) fn add_link(&self, a: usize, b: usize, knobs: [Knobs; 2]) -> usize {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        let first = core.wires.len();
        let [there, back] = knobs;
        for (from, to, knobs) in [(a, b, there), (b, a, back)] {
            let mut name = format!("{}>{}", core.nodes[from].name, core.nodes[to].name);
            let same = core
                .wires
                .iter()
                .filter(|wire| (wire.from, wire.to) == (from, to))
                .count();
            if same > 0 {
                name = format!("{name}#{}", same + 1);
            }
            let number = core.wires.len();
            core.wires.push(Wire {
                from,
                to,
                direction: Direction::new(self.seed, &name, knobs),
                name,
                queue: VecDeque::new(),
            });
            core.tell_wire(number);
            core.nodes[from].wires.push(number);
        }
        core.topology_changed();
        first
    }

    pub(super) fn add_route(&self, node: usize, prefix: Prefix, via: usize) {
        let mut core = self.core.borrow_mut();
        let wire = core.nodes[node]
            .wires
            .iter()
            .copied()
            .find(|&wire| core.wires[wire].to == via);
        let Some(wire) = wire else {
            panic!(
                "a route of {:?} leads over {:?}, to which it has no link",
                core.nodes[node].name, core.nodes[via].name
            );
        };
        core.nodes[node].routes.push((prefix, wire));
        core.topology_changed();
    }

    /// Looks at, or turns, one direction of a link.
    pub(super) fn with_wire<T>(&self, wire: usize, act: impl FnOnce(&mut Direction) -> T) -> T {
        let mut core = self.core.borrow_mut();
        let result = act(&mut core.wires[wire].direction);
        core.topology_changed();
        result
    }

    // --- asking ---

    pub(super) fn node_named(&self, name: &str) -> Option<usize> {
        self.core.borrow().names.get(name).copied()
    }

    pub(super) fn node_name(&self, node: usize) -> String {
        self.core.borrow().nodes[node].name.clone()
    }

    pub(super) fn addresses(&self, node: usize) -> Vec<IpAddr> {
        self.core.borrow().nodes[node]
            .addresses
            .iter()
            .map(|(address, _)| *address)
            .collect()
    }

    pub(super) fn counters(&self, node: usize) -> Arc<Counters> {
        self.core.borrow().nodes[node].counters.clone()
    }

    /// Lets `act` at a host's engine; `None` while the host is down. The engine has its turn afterwards.
    pub(super) fn with_engine<T>(
        &self,
        node: usize,
        act: impl FnOnce(&mut Engine<SimHost>, Instant) -> T,
    ) -> Option<T> {
        let mut core = self.core.borrow_mut();
        let Kind::Host(Some(engine)) = &mut core.nodes[node].kind else {
            return None;
        };
        let result = act(engine, self.now());
        core.mark_dirty(node);
        Some(result)
    }

    /// The smallest MTU of a node's links.
    pub(super) fn mtu(&self, node: usize) -> usize {
        self.core.borrow().mtu_of(node)
    }

    /// A raw host puts a packet on its link.
    pub(super) fn send_raw(&self, node: usize, packet: &[u8]) {
        self.watch.sent(node, packet, Cause::First);
        let frame = Frame::foreign(packet);
        self.core.borrow_mut().send(self, self.now(), node, frame);
    }

    pub(super) fn place(&self, node: usize) -> Place {
        Place {
            node,
            incarnation: self.core.borrow().nodes[node].incarnation,
        }
    }

    // --- programs ---

    pub(super) fn add_program(&self, node: usize, program: Program) {
        self.core.borrow_mut().nodes[node]
            .programs
            .push(program.clone());
        program();
    }

    /// Everything on the host is gone at once, and nobody is told.
    pub(super) fn crash(&self, node: usize) {
        let engine = {
            let mut core = self.core.borrow_mut();
            let it = &mut core.nodes[node];
            it.incarnation += 1;
            it.armed = None;
            match &mut it.kind {
                Kind::Host(engine) => engine.take(),
                Kind::Raw(inbox) => {
                    inbox.borrow_mut().clear();
                    None
                }
                Kind::Switch | Kind::Router => None,
            }
        };
        if let Some(engine) = &engine {
            self.watch.event(node, "crash", &[], 0);
            for (_, stream) in &engine.host.streams {
                stream.borrow_mut().kill();
            }
        }
        self.executor.kill(Some(node));
        drop(engine);
    }

    /// The host comes up again, and its programs start anew.
    pub(super) fn restart(&self, node: usize) {
        self.crash(node);
        let programs = {
            let mut core = self.core.borrow_mut();
            core.start(self, node);
            core.nodes[node].programs.clone()
        };
        self.watch.event(node, "restart", &[], 0);
        for program in programs {
            program();
        }
    }

    // --- time ---

    /// Wakes a task then. A timer that was given before is told a new waker only.
    pub(super) fn wake_at(&self, until: Instant, timer: Option<TimerId>, waker: Waker) -> TimerId {
        let mut core = self.core.borrow_mut();
        if let Some(timer) = timer
            && let Some(slot) = core.timer(timer)
        {
            *slot = Some(waker);
            return timer;
        }
        core.timed += 1;
        let number = core.timed;
        let place = core.timers.insert((number, Some(waker)));
        core.push(until, Event::Wake(place));
        TimerId { place, number }
    }

    /// Nobody waits for this timer any more.
    pub(super) fn cancel_wake(&self, timer: TimerId) {
        if let Some(slot) = self.core.borrow_mut().timer(timer) {
            *slot = None;
        }
    }

    /// Lets everything happen that happens now.
    pub(super) fn settle(&self) -> Result<(), Stuck> {
        loop {
            let mut moved = false;
            while !self.watch.is_broken() && self.executor.run_one() {
                moved = true;
                if self.count() > SETTLING {
                    return Err(Stuck::NoTime);
                }
            }
            moved |= self.tell_engines();
            if !moved || self.watch.is_broken() {
                return Ok(());
            }
            if self.count() > SETTLING {
                return Err(Stuck::NoTime);
            }
        }
    }

    fn count(&self) -> u64 {
        let count = self.settling.get() + 1;
        self.settling.set(count);
        count
    }

    /// Tells engines what programs did, and gives everybody their turn. False when there was nothing.
    fn tell_engines(&self) -> bool {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        let now = self.now();
        let mut moved = false;
        while let Some((place, touch)) = self.touches.pop() {
            core.touched(now, place, touch);
            moved = true;
        }
        while let Some(node) = core.dirty.pop_front() {
            moved = true;
            core.give_turns(self, now, node);
        }
        moved
    }

    /// Goes on to the next event, and lets everything happen that stands there for the same time.
    pub(super) fn advance(&self, limit: Instant) -> Result<bool, Stuck> {
        let due = {
            let mut core = self.core.borrow_mut();
            if !self.go_on(&mut core, limit)? {
                return Ok(false);
            }
            std::mem::take(&mut core.due)
        };
        due.into_iter().for_each(|number| self.change(number));
        Ok(true)
    }

    fn go_on(&self, core: &mut Core, limit: Instant) -> Result<bool, Stuck> {
        // Timers that nobody waits for any more are no events.
        while let Some(&Reverse((_, _, Event::Wake(timer)))) = core.events.peek()
            && core.timers[timer].1.is_none()
        {
            core.events.pop();
            core.timers.remove(timer);
        }
        let Some(&Reverse((at, _, _))) = core.events.peek() else {
            return Err(Stuck::Nothing);
        };
        if at > limit {
            return Ok(false);
        }
        if at > self.now() {
            self.watch.set_now(at);
            self.settling.set(0);
        } else if self.count() > SETTLING {
            return Err(Stuck::NoTime);
        }
        let now = self.now();
        // What is put there meanwhile for the same time comes after it.
        let last = core.sequence;
        while let Some(&Reverse((at, sequence, event))) = core.events.peek()
            && at <= now
            && sequence <= last
            && !self.watch.is_broken()
        {
            core.events.pop();
            core.happen(self, now, event);
        }
        Ok(true)
    }

    /// The run is over: tasks go, and with them what they hold.
    pub(super) fn end(&self) {
        self.executor.kill(None);
        let programs: Vec<Vec<Program>> = {
            let mut core = self.core.borrow_mut();
            core.nodes
                .iter_mut()
                .map(|node| std::mem::take(&mut node.programs))
                .collect()
        };
        drop(programs);
    }
}

/// What a new node is to be.
pub(super) enum Role {
    Host,
    Raw(Rc<RefCell<Inbox>>),
    Switch,
    Router,
}

/// How long a run may take in virtual time, unless it says otherwise.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);
