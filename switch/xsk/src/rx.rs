//! Receives frames: the fill and receive rings of one NIC queue.

use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Offload, Segment, prefetch_read};
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::partial::{self, HEADERS_LEN_MAX};
use crosspoint_packet::segment::{GSO_ECN, GSO_TCPV4, GSO_TCPV6};
use crosspoint_packet::{ETHERNET_LEN, PROTO_TCP, TAG_LEN, TAGS_MAX, parse_l4};

use crate::ring::Ring;
use crate::umem::Half;
use crate::{FRAME_SIZE, XskSocket};

/// Bytes of a frame that contain its transport checksum, unless it is in a tunnel: two tags, IPv6 and TCP are 102 bytes,
/// IPv4 with all options 118.
const HEADERS_LEN: usize = 128;

const TCP_CWR: u8 = 0x80;

/// Receiving half of a socket. Owned by one worker.
pub struct XskRx {
    socket: Arc<XskSocket>,
    rx: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    /// Descriptors of the last burst.
    held: u32,
    /// Whether frames may be larger than those on a wire, with an unknown segment size.
    large: bool,
}

impl XskRx {
    pub(crate) fn new(
        socket: Arc<XskSocket>,
        rx: Ring<libc::xdp_desc>,
        mut fill: Ring<u64>,
    ) -> XskRx {
        // All frames of this half are given to the kernel at the start.
        let frames = socket.umem().frames_of(Half::rx(socket.slot()));
        for (i, frame) in frames.iter().enumerate() {
            fill.set(i as u32, *frame);
        }
        fill.submit(frames.len() as u32);
        XskRx::resume(socket, rx, fill)
    }

    /// Goes on with rings in use.
    pub(crate) fn resume(
        socket: Arc<XskSocket>,
        rx: Ring<libc::xdp_desc>,
        fill: Ring<u64>,
    ) -> XskRx {
        XskRx {
            socket,
            rx,
            fill,
            held: 0,
            large: false,
        }
    }

    /// Makes TCP frames that exceed the interface's MTU large frames, to be cut to that MTU: the kernel passes such
    /// frames to a generic program before it has cut them. Call before the socket is passed to its worker.
    pub fn expect_large(&mut self) {
        self.large = true;
    }

    /// Returns the socket, to wait on and to read its counters.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Returns whether a frame waits.
    pub fn has_work(&self) -> bool {
        self.rx.filled() > 0
    }

    /// Receives up to a burst of frames into `burst`, which is empty. Their memory is held until
    /// [`complete`](Self::complete).
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        let count = self.rx.filled().min(BURST as u32) as usize;
        if count == 0 {
            if self.socket.polls_busily() || self.fill.needs_wakeup() {
                self.socket.wake_rx();
            }
            return 0;
        }
        let umem = self.socket.umem();
        let mut pieces = [None; BURST];
        let (mut first, mut held) = (0, 0);
        burst.lease_mut().open(umem.identity());
        for (i, piece) in pieces.iter_mut().enumerate().take(count) {
            let desc = self.rx.get(i as u32);
            *piece = umem.segment(desc.addr, desc.len);
            if let Some(piece) = piece {
                prefetch_read(piece.ptr());
            }
            burst.lease_mut().set_place(i, desc.addr, desc.len);
            // A frame may take several descriptors; each says whether another one follows (af_xdp.rst, XDP_PKT_CONTD).
            if desc.options & libc::XDP_PKT_CONTD == 0 {
                let frame = burst.lease_mut().end_frame(first, i + 1 - first);
                debug_assert!(frame < BURST);
                first = i + 1;
                held = first;
            }
        }
        let frames = burst.lease().frames();
        for frame in 0..frames {
            let span = burst.lease().span(frame, umem.identity());
            self.push(burst, pieces.get(span).unwrap_or(&[]));
        }
        // The beginning of an incomplete frame stays in the ring until the rest arrives.
        self.held = held as u32;
        frames
    }

    /// Adds the frame in `pieces`. The kernel never gives addresses outside the UMEM; if it did, an empty frame would be
    /// dropped as a runt and counted.
    #[inline(always)]
    fn push(&self, burst: &mut Burst, pieces: &[Option<Segment>]) {
        match pieces {
            [Some(bytes)] => {
                burst.push_contiguous(*bytes, self.offload(bytes, bytes.len()));
            }
            [Some(first), ..] if pieces.iter().all(Option::is_some) => {
                let len = pieces.iter().flatten().map(Segment::len).sum();
                let offload = self.offload(first, len);
                let mut whole = burst.take_scratch();
                whole.extend(pieces.iter().flatten());
                burst.push_segments(&whole, offload);
                burst.put_scratch(whole);
            }
            _ => {
                burst.push_segments(&[], Offload::default());
            }
        }
    }

    /// Returns the offloads that the sender left to be done. Only a software device (veth, tap) delivers frames without a
    /// computed checksum; a NIC that writes the UMEM itself received them from a wire.
    #[inline(always)]
    fn offload(&self, bytes: &Segment, frame_len: usize) -> Offload {
        if self.socket.zero_copy() {
            return Offload::default();
        }
        match find_partial(bytes, frame_len) {
            Some(partial) => {
                let offload = Offload {
                    needs_csum: true,
                    csum_start: partial.start,
                    csum_offset: partial.offset,
                    ..Offload::default()
                };
                let limit = self.socket.frame_len_max() as usize;
                match self.large && frame_len > limit {
                    true => to_be_cut(bytes, frame_len, offload, limit),
                    false => offload,
                }
            }
            None => Offload::default(),
        }
    }

    /// Gives the frames of the last [`receive`](Self::receive), which filled `burst`, back to the kernel: their data has
    /// been copied, or their memory exchanged for other frames. The fill ring has an entry for each frame of this half,
    /// so it has room.
    pub fn complete(&mut self, burst: &Burst) {
        let held = std::mem::take(&mut self.held);
        for i in 0..held {
            let (place, _) = burst.lease().place(i as usize);
            // The UMEM frame's start: the packet began at an offset in it.
            self.fill.set(i, place - place % u64::from(FRAME_SIZE));
        }
        self.rx.release(held);
        self.fill.submit(held);
    }
}

