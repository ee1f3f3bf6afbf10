//! The measured switches: crosspoint, and the peers that the scripts in `benches/peers` start, with as many ports as a
//! scenario needs.

use super::crosspoint::{self, Setup};
use super::peer::{self, Peer, Ports};
use super::threads::Thread;
use crate::error::BenchError;
use rustix::fs::FlockOperation;
use std::any::Any;
use std::fmt::Write;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Start of the paths of the peers' files; the names follow.
const RUN: &str = "/run/crosspoint-bench-suite";
/// Names of testpmd's forwarding threads, by DPDK version.
const TESTPMD_THREADS: [&str; 2] = ["rte-worker", "dpdk-worker"];

/// Limits of the size of crosspoint's address table.
const TABLE_MIN: u32 = 28_672;
const TABLE_MAX: u32 = 458_752;

/// `RTE_MAX_ETHPORTS` of DPDK as distributions build it.
const TESTPMD_PORTS_MAX: usize = 32;

/// A switch that has not been started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The crosspoint binary.
    Crosspoint,
    /// Another switch, started by a script.
    Peer(PeerSwitch),
    /// Another switch with two ports, started by commands.
    Commands(Peer),
    /// A switch with two ports that is running already.
    Running(Ports),
}

/// A switch that a script starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSwitch {
    /// Its name in tables.
    pub name: String,
    kind: Kind,
    /// Variables in the script's environment.
    environment: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ovs,
    TestpmdIo,
    TestpmdMac,
}

/// Ports that scenarios need: one start of a switch serves all scenarios with the same need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Number of ports.
    pub ports: usize,
    /// Whether frames are large; peers take them at ports of another kind.
    pub large: bool,
    /// Whether each stream goes to the other port of its pair: 0 to 1, 2 to 3, and so on.
    pub is_of_pairs: bool,
    /// Most addresses on each side of a stream.
    pub addresses: u32,
}

impl Need {
    /// Whether one start serves both: they may differ in their numbers of addresses.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.ports, self.large) == (other.ports, other.large)
    }

    /// Entries of the address table: four times the number of addresses, so that hardly any bucket is full; none if the
    /// default table is large enough.
    fn table(&self) -> Option<u32> {
        (self.addresses > 1).then(|| (8 * self.addresses).clamp(TABLE_MIN, TABLE_MAX))
    }
}

/// Paths and cores for starting a switch.
pub struct Place<'a> {
    /// The crosspoint binary.
    pub binary: &'a Path,
    /// The scripts' directory.
    pub peers_dir: &'a Path,
    /// A core for each worker.
    pub cores: &'a [usize],
    /// A core for the peers' other threads.
    pub other_core: usize,
}

/// A running switch. It stops when dropped.
#[derive(Default)]
pub struct Running {
    /// Sockets of its ports.
    pub ports: Ports,
    /// The threads that move frames, as far as known, each with its core.
    pub workers: Vec<(usize, Option<Thread>)>,
    /// Its metrics, if it is crosspoint.
    pub metrics: Option<SocketAddr>,
    /// Stops it when dropped.
    pub _kept: Option<Box<dyn Any + Send + Sync>>,
}

impl Switch {
    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Crosspoint => crosspoint::NAME.into(),
            Self::Peer(peer) => peer.name.clone(),
            Self::Commands(peer) => peer.name.clone(),
            Self::Running(ports) => ports.sockets[0].display().to_string(),
        }
    }

    /// Why it does not serve `need`, if it does not.
    pub fn lacks(&self, need: &Need) -> Option<&'static str> {
        let kind = match self {
            Self::Crosspoint => return None,
            Self::Peer(peer) => peer.kind,
            Self::Commands(_) | Self::Running(_) => {
                return (need.ports != 2).then_some("has two ports");
            }
        };
        match kind {
            Kind::Ovs => None,
            _ if need.ports > TESTPMD_PORTS_MAX => Some("DPDK has 32 ports at most"),
            _ if !need.is_of_pairs => Some("forwards between pairs of ports only"),
            Kind::TestpmdMac if need.large => {
                Some("changes frames, which the check of large ones does not allow")
            }
            _ => None,
        }
    }

    /// Starts it.
    pub fn start(&self, need: Need, place: &Place) -> Result<Running, BenchError> {
        match self {
            Self::Crosspoint => start_crosspoint(need, place),
            Self::Peer(peer) => peer.start(need, place),
            Self::Commands(peer) => {
                let core = place.cores[0];
                let (worker, process) = peer::start(peer, core)?;
                let ports = peer.ports.clone();
                Ok(Running {
                    ports: ports
                        .ok_or_else(|| BenchError::backend(&peer.name, "has no sockets"))?,
                    workers: vec![(core, worker)],
                    metrics: None,
                    _kept: Some(Box::new(process)),
                })
            }
            Self::Running(ports) => Ok(Running {
                ports: ports.clone(),
                workers: vec![(place.cores[0], None)],
                metrics: None,
                _kept: None,
            }),
        }
    }
}

