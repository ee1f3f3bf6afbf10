//! The inflight region: a device's position, which the front end keeps for the device's successor (vhost-user protocol,
//! "Inflight I/O tracking").
//!
//! The switch returns a chain in the burst that took it, in ring order. So nothing is in flight while it is stopped, no
//! descriptor is ever marked as in flight, and a successor needs only one position. In a split ring the used index
//! gives it; in a packed ring only this region does.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crosspoint_memory::MemoryError;
use crosspoint_memory::mapping::Mapping;

use crate::MAX_RING_SIZE;

/// Version of the region's layout.
const VERSION: u16 = 1;
/// Alignment of each queue's part.
const ALIGN: usize = 64;
/// Size of the header before the descriptor states, and size of each state.
const SPLIT: (usize, usize) = (16, 16);
const PACKED: (usize, usize) = (32, 32);
/// Field offsets in a queue's header, both layouts.
const AT_VERSION: usize = 8;
const AT_SIZE: usize = 10;
/// Offset of a split ring's used index.
const AT_USED: usize = 14;
/// Offset of a packed ring's positions: used index and the one before the last batch, 16 bits each, then their wrap
/// counters, 8 bits each. The padding after them holds the lap.
const AT_POSITIONS: usize = 16;
/// Offset of two 16-bit fields in a packed descriptor's state: one for devices that keep lists of free states, used
/// here for the lap, and the number of entries.
const AT_ENTRIES: usize = 4;

/// The mapped inflight region of one device.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: Mapping,
    queues: usize,
    ring_size: u16,
    packed: bool,
}

impl InflightRegion {
    /// Size of such a region in bytes.
    pub fn len(queues: usize, ring_size: u16, packed: bool) -> usize {
        queues * queue_len(ring_size, packed)
    }

    /// Creates a new region's file, to be passed to the front end.
    pub fn create(queues: usize, ring_size: u16, packed: bool) -> io::Result<File> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("crosspoint-inflight", flags)?);
        file.set_len(InflightRegion::len(queues, ring_size, packed) as u64)?;
        Ok(file)
    }

    /// Maps a region from `offset` on; `len` is its size as given by the front end.
    pub fn map(
        file: &File,
        (offset, len): (u64, u64),
        queues: usize,
        ring_size: u16,
        packed: bool,
    ) -> Result<InflightRegion, MemoryError> {
        let needed = InflightRegion::len(queues, ring_size, packed) as u64;
        let fits = ring_size.is_power_of_two()
            && u32::from(ring_size) <= MAX_RING_SIZE
            && queues > 0
            && len >= needed
            && offset.checked_add(len).is_some()
            && offset.is_multiple_of(ALIGN as u64);
        if !fits {
            return Err(MemoryError::Inflight { len, needed });
        }
        Ok(InflightRegion {
            mapping: Mapping::new(file, offset, needed)
                .map_err(|error| MemoryError::of(0, error))?,
            queues,
            ring_size,
            packed,
        })
    }

    /// Whether its file was truncated.
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// The part of vring `index`, if it exists and the ring matches the region.
    pub fn queue(
        self: &Arc<InflightRegion>,
        index: usize,
        ring_size: u32,
        packed: bool,
    ) -> Option<InflightQueue> {
        let fits =
            index < self.queues && ring_size == u32::from(self.ring_size) && packed == self.packed;
        let offset = index * queue_len(self.ring_size, self.packed);
        fits.then(|| InflightQueue {
            at: self.mapping.address().wrapping_add(offset),
            ring_size: self.ring_size,
            _region: self.clone(),
        })
    }
}

fn queue_len(ring_size: u16, packed: bool) -> usize {
    let (header, state) = if packed { PACKED } else { SPLIT };
    (header + state * usize::from(ring_size)).next_multiple_of(ALIGN)
}

/// One vring's part of the region.
#[derive(Debug)]
pub struct InflightQueue {
    at: *mut u8,
    ring_size: u16,
    _region: Arc<InflightRegion>,
}

// SAFETY: the pointer points into the region that the value keeps alive; every access is atomic.
unsafe impl Send for InflightQueue {}
// SAFETY: as above.
unsafe impl Sync for InflightQueue {}

