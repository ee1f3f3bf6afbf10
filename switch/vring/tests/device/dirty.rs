//! The dirty log has a bit for every page that the switch has written, and for no page that it has not touched.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, HeaderOp, Offload, Segment, TxEntry};
use crosspoint_guest as driver;
use crosspoint_guest::{Buffer, Virtqueue};
use crosspoint_memory::{DirtyLog, LOG_PAGE_LEN};
use crosspoint_vring::{Features, GuestRx, GuestTx, RxScratch, feature};
use proptest::prelude::*;

use crate::world::{BASE, Guest, LAYOUTS, MODERN, Random, all, bounded, start_of};

const REGION_LEN: usize = 0x10_0000;
/// Address of the buffers: across the border of the two regions.
const SENT_AT: u64 = BASE + 0x3_0000;
const RECEIVED_AT: u64 = BASE + 0x8_0000;
const SLOT_LEN: u64 = 0x2340;

/// Two adjacent regions.
fn guest() -> Guest {
    Guest::with(
        &[(BASE, REGION_LEN), (BASE + REGION_LEN as u64, REGION_LEN)],
        0,
    )
}

/// The guest's log, and the device's mapping of it.
fn log_of(guest: &Guest) -> (driver::DirtyLog, Arc<DirtyLog>) {
    let end = guest.shared.get().end();
    let log = driver::DirtyLog::new(end).unwrap();
    let file = File::from(log.region().file().try_clone_to_owned().unwrap());
    let seen = DirtyLog::map(&file, 0, log.len() as u64).unwrap();
    assert!(seen.end() >= end);
    (log, Arc::new(seen))
}

fn snapshot(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; 2 * REGION_LEN];
    let (a, b) = bytes.split_at_mut(REGION_LEN);
    guest.memory.read(BASE, a).unwrap();
    guest.memory.read(BASE + REGION_LEN as u64, b).unwrap();
    bytes
}

/// Guest addresses of the pages that differ.
fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let page = LOG_PAGE_LEN as usize;
    let pages = before.chunks(page).zip(after.chunks(page)).enumerate();
    pages
        .filter(|(_, (a, b))| a != b)
        .map(|(i, _)| BASE + i as u64 * LOG_PAGE_LEN)
        .collect()
}

fn pages(address: u64, len: u64) -> impl Iterator<Item = u64> {
    let last = (address + len.max(1) - 1) / LOG_PAGE_LEN;
    (address / LOG_PAGE_LEN..=last)
        .map(|page| page * LOG_PAGE_LEN)
        .take(if len == 0 { 0 } else { usize::MAX })
}

/// The parts of a ring that the device writes, besides buffers.
fn ring_pages(queue: &Virtqueue) -> BTreeSet<u64> {
    let at = queue.layout();
    let size = u64::from(at.size);
    match queue {
        Virtqueue::Split(_) => pages(at.used, 6 + 8 * size).collect(),
        Virtqueue::Packed(_) => pages(at.descriptors, 16 * size)
            .chain(pages(at.used, 4))
            .collect(),
    }
}

/// The driver of one ring, and the addresses of its buffers.
struct Side {
    ring: Virtqueue,
    at: u64,
    tables: u64,
    free: Vec<u64>,
    held: HashMap<u16, (u64, Vec<Buffer>)>,
}

impl Side {
    fn new(guest: &mut Guest, ring: Virtqueue, at: u64) -> Side {
        let slots = u64::from(ring.layout().size.min(64));
        Side {
            ring,
            at,
            tables: guest.take(64 * 64),
            free: (0..slots).collect(),
            held: HashMap::new(),
        }
    }

    /// Makes `len` bytes available in this many pieces, possibly in a table; false if there is no room.
    fn add(&mut self, guest: &Guest, len: u32, pieces: u32, table: bool, write: bool) -> bool {
        let Some(slot) = self.free.pop() else {
            return false;
        };
        let piece = len / pieces;
        let buffers: Vec<Buffer> = (0..pieces)
            .map(|i| Buffer {
                address: self.at + slot * SLOT_LEN + u64::from(i * (piece + 3)),
                len: if i + 1 < pieces {
                    piece
                } else {
                    len - i * piece
                },
                device_writes: write,
            })
            .collect();
        let added = if table {
            let table = guest.memory.window(self.tables + 64 * slot, 64).unwrap();
            self.ring.add_indirect(&table, &buffers)
        } else {
            self.ring.add(&buffers)
        };
        match added {
            Some(id) => _ = self.held.insert(id, (slot, buffers)),
            None => self.free.push(slot),
        }
        added.is_some()
    }

