//! The options of `suite`, and of `vm` and `tso`, which are `suite` with scenarios made of options.

use crate::error::BenchError;
use crate::lab::crosspoint;
use crate::lab::peer::{Peer, Ports};
use crate::lab::placement::Bounds;
use crate::lab::switches::{PeerSwitch, Switch};
use crate::load::guest_set::GuestSetOptions;
use crate::load::large::{LargeOptions, Shape};
use crate::load::scenario::{self, Frames, Scenario, Topology};
use crate::options::{
    Direction, Toggle, check_bounds, check_equally_often, ring_size, socket_pair, usage,
};
use crate::search::options::SearchOptions;
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Options of every run of scenarios between guests.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Rounds: in each, every switch is started, measured and stopped; default: 5, with --quick 2
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Trials of each scenario on each switch in each round; default: 6, of vm and tso 10, with --quick 3
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: Option<u32>,
    /// Length of a trial, milliseconds; default: 300, with --quick 200
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub trial_ms: Option<u64>,
    /// Traffic before the first trial of a scenario, milliseconds; not measured
    #[arg(long, default_value_t = 200)]
    pub warmup_ms: u64,
    /// A core for each worker of the switches; peers must poll on the same ones
    #[arg(
        long,
        alias = "switch-core",
        value_delimiter = ',',
        default_value = "1",
        value_name = "CORES"
    )]
    pub switch_cores: Vec<usize>,
    /// A core for each thread that drives guests
    #[arg(
        long,
        alias = "generator-core",
        value_delimiter = ',',
        default_value = "0",
        value_name = "CORES"
    )]
    pub generator_cores: Vec<usize>,
    /// Generators and workers may share cores: shows whether a scenario works, not how fast
    #[arg(long)]
    pub share_cores: bool,
    #[command(flatten)]
    pub bounds: Bounds,
    /// Trials that are neither near nor far count too, in separate rows
    #[arg(long)]
    pub any_placement: bool,
    /// SCHED_FIFO for generators and workers during trials
    #[arg(long)]
    pub realtime: bool,
    /// Guest memory on 2 MiB pages: two for each guest, more with larger rings
    #[arg(long, value_enum, default_value = "off")]
    pub huge_pages: Toggle,
    /// Frames per second and direction, instead of as many as the switch takes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
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
    /// A switch with two ports that is running already, by its two sockets; not started or stopped
    #[arg(long, value_name = "SOCK_A,SOCK_B", value_parser = socket_pair)]
    pub against: Vec<[PathBuf; 2]>,
    /// A switch with two ports that is started and stopped by commands, in turn with the others; repeat all --peer-* options
    /// for each further one
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
    #[command(flatten)]
    pub search: SearchOptions,
    /// Write report.md, results.json and plots to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write every trial to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of the traffic of guests in this process.
#[derive(Args, Clone, Debug)]
pub struct TrafficOptions {
    /// Frames that a sender makes available at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// At a given rate: frames that a sender keeps while its ring is full, like a guest's own queue
    #[arg(long, default_value_t = 1000)]
    pub backlog: u64,
    /// Bytes of a receive buffer
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u16).range(256..=2048))]
    pub rx_buffer: u16,
}

/// Options of `suite`.
#[derive(Args, Clone, Debug)]
pub struct ScenarioOptions {
    /// Names of scenarios, or globs over the list: see --list
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub scenarios: Vec<String>,
    /// Print the names of all scenarios, with a star at those of --quick, and exit
    #[arg(long)]
    pub list: bool,
    /// Few scenarios, unless others are named; 2 rounds of 3 trials of 200 ms, unless other values are given
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    pub traffic: TrafficOptions,
    #[command(flatten)]
    pub run: RunOptions,
}

