//! Sleep of an idle worker, and waking it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crosspoint_memory::Kind;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::stream::StreamId;
use crate::sync::sleep_flag::SleepFlag;

/// Most events read per wakeup. Polling finds the rest.
const MAX_EVENTS: usize = 64;
const WAKER: u64 = u64::MAX;
const NIC: u64 = 1 << 32;

/// Wakes one worker. Shared by all threads that may have work for it.
#[derive(Debug)]
pub struct Waker {
    event: OwnedFd,
    poll: OwnedFd,
    asleep: SleepFlag,
}

impl Waker {
    /// Creates a waker and the epoll set that its worker waits on.
    pub fn new() -> io::Result<Arc<Waker>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        // Edge-triggered, so that the eventfds need not be read: each write is an edge.
        epoll::add(
            &poll,
            &event,
            EventData::new_u64(WAKER),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Arc::new(Waker {
            event,
            poll,
            asleep: SleepFlag::default(),
        }))
    }

    /// Wakes the worker in any state. For the control thread.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the worker has already been woken.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Wakes the worker if it sleeps. For other workers, after they have left work for it.
    #[inline(always)]
    pub fn wake_if_asleep(&self) {
        if self.asleep.must_be_woken() {
            self.wake();
        }
    }

    /// Returns whether the worker sleeps or is about to. For the control thread, which checks again later.
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_set()
    }

    /// Makes a guest's kick wake the worker. The descriptor must be unregistered before it is closed: the front end holds
    /// it too, so closing ours does not remove it from the epoll set.
    ///
    /// Only an eventfd is accepted: adding a descriptor, and each later wait, asks the object whether it is ready, and
    /// other kinds of objects answer under locks that a front end can hold (another epoll's mutex, a socket's lock).
    pub fn register_kick(&self, id: StreamId, kick: impl AsFd) -> io::Result<()> {
        let kind = Kind::of(&kick);
        if kind != Kind::Eventfd {
            let why = format!("a kick descriptor must be an eventfd, and this is {kind}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let data = EventData::new_u64(u64::from(id.0) << 16 | u64::from(id.1));
        Ok(epoll::add(
            &self.poll,
            kick,
            data,
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    /// Makes frames that arrive at a NIC's socket wake the worker.
    pub fn register_nic(&self, id: StreamId, socket: impl AsFd) -> io::Result<()> {
        let data = EventData::new_u64(NIC | u64::from(id.0) << 16 | u64::from(id.1));
        Ok(epoll::add(&self.poll, socket, data, EventFlags::IN)?)
    }

    /// Unregisters a descriptor.
    pub fn unregister(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.poll, fd)?)
    }
}

/// The worker's side of a waker.
pub struct Sleeper {
    waker: Arc<Waker>,
    events: Vec<Event>,
}

impl Sleeper {
    /// Creates the side that `waker` wakes.
    pub fn new(waker: Arc<Waker>) -> Sleeper {
        Sleeper {
            waker,
            events: Vec::with_capacity(MAX_EVENTS),
        }
    }

    /// Announces that the worker is about to sleep, so that other threads wake it. The worker must check for work after
    /// this, and sleep only if there is none.
    pub fn announce(&self) {
        self.waker.asleep.announce();
    }

    /// Announces that the worker is awake.
    pub fn retract(&self) {
        self.waker.asleep.retract();
    }

    /// Sleeps until an event, at most for `at_most`. Calls `kicked` for each guest queue whose kick woke it.
    pub fn sleep(&mut self, at_most: Option<Duration>, mut kicked: impl FnMut(StreamId)) {
        let timeout = at_most.and_then(|time| Timespec::try_from(time).ok());
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        // EINTR is treated as a wakeup.
        let _ = epoll::wait(&self.waker.poll, room, timeout.as_ref());
        for event in &self.events {
            let data = event.data.u64();
            if data < NIC {
                kicked(((data >> 16) as u16, data as u16));
            }
        }
    }
}
