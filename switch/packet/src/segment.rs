//! Segmentation in software: cuts a large frame as a network card would, for a receiver that does not take large frames
//! (virtio 1.2, 5.1.6).
//!
//! Only headers are made here. The caller puts each segment together: this header, followed by the segment's part of the
//! original payload. For frames that Linux cuts, the result is byte for byte the same (`tests/segmentation/kernel_gso.rs`
//! compares them). Fragmentation of a UDP datagram is in `fragment.rs`.

use std::fmt;

use crate::checksum::{Partial, fold, pseudo_header, sum};
use crate::fragment::Fragments;
use crate::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, L4, PROTO_IPV6_FRAGMENT, PROTO_TCP, PROTO_UDP, UDP_HEADER,
    be16, network_header,
};

/// Most bytes of a segment's headers: link, IP and transport. IPv4 and TCP with two tags have at most 142; the rest is
/// for IPv6 extension headers.
pub const HEADERS_MAX: usize = 256;

/// Most segments that one frame may ask for, so that one frame cannot cost as much as 65 thousand. Linux sends at least
/// 36 payload bytes per segment with time stamps (`TCP_MIN_SND_MSS` is 48 with 12 bytes of options), which gives 1819
/// segments of the largest frame, and at most 128 datagrams.
pub const SEGMENTS_MAX: usize = 2048;

/// `gso_type`: TCP over IPv4 (virtio 1.2, 5.1.6).
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: one UDP datagram, as IP fragments.
const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: several UDP datagrams over either IP.
const GSO_UDP_L4: u8 = 5;
/// In `gso_type`: the TCP segment may carry CWR.
pub const GSO_ECN: u8 = 0x80;

const IPV4_HEADER_MIN: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
const TCP_HEADER_MIN: usize = 20;

/// Numbers of IPv6 extension headers (RFC 8200, 4).
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// A guest's request in the header before its frame (`struct virtio_net_hdr`; virtio 1.2, 5.1.6). No value is trusted.
/// `hdr_len` is not included: it is a hint, some drivers give a wrong one, and it follows from the frame's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GsoRequest {
    /// Kind of the large frame.
    pub gso_type: u8,
    /// Payload bytes of each segment but the last; for fragments, the bytes that IP carries in each, rounded down to a
    /// multiple of 8.
    pub gso_size: u16,
    /// The checksum's place, if `VIRTIO_NET_HDR_F_NEEDS_CSUM` is set: its field then holds the folded sum of the
    /// pseudo-header.
    pub checksum: Option<Partial>,
}

/// Values that the fragments of a datagram need and that are not in its headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Checksum that the guest has left to be computed: over the whole frame, from `csum_start` on. It is in the first
    /// fragment and covers the payload of all.
    pub checksum: u16,
    /// Identification shared by the fragments of this datagram, and different from those of other datagrams between the
    /// same hosts (RFC 8200, 4.5). For IPv6; in IPv4 the guest's is used.
    pub identification: u32,
}

