//! Checks the `[[port]]` tables, each by itself and against the others.

use std::{collections::HashMap, path::PathBuf};

use super::addresses::{self, Bound};
use super::check::{Checker, Place};
use super::control;
use super::direct;
use super::field::{Field, Span, Table, WordOrList};
use super::limits::*;
use super::loop_protect;
use super::offloads;
use super::raw::{PortType, RawPort};
use super::slo;
use super::storm;
use super::values::{Number, NumberList};
use super::vlan;
use super::{Access, Port, PortKind, Queues, Role, VhostPort, XdpPort};

/// Values that must be unique among ports, with their first use. The control socket has no place if the file does not
/// name it.
pub(super) struct Taken {
    names: HashMap<String, Place>,
    sockets: HashMap<PathBuf, Option<Place>>,
    interfaces: HashMap<String, Place>,
    direct: Vec<direct::Placed>,
    bound: Bound,
    /// The place of each port's `worker`, by the port's name.
    pub(super) workers: HashMap<String, Place>,
    /// Number of `[[port]]` tables so far.
    count: usize,
}

impl Taken {
    pub(super) fn new(control_socket: PathBuf, place: Option<Place>) -> Self {
        Self {
            names: HashMap::new(),
            sockets: HashMap::from([(control_socket, place)]),
            interfaces: HashMap::new(),
            direct: Vec::new(),
            bound: Bound::new(),
            workers: HashMap::new(),
            count: 0,
        }
    }

    /// Checks references between ports, once all are known: every `direct`. `are_all`: whether every file could be
    /// read.
    pub(super) fn against_each_other(
        &mut self,
        checker: &mut Checker,
        ports: &[Port],
        are_all: bool,
    ) {
        let direct = std::mem::take(&mut self.direct);
        direct::against_uplinks(checker, direct, ports, &self.names, are_all);
    }
}

/// All ports of the file that the checker entered last.
pub(super) fn ports(
    checker: &mut Checker,
    field: Field<Vec<Field<Table<RawPort>>>>,
    taken: &mut Taken,
) -> Vec<Port> {
    let help = "write each port below a line [[port]], with two brackets";
    let Some((list, _)) = checker.value(field, "port", "a list of tables", help) else {
        return Vec::new();
    };
    let mut ports = Vec::new();
    for item in list {
        let Some((Table(raw), span)) = checker.value(item, "port", "a list of tables", help) else {
            continue;
        };
        if taken.count == PORTS_MAX {
            let message = format!("more than {PORTS_MAX} ports");
            checker.problem(
                span,
                message,
                "one too many",
                "run a second switch for the rest",
            );
            break;
        }
        taken.count += 1;
        ports.extend(port(checker, raw, span, taken));
    }
    ports
}

fn port(checker: &mut Checker, mut raw: RawPort, header: Span, taken: &mut Taken) -> Option<Port> {
    let name = port_name(
        checker,
        std::mem::take(&mut raw.name),
        &header,
        &mut taken.names,
    );
    let vlan = vlan::vlan(checker, std::mem::take(&mut raw.vlan));
    let (mac_limit, weight) = limits(checker, &mut raw);
    let mac_span = raw.mac.span();
    let addresses = std::mem::take(&mut raw.addresses);
    let addresses = addresses::addresses(checker, addresses, &vlan, &mut taken.bound);
    let storm = std::mem::take(&mut raw.storm);
    let forward_control = control::control(checker, std::mem::take(&mut raw.forward_control));
    let loop_protect = loop_protect::loop_protect(checker, std::mem::take(&mut raw.loop_protect));
    let worker_span = raw.worker.span();
    let worker = checker.number(
        std::mem::take(&mut raw.worker),
        &Number {
            subject: "`worker`",
            range: 0..=WORKERS_MAX as i64 - 1,
            example: "worker = 0, for the worker of the first core",
        },
    );
    let required = checker.switch(std::mem::take(&mut raw.required), "required");
    let mut slo = None;
    let (kind, mac_limit_default, storm_default) = match port_type(checker, &mut raw, &header)? {
        PortType::Vhost => {
            slo = slo::slo(checker, std::mem::take(&mut raw.slo));
            (
                vhost(checker, raw, &header, taken).map(PortKind::Vhost),
                MAC_LIMIT_VHOST_DEFAULT,
                STORM_VHOST_DEFAULT,
            )
        }
        PortType::Xdp => (
            xdp(checker, raw, &header, taken).map(PortKind::Xdp),
            MAC_LIMIT_XDP_DEFAULT,
            STORM_XDP_DEFAULT,
        ),
    };
    let storm = storm::storm(checker, storm, storm_default);
    if let (Some(PortKind::Vhost(guest)), Some(span)) = (&kind, mac_span) {
        addresses::with_own(checker, guest.mac, span, &addresses);
    }
    let name = name?;
    taken
        .workers
        .extend(worker_span.map(|span| (name.clone(), checker.place(span))));
    let kind = kind?;
    Some(Port {
        name,
        vlan,
        worker: worker.and_then(|worker| usize::try_from(worker).ok()),
        mac_limit: mac_limit.unwrap_or(mac_limit_default),
        weight: weight.unwrap_or(WEIGHT_DEFAULT),
        storm,
        addresses,
        forward_control,
        loop_protect,
        // Guests come and go.
        required: required.unwrap_or(matches!(kind, PortKind::Xdp(_))),
        slo,
        kind,
    })
}

