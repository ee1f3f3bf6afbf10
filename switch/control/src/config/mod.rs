//! The switch's configuration: a TOML file, checked as a whole before anything is started or changed.
//!
//! [`Config::load`] gives plain data, or a [`ConfigError`] that lists every mistake in the file with its line, its
//! column, and how to mend it. The way of a file: `syntax` (is it TOML?), `keys` (unknown keys), `raw` and `field`
//! (serde, with places), then `sections`, `ports`, `direct`, `slo` and
//! `vlan` (what the values mean), with the checks in `values`; `check` collects what is wrong.

mod check;
mod cores;
mod direct;
mod duration;
mod error;
mod field;
mod keys;
pub mod limits;
mod load;
mod ports;
mod raw;
mod sections;
mod slo;
mod suggest;
mod syntax;
mod types;
mod values;
mod vlan;

pub use cores::CoreSpans;
pub use error::{ConfigError, Problem};
pub use raw::schema_json;
pub use types::{
    Balance, Config, Control, Cores, Direct, HugePages, Metrics, Poll, Port, PortKind, Queues,
    Role, Rss, Slo, Switch, Tso, VhostPort, Vlan, Workers, XdpMode, XdpPort,
};
