//! Security groups: from the names in the configuration to what workers see.
//!
//! Rules are compiled once for each list of groups, before the port table's lock is taken; ports with the same list share
//! them. Then one snapshot brings the new rules of all ports to the workers.

mod migrate;
mod resolve;
mod tables;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::limits::CONNECTIONS_DEFAULT;
use crosspoint_config::{Config, Group, OnChange, Port as PortConfig, PortKind, Set};
use crosspoint_engine::groups::{
    AccountingOptions, Connections, GENERATIONS_MAX, GroupPolicy, RuleTable, Timeouts, Zone,
};
use crosspoint_model::status::{ConnectionsStatus, PortConnections};
use crosspoint_packet::IpNet;

use super::flows::ZoneNames;
use super::{Dataplane, State};
use resolve::{Remotes, ResolvedRule, describe};
pub use tables::ConnectionFilter;

/// Parts into which the table of connections is divided for ageing: one in each round of housekeeping.
const SWEEP_PARTS: usize = 10;
/// The most slots of the table that are looked at in one round, about a millisecond.
const SWEEP_SLOTS_MAX: usize = 1 << 18;

/// A list of groups, compiled.
struct Compiled {
    /// The groups, in the order of the ports that have this list.
    names: Vec<String>,
    rules: Vec<ResolvedRule>,
    table: Arc<RuleTable>,
}

type SetAndAddresses = (Set, Arc<[IpNet]>);
/// A group, and the text of a rule of it.
type RuleName = (String, String);

/// How many connections a port may have, and may begin in a second.
#[derive(Clone, Copy, Default)]
struct Limits {
    max: u32,
    rate: u32,
}

impl Limits {
    fn of(port: &PortConfig) -> Self {
        match &port.kind {
            PortKind::Vhost(guest) => Self {
                max: guest.connections_max,
                rate: guest.connections_rate,
            },
            PortKind::Xdp(_) => Self::default(),
        }
    }
}

/// The groups of a port as they are in use.
struct Installed {
    list: Arc<Compiled>,
    zone: Arc<Zone>,
    bridge: Arc<str>,
    limits: Limits,
    /// Grows with each change of the port's rules.
    generation: u8,
    keeps: bool,
    /// What workers see of it.
    policy: Arc<GroupPolicy>,
}

impl Installed {
    /// `hz`: cycles of the time stamp counter in a second.
    fn new(
        list: Arc<Compiled>,
        (id, hz): (u32, f64),
        (bridge, limits): (Arc<str>, Limits),
        keeps: bool,
    ) -> Self {
        let zone = Arc::new(Zone::new(id, limits.max));
        zone.set_connections_rate(limits.rate, hz);
        let policy = GroupPolicy::new(list.table.clone(), zone.clone(), 0, keeps);
        Self {
            list,
            zone,
            bridge,
            limits,
            generation: 0,
            keeps,
            policy: Arc::new(policy),
        }
    }

    /// Takes other rules, or another treatment of connections that they do not allow.
    fn change(&mut self, list: Arc<Compiled>, keeps: bool) {
        if Arc::ptr_eq(&self.list, &list) && self.keeps == keeps {
            return;
        }
        if !Arc::ptr_eq(&self.list, &list) {
            self.generation = self.generation.wrapping_add(1);
        }
        (self.list, self.keeps) = (list, keeps);
        let (rules, zone) = (self.list.table.clone(), self.zone.clone());
        let policy = GroupPolicy::new(rules, zone, self.generation, keeps);
        self.policy = Arc::new(policy);
    }
}

/// The running groups.
#[derive(Default)]
pub(super) struct Groups {
    groups: Arc<[Group]>,
    sets: Arc<[SetAndAddresses]>,
    /// By the port's name. A port that is closed and opened again finds its groups and its connections.
    ports: BTreeMap<String, Installed>,
    /// The zones in use, by their numbers.
    zones: Arc<HashMap<u32, Arc<Zone>>>,
    zones_made: u32,
    /// Hits of rules in compiled lists that are not in use any more.
    hits_before: Arc<HashMap<RuleName, u64>>,
    /// How often rules have changed since the generations of all connections were looked at.
    changes: u32,
    connections: Option<Arc<Connections>>,
    /// The most connections of the table.
    connections_max: usize,
    /// Cycles of the time stamp counter in a second.
    hz: f64,
    /// What is counted of connections; `None`: nothing.
    pub(super) accounting: Option<AccountingOptions>,
}

