//! Network interfaces: those that are ports, and those that may become ports.

use crosspoint_config::{Queues, XdpMode, XdpPort};
use crosspoint_netdev::{Interface, Reach};
use crosspoint_xsk::SINGLE_BUFFER_MTU;

use super::host::Nic;
use super::subject::{Subject, counted};
use super::{Check, Finding, Severity};

const INTERFACE: Check = Check {
    id: "interface",
    looks_at: "Whether the interface is there and up, and its driver",
};
const REACH: Check = Check {
    id: "reach",
    looks_at: "Whether frames for guests' addresses come in through the interface, and with their VLAN tags; reported only where they do not (a macvlan, an ipvlan or a tun device), or come without tags (a bridge)",
};
const HOST_USE: Check = Check {
    id: "host-interface",
    looks_at: "Whether the host itself uses the interface: it has the default route, addresses or other routes, is the loopback interface, or is a member of a bridge or a bond; an interface above it, such as a VLAN, counts too",
};
const NATIVE: Check = Check {
    id: "native-xdp",
    looks_at: "Whether the interface's driver runs XDP programs itself, against the port's `mode`",
};
const ZERO_COPY: Check = Check {
    id: "zero-copy",
    looks_at: "Whether the interface's driver does AF_XDP in zero-copy, against the port's `mode`",
};
const DIRECT: Check = Check {
    id: "direct",
    looks_at: "For an interface with queues of guests (`direct`): whether its driver does zero-copy for frames in several pieces, without which `direct` gains nothing",
};
const PROGRAM: Check = Check {
    id: "xdp-program",
    looks_at: "Whether an XDP program is attached to the interface, and which process holds it",
};
const MTU: Check = Check {
    id: "mtu",
    looks_at: "The MTU of the interface, or the one that the port sets, against what driver and kernel accept with XDP",
};
const QUEUES: Check = Check {
    id: "queues",
    looks_at: "The interface's number of queues, against the port's `queues` and `channels` and the number of workers",
};
const BUSY_POLL: Check = Check {
    id: "busy-poll",
    looks_at: "For a port with `busy_poll`: whether the interface defers interrupts (`napi_defer_hard_irqs`, `gro_flush_timeout`), without which there is no busy polling",
};

pub(super) const CHECKS: &[Check] = &[
    INTERFACE, HOST_USE, REACH, NATIVE, ZERO_COPY, DIRECT, PROGRAM, MTU, QUEUES, BUSY_POLL,
];

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let nics = subject.host.nics.iter();
    nics.flat_map(|nic| of_interface(subject, nic)).collect()
}

fn of_interface(subject: &Subject<'_>, nic: &Nic) -> Vec<Finding> {
    let (port, is_port) = subject.port_of(nic);
    let mut findings = vec![state(subject, nic)];
    if let Some(interface) = &nic.interface {
        findings.extend(host_use(nic, &port));
        findings.extend(reach(nic, interface));
        findings.push(native(nic, &port));
        findings.extend(zero_copy(nic, &port));
        findings.extend(direct(subject, nic));
        findings.push(program(subject, nic));
        findings.extend(mtu(subject, nic, interface, &port));
        findings.push(queues(subject, nic, interface, &port));
        findings.extend(busy_poll(subject, &port));
    }
    // An interface that is not a port does no harm as it is.
    if !is_port {
        for finding in &mut findings {
            finding.severity = finding.severity.min(Severity::Note);
        }
    }
    findings
}

/// The driver's name, or the kind of software device.
fn driver(subject: &Subject<'_>, nic: &Nic) -> String {
    let folder = format!("/sys/class/net/{}", nic.name);
    let is_veth = nic
        .interface
        .as_ref()
        .is_some_and(|found| found.peer.is_some());
    match subject.host.link(&format!("{folder}/device/driver")) {
        Some(driver) => format!("driver {driver}"),
        None if is_veth => "a veth".to_owned(),
        None if subject.host.has(&format!("{folder}/tun_flags")) => {
            "a tun or tap device".to_owned()
        }
        None if subject.host.has(&format!("{folder}/bridge")) => "a bridge".to_owned(),
        None => "a software device".to_owned(),
    }
}

