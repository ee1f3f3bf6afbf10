//! A guest that breaks the rules of its packed rings: the result is a fault or a dropped frame, never a panic, an
//! endless loop, or a write outside the shared memory.

mod rig;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, Offload, Segment};
use crosspoint_guest::packed::{DESC_F_AVAIL, DESC_F_USED};
use crosspoint_guest::{PackedDescriptor, Position};
use crosspoint_packet::{ETHERNET_LEN, MAX_FRAME_LEN};
use crosspoint_vring::{Features, GuestRx, GuestTx, Outcome, RingFault, RxScratch, feature};

use crate::world::{BASE, Guest, MODERN, Random, all, base_at, bounded};

use rig::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const BOTH: u16 = DESC_F_AVAIL | DESC_F_USED;
const LEN: usize = 0x40_0000;
const END: u64 = BASE + LEN as u64;
const FEATURES: u64 = MODERN | feature::RING_PACKED;
const TABLES: u64 = FEATURES | feature::INDIRECT_DESC;
/// Far more time than needed, and far less than a blocked worker would take.
const LONG: Duration = Duration::from_millis(2);

/// `AVAIL` and `USED` flags of an available descriptor in the first lap.
const FIRST_LAP: u16 = DESC_F_AVAIL;

/// The frame is invisible while its wrap counter is wrong, and visible as soon as it is right.
#[test]
fn a_descriptor_lies_about_the_wrap_counter() {
    for flags in [0, DESC_F_USED, BOTH] {
        let mut tx = Tx::new(8, FEATURES);
        tx.rig.raw(0, (tx.rig.area, 100, 0, flags));
        assert_eq!(tx.receive(), Ok(vec![]));
        assert!(!tx.tx.set_kicks(true));
        tx.rig.put(0, (tx.rig.area, 100, 0, 0));
        assert_eq!(tx.receive(), Ok(vec![88]));
        let mut rx = Rx::new(8, FEATURES);
        rx.rig.raw(0, (rx.rig.area, 200, 0, flags | WRITE));
        assert_eq!(rx.deliver(1, 60).unwrap().full, 1);
    }
}

#[test]
fn descriptors_become_available_before_their_turn() {
    let mut tx = Tx::new(8, FEATURES);
    for slot in [7, 3, 1] {
        tx.rig
            .put(slot, (tx.rig.area, 12 + u32::from(slot) * 100, slot, 0));
        assert_eq!(tx.receive(), Ok(vec![]));
    }
    tx.rig.put(0, (tx.rig.area, 62, 0, 0));
    assert_eq!(tx.receive(), Ok(vec![50, 100]));
    tx.rig.put(2, (tx.rig.area, 212, 2, 0));
    assert_eq!(tx.receive(), Ok(vec![200, 300]));
    let mut rx = Rx::new(8, FEATURES);
    rx.rig.put(1, (rx.rig.area, 200, 1, WRITE));
    assert_eq!(rx.deliver(2, 60).unwrap().full, 2);
    rx.rig.put(0, (rx.rig.area, 200, 0, WRITE));
    assert_eq!(rx.deliver(3, 60).unwrap().frames, 2);
}

/// The device does not take again, in this lap, what it has returned, whatever flags the driver writes.
#[test]
fn used_descriptors_are_flipped_back() {
    let mut tx = Tx::new(8, FEATURES);
    for slot in 0..8 {
        tx.rig.put(slot, (tx.rig.area, 100, slot, 0));
        assert_eq!(tx.receive(), Ok(vec![88]));
        for back in 0..=slot {
            tx.rig.put(back, (tx.rig.area, 100, back, 0));
        }
        let more = tx.receive();
        // Slot 0 follows again, with the counter of the second lap; these flags are of the first lap.
        assert_eq!(more, Ok(vec![]), "slot {slot}");
    }
}

/// A ring whose descriptors are made available for the next lap before they are returned has at most a ring's worth of
/// entries.
#[test]
fn more_is_offered_than_the_ring_holds() {
    let mut tx = Tx::new(8, FEATURES);
    for slot in 0..8 {
        tx.rig.put(slot, (tx.rig.area, 100, slot, 0));
    }
    let n = tx.tx.receive(&mut tx.burst);
    assert_eq!(n, 8);
    for slot in 0..8 {
        tx.rig.raw(slot, (tx.rig.area, 200, slot, DESC_F_USED));
    }
    tx.tx.complete();
    // They were overwritten by the used descriptors.
    assert!((0..8).all(|slot| tx.rig.is_used(slot)));
    assert!((0..100).all(|_| tx.receive().is_ok_and(|lens| lens.len() <= 8)));
}