impl Groups {
    /// The policy of the port of this name, if it has groups.
    pub(super) fn policy(&self, port: &str) -> Option<Arc<GroupPolicy>> {
        self.ports
            .get(port)
            .map(|installed| installed.policy.clone())
    }

    /// The table of connections, once a port has had groups.
    pub(super) fn connections(&self) -> Option<Arc<Connections>> {
        self.connections.clone()
    }

    /// The port of each zone.
    pub(super) fn zone_ports(&self) -> BTreeMap<u32, String> {
        let ports = self.ports.iter();
        ports
            .map(|(name, installed)| (installed.zone.id(), name.clone()))
            .collect()
    }

    /// The zone of each port.
    pub(super) fn zones_by_port(&self) -> BTreeMap<String, Arc<Zone>> {
        let ports = self.ports.iter();
        ports
            .map(|(name, installed)| (name.clone(), installed.zone.clone()))
            .collect()
    }

    /// The port and the bridge of each zone.
    pub(super) fn zone_names(&self) -> HashMap<u32, ZoneNames> {
        let ports = self.ports.iter();
        let names = |(name, of): (&String, &Installed)| {
            (of.zone.id(), (name.as_str().into(), of.bridge.clone()))
        };
        ports.map(names).collect()
    }

    /// The names of a port's groups.
    pub(super) fn names_of(&self, port: &str) -> Vec<String> {
        let installed = self.ports.get(port);
        installed.map_or(Vec::new(), |installed| installed.list.names.clone())
    }

    /// Counts of a port's connections, if it has groups.
    pub(super) fn connections_of(&self, port: &str) -> Option<PortConnections> {
        let installed = self.ports.get(port)?;
        let zone = &installed.zone;
        Some(PortConnections {
            connections: zone.connections(),
            half_open: zone.half_open(),
            max: installed.limits.max,
            created: zone.created_total(),
            refused: zone.refused_total(),
            rate: installed.limits.rate,
            rate_refused: zone.rate_refused_total(),
        })
    }

    /// Counts of the table of connections.
    pub(super) fn status(&self) -> Option<ConnectionsStatus> {
        let table = self.connections.as_ref()?;
        Some(ConnectionsStatus {
            used: table.len(),
            capacity: self.connections_max,
            bytes: table.bytes(),
        })
    }

    /// The lists in use, each once.
    fn lists(&self) -> Vec<Arc<Compiled>> {
        let mut lists: Vec<Arc<Compiled>> = Vec::new();
        for installed in self.ports.values() {
            if !lists.iter().any(|list| Arc::ptr_eq(list, &installed.list)) {
                lists.push(installed.list.clone());
            }
        }
        lists
    }

    /// Takes the compiled list of a port. Its connections stay.
    fn install(&mut self, port: &PortConfig, list: Arc<Compiled>, keeps: bool) {
        let (bridge, limits) = (Arc::from(port.bridge.as_str()), Limits::of(port));
        match self.ports.get_mut(&port.name) {
            Some(known) => {
                known.change(list, keeps);
                (known.bridge, known.limits) = (bridge, limits);
                known.zone.set_connections_max(limits.max);
                known.zone.set_connections_rate(limits.rate, self.hz);
            }
            None => {
                self.zones_made += 1;
                let zone = (self.zones_made, self.hz);
                let installed = Installed::new(list, zone, (bridge, limits), keeps);
                self.ports.insert(port.name.clone(), installed);
            }
        }
    }

    /// Makes the port forget its connections: it is in another bridge, where others may have the addresses of their peers. The
    /// next sweeps remove them.
    pub(super) fn forget_connections(&mut self, port: &str) {
        let Some(installed) = self.ports.get_mut(port) else {
            return;
        };
        self.zones_made += 1;
        *installed = Installed::new(
            installed.list.clone(),
            (self.zones_made, self.hz),
            (installed.bridge.clone(), installed.limits),
            installed.keeps,
        );
        self.retain(|_| true);
    }

