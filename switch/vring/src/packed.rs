//! The packed ring's three areas in guest memory (virtio 1.2, 2.8), each field read or written
//! once per call, with the memory order the driver's side needs.
//!
//! Positions count ring entries from the ring's start, in 64 bits, and never wrap. Position `p`
//! is slot `p` modulo the size, and the wrap counter there is 1 in even laps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crosspoint_frame::{Work, prefetch_read, prefetch_write};

use crate::chain::{self, Direction, MAX_CHAIN};
use crate::split::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE, check_size, find_area, need_event};
use crate::{Glance, GuestMemory, InflightQueue, MemoryCell, RingAddresses, RingError, RingFault};

/// Available, when it equals the wrap counter and `F_USED` does not (virtio 1.2, 2.8.1).
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
    /// Buffer id; of a chain, the last one's counts.
    pub(crate) id: u16,
    /// `F_NEXT`, `F_WRITE`, `F_INDIRECT` and the two marks.
    pub(crate) flags: u16,
}

impl PackedDescriptor {
    /// Whether it is the whole of a buffer, and plain.
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

/// What a chain is besides its pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PackedChain {
    /// Not available.
    Nothing,
    /// To be looked at in the next burst.
    OutOfBudget,
    /// Its buffer id, and how many ring entries it takes.
    Whole { id: u16, entries: u16 },
}

/// How a slot stands to a position in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    /// Offered by the driver in this lap.
    Available,
    /// Given back by the device in this lap.
    Used,
    /// Given back in the lap before, or never offered.
    Before,
    /// Offered in the lap before and not given back; or in the lap after.
    Other,
}

/// A packed ring in mapped guest memory. Holds the memory that its areas lie in, so the pointers
/// stay good; buffers are looked up in the memory as it is now.
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

// SAFETY: the pointers are into `_areas`, which the ring holds; every access is atomic.
unsafe impl Send for PackedRing {}
// SAFETY: as above.
unsafe impl Sync for PackedRing {}

impl PackedRing {
    /// Checks size, place and alignment of the three areas, once and for all. vhost-user gives
    /// the driver's event suppression as the available ring, the device's as the used ring.
    ///
    /// The specification allows sizes that are no power of two; here, as with split rings, only
    /// powers of two are taken.
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

    /// Notes where the ring stands, from `at` on.
    pub(crate) fn track(&mut self, inflight: InflightQueue, at: u64) {
        inflight.begin_packed(self.off_wrap(at), self.lap(at));
        self.inflight = Some(inflight);
    }

    /// Whether it is noted where the ring stands.
    #[inline(always)]
    pub(crate) fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Notes that everything before `at` has been given back.
    #[inline(always)]
    pub(crate) fn note(&self, at: u64) {
        if let Some(inflight) = &self.inflight {
            inflight.note_packed(self.off_wrap(at), self.lap(at));
        }
    }

    /// Notes how many entries the used descriptor at `at` will stand for.
    #[inline(always)]
    pub(crate) fn note_entries(&self, at: u64, entries: u16) {
        if let Some(inflight) = &self.inflight {
            inflight.note_entries(self.slot(at), self.lap(at), entries);
        }
    }

    /// Entries.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that the ring's buffers lie in.
    #[inline(always)]
    pub fn memory(&self) -> &GuestMemory {
        self.memory.get()
    }

    /// The position that SET_VRING_BASE's `base` names: index in 15 bits, wrap counter in the
    /// 16th. `None` outside the ring.
    pub(crate) fn position(&self, base: u32) -> Option<u64> {
        let (index, wrap) = (base & 0x7fff, base >> 15 & 1);
        let lap = if wrap == 1 { 0 } else { u64::from(self.size) };
        (index < u32::from(self.size)).then_some(lap + u64::from(index))
    }

    /// The reverse, for GET_VRING_BASE: what is available next in the lower 16 bits, what is
    /// used next in the upper ones, and that is the same here when a ring stands still.
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