#[test]
fn a_buffer_id_is_out_of_range() {
    for id in [8, 9, 32_767, 32_768, 65_535] {
        let fault = RingFault::BufferId { id, size: 8 };
        both(
            move |rig, flags| rig.put(0, (rig.area, 200, id, flags)),
            fault,
        );
        both(
            move |rig, flags| {
                rig.put(1, (rig.area, 200, id, flags));
                rig.put(0, (rig.area, 200, 0, flags | NEXT));
            },
            fault,
        );
        both(
            move |rig, flags| {
                let table = rig.table(0, &[(rig.area + 0x100, 200, flags)]);
                rig.put(0, (table, 16, id, INDIRECT));
            },
            fault,
        );
    }
}

/// The same id for all buffers: the device returns the ids that it was given.
#[test]
fn buffers_share_an_id() {
    let mut tx = Tx::new(8, FEATURES);
    (0..8).for_each(|slot| tx.rig.put(slot, (tx.rig.area, 100, 5, 0)));
    assert_eq!(tx.receive(), Ok(vec![88; 8]));
    assert!((0..8).all(|slot| tx.rig.is_used(slot) && tx.rig.ring.read_desc(slot).id == 5));
}

/// A chain may begin in one lap and end in the next: each descriptor has its own lap's counter.
#[test]
fn a_chain_lies_across_the_end_of_the_ring() {
    let base = Position {
        slot: 6,
        wrap: true,
    };
    for (flags, expected) in [
        (DESC_F_USED, Ok(vec![148])),
        (DESC_F_AVAIL, Err(RingFault::ChainCut)),
        (BOTH, Err(RingFault::ChainCut)),
        (0, Err(RingFault::ChainCut)),
    ] {
        let mut tx = Tx::at(8, base, FEATURES);
        tx.rig.raw(0, (tx.rig.area, 40, 3, flags | NEXT));
        tx.rig.raw(1, (tx.rig.area, 40, 3, flags));
        tx.rig.put(7, (tx.rig.area, 40, 3, NEXT));
        tx.rig.put(6, (tx.rig.area, 40, 3, NEXT));
        assert_eq!(tx.receive(), expected);
        if expected.is_ok() {
            assert!(tx.rig.is_used(6) && !tx.rig.is_used(7));
            let next = Position {
                slot: 2,
                wrap: false,
            };
            assert_eq!(tx.tx.base(), base_at(next));
        }
    }
}

#[test]
fn a_chain_goes_on_where_nothing_is_available() {
    for good in 1..8 {
        both(
            move |rig, flags| {
                for slot in (0..good).rev() {
                    rig.put(slot, (rig.area, 40, slot, flags | NEXT));
                }
            },
            RingFault::ChainCut,
        );
    }
}

#[test]
fn a_chain_loops_over_the_whole_ring() {
    for len in [0, 40] {
        both(
            move |rig, flags| {
                for slot in (0..8).rev() {
                    rig.put(
                        slot,
                        (
                            rig.area,
                            if flags == 0 { len } else { 4 },
                            slot,
                            flags | NEXT,
                        ),
                    );
                }
            },
            RingFault::ChainTooLong { size: 8 },
        );
    }
    // As long as the ring, and ending there.
    let got = sent(|rig| {
        for slot in (0..8).rev() {
            rig.put(slot, (rig.area, 40, 2, if slot < 7 { NEXT } else { 0 }));
        }
    });
    assert_eq!(got, Ok(vec![308]));
}

#[test]
fn a_chain_has_more_than_a_thousand_descriptors() {
    for (pieces, fault) in [
        (1024u16, None),
        (1025, Some(RingFault::ChainTooLong { size: 1024 })),
        (4096, Some(RingFault::ChainTooLong { size: 1024 })),
    ] {
        let chain = move |rig: &Rig, flags| {
            for slot in (0..pieces).rev() {
                let next = if slot + 1 < pieces { NEXT } else { 0 };
                rig.put(slot, (rig.area + u64::from(slot), 1, 0, flags | next));
            }
        };
        bounded(20, move || {
            let (mut tx, mut rx) = (Tx::new(4096, FEATURES), Rx::new(4096, FEATURES));
            chain(&tx.rig, 0);
            chain(&rx.rig, WRITE);
            let expected = fault.map_or(Ok(vec![usize::from(pieces) - 12]), Err);
            assert_eq!(tx.receive(), expected);
            let got = rx.deliver(1, 1000).map(|outcome| outcome.frames);
            assert_eq!(got, fault.map_or(Ok(1), Err));
        });
    }
}

