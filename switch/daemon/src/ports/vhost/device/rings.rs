//! What a device's rings need besides the front end's messages, so that another process of the switch can go on with them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crosspoint_memory::{GuestMemory, Kind};
use crosspoint_vring::{InflightRegion, Ring, RingAddresses, feature};

use super::Device;
use crate::dataplane::numa;
use crate::handover;

impl Device {
    /// Touches the pages of a ring that will start soon, asks for its memory node, and finds its place at a worker: these take
    /// longer than all else when many rings start together.
    pub(super) fn prefault(&mut self, index: usize) {
        let (Some(memory), Some(at)) = (self.memory.clone(), self.vrings[index].addresses) else {
            return;
        };
        let vring = &mut self.vrings[index];
        if let Ok(ring) = Ring::new(memory.clone(), vring.size, at, self.features) {
            // It reads the indices; what it makes of them now does not matter.
            let _ = ring.resume_at(vring.base, false);
        }
        if index % 2 == 1 && vring.started && vring.enabled {
            let node = node_of(memory.get(), at);
            let kick = vring.kick.as_ref().and_then(|kick| kick.try_clone().ok());
            let queue = (index / 2) as u16;
            vring.node = Some(node);
            vring.place = self
                .dataplane
                .place_ahead(&self.attachment, queue, kick, node);
        }
    }

    /// Returns the kick descriptor if it is an eventfd.
    pub(super) fn eventfd(&self, index: u32, kick: OwnedFd) -> Option<OwnedFd> {
        let kind = Kind::of(&kick);
        if kind == Kind::Eventfd {
            return Some(kick);
        }
        tracing::warn!(
            port = self.name,
            "vring {index}: a kick descriptor must be an eventfd, and this is {kind}: it wakes no worker"
        );
        self.attachment.caller.retire(kick);
        None
    }

    /// Makes an inflight region for packed ring `index`, if the front end keeps none for it: otherwise no successor of this
    /// process would know its position after a crash.
    pub(super) fn ensure_inflight(&mut self, index: usize) {
        let packed = self.features.has(feature::RING_PACKED);
        let vring = &self.vrings[index];
        let fits = |own: &OwnInflight| own.ring_size == vring.size;
        let of_front_end = self.inflight.as_ref();
        let of_front_end = of_front_end.and_then(|region| region.queue(index, vring.size, packed));
        if !packed
            || !handover::is_supervised()
            || of_front_end.is_some()
            || vring.own.as_ref().is_some_and(fits)
        {
            return;
        }
        let file = InflightRegion::create(1, vring.size as u16, true).ok();
        let own = file.and_then(|file| OwnInflight::map(file, vring.size));
        // A new one has no position.
        (self.vrings[index].own, self.vrings[index].inherits) = (own, false);
        self.kept.has_changed = true;
    }
}

/// The switch's own inflight region of one packed ring.
pub(super) struct OwnInflight {
    pub(super) file: File,
    pub(super) region: Arc<InflightRegion>,
    ring_size: u32,
}

impl OwnInflight {
    pub(super) fn map(file: File, ring_size: u32) -> Option<OwnInflight> {
        let size = u16::try_from(ring_size).ok()?;
        let len = InflightRegion::len(1, size, true) as u64;
        let region = InflightRegion::map(&file, (0, len), 1, size, true).ok()?;
        Some(OwnInflight {
            file,
            region: Arc::new(region),
            ring_size,
        })
    }
}

/// The memory node of a ring, by its used entries' page or, if that is not there yet, its descriptors'.
pub(super) fn node_of(memory: &GuestMemory, at: RingAddresses) -> Option<u32> {
    let of_area = |address| {
        let at = memory.translate_user(address, 1)?;
        numa::of_page(at.addr())
    };
    [at.used, at.descriptors].into_iter().find_map(of_area)
}
