//! Makes the descriptors of a frame to be sent: a copy in UMEM frames, or the memory that it arrived in.

use crosspoint_frame::{
    Burst, Frame, Gather, HeaderOp, Prefix, SegmentMut, copy_plain, copy_plain_finished,
};

use crate::XskSocket;
use crate::umem::{TX_HEADROOM, TX_ROOM};

/// Most UMEM frames for one frame: the kernel's packet buffer has room for 17 pages besides its first part
/// (MAX_SKB_FRAGS), and a frame of 64 KiB needs 17.
pub(crate) const MAX_PIECES: usize = 17;

/// Length of a checksum request: `struct xsk_tx_metadata` of linux/if_xdp.h, as far as it concerns checksums. It is
/// placed directly before the frame's data (Documentation/networking/xsk-tx-metadata.rst).
pub(crate) const METADATA_LEN: u32 = 24;
/// Since Linux 6.8.
const TXMD_FLAGS_CHECKSUM: u64 = 1 << 1;

/// Returns how many UMEM frames a copy of `len` bytes takes; at least one.
#[inline(always)]
pub(crate) fn pieces(len: usize) -> usize {
    // The usual case, without a division.
    if len <= TX_ROOM as usize {
        1
    } else {
        len.div_ceil(TX_ROOM as usize)
    }
}

/// Descriptors of one frame.
pub(crate) struct Filled {
    descriptors: [libc::xdp_desc; MAX_PIECES],
    count: usize,
}

impl Filled {
    #[inline(always)]
    pub(crate) fn one(desc: libc::xdp_desc) -> Filled {
        let mut filled = Filled::none();
        filled.push(desc);
        filled
    }

    #[inline(always)]
    pub(crate) fn none() -> Filled {
        Filled {
            descriptors: [const {
                libc::xdp_desc {
                    addr: 0,
                    len: 0,
                    options: 0,
                }
            }; MAX_PIECES],
            count: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, desc: libc::xdp_desc) {
        if let Some(slot) = self.descriptors.get_mut(self.count) {
            *slot = desc;
            self.count += 1;
        }
    }

    /// Sets the descriptors' options: `options`, for the whole frame, on the first, and on all but the last that more
    /// follow.
    pub(crate) fn finish(&mut self, options: u32) {
        let Some((last, rest)) = self
            .descriptors
            .get_mut(..self.count)
            .and_then(<[_]>::split_last_mut)
        else {
            return;
        };
        last.options = 0;
        for desc in rest {
            desc.options = libc::XDP_PKT_CONTD;
        }
        self.descriptors[0].options |= options;
    }

    /// Returns the descriptors.
    #[inline(always)]
    pub(crate) fn descriptors(&self) -> &[libc::xdp_desc] {
        self.descriptors.get(..self.count).unwrap_or(&[])
    }

    /// Returns the frame's length.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.descriptors().iter().map(|desc| desc.len).sum()
    }
}

/// Copies a frame to the UMEM frames `to`, as many as [`pieces`] returns. Its checksum is left to the kernel if possible,
/// otherwise completed here.
#[inline(always)]
pub(crate) fn fill(
    socket: &XskSocket,
    burst: &Burst,
    frame: &Frame,
    tag: HeaderOp,
    to: &[u64],
) -> Filled {
    let [address] = to else {
        return fill_pieces(socket, burst, frame, tag, to);
    };
    let addr = address + u64::from(TX_HEADROOM);
    let Some(buffer) = socket.umem().segment_mut(addr, TX_ROOM) else {
        return Filled::none();
    };
    let mut options = 0;
    let room = (addr, TX_ROOM);
    let asked = frame.offload.needs_csum && ask_checksum(socket, frame, tag, room, &mut options);
    let finish = frame.offload.needs_csum && !asked;
    let len = match (tag, finish) {
        (HeaderOp::Keep, false) => copy_plain(&[], frame, burst, buffer),
        (HeaderOp::Keep, true) => copy_plain_finished(&[], frame, burst, buffer),
        (_, finish) => {
            let prefix = Prefix::new(&[], frame, tag);
            let gather = Gather::new(&prefix, burst, frame);
            match finish {
                true => gather.copy_finished(&frame.offload, tag, &[buffer]),
                false => gather.copy_to(buffer),
            }
        }
    };
    Filled::one(libc::xdp_desc {
        addr,
        len: len as u32,
        options,
    })
}

#[cold]
fn fill_pieces(
    socket: &XskSocket,
    burst: &Burst,
    frame: &Frame,
    tag: HeaderOp,
    to: &[u64],
) -> Filled {
    let mut buffers = [const { None }; MAX_PIECES];
    let addresses = to.iter().map(|address| address + u64::from(TX_HEADROOM));
    for (buffer, addr) in buffers.iter_mut().zip(addresses.clone()) {
        *buffer = socket.umem().segment_mut(addr, TX_ROOM);
    }
    let Some(buffers) = whole(&buffers[..to.len().min(MAX_PIECES)]) else {
        return Filled::none();
    };
    let mut filled = Filled::none();
    let mut options = 0;
    let first = to
        .first()
        .map_or(0, |address| address + u64::from(TX_HEADROOM));
    let first = (first, TX_ROOM);
    let asked = frame.offload.needs_csum && ask_checksum(socket, frame, tag, first, &mut options);
    let prefix = Prefix::new(&[], frame, tag);
    let gather = Gather::new(&prefix, burst, frame);
    let buffers = &buffers[..to.len().min(MAX_PIECES)];
    let mut rest = match asked || !frame.offload.needs_csum {
        true => gather.scatter(buffers),
        false => gather.copy_finished(&frame.offload, tag, buffers),
    };
    for addr in addresses {
        let len = rest.min(TX_ROOM as usize);
        rest -= len;
        filled.push(libc::xdp_desc {
            addr,
            len: len as u32,
            options: 0,
        });
    }
    filled.finish(options);
    filled
}

