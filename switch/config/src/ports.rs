//! Reads the `[[port]]` tables, and checks what the rules of single keys cannot: keys of a port against each other, and
//! ports against each other.

use std::collections::HashMap;
use std::path::PathBuf;

use crosspoint_packet::Mac;
use serde_json::json;
use toml::de::DeTable;

use super::addresses::{self, Bound};
use super::bridges::PortBridges;
use super::check::{Checker, Place};
use super::direct;
use super::field::{FromToml as _, Item, Span};
use super::groups::PortGroups;
use super::key::{
    Definitions, Key, Keys as _, Name, Reader, Rule as _, Slot, Written, table_reference,
};
use super::limits::*;
use super::lists::KnownPorts;
use super::rules::word;
use super::types::{MacLimitAction, PortType};
use super::words::Words as _;
use super::{Port, PortKind, Role, VhostPort, XdpPort};

/// Values that must be unique among ports, with their first use. The control socket has no place if the file does not
/// name it.
pub(super) struct Taken {
    names: HashMap<String, Place>,
    sockets: HashMap<PathBuf, Option<Place>>,
    interfaces: HashMap<String, Place>,
    direct: Vec<direct::Placed>,
    bound: Bound,
    bridges: Vec<PortBridges>,
    groups: Vec<PortGroups>,
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
            bound: Bound::default(),
            bridges: Vec::new(),
            groups: Vec::new(),
            workers: HashMap::new(),
            count: 0,
        }
    }

    /// The ports that other tables are checked against.
    pub(super) fn known<'a>(&'a self, ports: &'a [Port], may_come: bool) -> KnownPorts<'a> {
        let by_name = ports.iter().map(|port| (port.name.as_str(), port));
        KnownPorts {
            ports: by_name.collect(),
            names: &self.names,
            bridges: &self.bridges,
            groups: &self.groups,
            may_come,
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
pub(super) fn ports(checker: &mut Checker, document: &DeTable<'_>, taken: &mut Taken) -> Vec<Port> {
    let help = "write each port below a line [[port]], with two brackets";
    let list = document.get("port");
    let list = list.and_then(|list| checker.value(list, "port", "a list of tables", help));
    let Some((list, _)): Option<(&[Item<'_>], Span)> = list else {
        return Vec::new();
    };
    let mut ports = Vec::new();
    for item in list {
        let table = checker.value(item, "port", "a list of tables", help);
        let Some((table, span)) = table else {
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
        ports.extend(port(&mut Reader::new(checker, table, span), taken));
    }
    ports
}

/// A port, unless a required key is missing or wrong, or another port has its name or interface.
fn port(reader: &mut Reader<'_>, taken: &mut Taken) -> Option<Port> {
    let port = Port::read(reader);
    let has_name = named(reader, &port.name, &mut taken.names);
    addresses::unique(reader, (&port.bridge, &port.vlan), &mut taken.bound);
    taken.bridges.extend(PortBridges::new(reader, &port));
    reader.kind?;
    let has_place = match &port.kind {
        PortKind::Vhost(guest) => {
            with_guest(reader, guest, &port.addresses.mac, taken);
            taken.groups.extend(PortGroups::new(reader, &port.name));
            true
        }
        PortKind::Xdp(xdp) => {
            never_quarantined(reader, port.mac_limit_action);
            within_channels(reader, xdp.channels);
            on_interface(reader, &xdp.interface, &mut taken.interfaces)
        }
    };
    if let Some(span) = reader.span("worker").filter(|_| has_name) {
        let place = reader.checker.place(span);
        taken.workers.insert(port.name.clone(), place);
    }
    (reader.is_whole && has_name && has_place).then_some(port)
}

/// Whether the port has a name of its own.
fn named(reader: &mut Reader<'_>, name: &str, names: &mut HashMap<String, Place>) -> bool {
    let Some(span) = reader.span("name").filter(|_| !name.is_empty()) else {
        return false;
    };
    let (message, help) = (
        format!("two ports are named {name:?}"),
        "give each port a name of its own",
    );
    only_here(reader, span, name, names, message, help)
}

/// Whether no other port has the interface.
fn on_interface(
    reader: &mut Reader<'_>,
    interface: &str,
    interfaces: &mut HashMap<String, Place>,
) -> bool {
    let span = reader.span("interface");
    let Some(span) = span.filter(|_| !interface.is_empty()) else {
        return false;
    };
    let message = format!("two ports use the interface {interface:?}");
    let help = "keep one of them, with the `queues` of both";
    only_here(reader, span, interface, interfaces, message, help)
}

/// Whether the value is used for the first time.
fn only_here(
    reader: &mut Reader<'_>,
    span: Span,
    value: &str,
    uses: &mut HashMap<String, Place>,
    message: String,
    help: &str,
) -> bool {
    if let Some(first) = uses.get(value).cloned() {
        reader.checker.clash(span, Some(first), message, help);
        return false;
    }
    uses.insert(value.to_owned(), reader.checker.place(span));
    true
}

/// Checks a guest's keys against each other, and its socket and NIC queue against those of others.
fn with_guest(reader: &mut Reader<'_>, guest: &VhostPort, bound: &[Mac], taken: &mut Taken) {
    if guest.role == Role::Client {
        of_listener(reader, "socket_mode");
        of_listener(reader, "socket_group");
    }
    addresses::with_own(reader, guest.mac, bound);
    if let Some(direct) = &guest.direct {
        taken.direct.extend(direct::Placed::new(reader, direct));
    }
    let socket = &guest.socket;
    let span = reader.span("socket");
    let Some(span) = span.filter(|_| !socket.as_os_str().is_empty()) else {
        return;
    };
    match taken.sockets.get(socket) {
        Some(first) => {
            let by_default = if first.is_none() {
                " (by [control]: it is the default there)"
            } else {
                ""
            };
            let message = format!("the socket {socket:?} is already used{by_default}");
            let help = "give each port, and [control], a socket of its own";
            reader.checker.clash(span, first.clone(), message, help);
        }
        None => {
            let place = reader.checker.place(span);
            taken.sockets.insert(socket.clone(), Some(place));
        }
    }
}

/// Records a key that applies to a listening socket, if the front end listens.
fn of_listener(reader: &mut Reader<'_>, key: &str) {
    if let Some(span) = reader.span(key) {
        let message = format!("`{key}` goes with `role = \"server\"`");
        let help =
            "with `role = \"client\"` the front end makes the socket: set its mode and group there";
        let label = "not the switch's socket";
        reader.checker.problem(span, message, label, help);
    }
}

/// Records a quarantine of an uplink: there is no guest that could end it.
fn never_quarantined(reader: &mut Reader<'_>, action: MacLimitAction) {
    let span = reader.span("mac_limit_action");
    if let Some(span) = span.filter(|_| action == MacLimitAction::Quarantine) {
        let message = "`mac_limit_action = \"quarantine\"` goes with kind \"vhost\"".to_owned();
        let help = "use \"drop\": then only frames from addresses beyond `mac_limit` are lost";
        let label = "no guest behind an uplink could end the quarantine";
        reader.checker.problem(span, message, label, help);
    }
}

/// Checks that the uplink's own queues are among the `channels`.
fn within_channels(reader: &mut Reader<'_>, channels: Option<u32>) {
    let list = reader
        .item("queues")
        .and_then(|list| list.get_ref().as_array());
    let (Some(list), Some(channels)) = (list, channels) else {
        return;
    };
    for item in list {
        let queue = i64::from_toml(item.get_ref());
        let queue = queue.filter(|queue| (0..=XDP_QUEUE_MAX.into()).contains(queue));
        if let Some(queue) = queue.filter(|queue| *queue >= channels.into()) {
            let message = format!("with `channels = {channels}` there is no queue {queue}");
            let help = "queues count from 0: take a lower one, or raise `channels`";
            reader
                .checker
                .problem(item.span(), message, "too large", help);
        }
    }
}

/// `[[port]]` in the list of keys.
pub(super) struct PortList;

impl Slot for PortList {
    type Value = ();

    fn list(self, name: Name, all: &mut Vec<Key>) {
        let schema = |definitions: &mut Definitions| {
            let port = table_reference::<Port>(definitions);
            json!({"type": "array", "items": port, "maxItems": PORTS_MAX})
        };
        all.push(Key {
            table: Some(("in [[port]]".to_owned(), Port::keys)),
            ..Key::new(name, schema)
        });
    }

    /// [`ports`] reads them, together with those of other files.
    fn read(&self, _: Name, _: &mut Reader<'_>) {}

    fn write(&self, _: Name, (): &(), _: &mut Vec<Written>) {}

    fn default(&self, _: PortType) {}
}

/// `type`, and the keys that only ports of that type have.
pub(super) struct KindKeys;

const TYPE: &str = "type";

impl Slot for KindKeys {
    type Value = PortKind;

    fn list(self, name: Name, all: &mut Vec<Key>) {
        let name = Name {
            key: TYPE,
            path: TYPE,
            ..name
        };
        all.push(Key {
            required: true,
            ..Key::new(name, PortType::schema)
        });
        let (guest, mut uplink) = (VhostPort::keys(), XdpPort::keys());
        for key in guest {
            let others = uplink.len();
            uplink.retain(|other| other.name.key != key.name.key);
            let is_shared = uplink.len() < others;
            let only = Some(PortType::Vhost).filter(|_| !is_shared);
            all.push(Key { only, ..key });
        }
        let only = Some(PortType::Xdp);
        all.extend(uplink.into_iter().map(|key| Key { only, ..key }));
    }

    fn read(&self, _: Name, reader: &mut Reader<'_>) -> PortKind {
        match reader.item(TYPE) {
            Some(item) => reader.kind = word().read(reader, TYPE, item),
            // A hint is derived from the other keys.
            None if reader.item("interface").is_some() => {
                reader.missing(TYPE, "type = \"xdp\"");
            }
            None => reader.missing(TYPE, "type = \"vhost\""),
        }
        let Some(kind) = reader.kind else {
            return self.default(PortType::Vhost);
        };
        let (own, others) = match kind {
            PortType::Vhost => (VhostPort::keys(), XdpPort::keys()),
            PortType::Xdp => (XdpPort::keys(), VhostPort::keys()),
        };
        let is_own = |key: &Key| own.iter().any(|one| one.name.key == key.name.key);
        for key in others.iter().filter(|key| !is_own(key)) {
            reader.foreign(key.name.key);
        }
        match kind {
            PortType::Vhost => PortKind::Vhost(VhostPort::read(reader)),
            PortType::Xdp => PortKind::Xdp(XdpPort::read(reader)),
        }
    }

    fn write(&self, _: Name, kind: &PortKind, all: &mut Vec<Written>) {
        all.push((TYPE, json!(kind.port_type().word())));
        match kind {
            PortKind::Vhost(guest) => guest.write(all),
            PortKind::Xdp(xdp) => xdp.write(all),
        }
    }

    fn default(&self, kind: PortType) -> PortKind {
        match kind {
            PortType::Vhost => PortKind::Vhost(VhostPort::default()),
            PortType::Xdp => PortKind::Xdp(XdpPort::default()),
        }
    }
}
