//! Snapshot of the switch for workers: immutable, and replaced as a whole.

use std::net::IpAddr;
use std::sync::Arc;

use crosspoint_frame::{Frame, HeaderOp};
use crosspoint_packet::{DropReason, FlowHasher, Mac};

use crate::bridge::fdb::Fdb;
use crate::bridge::fdb::Quota;
use crate::bridge::leases::Leases;
use crate::bridge::members::Members;
use crate::bridge::multicast::Snooping;
use crate::bridge::probe::Probes;
use crate::bridge::several::{Bridge, BridgeTags, DEFAULT_BRIDGE, NO_BRIDGE};
use crate::bridge::storm::StormControl;
use crate::bridge::vlan::NO_VLAN;
use crate::bridge::vlan::VlanPolicy;
use crate::egress::guest_queues::GuestQueues;
use crate::egress::uplink::UplinkShare;
use crate::groups::{Connections, GroupPolicy};
use crate::observe::counters::PortCounters;
use crate::observe::mirror::Mirror;
use crate::observe::sample::Sampler;
use crate::observe::tap::Tap;
use crate::stages::control::ControlAddresses;
use crate::stages::guard::Bindings;
use crate::stages::guard::SourceGuard;
use crate::stages::guard::StaticAddress;
use crate::stages::meter::Meter;

/// Destination of frames for a port.
#[derive(Clone)]
pub enum Egress {
    /// No guest and no NIC is attached.
    Down,
    /// A guest that broke the rules.
    Quarantined,
    /// The operator has disabled the port, whatever is attached to it.
    Disabled,
    /// A guest's receive queues, at least one.
    Guest(Arc<GuestQueues>),
    /// A NIC: each worker has its own egress queue to it.
    Nic,
}

/// One port.
#[derive(Clone)]
pub struct PortSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// The number of its bridge.
    pub bridge: u8,
    /// The other bridges whose frames it has, each behind its tag; `None` for none.
    pub tags: Option<Arc<BridgeTags>>,
    /// Its VLANs in its bridge.
    pub vlan: Arc<VlanPolicy>,
    /// Destination of its frames.
    pub egress: Egress,
    /// Its counters.
    pub counters: Arc<PortCounters>,
    /// Limit on the addresses learned on it.
    pub quota: Arc<Quota>,
    /// Whether TCP segments received here are joined for guests that take large frames.
    pub joins: bool,
    /// Its weight in sharing a busy worker's time with other ports; at least 1.
    pub weight: u32,
    /// Policer of flooded copies of its frames; `None` for no limit.
    pub storm: Option<Arc<StormControl>>,
    /// Limit of what its guest sends; `None` for no limit.
    pub meter_out: Option<Arc<Meter>>,
    /// Limit of what is sent to its guest; `None` for no limit.
    pub meter_in: Option<Arc<Meter>>,
    /// The accounts of the guests that send through it; `None` for a port that is no uplink.
    pub uplink_share: Option<Arc<UplinkShare>>,
    /// The source addresses that its frames may have; `None` for any.
    pub sources: Option<Arc<SourceGuard>>,
    /// Its security groups; `None` for none: all packets pass.
    pub groups: Option<Arc<GroupPolicy>>,
    /// Whether it may send what DHCP servers and IPv6 routers send.
    pub is_server: bool,
    /// Whether its frames reach uplinks only.
    pub is_isolated: bool,
    /// Whether it is an uplink, whatever is attached now.
    pub is_uplink: bool,
    /// Which link-local control frames are passed between this port and other ports.
    pub control: ControlAddresses,
}

impl PortSnapshot {
    /// Returns whether its configuration places its frames in VLANs.
    #[inline(always)]
    pub(crate) fn is_vlan_aware(&self) -> bool {
        self.vlan.is_aware()
    }

    /// Returns whether it is blocked, because a loop goes through it or a mirror has it: frames from it are dropped, no
    /// frame is flooded to it, and no address is learned on it.
    pub fn is_blocked(&self) -> bool {
        self.sources
            .as_ref()
            .is_some_and(|guard| guard.is_blocked())
    }

    /// Returns whether frames that are flooded may leave through it: a guest or a NIC is attached, and it is not blocked.
    pub fn is_attached(&self) -> bool {
        matches!(self.egress, Egress::Guest(_) | Egress::Nic) && !self.is_blocked()
    }

    /// Returns the queues that frames for this port are spread over by flow, if there are several.
    #[inline(always)]
    pub(crate) fn spreads(&self) -> Option<&GuestQueues> {
        match &self.egress {
            Egress::Guest(queues) if queues.len() > 1 => Some(queues),
            _ => None,
        }
    }

