//! A plan and its result, as the control socket sends them. The format is stable: keys may be added, none is removed.

use std::path::PathBuf;

use crosspoint_config::Port;
use crosspoint_config::plan::{EntryDiff, How, KeyDiff, Plan, PortDiff, SettingDiff, When};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What `crosspoint plan --json` prints:
///
/// ```json
/// {
///   "add": [{"name": "web-3", "type": "vhost", "keys": {"name": "web-3", "type": "vhost", "socket": "/run/3"}}],
///   "remove": ["web-1"],
///   "change": [{"name": "web-2", "how": "in_place", "keys": [{"key": "mac_limit", "before": 1024, "after": 10}]}],
///   "settings": [{"key": "workers.cores", "before": "auto", "after": [2, 3], "applied": "restart"}],
///   "entries": [{"list": "fdb", "name": "52:54:00:00:00:01", "change": "add",
///                "keys": [{"key": "port", "before": null, "after": "web-1"}]}]
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAnswer {
    /// Ports that are added.
    pub add: Vec<AddedPort>,
    /// Names of the ports that are removed.
    pub remove: Vec<String>,
    /// Ports that change.
    pub change: Vec<ChangedPort>,
    /// Settings outside of ports that change.
    pub settings: Vec<Setting>,
    /// Tables of lists, such as `[[fdb]]`, that change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<ChangedEntry>,
    /// Ports that run and are in no file. They stay until they are removed, or the switch ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_in_files: Vec<String>,
    /// Static addresses that are in no file, likewise: "52:54:00:00:00:01 vlan 100".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fdb_not_in_files: Vec<String>,
}

/// How a running port differs from the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unkept {
    /// "not_in_files": no file has a port of this name.
    NotInFiles,
    /// "changed": its file has other keys. The next reload sets those.
    Changed,
    /// "not_running": its file has it, and it does not run. The next reload adds it.
    NotRunning,
}

impl Unkept {
    /// The difference as a remark.
    pub fn remark(self) -> &'static str {
        match self {
            Unkept::NotInFiles => "(not in any file)",
            Unkept::Changed => "(differs from its file)",
            Unkept::NotRunning => "(in the files, and does not run)",
        }
    }
}

/// Output of `crosspoint keep --json`: what was written, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAnswer {
    /// Ports that have been written to their files.
    pub kept: Vec<KeptPort>,
    /// Ports that have not.
    pub not_kept: Vec<NotKept>,
    /// Static addresses that have been written to their file: "52:54:00:00:00:01 vlan 100".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_fdb: Vec<KeptPort>,
    /// Static addresses that have not, with a table `[[fdb]]` for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_kept_fdb: Vec<NotKept>,
    /// Sets whose changes by commands have been written to their files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_sets: Vec<KeptPort>,
    /// Sets whose changes have not, with a line for each address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_kept_sets: Vec<NotKept>,
}

/// A port or static address that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPort {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// A port or static address that cannot be written by the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotKept {
    /// Its name.
    pub name: String,
    /// The reason, and the file that has the port, if any.
    pub error: String,
    /// What to do.
    pub help: String,
    /// It as it runs, as a table of a file.
    pub table: String,
}

/// A port that is added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedPort {
    /// Its name.
    pub name: String,
    /// "vhost" or "xdp".
    #[serde(rename = "type")]
    pub kind: String,
    /// Its table, with every default.
    pub keys: Map<String, Value>,
}

/// A port that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedPort {
    /// Its name.
    pub name: String,
    /// Whether its traffic goes on during the change.
    pub how: HowChanged,
    /// The keys whose values differ. For an uplink this can include `direct_queues`, which is not a key of the file:
    /// the queues that guests own.
    pub keys: Vec<Key>,
    /// What the change takes from the running guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How a port is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HowChanged {
    /// "in_place": its traffic goes on.
    InPlace,
    /// "reopen": it is closed and opened again.
    Reopen,
}

/// A key with different values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The key.
    pub key: String,
    /// Its old value; null for none.
    pub before: Value,
    /// Its new value; null for none.
    pub after: Value,
}

/// A setting with different values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The key with its section, as in "workers.cores", and both values.
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
    /// "restart": at the next start of the switch.
    Restart,
}

/// A table of a list, such as `[[fdb]]`, that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedEntry {
    /// The list: "fdb".
    pub list: String,
    /// What tells it from the others of the list: an address and its VLAN, or a name.
    pub name: String,
    /// Whether it is added, removed or changed.
    pub change: EntryChange,
    /// The keys whose values differ.
    pub keys: Vec<Key>,
}

/// How a table of a list changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryChange {
    /// "add".
    Add,
    /// "remove".
    Remove,
    /// "change": some of its keys have other values.
    Change,
}

/// Output of `crosspoint reload --json` and of the commands that change ports: the plan, and the parts that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// The planned changes. Those that need a restart were not made.
    #[serde(flatten)]
    pub plan: PlanAnswer,
    /// The other changes that were not made.
    pub failed: Vec<Failure>,
    /// Remarks for the operator, such as what a new port waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A part of a plan that could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The port's name, or a setting's key.
    pub what: String,
    /// The reason.
    pub error: String,
}

impl PlanAnswer {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let none = self.add.is_empty() && self.remove.is_empty();
        none && self.change.is_empty() && self.settings.is_empty() && self.entries.is_empty()
    }
}

impl From<&Plan> for PlanAnswer {
    fn from(plan: &Plan) -> Self {
        PlanAnswer {
            add: plan.add.iter().map(AddedPort::from).collect(),
            remove: plan.remove.clone(),
            change: plan.change.iter().map(ChangedPort::from).collect(),
            settings: plan.settings.iter().map(Setting::from).collect(),
            entries: plan.entries.iter().map(ChangedEntry::from).collect(),
            not_in_files: Vec::new(),
            fdb_not_in_files: Vec::new(),
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

impl From<&EntryDiff> for ChangedEntry {
    fn from(diff: &EntryDiff) -> Self {
        ChangedEntry {
            list: diff.list.to_owned(),
            name: diff.name.clone(),
            change: match (&diff.before, &diff.after) {
                (None, _) => EntryChange::Add,
                (_, None) => EntryChange::Remove,
                _ => EntryChange::Change,
            },
            keys: diff.keys.iter().map(Key::from).collect(),
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
