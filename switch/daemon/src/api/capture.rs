//! Frames over the control socket: the daemon's side. The messages are described in [`crosspoint_model::capture`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_model::capture::{TraceWanted, Wanted};
use crosspoint_model::request::Request;
use tokio::io::AsyncWriteExt;

use super::asked::{self, Asked};
use crate::capture::{self, Client};

/// A request that takes over the connection.
pub(super) enum Job {
    Capture(Wanted),
    Trace(TraceWanted),
}

/// The job that a line asks for, if any.
pub(super) fn wanted(line: &[u8]) -> Option<Job> {
    match serde_json::from_slice(line) {
        Ok(Request::Capture(wanted)) => Some(Job::Capture(wanted)),
        Ok(Request::Trace(wanted)) => Some(Job::Trace(wanted)),
        _ => None,
    }
}

/// Tells the threads of all jobs when the server ends.
#[derive(Default)]
pub(super) struct EndOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends frames to a client on a separate thread, until it has enough or disconnects. Frames are confidential: only users
/// that may change the switch may see them.
pub(super) async fn show_frames(
    client: tokio::io::BufReader<tokio::net::UnixStream>,
    asked: Asked,
    job: Job,
) {
    let mut client = client.into_inner();
    let (uid, pid) = match asked.peer {
        Some(peer) => (Some(peer.uid()), peer.pid()),
        None => (None, None),
    };
    let may = asked::may_change(uid, rustix::process::geteuid().as_raw());
    let dataplane = asked.source.dataplane().filter(|_| may);
    let Some(dataplane) = dataplane else {
        let why = match may {
            true => "there are no frames to look at",
            false => "only root and the daemon's user may look at frames",
        };
        let help = "`crosspoint show` works for every user who may connect".to_owned();
        if let Ok(reply) = asked::refuse(why.to_owned(), help) {
            let _ = client.write_all(&reply).await;
        }
        return;
    };
    let Ok(socket) = client.into_std() else {
        return;
    };
    let task = tokio::task::spawn_blocking(move || {
        let mut client = Client {
            socket,
            stop: &asked.ending,
            pid,
            uid,
        };
        // Errors are the client's, which notices them.
        let _ = match &job {
            Job::Capture(wanted) => capture::capture(&dataplane, wanted, &mut client),
            Job::Trace(wanted) => capture::follow(&dataplane, wanted, &mut client),
        };
    });
    let _ = task.await;
}
