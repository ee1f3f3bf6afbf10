//! The rows, and their table.

use super::attacker::{Attack, Done};
use super::options::{FairnessOptions, Victim};
use super::victim::Phase;
use crate::lab::Placement;
use crate::report::Table;
use crate::stats::{Spread, median};
use serde::Serialize;
use std::fmt::Write;

/// A victim's results alone and under attack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Round {
    /// With the attacker attached, but not attacking.
    pub alone: Phase,
    /// During the attack.
    pub attacked: Phase,
}

/// One attack on one victim.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub attack: String,
    /// A description.
    pub about: String,
    /// The victim.
    pub victim: Victim,
    /// The victim's fair part of the worker, 0 to 1.
    pub fair_part: Option<f64>,
    /// The rounds, in order.
    pub rounds: Vec<Round>,
    /// The attacker's report.
    pub attacker: Option<Done>,
    /// How long it attacked, seconds.
    pub attack_seconds: f64,
    /// Why there are no more rounds.
    pub failed: Option<String>,
}

impl Round {
    /// Part of the rate alone that is kept under attack; `None` if that rate is 0.
    fn kept(&self) -> Option<f64> {
        (self.alone.mpps > 0.0).then(|| self.attacked.mpps / self.alone.mpps)
    }

    /// The placement of both measurements, if it was the same.
    fn placement(&self) -> Placement {
        match self.alone.placement == self.attacked.placement {
            true => self.alone.placement,
            false => Placement::Mixed,
        }
    }
}

impl Row {
    /// A row without rounds.
    pub fn new(attack: &Attack, victim: Victim, fair_part: Option<f64>) -> Self {
        Self {
            attack: attack.name.clone(),
            about: attack.about.clone(),
            victim,
            fair_part,
            rounds: Vec::new(),
            attacker: None,
            attack_seconds: 0.0,
            failed: None,
        }
    }

    /// Rounds whose two placements are equal; all rounds, if there are none.
    fn comparable(&self) -> Vec<&Round> {
        let clear = |round: &&Round| round.placement() != Placement::Mixed;
        let rounds: Vec<&Round> = self.rounds.iter().filter(clear).collect();
        match rounds.is_empty() {
            true => self.rounds.iter().collect(),
            false => rounds,
        }
    }

    fn add_to(&self, table: &mut Table) {
        let rounds = self.comparable();
        let kept = Spread::of(rounds.iter().filter_map(|round| round.kept()));
        let percent = |part: f64| format!("{:.1} %", part * 100.0);
        let spread = |kept: Spread| {
            let [lower, upper] = [kept.lower, kept.upper].map(|part| part * 100.0);
            format!("{} ({lower:.1} to {upper:.1})", percent(kept.median))
        };
        let share = kept.zip(self.fair_part);
        let times = |of: fn(&Round) -> &Phase| {
            let middle = |of_phase: fn(&Phase) -> Option<f64>| {
                let values = rounds.iter().filter_map(|round| of_phase(of(round)));
                median(values).map_or("none".into(), |us| format!("{us:.1}"))
            };
            match rounds.is_empty() {
                true => String::new(),
                false => format!("{} / {}", middle(|p| p.p50_us), middle(|p| p.p99_us)),
            }
        };
        let jain = median(rounds.iter().filter_map(|round| round.attacked.jain));
        let lost = median(rounds.iter().map(|round| round.attacked.loss()));
        table.row(format_args!(
            "{} | {} | {} | {} | {} | {} | {} | {} | {} | {}",
            self.attack,
            self.victim.name(),
            kept.map_or(String::new(), spread),
            share.map_or(String::new(), |(kept, fair)| percent(kept.median / fair)),
            jain.map_or(String::new(), |index| format!("{index:.4}")),
            times(|round| &round.alone),
            times(|round| &round.attacked),
            lost.map_or(String::new(), |part| format!("{:.2} %", part * 100.0)),
            placements(&rounds),
            self.attackers_rate(),
        ));
    }

    /// The attacker's rate of frames taken by the switch, and whether it had more.
    fn attackers_rate(&self) -> String {
        let Some(done) = &self.attacker else {
            return String::new();
        };
        let per_s = done.taken as f64 / self.attack_seconds.max(1e-9);
        let dry = done.dry as f64 * 100.0 / done.looks.max(1) as f64;
        let closed = if done.closed { ", disconnected" } else { "" };
        format!("{}, dry {dry:.0} %{closed}", si(per_s))
    }
}

/// The number of rounds in each placement.
fn placements(rounds: &[&Round]) -> String {
    let count = |placement: &Placement| {
        let is = |round: &&&Round| round.placement() == *placement;
        match rounds.iter().filter(is).count() {
            0 => None,
            count => Some(format!("{} {count}", placement.name())),
        }
    };
    let counts = Placement::ALL.iter().filter_map(count);
    counts.collect::<Vec<_>>().join(", ")
}

fn si(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M/s", value / 1e6),
        value if value >= 1e3 => format!("{:.1} k/s", value / 1e3),
        value => format!("{value:.0} /s"),
    }
}

fn rows(rows: &[Row], rate: u64) -> Table {
    let mut table = Table::new(&format!(
        "attack | victim | >kept | >of fair share | >Jain's index | >p50/p99 alone, us | >p50/p99 attacked, us | >lost at {} | \
         placement | >attacker's frames",
        si(rate as f64)
    ));
    rows.iter().for_each(|row| row.add_to(&mut table));
    table
}

/// The report, in Markdown.
pub fn report(options: &FairnessOptions, all: &[Row]) -> String {
    let mut text = format!("{}\n\n{}", options.settings(), rows(all, options.rate));
    for row in all {
        if let Some(why) = &row.failed {
            let _ = writeln!(
                text,
                "\n{} on {} failed: {why}",
                row.attack,
                row.victim.name()
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(mpps: f64, placement: Placement) -> Phase {
        Phase {
            mpps,
            due: 1000,
            arrived: 990,
            p50_us: Some(5.0),
            p99_us: None,
            jain: Some(0.99876),
            placement,
        }
    }

    fn round(kept: f64, alone: Placement, attacked: Placement) -> Round {
        Round {
            alone: phase(2.0, alone),
            attacked: phase(2.0 * kept, attacked),
        }
    }

    #[test]
    fn only_like_is_compared_with_like() {
        let attack = Attack::parse("plain-60 1 1 1 apart frames").unwrap();
        let mut row = Row::new(&attack, Victim::Guest, Some(0.5));
        row.rounds = vec![
            round(0.4, Placement::Near, Placement::Near),
            round(4.0, Placement::Near, Placement::Far),
            round(0.2, Placement::Far, Placement::Far),
        ];
        let text = rows(std::slice::from_ref(&row), 20_000).to_string();
        assert_eq!(
            text.lines().nth(2).unwrap(),
            "| plain-60 | guest | 30.0 % (25.0 to 35.0) | 60.0 % | 0.9988 | 5.0 / none | 5.0 / none | 1.00 % | near 1, far 1 |  |"
        );
        row.rounds = vec![round(0.4, Placement::Near, Placement::Far)];
        let text = rows(&[row], 20_000).to_string();
        assert!(text.contains("| mixed 1 |"), "{text}");
    }
}
