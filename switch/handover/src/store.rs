//! The records of a process, as its supervisor keeps them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use crate::{Kind, Link, LinkError, Message};

/// The last record of each part, by name.
#[derive(Debug, Default)]
pub struct Store {
    records: BTreeMap<String, Message>,
}

impl Store {
    /// Takes a record, or the end of one. Returns what it replaces: closing its descriptors can block, since a front end
    /// may hold the other end.
    pub fn take(&mut self, message: Message) -> Option<Message> {
        match message.kind {
            Kind::Record => self.records.insert(message.name.clone(), message),
            Kind::Forget => self.records.remove(&message.name),
            _ => Some(message),
        }
    }

    /// Sends all records.
    pub fn send_all(&self, link: &Link) -> Result<(), LinkError> {
        self.send_where(link, |_| true)
    }

    /// Sends the records whose names fit.
    pub fn send_where(&self, link: &Link, fits: impl Fn(&str) -> bool) -> Result<(), LinkError> {
        for record in self.records.values().filter(|record| fits(&record.name)) {
            let fds: Vec<_> = record.fds.iter().map(AsFd::as_fd).collect();
            link.send(Kind::Record, &record.name, &record.body, &fds)?;
        }
        Ok(())
    }

    /// Takes another store's records, and returns those that they replace.
    pub fn merge(&mut self, other: Store) -> Vec<Message> {
        let taken = other.records.into_iter();
        taken
            .filter_map(|(name, record)| self.records.insert(name, record))
            .collect()
    }

    /// Removes the record of a part.
    pub fn remove(&mut self, name: &str) -> Option<Message> {
        self.records.remove(name)
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
            .filter_map(|name| self.records.remove(name))
            .collect()
    }

    /// The names of all records.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }
}
