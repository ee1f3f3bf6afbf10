//! TCP segments from a wire: joined for receivers of large frames, unchanged for the others.

use std::collections::BTreeMap;

use crosspoint_guest::VirtioNetHdr;
use crosspoint_netdev::Interface;
use crosspoint_packet::checksum::{self, Partial};
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, Segmentation};
use crosspoint_vring::feature;
use crosspoint_xsk::{BindMode, PacketMemory, Pages, SocketOptions, XskTx};
use etherparse::{IpHeaders, Ipv4Header, PacketBuilder, TcpOptionElement};
use proptest::prelude::*;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::checks::{assert_balanced, ledger_of};
use crate::direct::run;
use crate::far::Far;
use crate::frames::host;
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::{MODERN, Random};

const PARTIAL: u64 = MODERN | feature::CSUM | feature::GUEST_CSUM;
const LARGE: u64 = PARTIAL | feature::GUEST_TSO4 | feature::GUEST_TSO6;

/// The next frame of a flow.
#[derive(Clone, Copy, Debug)]
enum Next {
    Full,
    Short,
    Push,
    Ack,
    Fin,
    /// Wrong checksum.
    Broken,
    /// Not TCP.
    Other,
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        12 => Just(Next::Full), 1 => Just(Next::Short), 1 => Just(Next::Push), 1 => Just(Next::Ack),
        1 => Just(Next::Fin), 1 => Just(Next::Broken), 1 => Just(Next::Other),
    ]
}

struct Flow {
    port: u16,
    v6: bool,
    options: bool,
    mss: usize,
    seq: u32,
    id: u16,
}

