//! The switch under its supervisor, in a network namespace and on a small file system of this process, and its guests.

use super::traffic::Traffic;
use crate::error::BenchError;
use crate::lab::metrics::{get, sum};
use crate::lab::process::{Process, START_MAX, is_socket, run, wait_until};
use crate::lab::wire::enter_namespace;
use crate::load::connect::to_listener;
use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestError, GuestOptions, Session};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Guest ports. The stations are the first [`STATIONS`]: frames of `w0` and `w1` meet on the wire from `u0` to `u1`, things
/// are done to `d0` and `d1`, and `m0` is a mirror. `e0` is where `d0` migrates to, `c0` a child's, `h0` the hostile
/// guest's, and `x0` comes and goes.
#[rustfmt::skip]
pub const PORTS: [&str; 13] = ["s0", "s1", "k0", "k1", "w0", "w1", "d0", "d1", "m0", "e0", "c0", "h0", "x0"];
const STATIONS: usize = 9;
pub const SENDERS: usize = 8;
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 9477);
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that runs. The fields drop in this order.
pub struct World {
    pub traffic: Arc<Traffic>,
    pub supervisor: Process,
    _disk: Disk,
    pub dir: PathBuf,
    binary: PathBuf,
}

/// A file system in memory that is unmounted when dropped.
struct Disk(TempDir);

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

impl World {
    /// Starts all. `packed`: rings of the stations that things are done to.
    pub fn start(binary: PathBuf, packed: bool) -> Result<Self, BenchError> {
        enter_namespace()?;
        make_wire()?;
        let disk = Disk(tempfile::tempdir().map_err(BenchError::io("temporary directory"))?);
        let dir = disk.0.path().to_owned();
        let mut mount = Command::new("mount");
        run(
            mount
                .args(["-t", "tmpfs", "-o", "size=16m", "soak"])
                .arg(&dir),
            "mount",
        )?;
        write_config(&dir, 0, false)?;
        let supervisor = supervise(&binary, &dir)?;
        let ready = || {
            Ok(read_metrics()
                .ok()
                .filter(|_| is_socket(&dir.join("h0.sock"))))
        };
        if wait_until(START_MAX, ready)?.is_none() {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            return Err(BenchError::backend("crosspoint", log));
        }
        let connect = |name: &&str| {
            let packed = name.starts_with('k') || name.starts_with('d') && packed;
            to_listener(&dir.join(format!("{name}.sock")), &options(packed))
        };
        let stations = PORTS[..STATIONS]
            .iter()
            .map(connect)
            .collect::<Result<_, _>>()?;
        let traffic = Arc::new(Traffic::new(stations, SENDERS));
        Ok(Self {
            traffic,
            supervisor,
            _disk: disk,
            dir,
            binary,
        })
    }

    /// The processes of the switch: one, except during an upgrade. Not all are children of the supervisor that runs now.
    pub fn children(&self) -> Vec<u32> {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let serves = |id: &u32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1);
            let folder = std::fs::read_link(format!("/proc/{id}/cwd"));
            words.next() == Some(b"run") && folder.is_ok_and(|folder| folder == self.dir)
        };
        let mut ids: Vec<u32> = ids.filter(serves).collect();
        ids.sort_unstable();
        ids
    }

    /// Starts a supervisor after the last one has died, and waits until it has the switch.
    pub fn supervise_anew(&mut self) -> Result<(), BenchError> {
        self.supervisor = supervise(&self.binary, &self.dir)?;
        let ready = || Ok(self.ask(&["upgrade", "--dry-run"]).ok());
        let found = wait_until(START_MAX, ready)?;
        found.ok_or_else(|| BenchError::backend("supervisor", "does not find the switch"))
    }

    /// A command of `crosspoint` that talks to this switch or to its supervisor.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(words)
            .env("CROSSPOINT_SOCKET", self.dir.join("control.sock"));
        command.env("CROSSPOINT_SUPERVISOR_SOCKET", self.dir.join("supervisor"));
        command
    }

    /// Runs such a command, which must succeed.
    pub fn ask(&self, words: &[&str]) -> Result<(), BenchError> {
        run(&mut self.command(words), &words.join(" "))
    }

    /// Writes the configuration and has the switch read it.
    pub fn reload(&self, version: u64, with_port: bool) -> Result<(), BenchError> {
        write_config(&self.dir, version, with_port)?;
        self.ask(&["reload"])
    }

    /// Connects a guest to a port, as soon as that is possible.
    pub fn connect(&self, guest: &mut Guest, port: &str) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        let socket = self.dir.join(format!("{port}.sock"));
        loop {
            let session = Session::connect(&socket, PATIENCE).map_err(GuestError::from);
            match session.and_then(|session| guest.attach(session)) {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                result => return Ok(result?),
            }
        }
    }
}

fn supervise(binary: &Path, dir: &Path) -> Result<Process, BenchError> {
    let line = r#"cd "$1" && exec "$0" supervise --config crosspoint.toml --supervisor-socket "$1/supervisor" >> log 2>&1"#;
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(binary).arg(dir);
    Process::spawn(&mut command, dir.join("shell.log"))
}

/// A guest's options.
pub fn options(packed: bool) -> GuestOptions {
    let mut options = GuestOptions {
        packed,
        timeout: PATIENCE,
        ..GuestOptions::default()
    };
    options.protocol_features |= protocol::LOG_SHMFD | protocol::RESET_DEVICE;
    options
}