/// Returns the buffers if all are present, followed by empty ones.
fn whole(buffers: &[Option<SegmentMut>]) -> Option<[SegmentMut; MAX_PIECES]> {
    let first = (*buffers.first()?)?;
    let mut all = [first.skip(first.len()); MAX_PIECES];
    for (slot, buffer) in all.iter_mut().zip(buffers) {
        *slot = (*buffer)?;
    }
    Some(all)
}

/// Requests the checksum of a frame whose first `room` bytes begin at `addr` from the kernel, if it takes such requests.
/// The field holds the sum of the pseudo-header, as for hardware. A guest chooses the field's place, so it is checked: if
/// it were not in the first descriptor, the kernel would stop sending, for all ports.
#[inline(always)]
fn ask_checksum(
    socket: &XskSocket,
    frame: &Frame,
    tag: HeaderOp,
    (addr, room): (u64, u32),
    options: &mut u32,
) -> bool {
    let offload = &frame.offload;
    let end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
    if !socket.finishes_checksums() || end.saturating_add_signed(tag.growth()) > room as usize {
        return false;
    }
    let at = addr - u64::from(METADATA_LEN);
    let Some(to) = socket.umem().segment_mut(at, METADATA_LEN) else {
        return false;
    };
    *options |= libc::XDP_TX_METADATA;
    to.write_array(&checksum_request(frame, tag))
}

/// Returns the request that is placed before a frame whose checksum is left to the kernel.
#[inline(always)]
pub(crate) fn checksum_request(frame: &Frame, tag: HeaderOp) -> [u8; METADATA_LEN as usize] {
    let start = usize::from(frame.offload.csum_start).saturating_add_signed(tag.growth()) as u16;
    let mut metadata = [0; METADATA_LEN as usize];
    metadata[..8].copy_from_slice(&TXMD_FLAGS_CHECKSUM.to_ne_bytes());
    metadata[8..10].copy_from_slice(&start.to_ne_bytes());
    metadata[10..12].copy_from_slice(&frame.offload.csum_offset.to_ne_bytes());
    metadata
}

/// Sends a frame in the memory that it arrived in.
pub(crate) mod rewrite {
    use super::*;
    use std::ops::Range;

    use crate::FRAME_SIZE;

    /// Returns whether the frame can be changed in place: there is room for its head, a tag and a checksum request.
    #[inline(always)]
    pub(crate) fn is_possible(burst: &Burst, frame: &Frame, places: &Range<usize>) -> bool {
        let (place, len) = burst.lease().place(places.start);
        let headroom = place % u64::from(FRAME_SIZE);
        headroom >= u64::from(TX_HEADROOM)
            && len as usize >= frame.head_len()
            && places.len() <= MAX_PIECES
    }

    /// Makes descriptors of the memory at `places`, and exchanges it for the same number of UMEM frames, `instead`.
    #[inline(always)]
    pub(crate) fn send_in_place(
        socket: &XskSocket,
        burst: &Burst,
        frame: &Frame,
        tag: HeaderOp,
        places: Range<usize>,
        instead: &[u64],
    ) -> Filled {
        let (lease, umem) = (burst.lease(), socket.umem());
        let mut filled = Filled::none();
        for (place, other) in places.clone().zip(instead) {
            let (address, len) = lease.place(place);
            let grown = if place == places.start {
                tag.growth()
            } else {
                0
            };
            filled.push(libc::xdp_desc {
                addr: address.saturating_add_signed(-(grown as i64)),
                len: len.saturating_add_signed(grown as i32),
                options: 0,
            });
            umem.exchange(address, *other);
            lease.exchange(place, *other);
        }
        let first = (filled.descriptors[0].addr, filled.descriptors[0].len);
        let prefix = Prefix::new(&[], frame, tag);
        let gather = Gather::new(&prefix, burst, frame);
        if let Some(to) = umem.segment_mut(first.0, first.1) {
            gather.write_head(to);
        }
        let mut options = 0;
        if frame.offload.needs_csum && !ask_checksum(socket, frame, tag, first, &mut options) {
            complete_in_place(socket, &gather, frame, tag, &filled);
        }
        filled.finish(options);
        filled
    }

    #[cold]
    fn complete_in_place(
        socket: &XskSocket,
        gather: &Gather<'_>,
        frame: &Frame,
        tag: HeaderOp,
        filled: &Filled,
    ) {
        let mut buffers = [const { None }; MAX_PIECES];
        for (buffer, desc) in buffers.iter_mut().zip(filled.descriptors()) {
            *buffer = socket.umem().segment_mut(desc.addr, desc.len);
        }
        if let Some(buffers) = whole(&buffers[..filled.count]) {
            gather.complete_checksum(&frame.offload, tag, &buffers[..filled.count]);
        }
    }
}
