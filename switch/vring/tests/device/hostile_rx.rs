//! A guest that breaks the rules of its receive ring: the result is a fault or a dropped frame, never a panic or an
//! endless loop, and all copies are counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, HeaderOp, Offload, Segment, TxEntry};
use crosspoint_vring::{Features, GuestRx, Outcome, RingFault, RxScratch, feature};

use crate::world::{BASE, Guest, MODERN, Random, all, bounded};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const LEN: usize = 0x100_0000;
/// Far more time than needed, and far less than a blocked worker would take.
const LONG: Duration = Duration::from_millis(2);
const END: u64 = BASE + LEN as u64;

struct Rx {
    guest: Guest,
    ring: crosspoint_guest::SplitRing,
    rx: GuestRx,
    scratch: RxScratch,
    /// Whether the ring has buffers that are returned empty.
    has_unusable: bool,
    area: u64,
    avail: u16,
}

impl Rx {
    fn new(size: u16, features: u64) -> Rx {
        let mut guest = Guest::new(LEN);
        let (ring, device) = guest.ring(size, 0, features);
        let rx = GuestRx::new(device, Features::new(features), Arc::default(), 0, 1).unwrap();
        let area = guest.take(0x4_0000);
        Rx {
            guest,
            ring,
            rx,
            scratch: RxScratch::default(),
            has_unusable: false,
            area,
            avail: 0,
        }
    }

    fn offer(&mut self, head: u16) -> &mut Rx {
        let slot = self.avail & (self.ring.layout().size - 1);
        self.ring.set_avail(slot, head);
        self.avail = self.avail.wrapping_add(1);
        self.ring.set_avail_idx(self.avail);
        self
    }

    /// Delivers `count` frames of `len` bytes; all are counted.
    fn deliver(&mut self, count: usize, len: usize) -> Result<Outcome, RingFault> {
        let bytes = Random(len as u64).bytes(len);
        let mut burst = Burst::new();
        for _ in 0..count {
            // SAFETY: `bytes` outlives the burst and is not written.
            let segment = unsafe { Segment::new(bytes.as_ptr(), len as u32) };
            assert!(burst.push_contiguous(segment, Offload::default()));
        }
        let before = self.ring.used_idx();
        self.scratch.begin_burst();
        let outcome = self.rx.deliver(0, &burst, &all(&burst), &mut self.scratch);
        let Outcome {
            frames,
            full,
            small,
            contended,
            costly,
            faulty,
            ..
        } = outcome;
        assert_eq!(
            frames + full + small + contended + costly + faulty,
            count as u32,
            "{outcome:?}"
        );
        assert_eq!(contended, 0);
        if frames == 0 && !self.has_unusable {
            assert_eq!(
                self.ring.used_idx(),
                before,
                "a dropped frame takes no buffer"
            );
        }
        let fault = self.scratch.take_fault();
        assert_eq!(fault.is_some(), faulty > 0);
        fault.map_or(Ok(outcome), Err)
    }
}

fn full(outcome: Result<Outcome, RingFault>) -> u32 {
    outcome.expect("no fault").full
}

/// Delivers one frame of 100 bytes into the chain at head 0 of a ring of 8, with all features negotiated.
fn chain(write: impl FnOnce(&mut Rx) + Send + 'static) -> Result<Outcome, RingFault> {
    bounded(10, || {
        let mut rx = Rx::new(8, MODERN | feature::INDIRECT_DESC);
        write(&mut rx);
        rx.offer(0).deliver(1, 100)
    })
}

fn delivered(outcome: Result<Outcome, RingFault>) -> bool {
    outcome.expect("no fault").frames == 1
}

#[test]
fn the_available_index_jumps_by_more_than_the_ring() {
    for ahead in [9, 100, 32_768, 65_535] {
        let mut rx = Rx::new(8, MODERN);
        rx.ring.set_avail_idx(ahead);
        assert_eq!(
            rx.deliver(3, 60),
            Err(RingFault::AvailJump { ahead, size: 8 })
        );
    }
}

