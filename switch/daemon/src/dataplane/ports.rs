//! Removal and reconfiguration of ports while the switch runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_config::{Addresses, LoopProtect, MacLimitAction};
use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::meter::RateLimits;

use super::bridges::PortBridges;
use super::counts::add_counts;
use super::{Dataplane, Placed, Port, State};

/// Port settings that can change without loss of frames; `None` keeps the current value.
#[derive(Clone, Debug, Default)]
pub struct PortSettings {
    /// Its VLANs, and the same as text.
    pub vlan: Option<(VlanPolicy, String)>,
    /// Maximum number of addresses learned on it; 0 for no limit. Addresses beyond a lower limit stay until they age
    /// out.
    pub mac_limit: Option<u32>,
    /// What becomes of frames from addresses beyond it.
    pub mac_limit_action: Option<MacLimitAction>,
    /// Its share of a busy worker's time; at least 1.
    pub weight: Option<u32>,
    /// Limits on the copies into which its frames may be flooded. A change resets what has been used of the old limits.
    pub storm: Option<StormLimits>,
    /// Limits on what its guest sends, and on what is sent to it. A change begins with full buckets.
    pub rates: Option<RateLimits>,
    /// The only source addresses that its frames may have; empty for any. Addresses that are learned on a port where
    /// they are no longer allowed are forgotten.
    pub addresses: Option<Addresses>,
    /// Whether it may send what DHCP servers and IPv6 routers send.
    pub dhcp_server: Option<bool>,
    /// Its bridges.
    pub bridges: Option<PortBridges>,
    /// Whether its frames reach uplinks only.
    pub isolated: Option<bool>,
    /// Which link-local control frames pass between it and others.
    pub forward_control: Option<ControlAddresses>,
    /// Whether it sends loop probes, and the action on a loop.
    pub loop_protect: Option<Option<LoopProtect>>,
    /// The worker of all its streams, or `Some(None)` for any. Only guests' streams move there: a NIC's queue stays
    /// with the worker that has its packet memory.
    pub worker: Option<Option<usize>>,
    /// Whether the switch is ready only while this port is up.
    pub required: Option<bool>,
    /// Whether it is disabled.
    pub disabled: Option<bool>,
}

impl Dataplane {
    /// Removes port `number` from the switch. The port's thread or driver must have let go of it: it has no streams and
    /// no egress. Its counts are added to [`RemovedStatus`]; another port may get its number.
    pub fn remove_port(&self, number: u16) {
        let mut state = self.lock();
        if let Some(port) = self.take_out(&mut state, number) {
            add_counts(&mut state.removed, &port.view.counters);
        }
    }

    /// Removes the port, and leaves its counts to the caller.
    pub(super) fn take_out(&self, state: &mut State, number: u16) -> Option<Port> {
        let port = state.ports.get_mut(usize::from(number))?.take()?;
        state.probing.forget(number);
        state.snooping.forget_port(number);
        state.leases.forget_port(number);
        self.end_taps_of(state, number);
        drop(self.publish(state, Vec::new()));
        if let Some(sampler) = &state.sampler {
            sampler.note_removed(number);
        }
        // From now on no worker learns on it, finds its rings broken or calls it, so the next port with this number is
        // not blamed.
        self.take_faults(state, Some(number));
        self.take_stuck(state, Some(number));
        self.forget(state, number);
        Some(port)
    }

