//! A guest that breaks the rules of its transmit ring: the result is a fault or a dropped frame, never a panic or an
//! endless loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_frame::{BURST, Burst, Offload};
use crosspoint_packet::{ETHERNET_LEN, MAX_FRAME_LEN};
use crosspoint_vring::{Features, GuestTx, RingFault, feature};

use crate::world::{BASE, Guest, MODERN, bounded};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Size of the guest's memory in bytes, smaller than its address space.
const LEN: usize = 0x40_0000;
/// Far more time than needed, and far less than a blocked worker would take.
const LONG: Duration = Duration::from_millis(1);
const END: u64 = BASE + LEN as u64;

struct Tx {
    guest: Guest,
    ring: crosspoint_guest::SplitRing,
    tx: GuestTx,
    burst: Burst,
    /// Guest address of 256 KiB for frames.
    area: u64,
    avail: u16,
}

impl Tx {
    fn new(size: u16, features: u64) -> Tx {
        let mut guest = Guest::new(LEN);
        let (ring, device) = guest.ring(size, 0, features);
        let tx = GuestTx::new(device, Features::new(features), Arc::default(), 0).unwrap();
        let area = guest.take(0x4_0000);
        Tx {
            guest,
            ring,
            tx,
            burst: Burst::new(),
            area,
            avail: 0,
        }
    }

    /// Makes `head` available.
    fn offer(&mut self, head: u16) -> &mut Tx {
        let slot = self.avail & (self.ring.layout().size - 1);
        self.ring.set_avail(slot, head);
        self.avail = self.avail.wrapping_add(1);
        self.ring.set_avail_idx(self.avail);
        self
    }

    /// Writes a table of descriptors at `area + at`.
    fn table(&self, at: u64, descriptors: &[(u64, u32, u16, u16)]) -> u64 {
        let bytes: Vec<u8> = descriptors
            .iter()
            .flat_map(|(address, len, flags, next)| {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&address.to_le_bytes());
                bytes[8..12].copy_from_slice(&len.to_le_bytes());
                bytes[12..14].copy_from_slice(&flags.to_le_bytes());
                bytes[14..].copy_from_slice(&next.to_le_bytes());
                bytes
            })
            .collect();
        self.guest.memory.write(self.area + at, &bytes).unwrap();
        self.area + at
    }

    fn receive(&mut self) -> Result<usize, RingFault> {
        self.burst.clear();
        match (self.tx.receive(&mut self.burst), self.tx.fault()) {
            (0, Some(fault)) => Err(fault),
            (frames, _) => Ok(frames),
        }
    }

    /// Lengths of the received frames; returns their descriptors.
    fn lens(&mut self) -> Vec<usize> {
        let n = self.receive().expect("no fault");
        self.tx.complete();
        assert_eq!(
            (n, self.ring.used_idx()),
            (self.burst.len(), self.tx.base() as u16)
        );
        self.burst
            .frames()
            .iter()
            .map(|frame| frame.len as usize)
            .collect()
    }
}

/// Runs one chain of a ring of 8, head 0, with all features negotiated.
fn chain(write: impl FnOnce(&mut Tx) + Send + 'static) -> Result<Vec<usize>, RingFault> {
    bounded(10, || {
        let mut tx = Tx::new(8, MODERN | feature::INDIRECT_DESC);
        write(&mut tx);
        tx.offer(0).receive()?;
        Ok(tx
            .burst
            .frames()
            .iter()
            .map(|frame| frame.len as usize)
            .collect())
    })
}

#[test]
fn the_available_index_jumps_by_more_than_the_ring() {
    for ahead in [9, 100, 32_768, 65_535] {
        let mut tx = Tx::new(8, MODERN);
        tx.ring.set_avail_idx(ahead);
        assert_eq!(tx.receive(), Err(RingFault::AvailJump { ahead, size: 8 }));
    }
}

#[test]
fn the_available_index_goes_back() {
    let mut tx = Tx::new(8, MODERN);
    tx.ring.write_desc(0, tx.area, 100, 0, 0);
    assert_eq!(tx.offer(0).offer(0).lens(), [88, 88]);
    tx.ring.set_avail_idx(1);
    assert_eq!(
        tx.receive(),
        Err(RingFault::AvailJump {
            ahead: 65_535,
            size: 8
        })
    );
}

#[test]
fn a_head_is_out_of_range() {
    for index in [8, 9, 32_767, 65_535] {
        let mut tx = Tx::new(8, MODERN);
        assert_eq!(
            tx.offer(index).receive(),
            Err(RingFault::DescriptorIndex { index, size: 8 })
        );
    }
}

