//! Values of any kind, and their tables.

use crate::placement::Placement;
use crate::report::discards;
use crate::stats::{Spread, median};
use crate::trial::Discard;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write;

/// One value of one trial.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// What was measured, with its unit.
    pub what: String,
    /// The value.
    pub value: f64,
    /// Distance of the cores before and after.
    pub placement: Placement,
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

/// All tables, in Markdown.
pub fn tables(samples: &[Sample], switches: &[String]) -> String {
    let mut text = medians(samples, switches);
    for peer in switches.iter().skip(1) {
        text += "\n";
        text += &ratios(samples, &switches[0], peer);
    }
    let of = samples.iter().map(|s| (&*s.switch, s.discarded));
    text + "\n" + &discards("values", of, switches)
}

/// Medians and quartiles, by measurement, placement and switch.
pub fn medians(samples: &[Sample], switches: &[String]) -> String {
    let mut text = String::from(
        "| what | placement | switch | trials | median | IQR |\n|---|---|---|--:|--:|---|\n",
    );
    for (what, placement) in groups(samples) {
        for switch in switches {
            let values = kept(samples, switch, what, placement);
            let Some(spread) = Spread::of(values.iter().map(|s| s.value)) else {
                continue;
            };
            let [middle, lower, upper] = [spread.median, spread.lower, spread.upper].map(number);
            let _ = writeln!(
                text,
                "| {what} | {} | {switch} | {} | {middle} | {lower}-{upper} |",
                placement.name(),
                values.len(),
            );
        }
    }
    text
}

/// Ratios of `first` to `peer`, by measurement and placement.
pub fn ratios(samples: &[Sample], first: &str, peer: &str) -> String {
    let mut text = format!(
        "| what | placement | {first} / {peer} | IQR over rounds | rounds |\n|---|---|--:|---|--:|\n"
    );
    for (what, placement) in groups(samples) {
        let ours = kept(samples, first, what, placement);
        let theirs = kept(samples, peer, what, placement);
        let ratio = |round: Option<u32>| {
            let of = |samples: &[&Sample]| {
                let these = samples
                    .iter()
                    .filter(|s| round.is_none_or(|round| s.round == round));
                median(these.map(|s| s.value))
            };
            Some(of(&ours)? / of(&theirs)?)
        };
        let Some(of_medians) = ratio(None).filter(|ratio| ratio.is_finite()) else {
            continue; // no divisor
        };
        let rounds: BTreeSet<u32> = ours.iter().map(|s| s.round).collect();
        let by_round: Vec<f64> = rounds.into_iter().filter_map(|r| ratio(Some(r))).collect();
        let iqr = Spread::of(by_round.iter().copied()).map_or(String::new(), |spread| {
            format!("{:.2}-{:.2}", spread.lower, spread.upper)
        });
        let _ = writeln!(
            text,
            "| {what} | {} | {of_medians:.2} | {iqr} | {} |",
            placement.name(),
            by_round.len(),
        );
    }
    text
}

fn groups(samples: &[Sample]) -> BTreeSet<(&str, Placement)> {
    let kept = samples.iter().filter(|s| s.discarded.is_none());
    kept.map(|s| (s.what.as_str(), s.placement)).collect()
}

fn kept<'a>(
    samples: &'a [Sample],
    switch: &str,
    what: &str,
    placement: Placement,
) -> Vec<&'a Sample> {
    let these = samples
        .iter()
        .filter(|s| s.discarded.is_none() && s.switch == switch);
    these
        .filter(|s| s.what == what && s.placement == placement)
        .collect()
}

/// A number with three digits, or with all digits before the point.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(switch: &str, round: u32, value: f64) -> Sample {
        Sample {
            switch: switch.into(),
            round,
            what: "Gb/s".into(),
            value,
            placement: Placement::Near,
            discarded: None,
        }
    }

    #[test]
    fn tables_leave_out_the_discarded_and_keep_placements_apart() {
        let mut samples = vec![
            sample("crosspoint", 0, 20.0),
            sample("crosspoint", 1, 30.0),
            sample("peer", 0, 10.0),
            sample("peer", 1, 10.0),
            sample("peer", 1, 5.0),
            sample("peer", 1, 1000.0),
        ];
        samples[4].placement = Placement::Far;
        samples[5].discarded = Some(Discard::Waited);
        let text = tables(&samples, &["crosspoint".into(), "peer".into()]);
        for row in [
            "| Gb/s | near | crosspoint | 2 | 25.0 | 22.5-27.5 |",
            "| Gb/s | near | peer | 2 | 10.0 | 10.0-10.0 |",
            "| Gb/s | far | peer | 1 | 5.00 | 5.00-5.00 |",
            "| Gb/s | near | 2.50 | 2.25-2.75 | 2 |",
            "| peer | 4 | 1 | 0 | 0 | 0 |",
        ] {
            assert!(text.lines().any(|line| line == row), "{row}\n{text}");
        }
    }
}
