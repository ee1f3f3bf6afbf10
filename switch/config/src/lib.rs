//! The switch's configuration: a TOML file, checked as a whole before anything is started or changed.
//!
//! [`Config::load`] returns plain data, or a [`ConfigError`] that lists every mistake with its file, line, column, and
//! how to fix it. The main file may name a folder with files of more ports (`ports_dir`); [`Config::load_lenient`]
//! leaves out those that are wrong. The steps for a file: `files` (its text), `syntax` (is it TOML?), `keys` (unknown
//! keys), `raw` and `field` (serde, with places), then `sections`, `ports`, `direct`, `slo`, `storm`, `addresses`,
//! `control`, `loop_protect` and `vlan` (the values' meaning), with the checks in `values`; `check` collects the
//! problems.

mod addresses;
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
mod keep;
mod keys;
mod lenient;
pub mod limits;
mod load;
mod loop_protect;
mod offloads;
mod patience;
pub mod plan;
mod ports;
mod raw;
mod sections;
mod slo;
mod storm;
mod suggest;
mod syntax;
mod types;
mod values;
mod vlan;
pub mod watch;
mod written;

pub use control::control_names;
pub use cores::CoreSpans;
pub use cpus::Cpus;
pub use edit::{PortTable, parse_assignments, parse_port_file};
pub use error::{ConfigError, Problem};
pub use files::read_named;
pub use keep::{KeepError, port_file, remove_port_file, write_port_file};
pub use lenient::Loaded;
pub use raw::schema_json;
pub use types::{
    Access, Balance, Config, Control, Cores, Direct, HugePages, Log, LogFormat, LogLevel,
    LogTarget, LoopAction, LoopProtect, Metrics, Offloads, Poll, Port, PortKind, Queues, Role, Rss,
    Slo, Switch, Tso, VhostPort, Vlan, Workers, XdpMode, XdpPort,
};
pub use written::Written;