    /// Laps from the beginning, as much of the number as is noted.
    #[inline(always)]
    fn lap(&self, at: u64) -> u16 {
        (at >> self.size.trailing_zeros()) as u16
    }

    fn off_wrap(&self, at: u64) -> u16 {
        self.slot(at) as u16 | u16::from(self.wrap(at)) << 15
    }

    #[inline(always)]
    fn words(&self, slot: usize) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: slot <= mask < size, so 16 bytes within the ring that `new` checked, which is
        // 16-aligned and lives as long as `self`; concurrent writers are why it is atomic.
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
        // Acquire: length, id and flags are one word, and the address was written before the
        // flags were.
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

    /// A look at whether the driver offers something at `at`; `None` if it does now.
    pub(crate) fn glance(&self, at: u64) -> Option<Glance> {
        // SAFETY: the flags are the last two of the 16 bytes of a descriptor of the ring, which `new` has checked.
        let flags = unsafe {
            let descriptor = self.descriptors.add(16 * self.slot(at));
            AtomicU16::from_ptr(descriptor.add(14).cast())
        };
        let marks = F_AVAIL | F_USED;
        let value = flags.load(Ordering::Relaxed) & marks;
        (value != self.offered_marks(at)).then(|| Glance::new(flags, marks, value, &self._areas))
    }

    /// The marks of a descriptor that the driver has made available at a position.
    #[inline(always)]
    fn offered_marks(&self, at: u64) -> u16 {
        if self.wrap(at) { F_AVAIL } else { F_USED }
    }

    /// How many entries the chain has whose first descriptor, at `at`, has these flags. One that
    /// goes on where nothing is available, or for too long, ends there: `walk` finds that out.
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

