//! `suite`: scenarios of two guests and of many, on crosspoint and its peers, alternating by rounds.

use super::suite_options::{Guests, SuiteOptions};
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{
    Crew, Machine, Need, Place, Running, Switch, Thread, in_turn, lock_peers, on_core,
};
use crate::load::{
    Frames, GuestSet, LargeGuests, Load, Scenario, Testpmd, TestpmdOptions, scenario,
};
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
    /// Runs all rounds. In each round, for all scenarios that need the same ports, every switch in turn.
    fn run(&self) -> Result<Results, BenchError> {
        let options = self.options;
        let machine = Machine::here(self.place.other_core, self.place.cores[0], self.clock);
        let settings = options.settings(&self.scenarios[0]);
        let names = self.switches.iter().map(Switch::name).collect();
        let mut results = Results::new(machine, options.bounds, settings, names);
        results.missing = self.skips();
        for round in 0..options.rounds() {
            for (need, scenarios) in groups(&self.scenarios) {
                for switch in in_turn(&self.switches, round) {
                    self.group(switch, round, need, &scenarios, &mut results)?;
                }
            }
            // After each round: a run takes long, and its results so far are useful.
            if let Some(directory) = &options.out {
                write(&results, directory)?;
            }
        }
        Ok(results)
    }

    fn skips(&self) -> Vec<Missing> {
        let mut skips = Vec::new();
        for (scenario, switch) in self
            .scenarios
            .iter()
            .flat_map(|scenario| self.switches.iter().map(move |switch| (scenario, switch)))
        {
            let why = switch.lacks(&scenario.need());
            skips.extend(why.map(|why| Missing {
                scenario: scenario.to_string(),
                switch: switch.name(),
                round: None,
                why: why.into(),
            }));
        }
        skips
    }

    /// Runs one switch in one round. A scenario that fails is noted, and the switch is started again for the next one.
    fn group(
        &self,
        switch: &Switch,
        round: u32,
        need: Need,
        scenarios: &[Scenario],
        results: &mut Results,
    ) -> Result<(), BenchError> {
        let mut running = None;
        let able = scenarios
            .iter()
            .filter(|s| switch.lacks(&s.need()).is_none());
        for scenario in able {
            interrupt::check()?;
            let name = switch.name();
            eprintln!("round {round}: {name}: {scenario}");
            match self.measure(switch, need, scenario, &mut running) {
                Ok(measured) => results.measurements.push(Measurement {
                    scenario: scenario.to_string(),
                    switch: name,
                    round,
                    ..measured
                }),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(why) => {
                    eprintln!("  failed: {why}");
                    running = None;
                    results.missing.push(Missing {
                        scenario: scenario.to_string(),
                        switch: name,
                        round: Some(round),
                        why: why.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Measures one scenario on one switch in one round, and starts the switch if it is not running. The caller fills in the
    /// names.
    fn measure(
        &self,
        switch: &Switch,
        need: Need,
        scenario: &Scenario,
        running: &mut Option<Running>,
    ) -> Result<Measurement, BenchError> {
        let running = match running {
            Some(running) => running,
            None => running.insert(switch.start(need, &self.place)?),
        };
        let options = self.options;
        on_core(self.place.other_core, options.realtime, || {
            let (mut load, generators) = self.connect(scenario, running)?;
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
        Ok(match scenario.frames {
            Frames::Size(size) if options.guests == Guests::Testpmd => {
                let testpmd = TestpmdOptions {
                    size,
                    flows: scenario.flows,
                    ring: scenario.ring,
                    mergeable: scenario.mergeable,
                    huge_pages: options.huge_pages,
                    realtime: options.realtime,
                    ..TestpmdOptions::on(core)
                };
                let guests = Testpmd::connect(&ports.sockets, &testpmd)?;
                let threads = vec![(core, guests.worker)];
                (Box::new(guests), threads)
            }
            Frames::Large(shape) => {
                let guests = LargeGuests::connect(ports, shape, options.huge_pages, self.clock)?;
                (Box::new(guests), vec![(core, Thread::current())])
            }
            _ => {
                let settings = options.guest_set();
                let guests = GuestSet::connect(ports, scenario, &settings, self.clock)?;
                let threads = guests.threads();
                (Box::new(guests), threads)
            }
        })
    }
}

/// Groups of scenarios that share one start of a switch, ordered by the first of each.
fn groups(scenarios: &[Scenario]) -> Vec<(Need, Vec<Scenario>)> {
    let mut groups: Vec<(Need, Vec<Scenario>)> = Vec::new();
    for scenario in scenarios {
        let need = scenario.need();
        match groups.iter_mut().find(|(other, _)| other.is_like(&need)) {
            Some((other, group)) => {
                other.addresses = other.addresses.max(need.addresses);
                group.push(scenario.clone());
            }
            None => groups.push((need, vec![scenario.clone()])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_that_need_the_same_ports_share_one_start() {
        let names = ["pair-64", "chain4-64", "tso", "both-64", "pairs2-64"];
        let scenarios = names.map(|name| name.parse::<Scenario>().unwrap());
        let groups = groups(&scenarios);
        let shape = |(need, all): &(Need, Vec<_>)| (need.ports, all.len());
        let shapes: Vec<_> = groups.iter().map(shape).collect();
        assert_eq!(shapes, [(2, 2), (4, 2), (2, 1)]);
    }
}
