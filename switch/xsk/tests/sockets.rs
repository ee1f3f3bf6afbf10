//! Tests of real sockets, for both implementations of the rings: the same tests pass with and without the feature
//! `xsk-rs`.

mod wire;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_frame::{BURST, Burst, HeaderOp, Offload};
use crosspoint_packet::checksum::{finish, sum};
use crosspoint_xsk::{BACKEND, BindMode, FramePlaces, PacketMemory, RING_SIZE};
use crosspoint_xsk::{SINGLE_BUFFER_MTU, SocketOptions, SocketRecord};
use wire::{End, HEADER_LEN, frame, load, open, options};

/// MTU of most tests.
const MTU: u32 = 1500;

#[test]
fn frames_of_every_size_arrive_byte_for_byte_and_in_order_both_ways() {
    cross_both_ways(SINGLE_BUFFER_MTU, 1);
}

#[test]
fn frames_that_take_several_umem_frames_arrive_byte_for_byte_and_in_order_both_ways() {
    // UMEM frames hold 3840 or 4032 bytes, depending on the implementation. Tries some sizes, including all near a
    // multiple.
    cross_both_ways(9000, 3);
}

/// Sends frames of sizes from 14 on, `step` apart, and of the largest sizes that the MTU allows.
fn cross_both_ways(mtu: u32, step: usize) {
    wire::make(1, mtu);
    let (mut left, mut right) = (End::open("left", 1, mtu), End::open("right", 1, mtu));
    let longest = (mtu + HEADER_LEN) as usize;
    let sizes = (HEADER_LEN as usize..longest)
        .step_by(step)
        .chain([longest]);
    let frames: Vec<_> = sizes.map(|len| frame(len, len as u32)).collect();
    // So every UMEM frame is used again.
    assert!(frames.len() > RING_SIZE as usize);
    for burst in frames.chunks(BURST / 2) {
        for way in 0..2 {
            let outcome = left.send(0, burst);
            assert_eq!(outcome.frames as usize, burst.len());
            assert_eq!(outcome.full + outcome.small + outcome.long, 0);
            assert_eq!(
                outcome.bytes as usize,
                burst.iter().map(Vec::len).sum::<usize>()
            );
            assert_eq!(right.expect(0, burst.len()), burst, "way {way}");
            std::mem::swap(&mut left, &mut right);
        }
    }
}

/// Frames are not copied through the same socket or the other one, tagged or not; and no socket runs out of memory.
#[test]
fn frames_that_go_on_through_the_same_memory_are_not_copied() {
    for mtu in [MTU, 9000] {
        wire::make(2, mtu);
        let (mut near, mut far) = (End::open("left", 2, mtu), End::open("right", 2, mtu));
        let longest = (mtu + HEADER_LEN) as usize;
        let sizes = (60..longest).step_by(longest / 2500 + 1);
        let frames: Vec<_> = sizes.map(|len| frame(len, len as u32)).collect();
        for (turn, burst) in frames.chunks(BURST / 4).cycle().take(400).enumerate() {
            far.send(0, burst);
            let (mut left, tag) = (burst.len(), [HeaderOp::Keep, HeaderOp::Push][turn % 2]);
            while left > 0 {
                let (count, taken) = near.forward(0, 1, tag);
                // The other backend copies.
                assert!(taken >= count || BACKEND != "own", "{taken} of {count}");
                left -= count;
            }
            let mut want = burst.to_vec();
            if tag == HeaderOp::Push {
                for bytes in &mut want {
                    let [high, low] = wire::TCI.to_be_bytes();
                    bytes.splice(12..12, [0x81, 0, high, low]);
                }
            }
            assert!(far.expect(1, burst.len()) == want, "turn {turn}");
        }
    }
}