#[test]
fn a_next_is_out_of_range() {
    for index in [8, 65_535] {
        let got = chain(move |tx| tx.ring.write_desc(0, tx.area, 40, NEXT, index));
        assert_eq!(got, Err(RingFault::DescriptorIndex { index, size: 8 }));
    }
}

#[test]
fn a_chain_is_a_loop() {
    let got = chain(|tx| {
        for i in 0..3 {
            tx.ring.write_desc(i, tx.area, 40, NEXT, (i + 1) % 3);
        }
    });
    assert_eq!(got, Err(RingFault::ChainTooLong { size: 8 }));
}

#[test]
fn a_descriptor_is_its_own_next() {
    for len in [0, 40, u32::MAX] {
        let got = chain(move |tx| {
            tx.ring
                .write_desc(0, if len > 1000 { 0 } else { tx.area }, len, NEXT, 0)
        });
        assert!(
            matches!(
                got,
                Err(RingFault::ChainTooLong { .. } | RingFault::Address { .. })
            ),
            "{got:?}"
        );
    }
}

#[test]
fn a_chain_is_as_long_as_the_ring_and_longer() {
    for (last_next, flags, expected) in [
        (0, 0, Ok(vec![68])),
        (0, NEXT, Err(RingFault::ChainTooLong { size: 8 })),
    ] {
        let got = chain(move |tx| {
            for i in 0..7 {
                tx.ring.write_desc(i, tx.area, 10, NEXT, i + 1);
            }
            tx.ring.write_desc(7, tx.area, 10, flags, last_next);
        });
        assert_eq!(got, expected);
    }
}

#[test]
fn a_table_has_a_table_in_it() {
    let got = chain(|tx| {
        let inner = tx.table(0, &[(tx.area, 100, 0, 0)]);
        let outer = tx.table(0x100, &[(inner, 16, INDIRECT, 0)]);
        tx.ring.write_desc(0, outer, 16, INDIRECT, 0);
    });
    assert_eq!(got, Err(RingFault::IndirectPlace));
}

#[test]
fn a_table_names_itself() {
    let got = chain(|tx| {
        let table = tx.table(0, &[(tx.area, 16, INDIRECT, 0)]);
        tx.ring.write_desc(0, table, 16, INDIRECT, 0);
    });
    assert_eq!(got, Err(RingFault::IndirectPlace));
}

#[test]
fn a_table_is_a_loop_or_its_next_is_out_of_range() {
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
        let got = chain(move |tx| {
            let table = tx.table(0, &[(tx.area, 20, NEXT, next), (tx.area, 20, NEXT, next)]);
            tx.ring.write_desc(0, table, 32, INDIRECT, 0);
        });
        assert_eq!(got, Err(expected));
    }
}

#[test]
fn a_table_has_an_impossible_length() {
    for len in [0, 1, 15, 17, 1025 * 16, 0x10_0000, u32::MAX] {
        let got = chain(move |tx| tx.ring.write_desc(0, tx.area, len, INDIRECT, 0));
        assert_eq!(got, Err(RingFault::IndirectLength { len, size: 1024 }));
    }
}

#[test]
fn a_table_is_outside_the_memory() {
    for address in [
        0,
        BASE - 1,
        END - 16,
        END - 31,
        END,
        u64::MAX - 15,
        u64::MAX,
    ] {
        let got = chain(move |tx| tx.ring.write_desc(0, address, 32, INDIRECT, 0));
        assert_eq!(got, Err(RingFault::Address { address, len: 32 }));
    }
}

#[test]
fn a_table_lies_at_an_odd_address() {
    let got = chain(|tx| {
        let table = tx.table(
            1,
            &[
                (tx.area + 0x1000, 20, NEXT, 1),
                (tx.area + 0x1000, 92, 0, 0),
            ],
        );
        tx.ring.write_desc(0, table, 32, INDIRECT, 0);
    });
    assert_eq!(
        got,
        Ok(vec![100]),
        "allowed: only the ring's own table has an alignment"
    );
}

#[test]
fn a_table_is_followed_by_a_next() {
    let got = chain(|tx| {
        let table = tx.table(0, &[(tx.area, 100, 0, 0)]);
        tx.ring.write_desc(0, table, 16, INDIRECT | NEXT, 1);
        tx.ring.write_desc(1, tx.area, 100, 0, 0);
    });
    assert_eq!(got, Err(RingFault::IndirectPlace));
}

#[test]
fn a_table_was_not_negotiated() {
    let mut tx = Tx::new(8, MODERN);
    let table = tx.table(0, &[(tx.area, 100, 0, 0)]);
    tx.ring.write_desc(0, table, 16, INDIRECT, 0);
    assert_eq!(tx.offer(0).receive(), Err(RingFault::IndirectPlace));
}