#[test]
fn a_table_has_an_impossible_length() {
    for len in [0, 1, 15, 17, 1025 * 16, 0x10_0000, u32::MAX] {
        let fault = RingFault::IndirectLength { len, size: 1024 };
        both(
            move |rig, _| rig.put(0, (rig.area, len, 0, INDIRECT)),
            fault,
        );
    }
}

#[test]
fn a_table_has_a_table_in_it() {
    both(
        |rig, flags| {
            let inner = rig.table(0, &[(rig.area, 100, flags)]);
            let outer = rig.table(0x100, &[(rig.area, 40, flags), (inner, 16, INDIRECT)]);
            rig.put(0, (outer, 32, 0, INDIRECT));
        },
        RingFault::IndirectPlace,
    );
}

/// virtio 1.2, 2.8.19: "A driver MUST NOT set both INDIRECT and NEXT"; and a table is not part of a chain.
#[test]
fn a_table_is_part_of_a_chain() {
    both(
        |rig, flags| {
            let table = rig.table(0, &[(rig.area + 0x100, 200, flags)]);
            rig.put(1, (rig.area, 100, 0, flags));
            rig.put(0, (table, 16, 0, INDIRECT | NEXT));
        },
        RingFault::IndirectPlace,
    );
    both(
        |rig, flags| {
            let table = rig.table(0, &[(rig.area + 0x100, 200, flags)]);
            rig.put(1, (table, 16, 0, INDIRECT));
            rig.put(0, (rig.area, 40, 0, flags | NEXT));
        },
        RingFault::IndirectPlace,
    );
}

#[test]
fn a_table_was_not_negotiated() {
    let (mut tx, mut rx) = (Tx::new(8, FEATURES), Rx::new(8, FEATURES));
    for (rig, flags) in [(&tx.rig, 0), (&rx.rig, WRITE)] {
        let table = rig.table(0, &[(rig.area + 0x100, 200, flags)]);
        rig.put(0, (table, 16, 0, INDIRECT));
    }
    assert_eq!(tx.receive(), Err(RingFault::IndirectPlace));
    assert_eq!(rx.deliver(1, 60), Err(RingFault::IndirectPlace));
}

/// virtio 1.2, 2.8.7: in a table only WRITE counts; that flag is ignored in the descriptor that refers to the table.
#[test]
fn a_table_has_flags_that_mean_nothing() {
    let got = sent(|rig| {
        let table = rig.table(
            1,
            &[(rig.area + 0x100, 52, NEXT | BOTH), (rig.area, 60, NEXT)],
        );
        rig.put(0, (table, 32, 0, INDIRECT | WRITE));
    });
    assert_eq!(got, Ok(vec![100]));
    let got = delivered(|rig| {
        let table = rig.table(
            1,
            &[(rig.area + 0x100, 52, WRITE | NEXT), (rig.area, 60, WRITE)],
        );
        rig.put(0, (table, 32, 0, INDIRECT));
    });
    assert_eq!(got.map(|outcome| outcome.frames), Ok(1));
}

#[test]
fn a_table_is_outside_the_memory() {
    for address in [0, BASE - 1, END - 31, END, u64::MAX - 15, u64::MAX] {
        let fault = RingFault::Address { address, len: 32 };
        both(move |rig, _| rig.put(0, (address, 32, 0, INDIRECT)), fault);
    }
}

#[test]
fn an_address_is_outside_the_memory() {
    for (address, len) in [
        (END - 99, 200),
        (END, 200),
        (BASE - 1, 200),
        (0, 200),
        (u64::MAX, 200),
        (u64::MAX - 50, 100),
        (BASE, u32::MAX),
        (u64::MAX, u32::MAX),
        (1 << 63, 64),
    ] {
        let is_address = |fault: RingFault| matches!(fault, RingFault::Address { .. });
        for slot in [0, 1] {
            let write = move |rig: &Rig, flags| {
                rig.put(1, (rig.area, 60, 0, flags));
                rig.put(0, (rig.area, 60, 0, flags | NEXT));
                let next = if slot == 0 { NEXT } else { 0 };
                rig.put(slot, (address, len, 0, flags | next));
            };
            let why = format!("{address:#x}+{len:#x} in {slot}");
            assert!(
                sent(move |rig| write(rig, 0)).is_err_and(is_address),
                "{why}"
            );
            let got = delivered(move |rig| write(rig, WRITE));
            assert!(got.is_err_and(is_address), "{why}");
        }
    }
}

