//! Guests for tests of the device side: the driver of `crosspoint-guest` on one side, `crosspoint-vring` on the other,
//! both with the same memfd mapped.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crosspoint_frame::{Burst, HeaderOp, TxEntry};
use crosspoint_guest as guest;
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::{
    ChainSplit, EventFd, Position, RegionLayout, RingLayout, Virtqueue, Window,
};
use crosspoint_memory::{GuestMemory, MemoryCell, RegionSpec};
use crosspoint_vring::{
    Features, GuestRx, GuestTx, InflightRegion, Notifier, PackedRing, Ring, RingAddresses,
    SplitRing, feature,
};

/// Guest physical address of the first region.
pub const BASE: u64 = 0x10_0000;
/// Ring size of an ordinary driver.
pub const MODERN: u64 = feature::VERSION_1 | feature::MRG_RXBUF;
/// The ring layouts, with the features that a driver may negotiate in either.
pub const LAYOUTS: [u64; 4] = [
    0,
    feature::IN_ORDER,
    feature::RING_PACKED,
    feature::RING_PACKED | feature::IN_ORDER,
];

/// A guest's memory, as both sides see it, and how much of it is allocated.
pub struct Guest {
    pub memory: Arc<guest::GuestMemory>,
    pub shared: Arc<MemoryCell>,
    next: u64,
    /// Shared with the switch up to this address.
    pub end: u64,
    /// Whether the switch records the positions of rings in inflight regions.
    pub tracks: bool,
}

impl Guest {
    /// One region of `len` bytes.
    pub fn new(len: usize) -> Guest {
        Guest::with(&[(BASE, len)], 0)
    }

    /// Regions at these guest addresses. The first and last `margin` bytes of each are not shared with the switch. All
    /// allocations are from the first one.
    pub fn with(regions: &[(u64, usize)], margin: u64) -> Guest {
        let layout = |&(guest_base, len)| RegionLayout {
            guest_base,
            len,
            huge_pages: false,
        };
        let memory =
            guest::GuestMemory::new(&regions.iter().map(layout).collect::<Vec<_>>()).unwrap();
        let table = memory.regions().iter().map(|region| {
            let spec = RegionSpec {
                guest_address: region.guest_base() + margin,
                size: region.len() as u64 - 2 * margin,
                user_address: region.user_address() + margin,
                mmap_offset: margin,
            };
            (
                spec,
                File::from(region.file().try_clone_to_owned().unwrap()),
            )
        });
        let shared = MemoryCell::new(Arc::new(GuestMemory::map(table.collect()).unwrap()));
        let first = &memory.regions()[0];
        let (next, end) = (
            first.guest_base() + margin,
            first.guest_base() + first.len() as u64 - margin,
        );
        Guest {
            shared,
            next,
            end,
            tracks: false,
            memory,
        }
    }

    /// Enough for a queue of each kind with these sizes.
    pub fn for_queues(ring_size: u16, frame_len_max: usize, buffer_len: usize) -> Guest {
        let (a, b) = TransmitQueue::memory_len(ring_size, frame_len_max);
        let (c, d) = ReceiveQueue::memory_len(ring_size, buffer_len);
        Guest::new(a + b + c + d + 2 * RingLayout::contiguous_len(ring_size) + 0x1000)
    }

    /// Allocates `len` bytes.
    pub fn take(&mut self, len: usize) -> u64 {
        let address = self.next.next_multiple_of(64);
        self.next = address + len as u64;
        assert!(self.next <= self.end, "a guest too small for its test");
        address
    }

    pub fn window(&mut self, len: usize) -> Window {
        let address = self.take(len);
        self.memory.window(address, len).unwrap()
    }

    /// A new split ring: its driver's side and its device's.
    pub fn ring(&mut self, size: u16, base: u16, features: u64) -> (guest::SplitRing, SplitRing) {
        let layout = RingLayout::contiguous(size, self.take(RingLayout::contiguous_len(size)));
        let event_idx = features & feature::EVENT_IDX != 0;
        let driver = guest::SplitRing::new(&self.memory, layout, base, event_idx).unwrap();
        (driver, self.device_ring(layout, features))
    }

