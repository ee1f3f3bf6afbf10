//! Tests of the packed-ring driver against a device on the same memory.

mod device;

use crosspoint_guest::net::features::{
    EVENT_IDX, IN_ORDER, INDIRECT_DESC, MRG_RXBUF, RING_PACKED, VERSION_1,
};
use crosspoint_guest::packed::{EVENT_DESCRIPTOR, EVENT_DISABLE, EVENT_ENABLE, EventArea};
use crosspoint_guest::queue::QueueError;
use crosspoint_guest::ring::{Buffer, DESC_F_NEXT, DESC_F_WRITE};
use crosspoint_guest::{
    ChainSplit, Guest, GuestError, GuestMemory, GuestOptions, PackedDescriptor, PackedRing,
    Position, RegionLayout, RingError, RingLayout, TxPumpOptions, TxWrites, VirtioNetHdr,
};
use device::packed::{Order, PackedDevice, PackedLoopback};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

fn packed(options: GuestOptions) -> GuestOptions {
    GuestOptions {
        packed: true,
        ..options
    }
}

/// A started guest, and a device on its rings.
fn started(options: GuestOptions, order: Order) -> (Guest, PackedLoopback) {
    let (features, base) = (options.features | RING_PACKED, options.base);
    let mut guest = Guest::new(packed(options)).unwrap();
    guest.start(features).unwrap();
    let memory = Arc::clone(guest.memory());
    let transmit = guest.transmit_queue(0).unwrap().virtqueue().layout();
    let receive = guest.receive_queue(0).unwrap().virtqueue().layout();
    let device = PackedLoopback {
        transmit: PackedDevice::new(&memory, transmit, base),
        receive: PackedDevice::new(&memory, receive, base),
        mergeable: features & MRG_RXBUF != 0,
        order,
        pool: VecDeque::new(),
        waiting: VecDeque::new(),
    };
    (guest, device)
}

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (seed.wrapping_mul(131) ^ i.wrapping_mul(7) ^ (i >> 8)) as u8)
        .collect()
}

fn ring(guest: &mut Guest) -> &mut PackedRing {
    let queue = guest.transmit_queue(0).unwrap();
    queue.virtqueue().packed_mut().unwrap()
}

fn receive_ring(guest: &mut Guest) -> &mut PackedRing {
    let queue = guest.receive_queue(0).unwrap();
    queue.virtqueue().packed_mut().unwrap()
}

/// Sends each frame, with as many polls as needed, and expects each back in order.
fn assert_all_return(guest: &mut Guest, device: &mut PackedLoopback, frames: &[Vec<u8>]) {
    let (mut sent, mut idle, mut received) = (0, 0, Vec::new());
    while received.len() < frames.len() {
        let before = (sent, received.len());
        while sent < frames.len() && guest.send(0, &[&frames[sent]]).unwrap() == 1 {
            sent += 1;
        }
        device.poll();
        received.extend(guest.receive(0).unwrap());
        let stuck = before == (sent, received.len());
        idle = if stuck { idle + 1 } else { 0 };
        assert!(
            idle < 3,
            "stuck: {sent} sent, {} of {} received",
            received.len(),
            frames.len()
        );
    }
    for ((_, bytes), want) in received.into_iter().zip(frames) {
        assert_eq!(&bytes, want);
    }
    assert!(guest.drain_transmit(0, Duration::ZERO).unwrap());
    assert_eq!(
        ring(guest).free_descriptors(),
        usize::from(ring(guest).layout().size)
    );
}

fn splits() -> impl Strategy<Value = ChainSplit> {
    prop_oneof![
        Just(ChainSplit::Single),
        Just(ChainSplit::HeaderApart),
        (1usize..40).prop_map(|n| ChainSplit::Pieces(100 * n + 5)),
    ]
}

