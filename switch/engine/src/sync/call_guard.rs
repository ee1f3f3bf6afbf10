//! Call guard: the port that a worker is calling.
//!
//! A call is a write to an eventfd whose open file description the front end shares. The front end can make the write
//! block forever: it clears O_NONBLOCK and fills the counter. So the worker notes which port it may be calling, and the
//! control side checks whether the call returns.

use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;

const FREE: u32 = 0;

/// The port that a worker is calling; only the worker writes it. Two plain stores, to a cache line of its own, that order
/// nothing: the reader checks again later.
#[derive(Debug, Default)]
pub struct CallGuard(CachePadded<AtomicU32>);

impl CallGuard {
    /// Worker: begins a possible call of port `port`.
    #[inline(always)]
    pub fn enter(&self, port: u16) {
        self.0.store(u32::from(port) + 1, Ordering::Relaxed);
    }

    /// Worker: ends its calls.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.store(FREE, Ordering::Relaxed);
    }

    /// Control: returns the port that the worker is calling, if any.
    pub fn port(&self) -> Option<u16> {
        let noted = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        u16::try_from(noted).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_port_can_be_noted() {
        let calling = CallGuard::default();
        assert_eq!(calling.port(), None);
        for port in [0, 1023, u16::MAX] {
            calling.enter(port);
            assert_eq!(calling.port(), Some(port));
        }
        calling.leave();
        assert_eq!(calling.port(), None);
    }
}