fn start_crosspoint(need: Need, place: &Place) -> Result<Running, BenchError> {
    let table = need.table();
    let no_limit = table.map(|_| "mac_limit = 0\n".to_owned());
    let setup = Setup {
        cores: place.cores.to_vec(),
        guests: need.ports,
        guest_lines: no_limit.map_or(Vec::new(), |line| vec![line; need.ports]),
        switch_lines: table.map_or(String::new(), |entries| {
            format!("fdb_capacity = {entries}\n")
        }),
        ..Setup::busy(place.cores[0])
    };
    let switch = crosspoint::start(place.binary, &setup)?;
    eprintln!(
        "  {}, --socket {}, metrics on {}",
        switch.file.display(),
        switch.control.display(),
        switch.metrics
    );
    let worker = |(number, core): (usize, &usize)| {
        let name = format!("worker-{number}");
        (*core, Thread::named_on_core(&name, *core))
    };
    Ok(Running {
        ports: switch.ports.clone(),
        workers: place.cores.iter().enumerate().map(worker).collect(),
        metrics: Some(switch.metrics),
        _kept: Some(Box::new(switch)),
    })
}

impl FromStr for PeerSwitch {
    type Err = String;

    /// `KIND[,name=NAME][,VARIABLE=VALUE...]`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let kind = match first {
            "ovs-dpdk" => Kind::Ovs,
            "testpmd-io" => Kind::TestpmdIo,
            "testpmd-mac" => Kind::TestpmdMac,
            _ => return Err("ovs-dpdk, testpmd-io or testpmd-mac".into()),
        };
        let mut peer = Self {
            name: first.into(),
            kind,
            environment: Vec::new(),
        };
        for word in words {
            match word.split_once('=') {
                Some(("name", name)) if !name.is_empty() => peer.name = name.into(),
                Some((variable, value)) if is_variable(variable) && !value.contains('\'') => {
                    peer.environment.push((variable.into(), value.into()));
                }
                _ => {
                    return Err(format!(
                        "'{word}': name=NAME, or VARIABLE=VALUE for its script"
                    ));
                }
            }
        }
        Ok(peer)
    }
}

fn is_variable(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    !name.is_empty() && name.chars().all(is_part)
}

impl PeerSwitch {
    fn start(&self, need: Need, place: &Place) -> Result<Running, BenchError> {
        let run = PathBuf::from(format!("{RUN}-{}", self.name));
        let script = self.script(place.peers_dir)?;
        let line = |what: &str| self.line(&script, &run, need, place, what);
        let peer = Peer {
            name: self.name.clone(),
            start: line("start"),
            stop: line("stop"),
            ports: None, // the scripts end when all ports are there
            thread: String::new(),
        };
        let (_, process) = peer::start(&peer, place.cores[0])?;
        let worker = |core: &usize| (*core, self.worker(*core));
        let workers: Vec<_> = place.cores.iter().map(worker).collect();
        if let Some((core, _)) = workers.iter().find(|(_, thread)| thread.is_none()) {
            let what = format!("has no polling thread on core {core}");
            return Err(BenchError::backend(&self.name, what));
        }
        Ok(Running {
            ports: Ports {
                sockets: (0..need.ports)
                    .map(|port| run.join(format!("p{port}")))
                    .collect(),
                guests_listen: need.large && self.kind == Kind::Ovs,
            },
            workers,
            metrics: None,
            _kept: Some(Box::new(process)),
        })
    }

    fn script(&self, peers_dir: &Path) -> Result<PathBuf, BenchError> {
        let name = match self.kind {
            Kind::Ovs => "ovs-dpdk.sh",
            Kind::TestpmdIo | Kind::TestpmdMac => "testpmd.sh",
        };
        let path = peers_dir.join(name);
        match path.exists() {
            true => Ok(path),
            false => {
                let what = format!("{} is missing: --peers-dir", path.display());
                Err(BenchError::Usage(what))
            }
        }
    }

