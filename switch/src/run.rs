//! `crosspoint run`.

use std::ffi::c_int;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crosspoint_config::{Config, ConfigError};
use crosspoint_daemon::daemon::Daemon;
use crosspoint_daemon::handover;
use crosspoint_daemon::service::notify::Service;
use crosspoint_daemon::service::{log, notify, sandbox};
use crosspoint_daemon::start_error::StartError;
use miette::Diagnostic;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Time between two heartbeats to the supervisor.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Loads the configuration at `path`; `-` is standard input.
pub(crate) fn load(path: &Path) -> Result<Config, ExitCode> {
    let loaded = match path == Path::new("-") {
        true => Config::load_stdin(),
        false => Config::load(path),
    };
    loaded.map_err(|error| fail_config(&error))
}

fn fail_config(error: &ConfigError) -> ExitCode {
    log::print(&error.render());
    ExitCode::FAILURE
}

/// Runs until SIGTERM or SIGINT; SIGHUP makes it read its configuration again.
pub(crate) fn run(path: &Path) -> ExitCode {
    log::report_panics();
    // Before the records of a predecessor, which have descriptors.
    raise_open_files();
    if let Err(why) = handover::connect() {
        log::print(&format!(
            "error: the supervisor cannot be understood: {why}\n"
        ));
        return ExitCode::FAILURE;
    }
    if handover::is_supervised() {
        // A program that was started by its descriptor has a number for a name.
        let _ = rustix::thread::set_name(c"crosspoint");
    }
    let affinity = affinity();
    // A mistake in one guest's file of `ports_dir` must not keep the other guests from the network.
    let loaded = match Config::load_lenient(path, None, &affinity) {
        Ok(loaded) => loaded,
        Err(error) => {
            handover::refuse(&format!("the configuration is wrong: {error}"));
            return fail_config(&error);
        }
    };
    // Before any other thread starts, since threads begin with what their creator has left.
    let sandbox = sandbox::enter(&loaded.config, path);
    let log_limit = log::start(&loaded.config.log);
    sandbox.say();
    // Before anything is created that would have to be cleaned up.
    let signals = flag(&[SIGTERM, SIGINT]).and_then(|stop| Ok((stop, flag(&[SIGHUP])?)));
    let (stop, reload) = match signals {
        Ok(flags) => flags,
        Err(why) => {
            log::print(&format!("error: signals cannot be caught: {why}\n"));
            return ExitCode::FAILURE;
        }
    };
    keep_off_worker_cores(&loaded.config, &affinity);
    let ports = loaded.config.ports.len();
    let daemon = match Daemon::start_from(path, loaded, &affinity) {
        Ok(daemon) => daemon,
        Err(error) => {
            log_limit.finish();
            handover::refuse(&error.to_string());
            if let StartError::Config(error) = error {
                return fail_config(&error);
            }
            let help = error.help().map(|help| format!("help: {help}\n"));
            log::print(&format!("error: {error}\n{}", help.unwrap_or_default()));
            return ExitCode::FAILURE;
        }
    };
    tracing::info!("ready: {ports} port(s)");
    let mut service = Service::ready(&daemon.health());
    let mut heartbeat_at = Instant::now();
    while !stop.load(Ordering::Relaxed) && !handover::is_abandoned() {
        // Cleared before the files are read: a signal that comes meanwhile asks for another reload.
        if reload.swap(false, Ordering::Relaxed) && !daemon.try_reload() {
            reload.store(true, Ordering::Relaxed);
        }
        daemon.housekeep();
        service.tick(|| daemon.health());
        if handover::is_supervised() && Instant::now() >= heartbeat_at && daemon.health().live {
            heartbeat_at = Instant::now() + HEARTBEAT;
            handover::heartbeat();
        }
        log_limit.tick();
        // A signal ends the wait early.
        std::thread::park_timeout(Daemon::HOUSEKEEPING);
    }
    tracing::info!("stopping");
    notify::stopping();
    drop(daemon);
    log_limit.finish();
    log::drain();
    ExitCode::SUCCESS
}

/// A flag that is set when one of these signals comes.
fn flag(signals: &[c_int]) -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in signals {
        signal_hook::flag::register(*signal, flag.clone())?;
    }
    Ok(flag)
}

/// Raises the soft limit of open files to the hard one: every ring of every guest has two files.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(why) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %why, "the limit of open files cannot be raised");
    }
}

/// The cores that the process may use.
pub(crate) fn affinity() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect()
}

/// Restricts this thread, and all that it starts except the workers, to cores without a pinned worker: a worker that shares
/// its core stalls its ports.
fn keep_off_worker_cores(config: &Config, affinity: &[usize]) {
    let Ok(workers) = config.resolve_cores(affinity) else {
        return;
    };
    let mut set = CpuSet::new();
    for core in affinity.iter().filter(|core| !workers.contains(core)) {
        set.set(*core);
    }
    if set.count() > 0 {
        let _ = sched_setaffinity(None, &set);
    }
}
