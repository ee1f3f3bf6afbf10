//! Packet memory: fixed-size frames, shared by the sockets of one worker.
//!
//! Each half of a socket, the receiving and the sending one, always has [`RING_SIZE`] frames, but not always the same
//! ones: a frame that arrives at one socket and leaves by another is not copied, but exchanged for a free one of the
//! sending half. So a socket's fill ring is always supplied, whatever happens to the frames that it received.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

#[cfg(not(feature = "xsk-rs"))]
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crosspoint_frame::{Segment, SegmentMut};

use crate::RING_SIZE;
#[cfg(feature = "xsk-rs")]
use crate::crate_backend::{self, Frames};

/// Bytes of one UMEM frame. A page: the kernel reserves 256 bytes before the packet (XDP_PACKET_HEADROOM), and the rest
/// holds frames of an MTU of about 3500. Longer frames take several.
pub const FRAME_SIZE: u32 = 4096;
/// Bytes before a frame that is sent: room for a request to the NIC, and the data begins on a cache line.
#[cfg(not(feature = "xsk-rs"))]
pub const TX_HEADROOM: u32 = 64;
/// Bytes before a frame that is sent, as the crate requires.
#[cfg(feature = "xsk-rs")]
pub use crate::crate_backend::TX_HEADROOM;
/// Bytes of packet data that one UMEM frame holds for sending.
pub const TX_ROOM: u32 = FRAME_SIZE - TX_HEADROOM;

/// Kind of pages of packet memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pages {
    /// Huge pages if the kernel finds some (madvise(2), MADV_HUGEPAGE).
    #[default]
    Transparent,
    /// Huge pages that the operator has reserved (vm.nr_hugepages); an error if there are none.
    Reserved,
    /// Ordinary pages.
    Small,
}

/// The memory: mapped, never moved, unmapped when the last user releases it.
pub struct Umem {
    base: *mut u8,
    len: usize,
    /// The socket half that each frame belongs to, by frame number. Written by the worker that owns both halves, and read
    /// by the thread that opens a socket in place of a closed one.
    owners: Box<[AtomicU16]>,
    /// The crate's handle, which maps and unmaps the memory.
    #[cfg(feature = "xsk-rs")]
    pub(crate) inner: Frames,
}

// SAFETY: plain mapped memory; the ring that a frame is in decides which thread may access it.
unsafe impl Send for Umem {}
// SAFETY: as above; the fields that change are atomic.
unsafe impl Sync for Umem {}

/// Half of a socket, as an owner of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Half(u16);

impl Half {
    /// The receiving half of the socket in slot `slot`.
    pub(crate) fn rx(slot: u16) -> Half {
        Half(2 * slot)
    }

    /// The sending half.
    pub(crate) fn tx(slot: u16) -> Half {
        Half(2 * slot + 1)
    }
}

impl Umem {
    /// Allocates memory for `sockets` sockets, populated at once: no page faults later. If `node` is given, it is on that
    /// memory node if there is room.
    pub fn new(sockets: u16, pages: Pages, node: Option<u32>) -> io::Result<Umem> {
        let frames = frames_of(sockets);
        let len = Umem::len_of(sockets);
        #[cfg(not(feature = "xsk-rs"))]
        let base = map(len, pages, node)?;
        #[cfg(feature = "xsk-rs")]
        let (base, inner) = crate_backend::map(len, pages, node)?;
        let owner = |frame: usize| AtomicU16::new((frame / RING_SIZE as usize) as u16);
        Ok(Umem {
            base,
            len,
            owners: (0..frames).map(owner).collect(),
            #[cfg(feature = "xsk-rs")]
            inner,
        })
    }

    /// Returns the length in bytes of the memory for `sockets` sockets.
    pub(crate) fn len_of(sockets: u16) -> usize {
        const HUGE: usize = 2 << 20;
        (frames_of(sockets) * FRAME_SIZE as usize).next_multiple_of(HUGE)
    }

    #[cfg(not(feature = "xsk-rs"))]
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    #[cfg(not(feature = "xsk-rs"))]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns a unique identity of this memory: see [`FrameSwap`](crosspoint_frame::FrameSwap).
    #[inline(always)]
    pub(crate) fn identity(&self) -> usize {
        self.base as usize
    }