    /// Returns whether frames for it may be refused one by one: for their rate, or by its groups.
    #[inline(always)]
    pub(crate) fn is_policed(&self) -> bool {
        self.meter_in.is_some() || self.groups.is_some()
    }

    /// Returns whether frames from this port may leave through `other`. What the switch itself sends out of a port counts
    /// as from that port.
    #[inline(always)]
    pub(crate) fn reaches(&self, other: &PortSnapshot) -> bool {
        !self.is_isolated || other.is_uplink || std::ptr::eq(self, other)
    }

    /// Returns the tag operation for a unicast frame from port `source` that leaves through this port, or why it may not.
    #[inline(always)]
    pub(crate) fn way_out(
        &self,
        frame: &Frame,
        source: Option<&PortSnapshot>,
        view: &Snapshot,
    ) -> Result<HeaderOp, DropReason> {
        let tag = match view.has_bridges {
            true => self.tag_op_of_bridge(frame),
            false => self.tag_op(frame),
        };
        match source.is_none_or(|source| source.reaches(self)) {
            true => tag.ok_or(DropReason::VlanNotCarried),
            false => Err(tag.map_or(DropReason::VlanNotCarried, |_| DropReason::Isolated)),
        }
    }

    /// Like [`tag_op`](Self::tag_op), for a copy of a flooded frame, which may be a control frame.
    pub(crate) fn flooded_tag_op(&self, frame: &Frame) -> Option<HeaderOp> {
        match frame.dst.is_link_local_control() {
            true => (self.control.has(frame.dst) && !frame.tagged).then_some(HeaderOp::Keep),
            false => self.tag_op(frame),
        }
    }

    /// Returns the tag operation for a frame that leaves through this port; `None` if it may not leave.
    #[inline(always)]
    pub fn tag_op(&self, frame: &Frame) -> Option<HeaderOp> {
        if !self.vlan.carries(frame.vlan) {
            return None;
        }
        // Outside every VLAN a priority tag passes through, like all tags there.
        if frame.vlan == NO_VLAN {
            return Some(HeaderOp::Keep);
        }
        match (frame.tagged, self.vlan.sends_tagged(frame.vlan)) {
            (false, true) => Some(HeaderOp::Push),
            // Popping this tag would expose the next one, which names another VLAN on a trunk: the double-tagging attack,
            // which escapes from a VLAN.
            (true, false) if frame.stacked && self.vlan.is_trunk() => None,
            (true, false) => Some(HeaderOp::Pop),
            _ => Some(HeaderOp::Keep),
        }
    }
}

/// The snapshot.
pub struct Snapshot {
    /// Ports by number; numbers without a port are empty.
    pub ports: Box<[Option<PortSnapshot>]>,
    /// The ports of each VLAN of the default bridge.
    pub members: Members,
    /// Bindings of addresses to ports of the default bridge.
    pub bindings: Bindings,
    /// The other bridges, by number less one.
    pub bridges: Box<[Option<Bridge>]>,
    /// Whether any port is in one of them: one check for a burst.
    pub(crate) has_bridges: bool,
    /// Whether the rate is limited of what any guest sends.
    pub shapes: bool,
    /// Whether the rate is limited of what is sent to any guest.
    pub polices: bool,
    /// Whether any guest has security groups.
    pub has_groups: bool,
    /// Whether frames for any port may be refused one by one, by rates or groups: one check for a burst.
    pub refuses: bool,
    /// The connections of guests with security groups; `None` if there are no such guests.
    pub connections: Option<Arc<Connections>>,
    /// Forwarding database of the default bridge.
    pub fdb: Arc<Fdb>,
    /// Chooses a guest's receive queue.
    pub flows: FlowHasher,
    /// Taps that capture frames: at most [`TAPS_MAX`](crate::observe::tap::TAPS_MAX).
    pub taps: Box<[Arc<Tap>]>,
    /// Mirrors: at most [`MIRRORS_MAX`](crate::observe::mirror::MIRRORS_MAX).
    pub mirrors: Box<[Mirror]>,
    /// Chooses received frames at random; `None` if no frames are sampled.
    pub sampler: Option<Arc<Sampler>>,
    /// Whether there is a tap, a sampler or DHCP snooping: one check for a burst.
    is_observed: bool,
    /// Recognizes loop probes that came back; `None` if no port sends any.
    pub probes: Option<Arc<Probes>>,
    /// The ports of multicast groups; `None` if all multicast is flooded.
    pub snooping: Option<Snooping>,
    /// The addresses that guests have leased; `None` if that is not looked for.
    pub(crate) leases: Option<Leases>,
    /// Whether ARP and neighbour discovery for an address that is bound to a port go to that port alone.
    pub suppresses: bool,
}

