//! The measured switches: crosspoint, and the peers that the scripts in `benches/peers` start, with as many ports as a
//! scenario needs.

use crate::error::BenchError;
use crate::lab::{Peer, Setup, Thread, crosspoint};
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
pub const TESTPMD_THREADS: [&str; 2] = ["rte-worker", "dpdk-worker"];

/// Limits of the size of crosspoint's address table.
const TABLE_MIN: u32 = 28_672;
const TABLE_MAX: u32 = 458_752;

/// `RTE_MAX_ETHPORTS` of DPDK as distributions build it.
const TESTPMD_PORTS_MAX: usize = 32;

/// The sockets between guests and a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// One socket per port.
    pub sockets: Vec<PathBuf>,
    /// The guests listen, and the switch connects.
    pub guests_listen: bool,
}

/// A switch that has not been started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The crosspoint binary.
    Crosspoint,
    /// Another switch, started by a script.
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

/// Ports that a scenario needs.
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
    /// Whether connections are tracked.
    pub stateful: bool,
}

/// The security group of every guest where connections are tracked: all may begin in either direction. A guest's connections
/// are as many as any scenario has flows.
const GROUP: &str = "[connections]\nmax = 4194304\n[[group]]\nname = \"any\"\n\
     rules = [{ direction = \"in\" }, { direction = \"out\" }]\n";
const GROUP_OF_PORT: &str = "groups = [\"any\"]\nconnections_max = 1048576\n";

impl Need {
    /// Entries of the address table: four times the number of addresses, so that hardly any bucket is full; none if the
    /// default table is large enough.
    fn table(&self) -> Option<u32> {
        (self.addresses > 1).then(|| (8 * self.addresses).clamp(TABLE_MIN, TABLE_MAX))
    }
}

/// Paths and cores for starting a switch.
#[derive(Clone, Debug)]
pub struct Place {
    /// The crosspoint binary.
    pub binary: PathBuf,
    /// The scripts' directory.
    pub peers_dir: PathBuf,
    /// A core for each worker.
    pub cores: Vec<usize>,
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
        }
    }

    /// Why it does not serve `need`, if it does not.
    pub fn lacks(&self, need: &Need) -> Option<&'static str> {
        let Self::Peer(peer) = self else { return None };
        match peer.kind {
            Kind::Ovs => None,
            _ if need.stateful => Some("tracks no connections"),
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
        }
    }
}

fn start_crosspoint(need: Need, place: &Place) -> Result<Running, BenchError> {
    let mut setup = Setup {
        cores: place.cores.clone(),
        guests: need.ports,
        ..Setup::busy(place.cores[0])
    };
    if let Some(entries) = need.table() {
        setup.switch_lines = format!("fdb_capacity = {entries}\n");
        setup.guest_lines = vec!["mac_limit = 0\n".into(); need.ports];
    }
    if need.stateful {
        setup.sections = GROUP.into();
        setup.guest_lines.resize(need.ports, String::new());
        // One side of each pair: the other switch looks each packet up once too.
        let sides = setup.guest_lines.iter_mut().step_by(2);
        sides.for_each(|lines| lines.push_str(GROUP_OF_PORT));
    }
    let switch = crosspoint::start(&place.binary, &setup)?;
    let (file, control) = (switch.file.display(), switch.control.display());
    eprintln!(
        "  {file}, --socket {control}, metrics on {}",
        switch.metrics
    );
    Ok(switch.into_running(&place.cores))
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
        let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
        let is_variable = |name: &str| !name.is_empty() && name.chars().all(is_part);
        for word in words {
            match word.split_once('=') {
                Some(("name", name)) if !name.is_empty() => peer.name = name.into(),
                Some((variable, value)) if is_variable(variable) && !value.contains('\'') => {
                    peer.environment.push((variable.into(), value.into()));
                }
                _ => {
                    let usage = "name=NAME, or VARIABLE=VALUE for its script";
                    return Err(format!("'{word}': {usage}"));
                }
            }
        }
        Ok(peer)
    }
}

impl PeerSwitch {
    fn start(&self, need: Need, place: &Place) -> Result<Running, BenchError> {
        let run = PathBuf::from(format!("{RUN}-{}", self.name));
        let ports = if need.large { "vhost-tso" } else { "vhost" };
        let mut variables = format!("PORTS={ports} COUNT={}", need.ports);
        if let Some(entries) = need.table() {
            let _ = write!(variables, " ADDRESSES={entries}");
        }
        if need.stateful {
            variables += " ACL=stateful";
        }
        let socket = |port: usize| run.join(format!("p{port}"));
        Ok(Running {
            ports: Ports {
                sockets: (0..need.ports).map(socket).collect(),
                guests_listen: need.large && self.kind == Kind::Ovs,
            },
            ..self.start_script(&run, &variables, place)?
        })
    }