    /// Takes back used buffers, and returns the pages that were written.
    fn take(&mut self) -> BTreeSet<u64> {
        let mut touched = BTreeSet::new();
        while let Some(used) = self.ring.pop_used().unwrap() {
            let (slot, buffers) = self.held.remove(&used.id).unwrap();
            let mut left = u64::from(used.len);
            for buffer in buffers {
                let n = left.min(buffer.len.into());
                touched.extend(pages(buffer.address, n));
                left -= n;
            }
            assert_eq!(left, 0);
            self.free.push(slot);
        }
        touched
    }
}

#[derive(Clone, Debug)]
struct Case {
    features: u64,
    sizes: (u16, u16),
    base: u16,
    buffer_len: u32,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let features =
        (proptest::sample::select(&LAYOUTS[..]), any::<[bool; 4]>()).prop_map(|(layout, on)| {
            let bits = [
                feature::MRG_RXBUF,
                feature::VERSION_1,
                feature::INDIRECT_DESC,
                feature::EVENT_IDX,
            ];
            let chosen = bits.iter().zip(on).filter(|(_, on)| *on);
            layout | chosen.map(|(bit, _)| bit).sum::<u64>()
        });
    let buffer_len = prop_oneof![30u32..300, 300u32..9000];
    let sizes = (2u32..=6, 2u32..=6).prop_map(|(a, b)| (1 << a, 1 << b));
    (features, sizes, any::<u16>(), buffer_len, any::<u64>()).prop_map(
        |(features, sizes, base, buffer_len, seed)| Case {
            features,
            sizes,
            base,
            buffer_len,
            seed,
        },
    )
}

