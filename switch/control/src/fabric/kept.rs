//! What a port has counted, kept by its name while a reload opens it anew: its series go on, and do not begin at 0 again.
//!
//! A port that is removed, and comes again later, begins at 0: it may be another guest's.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosspoint_engine::MAX_PORTS;
use crosspoint_engine::counters::PortCounters;
use crosspoint_engine::fdb::Quota;

use super::ports::add_counts;
use super::report::xdp_status;
use super::{Fabric, Placed, Port, State};
use crate::status::{DeviceStatus, RemovedStatus, XdpStatus};

/// What was counted before by who counts anew each time: a guest's device and the sockets of a NIC's queues.
#[derive(Clone, Debug, Default)]
pub(super) struct Before {
    /// Front ends that had connected.
    connections: u64,
    /// What the kernel had counted, by queue.
    xdp: BTreeMap<u16, XdpStatus>,
}

impl Before {
    /// Adds what the socket of a queue has come to, which is given up.
    pub(super) fn note_left(&mut self, queue: u16, placed: &Placed) {
        let socket = placed.socket.as_ref();
        if let Some(left) = socket.and_then(|socket| xdp_status(socket)) {
            let sum = self.xdp.entry(queue).or_default();
            *sum = sum.plus(&left);
        }
    }

    /// What all sockets of a queue have come to, with the one that it has now.
    pub(super) fn xdp(&self, queue: u16, now: Option<XdpStatus>) -> Option<XdpStatus> {
        match (self.xdp.get(&queue), now) {
            (None, now) => now,
            (Some(before), now) => Some(before.plus(&now.unwrap_or_default())),
        }
    }

    /// The device, with all front ends that have connected.
    pub(super) fn device(&self, device: &DeviceStatus) -> DeviceStatus {
        DeviceStatus {
            connections: device.connections + self.connections,
            ..device.clone()
        }
    }
}

/// What a port had counted when it was closed.
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

    /// What a port goes on to count in that has so many queues, in a switch with so many workers. Queues that it has no
    /// longer keep what they have counted.
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
        (counters, Arc::new(kept.quota.anew(mac_limit)), kept.before)
    }
}

impl Fabric {
    /// Takes port `number` out of the switch, as [`remove_port`](Fabric::remove_port) does, but keeps what it has counted
    /// for the next port of its name.
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

impl Fabric {
    /// Forgets what ports have counted that are not to be opened again: a port of the name is another one.
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
    /// What ports had counted that are not there: those that were removed, and those that are opened anew.
    pub(super) fn gone(&self) -> RemovedStatus {
        let mut gone = self.removed.clone();
        for kept in self.kept.values() {
            add_counts(&mut gone, &kept.counters);
        }
        gone
    }
}
