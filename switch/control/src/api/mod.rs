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
//! `{"port_add":{...}}`, `{"port_set":{...}}` and `{"port_remove":"web-1"}` change the switch, or ask what would change: see
//! [`PortAdd`] and its neighbours, and [`plan`](crate::plan) for the answers. `{"health":{}}` asks whether the switch works
//! and is ready; the answer is a [`Health`], and never takes long. `{"snapshot":{}}` asks for all counters and histograms at
//! one moment, for `top`; its keys may change with every version. `{"capture":{...}}` and `{"trace":{...}}` show frames, and
//! take over their connection: see [`capture`](crate::capture). What `ok` holds is documented in [`show`](crate::show),
//! topic by topic.
//!
//! A request has up to [`REQUEST_BYTES_MAX`] bytes and must arrive within [`REQUEST_TIME_MAX`]; otherwise it is answered
//! with an error, and the connection is closed. Every user that may open the socket's file (mode 0660) may ask.

mod capture;
mod change;
mod client;
pub(crate) mod places;
mod server;
mod snapshot;
mod socket;
pub(crate) mod thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use capture::{Closer, Frames, Traces};
pub use change::{ChangeError, PortAdd, PortRemove, PortSet, TURN_TIME_MAX};
pub use client::{Client, ClientError, request};
pub(crate) use server::CLOSED;
pub use server::{CLIENTS_MAX, ControlServer, REPLY_TIME_MAX, REQUEST_BYTES_MAX, REQUEST_TIME_MAX};
pub use socket::SocketError;
pub(crate) use socket::connect;

use crate::capture::{TraceWanted, Wanted};
use crate::config::PortTable;
use crate::fabric::{Fabric, MoveError};
use crate::health::Health;
use crate::plan::{PlanAnswer, ReloadAnswer};
use crate::show::Topic;
use crate::status::{DaemonStatus, FdbEntry, FdbMover, Status};

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
    /// The learned addresses, in any order.
    fn fdb(&self) -> Vec<FdbEntry>;
    /// Addresses that have recently moved between ports, most moves first.
    fn movers(&self) -> Vec<FdbMover> {
        Vec::new()
    }
    /// Whether the switch works. It does not wait: ports whose state cannot be read at this moment are reported as such.
    fn health(&self) -> Health {
        Health::of(&self.status())
    }
    /// Makes `worker` poll queue `queue` of the port named `port`. It may wait: it is called on a separate thread.
    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError>;
    /// The switch itself, for captures and traces; `None` if there is none.
    fn fabric(&self) -> Option<Arc<Fabric>> {
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
    /// Adds a port; with `keep`, writes it to `ports_dir` too.
    fn port_add(&self, port: &PortTable, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let _ = (port, keep);
        Err(ChangeError::unchangeable())
    }
    /// Removes a port; with `keep`, removes it from `ports_dir` too.
    fn port_remove(&self, name: &str, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let _ = (name, keep);
        Err(ChangeError::unchangeable())
    }
    /// Sets some keys of a port; with `keep`, in `ports_dir` too.
    fn port_set(
        &self,
        name: &str,
        set: &PortTable,
        keep: bool,
    ) -> Result<ReloadAnswer, ChangeError> {
        let _ = (name, set, keep);
        Err(ChangeError::unchangeable())
    }
}

/// A stream, and the worker that shall poll it.
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
    /// `{"snapshot":{}}`: a [`Snapshot`](crate::status::Snapshot). Its form is private to a daemon and a command line of the
    /// same version.
    Snapshot {},
    /// `{"move":{"port":"web-1","queue":0,"worker":1}}`: moves a stream to another worker.
    Move(Place),
    /// `{"capture":{"port":"web-1"}}`: frames and their verdicts; see [`capture`](crate::capture). It takes over the
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
}
