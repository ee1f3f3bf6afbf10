//! The options of `suite`.

use crate::error::BenchError;
use crate::lab::{Bounds, PeerSwitch, Place, Switch, crosspoint, peers_dir};
use crate::load::{GuestSetOptions, Scenario, scenario};
use crate::options::usage;
use crate::trials::Lengths;
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

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
    /// Rounds: in each, every switch is started, measured and stopped; default: 5, with --quick 2
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Trials of each scenario on each switch in each round; default: 6, with --quick 3
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: Option<u32>,
    /// Length of a trial, milliseconds; default: 300, with --quick 200
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trial_ms: Option<u64>,
    /// A core for each worker of the switches; peers must poll on the same ones
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "CORES")]
    pub switch_cores: Vec<usize>,
    /// A core for each thread that drives guests
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "CORES")]
    pub generator_cores: Vec<usize>,
    #[command(flatten)]
    pub bounds: Bounds,
    /// Trials that are neither near nor far count too, in separate rows
    #[arg(long)]
    pub any_placement: bool,
    /// SCHED_FIFO for generators and workers during trials
    #[arg(long)]
    pub realtime: bool,
    /// Guest memory on 2 MiB pages: two for each guest, more with larger rings
    #[arg(long)]
    pub huge_pages: bool,
    /// Frames per second and direction, instead of as many as the switch takes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// At a given rate: frames that a sender keeps while its ring is full, like a guest's own queue
    #[arg(long, default_value_t = 1000)]
    pub backlog: u64,
    /// Bytes of a receive buffer
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u16).range(256..=2048))]
    pub rx_buffer: u16,
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
    /// Measure latency too: at 10 000 frames per second, and at 10, 50 and 90 % of the maximum receive rate
    #[arg(long)]
    pub latency: bool,
    /// Write report.md and results.json to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl SuiteOptions {
    /// The scenarios to measure, in order. Fails if options cannot be combined.
    pub fn plan(&self) -> Result<Vec<Scenario>, BenchError> {
        let names: Vec<String> = match (self.scenarios.is_empty(), self.quick) {
            (false, _) => self.scenarios.clone(),
            (true, true) => scenario::quick().map(Into::into).collect(),
            (true, false) => scenario::all().map(Into::into).collect(),
        };
        let scenarios = scenario::select(&names).map_err(BenchError::Usage)?;
        let cores = [&self.switch_cores[..], &self.generator_cores[..]].concat();
        let distinct: BTreeSet<usize> = cores.iter().copied().collect();
        if distinct.len() < cores.len() {
            return usage("--switch-cores and --generator-cores: a core for each, and none twice");
        }
        self.bounds.check()?;
        let switches = self.switches();
        let names: BTreeSet<String> = switches.iter().map(Switch::name).collect();
        if switches.is_empty() {
            return usage("--skip-crosspoint leaves nothing to measure");
        }
        if names.len() < switches.len() {
            return usage("two switches have one name: --peer KIND,name=NAME");
        }
        Ok(scenarios)
    }

    /// Number of rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Lengths and numbers of trials of a scenario.
    pub fn lengths(&self, scenario: &Scenario) -> Lengths {
        let (trials, trial_ms) = if self.quick { (3, 200) } else { (6, 300) };
        let senders = scenario.senders() as f64;
        Lengths {
            trial: Duration::from_millis(self.trial_ms.unwrap_or(trial_ms)),
            trials: self.trials.unwrap_or(trials),
            rate: self.rate.map(|rate| rate as f64 * senders),
            latency: self.latency,
        }
    }

    /// The switches in the order of the tables: ratios are the first one's.
    pub fn switches(&self) -> Vec<Switch> {
        let own = (!self.skip_crosspoint).then_some(Switch::Crosspoint);
        let peers = self.peer.iter().cloned().map(Switch::Peer);
        own.into_iter().chain(peers).collect()
    }

    /// Paths and cores of the switches.
    pub fn place(&self) -> Place {
        Place {
            binary: crosspoint::binary(self.switch.as_ref()),
            peers_dir: peers_dir(self.peers_dir.as_ref()),
            cores: self.switch_cores.clone(),
            other_core: self.generator_cores[0],
        }
    }

    /// Properties of the guests in this process.
    pub fn guest_set(&self) -> GuestSetOptions {
        GuestSetOptions {
            cores: self.generator_cores.clone(),
            backlog: self.backlog,
            rx_buffer: self.rx_buffer.into(),
            huge_pages: self.huge_pages,
            ..GuestSetOptions::on(self.generator_cores[0])
        }
    }

    /// The settings of trials, as text.
    pub fn settings(&self, scenario: &Scenario) -> String {
        let lengths = self.lengths(scenario);
        format!(
            "workers on {:?}, generators on {:?}, receive buffers of {}, 2 MiB pages {}, {} x {} trials of {} ms, \
             realtime {}, rate {}",
            self.switch_cores,
            self.generator_cores,
            self.rx_buffer,
            self.huge_pages,
            self.rounds(),
            lengths.trials,
            lengths.trial.as_millis(),
            self.realtime,
            self.rate.map_or("maximum".into(), |rate| rate.to_string()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    fn plan(arguments: &[&str]) -> Result<Vec<Scenario>, BenchError> {
        parse::<SuiteOptions>(arguments).plan()
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let options: SuiteOptions = parse(&["--quick", "--rounds", "4"]);
        let scenarios = options.plan().unwrap();
        assert_eq!(scenarios.len(), scenario::quick().count());
        let trials = options.lengths(&scenarios[0]).trials;
        assert_eq!((options.rounds(), trials), (4, 3));
        assert_eq!(plan(&[]).unwrap().len(), scenario::all().count());
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert!(plan(&["--switch-cores", "1,2", "--generator-cores", "0,3"]).is_ok());
        assert!(plan(&["--switch-cores", "1,0"]).is_err());
        assert!(plan(&["--skip-crosspoint"]).is_err());
        assert!(plan(&["--peer", "testpmd-io", "--peer", "testpmd-io"]).is_err());
    }
}
