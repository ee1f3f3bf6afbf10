//! Fragmentation in software (UFO): one UDP datagram becomes IP fragments (RFC 791, 2.3; RFC 8200, 4.5), which the
//! receiver's IP reassembles before UDP gets them.
//!
//! The UDP header is in the first fragment only, and its checksum covers the payload of all. So, unlike a segment's
//! checksum, it cannot be finished later: it is computed over the whole frame first.

use crate::headers::{FRAGMENT, HOP_BY_HOP, IPV6_HEADER, L4, ROUTING, extension};
use crate::parse::PROTO_UDP;
use crate::pieces::{
    HEADERS_MAX, SegmentError, SegmentInfo, Whole, count, finish_ipv4, put16, write_ipv6,
};

/// Unit of fragment offsets, bytes: the length of each fragment but the last is a multiple of it.
const UNIT: u16 = 8;
/// Bytes of IPv6's fragment header.
const FRAGMENT_HEADER: usize = 8;
/// Flag in IPv4's flags and offset field: more fragments follow.
const IPV4_MORE: u16 = 0x2000;
/// The same in IPv6.
const IPV6_MORE: u16 = 1;

/// Offset of an IPv4 header's options.
const IPV4_OPTIONS: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
/// Bit in an option's type: it is copied to every fragment (RFC 791, 3.1).
const OPTION_COPIED: u8 = 0x80;

/// How a datagram is cut into two or more fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fragments {
    ip_version: u8,
    ip_offset: u16,
    /// Offset of the part that is cut: the headers before it are repeated.
    start: u16,
    /// For IPv6, offset of the next-header field of these headers.
    next_header: u16,
    /// Offset of UDP's checksum.
    checksum_at: u16,
    /// Bytes of the part that is cut; it fits in an IP header's length field.
    len: u32,
    /// Bytes of this part in each fragment but the last.
    size: u16,
    count: u16,
    whole: Whole,
}

impl Fragments {
    /// Plans the fragments of a datagram whose headers, including UDP's, are the first `header_len` bytes of `headers`;
    /// `None` if it need not be cut. The caller has checked the checksum's place.
    pub(crate) fn new(
        headers: &[u8],
        l4: &L4,
        header_len: usize,
        gso_size: u16,
        whole: impl FnOnce() -> Whole,
    ) -> Result<Option<Fragments>, SegmentError> {
        let (next_header, start) = match l4.ip_version {
            4 => (0, l4.offset),
            _ => unfragmentable(headers, l4.ip_offset).ok_or(SegmentError::Truncated)?,
        };
        let len = l4.len + (l4.offset - start);
        if len <= gso_size.into() {
            return Ok(None);
        }
        if l4.ip_version != 4 && header_len + FRAGMENT_HEADER > HEADERS_MAX {
            return Err(SegmentError::Truncated);
        }
        let size = gso_size - gso_size % UNIT;
        if usize::from(size) < header_len - start {
            return Err(SegmentError::SmallSize);
        }
        Ok(Some(Fragments {
            // Each is at most HEADERS_MAX, or a length that fits in an IP header.
            ip_version: l4.ip_version,
            ip_offset: l4.ip_offset as u16,
            start: start as u16,
            next_header: next_header as u16,
            checksum_at: (l4.offset + 6) as u16,
            len: len as u32,
            size,
            count: count(len, size)?,
            whole: whole(),
        }))
    }

    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// Makes fragment `index`, less than the count, as described for
    /// [`Segmentation::segment`](crate::segment::Segmentation::segment); `headers` ends with the UDP header.
    pub(crate) fn fragment(
        &self,
        index: usize,
        headers: &[u8],
        out: &mut [u8; HEADERS_MAX],
    ) -> Option<SegmentInfo> {
        let before = index * usize::from(self.size);
        let len = (self.len as usize)
            .checked_sub(before)?
            .min(self.size.into());
        let (repeated, once) = headers.split_at_checked(self.start.into())?;
        let behind_ip = match self.ip_version {
            4 => self.write_ipv4(index, len, repeated, out)?,
            _ => self.write_ipv6(index, len, repeated, out)?,
        };
        let once = if index == 0 { once } else { &[] };
        let header_len = behind_ip + once.len();
        out.get_mut(behind_ip..header_len)?.copy_from_slice(once);
        if index == 0 {
            let inserted = behind_ip - repeated.len();
            let at = inserted + usize::from(self.checksum_at);
            put16(out, at, self.whole.checksum)?;
        }
        Some(SegmentInfo {
            header_len,
            payload_offset: repeated.len() + before + once.len(),
            payload_len: len.checked_sub(once.len())?,
            checksum: None,
        })
    }

