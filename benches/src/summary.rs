//! The report of a run, in Markdown.

use crate::latency::{LatencyPoint, Times};
use crate::maxima;
use crate::placement::Placement;
use crate::plot::Plot;
use crate::report::discards;
use crate::results::{Measurement, Results};
use crate::samples::{Sample, medians, ratios};
use crate::search::{Ended, GoalResult, MAXIMUM, SearchResult, SearchTrial};
use crate::stats::median;
use std::collections::BTreeSet;
use std::fmt::Write;

/// The report. Plots follow the tables that they show.
pub fn report(results: &Results, plots: &[Plot]) -> String {
    let mut text = heading(results);
    text += "\n## Maximum receive rates\n\nMpps that arrived, of all frames that the switch accepted; over trials, ratios over rounds.\n\n";
    text += &maxima::tables(results);
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

/// The table, if it has rows, to be placed after others.
pub fn if_any(table: String) -> String {
    match table.lines().nth(2) {
        Some(_) => format!("\n{table}"),
        None => String::new(),
    }
}

fn searched(results: &Results, plots: &[Plot]) -> String {
    let mut text = String::from("\n## Non-drop and partial-drop rates\n\nMpps; over rounds.\n\n");
    let mut samples = samples(results);
    samples.retain(|sample| !sample.what.ends_with(MAXIMUM));
    text += &medians(&samples, &results.switches);
    for peer in results.switches.iter().skip(1) {
        text += &if_any(ratios(&samples, &results.switches[0], peer));
    }
    text += "\n### Searches\n\n";
    text += &searches(results);
    text += &images(plots, "loss");
    text += "\n### Frames lost in a row\n\nTrials that count, up to the upper bound of the last goal.\n\n";
    text + &loss_runs(results)
}

/// Every rate that was reached, as samples: one per round.
pub fn samples(results: &Results) -> Vec<Sample> {
    let mut samples = of_maxima(results, MAXIMUM, |trial| Some(trial.mpps));
    for measured in &results.measurements {
        let Some(search) = &measured.search else {
            continue;
        };
        for found in &search.goals {
            let regular = found.irregular.is_none();
            let rate = found.conditional_throughput.filter(|_| regular);
            let (Some(rate), Some(placement)) = (rate, search.placement) else {
                continue;
            };
            samples.push(sample(measured, &found.goal.name, rate / 1e6, placement));
        }
    }
    samples
}

/// Medians of trials at the rate that the switch takes, for each round and placement.
pub fn of_maxima(
    results: &Results,
    what: &str,
    value: impl Fn(&SearchTrial) -> Option<f64>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for measured in &results.measurements {
        let counted = || measured.maxima.iter().filter(|trial| trial.counts());
        let places: BTreeSet<Placement> = counted().map(|t| t.observed.placement).collect();
        for placement in places {
            let here = counted().filter(|t| t.observed.placement == placement);
            let middle = median(here.filter_map(&value));
            samples.extend(middle.map(|middle| sample(measured, what, middle, placement)));
        }
    }
    samples
}

fn sample(measured: &Measurement, what: &str, value: f64, placement: Placement) -> Sample {
    Sample {
        switch: measured.switch.clone(),
        round: measured.round,
        what: format!("{}: {what}", measured.scenario),
        value,
        placement,
        discarded: None,
    }
}

fn not_measured(results: &Results) -> String {
    let mut text = String::new();
    if results.skipped.is_empty() && results.failed.is_empty() {
        return text;
    }
    text += "\n## Not measured\n\n| scenario | switch | why |\n|---|---|---|\n";
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
    let mut text = String::from(
        "| scenario | switch | round | placement | goal | Mpps | lower bound | upper bound | trials | busy cycles/frame | ring full | irregular |\n\
         |---|---|--:|---|---|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for measured in &results.measurements {
        let Some(search) = &measured.search else {
            continue;
        };
        let head = format!(
            "| {} | {} | {} | {} ",
            measured.scenario,
            measured.switch,
            measured.round,
            placement(search.placement),
        );
        let maximum = at(search, MAXIMUM, None);
        let _ = writeln!(
            text,
            "{head}| {MAXIMUM} | {} | - | - | {} | {} | {} | |",
            mpps(search.maximum_receive_rate),
            maximum.len(),
            busy_cycles(&maximum),
            ring_full(&maximum),
        );
        for found in &search.goals {
            let lower = found.lower.map(|rate| at(search, "", Some(rate)));
            let trials = lower.unwrap_or_default();
            let _ = writeln!(
                text,
                "{head}| {} | {} | {} | {} | {} | {} | {} | {} |",
                found.goal.name,
                mpps(found.conditional_throughput),
                mpps(found.lower),
                mpps(found.upper),
                found.trials,
                busy_cycles(&trials),
                ring_full(&trials),
                irregular(search, found),
            );
        }
    }
    text
}

/// Trials that count and are for `purpose` (for any, if it is empty), at a rate.
fn at<'a>(search: &'a SearchResult, purpose: &str, rate: Option<f64>) -> Vec<&'a SearchTrial> {
    let trials = search.trials.iter();
    let counted = trials.filter(|trial| trial.counts() && trial.rate == rate);
    counted
        .filter(|trial| purpose.is_empty() || trial.purpose == purpose)
        .collect()
}

