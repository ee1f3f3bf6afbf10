//! The packed ring's three areas in guest memory (virtio 1.2, 2.8). Each call reads or writes a field once, with the
//! memory order that the driver's side needs.
//!
//! A position counts ring entries from the ring's start in 64 bits and never wraps. Position `p` is slot `p` modulo the
//! ring's size; the wrap counter there is 1 in even laps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crosspoint_frame::{Work, prefetch_read, prefetch_write};
use crosspoint_memory::{GuestMemory, MemoryCell};

use crate::chain::{Direction, MAX_CHAIN};
use crate::split::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE, check_size, find_area, need_event};
use crate::{Glance, InflightQueue, RingAddresses, RingError, RingFault, chain};

/// AVAIL flag. A descriptor is available when AVAIL equals the wrap counter and USED does not (virtio 1.2, 2.8.1).
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;
/// Event suppression flags (virtio 1.2, 2.8.10).
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESCRIPTOR: u16 = 2;

/// One available descriptor, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PackedDescriptor {
    /// Guest physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// Buffer id. In a chain, the last descriptor's id is valid.
    pub(crate) id: u16,
    /// `F_NEXT`, `F_WRITE`, `F_INDIRECT`, `F_AVAIL` and `F_USED`.
    pub(crate) flags: u16,
}

impl PackedDescriptor {
    /// Whether this one plain descriptor is a complete buffer of this direction.
    #[inline(always)]
    pub(crate) fn is_single(&self, direction: Direction) -> bool {
        self.flags & (F_NEXT | F_INDIRECT | F_WRITE) == direction.flag()
    }

    fn plain(&self) -> Descriptor {
        Descriptor {
            address: self.address,
            len: self.len,
            flags: self.flags,
            next: 0,
        }
    }
}

/// Result of walking a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PackedChain {
    /// No chain is available.
    Nothing,
    /// The work budget ran out; the next burst reads the chain.
    OutOfBudget,
    /// The chain's buffer id and the number of ring entries that it takes.
    Whole { id: u16, entries: u16 },
}

/// State of a slot, relative to a position in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    /// Made available by the driver in this lap.
    Available,
    /// Used by the device in this lap.
    Used,
    /// Used in the previous lap, or never made available.
    Before,
    /// Made available in the previous lap and not used, or made available in the next lap.
    Other,
}

/// A packed ring in mapped guest memory. It holds a reference to the memory that contains its areas, so their pointers
/// stay valid; buffers are translated with the current memory table.
pub struct PackedRing {
    descriptors: *mut u8,
    driver_event: *mut u8,
    device_event: *mut u8,
    mask: u64,
    size: u16,
    event_idx: bool,
    inflight: Option<InflightQueue>,
    memory: Arc<MemoryCell>,
    _areas: Arc<GuestMemory>,
}

// SAFETY: the pointers point into `_areas`, which the ring owns; every access is atomic.
unsafe impl Send for PackedRing {}
// SAFETY: as above.
unsafe impl Sync for PackedRing {}

impl PackedRing {
    /// Creates the ring and checks size, location and alignment of the three areas once. vhost-user passes the driver's
    /// event suppression area as the available ring, and the device's as the used ring.
    ///
    /// The specification allows sizes that are not powers of two. They are refused here, as with split rings.
    pub fn new(
        memory: Arc<MemoryCell>,
        size: u32,
        at: RingAddresses,
        event_idx: bool,
    ) -> Result<PackedRing, RingError> {
        check_size(size)?;
        let areas = memory.shared();
        let area = |name, address, len, align| find_area(&areas, name, address, len, align);
        Ok(PackedRing {
            descriptors: area("descriptor ring", at.descriptors, 16 * u64::from(size), 16)?,
            driver_event: area("driver event suppression", at.available, 4, 4)?,
            device_event: area("device event suppression", at.used, 4, 4)?,
            mask: u64::from(size - 1),
            size: size as u16,
            event_idx,
            inflight: None,
            memory,
            _areas: areas.clone(),
        })
    }

    /// Starts recording the ring's position in the inflight region, beginning with `at`.
    pub(crate) fn track(&mut self, inflight: InflightQueue, at: u64) {
        inflight.begin_packed(self.off_wrap(at), self.lap(at));
        self.inflight = Some(inflight);
    }

