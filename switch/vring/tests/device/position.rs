//! A device's position, passed to its successor by GET_VRING_BASE, by the ring's flags, or by the inflight region.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crosspoint_frame::{Burst, Offload, Segment};
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::{Buffer, ChainSplit, VirtioNetHdr, Virtqueue};
use crosspoint_memory::DirtyLog;
use crosspoint_vring::{
    Features, GuestRx, GuestTx, InflightQueue, InflightRegion, Ring, RxScratch, feature,
};
use proptest::prelude::*;

use crate::world::{Guest, LAYOUTS, MODERN, Random, all, bounded, device_base, start_of};

const PACKED: u64 = MODERN | feature::RING_PACKED;

fn is_packed(features: u64) -> bool {
    features & feature::RING_PACKED != 0
}

/// Delivers one frame for each of `frames`, by one worker.
fn deliver(rx: &GuestRx, worker: usize, frames: &[Vec<u8>]) -> u32 {
    let mut burst = Burst::new();
    for frame in frames {
        // SAFETY: the frame outlives the burst.
        let segment = unsafe { Segment::new(frame.as_ptr(), frame.len() as u32) };
        assert!(burst.push_contiguous(segment, Offload::default()));
    }
    rx.deliver(worker, &burst, &all(&burst), &mut RxScratch::default())
        .frames
}

/// A driver that does not stop, and a sequence of devices: sender and receiver.
struct Relay {
    guest: Guest,
    features: u64,
    size: u16,
    sender: TransmitQueue,
    receiver: ReceiveQueue,
    tx: GuestTx,
    rx: GuestRx,
    random: Random,
    underway: VecDeque<Vec<u8>>,
    arriving: VecDeque<Vec<u8>>,
}

impl Relay {
    fn new(features: u64, size: u16, base: u16, split: ChainSplit, seed: u64) -> Relay {
        let mut guest = Guest::for_queues(size, 300, 400);
        let (sender, tx) = guest.transmit(size, base, features, 300);
        let (mut receiver, rx) =
            guest.receive((size, base), features, 400, split, 1, Arc::default());
        receiver.set_repost(false);
        Relay {
            guest,
            features,
            size,
            sender,
            receiver,
            tx,
            rx,
            random: Random(seed),
            underway: VecDeque::new(),
            arriving: VecDeque::new(),
        }
    }

    fn send(&mut self) {
        for _ in 0..self.random.below(usize::from(self.size) + 1) {
            let pieces = 1 + self.random.below(3);
            self.sender.set_split(ChainSplit::Pieces(312 / pieces + 1));
            let len = 60 + self.random.below(200);
            let bytes = self.random.bytes(len);
            match self.sender.send(&VirtioNetHdr::default(), &bytes) {
                Ok(true) => self.underway.push_back(bytes),
                _ => break,
            }
        }
        let posted = self.random.below(usize::from(self.size) + 1);
        self.receiver.post(posted as u16).unwrap();
        let _ = self.sender.virtqueue().publish();
        let _ = self.receiver.virtqueue().publish();
    }

    fn forward(&mut self) {
        let mut burst = Burst::new();
        let n = self.tx.receive(&mut burst);
        let frames: Vec<_> = self.underway.drain(..n).collect();
        let picks = all(&burst);
        let outcome = self
            .rx
            .deliver(0, &burst, &picks, &mut RxScratch::default());
        assert_eq!(outcome.frames + outcome.full, n as u32);
        self.tx.complete();
        self.arriving
            .extend(frames.into_iter().take(outcome.frames as usize));
    }

    fn look(&mut self) {
        for (_, bytes) in self.receiver.receive().unwrap() {
            assert!(Some(bytes) == self.arriving.pop_front());
        }
        assert!(self.arriving.is_empty(), "delivered, and not arrived");
    }

