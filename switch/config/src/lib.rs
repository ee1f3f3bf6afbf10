//! The switch's configuration: a TOML file, checked as a whole before anything is started or changed.
//!
//! [`Config::load`] returns plain data, or a [`ConfigError`] that lists every mistake with its file, line, column, and
//! how to fix it. The main file may name a folder with files of more ports (`ports_dir`); [`Config::load_lenient`]
//! leaves out those that are wrong.
//!
//! Every key is a line of `table`; `key` has the machinery that makes all else of it, and `rules` and `texts` what a
//! value must be. The steps for a file: `files` (its text), `syntax` (is it TOML?), `keys` (unknown keys), `table` (each
//! key's value), then `sections`, `ports` and `lists` (keys against each other, ports against each other), with `direct`,
//! `addresses` and `statics`; `check` collects the problems.

mod addresses;
mod bridges;
mod check;
mod control;
mod cores;
mod cpus;
mod direct;
mod duration;
mod edit;
mod error;
mod field;
mod files;
mod group_link;
mod group_rules;
mod group_values;
mod groups;
mod keep;
mod key;
#[cfg(test)]
mod key_tests;
mod keys;
mod lenient;
pub mod limits;
mod lists;
mod load;
mod mirrors;
mod nested;
mod patience;
pub mod pattern;
pub mod plan;
mod ports;
pub mod quantity;
mod rules;
mod sandbox;
mod sections;
mod set_cache;
mod sets;
mod statics;
mod suggest;
mod syntax;
mod table;
mod text_list;
mod texts;
mod types;
mod vlan;
pub mod watch;
mod words;
mod written;

pub use addresses::{Addresses, parse_address, prefix_text};
pub use bridges::BridgeTag;
pub use control::control_names;
pub use cores::CoreSpans;
pub use cpus::Cpus;
pub use edit::{PortTable, parse_assignments, parse_changes, parse_port_file};
pub use error::{ConfigError, Problem};
pub use files::{Unreadable, read_file, read_named};
pub use group_rules::GroupRule;
pub use group_values::{Peer, protocol_text};
pub use keep::{FileChanges, KeepError, PreparedChanges, PreparedSet, prepare_set};
pub use key::Written;
pub use lenient::Loaded;
pub use sandbox::KeptCapability;
pub use table::{
    Access, Bridge, Connections, Control, Direct, Group, Ipfix, Log, LoopProtect, Metrics,
    MetricsTls, Mirror, Multicast, Offloads, Port, Sandbox, Set, Sflow, Slo, StaticEntry, Switch,
    VhostPort, Workers, XdpPort,
};
pub use texts::parse_mac;
pub use types::{
    Admin, Balance, Config, Cores, HugePages, LogFormat, LogLevel, LogTarget, LoopAction,
    MacLimitAction, MirrorDirection, OnChange, Poll, PortKind, Queues, Role, Rss, RuleDirection,
    TagProtocol, Tso, UnknownMulticast, Vlan, XdpMode,
};
pub use vlan::text as vlan_list;
pub use written::schema_json;
