//! What workers know of the switch: an immutable picture, replaced as a whole.

use std::sync::Arc;

use crosspoint_frame::{Frame, TagOp};
use crosspoint_packet::{FlowHasher, Mac};

use crate::control::ControlAddresses;
use crate::counters::PortCounters;
use crate::fdb::{Fdb, Quota};
use crate::guard::{Bindings, SourceGuard};
use crate::members::Members;
use crate::probe::Probes;
use crate::queues::GuestQueues;
use crate::storm::StormControl;
use crate::tap::Tap;
use crate::vlan::{NO_VLAN, VlanPolicy};

/// Where frames for a port go.
#[derive(Clone)]
pub enum Egress {
    /// Nobody is there.
    Down,
    /// A guest that broke the rules.
    Quarantined,
    /// A guest's receive queues; at least one.
    Guest(Arc<GuestQueues>),
    /// A NIC: each worker has its own way there.
    Nic,
}

/// One port.
#[derive(Clone)]
pub struct PortView {
    /// Its name.
    pub name: Arc<str>,
    /// Its VLANs.
    pub vlan: Arc<VlanPolicy>,
    /// Where its frames go.
    pub egress: Egress,
    /// What is counted of it.
    pub counters: Arc<PortCounters>,
    /// How many addresses may be learned on it.
    pub quota: Arc<Quota>,
    /// Whether TCP segments that come in here are joined for guests that take large frames.
    pub joins: bool,
    /// Its part of a busy worker's time, beside other ports' weights; at least 1.
    pub weight: u32,
    /// Into how many copies its frames may be flooded; `None` for any number.
    pub storm: Option<Arc<StormControl>>,
    /// The only source addresses that its frames may have; `None` for any.
    pub sources: Option<Arc<SourceGuard>>,
    /// Which link-local control frames come in here for other ports, and come from those.
    pub control: ControlAddresses,
}

impl PortView {
    /// Whether its frames are placed in VLANs by its configuration.
    #[inline(always)]
    pub(crate) fn is_vlan_aware(&self) -> bool {
        !matches!(*self.vlan, VlanPolicy::Unaware)
    }

    /// Whether it is blocked, since a loop goes through it: what it sends is dropped, no frame is flooded to it, and no
    /// address is learned on it.
    pub fn is_blocked(&self) -> bool {
        self.sources
            .as_ref()
            .is_some_and(|guard| guard.is_blocked())
    }

    /// The queues that frames for this port are spread over by flow, if there are several.
    #[inline(always)]
    pub(crate) fn spreads(&self) -> Option<&GuestQueues> {
        match &self.egress {
            Egress::Guest(queues) if queues.len() > 1 => Some(queues),
            _ => None,
        }
    }

    /// The same of a copy of a flooded frame, which may be a control frame.
    pub fn flooded_tag_op(&self, frame: &Frame) -> Option<TagOp> {
        match frame.dst.is_link_local_control() {
            true => (self.control.has(frame.dst) && !frame.tagged).then_some(TagOp::Keep),
            false => self.tag_op(frame),
        }
    }

    /// What becomes of a frame's tag when it leaves through this port; `None` when it may not.
    #[inline(always)]
    pub fn tag_op(&self, frame: &Frame) -> Option<TagOp> {
        if !self.vlan.carries(frame.vlan) {
            return None;
        }
        // A priority tag outside every VLAN passes through, as all tags do there.
        if frame.vlan == NO_VLAN {
            return Some(TagOp::Keep);
        }
        match (frame.tagged, self.vlan.sends_tagged(frame.vlan)) {
            (false, true) => Some(TagOp::Push),
            // Taking this tag out would bring the next to the front, and on a trunk that names
            // another VLAN: double tagging, the old way out of a VLAN.
            (true, false) if frame.stacked && self.vlan.is_trunk() => None,
            (true, false) => Some(TagOp::Pop),
            _ => Some(TagOp::Keep),
        }
    }
}

/// The picture.
pub struct View {
    /// Ports by number; numbers without a port are empty.
    pub ports: Box<[Option<PortView>]>,
    /// The ports of each VLAN.
    pub members: Members,
    /// Which addresses are bound to which ports.
    pub bindings: Bindings,
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// Chooses a guest's receive queue.
    pub flows: FlowHasher,
    /// Who looks at frames: at most [`TAPS_MAX`](crate::tap::TAPS_MAX).
    pub taps: Box<[Arc<Tap>]>,
    /// What finds probes for loops that came back; `None` where no port sends any.
    pub probes: Option<Arc<Probes>>,
}

impl View {
    /// The picture of these ports.
    pub fn new(
        ports: Box<[Option<PortView>]>,
        fdb: Arc<Fdb>,
        flows: FlowHasher,
        taps: Box<[Arc<Tap>]>,
    ) -> View {
        View {
            members: Members::new(&ports),
            bindings: Bindings::new(&ports),
            ports,
            fdb,
            flows,
            taps,
            probes: None,
        }
    }

    /// Makes the VLANs' lists and the bindings anew, after `ports` has changed in place.
    pub fn renew_members(&mut self) {
        self.members = Members::new(&self.ports);
        self.bindings = Bindings::new(&self.ports);
    }

    /// Whether frames from `mac` in `vlan` may come in on port `port`, by that port's guard and by every other's.
    pub fn allows_source(&self, mac: Mac, vlan: u16, port: u16) -> bool {
        let guard = self.port(port).and_then(|port| port.sources.as_deref());
        guard.is_none_or(|guard| guard.allows(mac)) && self.is_free_for(mac, vlan, port)
    }

    /// Whether the address is bound to no other port in `vlan`.
    pub(crate) fn is_free_for(&self, mac: Mac, vlan: u16, port: u16) -> bool {
        let policy = |owner| self.port(owner).map(|port| &*port.vlan);
        self.bindings.allows(mac, vlan, port, policy)
    }

    /// Port number `port`.
    #[inline(always)]
    pub fn port(&self, port: u16) -> Option<&PortView> {
        self.ports.get(usize::from(port))?.as_ref()
    }
}
