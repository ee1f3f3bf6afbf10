//! The split ring's three areas in guest memory (virtio 1.2, 2.7), each field read or written
//! once per call, with the memory order the driver's side needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crosspoint_frame::{prefetch_read, prefetch_write};
use thiserror::Error;

use crate::{Glance, GuestMemory, InflightQueue, MemoryCell};

/// Largest ring (virtio 1.2, 2.7: queue size is a power of two up to 32768).
pub const MAX_RING_SIZE: u32 = 32768;

/// Descriptor continues in `next`.
pub(crate) const F_NEXT: u16 = 1;
/// Descriptor is for the device to write.
pub(crate) const F_WRITE: u16 = 2;
/// Descriptor names a table of descriptors.
pub(crate) const F_INDIRECT: u16 = 4;
const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Where SET_VRING_ADDR put the three areas: the front end's own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Why a ring cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RingError {
    /// Not a power of two from 1 to 32768.
    #[error("a ring of {size} entries: the size must be a power of two, at most 32768")]
    Size {
        /// As the front end gave it.
        size: u32,
    },
    /// Not a position in the ring.
    #[error("base {base:#x} names no entry of the ring")]
    Base {
        /// As the front end gave it.
        base: u32,
    },
    /// Not within one memory region.
    #[error("the {area} at {address:#x} is outside the guest's memory")]
    Outside {
        /// Which of the three areas.
        area: &'static str,
        /// The front end's address.
        address: u64,
    },
    /// virtio 1.2, 2.7: 16, 2 and 4 bytes.
    #[error("the {area} at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which of the three areas.
        area: &'static str,
        /// The front end's address.
        address: u64,
        /// What the specification asks for.
        align: usize,
    },
}

/// One descriptor, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// `F_NEXT`, `F_WRITE`, `F_INDIRECT`.
    pub flags: u16,
    /// Index of the next one, with `F_NEXT`.
    pub next: u16,
}

/// A split ring in mapped guest memory. Holds the memory that its areas lie in, so the pointers
/// stay good; buffers are looked up in the memory as it is now.
pub struct SplitRing {
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    mask: u16,
    size: u16,
    event_idx: bool,
    inflight: Option<InflightQueue>,
    memory: Arc<MemoryCell>,
    _areas: Arc<GuestMemory>,
}

// SAFETY: the pointers are into `_areas`, which the ring holds; every access is atomic.
unsafe impl Send for SplitRing {}
// SAFETY: as above.
unsafe impl Sync for SplitRing {}

impl SplitRing {
    /// Checks size, place and alignment of the three areas, once and for all.
    pub fn new(
        memory: Arc<MemoryCell>,
        size: u32,
        at: RingAddresses,
        event_idx: bool,
    ) -> Result<SplitRing, RingError> {
        check_size(size)?;
        let n = u64::from(size);
        let areas = memory.shared();
        let area = |name, address, len, align| find_area(&areas, name, address, len, align);
        // The event fields count even when EVENT_IDX was not negotiated: legacy layouts have them.
        let event = if event_idx { 2 } else { 0 };
        Ok(SplitRing {
            descriptors: area("descriptor table", at.descriptors, 16 * n, 16)?,
            available: area("available ring", at.available, 4 + 2 * n + event, 2)?,
            used: area("used ring", at.used, 4 + 8 * n + event, 4)?,
            mask: (size - 1) as u16,
            size: size as u16,
            event_idx,
            inflight: None,
            memory,
            _areas: areas.clone(),
        })
    }

    /// Notes where the ring stands, from `used` on.
    pub(crate) fn track(&mut self, inflight: InflightQueue, used: u16) {
        inflight.begin_split(used);
        self.inflight = Some(inflight);
    }

    /// Notes the used index for a successor, if anybody wants to know.
    #[inline(always)]
    pub(crate) fn note(&self, used: u16) {
        if let Some(inflight) = &self.inflight {
            inflight.note_split(used);
        }
    }

    /// Entries.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that the ring and its buffers lie in.
    #[inline(always)]
    pub fn memory(&self) -> &GuestMemory {
        self.memory.get()
    }

    /// Marks what was written of the used ring, for positions `from..to`, if a log wants to
    /// know: the entries, the index, and the flags and event beside them.
    #[inline(always)]
    pub(crate) fn mark_used(&self, memory: &GuestMemory, from: u16, to: u16) {
        if memory.log().is_some() {
            self.mark_entries(memory, from, to);
        }
    }

    #[cold]
    fn mark_entries(&self, memory: &GuestMemory, from: u16, to: u16) {
        memory.mark(self.used, 4);
        let count = usize::from(to.wrapping_sub(from)).min(self.size.into());
        let first = usize::from(from & self.mask);
        // The entries up to the ring's end, and those from its beginning on.
        let before = count.min(usize::from(self.size) - first);
        memory.mark(self.used.wrapping_add(4 + 8 * first), 8 * before);
        if count > before {
            memory.mark(self.used.wrapping_add(4), 8 * (count - before));
        }
    }