/// The driver ignores the used ring: it may make returned buffers available again, and no more.
#[test]
fn more_is_offered_than_was_given_back() {
    let mut rx = Rx::new(8, MODERN);
    rx.ring.write_desc(0, rx.area, 2048, WRITE, 0);
    for _ in 0..10 {
        (0..8).for_each(|_| _ = rx.offer(0));
        assert_eq!(rx.deliver(5, 60).unwrap().frames, 5);
        assert_eq!(rx.deliver(5, 60).map(|o| (o.frames, o.full)), Ok((3, 2)));
    }
    (0..9).for_each(|_| _ = rx.offer(0));
    assert_eq!(
        rx.deliver(1, 60),
        Err(RingFault::AvailJump { ahead: 9, size: 8 })
    );
}

#[test]
fn the_used_index_is_overwritten() {
    let mut rx = Rx::new(8, MODERN);
    rx.ring.write_desc(0, rx.area, 2048, WRITE, 0);
    for i in 0..100u16 {
        rx.guest
            .memory
            .write(
                rx.ring.layout().used + 2,
                &(i.wrapping_mul(7919)).to_le_bytes(),
            )
            .unwrap();
        (0..4).for_each(|_| _ = rx.offer(0));
        assert_eq!(rx.deliver(4, 60).unwrap().frames, 4);
    }
}

#[test]
fn a_head_or_a_next_is_out_of_range() {
    for index in [8, 32_767, 65_535] {
        let mut rx = Rx::new(8, MODERN);
        assert_eq!(
            rx.offer(index).deliver(1, 60),
            Err(RingFault::DescriptorIndex { index, size: 8 })
        );
        let got = chain(move |rx| rx.ring.write_desc(0, rx.area, 40, WRITE | NEXT, index));
        assert_eq!(got, Err(RingFault::DescriptorIndex { index, size: 8 }));
    }
}

#[test]
fn a_chain_is_a_loop_or_too_long() {
    for (links, len) in [(1, 40), (1, 0), (3, 40), (8, 4), (8, 0)] {
        let got = chain(move |rx| {
            for i in 0..links {
                rx.ring
                    .write_desc(i, rx.area, len, WRITE | NEXT, (i + 1) % links);
            }
        });
        assert_eq!(got, Err(RingFault::ChainTooLong { size: 8 }));
    }
}

#[test]
fn a_table_is_in_the_wrong_place_or_has_an_impossible_length() {
    let got = chain(|rx| rx.ring.write_desc(0, rx.area, 16, INDIRECT | NEXT, 1));
    assert_eq!(got, Err(RingFault::IndirectPlace));
    for len in [0, 17, 1025 * 16, u32::MAX] {
        let got = chain(move |rx| rx.ring.write_desc(0, rx.area, len, INDIRECT, 0));
        assert_eq!(got, Err(RingFault::IndirectLength { len, size: 1024 }));
    }
    let mut rx = Rx::new(8, MODERN);
    rx.ring.write_desc(0, rx.area, 16, INDIRECT, 0);
    assert_eq!(rx.offer(0).deliver(1, 60), Err(RingFault::IndirectPlace));
}

#[test]
fn an_address_is_outside_the_memory() {
    for (address, len) in [
        (END - 99, 200),
        (END, 1),
        (BASE - 1, 200),
        (0, 200),
        (u64::MAX, 1),
        (u64::MAX - 50, 200),
        (BASE, u32::MAX),
    ] {
        let got = chain(move |rx| rx.ring.write_desc(0, address, len, WRITE, 0));
        assert_eq!(got, Err(RingFault::Address { address, len }));
    }
}

#[test]
fn a_receive_buffer_is_read_only() {
    for i in 0..3 {
        let got = chain(move |rx| {
            for j in 0..3 {
                let flags = if i == j { 0 } else { WRITE } | if j < 2 { NEXT } else { 0 };
                rx.ring.write_desc(j, rx.area, 100, flags, j + 1);
            }
        });
        assert_eq!(got, Err(RingFault::Direction));
    }
}

/// One bad buffer among good ones: frames before it may be delivered or not, but each is counted once.
#[test]
fn the_last_buffer_of_many_is_broken() {
    let mut rx = Rx::new(64, MODERN);
    rx.ring.write_desc(0, rx.area, 2048, WRITE, 0);
    (0..40).for_each(|_| _ = rx.offer(0));
    rx.offer(64);
    let broken = Err(RingFault::DescriptorIndex {
        index: 64,
        size: 64,
    });
    assert_eq!(rx.deliver(30, 60).unwrap().frames, 30);
    // Ten good ones, and nothing after the broken one.
    assert_eq!(rx.deliver(20, 60), broken);
    assert_eq!(rx.ring.used_idx(), 40);
    assert_eq!(rx.deliver(1, 60), broken);
}

