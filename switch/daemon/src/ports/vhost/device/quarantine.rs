//! The end of a quarantine: the guest resets its device, and after a pause its rings may run again.
//!
//! A faulty driver in a boot loader must not cost the system that it loads its network. And a malicious guest must not
//! gain from resets: the pause doubles each time, so that its faults cost the switch less and less.

use std::time::{Duration, Instant};

use crosspoint_engine::snapshot::Egress;

use super::Device;
use crate::dataplane::{PortChange, PortState};

/// The pause after a device's first reset in quarantine; it doubles with each quarantine, up to [`QUARANTINE_LAST`].
pub const QUARANTINE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub const QUARANTINE_LAST: Duration = Duration::from_secs(60);
/// After this time without a fault, a guest's next pause is the first one again.
const FORGIVEN: Duration = Duration::from_secs(600);

/// The pauses of a device in quarantine. Each front end starts with none.
#[derive(Default)]
pub(super) struct Pause {
    /// Length of the last pause.
    pub(super) last: Option<Duration>,
    /// When the current pause ends; set by the device's reset.
    pub(super) until: Option<Instant>,
    /// When the last pause ended.
    let_in: Option<Instant>,
}

impl Pause {
    /// Begins a pause, after the device was reset in quarantine. Returns its length, unless a pause has begun already.
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

    /// Time left until the pause ends; `None` if the device was not reset.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(now))
    }

    fn end(&mut self, now: Instant) {
        (self.until, self.let_in) = (None, Some(now));
    }
}

impl Device {
    /// Called after a reset of the device or a stop of a ring. If no ring runs any more, that counts as a reset too:
    /// when a guest reboots and QEMU cannot set the device's status, it sends nothing else.
    pub(super) fn note_reset(&mut self) {
        if self.vrings.iter().any(|vring| vring.running) {
            return;
        }
        // The reset ends faults that workers found in the rings that have just stopped; they must not count against the
        // next rings.
        self.dataplane.settle_faults();
        if self.port_state() != PortState::Quarantined {
            return;
        }
        let Some(pause) = self.pause.begin(Instant::now()) else {
            return;
        };
        if self.has_lost_memory() {
            let text = "it has been reset since, and its traffic resumes when its front end provides memory that exists";
            tracing::info!(port = self.name, "{text}");
            self.dataplane.add_detail(&self.attachment, text);
            return;
        }
        let pause_s = pause.as_secs();
        tracing::info!(
            port = self.name,
            pause_s,
            "the device has been reset: its traffic resumes after a pause"
        );
        let text = format!("it has been reset since, and its traffic resumes after {pause_s} s");
        self.dataplane.add_detail(&self.attachment, &text);
    }

    /// Time until a device that was reset in quarantine is readmitted; `None` if it is not in quarantine, or waiting
    /// does not help.
    pub(in super::super) fn quarantine_left(&self) -> Option<Duration> {
        let left = self.pause.left(Instant::now())?;
        (!self.has_lost_memory()).then_some(left)
    }

    /// Readmits the device if its pause is over.
    pub(in super::super) fn end_quarantine(&mut self) {
        if self.quarantine_left() != Some(Duration::ZERO) {
            return;
        }
        self.pause.end(Instant::now());
        if self.port_state() != PortState::Quarantined {
            return;
        }
        tracing::info!(port = self.name, "its traffic resumes");
        self.change(PortChange {
            egress: Some(Egress::Down),
            state: Some((PortState::Connected, self.setting_up())),
            ..PortChange::default()
        });
        self.reconcile();
    }

    /// Whether the memory that the front end gave is lost. A reset does not restore it; a new memory table does.
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

    /// The pauses of consecutive quarantines, each `between` after the previous pause ended.
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
    fn pauses_double_up_to_the_last_and_start_over_for_a_guest_that_was_good() {
        let soon = Duration::from_secs(1);
        assert_eq!(pauses(9, soon), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pauses(3, FORGIVEN), [1, 1, 1]);
    }
}
