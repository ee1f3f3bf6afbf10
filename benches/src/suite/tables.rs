//! A run's tables, in Markdown.

use super::record::{Record, Results};
use crate::placement::Placement;
use crate::report::discards;
use crate::stats::{Spread, median};
use std::collections::BTreeSet;
use std::fmt::Write;

/// All of them. Scenarios stand in the order in which they were measured first.
pub fn tables(results: &Results, switches: &[String]) -> String {
    let trials = &results.trials;
    let mut text = rates(trials, switches);
    for peer in switches.iter().skip(1) {
        text += "\n";
        text += &ratios(trials, &switches[0], peer);
    }
    let of = trials.iter().map(|trial| (&*trial.switch, trial.discarded));
    text += "\n";
    text += &discards("trials", of, switches);
    text + &not_measured(results)
}

fn rates(trials: &[Record], switches: &[String]) -> String {
    let mut text = String::from(
        "| scenario | placement | switch | trials | Mpps | IQR | loss | busy cycles/frame | core cycles/frame | ring full | p50 µs | p99 µs |\n\
         |---|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for (scenario, placement) in groups(trials) {
        for switch in switches {
            let these = kept(trials, switch, scenario, placement);
            let Some(mpps) = Spread::of(these.iter().map(|t| t.mpps)) else {
                continue;
            };
            let of =
                |value: fn(&Record) -> Option<f64>| median(these.iter().filter_map(|t| value(t)));
            let _ = writeln!(
                text,
                "| {scenario} | {} | {switch} | {} | {:.2} | {:.2}-{:.2} | {} | {} | {} | {} | {} | {} |",
                placement.name(),
                these.len(),
                mpps.median,
                mpps.lower,
                mpps.upper,
                percent(of(|t| Some(t.loss))),
                cell(of(|t| t.observed.busy_cycles), 0),
                cell(of(|t| t.core_cycles), 0),
                percent(of(|t| Some(t.ring_full))),
                cell(of(|t| t.p50_us), 1),
                cell(of(|t| t.p99_us), 1),
            );
        }
    }
    text
}

fn ratios(trials: &[Record], first: &str, peer: &str) -> String {
    let mut text = format!(
        "| scenario | placement | {first} / {peer} | IQR over rounds | rounds | core cycles, {peer} / {first} |\n\
         |---|---|--:|---|--:|--:|\n"
    );
    for (scenario, placement) in groups(trials) {
        let ours = kept(trials, first, scenario, placement);
        let theirs = kept(trials, peer, scenario, placement);
        let ratio = |round: Option<u32>| {
            let of = |trials: &[&Record]| {
                let of_round = trials.iter().filter(|t| round.is_none_or(|r| t.round == r));
                median(of_round.map(|t| t.mpps))
            };
            Some(of(&ours)? / of(&theirs)?)
        };
        let cycles = |trials: &[&Record]| median(trials.iter().filter_map(|t| t.core_cycles));
        let (Some(of_medians), Some(our_cycles), Some(their_cycles)) =
            (ratio(None), cycles(&ours), cycles(&theirs))
        else {
            continue;
        };
        let rounds: BTreeSet<u32> = ours.iter().map(|t| t.round).collect();
        let by_round: Vec<f64> = rounds.into_iter().filter_map(|r| ratio(Some(r))).collect();
        let iqr = Spread::of(by_round.iter().copied()).map_or(String::new(), |spread| {
            format!("{:.2}-{:.2}", spread.lower, spread.upper)
        });
        let _ = writeln!(
            text,
            "| {scenario} | {} | {of_medians:.2} | {iqr} | {} | {:.2} |",
            placement.name(),
            by_round.len(),
            their_cycles / our_cycles,
        );
    }
    text
}

fn not_measured(results: &Results) -> String {
    let mut text = String::new();
    if results.skipped.is_empty() && results.failed.is_empty() {
        return text;
    }
    text += "\n| not measured | switch | why |\n|---|---|---|\n";
    for skip in &results.skipped {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            skip.scenario, skip.switch, skip.why
        );
    }
    for failure in &results.failed {
        let why = failure.why.replace('\n', " ").replace('|', "/");
        let _ = writeln!(
            text,
            "| {}, round {} | {} | failed: {why} |",
            failure.scenario, failure.round, failure.switch
        );
    }
    text
}