/// Options of `vm`.
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
    /// Entries of each virtqueue, a power of two
    #[arg(long, default_value_t = 256, value_parser = ring_size)]
    pub ring: u16,
    /// Mergeable receive buffers
    #[arg(long, value_enum, default_value = "on")]
    pub mergeable: Toggle,
    /// The guests: in this process, or in dpdk-testpmd (virtio-user)
    #[arg(long, value_enum, default_value = "in-process")]
    pub guests: Guests,
    #[command(flatten)]
    pub traffic: TrafficOptions,
    #[command(flatten)]
    pub run: RunOptions,
}

/// Options of `tso`.
#[derive(Args, Clone, Debug)]
pub struct LargePairOptions {
    /// Segments of 1448 bytes in a frame: 45 make 65226 bytes with headers, the largest that Linux sends
    #[arg(long, value_delimiter = ',', default_value = "45",
          value_parser = clap::value_parser!(u16).range(2..=45))]
    pub segments: Vec<u16>,
    /// Size of the payload's pieces in bytes: 4096 as with sendfile, 32768 as with write
    #[arg(long, value_delimiter = ',', default_value = "4096,32768",
          value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub pieces: Vec<u32>,
    #[command(flatten)]
    pub large: LargeOptions,
    #[command(flatten)]
    pub run: RunOptions,
}

/// The driver of the virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guests {
    /// `crosspoint-guest`, in this process.
    InProcess,
    /// `dpdk-testpmd` with two `net_virtio_user` devices.
    Testpmd,
}

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order.
    pub scenarios: Vec<Scenario>,
    /// Number of rounds.
    pub rounds: u32,
    /// Trials of each scenario on each switch in each round.
    pub trials: u32,
    /// Length of a trial.
    pub trial: Duration,
    /// The driver of the guests.
    pub guests: Guests,
    /// Settings of guests with usual frames.
    pub settings: GuestSetOptions,
    /// Settings of guests with large frames.
    pub large: LargeOptions,
    /// Everything else.
    pub run: RunOptions,
}

impl ScenarioOptions {
    /// What is to be measured.
    pub fn plan(&self) -> Result<Plan, BenchError> {
        let names: Vec<String> = match (self.scenarios.is_empty(), self.quick) {
            (false, _) => self.scenarios.clone(),
            (true, true) => scenario::quick().map(Into::into).collect(),
            (true, false) => scenario::all().map(Into::into).collect(),
        };
        let scenarios = scenario::select(&names).map_err(BenchError::Usage)?;
        let (rounds, trials, trial_ms) = if self.quick { (2, 3, 200) } else { (5, 6, 300) };
        let run = RunOptions {
            rounds: self.run.rounds.or(Some(rounds)),
            trials: self.run.trials.or(Some(trials)),
            trial_ms: self.run.trial_ms.or(Some(trial_ms)),
            ..self.run.clone()
        };
        run.plan(scenarios, Some(&self.traffic))
    }
}

impl PairOptions {
    /// What is to be measured: every size combined with every number of flows.
    pub fn plan(&self) -> Result<Plan, BenchError> {
        let topology = match self.direction {
            Direction::OneWay => Topology::Pair,
            Direction::Both => Topology::Both,
        };
        let of_size = |size: &u16| {
            let scenario = Scenario {
                ring: self.ring,
                mergeable: self.mergeable.is_on(),
                ..Scenario::new(topology, Frames::Size(*size))
            };
            let flows = self.flows.iter();
            flows.map(move |flows| Scenario {
                flows: *flows,
                ..scenario
            })
        };
        let scenarios = self.sizes.iter().flat_map(of_size).collect();
        let plan = self.run.plan(scenarios, Some(&self.traffic))?;
        if self.guests == Guests::Testpmd {
            self.check_testpmd()?;
        }
        Ok(Plan {
            guests: self.guests,
            ..plan
        })
    }