impl Snapshot {
    /// Creates the snapshot of these ports.
    pub fn new(
        ports: Box<[Option<PortSnapshot>]>,
        fdb: Arc<Fdb>,
        flows: FlowHasher,
        taps: Box<[Arc<Tap>]>,
    ) -> Snapshot {
        let mut snapshot = Snapshot {
            members: Members::new(&ports, DEFAULT_BRIDGE),
            bindings: Bindings::new(&ports, DEFAULT_BRIDGE),
            bridges: Box::new([]),
            has_bridges: false,
            shapes: false,
            polices: false,
            has_groups: false,
            refuses: false,
            connections: None,
            ports,
            fdb,
            flows,
            is_observed: !taps.is_empty(),
            taps,
            mirrors: Box::new([]),
            sampler: None,
            probes: None,
            snooping: None,
            leases: None,
            suppresses: false,
        };
        snapshot.note_meters();
        snapshot
    }

    /// Returns the snapshot with these bridges besides the default one, by number less one.
    pub fn with_bridges(self, bridges: Box<[Option<Bridge>]>) -> Snapshot {
        let mut snapshot = Snapshot { bridges, ..self };
        snapshot.renew_bridges();
        snapshot
    }

    fn renew_bridges(&mut self) {
        for (number, bridge) in (1..NO_BRIDGE).zip(&mut self.bridges) {
            if let Some(bridge) = bridge {
                bridge.renew(&self.ports, number);
            }
        }
        let is_elsewhere =
            |port: &PortSnapshot| port.bridge != DEFAULT_BRIDGE || port.tags.is_some();
        self.has_bridges = self.ports.iter().flatten().any(is_elsewhere);
    }

    /// Returns bridge `number`, if it is not the default one.
    #[inline(always)]
    pub fn other_bridge(&self, number: u8) -> Option<&Bridge> {
        let index = usize::from(number).checked_sub(1)?;
        self.bridges.get(index)?.as_ref()
    }

    /// Returns the forwarding database of a bridge; `None` if there is no such bridge.
    #[inline(always)]
    pub fn fdb_of(&self, bridge: u8) -> Option<&Fdb> {
        match bridge {
            DEFAULT_BRIDGE => Some(&self.fdb),
            other => self.other_bridge(other).map(|bridge| &*bridge.fdb),
        }
    }

    /// Returns the member lists of a bridge.
    #[inline(always)]
    pub fn members_of(&self, bridge: u8) -> Option<&Members> {
        match bridge {
            DEFAULT_BRIDGE => Some(&self.members),
            other => self.other_bridge(other).map(|bridge| &bridge.members),
        }
    }

    /// Returns the bindings of a bridge.
    #[inline(always)]
    pub fn bindings_of(&self, bridge: u8) -> Option<&Bindings> {
        match bridge {
            DEFAULT_BRIDGE => Some(&self.bindings),
            other => self.other_bridge(other).map(|bridge| &bridge.bindings),
        }
    }

    /// Returns the ports that a flooded frame may go to, ascending, including its ingress port.
    #[inline(always)]
    pub(crate) fn flood_members(&self, frame: &Frame) -> &[u16] {
        let members = self.members_of(frame.bridge);
        members.map_or(&[], |members| members.of_flooded(frame))
    }

    /// Returns the snapshot with these static addresses, sorted by address and VLAN.
    pub fn with_statics(self, statics: Arc<[StaticAddress]>) -> Snapshot {
        Snapshot {
            bindings: self.bindings.with_statics(statics),
            ..self
        }
    }

    /// Returns the snapshot with these static addresses of another bridge, sorted likewise.
    pub fn with_statics_of(mut self, bridge: u8, statics: Arc<[StaticAddress]>) -> Snapshot {
        let index = usize::from(bridge).checked_sub(1);
        let place = index.and_then(|index| self.bridges.get_mut(index)?.as_mut());
        if let Some(bridge) = place {
            let none = Bindings::new(&[], NO_BRIDGE);
            let bindings = std::mem::replace(&mut bridge.bindings, none);
            bridge.bindings = bindings.with_statics(statics);
        }
        self
    }

    /// Returns the snapshot with this table of connections. Without it, groups have no effect.
    pub fn with_connections(self, connections: Option<Arc<Connections>>) -> Snapshot {
        Snapshot {
            connections,
            ..self
        }
    }

    /// Returns the snapshot with this sampler.
    pub fn with_sampler(self, sampler: Option<Arc<Sampler>>) -> Snapshot {
        let mut snapshot = Snapshot { sampler, ..self };
        snapshot.note_observers();
        snapshot
    }

    /// Sets what DHCP snooping has.
    pub fn set_leases(&mut self, leases: Option<Leases>) {
        self.leases = leases;
        self.note_observers();
    }

    fn note_observers(&mut self) {
        let has_one = self.sampler.is_some() || self.leases.is_some();
        self.is_observed = has_one || !self.taps.is_empty();
    }