    /// Whether the ring's position is recorded in an inflight region.
    #[inline(always)]
    pub(crate) fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Records that every entry before `at` has been used.
    #[inline(always)]
    pub(crate) fn note(&self, at: u64) {
        if let Some(inflight) = &self.inflight {
            inflight.note_packed(self.off_wrap(at), self.lap(at));
        }
    }

    /// Records how many entries the used descriptor at `at` will stand for.
    #[inline(always)]
    pub(crate) fn note_entries(&self, at: u64, entries: u16) {
        if let Some(inflight) = &self.inflight {
            inflight.note_entries(self.slot(at), self.lap(at), entries);
        }
    }

    /// Number of entries.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that contains the ring's buffers.
    #[inline(always)]
    pub fn memory(&self) -> &GuestMemory {
        self.memory.get()
    }

    /// The position for `base` of SET_VRING_BASE: the index in the lower 15 bits, the wrap counter in bit 15. `None` if
    /// the index is outside the ring.
    pub(crate) fn position(&self, base: u32) -> Option<u64> {
        let (index, wrap) = (base & 0x7fff, base >> 15 & 1);
        let lap = if wrap == 1 { 0 } else { u64::from(self.size) };
        (index < u32::from(self.size)).then_some(lap + u64::from(index))
    }

    /// Converts a position for GET_VRING_BASE: the next available position in the lower 16 bits, the next used one in
    /// the upper 16. They are equal here while the ring is stopped.
    pub(crate) fn base(&self, position: u64) -> u32 {
        let half = self.off_wrap(position);
        u32::from(half) << 16 | u32::from(half)
    }

    #[inline(always)]
    fn slot(&self, at: u64) -> usize {
        (at & self.mask) as usize
    }

    /// The wrap counter at a position.
    #[inline(always)]
    fn wrap(&self, at: u64) -> bool {
        at & u64::from(self.size) == 0
    }

    /// The position's lap, truncated to the 16 bits that the inflight region records.
    #[inline(always)]
    fn lap(&self, at: u64) -> u16 {
        (at >> self.size.trailing_zeros()) as u16
    }

    fn off_wrap(&self, at: u64) -> u16 {
        self.slot(at) as u16 | u16::from(self.wrap(at)) << 15
    }

