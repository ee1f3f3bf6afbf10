//! The plan of a run: rounds, in each every switch in turn, with each every configuration, of each some trials.

use crate::backend::{Backend, Switch};
use crate::bench_guests::BenchGuests;
use crate::error::BenchError;
use crate::interrupt;
use crate::options::{Guests, VmOptions};
use crate::report;
use crate::testpmd::Testpmd;
use crate::threads::{PRIORITY_MEASURE, Thread, pin};
use crate::trial::{Configuration, Discard, Traffic, Trial};
use crate::watch::{REALTIME, Watch};
use crosspoint_frame::Clock;
use serde::Serialize;
use std::time::Duration;

/// Runs `crosspoint-bench vm`.
pub fn run(options: &VmOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let switches = switches(options)?;
    let names: Vec<String> = switches.iter().map(Switch::name).collect();
    let clock = Clock::calibrate();
    let mut trials = Vec::new();
    for round in 0..options.rounds {
        for switch in in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name());
            let backend = switch.start(options)?;
            for configuration in configurations(options) {
                let series = Series {
                    options,
                    clock,
                    switch: switch.name(),
                    round,
                    configuration,
                };
                trials.extend(series.run(&backend)?);
            }
        }
    }
    println!("{}", heading(options, clock));
    print!("{}", report::tables(&trials, &names));
    write_json(options, clock, &trials)
}

fn switches(options: &VmOptions) -> Result<Vec<Switch>, BenchError> {
    let mut list = Vec::new();
    if !options.skip_crosspoint {
        list.push(Switch::Crosspoint);
    }
    list.extend(options.peers()?.into_iter().map(Switch::Peer));
    list.extend(options.against.iter().cloned().map(Switch::Running));
    Ok(list)
}

/// Forth in even rounds, back in odd ones, so that drift of the machine favours nobody.
fn in_turn(switches: &[Switch], round: u32) -> Box<dyn Iterator<Item = &Switch> + '_> {
    if round.is_multiple_of(2) {
        Box::new(switches.iter())
    } else {
        Box::new(switches.iter().rev())
    }
}

fn configurations(options: &VmOptions) -> Vec<Configuration> {
    let of_size = |size: &u16| {
        let size = *size;
        options.flows.iter().map(move |flows| Configuration {
            size,
            flows: *flows,
        })
    };
    options.sizes.iter().flat_map(of_size).collect()
}

/// The trials of one configuration with one switch in one round.
struct Series<'a> {
    options: &'a VmOptions,
    clock: Clock,
    switch: String,
    round: u32,
    configuration: Configuration,
}

impl Series<'_> {
    /// Runs them, on a thread of their own: what is started later must not inherit its core.
    fn run(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                pin(self.options.generator_core).map_err(BenchError::io("--generator-core"))?;
                if self.options.realtime {
                    let set = Thread::current().set_fifo(PRIORITY_MEASURE);
                    set.map_err(BenchError::io(REALTIME))?;
                }
                match self.options.guests {
                    Guests::InProcess => self.run_in_process(backend),
                    Guests::Testpmd => self.run_testpmd(backend),
                }
            });
            thread.join().expect("the release profile aborts on panics")
        })
    }

    fn run_in_process(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        let (options, configuration) = (self.options, &self.configuration);
        let mut guests =
            BenchGuests::connect(&backend.sockets, configuration, options, self.clock)?;
        self.trials(backend, Thread::current(), |time| guests.run(time))
    }

    fn run_testpmd(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        let mut guests = Testpmd::connect(&backend.sockets, &self.configuration, self.options)?;
        self.trials(backend, guests.worker, |time| guests.run(time))
    }

    fn trials(
        &self,
        backend: &Backend,
        generator: Thread,
        mut traffic: impl FnMut(Duration) -> Result<Traffic, BenchError>,
    ) -> Result<Vec<Trial>, BenchError> {
        let options = self.options;
        let watch = Watch {
            options,
            clock: self.clock,
            backend,
            generator,
        };
        watch.observe(|| traffic(Duration::from_millis(options.warmup_ms)))?;
        let trial = |_| {
            interrupt::check()?;
            let (traffic, observed) = watch.observe(|| traffic(options.trial()))?;
            Ok(Trial {
                switch: self.switch.clone(),
                round: self.round,
                configuration: self.configuration.clone(),
                direction: options.direction,
                core_cycles: self.clock.hz() / (traffic.mpps * 1e6),
                discarded: Discard::judge(&traffic, &observed, options.wait_max),
                traffic,
                observed,
            })
        };
        (0..options.trials).map(trial).collect()
    }
}

/// One line that says what the tables are of.
fn heading(options: &VmOptions, clock: Clock) -> String {
    format!(
        "{:?} guests, {:?}, ring {}, mergeable {:?}, 2 MiB pages {:?}, {} x {} trials of {} ms, \
         TSC {:.2} GHz, realtime {}, rate {}\n",
        options.guests,
        options.direction,
        options.ring,
        options.mergeable,
        options.huge_pages,
        options.rounds,
        options.trials,
        options.trial_ms,
        clock.hz() / 1e9,
        options.realtime,
        options
            .rate
            .map_or("maximum".into(), |rate| rate.to_string()),
    )
}

/// The file of `--json`.
#[derive(Serialize)]
struct Run<'a> {
    arguments: Vec<String>,
    tsc_hz: f64,
    trials: &'a [Trial],
}

fn write_json(options: &VmOptions, clock: Clock, trials: &[Trial]) -> Result<(), BenchError> {
    let Some(path) = &options.json else {
        return Ok(());
    };
    let run = Run {
        arguments: std::env::args().collect(),
        tsc_hz: clock.hz(),
        trials,
    };
    let written = serde_json::to_string_pretty(&run)
        .map_err(std::io::Error::from)
        .and_then(|text| std::fs::write(path, text + "\n"));
    written.map_err(BenchError::io(path.display().to_string()))
}