fn state(subject: &Subject<'_>, nic: &Nic) -> Finding {
    let waits = "The port waits for it; frames for it are dropped (port_down).";
    let name = &nic.name;
    let warn = |found: String, fix: String| {
        INTERFACE.finding(Severity::Warning, name, found, waits, vec![fix])
    };
    let driver = driver(subject, nic);
    match &nic.interface {
        None => warn(
            "there is no such interface".to_owned(),
            "ip -brief link    # lists the interfaces".to_owned(),
        ),
        Some(found) if !found.up => {
            warn(format!("{driver}, down"), format!("ip link set {name} up"))
        }
        Some(found) if !found.carrier => warn(
            format!("{driver}, up, without carrier"),
            format!("ethtool {name}    # then check the cable and its other end"),
        ),
        Some(_) => INTERFACE.ok(name, format!("{driver}, up")),
    }
}

/// The finding about an interface that the host itself uses.
fn host_use(nic: &Nic, port: &XdpPort) -> Option<Finding> {
    let (name, used) = (&nic.name, nic.host_use.text()?);
    let cost = match nic.host_use.is_vital() {
        true => {
            "As a port it gives its frames to the switch: the host loses its network, and you this session."
        }
        false => {
            "As a port it gives its frames to the switch: the host receives nothing more through it."
        }
    };
    let fix = vec![
        format!("ip address show {name}; ip route show dev {name}"),
        "# make another interface the port; or move addresses and routes to one that is no port"
            .to_owned(),
    ];
    let severity = match port.take_over {
        true => Severity::Note,
        false => Severity::Error,
    };
    Some(HOST_USE.finding(severity, name, used, cost, fix))
}

fn reach(nic: &Nic, interface: &Interface) -> Option<Finding> {
    let below = vec![
        format!(
            "ip -details link show {}    # the name behind @ is the interface below",
            nic.name
        ),
        "# name that one as the port's interface; or make a macvlan with mode passthru".to_owned(),
    ];
    match interface.reach {
        Reach::All => interface.takes_tags.map(|what| {
            let name = &nic.name;
            REACH.finding(
                Severity::Warning,
                name,
                format!("{what}: the kernel takes the outer VLAN tag out of each frame before it gets there"),
                "Tagged frames count as untagged: VLANs behind it are not kept apart.",
                vec![
                    format!("ls -d /sys/class/net/{name}/lower_*    # the interfaces below"),
                    "# where frames there have tags, make those the ports' interfaces".to_owned(),
                ],
            )
        }),
        Reach::OwnAddress(what) => Some(REACH.finding(
            Severity::Warning,
            &nic.name,
            format!("{what}: the kernel gives it only frames for its own address"),
            "No guest with another address gets an answer.",
            below,
        )),
        Reach::None(what) => Some(REACH.finding(
            Severity::Error,
            &nic.name,
            format!("{what}: no frames for guests' addresses come in through it"),
            "The port does not open.",
            below,
        )),
    }
}

fn native(nic: &Nic, port: &XdpPort) -> Finding {
    let generic = "The kernel makes a packet buffer for each frame first: a fraction of the rate.";
    let ask_for_auto = || vec!["# mode = \"auto\" uses the kernel's hook instead".to_owned()];
    match (nic.xdp, port.mode) {
        (None, _) => NATIVE.finding(
            Severity::Note,
            &nic.name,
            "the kernel does not report what the driver can do",
            "Whether XDP runs in the driver is known when the port is open.",
            vec!["crosspoint show ports    # shows native or generic".to_owned()],
        ),
        (Some(xdp), XdpMode::Generic) if xdp.native => NATIVE.finding(
            Severity::Warning,
            &nic.name,
            "the driver runs XDP programs, but the port's mode selects the kernel's hook",
            generic,
            vec!["# mode = \"auto\"".to_owned()],
        ),
        (Some(xdp), _) if xdp.native => NATIVE.ok(&nic.name, "the driver runs XDP programs"),
        (Some(_), XdpMode::Copy | XdpMode::ZeroCopy) => NATIVE.finding(
            Severity::Error,
            &nic.name,
            "the driver does not run XDP programs, which the port's mode needs",
            "The port does not open.",
            ask_for_auto(),
        ),
        (Some(_), XdpMode::Auto | XdpMode::Generic) => NATIVE.finding(
            Severity::Warning,
            &nic.name,
            "the driver does not run XDP programs; the kernel runs them, later",
            generic,
            vec!["# a newer kernel or driver, or another NIC".to_owned()],
        ),
    }
}

