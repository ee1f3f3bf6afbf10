//! The data path allocates nothing after start: allocations are counted on the thread that runs it.
#![allow(missing_docs)]
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crosspoint_frame::{BURST, Burst, HeaderOp, TxEntry};
use crosspoint_guest::{Buffer, UsedElement, Virtqueue, Window};
use crosspoint_vring::{Features, GuestRx, GuestTx, RxScratch, feature};

#[path = "device/world.rs"]
mod world;
use world::{Guest, LAYOUTS, MODERN, call, start_of};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded to the system's allocator; the counter is const-initialised and has no destructor, so
// accessing it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const FEATURES: u64 = MODERN | feature::INDIRECT_DESC | feature::EVENT_IDX;

struct Rig {
    sender: crosspoint_guest::SplitRing,
    receiver: crosspoint_guest::SplitRing,
    tx: GuestTx,
    rx: GuestRx,
    burst: Burst,
    picks: Vec<TxEntry>,
    scratch: RxScratch,
    used: [UsedElement; 256],
}

impl Rig {
    fn turn(&mut self) -> usize {
        let frames = self.tx.receive(&mut self.burst);
        self.picks.clear();
        self.picks.extend((0..frames).map(|i| TxEntry {
            frame: i as u8,
            tag: [HeaderOp::Keep, HeaderOp::Push][i % 2],
        }));
        let outcome = self
            .rx
            .deliver(0, &self.burst, &self.picks, &mut self.scratch);
        self.tx.complete();
        self.burst.clear();
        self.tx.flush();
        self.rx.flush(0);
        self.tx.set_kicks(true);
        self.tx.set_kicks(false);
        outcome.frames as usize
    }

    /// The driver's part: makes every used buffer available again. Allocates nothing either.
    fn drive(&mut self) {
        for ring in [&mut self.sender, &mut self.receiver] {
            loop {
                let n = ring.take_used(&mut self.used).unwrap();
                ring.offer(&self.used[..n]);
                if n == 0 {
                    break;
                }
            }
            let _ = ring.publish();
        }
        self.sender.enable_calls().unwrap();
        self.receiver.enable_calls().unwrap();
    }

    fn offer(&mut self, sender: impl Iterator<Item = u16>, receiver: impl Iterator<Item = u16>) {
        for id in sender {
            self.sender.offer(&[UsedElement { id, len: 0 }]);
        }
        for id in receiver {
            self.receiver.offer(&[UsedElement { id, len: 0 }]);
        }
        let _ = (self.sender.publish(), self.receiver.publish());
    }
}

/// Two empty rings.
fn rig() -> (Rig, Guest, Guest) {
    let (mut from, mut to) = (Guest::new(0x100_0000), Guest::new(0x100_0000));
    let ((sender, tx), (receiver, rx)) = (
        from.ring(256, 65_000, FEATURES),
        to.ring(4096, 65_000, FEATURES),
    );
    let ((_, tx_call), (_, rx_call)) = (call(), call());
    let features = Features::new(FEATURES);
    let rig = Rig {
        tx: GuestTx::new(tx, features, tx_call, 65_000).unwrap(),
        rx: GuestRx::new(rx, features, rx_call, 65_000, 2).unwrap(),
        sender,
        receiver,
        burst: Burst::new(),
        picks: Vec::with_capacity(BURST),
        scratch: RxScratch::default(),
        used: [UsedElement::default(); 256],
    };
    (rig, from, to)
}

#[test]
fn a_million_frames_allocate_nothing() {
    std::thread::spawn(|| {
        let (mut rig, mut from, mut to) = rig();
        let area = from.take(0x1_0000);
        for i in 0..64u16 {
            let head = 4 * i;
            match i % 4 {
                // Header in its own descriptor: two pieces.
                1 => {
                    rig.sender.write_desc(head, area, 12, NEXT, head + 1);
                    rig.sender
                        .write_desc(head + 1, area + 100, 60, NEXT, head + 2);
                    rig.sender.write_desc(head + 2, area + 300, 1400, 0, 0);
                }
                // In an indirect table.
                2 => {
                    let table = from.window(32);
                    let entry = |at: u64, len: u32, flags: u16| {
                        [
                            &at.to_le_bytes()[..],
                            &len.to_le_bytes(),
                            &flags.to_le_bytes(),
                            &1u16.to_le_bytes(),
                        ]
                        .concat()
                    };
                    table.view().write(
                        0,
                        &[entry(area, 50, NEXT), entry(area + 500, 300, 0)].concat(),
                    );
                    rig.sender
                        .write_desc(head, table.guest_address(), 32, INDIRECT, 0);
                }
                3 if i == 63 => rig.sender.write_desc(head, area, 30_000, 0, 0),
                _ => rig
                    .sender
                    .write_desc(head, area, 12 + 64 * u32::from(i % 8 + 1), 0, 0),
            }
        }
        let buffers = to.take(1024 * 2048);
        for i in 0..1024u16 {
            let (at, id) = (buffers + 2048 * u64::from(i), 4 * i);
            if i % 3 == 0 {
                rig.receiver.write_desc(id, at, 12, WRITE | NEXT, id + 1);
                rig.receiver.write_desc(id + 1, at + 12, 2036, WRITE, 0);
            } else {
                rig.receiver.write_desc(id, at, 2048, WRITE, 0);
            }
        }
        rig.offer((0..64).map(|i| 4 * i), (0..1024).map(|i| 4 * i));
        // Warm-up.
        assert_eq!(rig.turn(), BURST);
        rig.drive();
        let (before, mut frames) = (allocations(), 0);
        while frames < 1_000_000 {
            let n = rig.turn();
            assert_eq!(n, BURST);
            frames += n;
            rig.drive();
        }
        assert_eq!(allocations() - before, 0);
    })
    .join()
    .unwrap();
}

