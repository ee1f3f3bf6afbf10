//! Frames arrive unchanged, and every copy is counted.

use std::collections::VecDeque;
use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, HeaderOp, TxEntry};
use crosspoint_guest::packed::{DESC_F_AVAIL, DESC_F_USED};
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::ring::DESC_F_WRITE;
use crosspoint_guest::{Buffer, ChainSplit, PackedDescriptor, Position, QueueError, VirtioNetHdr};
use crosspoint_vring::{Features, GuestRx, GuestTx, Outcome, RxScratch, feature};
use proptest::prelude::*;

use crate::world::{
    BASE, BRIDGE_TAG, Guest, LAYOUTS, MODERN, Random, all, base_at, header_len, start_of, tagged,
};

const FEATURES: [u64; 6] = [
    feature::MRG_RXBUF,
    feature::VERSION_1,
    feature::INDIRECT_DESC,
    feature::EVENT_IDX,
    feature::RING_PACKED,
    feature::IN_ORDER,
];

#[derive(Clone, Copy, Debug)]
struct Side {
    size: u16,
    base: u16,
    features: u64,
}

fn side() -> impl Strategy<Value = Side> {
    let base = prop_oneof![any::<u16>(), 65_400u16.., 0u16..3];
    let size = prop_oneof![1 => 0u32..=2, 2 => 3u32..=10];
    (size, base, 0usize..64).prop_map(|(log, base, mask)| {
        let features = FEATURES
            .iter()
            .enumerate()
            .map(|(i, bit)| if mask >> i & 1 == 1 { *bit } else { 0 })
            .sum();
        Side {
            size: 1 << log,
            base,
            features,
        }
    })
}

fn frame_len() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 14usize..200, 8 => 200usize..1600, 2 => 1600usize..10_000, 1 => 10_000usize..=65_550, 1 => Just(65_550)]
}

#[derive(Clone, Debug)]
struct Case {
    tx: Side,
    rx: Side,
    buffer_len: usize,
    /// Pieces of each receive buffer; 0 for a header in its own descriptor.
    rx_pieces: usize,
    lens: Vec<usize>,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let buffer_len = prop_oneof![
        60usize..200,
        100usize..2100,
        2100usize..20_000,
        Just(65_562)
    ];
    let lens = proptest::collection::vec(frame_len(), 1..160);
    (side(), side(), buffer_len, 0usize..=4, lens, any::<u64>()).prop_map(
        |(tx, rx, buffer_len, rx_pieces, lens, seed)| Case {
            tx,
            rx,
            buffer_len,
            // The buffers together need fewer than the 4096 descriptors that one burst follows.
            rx_pieces: rx_pieces.min(4096 / usize::from(rx.size) - 1),
            lens,
            seed,
        },
    )
}

/// Expected result of `deliver` by the specification, for receive buffers of one length.
struct Model {
    mergeable: bool,
    header: usize,
    buffer_len: usize,
    /// Maximum number of buffers in the ring, if they fill it.
    whole_ring: Option<usize>,
}

impl Model {
    /// The copies that arrive, with their numbers of buffers, and the expected counters.
    fn deliver(
        &self,
        copies: &[Vec<u8>],
        mut available: usize,
    ) -> (Vec<(Vec<u8>, usize)>, Outcome) {
        let (mut arrive, mut outcome) = (Vec::new(), Outcome::default());
        for (i, copy) in copies.iter().enumerate() {
            let buffers = (self.header + copy.len()).div_ceil(self.buffer_len);
            // It would not fit even into the whole ring.
            if self.mergeable && buffers > available && self.whole_ring == Some(available) {
                outcome.small += 1;
                continue;
            }
            if available < if self.mergeable { buffers } else { 1 } {
                outcome.full = (copies.len() - i) as u32;
                break;
            }
            if buffers > 1 && !self.mergeable {
                outcome.small += 1;
                continue;
            }
            available -= buffers;
            outcome.frames += 1;
            outcome.bytes += copy.len() as u64;
            arrive.push((copy.clone(), buffers));
        }
        (arrive, outcome)
    }
}

struct Rig {
    case: Case,
    random: Random,
    sender: TransmitQueue,
    tx: GuestTx,
    receiver: ReceiveQueue,
    rx: GuestRx,
    burst: Burst,
    scratch: RxScratch,
    /// Sent, and not yet received by the switch.
    underway: VecDeque<Vec<u8>>,
    /// Buffers that the device has not used yet.
    available: usize,
    /// Ring entries of each buffer.
    rx_entries: usize,
}

