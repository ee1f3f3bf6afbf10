//! The tables of `nic`.

use crate::placement::Placement;
use crate::report::discards;
use crate::samples::number;
use crate::stats::{Spread, median};
use crate::trial::Discard;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write;

/// One trial.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Name of the switch.
    pub switch: String,
    /// From 0.
    pub round: u32,
    /// Place of the configuration in the order of measuring.
    pub order: usize,
    /// Path, size, flows.
    pub what: String,
    /// What came of it.
    #[serde(flatten)]
    pub values: Values,
    /// How far apart the cores were before and after.
    pub placement: Placement,
    /// Percent of the time that the generator's thread, and the switch's, waited for their cores.
    pub waits: [Option<f64>; 2],
    /// Why it does not count.
    pub discarded: Option<Discard>,
}

/// What a trial measured. Cycles are of the switch's core, by the time stamp counter, per frame that arrived.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Values {
    /// Millions of frames per second that arrived within the trial.
    pub mpps: f64,
    /// Millions of frames per second that were sent.
    pub sent_mpps: f64,
    /// Part of the frames that did not arrive.
    pub loss: f64,
    /// Most frames lost in a row, where the sink is not the guest.
    pub loss_run_max: u64,
    /// In the switch's program: with crosspoint, in turns that found work.
    pub user_cycles: Option<f64>,
    /// In the kernel on behalf of the switch's thread, or, without one, on its core.
    pub kernel_cycles: Option<f64>,
    /// In softirq on that core.
    pub softirq_cycles: Option<f64>,
    /// Part of the guest's tries that found the transmit ring full.
    pub ring_full: Option<f64>,
    /// Median time from generator to sink.
    pub p50_us: Option<f64>,
    /// 99 in 100 frames took less.
    pub p99_us: Option<f64>,
}

/// All tables, in Markdown.
pub fn tables(trials: &[Trial], switches: &[String]) -> String {
    let mut text = medians(trials, switches);
    for peer in switches.iter().skip(1) {
        text += "\n";
        text += &ratios(trials, &switches[0], peer);
    }
    let of = trials.iter().map(|t| (&*t.switch, t.discarded));
    text + "\n" + &discards("trials", of, switches)
}

fn medians(trials: &[Trial], switches: &[String]) -> String {
    let mut text = String::from(
        "| what | placement | switch | trials | Mpps | IQR | sent | loss | user cycles/frame | kernel cycles/frame | of the core: softirq | ring found full | p50 µs | p99 µs |\n\
         |---|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (order, placement) in groups(trials) {
        for switch in switches {
            let kept = kept(trials, switch, order, placement);
            let Some(mpps) = Spread::of(kept.iter().map(|t| t.values.mpps)) else {
                continue;
            };
            let cell = |of: fn(&Values) -> Option<f64>| {
                let middle = median(kept.iter().filter_map(|t| of(&t.values)));
                middle.map_or("-".to_owned(), number)
            };
            let _ = writeln!(
                text,
                "| {} | {} | {switch} | {} | {:.3} | {:.3}-{:.3} | {} | {} | {} | {} | {} | {} | {} | {} |",
                kept[0].what,
                placement.name(),
                kept.len(),
                mpps.median,
                mpps.lower,
                mpps.upper,
                cell(|v| Some(v.sent_mpps)),
                cell(|v| Some(v.loss)),
                cell(|v| v.user_cycles),
                cell(|v| v.kernel_cycles),
                cell(|v| v.softirq_cycles),
                cell(|v| v.ring_full),
                cell(|v| v.p50_us),
                cell(|v| v.p99_us),
            );
        }
    }
    text
}

fn ratios(trials: &[Trial], first: &str, peer: &str) -> String {
    let mut text = format!(
        "| what | placement | {first} / {peer}, Mpps | IQR over rounds | rounds |\n|---|---|--:|---|--:|\n"
    );
    for (order, placement) in groups(trials) {
        let [ours, theirs] = [first, peer].map(|switch| kept(trials, switch, order, placement));
        let ratio = |round: Option<u32>| {
            let of = |trials: &[&Trial]| {
                let these = trials
                    .iter()
                    .filter(|t| round.is_none_or(|round| t.round == round));
                median(these.map(|t| t.values.mpps))
            };
            Some(of(&ours)? / of(&theirs)?)
        };
        let Some(of_medians) = ratio(None).filter(|ratio| ratio.is_finite()) else {
            continue; // nothing to divide by
        };
        let rounds: BTreeSet<u32> = ours.iter().map(|t| t.round).collect();
        let by_round: Vec<f64> = rounds.into_iter().filter_map(|r| ratio(Some(r))).collect();
        let iqr = Spread::of(by_round.iter().copied()).map_or(String::new(), |spread| {
            format!("{:.2}-{:.2}", spread.lower, spread.upper)
        });
        let _ = writeln!(
            text,
            "| {} | {} | {of_medians:.2} | {iqr} | {} |",
            ours[0].what,
            placement.name(),
            by_round.len(),
        );
    }
    text
}

fn groups(trials: &[Trial]) -> BTreeSet<(usize, Placement)> {
    let kept = trials.iter().filter(|t| t.discarded.is_none());
    kept.map(|t| (t.order, t.placement)).collect()
}

fn kept<'a>(
    trials: &'a [Trial],
    switch: &str,
    order: usize,
    placement: Placement,
) -> Vec<&'a Trial> {
    let these = trials
        .iter()
        .filter(|t| t.discarded.is_none() && t.switch == switch);
    these
        .filter(|t| t.order == order && t.placement == placement)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(switch: &str, round: u32, mpps: f64) -> Trial {
        Trial {
            switch: switch.into(),
            round,
            order: 0,
            what: "NIC to NIC".into(),
            values: Values {
                mpps,
                sent_mpps: 4.0,
                kernel_cycles: Some(2000.0),
                ..Values::default()
            },
            placement: Placement::Near,
            waits: [None; 2],
            discarded: None,
        }
    }

    #[test]
    fn tables_leave_out_the_discarded_and_keep_placements_apart() {
        let mut trials = vec![
            trial("crosspoint", 0, 2.0),
            trial("crosspoint", 1, 3.0),
            trial("peer", 0, 1.0),
            trial("peer", 1, 1.0),
            trial("peer", 1, 0.5),
            trial("peer", 1, 1000.0),
        ];
        trials[4].placement = Placement::Far;
        trials[5].discarded = Some(Discard::Waited);
        let text = tables(&trials, &["crosspoint".into(), "peer".into()]);
        for row in [
            "| NIC to NIC | near | crosspoint | 2 | 2.500 | 2.250-2.750 | 4.00 | 0.000 | - | 2000 | - | - | - | - |",
            "| NIC to NIC | far | peer | 1 | 0.500 | 0.500-0.500 | 4.00 | 0.000 | - | 2000 | - | - | - | - |",
            "| NIC to NIC | near | 2.50 | 2.25-2.75 | 2 |",
            "| peer | 4 | 1 | 0 | 0 |",
        ] {
            assert!(text.lines().any(|line| line == row), "{row}\n{text}");
        }
    }
}
