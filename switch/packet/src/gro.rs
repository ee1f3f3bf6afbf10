//! Joins TCP segments to a large frame: the reverse of [`segment`](crate::segment).
//!
//! The rules are those of Linux's `tcp_gro_receive` and `inet_gro_receive`, and stricter if a segment could not be
//! restored: a joined frame, cut again, gives byte for byte the received segments. Everything else passes unchanged. Only
//! frames that are already there are joined; nothing waits for further frames.

use crate::checksum::{fold, pseudo_header, sum};
use crate::headers::{Headers, IPV4_HEADER_MIN, IPV6_HEADER, L4, Stop};
use crate::parse::{PROTO_TCP, be16};

/// Number of first bytes of a frame that joining reads: two tags, IPv6, and TCP with all options are 122.
pub const JOIN_HEADERS: usize = 128;

const TCP_HEADER_MIN: usize = 20;
/// Largest value of an IP packet's length field.
const IP_LEN_MAX: usize = 65535;

const TCP_FLAGS_AT: usize = 13;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;

/// Classification of a frame for joining.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joinable {
    /// A plain TCP segment with payload.
    Data(TcpSegment),
    /// A segment of the flow with this key that is not joined: later segments do not join earlier ones.
    Single(u64),
    /// Possibly TCP, but not understood: nothing joins across it, since its flow is not known.
    Opaque,
    /// Another protocol: it belongs to no flow that is joined.
    Foreign,
}

/// A TCP segment with payload, and no flags other than ACK and PSH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpSegment {
    /// Equal for all segments of a flow, and rarely equal for two flows.
    pub key: u64,
    /// Payload bytes, at least one.
    pub payload_len: usize,
    /// Whether the PSH flag is set: later data belongs to another push.
    pub push: bool,
    seq: u32,
    ip_offset: usize,
    tcp_offset: usize,
    header_len: usize,
    ip_version: u8,
}

/// Classifies a frame of `frame_len` bytes that begins with `head`: the whole frame, or [`JOIN_HEADERS`] bytes.
pub fn inspect(head: &[u8], frame_len: usize) -> Joinable {
    let headers = Headers::parse(head);
    if headers.stop == Stop::Layer4 && headers.protocol == PROTO_TCP {
        let is_plain = match headers.ip_version {
            4 => is_plain_ipv4(head, &headers, frame_len),
            _ => is_plain_ipv6(head, &headers, frame_len),
        };
        return match is_plain {
            true => tcp(head, &headers, frame_len),
            false => Joinable::Opaque,
        };
    }
    // Behind a third tag nothing is joined, so nothing can be overtaken there.
    match headers.is_certainly_not(PROTO_TCP) || headers.stop == Stop::TooManyTags {
        true => Joinable::Foreign,
        false => Joinable::Opaque,
    }
}

/// Returns whether a TCP packet has no options, is no fragment, has a correct checksum, and no byte follows it: padding
/// would be lost.
#[inline(always)]
fn is_plain_ipv4(head: &[u8], headers: &Headers, frame_len: usize) -> bool {
    let ip = headers.network;
    let Some(header) = head.get(ip..ip + IPV4_HEADER_MIN) else {
        return false;
    };
    let total = be16(header, 2).map_or(0, usize::from);
    headers.offset == ip + IPV4_HEADER_MIN
        && be16(header, 6).is_some_and(|fragment| fragment & !0x4000 == 0)
        && ip + total == frame_len
        && fold(sum(header, 0)) == 0xffff
}

/// Returns whether a TCP packet has no extension headers, and no byte follows it.
#[inline(always)]
fn is_plain_ipv6(head: &[u8], headers: &Headers, frame_len: usize) -> bool {
    let len = be16(head, headers.network + 4).map_or(0, usize::from);
    headers.stop == Stop::Layer4 && headers.extensions == 0 && headers.offset + len == frame_len
}

#[inline(always)]
fn tcp(head: &[u8], headers: &Headers, frame_len: usize) -> Joinable {
    let (ip_offset, ip_version, at) = (headers.network, headers.ip_version, headers.offset);
    let Some(header) = head.get(at..at + TCP_HEADER_MIN) else {
        return Joinable::Opaque;
    };
    let addresses = match ip_version {
        4 => head.get(ip_offset + 12..ip_offset + 20),
        _ => head.get(ip_offset + 8..ip_offset + 40),
    };
    let key = flow_key(addresses.unwrap_or(&[]), &header[..4]);
    let header_len = at + usize::from(header[12] >> 4) * 4;
    let flags = header[TCP_FLAGS_AT];
    let special = flags & !TCP_PSH != TCP_ACK || header[12] & 0xf != 0;
    if header_len < at + TCP_HEADER_MIN
        || special
        || header_len >= frame_len
        || header_len > head.len()
    {
        return Joinable::Single(key);
    }
    Joinable::Data(TcpSegment {
        key,
        payload_len: frame_len - header_len,
        push: flags & TCP_PSH != 0,
        seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        ip_offset,
        tcp_offset: at,
        header_len,
        ip_version,
    })
}