impl Rig {
    fn new(case: &Case) -> Rig {
        let frame_len_max = case.lens.iter().copied().max().unwrap();
        let mut from = Guest::for_queues(case.tx.size, frame_len_max, 64);
        let mut to = Guest::for_queues(case.rx.size, 64, case.buffer_len);
        // A buffer has no more pieces than the ring has entries.
        let split = match case.rx_pieces {
            0 if case.rx.size >= 2 => ChainSplit::HeaderApart,
            n if n > 1 && case.rx.size >= 8 => ChainSplit::Pieces(case.buffer_len.div_ceil(n)),
            _ => ChainSplit::Single,
        };
        let pieces = match split {
            ChainSplit::Single => 1,
            ChainSplit::HeaderApart => {
                1 + usize::from(case.buffer_len > header_len(case.rx.features))
            }
            ChainSplit::Pieces(len) => case.buffer_len.div_ceil(len),
        };
        let in_a_row = feature::RING_PACKED | feature::INDIRECT_DESC;
        let rx_entries = match case.rx.features & in_a_row {
            feature::RING_PACKED => pieces,
            _ => 1,
        };
        let (sender, tx) =
            from.transmit(case.tx.size, case.tx.base, case.tx.features, frame_len_max);
        let at = (case.rx.size, case.rx.base);
        let (receiver, rx) = to.receive(
            at,
            case.rx.features,
            case.buffer_len,
            split,
            1,
            Arc::default(),
        );
        Rig {
            random: Random(case.seed),
            case: case.clone(),
            sender,
            tx,
            receiver,
            rx,
            burst: Burst::new(),
            scratch: RxScratch::default(),
            underway: VecDeque::new(),
            available: 0,
            rx_entries,
        }
    }

    /// Sends one frame in a chain of some shape; false if the ring is full.
    fn send(&mut self, len: usize) -> bool {
        let bytes = self.random.bytes(len);
        let split = match self.random.below(4) {
            0 => ChainSplit::Single,
            1 => ChainSplit::HeaderApart,
            _ => {
                let pieces = 1 + self.random.below(20);
                ChainSplit::Pieces(1 + self.random.below(1 + (len + 12) / pieces))
            }
        };
        self.sender.set_split(split);
        let sent = match self.sender.send(&VirtioNetHdr::default(), &bytes) {
            Err(QueueError::FrameTooLong { .. }) => {
                self.sender.set_split(ChainSplit::Single);
                self.sender.send(&VirtioNetHdr::default(), &bytes).unwrap()
            }
            result => result.unwrap(),
        };
        if sent {
            self.underway.push_back(bytes);
        }
        sent
    }

    /// Copies to make of the burst, and their bytes.
    fn picks(&mut self) -> (Vec<TxEntry>, Vec<Vec<u8>>) {
        let (mut picks, mut copies) = (Vec::new(), Vec::new());
        self.burst.set_bridge(1, BRIDGE_TAG);
        for i in 0..self.burst.len() {
            let bytes = self.underway.pop_front().unwrap();
            self.burst.frames_mut()[i].tci = self.random.next() as u16;
            let frame = &self.burst.frames()[i];
            assert_eq!(frame.len as usize, bytes.len());
            let number = match self.random.below(10) {
                0 => 0,
                1 => 2,
                _ => 1,
            };
            for _ in 0..number {
                let tag = match self.random.below(8) {
                    0 => HeaderOp::Push,
                    1 if bytes.len() >= 18 => HeaderOp::Pop,
                    2 => HeaderOp::PushBridge,
                    3 => HeaderOp::PushBoth,
                    4 if bytes.len() >= 22 => HeaderOp::PopBoth,
                    _ => HeaderOp::Keep,
                };
                if picks.len() < BURST {
                    picks.push(TxEntry {
                        frame: i as u8,
                        tag,
                    });
                    copies.push(tagged(&bytes, tag, frame.tci));
                }
            }
        }
        (picks, copies)
    }