#[test]
fn an_address_lies_over_a_gap_between_regions() {
    const SIZE: usize = 0x10_0000;
    let gap = BASE + SIZE as u64;
    let mut guest = Guest::with(&[(BASE, SIZE), (gap + 0x1000, SIZE)], 0);
    let (ring, device) = guest.packed_ring(8, Position::START, FEATURES);
    let base = base_at(Position::START);
    let mut tx = GuestTx::new(device, Features::new(FEATURES), Arc::default(), base).unwrap();
    ring.write_desc(
        0,
        PackedDescriptor {
            address: gap - 100,
            len: 0x2000,
            id: 0,
            flags: FIRST_LAP,
        },
    );
    assert_eq!(tx.receive(&mut Burst::new()), 0);
    let fault = RingFault::Address {
        address: gap - 100,
        len: 0x2000,
    };
    assert_eq!(tx.fault(), Some(fault));
}

#[test]
fn a_descriptor_has_the_wrong_direction() {
    for wrong in 0..3 {
        both(
            move |rig, flags| {
                for slot in (0..3).rev() {
                    let flags = if slot == wrong { flags ^ WRITE } else { flags };
                    let next = if slot < 2 { NEXT } else { 0 };
                    rig.put(slot, (rig.area, 40, 0, flags | next));
                }
            },
            RingFault::Direction,
        );
    }
}

#[test]
fn descriptors_are_empty() {
    let fill = |rig: &Rig, flags: u16, lens: [u32; 8]| {
        for slot in (0..8).rev() {
            let len = lens[usize::from(slot)];
            let address = if len == 0 { u64::MAX - 3 } else { rig.area };
            let next = if slot < 7 { NEXT } else { 0 };
            rig.put(slot, (address, len, 0, flags | next));
        }
    };
    let some = [0, 12, 0, 0, 60, 0, 128, 0];
    assert_eq!(sent(move |rig| fill(rig, 0, some)), Ok(vec![188]));
    assert_eq!(sent(move |rig| fill(rig, 0, [0; 8])), Ok(vec![0]));
    let got = delivered(move |rig| fill(rig, WRITE, some));
    assert_eq!(got.map(|outcome| outcome.frames), Ok(1));
    // A whole ring of empty buffers is returned unchanged.
    let mut rx = Rx::new(8, FEATURES);
    rx.has_unusable = true;
    fill(&rx.rig, WRITE, [0; 8]);
    assert_eq!(rx.deliver(1, 60).map(|outcome| outcome.full), Ok(1));
}

#[test]
fn a_buffer_is_shorter_than_the_header() {
    for len in 0..12 {
        let mut tx = Tx::new(8, FEATURES);
        // Its contents are not trusted.
        tx.rig.guest.memory.write(tx.rig.area, &[0xff; 12]).unwrap();
        tx.rig.put(0, (tx.rig.area, len, 0, 0));
        assert_eq!(tx.receive(), Ok(vec![0]), "{len} bytes");
        assert_eq!(tx.burst.frames()[0].offload, Offload::default());
        // Mergeable buffers must have room for the header: others are returned empty.
        let mut rx = Rx::new(64, FEATURES);
        rx.has_unusable = true;
        for slot in (0..64).rev() {
            rx.rig.put(slot, (rx.rig.area, len, slot, WRITE));
        }
        let before = rx.rx.base();
        let outcome = rx.deliver(1, 60).unwrap();
        assert_eq!((outcome.frames, outcome.full), (0, 1), "{len}");
        assert_ne!(rx.rx.base(), before);
    }
}

#[test]
fn a_header_lies_over_several_descriptors() {
    for first in 1..12 {
        let got = sent(move |rig| {
            let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
            let (a, b) = header.split_at(first);
            rig.guest.memory.write(rig.area, a).unwrap();
            rig.guest.memory.write(rig.area + 100, b).unwrap();
            rig.put(2, (rig.area + 200, 60, 0, 0));
            rig.put(1, (rig.area + 100, b.len() as u32, 0, NEXT));
            rig.put(0, (rig.area, a.len() as u32, 0, NEXT));
        });
        assert_eq!(got, Ok(vec![60]));
    }
}