#[test]
fn descriptors_are_empty() {
    // They are ignored.
    assert!(delivered(chain(|rx| {
        for (i, len) in [0, 12, 0, 0, 60, 0, 40, 0].into_iter().enumerate() {
            let address = if len == 0 {
                u64::MAX - i as u64
            } else {
                rx.area + 100 * i as u64
            };
            rx.ring.write_desc(
                i as u16,
                address,
                len,
                WRITE | if i < 7 { NEXT } else { 0 },
                i as u16 + 1,
            );
        }
    })));
    // The ring has only empty buffers.
    for features in [MODERN, feature::VERSION_1, 0] {
        let mut rx = Rx::new(8, features);
        rx.has_unusable = true;
        rx.ring.write_desc(0, rx.area, 0, WRITE, 0);
        (0..8).for_each(|_| _ = rx.offer(0));
        let outcome = rx.deliver(5, 60).expect("no fault");
        assert_eq!(outcome.full, 5);
        // The driver gets its buffers back, empty.
        assert_eq!(rx.ring.used_idx(), 8);
        assert!((0..8).all(|slot| rx.ring.used_element(slot) == (0, 0)));
    }
}

#[test]
fn buffers_are_shorter_than_the_header() {
    for len in 1..12 {
        for features in [feature::VERSION_1, 0] {
            let mut rx = Rx::new(64, features);
            rx.has_unusable = true;
            rx.ring.write_desc(0, rx.area, len, WRITE, 0);
            (0..64).for_each(|_| _ = rx.offer(0));
            let outcome = rx.deliver(5, 60).expect("no fault");
            let header = if features == 0 { 10 } else { 12 };
            let expected = if len < header { (5, 0) } else { (0, 5) };
            assert_eq!((outcome.full, outcome.small), expected, "{len}");
        }
        // Mergeable: they are returned empty, and the frame gets the next buffer.
        let mut rx = Rx::new(64, MODERN);
        for i in 0..64 {
            let (at, len) = match i {
                40 => (0x1000, 1000),
                _ => (u64::from(i) * u64::from(len), len),
            };
            rx.ring.write_desc(i, rx.area + at, len, WRITE, 0);
            rx.offer(i);
        }
        let outcome = rx.deliver(1, 40).unwrap();
        assert_eq!((outcome.frames, rx.ring.used_idx()), (1, 41));
        assert!((0..40).all(|slot| rx.ring.used_element(slot) == (slot.into(), 0)));
        assert_eq!(rx.ring.used_element(40), (40, 52));
        let mut got = [0; 52];
        rx.guest.memory.read(rx.area + 0x1000, &mut got).unwrap();
        assert_eq!(
            (&got[12..], &got[10..12]),
            (&Random(40).bytes(40)[..], &[1, 0][..])
        );
    }
}

#[test]
fn frames_are_too_short_or_too_long() {
    // `parse` drops these; if one reached delivery, nothing else would happen.
    let mut rx = Rx::new(8, feature::VERSION_1);
    rx.ring.write_desc(0, rx.area, 0x4_0000, WRITE, 0);
    for len in [0, 1, 13, 65_551, 200_000] {
        rx.offer(0);
        let outcome = rx.deliver(1, len).expect("no fault");
        assert_eq!((outcome.frames, outcome.bytes), (1, len as u64));
    }
    rx.offer(0);
    let mut burst = Burst::new();
    assert!(burst.push_oversize());
    for tag in [HeaderOp::Keep, HeaderOp::Push, HeaderOp::Pop] {
        let outcome = rx
            .rx
            .deliver(0, &burst, &[TxEntry { frame: 0, tag }], &mut rx.scratch);
        assert_eq!(outcome.frames, 1);
        rx.offer(0);
    }
}

#[test]
fn a_pick_names_no_frame() {
    let mut rx = Rx::new(8, MODERN);
    rx.ring.write_desc(0, rx.area, 2048, WRITE, 0);
    rx.offer(0);
    let burst = Burst::new();
    let outcome = rx.rx.deliver(
        0,
        &burst,
        &[TxEntry {
            frame: 63,
            tag: HeaderOp::Keep,
        }],
        &mut rx.scratch,
    );
    assert_eq!((outcome.frames, rx.ring.used_idx()), (0, 0));
    assert_eq!(
        outcome.full + outcome.small + outcome.contended + outcome.faulty,
        1
    );
}

