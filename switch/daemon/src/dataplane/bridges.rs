//! Bridges besides the default one: their numbers and their forwarding databases.

use std::collections::HashMap;
use std::sync::Arc;

use crosspoint_config::limits::DEFAULT_BRIDGE as DEFAULT_NAME;
use crosspoint_config::{BridgeTag, Config, Port as PortConfig, TagProtocol};
use crosspoint_engine::bridge::fdb::{Damping, Fdb};
use crosspoint_engine::bridge::several::{
    BRIDGES_MAX, Bridge, BridgeTags, DEFAULT_BRIDGE, NO_BRIDGE,
};
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_model::status::BridgeStatus;
use crosspoint_packet::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, TAG_LEN};

use super::placement::random_word;
use super::{Dataplane, Port, State};

/// The bridges besides the default one, by number less one. A bridge keeps its number while it exists.
pub(super) struct Bridges {
    all: Vec<Option<Held>>,
    /// Of bridges that come.
    damping: Damping,
}

struct Held {
    name: Arc<str>,
    capacity: u32,
    fdb: Arc<Fdb>,
    /// Its tag on uplinks that have other bridges too; zero for none.
    tag: [u8; TAG_LEN],
}

/// A port's bridges, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortBridges {
    /// The bridge that it is in.
    pub own: String,
    /// Others whose frames it has, each behind its tag.
    pub tags: Vec<BridgeTag>,
}

impl Default for PortBridges {
    fn default() -> PortBridges {
        PortBridges {
            own: DEFAULT_NAME.to_owned(),
            tags: Vec::new(),
        }
    }
}

impl PortBridges {
    /// Those of a configured port.
    pub fn of(port: &PortConfig) -> PortBridges {
        PortBridges {
            own: port.bridge.clone(),
            tags: port.bridge_tags().to_vec(),
        }
    }

    /// The other bridges with their tags: "tenant-a: 802.1Q tag 100".
    pub(super) fn tag_texts(&self) -> Vec<String> {
        let tags = self.tags.iter();
        tags.map(|tag| format!("{}: {}", tag.bridge, tag.text()))
            .collect()
    }

    fn names(&self, bridge: &str) -> bool {
        self.own == bridge || self.tags.iter().any(|tag| tag.bridge == bridge)
    }
}

/// A tag as it is on the wire, without a priority.
fn on_wire(tag: &BridgeTag) -> [u8; TAG_LEN] {
    let kind = match tag.protocol {
        TagProtocol::Vlan => ETHERTYPE_VLAN,
        TagProtocol::Service => ETHERTYPE_QINQ,
    };
    let ([a, b], [c, d]) = (kind.to_be_bytes(), tag.vlan.to_be_bytes());
    [a, b, c, d]
}

impl Bridges {
    /// No bridges; those that come have this limit on moves.
    pub(super) fn new(damping: Damping) -> Bridges {
        let all = Vec::new();
        Bridges { all, damping }
    }

    /// Sets the limit on moves of all bridges.
    pub(super) fn set_damping(&mut self, damping: Damping) {
        self.damping = damping;
        self.fdbs().for_each(|(_, fdb)| fdb.set_damping(damping));
    }

    /// The number of a bridge; [`NO_BRIDGE`], whose frames go nowhere, if there is none of this name.
    pub(super) fn number(&self, name: &str) -> u8 {
        if name == DEFAULT_NAME {
            return DEFAULT_BRIDGE;
        }
        let is_it = |held: &Option<Held>| held.as_ref().is_some_and(|held| *held.name == *name);
        let index = self.all.iter().position(is_it);
        index.map_or(NO_BRIDGE, |index| index as u8 + 1)
    }

    /// Shows workers the port's bridges.
    pub(super) fn place(&self, view: &mut PortSnapshot, bridges: &PortBridges) {
        view.bridge = self.number(&bridges.own);
        let tags = bridges.tags.iter();
        let tags: Vec<_> = tags
            .map(|tag| (on_wire(tag), self.number(&tag.bridge)))
            .collect();
        view.tags = (!tags.is_empty()).then(|| Arc::new(BridgeTags::new(tags)));
    }

