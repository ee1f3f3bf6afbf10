//! The measured switches: crosspoint, and the peers that the scripts in `benches/peers` start, with as many ports as a
//! scenario needs.

use super::scenario::{Scenario, Topology};
use crate::backend::crosspoint::{self, Setup, Started};
use crate::backend::{Backend, peer};
use crate::error::BenchError;
use crate::options::Peer;
use crate::threads::Thread;
use rustix::fs::FlockOperation;
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
    /// Another switch.
    Peer(PeerSwitch),
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
    /// Most addresses on each side of a stream.
    pub addresses: u32,
}

impl Need {
    /// The need of `scenario`.
    pub fn of(scenario: &Scenario) -> Self {
        Self {
            ports: scenario.ports(),
            large: scenario.topology == Topology::Tso,
            addresses: scenario.addresses,
        }
    }

    /// Whether one start serves both, although their numbers of addresses may differ.
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
pub struct Running {
    /// Sockets of its ports.
    pub sockets: Vec<PathBuf>,
    /// Whether the guests listen at the sockets, and the switch connects.
    pub guests_listen: bool,
    /// The threads that move frames, as far as known, each with its core.
    pub workers: Vec<(usize, Option<Thread>)>,
    /// Its metrics, if it is crosspoint.
    pub metrics: Option<SocketAddr>,
    _switch: Kept,
}

/// What stops a switch when dropped.
enum Kept {
    Crosspoint { _backend: Backend },
    Peer { _process: peer::Process },
}

impl Switch {
    /// Its name in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Crosspoint => crosspoint::NAME,
            Self::Peer(peer) => &peer.name,
        }
    }

    /// Why it does not support `scenario`, if it does not.
    pub fn lacks(&self, scenario: &Scenario) -> Option<&'static str> {
        let kind = match self {
            Self::Peer(peer) => peer.kind,
            Self::Crosspoint => return None,
        };
        match kind {
            Kind::Ovs => None,
            _ if scenario.ports() > TESTPMD_PORTS_MAX => Some("DPDK has 32 ports at most"),
            _ if !scenario.is_of_pairs() => Some("forwards between pairs of ports only"),
            Kind::TestpmdMac if scenario.topology == Topology::Tso => {
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
    let Started {
        backend,
        sockets,
        metrics,
        file,
        control,
        ..
    } = crosspoint::start_as(place.binary, &setup)?;
    eprintln!(
        "  {}, --socket {}, metrics on {metrics}",
        file.display(),
        control.display()
    );
    let worker = |(number, core): (usize, &usize)| {
        (
            *core,
            Thread::named_on_core(&format!("worker-{number}"), *core),
        )
    };
    Ok(Running {
        sockets,
        guests_listen: false,
        workers: place.cores.iter().enumerate().map(worker).collect(),
        metrics: Some(metrics),
        _switch: Kept::Crosspoint { _backend: backend },
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
            sockets: (0..need.ports)
                .map(|port| run.join(format!("p{port}")))
                .collect(),
            guests_listen: need.large && self.kind == Kind::Ovs,
            workers,
            metrics: None,
            _switch: Kept::Peer { _process: process },
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
    fn testpmd_does_pairs_only() {
        let testpmd = Switch::Peer("testpmd-mac".parse().unwrap());
        let ovs = Switch::Peer("ovs-dpdk".parse().unwrap());
        let lacks = |switch: &Switch, name: &str| switch.lacks(&name.parse().unwrap()).is_some();
        for (name, expected) in [
            ("pair-64", false),
            ("pairs16-64", false),
            ("pairs17-64", true),
            ("chain2-64", false),
            ("chain4-64", true),
            ("many-to-one-2", true),
            ("tso", true),
        ] {
            assert_eq!(lacks(&testpmd, name), expected, "{name}");
            assert!(!lacks(&ovs, name) && !lacks(&Switch::Crosspoint, name));
        }
    }
}
