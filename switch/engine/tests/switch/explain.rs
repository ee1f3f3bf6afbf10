//! The explanation of a frame before it is sent matches its result.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosspoint_engine::bridge::fdb::Learned;
use crosspoint_engine::observe::explain::Destination;
use crosspoint_engine::observe::explain::Explained;
use crosspoint_engine::observe::explain::Large;
use crosspoint_engine::observe::explain::Packet;
use crosspoint_engine::observe::explain::explain;
use crosspoint_engine::observe::tap::Direction;
use crosspoint_engine::observe::tap::Fate;
use crosspoint_engine::observe::tap::Slot;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::observe::tap::Wanted;
use crosspoint_frame::{Clock, Offload};
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_packet::DropReason;
use crosspoint_vring::feature;
use proptest::prelude::*;

use crate::frames::host;
use crate::large::large;
use crate::ledger::Run;
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::MODERN;

/// Drop reasons of copies that are only found when a copy is made.
const FOUND_OUT_LATER: [DropReason; 2] = [DropReason::GuestRingFull, DropReason::GuestBufferSmall];

fn tap(rig: &mut Rig) -> Arc<Tap> {
    let wanted = Wanted {
        port: None,
        queue: None,
        received: true,
        sent: true,
        dropped_only: false,
        snap_len: 128,
        rate_max: u64::MAX,
        filter: None,
    };
    let tap = Tap::new(wanted, 4096, rig.workers(), &Clock::calibrate());
    rig.view.observe(Box::new([tap.clone()]), None);
    tap
}

fn specimen<'b>(ingress: usize, header: &VirtioNetHdr, bytes: &'b [u8]) -> Packet<'b> {
    Packet {
        ingress: ingress as u16,
        bytes: &bytes[..bytes.len().min(256)],
        len: bytes.len() as u32,
        offload: Offload {
            needs_csum: header.flags & 1 != 0,
            finish: false,
            gso_type: header.gso_type,
            hdr_len: header.hdr_len,
            gso_size: header.gso_size,
            csum_start: header.csum_start,
            csum_offset: header.csum_offset,
            any_size: false,
        },
        fate: None,
    }
}

/// Returns the explanation of a captured frame.
fn afterwards(slot: &Slot, rig: &Rig) -> Explained {
    let specimen = Packet {
        ingress: slot.port,
        bytes: &slot.bytes,
        len: slot.len,
        offload: slot.offload,
        fate: Some(slot.fate),
    };
    explain(specimen, &rig.view, 0)
}

/// Explains a frame, sends it, and explains it again from its capture. Returns the first explanation and the capture.
fn both(
    rig: &mut Rig,
    tap: &Tap,
    ingress: usize,
    header: &VirtioNetHdr,
    bytes: &[u8],
) -> Option<(Explained, Vec<Slot>)> {
    let said = explain(specimen(ingress, header, bytes), &rig.view, 0);
    let again = explain(specimen(ingress, header, bytes), &rig.view, 0);
    assert_eq!(said, again, "explaining changed something");
    let transmit = &mut rig.drivers[ingress].transmit;
    transmit.set_split(ChainSplit::Single);
    if !transmit.send(header, bytes).unwrap() {
        return None;
    }
    let _ = transmit.ring().publish();
    while rig.turn(0, ingress) > 0 {}
    rig.drivers[ingress].transmit.reap().unwrap();
    let slots = std::iter::from_fn(|| tap.next());
    let seen = slots.map(|slot| {
        let copy = (*slot).clone();
        tap.give_back(slot);
        copy
    });
    let seen: Vec<Slot> = seen.collect();
    compare(&said, &seen);
    compare(&afterwards(&seen[0], rig), &seen);
    Some((said, seen))
}

