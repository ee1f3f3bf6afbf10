//! The plots of a report: SVG without scripts or its own fonts, on white, for light and dark viewers.

use super::results::Results;
use super::samples::Sample;
use super::values::{latency_groups, latency_of, of_throughput, samples};
use crate::lab::placement::Placement;
use crate::search::latency::LatencyPoint;
use crate::stats::Spread;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::error::Error;

/// A plot's file.
pub struct Plot {
    /// The table to which it belongs.
    pub kind: &'static str,
    /// The file's name.
    pub file: String,
    /// Its title.
    pub title: String,
    /// The file's text.
    pub svg: String,
}

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours of switches, distinguishable by people with colour blindness (Okabe and Ito).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Lines behind the data.
const GRID: RGBColor = RGBColor(200, 200, 200);
const WIDTH: u32 = 900;
const FONT: &str = "sans-serif";
/// Height above the plot, for title and legend.
const HEAD: i32 = 60;
/// Height of a row of bars.
const ROW: u32 = 22;
/// Position of loss 0, on an axis without zero.
const NO_LOSS: f64 = 1e-7;
/// Position of the longest time, on an axis of nines.
const LONGEST: f64 = 6.0;

/// All plots of a run.
pub fn all(results: &Results) -> Vec<Plot> {
    let cycles = of_throughput(results, "cycles per frame", |trial| trial.core_cycles);
    let mut plots = vec![
        bars("rates", "Mpps", &samples(results), results),
        bars("cycles", "Core cycles per frame", &cycles, results),
    ];
    let mut places: Vec<(String, Placement)> = Vec::new();
    for measured in &results.measurements {
        let searched = measured.search.as_ref();
        let placement = searched.and_then(|search| search.placement);
        let place = placement.map(|p| (measured.scenario.clone(), p));
        places.extend(place.filter(|place| !places.contains(place)));
    }
    for (scenario, placement) in &places {
        plots.push(loss(results, scenario, *placement));
    }
    for (scenario, placement) in &places {
        plots.extend(latency(results, scenario, *placement));
    }
    plots
}

/// Draws a plot of the given height below title and legend.
fn plot(
    kind: &'static str,
    file: String,
    title: String,
    switches: &[String],
    height: u32,
    draw: impl FnOnce(&Area) -> Drawn,
) -> Plot {
    let mut svg = String::new();
    let all = || -> Drawn {
        let size = (WIDTH, height + HEAD as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, below) = root.split_vertically(HEAD);
        head.draw(&Text::new(title.clone(), (12, 8), (FONT, 18)))?;
        let mut x = 12;
        for (i, switch) in switches.iter().enumerate() {
            head.draw(&Rectangle::new([(x, 36), (x + 12, 48)], color(i).filled()))?;
            head.draw(&Text::new(switch.clone(), (x + 18, 34), (FONT, 14)))?;
            x += 40 + 9 * switch.chars().count() as i32;
        }
        draw(&below)?;
        root.present()?;
        Ok(())
    };
    all().expect("a string takes whatever is drawn");
    Plot {
        kind,
        file,
        title,
        svg,
    }
}

fn color(switch: usize) -> RGBColor {
    COLORS[switch % COLORS.len()]
}

/// A row of bars: a group's heading, or a switch in the group above.
enum Row {
    Group(String),
    Bar(usize, Spread),
}

