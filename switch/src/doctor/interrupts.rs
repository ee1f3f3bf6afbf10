//! Kernel work on the workers' cores other than tasks: interrupts, and packets of other traffic.

use super::subject::{Subject, counted};
use super::{Check, Finding, Severity};
use crosspoint_config::Cpus;

const INTERRUPTS: Check = Check {
    id: "interrupts",
    looks_at: "Device interrupts that arrive at the workers' cores, and have fired there",
};
const IRQBALANCE: Check = Check {
    id: "irqbalance",
    looks_at: "Whether irqbalance runs, and may move interrupts to the workers' cores",
};
const RPS: Check = Check {
    id: "rps",
    looks_at: "Interfaces whose received packets the kernel spreads over the workers' cores (RPS)",
};
const WORKQUEUES: Check = Check {
    id: "workqueues",
    looks_at: "Whether the kernel's unbound work may run on the workers' cores",
};

pub(super) const CHECKS: &[Check] = &[INTERRUPTS, IRQBALANCE, RPS, WORKQUEUES];

/// The most interrupts or folders named in one line of a report.
const NAMED_MAX: usize = 3;
/// The most interrupts moved by one command.
const MOVED_MAX: usize = 8;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    if subject.cores.is_empty() {
        return Vec::new();
    }
    let mut findings = vec![interrupts(subject), irqbalance(subject), rps(subject)];
    findings.extend(workqueues(subject));
    findings
}

/// A line of /proc/interrupts.
struct Interrupt {
    number: String,
    name: String,
    /// The cores on which it has fired.
    fired: Cpus,
}

/// Interrupts of devices. Others have letters in place of a number.
fn device_interrupts(text: &str) -> Vec<Interrupt> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let columns: Vec<usize> = heading
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("CPU")?.parse().ok())
        .collect();
    let interrupt = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let number = number.trim();
        number.parse::<u32>().ok()?;
        let counts = rest.split_whitespace().take(columns.len());
        let fired = columns
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count != "0");
        Some(Interrupt {
            number: number.to_owned(),
            name: rest.split_whitespace().last()?.to_owned(),
            fired: fired.map(|(core, _)| *core).collect(),
        })
    };
    lines.filter_map(interrupt).collect()
}

fn interrupts(subject: &Subject<'_>) -> Finding {
    let host = subject.host;
    let text = host.read("/proc/interrupts").unwrap_or_default();
    let arrives = |interrupt: &Interrupt| {
        let folder = format!("/proc/irq/{}", interrupt.number);
        let effective = host.read(&format!("{folder}/effective_affinity_list"));
        let list = effective.filter(|list| !list.is_empty());
        let list = list.or_else(|| host.read(&format!("{folder}/smp_affinity_list")));
        let goes_to = Cpus::from_list(&list.unwrap_or_default());
        !goes_to.and(&interrupt.fired).and(&subject.cores).is_empty()
    };
    let all = device_interrupts(&text).into_iter();
    let found: Vec<Interrupt> = all.filter(arrives).collect();
    if found.is_empty() {
        return INTERRUPTS.ok("host", "no device interrupts a worker's core");
    }
    let named = found.iter().take(NAMED_MAX);
    let named: Vec<String> = named
        .map(|one| format!("{} ({})", one.number, one.name))
        .collect();
    let more = match found.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let others = subject.others();
    let numbers: Vec<&str> = found.iter().map(|one| one.number.as_str()).collect();
    let command = |some: &[&str]| {
        let all = some.join(" ");
        format!("for i in {all}; do echo {others} > /proc/irq/$i/smp_affinity_list; done")
    };
    INTERRUPTS.finding(
        Severity::Warning,
        "host",
        format!(
            "devices interrupt the workers' cores: {}{more}",
            named.join(", ")
        ),
        "Each takes time from the worker, and the tasks that it wakes there take more.",
        match others.is_empty() {
            true => vec!["# leave a core out of [workers] cores, for interrupts".to_owned()],
            false => numbers.chunks(MOVED_MAX).map(command).collect(),
        },
    )
}

