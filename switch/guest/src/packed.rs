//! The driver side of a packed virtqueue (virtio 1.2, section 2.8).
//!
//! Used like [`crate::ring::SplitRing`]: [`PackedRing::add`] chooses a buffer id and frees it when the device has used
//! it; [`PackedRing::offer`] makes buffers available with ids that the caller chooses, for fast loops. The device sees
//! nothing before [`PackedRing::publish`], which stores the flags of the first new descriptor last.

mod position;
mod raw;
mod used;

pub use position::{Position, Progress};

use crate::memory::{CACHE_LINE_LEN, GuestMemory, View, Window};
use crate::ring::{
    Buffer, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, RING_SIZE_MAX, RingError,
    RingLayout, UsedElement, passes_event, writable_len,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, fence};

/// Descriptor flag: equal to the driver's wrap counter when available (2.8.1).
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Descriptor flag: equal to the device's wrap counter when used (2.8.1).
pub const DESC_F_USED: u16 = 1 << 15;
/// Event flags: notify always (2.8.10).
pub const EVENT_ENABLE: u16 = 0;
/// Event flags: never notify (2.8.10).
pub const EVENT_DISABLE: u16 = 1;
/// Event flags: notify when a certain descriptor is reached; with `EVENT_IDX` only (2.8.10).
pub const EVENT_DESCRIPTOR: u16 = 2;
/// Size of an event suppression area in bytes (2.8.14).
pub const EVENT_LEN: usize = 4;
const WRAP_BITS: u16 = DESC_F_AVAIL | DESC_F_USED;
const POSITION_WRAP: u16 = 1 << 15;
/// Offset of a descriptor's flags; length and id precede them (2.8.13).
const FLAGS_AT: usize = 14;
const LEN_AT: usize = 8;
const DESCRIPTORS_PER_LINE: usize = CACHE_LINE_LEN / DESCRIPTOR_LEN;
/// In `chain_len`: the caller owns the id; one descriptor.
const OFFERED: u16 = u16::MAX;

/// A descriptor as stored in memory (2.8.13): written by the driver when available, and by the device when used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes; in a used descriptor, the bytes that the device wrote.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// `DESC_F_*`.
    pub flags: u16,
}

impl PackedDescriptor {
    #[inline(always)]
    fn of(buffer: &Buffer, id: u16) -> Self {
        let flags = if buffer.device_writes {
            DESC_F_WRITE
        } else {
            0
        };
        Self {
            address: buffer.address,
            len: buffer.len,
            id,
            flags,
        }
    }

    /// Writes all but the flags.
    #[inline(always)]
    fn store_body(self, table: View<'_>, slot: usize) {
        let at = DESCRIPTOR_LEN * slot;
        table.write_array(at, self.address.to_le_bytes());
        table.write_array(at + LEN_AT, self.len.to_le_bytes());
        table.write_array(at + LEN_AT + 4, self.id.to_le_bytes());
    }

    #[inline(always)]
    fn store(self, table: View<'_>, slot: usize) {
        let high = u64::from(self.len) | (u64::from(self.id) << 32) | (u64::from(self.flags) << 48);
        let bytes = (u128::from(self.address) | (u128::from(high) << 64)).to_le_bytes();
        table.write_array(DESCRIPTOR_LEN * slot, bytes);
    }

    fn load(table: View<'_>, slot: usize) -> Self {
        let flags = table.load_u16(DESCRIPTOR_LEN * slot + FLAGS_AT, Acquire);
        let bits = u128::from_le_bytes(table.read_array(DESCRIPTOR_LEN * slot));
        Self {
            address: bits as u64,
            len: (bits >> 64) as u32,
            id: (bits >> 96) as u16,
            flags,
        }
    }
}

/// An event suppression area (2.8.14): the notifications that one side requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventArea {
    /// Slot, and wrap counter in bit 15; valid with `EVENT_DESCRIPTOR` only.
    pub position: u16,
    /// `EVENT_*` in the low two bits.
    pub flags: u16,
}

/// The driver side of a packed virtqueue. In its [`RingLayout`], `available` is the driver event suppression area and
/// `used` the device's, as in vhost-user.
#[derive(Debug)]
pub struct PackedRing {
    layout: RingLayout,
    descriptors: Window,
    driver_event: Window,
    device_event: Window,
    event_index: bool,
    in_order: bool,
    /// The next slot to fill.
    available: Position,
    /// The next slot that the device uses.
    used: Position,
    /// Slot and flags of the first unpublished descriptor.
    first_unpublished: Option<(u16, u16)>,
    /// Unpublished descriptors.
    unpublished: u16,
    /// Outstanding buffers, including unpublished ones.
    outstanding: u16,
    free_slots: u16,
    /// Free ids; the next one to use is last.
    free_ids: VecDeque<u16>,
    /// By id: descriptors of the outstanding buffer, 0 if there is none, or `OFFERED`.
    chain_len: Vec<u16>,
    /// By id: bytes that the device may write. With `in_order` only.
    writable_len: Vec<u32>,
    /// By slot: id of the buffer that starts there. With `in_order` only.
    id_at: Vec<u16>,
    /// Last buffer of a batch that the device has used in order, while other buffers of the batch are still to be
    /// taken.
    batch: Option<UsedElement>,
    /// `used`, for code that does not own the ring.
    progress: Progress,
}