/// Of trials that count.
fn groups(trials: &[Record]) -> Vec<(&str, Placement)> {
    let mut names: Vec<&str> = Vec::new();
    for trial in trials {
        if !names.contains(&&*trial.scenario) {
            names.push(&trial.scenario);
        }
    }
    let kept = trials.iter().filter(|t| t.discarded.is_none());
    let groups: BTreeSet<(usize, Placement)> = kept
        .filter_map(|t| {
            let place = names.iter().position(|name| *name == t.scenario)?;
            Some((place, t.observed.placement))
        })
        .collect();
    let named = |(place, placement): (usize, Placement)| (names[place], placement);
    groups.into_iter().map(named).collect()
}

fn kept<'a>(
    trials: &'a [Record],
    switch: &str,
    scenario: &str,
    placement: Placement,
) -> Vec<&'a Record> {
    let these = trials
        .iter()
        .filter(|t| t.discarded.is_none() && t.switch == switch);
    these
        .filter(|t| t.scenario == scenario && t.observed.placement == placement)
        .collect()
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

fn percent(part: Option<f64>) -> String {
    match part {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(part) if part < 1e-3 => format!("{:.0e} %", part * 100.0),
        Some(part) => format!("{:.1} %", part * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Failure;
    use super::*;
    use crate::trial::{Discard, Observed};
    use crosspoint_frame::Clock;

    fn record(scenario: &str, switch: &str, round: u32, mpps: f64) -> Record {
        Record {
            scenario: scenario.into(),
            switch: switch.into(),
            round,
            seconds: 0.3,
            sent: 1000,
            arrived: 990,
            mpps,
            loss: 0.01,
            ring_full: 0.25,
            p50_us: Some(10.0),
            p99_us: None,
            loss_run_max: None,
            core_cycles: Some(2600.0 / mpps),
            observed: Observed {
                round_trips_ns: [Some(90.0), Some(91.0)],
                placement: Placement::Near,
                generator_wait: Some(0.0),
                switch_wait: Some(0.1),
                busy_cycles: (switch == "crosspoint").then_some(100.0),
            },
            discarded: None,
        }
    }

    #[test]
    fn only_like_is_compared_with_like_and_what_is_missing_is_said() {
        let mut results = Results::new(Clock::calibrate());
        results.trials = vec![
            record("pairs4-64", "crosspoint", 0, 20.0),
            record("pairs4-64", "crosspoint", 1, 30.0),
            record("pairs4-64", "peer", 0, 10.0),
            record("pairs4-64", "peer", 1, 10.0),
            record("pairs4-64", "peer", 1, 5.0),
            record("pairs4-64", "peer", 1, 1000.0),
            record("chain2-64", "crosspoint", 0, 7.0),
        ];
        results.trials[4].observed.placement = Placement::Far;
        results.trials[5].discarded = Some(Discard::Waited);
        results.failed.push(Failure {
            scenario: "chain2-64".into(),
            switch: "peer".into(),
            round: 0,
            why: "no\nports".into(),
        });
        let text = tables(&results, &["crosspoint".into(), "peer".into()]);
        let rows: Vec<&str> = text.lines().collect();
        let expected = [
            "| pairs4-64 | near | crosspoint | 2 | 25.00 | 22.50-27.50 | 1.0 % | 100 | 108 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | near | peer | 2 | 10.00 | 10.00-10.00 | 1.0 % | - | 260 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | far | peer | 1 | 5.00 | 5.00-5.00 | 1.0 % | - | 520 | 25.0 % | 10.0 | - |",
            "| chain2-64 | near | crosspoint | 1 | 7.00 | 7.00-7.00 | 1.0 % | 100 | 371 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | near | 2.50 | 2.25-2.75 | 2 | 2.40 |",
            "| peer | 4 | 1 | 0 | 0 |",
            "| chain2-64, round 0 | peer | failed: no ports |",
        ];
        let mut at = 0;
        for row in expected {
            let found = rows[at..].iter().position(|line| *line == row);
            at += found.unwrap_or_else(|| panic!("{row}\n{text}")) + 1;
        }
    }
}
