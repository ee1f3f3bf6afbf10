//! Stops a port's thread between two messages or events, while another process takes over what it has.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The port's thread is outside while it waits for its front end, or for an event of its interface; otherwise it is inside.
#[derive(Default)]
pub(in crate::ports) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_held: bool,
    is_inside: bool,
}

impl Gate {
    /// A gate that is held from the start, or not.
    pub(in crate::ports) fn new(is_held: bool) -> Gate {
        let state = State {
            is_held,
            is_inside: false,
        };
        Gate {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the port's thread: waits while the gate is held.
    pub(in crate::ports) fn enter(&self) {
        let held = |state: &mut State| state.is_held;
        let waited = self.changed.wait_while(self.lock(), held);
        waited.unwrap_or_else(PoisonError::into_inner).is_inside = true;
    }

    /// Called by the port's thread before it waits.
    pub(in crate::ports) fn leave(&self) {
        self.lock().is_inside = false;
        self.changed.notify_all();
    }

    /// Holds the gate: the port's thread stops when it next comes to it.
    pub(in crate::ports) fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Whether the port's thread is outside, for which this waits until `deadline`.
    pub(in crate::ports) fn is_outside(&self, deadline: Instant) -> bool {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let inside = |state: &mut State| state.is_inside;
        let waited = self.changed.wait_timeout_while(self.lock(), left, inside);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_inside
    }

    /// Lets the port's thread go on.
    pub(in crate::ports) fn release(&self) {
        self.lock().is_held = false;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_held_gate_stops_the_thread_outside_and_no_earlier() {
        let (gate, done) = (Arc::new(Gate::new(false)), Arc::new(AtomicU32::new(0)));
        gate.enter();
        gate.hold();
        assert!(!gate.is_outside(Instant::now()), "it is inside");
        gate.release();
        gate.leave();
        gate.hold();
        assert!(gate.is_outside(Instant::now()));
        let thread = {
            let (gate, done) = (gate.clone(), done.clone());
            std::thread::spawn(move || {
                gate.enter();
                done.store(1, Ordering::SeqCst);
                gate.leave();
            })
        };
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(done.load(Ordering::SeqCst), 0);
        gate.release();
        thread.join().unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