/// Finds the checksum that is still to be computed, in a frame that begins with `bytes`.
#[inline(always)]
fn find_partial(bytes: &Segment, frame_len: usize) -> Option<Partial> {
    let mut headers = [0; HEADERS_LEN];
    let n = bytes.read(&mut headers);
    match partial::find(headers.get(..n).unwrap_or(&[]), frame_len) {
        Ok(found) => found,
        Err(partial::Beyond) => find_far(bytes, frame_len),
    }
}

/// The same for long headers.
#[cold]
#[inline(never)]
fn find_far(bytes: &Segment, frame_len: usize) -> Option<Partial> {
    let mut headers = [0; HEADERS_LEN_MAX];
    let n = bytes.read(&mut headers);
    partial::find(headers.get(..n).unwrap_or(&[]), frame_len)
        .ok()
        .flatten()
}

/// Returns the offload request of a frame longer than `limit`, without tags: to be cut into the longest TCP segments
/// within the limit. The sender's segment size is lost. A frame that is not TCP cannot be cut without it: UDP segments
/// are datagrams.
#[cold]
#[inline(never)]
fn to_be_cut(bytes: &Segment, frame_len: usize, offload: Offload, limit: usize) -> Offload {
    let mut headers = [0; HEADERS_LEN];
    let n = bytes.read(&mut headers);
    let headers = headers.get(..n).unwrap_or(&[]);
    match cut_size(headers, frame_len, &offload, limit) {
        Some((gso_type, gso_size)) => Offload {
            gso_type,
            gso_size,
            any_size: true,
            ..offload
        },
        None => Offload {
            any_size: frame_len > limit + TAG_LEN * usize::from(TAGS_MAX),
            ..offload
        },
    }
}

/// Returns kind and size of the segments; `None` if the frame is not TCP, is in a tunnel, or does not exceed the limit.
fn cut_size(
    headers: &[u8],
    frame_len: usize,
    offload: &Offload,
    limit: usize,
) -> Option<(u8, u16)> {
    let l4 = parse_l4(headers)?;
    let start = usize::from(offload.csum_start);
    let is_whole = l4.offset + l4.len == frame_len;
    let is_cuttable = l4.repeatable && !l4.fragment;
    if l4.protocol != PROTO_TCP || l4.offset != start || !is_cuttable || !is_whole {
        return None;
    }
    // Data offset, in words, and the flags (RFC 9293, 3.1; RFC 3168, 6.1).
    let (words, flags) = (headers.get(start + 12)? >> 4, headers.get(start + 13)?);
    let limit = limit + (l4.ip_offset - ETHERNET_LEN);
    let size = limit.checked_sub(start + 4 * usize::from(words))?;
    let kind = match l4.ip_version {
        4 => GSO_TCPV4,
        _ => GSO_TCPV6,
    };
    let kind = if flags & TCP_CWR != 0 {
        kind | GSO_ECN
    } else {
        kind
    };
    let is_large = frame_len > limit && size > 0;
    is_large.then_some((kind, u16::try_from(size).ok()?))
}