    /// Sets whether ARP requests and neighbour solicitations for a bound address go to its port alone.
    pub fn set_neighbor_suppression(&self, suppresses: bool) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.suppresses, suppresses) != suppresses {
            drop(self.publish(&mut state, Vec::new()));
        }
    }

    /// Changes port `number` in place. Workers go on meanwhile: each burst sees either all of the change or nothing of
    /// it.
    pub fn set_port(&self, number: u16, settings: PortSettings) {
        let mut state = self.lock();
        let workers = self.workers();
        let state = &mut *state;
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        if let Some(limit) = settings.mac_limit {
            port.options.mac_limit = limit;
            port.view.quota.set_limit(limit);
        }
        if let Some(action) = settings.mac_limit_action {
            port.set_mac_limit_action(action);
        }
        if let Some(required) = settings.required {
            port.options.required = required;
        }
        if let Some(worker) = settings.worker {
            port.options.worker = worker.filter(|worker| *worker < workers);
        }
        let has_other_vlans = settings.vlan.is_some() || settings.bridges.is_some();
        let binds_others = has_other_vlans || settings.addresses.is_some();
        let has_other_view = binds_others
            || settings.weight.is_some()
            || settings.storm.is_some()
            || settings.rates.is_some()
            || settings.dhcp_server.is_some()
            || settings.isolated.is_some()
            || settings.forward_control.is_some()
            || settings.loop_protect.is_some();
        let disabled = settings.disabled.filter(|it| *it != port.options.disabled);
        if let Some(bridges) = &settings.bridges {
            if port.options.bridges.own != bridges.own {
                state.groups.forget_connections(&port.options.name);
                port.view.groups = state.groups.policy(&port.options.name);
            }
            port.options.bridges.clone_from(bridges);
            state.bridges.place(&mut port.view, bridges);
        }
        if has_other_vlans {
            port.suspend_mac_limit();
        }
        // A port in other VLANs, or one that may no longer be a router's, is asked again.
        let is_asked_again = has_other_vlans || settings.dhcp_server.is_some();
        self.renew_view(port, number, settings);
        if is_asked_again {
            state.snooping.forget_port(number);
        }
        if has_other_vlans {
            state.bridges.note_tags(&state.ports);
        }
        if has_other_view {
            drop(self.publish(state, Vec::new()));
        }
        if has_other_vlans {
            // It may have left VLANs in which its addresses are known. Frames are flooded until they are learned again.
            self.forget(state, number);
            if let Some(Some(port)) = state.ports.get_mut(usize::from(number)) {
                port.resume_mac_limit();
            }
        }
        if binds_others {
            self.forget_forbidden(state);
        }
        if let Some(disabled) = disabled {
            self.set_disabled(state, number, disabled);
        }
        self.gather(state, number);
    }

    /// Changes what the next snapshot shows workers of a port.
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
        if let Some(is_server) = settings.dhcp_server {
            port.options.dhcp_server = is_server;
            port.view.is_server = is_server;
        }
        if let Some(is_isolated) = settings.isolated {
            port.options.isolated = is_isolated;
            port.view.is_isolated = is_isolated;
        }
        if let Some(rates) = settings.rates {
            port.options.rates = rates;
            (port.view.meter_out, port.view.meter_in) = self.meters(rates);
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
        if let Some(disabled) = settings.disabled {
            port.options.disabled = disabled;
        }
    }

    /// Forgets addresses on ports that may not have them. Uses the snapshot that all workers have, since an address of
    /// a new binding may have been learned elsewhere before.
    pub(super) fn forget_forbidden(&self, state: &State) {
        let view = &state.view;
        let quota = |port| view.port(port).map(|p| &*p.quota);
        for (bridge, fdb) in self.fdbs(state) {
            if view
                .bindings_of(bridge)
                .is_some_and(|bindings| !bindings.is_empty())
            {
                let is_doomed = |mac, vlan, port| !view.allows_source_in(mac, (bridge, vlan), port);
                fdb.remove_if(quota, is_doomed);
            }
        }
    }

    /// Moves the streams of a port to its configured worker, if it has one. A stream that cannot move stays, with a
    /// line in the log.
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
                tracing::warn!(port = %name, queue, "is not moved to the port's worker: {why}");
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
        // Moves first: an address whose home was this port must not return to it.
        for (_, fdb) in self.fdbs(state) {
            fdb.forget_moves_of(number);
            fdb.sweep(tick, quota, |port, _| port == number);
        }
        self.put_statics(state);
    }
}
