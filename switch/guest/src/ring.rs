//! The driver side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! Two ways to use it, per descriptor: [`SplitRing::add`] allocates descriptors and frees them when the device has used
//! them; [`SplitRing::offer`] makes a descriptor available that the caller has written and still owns, for fast loops.
//! Both check everything that a driver can check of a device: the used index never passes what was made available, and
//! each used id was outstanding.

mod layout;
mod raw;

pub use layout::{RingLayout, available_len, descriptors_len, used_len};

use crate::memory::{CACHE_LINE_LEN, GuestMemory, MemoryError, View, Window};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// Descriptor flag: the chain continues at `next` (2.7.5).
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer (2.7.5).
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors (2.7.5.3).
pub const DESC_F_INDIRECT: u16 = 4;
/// Entries of the largest ring (2.7).
pub const RING_SIZE_MAX: u16 = 32768;
/// Size of a descriptor in bytes (2.7.5).
pub const DESCRIPTOR_LEN: usize = 16;
const USED_ELEMENT_LEN: usize = 8;
/// Size of `flags` and `idx` before the entries of both rings (2.7.6, 2.7.8).
const RING_HEADER_LEN: usize = 4;
/// `flags` of the available ring: do not call (2.7.6); of the used ring: do not kick (2.7.8).
const F_NO_NOTIFICATION: u16 = 1;
/// In `chain_len`: the caller owns the descriptor.
const OFFERED: u16 = u16::MAX;
/// In `entries`: not written yet. No id is this large.
const NEVER_WRITTEN: u16 = u16::MAX;

/// An action of the device, or a request of the caller, that section 2.7 does not allow.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A ring size that is not a power of two up to 32768.
    #[error("ring size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// A packed ring of no entries, or of more than 32768 (2.8.10.1).
    #[error("packed ring size {0} is not from 1 to 32768")]
    PackedSize(u16),
    /// A part of the ring is not in guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A part of the ring is not aligned (2.7: 16, 2 and 4 bytes; 2.8: 16, 4 and 4 bytes).
    #[error("a ring address is misaligned: {0:x?}")]
    Misaligned(RingLayout),
    /// The device moved the used index past the outstanding buffers, or back.
    #[error("device: used index went from {from} to {to} with {outstanding} buffers outstanding")]
    UsedIndex {
        /// The index up to which used entries were taken.
        from: u16,
        /// The index found.
        to: u16,
        /// Buffers made available and not yet taken back.
        outstanding: u16,
    },
    /// The device used a descriptor that is not the head of an outstanding chain.
    #[error("device: used id {id} at index {index} was not outstanding")]
    UsedId {
        /// The id found.
        id: u32,
        /// Index of the used entry; in a packed ring its slot, with the wrap counter in bit 15.
        index: u16,
    },
    /// The device used a buffer out of order (`VIRTIO_F_IN_ORDER`).
    #[error("device: used id {id} at index {index} is not within the {batch} next ones")]
    Order {
        /// The id found.
        id: u16,
        /// Index of the used entry.
        index: u16,
        /// Number of used buffers by the used index.
        batch: u16,
    },
}

/// Whether an index that moves from `old` to `new` passes `event` (2.7.10).
#[inline(always)]
#[must_use]
pub fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it (a receive buffer).
    pub device_writes: bool,
}

/// A descriptor as stored in memory (2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// The next descriptor, with `DESC_F_NEXT`.
    pub next: u16,
}

impl Descriptor {
    #[inline(always)]
    pub(crate) fn of(buffer: &Buffer, next: Option<u16>) -> Self {
        let flags = if buffer.device_writes {
            DESC_F_WRITE
        } else {
            0
        } | if next.is_some() { DESC_F_NEXT } else { 0 };
        Self {
            address: buffer.address,
            len: buffer.len,
            flags,
            next: next.unwrap_or(0),
        }
    }

    #[inline(always)]
    fn store(self, table: View<'_>, index: usize) {
        let high =
            u64::from(self.len) | (u64::from(self.flags) << 32) | (u64::from(self.next) << 48);
        let bytes = (u128::from(self.address) | (u128::from(high) << 64)).to_le_bytes();
        table.write_array(DESCRIPTOR_LEN * index, bytes);
    }

    fn load(table: View<'_>, index: usize) -> Self {
        let bits = u128::from_le_bytes(table.read_array(DESCRIPTOR_LEN * index));
        Self {
            address: bits as u64,
            len: (bits >> 64) as u32,
            flags: (bits >> 96) as u16,
            next: (bits >> 112) as u16,
        }
    }
}

/// An entry of the used ring (2.7.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedElement {
    /// Head of the chain.
    pub id: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

