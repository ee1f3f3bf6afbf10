//! Runs the ring code without a file shared by two processes, so that miri can execute it: the test writes what the
//! driver would, through the same memory. `cargo +nightly miri test -p crosspoint-vring --test miri` with
//! `MIRIFLAGS=-Zmiri-disable-isolation`; without miri it is an ordinary test.
#![allow(missing_docs)]
#![cfg(not(loom))]

use std::fs::File;
use std::sync::Arc;

use crosspoint_frame::{Burst, HeaderOp, TxEntry};
use crosspoint_memory::{GuestMemory, MemoryCell, RegionSpec};
use crosspoint_vring::{
    Features, GuestRx, GuestTx, Notifier, Ring, RingAddresses, RxScratch, feature,
};

const LEN: u64 = 0x4000;
const SIZE: u16 = 8;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const TABLE: u64 = 0x300;
const BUFFERS: u64 = 0x1000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const MODERN: u64 =
    feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// An unnamed file of `LEN` bytes.
fn file() -> File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "vring-miri-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(LEN).unwrap();
    file
}

struct Guest {
    memory: Arc<MemoryCell>,
    packed: bool,
}

impl Guest {
    fn new(packed: bool) -> Guest {
        let spec = RegionSpec {
            guest_address: 0,
            size: LEN,
            user_address: 0,
            mmap_offset: 0,
        };
        let memory = GuestMemory::map(vec![(spec, file())]).unwrap();
        Guest {
            memory: MemoryCell::new(Arc::new(memory)),
            packed,
        }
    }

    fn features(&self) -> Features {
        Features::new(MODERN | if self.packed { feature::RING_PACKED } else { 0 })
    }

    fn ring(&self) -> Ring {
        let at = RingAddresses {
            descriptors: 0,
            available: AVAILABLE,
            used: USED,
        };
        Ring::new(self.memory.clone(), SIZE.into(), at, self.features()).unwrap()
    }

    /// SET_VRING_BASE's value for a new ring.
    fn base(&self) -> u32 {
        if self.packed { 0x8000 } else { 0 }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let to = self.memory.get().translate(at, bytes.len() as u32).unwrap();
        // SAFETY: translated for this many bytes just now; no reference to them exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let from = self.memory.get().translate(at, N as u32).unwrap();
        // SAFETY: as in `write`.
        unsafe { from.cast::<[u8; N]>().read_unaligned() }
    }

    /// Writes descriptor `i` of the table at `table`. In a packed ring the next one follows it, and it is available.
    fn descriptor(&self, table: u64, i: u16, (address, len, flags): (u64, u32, u16)) {
        let (third, fourth) = match self.packed {
            true => (i, flags | AVAIL),
            false => (flags, i + 1),
        };
        let at = table + 16 * u64::from(i);
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &third.to_le_bytes());
        self.write(at + 14, &fourth.to_le_bytes());
    }

    /// Makes these chains' heads available, in a split ring.
    fn offer(&self, heads: &[u16]) {
        if !self.packed {
            for (slot, head) in heads.iter().enumerate() {
                self.write(AVAILABLE + 4 + 2 * slot as u64, &head.to_le_bytes());
            }
            self.write(AVAILABLE + 2, &(heads.len() as u16).to_le_bytes());
        }
    }
}

/// Sends a plain frame, one in three pieces, and one in a table, each of 100 bytes, into chains of plain buffers and of
/// a table's buffers.
fn exchange(packed: bool) {
    let (sender, receiver) = (Guest::new(packed), Guest::new(packed));
    for i in 0..0x400 {
        sender.write(BUFFERS + i, &[i as u8]);
    }
    sender.write(BUFFERS, &[0; 12]);
    sender.descriptor(0, 0, (BUFFERS, 112, 0));
    sender.descriptor(0, 1, (BUFFERS, 12, NEXT));
    sender.descriptor(0, 2, (BUFFERS + 12, 61, NEXT));
    sender.descriptor(0, 3, (BUFFERS + 12 + 61, 39, 0));
    sender.descriptor(TABLE, 0, (BUFFERS, 50, NEXT));
    sender.descriptor(TABLE, 1, (BUFFERS + 50, 62, 0));
    sender.descriptor(0, 4, (TABLE, 32, INDIRECT));
    sender.offer(&[0, 1, 4]);
    for i in 0..4 {
        receiver.descriptor(0, i, (BUFFERS + 0x100 * u64::from(i), 40, WRITE));
    }
    receiver.descriptor(TABLE, 0, (BUFFERS + 0x800, 30, WRITE | NEXT));
    receiver.descriptor(TABLE, 1, (BUFFERS + 0x900, 300, WRITE));
    receiver.descriptor(0, 4, (TABLE, 32, INDIRECT));
    receiver.descriptor(0, 5, (BUFFERS + 0xa00, 300, WRITE));
    receiver.offer(&[0, 1, 2, 3, 4, 5]);

    let call = Arc::new(Notifier::default());
    let mut tx = GuestTx::new(
        sender.ring(),
        sender.features(),
        call.clone(),
        sender.base(),
    )
    .unwrap();
    let rx = GuestRx::new(
        receiver.ring(),
        receiver.features(),
        call,
        receiver.base(),
        1,
    )
    .unwrap();
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    assert_eq!(tx.receive(&mut burst), 3, "{:?}", tx.fault());
    assert!(burst.frames().iter().all(|frame| frame.len == 100));
    burst.frames_mut()[1].tci = 7;
    let tags = [HeaderOp::Keep, HeaderOp::Push, HeaderOp::Keep];
    let picks: Vec<TxEntry> = (0..3)
        .map(|i| TxEntry {
            frame: i,
            tag: tags[usize::from(i)],
        })
        .collect();
    let outcome = rx.deliver(0, &burst, &picks, &mut scratch);
    assert_eq!(
        (outcome.frames, scratch.take_fault()),
        (3, None),
        "{outcome:?}"
    );
    tx.complete();
    tx.flush();
    rx.flush(0);
    let sent: Vec<u8> = (12..112).map(|i| i as u8).collect();
    // The last frame is complete in the last buffer.
    assert_eq!(receiver.read::<100>(BUFFERS + 0xa00 + 12)[..], sent[..]);
    // The first frame is in three buffers of forty bytes.
    assert_eq!(receiver.read::<28>(BUFFERS + 12)[..], sent[..28]);
    assert_eq!(receiver.read::<40>(BUFFERS + 0x100)[..], sent[28..68]);
}

#[test]
fn frames_go_through_split_rings() {
    exchange(false);
}

#[test]
fn frames_go_through_packed_rings() {
    exchange(true);
}

/// Chains that break the rules, and addresses beyond the memory's end.
#[test]
fn faults_are_found() {
    for packed in [false, true] {
        let wrong = [
            (0, u32::MAX, 0),
            (LEN - 8, 16, 0),
            (u64::MAX, 1, 0),
            (LEN, 1, 0),
            (BUFFERS, 100, WRITE),
            (LEN - 8, 16, INDIRECT),
            (TABLE, 17, INDIRECT),
        ];
        for descriptor in wrong {
            let guest = Guest::new(packed);
            guest.descriptor(0, 0, descriptor);
            guest.offer(&[0]);
            let mut tx =
                GuestTx::new(guest.ring(), guest.features(), Arc::default(), guest.base()).unwrap();
            assert_eq!(tx.receive(&mut Burst::new()), 0);
            assert!(tx.fault().is_some(), "{descriptor:?}");
        }
    }
}
