//! The executor: async tasks on one thread, first in, first out.
//!
//! A task that is woken twice before it runs stands in the queue once. Nothing here looks at a clock or a hash map; when no
//! task is ready, the [world](super::world) lets time pass to the next event.

use super::world::{self, World};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::clock::Instant;

/// What a task waits for; the last thing it asked for and did not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Bytes from a connection, local and remote address.
    Read(SocketAddr, SocketAddr),
    /// Room in a connection.
    Write(SocketAddr, SocketAddr),
    /// A `sendfile` to be sealed.
    Sendfile(SocketAddr, SocketAddr),
    /// A connection to be opened.
    Connect(SocketAddr),
    /// A connection on a listener.
    Accept(SocketAddr),
    /// A datagram.
    Datagram(SocketAddr),
    /// An IP packet, on a raw host.
    Packet,
    /// A point in time.
    Sleep(Instant),
    /// Another task's end.
    Join(usize),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Read(local, remote) => write!(f, "bytes on {local} from {remote}"),
            Waiting::Write(local, remote) => write!(f, "room to write on {local} to {remote}"),
            Waiting::Sendfile(local, remote) => {
                write!(f, "a sendfile on {local} to {remote} to be sealed")
            }
            Waiting::Connect(remote) => write!(f, "a connection to {remote} to stand"),
            Waiting::Accept(local) => write!(f, "a connection on the listener {local}"),
            Waiting::Datagram(local) => write!(f, "a datagram on {local}"),
            Waiting::Packet => write!(f, "a packet"),
            Waiting::Sleep(until) => write!(f, "the time {until}"),
            Waiting::Join(task) => write!(f, "task {task} to end"),
        }
    }
}

/// Tasks that are ready, in the order in which they became so.
#[derive(Default)]
struct ReadyQueue {
    /// How many there are: most of the time none, which costs no lock to see.
    len: AtomicUsize,
    tasks: Mutex<VecDeque<usize>>,
}

impl ReadyQueue {
    fn push(&self, task: usize) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push_back(task);
        self.len.store(tasks.len(), Ordering::Release);
    }

    fn pop(&self) -> Option<usize> {
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tasks.pop_front();
        self.len.store(tasks.len(), Ordering::Release);
        task
    }
}

type Ready = Arc<ReadyQueue>;

/// What wakes a task. Wakers may be dropped and called on any thread, whatever the tasks do with them.
struct TaskWaker {
    task: usize,
    queued: AtomicBool,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.task);
        }
    }
}

struct Task {
    /// Out of its place while it runs.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
    host: Option<usize>,
    /// The run does not wait for it.
    background: bool,
    waiting: Vec<Waiting>,
    /// It is to be dropped when it comes back.
    killed: bool,
}

/// All tasks of a run.
#[derive(Default)]
pub(super) struct Executor {
    tasks: RefCell<Slab<Task>>,
    ready: Ready,
    foreground: Cell<usize>,
    /// Number and host of the task that runs.
    running: Cell<Option<(usize, Option<usize>)>>,
}

