//! The connection to the supervisor, and the records that the next one needs if this one dies.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crosspoint_handover::{Adopted, AdoptionSocket, Kind, Link, LinkError, Message, Store};

use super::Closer;

/// How often a process without a supervisor looks whether the socket's file is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The connection.
pub(super) struct Connection {
    /// Locked while a record is sent, so that a new supervisor gets records in their order.
    state: Mutex<State>,
}

struct State {
    link: Arc<Link>,
    /// Records that no later record replaces by itself: those with descriptors, and settings. Tables are recorded each second.
    kept: Store,
    /// Whether the supervisor has died.
    is_lost: bool,
}

fn is_kept(name: &str, fds: usize) -> bool {
    fds > 0 || name.starts_with("settings/")
}

/// The records that this program knows: what comes before the first `/` of their names.
const KNOWN: [&str; 13] = [
    "listener",
    "session",
    "control",
    "metrics",
    "positions",
    "uplinks",
    "xsk",
    "xdp",
    "settings",
    "addresses",
    "counters",
    "connections",
    "connections-since",
];
/// Those without which a guest would lose its front end.
const CRITICAL: [&str; 2] = ["listener", "session"];

fn kind_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

fn is_critical(name: &str) -> bool {
    CRITICAL.contains(&kind_of(name))
}

pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&kind_of(name))
}

/// Whether guests would be lost if this program took over without this record.
pub(super) fn is_missed(record: &Message) -> bool {
    record.is_critical && !is_known(&record.name)
}

/// Drops a record, whose descriptors may be the last ones of their objects.
fn close(record: Option<Message>) {
    // Started at the first use: before, this process has rights that its threads must not have.
    static CLOSER: OnceLock<io::Result<Closer>> = OnceLock::new();
    let Some(record) = record.filter(|record| !record.fds.is_empty()) else {
        return;
    };
    match CLOSER.get_or_init(Closer::start) {
        Ok(closer) => closer.close(record),
        Err(_) => drop(record),
    }
}

impl Connection {
    /// The connection `link`, by which `records` have come.
    pub(super) fn new<'a>(link: Link, records: impl Iterator<Item = &'a Message>) -> Connection {
        let state = Mutex::new(State {
            link: Arc::new(link),
            kept: Store::default(),
            is_lost: false,
        });
        let connection = Connection { state };
        records.for_each(|record| connection.keep(record));
        connection
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current connection.
    pub(super) fn link(&self) -> Arc<Link> {
        self.state().link.clone()
    }

    /// Sends a message that is no record.
    pub(super) fn send(&self, kind: Kind, text: &str) -> Result<(), LinkError> {
        self.link().send(kind, "", text.as_bytes(), &[])
    }

    /// The same, of something that is not missed if the supervisor has died.
    pub(super) fn try_send(&self, kind: Kind, text: &str) {
        let _ = self.send(kind, text);
    }

    /// Sends a record. While there is no supervisor, it is kept for the next one.
    pub(super) fn record(
        &self,
        name: &str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let mut state = self.state();
        let kept = state.keep(name, body, fds);
        let sent = state.send(|link| link.send_record(name, body, fds, is_critical(name)));
        // One that is out of date is worse than none.
        let (replaced, kept) = match kept {
            Ok(replaced) => (replaced, Ok(())),
            Err(why) => (state.kept.remove(name), Err(why.into())),
        };
        drop(state);
        close(replaced);
        sent.and(kept)
    }

    /// Ends a record.
    pub(super) fn forget(&self, name: &str) -> Result<(), LinkError> {
        let mut state = self.state();
        let removed = state.kept.remove(name);
        let sent = state.send(|link| link.send(Kind::Forget, name, b"", &[]));
        drop(state);
        close(removed);
        sent
    }

    /// Keeps a record that the supervisor has.
    pub(super) fn keep(&self, record: &Message) {
        let fds: Vec<_> = record.fds.iter().map(AsFd::as_fd).collect();
        let replaced = self.state().keep(&record.name, &record.body, &fds);
        match replaced {
            Ok(replaced) => close(replaced),
            Err(why) => tracing::warn!(
                "{} would not outlive this process and its supervisor: {why}",
                record.name
            ),
        }
    }

    /// Waits for another supervisor at `adoption_socket`, at most for `time`, and gives it all records. Returns `false` if none has come.
    pub(super) fn wait(
        &self,
        adoption_socket: &AdoptionSocket,
        own: &Adopted,
        time: Duration,
    ) -> io::Result<bool> {
        self.state().is_lost = true;
        adoption_socket.own()?;
        let file = adoption_socket.path()?;
        let identity = || {
            fs::metadata(&file)
                .map(|file| (file.dev(), file.ino()))
                .ok()
        };
        let (deadline, begun_with) = (Instant::now() + time, identity());
        let body = serde_json::to_vec(own)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // The service manager removes it when the service is stopped.
            if left.is_zero() || begun_with.is_none() || identity() != begun_with {
                return Ok(false);
            }
            let Some(link) = adoption_socket.accept_within(left.min(LOOK))? else {
                continue;
            };
            let mut state = self.state();
            let sent = link
                .send(Kind::Adopted, "", &body, &[adoption_socket.as_fd()])
                .and_then(|()| state.kept.send_all(&link))
                .and_then(|()| link.send(Kind::Ready, "", b"", &[]));
            match sent {
                Ok(()) => {
                    (state.link, state.is_lost) = (Arc::new(link), false);
                    return Ok(true);
                }
                // One that has gone away since.
                Err(why) => tracing::warn!("a supervisor does not get the records: {why}"),
            }
        }
    }
}

impl State {
    fn send(&self, send: impl FnOnce(&Link) -> Result<(), LinkError>) -> Result<(), LinkError> {
        if self.is_lost {
            return Ok(());
        }
        match send(&self.link) {
            // It has just died: the next one gets what is kept.
            Err(LinkError::Io(why)) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        }
    }

    fn keep(
        &mut self,
        name: &str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Option<Message>> {
        if !is_kept(name, fds.len()) {
            return Ok(None);
        }
        let copies = fds.iter().map(BorrowedFd::try_clone_to_owned);
        Ok(self.kept.take(Message {
            kind: Kind::Record,
            name: name.to_owned(),
            body: body.to_vec(),
            fds: copies.collect::<io::Result<_>>()?,
            is_critical: is_critical(name),
        }))
    }
}