    #[inline(always)]
    fn words(&self, slot: usize) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: slot <= mask < size, so these are 16 bytes within the ring that `new` checked, which is 16-aligned
        // and lives as long as `self`. Access is atomic because others write concurrently.
        unsafe {
            let words: *mut u64 = self.descriptors.add(16 * slot).cast();
            (
                AtomicU64::from_ptr(words),
                AtomicU64::from_ptr(words.add(1)),
            )
        }
    }

    /// The descriptor at a position, if the driver has made it available.
    #[inline(always)]
    pub(crate) fn read(&self, at: u64) -> Option<PackedDescriptor> {
        let (low, high) = self.words(self.slot(at));
        // Acquire: length, id and flags are in this word, and the driver wrote the address before the flags.
        let word = high.load(Ordering::Acquire);
        let flags = (word >> 48) as u16;
        if flags & (F_AVAIL | F_USED) != self.offered_marks(at) {
            return None;
        }
        Some(PackedDescriptor {
            address: low.load(Ordering::Relaxed),
            len: word as u32,
            id: (word >> 32) as u16,
            flags,
        })
    }

    /// Returns a glance at the slot of `at`, to see later whether the driver has made it available; `None` if it is
    /// available now.
    pub(crate) fn glance(&self, at: u64) -> Option<Glance> {
        // SAFETY: the flags are the last two of the 16 bytes of a ring descriptor; `new` has checked the ring.
        let flags = unsafe {
            let descriptor = self.descriptors.add(16 * self.slot(at));
            AtomicU16::from_ptr(descriptor.add(14).cast())
        };
        let marks = F_AVAIL | F_USED;
        let value = flags.load(Ordering::Relaxed) & marks;
        (value != self.offered_marks(at)).then(|| Glance::new(flags, marks, value, &self._areas))
    }

    /// AVAIL and USED flags of a descriptor that is available at a position.
    #[inline(always)]
    fn offered_marks(&self, at: u64) -> u16 {
        if self.wrap(at) { F_AVAIL } else { F_USED }
    }

    /// Number of entries of the chain that begins at `at` with a descriptor with these flags. A chain that continues
    /// into entries that are not available, or is too long, is cut there; `walk` reports the fault.
    #[inline(always)]
    pub(crate) fn entries_of(&self, at: u64, flags: u16) -> u16 {
        if flags & F_NEXT == 0 {
            return 1;
        }
        self.count_entries(at)
    }

    #[cold]
    fn count_entries(&self, at: u64) -> u16 {
        let most = self.size.min(MAX_CHAIN);
        for n in 1..most {
            match self.read(at + u64::from(n)) {
                Some(d) if d.flags & F_NEXT != 0 => {}
                _ => return n + 1,
            }
        }
        most
    }

    /// Prefetches the cache line of the entry at `at`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: u64) {
        prefetch_read(self.descriptors.wrapping_add(16 * self.slot(at)));
    }

    /// Prefetches the cache line of the entry at `at` for writing.
    #[inline(always)]
    pub(crate) fn prefetch_used(&self, at: u64) {
        prefetch_write(self.descriptors.wrapping_add(16 * self.slot(at)));
    }

    /// The second word of a used descriptor. F_WRITE is set if data was written; otherwise the length is reserved
    /// (virtio 1.2, 2.8.4).
    fn used_word(&self, at: u64, id: u16, len: u32) -> u64 {
        let wrap = if self.wrap(at) { F_AVAIL | F_USED } else { 0 };
        let marks = wrap | if len > 0 { F_WRITE } else { 0 };
        u64::from(len) | u64::from(id) << 32 | u64::from(marks) << 48
    }

    /// Writes a used descriptor after the first of a run. The driver reads it only after the first one is published.
    #[inline(always)]
    pub(crate) fn set_used(&self, at: u64, id: u16, len: u32) {
        let (_, high) = self.words(self.slot(at));
        high.store(self.used_word(at, id, len), Ordering::Relaxed);
    }

    /// Writes the first used descriptor of a run, which gives the whole run back. Release: the other descriptors and
    /// the frames become visible first.
    #[inline(always)]
    pub(crate) fn publish_used(&self, at: u64, id: u16, len: u32) {
        let (_, high) = self.words(self.slot(at));
        high.store(self.used_word(at, id, len), Ordering::Release);
    }

    /// Marks the used descriptors of positions `from..to` in the dirty log, if there is one.
    #[inline(always)]
    pub(crate) fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64) {
        if memory.log().is_some() {
            let size = usize::from(self.size);
            let count = ((to - from) as usize).min(size);
            let first = self.slot(from);
            // From `first` to the ring's end, then from the ring's start.
            let before = count.min(size - first);
            memory.mark(self.descriptors.wrapping_add(16 * first), 16 * before);
            if count > before {
                memory.mark(self.descriptors, 16 * (count - before));
            }
        }
    }

    /// Calls `piece` with each contiguous host memory range of the chain at position `at`, in order, while `work`
    /// lasts.
    pub(crate) fn walk(
        &self,
        memory: &GuestMemory,
        at: u64,
        direction: Direction,
        indirect_allowed: bool,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<PackedChain, RingFault> {
        let most = self.size.min(MAX_CHAIN);
        for n in 0..most {
            let Some(d) = self.read(at + u64::from(n)) else {
                if n == 0 {
                    return Ok(PackedChain::Nothing);
                }
                return Err(RingFault::ChainCut);
            };
            if d.flags & F_INDIRECT != 0 {
                if !indirect_allowed || d.flags & F_NEXT != 0 || n > 0 {
                    return Err(RingFault::IndirectPlace);
                }
                return match self.walk_table(memory, &d, direction, work, piece)? {
                    true => self.whole(d.id, 1),
                    false => Ok(PackedChain::OutOfBudget),
                };
            }
            if !chain::buffer(memory, d.plain(), direction, work, piece)? {
                return Ok(PackedChain::OutOfBudget);
            }
            if d.flags & F_NEXT == 0 {
                return self.whole(d.id, n + 1);
            }
        }
        Err(RingFault::ChainTooLong { size: most })
    }

    fn whole(&self, id: u16, entries: u16) -> Result<PackedChain, RingFault> {
        match id < self.size {
            true => Ok(PackedChain::Whole { id, entries }),
            false => Err(RingFault::BufferId {
                id,
                size: self.size,
            }),
        }
    }

    /// Walks an indirect table: every entry, in order, without links (virtio 1.2, 2.8.7). Returns `false` when `work`
    /// ran out.
    fn walk_table(
        &self,
        memory: &GuestMemory,
        table: &PackedDescriptor,
        direction: Direction,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<bool, RingFault> {
        let (host, count) = chain::find_table(memory, self.size, table.address, table.len)?;
        if count > MAX_CHAIN {
            return Err(RingFault::ChainTooLong { size: MAX_CHAIN });
        }
        for index in 0..usize::from(count) {
            let at: *const [u8; 16] = host.wrapping_add(16 * index).cast();
            // SAFETY: `find_table` translated 16 * count bytes. A table may have any alignment, so each entry is read
            // once, as bytes.
            let word = u128::from_le_bytes(unsafe { at.read_volatile() });
            let d = Descriptor {
                address: word as u64,
                len: (word >> 64) as u32,
                flags: (word >> 112) as u16,
                next: 0,
            };
            if d.flags & F_INDIRECT != 0 {
                return Err(RingFault::IndirectPlace);
            }
            if !chain::buffer(memory, d, direction, work, piece)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn event(&self, area: *mut u8) -> &AtomicU32 {
        // SAFETY: one of the two event areas, 4 bytes, 4-aligned, checked by `new`.
        unsafe { AtomicU32::from_ptr(area.cast()) }
    }

    /// Whether the driver wants a call after the used position moved from `old` to `new` (virtio 1.2, 2.8.10). Call it
    /// after the descriptor stores and a sequentially consistent fence.
    #[inline(always)]
    pub(crate) fn wants_call(&self, old: u64, new: u64) -> bool {
        let word = self.event(self.driver_event).load(Ordering::Relaxed);
        match (word >> 16) as u16 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => self.passed(word as u16, old, new),
            _ => true,
        }
    }

    /// Whether the driver waits for the used position to pass `at`; such a driver has seen everything before `at`.
    pub(crate) fn is_seen(&self, at: u64) -> bool {
        let word = self.event(self.driver_event).load(Ordering::Acquire);
        let named = (word >> 16) as u16 == EVENT_DESCRIPTOR && word as u16 == self.off_wrap(at);
        self.event_idx && named
    }

    /// Whether the driver's event position is within `old..new`.
    fn passed(&self, off_wrap: u16, old: u64, new: u64) -> bool {
        if new - old >= u64::from(self.size) {
            return true;
        }
        let mut event = off_wrap & 0x7fff;
        // Different wrap counters: the event is in the lap before the one of `new`.
        if (off_wrap >> 15 == 1) != self.wrap(new) {
            event = event.wrapping_sub(self.size);
        }
        let to = self.slot(new) as u16;
        need_event(event, to, to.wrapping_sub((new - old) as u16))
    }

    /// Asks the driver for a kick when it makes the entry at `at` available, or for no kicks. Before it sleeps, the
    /// caller must fence and check the ring again.
    pub(crate) fn set_kicks(&self, wanted: bool, at: u64) {
        let word = match (wanted, self.event_idx) {
            (false, _) => u32::from(EVENT_DISABLE) << 16,
            (true, false) => u32::from(EVENT_ENABLE) << 16,
            (true, true) => u32::from(EVENT_DESCRIPTOR) << 16 | u32::from(self.off_wrap(at)),
        };
        self.event(self.device_event).store(word, Ordering::Release);
        let memory = self.memory();
        if memory.log().is_some() {
            memory.mark(self.device_event, 4);
        }
    }

    fn state(&self, at: u64) -> SlotState {
        let (_, high) = self.words(self.slot(at));
        let flags = (high.load(Ordering::Acquire) >> 48) as u16;
        let (avail, used) = (flags & F_AVAIL != 0, flags & F_USED != 0);
        match (avail == self.wrap(at), used == self.wrap(at)) {
            (true, false) => SlotState::Available,
            (true, true) => SlotState::Used,
            (false, false) => SlotState::Before,
            (false, true) => SlotState::Other,
        }
    }

    /// Returns the position at which a device continues after a crash. Its predecessor recorded `base` and may have
    /// progressed further; the position is after the last used entry.
    ///
    /// Available entries between used ones (one worker died during a delivery while another one was further on) are
    /// returned empty, and so are the entries after them: the driver waits for the first one and has seen none of the
    /// others.
    pub(crate) fn resume(&self, base: u64, inflight: &InflightQueue) -> u64 {
        let end = base + u64::from(self.size);
        // The predecessor's lap numbers have a different origin.
        let laps = inflight.lap().wrapping_sub(self.lap(base));
        let noted = |at| inflight.entries(self.slot(at), self.lap(at).wrapping_add(laps));
        let (mut at, mut next) = (base, base);
        while at < end {
            match self.state(at) {
                SlotState::Used => {
                    at += u64::from(noted(at).max(1));
                    next = at;
                }
                // Recorded before use, and no longer available: it was used, and the driver, which did not die, has
                // made another buffer available there.
                SlotState::Other if noted(at) > 0 => {
                    at += u64::from(noted(at));
                    next = at;
                }
                SlotState::Available => {
                    at += self
                        .read(at)
                        .map_or(1, |d| self.entries_of(at, d.flags).into())
                }
                _ => break,
            }
        }
        self.give_back_empty(base, next.min(end), &noted);
        next.min(end)
    }

    /// Returns the available entries in `from..to` with length 0, and all used entries after the first such entry too:
    /// they may be the rest of a frame whose beginning is lost, and the driver would read them as a frame. The first
    /// one is written last, since it makes the others visible.
    fn give_back_empty(&self, from: u64, to: u64, noted: &dyn Fn(u64) -> u16) {
        let (mut at, mut gap) = (from, None);
        while at < to {
            let (id, entries) = match self.read(at) {
                Some(first) => {
                    let entries = self.entries_of(at, first.flags);
                    let last = self.read(at + u64::from(entries) - 1);
                    (last.unwrap_or(first).id, entries)
                }
                None => {
                    let (_, high) = self.words(self.slot(at));
                    let id = (high.load(Ordering::Relaxed) >> 32) as u16;
                    (id, noted(at).max(1))
                }
            };
            match gap {
                None if self.read(at).is_some() => gap = Some((at, id)),
                None => {}
                Some(_) => self.set_used(at, id, 0),
            }
            at += u64::from(entries);
        }
        if let Some((first, id)) = gap {
            self.publish_used(first, id, 0);
            self.mark_used(self.memory(), first, to);
        }
    }

    /// Finds the device's position from the AVAIL and USED flags in the ring: `base` if the flags are consistent with
    /// it, otherwise the only position that they are consistent with. `None` if there is no such position or more than
    /// one. The result is exact if every buffer took one entry.
    ///
    /// After a back end crashed, the front end may still have the start position. A split ring has its used index for
    /// this.
    pub(crate) fn find_position(&self, base: u64) -> Option<u64> {
        let size = u64::from(self.size);
        let mut budget = 8 * size;
        if self.could_be_at(base, &mut budget)? {
            return Some(base);
        }
        let mut found = None;
        for at in 0..2 * size {
            if self.begins_something(at) && self.could_be_at(at, &mut budget)? {
                if found.is_some() {
                    return None;
                }
                found = Some(at);
            }
        }
        found
    }

    /// Whether the slot before `at` can be behind a device at position `at`.
    fn begins_something(&self, at: u64) -> bool {
        let size = u64::from(self.size);
        if at.is_multiple_of(size) {
            return true;
        }
        self.state(at - 1) == SlotState::Used || self.state(at - 1 + size) == SlotState::Available
    }

    /// Whether the ring from `at` on has available entries first and then entries used in the previous lap. `None` if
    /// the check exceeds the budget.
    fn could_be_at(&self, at: u64, budget: &mut u64) -> Option<bool> {
        let mut available = true;
        for position in at..at + u64::from(self.size) {
            *budget = budget.checked_sub(1)?;
            match self.state(position) {
                SlotState::Available if available => {}
                SlotState::Before => available = false,
                _ => return Some(false),
            }
        }
        Some(true)
    }
}
