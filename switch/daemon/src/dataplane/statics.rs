//! Addresses that the operator has put on a port, and addresses that the operator removes.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crosspoint_config::StaticEntry;
use crosspoint_config::limits::STATICS_MAX;
use crosspoint_engine::bridge::several::NO_BRIDGE;
use crosspoint_engine::bridge::vlan::{NO_VLAN, VlanPolicy};
use crosspoint_engine::stages::guard::StaticAddress;
use crosspoint_packet::Mac;
use thiserror::Error;

use super::bridges::Bridges;
use super::{Dataplane, Port, State};

/// Static addresses of the configuration and of the control socket.
#[derive(Default)]
pub(super) struct Statics {
    of_files: Vec<StaticEntry>,
    by_hand: Vec<StaticEntry>,
}

/// Which addresses to remove; `None` for any.
#[derive(Clone, Debug, Default)]
pub struct Flush {
    /// The address.
    pub mac: Option<Mac>,
    /// The port's name.
    pub port: Option<String>,
    /// The VLAN; 0 for none.
    pub vlan: Option<u16>,
    /// The bridge's name.
    pub bridge: Option<String>,
}

/// Why the forwarding database cannot be changed so.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FdbError {
    /// There is no such port.
    #[error("no port is named {0:?}")]
    NoPort(String),
    /// The port has no VLAN for untagged frames.
    #[error("port {0} has no VLAN for untagged frames: name the address's VLAN")]
    NoVlan(String),
    /// The port does not carry the VLAN.
    #[error("port {port} does not carry VLAN {vlan}")]
    NotCarried {
        /// The port.
        port: String,
        /// The VLAN.
        vlan: u16,
    },
    /// The port has no frames of the bridge.
    #[error("port {port} has no frames of bridge {bridge:?}")]
    NotInBridge {
        /// The port.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// There is no such bridge.
    #[error("no bridge is named {0:?}")]
    NoBridge(String),
    /// A static address has no such entry.
    #[error("{0} is not a static address there")]
    NotStatic(Mac),
    /// There are too many.
    #[error("there are {STATICS_MAX} static addresses of commands already")]
    TooMany,
}

impl FdbError {
    /// What the operator can do about it.
    pub fn help(&self) -> &'static str {
        match self {
            FdbError::NoPort(_) => "`crosspoint show ports` lists the ports",
            FdbError::NoVlan(_) | FdbError::NotCarried { .. } => {
                "`crosspoint show port NAME` shows its VLANs"
            }
            FdbError::NoBridge(_) | FdbError::NotInBridge { .. } => {
                "`crosspoint show bridges` lists the bridges and their ports"
            }
            FdbError::NotStatic(_) => {
                "`crosspoint show fdb` marks static addresses; `crosspoint fdb flush MAC` removes a learned one"
            }
            FdbError::TooMany => "remove some: crosspoint fdb remove MAC",
        }
    }
}

/// The VLAN of an entry without one: that of the port's untagged frames.
fn own_vlan(policy: &VlanPolicy) -> Option<u16> {
    policy.admit(None).ok().map(|admitted| admitted.vlan)
}

impl Statics {
    /// All entries of each bridge by address and VLAN, for the ports that there are. Those of the control socket take
    /// precedence.
    fn resolve(&self, state: &State) -> BTreeMap<u8, Arc<[StaticAddress]>> {
        let numbers = (0u16..).zip(&state.ports);
        let numbers = numbers.filter_map(|(number, port)| {
            let port = port.as_ref()?;
            Some((port.options.name.as_str(), (number, port)))
        });
        let numbers: HashMap<&str, (u16, &Port)> = match self.is_empty() {
            true => HashMap::new(),
            false => numbers.collect(),
        };
        let mut all: BTreeMap<u8, BTreeMap<(Mac, u16), u16>> = BTreeMap::new();
        for entry in self.of_files.iter().chain(&self.by_hand) {
            let Some((number, port)) = numbers.get(entry.port.as_str()) else {
                continue;
            };
            let bridge = bridge_of(entry, port, &state.bridges);
            let own = || match bridge == port.view.bridge {
                true => own_vlan(&port.view.vlan),
                false => Some(NO_VLAN),
            };
            if let Some(vlan) = entry.vlan.or_else(own) {
                let of_bridge = all.entry(bridge).or_default();
                of_bridge.insert((entry.mac, vlan), *number);
            }
        }
        let addresses = |of_bridge: BTreeMap<(Mac, u16), u16>| {
            let all = of_bridge.into_iter();
            all.map(|((mac, vlan), port)| StaticAddress { mac, vlan, port })
                .collect()
        };
        all.into_iter()
            .map(|(bridge, of_bridge)| (bridge, addresses(of_bridge)))
            .collect()
    }

    fn is_empty(&self) -> bool {
        self.of_files.is_empty() && self.by_hand.is_empty()
    }
}

/// The number of an entry's bridge on its port.
fn bridge_of(entry: &StaticEntry, port: &Port, bridges: &Bridges) -> u8 {
    match &entry.bridge {
        Some(name) => bridges.number(name),
        None => port.view.bridge,
    }
}

