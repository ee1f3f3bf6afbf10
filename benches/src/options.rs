//! The command line.

use crate::churn::ChurnOptions;
use crate::compare::CompareOptions;
use crate::cost::CostOptions;
use crate::error::BenchError;
use crate::fairness::FairnessOptions;
use crate::idle::IdleOptions;
use crate::lines::LinesOptions;
use crate::machine::Machine;
use crate::mask::MaskOptions;
use crate::nic::NicOptions;
use crate::results::ReportOptions;
use crate::scrapes::ScrapeOptions;
use crate::suite::SuiteOptions;
use crate::trial::Configuration;
use crate::tso::TsoOptions;
use clap::{Args, Parser, Subcommand, ValueEnum};
use crosspoint_frame::Clock;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of the frame check sequence: in a frame's size by convention, never on a virtio ring.
pub const FCS_LEN: u16 = 4;

/// Measures crosspoint, and other switches beside it.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// What to measure.
#[derive(Subcommand)]
pub enum Command {
    /// Frames between two guests over one worker: Mpps, cycles per frame, latency
    Vm(Box<VmOptions>),
    /// Render a results file again; nothing is measured
    Report(ReportOptions),
    /// Large TCP frames between two guests over one worker: Gb/s, cycles per KiB
    Tso(Box<TsoOptions>),
    /// Frames between NICs, and between guests and NICs: Mpps, the kernel's cycles and the switch's
    Nic(Box<NicOptions>),
    /// Scenarios of two guests and of many over one worker or more: rates, cycles per frame, latency
    Suite(Box<SuiteOptions>),
    /// Cycles per KiB of copying, checksumming and cutting frames; no switch runs
    Cost(CostOptions),
    /// The cost of an idle worker, how soon it wakes, and whether a wakeup is ever lost
    Idle(Box<IdleOptions>),
    /// The cost of guests and interfaces that come and go to those that stay
    Churn(Box<ChurnOptions>),
    /// How much hostile guests take from other guests of their worker
    Fairness(Box<FairnessOptions>),
    /// Any switches with any measuring command, in turn: see uml.sh and veth.sh
    Compare(CompareOptions),
    /// Proxy between a vhost-user front end and back ends that hides features; runs until killed
    Mask(MaskOptions),
    /// Cache lines that cross between a guest's core and the switch's: the cost of one, and their part of a frame's cycles
    Lines(Box<LinesOptions>),
    /// How long a scrape of a thousand queues takes, and whether workers notice
    Scrape(ScrapeOptions),
}

/// Options of every subcommand that measures switches in turn.
#[derive(Args, Clone, Debug)]
pub struct PlanOptions {
    /// Rounds: in each, every switch is started, measured and stopped
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Trials of each configuration in each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: u32,
    /// The core of crosspoint's worker; peers must poll on the same one
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// Core of generator and sink
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
    /// A line's round trip below this is `near`
    #[arg(long, default_value_t = 150.0, value_name = "NS")]
    pub near_ns: f64,
    /// A line's round trip above this is `far`
    #[arg(long, default_value_t = 250.0, value_name = "NS")]
    pub far_ns: f64,
    /// Discard trials in which a thread waited for its core for more than this part of the time
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    pub wait_max: f64,
    /// Write every trial to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl PlanOptions {
    /// This machine, with the round trip between the two cores.
    pub fn machine(&self, clock: Clock) -> Machine {
        Machine::here(self.generator_core, self.switch_core, clock)
    }
}

/// Options of the subcommands whose guests are in this process: their trials, and the switches.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Length of a trial, milliseconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trial_ms: u64,
    /// Traffic before the first trial of a configuration, milliseconds; not measured
    #[arg(long, default_value_t = 200)]
    pub warmup_ms: u64,
    /// SCHED_FIFO for generator and worker during trials
    #[arg(long)]
    pub realtime: bool,
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// Measure only the other switches, not crosspoint
    #[arg(long)]
    pub skip_crosspoint: bool,
    /// A switch that is running already, by its two sockets; not started or stopped
    #[arg(long, value_name = "SOCK_A,SOCK_B", value_parser = socket_pair)]
    pub against: Vec<Sockets>,
    /// A switch that is started and stopped in turn with crosspoint; repeat all --peer options for each further one
    #[arg(long, value_name = "NAME")]
    pub peer_name: Vec<String>,
    /// Shell command that starts it; may stay in the foreground, unless the guests listen
    #[arg(long, value_name = "COMMAND")]
    pub peer_start: Vec<String>,
    /// Shell command that stops it
    #[arg(long, value_name = "COMMAND")]
    pub peer_stop: Vec<String>,
    /// Its two sockets; with "listen:" before them, the guests listen there and the switch connects
    #[arg(long, value_name = "[listen:]SOCK_A,SOCK_B", value_parser = ports)]
    pub peer_sockets: Vec<Ports>,
    /// Start of the name of its polling thread, to measure whether it waited for its core
    #[arg(long, value_name = "PREFIX")]
    pub peer_thread: Vec<String>,
}

