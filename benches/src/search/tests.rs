//! Properties of a search that hold for every switch.

use super::goal::{NDR, PDR};
use super::simulated::{Knows, Simulated};
use super::*;
use proptest::prelude::*;

/// A search that reaches all its goals needs at most this many trials that count.
const TRIALS_ENOUGH: usize = 60;

fn goals() -> Vec<Goal> {
    Goal::usual(0.1, 0.5)
}

fn find(switch: &Simulated, limits: &Limits) -> SearchResult {
    let mut judge = Knows(switch.clone());
    search(&mut switch.clone(), &mut judge, &goals(), limits).unwrap()
}

/// Checks that hold for every result.
fn check(result: &SearchResult, limits: &Limits) -> Result<(), TestCaseError> {
    let counting = result.trials.iter().filter(|trial| !trial.other_placement);
    prop_assert!(counting.count() <= limits.trials_max);
    for found in &result.goals {
        if let (Some(lower), Some(upper)) = (found.lower, found.upper) {
            prop_assert!(lower < upper);
            let narrow = upper - lower <= found.goal.width * upper;
            prop_assert!(narrow || found.irregular.is_some(), "{found:?}");
        }
        if found.irregular.is_none() {
            let (lower, throughput) = (found.lower.unwrap(), found.conditional_throughput.unwrap());
            prop_assert!(found.upper.is_some());
            prop_assert!(throughput <= lower);
            prop_assert!(throughput >= lower * (1.0 - found.goal.loss_ratio) * (1.0 - 1e-9));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_steady_switch_is_found_within_the_width(capacity in 20_000.0..40e6_f64) {
        let limits = Limits::default();
        let result = find(&Simulated::of_capacity(capacity), &limits);
        check(&result, &limits)?;
        prop_assert_eq!(result.ended, Ended::Done);
        prop_assert!(result.trials.len() <= TRIALS_ENOUGH);
        for found in &result.goals {
            prop_assert_eq!(found.irregular, None, "{:?}", found);
            // The highest rate at which only the allowed part is lost. The smallest possible loss is one frame.
            let allowed = capacity / (1.0 - found.goal.loss_ratio);
            prop_assert!(found.lower.unwrap() <= allowed * 1.0005, "{found:?} {allowed}");
            prop_assert!(found.upper.unwrap() >= allowed * 0.9995, "{found:?} {allowed}");
        }
    }

    #[test]
    fn noise_moves_the_result_by_no_more_than_noise_and_width(
        capacity in 1e6..40e6_f64, noise in 0.0..0.1_f64, seed: u64,
    ) {
        let limits = Limits::default();
        let switch = Simulated { noise, seed, ..Simulated::of_capacity(capacity) };
        let result = find(&switch, &limits);
        check(&result, &limits)?;
        for found in &result.goals {
            let allowed = capacity / (1.0 - found.goal.loss_ratio);
            prop_assert!(found.lower.is_none_or(|lower| lower <= allowed * (1.0 + noise) * 1.001));
            prop_assert!(found.upper.is_none_or(|upper| upper >= allowed * (1.0 - noise) * 0.999));
        }
    }

    #[test]
    fn bursts_in_few_trials_do_not_hide_the_capacity(
        capacity in 1e6..40e6_f64, bursts in 0.0..0.05_f64, burst_loss in 0.0..0.5_f64, seed: u64,
    ) {
        let limits = Limits::default();
        let switch = Simulated { bursts, burst_loss, seed, ..Simulated::of_capacity(capacity) };
        let result = find(&switch, &limits);
        check(&result, &limits)?;
        prop_assert_eq!(result.ended, Ended::Done);
        for found in &result.goals {
            let allowed = capacity / (1.0 - found.goal.loss_ratio);
            let lower = found.lower.unwrap();
            prop_assert!((0.9..1.001).contains(&(lower / allowed)), "{found:?} {allowed}");
        }
    }

    #[test]
    fn a_switch_that_is_not_monotone_is_bounded_by_what_was_seen(
        capacity in 1e6..40e6_f64, from in 0.0..1.0_f64, width in 0.0..0.5_f64, noise in 0.0..0.02_f64, seed: u64,
    ) {
        let limits = Limits::default();
        let (from, to) = (capacity * from, capacity * (from + width));
        let switch = Simulated { hole: Some((from, to)), noise, seed, ..Simulated::of_capacity(capacity) };
        let result = find(&switch, &limits);
        check(&result, &limits)?;
        prop_assert!(result.trials.len() <= limits.trials_max);
        for found in result.goals.iter().filter(|found| found.irregular.is_none()) {
            let lower = found.lower.unwrap();
            prop_assert!(!(from..to).contains(&lower), "a load in the hole is no lower bound");
        }
    }

    #[test]
    fn disturbed_trials_do_not_count(
        capacity in 1e6..40e6_f64, disturbed in 0.0..0.5_f64, seed: u64,
    ) {
        let limits = Limits { repeats_max: 60, trials_max: 2000, ..Limits::default() };
        let switch = Simulated { disturbed, seed, ..Simulated::of_capacity(capacity) };
        let result = find(&switch, &limits);
        let calm = find(&Simulated { disturbed: 0.0, ..switch }, &limits);
        prop_assert_eq!(bounds_of(&result), bounds_of(&calm));
    }

    #[test]
    fn a_search_is_of_one_placement(capacity in 1e6..40e6_f64, lasts in 1..50_usize, far: bool) {
        let asked = if far { Placement::Far } else { Placement::Near };
        let limits = Limits { placement: Some(asked), ..Limits::default() };
        let switch = Simulated { placement_lasts: Some(lasts), ..Simulated::of_capacity(capacity) };
        let result = find(&switch, &limits);
        check(&result, &limits)?;
        let there = if far { capacity / 2.0 } else { capacity };
        let lower = result.goal(NDR).unwrap().lower.unwrap();
        prop_assert!((0.985..1.001).contains(&(lower / there)), "{lower} {there}");
        let counted = result.trials.iter().filter(|trial| trial.counts());
        prop_assert!(counted.clone().all(|trial| trial.observed.placement == asked));
    }
}

type Bounds = (Option<f64>, Option<f64>);

fn bounds_of(result: &SearchResult) -> Vec<Bounds> {
    let goals = result.goals.iter();
    goals.map(|found| (found.lower, found.upper)).collect()
}

#[test]
fn a_search_says_which_limit_ended_it() {
    let switch = Simulated::of_capacity(1e6);
    let few = Limits {
        trials_max: 10,
        ..Limits::default()
    };
    let result = find(&switch, &few);
    assert_eq!((result.ended, result.trials.len()), (Ended::TrialsMax, 10));
    assert!(
        result
            .goals
            .iter()
            .all(|found| found.irregular == Some(Irregular::NotReached))
    );
    let disturbed = Simulated {
        disturbed: 1.0,
        ..switch.clone()
    };
    let result = find(&disturbed, &Limits::default());
    assert_eq!(result.ended, Ended::Disturbed);
    assert_eq!(
        result.trials.len(),
        1 + 1 + Limits::default().repeats_max,
        "warm-up, trial, repeats"
    );
    let elsewhere = Limits {
        placement: Some(Placement::Far),
        ..Limits::default()
    };
    assert_eq!(find(&switch, &elsewhere).ended, Ended::OtherPlacement);
}

#[test]
fn a_switch_that_always_loses_has_no_lower_bound() {
    let switch = Simulated {
        bursts: 1.0,
        burst_loss: 0.001,
        ..Simulated::of_capacity(1e6)
    };
    let result = find(&switch, &Limits::default());
    let (ndr, pdr) = (result.goal(NDR).unwrap(), result.goal(PDR).unwrap());
    assert_eq!(ndr.irregular, Some(Irregular::NoLowerBound));
    assert_eq!(ndr.upper, Some(Limits::default().rate_min));
    assert_eq!(pdr.irregular, None);
}

#[test]
fn a_switch_beyond_the_highest_load_has_no_upper_bound() {
    let limits = Limits {
        rate_max: Some(5e5),
        ..Limits::default()
    };
    for found in find(&Simulated::of_capacity(1e6), &limits).goals {
        assert_eq!(found.irregular, Some(Irregular::NoUpperBound));
        assert_eq!(found.lower, Some(5e5));
    }
}

#[test]
fn the_same_trials_make_the_same_search() {
    let switch = Simulated {
        noise: 0.05,
        bursts: 0.2,
        burst_loss: 0.01,
        ..Simulated::of_capacity(7e6)
    };
    let limits = Limits::default();
    assert_eq!(find(&switch, &limits), find(&switch, &limits));
}

/// The draft's scenarios: full-length trials of 10 s, short ones of 1 s, 70 s decide, half may exceed.
#[test]
fn short_trials_speak_against_a_load_but_not_for_it() {
    let target = Target {
        loss_ratio: 0.0,
        exceed_ratio: 0.5,
        width: 0.01,
        trial: 10.0,
        sum: 70.0,
    };
    let class = |trials: &[(usize, f64, f64)]| {
        let mut known = Known::default();
        for (count, seconds, loss) in trials {
            (0..*count).for_each(|_| known.add(1e6, *seconds, *loss));
        }
        known.class(1e6, &target)
    };
    use bounds::Class::{Lower, Undecided, Upper};
    assert_eq!(class(&[(40, 1.0, 0.0)]), Undecided);
    assert_eq!(class(&[(40, 1.0, 0.1)]), Upper);
    assert_eq!(class(&[(20, 1.0, 0.0), (20, 1.0, 0.1)]), Undecided);
    assert_eq!(class(&[(3, 10.0, 0.0)]), Undecided);
    assert_eq!(class(&[(4, 10.0, 0.0)]), Lower);
    assert_eq!(class(&[(4, 10.0, 0.1)]), Upper);
    assert_eq!(class(&[(4, 10.0, 0.0), (30, 1.0, 0.1)]), Lower);
    assert_eq!(class(&[(4, 10.0, 0.0), (41, 1.0, 0.1)]), Upper);
}

#[test]
fn conditional_throughput_leaves_out_the_worst_trials() {
    let target = Target {
        loss_ratio: 0.1,
        exceed_ratio: 0.5,
        width: 0.01,
        trial: 1.0,
        sum: 4.0,
    };
    let mut known = Known::default();
    for loss in [0.9, 0.02, 0.01, 0.5] {
        known.add(1e6, 1.0, loss);
    }
    known.add(1e6, 0.1, 1.0);
    assert!((known.throughput(1e6, &target).unwrap() - 0.98e6).abs() < 1e-3);
}
