//! A trivial device on a packed ring, written from virtio 1.2, 2.8, with plain memory reads. It can use buffers in any
//! order, one by one or in batches.

use super::{INDIRECT, NEXT, Segment, WRITE};
use crosspoint_guest::{GuestMemory, RingLayout};
use std::collections::VecDeque;
use std::sync::Arc;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A buffer that the driver has made available.
#[derive(Clone, Debug)]
pub struct Chain {
    pub id: u16,
    /// Descriptors in the ring.
    pub slots: u16,
    pub segments: Vec<Segment>,
}

/// How buffers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One by one, in order.
    Sequence,
    /// One by one, in an order chosen by the seed.
    Shuffled(u64),
    /// One used descriptor for several buffers (`VIRTIO_F_IN_ORDER`).
    Batches,
}

pub struct PackedDevice {
    pub memory: Arc<GuestMemory>,
    pub layout: RingLayout,
    /// Slot and wrap counter.
    pub available: (u16, bool),
    pub used: (u16, bool),
}

impl PackedDevice {
    pub fn new(memory: &Arc<GuestMemory>, layout: RingLayout, base: u16) -> Self {
        let at = (base % layout.size, (base / layout.size).is_multiple_of(2));
        Self {
            memory: Arc::clone(memory),
            layout,
            available: at,
            used: at,
        }
    }

    fn descriptor(&self, table: u64, index: u16) -> (u64, u32, u16, u16) {
        let mut bytes = [0; 16];
        let at = table + 16 * u64::from(index);
        self.memory.read(at, &mut bytes).unwrap();
        (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        )
    }

    fn step(&self, at: (u16, bool), count: u16) -> (u16, bool) {
        (0..count).fold(at, |(slot, wrap), _| {
            if slot + 1 == self.layout.size {
                (0, !wrap)
            } else {
                (slot + 1, wrap)
            }
        })
    }

    /// The next available buffer, if there is one.
    pub fn take(&mut self) -> Option<Chain> {
        let (mut at, mut slots, mut segments) = (self.available, 0, Vec::new());
        loop {
            let (address, len, id, flags) = self.descriptor(self.layout.descriptors, at.0);
            let available = (flags & AVAIL != 0) == at.1 && (flags & USED != 0) != at.1;
            if slots == 0 && !available {
                return None;
            }
            assert!(available, "descriptor {at:?} of a chain is not available");
            (at, slots) = (self.step(at, 1), slots + 1);
            assert!(slots <= self.layout.size, "a chain longer than the ring");
            if flags & INDIRECT != 0 {
                assert_eq!(flags & (NEXT | WRITE), 0, "2.8.19: not with NEXT");
                assert_eq!((slots, len % 16), (1, 0), "an indirect table alone");
                for entry in 0..(len / 16) as u16 {
                    let (address, len, _, flags) = self.descriptor(address, entry);
                    assert_eq!(flags & !WRITE, 0, "2.8.7: only WRITE counts");
                    segments.push((address, len, flags & WRITE));
                }
            } else {
                segments.push((address, len, flags & WRITE));
            }
            if flags & NEXT == 0 {
                self.available = at;
                return Some(Chain {
                    id,
                    slots,
                    segments,
                });
            }
        }
    }

    /// Writes a used descriptor without WRITE, and skips the `slots` that the used buffers took.
    pub fn put(&mut self, id: u16, len: u32, slots: u16) {
        self.put_as(id, len, slots, 0);
    }

    /// The same with WRITE, since data was written (2.8.3).
    pub fn put_written(&mut self, id: u16, len: u32, slots: u16) {
        self.put_as(id, len, slots, WRITE);
    }

