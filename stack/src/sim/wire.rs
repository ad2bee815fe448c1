//! A wire in real time: two devices, and the simulator's link model between them.
//!
//! For what cannot run in virtual time, such as the kernel's TCP on a TUN: it meets the same faults as in a simulation, though not at the
//! same times, so that a run here does not repeat byte for byte.
//!
//! One thread reads both ends, asks the model what becomes of each packet and hands it on when its time has come. The model
//! counts from the moment the packet was read. How late the thread itself is, which is the wire's own error, is measured with every packet.

use super::link::{Delivery, Direction, LinkCounters};
use crate::clock::{Duration, Instant};
use crate::device::{Capabilities, Device, Offload};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::time::{ClockId, clock_gettime};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Packets taken from one end before the other gets its turn.
const TURN: usize = 16;
/// How long the thread sleeps at most, and so how long it takes to stop.
const LONGEST_SLEEP: u64 = 20_000_000;
/// Packets that wait between the wire and a device of this process; far more than any link model keeps in flight.
const ROOM: usize = 65_536;

/// One end of the wire.
pub type End = Box<dyn Device + Send>;

/// Two ends and a model for each direction: from the first to the second, and back.
pub struct Wire {
    /// What it joins.
    pub ends: [End; 2],
    /// What becomes of packets: from the first end to the second, and back.
    pub directions: [Direction; 2],
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("directions", &self.directions)
            .finish_non_exhaustive()
    }
}

/// What a wire did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Account {
    /// Packets handed on.
    pub delivered: u64,
    /// How late on average, in microseconds.
    pub late_mean: f64,
    /// How late 99 of 100 were at most, in microseconds (a power of two).
    pub late_p99: u64,
    /// What the model did, by direction.
    pub directions: [LinkCounters; 2],
}

/// A packet on its way, ordered by its time and then by its number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    number: u64,
    to: usize,
    packet: Vec<u8>,
}