/// Frames wait in rings on both ways when another mapping takes over; memory has been exchanged between the sockets.
#[test]
fn other_mappings_of_sockets_go_on_without_losing_or_mixing_a_frame() {
    // The crate maps no socket of another process.
    if BACKEND != "own" {
        return;
    }
    const ROUNDS: u32 = 120;
    wire::make(2, MTU);
    let (mut near, mut far) = (End::open("left", 2, MTU), End::open("right", 2, MTU));
    let frames = |round: u32, kind: u32, count: usize| -> Vec<Vec<u8>> {
        let number = |i: usize| (round * 4 + kind) * 100 + i as u32;
        let len = |i: usize| 60 + (round as usize * 37 + i * 101) % 1400;
        (0..count).map(|i| frame(len(i), number(i))).collect()
    };
    // So that all memory is used again and again.
    assert!(ROUNDS as usize * 60 > 3 * RING_SIZE as usize);
    for round in 0..ROUNDS {
        let forwarded = frames(round, 0, 60);
        far.send(0, &forwarded);
        let mut left = forwarded.len();
        while left > 0 {
            left -= near.forward(0, 1, HeaderOp::Keep).0;
        }
        let (there, back) = (frames(round, 1, 40), frames(round, 2, 50));
        far.send(0, &there);
        near.send(1, &back);
        match round % 3 {
            0 => near.take_over("left"),
            1 => far.take_over("right"),
            _ => {}
        }
        assert!(near.expect(0, there.len()) == there, "round {round}");
        let arrived = far.expect(1, forwarded.len() + back.len());
        assert!(arrived == [forwarded, back].concat(), "round {round}");
    }
    for end in [&near, &far] {
        let statistics = end.rx[0].socket().statistics().expect("statistics");
        assert_eq!(statistics.rx_dropped + statistics.tx_invalid_descs, 0);
    }
}

/// A record or places that cannot be true, of another version or a broken one.
#[test]
fn places_that_give_a_frame_to_two_halves_are_refused() {
    if BACKEND != "own" {
        return;
    }
    wire::make(2, MTU);
    let mut near = End::open("left", 2, MTU);
    let places = FramePlaces::of(&mut near.tx[0]);
    let (record, _) = near.rx[0].socket().record().expect("a record");
    let mut memory = PacketMemory::new(1, None);
    let mut map = |queue: u32, record: &SocketRecord| {
        let (_, fds) = near.rx[0].socket().record().expect("a record");
        let fds = fds.map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
        memory.map_socket((wire::index_of("left"), queue), record, 1514, fds)
    };
    let first = map(0, &record).expect("it is mapped");
    assert!(map(0, &record).is_err(), "its slot is taken");
    let beyond = SocketRecord { slot: 7, ..record };
    assert!(map(0, &beyond).is_err(), "there is no such slot");
    let other = SocketRecord { slot: 1, ..record };
    let second = map(1, &other).expect("it is mapped");
    let longer = SocketRecord {
        sockets: 3,
        ..record
    };
    assert!(
        PacketMemory::new(1, None)
            .map_socket((1, 0), &longer, 1514, {
                let (_, fds) = near.rx[0].socket().record().expect("a record");
                fds.map(|fd| fd.try_clone_to_owned().expect("a descriptor"))
            })
            .is_err(),
        "the file is shorter"
    );
    assert!(first.resume(&places).is_some());
    assert!(second.resume(&places).is_none(), "the same frames");
    assert!(
        map(1, &other)
            .expect("it is mapped")
            .resume(&FramePlaces::default())
            .is_none()
    );
}

/// A guest chooses the place of its checksum. For a place beyond a frame's first piece, the kernel would stop sending for
/// all ports.
#[test]
fn a_checksum_beyond_the_first_piece_of_a_frame_is_finished_and_stops_no_other_frame() {
    wire::make(1, 9000);
    let (mut left, mut right) = (End::open("left", 1, 9000), End::open("right", 1, 9000));
    for start in [14, 3000, 3840, 4029, 4031, 4032, 5000, 8990] {
        let bytes = frame(9000, u32::from(start));
        let offload = Offload {
            needs_csum: true,
            csum_start: start,
            csum_offset: 4,
            ..Offload::default()
        };
        assert_eq!(left.send_unfinished(0, &bytes, offload).frames, 1);
        let arrived = right.expect(0, 1).remove(0);
        let (start, at) = (usize::from(start), usize::from(start) + 4);
        assert!(arrived[..at] == bytes[..at] && arrived[at + 2..] == bytes[at + 2..]);
        // If the kernel was asked, the other end of a veth gets the checksum unfinished, and marked so.
        let sum = finish(sum(&bytes[start..], 0)).to_be_bytes();
        let field = &arrived[at..at + 2];
        assert!(field == sum || field == &bytes[at..at + 2], "at {at}");
    }
}

