//! The split ring's three areas in guest memory (virtio 1.2, 2.7). Each call reads or writes a field once, with the
//! memory order that the driver's side needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crosspoint_frame::{prefetch_read, prefetch_write};
use crosspoint_memory::{GuestMemory, MemoryCell};
use thiserror::Error;

use crate::{Glance, InflightQueue};

/// Largest ring (virtio 1.2, 2.7: queue size is a power of two up to 32768).
pub const MAX_RING_SIZE: u32 = 32768;

/// Descriptor continues in `next`.
pub(crate) const F_NEXT: u16 = 1;
/// Descriptor is device-writable.
pub(crate) const F_WRITE: u16 = 2;
/// Descriptor names a table of descriptors.
pub(crate) const F_INDIRECT: u16 = 4;
const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Addresses of the three areas, as SET_VRING_ADDR gives them: in the front end's address space.
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
    /// An area is not within one memory region.
    #[error("the {area} at {address:#x} is outside the guest's memory")]
    Outside {
        /// Which of the three areas.
        area: &'static str,
        /// The front end's address.
        address: u64,
    },
    /// An area is not aligned (virtio 1.2, 2.7: 16, 2 and 4 bytes).
    #[error("the {area} at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which of the three areas.
        area: &'static str,
        /// The front end's address.
        address: u64,
        /// Alignment that the specification requires.
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

/// A split ring in mapped guest memory. It holds a reference to the memory that contains its areas, so their pointers
/// stay valid; buffers are translated with the current memory table.
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

// SAFETY: the pointers point into `_areas`, which the ring owns; every access is atomic.
unsafe impl Send for SplitRing {}
// SAFETY: as above.
unsafe impl Sync for SplitRing {}

impl SplitRing {
    /// Creates the ring and checks size, location and alignment of the three areas once.
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
        // The event fields exist only with EVENT_IDX.
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

    /// Starts recording the used index in the inflight region, beginning with `used`.
    pub(crate) fn track(&mut self, inflight: InflightQueue, used: u16) {
        inflight.begin_split(used);
        self.inflight = Some(inflight);
    }

    /// Records the used index for a successor, if there is an inflight region.
    #[inline(always)]
    pub(crate) fn note(&self, used: u16) {
        if let Some(inflight) = &self.inflight {
            inflight.note_split(used);
        }
    }

    /// Number of entries.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that contains the ring and its buffers.
    #[inline(always)]
    pub fn memory(&self) -> &GuestMemory {
        self.memory.get()
    }

    /// Marks in the dirty log, if there is one, what was written to the used ring for positions `from..to`: the
    /// entries, the index, and the flags and event field beside them.
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
        // From `first` to the ring's end, then from the ring's start.
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

    /// The driver's available index. Acquire: the entries up to it are visible.
    #[inline(always)]
    pub fn avail_index(&self) -> u16 {
        self.u16_at(self.available, 2).load(Ordering::Acquire)
    }

    /// Returns a glance at the available index, to see later whether the driver has moved it past `at`; `None` if it
    /// has now.
    pub(crate) fn glance(&self, at: u16) -> Option<Glance> {
        let glance = Glance::new(self.u16_at(self.available, 2), u16::MAX, at, &self._areas);
        (!glance.has_changed()).then_some(glance)
    }

    /// Head descriptor index at position `at` (taken modulo the ring's size).
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
        // SAFETY: index < size, so these are 16 bytes within the table that `new` checked; 16-aligned.
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
        // SAFETY: within 16 * count bytes by the contract. A table may have any alignment, so each entry is read once,
        // as bytes.
        let raw = unsafe { at.read_volatile() };
        let word = u128::from_le_bytes(raw);
        Some(Descriptor {
            address: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        })
    }

    /// Prefetches the cache line of descriptor `index`.
    #[inline(always)]
    pub fn prefetch_descriptor(&self, index: u16) {
        prefetch_read(
            self.descriptors
                .wrapping_add(16 * usize::from(index & self.mask)),
        );
    }

    /// Prefetches the cache line of the driver's index.
    #[inline(always)]
    pub fn prefetch_avail_index(&self) {
        prefetch_read(self.available);
    }

    /// Prefetches the cache line of the used index for writing.
    #[inline(always)]
    pub fn prefetch_used_index(&self) {
        prefetch_write(self.used);
    }

    /// Prefetches the cache line of the used entry at `at` for writing.
    #[inline(always)]
    pub fn prefetch_used(&self, at: u16) {
        prefetch_write(self.used.wrapping_add(4 + 8 * usize::from(at & self.mask)));
    }

    /// Writes the used entry at `at`. The driver reads it only after the index is published.
    #[inline(always)]
    pub fn set_used(&self, at: u16, id: u16, len: u32) {
        let slot = usize::from(at & self.mask);
        let entry = u64::from(id) | u64::from(len) << 32;
        // The area is 4-aligned and entries begin at offset 4, so an entry may not be 8-aligned: two 4-byte stores
        // instead of one 8-byte store.
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

    /// The used index in guest memory. The switch owns it, but a hostile guest may write it.
    #[inline(always)]
    pub fn used_index(&self) -> &AtomicU16 {
        self.u16_at(self.used, 2)
    }

    /// Whether the driver wants a call after the used index moved from `old` to `new` (virtio 1.2, 2.7.7.2). Call it
    /// after the index store and a sequentially consistent fence.
    #[inline(always)]
    pub fn wants_call(&self, old: u16, new: u16) -> bool {
        if self.event_idx {
            let event = self.u16_at(self.available, 4 + 2 * usize::from(self.size));
            need_event(event.load(Ordering::Relaxed), new, old)
        } else {
            self.u16_at(self.available, 0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether the driver waits for the used index to pass `at`; such a driver has seen everything before `at`.
    pub(crate) fn is_seen(&self, at: u16) -> bool {
        let event = || self.u16_at(self.available, 4 + 2 * usize::from(self.size));
        self.event_idx && event().load(Ordering::Acquire) == at
    }

    /// Asks the driver for a kick at the next entry after position `at`, or for no kicks (virtio 1.2, 2.7.10). Before
    /// it sleeps, the caller must fence and check the ring again.
    pub fn set_kicks(&self, wanted: bool, at: u16) {
        if self.event_idx {
            // Not wanted: set the event index just behind us. The driver kicks when it passes it, which takes 65535
            // more entries.
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

/// Host address of `len` bytes at the front end's `address`, checked for this alignment.
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
/// `at` must be 16-aligned, and 16 bytes from there must stay mapped during the call.
#[inline(always)]
unsafe fn read_descriptor(at: *mut u8) -> Descriptor {
    // SAFETY: by the caller's contract; 8-aligned. Access is atomic because others write concurrently.
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

/// `vring_need_event` (virtio 1.2, 2.7.10.1 and appendix): whether `event` is within `old..new`.
#[inline(always)]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use crosspoint_memory::memory::RegionSpec;
    use proptest::prelude::*;

    use super::*;

    /// An anonymous file of `size` bytes.
    fn memfd(size: u64) -> File {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(size).unwrap();
        file
    }

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
        /// need_event returns whether the event index was passed, across the wrap of 16 bits.
        #[test]
        fn need_event_is_passing_the_index(old: u16, step in 0u16..1000, event: u16) {
            let passed = (0..step).any(|i| old.wrapping_add(i) == event);
            prop_assert_eq!(need_event(event, old.wrapping_add(step), old), passed);
        }
    }
}