    /// A shell command.
    fn line(&self, script: &Path, run: &Path, need: Need, place: &Place, what: &str) -> String {
        let cores: Vec<String> = place.cores.iter().map(usize::to_string).collect();
        let ports = if need.large { "vhost-tso" } else { "vhost" };
        let mode = match self.kind {
            Kind::TestpmdMac => "mac",
            _ => "io",
        };
        let mut line = format!(
            "RUN='{}' PORTS={ports} COUNT={} PMD_CORE={} OTHER_CORE={} MODE={mode}",
            run.display(),
            need.ports,
            cores.join(","),
            place.other_core,
        );
        if let Some(entries) = need.table() {
            let _ = write!(line, " ADDRESSES={entries}");
        }
        for (variable, value) in &self.environment {
            let _ = write!(line, " {variable}='{value}'");
        }
        line + &format!(" '{}' {what}", script.display())
    }

    /// Its polling thread on `core`.
    fn worker(&self, core: usize) -> Option<Thread> {
        match self.kind {
            Kind::Ovs => Thread::named_on_core(&format!("pmd-c{core:02}"), core),
            _ => TESTPMD_THREADS
                .iter()
                .find_map(|name| Thread::named_on_core(name, core)),
        }
    }
}

/// A lock that prevents two runs from stopping each other's peers; held until the file is closed.
pub fn lock_peers() -> Result<File, BenchError> {
    let path = format!("{RUN}.lock");
    let file = File::create(&path).map_err(BenchError::io(&path))?;
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    match locked {
        Ok(()) => Ok(file),
        Err(_) => Err(BenchError::Usage("another run has peers running".into())),
    }
}

/// Directory of the scripts: as given, or in the source tree from which this binary was built, if it is still there.
pub fn peers_dir(given: Option<&Path>) -> PathBuf {
    let above = || {
        let binary = std::env::current_exe().ok()?;
        let mut above = binary.ancestors().map(|path| path.join("benches/peers"));
        above.find(|path| path.is_dir())
    };
    given
        .map(Path::to_path_buf)
        .or_else(above)
        .unwrap_or_else(|| "benches/peers".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_its_kind_a_name_and_what_its_script_is_told() {
        let peer: PeerSwitch = "ovs-dpdk,ROOT=/srv/trixie,name=ovs35".parse().unwrap();
        assert_eq!(peer.name, "ovs35");
        let need = Need {
            ports: 8,
            large: false,
            is_of_pairs: true,
            addresses: 4000,
        };
        let place = Place {
            binary: Path::new("crosspoint"),
            peers_dir: Path::new("/x"),
            cores: &[1, 2],
            other_core: 0,
        };
        let line = peer.line(
            Path::new("/x/ovs-dpdk.sh"),
            Path::new("/run/y"),
            need,
            &place,
            "start",
        );
        assert_eq!(
            line,
            "RUN='/run/y' PORTS=vhost COUNT=8 PMD_CORE=1,2 OTHER_CORE=0 MODE=io ADDRESSES=32000 ROOT='/srv/trixie' '/x/ovs-dpdk.sh' start"
        );
        for wrong in [
            "",
            "ovs",
            "ovs-dpdk,ROOT",
            "ovs-dpdk,x=y",
            "testpmd-io,A='",
            "testpmd-io,name=",
        ] {
            assert!(wrong.parse::<PeerSwitch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn testpmd_does_pairs_only_and_no_large_frames_in_mode_mac() {
        let testpmd = Switch::Peer("testpmd-mac".parse().unwrap());
        let ovs = Switch::Peer("ovs-dpdk".parse().unwrap());
        let two = Switch::Running(Ports::default());
        let need = |ports, is_of_pairs, large| Need {
            ports,
            large,
            is_of_pairs,
            addresses: 1,
        };
        for (need, able) in [
            (need(2, true, false), [true, true]),
            (need(32, true, false), [true, false]),
            (need(34, true, false), [false, false]),
            (need(4, false, false), [false, false]),
            (need(2, true, true), [false, true]),
        ] {
            assert_eq!([&testpmd, &two].map(|s| s.lacks(&need).is_none()), able);
            assert!(ovs.lacks(&need).is_none() && Switch::Crosspoint.lacks(&need).is_none());
        }
    }
}