/// `mac_limit` and `weight`, if given.
fn limits(checker: &mut Checker, raw: &mut RawPort) -> (Option<u32>, Option<u32>) {
    let mac_limit = number_of(
        checker,
        std::mem::take(&mut raw.mac_limit),
        &Number {
            subject: "`mac_limit`",
            range: 0..=MAC_LIMIT_MAX.into(),
            example: "mac_limit = 1024, or 0 for no limit",
        },
    );
    let weight = number_of(
        checker,
        std::mem::take(&mut raw.weight),
        &Number {
            subject: "`weight`",
            range: 1..=WEIGHT_MAX.into(),
            example: "weight = 2, for twice the time of a port with 1",
        },
    );
    (mac_limit, weight)
}

fn number_of(checker: &mut Checker, field: Field<i64>, number: &Number<'_>) -> Option<u32> {
    let value = checker.number(field, number)?;
    u32::try_from(value).ok()
}

/// Records a key that is required for this type of port and missing.
fn require<T>(checker: &mut Checker, field: &Field<T>, header: &Span, key: &str, example: &str) {
    if matches!(field, Field::Missing) {
        let message = format!("this port has no `{key}`");
        checker.problem(
            header.clone(),
            message,
            "in this table",
            format!("add a line such as: {example}"),
        );
    }
}

/// Records a key that belongs to another type of port.
fn foreign<T>(checker: &mut Checker, field: &Field<T>, key: &str, owner: &str, this: &str) {
    if let Some(span) = field.span() {
        let message = format!("`{key}` belongs to ports of type {owner:?}");
        let help =
            format!("this port is of type {this:?}: remove `{key}`, or write type = {owner:?}");
        checker.problem(span, message, "not for this type of port", help);
    }
}

fn port_name(
    checker: &mut Checker,
    field: Field<String>,
    header: &Span,
    names: &mut HashMap<String, Place>,
) -> Option<String> {
    let help = "for example: name = \"web-1\"";
    require(checker, &field, header, "name", "name = \"web-1\"");
    let (name, span) = checker.value(field, "name", "a string", help)?;
    let known = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let label = if name.is_empty() {
        "empty"
    } else if name.len() > PORT_NAME_BYTES_MAX {
        "too long"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "does not begin with a letter or digit"
    } else if !name.chars().all(known) {
        "has a character that is none of these"
    } else if let Some(first) = names.get(&name) {
        let message = format!("two ports are named {name:?}");
        checker.clash(
            span,
            Some(first.clone()),
            message,
            "give each port a name of its own",
        );
        return None;
    } else {
        names.insert(name.clone(), checker.place(span));
        return Some(name);
    };
    let message = format!(
        "a port's name must be 1 to {PORT_NAME_BYTES_MAX} letters, digits, '.', '_' or '-', the first a letter or digit"
    );
    checker.problem(span, message, label, help);
    None
}

/// The type; if it is missing, a hint is derived from the other keys.
fn port_type(checker: &mut Checker, raw: &mut RawPort, header: &Span) -> Option<PortType> {
    let xdp = raw.interface.span().is_some();
    require(
        checker,
        &raw.kind,
        header,
        "type",
        if xdp {
            "type = \"xdp\""
        } else {
            "type = \"vhost\""
        },
    );
    checker.word(std::mem::take(&mut raw.kind), "type")
}