impl PackedRing {
    /// Zeroes the ring's memory and starts both sides at `base`.
    ///
    /// # Errors
    /// A size or an address that section 2.8 does not allow, or that is outside guest memory.
    pub fn new(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        base: Position,
        event_index: bool,
    ) -> Result<Self, RingError> {
        let size = layout.size;
        if size == 0 || size > RING_SIZE_MAX {
            return Err(RingError::PackedSize(size));
        }
        if !layout.descriptors.is_multiple_of(16)
            || !layout.available.is_multiple_of(4)
            || !layout.used.is_multiple_of(4)
        {
            return Err(RingError::Misaligned(layout));
        }
        let descriptors = memory.window(layout.descriptors, DESCRIPTOR_LEN * usize::from(size))?;
        let mut ring = Self {
            layout,
            driver_event: memory.window(layout.available, EVENT_LEN)?,
            device_event: memory.window(layout.used, EVENT_LEN)?,
            event_index,
            in_order: false,
            available: base,
            used: base,
            first_unpublished: None,
            unpublished: 0,
            outstanding: 0,
            free_slots: size,
            free_ids: VecDeque::with_capacity(size.into()),
            chain_len: vec![0; size.into()],
            writable_len: vec![0; size.into()],
            id_at: vec![0; size.into()],
            batch: None,
            progress: Progress {
                descriptors: descriptors.clone(),
                size,
                used: Arc::new(AtomicU16::new(0)),
            },
            descriptors,
        };
        ring.reset(base);
        Ok(ring)
    }

    /// Drops all outstanding buffers, zeroes the ring's memory and starts both sides at `base`, as a driver that resets
    /// its device.
    pub fn reset(&mut self, base: Position) {
        for part in [&self.driver_event, &self.device_event] {
            part.view().fill(0, part.len(), 0);
        }
        // In a lap with the wrap counter at 0, zeroed descriptors would count as used: write what the previous lap
        // left.
        for slot in 0..self.layout.size {
            let wrap = if slot < base.slot {
                base.wrap
            } else {
                !base.wrap
            };
            self.write_desc(
                slot,
                PackedDescriptor {
                    address: 0,
                    len: 0,
                    id: 0,
                    flags: if wrap { WRAP_BITS } else { 0 },
                },
            );
        }
        (self.available, self.used) = (base, base);
        (self.first_unpublished, self.unpublished) = (None, 0);
        (self.outstanding, self.batch) = (0, None);
        self.free_slots = self.layout.size;
        self.free_ids.clear();
        self.free_ids.extend((0..self.layout.size).rev());
        self.chain_len.fill(0);
        self.progress.used.store(base.to_bits(), Release);
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

    /// Sets whether `VIRTIO_F_IN_ORDER` is in force: a used descriptor then stands for all buffers made available
    /// before its own. Before the device starts, with nothing outstanding.
    pub fn set_in_order(&mut self, in_order: bool) {
        self.in_order = in_order;
    }

    /// Number of descriptors that [`PackedRing::add`] can still take.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free_slots.into()
    }

    /// Buffers made available and not yet taken back.
    #[inline(always)]
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Position of the next buffer that the driver makes available.
    #[must_use]
    pub fn available_position(&self) -> Position {
        self.available
    }

    /// Position where the driver expects the next used descriptor.
    #[must_use]
    pub fn used_position(&self) -> Position {
        self.used
    }

    /// The device's position, including used descriptors that the driver has not taken yet. A device that keeps the
    /// order continues there.
    #[must_use]
    pub fn device_position(&self) -> Position {
        self.walk_used().0
    }

