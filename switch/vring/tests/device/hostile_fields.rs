//! Headers and buffers with absurd fields: the switch writes only to available buffers, and trusts no field.

use std::sync::Arc;

use crosspoint_frame::{Burst, HeaderOp, Offload, Segment, TxEntry};
use crosspoint_vring::{Features, GuestRx, GuestTx, RingFault, RxScratch, feature};

use crate::world::{BASE, Guest, MODERN, all};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const ALL: u64 = MODERN | feature::INDIRECT_DESC;
const LEN: usize = 0x10_0000;
const CANARY: u8 = 0xc5;

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Receives one frame of 100 bytes into the chain at head 0, which `write` makes; `area` is free memory.
fn receive(
    guest: &mut Guest,
    features: u64,
    offload: Offload,
    write: impl FnOnce(&Guest, &crosspoint_guest::SplitRing, u64),
) -> Result<u32, RingFault> {
    let (mut ring, device) = guest.ring(8, 0, features);
    let area = guest.take(0x2_0000);
    write(guest, &ring, area);
    ring.set_avail(0, 0);
    ring.set_avail_idx(1);
    let rx = GuestRx::new(device, Features::new(features), Arc::default(), 0, 1).unwrap();
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let bytes = [0x11; 100];
    // SAFETY: `bytes` outlives the burst and is not written.
    let segment = unsafe { Segment::new(bytes.as_ptr(), 100) };
    assert!(burst.push_contiguous(segment, offload));
    let outcome = rx.deliver(0, &burst, &all(&burst), &mut scratch);
    scratch.take_fault().map_or(Ok(outcome.frames), Err)
}

fn into_table(table: &[[u8; 16]], address: impl Fn(u64) -> u64) -> Result<u32, RingFault> {
    let mut guest = Guest::new(LEN);
    receive(&mut guest, ALL, Offload::default(), |guest, ring, area| {
        let at = address(area);
        let _ = guest.memory.write(at, &table.concat());
        ring.write_desc(0, at, 16 * table.len() as u32, INDIRECT, 0);
    })
}

#[test]
fn a_receive_table_is_a_loop_or_its_next_is_out_of_range() {
    let here = BASE + 0x1_0000;
    for (next, expected) in [
        (0, RingFault::ChainTooLong { size: 2 }),
        (2, RingFault::DescriptorIndex { index: 2, size: 2 }),
        (
            65_535,
            RingFault::DescriptorIndex {
                index: 65_535,
                size: 2,
            },
        ),
    ] {
        let table = [descriptor(here, 20, WRITE | NEXT, next); 2];
        assert_eq!(into_table(&table, |area| area), Err(expected));
    }
}

#[test]
fn a_receive_table_has_a_table_in_it_or_names_itself() {
    let mut guest = Guest::new(LEN);
    let got = receive(&mut guest, ALL, Offload::default(), |guest, ring, area| {
        guest
            .memory
            .write(area, &descriptor(area, 16, INDIRECT | WRITE, 0))
            .unwrap();
        ring.write_desc(0, area, 16, INDIRECT, 0);
    });
    assert_eq!(got, Err(RingFault::IndirectPlace));
}

#[test]
fn a_receive_table_is_outside_the_memory_or_over_its_end() {
    let end = BASE + LEN as u64;
    for address in [
        0,
        BASE - 1,
        end - 16,
        end - 31,
        end,
        u64::MAX - 15,
        u64::MAX,
    ] {
        let got = into_table(&[descriptor(BASE, 200, WRITE, 0); 2], |_| address);
        assert_eq!(got, Err(RingFault::Address { address, len: 32 }));
    }
}

#[test]
fn a_receive_table_holds_a_buffer_to_read() {
    let table = [
        descriptor(BASE + 0x8000, 100, WRITE | NEXT, 1),
        descriptor(BASE + 0x9000, 100, 0, 0),
    ];
    assert_eq!(into_table(&table, |area| area), Err(RingFault::Direction));
}

#[test]
fn a_receive_table_lies_at_an_odd_address() {
    let table = [descriptor(BASE + 0x8000, 200, WRITE, 0)];
    assert_eq!(into_table(&table, |area| area + 1), Ok(1));
}

#[test]
fn a_receive_buffer_lies_over_a_gap_between_regions() {
    const SIZE: usize = 0x10_0000;
    let gap = BASE + SIZE as u64;
    let mut guest = Guest::with(&[(BASE, SIZE), (gap + 0x1000, SIZE)], 0);
    let got = receive(&mut guest, MODERN, Offload::default(), |_, ring, _| {
        ring.write_desc(0, gap - 50, 0x2000, WRITE, 0);
    });
    assert_eq!(
        got,
        Err(RingFault::Address {
            address: gap - 50,
            len: 0x2000
        })
    );
}