impl InflightQueue {
    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: offsets are even and within the queue's part, whose presence `map` checked: header fields, and states
        // of slots below the ring's size.
        unsafe { AtomicU16::from_ptr(self.at.add(offset).cast()) }
    }

    fn positions(&self) -> &AtomicU64 {
        // SAFETY: 8 bytes of the header at a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.at.add(AT_POSITIONS).cast()) }
    }

    /// Whether a device has used this part before.
    fn is_in_use(&self) -> bool {
        self.u16_at(AT_VERSION).load(Ordering::Acquire) == VERSION
            && self.u16_at(AT_SIZE).load(Ordering::Relaxed) == self.ring_size
    }

    fn begin(&self) {
        self.u16_at(AT_SIZE)
            .store(self.ring_size, Ordering::Relaxed);
        self.u16_at(AT_VERSION).store(VERSION, Ordering::Release);
    }

    /// Starts recording a split ring's position.
    pub(crate) fn begin_split(&self, used: u16) {
        self.note_split(used);
        self.begin();
    }

    /// Records a split ring's used index.
    #[inline(always)]
    pub(crate) fn note_split(&self, used: u16) {
        self.u16_at(AT_USED).store(used, Ordering::Relaxed);
    }

    /// Recorded position of a packed ring's predecessor: index in the lower 15 bits, wrap counter in bit 15. `None` if
    /// there was no predecessor, or the value is not a position.
    pub(crate) fn packed_base(&self) -> Option<u32> {
        let [index, _, wraps, _] = split_words(self.positions().load(Ordering::Acquire));
        let known = self.is_in_use() && index < self.ring_size;
        known.then(|| u32::from(index) | u32::from(wraps & 1) << 15)
    }

    /// Starts recording a packed ring's position, with new lap numbers.
    pub(crate) fn begin_packed(&self, off_wrap: u16, lap: u16) {
        self.note_packed(off_wrap, lap);
        for slot in 0..usize::from(self.ring_size) {
            self.entries_at(slot).store(0, Ordering::Relaxed);
        }
        self.begin();
    }

    /// Records a packed ring's position. One store: a successor sees the old position or the new one. No batch is ever
    /// open, so the position before the batch is the same.
    #[inline(always)]
    pub(crate) fn note_packed(&self, off_wrap: u16, lap: u16) {
        let (index, wrap) = (u64::from(off_wrap & 0x7fff), u64::from(off_wrap >> 15));
        let word = index | index << 16 | wrap << 32 | wrap << 40 | u64::from(lap) << 48;
        self.positions().store(word, Ordering::Release);
    }

    /// Lap of the recorded position.
    pub(crate) fn lap(&self) -> u16 {
        let [_, _, _, lap] = split_words(self.positions().load(Ordering::Acquire));
        lap
    }

    fn entries_at(&self, slot: usize) -> &AtomicU32 {
        let slot = slot.min(usize::from(self.ring_size) - 1);
        // SAFETY: a multiple of 4, and within the state of a slot below the ring's size.
        unsafe { AtomicU32::from_ptr(self.at.add(PACKED.0 + PACKED.1 * slot + AT_ENTRIES).cast()) }
    }

    /// Records how many entries the used descriptor in a slot will stand for, and the lap.
    #[inline(always)]
    pub(crate) fn note_entries(&self, slot: usize, lap: u16, entries: u16) {
        let word = u32::from(lap) | u32::from(entries) << 16;
        self.entries_at(slot).store(word, Ordering::Relaxed);
    }

    /// Reads that number of entries; 0 if it was not recorded in this lap.
    pub(crate) fn entries(&self, slot: usize, lap: u16) -> u16 {
        let word = self.entries_at(slot).load(Ordering::Relaxed);
        if word as u16 == lap {
            (word >> 16) as u16
        } else {
            0
        }
    }
}

fn split_words(word: u64) -> [u16; 4] {
    [
        word as u16,
        (word >> 16) as u16,
        (word >> 32) as u16,
        (word >> 48) as u16,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(packed: bool) -> Arc<InflightRegion> {
        let file = InflightRegion::create(4, 256, packed).unwrap();
        let len = file.metadata().unwrap().len();
        Arc::new(InflightRegion::map(&file, (0, len), 4, 256, packed).unwrap())
    }

    /// What is recorded for one queue is read back, and other queues are unchanged.
    #[test]
    fn a_successor_reads_what_was_noted() {
        let region = region(true);
        let queue = |index| region.queue(index, 256, true).unwrap();
        assert_eq!(queue(1).packed_base(), None);
        queue(1).begin_packed(200 | 1 << 15, 2);
        queue(1).note_entries(255, 2, 7);
        assert_eq!(queue(1).packed_base(), Some(200 | 1 << 15));
        queue(1).note_packed(3, 3);
        assert_eq!((queue(1).packed_base(), queue(1).lap()), (Some(3), 3));
        assert_eq!((queue(1).entries(255, 2), queue(1).entries(0, 2)), (7, 0));
        assert_eq!(queue(1).entries(255, 3), 0);
        for other in [0, 2, 3] {
            assert_eq!(queue(other).packed_base(), None);
        }
        // A front end may write anything there: invalid positions are ignored.
        queue(1).note_packed(300, 3);
        assert_eq!(queue(1).packed_base(), None);
    }

    #[test]
    fn a_region_that_does_not_fit_is_refused() {
        let file = InflightRegion::create(4, 256, false).unwrap();
        let len = file.metadata().unwrap().len();
        let map = |offset, len, queues, size| {
            InflightRegion::map(&file, (offset, len), queues, size, false).map(|_| ())
        };
        assert!(map(0, len, 4, 256).is_ok());
        for (offset, len, queues, size) in [
            (0, len - 1, 4, 256),
            (0, len, 5, 256),
            (0, len, 4, 512),
            (0, len, 4, 255),
            (0, len, 0, 256),
            (64, len, 4, 256),
            (1, len, 1, 256),
            (u64::MAX - 63, len, 1, 256),
            (0, u64::MAX, 40, 256),
        ] {
            assert!(
                map(offset, len, queues, size).is_err(),
                "{offset} {len} {queues} {size}"
            );
        }
        let region = region(false);
        assert!(region.queue(4, 256, false).is_none());
        assert!(region.queue(0, 128, false).is_none());
        assert!(region.queue(0, 256, true).is_none());
    }
}
