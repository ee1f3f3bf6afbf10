//! `suite`: scenarios with two guests and with many, on crosspoint and its peers, alternating by rounds: maximum receive
//! rates, searches for rates with no loss and with little, and latency below these.
//!
//! | module | what |
//! |---|---|
//! | [`scenario`] | the measured scenarios, by name |
//! | [`switch`] | the switches, with as many ports as a scenario needs |
//! | [`fleet`] | a scenario's connected guests: a [`Load`] |
//! | [`stations`] | the work of one generator's thread |
//! | [`quiet`] | quiet guests beside the busy ones, and how soon the first frame of one gets through |
//! | [`addresses`] | addresses of guests |
//! | [`judge`] | which trials count |

pub mod addresses;
pub mod fleet;
mod judge;
mod quiet;
pub mod scenario;
mod stations;
mod switch;

use crate::error::BenchError;
use crate::interrupt;
use crate::large_guests::LargeGuests;
use crate::load::Load;
use crate::machine::Machine;
use crate::measure::{Lengths, measure};
use crate::options::{PlanOptions, Ports, Sockets, Toggle};
use crate::results::{Bounds, Failure, Measurement, Results, Skip, VERSION};
use crate::search::options::SearchOptions;
use crate::summary;
use crate::threads::Thread;
use crate::tso::{LargeOptions, Shape};
use crate::turns;
use crate::watch::Crew;
use clap::Args;
use crosspoint_frame::Clock;
use fleet::{Fleet, Manner};
use judge::Jury;
use rustix::process::{Resource, getrlimit, setrlimit};
use scenario::{Scenario, Topology};
use std::path::PathBuf;
use std::time::Duration;
use switch::{Need, PeerSwitch, Place, Running, Switch};

