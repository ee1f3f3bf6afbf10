//! The Internet checksum (RFC 1071), and the partial checksums that virtio and veth peers leave.

use crate::parse::L4;

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

/// Finds the partial checksum of a whole frame: see [`crate::partial::find`], which needs only its beginning.
pub fn find_partial(frame: &[u8]) -> Option<Partial> {
    crate::partial::find(frame, frame.len()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse_l4;
    use etherparse::PacketBuilder;
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

        /// With the pseudo-header sum in the field, finished as virtio specifies, the packet is equal to etherparse's.
        #[test]
        fn a_partial_checksum_is_found_and_finished_right(
            v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut frame = Vec::new();
            let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
            match (v6, tcp) {
                (false, true) => eth.ipv4([10, 1, 2, 3], [10, 9, 8, 7], 64).tcp(1, 2, 3, 4).write(&mut frame, &payload),
                (false, false) => eth.ipv4([10, 1, 2, 3], [10, 9, 8, 7], 64).udp(1, 2).write(&mut frame, &payload),
                (true, true) => eth.ipv6([3; 16], [9; 16], 64).tcp(1, 2, 3, 4).write(&mut frame, &payload),
                (true, false) => eth.ipv6([3; 16], [9; 16], 64).udp(1, 2).write(&mut frame, &payload),
            }.unwrap();
            let whole = frame.clone();
            let l4 = parse_l4(&frame).unwrap();
            let at = l4.offset + l4.checksum_offset().unwrap();
            let pseudo = pseudo_header(&frame, &l4).unwrap();
            frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            let partial = find_partial(&frame).expect("the field holds the pseudo-header sum");
            prop_assert_eq!(usize::from(partial.start + partial.offset), at);
            let done = finish(sum(&frame[partial.start.into()..], 0));
            frame[at..at + 2].copy_from_slice(&done.to_be_bytes());
            prop_assert_eq!(frame, whole);
        }
    }
}