    fn check_testpmd(&self) -> Result<(), BenchError> {
        if self.direction != Direction::Both {
            return usage("--guests testpmd needs --direction both: see benches/README.md");
        }
        if self.run.rate.is_some() || self.run.search.search {
            return usage("--guests testpmd has no --rate and no --search");
        }
        if self.ring < 64 {
            return usage("--guests testpmd needs --ring 64 or more");
        }
        if self
            .run
            .peer_sockets
            .iter()
            .any(|ports| ports.guests_listen)
        {
            return usage("--guests testpmd cannot listen for a switch");
        }
        Ok(())
    }
}

impl LargePairOptions {
    /// What is to be measured: every number of segments combined with every size of pieces.
    pub fn plan(&self) -> Result<Plan, BenchError> {
        let of_segments = |segments: &u16| {
            let segments = *segments;
            self.pieces.iter().map(move |piece| {
                let piece = *piece as usize;
                Scenario::new(Topology::Tso, Frames::Large(Shape { segments, piece }))
            })
        };
        let scenarios = self.segments.iter().flat_map(of_segments).collect();
        Ok(Plan {
            large: self.large.clone(),
            ..self.run.plan(scenarios, None)?
        })
    }
}

impl RunOptions {
    /// The plan of these scenarios.
    fn plan(
        &self,
        scenarios: Vec<Scenario>,
        traffic: Option<&TrafficOptions>,
    ) -> Result<Plan, BenchError> {
        self.check()?;
        let first = GuestSetOptions::on(self.generator_cores[0]);
        Ok(Plan {
            scenarios,
            rounds: self.rounds.unwrap_or(5),
            trials: self.trials.unwrap_or(10),
            trial: Duration::from_millis(self.trial_ms.unwrap_or(300)),
            guests: Guests::InProcess,
            settings: GuestSetOptions {
                cores: self.generator_cores.clone(),
                burst: traffic.map_or(first.burst, |traffic| traffic.burst.into()),
                backlog: traffic.map_or(first.backlog, |traffic| traffic.backlog),
                rx_buffer: traffic.map_or(first.rx_buffer, |traffic| traffic.rx_buffer.into()),
                huge_pages: self.huge_pages.is_on(),
                receiver_ring: None,
            },
            large: LargeOptions::default(),
            run: self.clone(),
        })
    }

    /// The crosspoint binary: as given, or beside this one.
    pub fn binary(&self) -> PathBuf {
        crosspoint::binary(self.switch.as_ref())
    }

    /// The switches in the order of the tables: ratios are the first one's.
    pub fn switches(&self) -> Result<Vec<Switch>, BenchError> {
        let own = (!self.skip_crosspoint).then_some(Switch::Crosspoint);
        let peers = self.peer.iter().cloned().map(Switch::Peer);
        let running = self.against.iter().map(|pair| {
            Switch::Running(Ports {
                sockets: pair.to_vec(),
                guests_listen: false,
            })
        });
        let commands = self.commands()?.into_iter().map(Switch::Commands);
        let all = own.into_iter().chain(peers).chain(commands).chain(running);
        Ok(all.collect())
    }

    /// The peers of commands. Fails unless each of their options is given equally often.
    fn commands(&self) -> Result<Vec<Peer>, BenchError> {
        let count = self.peer_name.len();
        let counts = [
            count,
            self.peer_start.len(),
            self.peer_stop.len(),
            self.peer_sockets.len(),
            self.peer_thread.len(),
        ];
        let names = "--peer-name, --peer-start, --peer-stop, --peer-sockets and --peer-thread";
        check_equally_often(names, &counts)?;
        let peer = |i: usize| Peer {
            name: self.peer_name[i].clone(),
            start: self.peer_start[i].clone(),
            stop: self.peer_stop[i].clone(),
            ports: Some(self.peer_sockets[i].clone()),
            thread: self.peer_thread[i].clone(),
        };
        Ok((0..count).map(peer).collect())
    }

