//! Values of any kind, and their tables.

use super::table::{Table, number};
use crate::lab::placement::Placement;
use crate::lab::trial::Discard;
use crate::stats::{Ratio, Spread};
use serde::Serialize;
use std::collections::BTreeSet;

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
        text += &ratios(samples, &switches[0], peer).to_string();
    }
    let of = samples.iter().map(|s| (&*s.switch, s.discarded));
    text + "\n" + &discards("values", of, switches)
}

/// Medians and quartiles, by measurement, placement and switch.
pub fn medians(samples: &[Sample], switches: &[String]) -> String {
    let mut table = Table::new("what | placement | switch | >trials | >median | IQR");
    for (what, placement) in groups(samples) {
        for switch in switches {
            let values = kept(samples, switch, what, placement);
            let Some(spread) = Spread::of(values.iter().map(|(_, value)| *value)) else {
                continue;
            };
            let [middle, lower, upper] = [spread.median, spread.lower, spread.upper].map(number);
            let (name, count) = (placement.name(), values.len());
            let (start, end) = (
                format!("{what} | {name} | {switch}"),
                format!("{lower}-{upper}"),
            );
            table.row(format_args!("{start} | {count} | {middle} | {end}"));
        }
    }
    table.to_string()
}

/// Ratios of `first` to `peer`, by measurement and placement.
pub fn ratios(samples: &[Sample], first: &str, peer: &str) -> Table {
    let titles = format!("what | placement | >{first} / {peer} | IQR over rounds | >rounds");
    let mut table = Table::new(&titles);
    for (what, placement) in groups(samples) {
        let of = |switch| kept(samples, switch, what, placement);
        let Some(ratio) = Ratio::of(&of(first), &of(peer)) else {
            continue; // no divisor
        };
        table.row(format_args!("{what} | {} | {ratio}", placement.name()));
    }
    table
}

/// Table of each switch's `counted` things, and of those discarded, by reason. `of` yields each one's switch, and why it was
/// discarded.
pub fn discards<'a>(
    counted: &str,
    of: impl Iterator<Item = (&'a str, Option<Discard>)> + Clone,
    switches: &[String],
) -> String {
    let mut table = Table::new(&format!(
        "switch | >{counted} | >discarded: a thread waited | >discarded: placement | >discarded: a core was slow | \
         >discarded: no traffic"
    ));
    for switch in switches {
        let count = |why: Option<Discard>| {
            let these = of.clone().filter(|(whose, _)| whose == switch);
            let these = these.filter(|(_, discarded)| why.is_none() || *discarded == why);
            these.count()
        };
        table.row(format_args!(
            "{switch} | {} | {} | {} | {} | {}",
            count(None),
            count(Some(Discard::Waited)),
            count(Some(Discard::Placement)),
            count(Some(Discard::Clock)),
            count(Some(Discard::NoTraffic)),
        ));
    }
    table.to_string()
}

fn groups(samples: &[Sample]) -> BTreeSet<(&str, Placement)> {
    let kept = samples.iter().filter(|s| s.discarded.is_none());
    kept.map(|s| (s.what.as_str(), s.placement)).collect()
}

/// Values that count, each with its round.
fn kept(samples: &[Sample], switch: &str, what: &str, placement: Placement) -> Vec<(u32, f64)> {
    let these = samples
        .iter()
        .filter(|s| s.discarded.is_none() && s.switch == switch);
    let these = these.filter(|s| s.what == what && s.placement == placement);
    these.map(|s| (s.round, s.value)).collect()
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
