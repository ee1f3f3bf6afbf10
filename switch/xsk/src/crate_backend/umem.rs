//! A socket's packet memory by the crate `xsk-rs`, in the form that `umem.rs` gives it.
//!
//! The crate maps the memory and keeps its address to itself; and it makes a descriptor of each
//! frame once, whose address cannot be changed. So a frame to be sent begins where the crate has
//! it begin, behind the kernel's headroom, and not at the frame's start.

use std::error;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;

use crosspoint_frame::{Segment, SegmentMut};
use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use crate::RING_SIZE;

/// Bytes of one UMEM frame. A page: the kernel keeps 256 of them before the packet
/// (XDP_PACKET_HEADROOM), and what is left holds frames of an MTU of about 3500.
pub const FRAME_SIZE: u32 = 4096;

/// Where in its UMEM frame a frame to be sent begins, bytes: XDP_PACKET_HEADROOM.
pub(crate) const TX_START: u32 = 256;

/// The memory: mapped, never moved, unmapped when the last user is gone.
#[derive(Clone)]
pub struct Umem {
    umem: xsk_rs::Umem,
    /// The descriptor of each frame, by its number.
    descs: Arc<[FrameDesc]>,
    /// Its address.
    base: usize,
}

impl Umem {
    /// Memory for `frames` frames, present from the start: no page faults later.
    pub fn new(frames: u32) -> io::Result<Umem> {
        let queue = QueueSize::new(RING_SIZE).map_err(io::Error::other)?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE).map_err(io::Error::other)?)
            .fill_queue_size(queue)
            .comp_queue_size(queue)
            .build()
            .map_err(io::Error::other)?;
        let count = NonZeroU32::new(frames).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, mut descs) =
            xsk_rs::Umem::new(config, count, false).map_err(|e| source_of(&e))?;
        let base = expose(&umem, &mut descs).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Umem {
            umem,
            descs: descs.into(),
            base,
        })
    }

    /// The crate's, to make sockets with.
    pub(crate) fn inner(&self) -> &xsk_rs::Umem {
        &self.umem
    }

    /// The descriptor of the frame that offset `at` lies in; an empty one if there is none.
    #[inline]
    pub(crate) fn desc_of(&self, at: u64) -> FrameDesc {
        let number = at / u64::from(FRAME_SIZE);
        self.descs.get(number as usize).copied().unwrap_or_default()
    }

    /// The crate's form of `desc`, which begins [`TX_START`] into its frame. Any other beginning
    /// cannot be expressed; an empty frame is sent in its place, which the kernel refuses and
    /// counts (`tx_invalid_descs`).
    #[inline]
    pub(crate) fn desc(&self, desc: libc::xdp_desc) -> FrameDesc {
        let mut known = self.desc_of(desc.addr);
        debug_assert_eq!(known.addr() as u64, desc.addr, "not where the crate has it");
        if known.addr() as u64 != desc.addr {
            return FrameDesc::default();
        }
        // SAFETY: a frame of this UMEM, which is the caller's until it is submitted. The slice
        // is made for its length alone: no byte is touched, and it is gone with this statement.
        let mut data = unsafe { self.umem.data_mut(&mut known) };
        data.cursor().set_pos(desc.len as usize);
        known.set_options(desc.options);
        known
    }

    fn len(&self) -> usize {
        self.descs.len() * FRAME_SIZE as usize
    }

    /// `len` bytes at offset `at`, if the memory has them.
    #[inline(always)]
    pub(crate) fn segment(&self, at: u64, len: u32) -> Option<Segment> {
        let end = at.checked_add(u64::from(len))?;
        if end > self.len() as u64 {
            return None;
        }
        let start = std::ptr::with_exposed_provenance(self.base + at as usize);
        // SAFETY: within the mapping, which outlives every burst: it is dropped by the control
        // thread after the workers have passed a quiescent point.
        Some(unsafe { Segment::new(start, len) })
    }

    /// The frame at offset `at`, which lies [`TX_START`] into it, to be filled.
    #[inline(always)]
    pub(crate) fn frame_mut(&self, at: u64) -> Option<SegmentMut> {
        let room = FRAME_SIZE - TX_START;
        let end = at.checked_add(u64::from(room))?;
        if end > self.len() as u64 {
            return None;
        }
        let start = std::ptr::with_exposed_provenance_mut(self.base + at as usize);
        // SAFETY: as in `segment`. The crate makes references into the memory in `desc` alone,
        // which is not called while anybody writes.
        Some(unsafe { SegmentMut::new(start, room) })
    }
}

/// Lets pointers be made to every frame, and returns the memory's address. Without `None`: each
/// frame lies where its descriptor says.
fn expose(umem: &xsk_rs::Umem, descs: &mut [FrameDesc]) -> Option<usize> {
    let mut base = None;
    for (number, desc) in descs.iter_mut().enumerate() {
        let at = desc.addr();
        // SAFETY: a frame of this UMEM, of which nothing has been given to the kernel yet.
        let mut data = unsafe { umem.data_mut(desc) };
        data.cursor().set_pos(FRAME_SIZE as usize);
        let start = data.contents_mut().as_mut_ptr().expose_provenance();
        data.cursor().set_pos(0);
        let expected = number * FRAME_SIZE as usize + TX_START as usize;
        if at != expected || *base.get_or_insert(start - at) != start - at {
            return None;
        }
    }
    base
}

/// What the kernel said, for those who look at its number; else what the crate says.
pub(crate) fn source_of(error: &(dyn error::Error + 'static)) -> io::Error {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}
