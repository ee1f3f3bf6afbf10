//! One guest's memory contents reach another guest only in sent frames.

use std::sync::Arc;

use crosspoint_frame::{Burst, HeaderOp, TxEntry};
use crosspoint_guest::ChainSplit;
use crosspoint_vring::{RxScratch, feature};
use proptest::prelude::*;

use crate::world::{Guest, MODERN, tagged};

/// Value of every byte of the sender's memory, and of the frames that a third guest sent before. No frame of the sender
/// contains it.
const MARKER: u8 = 0xa5;
/// Initial value of every byte of the receiver's memory.
const CLEAN: u8 = 0x3c;
const RING: u16 = 64;
const FRAME_MAX: usize = 2000;

#[derive(Debug, Clone)]
struct Case {
    lens: Vec<usize>,
    features: u64,
    buffer_len: usize,
    /// Pieces of the sender's chains and of the receiver's.
    splits: (usize, usize),
    tags: Vec<u8>,
}

const SPLITS: [ChainSplit; 2] = [ChainSplit::Single, ChainSplit::HeaderApart];

fn case() -> impl Strategy<Value = Case> {
    let len = prop_oneof![14usize..70, 14usize..FRAME_MAX];
    let features = prop_oneof![
        Just(MODERN),
        Just(feature::VERSION_1),
        Just(0),
        Just(MODERN | feature::INDIRECT_DESC | feature::GUEST_CSUM),
    ];
    let buffer_len = prop_oneof![Just(64usize), Just(100), Just(2048)];
    let lens = proptest::collection::vec(len, 1..20);
    let tags = proptest::collection::vec(0u8..3, 20);
    (
        lens,
        features,
        buffer_len,
        (0..SPLITS.len(), 0..SPLITS.len()),
        tags,
    )
        .prop_map(|(lens, features, buffer_len, splits, tags)| Case {
            lens,
            features,
            buffer_len,
            splits,
            tags,
        })
}

/// A frame that does not contain the marker.
fn frame(number: usize, len: usize, tagged: bool) -> Vec<u8> {
    let byte = |at: usize| 1 + ((at * 7 + number) % 100) as u8;
    let mut bytes: Vec<u8> = (0..len).map(byte).collect();
    if tagged && len >= 18 {
        bytes[12..14].copy_from_slice(&[0x81, 0x00]);
    }
    bytes
}

fn run(case: &Case) {
    let mut sender = Guest::for_queues(RING, FRAME_MAX, 64);
    let (mut tx, mut from) = sender.transmit(RING, 0, case.features, FRAME_MAX);
    tx.set_split(SPLITS[case.splits.0]);
    let mut receiver = Guest::for_queues(RING, 64, case.buffer_len);
    let split = SPLITS[case.splits.1];
    let (mut rx, to) = receiver.receive(
        (RING, 0),
        case.features,
        case.buffer_len,
        split,
        1,
        Arc::default(),
    );
    tx.area().view().fill(0, tx.area().len(), MARKER);
    rx.area().view().fill(0, rx.area().len(), CLEAN);
    let (mut burst, mut scratch) = (Burst::new(), RxScratch::default());
    let mut third = Guest::for_queues(RING, FRAME_MAX, 64);
    let (mut marked, mut from_third) = third.transmit(RING, 0, case.features, FRAME_MAX);
    rx.post(u16::MAX).unwrap();
    let _ = rx.ring().publish();
    let mut expected = Vec::new();
    for (number, len) in case.lens.iter().enumerate() {
        // A third guest's frames have just passed through the same worker.
        assert!(marked.send(&Default::default(), &[MARKER; 1500]).unwrap());
        let _ = marked.ring().publish();
        burst.clear();
        assert_eq!(from_third.receive(&mut burst), 1);
        from_third.complete();

        let tag = [HeaderOp::Keep, HeaderOp::Push, HeaderOp::Pop][usize::from(case.tags[number])];
        let bytes = frame(number, *len, tag == HeaderOp::Pop);
        let tag = if tag == HeaderOp::Pop && *len < 18 {
            HeaderOp::Keep
        } else {
            tag
        };
        assert!(tx.send(&Default::default(), &bytes).unwrap());
        let _ = tx.ring().publish();
        burst.clear();
        assert_eq!(from.receive(&mut burst), 1);
        burst.frames_mut()[0].tci = 5;
        let outcome = to.deliver(0, &burst, &[TxEntry { frame: 0, tag }], &mut scratch);
        from.complete();
        if outcome.frames == 1 {
            expected.push(tagged(&bytes, tag, 5));
        }
    }
    // Everywhere in the memory that the receiver has shared for frames, used or not.
    let mut memory = vec![0; rx.area().len()];
    rx.area().view().read(0, &mut memory);
    let found = memory.iter().position(|byte| *byte == MARKER);
    assert_eq!(found, None, "a byte of another guest's memory");
    rx.set_repost(false);
    let got: Vec<Vec<u8>> = rx
        .receive()
        .unwrap()
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(got, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The marker is not in the header, after a short frame, in a buffer's rest, or where nothing was delivered.
    #[test]
    fn memory_of_one_guest_reaches_no_other(case in case()) {
        run(&case);
    }
}
