//! Sends large TCP frames whole through a software interface: by a packet socket, beside the AF_XDP one.
//!
//! In copy mode the kernel makes a packet buffer of each frame, and behind a veth it runs the other end's whole stack on
//! it before the next. AF_XDP has no request for segmentation, so each segment has this cost, whether it was cut by the
//! switch or received so. A packet socket has one (packet(7), PACKET_VNET_HDR): one call, one packet buffer of up to 64
//! KiB, which is cut only if a later interface needs it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crosspoint_frame::{Burst, Frame, Gather, HeaderOp, Offload, Prefix, TxEntry, virtio_header};
use crosspoint_packet::checksum::{Partial, fold, sum};
use crosspoint_packet::parse_l4;
use crosspoint_packet::segment::{
    GSO_ECN, GSO_TCPV4, GSO_TCPV6, GsoRequest, HEADERS_MAX, Segmentation, Whole,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::SocketError;
use crate::socket::{SEND_BUFFER, set_option};
use crate::tx::is_longer;

/// packet(7); not in libc yet.
const PACKET_VNET_HDR: libc::c_int = 15;
/// Most pieces of a frame. A frame of 64 KiB in a guest's pages has 18, and a frame joined from a burst's segments has at
/// most four per segment.
const PIECES_MAX: usize = 256;
/// The smallest segment payload that is left to the kernel: the smallest that TCP must be able to send (RFC 9293, 3.7.1).
/// Frames with smaller segments are cut by the switch: there the cost is charged to the guest, not to the receiver behind
/// the interface.
const GSO_SIZE_MIN: u16 = 536;

/// Result of sending a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// The interface has it; its length in bytes.
    Whole(usize),
    /// There is no room for it now.
    Full,
    /// The kernel does not take such a frame.
    Refused,
    /// The interface is down, or gone.
    Down,
}

/// A packet socket that only sends.
pub(crate) struct LargeTx {
    socket: OwnedFd,
}

