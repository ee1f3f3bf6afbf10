//! `scrape`: how long a scrape of a thousand queues takes, and whether workers notice.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::metrics::{get, sum};
use crate::lab::{Machine, Setup, Thread, crosspoint};
use crate::options::OutputOptions;
use crate::report::Table;
use clap::Args;
use crosspoint_frame::Clock;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const GAP_BUCKET: &str = "crosspoint_worker_poll_gap_seconds_bucket";
const GAP_COUNT: &str = "crosspoint_worker_poll_gap_seconds_count";
/// The daemon's thread that answers scrapes.
const THREAD: &str = "cp-metrics";
/// A poll iteration that takes longer than this was disturbed. It is one of the histogram's bounds.
const DISTURBED: &str = "le=\"0.00005\"";

/// Pause before each scrape.
const PAUSE: Duration = Duration::from_millis(20);

/// Options of `scrape`.
#[derive(Args, Clone, Debug)]
pub struct ScrapeOptions {
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// Guest ports of one queue pair each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub queues: u16,
    /// A core for each of crosspoint's workers
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub switch_cores: Vec<usize>,
    /// Workers sleep when they are idle, so that the scrape can use their cores
    #[arg(long)]
    pub adaptive: bool,
    /// Number of scrapes to time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub scrapes: u32,
    /// Fail if the 99th percentile of scrape times exceeds this
    #[arg(long, value_name = "MS")]
    pub max_ms: Option<f64>,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// The results.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    queues: u16,
    workers: usize,
    series: usize,
    kib: usize,
    scrapes: u32,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// CPU time of the daemon's thread per scrape.
    cpu_ms: f64,
    /// Poll iterations per million that took longer than 50 us, without scrapes and during scrapes.
    disturbed_ppm: [f64; 2],
}

/// Runs `crosspoint-bench scrape`.
pub fn run(options: &ScrapeOptions) -> Result<(), BenchError> {
    let poll = if options.adaptive { "adaptive" } else { "busy" };
    let setup = Setup {
        cores: options.switch_cores.clone(),
        workers: format!("poll = \"{poll}\"\n"),
        guests: options.queues.into(),
        ..Setup::busy(options.switch_cores[0])
    };
    let started = crosspoint::start(&crosspoint::binary(options.switch.as_ref()), &setup)?;
    let thread = Thread::named(started.pid, THREAD);
    let ran_ns = || thread.and_then(Thread::ran_ns).unwrap_or_default();
    let measured = measure(options, started.metrics, ran_ns)?;
    let core = options.switch_cores[0];
    let machine = Machine::here(core, core, Clock::calibrate());
    let text = measured.table().to_string();
    options.output.finish(&machine, &text, &measured)?;
    match options.max_ms {
        Some(max_ms) if measured.p99_ms > max_ms => Err(BenchError::backend(
            "crosspoint",
            format!("a scrape in a hundred takes {:.1} ms", measured.p99_ms),
        )),
        _ => Ok(()),
    }
}

fn measure(
    options: &ScrapeOptions,
    address: SocketAddr,
    ran_ns: impl Fn() -> u64,
) -> Result<Measured, BenchError> {
    let scrape = || get(address, "/metrics").map_err(BenchError::io("scrape"));
    // About as long as the scrapes will take.
    let quiet = Iterations::of(&scrape()?);
    for _ in 0..options.scrapes {
        interrupt::check()?;
        std::thread::sleep(PAUSE);
    }
    let (mut last, before) = (scrape()?, Iterations::of(&scrape()?));
    let ran_before = ran_ns();
    // Bounds that the histogram accepts: 1 us to a minute, to a thousandth.
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("these bounds");
    for _ in 0..options.scrapes {
        interrupt::check()?;
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        last = scrape()?;
        times.saturating_record(start.elapsed().as_micros() as u64);
    }
    let ran = ran_ns().saturating_sub(ran_before);
    let after = Iterations::of(&last);
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Measured {
        queues: options.queues,
        workers: options.switch_cores.len(),
        series: last.lines().filter(|line| !line.starts_with('#')).count(),
        kib: last.len() >> 10,
        scrapes: options.scrapes,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        max_ms: times.max() as f64 / 1e3,
        cpu_ms: ran as f64 / 1e6 / f64::from(options.scrapes),
        disturbed_ppm: [before.disturbed_ppm(&quiet), after.disturbed_ppm(&before)],
    })
}

/// Poll iterations of all workers so far.
#[derive(Clone, Copy, Debug)]
struct Iterations {
    all: f64,
    undisturbed: f64,
}

impl Iterations {
    fn of(exposition: &str) -> Iterations {
        Iterations {
            all: sum(exposition, GAP_COUNT, ""),
            undisturbed: sum(exposition, GAP_BUCKET, DISTURBED),
        }
    }

    /// Disturbed iterations per million since `earlier`.
    fn disturbed_ppm(&self, earlier: &Iterations) -> f64 {
        let all = self.all - earlier.all;
        let disturbed = all - (self.undisturbed - earlier.undisturbed);
        1e6 * disturbed.max(0.0) / all.max(1.0)
    }
}

impl Measured {
    fn table(&self) -> Table {
        let mut table = Table::new(
            ">queues | >workers | >series | >KiB | >scrapes | >p50 ms | >p99 ms | >max ms | \
             >CPU ms | >turns over 50 us, ppm | >while scraped, ppm",
        );
        let counts = [self.queues.into(), self.workers, self.series, self.kib];
        let counts = counts.map(|count| count.to_string()).join(" | ");
        let times = [self.p50_ms, self.p99_ms, self.max_ms, self.cpu_ms];
        let times = times.map(|ms| format!("{ms:.1}")).join(" | ");
        let [quiet, scraped] = self.disturbed_ppm;
        table.row(format_args!(
            "{counts} | {} | {times} | {quiet:.2} | {scraped:.2}",
            self.scrapes
        ));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_took_long_are_those_beyond_the_bound() {
        let text = |all, short| {
            Iterations::of(&format!(
                "{GAP_BUCKET}{{worker=\"0\",le=\"0.00005\"}} {short}\n{GAP_BUCKET}{{worker=\"0\",le=\"+Inf\"}} {all}\n\
                 {GAP_COUNT}{{worker=\"0\"}} {all}\n"
            ))
        };
        let (before, after) = (text(1000, 990), text(2_001_000, 2_000_980));
        assert_eq!(after.disturbed_ppm(&before), 5.0);
        assert_eq!(after.disturbed_ppm(&after), 0.0);
    }
}
