//! The options of a search.

use super::goal::Goal;
use super::trials::Limits;
use crate::lab::placement::Placement;
use clap::Args;
use std::time::Duration;

/// Options of a search. Its last trials are as long as all others (`--trial-ms`).
#[derive(Args, Clone, Debug)]
pub struct SearchOptions {
    /// Search for the non-drop rate and the partial-drop rate
    #[arg(long)]
    pub search: bool,
    /// Measure latency at 0, 10, 50 and 90 % of the partial-drop rate
    #[arg(long, requires = "search")]
    pub latency: bool,
    /// Length of a search's first trials, milliseconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub initial_trial_ms: u64,
    /// Total length of the trials at one load, milliseconds, if they do not decide earlier; default: five trials
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub duration_sum_ms: Option<u64>,
    /// Partial-drop rate: percent of the frames that may be lost
    #[arg(long, default_value_t = 0.5, value_name = "PERCENT", value_parser = percent)]
    pub partial_drop: f64,
    /// Percent of the trials at a load that may lose more
    #[arg(long, default_value_t = 50.0, value_name = "PERCENT", value_parser = percent)]
    pub exceed: f64,
    /// Bounds are close enough if they differ by at most this
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT", value_parser = width)]
    pub width: f64,
    /// Most trials of a search
    #[arg(long, default_value_t = 400)]
    pub trials_max: usize,
    /// Number of times that a disturbed trial is repeated
    #[arg(long, default_value_t = 20)]
    pub repeats: usize,
    /// Number of trials in a row of the other placement that are set aside before the search ends
    #[arg(long, default_value_t = 200)]
    pub patience: usize,
    /// The placement to search in; default: that of a search's first trial that counts
    #[arg(long, value_enum)]
    pub placement: Option<Placement>,
}

impl SearchOptions {
    /// Goals of non-drop and partial-drop rate, with last trials of this length.
    pub fn goals(&self, trial: Duration) -> Vec<Goal> {
        let initial = Duration::from_millis(self.initial_trial_ms);
        let mut goals = Goal::usual(initial.as_secs_f64(), trial.as_secs_f64());
        for goal in &mut goals {
            goal.exceed_ratio = self.exceed / 100.0;
            goal.width = self.width / 100.0;
            if goal.loss_ratio > 0.0 {
                goal.loss_ratio = self.partial_drop / 100.0;
            }
            if let Some(sum) = self.duration_sum_ms {
                goal.duration_sum = Duration::from_millis(sum).as_secs_f64();
            }
        }
        goals
    }

    /// The limits of a search.
    pub fn limits(&self) -> Limits {
        Limits {
            trials_max: self.trials_max,
            repeats_max: self.repeats,
            patience: self.patience,
            placement: self.placement,
            ..Limits::default()
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..100.0).contains(&percent) => Ok(percent),
        _ => Err("a number from 0 to below 100".into()),
    }
}

/// Trials of usual length cannot distinguish less than a thousandth.
fn width(text: &str) -> Result<f64, String> {
    match percent(text) {
        Ok(width) if (0.1..=50.0).contains(&width) => Ok(width),
        _ => Err("a number from 0.1 to 50".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn goals_are_those_of_the_readme_unless_asked_otherwise() {
        let trial = Duration::from_millis(300);
        assert_eq!(
            parse::<SearchOptions>(&[]).goals(trial),
            Goal::usual(0.06, 0.3)
        );
        let asked = ["--partial-drop", "0.1", "--width", "2", "--exceed", "25"];
        let goals = parse::<SearchOptions>(&asked).goals(trial);
        assert_eq!((goals[0].loss_ratio, goals[1].loss_ratio), (0.0, 0.001));
        assert!(goals.iter().all(|goal| goal.width == 0.02));
        assert!(goals.iter().all(|goal| goal.exceed_ratio == 0.25));
    }

    #[test]
    fn a_search_may_be_asked_for_a_placement() {
        assert_eq!(parse::<SearchOptions>(&[]).limits().placement, None);
        let far = parse::<SearchOptions>(&["--placement", "far"]).limits();
        assert_eq!(far.placement, Some(Placement::Far));
    }
}