/// Rows of scenarios in the order in which they were first measured, each with its values, near and far.
fn rows(samples: &[Sample], switches: &[String]) -> Vec<Row> {
    let mut groups: Vec<(&str, Placement)> = Vec::new();
    for sample in samples {
        let group = (sample.what.as_str(), sample.placement);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    // The sort is stable: rows of one scenario stay together.
    let scenario = |what: &str| what.split(':').next().map(str::to_owned);
    let firsts: Vec<_> = groups.iter().map(|(what, _)| scenario(what)).collect();
    groups.sort_by_key(|(what, _)| firsts.iter().position(|first| *first == scenario(what)));
    let mut rows = Vec::new();
    for (what, placement) in groups {
        rows.push(Row::Group(format!("{what} ({})", placement.name())));
        for (i, switch) in switches.iter().enumerate() {
            let these = samples.iter();
            let these = these.filter(|sample| is(sample, what, placement, switch));
            let spread = Spread::of(these.map(|sample| sample.value));
            rows.extend(spread.map(|spread| Row::Bar(i, spread)));
        }
    }
    rows
}

/// Bars for medians, with lines across their ends for quartiles.
fn bars(kind: &'static str, what: &str, samples: &[Sample], results: &Results) -> Plot {
    let switches = &results.switches;
    let rows = rows(samples, switches);
    let title = format!("{what}: medians and quartiles over rounds");
    let height = rows.len() as u32 * ROW + 70;
    let top = rows.iter().fold(1e-3, |top: f64, row| match row {
        Row::Bar(_, spread) => top.max(spread.upper),
        Row::Group(_) => top,
    }) * 1.05;
    plot(
        kind,
        format!("{kind}.svg"),
        title,
        switches,
        height,
        |area| {
            let mut chart = ChartBuilder::on(area)
                .margin(12)
                .x_label_area_size(30)
                .build_cartesian_2d(0.0..top, rows.len().max(1) as f64..0.0)?;
            let mesh = &mut chart.configure_mesh();
            mesh.disable_y_mesh().disable_y_axis();
            mesh.light_line_style(TRANSPARENT).bold_line_style(GRID);
            mesh.label_style((FONT, 13)).draw()?;
            for (y, row) in rows.iter().enumerate() {
                let at = |part: f64| y as f64 + part;
                match row {
                    Row::Group(name) => {
                        let place = (top * 0.002, at(0.3));
                        chart.draw_series([Text::new(name.clone(), place, (FONT, 13))])?;
                    }
                    Row::Bar(switch, spread) => {
                        let bar = [(0.0, at(0.1)), (spread.median, at(0.9))];
                        chart.draw_series([Rectangle::new(bar, color(*switch).filled())])?;
                        let (lower, upper) = (spread.lower, spread.upper);
                        let across = [(lower, 0.5), (upper, 0.5)];
                        let [from, to] = [lower, upper].map(|x| [(x, 0.25), (x, 0.75)]);
                        for line in [across, from, to] {
                            let line = line.map(|(x, part)| (x, at(part))).to_vec();
                            chart.draw_series([PathElement::new(line, BLACK)])?;
                        }
                    }
                }
            }
            Ok(())
        },
    )
}

fn is(sample: &Sample, what: &str, placement: Placement, switch: &str) -> bool {
    sample.what == what && sample.placement == placement && sample.switch == switch
}

/// Every trial that counted: offered rate and loss.
fn loss(results: &Results, scenario: &str, placement: Placement) -> Plot {
    let title = format!("{scenario} ({}): loss over Mpps offered", placement.name());
    let file = format!("loss-{}-{}.svg", slug(scenario), placement.name());
    let points = |switch: &str| -> Vec<(f64, f64)> {
        let these = results.measurements.iter();
        let these = these.filter(|m| m.scenario == scenario && m.switch == switch);
        let searches = these.filter_map(|m| m.search.as_ref());
        let trials = searches
            .filter(|search| search.placement == Some(placement))
            .flat_map(|search| &search.trials);
        let counted = trials.filter(|trial| trial.counts());
        counted
            .filter_map(|trial| Some((trial.rate? / 1e6, trial.loss.max(NO_LOSS))))
            .collect()
    };
    let lines: Vec<Vec<(f64, f64)>> = results.switches.iter().map(|name| points(name)).collect();
    plot("loss", file, title, &results.switches, 360, |area| {
        let (least, top) = range(lines.iter().flatten().map(|(rate, _)| *rate));
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(least * 0.98..top * 1.02, (NO_LOSS / 2.0..1.5).log_scale())?;
        let loss = |loss: &f64| match loss {
            loss if *loss < NO_LOSS * 1.5 => "0".into(),
            loss => format!("{loss:.0e}"),
        };
        let mesh = &mut chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).bold_line_style(GRID);
        mesh.y_label_formatter(&loss).y_labels(8);
        mesh.label_style((FONT, 13)).draw()?;
        for (i, line) in lines.iter().enumerate() {
            let points = line.iter();
            let points = points.map(|point| Circle::new(*point, 4, color(i).mix(0.7).filled()));
            chart.draw_series(points)?;
        }
        Ok(())
    })
}

