//! What becomes of a port with more addresses than its `mac_limit`.

use crosspoint_config::MacLimitAction;
use crosspoint_packet::DropReason;

use super::{Dataplane, Port, State};

/// Dropped frames after which a guest is quarantined. A single one may be an accident: two workers that learn an address at
/// the same time both count it for a moment.
const DROPS_MIN: u64 = 2;

impl Port {
    /// Puts into use what becomes of frames from addresses beyond the limit. Those of before do not count.
    pub(super) fn set_mac_limit_action(&mut self, action: MacLimitAction) {
        self.options.mac_limit_action = action;
        self.view.quota.set_drops(action != MacLimitAction::Flood);
        self.forgive_mac_limit();
    }

    /// Forgets the frames that were dropped so far: the guest that sent them is gone.
    pub(super) fn forgive_mac_limit(&mut self) {
        self.mac_limit_drops = self.over_mac_limit();
    }

    /// The number of its frames that were dropped because it has too many addresses.
    fn over_mac_limit(&self) -> u64 {
        let counters = &self.view.counters;
        let queues = 0..counters.queues();
        let reason = DropReason::MacLimit as usize;
        let of_queue = queues.map(|queue| counters.sum(queue, |at| &at.drops[reason]));
        of_queue.sum()
    }
}

impl Dataplane {
    /// Quarantines the guests that have sent from more addresses than their ports may have, where that is wanted.
    pub(super) fn quarantine_over_limit(&self, state: &mut State) {
        let wanted = |port: &&Port| port.options.mac_limit_action == MacLimitAction::Quarantine;
        let mut over = Vec::new();
        for (number, port) in (0..).zip(&state.ports) {
            let Some(port) = port.as_ref().filter(wanted) else {
                continue;
            };
            if port.over_mac_limit() >= port.mac_limit_drops + DROPS_MIN {
                over.push((number, port.options.mac_limit));
            }
        }
        for (number, limit) in over {
            let why = format!("it sent from more addresses than its mac_limit, {limit}");
            self.quarantine_locked(state, number, &why);
        }
    }

    /// Sets whether ARP requests and neighbour solicitations for a bound address go to its port alone.
    pub fn set_neighbor_suppression(&self, suppresses: bool) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.suppresses, suppresses) != suppresses {
            drop(self.publish(&mut state, Vec::new()));
        }
    }
}