/// One buffer made available twice, or one that overlaps the ring: only this guest loses.
#[test]
fn receive_buffers_lie_over_each_other_and_over_the_ring() {
    let mut guest = Guest::new(LEN);
    let got = receive(&mut guest, MODERN, Offload::default(), |_, ring, _| {
        let at = ring.layout();
        ring.write_desc(0, at.descriptors, 60, WRITE | NEXT, 1);
        ring.write_desc(1, at.used, 10, WRITE | NEXT, 2);
        ring.write_desc(2, at.descriptors, 200, WRITE, 0);
    });
    assert!(got.is_ok(), "{got:?}");
}

/// The header in one descriptor per byte, with empty ones between them.
#[test]
fn a_header_is_in_pieces() {
    let mut guest = Guest::new(LEN);
    let (mut ring, device) = guest.ring(32, 0, MODERN);
    let area = guest.take(0x1000);
    // NEEDS_CSUM, and fields whose bytes all differ.
    guest
        .memory
        .write(area, &[1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
        .unwrap();
    for i in 0..24 {
        ring.write_desc(
            i,
            area + u64::from(i / 2),
            u32::from(1 - i % 2),
            NEXT,
            i + 1,
        );
    }
    ring.write_desc(24, area + 0x100, 60, 0, 0);
    ring.set_avail(0, 0);
    ring.set_avail_idx(1);
    let mut tx = GuestTx::new(device, Features::new(MODERN), Arc::default(), 0).unwrap();
    let mut burst = Burst::new();
    assert_eq!(tx.receive(&mut burst), 1);
    let frame = &burst.frames()[0];
    let expected = Offload {
        needs_csum: true,
        finish: false,
        gso_type: 0,
        hdr_len: 0x0302,
        gso_size: 0x0504,
        csum_start: 0x0706,
        csum_offset: 0x0908,
        any_size: false,
    };
    assert_eq!((frame.len, frame.offload), (60, expected));
}

#[test]
fn a_header_is_for_the_device_to_write() {
    let mut guest = Guest::new(LEN);
    let (mut ring, device) = guest.ring(8, 0, MODERN);
    let area = guest.take(0x1000);
    ring.write_desc(0, area, 12, WRITE | NEXT, 1);
    ring.write_desc(1, area + 12, 60, 0, 0);
    ring.set_avail(0, 0);
    ring.set_avail_idx(1);
    let mut tx = GuestTx::new(device, Features::new(MODERN), Arc::default(), 0).unwrap();
    assert_eq!(tx.receive(&mut Burst::new()), 0);
    assert_eq!(tx.fault(), Some(RingFault::Direction));
}

/// Values at every edge, and values whose sums overflow 16 bits.
const ABSURD: [u16; 12] = [0, 1, 13, 33, 34, 63, 64, 99, 100, 0x7fff, 0xfffe, 0xffff];

/// `parse` drops frames whose offsets are outside the frame. If one reached delivery, the receiver's memory around the
/// buffer would stay unchanged.
#[test]
fn absurd_checksum_offsets_write_nothing_beyond_the_buffers() {
    for features in [MODERN, MODERN | feature::GUEST_CSUM, feature::VERSION_1, 0] {
        let mut guest = Guest::new(0x100_0000);
        for csum_start in ABSURD {
            for csum_offset in ABSURD {
                let offload = Offload {
                    needs_csum: true,
                    finish: false,
                    gso_type: csum_start as u8,
                    hdr_len: csum_offset,
                    gso_size: csum_start,
                    csum_start,
                    csum_offset,
                    any_size: false,
                };
                absurd(&mut guest, features, offload);
            }
        }
    }
}

fn absurd(guest: &mut Guest, features: u64, offload: Offload) {
    let (mut ring, device) = guest.ring(8, 0, features);
    let area = guest.take(0x1000);
    guest.memory.write(area, &[CANARY; 0x1000]).unwrap();
    ring.write_desc(0, area + 0x100, 60, WRITE | NEXT, 1);
    ring.write_desc(1, area + 0x200, 60, WRITE, 0);
    let rx = GuestRx::new(device, Features::new(features), Arc::default(), 0, 1).unwrap();
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let bytes = [0x11; 100];
    // SAFETY: `bytes` outlives the burst and is not written.
    let segment = unsafe { Segment::new(bytes.as_ptr(), 100) };
    assert!(burst.push_contiguous(segment, offload));
    for (turn, tag) in [HeaderOp::Keep, HeaderOp::Push, HeaderOp::Pop]
        .into_iter()
        .enumerate()
    {
        ring.set_avail(turn as u16, 0);
        ring.set_avail_idx(turn as u16 + 1);
        let outcome = rx.deliver(0, &burst, &[TxEntry { frame: 0, tag }], &mut scratch);
        assert_eq!(outcome.frames, 1, "{outcome:?}");
    }
    let mut memory = [0; 0x1000];
    guest.memory.read(area, &mut memory).unwrap();
    let offered = |at: usize| (0x100..0x13c).contains(&at) || (0x200..0x23c).contains(&at);
    let around = (0..0x1000).filter(|at| !offered(*at));
    assert!(
        around.into_iter().all(|at| memory[at] == CANARY),
        "{offload:?}"
    );
}
