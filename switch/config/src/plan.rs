//! The difference of two configurations: what must change in a running switch.
//!
//! [`Plan::between`] is pure: it uses nothing but the two configurations. A plan is carried out in this order, since a
//! new port may need the socket, interface or queue that another gives up: close what is removed or reopens, change
//! what changes in place, open what reopens or is added.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::key::{Change, Key, Keys as _, Written};
use super::lists;
use super::sets;
use super::table::Top;
use super::{Config, Port, PortKind};

/// The changes that turn a switch with one configuration into one with another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// New ports, in the order of the wanted configuration.
    pub add: Vec<Port>,
    /// The names of removed ports, in the order of the running configuration.
    pub remove: Vec<String>,
    /// Ports that exist in both and differ, in the order of the wanted configuration.
    pub change: Vec<PortDiff>,
    /// Changed settings outside of ports.
    pub settings: Vec<SettingDiff>,
    /// Changed tables of lists, such as `[[fdb]]`.
    pub entries: Vec<EntryDiff>,
}

/// A table of a list, such as `[[fdb]]`, that is added, removed or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDiff {
    /// The list: "fdb".
    pub list: &'static str,
    /// What tells it from the others of the list: "52:54:00:00:00:01 vlan 100".
    pub name: String,
    /// Its running table, in JSON as it would be in TOML; `None` if it is added.
    pub before: Option<Map<String, Value>>,
    /// Its wanted table; `None` if it is removed.
    pub after: Option<Map<String, Value>>,
    /// The keys whose values differ.
    pub keys: Vec<KeyDiff>,
}

/// A port that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDiff {
    /// Its name, which cannot change: a different name means a different port.
    pub name: String,
    /// The running configuration.
    pub before: Port,
    /// The wanted configuration.
    pub after: Port,
    /// The keys whose values differ. Empty if the only reason is `direct`, or that its uplink reopens.
    pub keys: Vec<KeyDiff>,
    /// For an uplink: a change of the queues that guests own, which changes its own queues too.
    pub direct: Option<DirectDiff>,
    /// How it is changed.
    pub how: How,
}

/// The queues of an uplink that guests own ([`Config::direct_queues`]), sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectDiff {
    /// In the running configuration.
    pub before: Vec<u32>,
    /// In the wanted configuration.
    pub after: Vec<u32>,
}

/// A key with different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDiff {
    /// The key.
    pub key: &'static str,
    /// Its running value, in JSON as it would be in TOML; `None` for no value.
    pub before: Option<Value>,
    /// Its wanted value.
    pub after: Option<Value>,
}

impl KeyDiff {
    /// The key and both values in TOML: "mac_limit 1024 -> 10".
    pub fn text(&self) -> String {
        let text = |value: &Option<Value>| {
            let value = value.as_ref().map(toml::Value::try_from);
            value
                .and_then(Result::ok)
                .map_or("none".to_owned(), |value| value.to_string())
        };
        format!(
            "{} {} -> {}",
            self.key,
            text(&self.before),
            text(&self.after)
        )
    }
}

/// The keys of two ports that differ.
pub fn differing(before: &Port, after: &Port) -> Vec<KeyDiff> {
    key_diffs(before.written(), after.written())
}

/// How a port is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// Its traffic goes on.
    InPlace,
    /// It is closed and opened again: a guest's front end reconnects, an interface's sockets are recreated.
    Reopen,
}

/// A setting with different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingDiff {
    /// The key with its section, as in "workers.cores", and both values.
    pub diff: KeyDiff,
    /// When it takes effect.
    pub when: When,
}

/// When a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At the reload.
    AtOnce,
    /// At the next start of the switch.
    NeedsRestart,
}

/// How a port's key can change. `None` for another name, which counts as [`How::Reopen`].
pub fn how(key: &str) -> Option<How> {
    match change(Port::keys(), key)? {
        Change::InPlace => Some(How::InPlace),
        Change::Reopens => Some(How::Reopen),
        _ => None,
    }
}

/// When a new value of a setting takes effect. `None` for another name, which counts as [`When::NeedsRestart`].
pub fn when(key: &str) -> Option<When> {
    match change(Top::keys(), key)? {
        Change::AtOnce => Some(When::AtOnce),
        Change::Restart => Some(When::NeedsRestart),
        _ => None,
    }
}

fn change(keys: Vec<Key>, path: &str) -> Option<Change> {
    // A key of an inner table may have the name of one of these.
    if let Some(own) = keys.iter().find(|key| key.name.path == path) {
        return Some(own.name.change);
    }
    let inner = keys.into_iter().filter_map(|key| key.table);
    inner
        .map(|(_, inner)| inner())
        .find_map(|keys| change(keys, path))
}

