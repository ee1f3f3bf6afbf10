//! The bound on the cost of one burst, under bursts that are made to exceed it.

use crosspoint_frame::Work;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_guest::ring::Buffer;
use crosspoint_vring::feature;
use proptest::prelude::*;

use crate::checks::{assert_balanced, ledger_of};
use crate::frames::{Flow, host};
use crate::large::large;
use crate::ports::{Driver, PortOptions};
use crate::rig::Rig;
use crate::world::MODERN;

const BROADCAST: [u8; 6] = [0xff; 6];
const RING: u16 = 4096;
const BUFFERS: u16 = 1024;
/// Length of a chain of receive buffers, bytes.
const CHAIN_LEN: usize = 1540;

/// A frame to send, and how often.
#[derive(Clone, Debug)]
struct Sent {
    /// One receiver, or all.
    to: Option<usize>,
    len: usize,
    /// Segment size, if it is to be cut.
    mss: Option<u16>,
    pieces: usize,
    times: usize,
}

/// Kind of receive buffers.
#[derive(Clone, Copy, Debug)]
enum Buffers {
    Plain,
    /// Chains of pieces of this many bytes.
    Pieces(usize),
    /// Mergeable buffers of this few bytes each.
    Tiny(usize),
    /// Buffers with room for large frames, which the guest takes.
    Large,
}

impl Buffers {
    fn options(self) -> PortOptions {
        let base = PortOptions {
            transmit_size: 4,
            receive_size: BUFFERS,
            ..PortOptions::default()
        };
        let checksums = feature::CSUM | feature::GUEST_CSUM;
        match self {
            Buffers::Plain => base,
            Buffers::Pieces(_) => PortOptions {
                features: feature::VERSION_1,
                receive_size: RING,
                ..base
            },
            Buffers::Tiny(_) => PortOptions {
                receive_size: RING,
                ..base
            },
            Buffers::Large => PortOptions {
                features: MODERN | checksums | feature::GUEST_TSO4,
                ..base
            },
        }
    }
}

/// Offers as many receive buffers as there is room for.
fn offer(driver: &mut Driver, buffers: Buffers) {
    let (len, count) = match buffers {
        Buffers::Plain | Buffers::Large => return driver.post_all(),
        Buffers::Pieces(len) => (len, CHAIN_LEN.div_ceil(len)),
        Buffers::Tiny(len) => (len, 1),
    };
    let queue = &mut driver.receive[0];
    let buffer = Buffer {
        address: queue.area().guest_address(),
        len: len as u32,
        device_writes: true,
    };
    let chain = vec![buffer; count];
    while queue.ring().add(&chain).is_some() {}
    let _ = queue.ring().publish();
}

fn sent() -> impl Strategy<Value = Sent> {
    let len = prop_oneof![3 => 60usize..200, 1 => 1000usize..1515, 2 => 30_000usize..65_000];
    let mss = prop_oneof![Just(1u16), Just(32), 33..600u16, Just(1448)];
    let pieces = prop_oneof![4 => Just(1usize), 2 => 2..40usize, 1 => 200..1000usize];
    let to = prop_oneof![Just(None), (0usize..4).prop_map(Some)];
    (to, len, mss, pieces, 1usize..65).prop_map(|(to, len, mss, pieces, times)| Sent {
        to,
        len,
        mss: (len > 2000).then_some(mss),
        pieces: pieces.min(len),
        times,
    })
}

fn buffers() -> impl Strategy<Value = Buffers> {
    prop_oneof![
        2 => Just(Buffers::Plain),
        2 => (2usize..1000).prop_map(Buffers::Pieces),
        2 => (1usize..100).prop_map(Buffers::Tiny),
        1 => Just(Buffers::Large),
    ]
}