    /// Call it before rules change. Generations have 8 bits, and sweeps may take longer than as many changes.
    fn note_change(&mut self) {
        self.changes += 1;
        if self.changes < GENERATIONS_MAX {
            return;
        }
        self.changes = 0;
        if let Some(table) = &self.connections {
            table.age_generations(|id| self.zones.get(&id).map(|zone| &**zone));
        }
    }

    /// Keeps the groups of the ports that `stays` names. The connections of others are removed by the next sweeps.
    fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.ports.retain(|name, _| stays(name));
        let zones = self.ports.values();
        let zones = zones.map(|installed| (installed.zone.id(), installed.zone.clone()));
        self.zones = Arc::new(zones.collect());
    }

    /// Keeps the hits of those of `before` that are not in use any more.
    fn keep_hits(&mut self, before: Vec<Arc<Compiled>>) {
        let now = self.lists();
        let is_gone = |list: &&Arc<Compiled>| !now.iter().any(|one| Arc::ptr_eq(one, list));
        for list in before.iter().filter(is_gone) {
            for (rule, resolved) in list.rules.iter().enumerate() {
                let hits = list.table.hits(rule);
                if hits > 0 {
                    let name = (resolved.group.clone(), resolved.rule.text());
                    let before = Arc::make_mut(&mut self.hits_before);
                    *before.entry(name).or_default() += hits;
                }
            }
        }
        if self.hits_before.is_empty() {
            return;
        }
        let names = self.groups.iter().flat_map(|group| {
            let rules = group.effective_rules().into_iter();
            rules.map(|rule| (group.name.clone(), rule.text()))
        });
        let names: HashSet<RuleName> = names.collect();
        Arc::make_mut(&mut self.hits_before).retain(|name, _| names.contains(name));
    }
}

/// The sets of a configuration, with their addresses.
fn sets(config: &Config) -> Arc<[SetAndAddresses]> {
    let addresses = |set: &Set| match config.set_files.get(&set.name) {
        Some(file) if set.addresses.is_none() => file.clone(),
        _ => config.set_addresses(set).into(),
    };
    let sets = config.sets.iter();
    sets.map(|set| (set.clone(), addresses(set))).collect()
}

/// Compiles the list of groups of each port, by the port's place in the configuration. Lists that have not changed are those
/// of `known`. The second part says which lists cannot be compiled.
fn compile(
    config: &Config,
    known: &[Arc<Compiled>],
    workers: usize,
) -> (Vec<Option<Arc<Compiled>>>, Vec<String>) {
    let mut remotes = Remotes::new(config);
    let mut made: HashMap<(&str, &[String]), Option<Arc<Compiled>>> = HashMap::new();
    let mut failed = Vec::new();
    let lists = config.ports.iter().map(|port| {
        let names = port.groups();
        if names.is_empty() {
            return None;
        }
        // The members of a group that is a peer are those in the port's own bridge.
        let list = made.entry((&port.bridge, names)).or_insert_with(|| {
            let rules = resolve::rules(config, (&port.bridge, names), &mut remotes);
            match compile_list(names, rules, known, workers) {
                Ok(list) => Some(list),
                Err(why) => {
                    failed.push(why);
                    None
                }
            }
        });
        list.clone()
    });
    (lists.collect(), failed)
}

fn compile_list(
    names: &[String],
    rules: Vec<ResolvedRule>,
    known: &[Arc<Compiled>],
    workers: usize,
) -> Result<Arc<Compiled>, String> {
    let mut before = known.iter().filter(|list| list.names == names);
    if let Some(same) = before.find(|list| list.rules == rules) {
        return Ok(same.clone());
    }
    let of_engine = rules.iter().map(ResolvedRule::for_engine).collect();
    let table = RuleTable::compile(of_engine, workers)
        .map_err(|why| format!("groups {}: {}", names.join(", "), describe(why)))?;
    Ok(Arc::new(Compiled {
        names: names.to_vec(),
        table: Arc::new(table),
        rules,
    }))
}

/// A list that allows nothing, for a port whose rules cannot be compiled.
fn nothing(names: &[String], workers: usize) -> Option<Arc<Compiled>> {
    let table = RuleTable::compile(Vec::new(), workers).ok()?;
    Some(Arc::new(Compiled {
        names: names.to_vec(),
        rules: Vec::new(),
        table: Arc::new(table),
    }))
}

