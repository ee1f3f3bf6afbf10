//! The driver side of a virtqueue of either format.

use crate::packed::{PackedRing, Position};
use crate::ring::{Buffer, Descriptor, RingError, RingLayout, SplitRing, UsedElement};
use crate::{GuestMemory, Window};
use std::sync::Arc;

/// What a fast loop does with a ring, so that it is compiled once for each format.
pub(crate) trait DriverRing {
    /// Takes used buffers.
    fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError>;

    /// Makes the buffers of `elements` available, by their ids. `write`: each descriptor has changed, or is to be
    /// written as if it had. In a packed ring it has to be in any case.
    fn offer_buffers(
        &mut self,
        elements: &[UsedElement],
        write: bool,
        buffer: impl Fn(u16) -> Buffer,
    );

    /// Shows the device what was added. True when it is to be kicked.
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

/// The same expression for either ring.
macro_rules! either {
    ($queue:expr, $ring:ident => $result:expr) => {
        match $queue {
            Virtqueue::Split($ring) => $result,
            Virtqueue::Packed($ring) => $result,
        }
    };
}

impl Virtqueue {
    /// A ring of the format asked for, with `base` as for [`Virtqueue::reset`].
    ///
    /// # Errors
    /// Those of [`SplitRing::new`] and [`PackedRing::new`].
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

    /// Forgets all that is outstanding, and starts over: a split ring at index `base`, a packed one where it is after
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

    /// The split ring, for tests that know that it is one.
    pub(crate) fn expect_split(&mut self) -> &mut SplitRing {
        self.split_mut().expect("the ring is packed")
    }

    /// Size and addresses.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        either!(self, ring => ring.layout())
    }

    /// Sets what was negotiated: `VIRTIO_F_EVENT_IDX`. Before the device starts.
    pub fn set_event_index(&mut self, event_index: bool) {
        either!(self, ring => ring.set_event_index(event_index));
    }

    /// Sets what was negotiated: `VIRTIO_F_IN_ORDER`. Before the device starts, with nothing outstanding.
    pub fn set_in_order(&mut self, in_order: bool) {
        either!(self, ring => ring.set_in_order(in_order));
    }

    /// Descriptors that [`Virtqueue::add`] can still take.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        either!(self, ring => ring.free_descriptors())
    }

    /// Buffers made available and not yet taken back.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        either!(self, ring => ring.outstanding())
    }

    /// Writes a chain of descriptors, one for each buffer, to be seen at the next [`Virtqueue::publish`]. Returns its
    /// id (the head, in a split ring), or nothing when there are too few free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        either!(self, ring => ring.add(buffers))
    }

    /// As [`Virtqueue::add`], through the indirect table `table` of 16 bytes for each buffer.
    pub fn add_indirect(&mut self, table: &Window, buffers: &[Buffer]) -> Option<u16> {
        either!(self, ring => ring.add_indirect(table, buffers))
    }

    /// Shows the device what was added. True when the device asks to be kicked.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Takes one used buffer, and its descriptors back.
    ///
    /// # Errors
    /// What [`RingError`] says of devices.
    pub fn pop_used(&mut self) -> Result<Option<UsedElement>, RingError> {
        either!(self, ring => ring.pop_used())
    }

    /// Takes used buffers into `elements`, as many as are ready and fit, and says how many.
    ///
    /// # Errors
    /// What [`RingError`] says of devices.
    pub fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        either!(self, ring => ring.take_used(elements))
    }

    /// Used buffers that are ready to be taken.
    ///
    /// # Errors
    /// What [`RingError`] says of devices.
    pub fn pending_used(&mut self) -> Result<u16, RingError> {
        match self {
            Self::Split(ring) => ring.pending_used(),
            Self::Packed(ring) => Ok(ring.pending_used()),
        }
    }

    /// Asks for a call at the next used buffer. True when there is one already, for which no call may come.
    ///
    /// # Errors
    /// What [`RingError`] says of devices.
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
