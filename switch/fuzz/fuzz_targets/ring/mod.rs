//! A ring and its memory, from bytes: whatever the driver writes, bytes outside the shared memory are not touched,
//! every copy is counted, and a broken ring is a fault and not a panic.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use crosspoint_frame::{Burst, HeaderOp, TxEntry};
use crosspoint_guest::{GuestMemory as Driver, RegionLayout};
use crosspoint_memory::{GuestMemory, MemoryCell, RegionSpec};
use crosspoint_vring::{
    Features, GuestRx, GuestTx, Notifier, Ring, RingAddresses, RxScratch, feature,
};

/// Guest address of the shared memory, and its size in two adjacent regions; a third region is elsewhere.
const BASE: u64 = 0x1_0000;
const REGION: usize = 0x8000;
/// Bytes at both ends of each region that are mapped and not shared.
const MARGIN: usize = 0x1000;
const CANARY: u8 = 0xc5;
/// Entries of the rings, by the input's first byte.
const SIZES: [u16; 4] = [1, 4, 16, 64];
/// Bytes of the input that choose the features and where the rings begin.
const ORDERS: usize = 8;

/// The front end's own address of BASE.
const USER: u64 = 0x7000_0000;

/// One guest's memory, from both sides.
struct World {
    driver: Arc<Driver>,
    shared: Arc<MemoryCell>,
}

/// The sender's and the receiver's memory, created once, since mappings for each input would be most of the work.
fn worlds() -> &'static [World; 2] {
    static WORLDS: OnceLock<[World; 2]> = OnceLock::new();
    WORLDS.get_or_init(|| [World::new(), World::new()])
}

impl World {
    fn new() -> World {
        let layout = RegionLayout {
            guest_base: BASE - MARGIN as u64,
            len: 2 * REGION + 2 * MARGIN,
            huge_pages: false,
        };
        let driver = Driver::new(&[layout]).expect("memory");
        let file = || {
            File::from(
                driver.regions()[0]
                    .file()
                    .try_clone_to_owned()
                    .expect("a descriptor"),
            )
        };
        // One file: two regions that are adjacent in guest addresses, and the first one again far away.
        let spec = |guest_address, at: usize| RegionSpec {
            guest_address,
            size: REGION as u64,
            user_address: USER + (guest_address - BASE),
            mmap_offset: (MARGIN + at) as u64,
        };
        let table = vec![
            (spec(BASE, 0), file()),
            (spec(BASE + REGION as u64, REGION), file()),
            (spec(1 << 40, 0), file()),
        ];
        let shared = MemoryCell::new(Arc::new(GuestMemory::map(table).expect("a good table")));
        World { driver, shared }
    }

    /// Fills the memory with the image, and its surroundings with canaries.
    fn fill(&self, image: &[u8]) {
        let mut memory = vec![CANARY; 2 * REGION + 2 * MARGIN];
        memory[MARGIN..MARGIN + 2 * REGION].fill(0);
        let n = image.len().min(2 * REGION);
        memory[MARGIN..MARGIN + n].copy_from_slice(&image[..n]);
        self.driver
            .write(BASE - MARGIN as u64, &memory)
            .expect("in bounds");
    }

    fn assert_margins(&self) {
        for at in [BASE - MARGIN as u64, BASE + 2 * REGION as u64] {
            let mut margin = [0; MARGIN];
            self.driver.read(at, &mut margin).expect("in bounds");
            assert!(
                margin.iter().all(|byte| *byte == CANARY),
                "bytes beyond the shared memory were written"
            );
        }
    }

    /// The ring at the beginning of the memory.
    fn ring(&self, size: u16, features: Features) -> Ring {
        let n = u64::from(size);
        // A packed ring has eight bytes where a split one has its two other areas.
        let split = !features.has(feature::RING_PACKED);
        let available = USER + 16 * n;
        let at = RingAddresses {
            descriptors: USER,
            available,
            used: if split {
                (available + 6 + 2 * n).next_multiple_of(4)
            } else {
                available + 4
            },
        };
        Ring::new(self.shared.clone(), size.into(), at, features).expect("a good place")
    }
}

/// Runs one input, on rings of this layout.
pub fn input(bytes: &[u8], packed: bool) {
    let Some((orders, image)) = bytes.split_first_chunk::<ORDERS>() else {
        return;
    };
    // Half of the image for each.
    let (senders, receivers) = image.split_at(image.len() / 2);
    let [sender, receiver] = worlds();
    sender.fill(senders);
    receiver.fill(receivers);
    run(sender, receiver, orders, packed);
    sender.assert_margins();
    receiver.assert_margins();
}

fn run(sender: &World, receiver: &World, orders: &[u8; ORDERS], packed: bool) {
    let bits = [
        feature::VERSION_1,
        feature::MRG_RXBUF,
        feature::INDIRECT_DESC,
        feature::EVENT_IDX,
        feature::GUEST_CSUM,
        feature::CSUM,
    ];
    let chosen = bits
        .iter()
        .enumerate()
        .filter(|(i, _)| orders[0] & 1 << i != 0);
    let layout = if packed { feature::RING_PACKED } else { 0 };
    let features = Features::new(chosen.map(|(_, bit)| bit).sum::<u64>() | layout);
    let size = |byte: u8| SIZES[usize::from(byte & 3)];
    let tx = sender.ring(size(orders[1]), features);
    let rx = receiver.ring(size(orders[1] >> 2), features);
    // For a packed ring: a position in it, and the wrap counter.
    let base = |at: usize, size: u16| {
        let raw = u16::from_le_bytes([orders[at], orders[at + 1]]);
        u32::from(if packed {
            raw & (0x8000 | (size - 1))
        } else {
            raw
        })
    };
    let call = Arc::new(Notifier::default());
    let (Ok(mut tx), Ok(rx)) = (
        GuestTx::new(tx, features, call.clone(), base(2, size(orders[1]))),
        GuestRx::new(rx, features, call, base(4, size(orders[1] >> 2)), 1),
    ) else {
        return;
    };
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let tag = [HeaderOp::Keep, HeaderOp::Push, HeaderOp::Pop][usize::from(orders[6] % 3)];
    for _ in 0..4 {
        burst.clear();
        let taken = tx.receive(&mut burst);
        assert_eq!(taken, burst.len());
        if taken == 0 {
            break;
        }
        // As in the stages: invalid frames are dropped, and a tag is popped only if there is one.
        let good = |len: u32| (14..=65_554).contains(&len);
        let picks: Vec<TxEntry> = burst
            .frames()
            .iter()
            .enumerate()
            .filter(|(_, frame)| good(frame.len))
            .map(|(i, frame)| match tag {
                HeaderOp::Pop if frame.len < 18 => TxEntry {
                    frame: i as u8,
                    tag: HeaderOp::Keep,
                },
                tag => TxEntry {
                    frame: i as u8,
                    tag,
                },
            })
            .collect();
        let outcome = rx.deliver(0, &burst, &picks, &mut scratch);
        let counted =
            outcome.frames + outcome.full + outcome.small + outcome.contended + outcome.faulty;
        assert_eq!(counted as usize, picks.len(), "{outcome:?}");
        assert_eq!(scratch.take_fault().is_some(), outcome.faulty > 0);
        tx.complete();
        rx.flush(0);
        tx.flush();
    }
    tx.set_kicks(true);
}