    /// Returns the start addresses of a half's [`RING_SIZE`] frames.
    pub(crate) fn frames_of(&self, half: Half) -> Vec<u64> {
        let of_half = |(_, owner): &(usize, &AtomicU16)| owner.load(Ordering::Acquire) == half.0;
        let owners = self.owners.iter().enumerate();
        owners
            .filter(of_half)
            .map(|(frame, _)| frame as u64 * u64::from(FRAME_SIZE))
            .collect()
    }

    /// Exchanges the owners of two frames, given by addresses within them.
    #[inline(always)]
    pub(crate) fn exchange(&self, a: u64, b: u64) {
        let at = |address: u64| self.owners.get((address / u64::from(FRAME_SIZE)) as usize);
        if let (Some(a), Some(b)) = (at(a), at(b)) {
            let of_a = a.load(Ordering::Relaxed);
            a.store(b.load(Ordering::Relaxed), Ordering::Release);
            b.store(of_a, Ordering::Release);
        }
    }

    /// Returns `len` bytes at offset `at`, if the memory has them.
    #[inline(always)]
    pub(crate) fn segment(&self, at: u64, len: u32) -> Option<Segment> {
        let end = at.checked_add(u64::from(len))?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: within the mapping, which outlives every burst: it is dropped by the control
        // thread after the workers have passed a quiescent point.
        Some(unsafe { Segment::new(self.base.wrapping_add(at as usize), len) })
    }

    /// Returns `len` bytes at offset `at` for writing, if the memory has them.
    #[inline(always)]
    pub(crate) fn segment_mut(&self, at: u64, len: u32) -> Option<SegmentMut> {
        let end = at.checked_add(u64::from(len))?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: as in `segment`; no Rust reference is ever made into a UMEM.
        Some(unsafe { SegmentMut::new(self.base.wrapping_add(at as usize), len) })
    }
}

/// Returns the number of frames for `sockets` sockets.
fn frames_of(sockets: u16) -> usize {
    2 * usize::from(sockets) * RING_SIZE as usize
}

/// Maps `len` bytes of `pages`, all populated.
#[cfg(not(feature = "xsk-rs"))]
fn map(len: usize, pages: Pages, node: Option<u32>) -> io::Result<*mut u8> {
    let flags = match pages {
        Pages::Reserved => MapFlags::PRIVATE | MapFlags::HUGETLB,
        Pages::Transparent | Pages::Small => MapFlags::PRIVATE,
    };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
    let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
    // All before the first access, and all only advice: it works too on a kernel without nodes or huge pages.
    if let Some(node) = node.filter(|node| *node < u64::BITS) {
        prefer_node(base.cast(), len, node);
    }
    if pages == Pages::Transparent {
        // SAFETY: our own mapping, whole; its contents stay.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxHugepage) };
    }
    // SAFETY: as above.
    if unsafe { rustix::mm::madvise(base, len, Advice::LinuxPopulateWrite) }.is_err() {
        // Before Linux 5.14.
        for at in (0..len).step_by(FRAME_SIZE as usize) {
            // SAFETY: within our own mapping, which no other code knows yet.
            unsafe { base.cast::<u8>().add(at).write_volatile(0) };
        }
    }
    Ok(base.cast())
}

/// Asks for pages of memory node `node`: mbind(2), MPOL_PREFERRED.
#[cfg(not(feature = "xsk-rs"))]
fn prefer_node(base: *mut u8, len: usize, node: u32) {
    let nodes = 1u64 << node;
    // SAFETY: our own mapping, whole; the mask is 64 bits long and read during the call only. libc has no function for
    // it. The kernel ignores the last bit unless the number of bits is one more.
    unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base,
            len,
            libc::MPOL_PREFERRED,
            &raw const nodes,
            u64::BITS + 1,
            0,
        )
    };
}

#[cfg(not(feature = "xsk-rs"))]
impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference to the Umem is left.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_half_keeps_its_number_of_frames_through_exchanges() {
        let umem = Umem::new(2, Pages::Transparent, Some(0)).expect("memory");
        let halves = [0, 1].map(|slot| (Half::rx(slot), Half::tx(slot)));
        let (theirs, ours) = (umem.frames_of(halves[0].0), umem.frames_of(halves[1].1));
        for (a, b) in theirs.iter().zip(&ours).step_by(3) {
            umem.exchange(a + 256, *b);
        }
        for half in halves.iter().flat_map(|(rx, tx)| [rx, tx]) {
            assert_eq!(umem.frames_of(*half).len(), RING_SIZE as usize);
        }
        assert!(umem.frames_of(halves[1].1).contains(&theirs[0]));
    }
}
