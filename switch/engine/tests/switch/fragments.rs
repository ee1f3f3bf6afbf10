//! Large datagrams: whole for receivers that take them, in fragments for the others.

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_guest::net::GSO_UDP;
use crosspoint_packet::{DropReason, checksum, parse_l4};
use crosspoint_vring::feature;
use etherparse::defrag::IpDefragPool;
use etherparse::{InternetSlice, PacketBuilder, SlicedPacket};
use proptest::prelude::*;

use crate::checks::{assert_balanced, ledger_of};
use crate::frames::host;
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::{MODERN, Random};

const VLAN: u16 = 5;
const PLAIN: u64 = MODERN | feature::CSUM;
/// Takes partial checksums and all large frames except datagrams.
const PARTIAL: u64 = PLAIN | feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_USO4;
const LARGE: u64 = PARTIAL | feature::GUEST_UFO;

/// Returns a datagram with its checksum; the same without a finished checksum, as a sender's stack leaves it; and the
/// header for the device.
fn datagram(payload: &[u8], gso_size: u16, v6: bool) -> (Vec<u8>, VirtioNetHdr, Vec<u8>) {
    let link = PacketBuilder::ethernet2(host(9), host(0));
    let mut whole = Vec::new();
    match v6 {
        true => {
            let udp = link.ipv6([1; 16], [2; 16], 64).udp(5, 6);
            udp.write(&mut whole, payload)
        }
        false => {
            let udp = link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(5, 6);
            udp.write(&mut whole, payload)
        }
    }
    .unwrap();
    let l4 = parse_l4(&whole).unwrap();
    let (mut frame, at) = (whole.clone(), l4.offset + 6);
    let value = u16::from_be_bytes([whole[at], whole[at + 1]]);
    frame[at..at + 2].fill(0);
    let body = checksum::fold(checksum::sum(&frame[l4.offset..], 0));
    // In one's-complement sums: pseudo-header = not checksum - body.
    let parts = [(!value).to_be_bytes(), (!body).to_be_bytes()].concat();
    let pseudo = checksum::fold(checksum::sum(&parts, 0));
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    let header = VirtioNetHdr {
        flags: 1,
        gso_type: GSO_UDP,
        hdr_len: (l4.offset + 8) as u16,
        gso_size,
        csum_start: l4.offset as u16,
        csum_offset: 6,
        ..VirtioNetHdr::default()
    };
    (whole, header, frame)
}

