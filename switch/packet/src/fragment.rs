//! Fragmentation in software (UFO): one UDP datagram becomes IP fragments (RFC 791, 2.3; RFC 8200,
//! 4.5), which the receiver's IP puts together again before its UDP sees anything.
//!
//! The UDP header lies in the first fragment only, and its checksum covers the payload of all. So
//! nobody can finish it later, as that of a segment: it is computed over the whole frame first.

use crate::parse::{L4, PROTO_IPV6_FRAGMENT, PROTO_UDP};
use crate::segment::{
    HEADERS_MAX, HOP_BY_HOP, IPV6_HEADER, ROUTING, SegmentError, SegmentInfo, Whole, count,
    extension, finish_ipv4, put16, write_ipv6,
};

/// Offsets of fragments are counted in so many bytes: all but the last have a multiple of them.
const UNIT: u16 = 8;
/// Bytes of IPv6's fragment header.
const FRAGMENT_HEADER: usize = 8;
/// In IPv4's field of flags and offset: more fragments follow.
const IPV4_MORE: u16 = 0x2000;
/// The same in IPv6's.
const IPV6_MORE: u16 = 1;

/// Where an IPv4 header's options begin.
const IPV4_OPTIONS: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
/// In an option's type: it belongs to every fragment (RFC 791, 3.1).
const OPTION_COPIED: u8 = 0x80;

/// How a datagram is cut into two or more fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fragments {
    ip_version: u8,
    ip_offset: u16,
    /// Where the part that is cut begins: the headers before it are repeated.
    start: u16,
    /// With IPv6, where these name what follows them.
    next_header: u16,
    /// Where UDP's checksum goes.
    checksum_at: u16,
    /// Bytes of the part that is cut; at most what an IP header can count.
    len: u32,
    /// Bytes of it in each fragment but the last.
    size: u16,
    count: u16,
    whole: Whole,
}

impl Fragments {
    /// The plan for a datagram whose headers, UDP's included, are the first `header_len` bytes of
    /// `headers`; `None` if it need not be cut. The caller has looked at the checksum's place.
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
            // All at most HEADERS_MAX, or a length that an IP header can hold.
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

    /// Fragment `index`, which is less than the count, as
    /// [`Segmentation::segment`](crate::segment::Segmentation::segment) says; `headers` ends with
    /// the UDP header.
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

    /// Writes link and IPv4 header of a fragment with `len` bytes; returns how long they are. That
    /// the guest forbids fragments (DF) is overridden by its asking for them, as in Linux.
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
        // Neither is more than an IP packet's length.
        let units = (index * usize::from(self.size)) as u16 / UNIT;
        put16(ip, 6, units | self.more(index, IPV4_MORE))?;
        if index > 0 {
            blank_options(ip.get_mut(IPV4_OPTIONS..)?);
        }
        finish_ipv4(ip, len as u16)?;
        Some(repeated.len())
    }

    /// Writes all headers of a fragment with `len` bytes up to the fragment header; returns how
    /// long they are.
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
        let follows = std::mem::replace(next_header, PROTO_IPV6_FRAGMENT);
        fragment.fill(0);
        *fragment.first_mut()? = follows;
        // A multiple of 8, and no more than an IP packet's length: the unit is 8 bytes, and the
        // three bits below it are others.
        let offset = (index * usize::from(self.size)) as u16;
        put16(fragment, 2, offset | self.more(index, IPV6_MORE))?;
        fragment
            .get_mut(4..)?
            .copy_from_slice(&self.whole.identification.to_be_bytes());
        let ip = before.get_mut(usize::from(self.ip_offset)..)?;
        write_ipv6(ip, (FRAGMENT_HEADER + len) as u16)?;
        Some(repeated.len() + FRAGMENT_HEADER)
    }

    /// `flag`, unless it is the last fragment.
    fn more(&self, index: usize, flag: u16) -> u16 {
        if index + 1 < usize::from(self.count) {
            flag
        } else {
            0
        }
    }
}

/// The headers that every fragment has, of an IPv6 header at `ip` and its extensions: those that
/// nodes on the way look at, hop-by-hop options and routing, and what is before them (RFC 8200,
/// 4.5). Returns where they name what follows them, and where they end.
fn unfragmentable(headers: &[u8], ip: usize) -> Option<(usize, usize)> {
    let mut named = ip + 6;
    let mut at = ip + IPV6_HEADER;
    let mut protocol = *headers.get(named)?;
    let mut end = (named, at);
    // `headers` was walked before, and ends with the UDP header.
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

/// Overwrites the IPv4 options that only the first fragment has, as Linux does: the header keeps
/// its length. Behind one that contradicts itself all stay as they are.
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
