//! Large frames of every kind, and their expected segments, both written by etherparse.

use crosspoint_packet::checksum::{Partial, finish, sum};
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, SegmentError, Segmentation, Whole};
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader,
    VlanId, VlanPcp, ether_type, ip_number,
};
use proptest::prelude::*;

pub const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub const DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 0x22];
/// Identification of the fragments in all tests.
pub const IDENTIFICATION: u32 = 0x89ab_cdef;

/// An IP header without the fields that depend on the payload.
#[derive(Clone, Debug)]
pub enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header, Vec<Ipv6RawExtHeader>),
}

/// A transport header without the fields that depend on the payload.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
}

/// A large frame, and how it is to be cut.
#[derive(Clone, Debug)]
pub struct Large {
    /// Tags from the outermost on: VLAN, and whether it is an 802.1ad tag.
    pub tags: Vec<(u16, bool)>,
    pub ip: Ip,
    pub transport: Transport,
    pub payload: Vec<u8>,
    pub gso_size: usize,
    /// The guest sets the ECN bit in `gso_type`.
    pub ecn: bool,
    /// Value that the guest leaves in IP's length field.
    pub ip_len: Option<u16>,
    /// For a datagram to be cut into fragments: the IPv4 options of all fragments but the first.
    pub fragments: Option<Vec<u8>>,
}

impl Large {
    pub fn count(&self) -> usize {
        if self.fragments.is_some() {
            let len = self.header_len() - self.fragmented_from() + self.payload.len();
            return match len <= self.gso_size {
                true => 1,
                false => len.div_ceil(self.fragment_size()),
            };
        }
        self.payload.len().div_ceil(self.gso_size).max(1)
    }

    /// Returns the bytes that IP carries in each fragment but the last.
    pub fn fragment_size(&self) -> usize {
        self.gso_size / 8 * 8
    }

    /// Returns the offset of the part that is cut into fragments: after all headers that nodes on the path use.
    pub fn fragmented_from(&self) -> usize {
        match &self.ip {
            Ip::V4(_) => self.transport_offset(),
            Ip::V6(_, extensions) => {
                let repeated = &extensions[..self.repeated_extensions()];
                self.ip_offset() + 40 + repeated.iter().map(|e| e.header_len()).sum::<usize>()
            }
        }
    }

    /// Returns how many IPv6 extension headers every fragment repeats.
    fn repeated_extensions(&self) -> usize {
        let Ip::V6(header, extensions) = &self.ip else {
            return 0;
        };
        let named = extensions.iter().map(|e| e.next_header);
        let kinds: Vec<IpNumber> = [header.next_header].into_iter().chain(named).collect();
        let on_the_way = |kind: &IpNumber| {
            [
                ip_number::IPV6_HEADER_HOP_BY_HOP,
                ip_number::IPV6_ROUTE_HEADER,
            ]
            .contains(kind)
        };
        kinds
            .iter()
            .rposition(on_the_way)
            .map_or(0, |last| last + 1)
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
    }

    pub fn is_v6(&self) -> bool {
        matches!(self.ip, Ip::V6(..))
    }

    pub fn ip_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub fn transport_offset(&self) -> usize {
        self.ip_offset()
            + match &self.ip {
                Ip::V4(header) => header.header_len(),
                Ip::V6(_, extensions) => {
                    40 + extensions.iter().map(|e| e.header_len()).sum::<usize>()
                }
            }
    }

    pub fn header_len(&self) -> usize {
        self.transport_offset()
            + match &self.transport {
                Transport::Tcp(header) => header.header_len(),
                Transport::Udp(_) => 8,
            }
    }

    pub fn request(&self) -> GsoRequest {
        let kind = match (&self.transport, &self.ip) {
            (Transport::Udp(_), _) if self.fragments.is_some() => 3,
            (Transport::Udp(_), _) => 5,
            (Transport::Tcp(_), Ip::V4(_)) => 1,
            (Transport::Tcp(_), Ip::V6(..)) => 4,
        };
        GsoRequest {
            gso_type: kind | if self.ecn { 0x80 } else { 0 },
            gso_size: self.gso_size as u16,
            checksum: Some(Partial {
                start: self.transport_offset() as u16,
                offset: if self.is_tcp() { 16 } else { 6 },
            }),
        }
    }

