//! Threads for what may wait for a disk. Every user has a queue of their own, and only so many threads at once: who stalls
//! on a slow file stalls nobody else.

use super::{Port, ToShard};
use crate::emit::job::Job;
use crate::handle::SocketId;
use crate::ingress::sink::WriteJob;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What a helper does.
#[derive(Debug)]
pub(crate) enum Task {
    /// Brings what is to be sent.
    Read(Job),
    /// Takes away what was received.
    Write(WriteJob),
}

impl Task {
    fn run(self, socket: SocketId) -> ToShard {
        match self {
            Task::Read(job) => {
                let helped = job.run();
                ToShard::Helped(socket, job.file, helped)
            }
            Task::Write(job) => ToShard::Written(socket, job.run()),
        }
    }
}

struct Work {
    task: Task,
    socket: SocketId,
    port: Port,
}

#[derive(Default)]
struct Queues {
    waiting: BTreeMap<u32, VecDeque<Work>>,
    running: BTreeMap<u32, usize>,
    /// The user served last; the next in order is served next.
    last: u32,
    stopping: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    per_uid: usize,
}

/// The pool.
pub(crate) struct Helpers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Helpers {
    /// Starts `threads` threads, of which one user gets at most `per_uid` at once.
    pub(crate) fn start(threads: usize, per_uid: usize) -> std::io::Result<Helpers> {
        let shared = Arc::new(Shared {
            queues: Mutex::default(),
            work: Condvar::new(),
            per_uid: per_uid.clamp(1, threads),
        });
        let threads = (0..threads)
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("helper-{i}"))
                    .spawn(move || shared.run())
            })
            .collect::<Result<_, _>>()?;
        Ok(Helpers {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Hands work over. A socket has at most one piece of each kind at a time, so the queues are bounded by the number of
    /// sockets.
    pub(crate) fn submit(&self, uid: u32, socket: SocketId, task: Task, port: Port) {
        let mut queues = self
            .shared
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queues
            .waiting
            .entry(uid)
            .or_default()
            .push_back(Work { task, socket, port });
        self.shared.work.notify_one();
    }

    /// Ends the threads that are idle; one that waits for a disk ends with its wait.
    pub(crate) fn stop(&self) {
        let mut queues = self
            .shared
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queues.stopping = true;
        let busy = queues.running.values().sum::<usize>();
        drop(queues);
        self.shared.work.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        if busy == 0 {
            for thread in threads {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queues.stopping {
                return;
            }
            let Some((uid, work)) = queues.next(self.per_uid) else {
                queues = self
                    .work
                    .wait(queues)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            *queues.running.entry(uid).or_default() += 1;
            drop(queues);
            work.port.send(work.task.run(work.socket));
            queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = queues.running.get_mut(&uid) {
                *count -= 1;
                if *count == 0 {
                    queues.running.remove(&uid);
                }
            }
        }
    }
}

impl Queues {
    /// The next piece of work: of the first user behind the last one served who has work and threads left.
    fn next(&mut self, per_uid: usize) -> Option<(u32, Work)> {
        let uid = self
            .waiting
            .range(self.last.wrapping_add(1)..)
            .chain(self.waiting.iter())
            .map(|(&uid, _)| uid)
            .find(|uid| self.running.get(uid).is_none_or(|&count| count < per_uid))?;
        let queue = self.waiting.get_mut(&uid)?;
        let work = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&uid);
        }
        self.last = uid;
        Some((uid, work))
    }
}
