//! Limit on the addresses of one port in the forwarding database.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

macro_rules! port_events {
    (events { $($(#[doc = $doc:literal])+ $event:ident;)+ }) => {
        /// The counters of a port that no queue has. They are kept while its quota is replaced.
        #[derive(Clone, Debug, Default)]
        pub struct PortEvents {
            $($(#[doc = $doc])+ pub $event: Count,)+
        }
    };
}
crate::port_counters!(port_events);

/// A port's address count and limit.
#[derive(Debug)]
pub struct Quota {
    used: AtomicU32,
    limit: AtomicU32,
    drops: AtomicBool,
    /// What happened on the port.
    pub events: PortEvents,
}

impl Quota {
    /// Creates a quota of `limit` addresses; 0 for no limit.
    pub fn new(limit: u32) -> Quota {
        Quota {
            used: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
            drops: AtomicBool::new(false),
            events: PortEvents::default(),
        }
    }

    /// Returns a quota of `limit` addresses, none used, with this quota's counters.
    pub fn with_limit(&self, limit: u32) -> Quota {
        Quota {
            events: self.events.clone(),
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

    /// Sets whether frames from addresses beyond the limit are dropped. Otherwise they pass, and frames for them are flooded.
    pub fn set_drops(&self, drops: bool) {
        self.drops.store(drops, Ordering::Relaxed);
    }

    /// Returns whether frames from addresses beyond the limit are dropped.
    pub fn drops(&self) -> bool {
        self.drops.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self) -> bool {
        let before = self.used.fetch_add(1, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 || before < limit {
            return true;
        }
        self.give_back();
        false
    }

    /// Counts an address that was not learned.
    pub(crate) fn note_refused(&self) {
        self.events.addresses_refused.add_one();
    }

    /// Counts one more address, even beyond the limit.
    pub(crate) fn count(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
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

/// Counter of rare events with several writers. Nothing depends on it, so loom does not model it.
#[derive(Debug, Default)]
pub struct Count(std::sync::atomic::AtomicU64);

impl Clone for Count {
    fn clone(&self) -> Count {
        Count(self.get().into())
    }
}

impl Count {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the value. Any thread may call it.
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