/// The cores that irqbalance leaves alone because of its environment.
fn banned(environment: &str) -> Cpus {
    let value = |name: &str| {
        let mut all = environment.split('\0');
        all.find_map(|one| one.strip_prefix(name)?.strip_prefix('='))
    };
    match (
        value("IRQBALANCE_BANNED_CPULIST"),
        value("IRQBALANCE_BANNED_CPUS"),
    ) {
        (Some(list), _) => Cpus::from_list(list),
        (None, Some(mask)) => Cpus::from_mask(mask),
        (None, None) => Cpus::default(),
    }
}

fn irqbalance(subject: &Subject<'_>) -> Finding {
    let host = subject.host;
    let is_it =
        |pid: &String| host.read(&format!("/proc/{pid}/comm")).as_deref() == Some("irqbalance");
    let Some(pid) = host.processes().into_iter().find(is_it) else {
        return IRQBALANCE.ok("host", "irqbalance does not run");
    };
    let environment = host
        .read(&format!("/proc/{pid}/environ"))
        .unwrap_or_default();
    let tickless = host
        .read("/sys/devices/system/cpu/nohz_full")
        .unwrap_or_default();
    // irqbalance leaves isolated and tickless cores alone by default.
    let left = subject
        .isolated
        .or(&Cpus::from_list(&tickless))
        .or(&banned(&environment));
    let reached = subject.cores.without(&left);
    match reached.is_empty() {
        true => IRQBALANCE.ok(
            "host",
            "irqbalance runs, and leaves the workers' cores alone",
        ),
        false => IRQBALANCE.finding(
            Severity::Warning,
            "host",
            format!(
                "irqbalance may move interrupts to {}, which workers have",
                reached.named()
            ),
            "It undoes what was set by hand, and devices interrupt workers.",
            vec![
                format!(
                    "echo IRQBALANCE_BANNED_CPULIST={} >> /etc/default/irqbalance",
                    subject.cores
                ),
                "systemctl restart irqbalance".to_owned(),
            ],
        ),
    }
}

fn rps(subject: &Subject<'_>) -> Finding {
    let host = subject.host;
    let others = subject.others().mask();
    let mut found = Vec::new();
    for interface in host.list("/sys/class/net") {
        let folder = format!("/sys/class/net/{interface}/queues");
        let queues = host.list(&folder);
        let reaches = |queue: &&String| {
            let mask = host
                .read(&format!("{folder}/{queue}/rps_cpus"))
                .unwrap_or_default();
            !Cpus::from_mask(&mask).and(&subject.cores).is_empty()
        };
        if queues.iter().any(|queue| reaches(&queue)) {
            found.push(interface);
        }
    }
    if found.is_empty() {
        return RPS.ok(
            "host",
            "no interface's packets are spread over the workers' cores",
        );
    }
    let command = |interface: &String| {
        format!(
            "for q in /sys/class/net/{interface}/queues/rx-*; do echo {others} > $q/rps_cpus; done"
        )
    };
    let named: Vec<&str> = found.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = match found.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    RPS.finding(
        Severity::Warning,
        "host",
        format!(
            "packets of {} are spread over the workers' cores: {}{more}",
            counted(found.len() as u64, "interface"),
            named.join(", ")
        ),
        "The kernel's network stack takes time from the workers.",
        found.iter().map(command).collect(),
    )
}

fn workqueues(subject: &Subject<'_>) -> Option<Finding> {
    let file = "/sys/devices/virtual/workqueue/cpumask";
    let mask = Cpus::from_mask(&subject.host.read(file)?);
    let reached = mask.and(&subject.cores);
    let others = subject.others();
    Some(match reached.is_empty() {
        true => WORKQUEUES.ok(
            "host",
            "the kernel's unbound work does not run on the workers' cores",
        ),
        false => WORKQUEUES.finding(
            Severity::Note,
            "host",
            format!("the kernel's unbound work may run on {}", reached.named()),
            "A worker sometimes waits for this work, for up to milliseconds.",
            match others.is_empty() {
                true => vec!["# leave a core out of [workers] cores, for such work".to_owned()],
                false => vec![format!("echo {} > {file}", others.mask())],
            },
        ),
    })
}