    fn check(&self) -> Result<(), BenchError> {
        let cores = [&self.switch_cores[..], &self.generator_cores[..]].concat();
        let distinct: BTreeSet<usize> = cores.iter().copied().collect();
        if distinct.len() < cores.len() && !self.share_cores {
            return usage("--switch-cores and --generator-cores: a core for each, and none twice");
        }
        check_bounds(&self.bounds)?;
        let switches = self.switches()?;
        let names: BTreeSet<String> = switches.iter().map(Switch::name).collect();
        if switches.is_empty() {
            return usage("--skip-crosspoint leaves nothing to measure");
        }
        if names.len() < switches.len() {
            return usage("two switches have one name: --peer KIND,name=NAME");
        }
        Ok(())
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    let (guests_listen, pair) = match text.strip_prefix("listen:") {
        Some(pair) => (true, pair),
        None => (false, text),
    };
    Ok(Ports {
        sockets: socket_pair(pair)?.into(),
        guests_listen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    fn suite(arguments: &[&str]) -> Result<Plan, BenchError> {
        parse::<ScenarioOptions>(arguments).plan()
    }

    fn vm(arguments: &[&str]) -> Result<Plan, BenchError> {
        parse::<PairOptions>(arguments).plan()
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.scenarios.iter().map(Scenario::to_string).collect()
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let plan = suite(&["--quick", "--rounds", "4"]).unwrap();
        assert_eq!((plan.rounds, plan.trials), (4, 3));
        assert_eq!(plan.scenarios.len(), scenario::quick().count());
        let plan = suite(&["--quick", "--scenarios", "chain*"]).unwrap();
        assert_eq!(plan.scenarios.len(), 5);
        assert_eq!(suite(&[]).unwrap().scenarios.len(), scenario::all().count());
    }

    #[test]
    fn no_core_is_used_twice_and_no_name() {
        assert!(suite(&["--switch-cores", "1,2", "--generator-cores", "0,3"]).is_ok());
        assert!(suite(&["--switch-cores", "1,0"]).is_err());
        assert!(suite(&["--skip-crosspoint"]).is_err());
        let peers = ["--peer", "testpmd-io", "--peer", "testpmd-io"];
        assert!(suite(&peers).is_err());
        let peers = ["--peer", "testpmd-io", "--peer", "testpmd-io,name=other"];
        assert!(suite(&peers).is_ok());
    }

    #[test]
    fn vm_and_tso_are_scenarios() {
        let plan = vm(&[]).unwrap();
        let of_vm = ["pair-64", "pair-64-10000", "pair-1518", "pair-1518-10000"];
        assert_eq!(names(&plan), of_vm);
        assert_eq!((plan.rounds, plan.trials), (5, 10));
        assert_eq!(plan.trial, Duration::from_millis(300));
        let options = [
            "--direction",
            "both",
            "--sizes",
            "64",
            "--ring",
            "1024",
            "--flows",
            "1",
        ];
        let plan = vm(&[&options[..], &["--mergeable", "off"]].concat()).unwrap();
        assert_eq!(names(&plan), ["both-64-unmerged-ring1024"]);
        let plan = parse::<LargePairOptions>(&[]).plan().unwrap();
        assert_eq!(names(&plan), ["tso", "tso-32768"]);
    }

    #[test]
    fn peers_of_commands_need_all_their_options() {
        let peer = [
            "--peer-name",
            "ovs",
            "--peer-start",
            "a",
            "--peer-stop",
            "b",
        ];
        assert!(vm(&peer).is_err());
        let rest = ["--peer-sockets", "listen:/a,/b", "--peer-thread", "pmd"];
        let plan = vm(&[&peer[..], &rest[..]].concat()).unwrap();
        let switches = plan.run.switches().unwrap();
        let Switch::Commands(peer) = &switches[1] else {
            unreachable!("crosspoint is the first");
        };
        let ports = peer.ports.as_ref().unwrap();
        assert!(ports.guests_listen && ports.sockets.len() == 2);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(vm(&["--generator-core", "1"]).is_err());
        assert!(vm(&["--guests", "testpmd"]).is_err());
        assert!(vm(&["--guests", "testpmd", "--direction", "both"]).is_ok());
    }
}
