//! `crosspoint report`: what support needs to know about a host and its switch, as one archive (tar, gzip).
//!
//! [`gather`] asks the running switch, if there is one, the kernel, and the journal. What cannot be read is left out, and
//! `manifest.json` gives the reason. It changes nothing.
//!
//! The archive has one folder, and in it:
//!
//! | file | is |
//! |---|---|
//! | `manifest.json` | what is here and where it comes from; what is missing, and why |
//! | `version.txt` | the version of the program that made the report |
//! | `config/...` | the configuration and its drop-in files, the output of `check`, and what runs (`running.json`) |
//! | `doctor.txt`, `doctor.json` | the output of `doctor --all` |
//! | `health.json`, `show/TOPIC.json`, `show/port/NAME.json` | the running switch's answers |
//! | `metrics.txt` | a scrape |
//! | `process/...` | the running switch's process: limits, threads, cgroup |
//! | `host/interfaces.txt` | the kernel's description of each interface and its driver |
//! | `host/...` | files of the kernel, by their paths: version, command line, processors, memory nodes, interrupts |
//! | `log.txt`, `unit.txt` | the last lines of the log, and the unit, from systemd |
//!
//! It holds no frames, no guest memory, and no secrets (the configuration has none). It does hold names and addresses: of
//! ports, sockets and interfaces, of the host, and of guests (MAC addresses).

mod archive;
mod command;
mod host;
mod running;

use std::path::{Path, PathBuf};

pub use archive::Archive;
pub(crate) use command::Report;
use crosspoint_config::{Config, PortKind};

use crate::doctor::{Host, examine};

/// The configuration of the packaged service.
const PACKAGED: &str = "/etc/crosspoint/crosspoint.toml";
/// The largest file that is kept whole; of a longer one the end is kept.
const FILE_BYTES_MAX: usize = 16 << 20;

/// What to gather from.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The configuration's file; `None`: the running switch's, or else the packaged service's.
    pub config: Option<PathBuf>,
    /// The running switch's control socket; `None`: the one in the configuration.
    pub socket: Option<PathBuf>,
    /// systemd's name of the service.
    pub unit: String,
    /// The cores that this process may use.
    pub affinity: Vec<usize>,
}

/// Gathers everything.
pub fn gather(wanted: &Wanted) -> Archive {
    let mut archive = Archive::default();
    let version = concat!("crosspoint ", env!("CARGO_PKG_VERSION"), "\n");
    archive.add("version.txt", "this program", version);
    // The running switch knows best which file it has and where its metrics are.
    let default = Config::default().control.socket;
    let named = wanted
        .config
        .as_deref()
        .and_then(|path| Config::load(path).ok());
    let named = named.map(|config| config.control.socket);
    let socket = wanted.socket.clone().or(named).unwrap_or(default);
    let running = running::find(&socket);
    let path = wanted.config.clone();
    let path = path.or_else(|| running.as_ref()?.config.clone());
    let path = path.unwrap_or_else(|| PathBuf::from(PACKAGED));
    let config = configuration(&mut archive, &path);
    doctor(&mut archive, wanted, config.as_ref());
    let configured = config.as_ref().map(|config| config.control.socket.clone());
    let socket = match (&running, &wanted.socket) {
        (None, None) => configured.unwrap_or(socket),
        _ => socket,
    };
    let mut metrics = config.map(|config| config.metrics).unwrap_or_default();
    if let Some(running) = running {
        metrics.listen = running.metrics;
    }
    running::gather(&mut archive, &socket, &metrics);
    host::gather(&mut archive, Path::new("/"));
    host::journal(&mut archive, &wanted.unit);
    archive
}

/// The configuration file, the files that it includes, and its errors.
fn configuration(archive: &mut Archive, path: &Path) -> Option<Config> {
    archive.add_file("config/crosspoint.toml", path);
    if let Some(folder) = ports_folder(path) {
        archive.add_folder("config/ports.d", &folder, "toml");
    }
    let (config, said) = match Config::load(path) {
        Ok(config) => {
            let ports = config.ports.len();
            (Some(config), format!("fine, {ports} port(s)\n"))
        }
        Err(error) => (None, error.render()),
    };
    archive.add("config/check.txt", "crosspoint check", said);
    config
}

/// The folder of drop-in files that the configuration names, whatever else is wrong with it.
fn ports_folder(path: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(path).ok()?;
    let table: toml::Table = text.parse().ok()?;
    let folder = table.get("ports_dir")?.as_str()?;
    // An absolute path replaces the file's folder.
    Some(path.parent()?.join(folder))
}

fn doctor(archive: &mut Archive, wanted: &Wanted, config: Option<&Config>) {
    let from = "crosspoint doctor --all";
    let ports = config.map_or(&[][..], |config| &config.ports);
    let uplinks = ports.iter().filter_map(|port| match &port.kind {
        PortKind::Xdp(uplink) => Some(uplink.interface.clone()),
        PortKind::Vhost(_) => None,
    });
    let mut names: Vec<String> = uplinks.chain(Host::interfaces()).collect();
    names.sort();
    names.dedup();
    match Host::here(&wanted.affinity, &names) {
        Ok(host) => {
            let report = examine(&host, config);
            archive.add("doctor.txt", from, report.text(false));
            archive.add("doctor.json", from, format!("{:#}\n", report.json()));
            let facts = host.nics.iter().map(|nic| format!("{nic:#?}\n"));
            archive.add("host/interfaces.txt", "netlink", facts.collect::<String>());
        }
        Err(why) => {
            for name in ["doctor.txt", "doctor.json", "host/interfaces.txt"] {
                archive.miss(name, from, &why);
            }
        }
    }
}