impl Wire {
    /// Carries packets, on a thread of its own, until told to stop.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(self) -> io::Result<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::Builder::new().name("wire".into());
        let thread = thread.spawn(move || self.run(&told))?;
        Ok(Running {
            stop,
            thread: Some(thread),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<Account> {
        // Best effort: with the usual slack of 50 µs the wire is that much later, which the account shows.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut under_way: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        let mut deliveries: Vec<Delivery<Vec<u8>>> = Vec::new();
        let mut buffer = vec![0; 65_535];
        let (mut number, mut late_total, mut late) = (0, 0u64, [0u64; 64]);
        let mut account = Account::default();
        while !stop.load(Ordering::Relaxed) {
            let mut busy = false;
            while under_way.peek().is_some_and(|Reverse(due)| due.at <= now()) {
                let Some(Reverse(due)) = under_way.pop() else {
                    break;
                };
                let lateness = now().since(due.at).as_nanos() as u64;
                late_total += lateness;
                late[(lateness / 1_000)
                    .checked_ilog2()
                    .map_or(0, |log| log as usize + 1)] += 1;
                account.delivered += 1;
                // An end that is gone, or a TUN that is going down, takes no more; the run's own checks notice.
                let _ = self.ends[due.to].send(&Offload::NONE, &due.packet, &[]);
                busy = true;
            }
            for from in 0..2 {
                for _ in 0..TURN {
                    match self.ends[from].receive(&mut buffer) {
                        Ok((length, _)) => {
                            busy = true;
                            let packet = buffer[..length].to_vec();
                            self.directions[from].offer(now(), packet, &mut deliveries);
                            for Delivery { at, packet } in deliveries.drain(..) {
                                number += 1;
                                under_way.push(Reverse(Due {
                                    at,
                                    number,
                                    to: 1 - from,
                                    packet,
                                }));
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            if !busy {
                let next = under_way
                    .peek()
                    .map_or(Instant::FAR_FUTURE, |Reverse(due)| due.at);
                let sleep = (next.since(now()).as_nanos() as u64).min(LONGEST_SLEEP);
                self.sleep(sleep)?;
            }
        }
        account.late_mean = late_total as f64 / account.delivered.max(1) as f64 / 1_000.0;
        account.late_p99 = percentile(&late, account.delivered);
        account.directions = self.directions.each_ref().map(|it| *it.counters());
        Ok(account)
    }

    /// Until a packet comes or so many nanoseconds have passed.
    fn sleep(&self, nanos: u64) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> = (self.ends.iter())
            .filter_map(|end| end.fd())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: nanos as i64,
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A wire that carries packets. Dropping it ends that.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Account>>>,
}

impl Running {
    /// Ends it, and tells what it did.
    ///
    /// # Errors
    /// It ended before, because an end failed.
    pub fn stop(mut self) -> io::Result<Account> {
        self.end()
    }

    fn end(&mut self) -> io::Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(account)) => account,
            Some(Err(_)) => Err(io::Error::other("the wire's thread panicked")),
            None => Ok(Account::default()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Who wants to know how it ended asks.
        let _ = self.end();
    }
}

/// The time on the clock that the stack's shards go by.
fn now() -> Instant {
    let time = clock_gettime(ClockId::Monotonic);
    Instant::ZERO + Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The power of two below which 99 of 100 of the counted values lie.
fn percentile(counts_by_log: &[u64], all: u64) -> u64 {
    let mut seen = 0;
    for (log, count) in counts_by_log.iter().enumerate() {
        seen += count;
        if seen * 100 >= all * 99 {
            return 1 << log;
        }
    }
    u64::MAX
}

/// A device within this process that can be waited for: one end for a stack, the other for a wire.
#[derive(Debug)]
pub struct Inside {
    mtu: usize,
    outgoing: Sender<Vec<u8>>,
    incoming: Receiver<Vec<u8>>,
    /// Tells the other end that something is there.
    knock: Arc<OwnedFd>,
    /// Where the other end knocks.
    door: Arc<OwnedFd>,
}

/// Two joined devices.
///
/// # Errors
/// No descriptor is left.
pub fn inside(mtu: usize) -> io::Result<(Inside, Inside)> {
    let door = || -> io::Result<Arc<OwnedFd>> {
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Arc::new(fd?))
    };
    let (left, right) = (door()?, door()?);
    let (to_right, from_left) = crossbeam_channel::bounded(ROOM);
    let (to_left, from_right) = crossbeam_channel::bounded(ROOM);
    let one = Inside {
        mtu,
        outgoing: to_right,
        incoming: from_right,
        knock: right.clone(),
        door: left.clone(),
    };
    let other = Inside {
        mtu,
        outgoing: to_left,
        incoming: from_left,
        knock: left,
        door: right,
    };
    Ok((one, other))
}

impl Device for Inside {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: self.mtu,
            tso: false,
            uso: false,
            checksum: false,
            max_packet: self.mtu,
        }
    }

    fn send(&mut self, _: &Offload, headers: &[u8], payload: &[IoSlice<'_>]) -> io::Result<()> {
        let mut packet = headers.to_vec();
        payload
            .iter()
            .for_each(|slice| packet.extend_from_slice(slice));
        self.outgoing
            .try_send(packet)
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        rustix::io::write(&self.knock, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let received = self.incoming.try_recv().or_else(|error| {
            if error == TryRecvError::Disconnected {
                return Err(error);
            }
            // Nothing there: the door is shut first and then looked at again, so that no knock is missed.
            let _ = rustix::io::read(&self.door, &mut [0u8; 8]);
            self.incoming.try_recv()
        });
        let Ok(received) = received else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let length = received.len().min(packet.len());
        packet[..length].copy_from_slice(&received[..length]);
        Ok((length, Offload::NONE))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.door.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::link::{Knobs, Rate};

    #[test]
    fn packets_arrive_when_the_model_says_and_no_earlier() {
        let ((mut sender, near), (far, mut receiver)) =
            (inside(1500).unwrap(), inside(1500).unwrap());
        let knobs = Knobs {
            delay: Duration::from_millis(30),
            rate: Rate::mbit(8),
            ..Knobs::default()
        };
        let wire = Wire {
            ends: [Box::new(near), Box::new(far)],
            directions: [
                Direction::new(1, "there", knobs),
                Direction::new(1, "back", Knobs::default()),
            ],
        };
        let wire = wire.start().unwrap();
        let sent = now();
        for number in 0..5 {
            sender
                .send(&Offload::NONE, &[0x45; 1_000], &[IoSlice::new(&[number])])
                .unwrap();
        }
        let mut buffer = [0; 1500];
        for number in 0..5u8 {
            let length = loop {
                match receiver.receive(&mut buffer) {
                    Ok((length, _)) => break length,
                    Err(_) => {
                        assert!(now() - sent < Duration::from_secs(10));
                        let mut door = [PollFd::from_borrowed_fd(
                            receiver.fd().unwrap(),
                            PollFlags::IN,
                        )];
                        let timeout = Timespec {
                            tv_sec: 1,
                            tv_nsec: 0,
                        };
                        rustix::event::poll(&mut door, Some(&timeout)).unwrap();
                    }
                }
            };
            // A millisecond a packet on the line, then the way.
            assert!(now() - sent >= Duration::from_millis(31 + u64::from(number)));
            assert_eq!((length, buffer[1_000]), (1_001, number));
        }
        let account = wire.stop().unwrap();
        assert_eq!((account.delivered, account.directions[0].delivered), (5, 5));
        assert!(account.late_mean >= 0.0 && account.late_p99 > 0);
    }

    #[test]
    fn a_percentile_is_found_in_its_power_of_two() {
        assert_eq!(percentile(&[0, 99, 0, 1], 100), 2);
        assert_eq!(percentile(&[0, 98, 0, 2], 100), 8);
    }
}
