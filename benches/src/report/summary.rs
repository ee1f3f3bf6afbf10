//! The report of a run, in Markdown.

use crate::lab::{Placement, Shares};
use crate::load::{Frames, Scenario, Times};
use crate::report::{Group, Results, Sample, Table, discards, fixed, groups, percent, ratios};
use crate::stats::{Spread, median};
use crate::trials::{LATENCY, MAXIMUM, Trial};

/// Trials of one group on one switch.
type Trials<'a> = [&'a Sample<&'a Trial>];

/// The report.
pub fn report(results: &Results) -> String {
    let maxima = results.trials(MAXIMUM);
    let switches = &results.switches;
    let mut text = heading(results);
    text += "\n## Maximum receive rates\n\nMpps that arrived, of all frames that the switch accepted; over trials, ratios over rounds.\n\n";
    text += &rates(&maxima, switches);
    text += &over_plain(&maxima, switches).under("");
    text += &large(&maxima, switches).under("");
    text += &ratios(&maxima, switches, |trial| trial.mpps);
    text += &latency(results).under(
        "\n## Latency\n\nMicroseconds, from when a frame was due until the sink saw it; medians over trials. \
         The generator's turns limit the precision: a frame waits for up to one turn before it is sent, and for up to one before it is seen.\n",
    );
    text += "\n## Trials\n\n";
    text += &discards(&results.trials(""), switches);
    text + &missing(results).under("\n## Not measured\n")
}

fn missing(results: &Results) -> Table {
    let mut table = Table::new("scenario | switch | why");
    for missing in &results.missing {
        let why = missing.why.replace('\n', " ").replace('|', "/");
        let round = missing.round;
        let failed = round.map_or(String::new(), |round| format!("round {round} failed: "));
        let (scenario, switch) = (&missing.scenario, &missing.switch);
        table.row(format_args!("{scenario} | {switch} | {failed}{why}"));
    }
    table
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
    let trials = results.trials("");
    let of = |placement: &Placement| {
        let counted = trials.iter().filter(|t| t.discarded.is_none());
        let these = counted.filter(|trial| trial.placement == *placement);
        let middle = median(
            these
                .flat_map(|t| t.value.observed.round_trips_ns)
                .flatten(),
        )?;
        Some(format!("{} {middle:.0} ns", placement.name()))
    };
    let known: Vec<String> = Placement::ALL.iter().filter_map(of).collect();
    match known.is_empty() {
        true => String::new(),
        false => format!(" (in the trials that count, medians: {})", known.join(", ")),
    }
}

/// The median of a value of some trials.
fn of(trials: &Trials, value: impl Fn(&Trial) -> Option<f64>) -> Option<f64> {
    median(trials.iter().filter_map(|trial| value(trial.value)))
}

/// The median of a percentile in microseconds.
fn us(trials: &Trials, times: fn(&Trial) -> Option<Times>, part: fn(&Times) -> u64) -> String {
    let ns = of(trials, |trial| Some(part(&times(trial)?) as f64));
    ns.map_or("-".into(), |ns| match ns / 1000.0 {
        us @ ..10.0 => format!("{us:.2}"),
        us @ ..100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    })
}

