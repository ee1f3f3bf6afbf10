//! The crosspoint binary: with one busy worker and two guest ports, or configured by a [`Setup`].

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{
    Counters, Ports, Process as Child, Running, START_MAX, Thread, is_socket, wait_until,
};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Its name in tables.
pub const NAME: &str = "crosspoint";
const WORKER: &str = "worker-0";

/// Configuration of crosspoint.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A core for each worker.
    pub cores: Vec<usize>,
    /// Further lines of `[workers]`.
    pub workers: String,
    /// Number of guest ports.
    pub guests: usize,
    /// Interfaces that are ports, whether they exist or not.
    pub interfaces: Vec<String>,
    /// Further lines of each guest port, in order; guest ports beyond the list have none.
    pub guest_lines: Vec<String>,
    /// Further lines of each interface's port.
    pub interface_lines: String,
    /// Lines of `[switch]`.
    pub switch_lines: String,
    /// Further sections.
    pub sections: String,
}

impl Setup {
    /// One worker that never sleeps, and two guest ports.
    pub fn busy(core: usize) -> Self {
        Self {
            cores: vec![core],
            workers: "poll = \"busy\"\n".into(),
            guests: 2,
            interfaces: Vec::new(),
            guest_lines: Vec::new(),
            interface_lines: String::new(),
            switch_lines: String::new(),
            sections: String::new(),
        }
    }
}

/// A running crosspoint. It stops when dropped; the fields drop in this order.
pub struct Crosspoint {
    _child: Child,
    _directory: TempDir,
    /// Its process ID.
    pub pid: u32,
    /// Its first worker.
    pub worker: Thread,
    /// Sockets for its guests.
    pub ports: Ports,
    /// Address of its metrics.
    pub metrics: SocketAddr,
    /// The configuration file given to `crosspoint run`.
    pub file: PathBuf,
    /// Its control socket.
    pub control: PathBuf,
}

impl Crosspoint {
    /// The same as a switch of any kind, whose workers have these cores.
    pub fn into_running(self, cores: &[usize]) -> Running {
        let worker = |(number, core): (usize, &usize)| {
            let name = format!("worker-{number}");
            (*core, Thread::named_on_core(&name, *core))
        };
        Running {
            ports: self.ports.clone(),
            workers: cores.iter().enumerate().map(worker).collect(),
            metrics: Some(self.metrics),
            _kept: Some(Box::new(self)),
        }
    }
}

/// The crosspoint binary: as given, or beside this one.
pub fn binary(given: Option<&PathBuf>) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("crosspoint"));
    let given = given.cloned().or_else(beside);
    given.unwrap_or_else(|| "crosspoint".into())
}

/// Starts `binary`, configured by `setup`.
pub fn start(binary: &Path, setup: &Setup) -> Result<Crosspoint, BenchError> {
    let io = |what: &'static str| BenchError::io(what);
    let directory = tempfile::Builder::new()
        .prefix("crosspoint-bench-")
        .tempdir()
        .map_err(io("temporary directory"))?;
    let path = |name: &str| directory.path().join(name);
    let sockets: Vec<PathBuf> = (0..setup.guests)
        .map(|number| path(&format!("{}.sock", guest_name(number))))
        .collect();
    let metrics = free_address().map_err(io("a port for metrics"))?;
    let (file, control) = (path("crosspoint.toml"), path("control.sock"));
    let text = configuration(setup, metrics, &control, &sockets);
    std::fs::write(&file, text).map_err(io("configuration"))?;
    let mut command = Command::new(binary);
    command.arg("run").arg("--config").arg(&file);
    let mut child = Child::spawn(&mut command, path("log"))?;
    let failed = |what: &str, child: &Child| {
        BenchError::backend(NAME, format!("{what}\n{}", child.log_tail()))
    };
    let worker = wait_until(START_MAX, || {
        interrupt::check()?;
        if child.ended().is_some() {
            return Err(failed("ended at once", &child));
        }
        let ready = sockets.iter().all(|path| is_socket(path)) && Counters::read(metrics).is_ok();
        Ok(Thread::named(child.id(), WORKER).filter(|_| ready))
    })?;
    let worker = worker.ok_or_else(|| failed("does not get ready", &child))?;
    Ok(Crosspoint {
        pid: child.id(),
        worker,
        ports: Ports {
            sockets,
            guests_listen: false,
        },
        metrics,
        file,
        control,
        _child: child,
        _directory: directory,
    })
}

/// Names guests "a", "b", and so on.
fn guest_name(number: usize) -> String {
    match u8::try_from(number) {
        Ok(number) if number < 26 => char::from(b'a' + number).into(),
        _ => format!("guest-{number}"),
    }
}

fn configuration(
    setup: &Setup,
    metrics: SocketAddr,
    control: &Path,
    sockets: &[PathBuf],
) -> String {
    let Setup { cores, workers, .. } = setup;
    let mut text = format!(
        "version = 1\n[workers]\ncores = {cores:?}\n{workers}[metrics]\nlisten = \"{metrics}\"\n\
         [control]\nsocket = {control:?}\n"
    );
    if !setup.switch_lines.is_empty() {
        text += &format!("[switch]\n{}", setup.switch_lines);
    }
    for (number, socket) in sockets.iter().enumerate() {
        let name = guest_name(number);
        text += &format!(
            "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = {socket:?}\nrole = \"server\"\n"
        );
        text += setup.guest_lines.get(number).map_or("", String::as_str);
    }
    for interface in &setup.interfaces {
        text += &format!(
            "[[port]]\nname = \"{interface}\"\ntype = \"xdp\"\ninterface = \"{interface}\"\n"
        );
        text += &setup.interface_lines;
    }
    text + &setup.sections
}

/// An address that was free a moment ago.
fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_two_guest_ports() {
        let metrics = SocketAddr::from(([127, 0, 0, 1], 9999));
        let sockets = ["/t/a.sock".into(), "/t/b.sock".into()];
        let setup = Setup {
            guest_lines: vec!["queue_pairs = 4\n".into()],
            ..Setup::busy(3)
        };
        let text = configuration(&setup, metrics, Path::new("/t/control.sock"), &sockets);
        assert!(
            text.starts_with("version = 1\n[workers]\ncores = [3]\npoll = \"busy\"\n"),
            "{text}"
        );
        assert_eq!(text.matches("[[port]]").count(), 2);
        assert!(text.contains("socket = \"/t/b.sock\""), "{text}");
        let lines: Vec<&str> = text.matches("queue_pairs = 4\n[[port]]").collect();
        assert_eq!(lines.len(), 1, "the first guest's alone: {text}");
    }
}