/// Options of `suite`.
#[derive(Args, Clone, Debug)]
pub struct SuiteOptions {
    /// Names of scenarios, or globs over the list: see --list
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub scenarios: Vec<String>,
    /// Print the names of all scenarios, with a star at those of --quick, and exit
    #[arg(long)]
    pub list: bool,
    /// Few scenarios, unless others are named; 2 rounds of 3 trials of 200 ms, unless other values are given
    #[arg(long)]
    pub quick: bool,
    /// Rounds: in each, every switch is started, measured and stopped; 5 without --quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Trials of each scenario on each switch in each round; 6 without --quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: Option<u32>,
    /// Length of a trial, milliseconds; 300 without --quick
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trial_ms: Option<u64>,
    /// Traffic before the first trial of a scenario, milliseconds; not measured
    #[arg(long, default_value_t = 200)]
    pub warmup_ms: u64,
    /// A core for each worker of the switches
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "CORES")]
    pub switch_cores: Vec<usize>,
    /// A core for each thread that drives guests
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "CORES")]
    pub generator_cores: Vec<usize>,
    /// Generators and workers may share cores: shows whether a scenario works, not how fast
    #[arg(long)]
    pub share_cores: bool,
    /// A line's round trip below this is `near`
    #[arg(long, default_value_t = 150.0, value_name = "NS")]
    pub near_ns: f64,
    /// A line's round trip above this is `far`
    #[arg(long, default_value_t = 250.0, value_name = "NS")]
    pub far_ns: f64,
    /// Trials that are neither near nor far count too, in separate rows
    #[arg(long)]
    pub any_placement: bool,
    /// Discard trials in which a thread waited for its core for more than this part of the time
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    pub wait_max: f64,
    /// SCHED_FIFO for generators and workers during trials
    #[arg(long)]
    pub realtime: bool,
    /// Frames that a sender makes available at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// At a given rate: frames that a sender keeps while its ring is full, like a guest's own queue
    #[arg(long, default_value_t = 1000)]
    pub backlog: u64,
    /// Bytes of a receive buffer
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u16).range(256..=2048))]
    pub rx_buffer: u16,
    /// Guest memory on 2 MiB pages: two for each guest, more with larger rings
    #[arg(long, value_enum, default_value = "off")]
    pub huge_pages: Toggle,
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// Measure only the other switches, not crosspoint
    #[arg(long)]
    pub skip_crosspoint: bool,
    /// Another switch: ovs-dpdk, testpmd-io or testpmd-mac; optionally its name in tables, and variables of its script in
    /// benches/peers, as in ovs-dpdk,name=ovs35,ROOT=/srv/trixie. Repeat for more
    #[arg(long, value_name = "KIND[,name=NAME][,VARIABLE=VALUE]")]
    pub peer: Vec<PeerSwitch>,
    /// Directory of the peers' scripts; default: benches/peers in a directory above this binary
    #[arg(long, value_name = "DIR")]
    pub peers_dir: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub search: SearchOptions,
    /// Write report.md, results.json and plots to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl SuiteOptions {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    fn trials(&self) -> u32 {
        self.trials.unwrap_or(if self.quick { 3 } else { 6 })
    }

    fn trial(&self) -> Duration {
        let usual = if self.quick { 200 } else { 300 };
        Duration::from_millis(self.trial_ms.unwrap_or(usual))
    }

    fn scenarios(&self) -> Result<Vec<Scenario>, BenchError> {
        let usual = if self.quick {
            scenario::QUICK
        } else {
            scenario::ALL
        };
        let chosen = match self.scenarios.is_empty() {
            true => scenario::select(&usual.iter().map(|name| (*name).into()).collect::<Vec<_>>()),
            false => scenario::select(&self.scenarios),
        };
        chosen.map_err(BenchError::Usage)
    }

    /// The switches in the order of the tables: ratios are the first one's.
    fn switches(&self) -> Vec<Switch> {
        let own = (!self.skip_crosspoint).then_some(Switch::Crosspoint);
        let peers = self.peer.iter().cloned().map(Switch::Peer);
        own.into_iter().chain(peers).collect()
    }

    fn manner(&self) -> Manner {
        Manner {
            cores: self.generator_cores.clone(),
            burst: self.burst.into(),
            backlog: self.backlog,
            rx_buffer: self.rx_buffer.into(),
            huge_pages: self.huge_pages.is_on(),
        }
    }

    /// A plan with the first worker and the first generator, for callers that need one of each.
    fn plan(&self) -> PlanOptions {
        PlanOptions {
            rounds: self.rounds(),
            trials: self.trials(),
            switch_core: self.switch_cores[0],
            generator_core: self.generator_cores[0],
            near_ns: self.near_ns,
            far_ns: self.far_ns,
            wait_max: self.wait_max,
            json: None,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let usage = |what: &str| Err(BenchError::Usage(what.into()));
        let mut cores = [&self.switch_cores[..], &self.generator_cores[..]].concat();
        let count = cores.len();
        cores.sort_unstable();
        cores.dedup();
        if cores.len() < count && !self.share_cores {
            return usage("--switch-cores and --generator-cores: a core for each, and none twice");
        }
        if self.near_ns > self.far_ns {
            return usage("--near-ns is more than --far-ns");
        }
        let switches = self.switches();
        let names: std::collections::BTreeSet<&str> = switches.iter().map(Switch::name).collect();
        if switches.is_empty() {
            return usage("--skip-crosspoint leaves nothing to measure");
        }
        if names.len() < switches.len() {
            return usage("two switches have one name: --peer KIND,name=NAME");
        }
        Ok(())
    }
}

/// Runs `crosspoint-bench suite`.
pub fn run(options: &SuiteOptions) -> Result<(), BenchError> {
    if options.list {
        for name in scenario::ALL {
            let star = if scenario::QUICK.contains(name) {
                "*"
            } else {
                ""
            };
            println!("{name}{star}");
        }
        return Ok(());
    }
    options.check()?;
    interrupt::catch()?;
    raise_open_files();
    let _lock = (!options.peer.is_empty())
        .then(switch::lock_peers)
        .transpose()?;
    let clock = Clock::calibrate();
    let suite = Suite {
        scenarios: options.scenarios()?,
        switches: options.switches(),
        binary: binary(options),
        peers_dir: switch::peers_dir(options.peers_dir.as_deref()),
        plan: options.plan(),
        options,
        clock,
    };
    let results = suite.run()?;
    print!("{}", summary::report(&results, &[]));
    match results.failed.len() {
        0 => Ok(()),
        count => Err(BenchError::Usage(format!(
            "{count} scenarios failed: see above"
        ))),
    }
}