fn zero_copy(nic: &Nic, port: &XdpPort) -> Option<Finding> {
    let xdp = nic.xdp?;
    Some(match (xdp.zero_copy, port.mode) {
        (true, XdpMode::Copy | XdpMode::Generic) => ZERO_COPY.finding(
            Severity::Note,
            &nic.name,
            "the driver does zero-copy, but the port's mode does not use it",
            "The kernel copies each frame.",
            vec!["# mode = \"auto\"".to_owned()],
        ),
        (true, _) => ZERO_COPY.ok(&nic.name, "the driver does zero-copy"),
        (false, XdpMode::ZeroCopy) => ZERO_COPY.finding(
            Severity::Error,
            &nic.name,
            "the driver does no zero-copy, which the port's mode needs",
            "The port does not open.",
            vec!["# mode = \"auto\" or \"copy\"".to_owned()],
        ),
        (false, _) => ZERO_COPY.finding(
            Severity::Note,
            &nic.name,
            "the driver does no zero-copy",
            "The kernel copies each frame, and its time counts on the worker's core.",
            vec!["# a newer kernel or driver, or another NIC".to_owned()],
        ),
    })
}

fn direct(subject: &Subject<'_>, nic: &Nic) -> Option<Finding> {
    let guests = counted(subject.direct_queues(&nic.name), "guest");
    let xdp = nic.xdp.filter(|_| subject.direct_queues(&nic.name) > 0)?;
    Some(match xdp.zero_copy && xdp.zero_copy_buffers_max > 1 {
        true => DIRECT.ok(&nic.name, format!("it sends out of the memory of {guests}")),
        false => DIRECT.finding(
            Severity::Warning,
            &nic.name,
            format!("no zero-copy for frames in several pieces: `direct` gains nothing for {guests}"),
            "The kernel copies their frames: their memory is pinned and a queue is reserved, without any gain.",
            vec!["# leave `direct` out, or take another NIC".to_owned()],
        ),
    })
}

/// The process that holds XDP program `id` by a link: its number and its name.
fn holder(subject: &Subject<'_>, id: u32) -> Option<(String, String)> {
    let host = subject.host;
    let holds = |pid: &String| {
        let folder = format!("/proc/{pid}/fdinfo");
        let is_link = |file: &String| {
            let text = host.read(&format!("{folder}/{file}")).unwrap_or_default();
            let has = |key: &str, value: &str| {
                let mut lines = text.lines();
                lines.any(|line| line.strip_prefix(key).map(str::trim) == Some(value))
            };
            has("link_type:", "xdp") && has("prog_id:", &id.to_string())
        };
        host.list(&folder).iter().any(is_link)
    };
    let pid = host.processes().into_iter().find(holds)?;
    let name = host.read(&format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name))
}

fn program(subject: &Subject<'_>, nic: &Nic) -> Finding {
    let name = &nic.name;
    let Some(id) = nic.program else {
        return PROGRAM.ok(name, "no XDP program is attached");
    };
    let (found, fix) = match holder(subject, id) {
        Some((pid, process)) if process == "crosspoint" => {
            let found = format!("the XDP program belongs to crosspoint, process {pid}");
            return PROGRAM.ok(name, found);
        }
        Some((pid, process)) => (
            format!("XDP program {id} is attached by process {pid} ({process})"),
            vec![format!(
                "ps -fp {pid}    # make it release {name}, or end it"
            )],
        ),
        None => (
            format!("XDP program {id} is attached, and no process that is visible here holds it"),
            vec![
                format!("bpftool prog show id {id}; bpftool link show"),
                format!("ip link set dev {name} xdp off"),
            ],
        ),
    };
    let cost = "The port waits until it is gone; frames for it are dropped (port_down).";
    PROGRAM.finding(Severity::Error, name, found, cost, fix)
}

