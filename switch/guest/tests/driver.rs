//! Tests of the driver against a device on the same memory.

mod device;
#[path = "driver/pumps.rs"]
mod pumps;

use crosspoint_guest::net::features::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, MRG_RXBUF, VERSION_1};
use crosspoint_guest::queue::QueueError;
use crosspoint_guest::ring::{Buffer, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use crosspoint_guest::{
    ChainSplit, Guest, GuestError, GuestMemory, GuestOptions, RegionLayout, RingError, RingLayout,
    SplitRing, TxPumpOptions, TxWrites, VirtioNetHdr,
};
use device::{DeviceRing, Loopback};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

fn loopback(guest: &mut Guest, base: u16, mergeable: bool) -> Loopback {
    let memory = Arc::clone(guest.memory());
    let transmit = guest.transmit_queue(0).unwrap().ring().layout();
    let receive = guest.receive_queue(0).unwrap().ring().layout();
    Loopback {
        transmit: DeviceRing::new(&memory, transmit, base),
        receive: DeviceRing::new(&memory, receive, base),
        mergeable,
        dropped: 0,
    }
}

fn started(options: GuestOptions) -> (Guest, Loopback) {
    let (features, base) = (options.features, options.base);
    let mut guest = Guest::new(options).unwrap();
    guest.start(features).unwrap();
    let device = loopback(&mut guest, base, features & MRG_RXBUF != 0);
    (guest, device)
}

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (seed.wrapping_mul(131) ^ i.wrapping_mul(7) ^ (i >> 8)) as u8)
        .collect()
}

/// Sends each frame, with as many polls as needed, and expects each back in order.
fn assert_all_return(guest: &mut Guest, device: &mut Loopback, frames: &[(VirtioNetHdr, Vec<u8>)]) {
    let mut received = Vec::new();
    let (mut sent, mut idle) = (0, 0);
    while received.len() < frames.len() {
        let before = (sent, received.len());
        while sent < frames.len()
            && guest
                .send_with_header(0, &frames[sent].0, &frames[sent].1)
                .unwrap()
        {
            sent += 1;
        }
        device.poll();
        received.extend(guest.receive(0).unwrap());
        idle = if before == (sent, received.len()) {
            idle + 1
        } else {
            0
        };
        assert!(
            idle < 3,
            "stuck: {sent} sent, {} received of {}",
            received.len(),
            frames.len()
        );
    }
    for ((header, bytes), (mut want_header, want)) in
        received.into_iter().zip(frames.iter().cloned())
    {
        want_header.num_buffers = header.num_buffers;
        assert_eq!(header, want_header);
        assert_eq!(bytes, want);
    }
    assert!(
        guest
            .drain_transmit(0, Duration::ZERO)
            .is_ok_and(|drained| drained)
    );
}

