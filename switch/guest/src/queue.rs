//! Sends and receives frames on one ring, byte for byte. Made for tests: it allocates, and poisons every returned
//! buffer, so that a device that touches a buffer after having used it is detected.

use crate::memory::{CACHE_LINE_LEN, Window};
use crate::net::{HEADER_LEN, VirtioNetHdr};
use crate::ring::{Buffer, DESCRIPTOR_LEN, RingError, SplitRing, UsedElement};
use crate::virtqueue::Virtqueue;

/// Contents of buffers after the device has used them.
pub const POISON: u8 = 0xDB;
/// Unused bytes between the pieces of a transmitted chain, to detect a device that continues from one piece to the next
/// by address and not by `next`.
pub const PIECE_GAP_LEN: usize = 16;
/// Maximum frames in flight of one transmit queue, whatever the ring's size.
const TX_SLOTS_MAX: u16 = 256;
/// Entries of the largest indirect table.
const TABLE_SIZE_MAX: u16 = 1024;

/// A request of the caller, or an action of the device, that virtio 1.2, 5.1.6 does not allow.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring error.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A frame that needs more room or more descriptors than the queue has.
    #[error("a frame of {len} bytes in {pieces} pieces does not fit this queue")]
    FrameTooLong {
        /// Length in bytes.
        len: usize,
        /// Number of descriptors.
        pieces: usize,
    },
    /// The device claims to have written more than the buffer has, or less than a header; or anything when
    /// transmitting.
    #[error("device: used length {len} of a buffer of {buffer_len} bytes")]
    UsedLen {
        /// Length in bytes, according to the device.
        len: u32,
        /// Length in bytes.
        buffer_len: usize,
    },
    /// `num_buffers` is greater than the number of buffers used at the same time, or 0 (5.1.6.4).
    #[error("device: num_buffers is {num_buffers}, but {used} buffers were used")]
    NumBuffers {
        /// `num_buffers` from the header.
        num_buffers: u16,
        /// Buffers that were used.
        used: u16,
    },
    /// A pump needs a queue with nothing in flight, or with one descriptor for each receive buffer.
    #[error("the queue is busy, or its buffers are chains")]
    NotPumpable,
}

/// How the bytes of a frame and its header are spread over descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChainSplit {
    /// Header and frame in one descriptor.
    #[default]
    Single,
    /// One descriptor for the header, one for the frame.
    HeaderApart,
    /// Pieces of this many bytes each, header first; the last one may be shorter.
    Pieces(usize),
}

impl ChainSplit {
    fn pieces(self, header_len: usize, body_len: usize) -> Vec<usize> {
        let total = header_len + body_len;
        match self {
            Self::Single => vec![total],
            Self::HeaderApart if body_len > 0 => vec![header_len, body_len],
            Self::HeaderApart => vec![header_len],
            Self::Pieces(len) => {
                let len = len.max(1);
                (0..total.div_ceil(len))
                    .map(|i| len.min(total - i * len))
                    .collect()
            }
        }
    }
}

/// Equal parts of guest memory, each with an indirect table if chains are indirect.
#[derive(Debug)]
struct Slots {
    area: Window,
    slot_len: usize,
    tables: Option<Window>,
    table_len: usize,
}

/// Bytes from one slot to the next: an odd number of cache lines, so that slots spread over all sets of a cache.
pub(crate) fn stride(len: usize) -> usize {
    (len.div_ceil(CACHE_LINE_LEN) | 1) * CACHE_LINE_LEN
}

/// Bytes from one receive buffer to the next: the frame begins at a cache line, with the header at the end of the
/// previous line, as with DPDK.
pub(crate) fn receive_stride(buffer_len: usize) -> usize {
    stride(CACHE_LINE_LEN + buffer_len)
}

/// Offset of a receive buffer from the start of its slot.
pub(crate) fn receive_lead(header_len: usize) -> usize {
    CACHE_LINE_LEN - header_len
}

/// Size of the indirect table of one slot, in bytes.
fn table_len(ring_size: u16) -> usize {
    DESCRIPTOR_LEN * usize::from(ring_size.min(TABLE_SIZE_MAX))
}

impl Slots {
    fn address(&self, slot: u16, offset: usize) -> u64 {
        self.area.guest_address() + self.offset(slot, offset) as u64
    }

    fn offset(&self, slot: u16, offset: usize) -> usize {
        usize::from(slot) * self.slot_len + offset
    }

    fn count(&self) -> u16 {
        (self.area.len() / self.slot_len).min(usize::from(u16::MAX)) as u16
    }

