//! A trivial device on the guest's own memory: one queue receives what another transmits. Written from the
//! specification with plain memory reads; shares no code with the driver under test.
#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

pub mod packed;

use crosspoint_guest::{GuestMemory, RingLayout};
use std::sync::Arc;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One ring, read from its head.
pub struct DeviceRing {
    pub memory: Arc<GuestMemory>,
    pub layout: RingLayout,
    pub next: u16,
}

pub type Segment = (u64, u32, u16);

impl DeviceRing {
    pub fn new(memory: &Arc<GuestMemory>, layout: RingLayout, base: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            layout,
            next: base,
        }
    }

    pub fn u16_at(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(address, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub fn available(&self) -> u16 {
        self.u16_at(self.layout.available + 2)
            .wrapping_sub(self.next)
    }

    fn descriptor(&self, table: u64, index: u16) -> (u64, u32, u16, u16) {
        let mut bytes = [0; 16];
        self.memory
            .read(table + 16 * u64::from(index), &mut bytes)
            .unwrap();
        (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        )
    }

    /// Head and segments of the chain `ahead` entries after the next one.
    pub fn chain(&self, ahead: u16) -> (u16, Vec<Segment>) {
        let slot = self.next.wrapping_add(ahead) % self.layout.size;
        let head = self.u16_at(self.layout.available + 4 + 2 * u64::from(slot));
        let (mut table, mut count, mut index) = (self.layout.descriptors, self.layout.size, head);
        let mut segments = Vec::new();
        loop {
            assert!(index < count, "descriptor {index} of a table of {count}");
            assert!(segments.len() < usize::from(self.layout.size));
            let (address, len, flags, next) = self.descriptor(table, index);
            if flags & INDIRECT != 0 {
                assert_eq!(
                    flags, INDIRECT,
                    "2.7.5.3.1: not with NEXT, and WRITE is ignored"
                );
                assert_eq!(table, self.layout.descriptors, "2.7.5.3.1: not nested");
                (table, count, index) = (address, (len / 16) as u16, 0);
                continue;
            }
            segments.push((address, len, flags & WRITE));
            if flags & NEXT == 0 {
                return (head, segments);
            }
            index = next;
        }
    }

    pub fn write_used(&self, at: u16, id: u32, len: u32) {
        let slot = u64::from(at % self.layout.size);
        let element = [id.to_le_bytes(), len.to_le_bytes()].concat();
        self.memory
            .write(self.layout.used + 4 + 8 * slot, &element)
            .unwrap();
    }

    pub fn set_used_idx(&self, index: u16) {
        self.memory
            .write(self.layout.used + 2, &index.to_le_bytes())
            .unwrap();
    }

    pub fn set_used_flags(&self, flags: u16) {
        self.memory
            .write(self.layout.used, &flags.to_le_bytes())
            .unwrap();
    }

    pub fn set_avail_event(&self, index: u16) {
        let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
        self.memory.write(at, &index.to_le_bytes()).unwrap();
    }
}

/// Moves frames from a transmit ring to a receive ring.
pub struct Loopback {
    pub transmit: DeviceRing,
    pub receive: DeviceRing,
    pub mergeable: bool,
    pub dropped: usize,
}

impl Loopback {
    /// Handles all transmitted frames for which there are receive buffers.
    pub fn poll(&mut self) -> usize {
        let mut count = 0;
        while self.transmit.available() > 0 {
            let (head, segments) = self.transmit.chain(0);
            let mut bytes = Vec::new();
            for (address, len, write) in segments {
                assert_eq!(write, 0, "a transmitted buffer is device-readable");
                let at = bytes.len();
                bytes.resize(at + len as usize, 0);
                self.transmit
                    .memory
                    .read(address, &mut bytes[at..])
                    .unwrap();
            }
            if !self.deliver(bytes) {
                break;
            }
            self.transmit
                .write_used(self.transmit.next, u32::from(head), 0);
            self.transmit.next = self.transmit.next.wrapping_add(1);
            self.transmit.set_used_idx(self.transmit.next);
            count += 1;
        }
        count
    }

    fn deliver(&mut self, mut bytes: Vec<u8>) -> bool {
        let mut taken = 0;
        let mut filled = 0;
        let mut writes = Vec::new();
        while filled < bytes.len() {
            if taken == self.receive.available() {
                return false;
            }
            let (head, segments) = self.receive.chain(taken);
            let start = filled;
            for (address, len, write) in segments {
                assert_eq!(write, WRITE, "a receive buffer is device-writable");
                let len = (len as usize).min(bytes.len() - filled);
                writes.push((address, filled, len));
                filled += len;
            }
            self.receive.write_used(
                self.receive.next.wrapping_add(taken),
                u32::from(head),
                (filled - start) as u32,
            );
            taken += 1;
            if !self.mergeable && filled < bytes.len() {
                self.dropped += 1;
                return true;
            }
        }
        if self.mergeable {
            bytes[10..12].copy_from_slice(&taken.to_le_bytes());
        }
        for (address, from, len) in writes {
            self.receive
                .memory
                .write(address, &bytes[from..from + len])
                .unwrap();
        }
        self.receive.next = self.receive.next.wrapping_add(taken);
        self.receive.set_used_idx(self.receive.next);
        true
    }
}