#[test]
fn each_queue_gets_what_was_sent_on_its_number_in_order() {
    const QUEUES: u32 = 3;
    wire::make(QUEUES, MTU);
    let open = |name| End::open(name, QUEUES, MTU);
    let (mut left, mut right) = (open("left"), open("right"));
    let of = |queue: u32| (0..1000).map(move |n| frame(60 + n as usize, n * QUEUES + queue));
    let frames: Vec<Vec<_>> = (0..QUEUES).map(|queue| of(queue).collect()).collect();
    for start in (0..1000).step_by(50) {
        for (queue, frames) in frames.iter().enumerate() {
            left.send(queue, &frames[start..start + 50]);
        }
    }
    for (queue, frames) in frames.iter().enumerate() {
        assert!(
            right.expect(queue, frames.len()) == *frames,
            "queue {queue}"
        );
        assert_eq!(right.take_all(queue).len(), 0, "queue {queue}");
    }
}

#[test]
fn what_is_not_received_in_time_is_dropped_by_the_kernel_and_counted() {
    wire::make(1, MTU);
    let (mut left, mut right) = (End::open("left", 1, MTU), End::open("right", 1, MTU));
    let sent = 3 * u64::from(RING_SIZE);
    let burst: Vec<_> = (0..BURST as u32).map(|n| frame(60, n)).collect();
    for _ in 0..sent / BURST as u64 {
        assert_eq!(left.send(0, &burst).frames as usize, BURST);
    }
    let received = right.take_all(0).len() as u64;
    let counted = right.rx[0].socket().statistics().expect("XDP_STATISTICS");
    assert_eq!(
        received,
        u64::from(RING_SIZE),
        "all that there was memory for"
    );
    assert_eq!(
        counted.rx_dropped + counted.rx_ring_full,
        sent - received,
        "{counted:?}"
    );
    assert_eq!(counted.rx_invalid_descs + counted.tx_invalid_descs, 0);
    // And no memory is lost by that.
    for n in 0..2 * RING_SIZE {
        let next = [frame(100, n)];
        left.send(0, &next);
        assert_eq!(right.expect(0, 1), next);
    }
}

#[test]
fn frames_that_the_kernel_does_not_take_fill_the_ring_and_no_more() {
    wire::make(1, MTU);
    let mut left = End::open("left", 1, MTU);
    let frames: Vec<_> = (0..BURST as u32).map(|n| frame(1000, n)).collect();
    let mut burst = Burst::new();
    let picks = load(&mut burst, &frames);
    let bursts = RING_SIZE as usize / BURST;
    for _ in 0..bursts {
        let outcome = left.tx[0].deliver(&burst, &picks);
        assert_eq!((outcome.frames as usize, outcome.full), (BURST, 0));
    }
    let outcome = left.tx[0].deliver(&burst, &picks);
    assert_eq!((outcome.frames, outcome.full as usize), (0, BURST));
    left.flush(0);
    // Sent, or dropped by the other end: in both cases the memory is returned.
    assert_eq!(left.send(0, &frames).frames as usize, BURST);
}

#[test]
fn a_frame_beyond_the_mtu_or_its_memory_is_refused_and_counted_as_that() {
    wire::make(1, MTU);
    let (mut left, mut right) = (End::open("left", 1, MTU), End::open("right", 1, MTU));
    let frames = [frame(60, 0), frame(1515, 1), frame(1514, 2)];
    let outcome = left.send(0, &frames);
    assert_eq!((outcome.frames, outcome.long, outcome.full), (2, 1, 0));
    assert_eq!(right.expect(0, 2), [&frames[0][..], &frames[2]]);
    left.tx[0].socket().set_frame_len_max(9014);
    let outcome = left.send(0, &[frame(60, 3), frame(5000, 4)]);
    assert_eq!((outcome.frames, outcome.small, outcome.long), (1, 1, 0));
    assert_eq!(right.expect(0, 1), [frame(60, 3)]);
}

