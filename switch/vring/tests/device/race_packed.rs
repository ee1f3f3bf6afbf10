//! A guest that rewrites its packed rings continuously while they are read, and two workers that deliver to one of
//! them. All effects stay within its own memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, Offload, Segment};
use crosspoint_guest::packed::{DESC_F_AVAIL, DESC_F_USED};
use crosspoint_guest::{GuestMemory, Position, RingLayout};
use crosspoint_vring::{Features, GuestRx, GuestTx, InflightRegion, Outcome, RxScratch, feature};

use crate::world::{BASE, Guest, MODERN, Random, all, base_at, bounded};

const SIZE: u16 = 64;
const LEN: usize = 0x20_0000;
/// Bytes at both ends of the guest's memory that are mapped but not shared: the switch must not touch them.
const MARGIN: u64 = 0x840;
const CANARY: u8 = 0xc5;
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(20);
const FEATURES: u64 = MODERN | feature::RING_PACKED | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// What one thread rewrites, and how.
struct Scribbler {
    memory: Arc<GuestMemory>,
    layout: RingLayout,
    table: u64,
    /// Direction of this ring's descriptors.
    flags: u16,
    random: Random,
}

impl Scribbler {
    fn bad_address(&mut self) -> u64 {
        let (start, end) = (BASE + MARGIN, BASE + LEN as u64 - MARGIN);
        let random = &mut self.random;
        match random.below(4) {
            0 => random.next(),
            1 => start - 8 + random.below(16) as u64,
            2 => end - random.below(64) as u64,
            _ => end - random.below(5000) as u64,
        }
    }

    fn bad_len(&mut self) -> u32 {
        match self.random.below(3) {
            0 => self.random.next() as u32,
            1 => 16 * self.random.below(70) as u32,
            _ => self.random.below(70_000) as u32,
        }
    }

    /// A descriptor with these flags, more or less valid.
    fn descriptor(&mut self, marks: u16, bad: bool) -> [u8; 16] {
        let room = LEN - 2 * MARGIN as usize - 300;
        let mut address = BASE + MARGIN + self.random.below(room) as u64;
        let mut len = self.random.below(300) as u32;
        let mut id = self.random.below(SIZE.into()) as u16;
        let mut flags = self.flags | u16::from(self.random.one_in(4));
        if self.random.one_in(8) {
            (address, len, flags) = (self.table, 16 * self.random.below(65) as u32, 4);
        }
        if bad {
            match self.random.below(4) {
                0 => address = self.bad_address(),
                1 => len = self.bad_len(),
                2 => id = self.random.next() as u16,
                _ => flags = self.random.next() as u16,
            }
        }
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&id.to_le_bytes());
        bytes[14..].copy_from_slice(&(flags | marks).to_le_bytes());
        bytes
    }

    /// Makes the ring valid, and all of it available from its start.
    fn heal(&mut self) {
        for slot in (0..u64::from(SIZE)).rev() {
            let mut entry = self.descriptor(0, false);
            entry[14..].copy_from_slice(&self.flags.to_le_bytes());
            let bytes = self.descriptor(DESC_F_AVAIL, false);
            self.memory.write(self.table + 16 * slot, &entry).unwrap();
            let at = self.layout.descriptors + 16 * slot;
            self.memory.write(at, &bytes).unwrap();
        }
    }

    /// Writes values, some of them valid, into the ring and its table until stopped.
    fn run(mut self, stop: &AtomicBool) {
        let mut odds = 4;
        while !stop.load(Ordering::Relaxed) {
            if self.random.one_in(4096) {
                odds = [2, 100, 10_000, 1_000_000][self.random.below(4)];
            }
            let bad = self.random.one_in(odds);
            let slot = self.random.below(SIZE.into()) as u64;
            let marks = [DESC_F_AVAIL, DESC_F_USED, 0, DESC_F_AVAIL | DESC_F_USED];
            let marks = marks[self.random.below(if bad { 4 } else { 2 })];
            let bytes = self.descriptor(marks, bad);
            let at = match self.random.below(16) {
                0 => self.table,
                1 => {
                    // Its event suppression area.
                    let at = self.layout.available;
                    self.memory.write(at, &bytes[8..12]).unwrap();
                    continue;
                }
                _ => self.layout.descriptors,
            } + 16 * slot;
            // The whole descriptor, or one field of it.
            let part = [0..16, 0..16, 0..8, 8..12, 12..14, 14..16][self.random.below(6)].clone();
            let to = at + part.start as u64;
            self.memory.write(to, &bytes[part]).unwrap();
        }
    }
}

#[derive(Default, Debug)]
struct Seen {
    sent: AtomicU64,
    delivered: AtomicU64,
    tx_faults: AtomicU64,
    rx_faults: AtomicU64,
}