/// Puts the frame on the ring as often as it fits, each time as a chain of its pieces.
fn send(driver: &mut Driver, sent: &Sent, receivers: usize, at: usize) -> usize {
    let dst = match sent.to {
        None => BROADCAST,
        Some(to) => host((1 + to % receivers) as u8),
    };
    let (header, frame) = match sent.mss {
        Some(mss) => large(&vec![7; sent.len - 54], mss, false),
        None => (
            VirtioNetHdr::default(),
            Flow::plain(host(0), dst).frame(sent.len, 0, 0, 1),
        ),
    };
    let frame = [&dst[..], &host(0), &frame[12..]].concat();
    let bytes = [&header.to_bytes()[..], &frame].concat();
    driver.transmit.area().view().write(at, &bytes);
    let address = driver.transmit.area().guest_address() + at as u64;
    let piece = bytes.len().div_ceil(sent.pieces);
    let cuts = (0..bytes.len()).step_by(piece);
    let chain: Vec<Buffer> = cuts
        .map(|from| Buffer {
            address: address + from as u64,
            len: piece.min(bytes.len() - from) as u32,
            device_writes: false,
        })
        .collect();
    let added = (0..sent.times).take_while(|_| driver.transmit.ring().add(&chain).is_some());
    let _ = added.count();
    bytes.len()
}

/// Returns for all ports but the sender's: copies delivered, their bytes, and ring entries used.
fn arrived(rig: &mut Rig) -> (u64, u64, u64) {
    let counters = rig.view.ports.iter().flatten().skip(1);
    let ledgers: Vec<_> = counters.map(|port| ledger_of(&port.counters)).collect();
    let (mut copies, mut bytes) = (0, 0);
    for (some, their_bytes) in ledgers.iter().flat_map(|of| &of.tx) {
        (copies, bytes) = (copies + some, bytes + their_bytes);
    }
    let receivers = rig.drivers.iter_mut().skip(1);
    let used =
        receivers.map(|driver| u64::from(driver.receive[0].ring().used_idx().wrapping_sub(1)));
    (copies, bytes, used.sum())
}

fn cost(copies: u64, bytes: u64) -> u64 {
    copies * u64::from(Work::COPY) + bytes / 16
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any burst and any receivers, its cost stays within the bound; and the cost of what is visible from outside,
    /// arrived copies and used ring entries, is no more than the counted cost.
    #[test]
    fn no_burst_costs_more_than_its_bound(
        all in prop::collection::vec(sent(), 1..6),
        kinds in prop::collection::vec(buffers(), 1..5),
        copies_of_kinds in prop_oneof![Just(1usize), Just(7)],
    ) {
        let sender = PortOptions { transmit_size: RING, frame_len_max: 65_600, ..PortOptions::default() };
        let receivers = kinds.iter().cycle().take(kinds.len() * copies_of_kinds);
        let mut options = vec![PortOptions { receive_size: 4, ..sender }];
        options.extend(receivers.map(|kind| kind.options()));
        let mut rig = Rig::new(&options, 1, 1);
        for number in 1..options.len() {
            let key = rig.view.fdb.key(crosspoint_packet::Mac::new(host(number as u8)), 0);
            let quota = rig.view.ports[number].as_ref().map(|port| port.quota.clone());
            rig.view.fdb.learn(key, number as u16, 0, |_| quota.as_deref());
            offer(&mut rig.drivers[number], kinds[(number - 1) % kinds.len()]);
        }
        let mut at = 0;
        for one in &all {
            at += send(&mut rig.drivers[0], one, options.len() - 1, at).next_multiple_of(64);
        }
        let _ = rig.drivers[0].transmit.ring().publish();
        let mut before = arrived(&mut rig);
        loop {
            let count = rig.turn(0, 0);
            if count == 0 {
                break;
            }
            let asked = rig.asked();
            prop_assert!(asked.made <= Work::BURST && asked.excess <= Work::RECEIVERS, "{:?}", asked);
            prop_assert!(asked.sum() <= Work::MOST - Work::READ, "{:?}", asked);
            let frames = rig.burst.frames();
            prop_assert!(rig.burst.reading() <= Work::READ, "{} for reading", rig.burst.reading());
            let once = frames.iter().map(|frame| cost(1, u64::from(frame.len))).sum::<u64>();
            let after = arrived(&mut rig);
            let (copies, bytes) = (after.0 - before.0, after.1 - before.1);
            prop_assert!(
                cost(copies, bytes) <= once + u64::from(asked.made) + copies,
                "{} copies of {} bytes: {:?}", copies, bytes, asked
            );
            let more = (after.2 - before.2).saturating_sub(copies);
            let receivers = u64::from(asked.own + asked.excess);
            prop_assert!(more * u64::from(Work::LOOK) <= receivers, "{} more entries: {:?}", more, asked);
            before = after;
        }
        let ports = rig.view.ports.iter().flatten();
        assert_balanced(&ports.map(|port| ledger_of(&port.counters)).collect::<Vec<_>>());
    }
}