impl Flow {
    fn frame(&mut self, next: Next, random: &mut Random) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(host(0), host(9));
        let mut ip = Ipv4Header::new(0, 64, 6.into(), [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        ip.identification = self.id;
        self.id = self.id.wrapping_add(1);
        let step = match self.v6 {
            true => link.ipv6([1; 16], [2; 16], 64),
            false => link.ip(IpHeaders::Ipv4(ip, Default::default())),
        };
        let len = match next {
            Next::Short => self.mss / 2 + 1,
            Next::Ack | Next::Fin => 0,
            _ => self.mss,
        };
        let payload = random.bytes(len);
        let mut frame = Vec::new();
        if matches!(next, Next::Other) {
            step.udp(self.port, 9).write(&mut frame, &payload).unwrap();
            return frame;
        }
        let mut tcp = step.tcp(self.port, 80, self.seq, 1000).ack(77);
        if self.options {
            let stamps = [
                TcpOptionElement::Noop,
                TcpOptionElement::Noop,
                TcpOptionElement::Timestamp(7, 8),
            ];
            tcp = tcp.options(&stamps).unwrap();
        }
        tcp = match next {
            Next::Push => tcp.psh(),
            Next::Fin => tcp.fin(),
            _ => tcp,
        };
        tcp.write(&mut frame, &payload).unwrap();
        self.seq = self.seq.wrapping_add(len as u32);
        if matches!(next, Next::Broken) {
            let last = frame.len() - 1;
            frame[last] ^= 0x10;
        }
        frame
    }
}

/// Returns the frame as on a wire: itself, or its segments.
fn cut(header: &VirtioNetHdr, frame: &[u8]) -> Vec<Vec<u8>> {
    if header.gso_type == 0 {
        return vec![frame.to_vec()];
    }
    let request = GsoRequest {
        gso_type: header.gso_type,
        gso_size: header.gso_size,
        checksum: Some(Partial {
            start: header.csum_start,
            offset: header.csum_offset,
        }),
    };
    let plan = Segmentation::new(frame, frame.len(), request, || unreachable!())
        .expect("a frame that can be cut");
    let make = |index| {
        let mut made = [0; HEADERS_MAX];
        let info = plan.segment(index, frame, &mut made).unwrap();
        let place = info.checksum.expect("a place");
        let mut segment = made[..info.header_len].to_vec();
        segment.extend(&frame[info.payload_offset..info.payload_offset + info.payload_len]);
        let (start, at) = (place.start, place.start + place.offset);
        let sum = checksum::finish(checksum::sum(&segment[start.into()..], 0));
        segment[at.into()..usize::from(at) + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    (0..plan.count()).map(make).collect()
}

/// Groups frames by flow (protocol and source port), in order.
fn by_flow(
    frames: impl IntoIterator<Item = Vec<u8>>,
) -> BTreeMap<(bool, u8, [u8; 2]), Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
    for mut frame in frames {
        let v6 = frame[12] == 0x86;
        let (protocol, ports) = if v6 { (frame[20], 54) } else { (frame[23], 34) };
        // Zero and all ones are the same number there (RFC 1071), and a recomputed checksum is never zero.
        if let [0, 0] = frame[ports + 16..ports + 18] {
            frame[ports + 16..ports + 18].fill(0xff);
        }
        flows
            .entry((v6, protocol, [frame[ports], frame[ports + 1]]))
            .or_default()
            .push(frame);
    }
    flows
}

fn rig(seed: u64, ports: &[u64]) -> Rig {
    let port = |features: &u64| PortOptions {
        features: *features,
        receive_size: 1024,
        frame_len_max: 2000,
        joins: true,
        ..PortOptions::default()
    };
    let ports: Vec<_> = ports.iter().map(port).collect();
    let mut rig = Rig::new(&ports, 1, seed);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

fn send(rig: &mut Rig, frames: &[Vec<u8>]) {
    for frame in frames {
        assert!(
            rig.drivers[0]
                .transmit
                .send(&VirtioNetHdr::default(), frame)
                .unwrap()
        );
    }
    let _ = rig.drivers[0].transmit.ring().publish();
    while rig.turn(0, 0) > 0 {}
}

fn ledgers(rig: &Rig) -> Vec<crate::bridge::Ledger> {
    let ports = rig.view.ports.iter().flatten();
    ports.map(|port| ledger_of(&port.counters)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// For any frames in any order: a receiver without large frames gets each frame unchanged; a receiver with large
    /// frames gets, after cutting the joined ones, every byte of each flow's frames in order. Every frame is counted.
    #[test]
    fn joining_changes_nothing_but_the_number_of_frames(
        sent in proptest::collection::vec((0usize..4, next()), 1..200), mss in 60usize..1400, seed: u64,
    ) {
        let mut random = Random(seed);
        let mut flows: Vec<Flow> = (0..4u16).map(|i| Flow {
            port: 5000 + i, v6: i % 2 == 1, options: i > 1, mss: mss + usize::from(i), seq: 0u32.wrapping_sub(2000), id: 65_530,
        }).collect();
        let frames: Vec<Vec<u8>> = sent.iter().map(|(flow, next)| flows[*flow].frame(*next, &mut random)).collect();
        let mut rig = rig(seed, &[PARTIAL, LARGE, PARTIAL]);
        send(&mut rig, &frames);

        let untouched: Vec<_> = rig.drivers[2].receive[0].receive().unwrap().into_iter().map(|(_, frame)| frame).collect();
        prop_assert!(untouched == frames);
        let arrived = rig.drivers[1].receive[0].receive().unwrap();
        let count = arrived.len() as u64;
        let wire = arrived.iter().flat_map(|(header, frame)| cut(header, frame));
        prop_assert!(by_flow(wire) == by_flow(frames.clone()));
        let ledgers = ledgers(&rig);
        assert_balanced(&ledgers);
        prop_assert_eq!(ledgers[0].joined_copies, frames.len() as u64 - count);
    }
}

/// One flow's segments in one burst become one frame, marked as the driver needs it, without a computed checksum.
#[test]
fn a_burst_of_one_flow_is_one_large_frame() {
    for v6 in [false, true] {
        let mut flow = Flow {
            port: 7,
            v6,
            options: true,
            mss: 1400,
            seq: 5,
            id: 9,
        };
        let mut random = Random(1);
        let mut frames: Vec<_> = (0..20)
            .map(|_| flow.frame(Next::Full, &mut random))
            .collect();
        frames.push(flow.frame(Next::Push, &mut random));
        let mut rig = rig(3, &[PARTIAL, LARGE]);
        send(&mut rig, &frames);
        let arrived = rig.drivers[1].receive[0].receive().unwrap();
        let [(header, frame)] = &arrived[..] else {
            panic!("{} frames", arrived.len());
        };
        let kind = (header.gso_type, header.gso_size, header.flags & 1);
        assert_eq!(kind, (if v6 { 4 } else { 1 }, 1400, 1));
        assert_eq!(usize::from(header.hdr_len) + 21 * 1400, frame.len());
        assert_eq!(ledgers(&rig)[0].joined_copies, 20);
    }
}

/// A queue of a veth that takes large frames, and its other end, in separate namespaces.
fn wire() -> (XskTx, Far) {
    // SAFETY: no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.expect("run as root");
    run("mount --make-rprivate /");
    run("mount -t sysfs sysfs /sys");
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6");
    run("ip link add near type veth peer name wire");
    run("ip link set near up");
    run("ip link set wire up");
    let index = |name| Interface::find(name).unwrap().unwrap().index;
    let options = SocketOptions {
        bind: BindMode::Copy,
        multi_buffer: false,
        busy_poll: false,
        pages: Pages::Small,
        frame_len_max: 1514,
    };
    let mut memory = PacketMemory::new(1, None);
    let (_, mut tx) = memory.open(index("near"), 0, &options).unwrap();
    tx.send_large(index("near")).unwrap();
    (tx, Far::new(index("wire")))
}

/// The kernel on the path treats a joined frame like the original segments; every frame is counted.
#[test]
fn what_is_joined_for_a_wire_is_cut_again_what_was_sent() {
    let mut random = Random(11);
    let (tx, far) = wire();
    let mut rig = rig(1, &[PARTIAL, PARTIAL]);
    rig.lead_out(1, tx);
    let (mut sent, mut bytes, mut largest) = (0, 0, 0);
    for round in 0..30 {
        let mut flow = |port: u16| Flow {
            port,
            v6: port % 2 == 1,
            options: port > 1,
            mss: 60 + random.below(1340),
            seq: 0u32.wrapping_sub(2000),
            id: 65_530,
        };
        let mut flows = [0, 1, 2, 3].map(&mut flow);
        let frames: Vec<Vec<u8>> = (0..150)
            .map(|_| {
                let next = match random.below(30) {
                    0 => Next::Short,
                    1 => Next::Push,
                    2 => Next::Ack,
                    3 => Next::Broken,
                    4 => Next::Other,
                    _ => Next::Full,
                };
                flows[random.below(4)].frame(next, &mut random)
            })
            .collect();
        send(&mut rig, &frames);
        let ledgers = ledgers(&rig);
        assert_balanced(&ledgers);
        assert!(ledgers.iter().all(|ledger| ledger.drops.is_empty()));
        let mut wire = Vec::new();
        while sent < ledgers[1].tx[0].0 {
            let (header, frame) = far.take().expect("what was sent");
            let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
            let header = VirtioNetHdr {
                gso_type: header[1],
                gso_size: field(4),
                csum_start: field(6),
                csum_offset: field(8),
                ..VirtioNetHdr::default()
            };
            sent += 1;
            bytes += frame.len() as u64;
            largest = largest.max(frame.len());
            wire.extend(cut(&header, &frame));
        }
        assert!(by_flow(wire) == by_flow(frames), "round {round}");
        assert_eq!(ledgers[1].tx[0].1, bytes);
    }
    assert!(largest > 20_000);
    assert_eq!(ledgers(&rig)[0].joined_copies, 30 * 150 - sent);
}
