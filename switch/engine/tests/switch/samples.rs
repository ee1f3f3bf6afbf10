//! A sampler takes a fair selection of the received frames, and does not change forwarding.

use std::collections::BTreeMap;
use std::sync::Arc;

use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::observe::tap::{Direction, Slot};
use crosspoint_frame::Clock;
use proptest::prelude::*;

use crate::checks::ledger_of;
use crate::ledger::Run;

fn sampler(run: &mut Run, every: u32, slots: usize, seed: u64) -> Arc<Sampler> {
    let clock = Clock::calibrate();
    let sampler = Sampler::new((every, 128), slots, run.workers, &clock, seed);
    let view = &mut run.pair.rig.view;
    view.observe(Box::new([]), Some(sampler.clone()));
    sampler
}

fn drain(sampler: &Sampler) -> Vec<Slot> {
    let slots = std::iter::from_fn(|| sampler.next());
    let seen = slots.map(|slot| {
        let copy = (*slot).clone();
        sampler.give_back(slot);
        copy
    });
    seen.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// With N = 1 each received frame is sampled once, or counted as missed at its port; and forwarding is as without a
    /// sampler.
    #[test]
    fn every_chosen_frame_is_sampled_or_counted_as_missed(seed: u64, steps in 1usize..40, slots in 1usize..200) {
        let mut run = Run::new(seed);
        let sampler = sampler(&mut run, 1, slots, seed);
        let mut sampled: BTreeMap<u16, u64> = BTreeMap::new();
        for _ in 0..steps {
            run.step();
            run.pair.compare_ledgers();
            for slot in drain(&sampler) {
                prop_assert_eq!(slot.direction, Direction::Received);
                *sampled.entry(slot.port).or_default() += 1;
            }
        }
        for (number, port) in (0u16..).zip(&run.pair.ports) {
            let seen = sampled.get(&number).copied().unwrap_or_default() + sampler.missed(number);
            prop_assert_eq!(seen, ledger_of(&port.counters).rx.0, "port {}", number);
        }
    }
}

/// Of each port's frames, one of N is sampled: the number is within five standard deviations, whatever the sizes of the
/// bursts.
#[test]
fn one_of_n_frames_of_every_port_is_sampled() {
    for (every, seed) in [(2, 3), (8, 5), (50, 7)] {
        let mut run = Run::new(seed);
        let sampler = sampler(&mut run, every, 4096, seed);
        let mut sampled = vec![0u64; run.pair.ports.len()];
        for _ in 0..1500 {
            run.step();
            for slot in drain(&sampler) {
                sampled[usize::from(slot.port)] += 1;
            }
        }
        let chance = 1.0 / f64::from(every);
        for (port, sampled) in run.pair.ports.iter().zip(sampled) {
            let frames = ledger_of(&port.counters).rx.0 as f64;
            let deviation = (frames * chance * (1.0 - chance)).sqrt();
            let off = (sampled as f64 - frames * chance).abs();
            assert!(frames > 1000.0, "{frames}");
            assert!(
                off < 5.0 * deviation,
                "1 in {every}: {sampled} of {frames}, {off} off"
            );
        }
    }
}

/// A sample of a removed port is not taken for one of the next port with its number.
#[test]
fn a_sample_is_known_to_be_of_a_removed_port() {
    let mut run = Run::new(11);
    let sampler = sampler(&mut run, 1, 4096, 1);
    let mut next = || loop {
        drop(drain(&sampler));
        run.step();
        if let Some(slot) = sampler.next() {
            return slot;
        }
    };
    let before = next();
    sampler.note_removed(before.port);
    assert!(sampler.is_of_removed(&before));
    let number = before.port;
    let last = loop {
        let slot = next();
        if slot.port == number {
            break slot;
        }
    };
    assert!(!sampler.is_of_removed(&last));
}
