//! Which of its streams a worker polls.
//!
//! Most guests send nothing most of the time. A stream that was empty for many polls in a row is *quiet*: it is not
//! polled, the worker only looks at the 16 bits of its ring that the driver changes first ([`Glances`]). All quiet
//! streams are looked at in one go, so that their cache misses overlap: in each iteration while there is nothing else to
//! do, and every [`LOOK`] otherwise. So a quiet guest's first frame waits no longer than that and the bursts before it.

use std::time::Duration;

use crosspoint_vring::Glances;

use crate::stream::Stream;

/// Between two looks at quiet streams, while others have frames.
pub const LOOK: Duration = Duration::from_micros(16);

/// The streams of one worker, by their numbers: those that are polled and those that are looked at.
pub(crate) struct Walk {
    polled: Vec<u32>,
    quiet: Vec<u32>,
    /// Looks at the rings of the quiet ones, each at its place in the list.
    glances: Glances,
    /// Streams that have had a burst, or given something back, since guests were last called.
    served: Vec<u32>,
    looked_at: u64,
}

impl Walk {
    /// A walk over no streams, with room for so many.
    pub(crate) fn new(streams: usize) -> Walk {
        Walk {
            polled: Vec::with_capacity(streams),
            quiet: Vec::with_capacity(streams),
            glances: Glances::with_capacity(streams),
            served: Vec::with_capacity(streams),
            looked_at: 0,
        }
    }

    /// Polls all of so many streams from now on: there is room for as many.
    pub(crate) fn restart(&mut self, streams: usize) {
        self.quiet.clear();
        self.glances.clear();
        self.served.clear();
        self.polled.clear();
        self.polled.extend(0..streams as u32);
    }

    /// The streams that are polled, from number `first` on if it is one of them.
    #[inline(always)]
    pub(crate) fn order(&self, first: Option<u32>) -> (usize, usize) {
        let place = |first| self.polled.iter().position(|number| *number == first);
        (first.and_then(place).unwrap_or(0), self.polled.len())
    }

    /// The stream at a place in that order.
    #[inline(always)]
    pub(crate) fn at(&self, place: usize) -> Option<u32> {
        self.polled.get(place).copied()
    }

    /// Looks at quiet streams at time `now`, if that is due after `interval` cycles or the worker `is_idle`. Returns whether
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
        // From the last on: what takes the place of one that is taken out has been looked at.
        for place in (0..self.quiet.len()).rev() {
            if self.glances.has_changed(place) {
                self.glances.swap_remove(place);
                // Each stream is in one of the lists, so there is room: no allocation.
                self.polled.push(self.quiet.swap_remove(place));
            }
        }
    }

    /// Takes streams that have become quiet from those that are polled.
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

    /// Notes that a stream has had a burst, or has given something back: once in an iteration.
    #[inline(always)]
    pub(crate) fn note_served(&mut self, number: u32) {
        // Each stream at most once, so there is room: no allocation.
        self.served.push(number);
    }

    /// The next of those, which is forgotten.
    #[inline(always)]
    pub(crate) fn next_served(&mut self) -> Option<u32> {
        self.served.pop()
    }
}