    /// The forwarding databases, by the numbers of their bridges.
    pub(super) fn fdbs(&self) -> impl Iterator<Item = (u8, &Arc<Fdb>)> {
        let numbered = (1u8..).zip(&self.all);
        numbered.filter_map(|(number, held)| Some((number, &held.as_ref()?.fdb)))
    }

    /// The bridges for the next snapshot.
    pub(super) fn view(&self) -> Box<[Option<Bridge>]> {
        let bridge = |held: &Option<Held>| {
            let held = held.as_ref()?;
            Some(Bridge::new(held.name.clone(), held.fdb.clone(), held.tag))
        };
        self.all.iter().map(bridge).collect()
    }

    /// The name of a bridge.
    pub(super) fn name(&self, number: u8) -> Option<&Arc<str>> {
        let index = usize::from(number).checked_sub(1)?;
        Some(&self.all.get(index)?.as_ref()?.name)
    }

    /// Takes the tags of bridges from the ports as they run, so that what leaves has the tag that comes in. Returns whether any
    /// has changed.
    pub(super) fn note_tags(&mut self, ports: &[Option<Port>]) -> bool {
        let tags = ports
            .iter()
            .flatten()
            .flat_map(|port| &port.options.bridges.tags);
        let tags: HashMap<&str, _> = tags.map(|tag| (&*tag.bridge, on_wire(tag))).collect();
        let mut has_changed = false;
        for held in self.all.iter_mut().flatten() {
            let tag = tags.get(&*held.name).copied().unwrap_or_default();
            has_changed |= std::mem::replace(&mut held.tag, tag) != tag;
        }
        has_changed
    }

    fn add(&mut self, name: &str, capacity: u32) {
        let fdb = Fdb::new(capacity as usize, [random_word(), random_word()]);
        fdb.set_damping(self.damping);
        let held = Held {
            name: name.into(),
            capacity,
            fdb: Arc::new(fdb),
            tag: [0; TAG_LEN],
        };
        let count = self.all.len();
        match self.all.iter_mut().find(|place| place.is_none()) {
            Some(free) => *free = Some(held),
            None if count < BRIDGES_MAX - 1 => self.all.push(Some(held)),
            None => tracing::error!("there are {BRIDGES_MAX} bridges already: {name} is not added"),
        }
    }
}

impl Dataplane {
    /// Makes the bridges those of the configuration. With `keeps_used`, a bridge that a port is still in stays.
    pub fn set_bridges(&self, wanted: &Config, keeps_used: bool) {
        let mut state = self.lock();
        let State {
            bridges,
            ports,
            snooping,
            leases,
            ..
        } = &mut *state;
        let used = |name: &str| {
            let mut ports = ports.iter().flatten();
            keeps_used && ports.any(|port| port.options.bridges.names(name))
        };
        let (mut has_changed, mut gone) = (false, Vec::new());
        for (number, place) in (1..NO_BRIDGE).zip(&mut bridges.all) {
            let Some(held) = place else { continue };
            let is_same = |one: &crosspoint_config::Bridge| {
                *one.name == *held.name && one.fdb_capacity == held.capacity
            };
            let is_named = wanted.bridges.iter().any(|one| *one.name == *held.name);
            let is_kept = wanted.bridges.iter().any(is_same) || (!is_named && used(&held.name));
            if !is_kept {
                gone.extend(place.take().map(|held| held.fdb));
                snooping.forget_bridge(number);
                leases.forget_bridge(number);
                has_changed = true;
            }
        }
        for one in &wanted.bridges {
            if bridges.number(&one.name) == NO_BRIDGE {
                bridges.add(&one.name, one.fdb_capacity);
                has_changed = true;
            }
        }
        has_changed |= bridges.note_tags(ports);
        if has_changed {
            for port in ports.iter_mut().flatten() {
                let Port { view, options, .. } = port;
                bridges.place(view, &options.bridges);
            }
            // The quota of a removed database is given back twice: before ports use another one, and afterwards for what workers
            // learned meanwhile.
            let give_back = |state: &State| {
                let quota = |port| state.view.port(port).map(|port| &*port.quota);
                gone.iter()
                    .for_each(|fdb| fdb.remove_if(quota, |_, _, _| true));
            };
            give_back(&state);
            drop(self.publish(&mut state, Vec::new()));
            give_back(&state);
            let ports = state.ports.iter_mut().flatten();
            ports.for_each(Port::reset_refusals);
        }
    }

