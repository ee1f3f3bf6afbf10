//! The Internet checksum (RFC 1071), and the partial checksums that virtio and veth peers leave.

use crate::headers::L4;

/// One's-complement sum of `bytes` added to `sum`, not folded. An odd last byte is padded, so
/// only the last of several pieces may have an odd length.
#[inline]
pub fn sum(bytes: &[u8], sum: u64) -> u64 {
    // Summing in native byte order is right up to a byte swap, which `fold` does (RFC 1071, 2B). The two halves are
    // summed separately: neither overflows before 2^32 words.
    let (mut low, mut high) = (sum & 0xffff_ffff, sum >> 32);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & 0xffff_ffff;
        high += word >> 32;
    }
    // The rest is summed in halves: a loop over bytes takes longer than a whole header.
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        low += u64::from(u32::from_ne_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        low += u64::from(u16::from_ne_bytes(*word));
    }
    for byte in rest {
        low += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    low + high
}

/// Folds a sum to 16 bits, in wire order as a big-endian number; not complemented.
pub fn fold(sum: u64) -> u16 {
    let mut s = (sum & 0xffff_ffff) + (sum >> 32);
    s = (s & 0xffff_ffff) + (s >> 32);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    u16::from_be((((s & 0xffff) + (s >> 16)) & 0xffff) as u16)
}

/// Returns the checksum field's value for `sum`: its complement, with 0 replaced by 0xffff, since zero would mean "no
/// checksum" (UDP, RFC 768; harmless for TCP, where both are zero).
pub fn finish(sum: u64) -> u16 {
    match !fold(sum) {
        0 => 0xffff,
        value => value,
    }
}

/// Returns the folded sum of the pseudo-header of a TCP or UDP packet (RFC 793, 3.1; RFC 8200, 8.1).
pub(crate) fn pseudo_header(frame: &[u8], l4: &L4) -> Option<u16> {
    let (first, width) = if l4.ip_version == 4 { (12, 8) } else { (8, 32) };
    let at = l4.ip_offset + first;
    let addresses = sum(frame.get(at..at + width)?, 0);
    let mut rest = [0; 8];
    rest[3] = l4.protocol;
    rest[4..8].copy_from_slice(&(l4.len as u32).to_be_bytes());
    Some(fold(sum(&rest, addresses)))
}

/// A checksum that is still to be computed, in virtio's terms (virtio 1.2, 5.1.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// Start of the sum, bytes from the frame's start.
    pub start: u16,
    /// Place of the checksum, bytes from `start`.
    pub offset: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(bytes: &[u8]) -> u16 {
        let mut s = 0u32;
        for pair in bytes.chunks(2) {
            s += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            s = (s & 0xffff) + (s >> 16);
        }
        s as u16
    }

    proptest! {
        #[test]
        fn sum_is_rfc_1071s(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            // 0 and 0xffff are the same number in one's complement.
            let same = |a: u16, b: u16| a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff));
            prop_assert!(same(fold(sum(&bytes, 0)), reference(&bytes)));
            let cut = cut.min(bytes.len()) & !1;
            prop_assert!(same(fold(sum(&bytes[cut..], sum(&bytes[..cut], 0))), reference(&bytes)));
        }
    }
}
