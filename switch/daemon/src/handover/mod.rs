//! Hand-over: how guests and sockets outlive this process.
//!
//! If a supervisor (`crosspoint supervise`) has started this process, each part that a successor needs sends it a record when
//! its state changes: a JSON text and descriptors. A process that is started after a crash or for an upgrade reads all
//! records first ([`connect`]); each part then takes its own ([`take`]) instead of starting anew.
//!
//! | record | of | descriptors |
//! |---|---|---|
//! | `listener/PORT` | a guest port's socket | the listening socket |
//! | `session/PORT` | a connected front end | connection, memory, log, inflight region, kicks, calls |
//! | `control`, `metrics` | the daemon's own servers | the listening socket |
//! | `positions` | all guest rings, once they have stopped for an upgrade | |
//! | `uplinks` | where the frames of NIC queues are, at the same time | |
//! | `xsk/PORT/QUEUE` | the socket of an uplink's queue | socket, packet memory |
//! | `xdp/PORT` | the program attached to an uplink's interface | map, link, promiscuous mode |
//! | `settings/PORT` | what an uplink has changed on its interface | |
//! | `addresses`, `counters` | learned addresses, counters | |
//! | `connections` | connections of ports with security groups; `connections-since` those that began during an upgrade | |
//!
//! Without a supervisor nothing is recorded. This process keeps the records too, so that it can go on when its supervisor dies,
//! and give them to the next one.

mod closer;
mod connection;
mod pretend;
mod switchover;

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crosspoint_handover::{AdoptionSocket, Begin, Claim, Kind, Link, Message, SUPERVISED, Start};
use serde::Serialize;

use crate::service::log;
pub use closer::Closer;
use connection::Connection;
pub(crate) use switchover::{go_on, record_tables, serve, take_over};

/// The connection of this process to its supervisor: set once by [`connect`].
static SUPERVISOR: OnceLock<Supervisor> = OnceLock::new();

/// The supervisor of this process.
pub(crate) struct Supervisor {
    connection: Connection,
    /// How this process was started.
    begin: Begin,
    /// Where it waits for another supervisor.
    adoption_socket: Option<AdoptionSocket>,
    /// Its right to the rings, if it was started for an upgrade,
    claim: Option<Claim>,
    /// and the connection to its predecessor.
    predecessor: Option<Link>,
    /// Whether its rings run.
    has_taken_over: AtomicBool,
    /// Whether no supervisor has come after the last one died.
    is_abandoned: AtomicBool,
    /// Whether no thread of this process hears it.
    is_deaf: AtomicBool,
    /// The predecessor's records that no part has taken yet.
    records: Mutex<BTreeMap<String, Message>>,
    /// Front ends whose sessions cannot be taken over, with the names of their records.
    disconnected: Mutex<Vec<(String, Option<UnixStream>)>>,
}

/// Connects to this process's supervisor, if it has one, and reads the predecessor's records. Call it before any thread starts
/// and before standard input is used.
///
/// # Errors
///
/// A text for people, if the supervisor's messages cannot be read.
pub fn connect() -> Result<(), String> {
    if std::env::var_os(SUPERVISED).is_none() {
        return Ok(());
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let link = pretend::link(socket.map_err(|why| why.to_string())?);
    connect_by(link).map_err(|(link, why)| {
        // Whatever version the supervisor has, it reads this.
        let _ = link.send(Kind::Refused, "", why.as_bytes(), &[]);
        why
    })
}

fn connect_by(link: Link) -> Result<(), (Link, String)> {
    let Received {
        records,
        begin,
        fds,
    } = match receive_all(&link) {
        Ok(all) => all,
        Err(why) => return Err((link, why)),
    };
    if begin.start == Start::Prepare
        && let Some(record) = records
            .values()
            .find(|record| connection::is_missed(record))
    {
        let name = &record.name;
        let why = format!(
            "the running version has {name:?}, which this one does not know, and guests would be lost without it"
        );
        return Err((link, why));
    }
    let mut fds = fds.into_iter();
    let supervisor = Supervisor {
        connection: Connection::new(link, records.values()),
        begin,
        adoption_socket: fds.next().map(AdoptionSocket::of),
        claim: fds.next().map(Claim::of),
        predecessor: fds.next().map(Link::of),
        has_taken_over: AtomicBool::new(false),
        is_abandoned: AtomicBool::new(false),
        is_deaf: AtomicBool::new(false),
        records: Mutex::new(records),
        disconnected: Mutex::default(),
    };
    let _ = SUPERVISOR.set(supervisor);
    Ok(())
}

/// What a process gets before it starts: the records of its predecessor, and how it begins, with the descriptors of that.
struct Received {
    records: BTreeMap<String, Message>,
    begin: Begin,
    fds: Vec<OwnedFd>,
}

fn receive_all(link: &Link) -> Result<Received, String> {
    let mut records = BTreeMap::new();
    loop {
        let message = link.receive().map_err(|why| why.to_string())?;
        let message = message.ok_or("it has ended")?;
        match message.kind {
            Kind::Record => drop(records.insert(message.name.clone(), message)),
            Kind::Begin => {
                let begin = serde_json::from_slice(&message.body);
                return Ok(Received {
                    records,
                    begin: begin.map_err(|why| why.to_string())?,
                    fds: message.fds,
                });
            }
            kind => return Err(format!("a message {kind:?} before {:?}", Kind::Begin)),
        }
    }
}

/// The supervisor, if there is one.
pub(crate) fn supervisor() -> Option<&'static Supervisor> {
    SUPERVISOR.get()
}

