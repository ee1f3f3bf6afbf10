//! The control socket: how `crosspoint show` asks the daemon.
//!
//! A client sends lines, each a request in JSON, and gets a line of JSON for each, in order:
//!
//! ```text
//! {"show":"ports"}
//! {"ok":[{"name":"web-1","kind":"vhost", ...}]}
//! {"show":"prots"}
//! {"error":"not a request: unknown variant `prots`, ...","help":"send one line such as {\"show\":\"ports\"}; ..."}
//! ```
//!
//! `{"port":"web-1"}` asks for all that is known of one port. `{"move":{"port":"web-1","queue":0,"worker":1}}` has worker 1
//! poll queue 0 of that port from now on; the answer's `ok` is the same object. `{"plan":{}}`,
//! `{"reload":{}}`, `{"port_add":{...}}`, `{"port_set":{...}}` and `{"port_remove":"web-1"}` change the switch, or ask what
//! would change: see [`PortAdd`] and its neighbours, and [`plan`](crate::plan) for the answers. `{"health":{}}` asks whether
//! the switch works and is ready: the answer is a [`Health`], and never waits long. `{"snapshot":{}}` asks for all counters and
//! histograms at one moment, as `top` wants them; its keys may change with every version.
//! `{"capture":{...}}` and `{"trace":{...}}` show frames, on a connection of their own: see [`capture`](crate::capture). What `ok` holds is documented in [`show`](crate::show), topic by topic. A request takes up to
//! [`REQUEST_BYTES_MAX`] bytes and [`REQUEST_TIME_MAX`] to arrive; one that does not is answered with an error, and
//! the connection is closed. Whoever may open the socket's file (mode 0660) may ask.

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

/// Where the picture of the switch comes from: the daemon, or a test.
///
/// Who looks is on the control socket's or the metrics server's own thread, and holds up all their clients: it must not
/// wait.
pub trait Source: Send + Sync + 'static {
    /// Everything but the table of addresses, at this moment.
    fn status(&self) -> Status;
    /// The daemon itself, at this moment. Who is none has nothing to tell.
    fn daemon(&self) -> DaemonStatus {
        DaemonStatus::default()
    }
    /// What is missing that no port needs, such as the metrics server: a line for each, for people. It is tried again.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }
    /// The addresses that are known, in any order.
    fn fdb(&self) -> Vec<FdbEntry>;
    /// Those of them that have moved between ports of late, those that moved most first.
    fn movers(&self) -> Vec<FdbMover> {
        Vec::new()
    }
    /// Whether it works. It does not wait: where ports cannot be looked at just now, it says so.
    fn health(&self) -> Health {
        Health::of(&self.status())
    }
    /// Has `worker` poll queue `queue` of the port named `port`. It may wait: it is called on a thread of its own.
    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError>;
    /// The switch itself, for who looks at its frames; `None` where there is none to look at.
    fn fabric(&self) -> Option<Arc<Fabric>> {
        None
    }

    // What follows changes the switch. It may wait, as `move_stream`, and no two of them are called at once. Those who are
    // only looked at need none of it.

    /// What would change if the configuration were read again, or that of the file `config`; nothing does.
    fn plan(&self, config: Option<&Path>) -> Result<PlanAnswer, ChangeError> {
        let _ = config;
        Err(ChangeError::unchangeable())
    }
    /// Reads the configuration again, and becomes what it says.
    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        Err(ChangeError::unchangeable())
    }
    /// Adds a port; with `keep`, to `ports_dir` too.
    fn port_add(&self, port: &PortTable, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let _ = (port, keep);
        Err(ChangeError::unchangeable())
    }
    /// Removes a port; with `keep`, from `ports_dir` too.
    fn port_remove(&self, name: &str, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let _ = (name, keep);
        Err(ChangeError::unchangeable())
    }
    /// Gives some keys of a port other values; with `keep`, in `ports_dir` too.
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

/// What the daemon can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// `{"show":"ports"}`: one topic of the picture.
    Show(Topic),
    /// `{"port":"web-1"}`: all that is known of one port.
    Port(String),
    /// `{"snapshot":{}}`: a [`Snapshot`](crate::status::Snapshot), as it is between one version's daemon and command line.
    Snapshot {},
    /// `{"move":{"port":"web-1","queue":0,"worker":1}}`: a stream to another worker.
    Move(Place),
    /// `{"capture":{"port":"web-1"}}`: frames, and what became of them; see [`capture`](crate::capture). The connection is
    /// for them alone from then on.
    Capture(Wanted),
    /// `{"trace":{"port":"web-1"}}`: what becomes of frames, stage by stage; likewise.
    Trace(TraceWanted),
    /// `{"health":{}}`: whether it works, as a [`Health`].
    Health {},
    /// `{"plan":{"config":"/abs/path"}}`: what would change; null, or none: with the file that it was started with.
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