/// Why a frame cannot be segmented as its guest asks: the guest's header and the frame contradict each other or exceed a
/// limit. No driver that follows the specification sends such a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentError {
    /// `gso_type` is none of TCPv4, TCPv6 (each with or without ECN), UDP and UDP_L4.
    UnknownType(u8),
    /// `gso_size` is 0. For fragments: it is less than 8, or less than the headers that must all be in the first fragment
    /// (RFC 8200, 4.5).
    SmallSize,
    /// The frame, its contiguous beginning, or its first [`HEADERS_MAX`] bytes end within its headers; or there is no
    /// room for the header of an IPv6 fragment.
    Truncated,
    /// The frame is not of the network or transport protocol that `gso_type` names.
    OtherProtocol,
    /// A header contradicts itself: version, or a header length that is too small.
    BadHeader,
    /// The frame is an IP fragment.
    Fragment,
    /// `csum_start` and `csum_offset` are not the place of the transport header's checksum, or
    /// `NEEDS_CSUM` is not set for UDP.
    ChecksumPlace,
    /// The frame is longer than the largest IP packet (65535 bytes; for IPv6 without its first header).
    FrameTooLong,
    /// More than [`SEGMENTS_MAX`] segments.
    TooManySegments(usize),
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SegmentError::UnknownType(t) => return write!(f, "gso_type {t:#04x} is not known"),
            SegmentError::TooManySegments(count) => {
                return write!(f, "{count} segments are more than {SEGMENTS_MAX}");
            }
            SegmentError::SmallSize => "gso_size is 0, or too small for a fragment",
            SegmentError::Truncated => "the frame ends within its headers",
            SegmentError::OtherProtocol => "gso_type names another protocol than the frame has",
            SegmentError::BadHeader => "an IP or TCP header contradicts itself",
            SegmentError::Fragment => "the frame is an IP fragment",
            SegmentError::ChecksumPlace => {
                "csum_start and csum_offset do not name the transport header's checksum"
            }
            SegmentError::FrameTooLong => "the frame is longer than an IP packet can be",
        })
    }
}

impl std::error::Error for SegmentError {}

/// Plan for cutting one large frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segmentation {
    header_len: u16,
    count: u16,
    cut: Cut,
}

/// Kind of pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    Segments(Segments),
    Fragments(Fragments),
}

/// Packets of the same kind as the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segments {
    ip_offset: u16,
    /// Offset of the transport header.
    offset: u16,
    header_len: u16,
    ip_version: u8,
    protocol: u8,
    size: u16,
    count: u16,
    /// Payload of the whole frame: at most that of an IP packet, 65535 bytes.
    payload_len: u32,
    /// Folded sum of the pseudo-header without its length.
    pseudo: u16,
}

/// One segment or fragment: its parts, and what is left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// Bytes of its header; at most [`HEADERS_MAX`]. Equal for all segments of a frame, but not for all fragments.
    pub header_len: usize,
    /// Offset of its payload in the original frame, bytes.
    pub payload_offset: usize,
    /// Bytes of payload; 0 only if the original frame has no payload, or for a fragment that the headers fill.
    pub payload_len: usize,
    /// The transport checksum's place in the segment. The field holds the folded sum of the pseudo-header for the
    /// segment's own length, not complemented, as `NEEDS_CSUM` requires; [`crate::checksum::finish`] of the sum from
    /// `start` on completes it. `None` for a fragment, which needs no completion.
    pub checksum: Option<Partial>,
}

impl Segmentation {
    /// Plans from the headers how the frame is cut.
    ///
    /// `headers` is the frame's contiguous beginning, of which at most [`HEADERS_MAX`] bytes are read. `frame_len` is the
    /// length of the whole frame, bytes. The lengths in the IP headers are ignored (a large frame may have 0 there) and
    /// written again. `whole` is called only if the frame is to be fragmented, and can be.
    ///
    /// # Errors
    /// See [`SegmentError`].
    pub fn new(
        headers: &[u8],
        frame_len: usize,
        request: GsoRequest,
        whole: impl FnOnce() -> Whole,
    ) -> Result<Segmentation, SegmentError> {
        let (ip_version, protocol) = kind(request.gso_type)?;
        let headers = &headers[..headers.len().min(HEADERS_MAX)];
        let l4 = find_transport(headers, frame_len)?;
        if l4.protocol != protocol || ip_version.is_some_and(|version| version != l4.ip_version) {
            return Err(SegmentError::OtherProtocol);
        }
        let header_len = l4.offset + transport_header_len(headers, &l4)?;
        if frame_len < header_len {
            return Err(SegmentError::Truncated);
        }
        if frame_len - l4.ip_offset - uncounted(l4.ip_version) > usize::from(u16::MAX) {
            return Err(SegmentError::FrameTooLong);
        }
        let pseudo = pseudo_without_length(headers, &l4, request.checksum)?;
        let size = request.gso_size;
        let cut = match request.gso_type {
            GSO_UDP => match Fragments::new(headers, &l4, header_len, size, whole)? {
                Some(plan) => Cut::Fragments(plan),
                None => Cut::Segments(Segments::new(&l4, header_len, u16::MAX, pseudo)?),
            },
            _ => Cut::Segments(Segments::new(&l4, header_len, size, pseudo)?),
        };
        Ok(Segmentation {
            // At most HEADERS_MAX.
            header_len: header_len as u16,
            count: match &cut {
                Cut::Segments(plan) => plan.count,
                Cut::Fragments(plan) => plan.count(),
            },
            cut,
        })
    }

