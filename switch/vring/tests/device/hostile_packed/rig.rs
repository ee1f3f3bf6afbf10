//! A packed ring that a test writes field by field, and what the device makes of it.

use super::*;

/// One ring, its memory, and 256 KiB of that for buffers.
pub(super) struct Rig {
    pub(super) guest: Guest,
    pub(super) ring: crosspoint_guest::PackedRing,
    pub(super) area: u64,
}

impl Rig {
    pub(super) fn new(
        size: u16,
        base: Position,
        features: u64,
    ) -> (Rig, crosspoint_vring::PackedRing) {
        let mut guest = Guest::new(LEN);
        let (ring, device) = guest.packed_ring(size, base, features);
        let area = guest.take(0x4_0000);
        (Rig { guest, ring, area }, device)
    }

    /// Writes a descriptor with these flags.
    pub(super) fn raw(&self, slot: u16, (address, len, id, flags): (u64, u32, u16, u16)) {
        let descriptor = PackedDescriptor {
            address,
            len,
            id,
            flags,
        };
        self.ring.write_desc(slot, descriptor);
    }

    /// Makes a descriptor available in the first lap.
    pub(super) fn put(&self, slot: u16, (address, len, id, flags): (u64, u32, u16, u16)) {
        self.raw(slot, (address, len, id, flags | FIRST_LAP));
    }

    /// Writes a table of descriptors at `area + at`.
    pub(super) fn table(&self, at: u64, descriptors: &[(u64, u32, u16)]) -> u64 {
        let bytes: Vec<u8> = descriptors
            .iter()
            .flat_map(|(address, len, flags)| {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&address.to_le_bytes());
                bytes[8..12].copy_from_slice(&len.to_le_bytes());
                bytes[14..].copy_from_slice(&flags.to_le_bytes());
                bytes
            })
            .collect();
        self.guest.memory.write(self.area + at, &bytes).unwrap();
        self.area + at
    }

    /// Whether a slot is marked used in the first lap.
    pub(super) fn is_used(&self, slot: u16) -> bool {
        self.ring.read_desc(slot).flags & BOTH == BOTH
    }
}

pub(super) struct Tx {
    pub(super) rig: Rig,
    pub(super) tx: GuestTx,
    pub(super) burst: Burst,
}

impl Tx {
    pub(super) fn new(size: u16, features: u64) -> Tx {
        Tx::at(size, Position::START, features)
    }

    pub(super) fn at(size: u16, base: Position, features: u64) -> Tx {
        let (rig, device) = Rig::new(size, base, features);
        let negotiated = Features::new(features);
        let tx = GuestTx::new(device, negotiated, Arc::default(), base_at(base)).unwrap();
        Tx {
            rig,
            tx,
            burst: Burst::new(),
        }
    }

    /// Lengths of the received frames, whose descriptors are returned; or the fault.
    pub(super) fn receive(&mut self) -> Result<Vec<usize>, RingFault> {
        self.burst.clear();
        let n = self.tx.receive(&mut self.burst);
        let frames = self.burst.frames().iter().map(|frame| frame.len as usize);
        let lens: Vec<usize> = frames.collect();
        assert_eq!(lens.len(), n);
        self.tx.complete();
        match self.tx.fault() {
            Some(fault) if n == 0 => Err(fault),
            _ => Ok(lens),
        }
    }
}

/// Result of what `write` puts into a transmit ring of 8, with all features negotiated.
pub(super) fn sent(write: impl FnOnce(&Rig) + Send + 'static) -> Result<Vec<usize>, RingFault> {
    bounded(10, || {
        let mut tx = Tx::new(8, TABLES);
        write(&tx.rig);
        tx.receive()
    })
}

pub(super) struct Rx {
    pub(super) rig: Rig,
    pub(super) rx: GuestRx,
    pub(super) scratch: RxScratch,
    /// Whether the ring has buffers that are returned empty.
    pub(super) has_unusable: bool,
}

impl Rx {
    pub(super) fn new(size: u16, features: u64) -> Rx {
        let (rig, device) = Rig::new(size, Position::START, features);
        let negotiated = Features::new(features);
        let base = base_at(Position::START);
        Rx {
            rig,
            rx: GuestRx::new(device, negotiated, Arc::default(), base, 1).unwrap(),
            scratch: RxScratch::default(),
            has_unusable: false,
        }
    }

    /// Delivers `count` frames of `len` bytes; all are counted.
    pub(super) fn deliver(&mut self, count: usize, len: usize) -> Result<Outcome, RingFault> {
        let bytes = Random(len as u64).bytes(len);
        let mut burst = Burst::new();
        for _ in 0..count {
            // SAFETY: `bytes` outlives the burst and is not written.
            let segment = unsafe { Segment::new(bytes.as_ptr(), len as u32) };
            assert!(burst.push_contiguous(segment, Offload::default()));
        }
        let before = self.rx.base();
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
        let sum = frames + full + small + contended + costly + faulty;
        assert_eq!(sum, count as u32, "{outcome:?}");
        assert_eq!(contended, 0);
        if frames == 0 && !self.has_unusable {
            assert_eq!(self.rx.base(), before, "a dropped frame takes no buffer");
        }
        let fault = self.scratch.take_fault();
        assert_eq!(fault.is_some(), faulty > 0);
        fault.map_or(Ok(outcome), Err)
    }
}

/// Result of delivering one frame of 100 bytes to what `write` puts into a receive ring of 8.
pub(super) fn delivered(write: impl FnOnce(&Rig) + Send + 'static) -> Result<Outcome, RingFault> {
    bounded(10, || {
        let mut rx = Rx::new(8, TABLES);
        write(&rx.rig);
        rx.deliver(1, 100)
    })
}

/// The same fault in both directions. `write` gets the flags of the ring's buffers.
pub(super) fn both(write: impl Fn(&Rig, u16) + Send + Clone + 'static, fault: RingFault) {
    let (to_send, to_receive) = (write.clone(), write);
    assert_eq!(sent(move |rig| to_send(rig, 0)), Err(fault));
    assert_eq!(delivered(move |rig| to_receive(rig, WRITE)), Err(fault));
}
