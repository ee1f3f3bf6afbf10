//! Security groups: which packets a guest may send and get.
//!
//! Each port with groups has a [`GroupPolicy`]: compiled rules ([`rules`]), and a zone in the table of connections
//! ([`connections`]). What the guest sends is decided on before the look-up of its destination, what is sent to it between
//! look-up and delivery ([`stage`]). A packet of a known connection passes; the first packet of another one passes if a rule
//! allows it.
//!
//! What passes in any case ([`exempt`]): ARP, neighbour discovery, the reports of listeners to groups, a DHCP client's requests
//! and the answers to them, and link-local control frames. Which of these a guest may send is up to port security, the guard
//! against DHCP servers and routers, and `forward_control`.

mod accounting;
pub mod connections;
#[cfg(not(loom))]
mod exempt;
mod export;
mod generations;
mod key;
mod links;
mod migrate;
mod numbers;
mod ranges;
mod rate;
pub mod rules;
pub mod state;
pub mod timeouts;
pub mod zone;

#[cfg(not(loom))]
mod arrival;
#[cfg(not(loom))]
mod explain;
#[cfg(not(loom))]
mod judge;
#[cfg(not(loom))]
mod packet;
#[cfg(not(loom))]
mod recent;
#[cfg(not(loom))]
pub(crate) mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use accounting::{Accounting, AccountingOptions, Counts, FlowEnd, FlowEvent, FlowRecord};
pub use connections::{Connection, Connections, Swept};
#[cfg(not(loom))]
pub use explain::Judgement;
pub use export::{EXPORTED_LEN, Exported};
pub use generations::GENERATIONS_MAX;
pub use links::{LinkParts, TcpFlags};
pub use migrate::Arrived;
pub use rules::{Direction, Rule, RuleTable, TooComplex};
pub use state::Phase as ConnectionState;
pub use timeouts::Timeouts;
pub use zone::Zone;

impl std::fmt::Debug for GroupPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupPolicy")
            .field("zone", &self.zone)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The groups of one port.
#[derive(Clone)]
pub struct GroupPolicy {
    rules: Arc<RuleTable>,
    zone: Arc<Zone>,
    generation: u8,
    keeps: bool,
    /// Whether packets may belong to connections.
    tracks: bool,
    /// No other policy has it, and none has 0.
    number: u32,
}

/// Number of the last policy.
static LAST_POLICY: AtomicU32 = AtomicU32::new(0);

impl GroupPolicy {
    /// Creates the policy of a port. `generation` is another one whenever the port's rules change: connections of earlier
    /// generations are compared with the rules again when their next packet comes, unless `keeps` is set.
    pub fn new(rules: Arc<RuleTable>, zone: Arc<Zone>, generation: u8, keeps: bool) -> GroupPolicy {
        zone.set_generation(generation);
        GroupPolicy {
            tracks: keeps || rules.tracks(),
            // They would have to change a hundred times a second for a year to wrap.
            number: LAST_POLICY.fetch_add(1, Ordering::Relaxed) + 1,
            rules,
            zone,
            generation,
            keeps,
        }
    }

    /// Returns the compiled rules.
    pub fn rules(&self) -> &Arc<RuleTable> {
        &self.rules
    }

    /// Returns the zone.
    pub fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }
}
