//! A guest's memory changes while its rings are in use: nothing is lost, and nothing stale is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crosspoint_frame::Burst;
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::{Buffer, ChainSplit, VirtioNetHdr};
use crosspoint_memory::{GuestMemory, MemoryCell, RegionSpec};
use crosspoint_vring::{Features, GuestRx, GuestTx, RxScratch, feature};

use crate::world::{BASE, Guest, LAYOUTS, MODERN, all, bounded, start_of};

const PAGE: u64 = 0x1000;
/// A region that is added and removed: its guest address, and the front end's own.
const EXTRA: RegionSpec = RegionSpec {
    guest_address: 0x4000_0000,
    size: 0x10_0000,
    user_address: 0x7fff_0000_0000,
    mmap_offset: 0,
};

fn memfd(len: u64, fill: u8) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("region", flags).unwrap());
    file.set_len(len).unwrap();
    for page in 0..len / PAGE {
        file.write_all_at(&[fill; PAGE as usize], page * PAGE)
            .unwrap();
    }
    // The header requests nothing.
    file.write_all_at(&[0; 12], 0).unwrap();
    file
}

/// Frames in a region that is replaced by another file before they are taken: the switch reads again what it had
/// prefetched.
#[test]
fn no_byte_is_read_from_a_region_that_was_exchanged() {
    for layout in LAYOUTS {
        for pieces in [1, 2] {
            exchanged(MODERN | layout, pieces);
        }
    }
}

fn exchanged(features: u64, pieces: u32) {
    let mut guest = Guest::new(0x10_0000);
    let (mut ring, device) = guest.virtqueue(256, 0, features);
    let base = start_of(256, 0, features);
    let mut tx = GuestTx::new(device, Features::new(features), Arc::default(), base).unwrap();
    let shared = &guest.shared;
    let mut memory = shared
        .get()
        .with_region(EXTRA, &memfd(EXTRA.size, 0))
        .unwrap();
    drop(shared.swap(Arc::new(memory.clone())));
    let buffers: Vec<Buffer> = (0..pieces)
        .map(|i| Buffer {
            address: EXTRA.guest_address + u64::from(i) * 212,
            len: 212,
            device_writes: false,
        })
        .collect();
    let mut burst = Burst::new();
    for fill in 1..100u8 {
        // More than two bursts: after the first one, some frames have always been prefetched.
        while ring.add(&buffers).is_some() {}
        let _ = ring.publish();
        burst.clear();
        let n = tx.receive(&mut burst);
        assert!(n > 0);
        for frame in burst.frames() {
            assert_eq!(frame.headers()[20..60], [fill - 1; 40]);
        }
        tx.complete();
        memory = memory.without_region(&EXTRA).unwrap();
        memory = memory.with_region(EXTRA, &memfd(EXTRA.size, fill)).unwrap();
        // No worker uses the old memory: it is unmapped at once.
        drop(shared.swap(Arc::new(memory.clone())));
        while ring.pop_used().unwrap().is_some() {}
    }
}

/// Receive buffers are prefetched one burst early too, and kept, but not across a change of the memory.
#[test]
fn no_byte_is_written_to_a_region_that_was_exchanged() {
    for layout in LAYOUTS {
        exchanged_for_writing(MODERN | layout);
    }
}

fn exchanged_for_writing(features: u64) {
    let mut guest = Guest::new(0x10_0000);
    let (mut ring, device) = guest.virtqueue(256, 0, features);
    let base = start_of(256, 0, features);
    let rx = GuestRx::new(device, Features::new(features), Arc::default(), base, 1).unwrap();
    let shared = &guest.shared;
    let before = memfd(EXTRA.size, 0);
    let mut memory = shared.get().with_region(EXTRA, &before).unwrap();
    drop(shared.swap(Arc::new(memory.clone())));
    let buffer = Buffer {
        address: EXTRA.guest_address,
        len: 212,
        device_writes: true,
    };
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    for fill in 1..100u8 {
        while ring.add(&[buffer]).is_some() {}
        let _ = ring.publish();
        burst.clear();
        for _ in 0..8 {
            assert!(burst.push_short(&[fill; 60]));
        }
        // The delivery prefetches as many buffers again, for the next one.
        let outcome = rx.deliver(0, &burst, &all(&burst), &mut scratch);
        assert_eq!(outcome.frames, 8, "{outcome:?}");
        rx.look(64, &mut scratch);
        memory = memory.without_region(&EXTRA).unwrap();
        let now = memfd(EXTRA.size, 0);
        memory = memory.with_region(EXTRA, &now).unwrap();
        // No worker uses the old memory: it is unmapped at once.
        drop(shared.swap(Arc::new(memory.clone())));
        let outcome = rx.deliver(0, &burst, &all(&burst), &mut scratch);
        assert_eq!(outcome.frames, 8, "{outcome:?}");
        let mut bytes = [0; 60];
        now.read_exact_at(&mut bytes, 12).unwrap();
        assert_eq!(
            bytes, [fill; 60],
            "the frame is not where the guest's memory is now"
        );
        while ring.pop_used().unwrap().is_some() {}
    }
}