fn timeouts(config: &Config) -> Timeouts {
    let of = &config.connections;
    // They are at most a week.
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    Timeouts {
        tcp_established_s: seconds(of.tcp_established),
        tcp_half_open_s: seconds(of.tcp_half_open),
        udp_s: seconds(of.udp),
        udp_stream_s: seconds(of.udp_stream),
        other_s: seconds(of.other),
    }
}

impl Dataplane {
    /// Puts the groups of a configuration into use, for the ports that there are and for those that will be added.
    /// `connections_max`: the size of the table, if it has to be made. A port that the configuration does not have keeps its
    /// groups until [`forget_groups`](Self::forget_groups).
    ///
    /// # Errors
    ///
    /// A line for each list of groups that cannot be compiled. Ports with it keep their former rules; a port without such
    /// allows nothing.
    pub fn set_groups(&self, config: &Config, connections_max: u32) -> Result<(), Vec<String>> {
        let known = self.lock().groups.lists();
        let started = Instant::now();
        let (lists, failed) = compile(config, &known, self.workers());
        tracing::debug!("security groups were compiled in {:?}", started.elapsed());
        let (of_show, sets) = (config.groups.clone().into(), sets(config));
        let keeps = config.connections.on_change == OnChange::Keep;
        let mut state = self.lock();
        let groups = &mut state.groups;
        (groups.groups, groups.sets) = (of_show, sets);
        groups.hz = self.clock.hz();
        groups.note_change();
        for (port, list) in config.ports.iter().zip(lists) {
            let names = port.groups();
            let has_former = groups.ports.contains_key(&port.name);
            let list = match (list, names.is_empty()) {
                (None, false) if !has_former => nothing(names, self.workers()),
                (list, _) => list,
            };
            if let Some(list) = list {
                groups.install(port, list, keeps);
            }
        }
        let without = |name: &str| {
            let mut ports = config.ports.iter();
            ports.any(|port| port.name == name && port.groups().is_empty())
        };
        groups.retain(|name| !without(name));
        if let Some(table) = &groups.connections {
            table.set_timeouts(timeouts(config));
        } else if !groups.ports.is_empty() {
            let max = usize::try_from(connections_max).unwrap_or(CONNECTIONS_DEFAULT as usize);
            let table = Connections::new(max, timeouts(config));
            if let Some(options) = &groups.accounting {
                table.start_accounting(self.workers(), options);
            }
            groups.connections = Some(Arc::new(table));
            groups.connections_max = max;
        }
        self.publish_groups(&mut state);
        // Only now: no worker counts in the former lists any more.
        state.groups.keep_hits(known);
        match failed.is_empty() {
            true => Ok(()),
            false => Err(failed),
        }
    }