    /// Starts it by its script, with its files in `run`. Returns it without the sockets of its ports.
    pub fn start_script(
        &self,
        run: &Path,
        variables: &str,
        place: &Place,
    ) -> Result<Running, BenchError> {
        let script = place.peers_dir.join(match self.kind {
            Kind::Ovs => "ovs-dpdk.sh",
            Kind::TestpmdIo | Kind::TestpmdMac => "testpmd.sh",
        });
        if !script.exists() {
            let what = format!("{} is missing: --peers-dir", script.display());
            return Err(BenchError::Usage(what));
        }
        let line = |what: &str| self.line(&script, run, variables, place) + what;
        let peer = Peer {
            name: self.name.clone(),
            start: line("start"),
            stop: line("stop"),
            thread: String::new(),
        };
        let (_, process) = peer.start(place.cores[0])?;
        let worker = |core: &usize| (*core, self.worker(*core));
        let workers: Vec<_> = place.cores.iter().map(worker).collect();
        if let Some((core, _)) = workers.iter().find(|(_, thread)| thread.is_none()) {
            let what = format!("has no polling thread on core {core}");
            return Err(BenchError::backend(&self.name, what));
        }
        Ok(Running {
            workers,
            _kept: Some(Box::new(process)),
            ..Running::default()
        })
    }

    /// A shell command without its last argument.
    fn line(&self, script: &Path, run: &Path, variables: &str, place: &Place) -> String {
        let cores: Vec<String> = place.cores.iter().map(usize::to_string).collect();
        let mode = match self.kind {
            Kind::TestpmdMac => "mac",
            _ => "io",
        };
        let (run, cores, other) = (run.display(), cores.join(","), place.other_core);
        let mut line =
            format!("RUN='{run}' {variables} PMD_CORE={cores} OTHER_CORE={other} MODE={mode}");
        for (variable, value) in &self.environment {
            let _ = write!(line, " {variable}='{value}'");
        }
        line + &format!(" '{}' ", script.display())
    }

    /// Its polling thread on `core`.
    fn worker(&self, core: usize) -> Option<Thread> {
        let pmd = format!("pmd-c{core:02}");
        let names = match self.kind {
            Kind::Ovs => &[pmd.as_str()][..],
            _ => &TESTPMD_THREADS,
        };
        let mut names = names.iter();
        names.find_map(|name| Thread::named_on_core(name, core))
    }
}

/// A lock that prevents two runs from stopping each other's peers; held until the file is closed.
pub fn lock_peers() -> Result<File, BenchError> {
    let path = format!("{RUN}.lock");
    let file = File::create(&path).map_err(BenchError::io(&path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(BenchError::Usage("another run has peers running".into())),
    }
}

/// Directory of the scripts: as given, or in the source tree from which this binary was built, if it is still there.
pub fn peers_dir(given: Option<&PathBuf>) -> PathBuf {
    let above = || {
        let binary = std::env::current_exe().ok()?;
        let mut above = binary.ancestors().map(|path| path.join("benches/peers"));
        above.find(|path| path.is_dir())
    };
    let found = given.cloned().or_else(above);
    found.unwrap_or_else(|| "benches/peers".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_its_kind_a_name_and_what_its_script_is_told() {
        let peer: PeerSwitch = "ovs-dpdk,ROOT=/srv/trixie,name=ovs35".parse().unwrap();
        assert_eq!(peer.name, "ovs35");
        let place = Place {
            binary: "crosspoint".into(),
            peers_dir: "/x".into(),
            cores: vec![1, 2],
            other_core: 0,
        };
        assert_eq!(
            peer.line(Path::new("/x/s.sh"), Path::new("/y"), "PORTS=vhost", &place),
            "RUN='/y' PORTS=vhost PMD_CORE=1,2 OTHER_CORE=0 MODE=io ROOT='/srv/trixie' '/x/s.sh' "
        );
        let wrong = "/ovs/ovs-dpdk,ROOT/ovs-dpdk,x=y/testpmd-io,A='/testpmd-io,name=";
        for wrong in wrong.split('/') {
            assert!(wrong.parse::<PeerSwitch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn testpmd_does_pairs_only_and_no_large_frames_in_mode_mac() {
        let testpmd = Switch::Peer("testpmd-mac".parse().unwrap());
        for (ports, is_of_pairs, large, able) in [
            (32, true, false, true),
            (34, true, false, false),
            (4, false, false, false),
            (2, true, true, false),
        ] {
            let need = Need {
                ports,
                large,
                is_of_pairs,
                addresses: 1,
                stateful: false,
            };
            assert_eq!(testpmd.lacks(&need).is_none(), able, "{need:?}");
            assert!(Switch::Crosspoint.lacks(&need).is_none());
        }
    }
}
