//! Chooses which of its streams a worker polls.
//!
//! Most guests send nothing most of the time. A stream that was empty for many polls in a row is *quiet*: it is not
//! polled; the worker only reads the 16 bits of its ring that the driver changes first ([`Glances`]). All quiet streams
//! are checked together, so that their cache misses overlap: in each iteration while there is nothing else to do, and
//! every [`LOOK`] otherwise. So a quiet guest's first frame waits at most that long, plus the bursts before it.
//!
//! A stream whose rate allows nothing for a while is *set aside* until then. So many guests that wait for credit cost a
//! worker nothing but the check for the first of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crosspoint_vring::Glances;

use crate::stream::Stream;

/// Interval between two checks of quiet streams while other streams have frames.
pub const LOOK: Duration = Duration::from_micros(16);

/// The streams of one worker, by number: polled ones and quiet ones.
pub(crate) struct Walk {
    polled: Vec<u32>,
    quiet: Vec<u32>,
    /// Glances of the quiet streams' rings, in the same order.
    glances: Glances,
    /// Streams that had a burst, or gave buffers back, since guests were last called.
    served: Vec<u32>,
    looked_at: u64,
    /// Streams that are set aside: until when, cycles, and their numbers; the soonest first.
    waiting: BinaryHeap<Reverse<(u64, u32)>>,
    /// By number: whether a stream is among them.
    is_waiting: Vec<bool>,
    /// Whether some of them are still among the polled ones.
    has_new: bool,
}

impl Walk {
    /// Creates a walk over no streams, with room for `streams`.
    pub(crate) fn new(streams: usize) -> Walk {
        Walk {
            polled: Vec::with_capacity(streams),
            quiet: Vec::with_capacity(streams),
            glances: Glances::with_capacity(streams),
            served: Vec::with_capacity(streams),
            looked_at: 0,
            waiting: BinaryHeap::with_capacity(streams),
            is_waiting: Vec::with_capacity(streams),
            has_new: false,
        }
    }

    /// Restarts with `streams` streams, all polled. There must be room for them.
    pub(crate) fn restart(&mut self, streams: usize) {
        self.quiet.clear();
        self.glances.clear();
        self.served.clear();
        self.polled.clear();
        self.polled.extend(0..streams as u32);
        self.waiting.clear();
        self.is_waiting.clear();
        self.is_waiting.resize(streams, false);
        self.has_new = false;
    }

    /// Notes that a stream need not be polled before `due`, cycles.
    pub(crate) fn note_waiting(&mut self, number: u32, due: u64) {
        let is_waiting = self.is_waiting.get_mut(number as usize);
        if let Some(is_waiting) = is_waiting.filter(|is_waiting| !**is_waiting) {
            // Each stream is added at most once, so there is room: no allocation.
            self.waiting.push(Reverse((due, number)));
            (*is_waiting, self.has_new) = (true, true);
        }
    }

    /// Takes the streams noted as waiting out of the polled ones, at the end of an iteration.
    #[inline(always)]
    pub(crate) fn set_aside(&mut self) {
        if self.has_new {
            self.drop_waiting();
        }
    }

    #[cold]
    fn drop_waiting(&mut self) {
        self.has_new = false;
        let is_waiting = &self.is_waiting;
        let waits = |number: u32| is_waiting.get(number as usize) == Some(&true);
        self.polled.retain(|number| !waits(*number));
    }

    /// Polls the streams again that have waited until `now`, cycles.
    #[inline(always)]
    pub(crate) fn resume(&mut self, now: u64) {
        while let Some(Reverse((due, number))) = self.waiting.peek().copied()
            && due <= now
        {
            self.waiting.pop();
            if let Some(is_waiting) = self.is_waiting.get_mut(number as usize) {
                *is_waiting = false;
            }
            // Each stream is in one of the lists, so there is room: no allocation.
            self.polled.push(number);
        }
    }

    /// Returns the place of stream `first` in the order of polled streams, 0 if it is not polled, and the number of
    /// polled streams.
    #[inline(always)]
    pub(crate) fn order(&self, first: Option<u32>) -> (usize, usize) {
        let place = |first| self.polled.iter().position(|number| *number == first);
        (first.and_then(place).unwrap_or(0), self.polled.len())
    }

    /// Returns the stream at a place in that order.
    #[inline(always)]
    pub(crate) fn at(&self, place: usize) -> Option<u32> {
        self.polled.get(place).copied()
    }

    /// Checks the quiet streams at time `now`, if `interval` cycles have passed or the worker `is_idle`. Returns whether
    /// it did.
    #[inline(always)]
    pub(crate) fn look(&mut self, now: u64, interval: u64, is_idle: bool) -> bool {
        let is_due = is_idle || now.wrapping_sub(self.looked_at) >= interval;
        if self.quiet.is_empty() || !is_due {
            return false;
        }
        self.looked_at = now;
        self.look_at_all();
        true
    }

    #[inline(never)]
    fn look_at_all(&mut self) {
        if self.glances.have_changed() {
            self.wake();
        }
    }

    #[cold]
    fn wake(&mut self) {
        // Backwards: the stream that replaces a removed one has already been checked.
        for place in (0..self.quiet.len()).rev() {
            if self.glances.has_changed(place) {
                self.glances.swap_remove(place);
                // Each stream is in one of the lists, so there is room: no allocation.
                self.polled.push(self.quiet.swap_remove(place));
            }
        }
    }

    /// Moves streams that have become quiet out of the polled ones.
    #[cold]
    pub(crate) fn settle(&mut self, streams: &[Stream]) {
        let Walk {
            polled,
            quiet,
            glances,
            ..
        } = self;
        polled.retain(|number| {
            let stream = streams.get(*number as usize);
            let Some(glance) = stream.and_then(Stream::glance_if_quiet) else {
                return true;
            };
            // There is room here too.
            glances.push(glance);
            quiet.push(*number);
            false
        });
    }

    /// Notes that a stream had a burst or gave buffers back: once per iteration.
    #[inline(always)]
    pub(crate) fn note_served(&mut self, number: u32) {
        // Each stream is added at most once, so there is room: no allocation.
        self.served.push(number);
    }

    /// Removes and returns the next such stream.
    #[inline(always)]
    pub(crate) fn next_served(&mut self) -> Option<u32> {
        self.served.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each stream is polled in each iteration, except from the one after it was noted as waiting until its time.
        #[test]
        fn a_waiting_stream_is_polled_neither_before_its_time_nor_left_out_after_it(
            waits in prop::collection::vec((0u32..8, 1u64..50), 1..200),
        ) {
            let mut walk = Walk::new(8);
            walk.restart(8);
            let mut due = [0; 8];
            for (now, (number, wait)) in (0u64..).zip(waits) {
                walk.resume(now);
                let mut polled: Vec<u32> = (0..walk.order(None).1).filter_map(|place| walk.at(place)).collect();
                polled.sort_unstable();
                let expected: Vec<u32> = (0..8).filter(|number| due[*number as usize] <= now).collect();
                prop_assert_eq!(&polled, &expected);
                if polled.contains(&number) {
                    due[number as usize] = now + wait;
                    walk.note_waiting(number, now + wait);
                }
                walk.set_aside();
            }
            walk.restart(8);
            prop_assert_eq!(walk.order(None).1, 8);
        }
    }
}
