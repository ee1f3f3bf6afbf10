//! Large frames of every kind, and what their segments must be, both written by etherparse.

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, Segmentation};
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, VlanPcp, ether_type,
    ip_number,
};
use proptest::prelude::*;

pub const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub const DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// An IP header, without what depends on the payload.
#[derive(Clone, Debug)]
pub enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header, Vec<Ipv6RawExtHeader>),
}

/// A transport header, without what depends on the payload.
#[derive(Clone, Debug)]
pub enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
}

/// A large frame, and how it is to be cut.
#[derive(Clone, Debug)]
pub struct Large {
    /// VLAN and whether its tag is an 802.1ad one, from the outermost on.
    pub tags: Vec<(u16, bool)>,
    pub ip: Ip,
    pub transport: Transport,
    pub payload: Vec<u8>,
    pub gso_size: usize,
    /// The guest sets the ECN bit in `gso_type`.
    pub ecn: bool,
    /// What the guest leaves in IP's length field.
    pub ip_len: Option<u16>,
}

impl Large {
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.gso_size).max(1)
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
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

    /// The frame as the guest sends it: the sum of the pseudo-header in the checksum's place.
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

    /// Segment `index` as a sender that knows nothing of segmentation would send it.
    pub fn expected(&self, index: usize) -> Vec<u8> {
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

    /// A whole frame, with all lengths and checksums as etherparse computes them.
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

    /// What a guest leaves in a checksum's place (virtio 1.2, 5.1.6.2).
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

/// The transport header with its length and checksum.
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

/// Our segments of `frame`, put together; their checksums still partial. With each, where it is.
pub fn cut(frame: &[u8], request: GsoRequest) -> Vec<(Vec<u8>, Partial)> {
    let headers = &frame[..frame.len().min(HEADERS_MAX)];
    let segmentation = Segmentation::new(headers, frame.len(), request).expect("a sound frame");
    let mut out = [0xee; HEADERS_MAX];
    (0..segmentation.count())
        .map(|index| {
            let info = segmentation.segment(index, headers, &mut out).unwrap();
            let mut segment = out[..segmentation.header_len()].to_vec();
            segment.extend(&frame[info.payload_offset..info.payload_offset + info.payload_len]);
            (segment, info.checksum)
        })
        .collect()
}

/// The segment with its checksum completed, as whoever takes it for a link without offload does.
pub fn finished((mut segment, place): (Vec<u8>, Partial)) -> Vec<u8> {
    use crosspoint_packet::checksum::{finish, sum};
    let at = usize::from(place.start + place.offset);
    let checksum = finish(sum(&segment[place.start.into()..], 0));
    segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Whether two frames are the same; in the 16 bits at `checksum`, 0 and 0xffff are the same number.
pub fn same(a: &[u8], b: &[u8], checksum: usize) -> bool {
    let rest = |bytes: &[u8]| [&bytes[..checksum], &bytes[checksum + 2..]].concat();
    let number = |bytes: &[u8]| match [bytes[checksum], bytes[checksum + 1]] {
        [0xff, 0xff] => [0, 0],
        other => other,
    };
    a.len() == b.len() && rest(a) == rest(b) && number(a) == number(b)
}

fn ipv4(protocol: IpNumber) -> impl Strategy<Value = Ip> {
    let options = (0usize..=10).prop_flat_map(|words| vec![any::<u8>(); words * 4]);
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

/// IPv6 with any of the extension headers that segments repeat, in the order of RFC 8200, 4.1.
fn ipv6(protocol: IpNumber) -> impl Strategy<Value = Ip> {
    let kinds = [
        ip_number::IPV6_HEADER_HOP_BY_HOP,
        ip_number::IPV6_DESTINATION_OPTIONS,
        ip_number::IPV6_ROUTE_HEADER,
    ];
    let extensions = prop_oneof![
        Just(vec![]),
        proptest::sample::subsequence(kinds.to_vec(), 0..=3),
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
            // Padding options (RFC 8200, 4.2); to a routing header, a type that nobody knows.
            let mut body = vec![0; 6 + 8 * words];
            body[..2].copy_from_slice(&[1, 4 + 8 * words as u8]);
            let mut extensions = vec![];
            for kind in kinds.into_iter().rev() {
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

/// Frames of every kind, cut into 1 to 128 segments, TCP now and then into more.
pub fn large() -> impl Strategy<Value = Large> {
    let count = prop_oneof![1 => Just(1usize), 8 => 1usize..=128, 1 => 129usize..=2048];
    let tags = proptest::collection::vec((0u16..4096, any::<bool>()), 0..=2);
    let size = (count, 1usize..=3000, any::<proptest::sample::Index>());
    let ip_len = proptest::option::of(prop_oneof![Just(0), any::<u16>()]);
    (tags, headers(), size, any::<(bool, u8)>(), ip_len).prop_map(
        |(tags, (ip, transport), (count, gso_size, last), (ecn, seed), ip_len)| {
            let tcp = matches!(transport, Transport::Tcp(_));
            let count = if tcp { count } else { count.min(128) };
            // With the largest headers there are, an IP packet is still possible.
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
            }
        },
    )
}