    /// Asks for the line of the entry at `at`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: u64) {
        prefetch_read(self.descriptors.wrapping_add(16 * self.slot(at)));
    }

    /// Asks for the line of the entry at `at`, to be written.
    #[inline(always)]
    pub(crate) fn prefetch_used(&self, at: u64) {
        prefetch_write(self.descriptors.wrapping_add(16 * self.slot(at)));
    }

    /// With WRITE where something was written: else the length is reserved (virtio 1.2, 2.8.4).
    fn used_word(&self, at: u64, id: u16, len: u32) -> u64 {
        let wrap = if self.wrap(at) { F_AVAIL | F_USED } else { 0 };
        let marks = wrap | if len > 0 { F_WRITE } else { 0 };
        u64::from(len) | u64::from(id) << 32 | u64::from(marks) << 48
    }

    /// Writes a used descriptor behind the first of a run: the driver does not look at it before
    /// that one is published.
    #[inline(always)]
    pub(crate) fn set_used(&self, at: u64, id: u16, len: u32) {
        let (_, high) = self.words(self.slot(at));
        high.store(self.used_word(at, id, len), Ordering::Relaxed);
    }

    /// Writes the used descriptor at the beginning of a run, which gives the whole run back.
    /// Release: the others, and the frames, are visible before it is.
    #[inline(always)]
    pub(crate) fn publish_used(&self, at: u64, id: u16, len: u32) {
        let (_, high) = self.words(self.slot(at));
        high.store(self.used_word(at, id, len), Ordering::Release);
    }

    /// Marks the used descriptors of positions `from..to`, if a log wants to know.
    #[inline(always)]
    pub(crate) fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64) {
        if memory.log().is_some() {
            let size = usize::from(self.size);
            let count = ((to - from) as usize).min(size);
            let first = self.slot(from);
            // The descriptors up to the ring's end, and those from its beginning on.
            let before = count.min(size - first);
            memory.mark(self.descriptors.wrapping_add(16 * first), 16 * before);
            if count > before {
                memory.mark(self.descriptors, 16 * (count - before));
            }
        }
    }

    /// Calls `piece` with every run of host memory of the chain at position `at`, in order, for
    /// as many steps as `work` has left.
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

    /// An indirect table: every entry, in order, with no links (virtio 1.2, 2.8.7). `false` when
    /// `work` ran out.
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
            // SAFETY: `find_table` translated 16 * count bytes. A table may have any alignment,
            // so it is read as bytes: once.
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

    /// Whether the driver wants a call now that the used position went from `old` to `new`
    /// (virtio 1.2, 2.8.10). Call after the descriptors are stored and a sequentially consistent
    /// fence.
    #[inline(always)]
    pub(crate) fn wants_call(&self, old: u64, new: u64) -> bool {
        let word = self.event(self.driver_event).load(Ordering::Relaxed);
        match (word >> 16) as u16 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => self.passed(word as u16, old, new),
            _ => true,
        }
    }

    /// Whether the driver waits for the used position to pass `at`: a driver that does has seen all before it.
    pub(crate) fn is_seen(&self, at: u64) -> bool {
        let word = self.event(self.driver_event).load(Ordering::Acquire);
        let named = (word >> 16) as u16 == EVENT_DESCRIPTOR && word as u16 == self.off_wrap(at);
        self.event_idx && named
    }

    /// Whether positions `old..new` contain the one that the driver named.
    fn passed(&self, off_wrap: u16, old: u64, new: u64) -> bool {
        if new - old >= u64::from(self.size) {
            return true;
        }
        let mut event = off_wrap & 0x7fff;
        // Of the lap before the one that `new` is in, if the counters differ.
        if (off_wrap >> 15 == 1) != self.wrap(new) {
            event = event.wrapping_sub(self.size);
        }
        let to = self.slot(new) as u16;
        need_event(event, to, to.wrapping_sub((new - old) as u16))
    }

    /// Asks the driver for a kick when it makes the entry at `at` available, or for none. The
    /// caller fences and looks at the ring again before it sleeps.
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

    /// Where a device goes on whose predecessor noted `base`, and may have got further before it
    /// died: behind the last entry that was used.
    ///
    /// Entries that are available between used ones (one worker died in the middle of a
    /// delivery, another one was further on) are given back empty, and so is what comes behind
    /// them: the driver waits for the first, and has seen none of the others.
    pub(crate) fn resume(&self, base: u64, inflight: &InflightQueue) -> u64 {
        let end = base + u64::from(self.size);
        // The predecessor counted its laps from elsewhere.
        let laps = inflight.lap().wrapping_sub(self.lap(base));
        let noted = |at| inflight.entries(self.slot(at), self.lap(at).wrapping_add(laps));
        let (mut at, mut next) = (base, base);
        while at < end {
            match self.state(at) {
                SlotState::Used => {
                    at += u64::from(noted(at).max(1));
                    next = at;
                }
                // Noted before it was given back, and not available: it was given back, and the
                // driver, which did not die, has offered something else there.
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

    /// Gives back what is available in `from..to` with nothing in it, and all that is used
    /// behind the first such: it may be the rest of a frame whose beginning is lost, which the
    /// driver would take for a frame. That first one last: it makes the others visible.
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

    /// Where the device stands, as the ring's own marks tell it: `base` if they can mean that,
    /// else the one position that they can mean. `None` when there is none or several: they are
    /// exact where every buffer took one entry.
    ///
    /// A back end that died told nobody how far it had come, and the front end may believe that
    /// it is at the beginning still. A split ring has its used index for that.
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

    /// Whether the slot before `at` is behind a device that stands there.
    fn begins_something(&self, at: u64) -> bool {
        let size = u64::from(self.size);
        if at.is_multiple_of(size) {
            return true;
        }
        self.state(at - 1) == SlotState::Used || self.state(at - 1 + size) == SlotState::Available
    }

    /// Whether, from `at` on, the ring is first available and then given back in the lap before.
    /// `None` when that takes too long to find out.
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
