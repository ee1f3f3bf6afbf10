//! Serializes a checked configuration: keys with their values, and text.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_packet::Mac;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::duration;
use super::{
    Access, Config, Control, Cores, Direct, Log, LoopProtect, Metrics, Offloads, Port, PortKind,
    Queues, Slo, Switch, VhostPort, Vlan, Workers, XdpPort,
};

/// A key, and its value in JSON as it would be in TOML. Null means that the key is absent; no key has null as a value.
pub type Written = (&'static str, Value);

/// An enum's word, as serde writes it.
fn word(word: impl Serialize) -> Value {
    // These are strings, for which serde_json does not fail.
    serde_json::to_value(word).unwrap_or_default()
}

impl Port {
    /// All keys for ports of its type, including defaults, in the order of the format's description.
    pub fn written(&self) -> Vec<Written> {
        // Without `..`, so that no key is forgotten.
        let Port {
            name,
            vlan,
            mac_limit,
            weight,
            storm,
            addresses,
            forward_control,
            loop_protect,
            worker,
            required,
            slo,
            kind,
        } = self;
        let mut keys = vec![("name", json!(name)), ("type", json!(self.kind_name()))];
        match kind {
            PortKind::Vhost(vhost) => vhost.write(&mut keys),
            PortKind::Xdp(xdp) => xdp.write(&mut keys),
        }
        keys.extend([
            ("vlan", vlan.written()),
            ("mac_limit", json!(mac_limit)),
            ("weight", json!(weight)),
            ("storm", storm_written(storm)),
            ("addresses", addresses_written(addresses)),
            (
                "forward_control",
                json!(super::control_names(*forward_control)),
            ),
            (
                "loop_protect",
                loop_protect
                    .as_ref()
                    .map_or(Value::Null, LoopProtect::written),
            ),
            ("worker", json!(worker)),
            ("required", json!(required)),
            ("slo", slo.as_ref().map_or(Value::Null, Slo::written)),
        ]);
        keys
    }

    /// The port's table: every key with a value.
    pub fn table(&self) -> Map<String, Value> {
        let given = self
            .written()
            .into_iter()
            .filter(|(_, value)| !value.is_null());
        given.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The value of `type`.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            PortKind::Vhost(_) => "vhost",
            PortKind::Xdp(_) => "xdp",
        }
    }

    /// The port as a `[[port]]` table in TOML.
    pub fn to_toml(&self) -> String {
        let mut text = "[[port]]\n".to_owned();
        for (key, value) in self.written() {
            // Null keys are absent.
            if let Ok(value) = toml::Value::try_from(&value) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

impl VhostPort {
    fn write(&self, keys: &mut Vec<Written>) {
        let VhostPort {
            socket,
            role,
            access: Access { mode, group },
            queue_pairs,
            mac,
            mtu,
            offloads: Offloads { receive, transmit },
            direct,
        } = self;
        let direct = direct
            .as_ref()
            .map(|Direct { uplink, queue }| json!({"uplink": uplink, "queue": queue}));
        keys.extend([
            ("socket", json!(socket.to_string_lossy())),
            ("role", word(role)),
            ("socket_mode", json!(mode.map(|mode| format!("{mode:04o}")))),
            ("socket_group", json!(group)),
            ("queue_pairs", json!(queue_pairs)),
            ("mac", json!(mac.map(|mac| mac.to_string()))),
            ("mtu", json!(mtu)),
            (
                "offloads",
                json!({"receive": receive, "transmit": transmit}),
            ),
            ("direct", json!(direct)),
        ]);
    }
}

impl XdpPort {
    fn write(&self, keys: &mut Vec<Written>) {
        let XdpPort {
            interface,
            queues,
            mode,
            mtu,
            gro,
            tso,
            busy_poll,
            huge_pages,
            channels,
            rss,
        } = self;
        let queues = match queues {
            Queues::All => json!("all"),
            Queues::List(list) => json!(list),
        };
        keys.extend([
            ("interface", json!(interface)),
            ("queues", queues),
            ("mode", word(mode)),
            ("mtu", json!(mtu)),
            ("gro", json!(gro)),
            ("tso", word(tso)),
            ("busy_poll", json!(busy_poll)),
            ("huge_pages", word(huge_pages)),
            ("channels", json!(channels)),
            ("rss", word(rss)),
        ]);
    }
}

impl Slo {
    fn written(&self) -> Value {
        let Slo {
            completion_p50,
            completion_p99,
        } = self;
        let times = [
            ("completion_p50", completion_p50),
            ("completion_p99", completion_p99),
        ];
        let given = times
            .into_iter()
            .filter_map(|(key, time)| Some((key.to_owned(), json!(duration::display((*time)?)))));
        Value::Object(given.collect())
    }
}

impl LoopProtect {
    fn written(&self) -> Value {
        let LoopProtect { action, block_time } = self;
        json!({"action": word(action), "block_time": duration::display(*block_time)})
    }
}

fn storm_written(storm: &StormLimits) -> Value {
    let StormLimits {
        broadcast,
        multicast,
        unknown_unicast,
    } = storm;
    json!({"broadcast": broadcast, "multicast": multicast, "unknown_unicast": unknown_unicast})
}

fn addresses_written(addresses: &[Mac]) -> Value {
    let addresses: Vec<String> = addresses.iter().map(Mac::to_string).collect();
    match addresses.is_empty() {
        true => Value::Null,
        false => json!({"mac": addresses}),
    }
}

impl Vlan {
    fn written(&self) -> Value {
        match self {
            Vlan::Unaware => Value::Null,
            Vlan::Access(id) => json!({"access": id}),
            Vlan::Trunk { ids, native: None } => json!({"trunk": ids}),
            Vlan::Trunk { ids, native } => json!({"trunk": ids, "native": native}),
        }
    }
}

impl Config {
    /// All keys outside of ports, including defaults: at the top level, or in a section, as in "workers.cores".
    pub fn written_settings(&self) -> Vec<Written> {
        // Without `..`, so that no key is forgotten.
        let Config {
            workers:
                Workers {
                    cores,
                    poll,
                    idle_spin,
                    balance,
                    balance_interval,
                },
            switch:
                Switch {
                    fdb_ageing,
                    fdb_moves_max,
                    fdb_moves_window,
                    fdb_capacity,
                },
            metrics: Metrics { listen },
            control: Control { socket },
            log:
                Log {
                    target,
                    format,
                    level,
                },
            ports_dir,
            watch_ports,
            ports: _,
            core_spans: _,
        } = self;
        let cores = match cores {
            Cores::Auto => json!("auto"),
            Cores::List(list) => json!(list),
        };
        let listen = listen
            .as_ref()
            .map_or("off".to_owned(), SocketAddr::to_string);
        let ports_dir = ports_dir.as_ref().map(|folder| folder.to_string_lossy());
        vec![
            ("ports_dir", json!(ports_dir)),
            ("watch_ports", json!(watch_ports)),
            ("workers.cores", cores),
            ("workers.poll", word(poll)),
            ("workers.idle_spin", json!(duration::display(*idle_spin))),
            ("workers.balance", word(balance)),
            (
                "workers.balance_interval",
                json!(duration::display(*balance_interval)),
            ),
            ("switch.fdb_ageing", json!(duration::display(*fdb_ageing))),
            ("switch.fdb_moves_max", json!(fdb_moves_max)),
            (
                "switch.fdb_moves_window",
                json!(duration::display(*fdb_moves_window)),
            ),
            ("switch.fdb_capacity", json!(fdb_capacity)),
            ("metrics.listen", json!(listen)),
            ("control.socket", json!(socket.to_string_lossy())),
            ("log.target", word(target)),
            ("log.format", word(format)),
            ("log.level", word(level)),
        ]
    }
}