    /// Returns the bytes of headers before the frame's payload; at most [`HEADERS_MAX`].
    pub fn header_len(&self) -> usize {
        self.header_len.into()
    }

    /// Returns the number of segments, 1 to [`SEGMENTS_MAX`]. It is 1 also for a frame that need not be cut, or has no
    /// payload.
    pub fn count(&self) -> usize {
        self.count.into()
    }

    /// Writes the header of segment `index` (from 0) to the first [`SegmentInfo::header_len`] bytes of `out`. `headers`
    /// must be those given to [`Segmentation::new`]; if they have changed since, only the header's contents are affected.
    ///
    /// Returns `None` if there is no such segment, or `headers` is shorter than it was; then the contents of `out` are
    /// unspecified.
    pub fn segment(
        &self,
        index: usize,
        headers: &[u8],
        out: &mut [u8; HEADERS_MAX],
    ) -> Option<SegmentInfo> {
        if index >= self.count() {
            return None;
        }
        let headers = headers.get(..self.header_len())?;
        match &self.cut {
            Cut::Segments(plan) => plan.segment(index, headers, out),
            Cut::Fragments(plan) => plan.fragment(index, headers, out),
        }
    }
}

impl Segments {
    fn new(l4: &L4, header_len: usize, size: u16, pseudo: u16) -> Result<Segments, SegmentError> {
        if size == 0 {
            return Err(SegmentError::SmallSize);
        }
        let payload_len = l4.len - (header_len - l4.offset);
        Ok(Segments {
            // Each is at most HEADERS_MAX, SEGMENTS_MAX, or a length that fits in an IP header.
            ip_offset: l4.ip_offset as u16,
            offset: l4.offset as u16,
            header_len: header_len as u16,
            ip_version: l4.ip_version,
            protocol: l4.protocol,
            size,
            count: count(payload_len, size)?,
            payload_len: payload_len as u32,
            pseudo,
        })
    }

    fn segment(
        &self,
        index: usize,
        headers: &[u8],
        out: &mut [u8; HEADERS_MAX],
    ) -> Option<SegmentInfo> {
        let before = index * usize::from(self.size);
        let payload_len = (self.payload_len as usize)
            .checked_sub(before)?
            .min(self.size.into());
        let header = out.get_mut(..headers.len())?;
        header.copy_from_slice(headers);
        let (link_and_ip, transport) = header.split_at_mut_checked(self.offset.into())?;
        // Not longer than the frame's, and `new` has checked that this fits in 16 bits.
        let l4_len = (transport.len() + payload_len) as u16;
        let ip = link_and_ip.get_mut(usize::from(self.ip_offset)..)?;
        match self.ip_version {
            4 => write_ipv4(ip, index as u16, l4_len)?,
            _ => write_ipv6(ip, l4_len)?,
        }
        let offset = match self.protocol {
            PROTO_TCP => {
                write_tcp(transport, before as u32, index, self.count.into())?;
                16
            }
            _ => {
                put16(transport, 4, l4_len)?;
                6
            }
        };
        put16(transport, offset.into(), add(self.pseudo, l4_len))?;
        Some(SegmentInfo {
            header_len: headers.len(),
            payload_offset: headers.len() + before,
            payload_len,
            checksum: Some(Partial {
                start: self.offset,
                offset,
            }),
        })
    }
}

