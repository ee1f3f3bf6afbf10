//! The workers' cores: what shares them, and what slows them.

use crosspoint_config::{Cores, Poll};

use super::subject::Subject;
use super::{Check, Finding, Severity};
use crosspoint_config::Cpus;

const WORKER_CORES: Check = Check {
    id: "worker-cores",
    looks_at: "Whether the cores of `[workers] cores` are there, this process may use them, and one is left for everything else",
};
const WORKER_THREADS: Check = Check {
    id: "worker-threads",
    looks_at: "Whether each worker of a running daemon is pinned to one core; reported only if one is not",
};
const ISOLATION: Check = Check {
    id: "isolation",
    looks_at: "Whether the kernel keeps other tasks off the workers' cores (`isolcpus`, or an isolated cgroup partition)",
};
const TICKLESS: Check = Check {
    id: "tickless",
    looks_at: "Whether the workers' cores are free of the timer tick (`nohz_full`) and of RCU's callbacks (`rcu_nocbs`)",
};
const SIBLINGS: Check = Check {
    id: "siblings",
    looks_at: "Whether other tasks may run on the other hyperthread of a worker's core",
};
const NUMA: Check = Check {
    id: "numa",
    looks_at: "Whether workers are on the memory node of the NICs of the configuration, and all on the same node",
};
const GOVERNOR: Check = Check {
    id: "governor",
    looks_at: "The frequency governor of the workers' cores, or of all",
};
const IDLE: Check = Check {
    id: "idle-states",
    looks_at: "Idle states that a core takes more than 20 µs to leave, where workers sleep",
};

pub(super) const CHECKS: &[Check] = &[
    WORKER_CORES,
    WORKER_THREADS,
    ISOLATION,
    TICKLESS,
    SIBLINGS,
    NUMA,
    GOVERNOR,
    IDLE,
];

const SYSTEM: &str = "/sys/devices/system/cpu";
/// An idle state that takes longer to leave than this is a deep one, µs.
const WAKE_US_MAX: i64 = 20;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(worker_cores(subject));
    findings.extend(worker_threads(subject));
    findings.push(isolation(subject));
    if !subject.cores.is_empty() {
        findings.push(tickless(subject));
        findings.push(siblings(subject));
    }
    findings.extend(numa(subject));
    findings.push(governor(subject));
    findings.extend(idle_states(subject));
    findings
}

fn worker_cores(subject: &Subject<'_>) -> Option<Finding> {
    let config = subject.config?;
    let allowed: Cpus = subject.host.affinity.iter().copied().collect();
    let absent = &subject.absent;
    let refused = subject.cores.without(&allowed);
    let report = |severity, found: String, cost: &str, fix: &str| {
        WORKER_CORES.finding(severity, "host", found, cost, vec![fix.to_owned()])
    };
    let does_not_start = "The daemon does not start.";
    Some(if !absent.is_empty() {
        let (found, online) = (format!("not online: {}", absent.named()), &subject.online);
        let fix = format!("# choose [workers] cores from {online}");
        report(Severity::Error, found, does_not_start, &fix)
    } else if !refused.is_empty() {
        let found = format!("this process may not use {}", refused.named());
        let fix = "# its affinity: CPUAffinity=, taskset, cpuset";
        report(Severity::Error, found, does_not_start, fix)
    } else if config.workers.cores == Cores::Auto && allowed.len() < 2 {
        let found = "this process may use one core, which the worker gets".to_owned();
        let cost = "The worker shares it with all other threads, and stalls.";
        let fix = "# give the process more cores: CPUAffinity=, taskset, cpuset";
        report(Severity::Warning, found, cost, fix)
    } else if subject.others().is_empty() {
        let found = format!("workers have all cores, {}", subject.cores);
        let cost =
            "Guests, interrupts and the daemon's other threads run on them too: workers stall.";
        let fix = "# leave a core out of [workers] cores";
        report(Severity::Warning, found, cost, fix)
    } else {
        WORKER_CORES.ok("host", format!("workers have {}", subject.cores.named()))
    })
}

/// The commands that add a parameter to the kernel's command line.
fn boot_with(parameter: &str) -> Vec<String> {
    vec![
        "f=/etc/default/grub".to_owned(),
        format!("sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{parameter} /' $f"),
        "update-grub    # and start the host again".to_owned(),
    ]
}

