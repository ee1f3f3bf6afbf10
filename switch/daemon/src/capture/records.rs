//! Converts a tap's slots to records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_engine::observe::tap;
use crosspoint_engine::observe::tap::Fate;
use crosspoint_engine::observe::tap::Slot;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_frame as frame;
use crosspoint_model::capture::{Direction, Offload, Record, Verdict};

use super::watch::Watch;
use crate::dataplane::Dataplane;

/// How long the ports' names are cached: ports come and go.
const NAMES_AGE_MAX: Duration = Duration::from_millis(100);

/// A tap that is removed when this is dropped.
pub(super) struct Tapped<'f> {
    dataplane: &'f Dataplane,
    tap: Arc<Tap>,
}

impl Tapped<'_> {
    /// `None` when there are too many taps already.
    pub(super) fn new(
        dataplane: &Dataplane,
        wanted: tap::Wanted,
        slots: usize,
    ) -> Option<Tapped<'_>> {
        let tap = dataplane.add_tap(wanted, slots)?;
        Some(Tapped { dataplane, tap })
    }

    /// Removes the tap; frames that it has recorded can still be read.
    pub(super) fn end(self) -> Arc<Tap> {
        self.tap.clone()
    }

    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }
}

impl Drop for Tapped<'_> {
    fn drop(&mut self) {
        self.dataplane.remove_tap(&self.tap);
    }
}

/// Knows the ports' names and the time.
pub(super) struct Scribe<'f> {
    dataplane: &'f Dataplane,
    names: Vec<Option<String>>,
    asked: Instant,
    watch: Watch,
}

impl Scribe<'_> {
    pub(super) fn new(dataplane: &Dataplane) -> Scribe<'_> {
        Scribe {
            dataplane,
            names: dataplane.port_names(),
            asked: Instant::now(),
            watch: Watch::new(dataplane.clock()),
        }
    }

    /// Updates names and clocks; called before each batch of slots.
    pub(super) fn tend(&mut self) {
        self.watch.tend();
        if self.asked.elapsed() > NAMES_AGE_MAX {
            self.names = self.dataplane.port_names();
            self.asked = Instant::now();
        }
    }

    pub(super) fn name(&self, port: u16) -> String {
        let name = self.names.get(usize::from(port)).cloned().flatten();
        name.unwrap_or_else(|| format!("#{port}"))
    }

    pub(super) fn time_ns(&self, tsc: u64) -> u64 {
        self.watch.ns(tsc)
    }

    /// A slot's record, without the frame's bytes.
    pub(super) fn record(&self, slot: &Slot, missed: u64) -> Record {
        Record {
            time_ns: self.time_ns(slot.tsc),
            port: self.name(slot.port),
            queue: slot.queue,
            worker: slot.worker,
            serial: slot.serial,
            direction: match slot.direction {
                tap::Direction::Received => Direction::Received,
                tap::Direction::Sent => Direction::Sent,
            },
            verdict: self.verdict(slot.fate),
            len: slot.len,
            offload: offload(&slot.offload),
            missed,
            bytes: Vec::new(),
        }
    }

    pub(super) fn verdict(&self, fate: Fate) -> Verdict {
        match fate {
            Fate::Port(port) => Verdict::Port(self.name(port)),
            Fate::Flood => Verdict::Flood,
            Fate::Delivered => Verdict::Delivered,
            Fate::Dropped(reason) => Verdict::Dropped(reason.label().to_owned()),
        }
    }
}

pub(super) fn offload(of: &frame::Offload) -> Option<Offload> {
    let is_needed = of.needs_csum || of.gso_type != 0;
    is_needed.then_some(Offload {
        checksum: of.needs_csum.then_some((of.csum_start, of.csum_offset)),
        gso_type: of.gso_type,
        gso_size: of.gso_size,
    })
}