/// A row for each group and each switch that has trials in it: group, placement and switch, and then `cells`.
fn rows<'a>(
    titles: &str,
    samples: &[Sample<&'a Trial>],
    switches: &[String],
    cells: impl Fn(&Group<&'a Trial>, &str, &Trials) -> Option<Vec<String>>,
) -> Table {
    let mut table = Table::new(&format!("scenario | placement | switch | {titles}"));
    for group in groups(samples) {
        for switch in switches {
            let these = group.of(switch);
            let some = (!these.is_empty()).then_some(these);
            if let Some(cells) = some.and_then(|these| cells(&group, switch, &these)) {
                let (placement, cells) = (group.placement.name(), cells.join(" | "));
                table.row(format_args!(
                    "{} | {placement} | {switch} | {cells}",
                    group.what
                ));
            }
        }
    }
    table
}

fn rates(maxima: &[Sample<&Trial>], switches: &[String]) -> String {
    let has_shares = maxima.iter().any(|t| t.value.observed.shares.is_some());
    let shares: [fn(&Shares) -> Option<f64>; 3] = [|s| s.user, |s| s.kernel, |s| s.softirq];
    let more = if has_shares {
        " | >user | >kernel | >softirq"
    } else {
        ""
    };
    let titles = format!(
        ">trials | >Mpps | IQR | >loss | >busy cycles/frame | >core cycles/frame | >ring full | >p50 µs | >p99 µs{more}"
    );
    let table = rows(&titles, maxima, switches, |_, _, these| {
        let mpps = Spread::of(these.iter().map(|trial| trial.value.mpps))?;
        let mut cells = vec![
            these.len().to_string(),
            format!("{:.2}", mpps.median),
            format!("{:.2}-{:.2}", mpps.lower, mpps.upper),
            percent(of(these, |t| Some(t.loss))),
            fixed(of(these, |t| t.observed.busy_cycles), 0),
            fixed(of(these, |t| t.core_cycles), 0),
            percent(of(these, |t| Some(t.ring_full))),
            us(these, |t| t.latency, |times| times.p50),
            us(these, |t| t.latency, |times| times.p99),
        ];
        for share in shares.iter().filter(|_| has_shares) {
            cells.push(fixed(of(these, |t| share(&t.observed.shares?)), 0));
        }
        Some(cells)
    });
    table.to_string()
}

/// The cost of many addresses, and of quiet guests, relative to the same scenario without them.
fn over_plain(maxima: &[Sample<&Trial>], switches: &[String]) -> Table {
    let titles = ">Mpps | >of the plain scenario's | >busy cycles/frame over it | >core cycles/frame over it | \
                  >first frame of a quiet guest, p50 µs | >p99 µs";
    let all = groups(maxima);
    rows(titles, maxima, switches, |group, switch, these| {
        let plain = group.what.parse::<Scenario>().ok()?.plain()?;
        let mut others = all.iter().filter(|other| other.what == plain);
        let plain = others.find(|other| other.placement == group.placement);
        let plain = plain.map_or(Vec::new(), |plain| plain.of(switch));
        let over = |value: fn(&Trial) -> Option<f64>| Some(of(these, value)? - of(&plain, value)?);
        let mpps = of(these, |t| Some(t.mpps))?;
        let part = of(&plain, |t| Some(t.mpps)).map(|plain| mpps / plain);
        Some(vec![
            format!("{mpps:.2}"),
            percent(part),
            fixed(over(|t| t.observed.busy_cycles), 0),
            fixed(over(|t| t.core_cycles), 0),
            us(these, |t| t.first, |times| times.p50),
            us(these, |t| t.first, |times| times.p99),
        ])
    })
}

/// Large frames: bits per second, and cycles per KiB, headers included.
fn large(maxima: &[Sample<&Trial>], switches: &[String]) -> Table {
    let titles = ">bytes | >Gb/s | >busy cycles/KiB | >core cycles/KiB";
    rows(titles, maxima, switches, |group, _, these| {
        let Frames::Large(shape) = group.what.parse::<Scenario>().ok()?.frames else {
            return None;
        };
        let bytes = shape.frame_len() as f64;
        let per_kib = |cycles: Option<f64>| fixed(cycles.map(|c| c * 1024.0 / bytes), 1);
        Some(vec![
            bytes.to_string(),
            format!("{:.1}", of(these, |t| Some(t.mpps))? * bytes * 8.0 / 1e3),
            per_kib(of(these, |t| t.observed.busy_cycles)),
            per_kib(of(these, |t| t.core_cycles)),
        ])
    })
}

fn latency(results: &Results) -> Table {
    let mut samples = results.trials("");
    samples.retain(|sample| sample.value.purpose.starts_with(LATENCY));
    for sample in &mut samples {
        sample.what = format!("{}, {}", sample.what, sample.value.purpose);
    }
    let titles = ">Mpps | >p50 | >p90 | >p99 | >p99.9 | >max | >turn p50 | >turn p99 | >turn max";
    let of_latency: [fn(&Times) -> u64; 5] =
        [|t| t.p50, |t| t.p90, |t| t.p99, |t| t.p99_9, |t| t.max];
    let of_turns: [fn(&Times) -> u64; 3] = [|t| t.p50, |t| t.p99, |t| t.max];
    rows(titles, &samples, &results.switches, |_, _, these| {
        let rate = mpps(of(these, |trial| trial.rate));
        let cells = of_latency.map(|part| us(these, |t| t.latency, part));
        let turns = of_turns.map(|part| us(these, |t| t.iterations, part));
        Some([&[rate][..], &cells, &turns].concat())
    })
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
    use super::super::results::tests::made_up;
    use super::*;

    #[test]
    fn the_report_of_a_made_up_run() {
        let results = made_up();
        let text = report(&results);
        insta::assert_snapshot!("report", text);
    }

    #[test]
    fn the_core_is_shared_out_where_that_was_measured() {
        let mut results = made_up();
        assert!(!report(&results).contains("| kernel |"));
        results.measurements.truncate(1);
        results.measurements[0].trials[0].observed.shares = Some(Shares {
            user: Some(300.0),
            kernel: Some(1000.0),
            softirq: None,
        });
        let text = report(&results);
        assert!(text.contains(" | 300 | 1000 | - |"), "{text}");
    }
}