/// The crosspoint binary: as given, or beside this one.
fn binary(options: &SuiteOptions) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("crosspoint"));
    let given = options.switch.clone().or_else(beside);
    given.unwrap_or_else(|| "crosspoint".into())
}

/// Raises the soft limit of open files to the hard one: each guest has six files here, and peers inherit the limit.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // on failure the guests report what they lack
}

/// The settings of trials, as text.
fn settings(options: &SuiteOptions) -> String {
    format!(
        "Workers on {:?}, generators on {:?}, bursts of {}, receive buffers of {}, 2 MiB pages {:?}, {} x {} trials of {} ms, \
         realtime {}",
        options.switch_cores,
        options.generator_cores,
        options.burst,
        options.rx_buffer,
        options.huge_pages,
        options.rounds(),
        options.trials(),
        options.trial().as_millis(),
        options.realtime,
    )
}

/// The fixed data of a run.
struct Suite<'a> {
    options: &'a SuiteOptions,
    plan: PlanOptions,
    scenarios: Vec<Scenario>,
    switches: Vec<Switch>,
    binary: PathBuf,
    peers_dir: PathBuf,
    clock: Clock,
}

/// A scenario's guests, connected to a switch.
pub struct Connected {
    /// Generates the traffic.
    pub load: Box<dyn Load>,
    /// The threads that drive guests, each with its core.
    pub generators: Vec<(usize, Thread)>,
}

impl Suite<'_> {
    /// Runs all rounds. In each round, for all scenarios that need the same ports, every switch in turn.
    fn run(&self) -> Result<Results, BenchError> {
        let mut results = Results {
            version: VERSION,
            arguments: std::env::args().collect(),
            settings: settings(self.options),
            machine: Machine::here(self.plan.generator_core, self.plan.switch_core, self.clock),
            bounds: Bounds::of(&self.plan),
            switches: self.switches.iter().map(|s| s.name().into()).collect(),
            measurements: Vec::new(),
            skipped: self.skips(),
            failed: Vec::new(),
        };
        for round in 0..self.options.rounds() {
            for (need, scenarios) in self.groups() {
                for switch in turns::in_turn(&self.switches, round) {
                    let able = scenarios.iter().filter(|s| switch.lacks(s).is_none());
                    let able: Vec<_> = able.copied().collect();
                    self.group(switch, round, need, &able, &mut results)?;
                }
            }
            // After each round: a run takes long, and its results so far are useful.
            if let Some(directory) = &self.options.out {
                results.write(directory)?;
            }
        }
        Ok(results)
    }

    /// Groups of scenarios that share one start of a switch, ordered by the first of each.
    fn groups(&self) -> Vec<(Need, Vec<Scenario>)> {
        let mut groups: Vec<(Need, Vec<Scenario>)> = Vec::new();
        for scenario in &self.scenarios {
            let need = Need::of(scenario);
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
                    switch: switch.name().into(),
                    why: switch.lacks(scenario)?.into(),
                })
            };
            self.switches.iter().filter_map(skip).collect::<Vec<_>>()
        };
        self.scenarios.iter().flat_map(of).collect()
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
                    switch: switch.name().into(),
                    round,
                    ..measured
                }),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(why) => {
                    eprintln!("  failed: {why}");
                    running = None;
                    results.failed.push(Failure {
                        scenario: scenario.to_string(),
                        switch: switch.name().into(),
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
            cores: &self.options.switch_cores,
            other_core: self.options.generator_cores[0],
        };
        Ok(match running {
            Some(running) => running,
            None => running.insert(switch.start(need, &place)?),
        })
    }

    /// Measures one scenario on one switch in one round. The caller fills in the switch's name.
    fn measure(&self, scenario: &Scenario, running: &Running) -> Result<Measurement, BenchError> {
        let options = self.options;
        turns::on_generator_core(&self.plan, options.realtime, || {
            let mut connected = self.connect(scenario, running)?;
            let mut jury = self.jury(scenario, &connected, running);
            let lengths = Lengths {
                warmup: Duration::from_millis(options.warmup_ms),
                trial: options.trial(),
                trials: options.trials(),
            };
            measure(&mut *connected.load, &mut jury, &options.search, lengths)
        })
    }

    /// Connects a scenario's guests. Call on the first generator's core.
    fn connect(&self, scenario: &Scenario, running: &Running) -> Result<Connected, BenchError> {
        if scenario.topology == Topology::Tso {
            let large = connect_large(running, self.options, self.clock)?;
            return Ok(Connected {
                load: Box::new(large),
                generators: vec![(self.plan.generator_core, Thread::current())],
            });
        }
        let manner = self.options.manner();
        let fleet = Fleet::connect(&running.sockets, scenario, &manner, self.clock)?;
        Ok(Connected {
            generators: fleet.threads(),
            load: Box::new(fleet),
        })
    }

    fn jury(&self, scenario: &Scenario, connected: &Connected, running: &Running) -> Jury {
        let crew = Crew {
            near_ns: self.options.near_ns,
            far_ns: self.options.far_ns,
            realtime: self.options.realtime,
            clock: self.clock,
            metrics: running.metrics,
            generators: connected.generators.clone(),
            workers: running.workers.clone(),
        };
        Jury {
            crew,
            passes: scenario.passes(),
            wait_max: self.options.wait_max,
            any_placement: self.options.any_placement,
        }
    }
}

