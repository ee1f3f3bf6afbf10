//! Packet memory: fixed-size frames, shared by the sockets of one worker.
//!
//! Each half of a socket, the receiving and the sending one, always has [`RING_SIZE`] frames, but not always the same
//! ones: a frame that arrives at one socket and leaves by another is not copied, but exchanged for a free one of the
//! sending half. So a socket's fill ring is always supplied, whatever happens to the frames that it received.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};

#[cfg(not(feature = "xsk-rs"))]
use rustix::fs::{MemfdFlags, memfd_create};
#[cfg(not(feature = "xsk-rs"))]
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crosspoint_frame::{Segment, SegmentMut};
use serde::{Deserialize, Serialize};

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
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes of packet data that one UMEM frame holds for sending.
pub const TX_ROOM: u32 = FRAME_SIZE - TX_HEADROOM;

/// Kind of pages of packet memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    sockets: u16,
    pages: Pages,
    /// The file that holds the memory, if another process may go on with it.
    file: Option<File>,
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
    #[cfg(not(feature = "xsk-rs"))]
    pub fn new(sockets: u16, pages: Pages, node: Option<u32>) -> io::Result<Umem> {
        let base = map(Umem::len_of(sockets), pages, node, None)?;
        Ok(Umem::with(sockets, pages, base, None))
    }

    /// The same by the crate.
    #[cfg(feature = "xsk-rs")]
    pub fn new(sockets: u16, pages: Pages, node: Option<u32>) -> io::Result<Umem> {
        let (base, inner) = crate_backend::map(Umem::len_of(sockets), pages, node)?;
        Ok(Umem {
            base,
            len: Umem::len_of(sockets),
            owners: owners(sockets),
            sockets,
            pages,
            file: None,
            inner,
        })
    }

    /// Like [`new`](Self::new), in a memory file, with which another process can go on ([`of_file`](Self::of_file)).
    #[cfg(not(feature = "xsk-rs"))]
    pub(crate) fn new_file(sockets: u16, pages: Pages, node: Option<u32>) -> io::Result<Umem> {
        let kind = match pages {
            // Of 2 MiB, whatever the default size is: the length is a multiple of that.
            Pages::Reserved => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Pages::Transparent | Pages::Small => MemfdFlags::empty(),
        };
        let file = File::from(memfd_create("crosspoint-umem", MemfdFlags::CLOEXEC | kind)?);
        let len = Umem::len_of(sockets);
        file.set_len(len as u64)?;
        let base = map(len, pages, node, Some(file.as_fd()))?;
        Ok(Umem::with(sockets, pages, base, Some(file)))
    }

    /// The memory by the crate, which is in no file.
    #[cfg(feature = "xsk-rs")]
    pub(crate) fn new_file(sockets: u16, pages: Pages, node: Option<u32>) -> io::Result<Umem> {
        Umem::new(sockets, pages, node)
    }

    /// Maps the memory that another process has made for `sockets` sockets. No frame has an owner.
    #[cfg(not(feature = "xsk-rs"))]
    pub(crate) fn of_file(file: File, sockets: u16, pages: Pages) -> io::Result<Umem> {
        let len = Umem::len_of(sockets);
        if file.metadata()?.len() != len as u64 {
            return Err(io::Error::other("the packet memory has another size"));
        }
        // Its pages are there: only the mapping is new.
        let base = map(len, Pages::Small, None, Some(file.as_fd()))?;
        let umem = Umem::with(sockets, pages, base, Some(file));
        for owner in &umem.owners {
            owner.store(NO_OWNER, Ordering::Relaxed);
        }
        Ok(umem)
    }

    #[cfg(not(feature = "xsk-rs"))]
    fn with(sockets: u16, pages: Pages, base: *mut u8, file: Option<File>) -> Umem {
        Umem {
            base,
            len: Umem::len_of(sockets),
            owners: owners(sockets),
            sockets,
            pages,
            file,
        }
    }

    /// Returns the number of sockets that it was made for.
    pub(crate) fn sockets(&self) -> u16 {
        self.sockets
    }

    /// Returns the kind of its pages.
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// Returns the file that holds the memory, if another process can go on with it.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Returns the length in bytes of the memory for `sockets` sockets.
    pub(crate) fn len_of(sockets: u16) -> usize {
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

    /// Makes `half` the owner of a frame, given by its number. Returns `false` if there is no such frame, or it has an
    /// owner.
    #[cfg(not(feature = "xsk-rs"))]
    pub(crate) fn claim(&self, frame: u32, half: Half) -> bool {
        let owner = self.owners.get(frame as usize);
        owner.is_some_and(|owner| owner.swap(half.0, Ordering::AcqRel) == NO_OWNER)
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

/// Owner of a frame that is not known to belong to any half.
#[cfg(not(feature = "xsk-rs"))]
const NO_OWNER: u16 = u16::MAX;

/// Returns the owners of the frames of `sockets` sockets, of which none was exchanged.
fn owners(sockets: u16) -> Box<[AtomicU16]> {
    let owner = |frame: usize| AtomicU16::new((frame / RING_SIZE as usize) as u16);
    (0..frames_of(sockets)).map(owner).collect()
}

/// Returns the number of frames for `sockets` sockets.
fn frames_of(sockets: u16) -> usize {
    2 * usize::from(sockets) * RING_SIZE as usize
}

/// Maps `len` bytes of `pages`, all populated: of `file`, or of this process alone.
#[cfg(not(feature = "xsk-rs"))]
fn map(
    len: usize,
    pages: Pages,
    node: Option<u32>,
    file: Option<BorrowedFd<'_>>,
) -> io::Result<*mut u8> {
    let flags = match pages {
        Pages::Reserved => MapFlags::PRIVATE | MapFlags::HUGETLB,
        Pages::Transparent | Pages::Small => MapFlags::PRIVATE,
    };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let place = std::ptr::null_mut();
    let base = match file {
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
        None => unsafe { rustix::mm::mmap_anonymous(place, len, protection, flags) }?,
        Some(file) => map_file(len, file)?,
    };
    // All before the first access, and all only advice: it works too on a kernel without nodes or huge pages.
    if let Some(node) = node.filter(|node| *node < u64::BITS) {
        prefer_node(base.cast(), len, node);
    }
    if pages == Pages::Transparent {
        // SAFETY: our own mapping, whole; its contents stay.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxHugepage) };
    }
    // SAFETY: as above.
    let populated = unsafe { rustix::mm::madvise(base, len, Advice::LinuxPopulateWrite) };
    if let Err(why) = populated
        && why != rustix::io::Errno::INVAL
    {
        // There is too little memory: a page that is touched would end the process.
        // SAFETY: our own mapping, which no other code knows yet.
        let _ = unsafe { rustix::mm::munmap(base, len) };
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    if populated.is_err() {
        // Before Linux 5.14. Of a file, which another process may be writing to, a page is only read: that is enough.
        for at in (0..len).step_by(FRAME_SIZE as usize) {
            // SAFETY: within our own mapping; one that is written to is known to no other code yet.
            unsafe {
                let at = base.cast::<u8>().add(at);
                match file {
                    Some(_) => drop(at.read_volatile()),
                    None => at.write_volatile(0),
                }
            };
        }
    }
    if pages == Pages::Transparent && file.is_some() {
        // A memory file gets huge pages only so, unless the operator has set shmem_enabled (Linux 6.1). Advice too.
        // SAFETY: our own mapping, whole; its contents stay.
        let _ = unsafe { libc::madvise(base, len, libc::MADV_COLLAPSE) };
    }
    Ok(base.cast())
}

/// Maps `len` bytes of `file`, where huge pages are possible: at a multiple of their size.
#[cfg(not(feature = "xsk-rs"))]
fn map_file(len: usize, file: BorrowedFd<'_>) -> io::Result<*mut core::ffi::c_void> {
    let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
    let place = std::ptr::null_mut();
    // SAFETY: a new mapping at an address of the kernel's choice, which nothing accesses.
    let whole = unsafe { rustix::mm::mmap_anonymous(place, len + HUGE, none, flags) }?;
    let before = whole.addr().next_multiple_of(HUGE) - whole.addr();
    let at = whole.wrapping_byte_add(before);
    let (both, flags) = (
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::SHARED | MapFlags::FIXED,
    );
    // SAFETY: in place of a part of our mapping. The file is ours: nothing makes it shorter.
    let mapped = unsafe { rustix::mm::mmap(at, len, both, flags, file, 0) };
    let rest = match mapped {
        Ok(at) => vec![(whole, before), (at.wrapping_byte_add(len), HUGE - before)],
        Err(_) => vec![(whole, len + HUGE)],
    };
    for (at, len) in rest.into_iter().filter(|(_, len)| *len > 0) {
        // SAFETY: parts of our mapping that nothing uses.
        let _ = unsafe { rustix::mm::munmap(at, len) };
    }
    Ok(mapped?)
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