/// Workers of running daemons that are no longer pinned to a core of their own.
fn worker_threads(subject: &Subject<'_>) -> Option<Finding> {
    let host = subject.host;
    let is_daemon =
        |id: &String| host.read(&format!("/proc/{id}/comm")).as_deref() == Some("crosspoint");
    let daemons = host.processes().into_iter().filter(is_daemon);
    let threads = daemons.flat_map(|id| {
        let folder = format!("/proc/{id}/task");
        let threads = host.list(&folder).into_iter();
        threads.map(move |thread| format!("{folder}/{thread}"))
    });
    let mut astray = Vec::new();
    for thread in threads {
        let name = host.read(&format!("{thread}/comm")).unwrap_or_default();
        let status = host.read(&format!("{thread}/status")).unwrap_or_default();
        let mut lines = status.lines();
        let allowed = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let allowed = allowed.map(Cpus::from_list).unwrap_or_default();
        if name.starts_with("worker-") && allowed.len() > 1 {
            astray.push(format!("{name} may run on {}", allowed.named()));
        }
    }
    (!astray.is_empty()).then(|| {
        WORKER_THREADS.finding(
            Severity::Warning,
            "host",
            astray.join(", "),
            "The worker shares cores with other tasks, and moves between cores: lower rate, higher latency.",
            vec!["crosspoint show workers   # a running daemon pins them again within a second, unless it has lost the core".to_owned()],
        )
    })
}

fn isolation(subject: &Subject<'_>) -> Finding {
    let shared = subject.cores.without(&subject.isolated);
    if subject.cores.is_empty() {
        let last = subject.online.iter().last().unwrap_or(0);
        return ISOLATION.finding(
            Severity::Note,
            "host",
            "no core is isolated",
            "Other tasks run on the workers' cores: a worker that waits for its core loses frames at NICs, and \
             makes guests wait.",
            boot_with(&format!("isolcpus={last}")),
        );
    }
    match shared.is_empty() {
        true => ISOLATION.ok("host", format!("isolated: {}", subject.cores.named())),
        false => ISOLATION.finding(
            Severity::Warning,
            "host",
            format!(
                "other tasks may run on {}, which workers have",
                shared.named()
            ),
            "A worker that waits for its core moves no frames for milliseconds: the NIC drops frames, and guests wait.",
            boot_with(&format!("isolcpus={}", subject.cores)),
        ),
    }
}

fn tickless(subject: &Subject<'_>) -> Finding {
    let line = subject.host.read("/proc/cmdline").unwrap_or_default();
    let listed = |name: &str| {
        let values = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let all = values.map(Cpus::from_list);
        all.fold(Cpus::default(), |all, these| all.or(&these))
    };
    let file = subject
        .host
        .read(&format!("{SYSTEM}/nohz_full"))
        .unwrap_or_default();
    let ticking = subject
        .cores
        .without(&Cpus::from_list(&file).or(&listed("nohz_full")));
    // A core without ticks is without callbacks, too.
    let calling = subject.cores.without(&listed("rcu_nocbs")).and(&ticking);
    let cores = &subject.cores;
    match (ticking.is_empty(), calling.is_empty()) {
        (true, _) => TICKLESS.ok("host", format!("no timer tick on {}", cores.named())),
        (false, is_called) => TICKLESS.finding(
            Severity::Note,
            "host",
            match is_called {
                true => format!("a timer tick on {}", ticking.named()),
                false => format!("a timer tick and RCU's callbacks on {}", ticking.named()),
            },
            "Each tick interrupts the worker, 100 to 1000 times a second.",
            boot_with(&format!("nohz_full={cores} rcu_nocbs={cores}")),
        ),
    }
}

fn siblings(subject: &Subject<'_>) -> Finding {
    let of_core = |core: usize| {
        let file = format!("{SYSTEM}/cpu{core}/topology/thread_siblings_list");
        Cpus::from_list(&subject.host.read(&file).unwrap_or_default())
    };
    let all: Cpus = subject
        .cores
        .iter()
        .flat_map(|core| of_core(core).iter().collect::<Vec<_>>())
        .collect();
    let others = all.without(&subject.cores).and(&subject.online);
    let busy = others.without(&subject.isolated);
    let shares = |core: &usize| of_core(*core).and(&subject.cores).len() > 1;
    let twins: Cpus = subject.cores.iter().filter(shares).collect();
    if !busy.is_empty() {
        let turn_off = |core| format!("echo 0 > {SYSTEM}/cpu{core}/online");
        return SIBLINGS.finding(
            Severity::Warning,
            "host",
            format!(
                "other tasks may run on {}, the other hyperthreads of workers' cores",
                busy.named()
            ),
            "A worker has only half a core while the other half is busy.",
            busy.iter().map(turn_off).collect(),
        );
    }
    match twins.is_empty() {
        true => SIBLINGS.ok("host", "no worker shares its core with another hyperthread"),
        false => SIBLINGS.finding(
            Severity::Note,
            "host",
            format!(
                "{} of workers are hyperthreads of the same cores",
                twins.named()
            ),
            "Two such workers forward far less than two workers with a core each.",
            vec!["# give [workers] cores one hyperthread of each core: lscpu -e".to_owned()],
        ),
    }
}

