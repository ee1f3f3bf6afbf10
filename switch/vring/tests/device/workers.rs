//! Several workers deliver into one ring at once: nothing is lost, mixed up or duplicated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use crosspoint_frame::{BURST, Burst, Offload, Segment};
use crosspoint_guest::ChainSplit;
use crosspoint_guest::queue::ReceiveQueue;
use crosspoint_vring::{GuestRx, Outcome, RxScratch, feature};

use crate::world::{Guest, LAYOUTS, MODERN, Random, all, bounded, call, device_base};

const HEADER: usize = 32;

/// A frame that describes itself: source, number, length, and bytes that follow from these.
fn write_frame(frame: &mut [u8], source: u64, number: u64) {
    let mut random = Random(source << 48 | number);
    for chunk in frame.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    for (at, value) in [(0, source), (8, number), (16, frame.len() as u64)] {
        frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// Checks every byte; returns source and number.
fn check_frame(frame: &[u8]) -> (u64, u64) {
    let field = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
    let (source, number) = (field(0), field(8));
    let mut expected = vec![0; frame.len()];
    write_frame(&mut expected, source, number);
    assert!(
        frame == expected,
        "frame {number} of source {source} came with other bytes"
    );
    (source, number)
}

#[derive(Default)]
struct Sum {
    picks: AtomicU64,
    frames: AtomicU64,
    contended: AtomicU64,
}

struct Shared {
    rx: GuestRx,
    stop: AtomicBool,
    sums: [Sum; 4],
}

/// Stops all threads when its owner panics, so that a test fails at once and not by its watchdog.
struct StopOnPanic<'a>(&'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop.store(true, Ordering::Release);
        }
    }
}

/// One worker: delivers bursts of its own frames until stopped.
fn work(shared: &Shared, worker: usize, burst_max: usize, len_max: usize) {
    let _guard = StopOnPanic(shared);
    let mut random = Random(worker as u64);
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let mut bytes = vec![vec![0u8; len_max]; BURST];
    let sum = &shared.sums[worker];
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        burst.clear();
        for frame in bytes.iter_mut().take(1 + random.below(burst_max)) {
            let room = if random.one_in(8) {
                len_max
            } else {
                len_max.min(100)
            };
            let len = HEADER + random.below(room - HEADER);
            write_frame(&mut frame[..len], worker as u64, number);
            number += 1;
            // SAFETY: within `frame`, which is not written before the burst is cleared.
            let segment = unsafe { Segment::new(frame.as_ptr(), len as u32) };
            assert!(burst.push_contiguous(segment, Offload::default()));
        }
        let picks = all(&burst);
        scratch.begin_burst();
        let outcome = shared.rx.deliver(worker, &burst, &picks, &mut scratch);
        let Outcome {
            frames,
            full,
            small,
            contended,
            costly,
            faulty,
            ..
        } = outcome;
        // Looks at long chains that other workers then took count as work: what is left may be too costly.
        let dropped = full + contended + costly;
        assert_eq!(picks.len() as u32, frames + dropped, "{outcome:?}");
        assert_eq!((small, faulty), (0, 0), "{:?}", scratch.take_fault());
        sum.picks.fetch_add(picks.len() as u64, Ordering::Relaxed);
        sum.frames.fetch_add(frames.into(), Ordering::Relaxed);
        sum.contended.fetch_add(contended.into(), Ordering::Relaxed);
        // As the engine's loop does, once for all rings: see `flush`.
        fence(Ordering::SeqCst);
        shared.rx.flush(worker);
        if full > 0 {
            std::thread::yield_now();
        }
    }
}

/// The driver: takes and posts buffers, checks each byte, and checks that the numbers of each source only increase.
/// Returns the frames of each source.
fn consume(queue: &mut ReceiveQueue, total: u64, shared: &Shared) -> [u64; 4] {
    let (mut counts, mut last) = ([0; 4], [None::<u64>; 4]);
    loop {
        let stopped = shared.stop.load(Ordering::Acquire);
        let frames = queue.receive().expect("a device that keeps the rules");
        let _ = queue.virtqueue().publish();
        if frames.is_empty() {
            if stopped {
                return counts;
            }
            std::thread::yield_now();
        }
        for (_, frame) in frames {
            let (source, number) = check_frame(&frame);
            let last = &mut last[source as usize];
            assert!(
                last.is_none_or(|last| number > last),
                "source {source}: {number} after {last:?}"
            );
            *last = Some(number);
            counts[source as usize] += 1;
        }
        if counts.iter().sum::<u64>() >= total && !stopped {
            return counts;
        }
    }
}

struct Load {
    features: u64,
    ring_size: u16,
    buffer_len: usize,
    len_max: usize,
    workers: usize,
    burst_max: usize,
    total: u64,
    split: ChainSplit,
}

