//! Segmentation in software: cuts a large frame as a network card would, for a receiver that does not take large frames
//! (virtio 1.2, 5.1.6).
//!
//! Only headers are made here. The caller puts each segment together: this header, followed by the segment's part of the
//! original payload. For frames that Linux cuts, the result is byte for byte the same (`tests/segmentation/kernel_gso.rs`
//! compares them). Fragmentation of a UDP datagram is in `fragment.rs`.

use crate::checksum::{Partial, pseudo_header};
use crate::fragment::Fragments;
use crate::headers::{Fragment, Headers, IPV6_HEADER, L4, Stop};
use crate::parse::{PROTO_TCP, PROTO_UDP, UDP_HEADER, be16};
pub use crate::pieces::{HEADERS_MAX, SEGMENTS_MAX, SegmentError, SegmentInfo, Whole};
use crate::pieces::{count, finish_ipv4, put16, write_ipv6};

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

const TCP_HEADER_MIN: usize = 20;

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
        let l4 = find_transport(&Headers::parse(headers), frame_len)?;
        if !l4.repeatable
            || l4.protocol != protocol
            || ip_version.is_some_and(|version| version != l4.ip_version)
        {
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

/// Returns the transport header of a frame that is no fragment. Lengths in IP headers are not read: its length is what the
/// frame's length leaves.
pub(crate) fn find_transport(headers: &Headers, frame_len: usize) -> Result<L4, SegmentError> {
    let is_whole = headers.fragment == Fragment::No;
    match headers.stop {
        Stop::Layer4 if is_whole => {
            let len = frame_len.checked_sub(headers.offset);
            Ok(headers.l4(len.ok_or(SegmentError::Truncated)?))
        }
        Stop::Layer4 | Stop::LaterFragment => Err(SegmentError::Fragment),
        Stop::CutShort => Err(SegmentError::Truncated),
        Stop::Unknown | Stop::TooManyTags => Err(SegmentError::OtherProtocol),
        Stop::TooManyExtensions | Stop::BadHeader => Err(SegmentError::BadHeader),
    }
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

/// Writes the fields of an IPv4 header that differ per segment. Like Linux, it numbers the segments whether or not they
/// may be fragmented.
fn write_ipv4(ip: &mut [u8], index: u16, l4_len: u16) -> Option<()> {
    let id = be16(ip, 4)?.wrapping_add(index);
    put16(ip, 4, id)?;
    finish_ipv4(ip, l4_len)
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