/// The text of the metrics.
pub fn read_metrics() -> Result<String, BenchError> {
    get(METRICS.into(), "/metrics").map_err(BenchError::io("metrics"))
}

/// Makes the wire anew.
pub fn make_wire() -> Result<(), BenchError> {
    ip("link add u0 numrxqueues 1 numtxqueues 1 type veth peer u1 numrxqueues 1 numtxqueues 1")?;
    ip("link set u0 up")?;
    ip("link set u1 up")
}

/// Runs `ip` with these words.
pub fn ip(words: &str) -> Result<(), BenchError> {
    run(Command::new("ip").args(words.split(' ')), words)
}

/// Writes a configuration that differs from others by `version`, in its limits, and by port `x0`.
fn write_config(dir: &Path, version: u64, with_port: bool) -> Result<(), BenchError> {
    let cores: &[usize] = match std::thread::available_parallelism() {
        Ok(cores) if cores.get() > 1 => &[0, 1],
        _ => &[0],
    };
    let (ip, port) = METRICS;
    let metrics = std::net::SocketAddr::from((ip, port));
    let control = dir.join("control.sock");
    let mut text = format!(
        r#"version = 1
workers = {{ cores = {cores:?} }}
metrics = {{ listen = "{metrics}" }}
control = {{ socket = {control:?} }}
switch = {{ fdb_moves_max = 0 }}
group = [{{ name = "udp", rules = [{{ direction = "out" }}, {{ direction = "in", protocol = "udp" }}] }}]
mirror = [{{ name = "m", ports = ["s0"], to = "m0" }}]
"#
    );
    for name in PORTS.iter().filter(|name| with_port || **name != "x0") {
        let socket = dir.join(format!("{name}.sock"));
        text += &format!("[[port]]\nname = {name:?}\ntype = \"vhost\"\nsocket = {socket:?}\n");
        let rate = 4 + version % 4;
        text += &match *name {
            "m0" => String::new(),
            "k0" | "k1" => {
                format!("vlan.access = 11\ngroups = [\"udp\"]\nlimit.out.rate = \"{rate}Gbit/s\"\n")
            }
            "w0" => "vlan.access = 12\n".into(),
            "w1" => "vlan.access = 13\n".into(),
            "d0" | "d1" | "e0" => "vlan.access = 14\n".into(),
            _ => "vlan.access = 10\n".into(),
        };
    }
    for (name, vlan) in [("u0", 12), ("u1", 13)] {
        text += &format!(
            "[[port]]\nname = {name:?}\ntype = \"xdp\"\ninterface = {name:?}\nrequired = false\nvlan.access = {vlan}\n"
        );
    }
    std::fs::write(dir.join("crosspoint.toml"), text).map_err(BenchError::io("configuration"))
}

/// The lines of what was received.
fn received(metrics: &str) -> String {
    let received = metrics.lines().filter(|line| line.contains("\"rx\""));
    received.fold(String::new(), |text, line| text + line + "\n")
}

/// What a station's port has received, and what it has dropped of that. Station `d0` has two ports in turn.
pub fn counted(metrics: &str, station: &str) -> [u64; 2] {
    let received = received(metrics);
    let ports = [station, if station == "d0" { "e0" } else { "" }];
    let total = |text: &str, name: &str| {
        let of = |port| sum(text, name, &format!("port=\"{port}\"")) as u64;
        ports.into_iter().map(of).sum()
    };
    let dropped = total(metrics, "crosspoint_queue_dropped_copies_total");
    [total(&received, "crosspoint_queue_packets_total"), dropped]
}

/// What of the ledger does not balance, if anything.
pub fn imbalance(metrics: &str) -> Option<String> {
    let total = |name: &str, label: &str| sum(metrics, name, label) as u64;
    let copies = |kind, label: &str| total(&format!("crosspoint_queue_{kind}_copies_total"), label);
    let received = received(metrics);
    for port in PORTS.into_iter().chain(["u0", "u1"]) {
        let label = format!("port=\"{port}\"");
        let made = ["flood", "segment", "mirror"].map(|kind| copies(kind, &label));
        let gone = ["delivered", "dropped", "joined"].map(|kind| copies(kind, &label));
        let received = sum(&received, "crosspoint_queue_packets_total", &label) as u64;
        if received + made.iter().sum::<u64>() != gone.iter().sum::<u64>() {
            return Some(format!(
                "{port} received {received}, made {made:?}, gone {gone:?}"
            ));
        }
    }
    let sent = total("crosspoint_queue_packets_total", "direction=\"tx\"");
    let reasons = total("crosspoint_drops_total", "");
    let (delivered, dropped) = (copies("delivered", ""), copies("dropped", ""));
    let is_balanced = (delivered, dropped) == (sent, reasons);
    (!is_balanced).then(|| {
        format!("delivered {delivered}, sent {sent}, dropped {dropped}, reasons {reasons}")
    })
}

/// Private memory in KiB, open descriptors and threads of a process.
pub fn usage(id: u32) -> [u64; 3] {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let field = |name| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let open = std::fs::read_dir(format!("/proc/{id}/fd"));
    [
        field("RssAnon:"),
        open.map_or(0, |open| open.count() as u64),
        field("Threads:"),
    ]
}
