//! The plan of a run: rounds; in each, every switch in turn; with each, every configuration; of each, some trials.

use crate::backend::{Backend, Switch};
use crate::bench_guests::BenchGuests;
use crate::error::BenchError;
use crate::interrupt;
use crate::load::Load;
use crate::options::{Guests, VmOptions};
use crate::report;
use crate::testpmd::Testpmd;
use crate::threads::Thread;
use crate::trial::{Configuration, Discard, Traffic, Trial};
use crate::turns;
use crate::watch::Watch;
use crosspoint_frame::Clock;
use std::time::Duration;

/// Runs `crosspoint-bench vm`.
pub fn run(options: &VmOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let (plan, run) = (&options.plan, &options.run);
    let switches = turns::switches(run)?;
    let names: Vec<String> = switches.iter().map(Switch::name).collect();
    let clock = Clock::calibrate();
    let mut trials = Vec::new();
    for round in 0..plan.rounds {
        for switch in turns::in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name());
            let backend = switch.start(plan, run)?;
            for configuration in options.pair.configurations() {
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
    let machine = plan.machine(clock);
    println!("{machine}.\n\n{}", heading(options, clock));
    print!("{}", report::tables(&trials, &names));
    turns::write_json(plan, &machine, &trials)
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
    fn run(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        let options = self.options;
        turns::on_generator_core(&options.plan, options.run.realtime, || {
            match options.guests {
                Guests::InProcess => self.run_in_process(backend),
                Guests::Testpmd => self.run_testpmd(backend),
            }
        })
    }

    fn run_in_process(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        let (options, configuration) = (self.options, &self.configuration);
        let mut guests =
            BenchGuests::connect(&backend.ports, configuration, &options.pair, self.clock)?;
        // The rate on the command line is per direction; here it is the total.
        let directions = guests.directions() as f64;
        let rate = options.rate.map(|rate| rate as f64 * directions);
        let traffic = |time| {
            guests
                .offer(rate, time)
                .map(|offered| Traffic::of(&offered))
        };
        self.trials(backend, Thread::current(), traffic)
    }

    fn run_testpmd(&self, backend: &Backend) -> Result<Vec<Trial>, BenchError> {
        let mut guests =
            Testpmd::connect(&backend.ports.sockets, &self.configuration, self.options)?;
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
            plan: &options.plan,
            realtime: options.run.realtime,
            clock: self.clock,
            backend,
            generator,
        };
        watch.observe(|| traffic(Duration::from_millis(options.run.warmup_ms)))?;
        let trial = |_| {
            interrupt::check()?;
            let (traffic, observed) = watch.observe(|| traffic(options.run.trial()))?;
            Ok(Trial {
                switch: self.switch.clone(),
                round: self.round,
                configuration: self.configuration.clone(),
                direction: options.pair.direction,
                core_cycles: self.clock.hz() / (traffic.mpps * 1e6),
                discarded: Discard::judge(&traffic, &observed, options.plan.wait_max),
                traffic,
                observed,
            })
        };
        (0..options.plan.trials).map(trial).collect()
    }
}

/// A line above the tables with the settings.
fn heading(options: &VmOptions, clock: Clock) -> String {
    format!(
        "{:?} guests, {:?}, ring {}, mergeable {:?}, 2 MiB pages {:?}, {} x {} trials of {} ms, \
         TSC {:.2} GHz, realtime {}, rate {}\n",
        options.guests,
        options.pair.direction,
        options.pair.ring,
        options.pair.mergeable,
        options.pair.huge_pages,
        options.plan.rounds,
        options.plan.trials,
        options.run.trial_ms,
        clock.hz() / 1e9,
        options.run.realtime,
        options
            .rate
            .map_or("maximum".into(), |rate| rate.to_string()),
    )
}