    /// Returns whether received frames are shown to a tap, a sampler or DHCP snooping.
    #[inline(always)]
    pub fn is_observed(&self) -> bool {
        self.is_observed
    }

    /// Replaces the taps and the sampler in place.
    pub fn observe(&mut self, taps: Box<[Arc<Tap>]>, sampler: Option<Arc<Sampler>>) {
        (self.taps, self.sampler) = (taps, sampler);
        self.note_observers();
    }

    /// Rebuilds the VLAN member lists, the bindings and what is known of rates after `ports` was changed in place.
    pub fn renew_members(&mut self) {
        self.members = Members::new(&self.ports, DEFAULT_BRIDGE);
        let statics = self.bindings.statics().clone();
        self.bindings = Bindings::new(&self.ports, DEFAULT_BRIDGE).with_statics(statics);
        self.renew_bridges();
        self.note_meters();
    }

    fn note_meters(&mut self) {
        let ports = || self.ports.iter().flatten();
        let shapes = ports().any(|port| port.meter_out.is_some());
        let polices = ports().any(|port| port.meter_in.is_some());
        (self.shapes, self.polices) = (shapes, polices);
        self.has_groups = ports().any(|port| port.groups.is_some());
        self.refuses = self.polices || self.has_groups;
    }

    /// Returns the ports that a frame flooded from port `ingress` in `vlan` of `bridge` goes to.
    pub fn flooded_to(&self, ingress: u16, (bridge, vlan): (u8, u16)) -> impl Iterator<Item = u16> {
        let source = self.port(ingress);
        let members = self
            .members_of(bridge)
            .map_or(&[][..], |members| members.of(vlan));
        members.iter().copied().filter(move |number| {
            let reaches = |port: &PortSnapshot| source.is_none_or(|source| source.reaches(port));
            *number != ingress && self.port(*number).is_some_and(reaches)
        })
    }

    /// Returns whether port `port` may receive frames from `mac` in `vlan` of its bridge, according to all ports' guards.
    pub fn allows_source(&self, mac: Mac, vlan: u16, port: u16) -> bool {
        let Some(bridge) = self.port(port).map(|port| port.bridge) else {
            return true;
        };
        self.allows_source_in(mac, (bridge, vlan), port)
    }

    /// The same, in a bridge whose frames the port has.
    pub fn allows_source_in(&self, mac: Mac, at: (u8, u16), port: u16) -> bool {
        let guard = self.port(port).and_then(|port| port.sources.as_deref());
        guard.is_none_or(|guard| guard.allows(mac)) && self.is_free_for(mac, at, port)
    }

    /// Returns whether frames from addresses beyond the port's limit are dropped.
    pub(crate) fn drops_beyond_limit(&self, port: u16) -> bool {
        self.port(port).is_some_and(|port| port.quota.drops())
    }

    /// Returns whether the address is bound to no other port in a VLAN of a bridge.
    pub(crate) fn is_free_for(&self, mac: Mac, (bridge, vlan): (u8, u16), port: u16) -> bool {
        let policy = |owner| self.port(owner).map(|port| &*port.vlan);
        let bindings = self.bindings_of(bridge);
        bindings.is_none_or(|bindings| bindings.allows(mac, vlan, port, policy))
    }

    /// Returns whether the IP address is bound to another port of the bridge that carries `vlan`, and not to port `port`.
    pub(crate) fn is_bound_elsewhere(
        &self,
        address: IpAddr,
        (bridge, vlan): (u8, u16),
        port: u16,
    ) -> bool {
        let Some(bindings) = self.bindings_of(bridge) else {
            return false;
        };
        let mut is_bound = false;
        for owner in bindings.ips().owners(address) {
            if owner == port {
                return false;
            }
            is_bound |= self
                .port(owner)
                .is_some_and(|owner| owner.vlan.carries(vlan));
        }
        is_bound
    }

    /// Returns whether any IP address is bound in a bridge that frames of this port are in.
    #[inline(always)]
    pub(crate) fn has_bound_ips(&self, port: Option<&PortSnapshot>) -> bool {
        let has = |bindings: &Bindings| !bindings.ips().is_empty();
        if !self.has_bridges {
            return has(&self.bindings);
        }
        let others = self.bridges.iter().flatten();
        has(&self.bindings)
            || port.is_some_and(|port| port.bridge != DEFAULT_BRIDGE || port.tags.is_some())
                && others.map(|bridge| &bridge.bindings).any(has)
    }

    /// Returns port number `port`.
    #[inline(always)]
    pub fn port(&self, port: u16) -> Option<&PortSnapshot> {
        self.ports.get(usize::from(port))?.as_ref()
    }
}