/// Options of `vm`.
#[derive(Args, Clone, Debug)]
pub struct VmOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub plan: PlanOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub run: RunOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub pair: PairOptions,
    /// Frames per second and direction; without this: as many as the switch takes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// The guests: in this process, or in dpdk-testpmd (virtio-user)
    #[arg(long, value_enum, default_value = "in-process")]
    pub guests: Guests,
}

/// Options of two guests with a switch between them, and of their traffic.
#[derive(Args, Clone, Debug)]
pub struct PairOptions {
    /// Frame sizes with the 4-byte FCS: 64 is 60 bytes on the ring, 1518 is 1514
    #[arg(long, value_delimiter = ',', default_value = "64,1518",
          value_parser = clap::value_parser!(u16).range(64..=2000))]
    pub sizes: Vec<u16>,
    /// Numbers of flows (by UDP source port)
    #[arg(long, value_delimiter = ',', default_value = "1,10000",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub flows: Vec<u32>,
    /// Direction of the traffic; for both, rates are the sum
    #[arg(long, value_enum, default_value = "one-way")]
    pub direction: Direction,
    /// Frames that the generator makes available at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// Entries of each virtqueue, a power of two
    #[arg(long, default_value_t = 256, value_parser = ring_size)]
    pub ring: u16,
    /// Mergeable receive buffers
    #[arg(long, value_enum, default_value = "on")]
    pub mergeable: Toggle,
    /// Guest memory on 2 MiB pages
    #[arg(long, value_enum, default_value = "off")]
    pub huge_pages: Toggle,
}

impl PairOptions {
    /// Every size combined with every number of flows.
    pub fn configurations(&self) -> Vec<Configuration> {
        let of_size = |size: &u16| {
            let size = *size;
            let flows = self.flows.iter();
            flows.map(move |flows| Configuration {
                size,
                flows: *flows,
            })
        };
        self.sizes.iter().flat_map(of_size).collect()
    }
}

/// Direction of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the first guest to the second.
    OneWay,
    /// In both directions at the same time.
    Both,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Toggle {
    /// On.
    On,
    /// Off.
    Off,
}

impl Toggle {
    /// As a `bool`.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// The driver of the virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guests {
    /// `crosspoint-guest`, in this process.
    InProcess,
    /// `dpdk-testpmd` with two `net_virtio_user` devices.
    Testpmd,
}

/// The sockets of a switch's two ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets(pub [PathBuf; 2]);

/// The sockets between guests and a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// One socket per guest.
    pub sockets: Sockets,
    /// The guests listen, and the switch connects.
    pub guests_listen: bool,
}

impl Ports {
    /// For a switch that listens.
    pub fn of_switch(sockets: Sockets) -> Self {
        Self {
            sockets,
            guests_listen: false,
        }
    }
}

/// A switch that is started and stopped by commands.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name in tables.
    pub name: String,
    /// Shell command that starts it.
    pub start: String,
    /// Shell command that stops it.
    pub stop: String,
    /// Its ports; without any, it is ready when the start command has ended.
    pub ports: Option<Ports>,
    /// Start of its polling thread's name; empty: it has none.
    pub thread: String,
}

impl RunOptions {
    /// Length of a trial.
    pub fn trial(&self) -> Duration {
        Duration::from_millis(self.trial_ms)
    }

    /// The crosspoint binary: as given, or beside this one.
    pub fn switch_binary(&self) -> PathBuf {
        beside_this_one(self.switch.as_ref())
    }

    /// The peers. Fails unless every `--peer` option is given equally often.
    pub fn peers(&self) -> Result<Vec<Peer>, BenchError> {
        let count = self.peer_name.len();
        let counts = [
            self.peer_start.len(),
            self.peer_stop.len(),
            self.peer_sockets.len(),
            self.peer_thread.len(),
        ];
        if counts.iter().any(|other| *other != count) {
            let what = "--peer-name, --peer-start, --peer-stop, --peer-sockets and --peer-thread \
                        go together: give each of them equally often";
            return Err(BenchError::Usage(what.into()));
        }
        let peer = |i: usize| Peer {
            name: self.peer_name[i].clone(),
            start: self.peer_start[i].clone(),
            stop: self.peer_stop[i].clone(),
            ports: Some(self.peer_sockets[i].clone()),
            thread: self.peer_thread[i].clone(),
        };
        Ok((0..count).map(peer).collect())
    }

