//! Calls: wakes the driver through descriptors that the front end gave.
//!
//! A worker writes only to true eventfds ([`Kind`]), and only as long as that is cheap ([`CallBudget`]): the port's
//! thread makes and times the first call to each ([`Notifier::probe`]). The port's caller thread writes to all other
//! descriptors: the worker sets a flag and rings a bell of the switch.

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crosspoint_frame::tsc;
use crosspoint_memory::descriptor::Kind;
use rustix::fs::OFlags;

use crate::calls::{Bell, CallBudget};
use crate::pending::Pending;

/// Destination of a queue's calls: a descriptor that the front end may exchange at any time.
#[derive(Debug)]
pub struct Notifier {
    /// The descriptor in the lower half, with [`BY_CALLER`] if no worker may write to it, or [`UNPROBED`] if no worker
    /// may write to it yet; or [`NONE`].
    target: AtomicU64,
    pending: Pending,
    budget: Arc<CallBudget>,
    /// `None` if there is no caller thread: calls are made by the worker, or not at all.
    bell: Option<Arc<Bell>>,
}

const NONE: u64 = u64::MAX;
const BY_CALLER: u64 = 1 << 32;
const UNPROBED: u64 = 1 << 33;

impl Default for Notifier {
    fn default() -> Notifier {
        Notifier::new(None)
    }
}

impl Notifier {
    /// Creates a notifier without a caller thread. It writes to `fd` if that is an eventfd, otherwise nowhere.
    pub fn new(fd: Option<OwnedFd>) -> Notifier {
        let notifier = Notifier {
            target: AtomicU64::new(NONE),
            pending: Pending::default(),
            budget: CallBudget::new(f64::MAX),
            bell: None,
        };
        drop(notifier.swap(fd));
        notifier
    }

    /// Creates a notifier for a port with a caller thread, which `bell` wakes. It has no descriptor yet.
    pub fn of_port(budget: Arc<CallBudget>, bell: Arc<Bell>) -> Notifier {
        Notifier {
            target: AtomicU64::new(NONE),
            pending: Pending::default(),
            budget,
            bell: Some(bell),
        }
    }

    /// Exchanges the descriptor. Workers may use the returned one until each has passed a quiescent point: keep it open
    /// until then. An unsuitable new descriptor is dropped: see [`accepts`](Self::accepts).
    #[must_use = "workers may be using the old descriptor: drop it after they have passed a quiescent point"]
    pub fn swap(&self, fd: Option<OwnedFd>) -> Option<OwnedFd> {
        self.exchange(fd.map_or(NONE, |fd| self.prepare(fd)))
    }

    /// Like [`swap`](Self::swap), for a port with a caller thread: no worker writes to an eventfd before
    /// [`probe`](Self::probe) has. Calls wait meanwhile.
    #[must_use = "workers may be using the old descriptor: drop it after they have passed a quiescent point"]
    pub fn swap_unprobed(&self, fd: Option<OwnedFd>) -> Option<OwnedFd> {
        let new = fd.map_or(NONE, |fd| self.prepare(fd));
        self.exchange(match new & BY_CALLER == 0 && self.bell.is_some() {
            true => new | UNPROBED,
            false => new,
        })
    }

    fn exchange(&self, new: u64) -> Option<OwnedFd> {
        let old = self.target.swap(new, Ordering::AcqRel);
        // SAFETY: `old` came from `into_raw_fd`, and the swap took it out, so we are its only owner.
        raw(old).map(|old| unsafe { OwnedFd::from_raw_fd(old) })
    }

    /// Whether calls are written to a descriptor of this kind: an eventfd; and with a caller thread a pipe (User-Mode
    /// Linux gives one) or a socket. Files and devices are never written to, since they belong to others; other kinds
    /// are not for writing.
    pub fn accepts(&self, kind: Kind) -> bool {
        match kind {
            Kind::Eventfd => true,
            Kind::Pipe | Kind::Socket => self.bell.is_some(),
            Kind::Path | Kind::Other => false,
        }
    }

    /// Whether there is a descriptor to write to.
    pub fn has_target(&self) -> bool {
        self.target.load(Ordering::Relaxed) != NONE
    }

