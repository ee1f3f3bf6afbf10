//! The caller thread of a guest port: performs the operations on the front end's descriptors that can block forever.
//!
//! It makes the calls that no worker makes (see `crosspoint_vring::notify`), and closes descriptors whose close can
//! block: the last close of a pipe waits for its mutex, and each close of a FUSE file waits for its server. A front end
//! can hold the thread there in uninterruptible sleep. That stops only the calls of its own port: the thread holds no
//! lock during such a system call, and is left behind when the front end or the port goes.
//!
//! It is started when it is first needed, and ends with its front end. It inherits the affinity of the control threads,
//! so it runs off the workers' cores.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crosspoint_memory::Kind;
use crosspoint_vring::notify::set_nonblocking;
use crosspoint_vring::{Bell, CallBudget, Notifier};
use rustix::thread::{Pid, gettid};

use crate::service::interrupt::interrupt;

/// A longer call is followed by a pause of [`REST_FACTOR`] times its length, at most [`REST_MAX`]: so the thread takes
/// no more than a twentieth of a core.
const CALL_COSTLY: Duration = Duration::from_micros(50);
const REST_FACTOR: u32 = 19;
const REST_MAX: Duration = Duration::from_secs(2);
/// Interval, in a pause, between two checks of the stop flag.
const REST_STEP: Duration = Duration::from_millis(10);
/// How long to wait for a thread that is to end. It is left behind after that.
pub(crate) const END_TIME_MAX: Duration = Duration::from_secs(1);
/// Interval between two checks of whether it has ended.
pub(crate) const END_PAUSE: Duration = Duration::from_millis(2);
/// The most descriptors that wait for a blocked thread to close them. The port's own thread closes any more.
const RETIRED_MAX: usize = 64;
const THREAD_STACK: usize = 64 << 10;

/// Something whose drop can block forever.
type Retired = Box<dyn Send>;

/// The calls of one guest port, and the thread that makes those that no worker makes.
pub(crate) struct Caller {
    port: String,
    bell: Arc<Bell>,
    /// By vring.
    slots: Arc<[Slot]>,
    threads: Mutex<Threads>,
}

/// One vring's calls.
struct Slot {
    notifier: Arc<Notifier>,
    /// The thread's own copy, which it writes to while the notifier's descriptor can be replaced. The lock is held for
    /// no system call except the one that makes the copy, which never blocks.
    copy: Mutex<Option<Arc<OwnedFd>>>,
}

#[derive(Default)]
struct Threads {
    current: Option<CallerThread>,
    /// A thread that was left behind. There is at most one: while it exists, only eventfds are accepted, which block no
    /// thread.
    stuck: Option<CallerThread>,
}

struct CallerThread {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    id: OnceLock<Pid>,
    retired: Mutex<Vec<Retired>>,
}

impl Caller {
    /// For port `port`, whose device has `vrings` vrings.
    pub(crate) fn new(
        port: &str,
        budget: Arc<CallBudget>,
        vrings: usize,
    ) -> io::Result<Arc<Caller>> {
        let bell = Bell::new()?;
        let slot = |_| Slot {
            notifier: Arc::new(Notifier::of_port(budget.clone(), bell.clone())),
            copy: Mutex::new(None),
        };
        Ok(Arc::new(Caller {
            port: port.to_owned(),
            slots: (0..vrings).map(slot).collect(),
            bell,
            threads: Mutex::default(),
        }))
    }

    /// The notifier of a vring; one that does nothing if there is no such vring.
    pub(crate) fn notifier(&self, vring: usize) -> Arc<Notifier> {
        let slot = self.slots.get(vring);
        slot.map_or_else(Arc::default, |slot| slot.notifier.clone())
    }

    /// Whether a vring has a descriptor that only the caller thread writes to.
    pub(crate) fn is_used(&self) -> bool {
        self.slots.iter().any(|slot| slot.notifier.is_by_caller())
    }

    /// Replaces the descriptor of a vring and returns the old one. Workers may use the old one until each has passed a
    /// quiescent point: pass it to [`retire`](Self::retire) after that. An unsuitable new descriptor is refused, with
    /// the reason, and the vring then has none.
    pub(crate) fn set(
        &self,
        vring: usize,
        fd: Option<OwnedFd>,
    ) -> (Option<OwnedFd>, Result<(), String>) {
        let Some(slot) = self.slots.get(vring) else {
            return (None, Ok(()));
        };
        let (fd, refused) = match fd.map(|fd| self.check(&slot.notifier, fd)).transpose() {
            Ok(fd) => (fd, Ok(())),
            Err((fd, why)) => {
                self.retire(fd);
                (None, Err(why))
            }
        };
        let (old, copy) = {
            let mut copy = lock(&slot.copy);
            (slot.notifier.swap_unprobed(fd), copy.take())
        };
        if let Some(copy) = copy.and_then(Arc::into_inner) {
            self.retire(copy);
        }
        if slot.notifier.is_by_caller() {
            self.start();
        }
        (old, refused)
    }

    /// Called by the port's thread: makes the first call to each new eventfd, before any worker does. A front end can
    /// make that block; only the port's thread is held up, so call this without any lock.
    pub(crate) fn probe(&self) {
        for slot in &*self.slots {
            slot.notifier.probe();
        }
        if self.is_used() {
            self.start();
        }
    }

    fn check(&self, notifier: &Notifier, fd: OwnedFd) -> Result<OwnedFd, (OwnedFd, String)> {
        let kind = Kind::of(&fd);
        if !notifier.accepts(kind) {
            let why = format!("a call descriptor must be an eventfd, and this is {kind}");
            return Err((fd, why));
        }
        if kind != Kind::Eventfd && lock(&self.threads).is_held_up() {
            let why = format!(
                "the call descriptor is {kind}, and another descriptor blocks a thread of this port already: give an eventfd"
            );
            return Err((fd, why));
        }
        Ok(fd)
    }

