//! Values taken from results, for tables and plots.

use super::results::Results;
use super::samples::Sample;
use crate::lab::placement::Placement;
use crate::search::latency::LatencyPoint;
use crate::search::measure::Measurement;
use crate::search::trials::{MAXIMUM, SearchTrial};
use crate::stats::median;
use std::collections::BTreeSet;

/// Every rate that was reached, as samples: one per round.
pub fn samples(results: &Results) -> Vec<Sample> {
    let mut samples = of_throughput(results, MAXIMUM, |trial| Some(trial.mpps));
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
pub fn of_throughput(
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
