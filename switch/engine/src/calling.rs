//! Whom a worker is calling.
//!
//! A call is a write to an eventfd whose open file description the front end shares: it can make
//! it block (clear O_NONBLOCK) and fill it, and the worker would wait for ever. So the worker
//! notes which port it may be calling, and the control side looks whether it comes back.

use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;

const NOBODY: u32 = 0;

/// A note with one writer, the worker: the port that it is calling. Two plain stores, to a line
/// of its own, that order nothing: whoever looks, looks again later.
#[derive(Debug, Default)]
pub struct Calling(CachePadded<AtomicU32>);

impl Calling {
    /// Worker: it may call port `port` now.
    #[inline(always)]
    pub fn enter(&self, port: u16) {
        self.0.store(u32::from(port) + 1, Ordering::Relaxed);
    }

    /// Worker: its calls are over.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.store(NOBODY, Ordering::Relaxed);
    }

    /// Control: the port that the worker is calling, if it is.
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
        let calling = Calling::default();
        assert_eq!(calling.port(), None);
        for port in [0, 1023, u16::MAX] {
            calling.enter(port);
            assert_eq!(calling.port(), Some(port));
        }
        calling.leave();
        assert_eq!(calling.port(), None);
    }
}
