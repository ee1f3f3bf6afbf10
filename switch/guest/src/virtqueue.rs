//! The driver side of a virtqueue of either format.

use crate::packed::{PackedRing, Position};
use crate::ring::{Buffer, Descriptor, RingError, RingLayout, SplitRing, UsedElement};
use crate::{GuestMemory, Window};
use std::sync::Arc;

/// Ring operations of a fast loop, compiled once for each format.
pub(crate) trait DriverRing {
    /// Takes used buffers.
    fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError>;

    /// Makes the buffers of `elements` available, by their ids. `write`: each descriptor has changed, or must be
    /// written as if it had. A packed ring always writes it.
    fn offer_buffers(
        &mut self,
        elements: &[UsedElement],
        write: bool,
        buffer: impl Fn(u16) -> Buffer,
    );

    /// Publishes what was added. Returns true if the device must be kicked.
    fn publish(&mut self) -> bool;
}

impl DriverRing for SplitRing {
    #[inline(always)]
    fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        Self::take_used(self, elements)
    }

    #[inline(always)]
    fn offer_buffers(
        &mut self,
        elements: &[UsedElement],
        write: bool,
        buffer: impl Fn(u16) -> Buffer,
    ) {
        if write {
            self.write_descs(
                elements
                    .iter()
                    .map(|e| (e.id, Descriptor::of(&buffer(e.id), None))),
            );
        }
        self.offer(elements);
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        Self::publish(self)
    }
}

impl DriverRing for PackedRing {
    #[inline(always)]
    fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        Self::take_used(self, elements)
    }

    #[inline(always)]
    fn offer_buffers(
        &mut self,
        elements: &[UsedElement],
        _write: bool,
        buffer: impl Fn(u16) -> Buffer,
    ) {
        self.offer(elements.iter().map(|e| (e.id, buffer(e.id))));
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        Self::publish(self)
    }
}

/// The driver side of a split or a packed virtqueue.
#[derive(Debug)]
pub enum Virtqueue {
    /// Section 2.7.
    Split(SplitRing),
    /// Section 2.8.
    Packed(PackedRing),
}

impl From<SplitRing> for Virtqueue {
    fn from(ring: SplitRing) -> Self {
        Self::Split(ring)
    }
}

impl From<PackedRing> for Virtqueue {
    fn from(ring: PackedRing) -> Self {
        Self::Packed(ring)
    }
}

/// Evaluates the same expression for either ring.
macro_rules! either {
    ($queue:expr, $ring:ident => $result:expr) => {
        match $queue {
            Virtqueue::Split($ring) => $result,
            Virtqueue::Packed($ring) => $result,
        }
    };
}

impl Virtqueue {
    /// Creates a ring of the requested format, with `base` as for [`Virtqueue::reset`].
    ///
    /// # Errors
    /// Errors of [`SplitRing::new`] and [`PackedRing::new`].
    pub fn new(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        packed: bool,
        base: u16,
    ) -> Result<Self, RingError> {
        Ok(if packed {
            let base = Position::after(base, layout.size);
            PackedRing::new(memory, layout, base, false)?.into()
        } else {
            SplitRing::new(memory, layout, base, false)?.into()
        })
    }

    /// Drops all outstanding buffers and starts over: a split ring at index `base`, a packed one at its position after
    /// `base` descriptors, so that 0 is the usual start of either.
    pub fn reset(&mut self, base: u16) {
        match self {
            Self::Split(ring) => ring.reset(base),
            Self::Packed(ring) => ring.reset(Position::after(base, ring.layout().size)),
        }
    }

    /// The split ring, if it is one.
    #[must_use]
    pub fn split_mut(&mut self) -> Option<&mut SplitRing> {
        match self {
            Self::Split(ring) => Some(ring),
            Self::Packed(_) => None,
        }
    }

    /// The packed ring, if it is one.
    #[must_use]
    pub fn packed_mut(&mut self) -> Option<&mut PackedRing> {
        match self {
            Self::Split(_) => None,
            Self::Packed(ring) => Some(ring),
        }
    }

    /// The split ring; panics if the ring is packed.
    pub(crate) fn expect_split(&mut self) -> &mut SplitRing {
        self.split_mut().expect("the ring is packed")
    }

    /// Size and addresses.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        either!(self, ring => ring.layout())
    }

    /// Sets whether `VIRTIO_F_EVENT_IDX` was negotiated. Call it before the device starts.
    pub fn set_event_index(&mut self, event_index: bool) {
        either!(self, ring => ring.set_event_index(event_index));
    }

    /// Sets whether `VIRTIO_F_IN_ORDER` was negotiated. Call it before the device starts, with nothing outstanding.
    pub fn set_in_order(&mut self, in_order: bool) {
        either!(self, ring => ring.set_in_order(in_order));
    }

    /// Number of descriptors that [`Virtqueue::add`] can still take.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        either!(self, ring => ring.free_descriptors())
    }

    /// Buffers made available and not yet taken back.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        either!(self, ring => ring.outstanding())
    }

    /// Writes a chain of descriptors, one for each buffer, which the device sees at the next [`Virtqueue::publish`].
    /// Returns its id (the head, in a split ring), or `None` if there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        either!(self, ring => ring.add(buffers))
    }

    /// Like [`Virtqueue::add`], through the indirect table `table` of 16 bytes for each buffer.
    pub fn add_indirect(&mut self, table: &Window, buffers: &[Buffer]) -> Option<u16> {
        either!(self, ring => ring.add_indirect(table, buffers))
    }

    /// Publishes what was added. Returns true if the device asks to be kicked.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Takes one used buffer and frees its descriptors.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn pop_used(&mut self) -> Result<Option<UsedElement>, RingError> {
        either!(self, ring => ring.pop_used())
    }

    /// Takes used buffers into `elements`, as many as are ready and fit; returns how many.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        either!(self, ring => ring.take_used(elements))
    }

    /// Used buffers that are ready to be taken.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn pending_used(&mut self) -> Result<u16, RingError> {
        match self {
            Self::Split(ring) => ring.pending_used(),
            Self::Packed(ring) => Ok(ring.pending_used()),
        }
    }

    /// Asks for a call at the next used buffer. Returns true if one is ready already; then no call may come.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn enable_calls(&mut self) -> Result<bool, RingError> {
        match self {
            Self::Split(ring) => ring.enable_calls(),
            Self::Packed(ring) => Ok(ring.enable_calls()),
        }
    }

    /// Asks for no calls.
    pub fn disable_calls(&mut self) {
        either!(self, ring => ring.disable_calls());
    }
}