    fn put_as(&mut self, id: u16, len: u32, slots: u16, written: u16) {
        let (slot, wrap) = self.used;
        let at = self.layout.descriptors + 16 * u64::from(slot);
        let flags = written | if wrap { AVAIL | USED } else { 0 };
        let bytes = [
            &len.to_le_bytes()[..],
            &id.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat();
        self.memory.write(at + 8, &bytes).unwrap();
        self.used = self.step(self.used, slots);
    }

    /// Uses `buffers`, each given with its number of written bytes. For batches, all but the last must be full.
    pub fn put_all(&mut self, mut buffers: Vec<(Chain, u32)>, order: Order) {
        match order {
            Order::Sequence => {}
            Order::Shuffled(seed) => shuffle(&mut buffers, seed),
            Order::Batches => {
                let slots = buffers.iter().map(|(chain, _)| chain.slots).sum();
                if let Some((last, len)) = buffers.last() {
                    self.put(last.id, *len, slots);
                }
                return;
            }
        }
        for (chain, len) in buffers {
            self.put(chain.id, len, chain.slots);
        }
    }

    pub fn read_event(&self, address: u64) -> (u16, u16) {
        let mut bytes = [0; 4];
        self.memory.read(address, &mut bytes).unwrap();
        (
            u16::from_le_bytes([bytes[0], bytes[1]]),
            u16::from_le_bytes([bytes[2], bytes[3]]),
        )
    }

    /// Writes the device event suppression area.
    pub fn write_event(&self, position: u16, flags: u16) {
        let bytes = [position.to_le_bytes(), flags.to_le_bytes()].concat();
        self.memory.write(self.layout.used, &bytes).unwrap();
    }
}

fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed | 1;
    for i in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, (state >> 33) as usize % (i + 1));
    }
}

/// Moves frames from a transmit ring to a receive ring, in the order in which they were sent.
pub struct PackedLoopback {
    pub transmit: PackedDevice,
    pub receive: PackedDevice,
    pub mergeable: bool,
    pub order: Order,
    /// Taken from the receive ring and not used yet.
    pub pool: VecDeque<Chain>,
    /// Taken from the transmit ring and not delivered yet.
    pub waiting: VecDeque<Chain>,
}

impl PackedLoopback {
    /// Handles all transmitted frames for which there are receive buffers.
    pub fn poll(&mut self) -> usize {
        self.waiting
            .extend(std::iter::from_fn(|| self.transmit.take()));
        self.pool.extend(std::iter::from_fn(|| self.receive.take()));
        if let Order::Shuffled(seed) = self.order {
            let seed = seed ^ self.pool.len() as u64;
            shuffle(self.pool.make_contiguous(), seed);
        }
        let mut done = Vec::new();
        while let Some(chain) = self.waiting.front() {
            let mut bytes = Vec::new();
            for &(address, len, write) in &chain.segments {
                assert_eq!(write, 0, "a transmitted buffer is device-readable");
                let at = bytes.len();
                bytes.resize(at + len as usize, 0);
                let memory = &self.transmit.memory;
                memory.read(address, &mut bytes[at..]).unwrap();
            }
            if !self.deliver(bytes) {
                break;
            }
            done.extend(self.waiting.pop_front().map(|chain| (chain, 0)));
        }
        let count = done.len();
        self.transmit.put_all(done, self.order);
        count
    }

    fn deliver(&mut self, mut bytes: Vec<u8>) -> bool {
        let (mut filled, mut writes, mut used) = (0, Vec::new(), Vec::new());
        for chain in &self.pool {
            let start = filled;
            for &(address, len, write) in &chain.segments {
                assert_eq!(write, WRITE, "a receive buffer is device-writable");
                let len = (len as usize).min(bytes.len() - filled);
                writes.push((address, filled, len));
                filled += len;
            }
            used.push((chain.clone(), (filled - start) as u32));
            if filled == bytes.len() {
                break;
            }
            assert!(self.mergeable, "a frame that fits no buffer");
        }
        if filled < bytes.len() {
            return false;
        }
        if self.mergeable {
            bytes[10..12].copy_from_slice(&(used.len() as u16).to_le_bytes());
        }
        for (address, from, len) in writes {
            let memory = &self.receive.memory;
            memory.write(address, &bytes[from..from + len]).unwrap();
        }
        self.pool.drain(..used.len());
        let order = match self.order {
            Order::Batches => Order::Batches,
            // The buffers of one frame are used in the order in which they were filled.
            _ => Order::Sequence,
        };
        self.receive.put_all(used, order);
        true
    }
}