    /// A new packed ring: its driver's side and its device's.
    pub fn packed_ring(
        &mut self,
        size: u16,
        base: Position,
        features: u64,
    ) -> (guest::PackedRing, PackedRing) {
        let layout = RingLayout::contiguous(size, self.take(RingLayout::contiguous_len(size)));
        let event_idx = features & feature::EVENT_IDX != 0;
        let mut driver = guest::PackedRing::new(&self.memory, layout, base, event_idx).unwrap();
        driver.set_in_order(features & feature::IN_ORDER != 0);
        let at = self.addresses(layout);
        let device = PackedRing::new(self.shared.clone(), size.into(), at, event_idx).unwrap();
        (driver, device)
    }

    /// A new ring of the layout that `features` select, which begins after `base` descriptors.
    pub fn virtqueue(&mut self, size: u16, base: u16, features: u64) -> (Virtqueue, Ring) {
        if features & feature::RING_PACKED == 0 {
            let (mut driver, device) = self.ring(size, base, features);
            driver.set_in_order(features & feature::IN_ORDER != 0);
            return (driver.into(), device.into());
        }
        let (driver, device) = self.packed_ring(size, Position::after(base, size), features);
        (driver.into(), device.into())
    }

    fn addresses(&self, layout: RingLayout) -> RingAddresses {
        let user = |address| self.memory.user_address(address).unwrap();
        RingAddresses {
            descriptors: user(layout.descriptors),
            available: user(layout.available),
            used: user(layout.used),
        }
    }

    /// Creates the device's side of a split ring again.
    pub fn device_ring(&self, layout: RingLayout, features: u64) -> SplitRing {
        let event_idx = features & feature::EVENT_IDX != 0;
        let at = self.addresses(layout);
        SplitRing::new(self.shared.clone(), layout.size.into(), at, event_idx).unwrap()
    }

    /// Creates the device's side of a ring of either layout again.
    pub fn device_side(&self, layout: RingLayout, features: u64) -> Ring {
        Ring::new(
            self.shared.clone(),
            layout.size.into(),
            self.addresses(layout),
            Features::new(features),
        )
        .unwrap()
    }

    /// A transmit queue: driver and device. Chains go through tables if `features` has INDIRECT_DESC.
    pub fn transmit(
        &mut self,
        size: u16,
        base: u16,
        features: u64,
        frame_len_max: usize,
    ) -> (TransmitQueue, GuestTx) {
        let (driver, mut device) = self.virtqueue(size, base, features);
        self.track(&mut device, (size, base), features);
        let (area, tables) = TransmitQueue::memory_len(size, frame_len_max);
        let (area, tables) = (self.window(area), self.tables(tables, features));
        let mut queue = TransmitQueue::new(driver, area, tables, ChainSplit::Single, frame_len_max);
        queue.start(header_len(features), features & feature::EVENT_IDX != 0);
        let base = start_of(size, base, features);
        (
            queue,
            GuestTx::new(device, Features::new(features), Arc::default(), base).unwrap(),
        )
    }

    /// A receive queue: driver, with no buffer posted, and device.
    pub fn receive(
        &mut self,
        (size, base): (u16, u16),
        features: u64,
        buffer_len: usize,
        split: ChainSplit,
        workers: usize,
        call: Arc<Notifier>,
    ) -> (ReceiveQueue, GuestRx) {
        let (driver, mut device) = self.virtqueue(size, base, features);
        self.track(&mut device, (size, base), features);
        let (area, tables) = ReceiveQueue::memory_len(size, buffer_len);
        let (area, tables) = (self.window(area), self.tables(tables, features));
        let mut queue = ReceiveQueue::new(driver, area, tables, split, buffer_len);
        let mergeable = features & feature::MRG_RXBUF != 0;
        queue.start(
            header_len(features),
            features & feature::EVENT_IDX != 0,
            mergeable,
        );
        let base = start_of(size, base, features);
        (
            queue,
            GuestRx::new(device, Features::new(features), call, base, workers).unwrap(),
        )
    }