fn several_workers(load: Load) {
    let Load {
        features,
        ring_size,
        buffer_len,
        len_max,
        workers,
        burst_max,
        total,
        split,
    } = load;
    let mut guest = Guest::for_queues(ring_size, 64, buffer_len);
    let (_event, notifier) = call();
    let (mut queue, rx) = guest.receive(
        (ring_size, 65_000),
        features,
        buffer_len,
        split,
        workers,
        notifier,
    );
    queue.post(ring_size).unwrap();
    let _ = queue.virtqueue().publish();
    let shared = Arc::new(Shared {
        rx,
        stop: AtomicBool::new(false),
        sums: Default::default(),
    });
    let threads: Vec<_> = (0..workers)
        .map(|worker| {
            let shared = shared.clone();
            std::thread::spawn(move || work(&shared, worker, burst_max, len_max))
        })
        .collect();
    let mut counts = consume(&mut queue, total, &shared);
    shared.stop.store(true, Ordering::Release);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    // Frames delivered after the driver had seen enough.
    for (_, frame) in queue.receive().expect("a device that keeps the rules") {
        counts[check_frame(&frame).0 as usize] += 1;
    }
    let delivered: Vec<u64> = shared
        .sums
        .iter()
        .map(|sum| sum.frames.load(Ordering::Relaxed))
        .collect();
    assert_eq!(
        delivered, counts,
        "every frame reported delivered arrived, and no other"
    );
    assert!(delivered.iter().sum::<u64>() >= total);
    assert_eq!(
        shared.rx.base(),
        device_base(queue.virtqueue()),
        "nothing is left unpublished"
    );
    let of = |field: fn(&Sum) -> &AtomicU64| {
        shared
            .sums
            .iter()
            .map(|sum| field(sum).load(Ordering::Relaxed))
            .sum::<u64>()
    };
    println!(
        "{} picks, {counts:?} delivered, {} contended",
        of(|sum| &sum.picks),
        of(|sum| &sum.contended)
    );
}

const LOAD: Load = Load {
    features: MODERN,
    ring_size: 256,
    buffer_len: 4096,
    len_max: 3000,
    workers: 4,
    burst_max: BURST,
    total: 300_000,
    split: ChainSplit::Single,
};

/// The same for every layout.
fn in_every_layout(load: &Load) {
    for layout in LAYOUTS {
        several_workers(Load {
            features: load.features | layout,
            total: if layout == 0 {
                load.total
            } else {
                load.total / 5
            },
            ..*load
        });
    }
}

#[test]
fn several_workers_deliver_to_one_ring() {
    bounded(120, || {
        in_every_layout(&Load {
            features: feature::VERSION_1,
            ..LOAD
        })
    });
}

#[test]
fn several_workers_deliver_to_one_ring_of_mergeable_buffers() {
    bounded(120, || {
        in_every_layout(&Load {
            buffer_len: 256,
            workers: 3,
            ..LOAD
        })
    });
}

/// Few entries, each often reused: the positions that a worker has read are often outdated.
#[test]
fn several_workers_deliver_to_a_small_ring() {
    bounded(120, || {
        in_every_layout(&Load {
            ring_size: 4,
            buffer_len: 128,
            len_max: 64,
            burst_max: 3,
            ..LOAD
        })
    });
}

/// Buffers of several ring entries: adjacent in a packed ring, or in tables.
#[test]
fn several_workers_deliver_to_one_ring_of_chains() {
    for indirect in [0, feature::INDIRECT_DESC] {
        bounded(120, move || {
            in_every_layout(&Load {
                features: MODERN | indirect,
                buffer_len: 300,
                workers: 3,
                total: 150_000,
                split: ChainSplit::Pieces(100),
                ..LOAD
            })
        });
    }
}

/// As above, with a driver that sleeps when the ring is empty: it is always woken.
fn sleeping_driver(features: u64) {
    const FRAMES: u64 = 50_000;
    let mut guest = Guest::for_queues(64, 64, 2048);
    let (event, notifier) = call();
    let (mut queue, rx) = guest.receive(
        (64, 65_500),
        features,
        2048,
        ChainSplit::Single,
        2,
        notifier,
    );
    queue.post(64).unwrap();
    let _ = queue.virtqueue().publish();
    let shared = Arc::new(Shared {
        rx,
        stop: AtomicBool::new(false),
        sums: Default::default(),
    });
    let threads: Vec<_> = (0..2)
        .map(|worker| {
            let shared = shared.clone();
            std::thread::spawn(move || work(&shared, worker, BURST, 200))
        })
        .collect();
    let mut received = 0;
    while received < FRAMES {
        queue.virtqueue().disable_calls();
        received += queue
            .receive()
            .expect("a device that keeps the rules")
            .len() as u64;
        let _ = queue.virtqueue().publish();
        if !queue.virtqueue().enable_calls().unwrap() {
            // Two workers never stop delivering, so 5 seconds without frames means a lost call.
            assert!(
                event.wait(Duration::from_secs(5)).unwrap() > 0,
                "asleep for ever after {received} frames"
            );
        }
    }
    shared.stop.store(true, Ordering::Release);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_sleeping_driver_is_woken_by_one_of_several_workers() {
    bounded(120, || {
        for layout in LAYOUTS {
            sleeping_driver(MODERN | layout);
            sleeping_driver(MODERN | layout | feature::EVENT_IDX);
        }
    });
}
