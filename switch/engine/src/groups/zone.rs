//! A port's part of the table of connections: how many it has, and may have.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::state::Phase;

/// Least number of half-open connections that a port may have.
const HALF_OPEN_MIN: u32 = 64;
/// Datagrams in fragments that a port may have at once.
const FRAGMENTS_MAX: u32 = 64;

/// Counts of one port, written by all workers when connections begin and end.
#[derive(Debug, Default)]
pub struct Zone {
    id: u32,
    max: AtomicU32,
    connections: AtomicU32,
    half_open: AtomicU32,
    fragments: AtomicU32,
    created: AtomicU64,
    refused: AtomicU64,
}

impl Zone {
    /// Creates a zone with a number of its own, which may have `connections_max` connections; a tenth of them half-open,
    /// and 64 at least.
    pub fn new(id: u32, connections_max: u32) -> Zone {
        Zone {
            id,
            max: connections_max.into(),
            ..Zone::default()
        }
    }

    /// Changes how many connections it may have. Those that it has stay.
    pub fn set_connections_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Returns its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the number of its connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of those that are half-open TCP.
    pub fn half_open(&self) -> u32 {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Returns how many there have been.
    pub fn created_total(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    /// Returns how many were refused, since the port or the table had too many.
    pub fn refused_total(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether another connection may begin in this phase.
    pub(super) fn has_room(&self, phase: Phase) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        match phase {
            Phase::Fragments => self.fragments.load(Ordering::Relaxed) < FRAGMENTS_MAX,
            phase if phase.is_half_open() => {
                self.connections() < max && self.half_open() < (max / 10).max(HALF_OPEN_MIN)
            }
            _ => self.connections() < max,
        }
    }

    pub(super) fn note_new(&self, phase: Phase) {
        if phase == Phase::Fragments {
            self.fragments.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.created.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        if phase.is_half_open() {
            self.half_open.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn note_change(&self, before: Phase, after: Phase) {
        match (before.is_half_open(), after.is_half_open()) {
            (false, true) => {
                self.half_open.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.half_open.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    pub(super) fn note_gone(&self, phase: Phase) {
        if phase == Phase::Fragments {
            self.fragments.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
        if phase.is_half_open() {
            self.half_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}
