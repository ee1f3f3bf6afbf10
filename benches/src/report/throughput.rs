//! The tables of maximum receive rates: the rate that arrives at full load, and its cost.

use super::results::Results;
use super::table::{Table, fixed, percent};
use crate::lab::placement::Placement;
use crate::lab::trial::Shares;
use crate::load::scenario::{Frames, Scenario};
use crate::search::trials::SearchTrial;
use crate::stats::{Ratio, Spread, median};
use std::collections::BTreeSet;

/// A trial, with its scenario and switch.
#[derive(Clone, Copy)]
struct Row<'a> {
    scenario: &'a str,
    switch: &'a str,
    round: u32,
    trial: &'a SearchTrial,
}

/// All tables, in Markdown. Scenarios stand in the order in which they were first measured.
pub fn tables(results: &Results) -> String {
    let rows: Vec<Row> = rows(results).collect();
    let names = results.scenarios();
    let mut text = rates(&rows, &names, &results.switches);
    text += &over_plain(&rows, &names, &results.switches).if_any();
    text += &large(&rows, &names, &results.switches).if_any();
    for peer in results.switches.iter().skip(1) {
        text += &ratios(&rows, &names, &results.switches[0], peer).if_any();
    }
    text
}

/// The trials that count.
fn rows(results: &Results) -> impl Iterator<Item = Row<'_>> {
    results.measurements.iter().flat_map(|measured| {
        let kept = measured.maxima.iter().filter(|trial| trial.counts());
        kept.map(|trial| Row {
            scenario: &measured.scenario,
            switch: &measured.switch,
            round: measured.round,
            trial,
        })
    })
}

/// The median of a value of some trials.
fn of(rows: &[Row], value: fn(&SearchTrial) -> Option<f64>) -> Option<f64> {
    median(rows.iter().filter_map(|row| value(row.trial)))
}

fn rates(rows: &[Row], names: &[&str], switches: &[String]) -> String {
    let has_shares = rows.iter().any(|row| row.trial.observed.shares.is_some());
    let shares: [fn(&Shares) -> Option<f64>; 3] = [|s| s.user, |s| s.kernel, |s| s.softirq];
    let more = if has_shares {
        " | >user | >kernel | >softirq"
    } else {
        ""
    };
    let mut table = Table::new(&format!(
        "scenario | placement | switch | >trials | >Mpps | IQR | >loss | >busy cycles/frame | >core cycles/frame | >ring full | \
         >p50 µs | >p99 µs{more}"
    ));
    for (scenario, placement) in groups(rows, names) {
        for switch in switches {
            let these = kept(rows, switch, scenario, placement);
            let Some(mpps) = Spread::of(these.iter().map(|row| row.trial.mpps)) else {
                continue;
            };
            let mut cells = vec![
                these.len().to_string(),
                format!("{:.2}", mpps.median),
                format!("{:.2}-{:.2}", mpps.lower, mpps.upper),
                percent(of(&these, |t| Some(t.loss))),
                fixed(of(&these, |t| t.observed.busy_cycles), 0),
                fixed(of(&these, |t| t.core_cycles), 0),
                percent(of(&these, |t| Some(t.ring_full))),
                fixed(of(&these, |t| us(t.p50_ns)), 1),
                fixed(of(&these, |t| us(t.p99_ns)), 1),
            ];
            for share in shares.iter().filter(|_| has_shares) {
                let known = these.iter().filter_map(|row| row.trial.observed.shares);
                cells.push(fixed(median(known.filter_map(|shares| share(&shares))), 0));
            }
            let (name, cells) = (placement.name(), cells.join(" | "));
            table.row(format_args!("{scenario} | {name} | {switch} | {cells}"));
        }
    }
    table.to_string()
}

