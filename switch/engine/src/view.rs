//! What workers know of the switch: an immutable picture, replaced as a whole.

use std::sync::Arc;

use crosspoint_frame::TagOp;
use crosspoint_packet::FlowHasher;
use crosspoint_vring::GuestRx;

use crate::counters::PortCounters;
use crate::fdb::{Fdb, Quota};
use crate::vlan::{NO_VLAN, VlanPolicy};

/// Where frames for a port go.
#[derive(Clone)]
pub enum Egress {
    /// Nobody is there.
    Down,
    /// A guest that broke the rules.
    Quarantined,
    /// A guest's receive queues; at least one.
    Guest(Arc<[Arc<GuestRx>]>),
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
}

impl PortView {
    /// Whether frames for this port spread over several queues, by flow.
    #[inline(always)]
    pub fn spreads(&self) -> bool {
        matches!(&self.egress, Egress::Guest(queues) if queues.len() > 1)
    }

    /// What becomes of a frame's tag when it leaves through this port.
    #[inline(always)]
    pub fn tag_op(&self, vlan: u16, tagged: bool) -> TagOp {
        // A priority tag outside every VLAN passes through, as all tags do there.
        if vlan == NO_VLAN {
            return TagOp::Keep;
        }
        match (tagged, self.vlan.sends_tagged(vlan)) {
            (false, true) => TagOp::Push,
            (true, false) => TagOp::Pop,
            _ => TagOp::Keep,
        }
    }
}

/// The picture.
pub struct View {
    /// Ports by number; numbers without a port are empty.
    pub ports: Box<[Option<PortView>]>,
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// Chooses a guest's receive queue.
    pub flows: FlowHasher,
}

impl View {
    /// Port number `port`.
    #[inline(always)]
    pub fn port(&self, port: u16) -> Option<&PortView> {
        self.ports.get(usize::from(port))?.as_ref()
    }
}
