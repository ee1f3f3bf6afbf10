//! Tables that a successor of this process goes on with: learned addresses and counters.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use crosspoint_config::limits::DEFAULT_BRIDGE as DEFAULT_NAME;
use crosspoint_config::parse_mac;
use crosspoint_engine::groups::Exported;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_model::status::{FdbEntry, RemovedStatus};
use serde::{Deserialize, Serialize};

use super::counts::add_counts;
use super::{Dataplane, Port, State};

/// Learned addresses; static ones come from the configuration.
pub(crate) type LearnedTable = Vec<FdbEntry>;

/// Counters.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Counters {
    /// By port and queue: counters by name, over all workers.
    ports: BTreeMap<String, Vec<BTreeMap<String, u64>>>,
    removed: RemovedStatus,
}

/// Connections of ports with security groups, as an engine's table writes them.
#[derive(Serialize, Deserialize)]
pub(crate) struct ConnectionsHead {
    /// When they were written, seconds since 1970.
    at_s: u64,
    /// The port of each zone.
    ports: BTreeMap<u32, String>,
}

fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl Dataplane {
    /// The number of connections.
    pub(crate) fn connection_count(&self) -> usize {
        let table = self.lock().groups.connections();
        table.map_or(0, |table| table.len())
    }

    /// The connections that `before` has not seen: a line of JSON, and the table's text. `None` if there is no table. Does not
    /// hold the port table's lock while it reads them.
    pub(crate) fn connections_text(
        &self,
        before: Option<&Exported>,
    ) -> Option<(Vec<u8>, Exported)> {
        let (table, ports) = {
            let state = self.lock();
            (state.groups.connections()?, state.groups.zone_ports())
        };
        let head = ConnectionsHead {
            at_s: seconds_since_1970(),
            ports,
        };
        let mut text = serde_json::to_vec(&head).ok()?;
        text.push(b'\n');
        let (connections, seen) = table.export(before);
        text.extend(connections);
        Some((text, seen))
    }

    /// Takes a predecessor's connections: those of ports that have groups here. Returns how many.
    pub(crate) fn take_connections(&self, text: &[u8]) -> usize {
        let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
            return 0;
        };
        let Ok(head) = serde_json::from_slice::<ConnectionsHead>(&text[..end]) else {
            return 0;
        };
        let (table, zones) = {
            let state = self.lock();
            let Some(table) = state.groups.connections() else {
                return 0;
            };
            (table, state.groups.zones_by_port())
        };
        let age = seconds_since_1970().saturating_sub(head.at_s);
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let zone = |id: u32| zones.get(head.ports.get(&id)?).map(|zone| &**zone);
        table.import(&text[end + 1..], age, zone)
    }

    /// The learned addresses.
    pub(crate) fn learned(&self) -> LearnedTable {
        let mut fdb = self.fdb();
        fdb.retain(|entry| !entry.is_static);
        fdb
    }

    /// Learns a predecessor's addresses: those of ports that are in the same bridge.
    pub(crate) fn learn_all(&self, learned: &LearnedTable) {
        let mut state = self.lock();
        let view = state.view.clone();
        let named = (0u16..).zip(&state.ports);
        let named =
            named.filter_map(|(number, port)| Some((&*port.as_ref()?.options.name, number)));
        let numbers: BTreeMap<&str, u16> = named.collect();
        let tick = self.shared.tick.load(Ordering::Relaxed);
        let quota = |port| view.port(port).map(|port| &*port.quota);
        for (bridge, fdb) in self.fdbs(&state) {
            let name = state.bridges.name(bridge).map(|name| name.to_string());
            let name = name.as_deref().unwrap_or(DEFAULT_NAME);
            let here = learned
                .iter()
                .filter(|entry| entry.bridge.as_deref().unwrap_or(DEFAULT_NAME) == name);
            for entry in here {
                let port = numbers.get(&*entry.port).copied();
                let is_there =
                    |port: &u16| view.port(*port).is_some_and(|view| view.bridge == bridge);
                if let (Some(port), Some(mac)) = (port.filter(is_there), parse_mac(&entry.mac)) {
                    fdb.learn(fdb.key(mac, entry.vlan), port, tick, quota);
                }
            }
        }
        // Some may be bound to another port now.
        self.forget_forbidden(&state);
        // What did not fit is not the guests' doing.
        let ports = state.ports.iter_mut().flatten();
        ports.for_each(Port::reset_refusals);
    }

    /// The counters as they are now.
    pub(crate) fn counters(&self) -> Counters {
        let state = self.lock();
        let ports = state.ports.iter().flatten();
        let counted = ports.map(|port| (port.options.name.clone(), port.view.counters.by_name()));
        Counters {
            ports: counted.collect(),
            removed: state.gone(),
        }
    }

    /// Adds a predecessor's counts. Ports that are not here any more count as removed, so that the totals balance.
    pub(crate) fn count_on(&self, counters: &Counters) {
        let mut state = self.lock();
        let State { ports, removed, .. } = &mut *state;
        *removed = counters.removed.clone();
        for (name, counted) in &counters.ports {
            let mut here = ports.iter_mut().flatten();
            match here.find(|port| port.options.name == *name) {
                Some(port) => {
                    port.view.counters.add_by_name(self.links.len(), counted);
                }
                None => {
                    let gone = PortCounters::new(1, counted.len().max(1));
                    gone.add_by_name(0, counted);
                    add_counts(removed, &gone);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{PortOptions, testing};

    /// A successor whose configuration lacks a port still has that port's counts: the totals balance.
    #[test]
    fn counts_of_a_port_that_is_not_here_any_more_are_those_of_a_removed_one() {
        let dataplane = testing::start(1);
        let options = PortOptions {
            name: "a".to_owned(),
            ..PortOptions::default()
        };
        dataplane.add_port(options).expect("there is room");
        let queue = |frames: u64| {
            let counts = [
                ("rx_frames", frames),
                ("delivered_copies", frames),
                ("runt", 1),
            ];
            BTreeMap::from(counts.map(|(name, count)| (name.to_owned(), count)))
        };
        let of_port = |frames| vec![queue(frames), queue(frames)];
        let counters = Counters {
            ports: BTreeMap::from([
                ("a".to_owned(), of_port(5)),
                ("gone".to_owned(), of_port(7)),
            ]),
            removed: RemovedStatus {
                ports: 1,
                rx_packets: 100,
                ..RemovedStatus::default()
            },
        };
        dataplane.count_on(&counters);
        let status = dataplane.status();
        assert_eq!(status.ports[0].queues[0].rx_packets, 10);
        let removed = &status.removed;
        assert_eq!((removed.ports, removed.rx_packets), (2, 100 + 14));
        assert_eq!((removed.delivered_copies, removed.drops["runt"]), (14, 2));
        dataplane.stop();
    }
}