/// Not resistant to attackers: two flows with the same key only prevent each other's joining.
fn flow_key(addresses: &[u8], ports: &[u8]) -> u64 {
    let mut key = 0u64;
    for chunk in addresses.chunks(4).chain([ports]) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        // The multiplier of Knuth's multiplicative hashing, for 64 bits.
        key = (key.rotate_left(23) ^ u64::from(u32::from_ne_bytes(word)))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    key
}

impl TcpSegment {
    /// Returns the bytes before the payload.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Returns the offset of the TCP header, where its checksum begins.
    pub fn checksum_start(&self) -> usize {
        self.tcp_offset
    }

    /// Returns 4 or 6.
    pub fn ip_version(&self) -> u8 {
        self.ip_version
    }

    /// Returns the folded sum of the pseudo-header of a segment with `payload_len` bytes of payload.
    pub fn pseudo_header(&self, head: &[u8], payload_len: usize) -> u16 {
        let l4 = L4 {
            protocol: PROTO_TCP,
            offset: self.tcp_offset,
            ip_offset: self.ip_offset,
            ip_version: self.ip_version,
            len: self.header_len - self.tcp_offset + payload_len,
            fragment: false,
            repeatable: true,
        };
        pseudo_header(head, &l4).unwrap_or(0)
    }

    /// Returns whether `next` continues this segment and those joined to it: `count` segments with `payload_len` bytes
    /// together. The heads are those given to [`inspect`]; checksums are not checked.
    pub fn is_followed_by(
        &self,
        head: &[u8],
        (count, payload_len): (usize, usize),
        next: &TcpSegment,
        next_head: &[u8],
    ) -> bool {
        let places = |s: &TcpSegment| (s.ip_version, s.ip_offset, s.tcp_offset, s.header_len);
        let ip_len = self.header_len - self.ip_offset + payload_len + next.payload_len;
        places(self) == places(next)
            && next.payload_len <= self.payload_len
            && next.seq == self.seq.wrapping_add(payload_len as u32)
            && ip_len <= IP_LEN_MAX
            && self.same_but_position(head, next_head, count)
    }

    /// Returns whether two headers are equal except for lengths, checksums, sequence number, PSH, and the IPv4
    /// identification, which must count up.
    fn same_but_position(&self, head: &[u8], next: &[u8], count: usize) -> bool {
        let (ip, tcp) = (self.ip_offset, self.tcp_offset);
        let same = |from: usize, to: usize| head.get(from..to) == next.get(from..to);
        let network = match self.ip_version {
            4 => {
                let id = |bytes| be16(bytes, ip + 4).unwrap_or_default();
                // Version and service; flags, lifetime and protocol; addresses.
                same(ip, ip + 2)
                    && id(next) == id(head).wrapping_add(count as u16)
                    && same(ip + 6, ip + 10)
                    && same(ip + 12, ip + 20)
            }
            _ => same(ip, ip + 4) && same(ip + 6, ip + IPV6_HEADER),
        };
        // Link header; ports; acknowledgement and header length; window; urgent pointer and options.
        network
            && same(0, ip)
            && same(tcp, tcp + 4)
            && same(tcp + 8, tcp + 13)
            && same(tcp + 14, tcp + 16)
            && same(tcp + 18, self.header_len)
    }