/// Reassembles a complete set of fragments as a receiver's IP does; returns also their identification.
fn put_together(fragments: &[Vec<u8>], tags: usize) -> (Vec<u8>, Option<u32>) {
    let mut pool = IpDefragPool::<(), ()>::new();
    let (mut whole, mut identification) = (None, None);
    for fragment in fragments {
        assert!(whole.is_none(), "more than a datagram");
        let packet = SlicedPacket::from_ethernet(fragment).expect("a sound frame");
        assert_eq!(packet.link_exts.len(), tags);
        match packet.net.as_ref().unwrap() {
            InternetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
            }
            InternetSlice::Ipv6(_) => {
                // The fragment header is the only header between IPv6 and UDP.
                let at = 14 + 4 * tags + 40 + 4;
                identification = fragment
                    .get(at..at + 4)
                    .map(|id| u32::from_be_bytes(id.try_into().unwrap()));
            }
            _ => panic!("no IP"),
        }
        whole = pool.process_sliced_packet(&packet, (), ()).unwrap();
    }
    (whole.expect("all fragments").payload, identification)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// One flood, four receivers: the one that takes large datagrams gets it whole, with its offload request; the others
    /// get fragments without offloads, tagged if the port is tagged; reassembled, they are the datagram with its
    /// checksum. Every copy is counted.
    #[test]
    fn each_receiver_gets_a_large_datagram_as_it_needs_it(
        len in 1500usize..65_000, gso_size in 600u16..1480, v6: bool, seed: u64,
    ) {
        let port = |(features, vlan)| PortOptions {
            features, vlan, frame_len_max: 65_600, receive_size: 1024, transmit_size: 16, ..PortOptions::default()
        };
        let (access, trunk) = (VlanPolicy::Access(VLAN), VlanPolicy::trunk(&[VLAN], None));
        let ports = [
            (LARGE | feature::HOST_UFO, access.clone()), (LARGE, access.clone()), (PARTIAL, access.clone()),
            (PLAIN, access), (PLAIN, trunk),
        ];
        let mut rig = Rig::new(&ports.map(port), 1, seed);
        rig.drivers.iter_mut().for_each(|driver| driver.post_all());
        let payload = Random(seed).bytes(len);
        let (whole, header, frame) = datagram(&payload, gso_size, v6);
        // One burst or two: two datagrams in small fragments for three receivers exceed one burst's budget.
        let each = if gso_size < 1300 { 1 } else { 2 };
        for _ in 0..2 / each {
            for _ in 0..each {
                prop_assert!(rig.drivers[0].transmit.send(&header, &frame).unwrap());
            }
            let _ = rig.drivers[0].transmit.ring().publish();
            while rig.turn(0, 0) > 0 {}
        }

        let arrived = rig.drivers[1].receive[0].receive().unwrap();
        prop_assert_eq!(arrived.len(), 2);
        for (head, bytes) in arrived {
            let expected = VirtioNetHdr { num_buffers: head.num_buffers, ..header };
            prop_assert_eq!(head, expected);
            prop_assert!(bytes == frame, "another frame");
        }
        let count = (len + 8).div_ceil(usize::from(gso_size / 8 * 8));
        let datagram = &whole[parse_l4(&whole).unwrap().offset..];
        for port in 2..5 {
            let arrived = rig.drivers[port].receive[0].receive().unwrap();
            prop_assert_eq!(arrived.len(), 2 * count, "port {}", port);
            for (head, _) in &arrived {
                prop_assert_eq!((head.gso_type, head.flags), (0, 0));
            }
            let bytes: Vec<Vec<u8>> = arrived.into_iter().map(|(_, bytes)| bytes).collect();
            let tags = usize::from(port == 4);
            let both = [&bytes[..count], &bytes[count..]].map(|part| put_together(part, tags));
            for (got, _) in &both {
                prop_assert!(got == datagram, "another datagram at port {}", port);
            }
            prop_assert!(!v6 || both[0].1 != both[1].1, "two datagrams of one identification");
        }
        let ledgers: Vec<_> = rig.view.ports.iter().flatten().map(|port| ledger_of(&port.counters)).collect();
        assert_balanced(&ledgers);
        prop_assert_eq!(ledgers[0].segment_copies, 2 * 3 * (count as u64 - 1));
    }
}

/// A size without room for a fragment's unit, or a frame that is not UDP, is dropped with a reason.
#[test]
fn a_datagram_that_cannot_be_fragmented_is_dropped_with_a_name() {
    let port = |features| PortOptions {
        features,
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[LARGE, PARTIAL].map(port), 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    let (_, header, frame) = datagram(&[7; 900], 600, true);
    let mut tcp = frame.clone();
    tcp[20] = 6;
    let small = VirtioNetHdr {
        gso_size: 7,
        ..header
    };
    for (header, frame) in [(small, &frame), (header, &tcp)] {
        assert!(rig.drivers[0].transmit.send(&header, frame).unwrap());
    }
    let _ = rig.drivers[0].transmit.ring().publish();
    while rig.turn(0, 0) > 0 {}
    assert_eq!(rig.drivers[1].received().concat().len(), 0);
    let ledgers: Vec<_> = rig
        .view
        .ports
        .iter()
        .flatten()
        .map(|port| ledger_of(&port.counters))
        .collect();
    assert_balanced(&ledgers);
    assert_eq!(
        ledgers[0].drops.get(&DropReason::BadOffload),
        Some(&2),
        "{ledgers:?}"
    );
}
