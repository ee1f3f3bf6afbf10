//! Limit on the addresses of one port in the forwarding database.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// A port's address count and limit.
#[derive(Debug)]
pub struct Quota {
    used: AtomicU32,
    limit: AtomicU32,
    moved: Count,
    refused: Count,
    damped: Count,
}

impl Quota {
    /// Creates a quota of `limit` addresses; 0 for no limit.
    pub fn new(limit: u32) -> Quota {
        Quota {
            used: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
            moved: Count::default(),
            refused: Count::default(),
            damped: Count::default(),
        }
    }

    /// Returns a quota of `limit` addresses, none used, with this quota's counters.
    pub fn anew(&self, limit: u32) -> Quota {
        Quota {
            moved: self.moved.clone(),
            refused: self.refused.clone(),
            damped: self.damped.clone(),
            ..Quota::new(limit)
        }
    }

    /// Returns the number of addresses learned on the port and not aged out.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns whether one more address may be learned.
    pub fn has_room(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit == 0 || self.used() < limit
    }

    /// Changes the limit. Addresses beyond it stay until they age out.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns how often an address moved here from another port.
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// Returns how often an address was not learned because the port had reached its limit.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Returns how often an address was not learned because it had moved between ports too often.
    pub fn damped(&self) -> u64 {
        self.damped.get()
    }

    pub(crate) fn count_moved(&self) {
        self.moved.add_one();
    }

    pub(crate) fn count_damped(&self) {
        self.damped.add_one();
    }

    pub(crate) fn take(&self) -> bool {
        let before = self.used.fetch_add(1, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 || before < limit {
            return true;
        }
        self.give_back();
        self.refused.add_one();
        false
    }

    pub(crate) fn give_back(&self) {
        // Never below zero: a port that is created again has a new quota, while entries counted by the old one may not be
        // swept yet.
        let less = |used: u32| used.checked_sub(1);
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// Counter of rare events that nothing depends on, so loom does not model it.
#[derive(Debug, Default)]
pub(crate) struct Count(std::sync::atomic::AtomicU64);

impl Clone for Count {
    fn clone(&self) -> Count {
        Count(self.get().into())
    }
}

impl Count {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