    fn add(&self, ring: &mut Virtqueue, slot: u16, buffers: &[Buffer]) -> Option<u16> {
        match &self.tables {
            Some(tables) if buffers.len() > 1 => {
                let table = tables
                    .window(usize::from(slot) * self.table_len, self.table_len)
                    .ok()?;
                ring.add_indirect(&table, buffers)
            }
            _ => ring.add(buffers),
        }
    }

    fn fits(&self, ring: &Virtqueue, pieces: usize) -> bool {
        let size = usize::from(ring.layout().size);
        pieces <= size && (self.tables.is_none() || DESCRIPTOR_LEN * pieces <= self.table_len)
    }
}

/// A transmit queue.
#[derive(Debug)]
pub struct TransmitQueue {
    ring: Virtqueue,
    slots: Slots,
    split: ChainSplit,
    header_len: usize,
    free: Vec<u16>,
    /// By head: slot, and its bytes in use.
    in_flight: Vec<(u16, usize)>,
    completed: u64,
}

impl TransmitQueue {
    /// Bytes of slots and of indirect tables for frames of up to `frame_len_max` bytes.
    #[must_use]
    pub fn memory_len(ring_size: u16, frame_len_max: usize) -> (usize, usize) {
        let slots = usize::from(ring_size.min(TX_SLOTS_MAX));
        // A pump needs a small slot for each ring entry.
        let area =
            (slots * Self::slot_len(frame_len_max)).max(usize::from(ring_size) * stride(2048));
        (area, slots * table_len(ring_size))
    }

    fn slot_len(frame_len_max: usize) -> usize {
        stride(HEADER_LEN + frame_len_max + frame_len_max / 4 + 4 * PIECE_GAP_LEN)
    }

    /// Creates a queue on `ring`, with frames in `area` and indirect tables, if any, in `tables`.
    #[must_use]
    pub fn new(
        ring: impl Into<Virtqueue>,
        area: Window,
        tables: Option<Window>,
        split: ChainSplit,
        frame_len_max: usize,
    ) -> Self {
        let ring = ring.into();
        let size = ring.layout().size;
        let slots = Slots {
            area,
            slot_len: Self::slot_len(frame_len_max),
            tables,
            table_len: table_len(size),
        };
        let count = size.min(TX_SLOTS_MAX).min(slots.count());
        Self {
            ring,
            slots,
            split,
            header_len: HEADER_LEN,
            free: (0..count).rev().collect(),
            in_flight: vec![(0, 0); size.into()],
            completed: 0,
        }
    }

    /// Sets the negotiated header length and event index.
    pub fn start(&mut self, header_len: usize, event_index: bool) {
        self.header_len = header_len;
        self.ring.set_event_index(event_index);
    }

    /// Drops all frames in flight and starts the ring at `base`; see [`Virtqueue::reset`].
    pub fn reset(&mut self, base: u16) {
        self.ring.reset(base);
        self.free = (0..self
            .ring
            .layout()
            .size
            .min(TX_SLOTS_MAX)
            .min(self.slots.count()))
            .rev()
            .collect();
    }

    /// Changes the split of the following frames.
    pub fn set_split(&mut self, split: ChainSplit) {
        self.split = split;
    }

    /// Adds a frame, which the device sees at the next [`Virtqueue::publish`]. Returns false if the ring is full.
    ///
    /// # Errors
    /// A frame that can never fit; faults of the device.
    pub fn send(&mut self, header: &VirtioNetHdr, frame: &[u8]) -> Result<bool, QueueError> {
        self.reap()?;
        let bytes = [&header.to_bytes()[..self.header_len], frame].concat();
        let pieces = self.split.pieces(self.header_len, frame.len());
        let occupied = bytes.len() + PIECE_GAP_LEN * (pieces.len() - 1);
        if occupied > self.slots.slot_len || !self.slots.fits(&self.ring, pieces.len()) {
            return Err(QueueError::FrameTooLong {
                len: frame.len(),
                pieces: pieces.len(),
            });
        }
        let Some(&slot) = self.free.last() else {
            return Ok(false);
        };
        let mut buffers = Vec::with_capacity(pieces.len());
        let (mut from, mut to) = (0, 0);
        for len in pieces {
            self.slots
                .area
                .view()
                .write(self.slots.offset(slot, to), &bytes[from..from + len]);
            let address = self.slots.address(slot, to);
            buffers.push(Buffer {
                address,
                len: len as u32,
                device_writes: false,
            });
            from += len;
            to += len + PIECE_GAP_LEN;
        }
        let Some(head) = self.slots.add(&mut self.ring, slot, &buffers) else {
            return Ok(false);
        };
        self.free.pop();
        self.in_flight[usize::from(head)] = (slot, occupied);
        Ok(true)
    }