fn orders() -> impl Strategy<Value = (Order, u64)> {
    prop_oneof![
        Just((Order::Sequence, 0)),
        Just((Order::Sequence, IN_ORDER)),
        Just((Order::Batches, IN_ORDER)),
        any::<u64>().prop_map(|seed| (Order::Shuffled(seed), 0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_return_unchanged_whatever_the_chains_and_the_order(
        lens in prop::collection::vec(1usize..5000, 1..120),
        ring_size in 64u16..300,
        base in any::<u16>(),
        tx_split in splits(),
        rx_split in splits(),
        rx_buffer_len in 200usize..3000,
        indirect in any::<bool>(),
        event_index in any::<bool>(),
        (order, in_order) in orders(),
    ) {
        let options = GuestOptions {
            ring_size,
            base,
            tx_split,
            rx_split,
            rx_buffer_len,
            indirect,
            frame_len_max: 5000,
            features: VERSION_1 | MRG_RXBUF | INDIRECT_DESC | in_order | if event_index { EVENT_IDX } else { 0 },
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, order);
        let frames: Vec<_> = lens.iter().enumerate().map(|(i, &len)| frame(i, len)).collect();
        assert_all_return(&mut guest, &mut device, &frames);
    }

    #[test]
    fn a_position_advances_as_if_step_by_step(size in 1u16..=32768, start in any::<u16>(), steps in 0u16..400) {
        let steps = steps.min(size);
        let start = Position::after(start, size);
        let one_by_one = (0..steps).fold(start, |at, _| at.advance(1, size));
        prop_assert_eq!(start.advance(steps, size), one_by_one);
        prop_assert_eq!(Position::from_bits(start.to_bits()), start);
    }

    #[test]
    fn kicks_follow_the_device_event_position(
        size in 2u16..40,
        base in any::<u16>(),
        ahead in 0u16..80,
        batches in prop::collection::vec(1u16..6, 1..40),
    ) {
        let options = GuestOptions { ring_size: size, base, features: VERSION_1 | EVENT_IDX, ..GuestOptions::default() };
        let (mut guest, mut device) = started(options, Order::Sequence);
        let wanted = Position::after(base % (2 * size), size).advance((ahead % size).min(size), size);
        device.transmit.write_event(wanted.to_bits(), EVENT_DESCRIPTOR);
        for batch in batches {
            let batch = batch.min(size);
            let before = ring(&mut guest).available_position();
            let passed = (0..batch).any(|i| before.advance(i, size) == wanted);
            for _ in 0..batch {
                let queue = guest.transmit_queue(0).unwrap();
                prop_assert!(queue.send(&VirtioNetHdr::default(), &[1; 60]).unwrap());
            }
            prop_assert_eq!(ring(&mut guest).publish(), passed);
            device.poll();
            guest.receive(0).unwrap();
        }
    }
}

#[test]
fn laps_without_number_change_nothing() {
    for (order, in_order) in [
        (Order::Sequence, 0),
        (Order::Shuffled(5), 0),
        (Order::Batches, IN_ORDER),
    ] {
        let options = GuestOptions {
            ring_size: 7,
            base: 12,
            tx_split: ChainSplit::HeaderApart,
            features: VERSION_1 | MRG_RXBUF | in_order,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, order);
        let frames: Vec<_> = (0..50_000).map(|i| frame(i, 20)).collect();
        assert_all_return(&mut guest, &mut device, &frames);
    }
}

#[test]
fn a_ring_of_one_descriptor_and_the_largest_work() {
    for ring_size in [1, 32768] {
        let options = GuestOptions {
            ring_size,
            base: 40_000,
            frame_len_max: 100,
            rx_buffer_len: 128,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, Order::Sequence);
        let frames: Vec<_> = (0..70_000).map(|i| frame(i, 60)).collect();
        assert_all_return(&mut guest, &mut device, &frames);
    }
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let (mut guest, mut device) = started(GuestOptions::default(), Order::Sequence);
    for i in 0..5 {
        let queue = guest.transmit_queue(0).unwrap();
        assert!(queue.send(&VirtioNetHdr::default(), &[i; 60]).unwrap());
    }
    assert_eq!(device.poll(), 0);
    assert!(ring(&mut guest).publish());
    assert!(!ring(&mut guest).publish(), "nothing new");
    assert_eq!(device.poll(), 5);
    let buffer = Buffer {
        address: 0x1000,
        len: 60,
        device_writes: false,
    };
    ring(&mut guest).offer((10..13).map(|id| (id, buffer)));
    assert!(device.transmit.take().is_none());
    assert!(ring(&mut guest).publish());
    let ids: Vec<_> = std::iter::from_fn(|| device.transmit.take())
        .map(|chain| chain.id)
        .collect();
    assert_eq!(ids, [10, 11, 12]);
}

#[test]
fn kicks_follow_the_flags_of_the_device_event_area() {
    let (mut guest, device) = started(GuestOptions::default(), Order::Sequence);
    guest.send(0, &[&[1; 60]]).unwrap();
    assert_eq!(guest.kicks(), 1);
    device.transmit.write_event(0, EVENT_DISABLE);
    guest.send(0, &[&[1; 60]]).unwrap();
    assert_eq!(guest.kicks(), 1);
    device.transmit.write_event(0, EVENT_ENABLE);
    guest.send(0, &[&[1; 60]]).unwrap();
    assert_eq!(guest.kicks(), 2);
}

#[test]
fn calls_are_asked_for_as_negotiated() {
    for (features, flags) in [
        (VERSION_1, EVENT_ENABLE),
        (VERSION_1 | EVENT_IDX, EVENT_DESCRIPTOR),
    ] {
        let options = GuestOptions {
            features,
            base: 256 + 7,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, Order::Sequence);
        let area = receive_ring(&mut guest).layout().available;
        assert!(!receive_ring(&mut guest).enable_calls());
        assert_eq!(device.receive.read_event(area), (7, flags), "second lap");
        receive_ring(&mut guest).disable_calls();
        assert_eq!(device.receive.read_event(area).1, EVENT_DISABLE);
        guest.send(0, &[&[1; 60]]).unwrap();
        device.poll();
        assert!(
            receive_ring(&mut guest).enable_calls(),
            "there already: no call will come"
        );
    }
}

#[test]
fn a_device_that_uses_what_it_does_not_have_is_found_out() {
    for in_order in [0, IN_ORDER] {
        for (first, second, wrong) in [(0, 0, 0), (9, 0, 9), (256, 0, 256), (65_535, 0, 65_535)] {
            let options = GuestOptions {
                features: VERSION_1 | in_order,
                ..GuestOptions::default()
            };
            let (mut guest, mut device) = started(options, Order::Sequence);
            guest.send(0, &[&[1; 60], &[2; 60]]).unwrap();
            device.transmit.put(first, 0, 1);
            device.transmit.put(second, 0, 1);
            let error = guest.transmit_queue(0).unwrap().reap().unwrap_err();
            assert!(
                matches!(error, QueueError::Ring(RingError::UsedId { id, .. }) if id == wrong),
                "{error}"
            );
        }
    }
}

/// DPDK's vhost leaves the driver's length in the first used descriptor of each transmitted batch.
#[test]
fn the_length_of_what_a_device_did_not_write_is_ignored() {
    for in_order in [0, IN_ORDER] {
        let options = GuestOptions {
            features: VERSION_1 | in_order,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, Order::Sequence);
        let queue = guest.transmit_queue(0).unwrap();
        for _ in 0..3 {
            assert!(queue.send(&VirtioNetHdr::default(), &[1; 60]).unwrap());
        }
        let _ = ring(&mut guest).publish();
        for (id, len) in [(0, 72), (1, 0)] {
            device.transmit.put(id, len, 1);
        }
        let queue = guest.transmit_queue(0).unwrap();
        assert_eq!(queue.reap().unwrap(), 2);
        device.transmit.put_written(2, 72, 1);
        assert!(matches!(
            queue.reap(),
            Err(QueueError::UsedLen { len: 72, .. })
        ));
    }
}

#[test]
fn a_device_that_uses_what_it_was_not_shown_is_found_out() {
    for in_order in [0, IN_ORDER] {
        let options = GuestOptions {
            features: VERSION_1 | in_order,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, Order::Sequence);
        guest.send(0, &[&[1; 60]]).unwrap();
        let queue = guest.transmit_queue(0).unwrap();
        assert!(queue.send(&VirtioNetHdr::default(), &[2; 60]).unwrap());
        device.transmit.put(0, 0, 1);
        device.transmit.put(1, 0, 1);
        let ring = ring(&mut guest);
        assert_eq!(ring.pop_used().unwrap().map(|used| used.id), Some(0));
        assert!(matches!(
            ring.pop_used(),
            Err(RingError::UsedId { id: 1, .. })
        ));
    }
}

#[test]
fn what_was_used_before_a_fault_is_returned_first() {
    let (mut guest, mut device) = started(GuestOptions::default(), Order::Sequence);
    let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
    tx.poll().unwrap();
    device.transmit.put(0, 0, 1);
    device.transmit.put(1, 0, 1);
    device.transmit.put(1, 0, 1);
    assert_eq!(tx.virtqueue().pending_used().unwrap(), 3);
    let mut elements = [Default::default(); 8];
    assert_eq!(tx.virtqueue().take_used(&mut elements).unwrap(), 2);
    assert!(matches!(
        tx.drain(),
        Err(RingError::UsedId {
            id: 1,
            index: 0x8002
        })
    ));
}

#[test]
fn skipped_buffers_of_a_batch_are_taken_for_full() {
    let memory = GuestMemory::new(&[RegionLayout {
        guest_base: 0,
        len: 1 << 16,
        huge_pages: false,
    }])
    .unwrap();
    let layout = RingLayout::contiguous(8, 4096);
    let mut ring = PackedRing::new(&memory, layout, Position::START, false).unwrap();
    ring.set_in_order(true);
    let mut device = PackedDevice::new(&memory, layout, 0);
    let buffer = |len, device_writes| Buffer {
        address: 0,
        len,
        device_writes,
    };
    let ids: Vec<_> = [
        vec![buffer(10, false), buffer(100, true), buffer(50, true)],
        vec![buffer(10, false)],
        vec![buffer(300, true)],
        vec![buffer(300, true)],
    ]
    .iter()
    .map(|buffers| ring.add(buffers).unwrap())
    .collect();
    let _ = ring.publish();
    device.put(ids[2], 7, 5);
    assert_eq!(ring.pending_used(), 3);
    assert_eq!(
        ring.pop_used().unwrap().map(|used| (used.id, used.len)),
        Some((ids[0], 150))
    );
    assert_eq!(
        (ring.pending_used(), ring.device_position().slot),
        (2, 5),
        "in the middle of a batch"
    );
    let lens: Vec<_> = std::iter::from_fn(|| ring.pop_used().unwrap())
        .map(|used| (used.id, used.len))
        .collect();
    assert_eq!(lens, [(ids[1], 0), (ids[2], 7)]);
    assert_eq!((ring.outstanding(), ring.used_position().slot), (1, 5));
}

#[test]
fn hostile_descriptors_and_event_areas_land_in_memory_as_written() {
    let memory = GuestMemory::new(&[RegionLayout {
        guest_base: 0x4000_0000,
        len: 1 << 16,
        huge_pages: false,
    }])
    .unwrap();
    let layout = RingLayout {
        size: 9,
        descriptors: 0x4000_1010,
        available: 0x4000_2004,
        used: 0x4000_3004,
    };
    let mut ring = PackedRing::new(&memory, layout, Position::START, false).unwrap();
    let device = PackedDevice::new(&memory, layout, 0);
    let hostile = PackedDescriptor {
        address: u64::MAX,
        len: u32::MAX,
        id: 0xabcd,
        flags: 0xffff,
    };
    ring.write_desc(8, hostile);
    assert_eq!(ring.read_desc(8), hostile);
    let event = EventArea {
        position: 0x8123,
        flags: 0xfff7,
    };
    ring.set_driver_event(event);
    ring.set_device_event(event);
    assert_eq!((ring.driver_event(), ring.device_event()), (event, event));
    for area in [layout.available, layout.used] {
        assert_eq!(device.read_event(area), (0x8123, 0xfff7));
    }
    let buffer = Buffer {
        address: 5,
        len: 6,
        device_writes: true,
    };
    assert!(ring.add(&[buffer; 10]).is_none());
    assert_eq!(ring.add(&[buffer; 2]), Some(0));
    let _ = ring.publish();
    let written = |flags| PackedDescriptor {
        address: 5,
        len: 6,
        id: 0,
        flags,
    };
    let flags = DESC_F_WRITE | 1 << 7;
    assert_eq!(ring.read_desc(0), written(flags | DESC_F_NEXT));
    assert_eq!(ring.read_desc(1), written(flags));
}

#[test]
fn ring_layouts_that_the_specification_forbids_are_refused() {
    let memory = GuestMemory::new(&[RegionLayout {
        guest_base: 0,
        len: 1 << 16,
        huge_pages: false,
    }])
    .unwrap();
    let good = RingLayout::contiguous(100, 4096);
    assert!(PackedRing::new(&memory, good, Position::START, false).is_ok());
    for bad in [
        RingLayout { size: 0, ..good },
        RingLayout {
            size: 32769,
            ..good
        },
        RingLayout {
            descriptors: good.descriptors + 8,
            ..good
        },
        RingLayout {
            available: good.available + 2,
            ..good
        },
        RingLayout {
            used: good.used + 2,
            ..good
        },
        RingLayout {
            used: 1 << 16,
            ..good
        },
    ] {
        let ring = PackedRing::new(&memory, bad, Position::START, false);
        assert!(ring.is_err(), "{bad:x?}");
    }
}

#[test]
fn pumps_count_and_order_every_frame() {
    for (writes, features, batch, order) in [
        (TxWrites::Frame, MRG_RXBUF, 32, Order::Sequence),
        (TxWrites::Frame, 0, 64, Order::Shuffled(3)),
        (
            TxWrites::Descriptor,
            MRG_RXBUF | IN_ORDER,
            7,
            Order::Batches,
        ),
        (TxWrites::Nothing, IN_ORDER, 1, Order::Sequence),
    ] {
        let options = GuestOptions {
            features: VERSION_1 | features,
            rx_buffer_len: 700,
            base: 65_000,
            ..GuestOptions::default()
        };
        let (mut guest, mut device) = started(options, order);
        let frame_len = if features & MRG_RXBUF != 0 { 1514 } else { 60 };
        let options = TxPumpOptions {
            frame_len,
            writes,
            batch,
            flows: 100,
            ..TxPumpOptions::default()
        };
        let mut tx = guest.take_tx_pump(0, &options).unwrap();
        let mut rx = guest.take_rx_pump(0, true).unwrap();
        let (mut frames, mut bytes, mut sequence) = (0u64, 0, 0u16);
        let mut polls_after_the_last = 400;
        while polls_after_the_last > 0 {
            if tx.sent() < 3000 {
                tx.poll_stamped(64, 77).unwrap();
            } else {
                polls_after_the_last -= 1;
            }
            device.poll();
            let see = |head: &crosspoint_guest::pump::FrameHead| {
                if writes == TxWrites::Frame {
                    assert_eq!((head.sequence(), head.stamp()), (sequence, 77));
                }
                sequence = sequence.wrapping_add(1);
            };
            let received = rx.poll_each(see).unwrap();
            frames += u64::from(received.frames);
            bytes += received.bytes;
        }
        assert_eq!(tx.drain().unwrap(), 0, "all read by the device");
        assert_eq!(frames, tx.sent());
        assert_eq!(bytes, frames * frame_len as u64);
        assert!(rx.poll().unwrap().empty);
    }
}

#[test]
fn a_pump_reports_a_full_ring_and_respects_its_limit() {
    let options = GuestOptions {
        ring_size: 60,
        ..GuestOptions::default()
    };
    let (mut guest, _device) = started(options, Order::Sequence);
    let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
    assert_eq!(tx.poll_stamped(5, 0).unwrap().frames, 5);
    assert_eq!(tx.poll().unwrap().frames, 32);
    assert_eq!(tx.poll().unwrap().frames, 23);
    assert!(tx.poll().unwrap().full);
    assert_eq!(tx.drain().unwrap(), 60);
    assert!(matches!(
        guest.send(0, &[&[0; 60]]),
        Err(GuestError::NoQueue(0))
    ));
}

#[test]
fn progress_shows_where_the_device_stopped_while_a_pump_has_the_ring() {
    let (mut guest, mut device) = started(GuestOptions::default(), Order::Sequence);
    let progress = ring(&mut guest).progress();
    let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
    for expected in [32, 64, 96] {
        tx.poll().unwrap();
        device.poll();
        assert_eq!(progress.device_position().slot, expected);
        guest.receive(0).unwrap();
    }
    assert_eq!(progress.used_position().slot, 0, "nothing taken so far");
    assert_eq!(tx.drain().unwrap(), 0);
    assert_eq!(progress.used_position().slot, 96);
}