/// Returns the number of pieces of `size` bytes for `len` bytes.
pub(crate) fn count(len: usize, size: u16) -> Result<u16, SegmentError> {
    match len.div_ceil(size.into()).max(1) {
        count @ ..=SEGMENTS_MAX => Ok(count as u16),
        count => Err(SegmentError::TooManySegments(count)),
    }
}

/// Returns the IP version and transport protocol of a `gso_type`.
fn kind(gso_type: u8) -> Result<(Option<u8>, u8), SegmentError> {
    match gso_type {
        GSO_UDP | GSO_UDP_L4 => Ok((None, PROTO_UDP)),
        _ => match gso_type & !GSO_ECN {
            GSO_TCPV4 => Ok((Some(4), PROTO_TCP)),
            GSO_TCPV6 => Ok((Some(6), PROTO_TCP)),
            _ => Err(SegmentError::UnknownType(gso_type)),
        },
    }
}

/// Finds the transport header from the headers before it: their header lengths are used, the packet lengths in them are
/// not.
pub(crate) fn find_transport(headers: &[u8], frame_len: usize) -> Result<L4, SegmentError> {
    let (ethertype, ip) = network_header(headers).ok_or(SegmentError::Truncated)?;
    let (ip_version, (protocol, offset)) = match ethertype {
        ETHERTYPE_IPV4 => (4, find_behind_ipv4(headers, ip)?),
        ETHERTYPE_IPV6 => (6, find_behind_ipv6(headers, ip)?),
        _ => return Err(SegmentError::OtherProtocol),
    };
    Ok(L4 {
        protocol,
        offset,
        ip_offset: ip,
        ip_version,
        len: frame_len
            .checked_sub(offset)
            .ok_or(SegmentError::Truncated)?,
        fragment: false,
    })
}

/// Returns protocol and offset of the header after the IPv4 header at `ip`.
fn find_behind_ipv4(headers: &[u8], ip: usize) -> Result<(u8, usize), SegmentError> {
    let header = headers
        .get(ip..ip + IPV4_HEADER_MIN)
        .ok_or(SegmentError::Truncated)?;
    let len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || len < IPV4_HEADER_MIN {
        return Err(SegmentError::BadHeader);
    }
    // More-fragments bit or a non-zero offset (RFC 791, 3.1).
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(SegmentError::Fragment);
    }
    Ok((header[9], ip + len))
}

/// Returns protocol and offset of the header after the IPv6 extension header at `at`.
pub(crate) fn extension(headers: &[u8], at: usize) -> Option<(u8, usize)> {
    let header = headers.get(at..at + 2)?;
    Some((header[0], at + (usize::from(header[1]) + 1) * 8))
}

/// Returns protocol and offset of the header after the IPv6 header at `ip` and its extension headers, as far as every
/// segment can repeat them (RFC 8200, 4). An authentication header cannot be repeated, so it is returned as the protocol:
/// neither TCP nor UDP.
fn find_behind_ipv6(headers: &[u8], ip: usize) -> Result<(u8, usize), SegmentError> {
    let header = headers
        .get(ip..ip + IPV6_HEADER)
        .ok_or(SegmentError::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(SegmentError::BadHeader);
    }
    let (mut protocol, mut at) = (header[6], ip + IPV6_HEADER);
    while let HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS = protocol {
        let behind = extension(headers, at).ok_or(SegmentError::Truncated)?;
        (protocol, at) = behind;
    }
    if protocol == PROTO_IPV6_FRAGMENT {
        return Err(SegmentError::Fragment);
    }
    Ok((protocol, at))
}