    /// Ends both devices and starts their successors at the returned positions.
    fn exchange(&mut self) {
        let bases = [self.tx.base(), self.rx.base()];
        assert_eq!(bases[0], device_base(self.sender.virtqueue()));
        assert_eq!(bases[1], device_base(self.receiver.virtqueue()));
        let layouts = [
            self.sender.virtqueue().layout(),
            self.receiver.virtqueue().layout(),
        ];
        let [tx, rx] = layouts.map(|layout| self.guest.device_side(layout, self.features));
        for (ring, base) in [(&tx, bases[0]), (&rx, bases[1])] {
            // In a packed ring only the lower half is used, as by some front ends.
            let half = base & 0xffff;
            assert_eq!(ring.resume_at(half, true).unwrap() & 0xffff, half);
        }
        let negotiated = Features::new(self.features);
        let call = Arc::default;
        self.tx = GuestTx::new(tx, negotiated, call(), bases[0]).unwrap();
        self.rx = GuestRx::new(rx, negotiated, call(), bases[1], 1).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// At any point, wraps included: a successor continues, with nothing lost or repeated.
    #[test]
    fn a_successor_goes_on_where_its_predecessor_stood(
        layout in proptest::sample::select(&LAYOUTS[..]),
        indirect: bool, size in 2u32..=6, base: u16, pieces in 1usize..=3, seed: u64,
    ) {
        let features = MODERN | layout | if indirect { feature::INDIRECT_DESC } else { 0 };
        let split = ChainSplit::Pieces(400usize.div_ceil(pieces));
        let mut relay = Relay::new(features, 1 << size, base, split, seed);
        for _ in 0..60 {
            relay.send();
            for _ in 0..relay.random.below(3) {
                relay.forward();
            }
            if relay.random.one_in(3) {
                relay.exchange();
            }
            relay.look();
        }
        for _ in 0..1000 {
            relay.forward();
        }
        prop_assert_eq!(relay.underway.len(), 0, "sent, and not received");
        relay.look();
        relay.sender.reap().unwrap();
        prop_assert_eq!(relay.sender.virtqueue().outstanding(), 0);
    }
}

/// A front end without any state gives the start position. For every position of small rings, every fill level, and
/// used buffers taken by the driver or not: the device finds its position, and a correct base is not changed.
#[test]
fn a_device_that_is_told_the_beginning_finds_where_it_is() {
    for (size, features) in [1u16, 2, 4, 8]
        .into_iter()
        .flat_map(|n| LAYOUTS.map(|f| (n, f)))
    {
        let features = MODERN | features;
        // One used descriptor may stand for many: then a packed ring's flags do not give the position.
        let one_by_one = !is_packed(features) || features & feature::IN_ORDER == 0;
        for behind in 0..4 * size {
            for (offered, used) in (0..=size).flat_map(|n| (0..=n).map(move |used| (n, used))) {
                let mut guest = Guest::for_queues(size, 64, 64);
                let (mut queue, mut tx) = guest.transmit(size, 0, features, 64);
                let mut forward = |queue: &mut TransmitQueue, count: u16| {
                    for _ in 0..count {
                        assert!(queue.send(&VirtioNetHdr::default(), &[0; 60]).unwrap());
                        let _ = queue.virtqueue().publish();
                        assert_eq!(tx.receive(&mut Burst::new()), 1);
                        tx.complete();
                    }
                };
                forward(&mut queue, behind);
                queue.reap().unwrap();
                forward(&mut queue, used);
                for _ in used..offered {
                    // Without `send`, which would take back used descriptors.
                    let buffer = Buffer {
                        address: queue.area().guest_address(),
                        len: 72,
                        device_writes: false,
                    };
                    queue.virtqueue().add(&[buffer]).unwrap();
                }
                let _ = queue.virtqueue().publish();
                let truth = tx.base();
                let ring = guest.device_side(queue.virtqueue().layout(), features);
                let told = start_of(size, 0, features);
                let why =
                    format!("{size} {features:#x}: {behind} behind, {used} of {offered} used");
                if one_by_one {
                    assert_eq!(ring.resume_at(told, false), Ok(truth), "{why}");
                }
                // A correct base is never changed; nor is one that the device has recorded itself.
                assert_eq!(ring.resume_at(truth, false), Ok(truth), "{why}");
                assert_eq!(ring.resume_at(truth, true), Ok(truth), "{why}");
            }
        }
    }
}

/// A predecessor's record as bytes that can be restored: the state before the last record.
struct Notes {
    file: File,
    region: Arc<InflightRegion>,
    size: u16,
}

impl Notes {
    fn new(size: u16) -> Notes {
        let file = InflightRegion::create(1, size, true).unwrap();
        let len = file.metadata().unwrap().len();
        let region = InflightRegion::map(&file, (0, len), 1, size, true).unwrap();
        Notes {
            file,
            region: Arc::new(region),
            size,
        }
    }

    fn queue(&self) -> InflightQueue {
        self.region.queue(0, self.size.into(), true).unwrap()
    }

