//! Least privilege: what the daemon gives up once it has read its configuration, and before it reads a byte of a front end.
//!
//! - *Capabilities*: all threads but the workers keep the four that they need, for reloads too; workers keep none.
//! - *System calls* (seccomp): each kind of thread has a list. Other calls fail with EPERM, and are logged and counted.
//! - *Files* (Landlock): only folders that the configuration named at the start, and a few more, can be opened.
//!
//! A thread begins with what its creator has left, so [`enter`] must run before any other thread starts. A thread that was
//! started earlier is not confined; [`Sandbox::say`] names it.

mod capabilities;
mod files;
mod lists;
mod refused;
mod seccomp;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crosspoint_config::Config;
use crosspoint_netdev::helper;

pub(crate) use files::explain;
pub(crate) use refused::{counts, log, warn};

/// The hidden command by which the daemon starts its helper.
pub const HELPER_COMMAND: &str = "namespace-helper";
/// The name of its process.
const HELPER_NAME: &str = "cp-namespaces";
/// How long threads that were started before may take to end.
const THREADS_TIME_MAX: Duration = Duration::from_secs(1);

/// What is in force, in words: set once by [`enter`].
static IN_FORCE: OnceLock<Sandbox> = OnceLock::new();

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// Whether capabilities were given up.
    capabilities: bool,
    /// Whether system calls are restricted.
    seccomp: bool,
    /// The version of Landlock that restricts files.
    landlock: Option<i32>,
    /// What should be in force, and is not, with the reason.
    problems: Vec<String>,
}

/// Gives up what `config`, of `file`, says. Returns what is in force. Nothing that fails here keeps the switch from starting.
pub fn enter(config: &Config, file: &Path) -> Sandbox {
    let wanted = &config.sandbox;
    let mut sandbox = Sandbox::default();
    if !(wanted.capabilities || wanted.seccomp || wanted.landlock) {
        let _ = IN_FORCE.set(sandbox.clone());
        return sandbox;
    }
    sandbox.problems.extend(left_threads());
    give_up_namespaces(&mut sandbox);
    let mut done = |what: &str, result: Result<(), String>| {
        let failed = result.err().map(|why| format!("{what}: {why}"));
        let is_done = failed.is_none();
        sandbox.problems.extend(failed);
        is_done
    };
    done("no_new_privs", text(rustix::thread::set_no_new_privs(true)));
    let mut in_force = (false, false, None);
    if wanted.capabilities {
        let groups = capabilities::join_socket_groups(config);
        done("joining the groups of sockets", text(groups));
        let kept = capabilities::keep_needed(&wanted.keep_capabilities);
        in_force.0 = done("giving up capabilities", text(kept));
    }
    if wanted.landlock {
        match files::confine(config, file) {
            Ok(Some(abi)) => in_force.2 = Some(abi),
            Ok(None) => {
                let why = "the kernel has none, or it is off (the kernel's parameter lsm=)";
                done("Landlock", Err(why.to_owned()));
            }
            Err(why) => {
                done("Landlock", Err(why.to_string()));
            }
        }
    }
    if wanted.seccomp {
        in_force.1 = done("seccomp", text(seccomp::confine()));
    }
    (sandbox.capabilities, sandbox.seccomp, sandbox.landlock) = in_force;
    let _ = IN_FORCE.set(sandbox.clone());
    sandbox
}

/// What a worker gives up besides, on its own thread before its first iteration.
pub(crate) fn enter_worker() {
    let Some(sandbox) = IN_FORCE.get() else {
        // Of a daemon inside another program.
        return;
    };
    let mut results = Vec::new();
    if sandbox.capabilities {
        results.push(text(capabilities::keep_none()));
    }
    if sandbox.seccomp {
        results.push(text(seccomp::confine_worker()));
    }
    for why in results.into_iter().filter_map(Result::err) {
        tracing::warn!(error = %why, "a worker keeps more rights than it needs");
    }
}

/// The helper process. Its standard input is the connection to the daemon.
pub fn run_helper() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // The daemon restores interfaces' settings when it ends, and needs this process until then: it ends with the connection.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no handler is set.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    rustix::thread::set_name(&CString::new(HELPER_NAME)?)?;
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::thread::set_no_new_privs(true)?;
    capabilities::keep_for_helper()?;
    seccomp::confine_helper()?;
    Ok(helper::serve(stream)?)
}

/// Leaves entering network namespaces to a helper process, if this process may do it.
fn give_up_namespaces(sandbox: &mut Sandbox) {
    let helper = match capabilities::may_enter_namespaces() {
        true => start_helper()
            .map_err(|why| {
                sandbox.problems.push(format!(
                    "the process that sets veths' peers in other network namespaces cannot be started: {why}"
                ));
            })
            .ok(),
        false => None,
    };
    helper::give_up_namespaces(helper);
}

fn start_helper() -> std::io::Result<UnixStream> {
    let (own, its) = UnixStream::pair()?;
    // Not its path, where another program may be by now.
    let mut command = Command::new("/proc/self/exe");
    // Its name is not the daemon's, which scripts look for.
    command.arg0(HELPER_NAME).arg(HELPER_COMMAND);
    command.current_dir("/").env_clear();
    command.stdin(Stdio::from(OwnedFd::from(its)));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // It ends with the connection, at the end of this process, so the daemon does not wait for it.
    command.spawn()?;
    Ok(own)
}

/// Names other threads of this process, which are not confined: reads of the configuration from a file system that hangs.
fn left_threads() -> Option<String> {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let deadline = Instant::now() + THREADS_TIME_MAX;
    loop {
        let tasks = fs::read_dir("/proc/self/task").ok()?.flatten();
        let others: Vec<String> = tasks
            .filter(|task| task.file_name().to_string_lossy() != own)
            .map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default())
            .map(|name| name.trim().to_owned())
            .collect();
        if others.is_empty() {
            return None;
        }
        if Instant::now() > deadline {
            return Some(format!(
                "threads that were started before keep their rights: {}",
                others.join(", ")
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn text<T, E: ToString>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|why| why.to_string())
}

/// What is in force in this process, in words.
pub(crate) fn in_force() -> String {
    IN_FORCE.get().map_or_else(String::new, Sandbox::words)
}

impl Sandbox {
    fn words(&self) -> String {
        let capabilities = self.capabilities.then(|| "capabilities".to_owned());
        let seccomp = self.seccomp.then(|| "seccomp".to_owned());
        let landlock = self.landlock.map(|abi| format!("landlock (ABI {abi})"));
        let parts = [capabilities, seccomp, landlock];
        let words: Vec<String> = parts.into_iter().flatten().collect();
        match words.is_empty() {
            true => "off".to_owned(),
            false => words.join(", "),
        }
    }

    /// Logs what is in force, and what should be and is not.
    pub fn say(&self) {
        tracing::info!("sandbox: {}", self.words());
        for problem in &self.problems {
            tracing::warn!("the sandbox is not complete: {problem}");
        }
    }
}