fn vhost(
    checker: &mut Checker,
    raw: RawPort,
    header: &Span,
    taken: &mut Taken,
) -> Option<VhostPort> {
    foreign(checker, &raw.interface, "interface", "xdp", "vhost");
    foreign(checker, &raw.queues, "queues", "xdp", "vhost");
    foreign(checker, &raw.mode, "mode", "xdp", "vhost");
    foreign(checker, &raw.gro, "gro", "xdp", "vhost");
    foreign(checker, &raw.tso, "tso", "xdp", "vhost");
    foreign(checker, &raw.busy_poll, "busy_poll", "xdp", "vhost");
    foreign(checker, &raw.huge_pages, "huge_pages", "xdp", "vhost");
    foreign(checker, &raw.channels, "channels", "xdp", "vhost");
    foreign(checker, &raw.rss, "rss", "xdp", "vhost");
    require(
        checker,
        &raw.socket,
        header,
        "socket",
        "socket = \"/run/crosspoint/web-1.sock\"",
    );
    let role = checker.word(raw.role, "role");
    if role == Some(Role::Client) {
        of_listener(checker, &raw.socket_mode, "socket_mode");
        of_listener(checker, &raw.socket_group, "socket_group");
    }
    let access = Access {
        mode: socket_mode(checker, raw.socket_mode),
        group: socket_group(checker, raw.socket_group),
    };
    let queue_pairs = checker.number(
        raw.queue_pairs,
        &Number {
            subject: "`queue_pairs`",
            range: 1..=QUEUE_PAIRS_MAX.into(),
            example: "queue_pairs = 2",
        },
    );
    let mac = checker.mac(raw.mac);
    let mtu = mtu(checker, raw.mtu);
    let offloads = offloads::offloads(checker, raw.offloads);
    let direct = direct::direct(checker, raw.direct, &mut taken.direct);
    let (socket, span) = checker.socket(raw.socket)?;
    match taken.sockets.get(&socket) {
        Some(first) => {
            let by_default = if first.is_none() {
                " (by [control]: it is the default there)"
            } else {
                ""
            };
            let message = format!("the socket {socket:?} is already used{by_default}");
            checker.clash(
                span,
                first.clone(),
                message,
                "give each port, and [control], a socket of its own",
            );
        }
        None => {
            let place = checker.place(span);
            taken.sockets.insert(socket.clone(), Some(place));
        }
    }
    Some(VhostPort {
        socket,
        role: role.unwrap_or_default(),
        access,
        queue_pairs: queue_pairs
            .and_then(|pairs| u16::try_from(pairs).ok())
            .unwrap_or(QUEUE_PAIRS_DEFAULT),
        mac,
        mtu: mtu.unwrap_or(MTU_DEFAULT),
        offloads,
        direct,
    })
}

/// Records a key that applies to a listening socket, if the front end listens.
fn of_listener<T>(checker: &mut Checker, field: &Field<T>, key: &str) {
    if let Some(span) = field.span() {
        let message = format!("`{key}` goes with `role = \"server\"`");
        let help =
            "with `role = \"client\"` the front end makes the socket: set its mode and group there";
        checker.problem(span, message, "not the switch's socket", help);
    }
}