/// Returns the bytes of the transport header, which is completely within `headers`.
fn transport_header_len(headers: &[u8], l4: &L4) -> Result<usize, SegmentError> {
    let transport = headers.get(l4.offset..).ok_or(SegmentError::Truncated)?;
    let len = if l4.protocol == PROTO_TCP {
        let data_offset = *transport.get(12).ok_or(SegmentError::Truncated)?;
        usize::from(data_offset >> 4) * 4
    } else {
        UDP_HEADER
    };
    if l4.protocol == PROTO_TCP && len < TCP_HEADER_MIN {
        return Err(SegmentError::BadHeader);
    }
    if transport.len() < len {
        return Err(SegmentError::Truncated);
    }
    Ok(len)
}

/// Returns the bytes of an IP header that its length field does not count.
fn uncounted(ip_version: u8) -> usize {
    if ip_version == 4 { 0 } else { IPV6_HEADER }
}

/// Returns the folded sum of the pseudo-header without its length.
///
/// If the guest has left the sum in the field, that value is used, less the length in it: its addresses may differ from
/// those in the IP header (a source route's last hop, a mobile node's home address). A TCP frame with a finished checksum
/// has no such sum; Linux accepts such frames too.
fn pseudo_without_length(
    headers: &[u8],
    l4: &L4,
    checksum: Option<Partial>,
) -> Result<u16, SegmentError> {
    let Some(place) = checksum else {
        if l4.protocol != PROTO_TCP {
            return Err(SegmentError::ChecksumPlace);
        }
        return pseudo_header(headers, &L4 { len: 0, ..*l4 }).ok_or(SegmentError::Truncated);
    };
    let offset = l4.checksum_offset().ok_or(SegmentError::OtherProtocol)?;
    if usize::from(place.start) != l4.offset || usize::from(place.offset) != offset {
        return Err(SegmentError::ChecksumPlace);
    }
    let field = be16(headers, l4.offset + offset).ok_or(SegmentError::Truncated)?;
    let len = if l4.protocol == PROTO_TCP {
        l4.len as u16
    } else {
        // UDP has its own length field, and the pseudo-header contains that value (RFC 768).
        be16(headers, l4.offset + 4).ok_or(SegmentError::Truncated)?
    };
    Ok(add(field, !len))
}

/// Returns the one's-complement sum.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes
        .get_mut(at..at + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// Writes the fields of an IPv4 header that differ per segment. Like Linux, it numbers the segments whether or not they
/// may be fragmented.
fn write_ipv4(ip: &mut [u8], index: u16, l4_len: u16) -> Option<()> {
    let id = be16(ip, 4)?.wrapping_add(index);
    put16(ip, 4, id)?;
    finish_ipv4(ip, l4_len)
}

/// Writes length and checksum of an IPv4 header.
pub(crate) fn finish_ipv4(ip: &mut [u8], payload_len: u16) -> Option<()> {
    put16(ip, 2, payload_len.wrapping_add(ip.len() as u16))?;
    put16(ip, 10, 0)?;
    let checksum = !fold(sum(ip, 0));
    put16(ip, 10, checksum)
}

/// Writes the payload length of an IPv6 header, which is followed by its extension headers.
pub(crate) fn write_ipv6(ip: &mut [u8], l4_len: u16) -> Option<()> {
    let extensions = ip.len().checked_sub(IPV6_HEADER)?;
    put16(ip, 4, l4_len.wrapping_add(extensions as u16))
}

/// Writes sequence number and flags. FIN and PSH belong to the last segment; CWR is only in the first (RFC 3168, 6.1.2).
fn write_tcp(tcp: &mut [u8], before: u32, index: usize, count: usize) -> Option<()> {
    let field: &mut [u8; 4] = tcp.get_mut(4..8)?.try_into().ok()?;
    *field = u32::from_be_bytes(*field)
        .wrapping_add(before)
        .to_be_bytes();
    let flags = tcp.get_mut(13)?;
    if index + 1 < count {
        *flags &= !(TCP_FIN | TCP_PSH);
    }
    if index > 0 {
        *flags &= !TCP_CWR;
    }
    Some(())
}
