//! `crosspoint run` and `crosspoint check`.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_control::config::{Config, ConfigError};
use crosspoint_control::daemon::Daemon;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Validates a configuration without starting anything.
pub(crate) fn check(path: &Path) -> ExitCode {
    match load(path) {
        Ok(config) => {
            println!("{}: fine, {} port(s)", path.display(), config.ports.len());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

pub(crate) fn load(path: &Path) -> Result<Config, ExitCode> {
    Config::load(path).map_err(|error| fail_config(&error))
}

fn fail_config(error: &ConfigError) -> ExitCode {
    eprint!("{}", error.render());
    ExitCode::FAILURE
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(path: &Path) -> ExitCode {
    let affinity = affinity();
    // A mistake in one guest's file of `ports_dir` does not keep the others from their network.
    let loaded = match Config::load_lenient(path, None, &affinity) {
        Ok(loaded) => loaded,
        Err(error) => return fail_config(&error),
    };
    log_to_stderr();
    // Before anything is made that would have to be cleaned up.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        if let Err(why) = signal_hook::flag::register(signal, stop.clone()) {
            eprintln!("error: signals cannot be caught: {why}");
            return ExitCode::FAILURE;
        }
    }
    let reload = Arc::new(AtomicBool::new(false));
    if let Err(why) = signal_hook::flag::register(SIGHUP, reload.clone()) {
        eprintln!("error: signals cannot be caught: {why}");
        return ExitCode::FAILURE;
    }
    raise_open_files();
    keep_off_worker_cores(&loaded.config, &affinity);
    let ports = loaded.config.ports.len();
    let daemon = match Daemon::start_from(path, loaded, &affinity) {
        Ok(daemon) => daemon,
        Err(crosspoint_control::daemon::StartError::Config(error)) => return fail_config(&error),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!("ready: {ports} port(s)");
    while !stop.load(Ordering::Relaxed) {
        if reload.swap(false, Ordering::Relaxed) {
            daemon.reload();
        }
        daemon.housekeep();
        // A signal ends the wait early.
        std::thread::park_timeout(Daemon::HOUSEKEEPING);
    }
    tracing::info!("stopping");
    drop(daemon);
    ExitCode::SUCCESS
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CROSSPOINT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

/// Raises the soft limit of open files to the hard one: every ring of every guest has two.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(why) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays as it is: {why}");
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

/// Has this thread, and all that it starts but the workers, run on the cores that no worker is
/// pinned to: a worker that shares its core stalls its ports.
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