/// The memory nodes, each with its cores.
fn nodes(subject: &Subject<'_>) -> Vec<(i64, Cpus)> {
    let folder = "/sys/devices/system/node";
    let node = |name: &String| {
        let number = name.strip_prefix("node")?.parse().ok()?;
        let list = subject.host.read(&format!("{folder}/{name}/cpulist"))?;
        Some((number, Cpus::from_list(&list)))
    };
    subject.host.list(folder).iter().filter_map(node).collect()
}

fn numa(subject: &Subject<'_>) -> Vec<Finding> {
    let nodes = nodes(subject);
    if nodes.len() < 2 {
        return vec![NUMA.ok("host", "there is one memory node")];
    }
    let with_workers = nodes
        .iter()
        .filter(|(_, cores)| !cores.and(&subject.cores).is_empty());
    let with_workers: Vec<String> = with_workers.map(|(number, _)| number.to_string()).collect();
    let mut findings = Vec::new();
    for nic in &subject.host.nics {
        let file = format!("/sys/class/net/{}/device/numa_node", nic.name);
        let near = subject.host.number(&file).unwrap_or(-1);
        let Some((_, local)) = nodes.iter().find(|(number, _)| *number == near) else {
            continue;
        };
        let far = subject.cores.without(local);
        findings.push(match far.is_empty() {
            true => NUMA.ok(
                &nic.name,
                format!("on memory node {near}, as the workers are"),
            ),
            false => NUMA.finding(
                Severity::Warning,
                &nic.name,
                format!(
                    "on memory node {near}, but {} of workers are not",
                    far.named()
                ),
                "Each frame crosses from one processor to another: lower rate, higher latency.",
                vec![format!(
                    "# choose [workers] cores from node {near}: {local}"
                )],
            ),
        });
    }
    if with_workers.len() > 1 {
        findings.push(NUMA.finding(
            Severity::Note,
            "host",
            format!("workers are on memory nodes {}", with_workers.join(", ")),
            "A guest whose memory is on another node than its worker is slower.",
            vec!["# choose [workers] cores from one node: lscpu -e".to_owned()],
        ));
    }
    findings
}

fn governor(subject: &Subject<'_>) -> Finding {
    let cores = match subject.cores.is_empty() {
        true => &subject.online,
        false => &subject.cores,
    };
    let of_core = |core| {
        subject
            .host
            .read(&format!("{SYSTEM}/cpu{core}/cpufreq/scaling_governor"))
    };
    let all: Vec<(usize, String)> = cores
        .iter()
        .filter_map(|core| Some((core, of_core(core)?)))
        .collect();
    let slow: Cpus = all
        .iter()
        .filter(|(_, name)| name != "performance")
        .map(|(core, _)| *core)
        .collect();
    let name = all
        .iter()
        .find(|(_, name)| name != "performance")
        .map(|(_, name)| name);
    match name {
        None if all.is_empty() => GOVERNOR.ok("host", "the kernel does not set the cores' frequency"),
        None => GOVERNOR.ok("host", "the governor is performance"),
        Some(name) => GOVERNOR.finding(
            Severity::Warning,
            "host",
            format!("the governor of {} is {name}", slow.named()),
            "Cores run below their frequency, and take milliseconds to reach it when a burst comes.",
            vec![format!("cpupower -c {slow} frequency-set -g performance")],
        ),
    }
}

fn idle_states(subject: &Subject<'_>) -> Option<Finding> {
    if subject.cores.is_empty() {
        return None;
    }
    if subject
        .config
        .is_some_and(|config| config.workers.poll == Poll::Busy)
    {
        return Some(IDLE.ok("host", "workers never sleep, so their cores do not either"));
    }
    let deepest = subject
        .cores
        .iter()
        .filter_map(|core| deepest(subject, core))
        .max();
    Some(match deepest {
        Some((latency, name)) if latency > WAKE_US_MAX => IDLE.finding(
            Severity::Note,
            "host",
            format!("cores of sleeping workers go to {name}, which takes {latency} µs to leave"),
            "The first frame after a pause waits that long.",
            vec![
                format!("cpupower -c {} idle-set -D {WAKE_US_MAX}", subject.cores),
                "# or have workers never sleep: [workers] poll = \"busy\"".to_owned(),
            ],
        ),
        _ => IDLE.ok(
            "host",
            format!("no idle state takes more than {WAKE_US_MAX} µs to leave"),
        ),
    })
}

/// The allowed idle state that a core takes longest to leave: its exit latency in µs, and its name.
fn deepest(subject: &Subject<'_>, core: usize) -> Option<(i64, String)> {
    let folder = format!("{SYSTEM}/cpu{core}/cpuidle");
    let states = subject.host.list(&folder);
    let state = |name: &String| {
        let number = |file| subject.host.number(&format!("{folder}/{name}/{file}"));
        let is_off = number("disable") == Some(1);
        let text = subject.host.read(&format!("{folder}/{name}/name"))?;
        (!is_off).then_some((number("latency")?, text))
    };
    states.iter().filter_map(state).max()
}
