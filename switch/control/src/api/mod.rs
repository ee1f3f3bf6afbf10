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
//! poll queue 0 of that port from now on; the answer's `ok` is the same object. What `ok` holds is documented in [`show`](crate::show), topic by topic. A request takes up to
//! [`REQUEST_BYTES_MAX`] bytes and [`REQUEST_TIME_MAX`] to arrive; one that does not is answered with an error, and
//! the connection is closed. Whoever may open the socket's file (mode 0660) may ask.

mod capture;
mod client;
mod server;
mod socket;
pub(crate) mod thread;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use capture::{Closer, Frames, Traces};
pub use client::{ClientError, request};
pub use server::{CLIENTS_MAX, ControlServer, REPLY_TIME_MAX, REQUEST_BYTES_MAX, REQUEST_TIME_MAX};
pub use socket::SocketError;

use crate::capture::{TraceWanted, Wanted};
use crate::fabric::{Fabric, MoveError};
use crate::show::Topic;
use crate::status::{FdbEntry, Status};

/// Where the picture of the switch comes from: the daemon, or a test.
///
/// Who looks is on the control socket's or the metrics server's own thread, and holds up all their clients: it must not
/// wait.
pub trait Source: Send + Sync + 'static {
    /// Everything but the table of addresses, at this moment.
    fn status(&self) -> Status;
    /// The addresses that are known, in any order.
    fn fdb(&self) -> Vec<FdbEntry>;
    /// Has `worker` poll queue `queue` of the port named `port`. It may wait: it is called on a thread of its own.
    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError>;
    /// The switch itself, for who looks at its frames; `None` where there is none to look at.
    fn fabric(&self) -> Option<Arc<Fabric>> {
        None
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
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// `{"show":"ports"}`: one topic of the picture.
    Show(Topic),
    /// `{"port":"web-1"}`: all that is known of one port.
    Port(String),
    /// `{"move":{"port":"web-1","queue":0,"worker":1}}`: a stream to another worker.
    Move(Place),
    /// `{"capture":{"port":"web-1"}}`: frames, and what became of them; see [`capture`](crate::capture). The connection is
    /// for them alone from then on.
    Capture(Wanted),
    /// `{"trace":{"port":"web-1"}}`: what becomes of frames, stage by stage; likewise.
    Trace(TraceWanted),
}
