//! `suite`, and `vm` and `tso`: scenarios of two guests and of many, on crosspoint and its peers, alternating by rounds.

use super::options::{Guests, LargePairOptions, PairOptions, Plan, ScenarioOptions};
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::machine::Machine;
use crate::lab::schedule::{in_turn, on_core};
use crate::lab::switches::{Need, Place, Running, Switch, lock_peers, peers_dir};
use crate::lab::threads::Thread;
use crate::lab::watch::Crew;
use crate::load::Load;
use crate::load::guest_set::GuestSet;
use crate::load::large::LargeGuests;
use crate::load::scenario::{self, Frames, Scenario};
use crate::load::testpmd::{Testpmd, TestpmdOptions};
use crate::report::results::{Failure, Results, Skip};
use crate::report::{summary, write, write_json};
use crate::search::judge::Jury;
use crate::search::measure::{Lengths, Measurement, measure};
use crosspoint_frame::Clock;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;
use std::time::Duration;

/// Runs `crosspoint-bench suite`.
pub fn run_named(options: &ScenarioOptions) -> Result<(), BenchError> {
    if options.list {
        for name in scenario::all() {
            let is_quick = scenario::quick().any(|quick| quick == name);
            println!("{name}{}", if is_quick { "*" } else { "" });
        }
        return Ok(());
    }
    run(options.plan()?)
}

/// Runs `crosspoint-bench vm`.
pub fn run_pairs(options: &PairOptions) -> Result<(), BenchError> {
    run(options.plan()?)
}

/// Runs `crosspoint-bench tso`.
pub fn run_large(options: &LargePairOptions) -> Result<(), BenchError> {
    run(options.plan()?)
}

fn run(plan: Plan) -> Result<(), BenchError> {
    interrupt::catch()?;
    raise_open_files();
    let has_peers = !plan.run.peer.is_empty();
    let _lock = has_peers.then(lock_peers).transpose()?;
    let runner = Runner {
        switches: plan.run.switches()?,
        binary: plan.run.binary(),
        peers_dir: peers_dir(plan.run.peers_dir.as_deref()),
        plan,
        clock: Clock::calibrate(),
    };
    let results = runner.run()?;
    print!("{}", summary::report(&results, &[]));
    let json = runner.plan.run.json.as_ref();
    write_json(json, &results.machine, &results.measurements)?;
    match results.failed.len() {
        0 => Ok(()),
        count => Err(BenchError::Usage(format!(
            "{count} scenarios failed: see above"
        ))),
    }
}

/// Raises the soft limit of open files to the hard one: each guest has six files here, and peers inherit the limit.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // on failure the guests report what they lack
}

/// The settings of trials, as text.
fn settings(plan: &Plan) -> String {
    let (run, guests) = (&plan.run, &plan.settings);
    format!(
        "{:?} guests, workers on {:?}, generators on {:?}, bursts of {}, receive buffers of {}, 2 MiB pages {:?}, \
         {} x {} trials of {} ms, realtime {}, rate {}",
        plan.guests,
        run.switch_cores,
        run.generator_cores,
        guests.burst,
        guests.rx_buffer,
        run.huge_pages,
        plan.rounds,
        plan.trials,
        plan.trial.as_millis(),
        run.realtime,
        run.rate.map_or("maximum".into(), |rate| rate.to_string()),
    )
}

/// The fixed data of a run.
struct Runner {
    plan: Plan,
    switches: Vec<Switch>,
    binary: PathBuf,
    peers_dir: PathBuf,
    clock: Clock,
}

/// A scenario's guests, connected to a switch.
struct Connected {
    load: Box<dyn Load>,
    /// The threads that drive guests, each with its core.
    generators: Vec<(usize, Thread)>,
}

impl Runner {
    /// The core of the first generator, where trials are observed.
    fn first_core(&self) -> usize {
        self.plan.run.generator_cores[0]
    }

    /// Runs all rounds. In each round, for all scenarios that need the same ports, every switch in turn.
    fn run(&self) -> Result<Results, BenchError> {
        let run = &self.plan.run;
        let mut results = Results {
            skipped: self.skips(),
            ..Results::new(
                Machine::here(self.first_core(), run.switch_cores[0], self.clock),
                run.bounds,
                settings(&self.plan),
                self.switches.iter().map(Switch::name).collect(),
            )
        };
        for round in 0..self.plan.rounds {
            for (need, scenarios) in self.groups() {
                for switch in in_turn(&self.switches, round) {
                    let able = scenarios
                        .iter()
                        .filter(|s| switch.lacks(&s.need()).is_none());
                    let able: Vec<_> = able.copied().collect();
                    self.group(switch, round, need, &able, &mut results)?;
                }
            }
            // After each round: a run takes long, and its results so far are useful.
            if let Some(directory) = &run.out {
                write(&results, directory)?;
            }
        }
        Ok(results)
    }

    /// Groups of scenarios that share one start of a switch, ordered by the first of each.
    fn groups(&self) -> Vec<(Need, Vec<Scenario>)> {
        let mut groups: Vec<(Need, Vec<Scenario>)> = Vec::new();
        for scenario in &self.plan.scenarios {
            let need = scenario.need();
            match groups.iter_mut().find(|(other, _)| other.is_like(&need)) {
                Some((other, group)) => {
                    other.addresses = other.addresses.max(need.addresses);
                    group.push(*scenario);
                }
                None => groups.push((need, vec![*scenario])),
            }
        }
        groups
    }