/// Buffers and frames with the maximum number of pieces: the scratch memory suffices.
#[test]
fn chains_of_thousands_of_pieces_allocate_nothing() {
    std::thread::spawn(|| {
        let (mut rig, mut from, mut to) = rig();
        let (area, buffers) = (from.take(0x1_0000), to.take(0x10_0000));
        for i in 0..8u16 {
            rig.sender.write_desc(i, area, 112, 0, 0);
        }
        // One buffer of 1023 pieces, unlike any real driver's, for one frame; then plain buffers.
        for i in 0..1023u16 {
            let flags = WRITE | if i < 1022 { NEXT } else { 0 };
            rig.receiver
                .write_desc(i, buffers + 16 * u64::from(i), 16, flags, i + 1);
        }
        for i in 4000..4090u16 {
            let at = buffers + 2048 * u64::from(i - 4000);
            rig.receiver.write_desc(i, at, 16, WRITE, 0);
        }
        rig.offer(0..8, [0; 1].into_iter().chain(4000..4090));
        let before = allocations();
        assert_eq!(rig.turn(), 8);
        assert_eq!(allocations() - before, 0);
    })
    .join()
    .unwrap();
}

/// A driver of either layout that makes buffers of all shapes available in turn and allocates nothing.
struct Driver {
    ring: Virtqueue,
    area: u64,
    buffer_len: u32,
    device_writes: bool,
    tables: Vec<Window>,
    count: usize,
}

impl Driver {
    fn new(guest: &mut Guest, ring: Virtqueue, buffer_len: u32, device_writes: bool) -> Driver {
        let size = usize::from(ring.layout().size);
        Driver {
            area: guest.take(0x1_0000),
            tables: (0..size).map(|_| guest.window(32)).collect(),
            ring,
            buffer_len,
            device_writes,
            count: 0,
        }
    }

    /// Takes back used buffers, and fills the ring with available ones.
    fn turn(&mut self) {
        while self.ring.pop_used().unwrap().is_some() {}
        let piece = |at: u64, len: u32| Buffer {
            address: self.area + at,
            len,
            device_writes: self.device_writes,
        };
        let (head, rest) = (self.buffer_len / 3, self.buffer_len - self.buffer_len / 3);
        loop {
            let i = self.count % self.tables.len();
            let added = match i % 4 {
                1 => self
                    .ring
                    .add(&[piece(0, 12), piece(100, head), piece(10_000, rest)]),
                // A frame that needs several of the receiver's buffers.
                2 if i == 2 => self.ring.add(&[piece(0, 4000)]),
                2 => self
                    .ring
                    .add_indirect(&self.tables[i], &[piece(0, head), piece(5000, rest)]),
                _ => self.ring.add(&[piece(0, self.buffer_len)]),
            };
            if added.is_none() {
                break;
            }
            self.count += 1;
        }
        let _ = self.ring.publish();
        self.ring.enable_calls().unwrap();
    }
}

fn a_million_frames(layout: u64) {
    let features = FEATURES | layout;
    let (mut from, mut to) = (Guest::new(0x100_0000), Guest::new(0x100_0000));
    let (sender, tx) = from.virtqueue(256, 250, features);
    let (receiver, rx) = to.virtqueue(1024, 1000, features);
    let mut sender = Driver::new(&mut from, sender, 212, false);
    let mut receiver = Driver::new(&mut to, receiver, 1500, true);
    let ((_, tx_call), (_, rx_call)) = (call(), call());
    let negotiated = Features::new(features);
    let tx_base = start_of(256, 250, features);
    let mut tx = GuestTx::new(tx, negotiated, tx_call, tx_base).unwrap();
    let rx_base = start_of(1024, 1000, features);
    let rx = GuestRx::new(rx, negotiated, rx_call, rx_base, 2).unwrap();
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let mut picks = Vec::with_capacity(BURST);
    let (mut before, mut frames) = (0, 0);
    while frames < 1_000_000 {
        sender.turn();
        receiver.turn();
        let n = tx.receive(&mut burst);
        picks.clear();
        picks.extend((0..n).map(|i| TxEntry {
            frame: i as u8,
            tag: [HeaderOp::Keep, HeaderOp::Push][i % 2],
        }));
        let outcome = rx.deliver(0, &burst, &picks, &mut scratch);
        tx.complete();
        burst.clear();
        tx.flush();
        rx.flush(0);
        tx.set_kicks(true);
        tx.set_kicks(false);
        assert_eq!(outcome.frames as usize, n, "{outcome:?}");
        assert!(n > 0);
        if frames == 0 {
            before = allocations();
        }
        frames += n;
    }
    assert_eq!(allocations() - before, 0);
}

#[test]
fn a_million_frames_allocate_nothing_in_either_layout() {
    for layout in LAYOUTS {
        std::thread::spawn(move || a_million_frames(layout))
            .join()
            .unwrap();
    }
}