    /// Writes link and IPv4 header of a fragment with `len` bytes; returns their length. The guest's request for
    /// fragments overrides its DF flag, as in Linux.
    fn write_ipv4(
        &self,
        index: usize,
        len: usize,
        repeated: &[u8],
        out: &mut [u8; HEADERS_MAX],
    ) -> Option<usize> {
        let header = out.get_mut(..repeated.len())?;
        header.copy_from_slice(repeated);
        let ip = header.get_mut(usize::from(self.ip_offset)..)?;
        // Both fit in 16 bits, like an IP packet's length.
        let units = (index * usize::from(self.size)) as u16 / UNIT;
        put16(ip, 6, units | self.more(index, IPV4_MORE))?;
        if index > 0 {
            blank_options(ip.get_mut(IPV4_OPTIONS..)?);
        }
        finish_ipv4(ip, len as u16)?;
        Some(repeated.len())
    }

    /// Writes all headers of a fragment with `len` bytes, including the fragment header; returns their length.
    fn write_ipv6(
        &self,
        index: usize,
        len: usize,
        repeated: &[u8],
        out: &mut [u8; HEADERS_MAX],
    ) -> Option<usize> {
        let header = out.get_mut(..repeated.len() + FRAGMENT_HEADER)?;
        let (before, fragment) = header.split_at_mut_checked(repeated.len())?;
        before.copy_from_slice(repeated);
        let next_header = before.get_mut(usize::from(self.next_header))?;
        let follows = std::mem::replace(next_header, FRAGMENT);
        fragment.fill(0);
        *fragment.first_mut()? = follows;
        // A multiple of 8, and at most an IP packet's length: the unit is 8 bytes, and the field's three low bits have
        // other meanings.
        let offset = (index * usize::from(self.size)) as u16;
        put16(fragment, 2, offset | self.more(index, IPV6_MORE))?;
        fragment
            .get_mut(4..)?
            .copy_from_slice(&self.whole.identification.to_be_bytes());
        let ip = before.get_mut(usize::from(self.ip_offset)..)?;
        write_ipv6(ip, (FRAGMENT_HEADER + len) as u16)?;
        Some(repeated.len() + FRAGMENT_HEADER)
    }

    /// Returns `flag`, or 0 for the last fragment.
    fn more(&self, index: usize, flag: u16) -> u16 {
        if index + 1 < usize::from(self.count) {
            flag
        } else {
            0
        }
    }
}

/// Finds the headers that every fragment repeats, in an IPv6 header at `ip` and its extensions: those that nodes on the
/// path use, hop-by-hop options and routing, and all before them (RFC 8200, 4.5). Returns the offset of their last
/// next-header field, and of their end.
fn unfragmentable(headers: &[u8], ip: usize) -> Option<(usize, usize)> {
    let mut named = ip + 6;
    let mut at = ip + IPV6_HEADER;
    let mut protocol = *headers.get(named)?;
    let mut end = (named, at);
    // `headers` has been parsed before, and ends with the UDP header.
    while protocol != PROTO_UDP {
        let kind = protocol;
        named = at;
        (protocol, at) = extension(headers, at)?;
        if let HOP_BY_HOP | ROUTING = kind {
            end = (named, at);
        }
    }
    Some(end)
}

/// Overwrites the IPv4 options that only the first fragment has, as Linux does: the header keeps its length. Options
/// after an invalid one stay unchanged.
fn blank_options(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = options {
        let len = match *kind {
            OPTION_END => return,
            OPTION_NOTHING => 1,
            _ => match rest.first() {
                Some(len @ 2..) => usize::from(*len),
                _ => return,
            },
        };
        let copied = *kind & OPTION_COPIED != 0;
        let Some((option, behind)) = options.split_at_mut_checked(len) else {
            return;
        };
        if !copied {
            option.fill(OPTION_NOTHING);
        }
        options = behind;
    }
}
