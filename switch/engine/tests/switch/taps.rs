//! A tap sees each frame once, with its result, and does not change forwarding.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crosspoint_engine::observe::tap::Direction;
use crosspoint_engine::observe::tap::Fate;
use crosspoint_engine::observe::tap::Slot;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_engine::observe::tap::Wanted;
use crosspoint_frame::Clock;
use crosspoint_packet::DropReason;
use proptest::prelude::*;

use crate::checks::ledger_of;
use crate::ledger::Run;

const ALL: Wanted = Wanted {
    port: None,
    queue: None,
    received: true,
    sent: true,
    dropped_only: false,
    snap_len: 128,
    rate_max: u64::MAX,
    filter: None,
};

fn tap(run: &mut Run, wanted: Wanted, slots: usize) -> Arc<Tap> {
    let tap = Tap::new(wanted, slots, run.workers, &Clock::calibrate());
    run.pair.rig.view.observe(Box::new([tap.clone()]), None);
    tap
}

fn drain(tap: &Tap) -> Vec<Slot> {
    let slots = std::iter::from_fn(|| tap.next());
    let seen = slots.map(|slot| {
        let copy = (*slot).clone();
        tap.give_back(slot);
        copy
    });
    seen.collect()
}

/// Contents of the slots for one port.
#[derive(Default, PartialEq, Debug)]
struct Seen {
    received: u64,
    delivered: u64,
    delivered_bytes: u64,
    drops: BTreeMap<DropReason, u64>,
}

/// Reasons found after a frame was captured: a flood without members, a frame that cannot be cut.
const UNSEEN: [DropReason; 2] = [DropReason::NoDestination, DropReason::BadOffload];

fn count(seen: &mut Seen, slot: &Slot) {
    seen.received += u64::from(slot.direction == Direction::Received);
    match slot.fate {
        Fate::Delivered => {
            seen.delivered += 1;
            seen.delivered_bytes += u64::from(slot.len);
        }
        Fate::Dropped(reason) if !UNSEEN.contains(&reason) => {
            *seen.drops.entry(reason).or_default() += 1;
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// With or without a tap, exactly the bridge's copies arrive; and the tap has seen each received frame and each sent
    /// copy, with the verdicts and reasons that were counted.
    #[test]
    fn a_tap_sees_what_the_ledger_counts_and_changes_nothing(seed: u64, steps in 1usize..40) {
        let mut run = Run::new(seed);
        let tap = tap(&mut run, ALL, 4096);
        let mut seen: BTreeMap<u16, Seen> = BTreeMap::new();
        for _ in 0..steps {
            run.step();
            run.pair.compare_ledgers();
            for slot in drain(&tap) {
                count(seen.entry(slot.port).or_default(), &slot);
            }
        }
        prop_assert_eq!((tap.counts().missed, tap.counts().over_rate), (0, 0));
        for (number, port) in run.pair.ports.iter().enumerate() {
            let ledger = ledger_of(&port.counters);
            let tx = ledger.tx.iter();
            let (delivered, delivered_bytes) = tx.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
            let drops = ledger.drops.into_iter();
            let expected = Seen {
                received: ledger.rx.0,
                delivered,
                delivered_bytes,
                drops: drops.filter(|(reason, _)| !UNSEEN.contains(reason)).collect(),
            };
            prop_assert_eq!(seen.remove(&(number as u16)).unwrap_or_default(), expected, "port {}", number);
        }
    }

    /// Forwarding is the same with any number of slots, any rate and any selection.
    #[test]
    fn a_tap_that_cannot_keep_up_costs_no_frame(
        seed: u64, slots in 1usize..20, rate in prop_oneof![Just(1), Just(1000), Just(u64::MAX)], dropped_only: bool, even: bool,
    ) {
        let mut run = Run::new(seed);
        let filter = even.then(|| Box::new(|bytes: &[u8], _| bytes.len().is_multiple_of(2)) as _);
        let wanted = Wanted { rate_max: rate, dropped_only, filter, ..ALL };
        let tap = tap(&mut run, wanted, slots);
        for _ in 0..20 {
            run.step();
            run.pair.compare_ledgers();
        }
        let counts = tap.counts();
        let all = run.pair.ports.iter().map(|port| ledger_of(&port.counters));
        let past = all.map(|of| (of.rx.0, of.tx.iter().map(|tx| tx.0).sum::<u64>(), of.drops.values().sum::<u64>()));
        let (received, delivered, dropped) = past.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let told = counts.kept + counts.missed + counts.over_rate;
        prop_assert!(counts.kept <= slots as u64 && told <= received + delivered + dropped, "{:?}", counts);
        if !dropped_only && !even {
            prop_assert!(told >= received + delivered, "{:?}", counts);
        }
        for slot in drain(&tap) {
            prop_assert!(!dropped_only || matches!(slot.fate, Fate::Dropped(_)));
            prop_assert!(!even || slot.bytes.len() % 2 == 0);
        }
    }
}

/// Sent copies have the number of the received frame.
#[test]
fn what_was_sent_names_what_was_received() {
    let mut linked = 0;
    for seed in 0..40 {
        let mut run = Run::new(seed);
        let tap = tap(&mut run, ALL, 4096);
        let mut received: BTreeMap<(usize, u64), Slot> = BTreeMap::new();
        for _ in 0..20 {
            run.step();
            for slot in drain(&tap) {
                let Some(serial) = slot.serial else { continue };
                let key = (slot.worker, serial);
                if slot.direction == Direction::Received {
                    assert!(received.insert(key, slot).is_none(), "a number twice");
                    continue;
                }
                let from = &received[&key];
                // Addresses are never rewritten.
                assert_eq!(from.bytes.get(..12), slot.bytes.get(..12));
                match from.fate {
                    Fate::Port(port) => assert_eq!(port, slot.port),
                    Fate::Flood => assert_ne!(from.port, slot.port),
                    other => panic!("{other:?} was sent"),
                }
                linked += 1;
            }
        }
    }
    assert!(linked > 1000, "{linked}");
}

/// A worker considers no more frames per second than the rate allows, plus one saved-up burst.
#[test]
fn a_rate_is_kept() {
    let mut run = Run::new(7);
    let wanted = Wanted { rate_max: 1, ..ALL };
    let tap = tap(&mut run, wanted, 4096);
    let begin = Instant::now();
    for _ in 0..50 {
        run.step();
    }
    let most = run.workers as u64 * (64 + 1 + begin.elapsed().as_secs());
    let counts = tap.counts();
    assert!(counts.kept <= most && counts.over_rate > 100, "{counts:?}");
}
