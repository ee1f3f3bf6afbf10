//! Counts of a port, kept by name while a reload reopens it: its series continue instead of restarting at 0.
//!
//! A port that is removed and added later starts at 0, since it may be another guest's.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_model::status::{DeviceStatus, RemovedStatus, XdpStatus};

use super::counts::{add_counts, xdp_status};
use super::{Dataplane, Placed, Port, State};

/// Earlier counts of objects that start at 0 when they are reopened: a guest's device and the sockets of a NIC's
/// queues.
#[derive(Clone, Debug, Default)]
pub(super) struct Before {
    /// Connections of earlier front ends.
    connections: u64,
    /// The kernel's counts for earlier sockets, by queue.
    xdp: BTreeMap<u16, XdpStatus>,
}

impl Before {
    /// Adds the counts of a queue's socket, which is being closed.
    pub(super) fn note_left(&mut self, queue: u16, placed: &Placed) {
        let socket = placed.socket.as_ref();
        if let Some(left) = socket.and_then(|socket| xdp_status(socket)) {
            let sum = self.xdp.entry(queue).or_default();
            *sum = sum.plus(&left);
        }
    }

    /// The counts of all sockets of a queue, including the current one.
    pub(super) fn xdp(&self, queue: u16, now: Option<XdpStatus>) -> Option<XdpStatus> {
        match (self.xdp.get(&queue), now) {
            (None, now) => now,
            (Some(before), now) => Some(before.plus(&now.unwrap_or_default())),
        }
    }

    /// The device status, with the connections of all front ends.
    pub(super) fn device(&self, device: &DeviceStatus) -> DeviceStatus {
        DeviceStatus {
            connections: device.connections + self.connections,
            ..device.clone()
        }
    }
}

/// Counts of a port when it was closed.
pub(super) struct Kept {
    counters: Arc<PortCounters>,
    quota: Arc<Quota>,
    before: Before,
}

impl Kept {
    fn of(port: Port) -> Kept {
        let mut before = port.before;
        before.connections += port.device.map_or(0, |device| device.connections);
        Kept {
            counters: port.view.counters,
            quota: port.view.quota,
            before,
        }
    }

    /// The counters for a port with `queues` queues, in a switch with `workers` workers. Queues that it no longer has
    /// keep their counts.
    pub(super) fn resume(
        kept: Option<Kept>,
        (workers, queues): (usize, usize),
        mac_limit: u32,
    ) -> (Arc<PortCounters>, Arc<Quota>, Before) {
        let Some(kept) = kept else {
            let counters = PortCounters::new(workers, queues);
            let quota = Quota::new(mac_limit);
            return (Arc::new(counters), Arc::new(quota), Before::default());
        };
        let counters = match kept.counters.queues() < queues {
            true => Arc::new(kept.counters.with_queues(workers, queues)),
            false => kept.counters,
        };
        (
            counters,
            Arc::new(kept.quota.with_limit(mac_limit)),
            kept.before,
        )
    }
}

impl Dataplane {
    /// Removes port `number` from the switch like [`remove_port`](Dataplane::remove_port), but keeps its counts for the
    /// next port of its name.
    pub fn set_aside(&self, number: u16) {
        let mut state = self.lock();
        let Some(port) = self.take_out(&mut state, number) else {
            return;
        };
        if state.kept.len() >= MAX_PORTS
            && let Some((_, first)) = state.kept.pop_first()
        {
            add_counts(&mut state.removed, &first.counters);
        }
        let name = port.options.name.clone();
        if let Some(other) = state.kept.insert(name, Kept::of(port)) {
            add_counts(&mut state.removed, &other.counters);
        }
    }
}

impl Dataplane {
    /// Drops the kept counts of ports that are not to be reopened: a later port of that name is another one.
    pub fn forget_set_aside(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let State { kept, removed, .. } = &mut *state;
        kept.retain(|name, kept| {
            let stays = is_wanted(name);
            if !stays {
                add_counts(removed, &kept.counters);
            }
            stays
        });
    }
}

impl State {
    /// Counts of ports that are not there now: removed ports, and those that are being reopened.
    pub(super) fn gone(&self) -> RemovedStatus {
        let mut gone = self.removed.clone();
        for kept in self.kept.values() {
            add_counts(&mut gone, &kept.counters);
        }
        gone
    }
}