    /// Closes a descriptor of the front end, on the caller thread if the close can block. Not to be called under any
    /// lock.
    pub(crate) fn retire(&self, fd: OwnedFd) {
        match Kind::of(&fd) {
            Kind::Eventfd => drop(fd),
            _ => self.retire_any(Box::new(fd)),
        }
    }

    /// Drops an object of the front end whose drop can block, on the caller thread. Not to be called under any lock.
    pub(crate) fn retire_any(&self, object: Retired) {
        let mut threads = lock(&self.threads);
        // If one thread is blocked already, it gets the rest too.
        let thread = match threads.is_held_up() {
            true => threads.stuck.as_ref(),
            false => {
                self.ensure(&mut threads);
                threads.current.as_ref()
            }
        };
        let left = match thread {
            Some(thread) => thread.shared.take_on(object),
            None => Some(object),
        };
        drop(threads);
        self.bell.ring();
        drop(left);
    }

    /// Starts the thread, unless it runs. Does nothing while another thread holds the lock.
    pub(crate) fn start(&self) {
        match self.threads.try_lock() {
            Ok(mut threads) => self.ensure(&mut threads),
            Err(TryLockError::Poisoned(threads)) => self.ensure(&mut threads.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn ensure(&self, threads: &mut Threads) {
        if threads.current.is_some() {
            return;
        }
        match self.spawn() {
            Ok(thread) => threads.current = Some(thread),
            Err(why) => tracing::error!(
                port = self.port,
                "no thread for its calls can be started, and they are not made: {why}; raise the limit of threads (TasksMax)"
            ),
        }
    }

    fn spawn(&self) -> io::Result<CallerThread> {
        let shared = Arc::<Shared>::default();
        let (slots, bell, mine) = (self.slots.clone(), self.bell.clone(), shared.clone());
        let thread = Builder::new()
            .name("cp-calls".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || mine.run(&slots, &bell))?;
        Ok(CallerThread { shared, thread })
    }

    /// Called when the front end or the port is gone: ends the thread, or leaves it behind at `deadline`. No vring has
    /// a descriptor any more.
    pub(crate) fn end(&self, deadline: Instant) {
        let mut threads = lock(&self.threads);
        let Some(thread) = threads.current.take() else {
            return;
        };
        thread.shared.stop.store(true, Ordering::SeqCst);
        self.bell.ring();
        while !thread.thread.is_finished() && Instant::now() < deadline {
            if let Some(id) = thread.shared.id.get() {
                interrupt(*id);
            }
            std::thread::sleep(END_PAUSE);
        }
        if thread.thread.is_finished() {
            let _ = thread.thread.join();
            return;
        }
        tracing::warn!(
            port = self.port,
            "its front end blocks the thread that makes its calls (it does not read the pipe or socket that it gave for calls, or does not serve the file): the thread is left running, and ends when the front end ends"
        );
        threads.stuck = Some(thread);
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        for vring in 0..self.slots.len() {
            if let (Some(old), _) = self.set(vring, None) {
                self.retire(old);
            }
        }
        self.end(Instant::now() + END_TIME_MAX);
    }
}

impl Threads {
    fn is_held_up(&mut self) -> bool {
        self.stuck.take_if(|stuck| stuck.thread.is_finished());
        self.stuck.is_some()
    }
}

impl Shared {
    /// Queues an object to drop. Returns it if the queue is full.
    fn take_on(&self, object: Retired) -> Option<Retired> {
        let mut retired = lock(&self.retired);
        if retired.len() >= RETIRED_MAX {
            return Some(object);
        }
        retired.push(object);
        None
    }

    /// Pauses after a long call that took `time`, so that a front end with costly calls takes little of a core. Calls
    /// that become due meanwhile are merged into one.
    fn rest(&self, time: Duration) {
        if time > CALL_COSTLY {
            let end = Instant::now() + (time * REST_FACTOR).min(REST_MAX);
            while let Some(left) = end.checked_duration_since(Instant::now())
                && !self.stop.load(Ordering::SeqCst)
            {
                std::thread::sleep(left.min(REST_STEP));
            }
        }
    }

    /// The thread's loop. Calls come first, since guests wait for them.
    fn run(&self, slots: &[Slot], bell: &Bell) {
        let _ = self.id.set(gettid());
        loop {
            for slot in slots {
                if !self.stop.load(Ordering::SeqCst) && slot.notifier.take_pending() {
                    let began = Instant::now();
                    slot.call();
                    self.rest(began.elapsed());
                }
            }
            let retired = std::mem::take(&mut *lock(&self.retired));
            drop(retired);
            if self.stop.load(Ordering::SeqCst) && lock(&self.retired).is_empty() {
                return;
            }
            bell.hear();
        }
    }
}

impl Slot {
    fn call(&self) {
        let (copy, is_new) = {
            let mut copy = lock(&self.copy);
            let is_new = copy.is_none();
            if is_new {
                *copy = self.notifier.duplicate().map(Arc::new);
            }
            (copy.clone(), is_new)
        };
        let Some(fd) = copy else {
            return;
        };
        if is_new && Kind::of(&fd) != Kind::Eventfd {
            let _ = set_nonblocking(&fd);
        }
        // A full descriptor, or one that is closed at its other end, harms only the front end.
        let _ = rustix::io::write(&fd, &1u64.to_ne_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