fn run(case: &Case) {
    let (features, mut random) = (case.features, Random(case.seed));
    let (negotiated, tables) = (
        Features::new(features),
        features & feature::INDIRECT_DESC != 0,
    );
    let mut guest = guest();
    let (tx_ring, tx) = guest.virtqueue(case.sizes.0, case.base, features);
    let (rx_ring, rx) = guest.virtqueue(case.sizes.1, case.base, features);
    let (log, shared_log) = log_of(&guest);
    let logged = guest.shared.get().with_log(Some(shared_log));
    drop(guest.shared.swap(Arc::new(logged)));
    let before = snapshot(&guest);
    let start = |size| start_of(size, case.base, features);
    let mut tx = GuestTx::new(tx, negotiated, Arc::default(), start(case.sizes.0)).unwrap();
    let rx = GuestRx::new(rx, negotiated, Arc::default(), start(case.sizes.1), 2).unwrap();
    let dirty: BTreeSet<u64> = log.take().into_iter().collect();
    assert!(
        changed(&before, &snapshot(&guest)).is_subset(&dirty),
        "starting"
    );
    let mut sender = Side::new(&mut guest, tx_ring, SENT_AT);
    let mut receiver = Side::new(&mut guest, rx_ring, RECEIVED_AT);
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    for _ in 0..12 {
        for _ in 0..random.below(20) {
            let len = if random.one_in(4) { 4000 } else { 200 };
            let len = 40 + random.below(len) as u32;
            let pieces = 1 + random.below(3) as u32;
            let table = tables && random.one_in(2);
            if !sender.add(&guest, len, pieces, table, false) {
                break;
            }
        }
        for (_, buffers) in sender.held.values() {
            for buffer in buffers {
                let bytes = random.bytes(buffer.len as usize);
                // The header requests nothing.
                let bytes = if buffer.address == buffers[0].address {
                    [&[0; 12], bytes.get(12..).unwrap_or(&[])].concat()
                } else {
                    bytes
                };
                guest.memory.write(buffer.address, &bytes).unwrap();
            }
        }
        while random.below(40) > 0 {
            let pieces = 1 + random.below(3) as u32;
            let table = tables && random.one_in(2);
            if !receiver.add(&guest, case.buffer_len, pieces, table, true) {
                break;
            }
        }
        let _ = (sender.ring.publish(), receiver.ring.publish());

        let before = snapshot(&guest);
        let n = tx.receive(&mut burst);
        let picks: Vec<TxEntry> = (0..n)
            .map(|i| TxEntry {
                frame: i as u8,
                tag: [HeaderOp::Keep, HeaderOp::Push][random.below(2)],
            })
            .collect();
        let (first, second) = picks.split_at(random.below(n + 1));
        rx.deliver(0, &burst, first, &mut scratch);
        rx.deliver(1, &burst, second, &mut scratch);
        tx.complete();
        burst.clear();
        if random.one_in(3) {
            tx.set_kicks(random.one_in(2));
        }
        let after = snapshot(&guest);
        let dirty: BTreeSet<u64> = log.take().into_iter().collect();
        let changed = changed(&before, &after);
        let missed: Vec<_> = changed.difference(&dirty).collect();
        assert!(
            missed.is_empty(),
            "written, and not in the log: {missed:x?}"
        );
        let mut touched = sender.take();
        assert!(touched.is_empty());
        touched.extend(receiver.take());
        touched.extend(ring_pages(&sender.ring));
        touched.extend(ring_pages(&receiver.ring));
        let idle: Vec<_> = dirty.difference(&touched).collect();
        assert!(idle.is_empty(), "in the log, and not touched: {idle:x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every layout of rings and buffers, with deliveries by two workers, completions, and requests for kicks.
    #[test]
    fn the_log_has_every_page_that_was_written_and_no_other(case in case()) {
        run(&case);
    }
}

/// Two workers that deliver continuously, and how many quiescent points each has passed.
struct Workers {
    rx: GuestRx,
    turns: [AtomicU64; 2],
    stop: AtomicBool,
}

impl Workers {
    fn work(&self, worker: usize) {
        let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
        let mut random = Random(worker as u64);
        while !self.stop.load(Ordering::Relaxed) {
            let bytes = random.bytes(1500);
            burst.clear();
            for _ in 0..1 + random.below(BURST / 8) {
                let len = 60 + random.below(1400) as u32;
                // SAFETY: within `bytes`, which outlives the burst.
                let segment = unsafe { Segment::new(bytes.as_ptr(), len) };
                assert!(burst.push_contiguous(segment, Offload::default()));
            }
            let outcome = self.rx.deliver(worker, &burst, &all(&burst), &mut scratch);
            assert_eq!(outcome.faulty, 0);
            self.turns[worker].fetch_add(1, Ordering::AcqRel);
            if outcome.frames == 0 {
                std::thread::yield_now();
            }
        }
    }

    /// Returns when each worker has passed a quiescent point.
    fn quiesce(&self) {
        let start = Instant::now();
        for turns in &self.turns {
            let before = turns.load(Ordering::Acquire);
            while turns.load(Ordering::Acquire) < before + 2 {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
        }
    }
}

/// The log is set and removed, as by migrations, while two workers deliver. From the moment when each has seen it on,
/// every page is in it; from the moment when each has seen it off, none is.
fn exchange(features: u64) {
    let mut guest = guest();
    let (ring, device) = guest.virtqueue(64, 60, features);
    let (log, shared_log) = log_of(&guest);
    let base = start_of(64, 60, features);
    let rx = GuestRx::new(device, Features::new(features), Arc::default(), base, 2).unwrap();
    let mut receiver = Side::new(&mut guest, ring, RECEIVED_AT);
    let workers = Workers {
        rx,
        turns: Default::default(),
        stop: AtomicBool::new(false),
    };
    let offer = |receiver: &mut Side| {
        let touched = receiver.take();
        while receiver.add(
            &guest,
            1024,
            2,
            features & feature::INDIRECT_DESC != 0,
            true,
        ) {}
        let _ = receiver.ring.publish();
        touched
    };
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let workers = &workers;
            scope.spawn(move || workers.work(worker));
        }
        let mut seen = 0;
        for round in 0..60 {
            let with = guest.shared.get().with_log(Some(shared_log.clone()));
            let old = guest.shared.swap(Arc::new(with));
            workers.quiesce();
            drop(old);
            let (before, mut touched) = (snapshot(&guest), BTreeSet::new());
            receiver.take();
            for _ in 0..3 {
                touched.extend(offer(&mut receiver));
                workers.quiesce();
            }
            let after = snapshot(&guest);
            workers.quiesce();
            touched.extend(receiver.take());
            seen += touched.len();
            let dirty: BTreeSet<u64> = log.take().into_iter().collect();
            let buffers = changed(&before, &after).split_off(&RECEIVED_AT);
            assert!(buffers.is_subset(&dirty), "round {round}");

            let old = guest
                .shared
                .swap(Arc::new(guest.shared.get().with_log(None)));
            workers.quiesce();
            drop(old);
            let _ = log.take();
            offer(&mut receiver);
            workers.quiesce();
            assert_eq!(log.take(), [], "round {round}: the log was taken away");
        }
        workers.stop.store(true, Ordering::Relaxed);
        assert!(seen > 100, "nothing was delivered");
    });
}

#[test]
fn the_log_comes_and_goes_while_workers_deliver() {
    for layout in LAYOUTS {
        bounded(60, move || exchange(MODERN | layout));
        bounded(60, move || {
            exchange(MODERN | layout | feature::INDIRECT_DESC)
        });
    }
}