/// A panel for each load: time over percentile, with a line for each round.
fn latency(results: &Results, scenario: &str, placement: Placement) -> Option<Plot> {
    let groups = latency_groups(results).into_iter();
    let groups = groups.filter(|(what, where_, _)| what == scenario && *where_ == placement);
    let percents: Vec<u32> = groups.map(|(_, _, percent)| percent).collect();
    if percents.is_empty() {
        return None;
    }
    let title = format!(
        "{scenario} ({}): latency, µs, at parts of the PDR",
        placement.name()
    );
    let file = format!("latency-{}-{}.svg", slug(scenario), placement.name());
    let columns = percents.len().min(2);
    let rows = percents.len().div_ceil(columns);
    let height = rows as u32 * 300;
    let switches = &results.switches;
    let plot = plot("latency", file, title, switches, height, |area| {
        let of =
            |percent, switch: &String| latency_of(results, scenario, placement, percent, switch);
        let every = percents.iter().flat_map(|percent| {
            let switches = switches.iter();
            switches.flat_map(move |switch| of(*percent, switch))
        });
        let (least, top) = range(every.flat_map(times_of).map(|(_, us)| us));
        let panels = area.split_evenly((rows, columns));
        for (panel, percent) in panels.iter().zip(&percents) {
            let name = format!("{percent} %");
            let mut chart = ChartBuilder::on(panel)
                .caption(name, (FONT, 15))
                .margin(12)
                .x_label_area_size(30)
                .y_label_area_size(60)
                .build_cartesian_2d(0.0..LONGEST, (least * 0.8..top * 1.25).log_scale())?;
            let mesh = &mut chart.configure_mesh();
            mesh.light_line_style(TRANSPARENT).bold_line_style(GRID);
            mesh.x_labels(7).x_label_formatter(&percentile);
            mesh.label_style((FONT, 13)).draw()?;
            for (i, switch) in switches.iter().enumerate() {
                for point in of(*percent, switch) {
                    let line = color(i).stroke_width(2);
                    chart.draw_series(LineSeries::new(times_of(point), line))?;
                }
            }
        }
        Ok(())
    });
    Some(plot)
}

/// The percentile's nines, and microseconds.
fn times_of(point: &LatencyPoint) -> Vec<(f64, f64)> {
    let nines = |percent: f64| (-(1.0 - percent / 100.0).log10()).min(LONGEST);
    let curve = point.curve.iter();
    curve
        .map(|(percent, ns)| (nines(*percent), (*ns).max(1) as f64 / 1000.0))
        .collect()
}

fn percentile(nines: &f64) -> String {
    match nines.round() as i32 {
        0 => "0 %".into(),
        n if f64::from(n) >= LONGEST => "max".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        n => format!("99.{} %", "9".repeat(n as usize - 2)),
    }
}

/// The least and greatest of `values`; a default range if there are none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let range = values.fold(None, |range: Option<(f64, f64)>, value| {
        let (least, top) = range.unwrap_or((value, value));
        Some((least.min(value), top.max(value)))
    });
    range.unwrap_or((0.1, 1.0))
}

/// A text for the name of a file.
fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let text: String = text.to_lowercase().chars().map(plain).collect();
    let words = text.split('-').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::made_up;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_plot_is_an_svg_on_white_that_needs_nothing_else() {
        let results = made_up();
        let plots = all(&results);
        let kinds: BTreeSet<&str> = plots.iter().map(|plot| plot.kind).collect();
        assert_eq!(
            kinds,
            BTreeSet::from(["rates", "cycles", "loss", "latency"])
        );
        let files: BTreeSet<&str> = plots.iter().map(|plot| plot.file.as_str()).collect();
        assert_eq!(files.len(), plots.len());
        for plot in &plots {
            let document = roxmltree::Document::parse(&plot.svg).unwrap();
            let root = document.root_element();
            assert_eq!(root.tag_name().name(), "svg");
            let first = root.first_element_child().unwrap();
            assert_eq!(first.attribute("fill"), Some("#FFFFFF"), "{}", plot.file);
            for node in root.descendants().filter(|node| node.is_element()) {
                let name = node.tag_name().name();
                assert!(
                    !["image", "script", "style", "use"].contains(&name),
                    "{name}"
                );
                let font = node.attribute("font-family");
                assert!(font.is_none_or(|font| font == FONT), "{font:?}");
            }
            for switch in &results.switches {
                let mut texts = root.descendants().filter_map(|node| node.text());
                assert!(texts.any(|text| text.trim() == switch), "{switch}");
            }
        }
    }

    #[test]
    fn a_run_without_results_has_plots_too() {
        let mut results = made_up();
        for measured in &mut results.measurements {
            measured.maxima.clear();
            let search = measured.search.as_mut().unwrap();
            search.goals.clear();
            search.trials.clear();
            search.maximum_receive_rate = None;
            for point in &mut measured.latency {
                point.curve.clear();
            }
        }
        for plot in all(&results) {
            assert!(roxmltree::Document::parse(&plot.svg).is_ok());
        }
        results.measurements.clear();
        assert_eq!(all(&results).len(), 2);
    }

    #[test]
    fn a_file_is_named_after_its_scenario() {
        assert_eq!(slug("pair-64: NDR (µs)"), "pair-64-ndr-s");
    }
}