    /// Takes back the frames that the device has used; returns how many.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn reap(&mut self) -> Result<usize, QueueError> {
        let mut count = 0;
        while let Some(used) = self.ring.pop_used()? {
            let (slot, occupied) = self.in_flight[usize::from(used.id)];
            if used.len != 0 {
                return Err(QueueError::UsedLen {
                    len: used.len,
                    buffer_len: 0,
                });
            }
            self.slots
                .area
                .view()
                .fill(self.slots.offset(slot, 0), occupied, POISON);
            self.free.push(slot);
            count += 1;
        }
        self.completed += count as u64;
        Ok(count)
    }

    /// Frames that the device has used so far.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// The ring, for everything else.
    pub fn virtqueue(&mut self) -> &mut Virtqueue {
        &mut self.ring
    }

    /// The split ring, for everything else.
    ///
    /// # Panics
    /// If the ring is packed; [`Self::virtqueue`] serves either.
    pub fn ring(&mut self) -> &mut SplitRing {
        self.ring.expect_split()
    }

    /// The memory that contains the frames.
    #[must_use]
    pub fn area(&self) -> &Window {
        &self.slots.area
    }

    /// The parts that a pump needs.
    pub(crate) fn into_parts(mut self) -> Result<(Virtqueue, Window, usize), QueueError> {
        self.reap()?;
        if self.ring.outstanding() > 0 {
            return Err(QueueError::NotPumpable);
        }
        Ok((self.ring, self.slots.area, self.header_len))
    }
}

/// A receive queue.
#[derive(Debug)]
pub struct ReceiveQueue {
    ring: Virtqueue,
    slots: Slots,
    buffer_len: usize,
    split: ChainSplit,
    header_len: usize,
    mergeable: bool,
    repost: bool,
    /// By head: slot.
    slot_of: Vec<u16>,
    /// Slots that the device does not have; the next one to use is last.
    spare: Vec<u16>,
}

impl ReceiveQueue {
    /// Bytes of slots and of indirect tables for buffers of `buffer_len` bytes, header included.
    #[must_use]
    pub fn memory_len(ring_size: u16, buffer_len: usize) -> (usize, usize) {
        let slots = usize::from(ring_size);
        (
            slots * receive_stride(buffer_len),
            slots * table_len(ring_size),
        )
    }

    /// Creates a queue on `ring`, with buffers in `area` and indirect tables, if any, in `tables`. No buffers are
    /// posted yet.
    #[must_use]
    pub fn new(
        ring: impl Into<Virtqueue>,
        area: Window,
        tables: Option<Window>,
        split: ChainSplit,
        buffer_len: usize,
    ) -> Self {
        let ring = ring.into();
        let size = ring.layout().size;
        let slots = Slots {
            area,
            slot_len: receive_stride(buffer_len),
            tables,
            table_len: table_len(size),
        };
        Self {
            slot_of: vec![0; size.into()],
            spare: (0..size.min(slots.count())).rev().collect(),
            ring,
            slots,
            buffer_len,
            split,
            header_len: HEADER_LEN,
            mergeable: false,
            repost: true,
        }
    }

    /// Sets the negotiated header length, event index and mergeable buffers.
    pub fn start(&mut self, header_len: usize, event_index: bool, mergeable: bool) {
        self.header_len = header_len;
        self.mergeable = mergeable;
        self.ring.set_event_index(event_index);
    }

    /// Takes all buffers back, and starts the ring at `base`; see [`Virtqueue::reset`].
    pub fn reset(&mut self, base: u16) {
        self.ring.reset(base);
        self.spare = (0..self.ring.layout().size.min(self.slots.count()))
            .rev()
            .collect();
    }

    /// Sets whether [`ReceiveQueue::receive`] posts buffers again (the default), or leaves this to
    /// [`ReceiveQueue::post`].
    pub fn set_repost(&mut self, repost: bool) {
        self.repost = repost;
    }