/// The cost of many addresses, and of quiet guests, relative to the same scenario without them.
fn over_plain(rows: &[Row], names: &[&str], switches: &[String]) -> Table {
    let mut table = Table::new(
        "scenario | placement | switch | >Mpps | >of the plain scenario's | \
         >busy cycles/frame over it | >core cycles/frame over it | \
         >first frame of a quiet guest, p50 µs | >p99 µs",
    );
    for (scenario, placement) in groups(rows, names) {
        let parsed: Option<Scenario> = scenario.parse().ok();
        let Some(plain) = parsed.and_then(|scenario| scenario.plain()) else {
            continue;
        };
        for switch in switches {
            let these = kept(rows, switch, scenario, placement);
            let plain = kept(rows, switch, &plain.to_string(), placement);
            let Some(mpps) = of(&these, |t| Some(t.mpps)) else {
                continue;
            };
            let over = |value: fn(&SearchTrial) -> Option<f64>| {
                Some(of(&these, value)? - of(&plain, value)?)
            };
            let part = of(&plain, |t| Some(t.mpps)).map(|plain| mpps / plain);
            table.row(format_args!(
                "{scenario} | {} | {switch} | {mpps:.2} | {} | {} | {} | {} | {}",
                placement.name(),
                percent(part),
                fixed(over(|t| t.observed.busy_cycles), 0),
                fixed(over(|t| t.core_cycles), 0),
                fixed(of(&these, |t| us(t.first_p50_ns)), 1),
                fixed(of(&these, |t| us(t.first_p99_ns)), 1),
            ));
        }
    }
    table
}

/// Large frames: bits per second, and cycles per KiB, headers included.
fn large(rows: &[Row], names: &[&str], switches: &[String]) -> Table {
    let mut table = Table::new(
        "scenario | placement | switch | >bytes | >Gb/s | >busy cycles/KiB | >core cycles/KiB",
    );
    for (scenario, placement) in groups(rows, names) {
        let parsed: Option<Scenario> = scenario.parse().ok();
        let Some(Frames::Large(shape)) = parsed.map(|scenario| scenario.frames) else {
            continue;
        };
        let bytes = shape.frame_len() as f64;
        for switch in switches {
            let these = kept(rows, switch, scenario, placement);
            let Some(mpps) = of(&these, |t| Some(t.mpps)) else {
                continue;
            };
            let per_kib = |cycles: Option<f64>| fixed(cycles.map(|c| c * 1024.0 / bytes), 1);
            table.row(format_args!(
                "{scenario} | {} | {switch} | {bytes} | {:.1} | {} | {}",
                placement.name(),
                mpps * bytes * 8.0 / 1e3,
                per_kib(of(&these, |t| t.observed.busy_cycles)),
                per_kib(of(&these, |t| t.core_cycles)),
            ));
        }
    }
    table
}

fn ratios(rows: &[Row], names: &[&str], first: &str, peer: &str) -> Table {
    let mut table = Table::new(&format!(
        "scenario | placement | >{first} / {peer} | IQR over rounds | >rounds | >core cycles, {peer} / {first}"
    ));
    for (scenario, placement) in groups(rows, names) {
        let [ours, theirs] = [first, peer].map(|switch| kept(rows, switch, scenario, placement));
        let mpps = |rows: &[Row]| -> Vec<(u32, f64)> {
            rows.iter().map(|row| (row.round, row.trial.mpps)).collect()
        };
        let (Some(ratio), Some(our_cycles), Some(their_cycles)) = (
            Ratio::of(&mpps(&ours), &mpps(&theirs)),
            of(&ours, |t| t.core_cycles),
            of(&theirs, |t| t.core_cycles),
        ) else {
            continue;
        };
        let (name, cycles) = (placement.name(), their_cycles / our_cycles);
        table.row(format_args!("{scenario} | {name} | {ratio} | {cycles:.2}"));
    }
    table
}

fn groups<'a>(rows: &[Row], names: &[&'a str]) -> Vec<(&'a str, Placement)> {
    let places = rows.iter().filter_map(|row| {
        let place = names.iter().position(|name| *name == row.scenario)?;
        Some((place, row.trial.observed.placement))
    });
    let groups: BTreeSet<(usize, Placement)> = places.collect();
    let named = |(place, placement): (usize, Placement)| (names[place], placement);
    groups.into_iter().map(named).collect()
}

fn kept<'a>(rows: &[Row<'a>], switch: &str, scenario: &str, placement: Placement) -> Vec<Row<'a>> {
    let these = rows
        .iter()
        .filter(|row| row.switch == switch && row.scenario == scenario);
    let these = these.filter(|row| row.trial.observed.placement == placement);
    these.copied().collect()
}

