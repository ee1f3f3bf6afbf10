//! The tables.

use crate::placement::Placement;
use crate::stats::{Spread, median};
use crate::trial::{Configuration, Discard, Trial};
use std::collections::BTreeSet;
use std::fmt::Write;

/// All tables, in Markdown.
pub fn tables(trials: &[Trial], switches: &[String]) -> String {
    let mut text = rates(trials, switches);
    for peer in switches.iter().skip(1) {
        text += "\n";
        text += &ratios(trials, &switches[0], peer);
    }
    let of = trials.iter().map(|t| (&*t.switch, t.discarded));
    text + "\n" + &discards("trials", of, switches)
}

fn rates(trials: &[Trial], switches: &[String]) -> String {
    let mut text = String::from(
        "| frame | flows | placement | switch | trials | Mpps | IQR | busy cycles/frame | core cycles/frame | loss | p50 µs | p99 µs |\n\
         |--:|--:|---|---|--:|--:|---|--:|--:|--:|--:|--:|\n",
    );
    for (configuration, placement) in groups(trials) {
        for switch in switches {
            let trials = kept(trials, switch, &configuration, placement);
            let Some(mpps) = Spread::of(trials.iter().map(|t| t.traffic.mpps)) else {
                continue;
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {switch} | {} | {:.2} | {:.2}-{:.2} | {} | {} | {} | {} | {} |",
                configuration.size,
                configuration.flows,
                placement.name(),
                trials.len(),
                mpps.median,
                mpps.lower,
                mpps.upper,
                cell(
                    median(trials.iter().filter_map(|t| t.observed.busy_cycles)),
                    0
                ),
                cell(median(trials.iter().map(|t| t.core_cycles)), 0),
                loss(median(trials.iter().map(|t| t.traffic.loss()))),
                cell(median(trials.iter().filter_map(|t| t.traffic.p50_us)), 1),
                cell(median(trials.iter().filter_map(|t| t.traffic.p99_us)), 1),
            );
        }
    }
    text
}

fn ratios(trials: &[Trial], first: &str, peer: &str) -> String {
    let mut text = format!(
        "| frame | flows | placement | {first} / {peer} | IQR over rounds | rounds |\n|--:|--:|---|--:|---|--:|\n"
    );
    for (configuration, placement) in groups(trials) {
        let of = |switch| kept(trials, switch, &configuration, placement);
        let Some(ratio) = ratio(&of(first), &of(peer)) else {
            continue;
        };
        let (iqr, rounds) = match Spread::of(ratio.by_round.iter().copied()) {
            Some(spread) => (
                format!("{:.2}-{:.2}", spread.lower, spread.upper),
                ratio.by_round.len(),
            ),
            None => ("".into(), 0),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {iqr} | {rounds} |",
            configuration.size,
            configuration.flows,
            placement.name(),
            ratio.of_medians,
        );
    }
    text
}

/// Table of each switch's `counted` things, and of those discarded, by reason. `of` yields each one's switch, and why it was
/// discarded.
pub fn discards<'a>(
    counted: &str,
    of: impl Iterator<Item = (&'a str, Option<Discard>)> + Clone,
    switches: &[String],
) -> String {
    let mut text = format!(
        "| switch | {counted} | discarded: a thread waited | discarded: placement | discarded: a core was slow | discarded: no traffic |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for switch in switches {
        let count = |why: Option<Discard>| {
            let these = of.clone().filter(|(whose, _)| whose == switch);
            these
                .filter(|(_, discarded)| why.is_none() || *discarded == why)
                .count()
        };
        let _ = writeln!(
            text,
            "| {switch} | {} | {} | {} | {} | {} |",
            count(None),
            count(Some(Discard::Waited)),
            count(Some(Discard::Placement)),
            count(Some(Discard::Clock)),
            count(Some(Discard::NoTraffic)),
        );
    }
    text
}

/// Ratio of two switches' rates.
struct Ratio {
    of_medians: f64,
    /// Ratios of the rounds in which both have trials.
    by_round: Vec<f64>,
}

fn ratio(first: &[&Trial], second: &[&Trial]) -> Option<Ratio> {
    let mpps = |trials: &[&Trial], round: Option<u32>| {
        let these = trials
            .iter()
            .filter(|t| round.is_none_or(|round| t.round == round));
        median(these.map(|t| t.traffic.mpps))
    };
    let rounds: BTreeSet<u32> = first.iter().map(|t| t.round).collect();
    let of_round = |round| Some(mpps(first, Some(round))? / mpps(second, Some(round))?);
    Some(Ratio {
        of_medians: mpps(first, None)? / mpps(second, None)?,
        by_round: rounds.into_iter().filter_map(of_round).collect(),
    })
}

fn groups(trials: &[Trial]) -> BTreeSet<(Configuration, Placement)> {
    let kept = trials.iter().filter(|t| t.discarded.is_none());
    kept.map(|t| (t.configuration.clone(), t.observed.placement))
        .collect()
}

fn kept<'a>(
    trials: &'a [Trial],
    switch: &str,
    configuration: &Configuration,
    placement: Placement,
) -> Vec<&'a Trial> {
    let these = trials
        .iter()
        .filter(|t| t.discarded.is_none() && t.switch == switch);
    these
        .filter(|t| &t.configuration == configuration && t.observed.placement == placement)
        .collect()
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

fn loss(part: Option<f64>) -> String {
    match part {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(part) => format!("{part:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::tests::trial;

    fn run() -> Vec<Trial> {
        let near = Placement::Near;
        let mut trials = vec![
            trial("crosspoint", 0, near, 20.0),
            trial("crosspoint", 1, near, 30.0),
            trial("peer", 0, near, 10.0),
            trial("peer", 1, near, 10.0),
            trial("peer", 1, Placement::Far, 5.0),
            trial("peer", 1, near, 1000.0),
        ];
        trials[5].discarded = Some(Discard::Waited);
        trials
    }

    fn switches() -> [String; 2] {
        ["crosspoint".into(), "peer".into()]
    }

    #[test]
    fn ratios_stay_within_placement_and_leave_out_the_discarded() {
        let text = ratios(&run(), "crosspoint", "peer");
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows, ["| 64 | 1 | near | 2.50 | 2.25-2.75 | 2 |"]);
    }

    #[test]
    fn rates_have_a_row_per_placement_and_switch() {
        let text = rates(&run(), &switches());
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 64 | 1 | near | crosspoint | 2 | 25.00 | 22.50-27.50 | 100 | 108 | 1e-2 | 10.0 | 20.0 |",
                "| 64 | 1 | near | peer | 2 | 10.00 | 10.00-10.00 | 100 | 260 | 1e-2 | 10.0 | 20.0 |",
                "| 64 | 1 | far | peer | 1 | 5.00 | 5.00-5.00 | 100 | 520 | 1e-2 | 10.0 | 20.0 |",
            ]
        );
    }

    #[test]
    fn every_discarded_trial_is_counted() {
        let trials = run();
        let of = trials.iter().map(|t| (&*t.switch, t.discarded));
        let text = discards("trials", of, &switches());
        assert!(
            text.ends_with("| crosspoint | 2 | 0 | 0 | 0 | 0 |\n| peer | 4 | 1 | 0 | 0 | 0 |\n"),
            "{text}"
        );
    }
}
