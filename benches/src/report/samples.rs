//! Values of trials, grouped by what was measured, placement and switch.

use crate::lab::{Discard, Placement};
use crate::report::{Table, number};
use crate::stats::{Ratio, Spread};
use serde::Serialize;

/// The value of one trial.
#[derive(Clone, Debug, Serialize)]
pub struct Sample<T> {
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// What was measured.
    pub what: String,
    /// The value.
    pub value: T,
    /// Distance of the cores before and after.
    pub placement: Placement,
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

/// Samples that count, of one measurement in one placement.
pub struct Group<'a, T> {
    /// What was measured.
    pub what: &'a str,
    /// The placement.
    pub placement: Placement,
    samples: Vec<&'a Sample<T>>,
}

impl<'a, T> Group<'a, T> {
    /// The samples of a switch.
    pub fn of(&self, switch: &str) -> Vec<&'a Sample<T>> {
        let these = self.samples.iter().filter(|s| s.switch == switch);
        these.copied().collect()
    }
}

/// All groups: measurements in the order of their first samples, near before far.
pub fn groups<T>(samples: &[Sample<T>]) -> Vec<Group<'_, T>> {
    let mut names: Vec<&str> = Vec::new();
    for sample in samples {
        if !names.contains(&sample.what.as_str()) {
            names.push(&sample.what);
        }
    }
    let counted = || samples.iter().filter(|s| s.discarded.is_none());
    let group = |what, placement| {
        let these = counted().filter(|s| s.what == what && s.placement == placement);
        let samples: Vec<_> = these.collect();
        (!samples.is_empty()).then_some(Group {
            what,
            placement,
            samples,
        })
    };
    let in_all = |what| Placement::ALL.iter().filter_map(move |p| group(what, *p));
    names.into_iter().flat_map(in_all).collect()
}

/// All tables of numbers, in Markdown.
pub fn tables(samples: &[Sample<f64>], switches: &[String]) -> String {
    let mut table = Table::new("what | placement | switch | >trials | >median | IQR");
    for group in groups(samples) {
        let start = format!("{} | {}", group.what, group.placement.name());
        for switch in switches {
            let these = group.of(switch);
            let Some(spread) = Spread::of(these.iter().map(|sample| sample.value)) else {
                continue;
            };
            let [middle, lower, upper] = [spread.median, spread.lower, spread.upper].map(number);
            let count = these.len();
            table.row(format_args!(
                "{start} | {switch} | {count} | {middle} | {lower}-{upper}"
            ));
        }
    }
    let ratios = ratios(samples, switches, |value| *value);
    format!("{table}{ratios}\n{}", discards(samples, switches))
}

/// A table for each switch but the first: the ratio of the first one's values to its own.
pub fn ratios<T>(samples: &[Sample<T>], switches: &[String], value: fn(&T) -> f64) -> String {
    let first = &switches[0];
    let of_peer = |peer: &String| {
        let titles = format!("what | placement | >{first} / {peer} | IQR over rounds | >rounds");
        let mut table = Table::new(&titles);
        for group in groups(samples) {
            let of = |switch| -> Vec<(u32, f64)> {
                let these = group.of(switch).into_iter();
                these.map(|s| (s.round, value(&s.value))).collect()
            };
            if let Some(ratio) = Ratio::of(&of(first), &of(peer)) {
                let name = group.placement.name();
                table.row(format_args!("{} | {name} | {ratio}", group.what));
            }
        }
        table.under("")
    };
    switches.iter().skip(1).map(of_peer).collect()
}

/// Table of each switch's samples, and of those discarded, by reason.
pub fn discards<T>(samples: &[Sample<T>], switches: &[String]) -> String {
    let mut table = Table::new(
        "switch | >all | >discarded: a thread waited | >discarded: placement | >discarded: a core was slow | \
         >discarded: no traffic",
    );
    for switch in switches {
        let these = || samples.iter().filter(|sample| &sample.switch == switch);
        let count = |why| these().filter(|s| s.discarded == Some(why)).count();
        table.row(format_args!(
            "{switch} | {} | {} | {} | {} | {}",
            these().count(),
            count(Discard::Waited),
            count(Discard::Placement),
            count(Discard::Clock),
            count(Discard::NoTraffic),
        ));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_leave_out_the_discarded_and_keep_placements_apart() {
        let sample = |switch: &str, round, value| Sample {
            switch: switch.into(),
            round,
            what: "Gb/s".into(),
            value,
            placement: Placement::Near,
            discarded: None,
        };
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