impl Plan {
    /// The changes that turn `running` into `wanted`.
    pub fn between(running: &Config, wanted: &Config) -> Plan {
        let (before, after) = (by_name(running), by_name(wanted));
        let is_new = |port: &&Port| !before.contains_key(&*port.name);
        let is_gone = |port: &&Port| !after.contains_key(&*port.name);
        let names_gone = running.ports.iter().filter(is_gone);
        let both = wanted.ports.iter().filter_map(|port| {
            let before = *before.get(&*port.name)?;
            let direct = direct_diff(&port.name, running, wanted);
            port_diff(before, port, direct)
        });
        let mut change: Vec<PortDiff> = both.collect();
        let mut entries = [
            lists::diffs(&running.bridges, &wanted.bridges),
            lists::diffs(&running.fdb, &wanted.fdb),
            lists::diffs(&running.mirrors, &wanted.mirrors),
            lists::diffs(&running.groups, &wanted.groups),
            lists::diffs(&running.sets, &wanted.sets),
        ]
        .concat();
        entries.extend(sets::file_diffs(running, wanted, &entries));
        reopen_with_uplinks(&mut change, running, wanted);
        Plan {
            add: wanted.ports.iter().filter(is_new).cloned().collect(),
            remove: names_gone.map(|port| port.name.clone()).collect(),
            change,
            settings: setting_diffs(running, wanted),
            entries,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Plan {
            add,
            remove,
            change,
            settings,
            entries,
        } = self;
        let ports = add.is_empty() && remove.is_empty() && change.is_empty();
        ports && settings.is_empty() && entries.is_empty()
    }

    /// The settings that change only at the next start.
    pub fn needs_restart(&self) -> impl Iterator<Item = &SettingDiff> {
        let settings = self.settings.iter();
        settings.filter(|setting| setting.when == When::NeedsRestart)
    }
}

/// Makes guests with a queue of an uplink reopen with that uplink, since they are bound to it as it was opened.
fn reopen_with_uplinks(change: &mut Vec<PortDiff>, running: &Config, wanted: &Config) {
    let reopens = |diff: &&PortDiff| diff.how == How::Reopen;
    let uplinks: BTreeSet<String> = change
        .iter()
        .filter(reopens)
        .map(|diff| diff.name.clone())
        .collect();
    let before = by_name(running);
    let is_bound = |port: &&Port| match &port.kind {
        PortKind::Vhost(guest) => {
            let uplink = guest.direct.as_ref().map(|direct| &direct.uplink);
            uplink.is_some_and(|uplink| uplinks.contains(uplink))
        }
        PortKind::Xdp(_) => false,
    };
    for after in wanted.ports.iter().filter(is_bound) {
        let Some(before) = before.get(&*after.name) else {
            continue;
        };
        match change.iter_mut().find(|diff| diff.name == after.name) {
            Some(diff) => diff.how = How::Reopen,
            None => change.push(PortDiff {
                name: after.name.clone(),
                before: (*before).clone(),
                after: after.clone(),
                keys: Vec::new(),
                direct: None,
                how: How::Reopen,
            }),
        }
    }
    let place = |name: &str| wanted.ports.iter().position(|port| port.name == name);
    change.sort_by_key(|diff| place(&diff.name));
}

fn by_name(config: &Config) -> HashMap<&str, &Port> {
    let ports = config.ports.iter();
    ports.map(|port| (&*port.name, port)).collect()
}

/// The difference of two ports of the same name, if any.
fn port_diff(before: &Port, after: &Port, direct: Option<DirectDiff>) -> Option<PortDiff> {
    let keys = key_diffs(before.written(), after.written());
    let of_keys = keys.iter().map(|diff| how(diff.key).unwrap_or(How::Reopen));
    let how = of_keys.chain(direct.iter().map(|_| How::Reopen)).max()?;
    Some(PortDiff {
        name: after.name.clone(),
        before: before.clone(),
        after: after.clone(),
        keys,
        direct,
        how,
    })
}

/// The change of the queues of `name` that guests own, if any. `None` for a guest's port.
fn direct_diff(name: &str, running: &Config, wanted: &Config) -> Option<DirectDiff> {
    let sorted = |config: &Config| {
        let queues: BTreeSet<u32> = config.direct_queues(name).into_iter().collect();
        Vec::from_iter(queues)
    };
    let (before, after) = (sorted(running), sorted(wanted));
    (before != after).then_some(DirectDiff { before, after })
}

/// The keys that differ, with those of `after` first.
pub(super) fn key_diffs(before: Vec<Written>, after: Vec<Written>) -> Vec<KeyDiff> {
    let value_in = |all: &[Written], key: &str| {
        let mut all = all.iter();
        all.find(|(other, _)| *other == key)
            .map(|(_, value)| value.clone())
            .filter(|value| !value.is_null())
    };
    let is_gone = |(key, _): &&Written| after.iter().all(|(other, _)| other != key);
    let keys = after.iter().chain(before.iter().filter(is_gone));
    let diffs = keys.map(|(key, _)| KeyDiff {
        key,
        before: value_in(&before, key),
        after: value_in(&after, key),
    });
    diffs.filter(|diff| diff.before != diff.after).collect()
}

fn setting_diffs(running: &Config, wanted: &Config) -> Vec<SettingDiff> {
    let diffs = key_diffs(running.written_settings(), wanted.written_settings());
    let setting = |diff: KeyDiff| SettingDiff {
        when: when(diff.key).unwrap_or(When::NeedsRestart),
        diff,
    };
    diffs.into_iter().map(setting).collect()
}
