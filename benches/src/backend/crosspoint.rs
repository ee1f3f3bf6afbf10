//! The crosspoint binary, with one busy worker and two guest ports.

use super::process::Process as Child;
use super::{Backend, Running, START_MAX, is_socket, wait_until};
use crate::error::BenchError;
use crate::interrupt;
use crate::options::{Ports, Sockets};
use crate::scrape::Counters;
use crate::threads::Thread;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// In tables.
pub const NAME: &str = "crosspoint";
const WORKER: &str = "worker-0";

/// The running switch; the fields drop in this order.
pub struct Process {
    _child: Child,
    _directory: TempDir,
}

/// Starts `binary` with its worker on `core`.
pub fn start(binary: &Path, core: usize) -> Result<Backend, BenchError> {
    let io = |what: &'static str| BenchError::io(what);
    let directory = tempfile::Builder::new()
        .prefix("crosspoint-bench-")
        .tempdir()
        .map_err(io("temporary directory"))?;
    let path = |name: &str| directory.path().join(name);
    let sockets = Sockets([path("a.sock"), path("b.sock")]);
    let metrics = free_address().map_err(io("a port for metrics"))?;
    let file = path("crosspoint.toml");
    let text = configuration(core, metrics, &path("control.sock"), &sockets);
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
        let ready = sockets.0.iter().all(|path| is_socket(path)) && Counters::read(metrics).is_ok();
        Ok(Thread::named(child.id(), WORKER).filter(|_| ready))
    })?;
    let worker = worker.ok_or_else(|| failed("does not get ready", &child))?;
    Ok(Backend {
        ports: Ports::of_switch(sockets),
        worker: Some(worker),
        metrics: Some(metrics),
        _running: Running::Crosspoint {
            _process: Process {
                _child: child,
                _directory: directory,
            },
        },
    })
}

fn configuration(core: usize, metrics: SocketAddr, control: &Path, sockets: &Sockets) -> String {
    let mut text = format!(
        "version = 1\n[workers]\ncores = [{core}]\npoll = \"busy\"\n[metrics]\nlisten = \"{metrics}\"\n\
         [control]\nsocket = {control:?}\n"
    );
    for (name, socket) in ["a", "b"].iter().zip(&sockets.0) {
        text += &format!(
            "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = {socket:?}\nrole = \"server\"\n"
        );
    }
    text
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
        let sockets = Sockets(["/t/a.sock".into(), "/t/b.sock".into()]);
        let text = configuration(3, metrics, Path::new("/t/control.sock"), &sockets);
        assert!(
            text.starts_with("version = 1\n[workers]\ncores = [3]\npoll = \"busy\"\n"),
            "{text}"
        );
        assert_eq!(text.matches("[[port]]").count(), 2);
        assert!(text.contains("socket = \"/t/b.sock\""), "{text}");
    }
}
