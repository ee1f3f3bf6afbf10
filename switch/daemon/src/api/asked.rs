//! What every request needs, and the lines that answer it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use tokio::net::unix::UCred;
use tokio::sync::{Mutex, Semaphore};

use super::Source;
use super::places::{Place, Places};

/// A user ID, if the kernel knows it.
pub(super) type User = Option<u32>;

/// What the requests of one client need.
pub(super) struct Asked {
    pub source: Arc<dyn Source>,
    /// Held during a move of a stream, or any other change.
    pub moving: Arc<Mutex<()>>,
    /// One permit is held while an answer is worked on.
    pub looks: Arc<Semaphore>,
    /// A place is held from the end of that work until the client has its answer.
    pub replies: Arc<Places<User>>,
    /// The client's own place.
    pub place: Arc<Place<User>>,
    /// The client's process, as the kernel knows it.
    pub peer: Option<UCred>,
    /// Whether the server ends. A job on a thread of its own must check it.
    pub ending: Arc<AtomicBool>,
}

/// Whether a process of user `uid` may change anything, where `own` is the daemon's user. Other users that may connect, such
/// as the daemon's group, may only look.
pub(super) fn may_change(uid: Option<u32>, own: u32) -> bool {
    uid.is_some_and(|uid| uid == 0 || uid == own)
}

#[derive(Serialize)]
struct Refusal {
    error: String,
    help: String,
}

pub(super) fn refuse(error: String, help: String) -> serde_json::Result<Vec<u8>> {
    line_of(&Refusal { error, help })
}

pub(super) fn line_of(reply: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_daemons_user_may_change_anything() {
        assert!(may_change(Some(0), 1000) && may_change(Some(1000), 1000));
        assert!(!may_change(Some(1001), 1000) && !may_change(Some(1001), 0));
        assert!(!may_change(None, 0));
    }
}
