//! What the two layouts do differently on the receive side.

use crosspoint_frame::Work;

use crate::reserve::{Reservation, Reserve};
use crate::{GuestMemory, RingFault};

/// One receive buffer of the reservation being planned.
#[derive(Clone, Copy, Default)]
pub(crate) struct Buffer {
    pub(crate) id: u16,
    pub(crate) pieces: u16,
    /// Ring entries that it takes.
    pub(crate) entries: u16,
    pub(crate) len: u32,
}
/// What the two layouts do differently on the receive side. Positions count ring entries.
pub(crate) trait RxRing {
    /// From so many entries on the driver's wish cannot say which of them it waits for.
    fn event_range(&self) -> u64;
    /// GET_VRING_BASE's answer for a ring that stands at `head`.
    fn base(&self, head: u64) -> u32;
    fn size(&self) -> u16;
    fn memory(&self) -> &GuestMemory;
    fn prefetch_descriptors(&self, head: u64, count: usize);
    /// How many entries may be taken from `head` on, as far as that is known before they are
    /// read; asks for the lines of the first `wanted`.
    fn offered(&self, reserve: &Reserve, head: u64, wanted: usize) -> Result<usize, RingFault>;
    /// The buffer at a position if it is a single plain descriptor: address, length, id. Null
    /// for anything else.
    fn single(&self, memory: &GuestMemory, at: u64) -> (*mut u8, u32, u16);
    /// Any buffer: its id and entries. `None` when `work` ran out or nothing is available.
    fn chain(
        &self,
        memory: &GuestMemory,
        at: u64,
        indirect: bool,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<Option<(u16, u16)>, RingFault>;
    /// Writes a used entry. `first` is the first of its reservation.
    fn set_used(&self, at: u64, first: bool, buffer: &Buffer, len: u32);
    /// Gives a run back to the driver; `first` is what its first used entry says. Returns the
    /// positions that this worker owes the driver a call for.
    fn publish(
        &self,
        reserve: &Reserve,
        worker: usize,
        run: Reservation,
        first: (u16, u32),
    ) -> Option<(u64, u64)>;
    fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64);
    fn wants_call(&self, old: u64, new: u64) -> bool;
    /// Whether the driver has offered a buffer, now or before the ring came to `head`.
    fn has_begun(&self, head: u64) -> bool;
    /// Whether the driver shows that it has taken all that was given back before `head`.
    fn is_taken(&self, head: u64) -> bool;
}
