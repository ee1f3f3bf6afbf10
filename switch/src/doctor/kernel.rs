//! The kernel: its version, its build options, its clock.

use super::subject::Subject;
use super::{Check, Finding, Severity};

const KERNEL: Check = Check {
    id: "kernel",
    looks_at: "The kernel's version, against what each part of the switch needs: 5.9 for XDP at all, 5.10 for more than one NIC queue per worker, 5.11 for `busy_poll`, 5.18 and 6.6 for frames of several buffers, 6.3 to report what drivers can do, 6.8 for checksums that the kernel finishes",
};
const AF_XDP: Check = Check {
    id: "af-xdp",
    looks_at: "Whether the kernel has AF_XDP sockets (CONFIG_XDP_SOCKETS)",
};
const BPF: Check = Check {
    id: "bpf",
    looks_at: "Whether the kernel has the bpf system call (CONFIG_BPF_SYSCALL), by which the XDP program is loaded",
};
const BPF_JIT: Check = Check {
    id: "bpf-jit",
    looks_at: "Whether BPF programs are compiled (`net.core.bpf_jit_enable`), and are without the hardening that slows them (`net.core.bpf_jit_harden`)",
};
const MEMFD: Check = Check {
    id: "memfd",
    looks_at: "Whether the kernel makes memory files (memfd_create): front ends share guest memory by them, and inflight regions are in them",
};
const CLOCK: Check = Check {
    id: "clock",
    looks_at: "Whether the kernel trusts the processor's time stamp counter, which workers measure with",
};

pub(super) const CHECKS: &[Check] = &[KERNEL, AF_XDP, BPF, BPF_JIT, MEMFD, CLOCK];

/// Kernel versions, the severity if the kernel is older, and what it then lacks.
const NEEDS: [((u32, u32), Severity, &str); 6] = [
    (
        (5, 9),
        Severity::Error,
        "The XDP program cannot be attached: no interface can be a port.",
    ),
    (
        (5, 10),
        Severity::Error,
        "Packet memory cannot be shared: a worker can have one NIC queue only.",
    ),
    (
        (5, 11),
        Severity::Note,
        "`busy_poll` of a port does nothing: its NIC is driven by interrupts.",
    ),
    (
        (6, 3),
        Severity::Note,
        "What drivers can do with XDP is not known before a port opens.",
    ),
    (
        (6, 6),
        Severity::Warning,
        "Interfaces with an MTU beyond 3498 cannot be ports.",
    ),
    (
        (6, 8),
        Severity::Note,
        "Workers compute checksums, also where the kernel could finish them.",
    ),
];

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = versions(subject);
    findings.push(af_xdp(subject));
    findings.push(bpf(subject));
    findings.push(bpf_jit(subject));
    findings.push(memfd(subject));
    findings.extend(clock(subject));
    findings
}

fn versions(subject: &Subject<'_>) -> Vec<Finding> {
    let version = subject.kernel();
    let release = subject.host.read("/proc/sys/kernel/osrelease");
    let found = format!(
        "Linux {}",
        release.as_deref().unwrap_or("of unknown version")
    );
    let lacking = NEEDS.iter().filter(|(needed, _, _)| version < *needed);
    let lacking: Vec<Finding> = lacking
        .map(|((major, minor), severity, cost)| {
            let found = format!("{found} is older than {major}.{minor}");
            let fix = vec![format!(
                "# boot Linux {major}.{minor} or later, or one that has this backported"
            )];
            KERNEL.finding(*severity, "host", found, cost, fix)
        })
        .collect();
    match lacking.is_empty() {
        true => vec![KERNEL.ok("host", format!("{found} has all that the switch uses"))],
        false => lacking,
    }
}

fn af_xdp(subject: &Subject<'_>) -> Finding {
    let protocols = subject.host.read("/proc/net/protocols").unwrap_or_default();
    let is_xdp = |line: &str| line.split_whitespace().next() == Some("XDP");
    match protocols.lines().any(is_xdp) {
        true => AF_XDP.ok("host", "the kernel has AF_XDP sockets"),
        false => AF_XDP.finding(
            Severity::Error,
            "host",
            "the kernel has no AF_XDP sockets",
            "No interface can be a port.",
            vec!["# boot a kernel that is built with CONFIG_XDP_SOCKETS=y".to_owned()],
        ),
    }
}

fn bpf(subject: &Subject<'_>) -> Finding {
    // This setting exists if the system call does.
    match subject
        .host
        .has("/proc/sys/kernel/unprivileged_bpf_disabled")
    {
        true => BPF.ok("host", "the kernel has the bpf system call"),
        false => BPF.finding(
            Severity::Error,
            "host",
            "the kernel has no bpf system call",
            "The XDP program cannot be loaded: no interface can be a port.",
            vec!["# boot a kernel that is built with CONFIG_BPF_SYSCALL=y".to_owned()],
        ),
    }
}

fn bpf_jit(subject: &Subject<'_>) -> Finding {
    let sysctl = |name: &str| subject.host.number(&format!("/proc/sys/net/core/{name}"));
    match (sysctl("bpf_jit_enable"), sysctl("bpf_jit_harden")) {
        (Some(0), _) => BPF_JIT.finding(
            Severity::Warning,
            "host",
            "BPF programs are interpreted",
            "The XDP program takes several times as long for each frame that arrives.",
            vec!["sysctl -w net.core.bpf_jit_enable=1".to_owned()],
        ),
        (None, _) => BPF_JIT.finding(
            Severity::Warning,
            "host",
            "it is unknown whether the kernel compiles BPF programs",
            "If it interprets them, the XDP program takes several times as long for each frame.",
            vec!["# boot a kernel that is built with CONFIG_BPF_JIT=y".to_owned()],
        ),
        (_, Some(2)) => BPF_JIT.finding(
            Severity::Note,
            "host",
            "BPF programs of privileged processes are hardened too",
            "The XDP program needs a few more instructions for each frame.",
            vec!["sysctl -w net.core.bpf_jit_harden=1".to_owned()],
        ),
        _ => BPF_JIT.ok("host", "BPF programs are compiled"),
    }
}

fn memfd(subject: &Subject<'_>) -> Finding {
    match subject.host.memfd {
        true => MEMFD.ok("host", "the kernel makes memory files"),
        false => MEMFD.finding(
            Severity::Error,
            "host",
            "the kernel makes no memory files",
            "Inflight regions cannot be made, and front ends with memory-backend-memfd do not start.",
            vec!["# boot a kernel that is built with CONFIG_MEMFD_CREATE=y".to_owned()],
        ),
    }
}

fn clock(subject: &Subject<'_>) -> Option<Finding> {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let current = subject
        .host
        .read(&format!("{folder}/current_clocksource"))?;
    let available = subject
        .host
        .read(&format!("{folder}/available_clocksource"));
    let available = available.unwrap_or_default();
    let has_tsc = available.split_whitespace().any(|name| name == "tsc");
    Some(match current.as_str() {
        // A hypervisor's clock is the counter with a scale factor; a kernel that knows of it prefers it.
        "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter" => {
            CLOCK.ok("host", format!("the clock is {current}"))
        }
        _ => CLOCK.finding(
            Severity::Warning,
            "host",
            format!("the clock is {current}: the time stamp counter is not trusted"),
            "Completion times and cycles may be wrong, and asking for the time is slow.",
            match has_tsc {
                true => vec![format!("echo tsc > {folder}/current_clocksource")],
                false => vec![
                    "# boot with tsc=reliable, if the counters of all cores agree".to_owned(),
                    "dmesg | grep -i tsc".to_owned(),
                ],
            },
        ),
    })
}
