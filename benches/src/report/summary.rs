//! The report of a run, in Markdown.

use super::plot::Plot;
use super::results::Results;
use super::samples::{discards, medians, ratios};
use super::table::{Table, fixed, percent};
use super::throughput;
use super::values::{latency_groups, latency_of, samples};
use crate::lab::placement::Placement;
use crate::search::latency::Times;
use crate::search::measure::Measurement;
use crate::search::trials::{Ended, MAXIMUM, SearchTrial};
use crate::search::{GoalResult, SearchResult};
use crate::stats::median;
use std::collections::BTreeSet;

/// The report. Plots follow the tables that they show.
pub fn report(results: &Results, plots: &[Plot]) -> String {
    let mut text = heading(results);
    text += "\n## Maximum receive rates\n\nMpps that arrived, of all frames that the switch accepted; over trials, ratios over rounds.\n\n";
    text += &throughput::tables(results);
    text += &images(plots, "rates");
    text += &images(plots, "cycles");
    if results.measurements.iter().any(|m| m.search.is_some()) {
        text += &searched(results, plots);
    }
    if results.measurements.iter().any(|m| !m.latency.is_empty()) {
        text += "\n## Latency\n\nMicroseconds, from when a frame was due until the sink saw it; medians over rounds. \
                 The generator's turns limit the precision: a frame waits for up to one turn before it is sent, and for up to one before it is seen.\n\n";
        text += &latency(results);
        text += &images(plots, "latency");
    }
    text += "\n## Trials\n\n";
    let every = || results.measurements.iter();
    let of = every().flat_map(|m| m.trials().map(|t| (m.switch.as_str(), t.discarded)));
    text += &discards("trials", of, &results.switches);
    text += &set_aside(results);
    text + &not_measured(results)
}

fn searched(results: &Results, plots: &[Plot]) -> String {
    let mut text = String::from("\n## Non-drop and partial-drop rates\n\nMpps; over rounds.\n\n");
    let mut samples = samples(results);
    samples.retain(|sample| !sample.what.ends_with(MAXIMUM));
    text += &medians(&samples, &results.switches);
    for peer in results.switches.iter().skip(1) {
        text += &ratios(&samples, &results.switches[0], peer).if_any();
    }
    text += "\n### Searches\n\n";
    text += &searches(results);
    text += &images(plots, "loss");
    text += "\n### Frames lost in a row\n\nTrials that count, up to the upper bound of the last goal.\n\n";
    text + &loss_runs(results)
}

fn not_measured(results: &Results) -> String {
    let mut table = Table::new("scenario | switch | why");
    for skip in &results.skipped {
        table.row(format_args!(
            "{} | {} | {}",
            skip.scenario, skip.switch, skip.why
        ));
    }
    for failure in &results.failed {
        let why = failure.why.replace('\n', " ").replace('|', "/");
        let (scenario, switch) = (&failure.scenario, &failure.switch);
        let round = failure.round;
        table.row(format_args!(
            "{scenario}, round {round} | {switch} | failed: {why}"
        ));
    }
    match table.if_any() {
        table if table.is_empty() => table,
        table => format!("\n## Not measured\n{table}"),
    }
}

fn heading(results: &Results) -> String {
    let bounds = &results.bounds;
    format!(
        "# Rates and latency\n\n`{}`\n\n{}.\n\nNear below {} ns, far above {} ns{}; a thread may wait for {} %.\n\n{}.\n",
        results.arguments.join(" "),
        results.machine,
        bounds.near_ns,
        bounds.far_ns,
        round_trips(results),
        bounds.wait_max,
        results.settings,
    )
}

/// Medians of a line's round trips in all trials that count, by placement.
fn round_trips(results: &Results) -> String {
    let trials = results.measurements.iter().flat_map(Measurement::trials);
    let observed: Vec<_> = trials.filter(|t| t.counts()).map(|t| t.observed).collect();
    let of = |placement: Placement| {
        let these = observed.iter().filter(|o| o.placement == placement);
        let middle = median(these.flat_map(|o| o.round_trips_ns).flatten())?;
        Some(format!("{} {middle:.0} ns", placement.name()))
    };
    let all = [Placement::Near, Placement::Far, Placement::Mixed];
    let known: Vec<String> = all.into_iter().filter_map(of).collect();
    match known.is_empty() {
        true => String::new(),
        false => format!(" (in the trials that count, medians: {})", known.join(", ")),
    }
}