impl LargeTx {
    /// Opens a socket on interface number `ifindex`. `PermissionDenied` without CAP_NET_RAW.
    pub(crate) fn new(ifindex: u32) -> Result<LargeTx, SocketError> {
        // Without a protocol, so that it receives no frames, not even its own.
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
        let socket =
            socket.map_err(|why| SocketError::new("opening a packet socket")(why.into()))?;
        let at = socket.as_fd();
        set_option(at, libc::SOL_PACKET, PACKET_VNET_HDR, &1)
            .map_err(SocketError::new("asking for large frames"))?;
        // Without the permission, the default stays: twenty of the largest frames.
        let _ = set_option(at, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        bind(at, ifindex).map_err(SocketError::new("binding a packet socket"))?;
        Ok(LargeTx { socket })
    }

    /// Sends the copy of a frame with `tag`. When this returns, the kernel has copied it from its place.
    ///
    /// It passes the interface's queueing discipline like any packet. With PACKET_QDISC_BYPASS the kernel would drop
    /// frames that it must cut itself, which happens when the interface's offloads are turned off.
    pub(crate) fn send(&self, burst: &Burst, frame: &Frame, tag: HeaderOp) -> Sent {
        let Some(header_len) = header_len(burst, frame) else {
            return Sent::Refused;
        };
        // The guest's value is a hint, and may be wrong.
        let offload = Offload {
            hdr_len: header_len as u16,
            ..frame.offload
        };
        let prefix = Prefix::new(&virtio_header::<10>(&offload, tag, 0, false), frame, tag);
        let gather = Gather::new(&prefix, burst, frame);
        let (head, segments) = gather.pieces();
        let mut pieces = [const { piece(std::ptr::null(), 0) }; PIECES_MAX];
        if segments.len() >= PIECES_MAX {
            return Sent::Refused;
        }
        pieces[0] = piece(head.as_ptr(), head.len());
        for (to, segment) in pieces.iter_mut().skip(1).zip(segments) {
            *to = piece(segment.ptr(), segment.len());
        }
        match self.send_pieces(&mut pieces[..=segments.len()]) {
            Ok(()) => Sent::Whole(Gather::len_of(frame, TxEntry { frame: 0, tag }, 0)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => Sent::Full,
                Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Sent::Down,
                // For instance EFAULT: the guest's memory is gone.
                _ => Sent::Refused,
            },
        }
    }

    fn send_pieces(&self, pieces: &mut [libc::iovec]) -> io::Result<()> {
        // SAFETY: plain integers and pointers: all zero is a value, and "none" for what is not set below.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        // SAFETY: the message names `pieces`, as many as there are, which live through the call. The kernel only reads
        // what they point to: the prefix, and segments, which are readable by `Segment::new`'s contract.
        let rc = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
        match rc {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

const fn piece(ptr: *const u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: ptr.cast_mut().cast(),
        iov_len: len,
    }
}

fn bind(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    // SAFETY: plain integers: all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex as libc::c_int;
    // SAFETY: a sockaddr_ll of the length given.
    let rc = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns whether frames of this kind can be sent whole: TCP, with or without ECN.
fn is_tcp(gso_type: u8) -> bool {
    matches!(gso_type & !GSO_ECN, GSO_TCPV4 | GSO_TCPV6)
}

/// Returns whether the copy of a large frame with `tag` can be sent whole through an interface with limit
/// `frame_len_max`: its headers allow segmentation and are complete, and its segments fit. Headers beyond the 64 bytes
/// that are kept may still change before they are sent: then the kernel drops an invalid frame.
pub(crate) fn goes_whole(burst: &Burst, frame: &Frame, tag: HeaderOp, frame_len_max: u32) -> bool {
    let offload = &frame.offload;
    if !is_tcp(offload.gso_type)
        || offload.gso_size < GSO_SIZE_MIN
        || burst.segments(frame).len() >= PIECES_MAX
    {
        return false;
    }
    let mut headers = [0; HEADERS_MAX];
    let len = burst.read_beginning(frame, &mut headers);
    let request = GsoRequest {
        gso_type: offload.gso_type,
        gso_size: offload.gso_size,
        checksum: offload.needs_csum.then_some(Partial {
            start: offload.csum_start,
            offset: offload.csum_offset,
        }),
    };
    // Used for datagrams only.
    let whole = || Whole {
        checksum: 0,
        identification: 0,
    };
    let headers = headers.get(..len).unwrap_or(&[]);
    // A frame of one segment needs no separate call.
    let plan = Segmentation::new(headers, frame.len as usize, request, whole);
    plan.is_ok_and(|plan| plan.count() > 1)
        && says_its_length(headers, frame.len as usize)
        && !is_long(burst, frame, tag, frame_len_max)
}

/// Returns whether the IP header is complete: its length is the frame's, and IPv4's checksum is right. Segmentation
/// writes both again, so a large frame may come without them.
fn says_its_length(headers: &[u8], frame_len: usize) -> bool {
    let Some(l4) = parse_l4(headers) else {
        return false;
    };
    let header = headers.get(l4.ip_offset..l4.offset);
    let is_summed =
        l4.ip_version == 6 || header.is_some_and(|header| fold(sum(header, 0)) == 0xffff);
    // Its length is what the IP header's length leaves behind the headers before it.
    is_summed && l4.offset + l4.len == frame_len
}

/// Returns whether the segments of a large frame's copy with `tag` exceed the interface's limit `frame_len_max`.
pub(crate) fn is_long(burst: &Burst, frame: &Frame, tag: HeaderOp, frame_len_max: u32) -> bool {
    let whole = Gather::len_of(frame, TxEntry { frame: 0, tag }, 0);
    let segment = header_len(burst, frame).unwrap_or(0) + usize::from(frame.offload.gso_size);
    let segment = segment.saturating_add_signed(tag.growth());
    is_longer(segment.min(whole), frame, tag, frame_len_max)
}

/// Returns the length of the headers of each segment of a TCP frame; `None` if the frame ends within them.
fn header_len(burst: &Burst, frame: &Frame) -> Option<usize> {
    let mut headers = [0; HEADERS_MAX];
    let len = burst.read_beginning(frame, &mut headers);
    let tcp = usize::from(frame.offload.csum_start);
    // Data offset, in words (RFC 9293, 3.1).
    let words = headers.get(..len)?.get(tcp + 12)? >> 4;
    let header_len = tcp + 4 * usize::from(words);
    (header_len <= frame.len as usize).then_some(header_len)
}
