//! Groups, rules, sets and connections, for `show`.

use std::collections::HashMap;
use std::sync::Arc;

use crosspoint_config::{Group, Peer, prefix_text, protocol_text};
use crosspoint_engine::groups::{Connection, Direction, Zone};
use crosspoint_model::rows::{
    ConnectionRow, ConnectionTable, GroupRow, GroupTables, RuleRow, SetRow,
};
use crosspoint_packet::IpNet;

use super::{Compiled, Dataplane, Groups, RuleName, SetAndAddresses};

/// Which connections to show.
#[derive(Clone, Debug, Default)]
pub struct ConnectionFilter {
    /// Only those of this port.
    pub port: Option<String>,
    /// Only those with such an address at either end.
    pub address: Option<IpNet>,
    /// The most to return.
    pub limit: usize,
}

impl Dataplane {
    /// Security groups, their rules, and sets.
    pub fn group_tables(&self) -> GroupTables {
        // Sets may have a million addresses, so their texts are made without the port table's lock.
        let shown = self.lock().groups.shown();
        let groups = shown.groups.iter();
        GroupTables {
            groups: groups.clone().map(|one| shown.row(one)).collect(),
            rules: groups.flat_map(|one| shown.rule_rows(one)).collect(),
            sets: shown.set_rows(),
        }
    }

    /// The connections that a filter chooses. The table is read without the port table's lock.
    pub fn connections(&self, filter: &ConnectionFilter) -> ConnectionTable {
        let (table, capacity, names) = {
            let groups = &self.lock().groups;
            let Some(table) = groups.connections() else {
                return ConnectionTable::default();
            };
            let ports = groups.ports.iter();
            let names = ports.map(|(name, installed)| (installed.zone.id(), name.clone()));
            let names: HashMap<u32, String> = names.collect();
            (table, groups.connections_max, names)
        };
        let mut found = ConnectionTable {
            used: table.len(),
            capacity,
            ..ConnectionTable::default()
        };
        for connection in table.iter() {
            // A zone without a name belongs to a port that is gone; the next sweeps remove its connections.
            let Some(name) = names.get(&connection.zone) else {
                continue;
            };
            if !filter.chooses(name, &connection) {
                continue;
            }
            found.found += 1;
            if found.connections.len() < filter.limit {
                found.connections.push(row(name, &connection));
            }
        }
        found
    }
}

impl ConnectionFilter {
    fn chooses(&self, port: &str, connection: &Connection) -> bool {
        let ends = [connection.source.0, connection.destination.0];
        let has = |net: &IpNet| ends.iter().any(|address| net.contains(address));
        self.port.as_deref().is_none_or(|wanted| wanted == port)
            && self.address.as_ref().is_none_or(has)
    }
}

fn row(port: &str, connection: &Connection) -> ConnectionRow {
    ConnectionRow {
        port: port.to_owned(),
        direction: match connection.direction {
            Direction::In => "in",
            Direction::Out => "out",
        }
        .to_owned(),
        protocol: protocol_text(connection.protocol),
        source: connection.source.0.to_string(),
        source_port: connection.source.1,
        destination: connection.destination.0.to_string(),
        destination_port: connection.destination.1,
        state: connection.phase.label().to_owned(),
        idle_s: connection.idle_s,
    }
}

/// What the tables are made of: references, except for the ports' names.
struct Shown {
    groups: Arc<[Group]>,
    sets: Arc<[SetAndAddresses]>,
    hits_before: Arc<HashMap<RuleName, u64>>,
    lists: Vec<Arc<Compiled>>,
    ports: Vec<(String, Arc<Compiled>, Arc<Zone>)>,
}

impl Groups {
    fn shown(&self) -> Shown {
        let ports = self.ports.iter();
        let ports =
            ports.map(|(name, of)| (name.clone(), Arc::clone(&of.list), Arc::clone(&of.zone)));
        Shown {
            groups: Arc::clone(&self.groups),
            sets: Arc::clone(&self.sets),
            hits_before: Arc::clone(&self.hits_before),
            lists: self.lists(),
            ports: ports.collect(),
        }
    }
}

impl Shown {
    fn row(&self, group: &Group) -> GroupRow {
        let members = self.ports.iter();
        let members = members.filter(|(_, list, _)| list.names.contains(&group.name));
        let mut row = GroupRow {
            name: group.name.clone(),
            stateful: group.stateful,
            rules: group.effective_rules().len(),
            ..GroupRow::default()
        };
        for (name, _, zone) in members {
            row.ports.push(name.clone());
            row.connections += u64::from(zone.connections());
        }
        row
    }

    fn rule_rows(&self, group: &Group) -> Vec<RuleRow> {
        let rules = group.effective_rules().into_iter().enumerate();
        let row = |(number, rule): (usize, crosspoint_config::GroupRule)| {
            let hits = self.lists.iter().map(|list| {
                // Equal rules of a group are told apart by their order.
                let mut own = (0..).zip(&list.rules);
                let own = own.by_ref().filter(|(_, one)| one.group == group.name);
                let mut own = own.skip(number);
                own.next().map_or(0, |(index, _)| list.table.hits(index))
            });
            let before = self.hits_before.get(&(group.name.clone(), rule.text()));
            let hits = hits.sum::<u64>() + before.copied().unwrap_or(0);
            RuleRow {
                group: group.name.clone(),
                rule: number,
                text: rule.text(),
                hits,
            }
        };
        rules.map(row).collect()
    }

    fn set_rows(&self) -> Vec<SetRow> {
        let rows = self.sets.iter().map(|(set, addresses)| {
            let peer = Peer::Set(set.name.clone());
            let uses = |group: &&Group| {
                let rules = group.rules.iter().flatten();
                rules.into_iter().any(|rule| rule.peer == peer)
            };
            let groups = self.groups.iter().filter(uses);
            SetRow {
                name: set.name.clone(),
                file: set
                    .file
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned()),
                addresses: addresses.iter().map(prefix_text).collect(),
                groups: groups.map(|group| group.name.clone()).collect(),
            }
        });
        rows.collect()
    }
}