fn images(plots: &[Plot], kind: &str) -> String {
    let these = plots.iter().filter(|plot| plot.kind == kind);
    these
        .map(|plot| format!("\n![{}]({})\n", plot.title, plot.file))
        .collect()
}

fn searches(results: &Results) -> String {
    let mut table = Table::new(
        "scenario | switch | >round | placement | goal | >Mpps | >lower bound | \
         >upper bound | >trials | >busy cycles/frame | >ring full | irregular",
    );
    for measured in &results.measurements {
        let Some(search) = &measured.search else {
            continue;
        };
        let head = format!(
            "{} | {} | {} | {}",
            measured.scenario,
            measured.switch,
            measured.round,
            search.placement.map_or("-", Placement::name),
        );
        let mut row = |goal: &str, rates: [Option<f64>; 3], count: usize, of: Trials, why: &str| {
            let [rate, lower, upper] = rates.map(mpps);
            let busy = fixed(median(of.iter().filter_map(|t| t.observed.busy_cycles)), 0);
            let full = percent(median(of.iter().map(|trial| trial.ring_full)));
            table.row(format_args!(
                "{head} | {goal} | {rate} | {lower} | {upper} | {count} | {busy} | {full} | {why}"
            ));
        };
        let maximum = at(search, MAXIMUM, None);
        let rates = [search.maximum_receive_rate, None, None];
        row(MAXIMUM, rates, maximum.len(), &maximum, "");
        for found in &search.goals {
            let lower = found.lower.map(|rate| at(search, "", Some(rate)));
            let rates = [found.conditional_throughput, found.lower, found.upper];
            let (trials, why) = (lower.unwrap_or_default(), irregular(search, found));
            row(&found.goal.name, rates, found.trials, &trials, &why);
        }
    }
    table.to_string()
}

type Trials<'a> = &'a [&'a SearchTrial];

/// Trials that count and are for `purpose` (for any, if it is empty), at a rate.
fn at<'a>(search: &'a SearchResult, purpose: &str, rate: Option<f64>) -> Vec<&'a SearchTrial> {
    let trials = search.trials.iter();
    let counted = trials.filter(|trial| trial.counts() && trial.rate == rate);
    counted
        .filter(|trial| purpose.is_empty() || trial.purpose == purpose)
        .collect()
}

fn irregular(search: &SearchResult, found: &GoalResult) -> String {
    match (found.irregular, search.ended) {
        (None, _) => String::new(),
        (Some(why), Ended::Done) => why.name().into(),
        (Some(why), ended) => format!("{}: {}", why.name(), ended.name()),
    }
}

fn latency(results: &Results) -> String {
    let mut table = Table::new(
        "scenario | placement | >load | switch | >Mpps | >p50 | >p90 | >p99 | >p99.9 | \
         >max | >turn p50 | >turn p99 | >turn max",
    );
    let values: [fn(&Times) -> u64; 5] = [|t| t.p50, |t| t.p90, |t| t.p99, |t| t.p99_9, |t| t.max];
    let of_turns: [fn(&Times) -> u64; 3] = [|t| t.p50, |t| t.p99, |t| t.max];
    for (scenario, here, load) in latency_groups(results) {
        for switch in &results.switches {
            let points = latency_of(results, &scenario, here, load, switch);
            let times: Vec<Times> = points.iter().filter_map(|point| point.times).collect();
            let turns: Vec<Times> = points.iter().filter_map(|point| point.turns).collect();
            if times.is_empty() {
                continue;
            }
            let load = format!("{load} %");
            let rate = mpps(median(points.iter().map(|point| point.rate)));
            let cells = values.iter().map(|of| us(&times, of));
            let cells = cells.chain(of_turns.iter().map(|of| us(&turns, of)));
            let (name, cells) = (here.name(), cells.collect::<Vec<_>>().join(" | "));
            table.row(format_args!(
                "{scenario} | {name} | {load} | {switch} | {rate} | {cells}"
            ));
        }
    }
    table.to_string()
}

