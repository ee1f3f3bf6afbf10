//! The way out of quarantine: the guest resets its device, and after a pause its rings may run again.
//!
//! A boot loader's driver that makes a mistake must not cost the system that it loads its network. And a guest that means
//! it must not gain by it: the pause doubles with each time, so that what a fault costs the switch is paid ever more seldom.

use std::time::{Duration, Instant};

use crosspoint_engine::view::Egress;

use super::Device;
use crate::fabric::{PortChange, PortState};

/// The pause after a device's first reset in quarantine; it doubles with each quarantine, up to the last.
pub const QUARANTINE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub const QUARANTINE_LAST: Duration = Duration::from_secs(60);
/// A guest that has been good for so long begins with the first pause again.
const FORGIVEN: Duration = Duration::from_secs(600);

/// How often a guest has been let in again, and when it will be next. Of one front end: the next begins anew.
#[derive(Default)]
pub(super) struct Pause {
    /// How long the last one was.
    last: Option<Duration>,
    /// When the one at hand ends: the device has been reset.
    until: Option<Instant>,
    /// When the last one ended.
    let_in: Option<Instant>,
}

impl Pause {
    /// The device was reset in quarantine. Returns how long it stays there, unless that was known already.
    fn begin(&mut self, now: Instant) -> Option<Duration> {
        if self.until.is_some() {
            return None;
        }
        let was_good = |since: Instant| now.duration_since(since) >= FORGIVEN;
        let length = match self.last {
            Some(last) if !self.let_in.is_some_and(was_good) => (2 * last).min(QUARANTINE_LAST),
            _ => QUARANTINE_FIRST,
        };
        self.last = Some(length);
        self.until = Some(now + length);
        Some(length)
    }

    /// How long the device stays where it is; `None` if it was not reset.
    fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(now))
    }

    fn end(&mut self, now: Instant) {
        (self.until, self.let_in) = (None, Some(now));
    }
}

impl Device {
    /// The device was reset, or a ring of it stopped: if none runs any more that is a reset too, since QEMU says no more of a
    /// guest that boots again where it cannot set the device's status.
    pub(super) fn note_reset(&mut self) {
        if self.vrings.iter().any(|vring| vring.running) {
            return;
        }
        // What workers found of the rings that have just stopped is what this reset ends, and not the next rings' fault.
        self.fabric.settle_faults();
        if self.port_state() != PortState::Quarantined {
            return;
        }
        let Some(pause) = self.pause.begin(Instant::now()) else {
            return;
        };
        if self.has_lost_memory() {
            let text = "it has been reset since, and is let in again when its front end gives it memory that is there";
            tracing::info!(port = self.name, "{text}");
            self.fabric.add_detail(&self.attachment, text);
            return;
        }
        let pause_s = pause.as_secs();
        tracing::info!(
            port = self.name,
            pause_s,
            "the device has been reset: it is let in again after a pause"
        );
        let text = format!("it has been reset since, and is let in again after {pause_s} s");
        self.fabric.add_detail(&self.attachment, &text);
    }

    /// For how long nothing happens to a device that has been reset in quarantine; `None` if it is not there, or will not be
    /// let in whatever time passes.
    pub(in super::super) fn quarantine_left(&self) -> Option<Duration> {
        let left = self.pause.left(Instant::now())?;
        (!self.has_lost_memory()).then_some(left)
    }

    /// Lets the device in again, if its pause is over.
    pub(in super::super) fn end_quarantine(&mut self) {
        if self.quarantine_left() != Some(Duration::ZERO) {
            return;
        }
        self.pause.end(Instant::now());
        if self.port_state() != PortState::Quarantined {
            return;
        }
        tracing::info!(port = self.name, "let in again");
        self.change(PortChange {
            egress: Some(Egress::Down),
            state: Some((PortState::Connected, self.setting_up())),
            ..PortChange::default()
        });
        self.reconcile();
    }

    /// Whether the memory that the front end gave is not there any more. No reset brings it back; a new table does.
    fn has_lost_memory(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|cell| cell.get().is_lost())
            || self
                .inflight
                .as_ref()
                .is_some_and(|region| region.is_lost())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of quarantines that follow each other, each `between` after the last one's end.
    fn pauses(count: usize, between: Duration) -> Vec<u64> {
        let (mut pause, mut now) = (Pause::default(), Instant::now());
        let one = |_| {
            let length = pause.begin(now).expect("it is new");
            assert_eq!(pause.begin(now), None, "once for each quarantine");
            assert_eq!(pause.left(now), Some(length));
            now += length;
            assert_eq!(pause.left(now), Some(Duration::ZERO));
            pause.end(now);
            assert_eq!(pause.left(now), None);
            now += between;
            length.as_secs()
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn pauses_double_up_to_the_last_and_begin_anew_for_a_guest_that_was_good() {
        let soon = Duration::from_secs(1);
        assert_eq!(pauses(9, soon), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pauses(3, FORGIVEN), [1, 1, 1]);
    }
}
