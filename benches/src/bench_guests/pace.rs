//! Times at which frames are due.

/// Frames of one direction at a steady rate from a start on; or none at all.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Time stamp of frame 0, moved by postponements.
    start: f64,
    /// Cycles between two frames.
    cycles: f64,
    /// Frames that may wait for room in a full ring; the oldest beyond these are lost.
    backlog: u64,
    /// Frames due so far.
    due: u64,
    /// Of these, those sent or lost.
    gone: u64,
}

impl Pace {
    /// Frame 0 is due `offset` cycles after `start`, and then one every `cycles`.
    pub fn new(start: u64, offset: f64, cycles: f64, backlog: u64) -> Self {
        Self {
            start: start as f64 + offset,
            cycles,
            backlog,
            due: 0,
            gone: 0,
        }
    }

    /// No frame is ever due.
    pub fn unpaced() -> Self {
        Self::new(0, 0.0, 0.0, 0)
    }

    /// Frames to send at time `now`.
    #[inline(always)]
    pub fn owed(&mut self, now: u64) -> usize {
        let since = now as f64 - self.start;
        if since >= 0.0 {
            self.due = self.due.max((since / self.cycles) as u64 + 1);
        }
        self.left()
    }

    /// Frames that were due and are not sent yet.
    #[inline(always)]
    pub fn left(&self) -> usize {
        (self.due - self.gone) as usize
    }

    /// Records this many frames as sent.
    #[inline(always)]
    pub fn sent(&mut self, frames: u32) {
        self.gone += u64::from(frames);
    }

    /// The ring is full, or the trial is over: frames beyond the backlog are lost, as at a full queue of an interface.
    #[inline(always)]
    pub fn turn_away(&mut self) {
        self.gone = self.gone.max(self.due.saturating_sub(self.backlog));
    }

    /// The time at which the next frame to send is due.
    #[inline(always)]
    pub fn first_due(&self) -> u64 {
        (self.start + self.gone as f64 * self.cycles) as u64
    }

    /// Postpones all frames that are not sent yet by this many cycles.
    pub fn put_off(&mut self, cycles: u64) {
        self.start += cycles as f64;
    }

    /// Cycles between two frames.
    pub fn cycles_per_frame(&self) -> f64 {
        self.cycles
    }

    /// Frames due so far.
    pub fn due(&self) -> u64 {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_due_once_however_rarely_one_looks() {
        for step in [1, 7, 100, 1000] {
            let mut pace = Pace::new(5000, 0.0, 2.5, u64::MAX);
            let mut sent = 0;
            for now in (5000..15_000).step_by(step).chain([15_000]) {
                let owed = pace.owed(now) as u32;
                sent += owed;
                pace.sent(owed);
            }
            assert_eq!((sent, pace.due()), (4001, 4001), "step {step}");
        }
    }

    #[test]
    fn a_frame_that_waited_is_due_when_it_was() {
        let mut pace = Pace::new(1000, 0.0, 10.0, 256);
        assert_eq!((pace.owed(1095), pace.first_due()), (10, 1000));
        pace.sent(4);
        assert_eq!((pace.owed(1095), pace.first_due()), (6, 1040));
    }

    #[test]
    fn what_exceeds_the_backlog_is_lost_at_a_full_ring_only_and_was_due() {
        let mut pace = Pace::new(0, 0.0, 1.0, 8);
        assert_eq!((pace.owed(99), pace.first_due()), (100, 0));
        pace.turn_away();
        assert_eq!((pace.owed(99), pace.first_due()), (8, 92));
        assert_eq!(pace.due(), 100);
    }

    #[test]
    fn nothing_is_due_while_the_generator_did_not_run() {
        let mut pace = Pace::new(0, 0.0, 10.0, 256);
        let owed = pace.owed(100);
        pace.sent(owed as u32);
        pace.put_off(5000);
        assert_eq!(pace.owed(5105), 0);
        assert_eq!((pace.owed(5110), pace.first_due()), (1, 5110));
    }
}