#[test]
fn a_queue_that_was_closed_opens_again_at_once_and_leaves_no_ring_mapped() {
    wire::make(2, MTU);
    for round in 0..5 {
        let (mut left, mut right) = (End::open("left", 2, MTU), End::open("right", 2, MTU));
        assert!(sockets_mapped() > 0);
        let frames: Vec<_> = (0..10).map(|n| frame(200, round * 10 + n)).collect();
        for queue in 0..2 {
            left.send(queue, &frames);
            assert_eq!(right.expect(queue, 10), frames);
            // Stays in flight.
            right.send(queue, &frames);
        }
        drop((left, right));
        assert_eq!(sockets_mapped(), 0, "round {round}");
    }
}

/// Counts mappings of sockets. Only rings are such mappings.
fn sockets_mapped() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    maps.lines()
        .filter(|line| line.contains("socket:["))
        .count()
}

#[test]
fn a_queue_in_use_is_busy_and_one_that_is_not_there_is_refused() {
    wire::make(1, MTU);
    let _left = End::open("left", 1, MTU);
    let number = |queue| {
        let error = open("left", queue, &options(MTU)).err().expect("refused");
        error.why.raw_os_error()
    };
    assert_eq!(number(0), Some(libc::EBUSY));
    assert_eq!(number(7), Some(libc::EINVAL));
}

#[test]
fn a_veth_does_no_zero_copy_and_says_so_unless_either_will_do() {
    wire::make(1, MTU);
    let bind = |bind| {
        let options = SocketOptions {
            bind,
            ..options(MTU)
        };
        open("left", 0, &options)
    };
    let error = bind(BindMode::ZeroCopy).err().expect("refused");
    assert_eq!(error.why.raw_os_error(), Some(libc::EOPNOTSUPP));
    let (rx, _tx) = bind(BindMode::Auto).expect("copy mode");
    assert!(!rx.socket().zero_copy());
}

#[test]
fn frames_handed_over_by_another_thread_are_sent_in_order_beside_the_owners() {
    const COUNT: u32 = 10_000;
    wire::make(1, MTU);
    let (mut left, mut right) = (End::open("left", 1, MTU), End::open("right", 1, MTU));
    let handoff = left.tx[0].make_handoff(1);
    let done = AtomicBool::new(false);
    let mut arrived = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut burst = Burst::new();
            let mut n = 0;
            while n < COUNT {
                let next = [frame(60 + n as usize % 1000, n)];
                let picks = load(&mut burst, &next);
                match handoff.deliver(&burst, &picks).frames {
                    1 => n += 1,
                    // The owner has not supplied memory yet.
                    _ => std::thread::yield_now(),
                }
                // One descriptor per frame.
                let (pushed, taken) = handoff.position();
                assert!(pushed == u64::from(n) && taken <= pushed);
            }
            done.store(true, Ordering::Release);
        });
        let mut own = COUNT;
        loop {
            let last = done.load(Ordering::Acquire) && !left.tx[0].has_handoffs();
            own += left.send(0, &[frame(60 + own as usize % 1000, own)]).frames;
            arrived.extend(right.take_all(0));
            if last {
                break;
            }
        }
        let missing = own as usize - arrived.len();
        arrived.extend(right.expect(0, missing));
        assert_eq!(arrived.len(), own as usize);
    });
    assert_eq!(handoff.position(), (u64::from(COUNT), u64::from(COUNT)));
    for first in [0, COUNT] {
        let of_one = |bytes: &&Vec<u8>| (number(bytes) < COUNT) == (first < COUNT);
        for (n, bytes) in (first..).zip(arrived.iter().filter(of_one)) {
            assert!(*bytes == frame(60 + n as usize % 1000, n), "frame {n}");
        }
    }
}

fn number(frame: &[u8]) -> u32 {
    let bytes = frame[14..18].try_into().expect("four bytes");
    u32::from_be_bytes(bytes)
}
