use crate::headers::{Fragment, Headers, Stop};
use crate::parse::{PROTO_TCP, PROTO_UDP};

/// Number of first bytes of a frame that are used. A frame has the same hash whether more of it is given or not.
const HEAD: usize = 64;

/// Symmetric flow hash: both directions of a flow get the same value, so that both use the same guest queue. Seeded,
/// because guests choose the fields.
///
/// The hash covers addresses and ports of TCP and UDP, and the two MAC addresses of frames that are not IP. It covers only
/// the addresses of other IP packets, of all fragments of a datagram (only the first has ports), of packets whose ports are
/// not within the first 64 bytes (IPv6 with extension headers), and of packets with an AH (see [`crate::headers`]). So the
/// packets of a flow that have the same kinds of headers have the same hash, as have the fragments of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct FlowHasher {
    seed: u64,
}

impl FlowHasher {
    /// Creates a hasher whose values cannot be predicted without `seed`.
    pub fn new(seed: u64) -> FlowHasher {
        FlowHasher { seed }
    }

    fn mix(&self, value: u64) -> u64 {
        // The finisher of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches the top.
        let mut x = value ^ self.seed;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn endpoint(&self, address: &[u8], port: &[u8]) -> u64 {
        let mut hash = 0;
        for chunk in address.chunks(8).chain([port]) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = self.mix(hash ^ u64::from_le_bytes(word));
        }
        hash
    }

    /// Returns the hash of the frame that begins with `head` (its first 64 bytes are enough).
    pub fn hash(&self, head: &[u8]) -> u32 {
        let sum = self.ip_flow(head).unwrap_or_else(|| {
            let side = |range| self.endpoint(head.get(range).unwrap_or(&[]), &[]);
            side(0..6).wrapping_add(side(6..12))
        });
        (self.mix(sum) >> 32) as u32
    }

    fn ip_flow(&self, head: &[u8]) -> Option<u64> {
        let head = head.get(..HEAD).unwrap_or(head);
        let headers = Headers::parse(head);
        let (first, width) = match headers.ip_version {
            4 => (12, 4),
            6 => (8, 16),
            _ => return None,
        };
        let src = headers.network + first;
        let src_address = head.get(src..src + width)?;
        let dst_address = head.get(src + width..src + 2 * width)?;
        let ports = match has_ports(&headers) {
            true => head.get(headers.offset..headers.offset + 4),
            false => None,
        };
        let (sport, dport) = ports.unwrap_or(&[]).split_at(ports.map_or(0, |_| 2));
        Some(
            self.endpoint(src_address, sport)
                .wrapping_add(self.endpoint(dst_address, dport)),
        )
    }
}

/// Returns whether ports identify the packet's flow.
fn has_ports(headers: &Headers) -> bool {
    headers.stop == Stop::Layer4
        && matches!(headers.protocol, PROTO_TCP | PROTO_UDP)
        && headers.fragment == Fragment::No
        && headers.repeatable
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn frame(a: ([u8; 4], u16), b: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(a.0, b.0, 64)
            .udp(a.1, b.1)
            .write(&mut out, payload)
            .unwrap();
        out
    }

    proptest! {
        #[test]
        fn both_directions_and_any_payload_of_a_flow_share_a_hash(
            a: ([u8; 4], u16), b: ([u8; 4], u16), seed: u64,
            p in proptest::collection::vec(any::<u8>(), 0..64), q in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let hasher = FlowHasher::new(seed);
            prop_assert_eq!(hasher.hash(&frame(a, b, &p)), hasher.hash(&frame(b, a, &q)));
        }

        #[test]
        fn any_bytes_hash_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), seed: u64) {
            FlowHasher::new(seed).hash(&bytes);
        }
    }

    #[test]
    fn flows_spread_over_queues() {
        let hasher = FlowHasher::new(7);
        let mut queues = [0u32; 4];
        for port in 0..4000 {
            let hash = hasher.hash(&frame(([10, 0, 0, 1], port), ([10, 0, 0, 2], 80), b""));
            queues[hash as usize % 4] += 1;
        }
        assert!(queues.iter().all(|n| (800..1200).contains(n)), "{queues:?}");
    }
}