    /// Posts up to `count` buffers that the device does not have; the device sees them at the next
    /// [`Virtqueue::publish`]. Returns how many.
    ///
    /// # Errors
    /// Buffers in more pieces than there are ring entries.
    pub fn post(&mut self, count: u16) -> Result<u16, QueueError> {
        let pieces = self
            .split
            .pieces(self.header_len, self.buffer_len - self.header_len);
        if !self.slots.fits(&self.ring, pieces.len()) {
            return Err(QueueError::FrameTooLong {
                len: self.buffer_len,
                pieces: pieces.len(),
            });
        }
        for posted in 0..count {
            let Some(&slot) = self.spare.last() else {
                return Ok(posted);
            };
            let mut offset = receive_lead(self.header_len);
            let buffers: Vec<_> = pieces
                .iter()
                .map(|&len| {
                    let address = self.slots.address(slot, offset);
                    offset += len;
                    Buffer {
                        address,
                        len: len as u32,
                        device_writes: true,
                    }
                })
                .collect();
            let Some(head) = self.slots.add(&mut self.ring, slot, &buffers) else {
                return Ok(posted);
            };
            self.slot_of[usize::from(head)] = slot;
            self.spare.pop();
        }
        Ok(count)
    }

    /// Takes all received frames, with mergeable buffers assembled, and posts the buffers again if so set; the caller
    /// publishes.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn receive(&mut self) -> Result<Vec<(VirtioNetHdr, Vec<u8>)>, QueueError> {
        let mut frames = Vec::new();
        while let Some(used) = self.ring.pop_used()? {
            frames.push(self.receive_one(used)?);
        }
        if self.repost {
            self.post(u16::MAX)?;
        }
        Ok(frames)
    }

    fn receive_one(&mut self, first: UsedElement) -> Result<(VirtioNetHdr, Vec<u8>), QueueError> {
        let mut frame = self.take_buffer(first)?;
        if frame.len() < self.header_len {
            return Err(QueueError::UsedLen {
                len: first.len,
                buffer_len: self.buffer_len,
            });
        }
        let mut bytes = [0; HEADER_LEN];
        bytes[..self.header_len].copy_from_slice(&frame[..self.header_len]);
        let header = VirtioNetHdr::from_bytes(bytes);
        frame.drain(..self.header_len);
        let buffers = if self.mergeable {
            header.num_buffers
        } else {
            1
        };
        for used in 1..buffers.max(1) {
            let Some(next) = self.ring.pop_used()? else {
                return Err(QueueError::NumBuffers {
                    num_buffers: buffers,
                    used,
                });
            };
            frame.extend_from_slice(&self.take_buffer(next)?);
        }
        if buffers == 0 {
            return Err(QueueError::NumBuffers {
                num_buffers: 0,
                used: 1,
            });
        }
        Ok((header, frame))
    }

    fn take_buffer(&mut self, used: UsedElement) -> Result<Vec<u8>, QueueError> {
        let len = used.len as usize;
        if len > self.buffer_len {
            return Err(QueueError::UsedLen {
                len: used.len,
                buffer_len: self.buffer_len,
            });
        }
        let slot = self.slot_of[usize::from(used.id)];
        let at = self.slots.offset(slot, receive_lead(self.header_len));
        let mut bytes = vec![0; len];
        self.slots.area.view().read(at, &mut bytes);
        self.slots.area.view().fill(at, len, POISON);
        self.spare.push(slot);
        Ok(bytes)
    }

    /// Buffers that the device does not have.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare.len()
    }

    /// The ring, for everything else.
    pub fn virtqueue(&mut self) -> &mut Virtqueue {
        &mut self.ring
    }

    /// The split ring, for everything else.
    ///
    /// # Panics
    /// If the ring is packed; [`Self::virtqueue`] serves either.
    pub fn ring(&mut self) -> &mut SplitRing {
        self.ring.expect_split()
    }

    /// The memory that contains the buffers.
    #[must_use]
    pub fn area(&self) -> &Window {
        &self.slots.area
    }

    /// The parts that a pump needs.
    pub(crate) fn into_parts(self) -> Result<ReceiveParts, QueueError> {
        if self.split != ChainSplit::Single {
            return Err(QueueError::NotPumpable);
        }
        let offsets = self
            .slot_of
            .iter()
            .map(|&slot| self.slots.offset(slot, receive_lead(self.header_len)) as u32)
            .collect();
        Ok(ReceiveParts {
            ring: self.ring,
            area: self.slots.area,
            offsets,
            buffer_len: self.buffer_len as u32,
            header_len: self.header_len,
            mergeable: self.mergeable,
        })
    }
}

/// Parts of a receive pump.
pub(crate) struct ReceiveParts {
    pub(crate) ring: Virtqueue,
    pub(crate) area: Window,
    /// By descriptor: offset of its buffer in `area`, in bytes.
    pub(crate) offsets: Vec<u32>,
    pub(crate) buffer_len: u32,
    pub(crate) header_len: usize,
    pub(crate) mergeable: bool,
}
