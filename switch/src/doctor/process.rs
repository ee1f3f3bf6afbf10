//! The permissions and limits of a process like this one.

use crosspoint_config::Config;
use crosspoint_memory::MAX_MAPPINGS;

use super::subject::{QUEUE_BYTES, Subject, counted};
use super::{Check, Finding, Severity};

const CAPABILITIES: Check = Check {
    id: "capabilities",
    looks_at: "Whether this process has CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK, as the daemon needs them",
};
const LOCKED_MEMORY: Check = Check {
    id: "locked-memory",
    looks_at: "The limit of locked memory (RLIMIT_MEMLOCK) of this process, against the packet memory of the configured ports: 16 MiB for a NIC queue. CAP_IPC_LOCK lifts it",
};
const OPEN_FILES: Check = Check {
    id: "open-files",
    looks_at: "The hard limit of open files of this process, against the rings of the configured ports",
};
const MAPPINGS: Check = Check {
    id: "mappings",
    looks_at: "`vm.max_map_count`, against the 32768 regions of guest memory that the switch can have mapped",
};
const SANDBOX: Check = Check {
    id: "sandbox",
    looks_at: "Whether the kernel has what `[sandbox]` restricts the daemon with: seccomp filters that trap, and Landlock, as far as /sys/kernel/security/lsm tells",
};

pub(super) const CHECKS: &[Check] = &[CAPABILITIES, LOCKED_MEMORY, OPEN_FILES, MAPPINGS, SANDBOX];

const IPC_LOCK: u32 = 14;
/// The capabilities that the daemon needs, by number (capability.h).
const NEEDED: [(u32, &str, &str); 4] = [
    (
        12,
        "CAP_NET_ADMIN",
        "attaching XDP programs, setting interfaces",
    ),
    (13, "CAP_NET_RAW", "AF_XDP sockets"),
    (39, "CAP_BPF", "loading the XDP program"),
    (
        IPC_LOCK,
        "CAP_IPC_LOCK",
        "packet memory beyond the limit of locked memory",
    ),
];
/// Mappings that the daemon has besides those of guests: programs, libraries, stacks, rings, packet memory.
const OWN_MAPPINGS: i64 = 1024;
/// Open files that the daemon has besides those of ports: sockets, clients, the terminal.
const OWN_FILES: u64 = 256;
/// Open files of a ring: kick, call and error.
const RING_FILES: u64 = 3;
/// Open files of a port: its listener, its connection, its log, its inflight region, and what is being exchanged.
const PORT_FILES: u64 = 8;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let status = subject.host.read("/proc/self/status").unwrap_or_default();
    let held = capabilities(&status).unwrap_or(0);
    let limits = subject.host.read("/proc/self/limits").unwrap_or_default();
    vec![
        needed(held),
        locked_memory(subject, held, &limits),
        open_files(subject, &limits),
        mappings(subject),
        sandbox(subject),
    ]
}