    /// Gives workers the groups of all ports, if they differ from those that they have.
    fn publish_groups(&self, state: &mut State) {
        let State { ports, groups, .. } = &mut *state;
        let mut is_changed = false;
        for port in ports.iter_mut().flatten() {
            let wanted = groups.policy(&port.options.name);
            let is_same = match (&port.view.groups, &wanted) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            };
            if !is_same {
                port.view.groups = wanted;
                is_changed = true;
            }
        }
        if is_changed {
            drop(self.publish(state, Vec::new()));
        }
    }

    /// Forgets the groups and connections of ports that are not wanted any more.
    pub fn forget_groups(&self, is_wanted: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let State { ports, groups, .. } = &mut *state;
        let is_there = |name: &str| {
            let mut ports = ports.iter().flatten();
            ports.any(|port| port.options.name == name)
        };
        let known = groups.lists();
        groups.retain(|name| is_wanted(name) || is_there(name));
        groups.keep_hits(known);
    }

    /// Removes connections that have timed out, from a part of the table.
    pub(super) fn sweep_connections(&self, uptime: Duration) {
        let (table, zones) = {
            let groups = &self.lock().groups;
            let Some(table) = groups.connections() else {
                return;
            };
            (table, groups.zones.clone())
        };
        let slots = (table.capacity() / SWEEP_PARTS + 1).min(SWEEP_SLOTS_MAX);
        let seconds = u32::try_from(uptime.as_secs()).unwrap_or(u32::MAX);
        table.sweep(seconds, slots, |id| zones.get(&id).map(|zone| &**zone));
        zones.values().for_each(|zone| zone.forget_arrival(seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(set: &str) -> Config {
        let guest = |name: &str, ip: &str, groups: &str| {
            format!(
                "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = \"/run/{name}\"\n\
                 addresses = {{ mac = [\"52:54:00:00:00:0{ip}\"], ip = [\"192.0.2.{ip}\"] }}\ngroups = [{groups}]\n"
            )
        };
        let text = [
            "version = 1\n".to_owned(),
            guest("a", "1", "\"web\""),
            guest("b", "2", "\"web\""),
            guest("c", "3", "\"db\""),
            guest("d", "4", ""),
            "[[group]]\nname = \"web\"\nrules = [{ direction = \"in\", from = { set = \"admins\" } }, { direction = \"out\" }]\n".to_owned(),
            "[[group]]\nname = \"db\"\n".to_owned(),
            format!("[[set]]\nname = \"admins\"\naddresses = [{set}]\n"),
        ];
        match Config::parse("switch.toml", &text.concat()) {
            Ok(config) => config,
            Err(error) => panic!("{}", error.render()),
        }
    }

    #[test]
    fn ports_with_the_same_list_share_its_rules_and_only_changed_lists_are_compiled() {
        let known = |lists: &[Option<Arc<Compiled>>]| -> Vec<Arc<Compiled>> {
            lists.iter().flatten().cloned().collect()
        };
        let is_same = |one: &Option<Arc<Compiled>>, other: &Option<Arc<Compiled>>| matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other));
        let (first, failed) = compile(&config(""), &[], 2);
        assert!(failed.is_empty());
        assert!(is_same(&first[0], &first[1]) && !is_same(&first[0], &first[2]));
        assert!(first[3].is_none(), "it has no groups");
        let (again, _) = compile(&config(""), &known(&first), 2);
        assert!(is_same(&first[0], &again[0]) && is_same(&first[2], &again[2]));
        let (other, _) = compile(&config("\"192.0.2.9\""), &known(&first), 2);
        assert!(!is_same(&first[0], &other[0]), "its set has changed");
        assert!(is_same(&first[2], &other[2]), "it does not name that set");
    }

    #[test]
    fn members_of_a_group_that_is_a_peer_are_known_by_their_addresses() {
        let (lists, _) = compile(&config(""), &[], 1);
        let list = lists[2].as_ref().expect("a list");
        let rules: Vec<String> = list.rules.iter().map(|rule| rule.rule.text()).collect();
        assert_eq!(rules, ["out to any", "in from group db"]);
        let remote = list.rules[1].for_engine().remote.expect("addresses");
        let texts: Vec<String> = remote.iter().map(crosspoint_config::prefix_text).collect();
        assert_eq!(texts, ["192.0.2.3"]);
    }

    #[test]
    fn a_port_that_comes_again_has_its_connections_and_one_that_goes_loses_them() {
        let before = config("");
        let (lists, _) = compile(&before, &[], 1);
        let mut groups = Groups::default();
        for (port, list) in before.ports.iter().zip(&lists) {
            if let Some(list) = list {
                groups.install(port, list.clone(), false);
            }
        }
        groups.retain(|_| true);
        let zone = groups.ports["a"].zone.id();
        let after = config("\"192.0.2.9\"");
        let (lists, _) = compile(&after, &groups.lists(), 1);
        groups.install(&after.ports[0], lists[0].clone().expect("a list"), true);
        let installed = &groups.ports["a"];
        assert_eq!((installed.zone.id(), installed.generation), (zone, 1));
        assert_eq!(groups.zones.len(), 3);
        groups.forget_connections("a");
        let other = groups.ports["a"].zone.id();
        assert!(
            other != zone && groups.zones.contains_key(&other) && !groups.zones.contains_key(&zone)
        );
        groups.retain(|name| name != "a");
        assert!(groups.policy("a").is_none() && !groups.zones.contains_key(&zone));
        groups.install(&after.ports[0], lists[0].clone().expect("a list"), true);
        assert_ne!(groups.ports["a"].zone.id(), zone, "no number is used again");
    }
}