fn us(times: &[Times], of: impl Fn(&Times) -> u64) -> String {
    let ns = median(times.iter().map(|times| of(times) as f64));
    ns.map_or("-".into(), |ns| match ns / 1000.0 {
        us @ ..10.0 => format!("{us:.2}"),
        us @ ..100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    })
}

fn loss_runs(results: &Results) -> String {
    let buckets = [
        (1, 1),
        (2, 3),
        (4, 15),
        (16, 63),
        (64, 255),
        (256, u64::MAX),
    ];
    let mut table = Table::new(
        "scenario | switch | >1 | >2-3 | >4-15 | >16-63 | >64-255 | >256 and more | >longest",
    );
    let mut seen = BTreeSet::new();
    for measured in &results.measurements {
        let (scenario, switch) = (&measured.scenario, &measured.switch);
        if measured.search.is_none() || !seen.insert((scenario, switch)) {
            continue;
        }
        let same = results.measurements.iter();
        let same = same.filter(|m| &m.scenario == scenario && &m.switch == switch);
        let runs: Vec<(u64, u64)> = same.flat_map(runs_of).collect();
        let counts = buckets.map(|(from, to)| {
            let these = runs.iter().filter(|(len, _)| (from..=to).contains(len));
            these.map(|(_, count)| count).sum::<u64>()
        });
        let longest = runs.iter().map(|(len, _)| *len).max().unwrap_or(0);
        let counts = counts.map(|count| count.to_string()).join(" | ");
        table.row(format_args!("{scenario} | {switch} | {counts} | {longest}"));
    }
    table.to_string()
}

fn runs_of(measured: &Measurement) -> Vec<(u64, u64)> {
    let goals = measured.search.iter().flat_map(|search| &search.goals);
    let upper = goals.last().and_then(|found| found.upper);
    let counted = measured.trials().filter(|trial| trial.counts());
    let below = counted.filter(|trial| match (trial.rate, upper) {
        (Some(rate), Some(upper)) => rate <= upper,
        (rate, _) => rate.is_some(),
    });
    below.flat_map(|trial| trial.loss_runs.clone()).collect()
}

fn set_aside(results: &Results) -> String {
    let count = |switch: &String| {
        let these = results.measurements.iter().filter(|m| &m.switch == switch);
        let trials = these.flat_map(Measurement::trials);
        let aside = trials.filter(|trial| trial.other_placement).count();
        format!("{switch} {aside}")
    };
    let counts: Vec<String> = results.switches.iter().map(count).collect();
    format!(
        "\nSet aside, being of the other placement: {}.\n",
        counts.join(", ")
    )
}

fn mpps(rate: Option<f64>) -> String {
    match rate.map(|rate| rate / 1e6) {
        None => "-".into(),
        Some(mpps @ ..0.1) => format!("{mpps:.4}"),
        Some(mpps) => format!("{mpps:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plot;
    use super::super::results::tests::made_up;
    use super::*;
    use crate::search::Irregular;

    #[test]
    fn the_report_of_a_made_up_run() {
        let results = made_up();
        let text = report(&results, &plot::all(&results));
        insta::assert_snapshot!("report", text);
    }

    #[test]
    fn a_goal_without_a_lower_bound_shows_no_cycles() {
        let mut results = made_up();
        results.measurements.truncate(1);
        let search = results.measurements[0].search.as_mut().unwrap();
        search.ended = Ended::Disturbed;
        let found = &mut search.goals[0];
        found.irregular = Some(Irregular::NotReached);
        (found.lower, found.conditional_throughput) = (None, None);
        let row = "| pair-64 | crosspoint | 0 | near | NDR | - | - | 20.09 | 13 | - | - | not reached: disturbed too often |";
        let text = searches(&results);
        assert!(text.lines().any(|line| line == row), "{text}");
        let rates = samples(&results).into_iter().map(|sample| sample.what);
        assert!(rates.into_iter().all(|what| !what.contains("NDR")));
    }

    #[test]
    fn every_table_has_rows_as_wide_as_its_head() {
        let results = made_up();
        let mut columns = None;
        for line in report(&results, &[]).lines() {
            let cells = line.matches('|').count();
            assert!(cells == 0 || columns.is_none_or(|c| c == cells), "{line}");
            columns = (cells > 0).then_some(cells);
        }
    }
}