fn splits() -> impl Strategy<Value = ChainSplit> {
    prop_oneof![
        Just(ChainSplit::Single),
        Just(ChainSplit::HeaderApart),
        (1usize..40).prop_map(|n| ChainSplit::Pieces(100 * n + 5)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_return_unchanged_whatever_the_chains(
        lens in prop::collection::vec(1usize..5000, 1..120),
        size_log2 in 6u32..9,
        base in any::<u16>(),
        tx_split in splits(),
        rx_split in splits(),
        rx_buffer_len in 64usize..3000,
        indirect in any::<bool>(),
        event_index in any::<bool>(),
        regions in 1usize..4,
    ) {
        let options = GuestOptions {
            ring_size: 1 << size_log2,
            base,
            tx_split,
            rx_split,
            rx_buffer_len: rx_buffer_len.max(200),
            indirect,
            frame_len_max: 5000,
            features: VERSION_1 | MRG_RXBUF | INDIRECT_DESC | if event_index { EVENT_IDX } else { 0 },
            region_bases: (0..regions).map(|i| (i as u64) << 32).collect(),
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options);
        let frames: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(i, &len)| (VirtioNetHdr { hdr_len: i as u16, csum_start: 34, ..VirtioNetHdr::default() }, frame(i, len)))
            .collect();
        assert_all_return(&mut guest, &mut device, &frames);
    }

    #[test]
    fn event_passing_is_membership_of_the_half_open_interval(event in any::<u16>(), old in any::<u16>(), step in 0u16..=32768) {
        let inside = (0..step).any(|i| old.wrapping_add(i) == event);
        prop_assert_eq!(crosspoint_guest::ring::passes_event(event, old.wrapping_add(step), old), inside);
    }
}

#[test]
fn one_byte_pieces_carry_a_header_and_a_frame() {
    let (mut guest, mut device) = started(GuestOptions {
        tx_split: ChainSplit::Pieces(1),
        frame_len_max: 5000,
        ..GuestOptions::default()
    });
    assert_all_return(
        &mut guest,
        &mut device,
        &[(VirtioNetHdr::default(), frame(1, 60))],
    );
}

#[test]
fn indices_wrap_at_65536_many_times() {
    let (mut guest, mut device) = started(GuestOptions {
        ring_size: 16,
        base: 65_530,
        ..GuestOptions::default()
    });
    let frames: Vec<_> = (0..140_000)
        .map(|i| (VirtioNetHdr::default(), frame(i, 20)))
        .collect();
    assert_all_return(&mut guest, &mut device, &frames);
}

#[test]
fn the_largest_ring_works() {
    let (mut guest, mut device) = started(GuestOptions {
        ring_size: 32768,
        base: 40_000,
        frame_len_max: 100,
        rx_buffer_len: 128,
        ..GuestOptions::default()
    });
    assert_eq!(
        guest.receive_queue(0).unwrap().ring().outstanding(),
        32768,
        "all buffers posted"
    );
    let frames: Vec<_> = (0..70_000)
        .map(|i| (VirtioNetHdr::default(), frame(i, 60)))
        .collect();
    assert_all_return(&mut guest, &mut device, &frames);
}

#[test]
fn a_legacy_guest_has_a_ten_byte_header_and_no_merging() {
    let (mut guest, mut device) = started(GuestOptions {
        features: 0,
        ..GuestOptions::default()
    });
    assert_all_return(
        &mut guest,
        &mut device,
        &[(VirtioNetHdr::default(), frame(3, 1514))],
    );
    let ring = guest.transmit_queue(0).unwrap().ring();
    assert_eq!(ring.read_desc(0).len, 10 + 1514);
}

#[test]
fn a_frame_of_64_kib_fits_when_asked_for() {
    let (mut guest, mut device) = started(GuestOptions {
        frame_len_max: 65_550,
        tx_split: ChainSplit::Pieces(4096),
        ..GuestOptions::default()
    });
    assert_all_return(
        &mut guest,
        &mut device,
        &[(VirtioNetHdr::default(), frame(9, 65_550))],
    );
    let error = guest.send(0, &[&frame(9, 200_000)]).unwrap_err();
    assert!(matches!(
        error,
        GuestError::Queue(QueueError::FrameTooLong { len: 200_000, .. })
    ));
}

#[test]
fn a_full_ring_takes_no_more_and_loses_nothing() {
    let (mut guest, mut device) = started(GuestOptions {
        ring_size: 8,
        ..GuestOptions::default()
    });
    let frames: Vec<Vec<u8>> = (0..10).map(|i| frame(i, 60)).collect();
    let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    assert_eq!(guest.send(0, &slices).unwrap(), 8);
    assert_eq!(device.poll(), 8);
    assert_eq!(guest.send(0, &slices[8..]).unwrap(), 2);
    assert_eq!(guest.receive(0).unwrap().len(), 8);
    device.poll();
    assert_eq!(guest.receive(0).unwrap().len(), 2);
}

#[test]
fn kicks_follow_the_flags_of_the_used_ring() {
    let (mut guest, device) = started(GuestOptions::default());
    guest.send(0, &[&[1; 60]]).unwrap();
    assert_eq!(guest.kicks(), 1);
    device.transmit.set_used_flags(1);
    guest.send(0, &[&[1; 60]]).unwrap();
    assert_eq!(guest.kicks(), 1, "VIRTQ_USED_F_NO_NOTIFY");
    assert_eq!(guest.kick_event(1).unwrap().take().unwrap(), 1);
}

#[test]
fn kicks_follow_avail_event_across_the_wrap() {
    let options = GuestOptions {
        features: VERSION_1 | EVENT_IDX,
        base: 65_533,
        ..GuestOptions::default()
    };
    let (mut guest, device) = started(options);
    device.transmit.set_used_flags(1); // meaningless with the event index
    device.transmit.set_avail_event(1); // after 65533, 65534, 65535, 0, 1
    for sent in 1..=8u64 {
        guest.send(0, &[&[1; 60]]).unwrap();
        assert_eq!(guest.kicks(), u64::from(sent >= 5), "after {sent} frames");
    }
}

#[test]
fn calls_are_asked_for_as_negotiated() {
    for (features, event_index) in [(VERSION_1, false), (VERSION_1 | EVENT_IDX, true)] {
        let (mut guest, mut device) = started(GuestOptions {
            features,
            base: 7,
            ..GuestOptions::default()
        });
        let layout = guest.receive_queue(0).unwrap().ring().layout();
        let flags = layout.available;
        let used_event = layout.available + 4 + 2 * u64::from(layout.size);
        let ring = guest.receive_queue(0).unwrap().ring();
        assert!(!ring.enable_calls().unwrap());
        assert_eq!(
            device.receive.u16_at(used_event),
            if event_index { 7 } else { 0 }
        );
        ring.disable_calls();
        assert_eq!(device.receive.u16_at(flags), u16::from(!event_index));
        assert_eq!(
            device.receive.u16_at(used_event),
            if event_index { 6 } else { 0 }
        );
        guest.send(0, &[&[1; 60]]).unwrap();
        device.poll();
        let ring = guest.receive_queue(0).unwrap().ring();
        assert!(
            ring.enable_calls().unwrap(),
            "there already: no call will come"
        );
    }
}

#[test]
fn waiting_for_frames_ends_with_the_call() {
    let (mut guest, mut device) = started(GuestOptions::default());
    let call = guest.call_event(0).unwrap();
    guest.send(0, &[&[5; 60]]).unwrap();
    let waiter = std::thread::spawn(move || guest.receive_at_least(0, 1, Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(20));
    device.poll();
    call.signal().unwrap();
    assert_eq!(waiter.join().unwrap().unwrap().len(), 1);
}

#[test]
fn buffers_stay_with_the_guest_until_posted() {
    let (mut guest, mut device) = started(GuestOptions {
        rx_posted: 3,
        ..GuestOptions::default()
    });
    guest.receive_queue(0).unwrap().set_repost(false);
    for _ in 0..5 {
        guest.send(0, &[&[1; 60]]).unwrap();
    }
    assert_eq!(device.poll(), 3);
    assert_eq!(guest.receive(0).unwrap().len(), 3);
    assert_eq!(device.poll(), 0);
    let receive = guest.receive_queue(0).unwrap();
    assert_eq!(receive.spare(), 256);
    assert_eq!(receive.post(2).unwrap(), 2);
    assert!(receive.ring().publish());
    assert_eq!(device.poll(), 2);
}

#[test]
fn a_used_buffer_is_poisoned() {
    let (mut guest, mut device) = started(GuestOptions::default());
    guest.send(0, &[&[1; 60]]).unwrap();
    let (_, segments) = device.transmit.chain(0);
    device.poll();
    guest.transmit_queue(0).unwrap().reap().unwrap();
    let mut bytes = [0; 72];
    guest.memory().read(segments[0].0, &mut bytes).unwrap();
    assert_eq!(bytes, [crosspoint_guest::queue::POISON; 72]);
}

#[test]
fn a_device_that_moves_the_used_index_too_far_is_found_out() {
    let (mut guest, device) = started(GuestOptions::default());
    guest.send(0, &[&[1; 60]]).unwrap();
    for wrong in [2, 65_535] {
        device.transmit.set_used_idx(wrong);
        let error = guest.transmit_queue(0).unwrap().reap().unwrap_err();
        assert!(
            matches!(error, QueueError::Ring(RingError::UsedIndex { from: 0, to, outstanding: 1 }) if to == wrong)
        );
    }
}

#[test]
fn a_device_that_uses_what_it_does_not_have_is_found_out() {
    for (ids, wrong) in [
        ([0u32, 0], 0),
        ([9, 0], 9),
        ([256, 0], 256),
        ([0x1_0000, 0], 0x1_0000),
    ] {
        let (mut guest, device) = started(GuestOptions::default());
        guest.send(0, &[&[1; 60], &[2; 60]]).unwrap();
        device.transmit.write_used(0, ids[0], 0);
        device.transmit.write_used(1, ids[1], 0);
        device.transmit.set_used_idx(2);
        let error = guest.transmit_queue(0).unwrap().reap().unwrap_err();
        assert!(
            matches!(error, QueueError::Ring(RingError::UsedId { id, .. }) if id == wrong),
            "{error}"
        );
    }
}

#[test]
fn a_device_that_uses_a_buffer_of_a_pump_twice_is_found_out() {
    let (mut guest, device) = started(GuestOptions::default());
    let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
    tx.poll().unwrap();
    device.transmit.write_used(0, 0, 0);
    device.transmit.write_used(1, 0, 0);
    device.transmit.set_used_idx(2);
    assert!(matches!(
        tx.drain(),
        Err(RingError::UsedId { id: 0, index: 1 })
    ));
}

#[test]
fn the_pieces_of_a_frame_are_apart_in_memory() {
    let (mut guest, device) = started(GuestOptions {
        tx_split: ChainSplit::Pieces(30),
        ..GuestOptions::default()
    });
    guest.send(0, &[&[1; 60]]).unwrap();
    let (_, segments) = device.transmit.chain(0);
    assert_eq!(
        segments.iter().map(|&(_, len, _)| len).collect::<Vec<_>>(),
        [30, 30, 12]
    );
    for pair in segments.windows(2) {
        assert!(pair[0].0 + u64::from(pair[0].1) < pair[1].0);
    }
}

#[test]
fn a_device_that_lies_about_lengths_or_buffers_is_found_out() {
    let attack = |len: u32, num_buffers: u16| {
        let (mut guest, device) = started(GuestOptions::default());
        let (head, segments) = device.receive.chain(0);
        let at = segments[0].0 + 10;
        guest
            .memory()
            .write(at, &num_buffers.to_le_bytes())
            .unwrap();
        device.receive.write_used(0, u32::from(head), len);
        device.receive.set_used_idx(1);
        guest.receive(0).unwrap_err()
    };
    assert!(matches!(
        attack(11, 1),
        GuestError::Queue(QueueError::UsedLen { len: 11, .. })
    ));
    assert!(matches!(
        attack(2049, 1),
        GuestError::Queue(QueueError::UsedLen { len: 2049, .. })
    ));
    assert!(matches!(
        attack(72, 0),
        GuestError::Queue(QueueError::NumBuffers { num_buffers: 0, .. })
    ));
    assert!(matches!(
        attack(72, 2),
        GuestError::Queue(QueueError::NumBuffers {
            num_buffers: 2,
            used: 1
        })
    ));
}

#[test]
fn hostile_descriptors_land_in_memory_as_written() {
    let memory = GuestMemory::new(&[RegionLayout {
        guest_base: 0x4000_0000,
        len: 1 << 16,
        huge_pages: false,
    }])
    .unwrap();
    let layout = RingLayout {
        size: 8,
        descriptors: 0x4000_1010,
        available: 0x4000_2002,
        used: 0x4000_3004,
    };
    let mut ring = SplitRing::new(&memory, layout, 100, false).unwrap();
    let device = DeviceRing::new(&memory, layout, 100);
    ring.write_desc(7, u64::MAX, u32::MAX, 0xffff, 7);
    ring.set_avail(4, 60_000);
    ring.set_avail_idx(99);
    assert_eq!(
        ring.read_desc(7),
        Descriptor {
            address: u64::MAX,
            len: u32::MAX,
            flags: 0xffff,
            next: 7
        }
    );
    assert_eq!((ring.avail(4), ring.avail_idx()), (60_000, 99));
    assert_eq!(device.available(), u16::MAX);
    assert_eq!(device.u16_at(layout.available + 4 + 8), 60_000);
    assert!(
        ring.add(
            &[Buffer {
                address: 0,
                len: 1,
                device_writes: true
            }; 9]
        )
        .is_none()
    );
    assert_eq!(
        ring.add(
            &[Buffer {
                address: 5,
                len: 6,
                device_writes: true
            }; 2]
        ),
        Some(0)
    );
    assert_eq!(
        ring.read_desc(0),
        Descriptor {
            address: 5,
            len: 6,
            flags: DESC_F_WRITE | DESC_F_NEXT,
            next: 1
        }
    );
}

#[test]
fn ring_layouts_that_the_specification_forbids_are_refused() {
    let memory = GuestMemory::new(&[RegionLayout {
        guest_base: 0,
        len: 1 << 16,
        huge_pages: false,
    }])
    .unwrap();
    let good = RingLayout::contiguous(256, 4096);
    for bad in [
        RingLayout { size: 0, ..good },
        RingLayout { size: 100, ..good },
        RingLayout {
            descriptors: good.descriptors + 8,
            ..good
        },
        RingLayout {
            available: good.available + 1,
            ..good
        },
        RingLayout {
            used: good.used + 2,
            ..good
        },
        RingLayout {
            used: 65_500,
            ..good
        },
    ] {
        assert!(SplitRing::new(&memory, bad, 0, false).is_err(), "{bad:x?}");
    }
}

/// A chain as the driver of an in-order ring should return it: head, bytes that the device may write.
type Chain = (u16, u32);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn buffers_used_in_order_come_back_one_by_one_whether_or_not_the_device_writes_each(
        steps in prop::collection::vec((prop::collection::vec((1usize..4, any::<bool>()), 0..5), 0usize..6, any::<bool>()), 1..60),
        base in any::<u16>(),
        at_a_time in 1usize..5,
    ) {
        let memory = GuestMemory::new(&[RegionLayout { guest_base: 0, len: 1 << 16, huge_pages: false }]).unwrap();
        let layout = RingLayout::contiguous(16, 4096);
        let mut ring = SplitRing::new(&memory, layout, base, false).unwrap();
        ring.set_in_order(true);
        let mut device = DeviceRing::new(&memory, layout, base);
        let mut expected: std::collections::VecDeque<Chain> = Default::default();
        let mut next_descriptor = 0;
        for (chains, batch, each) in steps {
            for (pieces, device_writes) in chains {
                let buffer = Buffer { address: 0x8000, len: 100, device_writes };
                let Some(head) = ring.add(&vec![buffer; pieces]) else { continue };
                prop_assert_eq!(usize::from(head), next_descriptor, "2.7.9: in the order of the table");
                next_descriptor = (next_descriptor + pieces) % 16;
                expected.push_back((head, if device_writes { 100 * pieces as u32 } else { 0 }));
            }
            let _ = ring.publish();
            let batch = batch.min(device.available().into());
            let first = device.next;
            for i in 0..batch as u16 {
                let (head, _) = device.chain(0);
                // The last buffer's element is at the first one's place if it stands for all.
                let at = if each { first.wrapping_add(i) } else { first };
                device.write_used(at, head.into(), 42);
                device.next = device.next.wrapping_add(1);
            }
            device.set_used_idx(device.next);
            let mut taken = Vec::new();
            let mut elements = [Default::default(); 4];
            loop {
                let count = ring.take_used(&mut elements[..at_a_time.min(4)]).unwrap();
                if count == 0 {
                    break;
                }
                taken.extend(elements[..count].iter().map(|used| (used.id, used.len)));
            }
            prop_assert_eq!(taken.len(), batch);
            for (i, used) in taken.iter().enumerate() {
                let (head, full) = expected.pop_front().unwrap();
                let len = if each || i + 1 == batch { 42 } else { full };
                prop_assert_eq!(*used, (head, len));
            }
        }
        prop_assert_eq!(usize::from(ring.outstanding()), expected.len());
    }
}

#[test]
fn a_device_that_breaks_the_order_it_promised_is_found_out() {
    let (mut guest, device) = started(GuestOptions {
        features: VERSION_1 | IN_ORDER,
        ..GuestOptions::default()
    });
    guest.send(0, &[&[1; 60], &[2; 60]]).unwrap();
    device.transmit.write_used(0, 1, 0);
    device.transmit.set_used_idx(1);
    let error = guest.transmit_queue(0).unwrap().reap().unwrap_err();
    assert!(matches!(
        error,
        QueueError::Ring(RingError::Order {
            id: 1,
            index: 0,
            batch: 1
        })
    ));
}

#[test]
fn frames_return_unchanged_over_rings_used_in_order() {
    let (mut guest, mut device) = started(GuestOptions {
        features: VERSION_1 | MRG_RXBUF | INDIRECT_DESC | IN_ORDER,
        ring_size: 16,
        rx_buffer_len: 300,
        tx_split: ChainSplit::HeaderApart,
        ..GuestOptions::default()
    });
    let frames: Vec<_> = (0..3000)
        .map(|i| (VirtioNetHdr::default(), frame(i, 20 + i % 900)))
        .collect();
    assert_all_return(&mut guest, &mut device, &frames);
}