    /// Records the positions of a ring that begins after `base` descriptors in a region of its own, if wanted.
    fn track(&self, device: &mut Ring, (size, base): (u16, u16), features: u64) {
        if self.tracks {
            let packed = features & feature::RING_PACKED != 0;
            let file = InflightRegion::create(1, size, packed).unwrap();
            let len = InflightRegion::len(1, size, packed) as u64;
            let region = InflightRegion::map(&file, (0, len), 1, size, packed).unwrap();
            let queue = Arc::new(region).queue(0, size.into(), packed).unwrap();
            device.track(queue, start_of(size, base, features));
        }
    }

    fn tables(&mut self, len: usize, features: u64) -> Option<Window> {
        (features & feature::INDIRECT_DESC != 0).then(|| self.window(len))
    }
}

/// SET_VRING_BASE's value for a ring that begins after `base` descriptors.
pub fn start_of(size: u16, base: u16, features: u64) -> u32 {
    if features & feature::RING_PACKED == 0 {
        return base.into();
    }
    base_at(Position::after(base, size))
}

/// GET_VRING_BASE's value for a stopped packed ring.
pub fn base_at(position: Position) -> u32 {
    let half = u32::from(position.to_bits());
    half << 16 | half
}

/// The device's position, as the driver can see it.
pub fn device_base(queue: &mut Virtqueue) -> u32 {
    match queue {
        Virtqueue::Split(ring) => ring.used_idx().into(),
        Virtqueue::Packed(ring) => base_at(ring.device_position()),
    }
}

/// By the specification, not by the code under test.
pub fn header_len(features: u64) -> usize {
    if features & (feature::VERSION_1 | feature::MRG_RXBUF) == 0 {
        10
    } else {
        12
    }
}

/// An eventfd, and a notifier that writes to it.
pub fn call() -> (EventFd, Arc<Notifier>) {
    use std::os::fd::AsFd;
    let event = EventFd::new().unwrap();
    let notifier = Notifier::new(Some(event.as_fd().try_clone_to_owned().unwrap()));
    (event, Arc::new(notifier))
}

/// A copy of every frame of the burst, unchanged.
pub fn all(burst: &Burst) -> Vec<TxEntry> {
    (0..burst.len())
        .map(|i| TxEntry {
            frame: i as u8,
            tag: HeaderOp::Keep,
        })
        .collect()
}

/// The expected copy of a frame at a receiver.
pub fn tagged(frame: &[u8], tag: HeaderOp, tci: u16) -> Vec<u8> {
    match tag {
        HeaderOp::Keep => frame.to_vec(),
        HeaderOp::Push => [&frame[..12], &[0x81, 0], &tci.to_be_bytes(), &frame[12..]].concat(),
        HeaderOp::Pop => [&frame[..12], &frame[16..]].concat(),
        HeaderOp::PushBridge => [&frame[..12], &BRIDGE_TAG, &frame[12..]].concat(),
        HeaderOp::PushBoth => tagged(&tagged(frame, HeaderOp::Push, tci), HeaderOp::PushBridge, 0),
        HeaderOp::PopBoth => [&frame[..12], &frame[20..]].concat(),
    }
}

/// The tag of the frames' bridge.
pub const BRIDGE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 0x64];

/// Reproducible pseudo-random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }
}

/// Runs `body`, which must finish within `seconds`: an endless loop is a failure, not a hang.
pub fn bounded<T: Send + 'static>(seconds: u64, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(body()));
    match wait.recv_timeout(Duration::from_secs(seconds)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not done after {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("it ended without sending"))
        }
    }
}