#[test]
fn frames_are_too_short_or_too_long() {
    let max = MAX_FRAME_LEN as u32;
    for len in [0, 1, 13, 14, max, max + 1, max + 12, 0x2_0000] {
        for split in [false, true] {
            let got = sent(move |rig| {
                rig.put(1, (rig.area, len, 0, 0));
                match split {
                    true => rig.put(0, (rig.area, 12, 0, NEXT)),
                    false => {
                        rig.raw(1, (0, 0, 0, 0));
                        rig.put(0, (rig.area, len + 12, 0, 0));
                    }
                }
            });
            // A length for which `parse` drops the frame suffices; a valid length must be right.
            let got = got.expect("no fault")[0];
            let good = ETHERNET_LEN..=MAX_FRAME_LEN;
            assert_eq!(good.contains(&got), good.contains(&(len as usize)), "{len}");
            assert!(!good.contains(&got) || got == len as usize);
        }
    }
}

/// Frames before the fault are forwarded and returned; after it nothing is taken.
#[test]
fn what_comes_before_a_fault_is_no_worse_for_it() {
    let mut tx = Tx::new(8, FEATURES);
    for slot in (0..6).rev() {
        let id = if slot == 3 { 100 } else { slot };
        tx.rig.put(slot, (tx.rig.area, 100, id, 0));
    }
    assert_eq!(tx.receive(), Ok(vec![88; 3]));
    assert_eq!(tx.receive(), Err(RingFault::BufferId { id: 100, size: 8 }));
    assert!((0..3).all(|slot| tx.rig.is_used(slot)));
    assert!((3..6).all(|slot| !tx.rig.is_used(slot)));
    let mut rx = Rx::new(8, FEATURES);
    for slot in (0..6).rev() {
        let id = if slot == 3 { 100 } else { slot };
        rx.rig.put(slot, (rx.rig.area, 200, id, WRITE));
    }
    assert!(rx.deliver(5, 60).is_err());
    assert!((0..3).all(|slot| rx.rig.is_used(slot)));
    assert!((3..6).all(|slot| !rx.rig.is_used(slot)));
}

/// Any value in the driver's event area.
#[test]
fn the_event_area_is_nonsense() {
    bounded(20, || {
        let mut random = Random(7);
        let (mut tx, mut position) = (Tx::new(8, FEATURES | feature::EVENT_IDX), Position::START);
        for _ in 0..10_000 {
            let word = random.next();
            let event = (word as u32).to_le_bytes();
            let layout = tx.rig.ring.layout();
            tx.rig.guest.memory.write(layout.available, &event).unwrap();
            for _ in 0..1 + word % 8 {
                let marks = if position.wrap {
                    DESC_F_AVAIL
                } else {
                    DESC_F_USED
                };
                tx.rig.raw(position.slot, (tx.rig.area, 100, 0, marks));
                position = position.advance(1, 8);
            }
            assert!(!tx.receive().unwrap().is_empty());
            tx.tx.flush();
        }
        assert_eq!(tx.tx.base(), base_at(position));
    });
}

/// Every other port waits while a worker walks chains: a burst of the longest possible chains must not take long.
#[test]
fn the_longest_chains_do_not_hold_a_worker() {
    for (pieces, features) in [
        (1000, FEATURES),
        (1024, FEATURES),
        (1025, FEATURES),
        (1024, TABLES),
    ] {
        let best = bounded(20, move || {
            let one = || {
                let mut tx = Tx::new(32_768, features);
                if features == TABLES {
                    let table = tx.rig.table(0, &[(0, 0, 0); 1024]);
                    (0..BURST as u16)
                        .for_each(|slot| tx.rig.put(slot, (table, 1024 * 16, 0, INDIRECT)));
                } else {
                    for slot in (0..32_768 / pieces * pieces).rev() {
                        let next = if slot % pieces < pieces - 1 { NEXT } else { 0 };
                        tx.rig.put(slot, (0, 0, 0, next));
                    }
                }
                let mut worst = Duration::ZERO;
                for _ in 0..64 {
                    let start = Instant::now();
                    let _ = tx.receive();
                    worst = worst.max(start.elapsed());
                }
                worst
            };
            (0..5).map(|_| one()).min().unwrap()
        });
        println!("a burst of chains of {pieces} takes {best:?}");
        assert!(best < LONG, "{best:?}");
    }
}