/// The driver side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    layout: RingLayout,
    descriptors: Window,
    available: Window,
    used: Window,
    event_index: bool,
    in_order: bool,
    /// Next index of the available ring to fill.
    next_available: u16,
    /// Published index of the available ring.
    published: u16,
    /// Next index of the used ring to take.
    next_used: u16,
    /// The used index when last read.
    seen_used: u16,
    /// Free descriptors; the next one to use is last.
    free: VecDeque<u16>,
    /// By head: descriptors of the outstanding chain, 0 if there is none, or `OFFERED`.
    chain_len: Vec<u16>,
    /// By descriptor: the next one of its chain. A private copy, since the device can write the shared one.
    next: Vec<u16>,
    /// What the available ring's entries hold, so that an unchanged one is not written, and its cache line stays
    /// shared with the device (as DPDK's driver does).
    entries: Vec<u16>,
    /// By head: bytes that the device may write. Not for offered descriptors.
    writable_len: Vec<u32>,
    /// Last buffer of a batch that the device has used in order, while other buffers of the batch are still to be
    /// taken.
    batch: Option<UsedElement>,
}

impl SplitRing {
    /// Zeroes the ring's memory and starts both indices at `base`.
    ///
    /// # Errors
    /// A size or an address that section 2.7 does not allow, or that is outside guest memory.
    pub fn new(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        base: u16,
        event_index: bool,
    ) -> Result<Self, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > RING_SIZE_MAX {
            return Err(RingError::Size(size));
        }
        if !layout.descriptors.is_multiple_of(16)
            || !layout.available.is_multiple_of(2)
            || !layout.used.is_multiple_of(4)
        {
            return Err(RingError::Misaligned(layout));
        }
        let mut ring = Self {
            layout,
            descriptors: memory.window(layout.descriptors, descriptors_len(size))?,
            available: memory.window(layout.available, available_len(size))?,
            used: memory.window(layout.used, used_len(size))?,
            event_index,
            in_order: false,
            next_available: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
            free: VecDeque::with_capacity(size.into()),
            chain_len: vec![0; size.into()],
            next: vec![0; size.into()],
            entries: vec![NEVER_WRITTEN; size.into()],
            writable_len: vec![0; size.into()],
            batch: None,
        };
        ring.reset(base);
        Ok(ring)
    }

    /// Drops all outstanding buffers, zeroes the ring's memory and starts both indices at `base`, as a driver that
    /// resets its device.
    pub fn reset(&mut self, base: u16) {
        for part in [&self.descriptors, &self.available, &self.used] {
            part.view().fill(0, part.len(), 0);
        }
        self.next_available = base;
        self.published = base;
        self.next_used = base;
        self.seen_used = base;
        self.free.clear();
        self.free.extend((0..self.layout.size).rev());
        self.chain_len.fill(0);
        self.batch = None;
        self.entries.fill(NEVER_WRITTEN);
        self.used.view().store_u16(2, base, Relaxed);
        self.available.view().store_u16(2, base, Release);
    }

    /// Size and addresses.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Whether `VIRTIO_F_EVENT_IDX` is in force.
    #[must_use]
    pub fn event_index(&self) -> bool {
        self.event_index
    }

    /// Sets whether `VIRTIO_F_EVENT_IDX` is in force; before the device starts.
    pub fn set_event_index(&mut self, event_index: bool) {
        self.event_index = event_index;
    }

    /// Sets whether `VIRTIO_F_IN_ORDER` is in force: descriptors are made available in table order, and a used element
    /// may stand for all buffers made available before its own (2.7.9). Call it before the device starts, with nothing
    /// outstanding. A caller of [`SplitRing::offer`] must keep to table order itself.
    pub fn set_in_order(&mut self, in_order: bool) {
        self.in_order = in_order;
        self.free.clear();
        self.free.extend((0..self.layout.size).rev());
    }

    /// Number of descriptors that [`SplitRing::add`] can still take.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Buffers made available and not yet taken back.
    #[inline(always)]
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// Writes a chain of descriptors, one for each buffer, and makes it available at the next [`SplitRing::publish`].
    /// Returns its head, or `None` if there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let first = self.free.len().checked_sub(buffers.len())?;
        let head = self.free.back().copied().filter(|_| !buffers.is_empty())?;
        for (i, buffer) in buffers.iter().enumerate() {
            let id = self.free[self.free.len() - 1 - i];
            let next = (i + 1 < buffers.len()).then(|| self.free[self.free.len() - 2 - i]);
            self.next[usize::from(id)] = next.unwrap_or(0);
            self.write_descriptor(id, Descriptor::of(buffer, next));
        }
        self.free.truncate(first);
        self.make_available(head, buffers.len() as u16, writable_len(buffers));
        Some(head)
    }

    /// Writes the chain into `table` and makes one indirect descriptor available (2.7.5.3). `table` has 16 bytes for
    /// each buffer; the caller must not change it until the head is used.
    pub fn add_indirect(&mut self, table: &Window, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || DESCRIPTOR_LEN * buffers.len() > table.len() {
            return None;
        }
        let head = self.free.pop_back()?;
        for (i, buffer) in buffers.iter().enumerate() {
            let next = (i + 1 < buffers.len()).then_some(i as u16 + 1);
            Descriptor::of(buffer, next).store(table.view(), i);
        }
        let len = (DESCRIPTOR_LEN * buffers.len()) as u32;
        self.write_descriptor(
            head,
            Descriptor {
                address: table.guest_address(),
                len,
                flags: DESC_F_INDIRECT,
                next: 0,
            },
        );
        self.make_available(head, 1, writable_len(buffers));
        Some(head)
    }

    /// Makes descriptors that the caller has written available at the next [`SplitRing::publish`]; only the id of each
    /// element is used. Must not be mixed with [`SplitRing::add`] on one ring.
    #[inline(always)]
    pub fn offer(&mut self, elements: &[UsedElement]) {
        debug_assert!(
            usize::from(self.outstanding()) + elements.len() <= usize::from(self.layout.size)
        );
        let available = self.available.view();
        let (entries, chain_len) = (self.entries.as_mut_slice(), self.chain_len.as_mut_slice());
        let mut index = usize::from(self.next_available);
        for element in elements {
            let slot = index & (entries.len() - 1);
            chain_len[usize::from(element.id)] = OFFERED;
            if entries[slot] != element.id {
                entries[slot] = element.id;
                available.write_array(RING_HEADER_LEN + 2 * slot, element.id.to_le_bytes());
            }
            index += 1;
        }
        self.next_available = index as u16;
    }

    fn make_available(&mut self, head: u16, chain_len: u16, writable_len: u32) {
        self.offer(&[UsedElement { id: head, len: 0 }]);
        self.writable_len[usize::from(head)] = writable_len;
        self.chain_len[usize::from(head)] = chain_len;
    }

    /// Publishes what was added (2.7.13). Returns true if the device asks to be kicked (2.7.13.4.1).
    #[inline(always)]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.available.view().store_u16(2, new, Release);
        self.published = new;
        // The device stores its event request and then reads the index; we store the index and then read its request.
        // Without this fence, each side may miss the other's store.
        fence(SeqCst);
        if self.event_index {
            passes_event(self.avail_event(), new, old)
        } else {
            self.used_flags() & F_NO_NOTIFICATION == 0
        }
    }

    /// Used entries that are ready to be taken.
    ///
    /// # Errors
    /// A used index that passes the published one, or moves back.
    #[inline(always)]
    pub fn pending_used(&mut self) -> Result<u16, RingError> {
        let used = self.used_idx();
        let outstanding = self.published.wrapping_sub(self.next_used);
        if used.wrapping_sub(self.next_used) > outstanding {
            return Err(RingError::UsedIndex {
                from: self.next_used,
                to: used,
                outstanding,
            });
        }
        self.seen_used = used;
        Ok(used.wrapping_sub(self.next_used))
    }

    /// Takes one used entry and frees its descriptors.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn pop_used(&mut self) -> Result<Option<UsedElement>, RingError> {
        let mut element = [UsedElement::default()];
        let count = self.take_used(&mut element)?;
        Ok((count > 0).then_some(element[0]))
    }

    /// Takes used entries into `elements`, as many as are ready and fit, with one read of the used index; returns how
    /// many. A large batch ends at the end of a cache line of the used ring, so that no line is fetched twice while the
    /// device is writing it.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    #[inline(always)]
    pub fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        if self.in_order {
            return self.take_in_order(elements);
        }
        const ELEMENTS_PER_LINE: usize = CACHE_LINE_LEN / USED_ELEMENT_LEN;
        let mut ready = usize::from(self.seen_used.wrapping_sub(self.next_used));
        if ready < elements.len() {
            ready = usize::from(self.pending_used()?);
        }
        let mut count = ready.min(elements.len());
        if count > ELEMENTS_PER_LINE {
            count -= (usize::from(self.next_used) + count) % ELEMENTS_PER_LINE;
        }
        let size = usize::from(self.layout.size);
        let slot = usize::from(self.next_used) & (size - 1);
        let (run, wrapped) = elements[..count].split_at_mut(count.min(size - slot));
        self.take_run(slot, run)?;
        self.take_run(0, wrapped)?;
        Ok(count)
    }

    /// Takes the used entries from `slot` on.
    #[inline(always)]
    fn take_run(&mut self, slot: usize, elements: &mut [UsedElement]) -> Result<(), RingError> {
        let at = RING_HEADER_LEN + USED_ELEMENT_LEN * slot;
        let (chain_len, free, next) = (
            self.chain_len.as_mut_slice(),
            &mut self.free,
            self.next.as_slice(),
        );
        let mut wrong = None;
        self.used
            .view()
            .read_each::<USED_ELEMENT_LEN>(at, elements.len(), |i, bytes| {
                let bits = u64::from_le_bytes(bytes);
                let id = bits as u32;
                elements[i] = UsedElement {
                    id: id as u16,
                    len: (bits >> 32) as u32,
                };
                match chain_len.get_mut(id as usize) {
                    Some(len) if *len == OFFERED => *len = 0,
                    Some(len) if *len > 0 => free_chain(free, next, id as u16, std::mem::take(len)),
                    _ => wrong = wrong.or(Some((i, id))),
                }
            });
        if let Some((i, id)) = wrong {
            return Err(RingError::UsedId {
                id,
                index: self.next_used.wrapping_add(i as u16),
            });
        }
        self.next_used = self.next_used.wrapping_add(elements.len() as u16);
        Ok(())
    }

    /// Like [`SplitRing::take_used`], for a device that may write one used element for a batch: that of the batch's
    /// last buffer, at the first one's place. Buffers without an element count as completely written (2.7.9).
    fn take_in_order(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        let ready = self.pending_used()?;
        for count in 0..elements.len().min(ready.into()) {
            let last = match self.batch {
                Some(last) => last,
                None => match self.batch_end(ready - count as u16) {
                    Ok(last) => last,
                    Err(error) if count == 0 => return Err(error),
                    Err(_) => return Ok(count),
                },
            };
            elements[count] = self.take_oldest(last);
            self.batch = (elements[count].id != last.id).then_some(last);
            self.next_used = self.next_used.wrapping_add(1);
        }
        Ok(elements.len().min(ready.into()))
    }

    /// The used element at `next_used`, which must be that of one of the next `ready` buffers.
    fn batch_end(&self, ready: u16) -> Result<UsedElement, RingError> {
        let (id, len) = self.used_element(self.next_used);
        let index = self.next_used;
        let outstanding = |id: u16| self.chain_len.get(usize::from(id)).is_some_and(|&n| n > 0);
        let Some(id) = u16::try_from(id).ok().filter(|&id| outstanding(id)) else {
            return Err(RingError::UsedId { id, index });
        };
        if (0..ready).any(|ahead| self.made_available(index.wrapping_add(ahead)) == id) {
            return Ok(UsedElement { id, len });
        }
        Err(RingError::Order {
            id,
            index,
            batch: ready,
        })
    }

    /// Head that was made available at `index`.
    fn made_available(&self, index: u16) -> u16 {
        self.entries[usize::from(index & (self.layout.size - 1))]
    }

    /// Takes back the oldest outstanding buffer of a batch that ends with `last`.
    fn take_oldest(&mut self, last: UsedElement) -> UsedElement {
        let id = self.made_available(self.next_used);
        let mut len = self.writable_len[usize::from(id)];
        match std::mem::take(&mut self.chain_len[usize::from(id)]) {
            OFFERED => {
                let descriptor = self.read_desc(id);
                let writable = descriptor.flags & DESC_F_WRITE != 0;
                len = if writable { descriptor.len } else { 0 };
            }
            descriptors => {
                let mut freed = id;
                for _ in 0..descriptors {
                    // Behind all free ones, so that they are reused in table order.
                    self.free.push_front(freed);
                    freed = self.next[usize::from(freed)];
                }
            }
        }
        if id == last.id {
            last
        } else {
            UsedElement { id, len }
        }
    }

    /// Asks for a call at the next used buffer (2.7.7, 2.7.10). Returns true if one is ready already; then no call may
    /// come.
    ///
    /// # Errors
    /// A used index that passes the published one, or moves back.
    pub fn enable_calls(&mut self) -> Result<bool, RingError> {
        if self.event_index {
            self.set_used_event(self.next_used);
        } else {
            self.set_avail_flags(0);
        }
        fence(SeqCst);
        Ok(self.pending_used()? > 0)
    }

    /// Asks for no calls. With the event index this requests the most distant call: one may come after 65535 used
    /// buffers.
    pub fn disable_calls(&mut self) {
        if self.event_index {
            self.set_used_event(self.next_used.wrapping_sub(1));
        } else {
            self.set_avail_flags(F_NO_NOTIFICATION);
        }
    }
}

/// Bytes of `buffers` that the device may write.
pub(crate) fn writable_len(buffers: &[Buffer]) -> u32 {
    let writable = buffers.iter().filter(|buffer| buffer.device_writes);
    writable.fold(0, |sum, buffer| sum.saturating_add(buffer.len))
}

#[cold]
fn free_chain(free: &mut VecDeque<u16>, next: &[u16], head: u16, descriptors: u16) {
    let mut id = head;
    for _ in 0..descriptors {
        free.push_back(id);
        id = next[usize::from(id)];
    }
}
