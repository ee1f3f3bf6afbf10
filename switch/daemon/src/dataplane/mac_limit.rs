//! What becomes of a port with more addresses than its `mac_limit`.

use std::time::{Duration, Instant};

use crosspoint_config::MacLimitAction;

use super::{Dataplane, Port, State};

/// Refusals within [`WINDOW`] after which a guest is quarantined. A single one may be an accident: two workers that learn an
/// address at the same time, or one that learns while old addresses are removed, count it twice for a moment.
const REFUSALS_MIN: u64 = 3;
const WINDOW: Duration = Duration::from_secs(1);

/// The refusals of a port's addresses that count against its guest.
pub(super) struct Refusals {
    /// When the window began, and how many there had been.
    since: Instant,
    before: u64,
}

impl Refusals {
    pub(super) fn new() -> Refusals {
        Refusals {
            since: Instant::now(),
            before: 0,
        }
    }
}

impl Port {
    /// Puts into use what becomes of frames from addresses beyond the limit. Earlier refusals do not count.
    pub(super) fn set_mac_limit_action(&mut self, action: MacLimitAction) {
        self.options.mac_limit_action = action;
        self.view.quota.set_drops(action != MacLimitAction::Flood);
        self.reset_refusals();
    }

    /// Lets all addresses pass, while some of the port's are about to be removed: these still take the places of others.
    pub(super) fn suspend_mac_limit(&self) {
        self.view.quota.set_drops(false);
    }

    /// Ends that.
    pub(super) fn resume_mac_limit(&mut self) {
        self.set_mac_limit_action(self.options.mac_limit_action);
    }

    /// Forgets the refusals so far: the guest that caused them is gone, or they were not its doing.
    pub(super) fn reset_refusals(&mut self) {
        self.refusals = Refusals {
            since: Instant::now(),
            before: self.view.quota.events.addresses_refused.get(),
        };
    }

    /// Whether the guest has sent from too many addresses within the last second.
    fn is_over_mac_limit(&mut self, now: Instant) -> bool {
        let refused = self.view.quota.events.addresses_refused.get();
        let is_over = refused >= self.refusals.before + REFUSALS_MIN;
        if now.saturating_duration_since(self.refusals.since) >= WINDOW {
            self.reset_refusals();
        }
        is_over
    }
}

impl Dataplane {
    /// Quarantines the guests that have sent from more addresses than their ports may have, where that is wanted.
    pub(super) fn quarantine_over_limit(&self, state: &mut State) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (number, port) in (0..).zip(&mut state.ports) {
            let Some(port) = port else { continue };
            let is_wanted = port.options.mac_limit_action == MacLimitAction::Quarantine;
            if is_wanted && port.is_over_mac_limit(now) {
                over.push((number, port.options.mac_limit));
            }
        }
        for (number, limit) in over {
            let why = format!("it sent from more addresses than its mac_limit, {limit}");
            self.quarantine_locked(state, number, &why);
        }
    }
}