/// Whether this process has a supervisor, and the state of its parts is recorded.
pub fn is_supervised() -> bool {
    SUPERVISOR.get().is_some()
}

/// Whether this process was started to take over from one that still runs, and must touch nothing until then.
pub(crate) fn is_preparing() -> bool {
    let prepares = |supervisor: &Supervisor| supervisor.begin.start == Start::Prepare;
    is_taking_over() && SUPERVISOR.get().is_some_and(prepares)
}

/// Whether this process is about to go on with the guests of another one: rings then start together, when all ports are open,
/// so that no guest's frame finds its destination missing.
pub(crate) fn is_taking_over() -> bool {
    let takes_over = |supervisor: &Supervisor| {
        supervisor.begin.start != Start::Fresh && !supervisor.has_taken_over.load(Ordering::SeqCst)
    };
    SUPERVISOR.get().is_some_and(takes_over)
}

/// Ports that are opened from now on are not its predecessor's.
fn end_taking_over() {
    if let Some(supervisor) = SUPERVISOR.get() {
        supervisor.has_taken_over.store(true, Ordering::SeqCst);
    }
}

/// Tells the supervisor why its predecessor's guests cannot be taken over, and ends this process at once: the predecessor, which
/// goes on, owns the sockets and their files.
pub(crate) fn refuse_and_end(why: &str) -> ! {
    tracing::error!("not taken over: {why}");
    refuse(why);
    log::drain();
    std::process::exit(1)
}

/// Upgrades and crashes since the supervisor started; `None` without one.
pub(crate) fn counts() -> Option<(u64, u64)> {
    let begin = SUPERVISOR.get()?.begin;
    Some((begin.upgrades, begin.crashes))
}

/// Has the supervisor tell the service manager `lines`. Returns `false` without a supervisor.
pub(crate) fn notify(lines: &str) -> bool {
    let Some(supervisor) = SUPERVISOR.get() else {
        return false;
    };
    supervisor.connection.try_send(Kind::Notify, lines);
    true
}

/// Tells the supervisor that the main loop and every worker make progress.
pub fn heartbeat() {
    if let Some(supervisor) = SUPERVISOR.get() {
        let sent = supervisor.connection.send(Kind::Heartbeat, "");
        if sent.is_err() && supervisor.is_deaf.load(Ordering::SeqCst) {
            supervisor.is_abandoned.store(true, Ordering::SeqCst);
        }
    }
}

/// Whether this process's supervisor has died, and no other one has come in time: it is to end.
pub fn is_abandoned() -> bool {
    let abandoned = |supervisor: &Supervisor| supervisor.is_abandoned.load(Ordering::SeqCst);
    SUPERVISOR.get().is_some_and(abandoned)
}

/// Tells the supervisor that this process cannot start, or not take over.
pub fn refuse(why: &str) {
    if let Some(supervisor) = SUPERVISOR.get() {
        supervisor.connection.try_send(Kind::Refused, why);
    }
}

