//! Ports as interfaces of sFlow: each name has a number, and counts of what was sampled.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosspoint_config::pattern::matches;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_model::status::SflowInterface;

/// A port as an interface. It stays when the port is removed: a port of the same name is the same interface.
#[derive(Debug, Default)]
pub(super) struct Interface {
    pub index: u32,
    /// Whether the patterns of the configuration select it.
    pub is_chosen: bool,
    /// Samples sent.
    pub samples: u64,
    /// Samples that found no free slot.
    pub missed: u64,
    /// Frames that could have been sampled.
    pub pool: u64,
    /// Frames of the port when `pool` was last updated.
    frames: u64,
    /// Counter samples since the counters began.
    pub polls: u32,
    /// Frames of the port at the last counter sample.
    polled_frames: u64,
    counters: Option<Arc<PortCounters>>,
}

impl Interface {
    fn frames_now(&self) -> u64 {
        self.counters.as_ref().map_or(0, |counters| {
            let queues = 0..counters.queues();
            queues
                .map(|queue| counters.sum(queue, |of| &of.rx_frames))
                .sum()
        })
    }

    /// Adds the frames that the port has received since the last update.
    pub(super) fn update_pool(&mut self) {
        let now = self.frames_now();
        // A new port of this name counts from 0.
        self.pool += now.checked_sub(self.frames).unwrap_or(now);
        self.frames = now;
    }

    /// The number of the next counter sample. It begins again with 1 when the counters of a new port have begun.
    pub(super) fn next_poll(&mut self, frames: u64) -> u32 {
        if frames < self.polled_frames {
            self.polls = 0;
        }
        self.polled_frames = frames;
        self.polls = self.polls.wrapping_add(1);
        self.polls
    }
}

/// All interfaces, and which ports they are now.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    by_name: BTreeMap<Arc<str>, Interface>,
    /// The names of ports, by number.
    names: Vec<Option<Arc<str>>>,
    /// What the sampler had missed at each port when it was last asked.
    missed: Vec<u64>,
    patterns: Vec<String>,
}

impl Interfaces {
    /// Selects the ports that match. Frames that a port received before it was selected could not be sampled.
    pub(super) fn choose(&mut self, patterns: &[String]) {
        self.patterns = patterns.to_vec();
        for (name, interface) in &mut self.by_name {
            let is_chosen = is_chosen(patterns, name);
            if is_chosen && !interface.is_chosen {
                interface.frames = interface.frames_now();
            }
            interface.is_chosen = is_chosen;
        }
    }

    /// Forgets what the previous sampler has missed; call it with a new one.
    pub(super) fn begin_sampler(&mut self) {
        self.missed.clear();
    }

    /// Takes over the ports of the switch. Returns the names of ports before, by number.
    pub(super) fn refresh(&mut self, view: &Snapshot) -> Vec<Option<Arc<str>>> {
        for port in view.ports.iter().flatten() {
            let next = self.by_name.len() as u32 + 1;
            let interface = self.by_name.entry(port.name.clone());
            let interface = interface.or_insert_with(|| Interface {
                index: next,
                is_chosen: is_chosen(&self.patterns, &port.name),
                ..Interface::default()
            });
            interface.counters = Some(port.counters.clone());
        }
        let names = view.ports.iter();
        let names = names.map(|port| port.as_ref().map(|port| port.name.clone()));
        std::mem::replace(&mut self.names, names.collect())
    }

    /// Frames that the ports have received until now could not be sampled.
    pub(super) fn begin_pools(&mut self) {
        for interface in self.by_name.values_mut() {
            interface.frames = interface.frames_now();
        }
    }

    /// Adds what the sampler has missed since the last call.
    pub(super) fn count_missed(&mut self, sampler: &Sampler) {
        self.missed
            .resize(self.missed.len().max(self.names.len()), 0);
        for ((number, name), before) in (0u16..).zip(&self.names).zip(&mut self.missed) {
            let now = sampler.missed(number);
            let new = now - std::mem::replace(before, now);
            let interface = name.as_ref().and_then(|name| self.by_name.get_mut(name));
            if let Some(interface) = interface.filter(|interface| interface.is_chosen) {
                interface.missed += new;
            }
        }
    }

    /// The names of ports now, by number.
    pub(super) fn names(&self) -> &[Option<Arc<str>>] {
        &self.names
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Interface> {
        self.by_name.get_mut(name)
    }

    /// The number of the interface of this name; 0 if it is not known.
    pub(super) fn index(&self, name: Option<&Arc<str>>) -> u32 {
        let interface = name.and_then(|name| self.by_name.get(name));
        interface.map_or(0, |interface| interface.index)
    }

    /// Those that are selected and are ports now, for the status.
    pub(super) fn status(&self) -> Vec<SflowInterface> {
        let row = |name: &Arc<str>| {
            let interface = self.by_name.get(name)?;
            interface.is_chosen.then(|| SflowInterface {
                port: name.to_string(),
                ifindex: interface.index,
                frames: interface.pool,
                samples: interface.samples,
                missed: interface.missed,
            })
        };
        self.names.iter().flatten().filter_map(row).collect()
    }

    /// What was missed at all interfaces.
    pub(super) fn missed(&self) -> u64 {
        let all = self.by_name.values();
        all.map(|interface| interface.missed).sum()
    }

    /// Brings the frames of all selected interfaces up to date.
    pub(super) fn update_pools(&mut self) {
        let all = self.by_name.values_mut();
        all.filter(|one| one.is_chosen)
            .for_each(Interface::update_pool);
    }
}

fn is_chosen(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}
