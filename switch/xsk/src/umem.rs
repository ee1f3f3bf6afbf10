//! A socket's packet memory: fixed-size frames, half for receiving and half for sending.

use rustix::mm::{MapFlags, ProtFlags};

use crosspoint_frame::{Segment, SegmentMut};

/// Bytes of one UMEM frame. A page: the kernel keeps 256 of them before the packet
/// (XDP_PACKET_HEADROOM), and what is left holds frames of an MTU of about 3500.
pub const FRAME_SIZE: u32 = 4096;

/// Where in its UMEM frame a frame to be sent begins, bytes.
pub(crate) const TX_START: u32 = 0;

/// The memory: mapped, never moved, unmapped when the last user is gone.
pub struct Umem {
    base: *mut u8,
    len: usize,
}

// SAFETY: plain mapped memory; who may touch which frame follows from which ring it is in.
unsafe impl Send for Umem {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for Umem {}

impl Umem {
    /// Memory for `frames` frames, present from the start: no page faults later.
    pub fn new(frames: u32) -> std::io::Result<Umem> {
        let len = frames as usize * FRAME_SIZE as usize;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        }?;
        Ok(Umem {
            base: base.cast(),
            len,
        })
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes at offset `at`, if the memory has them.
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

    /// The whole frame that begins at offset `at`, to be filled.
    #[inline(always)]
    pub(crate) fn frame_mut(&self, at: u64) -> Option<SegmentMut> {
        let end = at.checked_add(u64::from(FRAME_SIZE))?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: as in `segment`; no Rust reference is ever made into a UMEM.
        Some(unsafe { SegmentMut::new(self.base.wrapping_add(at as usize), FRAME_SIZE) })
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody holds the Umem any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