/// Records the state of part `name`: `body`, and the descriptors that it counts. Does nothing without a supervisor. Returns
/// whether it was recorded.
pub(crate) fn put(name: &str, body: &impl Serialize, fds: &[BorrowedFd<'_>]) -> bool {
    if !is_supervised() {
        return false;
    }
    match serde_json::to_vec(body) {
        Ok(body) => put_bytes(name, &body, fds),
        Err(why) => {
            tracing::warn!("{name} would not outlive this process: {why}");
            false
        }
    }
}

/// Like [`put`], with a body that is not JSON.
pub(crate) fn put_bytes(name: &str, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    debug_assert!(
        connection::is_known(name),
        "{name} is not on the list of records"
    );
    let Some(supervisor) = SUPERVISOR.get() else {
        return false;
    };
    let sent = supervisor.connection.record(name, body, fds);
    if let Err(why) = &sent {
        tracing::warn!(
            "{name} would not outlive this process: the supervisor cannot be told of it: {why}"
        );
    }
    sent.is_ok()
}

/// Ends the record of part `name`.
pub(crate) fn forget(name: &str) {
    if let Some(supervisor) = SUPERVISOR.get()
        && let Err(why) = supervisor.connection.forget(name)
    {
        tracing::warn!("the supervisor cannot be told that {name} is gone: {why}");
    }
}

/// Disconnects a front end whose session, recorded as `record`, cannot be taken over: once the predecessor does not serve it.
pub(crate) fn disconnect_later(record: String, connection: Option<UnixStream>) {
    if let Some(supervisor) = SUPERVISOR.get() {
        let list = &supervisor.disconnected;
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((record, connection));
    }
}

/// Whether there is a record of part `name` that was not taken yet.
pub(crate) fn has(name: &str) -> bool {
    SUPERVISOR.get().is_some_and(|supervisor| {
        let records = supervisor.records.lock();
        records
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(name)
    })
}

/// Takes the predecessor's record of part `name`.
pub(crate) fn take(name: &str) -> Option<Message> {
    let supervisor = SUPERVISOR.get()?;
    let mut records = supervisor
        .records
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    records.remove(name)
}

impl Supervisor {
    /// Puts a record of the predecessor that has come late.
    fn put_late(&self, record: Message) {
        self.connection.keep(&record);
        let records = self.records.lock();
        let mut records = records.unwrap_or_else(PoisonError::into_inner);
        records.insert(record.name.clone(), record);
    }

    /// Disconnects the front ends whose sessions cannot be taken over.
    fn disconnect_all(&self) {
        let list = self.disconnected.lock();
        let list = std::mem::take(&mut *list.unwrap_or_else(PoisonError::into_inner));
        for (name, connection) in list {
            forget(&name);
            if let Some(connection) = connection {
                let _ = connection.shutdown(Shutdown::Both);
                close_aside(connection);
            }
        }
    }

    /// Drops records that no part has taken: those of ports that the configuration no longer has.
    fn discard_rest(&self) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        // Settings of an interface that is absent now are restored when it is back.
        let (kept, rest) = std::mem::take(&mut *records)
            .into_iter()
            .partition(|(name, _)| name.starts_with("settings/"));
        *records = kept;
        let rest: BTreeMap<String, Message> = rest;
        for (name, record) in rest {
            forget(&name);
            close_aside(record);
        }
    }
}

/// Drops what belongs to a front end on a thread of its own, since a close can block.
fn close_aside(object: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("cp-close".to_owned());
    let _ = thread.spawn(move || drop(object));
}

/// The descriptors of a record, taken by the numbers in its body.
pub(crate) struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    pub(crate) fn of(fds: Vec<OwnedFd>) -> Descriptors {
        Descriptors(fds.into_iter().map(Some).collect())
    }

    /// Descriptor `number`, once.
    pub(crate) fn take(&mut self, number: Option<usize>) -> Option<OwnedFd> {
        self.0.get_mut(number?)?.take()
    }

    /// Those that are left.
    pub(crate) fn rest(self) -> impl Iterator<Item = OwnedFd> {
        self.0.into_iter().flatten()
    }
}

/// Counts the descriptors of a record while its body is written.
#[derive(Default)]
pub(crate) struct Counted<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Counted<'a> {
    /// Adds a descriptor, and returns its number.
    pub(crate) fn add(&mut self, fd: &'a impl AsFd) -> usize {
        self.0.push(fd.as_fd());
        self.0.len() - 1
    }

    /// Adds a descriptor if there is one.
    pub(crate) fn add_some(&mut self, fd: Option<&'a impl AsFd>) -> Option<usize> {
        fd.map(|fd| self.add(fd))
    }

    pub(crate) fn all(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}
