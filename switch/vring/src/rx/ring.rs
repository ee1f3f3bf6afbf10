//! Receive-side interface of the two ring layouts.

use crosspoint_frame::Work;
use crosspoint_memory::GuestMemory;

use crate::RingFault;
use crate::reserve::{Reservation, Reserve};

/// One receive buffer of the reservation being planned.
#[derive(Clone, Copy, Default)]
pub(crate) struct Buffer {
    pub(crate) id: u16,
    pub(crate) pieces: u16,
    /// Ring entries that the buffer takes.
    pub(crate) entries: u16,
    pub(crate) len: u32,
}
/// Receive-side operations that differ between the layouts. Positions count ring entries.
pub(crate) trait RxRing {
    /// Number of published entries from which the event index is ambiguous, so a call is always made.
    fn event_range(&self) -> u64;
    /// GET_VRING_BASE's answer for a ring at position `head`.
    fn base(&self, head: u64) -> u32;
    fn size(&self) -> u16;
    fn memory(&self) -> &GuestMemory;
    fn prefetch_descriptors(&self, head: u64, count: usize);
    /// Number of entries that may be taken from `head` on, as far as known before they are read. Prefetches the cache
    /// lines of the first `wanted`.
    fn offered(&self, reserve: &Reserve, head: u64, wanted: usize) -> Result<usize, RingFault>;
    /// The buffer at a position if it is a single plain descriptor: address, length, id. Null for anything else.
    fn single(&self, memory: &GuestMemory, at: u64) -> (*mut u8, u32, u16);
    /// Walks any buffer and returns its id and number of entries. `None` if `work` ran out or no buffer is available.
    fn chain(
        &self,
        memory: &GuestMemory,
        at: u64,
        indirect: bool,
        work: &mut Work,
        piece: &mut dyn FnMut(*mut u8, u32),
    ) -> Result<Option<(u16, u16)>, RingFault>;
    /// Writes a used entry. `first` marks the first entry of its reservation.
    fn set_used(&self, at: u64, first: bool, buffer: &Buffer, len: u32);
    /// Returns a run to the driver; `first` is its first used entry (id and length). The result is the positions that
    /// this worker must call the driver for.
    fn publish(
        &self,
        reserve: &Reserve,
        worker: usize,
        run: Reservation,
        first: (u16, u32),
    ) -> Option<(u64, u64)>;
    fn mark_used(&self, memory: &GuestMemory, from: u64, to: u64);
    fn wants_call(&self, old: u64, new: u64) -> bool;
    /// Whether the driver has made a buffer available, now or before the ring reached `head`.
    fn has_begun(&self, head: u64) -> bool;
    /// Whether the ring shows that the driver has taken everything that was returned before `head`.
    fn is_taken(&self, head: u64) -> bool;
}