    /// The queue's header contains its position.
    fn header(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn put_back(&self, header: [u8; 32]) {
        self.file.write_all_at(&header, 0).unwrap();
    }

    /// A ring that continues from the record, or from `base` if there is none.
    fn resume(&self, guest: &Guest, queue: &Virtqueue, features: u64, base: u32) -> (Ring, u32) {
        let mut ring = guest.device_side(queue.layout(), features);
        let base = ring.resume_noted(&self.queue()).unwrap_or(base);
        ring.track(self.queue(), base);
        (ring, base)
    }
}

fn dies_between_publishing_and_noting(features: u64, seed: u64, offers_on: bool) {
    let mut random = Random(seed);
    let size = 1 << (2 + random.below(4));
    let start = random.below(1000) as u16;
    let mut guest = Guest::for_queues(size, 300, 64);
    let (mut queue, first) = guest.transmit(size, start, features, 300);
    drop(first);
    let (notes, negotiated) = (Notes::new(size), Features::new(features));
    let base = start_of(size, start, features);
    let device = |guest: &Guest, queue: &Virtqueue| {
        let (ring, base) = notes.resume(guest, queue, features, base);
        GuestTx::new(ring, negotiated, Arc::default(), base).unwrap()
    };
    let mut tx = device(&guest, queue.virtqueue());
    let (mut sent, mut received) = (0u64, 0u64);
    let mut fill = |queue: &mut TransmitQueue, random: &mut Random, most: usize| {
        for _ in 0..random.below(most + 1) {
            queue.set_split(ChainSplit::Pieces([312, 156, 104][random.below(3)]));
            let bytes = [&sent.to_le_bytes()[..], &[0; 200]].concat();
            if !queue.send(&VirtioNetHdr::default(), &bytes).unwrap() {
                break;
            }
            sent += 1;
        }
        let _ = queue.virtqueue().publish();
    };
    for _ in 0..200 {
        fill(&mut queue, &mut random, usize::from(size));
        let header = notes.header();
        let mut burst = Burst::new();
        let n = tx.receive(&mut burst);
        for frame in burst.frames() {
            let number = frame.headers()[..8].try_into().unwrap();
            assert_eq!(u64::from_le_bytes(number), received);
            received += 1;
        }
        tx.complete();
        if n > 0 && random.one_in(2) {
            let truth = tx.base();
            drop(tx);
            notes.put_back(header);
            if offers_on {
                fill(&mut queue, &mut random, usize::from(size));
            }
            tx = device(&guest, queue.virtqueue());
            assert_eq!(tx.base(), truth, "size {size}, after {received} frames");
        }
        queue.reap().unwrap();
    }
    assert!(received > 100);
}

/// The driver has seen more than was recorded. The successor finds this out, whatever part of the burst was recorded.
#[test]
fn a_sender_goes_on_after_a_device_that_died_before_it_noted_its_last_burst() {
    for seed in 0..40 {
        dies_between_publishing_and_noting(PACKED, seed, false);
        dies_between_publishing_and_noting(PACKED | feature::IN_ORDER, seed, false);
        let tables = PACKED | feature::INDIRECT_DESC;
        dies_between_publishing_and_noting(tables, seed, false);
    }
}

/// As above, and the driver, which does not stop, has made the returned buffers available for the next lap.
#[test]
fn a_sender_goes_on_though_its_driver_has_offered_more_meanwhile() {
    for seed in 0..40 {
        dies_between_publishing_and_noting(PACKED, seed, true);
        dies_between_publishing_and_noting(PACKED | feature::IN_ORDER, seed, true);
        let tables = PACKED | feature::INDIRECT_DESC;
        dies_between_publishing_and_noting(tables, seed, true);
    }
}

const BUFFER_LEN: u32 = 80;

/// Makes as many buffers of `pieces` descriptors available as there is room for.
fn offer(ring: &mut Virtqueue, area: u64, pieces: u32) {
    let len = BUFFER_LEN / pieces;
    let buffers: Vec<Buffer> = (0..pieces)
        .map(|i| Buffer {
            address: area + u64::from(i * len),
            len,
            device_writes: true,
        })
        .collect();
    while ring.add(&buffers).is_some() {}
    let _ = ring.publish();
}

/// One worker dies before it returns its first buffer; another one has returned the following ones.
fn dies_with_a_gap(features: u64, pieces: u32, seed: u64) {
    let (size, mut random) = (32, Random(seed));
    let start = random.below(200) as u16;
    let (mut guest, notes) = (Guest::new(0x10_0000), Notes::new(size));
    let (mut ring, first) = guest.virtqueue(size, start, features);
    drop(first);
    let (area, negotiated) = (guest.take(0x1000), Features::new(features));
    let device = |ring: &Virtqueue| {
        let base = start_of(size, start, features);
        let (ring, base) = notes.resume(&guest, ring, features, base);
        GuestRx::new(ring, negotiated, Arc::default(), base, 2).unwrap()
    };
    let mut rx = device(&ring);
    for _ in 0..20 {
        offer(&mut ring, area, pieces);
        let frames = |random: &mut Random, worker: u8| -> Vec<Vec<u8>> {
            let count = 1 + random.below(3);
            let mut frame = || vec![worker; 60 + random.below(2) * 100];
            (0..count).map(|_| frame()).collect()
        };
        let (lost, behind) = (frames(&mut random, 1), frames(&mut random, 2));
        let (header, at) = (notes.header(), rx.base());
        let slot = (at & 0x7fff) as u16;
        let offered = ring.packed_mut().unwrap().read_desc(slot);
        assert_eq!(deliver(&rx, 0, &lost), lost.len() as u32);
        let in_gap = ring.pending_used().unwrap();
        if deliver(&rx, 1, &behind) == 0 {
            // The ring was full: then there is no gap.
            while ring.pop_used().unwrap().is_some() {}
            continue;
        }
        let (all, truth) = (ring.pending_used().unwrap(), rx.base());
        drop(rx);
        ring.packed_mut().unwrap().write_desc(slot, offered);
        notes.put_back(header);
        assert_eq!(
            ring.pending_used().unwrap(),
            0,
            "the driver sees nothing before"
        );
        rx = device(&ring);
        assert_eq!(rx.base(), truth);
        assert_eq!(ring.pending_used().unwrap(), all, "everything comes back");
        for number in 0..all {
            let used = ring.pop_used().unwrap().unwrap();
            if number < in_gap {
                // Half of a frame would be read as a frame.
                assert_eq!(used.len, 0, "buffer {number} of {in_gap}");
            }
        }
        offer(&mut ring, area, pieces);
        assert_eq!(deliver(&rx, 0, &[vec![3; 60]]), 1);
        assert_eq!(ring.pop_used().unwrap().unwrap().len, 72);
    }
}

#[test]
fn what_a_dead_worker_had_in_hand_comes_back_empty() {
    for seed in 0..50 {
        for pieces in [1, 2] {
            dies_with_a_gap(PACKED, pieces, seed);
            dies_with_a_gap(PACKED | feature::IN_ORDER, pieces, seed);
        }
    }
}

/// What a successor returns is a write too: a migration must see it.
#[test]
fn what_comes_back_empty_is_in_the_dirty_log() {
    let (mut guest, notes) = (Guest::new(0x10_0000), Notes::new(8));
    let (mut ring, _) = guest.virtqueue(8, 0, PACKED);
    let area = guest.take(0x1000);
    let log = crosspoint_guest::DirtyLog::new(guest.end).unwrap();
    let file = File::from(log.region().file().try_clone_to_owned().unwrap());
    let shared = DirtyLog::map(&file, 0, log.len() as u64).unwrap();
    let logged = guest.shared.get().with_log(Some(Arc::new(shared)));
    drop(guest.shared.swap(Arc::new(logged)));
    let negotiated = Features::new(PACKED);
    let base = start_of(8, 0, PACKED);
    let (device, base) = notes.resume(&guest, &ring, PACKED, base);
    let rx = GuestRx::new(device, negotiated, Arc::default(), base, 2).unwrap();
    offer(&mut ring, area, 1);
    let (header, offered) = (notes.header(), ring.packed_mut().unwrap().read_desc(0));
    assert_eq!(
        deliver(&rx, 0, &[vec![1; 60]]) + deliver(&rx, 1, &[vec![2; 60]]),
        2
    );
    ring.packed_mut().unwrap().write_desc(0, offered);
    notes.put_back(header);
    let _ = log.take();
    let _ = notes.resume(&guest, &ring, PACKED, base);
    assert_eq!(ring.pending_used().unwrap(), 2);
    assert!(log.is_dirty(ring.layout().descriptors));
}

/// Whichever of two workers records last, the final record is the ring's position.
#[test]
fn the_last_note_is_where_the_ring_stands() {
    const ROUNDS: usize = 10_000;
    bounded(60, || {
        let (mut guest, notes) = (Guest::new(0x10_0000), Notes::new(16));
        let (mut ring, _) = guest.virtqueue(16, 0, PACKED);
        let area = guest.take(0x1000);
        let (device, base) = notes.resume(&guest, &ring, PACKED, start_of(16, 0, PACKED));
        let rx = GuestRx::new(device, Features::new(PACKED), Arc::default(), base, 2).unwrap();
        let here = AtomicUsize::new(0);
        // The two workers wait for each other.
        let meet = |time: usize| {
            here.fetch_add(1, Ordering::AcqRel);
            while here.load(Ordering::Acquire) < 2 * time {
                std::thread::yield_now();
            }
        };
        let work = |worker: usize| {
            let frame = [vec![1; 60]];
            for round in 0..ROUNDS {
                meet(2 * round + 1);
                deliver(&rx, worker, &frame);
                meet(2 * round + 2);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| work(1));
            let frame = [vec![1; 60]];
            for round in 0..ROUNDS {
                while ring.pop_used().unwrap().is_some() {}
                offer(&mut ring, area, 1);
                meet(2 * round + 1);
                (0..3).for_each(|_| _ = deliver(&rx, 0, &frame));
                meet(2 * round + 2);
                let header = notes.header();
                let noted = u32::from(header[16]) | u32::from(header[20]) << 15;
                assert_eq!(noted, rx.base() & 0xffff, "round {round}");
            }
        });
    });
}

/// Writes the used index of a split ring as an earlier owner of this memory has left it.
fn leave_used_index(guest: &Guest, queue: &Virtqueue, index: u16) {
    let at = queue.layout().used + 2;
    guest.memory.write(at, &index.to_le_bytes()).unwrap();
}

/// A driver that started again in memory of an earlier use with a high used index: the front end's base is right, since
/// the driver makes buffers available from there. And the driver finds no used entries that were not written.
#[test]
fn a_used_index_of_an_earlier_life_is_not_gone_on_from() {
    for base in [0, 5, 0xfffe] {
        for stale in [9u16, 1000, 0x8000] {
            let mut guest = Guest::for_queues(8, 300, 400);
            let (mut sender, tx) = guest.transmit(8, base, MODERN, 300);
            let split = ChainSplit::Single;
            let (mut receiver, rx) =
                guest.receive((8, base), MODERN, 400, split, 1, Arc::default());
            drop((tx, rx));
            for number in 0..3 {
                let sent = sender.send(&VirtioNetHdr::default(), &[number; 60]);
                assert!(sent.unwrap());
            }
            receiver.post(3).unwrap();
            let _ = sender.virtqueue().publish();
            let _ = receiver.virtqueue().publish();
            let device = |queue: &Virtqueue, own| {
                leave_used_index(&guest, queue, base.wrapping_add(stale));
                let ring = guest.device_side(queue.layout(), MODERN);
                let at = ring.resume_at(base.into(), own).unwrap();
                assert_eq!(at, u32::from(base), "stale {stale}");
                (ring, at)
            };
            let negotiated = Features::new(MODERN);
            let (ring, at) = device(sender.virtqueue(), false);
            let mut tx = GuestTx::new(ring, negotiated, Arc::default(), at).unwrap();
            let (ring, at) = device(receiver.virtqueue(), true);
            let rx = GuestRx::new(ring, negotiated, Arc::default(), at, 1).unwrap();
            assert_eq!(sender.reap().unwrap(), 0);
            assert_eq!(receiver.receive().unwrap().len(), 0);
            let mut burst = Burst::new();
            assert_eq!(tx.receive(&mut burst), 3);
            let outcome = rx.deliver(0, &burst, &all(&burst), &mut RxScratch::default());
            tx.complete();
            assert_eq!((outcome.frames, sender.reap().unwrap()), (3, 3));
            let got = receiver.receive().unwrap();
            assert!(got.iter().map(|(_, bytes)| bytes[0]).eq(0..3));
        }
    }
}

/// If the used index is valid, it is what the driver has seen, whatever the front end says; and the case where neither
/// is valid.
#[test]
fn a_used_index_that_the_driver_can_have_seen_is_gone_on_from() {
    for (base, used, offered) in [(0, 1000, 1003), (1000, 1002, 1003), (7, 900, 300)] {
        let mut guest = Guest::new(0x1_0000);
        let (ring, device) = guest.ring(8, 0, MODERN);
        let layout = ring.layout();
        for (at, index) in [(layout.used, used), (layout.available, offered)] {
            guest
                .memory
                .write(at + 2, &u16::to_le_bytes(index))
                .unwrap();
        }
        let device = Ring::from(device);
        for own in [false, true] {
            assert_eq!(device.resume_at(base, own), Ok(used.into()));
        }
    }
}