fn socket_mode(checker: &mut Checker, field: Field<String>) -> Option<u32> {
    let must = "a mode in octal, between quotes";
    let help = "for example: socket_mode = \"0660\", for its owner and group";
    let (text, span) = checker.value(field, "socket_mode", must, help)?;
    let digits = match text.len() {
        4 => text.strip_prefix('0'),
        _ => Some(text.as_str()),
    };
    let digits =
        digits.filter(|digits| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    if mode.is_none() {
        let label = "not three octal digits, perhaps with a zero before them";
        checker.problem(span, format!("`socket_mode` must be {must}"), label, help);
    }
    mode
}

fn socket_group(checker: &mut Checker, field: Field<String>) -> Option<String> {
    let must = "the name or the number of a group";
    let help = "for example: socket_group = \"libvirt-qemu\"";
    let (group, span) = checker.value(field, "socket_group", must, help)?;
    let refused = |c: char| c == ':' || c == ',' || c.is_whitespace() || c.is_control();
    let label = if group.is_empty() {
        "empty"
    } else if group.len() > GROUP_BYTES_MAX {
        "too long"
    } else if group.contains(refused) {
        "no group can be named this"
    } else {
        return Some(group);
    };
    checker.problem(span, format!("`socket_group` must be {must}"), label, help);
    None
}

fn mtu(checker: &mut Checker, field: Field<i64>) -> Option<u16> {
    let number = Number {
        subject: "`mtu`",
        range: MTU_MIN.into()..=MTU_MAX.into(),
        example: "mtu = 1500",
    };
    let mtu = checker.number(field, &number);
    mtu.and_then(|mtu| u16::try_from(mtu).ok())
}

fn xdp(checker: &mut Checker, raw: RawPort, header: &Span, taken: &mut Taken) -> Option<XdpPort> {
    foreign(checker, &raw.socket, "socket", "vhost", "xdp");
    foreign(checker, &raw.role, "role", "vhost", "xdp");
    foreign(checker, &raw.socket_mode, "socket_mode", "vhost", "xdp");
    foreign(checker, &raw.socket_group, "socket_group", "vhost", "xdp");
    foreign(checker, &raw.queue_pairs, "queue_pairs", "vhost", "xdp");
    foreign(checker, &raw.mac, "mac", "vhost", "xdp");
    foreign(checker, &raw.offloads, "offloads", "vhost", "xdp");
    foreign(checker, &raw.direct, "direct", "vhost", "xdp");
    foreign(checker, &raw.slo, "slo", "vhost", "xdp");
    require(
        checker,
        &raw.interface,
        header,
        "interface",
        "interface = \"enp1s0f0\"",
    );
    let channels = channels(checker, raw.channels);
    let queues = queues(checker, raw.queues, channels);
    // All values are checked, even if one is wrong.
    let (mode, mtu) = (checker.word(raw.mode, "mode"), mtu(checker, raw.mtu));
    let gro = checker.switch(raw.gro, "gro");
    let tso = checker.word(raw.tso, "tso");
    let busy_poll = checker.switch(raw.busy_poll, "busy_poll");
    let huge_pages = checker.word(raw.huge_pages, "huge_pages");
    let rss = checker.word(raw.rss, "rss");
    let interface = interface(checker, raw.interface, &mut taken.interfaces)?;
    Some(XdpPort {
        interface,
        queues,
        mode: mode.unwrap_or_default(),
        mtu,
        gro: gro.unwrap_or(true),
        tso: tso.unwrap_or_default(),
        busy_poll: busy_poll.unwrap_or(false),
        huge_pages: huge_pages.unwrap_or_default(),
        channels,
        rss: rss.unwrap_or_default(),
    })
}

fn channels(checker: &mut Checker, field: Field<i64>) -> Option<u32> {
    let number = Number {
        subject: "`channels`",
        range: 1..=XDP_CHANNELS_MAX.into(),
        example: "channels = 4",
    };
    let channels = checker.number(field, &number);
    channels.and_then(|channels| u32::try_from(channels).ok())
}

/// The uplink's own queues, which must be among the `channels`.
fn queues(checker: &mut Checker, field: Field<WordOrList>, channels: Option<u32>) -> Queues {
    let list = checker.word_or_numbers(
        field,
        &NumberList {
            key: "queues",
            word: "all",
            items: "queue number",
            range: 0..=XDP_QUEUE_MAX.into(),
            items_max: usize::from(XDP_QUEUE_MAX) + 1,
            example: "queues = [0, 1]",
        },
    );
    let Some(list) = list else {
        return Queues::All;
    };
    let mut queues = Vec::with_capacity(list.len());
    for (queue, span) in list {
        let Ok(queue) = u32::try_from(queue) else {
            continue;
        };
        if let Some(channels) = channels.filter(|channels| queue >= *channels) {
            let message = format!("with `channels = {channels}` there is no queue {queue}");
            let help = "queues count from 0: take a lower one, or raise `channels`";
            checker.problem(span, message, "too large", help);
        }
        queues.push(queue);
    }
    Queues::List(queues)
}

/// An interface name that the kernel accepts (`dev_valid_name()`).
fn interface(
    checker: &mut Checker,
    field: Field<String>,
    interfaces: &mut HashMap<String, Place>,
) -> Option<String> {
    let help = "`ip link` lists the names; for example: interface = \"enp1s0f0\"";
    let (name, span) =
        checker.value(field, "interface", "the name of a network interface", help)?;
    let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let label = if name.is_empty() {
        "empty"
    } else if name.len() > INTERFACE_BYTES_MAX {
        "too long"
    } else if name == "." || name == ".." || name.contains(refused) {
        "no interface can be named this"
    } else if let Some(first) = interfaces.get(&name) {
        let message = format!("two ports use the interface {name:?}");
        checker.clash(
            span,
            Some(first.clone()),
            message,
            "keep one of them, with the `queues` of both",
        );
        return None;
    } else {
        interfaces.insert(name.clone(), checker.place(span));
        return Some(name);
    };
    let message =
        format!("`interface` must be 1 to {INTERFACE_BYTES_MAX} bytes, without '/', ':' or blanks");
    checker.problem(span, message, label, help);
    None
}