/// virtio 1.2, 2.7.5.3.2: "The device MUST handle the case of zero or more normal chained descriptors followed by a
/// single descriptor with flags&VIRTQ_DESC_F_INDIRECT."
#[test]
fn a_chain_that_ends_in_a_table_is_no_fault() {
    let got = chain(|tx| {
        let table = tx.table(0, &[(tx.area, 60, NEXT, 1), (tx.area, 40, 0, 0)]);
        tx.ring.write_desc(0, tx.area, 12, NEXT, 1);
        tx.ring.write_desc(1, table, 32, INDIRECT, 0);
    });
    assert_eq!(got, Ok(vec![100]));
}

/// virtio 1.2, 2.7.5.3.2: "The device MUST ignore the write-only flag in the descriptor that refers to an indirect
/// table."
#[test]
fn a_table_marked_write_only_is_no_fault() {
    let got = chain(|tx| {
        let table = tx.table(0, &[(tx.area, 112, 0, 0)]);
        tx.ring.write_desc(0, table, 16, INDIRECT | WRITE, 0);
    });
    assert_eq!(got, Ok(vec![100]));
}

#[test]
fn an_address_is_outside_the_memory() {
    let cases = [
        (END - 99, 100),
        (END, 1),
        (BASE - 1, 2),
        (0, 100),
        (u64::MAX, 1),
        (u64::MAX - 50, 100),
        (BASE, u32::MAX),
        (u64::MAX, u32::MAX),
        (1 << 63, 64),
    ];
    for (address, len) in cases {
        for split in [false, true] {
            let got = chain(move |tx| {
                tx.ring.write_desc(0, tx.area, 60, NEXT, 1);
                tx.ring
                    .write_desc(if split { 1 } else { 0 }, address, len, 0, 0);
            });
            assert!(
                matches!(got, Err(RingFault::Address { .. })),
                "{address:#x}+{len:#x}: {got:?}"
            );
        }
    }
}

#[test]
fn an_address_lies_over_a_gap_between_regions() {
    const SIZE: usize = 0x10_0000;
    let gap = BASE + SIZE as u64;
    let mut guest = Guest::with(&[(BASE, SIZE), (gap + 0x1000, SIZE)], 0);
    let (mut ring, device) = guest.ring(8, 0, MODERN);
    let mut tx = GuestTx::new(device, Features::new(MODERN), Arc::default(), 0).unwrap();
    ring.write_desc(0, gap - 100, 0x2000, 0, 0);
    ring.set_avail(0, 0);
    ring.set_avail_idx(1);
    assert_eq!(tx.receive(&mut Burst::new()), 0);
    let fault = RingFault::Address {
        address: gap - 100,
        len: 0x2000,
    };
    assert_eq!(tx.fault(), Some(fault));
}

#[test]
fn a_frame_to_send_is_for_the_device_to_write() {
    for i in 0..3 {
        let got = chain(move |tx| {
            for j in 0..3 {
                let flags = if i == j { WRITE } else { 0 } | if j < 2 { NEXT } else { 0 };
                tx.ring.write_desc(j, tx.area, 40, flags, j + 1);
            }
        });
        assert_eq!(got, Err(RingFault::Direction));
    }
}

#[test]
fn descriptors_are_empty() {
    // Anywhere in a good frame they are ignored. Alone they are a runt, to be dropped.
    let got = chain(|tx| {
        for (i, len) in [0, 12, 0, 0, 60, 0, 28, 0].into_iter().enumerate() {
            // An empty descriptor may have any address.
            let address = if len == 0 {
                u64::MAX - i as u64
            } else {
                tx.area
            };
            tx.ring.write_desc(
                i as u16,
                address,
                len,
                if i < 7 { NEXT } else { 0 },
                i as u16 + 1,
            );
        }
    });
    assert_eq!(got, Ok(vec![88]));
    let got = chain(|tx| {
        for i in 0..8 {
            tx.ring.write_desc(
                i,
                [tx.area, 0, u64::MAX][usize::from(i) % 3],
                0,
                if i < 7 { NEXT } else { 0 },
                i + 1,
            );
        }
    });
    assert_eq!(got, Ok(vec![0]));
}

#[test]
fn a_buffer_is_shorter_than_the_header() {
    for len in 0..12 {
        assert_eq!(
            chain(move |tx| tx.ring.write_desc(0, tx.area, len, 0, 0)),
            Ok(vec![0]),
            "{len} bytes"
        );
        // Its contents are not trusted.
        let mut tx = Tx::new(8, MODERN);
        tx.guest.memory.write(tx.area, &[0xff; 12]).unwrap();
        tx.ring.write_desc(0, tx.area, len, 0, 0);
        tx.offer(0).receive().unwrap();
        assert_eq!(tx.burst.frames()[0].offload, Offload::default());
    }
}