/// A buffer of very many pieces is used, whatever is next to it; one of too many is a fault.
#[test]
fn a_buffer_has_thousands_of_pieces() {
    for (features, pieces) in [MODERN, feature::VERSION_1]
        .into_iter()
        .flat_map(|features| [19, 1000, 1024, 1025, 5000].map(|pieces| (features, pieces)))
    {
        let got = bounded(20, move || {
            let mut rx = Rx::new(8192, features);
            for i in 0..pieces {
                let flags = WRITE | if i + 1 < pieces { NEXT } else { 0 };
                rx.ring
                    .write_desc(i, rx.area + 16 * u64::from(i), 100, flags, i + 1);
            }
            rx.ring.write_desc(8000, rx.area, 1000, WRITE | NEXT, 8001);
            rx.ring.write_desc(8001, rx.area + 1000, 1000, WRITE, 0);
            rx.ring.write_desc(8002, rx.area, 2000, WRITE, 0);
            for _ in 0..8 {
                rx.offer(8002).offer(0).offer(8000).offer(0);
            }
            rx.deliver(BURST.min(32), 1500)
        });
        if pieces <= 1024 {
            let outcome = got.expect("no fault");
            let all = BURST.min(32) as u32;
            assert_eq!((outcome.frames + outcome.costly, outcome.small), (all, 0));
            // Beyond the burst's work they are dropped as costly.
            assert_eq!(outcome.costly == 0, pieces == 19, "{outcome:?}");
            assert!(
                outcome.frames > 0 && outcome.work + outcome.excess <= 150_000,
                "{outcome:?}"
            );
        } else {
            assert_eq!(got, Err(RingFault::ChainTooLong { size: 1024 }));
        }
    }
}

/// The burst's first frame does not fit the available buffers. It is dropped; the small ones after it need not be.
#[test]
fn a_frame_that_never_fits_does_not_take_others_with_it() {
    let mut rx = Rx::new(8, MODERN);
    rx.ring.write_desc(0, rx.area, 2048, WRITE, 0);
    (0..8).for_each(|_| _ = rx.offer(0));
    let (long, short) = (vec![0u8; 65_000], [0u8; 60]);
    let mut burst = Burst::new();
    for bytes in [&long[..], &short, &short] {
        // SAFETY: both outlive the burst and are not written.
        let segment = unsafe { Segment::new(bytes.as_ptr(), bytes.len() as u32) };
        assert!(burst.push_contiguous(segment, Offload::default()));
    }
    let outcome = rx.rx.deliver(0, &burst, &all(&burst), &mut rx.scratch);
    assert_eq!(outcome.frames, 2, "eight buffers were free: {outcome:?}");
}

/// Every other port waits while a worker walks chains: the greatest number of the longest possible chains must not take
/// long.
#[test]
fn the_longest_chains_do_not_hold_a_worker() {
    let cases = [MODERN, feature::VERSION_1].into_iter();
    for (features, len) in
        cases.flat_map(|features| [1000, 1024, 32_768].map(|len| (features, len)))
    {
        let best = bounded(30, move || {
            let mut rx = Rx::new(32_768, features);
            rx.has_unusable = true;
            for i in 0..len {
                let flags = WRITE | if i < len - 1 { NEXT } else { 0 };
                rx.ring.write_desc(i, 0, 0, flags, i + 1);
            }
            (0..4096).for_each(|_| _ = rx.offer(0));
            let one = |rx: &mut Rx| {
                let start = Instant::now();
                if let Ok(outcome) = rx.deliver(BURST, 60) {
                    assert_eq!(outcome.full + outcome.costly, BURST as u32);
                }
                start.elapsed()
            };
            (0..5).map(|_| one(&mut rx)).min().unwrap()
        });
        println!("features {features:#x}: a burst of chains of {len} takes {best:?}");
        assert!(best < LONG, "features {features:#x}: {best:?}");
    }
}

/// An empty ring is no fault.
#[test]
fn nothing_was_ever_offered() {
    for size in [1, 2, 256, 32_768] {
        assert_eq!(full(Rx::new(size, MODERN).deliver(BURST, 60)), BURST as u32);
    }
}