fn compare(said: &Explained, seen: &[Slot]) {
    let (received, sent): (Vec<_>, Vec<_>) = seen
        .iter()
        .partition(|slot| slot.direction == Direction::Received);
    let [received] = received[..] else {
        panic!("one frame was sent: {seen:?}");
    };
    match (received.fate, said.dropped) {
        (Fate::Dropped(reason), said) => assert_eq!(Some(reason), said),
        // That no port takes it is found when copies are made.
        (Fate::Flood, said) => assert!(matches!(said, None | Some(DropReason::NoDestination))),
        (fate, said) => assert_eq!(said, None, "{fate:?}"),
    }
    match (received.fate, said.destination) {
        (Fate::Port(port), Some(Destination::Port(said, _))) => assert_eq!(port, said),
        (Fate::Flood, Some(Destination::Group | Destination::Unknown)) | (Fate::Dropped(_), _) => {}
        other => panic!("{other:?}"),
    }
    let wanted = said.copies.iter().filter(|copy| copy.tag.is_some());
    let wanted = wanted.filter(|copy| copy.dropped != Some(DropReason::BadOffload));
    let wanted: BTreeMap<_, _> = wanted.map(|copy| ((copy.port, copy.queue), copy)).collect();
    let mut pieces: BTreeMap<(u16, u16), usize> = BTreeMap::new();
    for slot in sent {
        let id = (slot.port, slot.queue);
        let copy = wanted
            .get(&id)
            .unwrap_or_else(|| panic!("there is no word of {slot:?}"));
        match (slot.fate, copy.dropped) {
            (Fate::Dropped(reason), Some(said)) => assert_eq!(reason, said),
            (Fate::Dropped(reason), None) => {
                assert!(FOUND_OUT_LATER.contains(&reason), "{reason:?}")
            }
            (fate, said) => assert_eq!((fate, said), (Fate::Delivered, None)),
        }
        let growth = copy.tag.map_or(0, |tag| tag.growth());
        if !matches!(copy.large, Large::Cut(_)) {
            assert_eq!(
                slot.len as usize,
                (received.len as usize).saturating_add_signed(growth)
            );
        }
        *pieces.entry(id).or_default() += 1;
    }
    let of = |copy: &crosspoint_engine::observe::explain::EgressDecision| match copy.large {
        Large::Cut(count) => count,
        _ => 1,
    };
    let expected = wanted.iter().map(|(id, copy)| (*id, of(copy)));
    assert_eq!(pieces, expected.collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// For any ports, known addresses and frames: verdict, ports, queues, tags and reasons match the explanation, and so
    /// does the result of learning the source.
    #[test]
    fn what_is_said_of_a_frame_becomes_of_it(seed: u64, steps in 0usize..20) {
        let mut run = Run::new(seed);
        for _ in 0..steps {
            run.step();
        }
        let tap = tap(&mut run.pair.rig);
        for number in 0..40 {
            let ingress = number % run.pair.ports.len();
            let (flow, len) = (run.flow(ingress), run.len());
            let (bytes, header) = (flow.frame(len, ingress as u32, 0, number as u64), run.header(len));
            let rig = &mut run.pair.rig;
            let Some((said, _)) = both(rig, &tap, ingress, &header, &bytes) else { continue };
            if let (Some((learned, _)), Some(link)) = (said.source, said.link) {
                let now = rig.view.fdb.lookup(rig.view.fdb.key(link.src, said.vlan.unwrap()));
                let is_there = !matches!(learned, Learned::Refused | Learned::Full);
                prop_assert_eq!(now == Some(ingress as u16), is_there, "{:?}", learned);
            }
        }
    }

    /// Large frames go whole to receivers that take them, and in as many segments as explained to the others.
    #[test]
    fn large_frames_are_cut_as_was_said(len in 1usize..20_000, mss in 200u16..9000, v6: bool, wrong: bool) {
        let csum = MODERN | feature::CSUM | feature::GUEST_CSUM;
        let takes = csum | feature::GUEST_TSO4 | feature::GUEST_TSO6;
        let port = |features| PortOptions { features, frame_len_max: 65_600, receive_size: 1024, transmit_size: 16, ..PortOptions::default() };
        let mut rig = Rig::new(&[takes, takes, csum].map(port), 1, 1);
        rig.drivers.iter_mut().for_each(|driver| driver.post_all());
        let tap = tap(&mut rig);
        let (mut header, frame) = large(&vec![7; len], mss, v6);
        if wrong {
            header.gso_type = 5 - header.gso_type;
        }
        // Source and destination are unknown: a flood.
        let frame = [&host(9)[..], &host(0), &frame[12..]].concat();
        let (said, _) = both(&mut rig, &tap, 0, &header, &frame).unwrap();
        let expected = match len.div_ceil(mss.into()) {
            _ if wrong => vec![],
            1 => vec![Large::Cut(1), Large::Cut(1)],
            count => vec![Large::Whole, Large::Cut(count)],
        };
        prop_assert_eq!(said.copies.iter().map(|copy| copy.large).collect::<Vec<_>>(), expected);
        prop_assert_eq!(said.dropped, wrong.then_some(DropReason::BadOffload));
    }
}