fn us(ns: Option<u64>) -> Option<f64> {
    ns.map(|ns| ns as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::made_up;
    use super::*;
    use crate::lab::trial::Discard;
    use crate::search::measure::Measurement;

    fn measured(scenario: &str, switch: &str, round: u32, mpps: &[f64]) -> Measurement {
        let mut measured = made_up().measurements.swap_remove(0);
        let some = measured.maxima[0].clone();
        measured.maxima = Vec::new();
        for &mpps in mpps {
            let mut trial = some.clone();
            (trial.mpps, trial.loss, trial.ring_full) = (mpps, 0.01, 0.25);
            (trial.p50_ns, trial.p99_ns) = (Some(10_000), None);
            trial.core_cycles = Some(2600.0 / mpps);
            trial.observed.placement = Placement::Near;
            trial.observed.busy_cycles = (switch == "crosspoint").then_some(100.0);
            measured.maxima.push(trial);
        }
        (measured.scenario, measured.switch) = (scenario.into(), switch.into());
        measured.round = round;
        measured
    }

    #[test]
    fn who_had_the_core_is_told_where_somebody_looked() {
        let mut results = made_up();
        results.measurements = vec![measured("nic-to-nic-64", "crosspoint", 0, &[2.0])];
        assert!(!tables(&results).contains("| kernel |"));
        results.measurements[0].maxima[0].observed.shares = Some(Shares {
            user: Some(300.0),
            kernel: Some(1000.0),
            softirq: None,
        });
        let text = tables(&results);
        let widths: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(widths, [16; 3]);
        assert!(text.contains("| - | 300 | 1000 | - |"), "{text}");
    }

    #[test]
    fn many_addresses_are_compared_with_one() {
        let mut results = made_up();
        results.switches = vec!["crosspoint".into()];
        results.measurements = vec![
            measured("pair-64", "crosspoint", 0, &[20.0]),
            measured("pair-64-4000macs", "crosspoint", 0, &[10.0]),
        ];
        let trial = &mut results.measurements[1].maxima[0];
        trial.observed.busy_cycles = Some(240.0);
        let row = "| pair-64-4000macs | near | crosspoint | 10.00 | 50.0 % | 140 | 130 | - | - |";
        let text = tables(&results);
        assert!(text.lines().any(|line| line == row), "{text}");
    }

    #[test]
    fn large_frames_have_bits_and_cycles_per_kib() {
        let mut results = made_up();
        results.measurements = vec![measured("tso", "crosspoint", 0, &[0.5])];
        let row = "| tso | near | crosspoint | 65226 | 260.9 | 1.6 | 81.6 |";
        let text = tables(&results);
        assert!(text.lines().any(|line| line == row), "{text}");
    }

    #[test]
    fn only_like_is_compared_with_like() {
        let mut results = made_up();
        results.switches = vec!["crosspoint".into(), "peer".into()];
        results.measurements = vec![
            measured("pairs4-64", "crosspoint", 0, &[20.0]),
            measured("pairs4-64", "crosspoint", 1, &[30.0]),
            measured("pairs4-64", "peer", 0, &[10.0]),
            measured("pairs4-64", "peer", 1, &[10.0, 5.0, 1000.0]),
            measured("chain2-64", "crosspoint", 0, &[7.0]),
        ];
        let last = &mut results.measurements[3].maxima;
        last[1].observed.placement = Placement::Far;
        last[2].discarded = Some(Discard::Waited);
        let text = tables(&results);
        let rows: Vec<&str> = text.lines().collect();
        let expected = [
            "| pairs4-64 | near | crosspoint | 2 | 25.00 | 22.50-27.50 | 1.0 % | 100 | 108 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | near | peer | 2 | 10.00 | 10.00-10.00 | 1.0 % | - | 260 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | far | peer | 1 | 5.00 | 5.00-5.00 | 1.0 % | - | 520 | 25.0 % | 10.0 | - |",
            "| chain2-64 | near | crosspoint | 1 | 7.00 | 7.00-7.00 | 1.0 % | 100 | 371 | 25.0 % | 10.0 | - |",
            "| pairs4-64 | near | 2.50 | 2.25-2.75 | 2 | 2.40 |",
        ];
        let mut at = 0;
        for row in expected {
            let found = rows[at..].iter().position(|line| *line == row);
            at += found.unwrap_or_else(|| panic!("{row}\n{text}")) + 1;
        }
    }
}
