//! Requests over the control socket, and refusals.

use std::path::PathBuf;
use std::time::Duration;

use crosspoint_config::{ConfigError, KeepError, PortTable, Problem};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::capture::{TraceWanted, Wanted};
use crate::topic::Topic;

/// The longest that a client may take to send a request, including the pause before it.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);

/// A stream, and the worker that is to poll it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Name of the port.
    pub port: String,
    /// The queue's number.
    pub queue: u16,
    /// The worker's number.
    pub worker: usize,
}

/// A request to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// `{"show":"ports"}`: one topic of the status.
    Show(Topic),
    /// `{"port":"web-1"}`: everything known about one port.
    Port(String),
    /// `{"snapshot":{}}`: a [`StatusReport`](crosspoint_model::status::StatusReport). Its form is private to a daemon and a command line of the
    /// same version.
    Snapshot {},
    /// `{"move":{"port":"web-1","queue":0,"worker":1}}`: moves a stream to another worker.
    Move(Place),
    /// `{"capture":{"port":"web-1"}}`: frames and their verdicts; see [`capture`](crosspoint_model::capture). It takes over the
    /// connection.
    Capture(Wanted),
    /// `{"trace":{"port":"web-1"}}`: what happens to frames, stage by stage. It takes over the connection too.
    Trace(TraceWanted),
    /// `{"health":{}}`: whether the switch works, as a [`Health`].
    Health {},
    /// `{"plan":{"config":"/abs/path"}}`: what would change; null or absent: with the file that the daemon was started with.
    Plan {
        /// The other file, by an absolute path.
        #[serde(default)]
        config: Option<PathBuf>,
    },
    /// `{"reload":{}}`: reads the configuration again.
    Reload {},
    /// `{"port_add":{"name":"web-1","type":"vhost", ...}}`: the keys of a `[[port]]` table, and perhaps `"keep":true`.
    PortAdd(PortAdd),
    /// `{"port_remove":"web-1"}` or `{"port_remove":{"name":"web-1","keep":true}}`.
    PortRemove(PortRemove),
    /// `{"port_set":{"name":"web-1","set":{"mac_limit":10}}}`, and perhaps `"keep":true`.
    PortSet(PortSet),
    /// `{"config":{}}`: the running configuration, as the text of a file.
    Config {},
    /// `{"keep":{}}`: writes every port that is not in the files, or differs from them, to its own file, and static addresses
    /// that are not in the files.
    Keep {},
    /// `{"fdb_flush":{"port":"web-1"}}`: forgets learned addresses; every key may be left out.
    FdbFlush(FdbFlush),
    /// `{"fdb_add":{"mac":"52:54:00:00:00:01","port":"web-1","vlan":100}}`: puts an address on a port.
    FdbAdd(FdbAdd),
    /// `{"fdb_remove":{"mac":"52:54:00:00:00:01"}}`: takes a static address off its port.
    FdbRemove(FdbRemove),
    /// `{"connections":{"port":"web-1","limit":100}}`: tracked connections, as
    /// [`ConnectionTable`](crosspoint_model::rows::ConnectionTable); every key may be left out.
    Connections(ConnectionsWanted),
    /// `{"set_add":{"set":"admins","addresses":["192.0.2.1"]}}`: adds addresses to a set, and perhaps `"keep":true`.
    SetAdd(SetChange),
    /// `{"set_remove":{"set":"admins","addresses":["192.0.2.1"]}}`: removes addresses from a set, likewise.
    SetRemove(SetChange),
}

/// Which connections to show: those that all given keys name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionsWanted {
    /// The port's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// An address or prefix, at either end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The most to show; absent: [`CONNECTIONS_SHOWN`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// How many connections are shown if the request has no limit.
pub const CONNECTIONS_SHOWN: usize = 1000;