    fn skips(&self) -> Vec<Skip> {
        let of = |scenario: &Scenario| {
            let skip = |switch: &Switch| {
                Some(Skip {
                    scenario: scenario.to_string(),
                    switch: switch.name(),
                    why: switch.lacks(&scenario.need())?.into(),
                })
            };
            self.switches.iter().filter_map(skip).collect::<Vec<_>>()
        };
        self.plan.scenarios.iter().flat_map(of).collect()
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
        for scenario in scenarios {
            interrupt::check()?;
            eprintln!("round {round}: {}: {scenario}", switch.name());
            let measured = self.start(switch, need, &mut running);
            let measured = measured.and_then(|running| self.measure(scenario, running));
            match measured {
                Ok(measured) => results.measurements.push(Measurement {
                    scenario: scenario.to_string(),
                    switch: switch.name(),
                    round,
                    ..measured
                }),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(why) => {
                    eprintln!("  failed: {why}");
                    running = None;
                    results.failed.push(Failure {
                        scenario: scenario.to_string(),
                        switch: switch.name(),
                        round,
                        why: why.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    fn start<'r>(
        &self,
        switch: &Switch,
        need: Need,
        running: &'r mut Option<Running>,
    ) -> Result<&'r Running, BenchError> {
        let place = Place {
            binary: &self.binary,
            peers_dir: &self.peers_dir,
            cores: &self.plan.run.switch_cores,
            other_core: self.first_core(),
        };
        Ok(match running {
            Some(running) => running,
            None => running.insert(switch.start(need, &place)?),
        })
    }

    /// Measures one scenario on one switch in one round. The caller fills in the switch's name.
    fn measure(&self, scenario: &Scenario, running: &Running) -> Result<Measurement, BenchError> {
        let (plan, run) = (&self.plan, &self.plan.run);
        on_core(self.first_core(), run.realtime, || {
            let Connected {
                mut load,
                generators,
            } = self.connect(scenario, running)?;
            let mut jury = Jury {
                crew: Crew {
                    bounds: run.bounds,
                    realtime: run.realtime,
                    clock: self.clock,
                    metrics: running.metrics,
                    generators,
                    workers: running.workers.clone(),
                },
                passes: scenario.passes(),
                has_shares: false,
                any_placement: run.any_placement,
            };
            let lengths = Lengths {
                warmup: Duration::from_millis(run.warmup_ms),
                trial: plan.trial,
                trials: plan.trials,
                rate: run.rate.map(|rate| rate as f64 * scenario.senders() as f64),
            };
            measure(&mut *load, &mut jury, &run.search, lengths)
        })
    }

    /// Connects a scenario's guests. Call on the first generator's core.
    fn connect(&self, scenario: &Scenario, running: &Running) -> Result<Connected, BenchError> {
        let (plan, ports, core) = (&self.plan, &running.ports, self.first_core());
        if plan.guests == Guests::Testpmd {
            let testpmd = Testpmd::connect(&ports.sockets, &self.testpmd(scenario))?;
            return Ok(Connected {
                generators: vec![(core, testpmd.worker)],
                load: Box::new(testpmd),
            });
        }
        if let Frames::Large(shape) = scenario.frames {
            let huge_pages = plan.run.huge_pages.is_on();
            let guests = LargeGuests::connect(ports, shape, &plan.large, huge_pages, self.clock)?;
            return Ok(Connected {
                generators: vec![(core, Thread::current())],
                load: Box::new(guests),
            });
        }
        let guests = GuestSet::connect(ports, scenario, &plan.settings, self.clock)?;
        Ok(Connected {
            generators: guests.threads(),
            load: Box::new(guests),
        })
    }

    fn testpmd(&self, scenario: &Scenario) -> TestpmdOptions {
        TestpmdOptions {
            core: self.first_core(),
            size: match scenario.frames {
                Frames::Size(size) => size,
                _ => 64, // no other frames can be asked for
            },
            flows: scenario.flows,
            ring: scenario.ring,
            mergeable: scenario.mergeable,
            huge_pages: self.plan.run.huge_pages.is_on(),
            realtime: self.plan.run.realtime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn scenarios_that_need_the_same_ports_share_one_start() {
        let names = "pair-64,chain4-64,tso,both-64,pairs2-64";
        let options: ScenarioOptions = parse(&["--scenarios", names]);
        let runner = Runner {
            plan: options.plan().unwrap(),
            switches: Vec::new(),
            binary: PathBuf::new(),
            peers_dir: PathBuf::new(),
            clock: Clock::calibrate(),
        };
        let names = |scenarios: &[Scenario]| -> Vec<String> {
            scenarios.iter().map(Scenario::to_string).collect()
        };
        let groups: Vec<_> = runner
            .groups()
            .iter()
            .map(|(need, all)| (need.ports, names(all)))
            .collect();
        assert_eq!(groups[0], (2, vec!["pair-64".into(), "both-64".into()]));
        assert_eq!(groups[1], (4, vec!["chain4-64".into(), "pairs2-64".into()]));
        assert_eq!(groups[2], (2, vec!["tso".into()]));
    }
}