fn mtu(subject: &Subject<'_>, nic: &Nic, interface: &Interface, port: &XdpPort) -> Option<Finding> {
    let mtu = port.mtu.map_or(interface.mtu, u32::from);
    let name = &nic.name;
    if mtu <= SINGLE_BUFFER_MTU {
        return Some(MTU.ok(name, format!("frames of an MTU of {mtu} fit one buffer")));
    }
    let lower = vec![format!("ip link set {name} mtu {SINGLE_BUFFER_MTU}")];
    let refuse = |found: String| {
        MTU.finding(
            Severity::Error,
            name,
            found,
            "The port does not open.",
            lower.clone(),
        )
    };
    let xdp = nic.xdp.unwrap_or_default();
    Some(match nic.xdp {
        _ if subject.kernel() < (6, 6) => refuse(format!(
            "an MTU of {mtu} needs frames of several buffers, which AF_XDP has since Linux 6.6"
        )),
        Some(_) if xdp.native && !xdp.several_buffers && port.mode != XdpMode::Generic => {
            refuse(format!(
                "an MTU of {mtu} needs frames of several buffers, which the driver lacks with XDP"
            ))
        }
        Some(_)
            if xdp.zero_copy && xdp.zero_copy_buffers_max < 2 && port.mode == XdpMode::ZeroCopy =>
        {
            refuse(format!(
                "an MTU of {mtu} needs frames of several buffers, which the driver lacks in zero-copy"
            ))
        }
        Some(_) if xdp.zero_copy && xdp.zero_copy_buffers_max < 2 => MTU.finding(
            Severity::Warning,
            name,
            format!("with an MTU of {mtu} the driver does no zero-copy"),
            "The kernel copies each frame.",
            lower.clone(),
        ),
        Some(_) => MTU.ok(name, format!("an MTU of {mtu}: frames of several buffers")),
        None => return None,
    })
}

fn queues(subject: &Subject<'_>, nic: &Nic, interface: &Interface, port: &XdpPort) -> Finding {
    let name = &nic.name;
    let count = port.channels.unwrap_or(interface.rx_queues);
    let max = nic.channels.map(|channels| channels.max());
    let refuse = |found: String, fix: String| {
        QUEUES.finding(
            Severity::Error,
            name,
            found,
            "The port does not open.",
            vec![fix],
        )
    };
    if let (Some(max), Some(wanted)) = (max, port.channels)
        && wanted > max
        && wanted != interface.rx_queues
    {
        let found = format!(
            "it can have {}, but `channels` asks for {wanted}",
            counted(max.into(), "queue")
        );
        return refuse(found, format!("# channels = {max}"));
    }
    let beyond = match &port.queues {
        Queues::List(list) => list.iter().find(|queue| **queue >= count),
        Queues::All => None,
    };
    if let Some(queue) = beyond {
        let found = format!(
            "it has {}, so there is no queue {queue}",
            counted(count.into(), "queue")
        );
        return refuse(
            found,
            format!("ethtool -l {name}    # and `queues` or `channels`"),
        );
    }
    let (taken, workers) = (subject.queues_of(port), subject.cores.len() as u64);
    let queues = counted(taken, "queue");
    if subject.config.is_none() || taken >= workers {
        return QUEUES.ok(name, format!("{queues} for {}", counted(workers, "worker")));
    }
    let fix = match max {
        Some(max) if u64::from(max) >= workers => format!("# channels = {workers}"),
        Some(max) => format!("# it can have {max} at most: fewer workers, or another NIC"),
        None => "# its driver does not report how many it can have".to_owned(),
    };
    QUEUES.finding(
        Severity::Note,
        name,
        format!("{queues} for {}", counted(workers, "worker")),
        "The workers without a queue hand frames for it to those that have one, and receive none.",
        vec![fix],
    )
}

fn busy_poll(subject: &Subject<'_>, port: &XdpPort) -> Option<Finding> {
    if !port.busy_poll {
        return None;
    }
    let name = &port.interface;
    let folder = format!("/sys/class/net/{name}");
    let number = |file: &str| {
        subject
            .host
            .number(&format!("{folder}/{file}"))
            .unwrap_or(0)
    };
    let is_off = number("napi_defer_hard_irqs") == 0 || number("gro_flush_timeout") == 0;
    Some(match is_off {
        false => BUSY_POLL.ok(name, "interrupts are deferred while workers poll"),
        true => BUSY_POLL.finding(
            Severity::Warning,
            name,
            "interrupts are not deferred, though the port has `busy_poll`",
            "The NIC still interrupts, and workers poll in addition.",
            vec![
                format!("echo 2 > {folder}/napi_defer_hard_irqs"),
                format!("echo 200000 > {folder}/gro_flush_timeout"),
            ],
        ),
    })
}
