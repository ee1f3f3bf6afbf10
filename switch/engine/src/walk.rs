//! Chooses which of its streams a worker polls.
//!
//! Most guests send nothing most of the time. A stream that was empty for many polls in a row is *quiet*: it is not
//! polled; the worker only reads the 16 bits of its ring that the driver changes first ([`Glances`]). All quiet streams
//! are checked together, so that their cache misses overlap: in each iteration while there is nothing else to do, and
//! every [`LOOK`] otherwise. So a quiet guest's first frame waits at most that long, plus the bursts before it.

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
        }
    }

    /// Restarts with `streams` streams, all polled. There must be room for them.
    pub(crate) fn restart(&mut self, streams: usize) {
        self.quiet.clear();
        self.glances.clear();
        self.served.clear();
        self.polled.clear();
        self.polled.extend(0..streams as u32);
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
