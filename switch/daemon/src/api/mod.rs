//! The control socket: how `crosspoint show` asks the daemon.
//!
//! A client sends lines, each a request in JSON, and gets a line of JSON for each, in order:
//!
//! ```text
//! {"show":"ports"}
//! {"ok":[{"name":"web-1","kind":"vhost", ...}]}
//! {"show":"prots"}
//! {"error":"invalid request: unknown variant `prots`, ...","help":"send one line such as {\"show\":\"ports\"}; ..."}
//! ```
//!
//! `{"port":"web-1"}` asks for everything known about one port. `{"move":{"port":"web-1","queue":0,"worker":1}}` makes
//! worker 1 poll queue 0 of that port from now on; the answer's `ok` is the same object. `{"plan":{}}`, `{"reload":{}}`,
//! `{"port_add":{...}}`, `{"port_set":{...}}`, `{"port_remove":"web-1"}`, `{"fdb_flush":{...}}`, `{"fdb_add":{...}}`,
//! `{"fdb_remove":{...}}`, `{"set_add":{...}}` and `{"set_remove":{...}}` change the switch, or ask what would change: see
//! [`PortAdd`] and its neighbours, and [`plan`](crosspoint_model::plan) for the answers. `{"health":{}}` asks whether the switch works
//! and is ready; the answer is a [`Health`], and never takes long. `{"snapshot":{}}` asks for all counters and histograms at
//! one moment, for `top`; its keys may change with every version. `{"config":{}}` asks for the running configuration as a
//! file, in `ok.config`. `{"capture":{...}}` and `{"trace":{...}}` show frames, and
//! take over their connection: see [`capture`](crosspoint_model::capture). What `ok` holds is documented in [`show`](crosspoint::show),
//! topic by topic.
//!
//! A request has up to [`REQUEST_BYTES_MAX`] bytes and must arrive within [`REQUEST_TIME_MAX`]; otherwise it is answered
//! with an error, and the connection is closed. Every user that may open the socket's file (mode 0660) may ask.

mod asked;
mod capture;
mod change;
pub(crate) mod health;
pub(crate) mod places;
mod server;
pub mod show;
mod snapshot;
mod socket;
pub(crate) mod thread;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use change::TURN_TIME_MAX;
use crosspoint_model::health::Health;
use crosspoint_model::plan::{KeepAnswer, PlanAnswer, ReloadAnswer, Unkept};
use crosspoint_model::request::{
    ChangeError, ConnectionsWanted, FdbAdd, FdbAnswer, FdbFlush, FdbRemove, PortAdd, PortRemove,
    PortSet, SetAnswer, SetChange,
};
use crosspoint_model::rows::{ConnectionTable, GroupTables, MulticastTable, PortRow};
use crosspoint_model::status::{
    DaemonStatus, FdbEntry, FdbMover, IpfixStatus, SflowStatus, Status,
};
pub(crate) use server::CLOSED;
pub use server::{CLIENTS_MAX, ControlServer, REPLY_TIME_MAX, REQUEST_BYTES_MAX};
pub use socket::SocketError;

use crate::dataplane::{Dataplane, MoveError};