fn busy_cycles(trials: &[&SearchTrial]) -> String {
    let cycles = median(trials.iter().filter_map(|t| t.observed.busy_cycles));
    cycles.map_or("-".into(), |cycles| format!("{cycles:.0}"))
}

fn ring_full(trials: &[&SearchTrial]) -> String {
    let part = median(trials.iter().map(|trial| trial.ring_full));
    part.map_or("-".into(), |part| format!("{:.1} %", part * 100.0))
}

fn irregular(search: &SearchResult, found: &GoalResult) -> String {
    match (found.irregular, search.ended) {
        (None, _) => String::new(),
        (Some(why), Ended::Done) => why.name().into(),
        (Some(why), ended) => format!("{}: {}", why.name(), ended.name()),
    }
}

fn latency(results: &Results) -> String {
    let mut text = String::from(
        "| scenario | placement | load | switch | Mpps | p50 | p90 | p99 | p99.9 | max | turn p50 | turn p99 | turn max |\n\
         |---|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (scenario, here, percent) in latency_groups(results) {
        for switch in &results.switches {
            let points = latency_of(results, &scenario, here, percent, switch);
            let times: Vec<Times> = points.iter().filter_map(|point| point.times).collect();
            let turns: Vec<Times> = points.iter().filter_map(|point| point.turns).collect();
            if times.is_empty() {
                continue;
            }
            let _ = write!(
                text,
                "| {scenario} | {} | {percent} % | {switch} | {} ",
                here.name(),
                mpps(median(points.iter().map(|point| point.rate))),
            );
            for of in [
                |times: &Times| times.p50,
                |times: &Times| times.p90,
                |times: &Times| times.p99,
                |times: &Times| times.p99_9,
                |times: &Times| times.max,
            ] {
                let _ = write!(text, "| {} ", us(&times, of));
            }
            let turn = |of: fn(&Times) -> u64| us(&turns, of);
            let (p50, p99, max) = (turn(|t| t.p50), turn(|t| t.p99), turn(|t| t.max));
            let _ = writeln!(text, "| {p50} | {p99} | {max} |");
        }
    }
    text
}

/// Scenario, placement and load in percent of each measurement of latency.
pub fn latency_groups(results: &Results) -> BTreeSet<(String, Placement, u32)> {
    let each = results.measurements.iter();
    each.flat_map(|measured| {
        let points = measured.latency.iter();
        points.filter_map(|point| {
            let percent = (point.part * 100.0).round() as u32;
            Some((measured.scenario.clone(), point.placement?, percent))
        })
    })
    .collect()
}

/// The points of a switch in such a group, one per round.
pub fn latency_of<'a>(
    results: &'a Results,
    scenario: &str,
    placement: Placement,
    percent: u32,
    switch: &str,
) -> Vec<&'a LatencyPoint> {
    let these = results.measurements.iter();
    let these = these.filter(|m| m.scenario == scenario && m.switch == switch);
    let points = these.flat_map(|measured| &measured.latency);
    let points = points.filter(|point| (point.part * 100.0).round() as u32 == percent);
    points
        .filter(|point| point.placement == Some(placement))
        .collect()
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
    let mut text = String::from(
        "| scenario | switch | 1 | 2-3 | 4-15 | 16-63 | 64-255 | 256 and more | longest |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
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
        let buckets = [
            (1, 1),
            (2, 3),
            (4, 15),
            (16, 63),
            (64, 255),
            (256, u64::MAX),
        ];
        let _ = write!(text, "| {scenario} | {switch} ");
        for (from, to) in buckets {
            let these = runs.iter().filter(|(len, _)| (from..=to).contains(len));
            let _ = write!(text, "| {} ", these.map(|(_, count)| count).sum::<u64>());
        }
        let longest = runs.iter().map(|(len, _)| *len).max().unwrap_or(0);
        let _ = writeln!(text, "| {longest} |");
    }
    text
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

fn placement(placement: Option<Placement>) -> &'static str {
    placement.map_or("-", Placement::name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot;
    use crate::results::tests::made_up;
    use crate::search::Irregular;

    #[test]
    fn the_report_of_a_made_up_run() {
        let results = made_up();
        let text = report(&results, &plot::all(&results));
        insta::assert_snapshot!("report", text);
    }

    #[test]
    fn a_goal_without_a_lower_bound_shows_nobodys_cycles() {
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
