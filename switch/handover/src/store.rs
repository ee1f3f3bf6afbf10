//! The records of a process, as its supervisor keeps them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use crate::{Kind, Link, LinkError, Message};

/// Most records. A daemon has a few for each of its 1024 ports.
pub const RECORDS_MAX: usize = 8192;
/// Most bytes of all bodies.
pub const BYTES_MAX: usize = 1 << 30;

/// The last record of each part, by name. What a process sends beyond the limits is not kept, so that a broken one cannot take
/// the memory of the supervisor, which all guests need.
#[derive(Debug, Default)]
pub struct Store {
    records: BTreeMap<String, Message>,
    bytes: usize,
    refused: u64,
}

impl Store {
    /// Takes a record, or the end of one. Returns what it replaces, or the message itself if it is not kept: closing its
    /// descriptors can block, since a front end may hold the other end.
    pub fn take(&mut self, message: Message) -> Option<Message> {
        match message.kind {
            Kind::Record => self.insert(message),
            Kind::Forget => self.remove(&message.name),
            _ => Some(message),
        }
    }

    fn insert(&mut self, message: Message) -> Option<Message> {
        let before = self.records.get(&message.name).map(|old| old.body.len());
        let bytes = self.bytes - before.unwrap_or(0) + message.body.len();
        let is_one_more = before.is_none() && self.records.len() >= RECORDS_MAX;
        if is_one_more || bytes > BYTES_MAX {
            self.refused += 1;
            return Some(message);
        }
        self.bytes = bytes;
        self.records.insert(message.name.clone(), message)
    }

    /// Returns how many records were not kept.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Sends all records.
    pub fn send_all(&self, link: &Link) -> Result<(), LinkError> {
        self.send_where(link, |_| true)
    }

    /// Sends the records whose names fit.
    pub fn send_where(&self, link: &Link, fits: impl Fn(&str) -> bool) -> Result<(), LinkError> {
        for record in self.records.values().filter(|record| fits(&record.name)) {
            let fds: Vec<_> = record.fds.iter().map(AsFd::as_fd).collect();
            link.send_record(&record.name, &record.body, &fds, record.is_critical)?;
        }
        Ok(())
    }

    /// Takes another store's records. Returns those that they replace, and those that are not kept.
    pub fn merge(&mut self, other: Store) -> Vec<Message> {
        let taken = other.records.into_values();
        taken.filter_map(|record| self.insert(record)).collect()
    }

    /// Removes the record of a part.
    pub fn remove(&mut self, name: &str) -> Option<Message> {
        let removed = self.records.remove(name)?;
        self.bytes -= removed.body.len();
        Some(removed)
    }

    /// Removes the records whose names fit.
    pub fn remove_where(&mut self, fits: impl Fn(&str) -> bool) -> Vec<Message> {
        let fitting: Vec<String> = self
            .names()
            .filter(|name| fits(name))
            .map(str::to_owned)
            .collect();
        fitting
            .iter()
            .filter_map(|name| self.remove(name))
            .collect()
    }

    /// The names of all records.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, len: usize) -> Message {
        Message {
            kind: Kind::Record,
            name: name.to_owned(),
            body: vec![7; len],
            fds: Vec::new(),
            is_critical: false,
        }
    }

    #[test]
    fn a_process_fills_no_more_than_the_limits_and_what_is_kept_can_still_change() {
        let mut store = Store::default();
        for number in 0..RECORDS_MAX + 10 {
            let refused = store.take(record(&number.to_string(), 1));
            assert_eq!(refused.is_some(), number >= RECORDS_MAX);
        }
        assert_eq!((store.names().count(), store.refused()), (RECORDS_MAX, 10));
        // One that is known is replaced; one that is forgotten makes room for another.
        assert_eq!(
            store.take(record("5", 9)).map(|old| old.body.len()),
            Some(1)
        );
        assert!(store.remove("6").is_some());
        assert!(store.take(record("new", 3)).is_none());
        // Bytes are counted exactly: all of them can be used again.
        assert_eq!(store.bytes, RECORDS_MAX + 8 + 2);
        assert!(store.take(record("5", BYTES_MAX)).is_some());
        let names: Vec<String> = store.names().map(str::to_owned).collect();
        names.iter().for_each(|name| drop(store.remove(name)));
        assert_eq!(store.bytes, 0);
    }
}
