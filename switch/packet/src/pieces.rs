//! What segments and fragments have in common: limits, errors, and the fields of IP headers that differ for each piece.

use std::fmt;

use crate::checksum::{Partial, fold, sum};
use crate::headers::IPV6_HEADER;

/// Most bytes of a segment's headers: link, IP and transport. IPv4 and TCP with two tags have at most 142; the rest is
/// for IPv6 extension headers.
pub const HEADERS_MAX: usize = 256;

/// Most segments that one frame may ask for, so that one frame cannot cost as much as 65 thousand. Linux sends at least
/// 36 payload bytes per segment with time stamps (`TCP_MIN_SND_MSS` is 48 with 12 bytes of options), which gives 1819
/// segments of the largest frame, and at most 128 datagrams.
pub const SEGMENTS_MAX: usize = 2048;

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
    /// A header contradicts itself or its protocol (version, a header length that is too small, hop-by-hop options that are
    /// not directly after the IPv6 header), or there are more than [`crate::headers::EXTENSIONS_MAX`] extension headers.
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

/// Returns the number of pieces of `size` bytes for `len` bytes.
pub(crate) fn count(len: usize, size: u16) -> Result<u16, SegmentError> {
    match len.div_ceil(size.into()).max(1) {
        count @ ..=SEGMENTS_MAX => Ok(count as u16),
        count => Err(SegmentError::TooManySegments(count)),
    }
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    bytes
        .get_mut(at..at + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
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