/// The effective capabilities, as bits.
fn capabilities(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn has(held: u64, number: u32) -> bool {
    held & (1 << number) != 0
}

fn needed(held: u64) -> Finding {
    let missing = NEEDED.iter().filter(|(number, _, _)| !has(held, *number));
    let missing: Vec<String> = missing
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    match missing.is_empty() {
        true => CAPABILITIES.ok("host", "this process has what the daemon needs"),
        false => CAPABILITIES.finding(
            Severity::Warning,
            "host",
            format!("this process lacks {}", missing.join(", ")),
            "A daemon that is started like this process cannot open its NIC ports.",
            vec![
                "# start it as root, or in its service's [Service] section:".to_owned(),
                "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_IPC_LOCK".to_owned(),
            ],
        ),
    }
}

/// The soft and the hard limit of this name; `None` if unlimited.
fn limit(limits: &str, name: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = line.split_whitespace();
    Some((words.next()?.parse().ok(), words.next()?.parse().ok()))
}

fn locked_memory(subject: &Subject<'_>, held: u64, limits: &str) -> Finding {
    let queues: u64 = subject.uplinks().map(|port| subject.queues_of(port)).sum();
    let needed = queues * QUEUE_BYTES;
    let mib = |bytes: u64| bytes >> 20;
    if has(held, IPC_LOCK) {
        return LOCKED_MEMORY.ok("host", "CAP_IPC_LOCK lifts the limit of locked memory");
    }
    match limit(limits, "Max locked memory") {
        Some((Some(soft), _)) if soft < needed.max(QUEUE_BYTES) => LOCKED_MEMORY.finding(
            Severity::Warning,
            "host",
            format!(
                "{} MiB may be locked, and {} of packet memory take {} MiB",
                mib(soft),
                counted(queues.max(1), "NIC queue"),
                mib(needed.max(QUEUE_BYTES))
            ),
            "NIC ports do not open. A guest with `direct` needs all of its memory besides.",
            vec![
                "# CAP_IPC_LOCK, or in the service's [Service] section:".to_owned(),
                "LimitMEMLOCK=infinity".to_owned(),
            ],
        ),
        _ => LOCKED_MEMORY.ok("host", "the limit of locked memory suffices"),
    }
}

fn open_files(subject: &Subject<'_>, limits: &str) -> Finding {
    let of_guests = subject
        .guests()
        .map(|(_, guest)| PORT_FILES + 2 * RING_FILES * u64::from(guest.queue_pairs));
    let of_uplinks = subject
        .uplinks()
        .map(|port| PORT_FILES + subject.queues_of(port));
    let needed = OWN_FILES + of_guests.sum::<u64>() + of_uplinks.sum::<u64>();
    match limit(limits, "Max open files") {
        Some((_, Some(hard))) if hard < needed => OPEN_FILES.finding(
            Severity::Error,
            "host",
            format!("{hard} files may be open, and the ports may need {needed}"),
            "Guests that connect last are not served.",
            vec![
                "# in the service's [Service] section:".to_owned(),
                format!("LimitNOFILE={}", needed.next_power_of_two()),
            ],
        ),
        _ => OPEN_FILES.ok(
            "host",
            format!("up to {needed} files may be needed, and may be open"),
        ),
    }
}

fn mappings(subject: &Subject<'_>) -> Finding {
    let needed = MAX_MAPPINGS as i64 + OWN_MAPPINGS;
    match subject.host.number("/proc/sys/vm/max_map_count") {
        Some(allowed) if allowed < needed => MAPPINGS.finding(
            Severity::Warning,
            "host",
            format!("a process may have {allowed} mappings, and the switch up to {needed}"),
            "Where guests have many regions of memory, the next one that attaches is refused.",
            vec!["sysctl -w vm.max_map_count=65530".to_owned()],
        ),
        Some(allowed) => MAPPINGS.ok("host", format!("a process may have {allowed} mappings")),
        None => MAPPINGS.ok("host", "the kernel states no limit of mappings"),
    }
}

fn sandbox(subject: &Subject<'_>) -> Finding {
    let wanted = |part: fn(&Config) -> bool| subject.config.is_none_or(part);
    let actions = subject.host.read("/proc/sys/kernel/seccomp/actions_avail");
    let traps = actions.is_some_and(|actions| actions.split_whitespace().any(|one| one == "trap"));
    let modules = subject.host.read("/sys/kernel/security/lsm");
    let is_landlock_off =
        modules.is_some_and(|modules| !modules.trim().split(',').any(|one| one == "landlock"));
    if !traps && wanted(|config| config.sandbox.seccomp) {
        return SANDBOX.finding(
            Severity::Warning,
            "host",
            "the kernel has no seccomp filters that trap",
            "The daemon may make any system call.",
            vec!["# boot a kernel that is built with CONFIG_SECCOMP_FILTER=y".to_owned()],
        );
    }
    if is_landlock_off && wanted(|config| config.sandbox.landlock) {
        return SANDBOX.finding(
            Severity::Note,
            "host",
            "the kernel does not use Landlock",
            "Only permissions keep the daemon from other files.",
            vec![
                "# add landlock to lsm= of the kernel's command line (Linux 5.13 or later), and boot"
                    .to_owned(),
            ],
        );
    }
    SANDBOX.ok(
        "host",
        "the kernel has what [sandbox] restricts the daemon with",
    )
}
