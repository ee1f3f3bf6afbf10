//! Ports that go while the switch runs, and ports that become other than they were without going.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_engine::control::ControlAddresses;
use crosspoint_engine::counters::{Counter, PortCounters, QueueCounters};
use crosspoint_engine::storm::StormLimits;
use crosspoint_engine::vlan::VlanPolicy;
use crosspoint_packet::{DropReason, Mac};

use super::{Fabric, Placed, Port, State};
use crate::config::LoopProtect;
use crate::status::RemovedStatus;

/// What of a port can become other without its frames noticing; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct PortSettings {
    /// Its VLANs, also for people.
    pub vlan: Option<(VlanPolicy, String)>,
    /// Most addresses learned on it; 0 for no limit. Those that it has beyond it stay until they age.
    pub mac_limit: Option<u32>,
    /// Its part of a busy worker's time; at least 1.
    pub weight: Option<u32>,
    /// Into how many copies its frames may be flooded. What it has used of the old limits is forgotten.
    pub storm: Option<StormLimits>,
    /// The only source addresses that its frames may have; none: any. Addresses that are learned where they may not be
    /// any more are forgotten.
    pub addresses: Option<Vec<Mac>>,
    /// Which link-local control frames pass from it to others, and from those to it.
    pub forward_control: Option<ControlAddresses>,
    /// Whether it sends probes for loops, and what is done about one.
    pub loop_protect: Option<Option<LoopProtect>>,
    /// The worker of all its streams, or `Some(None)` for any. Only guests' streams go there: a NIC's queues stay with the
    /// worker that has their packet memory.
    pub worker: Option<Option<usize>>,
    /// Whether the switch is ready only while it is up.
    pub required: Option<bool>,
}

impl Fabric {
    /// Takes port `number` out of the switch. Whoever served it has let go of it: it has no streams, and no frame goes there.
    /// Its counts go into [`RemovedStatus`]; another port may get its number.
    pub fn remove_port(&self, number: u16) {
        let mut state = self.lock();
        if let Some(port) = self.take_out(&mut state, number) {
            add_counts(&mut state.removed, &port.view.counters);
        }
    }

    /// Takes it out, and leaves its counts to the caller.
    pub(super) fn take_out(&self, state: &mut State, number: u16) -> Option<Port> {
        let port = state.ports.get_mut(usize::from(number))?.take()?;
        state.probing.forget(number);
        self.end_taps_of(state, number);
        drop(self.publish(state, Vec::new()));
        // No worker learns on it any more, nor finds its rings broken, nor calls it: whoever gets the number is not blamed.
        self.take_faults(state, Some(number));
        self.take_stuck(state, Some(number));
        self.forget(state, number);
        Some(port)
    }

    /// Changes port `number` in place. Workers go on meanwhile: each burst sees all of it or nothing.
    pub fn set_port(&self, number: u16, settings: PortSettings) {
        let mut state = self.lock();
        let workers = self.workers();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        if let Some(limit) = settings.mac_limit {
            port.options.mac_limit = limit;
            port.view.quota.set_limit(limit);
        }
        if let Some(required) = settings.required {
            port.options.required = required;
        }
        if let Some(worker) = settings.worker {
            port.options.worker = worker.filter(|worker| *worker < workers);
        }
        let has_other_vlans = settings.vlan.is_some();
        let binds_others = has_other_vlans || settings.addresses.is_some();
        let has_other_view = binds_others
            || settings.weight.is_some()
            || settings.storm.is_some()
            || settings.forward_control.is_some()
            || settings.loop_protect.is_some();
        self.renew_view(port, number, settings);
        if has_other_view {
            drop(self.publish(&mut state, Vec::new()));
        }
        if has_other_vlans {
            // It may have left the VLANs that its addresses are known in. Until they are learned again, frames are flooded.
            self.forget(&state, number);
        }
        if binds_others {
            self.forget_forbidden(&state);
        }
        self.gather(&mut state, number);
    }

