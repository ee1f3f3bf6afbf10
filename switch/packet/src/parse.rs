use crate::Mac;

/// Bytes of an Ethernet header: destination, source, type.
pub const ETHERNET_LEN: usize = 14;
/// Type of an 802.1Q tag, the only tag that selects a VLAN of this switch.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Type of an 802.1ad tag: payload for this switch, except that it counts as a tag in the frame's length.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Type that some devices send instead, from before 802.1ad.
pub(crate) const ETHERTYPE_QINQ_OLD: u16 = 0x9100;
/// The longest frame without tags: the largest IP packet and its Ethernet header, rounded up to an even number.
pub const MAX_FRAME_LEN: usize = 65550;
/// Bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
/// The protocol number of TCP in IP headers.
pub const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;
/// Bytes of a UDP header (RFC 768).
pub(crate) const UDP_HEADER: usize = 8;

/// Most tags that are allowed in addition to a frame's length limit: a provider's and a customer's (802.1ad).
pub const TAGS_MAX: u8 = 2;

/// A frame's parsed link header, from its first 22 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// Tag control information of an 802.1Q tag, if there is one: priority, DEI, VLAN.
    pub tci: Option<u16>,
    /// Number of tags, 802.1Q or 802.1ad, that do not count in the frame's length: at most [`TAGS_MAX`].
    pub tags: u8,
}

impl Parsed {
    /// Parses the link header. `head` is the frame's first 64 bytes, zero-padded. If the frame is too short for a tag
    /// (`frame_len` < 18), it has none.
    #[inline(always)]
    pub fn new(head: &[u8; 64], frame_len: usize) -> Parsed {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let tagged = head[12] == 0x81 && head[13] == 0x00 && frame_len >= ETHERNET_LEN + 4;
        Parsed {
            dst: Mac::from_le_word(word(0)),
            src: Mac::from_le_word(word(6)),
            tci: tagged.then(|| u16::from_be_bytes([head[14], head[15]])),
            tags: tags(head, frame_len),
        }
    }
}

/// Returns the number of leading tags that do not count in the frame's length.
#[inline(always)]
fn tags(head: &[u8; 64], frame_len: usize) -> u8 {
    let is_tag = |at: usize| matches!(head[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]);
    let has = |number: usize| {
        let at = ETHERNET_LEN - 2 + TAG_LEN * number;
        is_tag(at) && frame_len >= ETHERNET_LEN + TAG_LEN * (number + 1)
    };
    u8::from(has(0)) + u8::from(has(0) && has(1))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([*pair.first()?, *pair.get(1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::parse_l4;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn head(frame: &[u8]) -> [u8; 64] {
        let mut head = [0; 64];
        let n = frame.len().min(64);
        head[..n].copy_from_slice(&frame[..n]);
        head
    }

    #[test]
    fn a_tag_is_read_only_from_a_frame_that_can_hold_it() {
        let mut frame = vec![0xff; 12];
        frame.extend([0x81, 0x00, 0x60, 0x64, 0x08, 0x00]);
        let parsed = Parsed::new(&head(&frame), frame.len());
        assert_eq!(parsed.tci, Some(0x6064));
        assert_eq!(parsed.dst, Mac::BROADCAST);
        assert_eq!(Parsed::new(&head(&frame[..16]), 16).tci, None);
    }

    #[test]
    fn two_tags_of_either_kind_do_not_count_in_a_length() {
        let tags = |types: &[u16], len: usize| {
            let mut frame = vec![2; 12];
            for ethertype in types {
                frame.extend(ethertype.to_be_bytes());
                frame.extend([0, 7]);
            }
            frame.extend([8, 0]);
            Parsed::new(&head(&frame), len).tags
        };
        assert_eq!(tags(&[], 60), 0);
        for one in [0x8100, 0x88a8] {
            assert_eq!(tags(&[one], 60), 1);
            assert_eq!(tags(&[one], 17), 0, "no room for it");
            for other in [0x8100, 0x88a8] {
                assert_eq!(tags(&[one, other], 60), 2);
                assert_eq!(tags(&[one, other], 21), 1);
                assert_eq!(tags(&[one, other, 0x8100], 60), TAGS_MAX);
            }
        }
    }

    proptest! {
        /// Our results are equal to etherparse's for a frame that it has built.
        #[test]
        fn agrees_with_etherparse(
            dst: [u8; 6], src: [u8; 6], vlan in proptest::option::of(0u16..4096),
            v6: bool, tcp: bool, sport: u16, dport: u16, payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let eth = PacketBuilder::ethernet2(src, dst);
            let mut frame = Vec::new();
            let vid = vlan.map(|v| etherparse::VlanId::try_new(v).unwrap());
            macro_rules! finish { ($ip:expr) => {
                if tcp { $ip.tcp(sport, dport, 7, 100).write(&mut frame, &payload).unwrap() }
                else { $ip.udp(sport, dport).write(&mut frame, &payload).unwrap() }
            } }
            match (vid, v6) {
                (None, false) => finish!(eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
                (None, true) => finish!(eth.ipv6([1; 16], [2; 16], 64)),
                (Some(v), false) => finish!(eth.single_vlan(v).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
                (Some(v), true) => finish!(eth.single_vlan(v).ipv6([1; 16], [2; 16], 64)),
            }
            let parsed = Parsed::new(&head(&frame), frame.len());
            prop_assert_eq!(parsed.dst.bytes(), dst);
            prop_assert_eq!(parsed.src.bytes(), src);
            prop_assert_eq!(parsed.tci, vlan);
            let l4 = parse_l4(&frame).unwrap();
            let header = if tcp { 20 } else { 8 };
            prop_assert_eq!(l4.protocol, if tcp { 6 } else { 17 });
            prop_assert_eq!(l4.offset, frame.len() - payload.len() - header);
            prop_assert_eq!(l4.len, payload.len() + header);
            prop_assert!(!l4.fragment);
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse_l4(&bytes);
            let _ = Parsed::new(&head(&bytes), bytes.len());
        }
    }
}