#[test]
fn frames_are_too_short_or_too_long() {
    let max = MAX_FRAME_LEN as u32;
    for len in [0, 1, 13, 14, max, max + 1, max + 12, 0x2_0000] {
        for split in [false, true] {
            let got = chain(move |tx| {
                tx.ring.write_desc(
                    0,
                    tx.area,
                    if split { 12 } else { len + 12 },
                    if split { NEXT } else { 0 },
                    1,
                );
                tx.ring.write_desc(1, tx.area, len, 0, 0);
            });
            // A length for which `parse` drops the frame suffices; a valid length must be right.
            let got = got.expect("no fault")[0];
            if (ETHERNET_LEN..=MAX_FRAME_LEN).contains(&(len as usize)) {
                assert_eq!(got, len as usize);
            } else {
                assert!(
                    !(ETHERNET_LEN..=MAX_FRAME_LEN).contains(&got),
                    "{len} became {got}"
                );
            }
        }
    }
}

/// Chains are followed up to the switch's own limit, which no driver reaches; beyond it: a fault, or an oversize frame.
#[test]
fn a_chain_has_thousands_of_pieces() {
    for pieces in [19, 100, 1024, 1025, 4096, 5000, 8190] {
        let (lens, fault) = bounded(20, move || {
            let mut tx = Tx::new(8192, MODERN);
            for i in 0..pieces {
                let flags = if i + 1 < pieces { NEXT } else { 0 };
                tx.ring
                    .write_desc(i, tx.area + u64::from(i), 1, flags, i + 1);
            }
            tx.ring.write_desc(8191, tx.area, 112, 0, 0);
            // Many at once, each between two plain frames.
            for _ in 0..20 {
                tx.offer(8191).offer(0).offer(8191);
            }
            let mut lens = Vec::new();
            while tx.tx.base() != u32::from(tx.avail) && tx.receive().is_ok() {
                tx.tx.complete();
                lens.extend(tx.burst.frames().iter().map(|frame| frame.len as usize));
            }
            (lens, tx.tx.fault())
        });
        let whole = usize::from(pieces) - 12;
        if pieces <= 1024 {
            assert_eq!((lens, fault), ([100, whole, 100].repeat(20), None));
        } else {
            let long = |fault| matches!(fault, RingFault::ChainTooLong { .. });
            assert!(fault.is_some_and(long), "{pieces} pieces: {lens:?}");
            assert_eq!(lens, [100], "what came before it is no worse for it");
        }
    }
}

#[test]
fn a_chain_adds_up_to_more_than_four_gigabytes() {
    let got = bounded(10, || {
        let mut tx = Tx::new(1024, MODERN);
        for i in 0..1024 {
            let flags = if i < 1023 { NEXT } else { 0 };
            tx.ring.write_desc(i, BASE, LEN as u32, flags, i + 1);
        }
        tx.offer(0).lens()
    });
    assert!(got[0] > MAX_FRAME_LEN);
}

#[test]
fn the_used_index_is_overwritten() {
    let mut tx = Tx::new(8, MODERN);
    tx.ring.write_desc(0, tx.area, 112, 0, 0);
    for i in 0..100u16 {
        tx.guest
            .memory
            .write(
                tx.ring.layout().used + 2,
                &(i.wrapping_mul(7919)).to_le_bytes(),
            )
            .unwrap();
        assert_eq!(tx.offer(0).lens(), [100], "and the index is right again");
    }
}

/// Every other port waits while a worker walks chains: a burst of the longest possible chains must not take long.
#[test]
fn the_longest_chains_do_not_hold_a_worker() {
    for len in [1000, 1024, 32_768] {
        let best = bounded(20, move || {
            let mut tx = Tx::new(32_768, MODERN);
            for i in 0..len {
                let flags = if i < len - 1 { NEXT } else { 0 };
                tx.ring.write_desc(i, 0, 0, flags, i + 1);
            }
            let one = |tx: &mut Tx| {
                (0..2 * BURST).for_each(|_| _ = tx.offer(0));
                let start = Instant::now();
                let _ = tx.receive();
                tx.tx.complete();
                start.elapsed()
            };
            (0..5).map(|_| one(&mut tx)).min().unwrap()
        });
        println!("a burst of chains of {len} takes {best:?}");
        assert!(best < LONG, "{best:?}");
    }
}
