//! What changes in a network while it runs, and the schedule that keeps it.
//!
//! What a program does to the network (a knob turned, a partition, a crash) is done and written down with its time. In a replay it is not
//! done: what the schedule says happens in its place, so that shrinking can leave it out. What is done before the run begins belongs to
//! the network as it is built and is not written down; targeted faults alone are, since nobody builds a network with them for its own sake.
//!
//! A change of the schedule comes before anything else that programs do at its time, as it did when a program's timer caused it. What a
//! program did in answer to a packet of the very same nanosecond may meet the packets of that nanosecond in another order.

use super::super::fault::Fault;
use super::super::link::Knobs;
use super::super::schedule::{Change, Event as Entry, Knob, Schedule};
use super::{Event, World};
use std::cmp::Reverse;

impl World {
    /// What goes wrong, from the start of the run. With `replaying` nothing else does, and later schedules are ignored.
    pub(in super::super) fn schedule(&self, schedule: &Schedule, replaying: bool) {
        let mut core = self.core.borrow_mut();
        if core.replaying {
            return;
        }
        core.replaying = replaying;
        let old = std::mem::take(&mut core.given);
        let events = old.events().iter().chain(schedule.events()).cloned();
        core.given = events.collect();
        for (at, change) in schedule.changes() {
            let number = core.changes.len();
            core.changes.push(change.clone());
            core.push(at, Event::Change(number));
        }
        for wire in 0..core.wires.len() {
            core.tell_wire(wire);
        }
    }

    /// Everything that goes wrong in this run: what was given, what the dice did, and what programs did.
    pub(in super::super) fn whole_schedule(&self) -> Schedule {
        let core = self.core.borrow();
        let (given, rolled) = (core.given.events(), core.rolled.events());
        given.iter().chain(rolled).cloned().collect()
    }

    /// The run begins: what changes at its very start does so before anybody has done anything.
    pub(in super::super) fn begin(&self) {
        self.running.set(true);
        let mut due = Vec::new();
        {
            let mut core = self.core.borrow_mut();
            while let Some(&Reverse((at, _, Event::Change(number)))) = core.events.peek()
                && at <= self.now()
            {
                core.events.pop();
                due.push(number);
            }
        }
        due.into_iter().for_each(|number| self.change(number));
    }

    /// A program, or the test before the run, changes something.
    pub(in super::super) fn request(&self, change: Change) {
        if self.may_change(|| vec![change.clone()]) {
            self.apply(&change);
        }
    }

    /// A program, or the test before the run, turns knobs.
    pub(in super::super) fn turn_knobs(&self, wire: usize, turn: impl FnOnce(&mut Knobs)) {
        let (name, before) = {
            let core = self.core.borrow();
            let wire = &core.wires[wire];
            (wire.name.clone(), wire.direction.knobs.clone())
        };
        let mut after = before.clone();
        turn(&mut after);
        let turned = || {
            let knobs = Knob::turned(&before, &after).into_iter();
            knobs.map(|knob| Change::Knob(name.clone(), knob)).collect()
        };
        if self.may_change(turned) {
            self.with_wire(wire, |direction| direction.knobs = after);
        }
    }

    /// Writes changes of a running network down. False in a replay, which has its own.
    fn may_change(&self, changes: impl FnOnce() -> Vec<Change>) -> bool {
        if !self.running.get() {
            return true;
        }
        let now = self.now();
        let mut core = self.core.borrow_mut();
        if core.replaying {
            return false;
        }
        for change in changes() {
            core.rolled.push(Entry::At(now, change));
        }
        true
    }

    /// A program, or the test before the run, sets a targeted fault.
    pub(in super::super) fn add_fault(&self, wire: usize, fault: Fault) {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        if core.replaying {
            return;
        }
        let wire = &mut core.wires[wire];
        let fault = fault.not_before(self.now());
        core.rolled
            .push(Entry::Fault(wire.name.clone(), fault.clone()));
        wire.direction.add_fault(fault);
    }

    /// A program, or the test before the run, takes all targeted faults away.
    pub(in super::super) fn clear_faults(&self, wire: usize) {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        if core.replaying {
            return;
        }
        let wire = &mut core.wires[wire];
        core.given.end_faults(&wire.name, self.now());
        core.rolled.end_faults(&wire.name, self.now());
        wire.direction.clear_faults();
    }

    /// A change of the schedule is due.
    pub(super) fn change(&self, number: usize) {
        let change = self.core.borrow().changes[number].clone();
        self.apply(&change);
    }

    fn apply(&self, change: &Change) {
        let node = |name: &String| self.node_named(name);
        let nodes = |names: &[String]| -> Vec<usize> { names.iter().filter_map(node).collect() };
        let sever = |from: &[String], to: &[String]| {
            let (from, to) = (nodes(from), nodes(to));
            let pairs = from
                .iter()
                .flat_map(|from| to.iter().map(|to| (*from, *to)));
            self.core.borrow_mut().severed.extend(pairs);
        };
        match change {
            Change::Knob(name, knob) => self.turn(name, knob),
            Change::Partition(left, right) => {
                sever(left, right);
                sever(right, left);
            }
            Change::OneWayPartition(from, to) => sever(from, to),
            Change::Heal => self.core.borrow_mut().severed.clear(),
            Change::Crash(name) => node(name).into_iter().for_each(|node| self.crash(node)),
            Change::Restart(name) => node(name).into_iter().for_each(|node| self.restart(node)),
        }
    }

    fn turn(&self, name: &str, knob: &Knob) {
        let mut core = self.core.borrow_mut();
        if let Some(wire) = core.wires.iter_mut().find(|wire| wire.name == name) {
            knob.turn(&mut wire.direction.knobs);
        }
        core.topology_changed();
    }
}