    /// Every forwarding database, with its bridge's number.
    pub(super) fn fdbs(&self, state: &State) -> Vec<(u8, Arc<Fdb>)> {
        let others = state
            .bridges
            .fdbs()
            .map(|(number, fdb)| (number, fdb.clone()));
        let own = [(DEFAULT_BRIDGE, self.fdb.clone())];
        own.into_iter().chain(others).collect()
    }

    /// The bridges, for `show`.
    pub(super) fn bridge_status(&self, state: &State) -> Vec<BridgeStatus> {
        let fdbs = self.fdbs(state).into_iter();
        let status = |(number, fdb): (u8, Arc<Fdb>)| {
            let name = state.bridges.name(number);
            let name = name.map_or(DEFAULT_NAME, |name| name);
            let ports = state.ports.iter().flatten();
            let mut names: Vec<String> = ports
                .filter(|port| port.options.bridges.names(name))
                .map(|port| port.options.name.clone())
                .collect();
            names.sort_unstable();
            let mut tags = state.ports.iter().flatten();
            let tag = tags.find_map(|port| {
                let mut tags = port.options.bridges.tags.iter();
                tags.find(|tag| tag.bridge == name)
            });
            BridgeStatus {
                name: name.to_owned(),
                ports: names,
                tag: tag.map(|tag| tag.vlan),
                protocol: tag.map(|tag| tag.protocol_word().to_owned()),
                entries: fdb.entries(),
                capacity: fdb.capacity(),
            }
        };
        fdbs.map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use crosspoint_config::Bridge as BridgeConfig;
    use crosspoint_packet::Mac;

    use super::*;
    use crate::dataplane::{PortOptions, testing};

    fn config(fdb_capacity: u32) -> Config {
        Config {
            bridges: vec![BridgeConfig {
                name: "tenant-a".to_owned(),
                fdb_capacity,
            }],
            ..Config::default()
        }
    }

    /// Addresses of a database that is replaced take up nothing of their port's limit.
    #[test]
    fn a_bridge_with_another_capacity_begins_without_addresses() {
        let dataplane = testing::start(1);
        dataplane.set_bridges(&config(28_672), true);
        let options = PortOptions {
            name: "web-1".to_owned(),
            mac_limit: 1,
            bridges: PortBridges {
                own: "tenant-a".to_owned(),
                tags: Vec::new(),
            },
            ..PortOptions::default()
        };
        let number = dataplane.add_port(options).expect("there is room");
        let learn = |last: u8| {
            let state = dataplane.lock();
            let port = state.view.port(number).expect("it is there");
            let fdb = state.view.fdb_of(port.bridge).expect("its bridge");
            let key = fdb.key(Mac::new([2, 0, 0, 0, 0, last]), 0);
            fdb.learn(key, number, 0, |_| Some(&*port.quota));
            (port.quota.used(), port.quota.events.addresses_refused.get())
        };
        assert_eq!((learn(1), learn(2)), ((1, 0), (1, 1)));
        dataplane.set_bridges(&config(57_344), true);
        assert_eq!((learn(2), learn(1)), ((1, 1), (1, 2)));
        dataplane.stop();
    }
}