    #[inline(always)]
    fn u16_at(&self, area: *mut u8, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass an area of this ring and an even offset within the length that
        // `new` checked for it; areas are at least 2-aligned and live as long as `self`.
        unsafe { AtomicU16::from_ptr(area.add(offset).cast()) }
    }

    /// How far the driver has offered. Acquire: what the entries up to it say is visible.
    #[inline(always)]
    pub fn avail_index(&self) -> u16 {
        self.u16_at(self.available, 2).load(Ordering::Acquire)
    }

    /// A look at whether the driver offers more than up to `at`; `None` if it does now.
    pub(crate) fn glance(&self, at: u16) -> Option<Glance> {
        let glance = Glance::new(self.u16_at(self.available, 2), u16::MAX, at, &self._areas);
        (!glance.has_changed()).then_some(glance)
    }

    /// Head descriptor at position `at` (any number: taken modulo the ring's size).
    #[inline(always)]
    pub fn avail_entry(&self, at: u16) -> u16 {
        let slot = usize::from(at & self.mask);
        self.u16_at(self.available, 4 + 2 * slot)
            .load(Ordering::Relaxed)
    }

    /// Descriptor `index` of the ring's own table; `None` outside it.
    #[inline(always)]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: index < size, so 16 bytes within the table that `new` checked; 16-aligned.
        Some(unsafe { read_descriptor(self.descriptors.add(16 * usize::from(index))) })
    }

    /// Descriptor `index` of an indirect table of `count` entries at host address `table`.
    ///
    /// # Safety
    /// `table` must come from [`GuestMemory::translate`] of this ring's memory with a length of
    /// at least `16 * count` bytes.
    pub(crate) unsafe fn indirect(
        &self,
        table: *mut u8,
        count: u16,
        index: u16,
    ) -> Option<Descriptor> {
        if index >= count {
            return None;
        }
        let at: *const [u8; 16] = table.wrapping_add(16 * usize::from(index)).cast();
        // SAFETY: within 16 * count bytes by the contract. A table may have any alignment, so
        // it is read as bytes: once.
        let raw = unsafe { at.read_volatile() };
        let word = u128::from_le_bytes(raw);
        Some(Descriptor {
            address: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        })
    }

    /// Asks for the line of descriptor `index`.
    #[inline(always)]
    pub fn prefetch_descriptor(&self, index: u16) {
        prefetch_read(
            self.descriptors
                .wrapping_add(16 * usize::from(index & self.mask)),
        );
    }

    /// Asks for the line of the driver's index.
    #[inline(always)]
    pub fn prefetch_avail_index(&self) {
        prefetch_read(self.available);
    }

    /// Asks for the line of the used index, to be written.
    #[inline(always)]
    pub fn prefetch_used_index(&self) {
        prefetch_write(self.used);
    }

    /// Asks for the line of the used entry at `at`, to be written.
    #[inline(always)]
    pub fn prefetch_used(&self, at: u16) {
        prefetch_write(self.used.wrapping_add(4 + 8 * usize::from(at & self.mask)));
    }

    /// Writes the used entry at `at`: not seen by the driver before the index is published.
    #[inline(always)]
    pub fn set_used(&self, at: u16, id: u16, len: u32) {
        let slot = usize::from(at & self.mask);
        let entry = u64::from(id) | u64::from(len) << 32;
        // The area is 4-aligned and entries begin at 4, so they are 8-aligned only by luck:
        // two 4-byte stores, in place of one of 8.
        self.u32_store(4 + 8 * slot, entry as u32);
        self.u32_store(8 + 8 * slot, (entry >> 32) as u32);
    }

    #[inline(always)]
    fn u32_store(&self, offset: usize, value: u32) {
        // SAFETY: offset + 4 <= 4 + 8 * size, checked by `new`; the area is 4-aligned and so is
        // every offset passed here.
        let word = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.used.add(offset).cast()) };
        word.store(value, Ordering::Relaxed);
    }

    /// The used index as it stands in guest memory: ours, but a hostile guest may write it.
    #[inline(always)]
    pub fn used_index(&self) -> &AtomicU16 {
        self.u16_at(self.used, 2)
    }

    /// Whether the driver wants a call now that the used index went from `old` to `new`
    /// (virtio 1.2, 2.7.7.2). Call after the index is stored and a sequentially consistent fence.
    #[inline(always)]
    pub fn wants_call(&self, old: u16, new: u16) -> bool {
        if self.event_idx {
            let event = self.u16_at(self.available, 4 + 2 * usize::from(self.size));
            need_event(event.load(Ordering::Relaxed), new, old)
        } else {
            self.u16_at(self.available, 0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether the driver waits for the used index to pass `at`: a driver that does has seen all before it.
    pub(crate) fn is_seen(&self, at: u16) -> bool {
        let event = || self.u16_at(self.available, 4 + 2 * usize::from(self.size));
        self.event_idx && event().load(Ordering::Acquire) == at
    }

    /// Asks the driver for a kick at the next entry after position `at`, or for none
    /// (virtio 1.2, 2.7.10). The caller fences and looks at the ring again before it sleeps.
    pub fn set_kicks(&self, wanted: bool, at: u16) {
        if self.event_idx {
            // Not wanted: leave an index behind us. The driver kicks when it passes it, which
            // takes 65535 more entries.
            let event = if wanted { at } else { at.wrapping_sub(1) };
            self.u16_at(self.used, 4 + 8 * usize::from(self.size))
                .store(event, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { USED_F_NO_NOTIFY };
            self.u16_at(self.used, 0).store(flags, Ordering::Relaxed);
        }
        let memory = self.memory();
        if memory.log().is_some() {
            memory.mark(self.used, 4);
            memory.mark(self.used.wrapping_add(4 + 8 * usize::from(self.size)), 2);
        }
    }
}

pub(crate) fn check_size(size: u32) -> Result<(), RingError> {
    match size.is_power_of_two() && size <= MAX_RING_SIZE {
        true => Ok(()),
        false => Err(RingError::Size { size }),
    }
}

/// Host address of `len` bytes at the front end's `address`, with this alignment.
pub(crate) fn find_area(
    memory: &GuestMemory,
    area: &'static str,
    address: u64,
    len: u64,
    align: usize,
) -> Result<*mut u8, RingError> {
    let ptr = memory
        .translate_user(address, len)
        .ok_or(RingError::Outside { area, address })?;
    match ptr.align_offset(align) {
        0 => Ok(ptr),
        _ => Err(RingError::Alignment {
            area,
            address,
            align,
        }),
    }
}

/// # Safety
/// `at` must be 16-aligned and 16 bytes from there must be mapped for as long as the call takes.
#[inline(always)]
unsafe fn read_descriptor(at: *mut u8) -> Descriptor {
    // SAFETY: by the caller's contract; 8-aligned, and concurrent writers are why it is atomic.
    let (low, high) = unsafe {
        let words: *mut u64 = at.cast();
        (
            AtomicU64::from_ptr(words),
            AtomicU64::from_ptr(words.add(1)),
        )
    };
    let high = high.load(Ordering::Relaxed);
    Descriptor {
        address: low.load(Ordering::Relaxed),
        len: high as u32,
        flags: (high >> 32) as u16,
        next: (high >> 48) as u16,
    }
}

/// `vring_need_event` (virtio 1.2, 2.7.10.1 and appendix): whether `event` lies in `old..new`.
#[inline(always)]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{RegionSpec, tests::memfd};
    use proptest::prelude::*;

    fn memory(size: u64) -> Arc<MemoryCell> {
        let spec = RegionSpec {
            guest_address: 0,
            size,
            user_address: 0,
            mmap_offset: 0,
        };
        MemoryCell::new(Arc::new(
            GuestMemory::map(vec![(spec, memfd(size))]).unwrap(),
        ))
    }

    #[test]
    fn areas_outside_the_memory_or_unaligned_are_refused() {
        let at = RingAddresses {
            descriptors: 0,
            available: 0x1000,
            used: 0x2000,
        };
        let new = |size, at| SplitRing::new(memory(0x3000), size, at, true).err();
        assert_eq!(new(64, at), None);
        for size in [0, 3, 100, 65536, u32::MAX] {
            assert_eq!(new(size, at), Some(RingError::Size { size }));
        }
        let err = new(
            64,
            RingAddresses {
                descriptors: 0x2fff,
                ..at
            },
        )
        .unwrap();
        assert!(err.to_string().contains("descriptor table"), "{err}");
        let err = new(
            64,
            RingAddresses {
                descriptors: 8,
                ..at
            },
        )
        .unwrap();
        assert!(err.to_string().contains("not aligned to 16"), "{err}");
        let err = new(
            64,
            RingAddresses {
                available: 0x1001,
                ..at
            },
        )
        .unwrap();
        assert!(err.to_string().contains("not aligned to 2"), "{err}");
        let err = new(
            64,
            RingAddresses {
                used: u64::MAX - 3,
                ..at
            },
        )
        .unwrap();
        assert!(err.to_string().contains("used ring"), "{err}");
        // The last byte of the used ring's event field is the last byte of memory: it fits.
        let used = 0x3000 - (4 + 8 * 64 + 4);
        assert_eq!(new(64, RingAddresses { used, ..at }), None);
        assert!(
            new(
                64,
                RingAddresses {
                    used: used + 4,
                    ..at
                }
            )
            .is_some()
        );
    }

    proptest! {
        /// need_event says whether the event index was passed, across the wrap of 16 bits.
        #[test]
        fn need_event_is_passing_the_index(old: u16, step in 0u16..1000, event: u16) {
            let passed = (0..step).any(|i| old.wrapping_add(i) == event);
            prop_assert_eq!(need_event(event, old.wrapping_add(step), old), passed);
        }
    }
}
