//! Places for guests' rings that will start together: their workers are chosen, and their kicks registered, before. In an upgrade
//! rings stand still while they start, and for many guests these two take longest.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crosspoint_engine::worker::WorkerLink;

use super::attachment::Attachment;
use super::{Dataplane, placement};

/// A place for a ring that will start. Dropped without that, it is given up.
pub(crate) struct Place {
    pub(super) worker: usize,
    link: Arc<WorkerLink>,
    kick: Option<OwnedFd>,
    /// Whether the kick wakes the worker.
    has_wakeup: bool,
}

impl Place {
    /// The kick, and whether it is registered with the worker.
    pub(super) fn take(mut self) -> (Option<OwnedFd>, bool) {
        (self.kick.take(), self.has_wakeup)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(kick) = self.kick.as_ref().filter(|_| self.has_wakeup) {
            let _ = self.link.waker.unregister(kick);
        }
    }
}

impl Dataplane {
    /// Finds a place for queue `queue` of a guest whose ring's memory is on `node`. `None` if the port is disabled or gone: a place
    /// is found when it is enabled.
    pub(crate) fn place_ahead(
        &self,
        attachment: &Attachment,
        queue: u16,
        kick: Option<OwnedFd>,
        node: Option<u32>,
    ) -> Option<Place> {
        let number = attachment.number();
        let mut state = self.lock();
        let candidates = state.ahead.take();
        let mut candidates = candidates.unwrap_or_else(|| self.candidates(&state));
        let port = state.ports.get(usize::from(number))?.as_ref()?;
        let options = &port.options;
        let busy_max = self.options.balance.busy_permille_max;
        let worker = options
            .worker
            .unwrap_or_else(|| placement::guest_worker(&candidates, node, busy_max));
        candidates[worker].streams += 1;
        candidates[worker].fresh += 1;
        let is_disabled = options.disabled;
        state.ahead = Some(candidates);
        drop(state);
        if is_disabled {
            return None;
        }
        let link = self.links[worker].clone();
        let registered = kick
            .as_ref()
            .map(|kick| link.waker.register_kick((number, queue), kick));
        Some(Place {
            worker,
            link,
            has_wakeup: matches!(registered, Some(Ok(()))),
            kick,
        })
    }
}
