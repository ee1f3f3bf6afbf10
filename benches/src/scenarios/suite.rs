//! `suite`: scenarios of two guests and of many, on crosspoint and its peers, alternating by rounds.

use super::suite_options::SuiteOptions;
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Crew, Machine, Place, Running, Switch, Thread, in_turn, lock_peers, on_core};
use crate::load::{Frames, GuestSet, LargeGuests, Load, Scenario, scenario};
use crate::options::check_failed;
use crate::report::{Missing, Results, summary, write};
use crate::trials::{Jury, Measurement, measure};
use crosspoint_frame::Clock;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Runs `crosspoint-bench suite`.
pub fn run(options: &SuiteOptions) -> Result<(), BenchError> {
    if options.list {
        for name in scenario::all() {
            let is_quick = scenario::quick().any(|quick| quick == name);
            println!("{name}{}", if is_quick { "*" } else { "" });
        }
        return Ok(());
    }
    let scenarios = options.plan()?;
    interrupt::catch()?;
    raise_open_files();
    let has_peers = !options.peer.is_empty();
    let _lock = has_peers.then(lock_peers).transpose()?;
    let runner = Runner {
        scenarios,
        switches: options.switches(),
        place: options.place(),
        options,
        clock: Clock::calibrate(),
    };
    let results = runner.run()?;
    print!("{}", summary::report(&results));
    let failed = results.missing.iter().filter(|m| m.round.is_some());
    check_failed(failed.count())
}

/// Raises the soft limit of open files to the hard one: each guest has six files here, and peers inherit the limit.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // on failure the guests report what they lack
}

/// The fixed data of a run.
struct Runner<'a> {
    options: &'a SuiteOptions,
    scenarios: Vec<Scenario>,
    switches: Vec<Switch>,
    place: Place,
    clock: Clock,
}

/// A scenario's guests, and the threads that drive them, each with its core.
type Connected = (Box<dyn Load>, Vec<(usize, Thread)>);

impl Runner<'_> {
    /// Runs all rounds. In each round, for each scenario, every switch in turn.
    fn run(&self) -> Result<Results, BenchError> {
        let options = self.options;
        let machine = Machine::here(self.place.other_core, self.place.cores[0], self.clock);
        let settings = options.settings(&self.scenarios[0]);
        let names = self.switches.iter().map(Switch::name).collect();
        let mut results = Results::new(machine, options.bounds, settings, names);
        for round in 0..options.rounds() {
            for scenario in &self.scenarios {
                for switch in in_turn(&self.switches, round) {
                    self.one(switch, scenario, round, &mut results)?;
                }
            }
            // After each round: a run takes long, and its results so far are useful.
            if let Some(directory) = &options.out {
                write(&results, directory)?;
            }
        }
        Ok(results)
    }

    /// Runs one scenario on one switch in one round. A failure is noted.
    fn one(
        &self,
        switch: &Switch,
        scenario: &Scenario,
        round: u32,
        results: &mut Results,
    ) -> Result<(), BenchError> {
        interrupt::check()?;
        let name = switch.name();
        let mut missing = |failed_in, why: String| {
            results.missing.push(Missing {
                scenario: scenario.name.clone(),
                switch: name.clone(),
                round: failed_in,
                why,
            });
        };
        if let Some(why) = switch.lacks(&scenario.need()) {
            if round == 0 {
                missing(None, why.into());
            }
            return Ok(());
        }
        eprintln!("round {round}: {name}: {scenario}");
        match self.measure(switch, scenario) {
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(why) => {
                eprintln!("  failed: {why}");
                missing(Some(round), why.to_string());
            }
            Ok(measured) => results.measurements.push(Measurement {
                scenario: scenario.name.clone(),
                switch: name,
                round,
                ..measured
            }),
        }
        Ok(())
    }

    /// Starts a switch, and measures one scenario on it. The caller fills in the names.
    fn measure(&self, switch: &Switch, scenario: &Scenario) -> Result<Measurement, BenchError> {
        let running = switch.start(scenario.need(), &self.place)?;
        let options = self.options;
        on_core(self.place.other_core, options.realtime, || {
            let (mut load, generators) = self.connect(scenario, &running)?;
            let jury = Jury {
                crew: Crew {
                    bounds: options.bounds,
                    realtime: options.realtime,
                    clock: self.clock,
                    metrics: running.metrics,
                    generators,
                    workers: running.workers.clone(),
                },
                passes: scenario.passes(),
                has_shares: false,
                any_placement: options.any_placement,
            };
            measure(options.lengths(scenario), |rate, time| {
                jury.trial(&mut *load, rate, time)
            })
        })
    }

    /// Connects a scenario's guests. Call on the first generator's core.
    fn connect(&self, scenario: &Scenario, running: &Running) -> Result<Connected, BenchError> {
        let (options, ports, core) = (self.options, &running.ports, self.place.other_core);
        if let Frames::Large(shape) = scenario.frames {
            let guests = LargeGuests::connect(ports, shape, options.huge_pages, self.clock)?;
            return Ok((Box::new(guests), vec![(core, Thread::current())]));
        }
        let settings = options.guest_set();
        let guests = GuestSet::connect(ports, scenario, &settings, self.clock)?;
        let threads = guests.threads();
        Ok((Box::new(guests), threads))
    }
}