    /// Checks combinations of options.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.skip_crosspoint && self.against.is_empty() && self.peer_name.is_empty() {
            return usage("--skip-crosspoint leaves nothing to measure");
        }
        Ok(())
    }
}

impl PlanOptions {
    /// Checks combinations of options.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.switch_core == self.generator_core {
            return usage("--switch-core and --generator-core have to differ");
        }
        if self.near_ns > self.far_ns {
            return usage("--near-ns is more than --far-ns");
        }
        Ok(())
    }
}

impl VmOptions {
    /// Checks combinations of options.
    pub fn check(&self) -> Result<(), BenchError> {
        self.plan.check()?;
        self.run.check()?;
        if self.guests == Guests::Testpmd && self.pair.direction != Direction::Both {
            return usage("--guests testpmd needs --direction both: see benches/README.md");
        }
        if self.guests == Guests::Testpmd && self.rate.is_some() {
            return usage("--guests testpmd has no --rate");
        }
        if self.guests == Guests::Testpmd && self.pair.ring < 64 {
            return usage("--guests testpmd needs --ring 64 or more");
        }
        if self.guests == Guests::Testpmd && self.run.peers()?.iter().any(Peer::guests_listen) {
            return usage("--guests testpmd cannot listen for a switch");
        }
        Ok(())
    }
}

impl Peer {
    /// The guests listen, and the switch connects.
    pub fn guests_listen(&self) -> bool {
        self.ports.as_ref().is_some_and(|ports| ports.guests_listen)
    }
}

/// The crosspoint binary: as given, or beside this one.
pub fn beside_this_one(given: Option<&PathBuf>) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("crosspoint"));
    let given = given.cloned().or_else(beside);
    given.unwrap_or_else(|| Path::new("crosspoint").into())
}

fn usage(what: &str) -> Result<(), BenchError> {
    Err(BenchError::Usage(what.into()))
}

/// Parses the size of a virtqueue.
pub fn ring_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && (2..=32768).contains(&size) => Ok(size),
        _ => Err("a power of two from 2 to 32768".into()),
    }
}

/// Parses two paths with a comma between them.
pub fn socket_pair(text: &str) -> Result<Sockets, String> {
    match text.split_once(',') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(',') => {
            Ok(Sockets([a.into(), b.into()]))
        }
        _ => Err("two paths with a comma between".into()),
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    let (guests_listen, pair) = match text.strip_prefix("listen:") {
        Some(pair) => (true, pair),
        None => (false, text),
    };
    Ok(Ports {
        sockets: socket_pair(pair)?,
        guests_listen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> VmOptions {
        let all = ["crosspoint-bench", "vm"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Vm(options) => *options,
            _ => unreachable!("asked for vm"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_readme() {
        let options = parse(&[]);
        assert_eq!(
            (options.pair.sizes.as_slice(), options.pair.flows.as_slice()),
            (&[64, 1518][..], &[1, 10000][..])
        );
        assert_eq!(
            (
                options.plan.rounds,
                options.plan.trials,
                options.run.trial_ms
            ),
            (5, 10, 300)
        );
        assert!(options.check().is_ok());
    }

    #[test]
    fn peers_need_all_their_options() {
        let peer = [
            "--peer-name",
            "ovs",
            "--peer-start",
            "a",
            "--peer-stop",
            "b",
        ];
        assert!(parse(&peer).run.peers().is_err());
        let rest = ["--peer-sockets", "/a,/b", "--peer-thread", "pmd"];
        let peers = parse(&[&peer[..], &rest[..]].concat()).run.peers().unwrap();
        assert_eq!(peers.len(), 1);
        let ports = peers[0].ports.as_ref().unwrap();
        assert_eq!(ports.sockets, Sockets(["/a".into(), "/b".into()]));
        assert!(!ports.guests_listen && super::ports("listen:/a,/b").unwrap().guests_listen);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(ring_size("255").is_err());
        assert!(socket_pair("/a").is_err() && socket_pair("/a,/b,/c").is_err());
        assert!(parse(&["--generator-core", "1"]).check().is_err());
        assert!(parse(&["--guests", "testpmd"]).check().is_err());
    }
}