    /// Runs one poll iteration of the switch, then checks the receiver.
    fn turn(&mut self) {
        let posted = self
            .receiver
            .post(self.random.below(self.case.rx.size as usize + 1) as u16)
            .unwrap();
        self.available += usize::from(posted);
        let _ = self.receiver.virtqueue().publish();
        let taken = self.tx.receive(&mut self.burst);
        assert_eq!(taken, self.burst.len());
        let (picks, copies) = self.picks();

        let features = self.case.rx.features;
        let mergeable = features & feature::MRG_RXBUF != 0;
        let model = Model {
            mergeable,
            header: header_len(features),
            buffer_len: self.case.buffer_len,
            whole_ring: usize::from(self.case.rx.size)
                .is_multiple_of(self.rx_entries)
                .then(|| usize::from(self.case.rx.size) / self.rx_entries),
        };
        self.scratch.begin_burst();
        let outcome = self.rx.deliver(0, &self.burst, &picks, &mut self.scratch);
        // Frames of many small pieces may cost more than a burst may: then the last ones are dropped as costly.
        assert!(outcome.costly == 0 || self.case.buffer_len < 400 * self.case.rx_pieces.max(2));
        let afforded = copies.len() - outcome.costly as usize;
        let (arrive, expected) = model.deliver(&copies[..afforded], self.available);
        self.tx.complete();
        self.burst.clear();

        assert_eq!(
            Outcome {
                touched: false,
                work: 0,
                excess: 0,
                costly: 0,
                ..outcome
            },
            expected,
            "{} picks, {} buffers",
            picks.len(),
            self.available
        );
        assert_eq!(
            picks.len() as u32,
            outcome.frames + outcome.full + outcome.small + outcome.costly
        );
        let consumed: usize = arrive.iter().map(|(_, buffers)| buffers).sum();
        assert_eq!(
            self.receiver.virtqueue().pending_used().unwrap(),
            consumed as u16,
            "buffers given back"
        );
        self.available -= consumed;
        self.look(arrive);
    }

