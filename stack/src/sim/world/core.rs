//! Nodes and wires: where packets go, and what happens when they, or a time, arrive.

use super::super::host::{Frame, Place, SimHost, Touch};
use super::super::link::Delivery;
use super::super::random::Stream;
use super::super::route::{self, Forward};
use super::{Core, Event, Flying, Kind, TimerId, World};
use crate::budget::Budget;
use crate::clock::Instant;
use crate::device::Offload;
use crate::engine::{Engine, FlowHash, Settings, UdpTurn};
use crate::stack::StackConfig;
use crate::tcp::IsnGenerator;
use siphasher::sip::SipHasher13;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

impl Core {
    pub(super) fn push(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    pub(super) fn mark_dirty(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if !it.dirty {
            it.dirty = true;
            self.dirty.push_back(node);
        }
    }

    /// Whom this timer wakes, unless it has fired.
    pub(super) fn timer(&mut self, timer: TimerId) -> Option<&mut Option<Waker>> {
        let (number, waker) = self.timers.get_mut(timer.place)?;
        (*number == timer.number).then_some(waker)
    }

    /// Tells a direction what the schedule has for it.
    pub(super) fn tell_wire(&mut self, number: usize) {
        let wire = &mut self.wires[number];
        wire.direction.clear_faults();
        for fault in self.given.faults(&wire.name) {
            wire.direction.add_fault(fault.clone());
        }
        if self.replaying {
            wire.direction.replay(self.given.effects(&wire.name));
        }
    }

    /// A fresh engine for a host, with secrets of its own for each of its lives.
    pub(super) fn start(&mut self, world: &World, node: usize) {
        let mtu = self.mtu_of(node);
        let it = &mut self.nodes[node];
        if !matches!(it.kind, Kind::Host(_)) {
            return;
        }
        let purpose = format!("secrets of life {}", it.incarnation);
        let mut stream = Stream::new(world.seed, &it.name, &purpose);
        let (mut flows, mut isn) = ([0; 16], [0; 16]);
        stream.fill(&mut flows);
        stream.fill(&mut isn);
        let place = Place {
            node,
            incarnation: it.incarnation,
        };
        let settings = Settings {
            config: Arc::new(StackConfig {
                mtu,
                ..it.config.clone()
            }),
            counters: it.counters.clone(),
            budget: Arc::new(Budget::new(
                it.config.limits.memory_per_uid,
                it.config.limits.memory_total,
            )),
            hash: FlowHash(SipHasher13::new_with_key(&flows)),
            isn: IsnGenerator::new(isn),
            index: 0,
            engines: 1,
        };
        let host = SimHost::new(place, mtu, world.touches.clone(), world.watch.clone());
        it.kind = Kind::Host(Some(Box::new(Engine::new(settings, host))));
        it.armed = None;
    }

    /// The smallest MTU of a node's links.
    pub(super) fn mtu_of(&self, node: usize) -> usize {
        self.nodes[node]
            .wires
            .iter()
            .map(|&wire| self.wires[wire].direction.knobs.mtu)
            .min()
            .unwrap_or(1500)
    }

    pub(super) fn topology_changed(&mut self) {
        for node in 0..self.nodes.len() {
            let mtu = self.mtu_of(node);
            self.nodes[node].table.clear();
            if let Kind::Host(Some(engine)) = &mut self.nodes[node].kind {
                engine.host.card.mtu = mtu;
            }
        }
    }

    /// A program did something to a socket.
    pub(super) fn touched(&mut self, now: Instant, place: Place, touch: Touch) {
        let it = &mut self.nodes[place.node];
        if it.incarnation != place.incarnation {
            return;
        }
        let Kind::Host(Some(engine)) = &mut it.kind else {
            return;
        };
        match touch {
            Touch::Stream { id, hung_up } => {
                engine.host.untouch(id);
                engine.on_client_of(id, hung_up);
            }
            Touch::ListenerGone(index) => engine.on_listener(index, true),
            Touch::Datagrams(index) => while engine.udp_turn(now, index) == UdpTurn::More {},
            Touch::DatagramsGone(index) => {
                while engine.udp_turn(now, index) == UdpTurn::More {}
                engine.remove_udp(index);
            }
            Touch::Records(index) => engine.on_records_client(index),
        }
        self.mark_dirty(place.node);
    }

    /// Lets a host's sockets do what they can, and puts on the wires what comes of it.
    pub(super) fn give_turns(&mut self, world: &World, now: Instant, node: usize) {
        let it = &mut self.nodes[node];
        it.dirty = false;
        let Kind::Host(Some(engine)) = &mut it.kind else {
            return;
        };
        while !engine.is_idle() {
            engine.give_turns(now);
        }
        let deadline = engine.next_deadline();
        if let Some(at) = deadline
            && it.armed.is_none_or(|armed| at < armed)
        {
            it.armed = Some(at);
            self.push(at.max(now), Event::Timer(node));
        }
        self.send_outbox(world, now, node);
    }

    fn send_outbox(&mut self, world: &World, now: Instant, node: usize) {
        let Kind::Host(Some(engine)) = &mut self.nodes[node].kind else {
            return;
        };
        let mut outbox = std::mem::take(&mut engine.host.card.outbox);
        for (frame, cause) in outbox.drain(..) {
            world.watch.sent(node, &frame.bytes, cause);
            self.send(world, now, node, frame);
        }
        if let Kind::Host(Some(engine)) = &mut self.nodes[node].kind {
            engine.host.card.outbox = outbox;
        }
    }

    /// A packet leaves a node.
    pub(super) fn send(&mut self, world: &World, now: Instant, node: usize, frame: Frame) {
        let Some(dst) = route::destination(&frame.bytes) else {
            return;
        };
        if !self.severed.is_empty()
            && let Some(&to) = self.owners.get(&dst)
            && self.severed.contains(&(node, to))
        {
            return world.watch.event(node, "partitioned", &frame.bytes, 0);
        }
        if self.nodes[node]
            .addresses
            .iter()
            .any(|(ours, _)| *ours == dst)
            && matches!(self.nodes[node].kind, Kind::Host(_) | Kind::Raw(_))
        {
            // To itself: it is there at once, behind what happens now.
            let straggler = self.stragglers.insert((usize::MAX - node, frame));
            return self.push(now, Event::Straggler(straggler));
        }
        let Some(wire) = self.next_wire(node, dst) else {
            world.watch.event(node, "no route", &frame.bytes, 0);
            if let Some(answer) = self.complaint(node, &frame, route::Complaint::Unreachable) {
                self.send(world, now, node, answer);
            }
            return;
        };
        let mtu = self.wires[wire].direction.knobs.mtu;
        if frame.bytes.len() > mtu && !matches!(self.nodes[node].kind, Kind::Switch) {
            if matches!(self.nodes[node].kind, Kind::Router)
                && let Some(fragments) = route::cut(&frame.bytes, mtu)
            {
                world.watch.event(node, "cut", &frame.bytes, mtu as u64);
                for fragment in fragments {
                    let piece = frame.like(fragment);
                    self.send(world, now, node, piece);
                }
                return;
            }
            world.watch.event(node, "too big", &frame.bytes, mtu as u64);
            if let Some(answer) = self.complaint(node, &frame, route::Complaint::TooBig(mtu)) {
                self.send(world, now, node, answer);
            }
            return;
        }
        self.front.clear();
        self.front
            .extend_from_slice(&frame.bytes[..frame.bytes.len().min(128)]);
        let mut deliveries = std::mem::take(&mut self.deliveries);
        let verdict = self.wires[wire]
            .direction
            .offer(now, frame, &mut deliveries);
        world.watch.offered(node, wire, &verdict, &self.front);
        if !self.replaying {
            self.rolled.record(&self.wires[wire].name, &verdict);
        }
        for Delivery { at, packet } in deliveries.drain(..) {
            self.sequence += 1;
            let sequence = self.sequence;
            let queue = &mut self.wires[wire].queue;
            match queue.back() {
                Some(last) if last.at > at => {
                    let straggler = self.stragglers.insert((wire, packet));
                    self.events
                        .push(Reverse((at, sequence, Event::Straggler(straggler))));
                }
                last => {
                    if last.is_none() {
                        self.events.push(Reverse((at, sequence, Event::Wire(wire))));
                    }
                    queue.push_back(Flying {
                        at,
                        sequence,
                        frame: packet,
                    });
                }
            }
        }
        self.deliveries = deliveries;
    }

    /// What a node answers to a packet that it cannot pass on.
    fn complaint(&self, node: usize, frame: &Frame, complaint: route::Complaint) -> Option<Frame> {
        let it = &self.nodes[node];
        let (v4, own) = (route::is_v4(&frame.bytes), &it.addresses);
        let from = own
            .iter()
            .map(|(address, _)| *address)
            .find(|address| address.is_ipv4() == v4)?;
        let bytes = route::complain(from, &frame.bytes, complaint)?;
        Some(Frame::complete(bytes))
    }

    /// The wire that leads to `dst`: the longest static prefix, else the way with the fewest hops.
    fn next_wire(&mut self, node: usize, dst: IpAddr) -> Option<usize> {
        let it = &self.nodes[node];
        if let ([wire], true) = (
            &it.wires[..],
            matches!(it.kind, Kind::Host(_) | Kind::Raw(_)),
        ) {
            return Some(*wire);
        }
        if let Some(known) = it.table.get(&dst) {
            return *known;
        }
        let wire = it
            .routes
            .iter()
            .filter(|(prefix, _)| prefix.contains(dst))
            .max_by_key(|(prefix, _)| prefix.length())
            .map(|(_, wire)| *wire)
            .or_else(|| self.shortest_way(node, dst));
        self.nodes[node].table.insert(dst, wire);
        wire
    }

    fn shortest_way(&self, node: usize, dst: IpAddr) -> Option<usize> {
        let target = *self.owners.get(&dst)?;
        let mut seen = vec![false; self.nodes.len()];
        seen[node] = true;
        // Node, and the first wire of the way there.
        let mut queue: VecDeque<(usize, Option<usize>)> = VecDeque::from([(node, None)]);
        while let Some((at, first)) = queue.pop_front() {
            if at == target {
                return first;
            }
            if at != node && matches!(self.nodes[at].kind, Kind::Host(_) | Kind::Raw(_)) {
                continue; // hosts do not pass packets on
            }
            for &wire in &self.nodes[at].wires {
                let to = self.wires[wire].to;
                if !seen[to] {
                    seen[to] = true;
                    queue.push_back((to, first.or(Some(wire))));
                }
            }
        }
        None
    }

    pub(super) fn happen(&mut self, world: &World, now: Instant, event: Event) {
        match event {
            Event::Wire(wire) => {
                let it = &mut self.wires[wire];
                let to = it.to;
                let Some(flying) = it.queue.pop_front() else {
                    return;
                };
                if let Some(next) = it.queue.front() {
                    self.events
                        .push(Reverse((next.at, next.sequence, Event::Wire(wire))));
                }
                self.arrive(world, now, to, flying.frame);
            }
            Event::Straggler(number) => {
                let (wire, frame) = self.stragglers.remove(number);
                let to = match self.wires.get(wire) {
                    Some(wire) => wire.to,
                    None => usize::MAX - wire,
                };
                self.arrive(world, now, to, frame);
            }
            Event::Timer(node) => {
                let it = &mut self.nodes[node];
                // An earlier one may have been armed since; and a crash forgets.
                if it.armed.is_none_or(|at| at > now) {
                    return;
                }
                it.armed = None;
                if let Kind::Host(Some(engine)) = &mut it.kind {
                    engine.fire_timers(now);
                    self.mark_dirty(node);
                }
            }
            Event::Change(number) => self.due.push(number),
            Event::Wake(timer) => {
                if let (_, Some(waker)) = self.timers.remove(timer) {
                    waker.wake();
                }
            }
        }
    }

    /// A packet reaches a node.
    fn arrive(&mut self, world: &World, now: Instant, node: usize, mut frame: Frame) {
        match &mut self.nodes[node].kind {
            Kind::Host(Some(engine)) => {
                world.watch.delivered(node, &frame.bytes);
                let offload = Offload {
                    verified: !frame.touched,
                    ..Offload::NONE
                };
                engine.on_packet(now, frame.bytes, offload);
                self.mark_dirty(node);
            }
            Kind::Host(None) => world.watch.event(node, "host is down", &frame.bytes, 0),
            Kind::Raw(inbox) => {
                let inbox = Rc::clone(inbox);
                world.watch.delivered(node, &frame.bytes);
                frame.finish();
                if let Err(packet) = inbox.borrow_mut().put(frame.bytes) {
                    world.watch.event(node, "nobody receives", &packet, 0);
                }
            }
            Kind::Switch => self.send(world, now, node, frame),
            Kind::Router => {
                let ours = route::destination(&frame.bytes)
                    .is_some_and(|dst| self.nodes[node].addresses.iter().any(|(a, _)| *a == dst));
                if ours {
                    // It has no sockets, and answers pings.
                    if let Some(answer) = route::answer(&frame.bytes) {
                        self.send(world, now, node, Frame::complete(answer));
                    }
                    return;
                }
                match route::forward(&mut frame.bytes) {
                    Forward::On => self.send(world, now, node, frame),
                    Forward::Expired => {
                        world.watch.event(node, "hop limit", &frame.bytes, 0);
                        let complaint = route::Complaint::TimeExceeded;
                        if let Some(answer) = self.complaint(node, &frame, complaint) {
                            self.send(world, now, node, answer);
                        }
                    }
                    Forward::Malformed => {}
                }
            }
        }
    }
}