    /// The ring's progress, readable while a pump owns the ring.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Writes a chain of descriptors, one for each buffer, and makes it available at the next [`PackedRing::publish`].
    /// Returns its buffer id, or `None` if there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > usize::from(self.free_slots) {
            return None;
        }
        let id = self.free_ids.pop_back()?;
        let start = self.available.slot;
        for (i, buffer) in buffers.iter().enumerate() {
            let mut descriptor = PackedDescriptor::of(buffer, id);
            if i + 1 < buffers.len() {
                descriptor.flags |= DESC_F_NEXT;
            }
            self.push(descriptor);
        }
        self.note(id, start, buffers.len() as u16, writable_len(buffers));
        Some(id)
    }

    /// Writes the chain into `table` and makes one indirect descriptor available (2.8.7). `table` has 16 bytes for each
    /// buffer; the caller must not change it until the id is used.
    pub fn add_indirect(&mut self, table: &Window, buffers: &[Buffer]) -> Option<u16> {
        let len = DESCRIPTOR_LEN * buffers.len();
        if buffers.is_empty() || len > table.len() || self.free_slots == 0 {
            return None;
        }
        let id = self.free_ids.pop_back()?;
        for (i, buffer) in buffers.iter().enumerate() {
            // Id and all flags except WRITE are reserved there.
            PackedDescriptor::of(buffer, 0).store(table.view(), i);
        }
        let start = self.available.slot;
        self.push(PackedDescriptor {
            address: table.guest_address(),
            len: len as u32,
            id,
            flags: DESC_F_INDIRECT,
        });
        self.note(id, start, 1, writable_len(buffers));
        Some(id)
    }

    /// Makes buffers of one descriptor each available at the next [`PackedRing::publish`], with ids below the ring size
    /// that the caller chooses and owns. There must be enough free descriptors. Must not be mixed with
    /// [`PackedRing::add`] on one ring.
    #[inline(always)]
    pub fn offer(&mut self, buffers: impl Iterator<Item = (u16, Buffer)>) {
        // Copied to locals, so that the loop keeps them in registers: through `self`, each would be loaded again after
        // each write to guest memory.
        let (table, size, in_order) = (self.descriptors.view(), self.layout.size, self.in_order);
        let chain_len = self.chain_len.as_mut_slice();
        let (mut first, mut at, mut count) = (self.first_unpublished, self.available, 0);
        for (id, buffer) in buffers {
            let mut descriptor = PackedDescriptor::of(&buffer, id);
            descriptor.flags |= at.available_bits();
            if first.is_none() {
                descriptor.store_body(table, at.slot.into());
                first = Some((at.slot, descriptor.flags));
            } else {
                descriptor.store(table, at.slot.into());
            }
            chain_len[usize::from(id)] = OFFERED;
            if in_order {
                self.id_at[usize::from(at.slot)] = id;
                self.writable_len[usize::from(id)] = writable_len(&[buffer]);
            }
            at = at.advance(1, size);
            count += 1;
        }
        self.first_unpublished = first;
        debug_assert!(count <= self.free_slots);
        self.available = at;
        self.unpublished += count;
        self.outstanding += count;
        self.free_slots = self.free_slots.wrapping_sub(count);
    }

    /// Writes a descriptor at the next slot, without the flags if it is the first one since `publish`.
    fn push(&mut self, mut descriptor: PackedDescriptor) {
        let slot = self.available.slot;
        descriptor.flags |= self.available.available_bits();
        if self.first_unpublished.is_none() {
            descriptor.store_body(self.descriptors.view(), slot.into());
            self.first_unpublished = Some((slot, descriptor.flags));
        } else {
            descriptor.store(self.descriptors.view(), slot.into());
        }
        self.available = self.available.advance(1, self.layout.size);
        self.unpublished += 1;
        self.free_slots -= 1;
    }

    /// Records a buffer that was added from slot `start` on.
    fn note(&mut self, id: u16, start: u16, descriptors: u16, writable_len: u32) {
        self.chain_len[usize::from(id)] = descriptors;
        self.writable_len[usize::from(id)] = writable_len;
        self.id_at[usize::from(start)] = id;
        self.outstanding += 1;
    }

    /// Publishes what was added. Returns true if the device asks to be kicked (2.8.21).
    #[inline(always)]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let Some((slot, flags)) = self.first_unpublished.take() else {
            return false;
        };
        let at = DESCRIPTOR_LEN * usize::from(slot) + FLAGS_AT;
        self.descriptors.view().store_u16(at, flags, Release);
        let count = std::mem::take(&mut self.unpublished);
        // The device stores its event request and then reads the flags; we store the flags and then read its request.
        // Without this fence, each side may miss the other's store.
        fence(SeqCst);
        let wish = self.device_event();
        match wish.flags & 3 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_index => {
                let (new, at) = (self.available.slot, Position::from_bits(wish.position));
                let lap = if at.wrap == self.available.wrap {
                    0
                } else {
                    self.layout.size
                };
                passes_event(at.slot.wrapping_sub(lap), new, new.wrapping_sub(count))
            }
            _ => true,
        }
    }

    /// Asks for a call at the next used buffer (2.8.10). Returns true if one is ready already; then no call may come.
    pub fn enable_calls(&mut self) -> bool {
        let flags = if self.event_index {
            EVENT_DESCRIPTOR
        } else {
            EVENT_ENABLE
        };
        let position = self.used.to_bits();
        self.set_driver_event(EventArea { position, flags });
        fence(SeqCst);
        self.pending_used() > 0
    }

    /// Asks for no calls.
    pub fn disable_calls(&mut self) {
        self.set_driver_event(EventArea {
            position: 0,
            flags: EVENT_DISABLE,
        });
    }
}

/// Position and flags in one store: a reader never sees one without the other.
fn store_event(area: &Window, event: EventArea) {
    let bits = u32::from(event.position) | (u32::from(event.flags) << 16);
    area.view().store_u32(0, bits, Release);
}

#[inline(always)]
fn load_event(area: &Window) -> EventArea {
    let bits = area.view().load_u32(0, Relaxed);
    EventArea {
        position: bits as u16,
        flags: (bits >> 16) as u16,
    }
}