    /// Whether the caller thread makes the calls.
    pub fn is_by_caller(&self) -> bool {
        let target = self.target.load(Ordering::Relaxed);
        target != NONE && (target & BY_CALLER != 0 || self.is_over_budget())
    }

    /// Whether the descriptor still waits for [`probe`](Self::probe).
    pub fn is_unprobed(&self) -> bool {
        let target = self.target.load(Ordering::Relaxed);
        target != NONE && target & UNPROBED != 0
    }

    /// Makes and times the first call to an unprobed descriptor, on the port's thread, since it may take long. If it
    /// does not, workers call from then on; if it takes too long twice, the caller thread calls permanently. One call
    /// too many does no harm: the driver checks its ring. Call it without a lock, on the only thread that calls
    /// [`swap_unprobed`](Self::swap_unprobed).
    pub fn probe(&self) {
        let target = self.target.load(Ordering::Acquire);
        let Some(fd) = raw(target).filter(|_| target & UNPROBED != 0) else {
            return;
        };
        // SAFETY: it is in `target`, so it is open, and stays open: only `swap`, which this thread calls, and `drop`
        // take it out.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.budget.try_out(|| write(fd));
        self.target.fetch_and(!UNPROBED, Ordering::AcqRel);
        // LOAD-BEARING: between the store of the flag and the load of the pending call; `call_if_probed` does the
        // reverse. A call that a worker leaves meanwhile is seen here or there.
        fence(Ordering::SeqCst);
        if !self.budget.is_by_caller() && self.pending.take() {
            self.budget.observe(|| write(fd));
        }
    }

    /// Called by a worker that has left a call because the descriptor was unprobed: makes the call if the probe is over
    /// by now.
    #[cold]
    fn call_if_probed(&self) {
        // LOAD-BEARING: see `probe`.
        fence(Ordering::SeqCst);
        let target = self.target.load(Ordering::Acquire);
        if target & (BY_CALLER | UNPROBED) == 0
            && let Some(fd) = raw(target)
            && !self.budget.is_by_caller()
            && self.pending.take()
        {
            // SAFETY: as in `call`.
            write(unsafe { BorrowedFd::borrow_raw(fd) });
        }
    }

    #[inline(always)]
    fn is_over_budget(&self) -> bool {
        self.budget.is_by_caller() && self.bell.is_some()
    }

    /// Calls the driver, or leaves the call to the caller thread. Returns whether there is a descriptor. A failed write
    /// is the front end's own loss: it closed or filled its descriptor.
    pub fn call(&self) -> bool {
        let target = self.target.load(Ordering::Acquire);
        let Some(fd) = raw(target) else {
            return false;
        };
        if let Some(bell) = &self.bell
            && (target & (BY_CALLER | UNPROBED) != 0 || self.budget.is_by_caller())
        {
            self.pending.set(|| bell.ring());
            if target & UNPROBED != 0 {
                self.call_if_probed();
            }
            return true;
        }
        // SAFETY: the descriptor stays open until after this worker's next quiescent point: the caller of `swap`
        // upholds it, and `drop` runs only when no worker holds the queue.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if self.budget.is_observed() {
            return self.budget.observe(|| write(fd));
        }
        let began = tsc();
        let done = write(fd);
        self.budget.charge(tsc().wrapping_sub(began));
        done
    }

    /// Returns whether a call is to be made, and takes it. For the caller thread, after it has heard the bell.
    pub fn take_pending(&self) -> bool {
        self.pending.take()
    }

    /// Duplicates the descriptor for the caller thread. Must not run while [`swap`](Self::swap) runs, or after it on
    /// the descriptor that it returned: the caller upholds this with a lock.
    pub fn duplicate(&self) -> Option<OwnedFd> {
        let fd = raw(self.target.load(Ordering::Acquire))?;
        // SAFETY: it is in `target`, so it is open, and stays open: only `swap` and `drop` take it out.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fd.try_clone_to_owned().ok()
    }

    /// Prepares a descriptor for writing. A full eventfd must not block a worker; an eventfd that cannot be made
    /// nonblocking is not used. The flags of pipes and sockets are not changed, since that may take their locks.
    fn prepare(&self, fd: OwnedFd) -> u64 {
        match Kind::of(&fd) {
            Kind::Eventfd => match set_nonblocking(&fd) {
                Ok(()) => u64::from(fd.into_raw_fd().cast_unsigned()),
                Err(_) => NONE,
            },
            kind if self.accepts(kind) => u64::from(fd.into_raw_fd().cast_unsigned()) | BY_CALLER,
            _ => NONE,
        }
    }
}