impl Dataplane {
    /// Replaces the static addresses: those of the configuration, and those of the control socket, which take precedence. An
    /// address that is no longer static is forgotten.
    pub fn set_statics(&self, of_files: &[StaticEntry], by_hand: &[StaticEntry]) {
        let mut state = self.lock();
        let statics = &mut state.statics;
        if statics.of_files == of_files && statics.by_hand == by_hand {
            return;
        }
        (statics.of_files, statics.by_hand) = (of_files.to_vec(), by_hand.to_vec());
        let before = state.view.clone();
        drop(self.publish(&mut state, Vec::new()));
        let quota = |port| state.view.port(port).map(|p| &*p.quota);
        for (bridge, fdb) in self.fdbs(&state) {
            let (Some(before), Some(now)) =
                (before.bindings_of(bridge), state.view.bindings_of(bridge))
            else {
                continue;
            };
            let is_gone = |one: &&StaticAddress| now.static_port(one.mac, one.vlan).is_none();
            let gone = before.statics().iter().filter(is_gone);
            let gone: HashSet<(Mac, u16)> = gone.map(|one| (one.mac, one.vlan)).collect();
            if !gone.is_empty() {
                fdb.remove_if(quota, |mac, vlan, _| gone.contains(&(mac, vlan)));
            }
        }
    }

    /// Checks an entry against its port as it is now, and returns its VLAN.
    pub fn check_static(&self, entry: &StaticEntry) -> Result<u16, FdbError> {
        check(&self.lock(), entry)
    }

    /// Static addresses of the control socket, by bridge, address and VLAN.
    pub(super) fn statics_by_hand(state: &State) -> HashSet<(u8, Mac, u16)> {
        let entries = state.statics.by_hand.iter();
        let entry = |one: &StaticEntry| {
            let number = number_of(state, &one.port).ok()?;
            let port = state.ports.get(usize::from(number))?.as_ref()?;
            Some((bridge_of(one, port, &state.bridges), one.mac, one.vlan?))
        };
        entries.filter_map(entry).collect()
    }

    /// Forgets learned addresses. Frames for them are flooded until they are learned again. Returns how many there were.
    pub fn flush(&self, flush: &Flush) -> Result<usize, FdbError> {
        let state = self.lock();
        let port = match &flush.port {
            None => None,
            Some(name) => Some(number_of(&state, name)?),
        };
        let only = match &flush.bridge {
            None => None,
            Some(name) => match state.bridges.number(name) {
                NO_BRIDGE => return Err(FdbError::NoBridge(name.clone())),
                number => Some(number),
            },
        };
        let view = &state.view;
        let quota = |port| view.port(port).map(|p| &*p.quota);
        let removed = Cell::new(0);
        for (bridge, fdb) in self.fdbs(&state) {
            if only.is_some_and(|only| only != bridge) {
                continue;
            }
            let bindings = view.bindings_of(bridge);
            fdb.remove_if(quota, |mac, vlan, on| {
                let home = bindings.and_then(|bindings| bindings.static_port(mac, vlan));
                let is_meant = flush.mac.is_none_or(|wanted| wanted == mac)
                    && flush.vlan.is_none_or(|wanted| wanted == vlan)
                    && port.is_none_or(|wanted| wanted == on)
                    && home != Some(on);
                removed.set(removed.get() + usize::from(is_meant));
                is_meant
            });
        }
        Ok(removed.get())
    }

    /// The static addresses of each bridge, for the next snapshot.
    pub(super) fn statics(&self, state: &State) -> BTreeMap<u8, Arc<[StaticAddress]>> {
        state.statics.resolve(state)
    }

    /// Writes the static addresses into the forwarding databases, where they are younger than any other. Call it after a
    /// change of ports or addresses, and in every tick: then they never age out.
    pub(super) fn put_statics(&self, state: &State) {
        let tick = self.shared.tick.load(Ordering::Relaxed);
        let quota = |port| state.view.port(port).map(|p| &*p.quota);
        for (bridge, fdb) in self.fdbs(state) {
            let bindings = state.view.bindings_of(bridge);
            for entry in bindings.iter().flat_map(|all| all.statics().iter()) {
                let key = fdb.key(entry.mac, entry.vlan);
                if !fdb.put(key, entry.port, tick, quota) {
                    tracing::debug!("the forwarding database has no room for {} now", entry.mac);
                }
            }
        }
    }
}

fn number_of(state: &State, name: &str) -> Result<u16, FdbError> {
    let is_it = |port: &Option<Port>| port.as_ref().is_some_and(|p| p.options.name == name);
    let number = state.ports.iter().position(is_it);
    number.map_or_else(|| Err(FdbError::NoPort(name.to_owned())), |n| Ok(n as u16))
}

/// Checks an entry against the port as it is now, and returns its VLAN.
fn check(state: &State, entry: &StaticEntry) -> Result<u16, FdbError> {
    let number = number_of(state, &entry.port)?;
    let Some(port) = state
        .ports
        .get(usize::from(number))
        .and_then(Option::as_ref)
    else {
        return Err(FdbError::NoPort(entry.port.clone()));
    };
    let (bridge, policy) = (bridge_of(entry, port, &state.bridges), &*port.view.vlan);
    let name = || entry.bridge.clone().unwrap_or_default();
    if bridge == NO_BRIDGE {
        return Err(FdbError::NoBridge(name()));
    }
    if bridge != port.view.bridge {
        return match port.view.is_in(bridge) {
            true => Ok(entry.vlan.unwrap_or(NO_VLAN)),
            false => Err(FdbError::NotInBridge {
                port: entry.port.clone(),
                bridge: name(),
            }),
        };
    }
    let vlan = match entry.vlan {
        Some(vlan) => vlan,
        None => own_vlan(policy).ok_or_else(|| FdbError::NoVlan(entry.port.clone()))?,
    };
    let is_carried = match vlan {
        NO_VLAN => !policy.is_aware(),
        vlan => policy.carries(vlan),
    };
    match is_carried {
        true => Ok(vlan),
        false => Err(FdbError::NotCarried {
            port: entry.port.clone(),
            vlan,
        }),
    }
}