    /// Turns `head`, this segment's, into the header of a large frame with `payload_len` bytes of payload. Its checksum
    /// field gets the sum of the pseudo-header, which a receiver of large frames expects there.
    pub fn write_joined(&self, head: &mut [u8], payload_len: usize, push: bool) {
        let ip = self.ip_offset;
        let len = self.header_len - ip + payload_len;
        if self.ip_version == 4 {
            put16(head, ip + 2, len as u16);
            put16(head, ip + 10, 0);
            let header = head.get(ip..ip + IPV4_HEADER_MIN).unwrap_or(&[]);
            put16(head, ip + 10, !fold(sum(header, 0)));
        } else {
            put16(head, ip + 4, (len - IPV6_HEADER) as u16);
        }
        if let (true, Some(flags)) = (push, head.get_mut(self.tcp_offset + TCP_FLAGS_AT)) {
            *flags |= TCP_PSH;
        }
        let pseudo = self.pseudo_header(head, payload_len);
        put16(head, self.tcp_offset + 16, pseudo);
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(slot) = bytes.get_mut(at..at + 2) {
        slot.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{Partial, finish};
    use crate::segment::{GsoRequest, HEADERS_MAX, Segmentation};
    use etherparse::{PacketBuilder, TcpOptionElement};
    use proptest::prelude::*;

    fn segment(v6: bool, options: bool, seq: u32, id: u16, payload: &[u8], push: bool) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]).single_vlan(5.try_into().unwrap());
        let step = match v6 {
            false => {
                let mut header =
                    etherparse::Ipv4Header::new(0, 64, 6.into(), [10, 0, 0, 1], [10, 0, 0, 2])
                        .unwrap();
                header.identification = id;
                header.dont_fragment = true;
                link.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            }
            true => link.ipv6([1; 16], [2; 16], 64),
        };
        let mut tcp = step.tcp(80, 4711, seq, 1000).ack(99);
        if push {
            tcp = tcp.psh();
        }
        if options {
            let stamps = [
                TcpOptionElement::Noop,
                TcpOptionElement::Noop,
                TcpOptionElement::Timestamp(7, 8),
            ];
            tcp = tcp.options(&stamps).unwrap();
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).unwrap();
        frame
    }

    fn data(frame: &[u8]) -> TcpSegment {
        match inspect(frame, frame.len()) {
            Joinable::Data(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// Segments that are joined and cut again are equal byte for byte.
        #[test]
        fn joined_segments_cut_again_are_the_same(
            v6: bool, options: bool, seq: u32, id: u16, push: bool,
            mss in 1usize..1460, count in 2usize..40, last in 1usize..1460,
        ) {
            let payload: Vec<u8> = (0..mss * (count - 1) + last.min(mss)).map(|i| (i * 7 + i / 251) as u8).collect();
            let pieces: Vec<&[u8]> = payload.chunks(mss).collect();
            let frames: Vec<Vec<u8>> = pieces.iter().enumerate().map(|(i, piece)| {
                let at = seq.wrapping_add((i * mss) as u32);
                segment(v6, options, at, id.wrapping_add(i as u16), piece, push && i + 1 == pieces.len())
            }).collect();
            let first = data(&frames[0]);
            let mut so_far = (1, first.payload_len);
            for frame in &frames[1..] {
                let next = data(frame);
                prop_assert_eq!(next.key, first.key);
                prop_assert!(first.is_followed_by(&frames[0], so_far, &next, frame));
                so_far = (so_far.0 + 1, so_far.1 + next.payload_len);
            }
            let mut large = frames[0][..first.header_len()].to_vec();
            first.write_joined(&mut large, so_far.1, push);
            let headers = large.len();
            large.extend(&payload);
            let start = first.checksum_start();
            let request = GsoRequest {
                gso_type: if v6 { 4 } else { 1 },
                gso_size: mss as u16,
                checksum: Some(Partial { start: start as u16, offset: 16 }),
            };
            let whole = || unreachable!("only of datagrams that become fragments");
            let plan = Segmentation::new(&large, large.len(), request, whole).unwrap();
            prop_assert_eq!(plan.count(), frames.len());
            for (i, frame) in frames.iter().enumerate() {
                let mut header = [0; HEADERS_MAX];
                let info = plan.segment(i, &large, &mut header).unwrap();
                let body = &large[info.payload_offset..info.payload_offset + info.payload_len];
                let mut made = [&header[..headers], body].concat();
                let check = finish(sum(&made[start..], 0));
                made[start + 16..start + 18].copy_from_slice(&check.to_be_bytes());
                // TCP sends zero as zero, and `finish` as all ones: both mean the same.
                prop_assert!(made == *frame || frame[start + 16..start + 18] == [0, 0]);
            }
        }

        /// A changed bit in any header byte that must be equal prevents joining.
        #[test]
        fn a_segment_that_differs_is_not_joined(v6: bool, options: bool, at in 0usize..90, bit in 0u32..8) {
            let frames = [0u32, 100].map(|seq| segment(v6, options, seq, (seq / 100) as u16, &[3; 100], false));
            let first = data(&frames[0]);
            let at = at % first.header_len();
            let mut changed = frames[1].clone();
            changed[at] ^= 1 << bit;
            let tcp = first.checksum_start();
            let follows = match inspect(&changed, changed.len()) {
                Joinable::Data(next) => first.is_followed_by(&frames[0], (1, 100), &next, &changed),
                _ => false,
            };
            let free = at == tcp + 13 && 1 << bit == TCP_PSH || (tcp + 16..tcp + 18).contains(&at);
            prop_assert_eq!(follows, free, "byte {}", at);
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..JOIN_HEADERS), len in 0usize..70_000) {
            inspect(&bytes, len);
        }
    }
}
