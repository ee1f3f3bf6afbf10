//! How many addresses one port has in the forwarding database, and may have.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// How many addresses a port has, and may have.
#[derive(Debug)]
pub struct Quota {
    used: AtomicU32,
    limit: AtomicU32,
    moved: Count,
    refused: Count,
    damped: Count,
}

impl Quota {
    /// A quota of `limit` addresses; 0 for no limit.
    pub fn new(limit: u32) -> Quota {
        Quota {
            used: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
            moved: Count::default(),
            refused: Count::default(),
            damped: Count::default(),
        }
    }

    /// A quota of `limit` addresses, of which none is used yet, which goes on counting from here.
    pub fn anew(&self, limit: u32) -> Quota {
        Quota {
            moved: self.moved.clone(),
            refused: self.refused.clone(),
            damped: self.damped.clone(),
            ..Quota::new(limit)
        }
    }

    /// Addresses learned on the port and not aged out.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether one more may be learned.
    pub fn has_room(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit == 0 || self.used() < limit
    }

    /// Changes the limit. Addresses beyond it stay until they age.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// How often an address came here from another port.
    pub fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// How often an address was not learned, because the port had as many as it may.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// How often an address was not learned, because it had moved between ports too often.
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
        // Never below zero: a port that comes anew has a new quota, and entries of the old one
        // may still be there to be swept.
        let less = |used: u32| used.checked_sub(1);
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// Counts what is rare and what nothing depends on, so loom does not look at it.
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
