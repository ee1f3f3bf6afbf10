//! What becomes of a port with more addresses than its `mac_limit`.

use crosspoint_config::MacLimitAction;

use super::{Dataplane, Port, State};

impl Port {
    /// Puts into use what becomes of frames from addresses beyond the limit. Those of before do not count.
    pub(super) fn set_mac_limit_action(&mut self, action: MacLimitAction) {
        self.options.mac_limit_action = action;
        let quota = &self.view.quota;
        quota.set_drops(action != MacLimitAction::Flood);
        self.addresses_refused = quota.events.addresses_refused.get();
    }
}

impl Dataplane {
    /// Quarantines the guests that have sent from more addresses than their ports may have, where that is wanted.
    pub(super) fn quarantine_over_limit(&self, state: &mut State) {
        let mut over = Vec::new();
        for (number, port) in (0..).zip(&mut state.ports) {
            let Some(port) = port else { continue };
            let refused = port.view.quota.events.addresses_refused.get();
            let is_more = std::mem::replace(&mut port.addresses_refused, refused) < refused;
            if is_more && port.options.mac_limit_action == MacLimitAction::Quarantine {
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