impl Seen {
    fn enough(&self) -> bool {
        let seen = |count: &AtomicU64, least| count.load(Ordering::Relaxed) >= least;
        seen(&self.sent, 20_000)
            && seen(&self.delivered, 10_000)
            && seen(&self.tx_faults, 500)
            && seen(&self.rx_faults, 500)
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

/// Receives until there is a fault, or for a while; every byte of every frame is read.
fn receive(tx: &mut GuestTx, seen: &Seen) {
    let mut burst = Burst::new();
    for _ in 0..500 {
        burst.clear();
        let n = tx.receive(&mut burst);
        for frame in burst.frames() {
            let mut left = [0u8; 512];
            for segment in burst.segments(frame) {
                segment.read(&mut left);
            }
        }
        tx.complete();
        tx.flush();
        add(&seen.sent, n as u64);
        if n == 0 && tx.fault().is_some() {
            add(&seen.tx_faults, 1);
            return;
        }
    }
}

/// Delivers until there is a fault, or for a while; every copy is counted.
fn deliver(rx: &GuestRx, worker: usize, stop: &AtomicBool, seen: &Seen) {
    let (bytes, mut burst, mut scratch) = ([7u8; 1500], Burst::new(), RxScratch::default());
    let mut random = Random(worker as u64);
    for _ in 0..500 {
        burst.clear();
        for _ in 0..1 + random.below(BURST) {
            let most = if random.one_in(8) { 1440 } else { 100 };
            let len = 60 + random.below(most);
            // SAFETY: within `bytes`, which outlives the burst.
            let segment = unsafe { Segment::new(bytes.as_ptr(), len as u32) };
            assert!(burst.push_contiguous(segment, Offload::default()));
        }
        let picks = all(&burst);
        scratch.begin_burst();
        let outcome = rx.deliver(worker, &burst, &picks, &mut scratch);
        let Outcome {
            frames,
            full,
            small,
            contended,
            costly,
            faulty,
            ..
        } = outcome;
        let sum = frames + full + small + contended + costly + faulty;
        assert_eq!(sum, picks.len() as u32, "{outcome:?}");
        assert_eq!(scratch.take_fault().is_some(), faulty > 0);
        rx.flush(worker);
        add(&seen.delivered, frames.into());
        add(&seen.rx_faults, u64::from(faulty > 0));
        if faulty > 0 {
            stop.store(true, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn run(features: u64, tracked: bool) {
    let mut enemy = Guest::with(&[(BASE, LEN)], MARGIN);
    let ends = [BASE, BASE + LEN as u64 - MARGIN];
    for at in ends {
        enemy.memory.write(at, &[CANARY; MARGIN as usize]).unwrap();
    }
    let (tx_ring, _) = enemy.packed_ring(SIZE, Position::START, features);
    let (rx_ring, _) = enemy.packed_ring(SIZE, Position::START, features);
    let (tx_at, rx_at) = (tx_ring.layout(), rx_ring.layout());
    let table = enemy.take(2 * 16 * usize::from(SIZE));
    let file = InflightRegion::create(2, SIZE, true).unwrap();
    let len = file.metadata().unwrap().len();
    let inflight = Arc::new(InflightRegion::map(&file, (0, len), 2, SIZE, true).unwrap());

    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let scribbler = |layout, flags: u16| Scribbler {
        memory: enemy.memory.clone(),
        layout,
        table: table + 16 * u64::from(SIZE) * u64::from(flags / 2),
        flags,
        random: Random(flags.into()),
    };
    let base = base_at(Position::START);
    let negotiated = Features::new(features);
    let device = |layout, index| {
        let mut ring = enemy.device_side(layout, features);
        if tracked {
            let queue = inflight.queue(index, SIZE.into(), true).unwrap();
            // Whatever the guest wrote, a successor's position is in the ring.
            if let Some(at) = ring.resume_noted(&queue) {
                assert!(at & 0x7fff < SIZE.into());
            }
            ring.track(queue, base);
        }
        assert!(ring.resume_at(base, false).unwrap() & 0x7fff < SIZE.into());
        ring
    };
    std::thread::scope(|scope| {
        for (layout, flags) in [(tx_at, 0), (rx_at, 2)] {
            let (scribbler, stop) = (scribbler(layout, flags), &stop);
            scope.spawn(move || scribbler.run(stop));
        }
        let (mut tx_healer, mut rx_healer) = (scribbler(tx_at, 0), scribbler(rx_at, 2));
        let start = Instant::now();
        // On a loaded machine the writers may hardly run: then it takes longer to see enough cases.
        while start.elapsed() < SHORT || (!seen.enough() && start.elapsed() < LONG) {
            tx_healer.heal();
            rx_healer.heal();
            let mut tx = GuestTx::new(device(tx_at, 0), negotiated, Arc::default(), base).unwrap();
            let rx = GuestRx::new(device(rx_at, 1), negotiated, Arc::default(), base, 2).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|workers| {
                for worker in 0..2 {
                    let (rx, done, seen) = (&rx, &done, &seen);
                    workers.spawn(move || deliver(rx, worker, done, seen));
                }
                receive(&mut tx, &seen);
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    for at in ends {
        let mut bytes = [0; MARGIN as usize];
        enemy.memory.read(at, &mut bytes).unwrap();
        let whole = bytes.iter().all(|byte| *byte == CANARY);
        assert!(whole, "bytes beyond the shared memory were written");
    }
    println!("{seen:?}");
    assert!(seen.enough(), "the race was not run: {seen:?}");
}

#[test]
fn packed_rings_rewritten_while_they_are_read_harm_no_other() {
    bounded(60, || run(FEATURES, false));
}

#[test]
fn packed_rings_rewritten_while_it_is_noted_where_they_stand_harm_no_other() {
    bounded(60, || run(FEATURES | feature::IN_ORDER, true));
}
