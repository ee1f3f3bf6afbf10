//! AF_XDP by the crate `xsk-rs`, with the feature of that name. Only the parts that differ are here: packet memory (this
//! file), the rings (`ring.rs`), and opening a socket (`opening.rs`). The code that receives, sends and hands off is the
//! same.
//!
//! The crate maps the memory, and makes a descriptor of each frame once; its address cannot be changed. So:
//!
//! - a sent frame begins after the kernel's headroom, and has that much less room;
//! - a frame is copied from one NIC to the other, and no memory is exchanged;
//! - each socket has a UMEM of its own;
//! - checksums are computed here, since the crate registers no UMEM with room for requests;
//! - neither a memory node nor transparent huge pages are requested.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::{error, io};

use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use crate::{FRAME_SIZE, Pages, RING_SIZE};

/// Offset of packet data in a UMEM frame, bytes: XDP_PACKET_HEADROOM.
pub const TX_HEADROOM: u32 = 256;

/// The crate's packet memory.
#[derive(Clone)]
pub(crate) struct Frames {
    umem: xsk_rs::Umem,
    /// The descriptor of each frame, by its number.
    descs: Arc<[FrameDesc]>,
}

/// Maps `len` bytes, all populated, and returns their address. They are unmapped with the last clone of the returned
/// `Frames`.
pub(crate) fn map(len: usize, pages: Pages, _: Option<u32>) -> io::Result<(*mut u8, Frames)> {
    let queue = QueueSize::new(RING_SIZE).map_err(io::Error::other)?;
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(FRAME_SIZE).map_err(io::Error::other)?)
        .fill_queue_size(queue)
        .comp_queue_size(queue)
        .build()
        .map_err(io::Error::other)?;
    let count = u32::try_from(len / FRAME_SIZE as usize).map_err(io::Error::other)?;
    let count = NonZeroU32::new(count).ok_or(io::ErrorKind::InvalidInput)?;
    let made = xsk_rs::Umem::new(config, count, pages == Pages::Reserved);
    let (umem, descs) = made.map_err(|error| source_of(&error))?;
    let place = |number: usize| number * FRAME_SIZE as usize + TX_HEADROOM as usize;
    if descs
        .iter()
        .map(FrameDesc::addr)
        .ne((0..descs.len()).map(place))
    {
        return Err(io::Error::other("xsk-rs places frames otherwise"));
    }
    let mut first = descs.first().copied().unwrap_or_default();
    // SAFETY: a frame of this UMEM, of which nothing has been given to the kernel yet.
    let data = unsafe { umem.data_mut(&mut first) }.contents_mut().as_ptr();
    // The crate returns slices of single frames. It has given the address of the whole to the kernel, so that address is
    // exposed, and a pointer to the whole can be made from it.
    let base = std::ptr::with_exposed_provenance_mut(data.addr() - TX_HEADROOM as usize);
    let descs = descs.into();
    Ok((base, Frames { umem, descs }))
}

impl Frames {
    /// Returns the crate's handle, for making sockets.
    pub(crate) fn umem(&self) -> &xsk_rs::Umem {
        &self.umem
    }

    /// Returns the descriptor of the frame that contains `address`; an empty one if there is none.
    #[inline]
    pub(crate) fn at(&self, address: u64) -> FrameDesc {
        let number = address / u64::from(FRAME_SIZE);
        let desc = self.descs.get(number as usize);
        desc.copied().unwrap_or_default()
    }

    /// Converts `desc`, which begins [`TX_HEADROOM`] into its frame, to the crate's form. Any other offset cannot be
    /// expressed: an empty frame is sent instead, which the kernel refuses and counts (`tx_invalid_descs`).
    #[inline]
    pub(crate) fn describe(&self, desc: &libc::xdp_desc) -> FrameDesc {
        let mut known = self.at(desc.addr);
        debug_assert_eq!(known.addr() as u64, desc.addr, "not where the crate has it");
        if known.addr() as u64 != desc.addr {
            return FrameDesc::default();
        }
        // SAFETY: a frame of this UMEM, which the caller owns until it is submitted. The slice is used for its length
        // only: no byte is accessed, and it ends with this statement.
        unsafe { self.umem.data_mut(&mut known) }
            .cursor()
            .set_pos(desc.len as usize);
        known.set_options(desc.options);
        known
    }
}

/// Returns the kernel's error, with its number; otherwise the crate's message.
pub(crate) fn source_of(error: &(dyn error::Error + 'static)) -> io::Error {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}