/// A change of a set of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetChange {
    /// The set's name.
    pub set: String,
    /// Addresses and prefixes.
    pub addresses: Vec<String>,
    /// Whether to write them to the set's file, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// What a change of a set has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAnswer {
    /// How many addresses were added or removed. Those that the set had already, or had not, are not counted.
    pub changed: usize,
    /// How many addresses the set has now.
    pub addresses: usize,
}

/// Which learned addresses to forget: those that all given keys name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FdbFlush {
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The port's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The VLAN; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The bridge's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// An address to put on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// The address.
    pub mac: String,
    /// The port's name.
    pub port: String,
    /// Its VLAN, 0 for none; absent: the VLAN of the port's untagged frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Its bridge, if that is not the port's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Whether to write it to `ports_dir` too, so that it is still there after a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// A static address to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbRemove {
    /// The address.
    pub mac: String,
    /// Its VLAN, 0 for none; absent: all VLANs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Its bridge; absent: all bridges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Whether to remove it from its file in `ports_dir` too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Whether it is no error if the address is not static.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_exists: bool,
}

/// What a change of the forwarding database has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbAnswer {
    /// Number of addresses that are forgotten.
    #[serde(default)]
    pub removed: usize,
    /// The VLAN of an address that was put on a port; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// A port to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortAdd {
    /// Whether to write it to `ports_dir` too, so that it is still there after a reload or a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Whether a port of this name may exist. It is changed to these keys, if it has others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_exist: bool,
    /// The keys of a `[[port]]` table.
    #[serde(flatten)]
    pub port: PortTable,
}

/// A port to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PortRemoveForm")]
pub struct PortRemove {
    /// Its name.
    pub name: String,
    /// Whether to remove its file in `ports_dir` too.
    pub keep: bool,
    /// Whether it is no error if there is no such port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_exists: bool,
}

/// The two forms of [`PortRemove`].
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum PortRemoveForm {
    Name(String),
    Table {
        name: String,
        #[serde(default)]
        keep: bool,
        #[serde(default)]
        if_exists: bool,
    },
}

impl From<PortRemoveForm> for PortRemove {
    fn from(form: PortRemoveForm) -> Self {
        match form {
            PortRemoveForm::Name(name) => PortRemove {
                name,
                keep: false,
                if_exists: false,
            },
            PortRemoveForm::Table {
                name,
                keep,
                if_exists,
            } => PortRemove {
                name,
                keep,
                if_exists,
            },
        }
    }
}

/// A port to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    /// Its name.
    pub name: String,
    /// New values of keys; null sets the default.
    pub set: PortTable,
    /// Whether to write it to `ports_dir` too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeError {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    pub help: String,
    /// Which lines of a configuration are wrong and why: [`ConfigError::render`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}

impl ChangeError {
    /// An error without a report.
    pub fn new(error: impl Into<String>, help: impl Into<String>) -> Self {
        ChangeError {
            error: error.into(),
            help: help.into(),
            report: None,
        }
    }

    /// The error of a command of one line: what is wrong in one line, and how to fix it in another. The report, with an
    /// excerpt of a file that its user did not write, is for programs.
    pub fn of_command(error: &ConfigError) -> Self {
        let errors: Vec<String> = error.problems().map(Problem::in_one_line).collect();
        let mut helps: Vec<&str> = error.problems().map(Problem::help_text).collect();
        helps.dedup();
        ChangeError {
            error: errors.join("; "),
            help: helps.join("; "),
            report: Some(error.render()),
        }
    }

    /// The error of sources that cannot be changed.
    pub fn unchangeable() -> Self {
        Self::new("this switch cannot be changed", "start it again")
    }
}

impl From<ConfigError> for ChangeError {
    fn from(error: ConfigError) -> Self {
        ChangeError {
            error: error.to_string(),
            help: "nothing was changed: fix the mistakes and try again".to_owned(),
            report: Some(error.render()),
        }
    }
}

impl From<KeepError> for ChangeError {
    fn from(error: KeepError) -> Self {
        let help = error.help().map(|help| help.to_string());
        ChangeError::new(error.to_string(), help.unwrap_or_default())
    }
}