    /// Changes what workers see of a port with the next snapshot.
    fn renew_view(&self, port: &mut Port, number: u16, settings: PortSettings) {
        if let Some((policy, text)) = settings.vlan {
            port.view.vlan = Arc::new(policy.clone());
            (port.options.vlan, port.options.vlan_text) = (policy, text);
        }
        if let Some(weight) = settings.weight {
            port.options.weight = weight;
            port.view.weight = weight.max(1);
        }
        if let Some(limits) = settings.storm {
            port.options.storm = limits;
            port.view.storm = self.storm_control(limits);
        }
        if let Some(control) = settings.forward_control {
            port.options.forward_control = control;
            port.view.control = control;
        }
        if let Some(addresses) = settings.addresses {
            port.options.addresses = addresses;
            port.view.sources = port.guard(self, number);
        }
        if let Some(protect) = settings.loop_protect {
            port.options.loop_protect = protect;
        }
    }

    /// Forgets addresses that are learned on ports that may not have them, by the snapshot that all workers have: where a
    /// binding is new, one may have been learned elsewhere before.
    pub(super) fn forget_forbidden(&self, state: &State) {
        let view = &state.view;
        if !view.bindings.is_empty() {
            let quota = |port| view.port(port).map(|p| &*p.quota);
            let is_doomed = |mac, vlan, port| !view.allows_source(mac, vlan, port);
            self.fdb.remove_if(quota, is_doomed);
        }
    }

    /// Has the streams of a port go to its worker, if it has one. One that a NIC keeps where it is stays there, and a
    /// line in the log says so.
    pub(super) fn gather(&self, state: &mut State, number: u16) {
        let Some(Some(port)) = state.ports.get(usize::from(number)) else {
            return;
        };
        let Some(worker) = port.options.worker else {
            return;
        };
        let elsewhere = port.streams.iter();
        let is_free = |placed: &Placed| placed.socket.is_none() && placed.direct.is_none();
        let elsewhere = elsewhere.filter(|(_, placed)| placed.worker != worker && is_free(placed));
        let queues: Vec<u16> = elsewhere.map(|(queue, _)| *queue).collect();
        let name = port.view.name.clone();
        for queue in queues {
            if let Err(why) = self.move_locked(state, (number, queue), worker) {
                tracing::warn!(port = %name, queue, "stays where it is: {why}");
            }
        }
    }

    /// Forgets every address learned on port `number`.
    pub fn forget_addresses(&self, number: u16) {
        self.forget(&self.lock(), number);
    }

    pub(super) fn forget(&self, state: &State, number: u16) {
        let tick = self.shared.tick.load(Ordering::Relaxed);
        let quota = |port| state.view.port(port).map(|p| &*p.quota);
        // Moves first: an address whose home the port was must not come back to it.
        self.fdb.forget_moves_of(number);
        self.fdb.sweep(tick, quota, |port, _| port == number);
    }
}

pub(super) fn add_counts(removed: &mut RemovedStatus, counters: &PortCounters) {
    let sum = |counter: fn(&QueueCounters) -> &Counter| -> u64 {
        let queues = 0..counters.queues();
        queues.map(|queue| counters.sum(queue, counter)).sum()
    };
    removed.ports += 1;
    removed.rx_packets += sum(|c| &c.rx_frames);
    removed.rx_bytes += sum(|c| &c.rx_bytes);
    removed.tx_packets += sum(|c| &c.tx_frames);
    removed.tx_bytes += sum(|c| &c.tx_bytes);
    removed.flood_copies += sum(|c| &c.flood_copies);
    removed.segment_copies += sum(|c| &c.segment_copies);
    removed.joined_copies += sum(|c| &c.joined_copies);
    removed.delivered_copies += sum(|c| &c.delivered_copies);
    removed.dropped_copies += sum(|c| &c.dropped_copies);
    add_drops(&mut removed.drops, counters);
}

fn add_drops(drops: &mut BTreeMap<String, u64>, counters: &PortCounters) {
    for reason in DropReason::ALL {
        let of = |c: &QueueCounters| c.drops.get(*reason as usize).map_or(0, Counter::get);
        let queues = 0..counters.queues();
        let count: u64 = queues
            .flat_map(|queue| counters.of_queue(queue).map(of))
            .sum();
        if count > 0 {
            *drops.entry(reason.label().to_owned()).or_default() += count;
        }
    }
}
