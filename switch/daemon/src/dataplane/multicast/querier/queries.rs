//! Queries, and those that wait.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use crosspoint_engine::bridge::multicast::{Family, Place};

/// A query that is to be sent out of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Query {
    pub(super) port: u16,
    pub(super) place: Place,
    /// The group; unspecified for all.
    pub(super) group: IpAddr,
}

impl Query {
    pub(super) fn key(&self) -> Key {
        (self.place, Family::of(self.group))
    }
}

/// Where there is one querier.
pub(super) type Key = (Place, Family);

/// Queries that wait, each once.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) queue: VecDeque<Query>,
    known: HashSet<Query>,
}

impl Waiting {
    pub(super) fn push(&mut self, query: Query) {
        if self.known.insert(query) {
            self.queue.push_back(query);
        }
    }

    /// Takes at most this many.
    pub(super) fn take(&mut self, most: usize) -> Vec<Query> {
        let count = self.queue.len().min(most);
        let taken: Vec<Query> = self.queue.drain(..count).collect();
        taken.iter().for_each(|query| {
            self.known.remove(query);
        });
        taken
    }
}

/// Second queries, each once, and when they are due.
#[derive(Default)]
pub(super) struct Later {
    pub(super) queue: VecDeque<(Instant, Query)>,
    known: HashSet<Query>,
}

impl Later {
    /// `at` is not before that of earlier ones.
    pub(super) fn push(&mut self, at: Instant, query: Query) {
        if self.known.insert(query) {
            self.queue.push_back((at, query));
        }
    }

    /// Takes what is due by now.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Query> {
        let count = self.queue.iter().take_while(|(at, _)| *at <= now).count();
        let taken: Vec<Query> = self.queue.drain(..count).map(|(_, query)| query).collect();
        taken.iter().for_each(|query| {
            self.known.remove(query);
        });
        taken
    }
}