    /// Returns the frame as the guest sends it: with the sum of the pseudo-header in the checksum field.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.written(&self.ip, &self.transport, &self.payload);
        let at = self.transport_offset() + if self.is_tcp() { 16 } else { 6 };
        let len = frame.len() - self.transport_offset();
        frame[at..at + 2].copy_from_slice(&self.pseudo_header_sum(len).to_be_bytes());
        if let Some(len) = self.ip_len {
            let ip = self.ip_offset();
            let field = if matches!(self.ip, Ip::V4(_)) {
                ip + 2
            } else {
                ip + 4
            };
            frame[field..field + 2].copy_from_slice(&len.to_be_bytes());
        }
        frame
    }

    /// Returns segment `index` as a sender without segmentation offload would send it.
    pub fn expected(&self, index: usize) -> Vec<u8> {
        if self.fragments.is_some() && self.count() > 1 {
            return self.expected_fragment(index);
        }
        let (mut ip, mut transport) = (self.ip.clone(), self.transport.clone());
        if let Ip::V4(header) = &mut ip {
            header.identification = header.identification.wrapping_add(index as u16);
        }
        let first = index * self.gso_size;
        if let Transport::Tcp(header) = &mut transport {
            header.sequence_number = header.sequence_number.wrapping_add(first as u32);
            header.cwr &= index == 0;
            header.fin &= index == self.count() - 1;
            header.psh &= index == self.count() - 1;
        }
        let last = (first + self.gso_size).min(self.payload.len());
        self.written(&ip, &transport, &self.payload[first..last])
    }

    /// Returns the whole frame as a sender without any offload would send it.
    pub fn whole(&self) -> Vec<u8> {
        self.written(&self.ip, &self.transport, &self.payload)
    }

    fn expected_fragment(&self, index: usize) -> Vec<u8> {
        let (whole, size) = (self.whole(), self.fragment_size());
        let parts = whole[self.fragmented_from()..].chunks(size);
        let part = parts.clone().nth(index).unwrap();
        let more = index + 1 < parts.len();
        let offset = IpFragOffset::try_new((index * size / 8) as u16).unwrap();
        let mut frame = self.link();
        match &self.ip {
            Ip::V4(v4) => {
                let mut v4 = v4.clone();
                (v4.dont_fragment, v4.more_fragments) = (false, more);
                v4.fragment_offset = offset;
                if index > 0 {
                    let options = self.fragments.as_ref().unwrap();
                    v4.options = options.as_slice().try_into().unwrap();
                }
                v4.set_payload_len(part.len()).unwrap();
                v4.header_checksum = v4.calc_header_checksum();
                frame.extend(v4.to_bytes());
            }
            Ip::V6(v6, extensions) => {
                let mut v6 = v6.clone();
                let mut repeated = extensions[..self.repeated_extensions()].to_vec();
                let names = match repeated.last_mut() {
                    Some(last) => &mut last.next_header,
                    None => &mut v6.next_header,
                };
                let follows = std::mem::replace(names, ip_number::IPV6_FRAGMENTATION_HEADER);
                let repeated: Vec<u8> = repeated.iter().flat_map(|e| e.to_bytes()).collect();
                v6.set_payload_length(repeated.len() + 8 + part.len())
                    .unwrap();
                frame.extend(v6.to_bytes());
                frame.extend(repeated);
                let header = Ipv6FragmentHeader::new(follows, offset, more, IDENTIFICATION);
                frame.extend(header.to_bytes());
            }
        }
        frame.extend(part);
        frame
    }

    /// Returns a whole frame with all lengths and checksums computed by etherparse.
    fn written(&self, ip: &Ip, transport: &Transport, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.link();
        let header = checked(ip, transport, payload);
        match ip {
            Ip::V4(v4) => {
                let mut v4 = v4.clone();
                v4.set_payload_len(header.len() + payload.len()).unwrap();
                v4.header_checksum = v4.calc_header_checksum();
                frame.extend(v4.to_bytes());
            }
            Ip::V6(v6, extensions) => {
                let extensions: Vec<u8> = extensions.iter().flat_map(|e| e.to_bytes()).collect();
                let mut v6 = v6.clone();
                v6.set_payload_length(extensions.len() + header.len() + payload.len())
                    .unwrap();
                frame.extend(v6.to_bytes());
                frame.extend(extensions);
            }
        }
        frame.extend(header);
        frame.extend(payload);
        frame
    }

    fn link(&self) -> Vec<u8> {
        let mut types: Vec<EtherType> = self
            .tags
            .iter()
            .map(|(_, service)| match service {
                true => ether_type::PROVIDER_BRIDGING,
                false => ether_type::VLAN_TAGGED_FRAME,
            })
            .collect();
        types.push(match self.ip {
            Ip::V4(_) => ether_type::IPV4,
            Ip::V6(..) => ether_type::IPV6,
        });
        let ethernet = Ethernet2Header {
            source: SOURCE,
            destination: DESTINATION,
            ether_type: types[0],
        };
        let mut bytes = ethernet.to_bytes().to_vec();
        for ((vlan, _), behind) in self.tags.iter().zip(&types[1..]) {
            let tag = SingleVlanHeader {
                pcp: VlanPcp::try_new(3).unwrap(),
                drop_eligible_indicator: false,
                vlan_id: VlanId::try_new(*vlan).unwrap(),
                ether_type: *behind,
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    /// Returns the value that a guest leaves in the checksum field (virtio 1.2, 5.1.6.2).
    fn pseudo_header_sum(&self, len: usize) -> u16 {
        let sum = match &self.ip {
            Ip::V4(v4) => Sum16BitWords::new()
                .add_4bytes(v4.source)
                .add_4bytes(v4.destination),
            Ip::V6(v6, _) => Sum16BitWords::new()
                .add_16bytes(v6.source)
                .add_16bytes(v6.destination),
        };
        let protocol = if self.is_tcp() { 6 } else { 17 };
        let sum = { sum }
            .add_2bytes([0, protocol])
            .add_4bytes((len as u32).to_be_bytes());
        !sum.ones_complement().to_be()
    }
}

/// Returns the transport header with its length and checksum.
fn checked(ip: &Ip, transport: &Transport, payload: &[u8]) -> Vec<u8> {
    match transport {
        Transport::Tcp(header) => {
            let mut header = header.clone();
            header.checksum = match ip {
                Ip::V4(v4) => header.calc_checksum_ipv4(v4, payload),
                Ip::V6(v6, _) => header.calc_checksum_ipv6(v6, payload),
            }
            .unwrap();
            header.to_bytes().to_vec()
        }
        Transport::Udp(header) => {
            let mut header = header.clone();
            header.length = (8 + payload.len()) as u16;
            header.checksum = match ip {
                Ip::V4(v4) => header.calc_checksum_ipv4(v4, payload),
                Ip::V6(v6, _) => header.calc_checksum_ipv6(v6, payload),
            }
            .unwrap();
            header.to_bytes().to_vec()
        }
    }
}

/// Plans the cut of a frame of which only the beginning is known.
pub fn plan(
    headers: &[u8],
    frame_len: usize,
    request: GsoRequest,
) -> Result<Segmentation, SegmentError> {
    Segmentation::new(headers, frame_len, request, || Whole {
        checksum: 0,
        identification: IDENTIFICATION,
    })
}

/// Returns our segments of `frame`, each with the place of its checksum, which is still partial.
pub fn cut(frame: &[u8], request: GsoRequest) -> Vec<(Vec<u8>, Option<Partial>)> {
    let headers = &frame[..frame.len().min(HEADERS_MAX)];
    let whole = || Whole {
        checksum: finish(sum(&frame[request.checksum.unwrap().start.into()..], 0)),
        identification: IDENTIFICATION,
    };
    let segmentation =
        Segmentation::new(headers, frame.len(), request, whole).expect("a sound frame");
    let mut out = [0xee; HEADERS_MAX];
    (0..segmentation.count())
        .map(|index| {
            let info = segmentation.segment(index, headers, &mut out).unwrap();
            let mut segment = out[..info.header_len].to_vec();
            segment.extend(&frame[info.payload_offset..info.payload_offset + info.payload_len]);
            (segment, info.checksum)
        })
        .collect()
}

/// Returns the segment with its checksum completed, as for a link without offload.
pub fn finished((mut segment, place): (Vec<u8>, Option<Partial>)) -> Vec<u8> {
    let Some(place) = place else {
        return segment;
    };
    let at = usize::from(place.start + place.offset);
    let checksum = finish(sum(&segment[place.start.into()..], 0));
    segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Returns whether two frames are equal; in the 16 bits at `checksum`, 0 and 0xffff are the same number.
pub fn same(a: &[u8], b: &[u8], checksum: Option<Partial>) -> bool {
    let Some(place) = checksum else {
        return a == b;
    };
    let checksum = usize::from(place.start + place.offset);
    let rest = |bytes: &[u8]| [&bytes[..checksum], &bytes[checksum + 2..]].concat();
    let number = |bytes: &[u8]| match [bytes[checksum], bytes[checksum + 1]] {
        [0xff, 0xff] => [0, 0],
        other => other,
    };
    a.len() == b.len() && rest(a) == rest(b) && number(a) == number(b)
}

fn ipv4(protocol: IpNumber) -> impl Strategy<Value = Ip> {
    let options = (0usize..=10).prop_flat_map(|words| vec![any::<u8>(); words * 4]);
    ipv4_with(protocol, options)
}

fn ipv4_with(
    protocol: IpNumber,
    options: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Ip> {
    let addresses = any::<([u8; 4], [u8; 4])>();
    (addresses, any::<(u16, bool, u8)>(), 0u8..4, 1u8.., options).prop_map(
        move |((source, destination), (id, df, dscp), ecn, ttl, options)| {
            let mut header = Ipv4Header::new(0, ttl, protocol, source, destination).unwrap();
            header.identification = id;
            header.dont_fragment = df;
            header.dscp = IpDscp::try_new(dscp & 0x3f).unwrap();
            header.ecn = IpEcn::try_new(ecn).unwrap();
            header.options = options.as_slice().try_into().unwrap();
            Ip::V4(header)
        },
    )
}

/// IPv6 with any of the extension headers that segments repeat, ordered as in RFC 8200, 4.1.
fn ipv6(protocol: IpNumber) -> impl Strategy<Value = Ip> {
    let kinds = [
        ip_number::IPV6_HEADER_HOP_BY_HOP,
        ip_number::IPV6_DESTINATION_OPTIONS,
        ip_number::IPV6_ROUTE_HEADER,
        ip_number::IPV6_DESTINATION_OPTIONS,
    ];
    let extensions = prop_oneof![
        Just(vec![]),
        proptest::sample::subsequence(kinds.to_vec(), 0..=4),
    ];
    let addresses = any::<([u8; 16], [u8; 16])>();
    (addresses, any::<(u8, u32, u8)>(), extensions, 0usize..4).prop_map(
        move |((source, destination), (class, flow, hops), kinds, words)| {
            let mut header = Ipv6Header {
                traffic_class: class,
                flow_label: Ipv6FlowLabel::try_new(flow & 0xf_ffff).unwrap(),
                payload_length: 0,
                next_header: protocol,
                hop_limit: hops,
                source,
                destination,
            };
            // For experiments (RFC 4727): an option that is skipped if unknown, and a routing header without further
            // destinations.
            let mut body = vec![0; 6 + 8 * words];
            let mut extensions = vec![];
            for kind in kinds.into_iter().rev() {
                body[..2].copy_from_slice(&match kind {
                    ip_number::IPV6_ROUTE_HEADER => [253, 0],
                    _ => [0x1e, 4 + 8 * words as u8],
                });
                extensions.insert(
                    0,
                    Ipv6RawExtHeader::new_raw(header.next_header, &body).unwrap(),
                );
                header.next_header = kind;
            }
            Ip::V6(header, extensions)
        },
    )
}

fn tcp() -> impl Strategy<Value = Transport> {
    let options = (0usize..=10).prop_flat_map(|words| vec![any::<u8>(); words * 4]);
    let near_the_end = prop_oneof![any::<u32>(), u32::MAX - 100_000..];
    (
        any::<(u16, u16, u32, u16, u16, u16)>(),
        near_the_end,
        options,
    )
        .prop_map(|((from, to, ack, flags, window, urgent), seq, options)| {
            let mut header = TcpHeader::new(from, to, seq, window);
            header.acknowledgment_number = ack;
            header.urgent_pointer = urgent;
            let flag = |bit: u32| flags >> bit & 1 == 1;
            (header.ns, header.fin, header.syn) = (flag(0), flag(1), flag(2));
            (header.rst, header.psh, header.ack) = (flag(3), flag(4), flag(5));
            (header.urg, header.ece, header.cwr) = (flag(6), flag(7), flag(8));
            header.set_options_raw(&options).unwrap();
            Transport::Tcp(header)
        })
}

fn udp() -> impl Strategy<Value = Transport> {
    any::<(u16, u16)>().prop_map(|(source_port, destination_port)| {
        Transport::Udp(UdpHeader {
            source_port,
            destination_port,
            length: 0,
            checksum: 0,
        })
    })
}

fn headers() -> impl Strategy<Value = (Ip, Transport)> {
    prop_oneof![
        (ipv4(ip_number::TCP), tcp()),
        (ipv6(ip_number::TCP), tcp()),
        (ipv4(ip_number::UDP), udp()),
        (ipv6(ip_number::UDP), udp()),
    ]
}

/// Frames of every kind, cut into 1 to 128 segments, TCP sometimes into more.
pub fn large() -> impl Strategy<Value = Large> {
    let count = prop_oneof![1 => Just(1usize), 8 => 1usize..=128, 1 => 129usize..=2048];
    let tags = proptest::collection::vec((0u16..4096, any::<bool>()), 0..=2);
    let size = (count, 1usize..=3000, any::<proptest::sample::Index>());
    let ip_len = proptest::option::of(prop_oneof![Just(0), any::<u16>()]);
    (tags, headers(), size, any::<(bool, u8)>(), ip_len).prop_map(
        |(tags, (ip, transport), (count, gso_size, last), (ecn, seed), ip_len)| {
            let tcp = matches!(transport, Transport::Tcp(_));
            let count = if tcp { count } else { count.min(128) };
            // Fits in an IP packet even with the largest headers.
            let most = 65_000 / count;
            let gso_size = gso_size.min(most);
            let len = (count - 1) * gso_size + 1 + last.index(gso_size);
            let payload = (0..len).map(|i| (i * 7 + i / 251) as u8 ^ seed).collect();
            Large {
                tags,
                ip,
                transport,
                payload,
                gso_size,
                ecn: ecn && tcp,
                ip_len,
                fragments: None,
            }
        },
    )
}

/// Valid IPv4 options, in words of 4 bytes; and the options of the fragments after the first.
fn options() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    // For experiments (RFC 4727), of both classes: those with the highest bit are copied.
    let kind = proptest::sample::select(vec![1u8, 0x1e, 0x5e, 0x9e, 0xde]);
    let list = proptest::collection::vec((kind, 2usize..12), 0..6);
    (list, any::<bool>()).prop_map(|(list, ended)| {
        let (mut first, mut later) = (vec![], vec![]);
        for (kind, len) in list {
            let len = if kind == 1 { 1 } else { len };
            if first.len() + len > 40 {
                break;
            }
            let mut option = vec![kind; len];
            if let Some(field) = option.get_mut(1) {
                *field = len as u8;
            }
            let copied = kind & 0x80 != 0;
            first.extend(&option);
            later.extend(if copied { option } else { vec![1; len] });
        }
        let padding = if ended { 0 } else { 1 };
        for options in [&mut first, &mut later] {
            options.resize(options.len().next_multiple_of(4), padding);
        }
        (first, later)
    })
}

/// Datagrams of every length, to be cut into 1 to 2048 fragments.
pub fn datagram() -> impl Strategy<Value = Large> {
    let v4 = options()
        .prop_flat_map(|(first, later)| (ipv4_with(ip_number::UDP, Just(first)), Just(later)));
    let ip = prop_oneof![v4, ipv6(ip_number::UDP).prop_map(|ip| (ip, vec![]))];
    let tags = proptest::collection::vec((0u16..4096, any::<bool>()), 0..=2);
    let gso_size = prop_oneof![8usize..200, 200usize..3000, Just(1480), 3000usize..=65_535];
    let len = prop_oneof![0usize..3000, 3000usize..65_536, Just(65_535)];
    let ip_len = proptest::option::of(prop_oneof![Just(0), any::<u16>()]);
    (tags, ip, udp(), (gso_size, len), any::<u8>(), ip_len).prop_map(
        |(tags, (ip, later), transport, (gso_size, len), seed, ip_len)| {
            let mut large = Large {
                tags,
                ip,
                transport,
                payload: vec![],
                gso_size,
                ecn: false,
                ip_len,
                fragments: Some(later),
            };
            // The first fragment has room for all headers.
            let headers = large.header_len() - large.fragmented_from();
            large.gso_size = gso_size.max(headers.next_multiple_of(8));
            let counted = large.header_len() - large.ip_offset();
            let most = match large.ip {
                Ip::V4(_) => 65_535 - counted,
                Ip::V6(..) => 65_575 - counted,
            };
            let len = len.min(most).min(2000 * large.fragment_size());
            large.payload = (0..len).map(|i| (i * 7 + i / 251) as u8 ^ seed).collect();
            large
        },
    )
}

/// Frames of every kind.
pub fn any_large() -> impl Strategy<Value = Large> {
    prop_oneof![4 => large(), 1 => datagram()]
}
