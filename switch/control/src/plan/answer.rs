//! A plan as the control socket tells it, and what became of it. The shapes are stable: keys may come, and none goes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{How, KeyDiff, Plan, PortDiff, SettingDiff, When};
use crate::config::Port;

/// What `crosspoint plan --json` prints:
///
/// ```json
/// {
///   "add": [{"name": "web-3", "type": "vhost", "keys": {"name": "web-3", "type": "vhost", "socket": "/run/3"}}],
///   "remove": ["web-1"],
///   "change": [{"name": "web-2", "how": "in_place", "keys": [{"key": "mac_limit", "before": 1024, "after": 10}]}],
///   "settings": [{"key": "workers.cores", "before": "auto", "after": [2, 3], "applied": "restart"}]
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAnswer {
    /// Ports that come.
    pub add: Vec<AddedPort>,
    /// Names of the ports that go.
    pub remove: Vec<String>,
    /// Ports that change.
    pub change: Vec<ChangedPort>,
    /// What is no port's and changes.
    pub settings: Vec<Setting>,
}

/// A port that comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedPort {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    #[serde(rename = "type")]
    pub kind: String,
    /// Its table, every default spelt out.
    pub keys: Map<String, Value>,
}

/// A port that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedPort {
    /// Its name.
    pub name: String,
    /// Whether its traffic goes on.
    pub how: HowChanged,
    /// The keys that have other values. Of an uplink, `direct_queues` is among them, though it is no key of the file: the
    /// queues that guests have for themselves.
    pub keys: Vec<Key>,
    /// What it takes from the guest that runs there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What changing a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowChanged {
    /// "in_place": its traffic goes on.
    InPlace,
    /// "reopen": it is closed and opened again.
    Reopen,
}

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key.
    pub key: String,
    /// Its value before; null: it had none.
    pub before: Value,
    /// Its value after; null: it has none.
    pub after: Value,
}

/// A setting that has another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The key with its section, as in "workers.cores", and its values.
    #[serde(flatten)]
    pub key: Key,
    /// When it takes effect.
    pub applied: Applied,
}

/// When a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// "at_once".
    AtOnce,
    /// "restart": when the switch is started again.
    Restart,
}

/// What `crosspoint reload --json` prints, and the commands that change ports: the plan, and what of it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// What was to be done. What needs a restart was not done.
    #[serde(flatten)]
    pub plan: PlanAnswer,
    /// What was not done of the rest.
    pub failed: Vec<Failure>,
}

/// A part of a plan that could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The port's name, or a setting's key.
    pub what: String,
    /// Why not.
    pub error: String,
}

impl PlanAnswer {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        let none = self.add.is_empty() && self.remove.is_empty();
        none && self.change.is_empty() && self.settings.is_empty()
    }
}

impl From<&Plan> for PlanAnswer {
    fn from(plan: &Plan) -> Self {
        PlanAnswer {
            add: plan.add.iter().map(AddedPort::from).collect(),
            remove: plan.remove.clone(),
            change: plan.change.iter().map(ChangedPort::from).collect(),
            settings: plan.settings.iter().map(Setting::from).collect(),
        }
    }
}

impl From<&Port> for AddedPort {
    fn from(port: &Port) -> Self {
        AddedPort {
            name: port.name.clone(),
            kind: port.kind_name().to_owned(),
            keys: port.table(),
        }
    }
}

impl From<&PortDiff> for ChangedPort {
    fn from(diff: &PortDiff) -> Self {
        let direct = diff.direct.iter().map(|direct| Key {
            key: "direct_queues".to_owned(),
            before: direct.before.clone().into(),
            after: direct.after.clone().into(),
        });
        ChangedPort {
            name: diff.name.clone(),
            how: match diff.how {
                How::InPlace => HowChanged::InPlace,
                How::Reopen => HowChanged::Reopen,
            },
            keys: diff.keys.iter().map(Key::from).chain(direct).collect(),
            warnings: Vec::new(),
        }
    }
}

impl From<&KeyDiff> for Key {
    fn from(diff: &KeyDiff) -> Self {
        Key {
            key: diff.key.to_owned(),
            before: diff.before.clone().unwrap_or_default(),
            after: diff.after.clone().unwrap_or_default(),
        }
    }
}

impl From<&SettingDiff> for Setting {
    fn from(setting: &SettingDiff) -> Self {
        Setting {
            key: Key::from(&setting.diff),
            applied: match setting.when {
                When::AtOnce => Applied::AtOnce,
                When::NeedsRestart => Applied::Restart,
            },
        }
    }
}