/// Sends and receives continuously, on its own thread.
fn forward(
    (mut tx, rx): (GuestTx, GuestRx),
    turns: &AtomicU64,
    stop: &AtomicBool,
) -> (GuestTx, GuestRx) {
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    while !stop.load(Ordering::Relaxed) {
        burst.clear();
        if tx.receive(&mut burst) == 0 {
            std::thread::yield_now();
        }
        let picks = all(&burst);
        let mut rest = &picks[..];
        while !rest.is_empty() && !stop.load(Ordering::Relaxed) {
            let outcome = rx.deliver(0, &burst, rest, &mut scratch);
            assert_eq!(
                outcome.faulty + outcome.small,
                0,
                "{:?}",
                scratch.take_fault()
            );
            rest = &rest[outcome.frames as usize..];
            if outcome.full > 0 {
                std::thread::yield_now();
            }
        }
        tx.complete();
        assert_eq!(tx.fault(), None);
        turns.fetch_add(1, Ordering::AcqRel);
    }
    (tx, rx)
}

/// Adds regions, removes them, and sets the whole table again, as often as possible until stopped. An old memory is
/// dropped when the worker has passed a quiescent point.
fn replug(
    cell: &MemoryCell,
    table: &[(RegionSpec, File)],
    turns: &AtomicU64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> (u64, Option<Arc<GuestMemory>>) {
    let extra = memfd(EXTRA.size, 9);
    let (mut exchanges, mut old) = (0, None);
    while !stop.load(Ordering::Relaxed) {
        let now = cell.shared();
        let next = match exchanges % 3 {
            0 => now.with_region(EXTRA, &extra).unwrap(),
            1 => now.without_region(&EXTRA).unwrap(),
            _ => {
                let same = table
                    .iter()
                    .map(|(spec, file)| (*spec, file.try_clone().unwrap()));
                GuestMemory::map_after(Some(&now), same.collect()).unwrap()
            }
        };
        drop(now);
        old = Some(cell.swap(Arc::new(next)));
        let (before, start) = (turns.load(Ordering::Acquire), Instant::now());
        while turns.load(Ordering::Acquire) < before + 2 && !stop.load(Ordering::Relaxed) {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        exchanges += 1;
        count.store(exchanges, Ordering::Relaxed);
    }
    // The worker may be in its last poll iteration.
    (exchanges, old)
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn frames_pass(sender: &mut TransmitQueue, receiver: &mut ReceiveQueue, total: u64) {
    let (mut sent, mut received) = (0u64, 0u64);
    receiver.post(u16::MAX).unwrap();
    while received < total {
        while sent < total {
            let bytes = [&sent.to_le_bytes()[..], &[sent as u8; 500]].concat();
            sender.set_split(ChainSplit::Pieces([600, 200][(sent % 2) as usize]));
            if !sender.send(&VirtioNetHdr::default(), &bytes).unwrap() {
                break;
            }
            sent += 1;
        }
        let _ = (sender.virtqueue().publish(), receiver.virtqueue().publish());
        let frames = receiver.receive().unwrap();
        if frames.is_empty() {
            std::thread::yield_now();
        }
        for (_, bytes) in frames {
            let expected = [&received.to_le_bytes()[..], &[received as u8; 500]].concat();
            assert!(bytes == expected, "frame {received}");
            received += 1;
        }
    }
}

/// Memory hotplug while a worker forwards: every frame arrives, once, in order.
fn regions_come_and_go(features: u64) {
    let mut guest = Guest::for_queues(64, 600, 600);
    let (mut sender, tx) = guest.transmit(64, 60, features, 600);
    let (mut receiver, rx) = guest.receive(
        (64, 60),
        features,
        600,
        ChainSplit::Single,
        1,
        Arc::default(),
    );
    let region = &guest.memory.regions()[0];
    let spec = guest.shared.get().regions().next().unwrap();
    let table = [(
        spec,
        File::from(region.file().try_clone_to_owned().unwrap()),
    )];
    let (turns, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let end = StopAtEnd(&stop);
        let worker = scope.spawn(|| forward((tx, rx), &turns, &stop));
        let control = scope.spawn(|| replug(&guest.shared, &table, &turns, &stop, &count));
        // On a busy machine all frames may pass before anything was exchanged.
        while count.load(Ordering::Relaxed) <= 10 {
            frames_pass(&mut sender, &mut receiver, 10_000);
        }
        drop(end);
        let queues = worker.join().unwrap();
        let (exchanges, _old) = control.join().unwrap();
        drop(queues);
        println!("{exchanges} exchanges");
        assert!(exchanges > 10);
    });
}

#[test]
fn no_frame_is_lost_while_regions_come_and_go() {
    for layout in LAYOUTS {
        bounded(60, move || regions_come_and_go(MODERN | layout));
    }
    bounded(60, || {
        regions_come_and_go(MODERN | feature::RING_PACKED | feature::INDIRECT_DESC)
    });
}

/// The maximum number of memory slots, unsorted and with gaps: each address is found in its own region.
#[test]
fn addresses_in_five_hundred_regions_are_translated() {
    const REGIONS: u64 = 509;
    let file = memfd(REGIONS * PAGE, 0);
    let spec = |i: u64| RegionSpec {
        guest_address: BASE + 3 * PAGE * i,
        size: PAGE,
        user_address: 0x7000_0000_0000 + 5 * PAGE * i,
        mmap_offset: i * PAGE,
    };
    // 509 is a prime: every number occurs once.
    let order = (0..REGIONS).map(|i| i * 100 % REGIONS);
    let table = order.clone().map(|i| (spec(i), file.try_clone().unwrap()));
    let whole = GuestMemory::map(table.collect()).unwrap();
    let mut grown = GuestMemory::map(vec![]).unwrap();
    for i in order {
        grown = grown.with_region(spec(i), &file).unwrap();
    }
    for memory in [&whole, &grown] {
        assert_eq!(memory.region_count() as u64, REGIONS);
        for i in 0..REGIONS {
            let number = (i + 1).to_le_bytes();
            file.write_all_at(&number, i * PAGE + PAGE - 8).unwrap();
            let at = spec(i).guest_address;
            let host = memory.translate(at, PAGE as u32).expect("the whole region");
            let last = memory.translate(at + PAGE - 8, 8).expect("its last bytes");
            assert_eq!(last, host.wrapping_add(PAGE as usize - 8));
            // SAFETY: 8 bytes at a multiple of 8, translated just now; the memory lives.
            assert_eq!(unsafe { last.cast::<u64>().read_volatile() }, i + 1);
            assert_eq!(
                memory.translate_user(spec(i).user_address, PAGE),
                Some(host)
            );
            for (address, len) in [
                (at - 1, 1),
                (at - 1, 2),
                (at + PAGE - 7, 8),
                (at + PAGE, 1),
                (at, PAGE as u32 + 1),
                (at, u32::MAX),
            ] {
                assert_eq!(
                    memory.translate(address, len),
                    None,
                    "{i}: {address:#x}+{len:#x}"
                );
            }
        }
    }
    let mut shrunk = grown;
    for i in 0..REGIONS {
        shrunk = shrunk.without_region(&spec(i)).unwrap();
        assert_eq!(shrunk.translate(spec(i).guest_address, 1), None);
        if i + 1 < REGIONS {
            assert!(shrunk.translate(spec(i + 1).guest_address, 1).is_some());
        }
    }
}
