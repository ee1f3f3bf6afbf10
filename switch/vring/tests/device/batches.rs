//! Descriptors that are held beyond their burst and returned later, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use crosspoint_frame::Burst;
use crosspoint_guest::queue::TransmitQueue;
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_vring::{Batch, Features, GuestTx, InflightRegion, feature};
use proptest::prelude::*;

use crate::world::{Guest, LAYOUTS, MODERN, Random, device_base};

/// A driver, a device, and their expected state.
struct Held {
    guest: Guest,
    features: u64,
    size: u16,
    driver: TransmitQueue,
    device: GuestTx,
    region: Arc<InflightRegion>,
    random: Random,
    /// Frames that are sent and not returned yet, and how many of them the device has taken.
    underway: VecDeque<Vec<u8>>,
    taken: usize,
    batches: VecDeque<Batch>,
}

impl Held {
    fn new(features: u64, size: u16, base: u16, seed: u64) -> Held {
        let mut guest = Guest::for_queues(size, 300, 400);
        let (driver, device) = guest.transmit(size, base, features, 300);
        let packed = features & feature::RING_PACKED != 0;
        let file = InflightRegion::create(1, size, packed).unwrap();
        let len = InflightRegion::len(1, size, packed) as u64;
        let region = InflightRegion::map(&file, (0, len), 1, size, packed).unwrap();
        let mut held = Held {
            guest,
            features,
            size,
            driver,
            device,
            region: Arc::new(region),
            random: Random(seed),
            underway: VecDeque::new(),
            taken: 0,
            batches: VecDeque::new(),
        };
        let first = held.device.base();
        held.succeed(first);
        held
    }

    /// Replaces the device by a new one, which knows only what the previous one recorded.
    fn succeed(&mut self, told: u32) {
        let layout = self.driver.virtqueue().layout();
        let mut ring = self.guest.device_side(layout, self.features);
        let packed = self.features & feature::RING_PACKED != 0;
        let part = self.region.queue(0, self.size.into(), packed).unwrap();
        let noted = ring.resume_noted(&part);
        let base = noted.unwrap_or_else(|| ring.resume_at(told, true).unwrap());
        ring.track(part, base);
        let features = Features::new(self.features);
        self.device = GuestTx::new(ring, features, Arc::default(), base).unwrap();
        self.batches.clear();
        self.taken = 0;
    }

    fn send(&mut self) {
        for _ in 0..self.random.below(usize::from(self.size) + 1) {
            let pieces = 1 + self.random.below(3);
            self.driver.set_split(ChainSplit::Pieces(312 / pieces + 1));
            let len = 60 + self.random.below(200);
            let bytes = self.random.bytes(len);
            match self.driver.send(&VirtioNetHdr::default(), &bytes) {
                Ok(true) => self.underway.push_back(bytes),
                _ => break,
            }
        }
        let _ = self.driver.virtqueue().publish();
    }

    fn receive(&mut self) {
        let mut burst = Burst::new();
        let n = self.device.receive(&mut burst);
        for frame in burst.frames() {
            let mut bytes = [0; 400];
            let len = burst.read_beginning(frame, &mut bytes);
            assert_eq!(&bytes[..len], self.underway[self.taken], "another frame");
            self.taken += 1;
        }
        if self.batches.is_empty() && self.random.one_in(4) {
            self.device.complete();
            self.given_back(n);
        } else if n > 0 {
            let batch = self.device.take_batch();
            assert_eq!(batch.len(), n);
            self.batches.push_back(batch);
            // Nothing is left to take.
            self.device.complete();
            self.given_back(0);
        }
    }

    fn complete(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.device.complete_batch(&batch);
            self.given_back(batch.len());
        }
    }

    /// Checks that the driver gets back this many frames and no more.
    fn given_back(&mut self, frames: usize) {
        assert_eq!(self.driver.reap().unwrap(), frames);
        self.underway.drain(..frames);
        self.taken -= frames;
        if self.batches.is_empty() {
            let stands = device_base(self.driver.virtqueue());
            assert_eq!(self.device.base(), stands);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// However long batches are held, the driver gets back what the device has completed, in order; and when a device
    /// dies with outstanding batches, nothing is lost.
    #[test]
    fn batches_are_given_back_in_order_and_no_sooner(
        layout in 0..LAYOUTS.len(), indirect: bool, size in 2u32..9, base: u16, seed: u64,
    ) {
        let tables = if indirect { feature::INDIRECT_DESC } else { 0 };
        let size = 1 << size;
        let base = if LAYOUTS[layout] & feature::RING_PACKED != 0 { base % size } else { base };
        let mut held = Held::new(MODERN | LAYOUTS[layout] | tables, size, base, seed);
        for _ in 0..200 {
            match held.random.below(16) {
                0..5 => held.send(),
                5..10 => held.receive(),
                10..15 => held.complete(),
                _ => held.succeed(0),
            }
            prop_assert_eq!(held.device.fault(), None);
        }
        while !held.underway.is_empty() {
            held.receive();
            held.complete();
        }
    }
}