impl Executor {
    /// Takes a new task, ready to run.
    pub(super) fn spawn(
        &self,
        host: Option<usize>,
        background: bool,
        future: Pin<Box<dyn Future<Output = ()>>>,
    ) -> usize {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let number = entry.key();
        let waker = Arc::new(TaskWaker {
            task: number,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        waker.wake_by_ref();
        entry.insert(Task {
            future: Some(future),
            waker,
            host,
            background,
            waiting: Vec::new(),
            killed: false,
        });
        if !background {
            self.foreground.set(self.foreground.get() + 1);
        }
        number
    }

    /// Tasks that the run waits for.
    pub(super) fn foreground(&self) -> usize {
        self.foreground.get()
    }

    /// The host of the task that runs.
    pub(super) fn current_host(&self) -> Option<usize> {
        self.running.get().and_then(|(_, host)| host)
    }

    /// Notes what the running task waits for.
    pub(super) fn waits_for(&self, waiting: Waiting) {
        if let Some((number, _)) = self.running.get()
            && let Some(task) = self.tasks.borrow_mut().get_mut(number)
        {
            task.waiting.push(waiting);
        }
    }

    /// Runs the task that has been ready longest. False when none is.
    pub(super) fn run_one(&self) -> bool {
        let Some(number) = self.ready.pop() else {
            return false;
        };
        let (mut future, waker, host) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(number) else {
                return true;
            };
            let Some(future) = task.future.take() else {
                return true;
            };
            task.waiting.clear();
            (future, task.waker.clone(), task.host)
        };
        waker.queued.store(false, Ordering::Relaxed);
        self.running.set(Some((number, host)));
        let waker = Waker::from(waker);
        let outcome = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut tasks = self.tasks.borrow_mut();
        let ended = match tasks.get_mut(number) {
            Some(task) if outcome.is_pending() && !task.killed => {
                task.future = Some(future);
                self.running.set(None);
                return true;
            }
            Some(_) => Some(tasks.remove(number)),
            None => None,
        };
        drop(tasks);
        // What the task owned may look at the executor when it goes.
        drop(future);
        self.running.set(None);
        if ended.is_some_and(|task| !task.background) {
            self.foreground.set(self.foreground.get() - 1);
        }
        true
    }

    /// Drops the tasks of a host, or of everybody.
    pub(super) fn kill(&self, host: Option<usize>) {
        let numbers: Vec<usize> = {
            let tasks = self.tasks.borrow();
            tasks
                .iter()
                .filter(|(_, task)| host.is_none() || task.host == host)
                .map(|(number, _)| number)
                .collect()
        };
        for number in numbers {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(number) else {
                continue;
            };
            if task.future.is_none() {
                task.killed = true;
                continue;
            }
            let task = tasks.remove(number);
            drop(tasks);
            if !task.background {
                self.foreground.set(self.foreground.get() - 1);
            }
            drop(task);
        }
    }

    /// Who waits on what, one line a task: its number, its host, and what it asked for.
    pub(super) fn waiting(&self, host_name: impl Fn(usize) -> String) -> Vec<String> {
        let tasks = self.tasks.borrow();
        tasks
            .iter()
            .map(|(number, task)| {
                let host = task.host.map_or_else(|| "no host".to_owned(), &host_name);
                let what = if task.waiting.is_empty() {
                    "something outside the simulator, such as a channel".to_owned()
                } else {
                    let all: Vec<String> = task.waiting.iter().map(Waiting::to_string).collect();
                    all.join(", or ")
                };
                let kind = if task.background { " (background)" } else { "" };
                format!("task {number} on {host}{kind} waits for {what}")
            })
            .collect()
    }
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// The task is gone: it ended, or its host crashed.
    over: bool,
}

/// Marks a task's slot when the task goes, however it goes.
struct Ender<T>(Rc<RefCell<Slot<T>>>);

impl<T> Drop for Ender<T> {
    fn drop(&mut self) {
        let mut slot = self.0.borrow_mut();
        slot.over = true;
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }
}

/// A task that was spawned. Awaiting it gives the task's result; dropping it leaves the task running.
pub struct JoinHandle<T> {
    task: usize,
    slot: Rc<RefCell<Slot<T>>>,
}

/// The task that was waited for never ended: its host crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task's host crashed before the task ended")]
pub struct Crashed;

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Crashed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.slot.borrow_mut();
        match slot.value.take() {
            Some(value) => Poll::Ready(Ok(value)),
            None if slot.over => Poll::Ready(Err(Crashed)),
            None => {
                slot.waker = Some(cx.waker().clone());
                if let Some(world) = world::current() {
                    world.executor.waits_for(Waiting::Join(self.task));
                }
                Poll::Pending
            }
        }
    }
}

impl<T> JoinHandle<T> {
    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.slot.borrow().over
    }

    /// The task's result, if it has ended; once.
    pub fn try_take(&self) -> Option<T> {
        self.slot.borrow_mut().value.take()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

/// Puts a future on the executor.
pub(super) fn spawn_on<F>(
    world: &Rc<World>,
    host: Option<usize>,
    background: bool,
    future: F,
) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let slot = Rc::new(RefCell::new(Slot {
        value: None,
        waker: None,
        over: false,
    }));
    let ender = Ender(slot.clone());
    let task = world.executor.spawn(
        host,
        background,
        Box::pin(async move {
            let value = future.await;
            ender.0.borrow_mut().value = Some(value);
        }),
    );
    JoinHandle { task, slot }
}

/// Starts a task beside the one that calls, on the same host. The run waits for it.
///
/// # Panics
/// Outside a simulation.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let world = world::expect_current();
    let host = world.executor.current_host();
    spawn_on(&world, host, false, future)
}

/// Like [`spawn`], but the run does not wait for the task's end.
///
/// # Panics
/// Outside a simulation.
pub fn spawn_background<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let world = world::expect_current();
    let host = world.executor.current_host();
    spawn_on(&world, host, true, future)
}