/// The descriptor in a target, if there is one.
#[inline(always)]
fn raw(target: u64) -> Option<RawFd> {
    (target != NONE).then_some((target as u32).cast_signed())
}

fn write(fd: BorrowedFd<'_>) -> bool {
    rustix::io::write(fd, &1u64.to_ne_bytes()).is_ok()
}

/// Makes a full descriptor refuse a write instead of waiting. On an eventfd this call itself never waits.
pub fn set_nonblocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.swap(None));
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use rustix::event::EventfdFlags;

    use super::*;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
    }

    fn count(event: &OwnedFd) -> Option<u64> {
        let mut bytes = [0; 8];
        rustix::io::read(event, &mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn of_port() -> (Notifier, Arc<CallBudget>) {
        let budget = CallBudget::new(f64::MAX);
        let bell = Bell::new().unwrap();
        (Notifier::of_port(budget.clone(), bell), budget)
    }

    #[test]
    fn an_eventfd_is_written_to_at_once_until_its_port_is_over_budget() {
        let (notifier, budget) = of_port();
        let event = eventfd();
        drop(notifier.swap(Some(event.try_clone().unwrap())));
        assert!(notifier.call() && notifier.call());
        assert_eq!((count(&event), notifier.take_pending()), (Some(2), false));
        budget.leave_to_caller();
        assert!(notifier.is_by_caller() && notifier.call());
        assert_eq!((count(&event), notifier.take_pending()), (None, true));
        assert!(
            !notifier.take_pending(),
            "one call, however often it was asked for"
        );
        let copy = notifier.duplicate().expect("there is one");
        assert!(write(std::os::fd::AsFd::as_fd(&copy)));
        assert_eq!(count(&event), Some(1));
    }

    #[test]
    fn a_call_waits_until_the_ports_thread_has_made_the_first() {
        let (notifier, budget) = of_port();
        let event = eventfd();
        drop(notifier.swap_unprobed(Some(event.try_clone().unwrap())));
        assert!(notifier.is_unprobed() && notifier.call());
        assert_eq!(count(&event), None);
        notifier.probe();
        assert!(!notifier.is_unprobed() && !notifier.is_by_caller());
        assert_eq!(count(&event), Some(2), "the first, and the one that waited");
        assert!(notifier.call() && count(&event) == Some(1));
        // If the port's calls cost too much, the caller thread makes the waiting call.
        drop(notifier.swap_unprobed(Some(event.try_clone().unwrap())));
        assert!(notifier.call() && budget.leave_to_caller());
        notifier.probe();
        assert_eq!((count(&event), notifier.take_pending()), (Some(1), true));
    }

    #[test]
    fn a_pipe_and_a_socket_are_left_to_the_caller_thread() {
        let (read, pipe) = rustix::pipe::pipe().unwrap();
        set_nonblocking(&read).unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [pipe, OwnedFd::from(socket)] {
            let (notifier, _budget) = of_port();
            drop(notifier.swap(Some(fd)));
            assert!(notifier.is_by_caller() && notifier.call());
            assert!(notifier.take_pending());
        }
        // Both writers are closed and have written nothing.
        assert_eq!(rustix::io::read(&read, &mut [0; 8]), Ok(0));
    }

    #[test]
    fn what_is_not_there_to_be_written_to_is_no_target() {
        let poll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let file = rustix::fs::memfd_create("a", rustix::fs::MemfdFlags::CLOEXEC);
        for fd in [poll.unwrap(), file.unwrap()] {
            let (notifier, _budget) = of_port();
            drop(notifier.swap(Some(fd)));
            assert!(!notifier.has_target() && !notifier.call());
        }
        let alone = Notifier::new(Some(rustix::pipe::pipe().unwrap().1));
        assert!(!alone.call(), "no worker writes to a pipe");
    }
}
