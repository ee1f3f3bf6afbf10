//! AF_XDP by the crate `xsk-rs`, where the feature of that name is on. What is here is what differs: packet memory
//! (this file), the rings (`ring.rs`), and opening a socket (`opening.rs`). Who receives, sends and hands over is the
//! same code.
//!
//! The crate maps the memory, and makes a descriptor of each frame once, whose address nobody can change. So:
//!
//! - a frame that is sent begins behind the kernel's headroom, and has that much less room;
//! - a frame is copied from one NIC to the other, and no memory is exchanged;
//! - each socket has a UMEM of its own;
//! - checksums are summed here, since the crate registers no UMEM with room for requests;
//! - a memory node is not asked for, and transparent huge pages neither.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::{error, io};

use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use crate::{FRAME_SIZE, Pages, RING_SIZE};

/// Where in a UMEM frame packet data begins, bytes: XDP_PACKET_HEADROOM.
pub const TX_HEADROOM: u32 = 256;

/// The crate's packet memory.
#[derive(Clone)]
pub(crate) struct Frames {
    umem: xsk_rs::Umem,
    /// The descriptor of each frame, by its number.
    descs: Arc<[FrameDesc]>,
}

/// Maps `len` bytes, all present; they are unmapped with the last clone of what is returned beside their address.
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
    // The crate hands out slices of single frames. It has given the address of the whole to the kernel, so that is
    // exposed, and a pointer to the whole can be made of it.
    let base = std::ptr::with_exposed_provenance_mut(data.addr() - TX_HEADROOM as usize);
    let descs = descs.into();
    Ok((base, Frames { umem, descs }))
}

impl Frames {
    /// The crate's handle, to make sockets with.
    pub(crate) fn umem(&self) -> &xsk_rs::Umem {
        &self.umem
    }

    /// The descriptor of the frame that `address` lies in; an empty one if there is none.
    #[inline]
    pub(crate) fn at(&self, address: u64) -> FrameDesc {
        let number = address / u64::from(FRAME_SIZE);
        let desc = self.descs.get(number as usize);
        desc.copied().unwrap_or_default()
    }

    /// The crate's form of `desc`, which begins [`TX_HEADROOM`] into its frame. Any other beginning cannot be
    /// expressed: an empty frame is sent in its place, which the kernel refuses and counts (`tx_invalid_descs`).
    #[inline]
    pub(crate) fn describe(&self, desc: &libc::xdp_desc) -> FrameDesc {
        let mut known = self.at(desc.addr);
        debug_assert_eq!(known.addr() as u64, desc.addr, "not where the crate has it");
        if known.addr() as u64 != desc.addr {
            return FrameDesc::default();
        }
        // SAFETY: a frame of this UMEM, which is the caller's until it is submitted. The slice is made for its length
        // alone: no byte is touched, and it is gone with this statement.
        unsafe { self.umem.data_mut(&mut known) }
            .cursor()
            .set_pos(desc.len as usize);
        known.set_options(desc.options);
        known
    }
}

/// What the kernel said, for those who look at its number; else what the crate says.
pub(crate) fn source_of(error: &(dyn error::Error + 'static)) -> io::Error {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}