fn connect_large(
    running: &Running,
    options: &SuiteOptions,
    clock: Clock,
) -> Result<LargeGuests, BenchError> {
    let [a, b] = &running.sockets[..] else {
        return Err(BenchError::backend("the switch", "has not two ports"));
    };
    let ports = Ports {
        sockets: Sockets([a.clone(), b.clone()]),
        guests_listen: running.guests_listen,
    };
    let guests = LargeOptions {
        huge_pages: options.huge_pages,
        ..LargeOptions::default()
    };
    LargeGuests::connect(&ports, Shape::LARGEST, &guests, clock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser;

    fn parse(arguments: &[&str]) -> SuiteOptions {
        let all = ["crosspoint-bench", "suite"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Suite(options) => *options,
            _ => unreachable!("asked for suite"),
        }
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let options = parse(&["--quick", "--rounds", "4"]);
        assert_eq!((options.rounds(), options.trials()), (4, 3));
        assert_eq!(options.scenarios().unwrap().len(), scenario::QUICK.len());
        let options = parse(&["--quick", "--scenarios", "chain*"]);
        assert_eq!(options.scenarios().unwrap().len(), 5);
        assert_eq!(parse(&[]).scenarios().unwrap().len(), scenario::ALL.len());
    }

    #[test]
    fn no_core_is_used_twice_and_no_name() {
        assert!(parse(&[]).check().is_ok());
        assert!(
            parse(&["--switch-cores", "1,2", "--generator-cores", "0,3"])
                .check()
                .is_ok()
        );
        assert!(parse(&["--switch-cores", "1,0"]).check().is_err());
        assert!(parse(&["--skip-crosspoint"]).check().is_err());
        let peers = ["--peer", "testpmd-io", "--peer", "testpmd-io"];
        assert!(parse(&peers).check().is_err());
        let peers = ["--peer", "testpmd-io", "--peer", "testpmd-io,name=other"];
        assert!(parse(&peers).check().is_ok());
    }

    #[test]
    fn scenarios_that_need_the_same_ports_share_one_start() {
        let options = parse(&["--scenarios", "pair-64,chain4-64,tso,both-64,pairs2-64"]);
        let suite = Suite {
            scenarios: options.scenarios().unwrap(),
            switches: options.switches(),
            binary: PathBuf::new(),
            peers_dir: PathBuf::new(),
            plan: options.plan(),
            options: &options,
            clock: Clock::calibrate(),
        };
        let names = |scenarios: &[Scenario]| -> Vec<String> {
            scenarios.iter().map(Scenario::to_string).collect()
        };
        let groups: Vec<_> = suite
            .groups()
            .iter()
            .map(|(need, all)| (need.ports, names(all)))
            .collect();
        assert_eq!(groups[0], (2, vec!["pair-64".into(), "both-64".into()]));
        assert_eq!(groups[1], (4, vec!["chain4-64".into(), "pairs2-64".into()]));
        assert_eq!(groups[2], (2, vec!["tso".into()]));
    }
}