    /// The receiver takes everything: exactly these frames, in exactly this many buffers.
    fn look(&mut self, arrive: Vec<(Vec<u8>, usize)>) {
        self.receiver.set_repost(false);
        let got = self
            .receiver
            .receive()
            .expect("a device that keeps the rules");
        assert_eq!(got.len(), arrive.len());
        for ((header, bytes), (expected, buffers)) in got.into_iter().zip(arrive) {
            let num_buffers = if header_len(self.case.rx.features) == 12 {
                buffers as u16
            } else {
                0
            };
            assert_eq!(
                header,
                VirtioNetHdr {
                    num_buffers,
                    ..VirtioNetHdr::default()
                }
            );
            assert!(
                bytes == expected,
                "{} bytes arrived otherwise than sent",
                expected.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// For any layout of a frame in the sender's memory and any receive buffers: the same bytes arrive, in order, in as
    /// many buffers as the header says; every copy is delivered or counted; a dropped one takes no buffer.
    #[test]
    fn bytes_arrive_identical(case in case()) {
        let mut rig = Rig::new(&case);
        let mut lens = VecDeque::from(case.lens.clone());
        while !lens.is_empty() || !rig.underway.is_empty() {
            for _ in 0..rig.random.below(2 * BURST) {
                let Some(len) = lens.front().copied() else { break };
                if !rig.send(len) {
                    break;
                }
                lens.pop_front();
            }
            let _ = rig.sender.virtqueue().publish();
            rig.turn();
        }
        rig.sender.reap().unwrap();
        prop_assert_eq!(rig.sender.virtqueue().outstanding(), 0);
        prop_assert_eq!(rig.sender.completed(), case.lens.len() as u64);
    }
}

/// Regions that are adjacent in guest addresses are not adjacent in the switch's: a buffer across their border has two
/// pieces.
#[test]
fn a_buffer_across_two_regions_arrives_whole() {
    LAYOUTS.into_iter().for_each(across_two_regions);
}

fn across_two_regions(layout: u64) {
    const LEN: usize = 0x10_0000;
    const BORDER: u64 = BASE + LEN as u64;
    let guest = || Guest::with(&[(BASE, LEN), (BORDER, LEN)], 0);
    let features = MODERN | layout;
    let (mut from, mut to, negotiated) = (guest(), guest(), Features::new(features));
    let (mut sender, tx) = from.virtqueue(8, 0, features);
    let (mut receiver, rx) = to.virtqueue(8, 0, features);
    let base = start_of(8, 0, features);
    let mut tx = GuestTx::new(tx, negotiated, Arc::default(), base).unwrap();
    let rx = GuestRx::new(rx, negotiated, Arc::default(), base, 1).unwrap();
    let bytes = Random(1).bytes(3000);
    let whole = [&[0; 12][..], &bytes].concat();
    for (ours, theirs) in [
        (1, 1),
        (6, 3000),
        (12, 12),
        (13, 11),
        (80, 300),
        (3011, 3011),
    ] {
        let (at, buffer) = (BORDER - ours, BORDER - theirs);
        from.memory.write(at, &whole[..ours as usize]).unwrap();
        from.memory.write(BORDER, &whole[ours as usize..]).unwrap();
        sender
            .add(&[Buffer {
                address: at,
                len: 3012,
                device_writes: false,
            }])
            .unwrap();
        receiver
            .add(&[Buffer {
                address: buffer,
                len: 4096,
                device_writes: true,
            }])
            .unwrap();
        let _ = (sender.publish(), receiver.publish());
        let mut burst = Burst::new();
        assert_eq!(tx.receive(&mut burst), 1);
        let outcome = rx.deliver(0, &burst, &all(&burst), &mut RxScratch::default());
        assert_eq!((outcome.frames, outcome.bytes), (1, 3000));
        tx.complete();
        let mut got = vec![0; 3012];
        let (before, after) = got.split_at_mut(theirs as usize);
        to.memory.read(buffer, before).unwrap();
        to.memory.read(BORDER, after).unwrap();
        assert!(
            got[12..] == bytes,
            "{ours} bytes before the border here, {theirs} there"
        );
        assert_eq!(receiver.pop_used().unwrap().unwrap().len, 3012);
        sender.pop_used().unwrap().unwrap();
    }
}

/// A burst whose buffers take more entries of a packed ring than one reservation may have uses several reservations.
#[test]
fn a_burst_of_long_chains_is_delivered_whole() {
    let features = feature::VERSION_1 | feature::RING_PACKED;
    let mut to = Guest::for_queues(2048, 64, 1900);
    let split = ChainSplit::Pieces(100);
    let (mut receiver, rx) = to.receive((2048, 0), features, 1900, split, 1, Arc::default());
    receiver.post(u16::MAX).unwrap();
    let _ = receiver.virtqueue().publish();
    let mut from = Guest::for_queues(64, 64, 64);
    let (mut sender, mut tx) = from.transmit(64, 0, MODERN, 64);
    for _ in 0..BURST {
        assert!(sender.send(&VirtioNetHdr::default(), &[5; 64]).unwrap());
    }
    let _ = sender.virtqueue().publish();
    let mut burst = Burst::new();
    assert_eq!(tx.receive(&mut burst), BURST);
    let outcome = rx.deliver(0, &burst, &all(&burst), &mut RxScratch::default());
    assert_eq!((outcome.frames as usize, outcome.small), (BURST, 0));
    assert_eq!(receiver.receive().unwrap().len(), BURST);
}

/// Virtio 1.2, 2.8.3 and 2.8.4: WRITE in a used descriptor means that data was written, and without it the length is
/// undefined.
#[test]
fn a_used_descriptor_of_a_packed_ring_says_that_it_was_written() {
    const SIZE: u16 = 8;
    let features = MODERN | feature::RING_PACKED;
    let mut guest = Guest::for_queues(SIZE, 300, 400);
    let (driver, device) = guest.packed_ring(SIZE, Position::START, features);
    let area = guest.take(400 * usize::from(SIZE));
    for slot in 0..SIZE {
        let address = area + 400 * u64::from(slot);
        let flags = DESC_F_WRITE | DESC_F_AVAIL;
        let (id, len) = (slot, 400);
        driver.write_desc(
            slot,
            PackedDescriptor {
                address,
                len,
                id,
                flags,
            },
        );
    }
    let at = base_at(Position::START);
    let rx = GuestRx::new(device, Features::new(features), Arc::default(), at, 1).unwrap();
    let mut burst = Burst::new();
    for _ in 0..3 {
        assert!(burst.push_short(&[7; 60]));
    }
    rx.deliver(0, &burst, &all(&burst), &mut RxScratch::default());
    for slot in 0..3 {
        let used = driver.read_desc(slot);
        assert_eq!(
            used.flags,
            DESC_F_WRITE | DESC_F_AVAIL | DESC_F_USED,
            "{slot}"
        );
        assert_eq!(used.len, 72, "{slot}");
    }
}
