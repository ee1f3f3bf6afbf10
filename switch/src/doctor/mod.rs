//! `crosspoint doctor`: checks whether this host is fit for the switch, and for this configuration.
//!
//! [`examine`] checks a [`Host`] and returns a [`Report`]: findings, each with its cost and its fix. A check is a function
//! from a host to findings, and changes nothing. Files of the kernel are read below a root that a test can choose; netlink
//! is asked beforehand.
//!
//! The JSON. Keys may be added; none is renamed or removed:
//!
//! ```json
//! {
//!   "worst": "warning",
//!   "findings": [
//!     {
//!       "id": "governor",
//!       "severity": "warning",
//!       "subject": "host",
//!       "found": "what is so",
//!       "cost": "what it costs",
//!       "mend": ["a command", "the next one"]
//!     }
//!   ]
//! }
//! ```
//!
//! `subject` is `host`, the name of an interface, or a folder. If a finding is `ok`, `cost` and `mend` are empty. A line of
//! `mend` that begins with `#` describes a step that no command can do.

mod command;
mod cores;
mod finding;
mod guest_group;
mod host;
mod interfaces;
mod interrupts;
mod kernel;
mod memory;
mod own_sockets;
mod process;
mod service;
mod sockets;
mod subject;

pub(crate) use command::{doctor, here};
use crosspoint_config::Config;
pub use finding::{Check, Finding, Report, Severity};
pub use host::{Host, Nic};
use subject::Subject;

/// All checks, in the order of a report.
pub const CHECKS: &[&[Check]] = &[
    kernel::CHECKS,
    process::CHECKS,
    memory::CHECKS,
    cores::CHECKS,
    interrupts::CHECKS,
    interfaces::CHECKS,
    sockets::CHECKS,
    guest_group::CHECKS,
    own_sockets::CHECKS,
];

/// Examines `host`, as one that is to run `config` if there is one. Interfaces are those that the host was asked for.
pub fn examine(host: &Host, config: Option<&Config>) -> Report {
    let subject = Subject::new(host, config);
    let areas = [
        kernel::check,
        process::check,
        memory::check,
        cores::check,
        interrupts::check,
        interfaces::check,
        sockets::check,
        guest_group::check,
        own_sockets::check,
    ];
    Report {
        findings: areas.iter().flat_map(|check| check(&subject)).collect(),
    }
}

/// The checks that tell whether this configuration can run on this host at all: `crosspoint check --host`.
pub const OF_CONFIGURATION: &[&str] = &[
    "worker-cores",
    "interface",
    "host-interface",
    "reach",
    "queues",
    "socket-folder",
    "socket-group",
    "own-sockets",
];

/// The checks as a table for the documentation (Markdown).
pub fn markdown() -> String {
    let mut text = String::from("| id | looks at |\n|---|---|\n");
    for check in CHECKS.iter().copied().flatten() {
        text.push_str(&format!("| `{}` | {} |\n", check.id, check.looks_at));
    }
    text
}