/// Source of the switch's state: the daemon, or a test.
///
/// The methods that only look are called on the control socket's or the metrics server's own thread. They must not wait,
/// since that delays all clients of that thread.
pub trait Source: Send + Sync + 'static {
    /// Everything but the table of addresses, at this moment.
    fn status(&self) -> Status;
    /// The daemon itself, at this moment. A source that is not a daemon returns the default.
    fn daemon(&self) -> DaemonStatus {
        DaemonStatus::default()
    }
    /// What is missing that no port needs, such as the metrics server: a line for each, for people. The daemon keeps trying.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }
    /// Ports that are in the files, and do not run: a reload or a restart adds them.
    fn absent(&self) -> Vec<PortRow> {
        Vec::new()
    }
    /// Ports that are in no file, or differ from their file.
    fn unkept(&self) -> BTreeMap<String, Unkept> {
        BTreeMap::new()
    }
    /// Mistakes that the last reading of the files found: a line for each.
    fn config_problems(&self) -> Vec<String> {
        Vec::new()
    }
    /// Settings of the files that wait for a restart: a line for each.
    fn restart_pending(&self) -> Vec<String> {
        Vec::new()
    }
    /// The running configuration, as a file; `None` if there is none. It may wait for a change: it is called on a separate
    /// thread.
    fn config_text(&self) -> Option<String> {
        None
    }
    /// The learned addresses, in any order.
    fn fdb(&self) -> Vec<FdbEntry>;
    /// Addresses that have recently moved between ports, most moves first.
    fn movers(&self) -> Vec<FdbMover> {
        Vec::new()
    }
    /// Multicast groups and queriers.
    fn multicast(&self) -> MulticastTable {
        MulticastTable::default()
    }
    /// Security groups, their rules, and sets of addresses.
    fn group_tables(&self) -> GroupTables {
        GroupTables::default()
    }
    /// Connections of ports with security groups.
    ///
    /// # Errors
    ///
    /// If the request cannot be understood.
    fn connections(&self, wanted: &ConnectionsWanted) -> Result<ConnectionTable, ChangeError> {
        let _ = wanted;
        Ok(ConnectionTable::default())
    }
    /// The export to an sFlow collector.
    fn sflow(&self) -> SflowStatus {
        SflowStatus::default()
    }
    /// The export to a collector of IPFIX.
    fn ipfix(&self) -> IpfixStatus {
        IpfixStatus::default()
    }
    /// Whether the switch works. It does not wait: ports whose state cannot be read at this moment are reported as such.
    fn health(&self) -> Health {
        Health::of(&self.status())
    }
    /// Makes `worker` poll queue `queue` of the port named `port`. It may wait: it is called on a separate thread.
    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError>;
    /// The switch itself, for captures and traces; `None` if there is none.
    fn dataplane(&self) -> Option<Arc<Dataplane>> {
        None
    }

    // The methods that follow change the switch. They may wait, as `move_stream` may, and are never called at the same time.
    // A source that cannot be changed need not implement them.

    /// Returns what would change if the configuration, or the file `config`, were read now. Changes nothing.
    fn plan(&self, config: Option<&Path>) -> Result<PlanAnswer, ChangeError> {
        let _ = config;
        Err(ChangeError::unchangeable())
    }
    /// Reads the configuration again, and applies it.
    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        Err(ChangeError::unchangeable())
    }
    /// Adds a port.
    fn port_add(&self, add: &PortAdd) -> Result<ReloadAnswer, ChangeError> {
        let _ = add;
        Err(ChangeError::unchangeable())
    }
    /// Removes a port.
    fn port_remove(&self, remove: &PortRemove) -> Result<ReloadAnswer, ChangeError> {
        let _ = remove;
        Err(ChangeError::unchangeable())
    }
    /// Forgets learned addresses.
    fn fdb_flush(&self, flush: &FdbFlush) -> Result<FdbAnswer, ChangeError> {
        let _ = flush;
        Err(ChangeError::unchangeable())
    }
    /// Puts an address on a port.
    fn fdb_add(&self, add: &FdbAdd) -> Result<FdbAnswer, ChangeError> {
        let _ = add;
        Err(ChangeError::unchangeable())
    }
    /// Takes a static address off its port.
    fn fdb_remove(&self, remove: &FdbRemove) -> Result<FdbAnswer, ChangeError> {
        let _ = remove;
        Err(ChangeError::unchangeable())
    }
    /// Adds addresses to a set.
    fn set_add(&self, change: &SetChange) -> Result<SetAnswer, ChangeError> {
        let _ = change;
        Err(ChangeError::unchangeable())
    }
    /// Removes addresses from a set.
    fn set_remove(&self, change: &SetChange) -> Result<SetAnswer, ChangeError> {
        let _ = change;
        Err(ChangeError::unchangeable())
    }
    /// Sets some keys of a port.
    fn port_set(&self, set: &PortSet) -> Result<ReloadAnswer, ChangeError> {
        let _ = set;
        Err(ChangeError::unchangeable())
    }
    /// Writes the ports that are not in the files, or differ from them, to their files.
    fn keep(&self) -> Result<KeepAnswer, ChangeError> {
        Err(ChangeError::unchangeable())
    }
}
