//! The moment of a hand-over, on both sides.
//!
//! | this process | the supervisor | its successor |
//! |---|---|---|
//! | | HOLD | |
//! | stops changes and messages, HELD | starts the successor with all records | |
//! | forwards | | prepares everything, READY |
//! | | FREEZE | |
//! | stops all rings and NIC queues at once, sends their positions, FROZEN | GO | |
//! | | | starts all of them at once, CONFIRMED |
//! | sends its counters to its successor, ends | LEAVE | |
//! | | ALONE | follows the uplinks' interfaces |
//!
//! If anything fails before CONFIRMED, the supervisor ends the successor and sends RESUME. If the supervisor dies, the one of the
//! two that has taken the attempt's [`Claim`] goes on: the successor at GO, or this process if that has not come. It then waits for
//! another supervisor ([`Supervisor::wait_for_another`]).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::sync::atomic::Ordering;

use crosspoint_handover::{
    Adopted, AdoptionSocket, Claim, Kind, Link, LinkError, Message, WAS_STARTED,
};

use super::{
    Supervisor, end_taking_over, forget, pretend, put, put_bytes, refuse_and_end, supervisor, take,
};
use crosspoint_engine::groups::Exported;

use crate::capture;
use crate::dataplane::{Counters, LearnedTable};
use crate::ports::vhost::Positions;
use crate::reconcile::{HeldPorts, Nics, Running};
use crate::service::{log, notify};

/// How long a change of the configuration, or a front end in the middle of a message, is waited for.
const HOLD_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause after a failed attempt to hear the supervisor.
const HEAR_PAUSE: Duration = Duration::from_millis(10);
/// How long a front end whose connection was shut down is waited for.
const SHUT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long a held process waits for the supervisor: longer than a successor may take to prepare.
const PREPARED_TIME_MAX: Duration = Duration::from_secs(45);
/// Name of the record of positions.
const POSITIONS: &str = "positions";
/// Name of the record of where the frames of NIC queues are.
const UPLINKS: &str = "uplinks";
/// Name of the record of learned addresses.
const ADDRESSES: &str = "addresses";
/// Name of the record of counters.
const COUNTERS: &str = "counters";
/// Names of the records of connections: all, and those that began while a successor prepared.
const CONNECTIONS: &str = "connections";
const CONNECTIONS_SINCE: &str = "connections-since";
/// How long counters are read again in search of a moment in which none changes. On a large host one reading takes longer.
const COUNTERS_TIME_MAX: Duration = Duration::from_millis(5);
/// With more connections than this, they are recorded for upgrades only.
const CONNECTIONS_MAX: usize = 1 << 16;
/// Interval between two records of tables, for the case of a crash; longer if there are many addresses.
const TABLES_INTERVAL: Duration = Duration::from_secs(1);
const LARGE_TABLE_INTERVAL: Duration = Duration::from_secs(10);
const LARGE_TABLE: usize = 4096;

/// The positions of all guest rings, by port.
type AllPositions = BTreeMap<String, Positions>;

/// Serves the supervisor on a thread of its own. Does nothing without one.
pub(crate) fn serve(running: &Arc<Running>) {
    let Some(supervisor) = supervisor() else {
        return;
    };
    supervisor.discard_rest();
    for (name, is_critical) in pretend::records() {
        let link = supervisor.connection.link();
        let _ = link.send_record(&name, b"{}", &[], is_critical);
    }
    supervisor.say(Kind::Ready, "");
    let running = Arc::downgrade(running);
    let thread = std::thread::Builder::new().name("cp-handover".to_owned());
    let serving = thread.spawn(move || {
        supervisor.own_adoption_socket();
        loop {
            let message = supervisor.next();
            if message.is_none() && !supervisor.wait_for_another() {
                return;
            }
            let Some(running) = running.upgrade() else {
                return;
            };
            let Some(message) = message else {
                notify::ready(&running.health().summary());
                continue;
            };
            match message.kind {
                Kind::Hold => hand_over(&running, supervisor, message),
                // Of an upgrade that this process gave up first.
                Kind::Freeze => supervisor.say(Kind::Refused, "it has waited too long"),
                Kind::Resume | Kind::Unknown => {}
                kind => tracing::warn!("an unexpected message of the supervisor: {kind:?}"),
            }
        }
    });
    if let Err(why) = serving {
        tracing::error!("no upgrade is possible: no thread for it can be started: {why}");
        // Nor would anything hear of the supervisor's death but a heartbeat that fails.
        supervisor.is_deaf.store(true, Ordering::SeqCst);
    }
}

/// Records the tables from time to time, so that they outlive a crash. Called about ten times a second.
pub(crate) fn record_tables(running: &Running, next: &mut Instant) {
    if !super::is_supervised() || Instant::now() < *next {
        return;
    }
    record_counters(running);
    record_connections(running);
    let addresses = running.dataplane.learned();
    *next = Instant::now()
        + match addresses.len() > LARGE_TABLE {
            true => LARGE_TABLE_INTERVAL,
            false => TABLES_INTERVAL,
        };
    put(ADDRESSES, &addresses, &[]);
}

/// Records the counters, as they are while no frame is counted if there is such a moment: what one worker reads while another one
/// writes may lack a part of a burst, and the totals of a process that goes on with it after a crash would never agree.
fn record_counters(running: &Running) {
    let read = || serde_json::to_vec(&running.dataplane.counters()).unwrap_or_default();
    let deadline = Instant::now() + COUNTERS_TIME_MAX;
    let mut counters = read();
    while Instant::now() < deadline {
        let again = read();
        let is_quiet = again == counters;
        counters = again;
        if is_quiet {
            break;
        }
    }
    put_bytes(COUNTERS, &counters, &[]);
}

fn record_connections(running: &Running) {
    if running.dataplane.connection_count() <= CONNECTIONS_MAX
        && let Some((text, _)) = running.dataplane.connections_text(None)
    {
        put_bytes(CONNECTIONS, &text, &[]);
        return;
    }
    // An old one would bring back what has ended.
    forget(CONNECTIONS);
}

fn recorded<T: serde::de::DeserializeOwned>(record: Option<Message>) -> Option<T> {
    serde_json::from_slice(&record?.body).ok()
}

/// Goes on with what the predecessor has learned.
fn learn(running: &Running) {
    if let Some(addresses) = recorded::<LearnedTable>(take(ADDRESSES)) {
        running.dataplane.learn_all(&addresses);
    }
    if let Some(connections) = take(CONNECTIONS) {
        running.dataplane.take_connections(&connections.body);
    }
}

fn count(running: &Running, record: Option<Message>) {
    if let Some(counters) = recorded::<Counters>(record) {
        running.dataplane.count_on(&counters);
    }
}

/// The longest time for the last records of connections, once a successor has the guests' rings: uplinks whose sockets are opened
/// again wait for the end of this process.
const EXPORTS_TIME_MAX: Duration = Duration::from_millis(20);
/// How long a process whose supervisor has died waits to hear whether its successor has the rings.
const CONFIRMED_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a successor waits for its predecessor's last records.
const LAST_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest time for captures to send what they have.
const CAPTURES_TIME_MAX: Duration = Duration::from_millis(50);

/// Memory that a ring of 256 entries takes, and room.
const RING_HEAP_BYTES: usize = 8 << 10;
/// The most memory that is made ready for all rings.
const HEAP_BYTES_MAX: usize = 64 << 20;

/// Makes the allocator have `bytes` that the kernel has given pages for already: while rings stand still, these page faults would
/// take longer than all else. What it returns must be kept until the memory is used: the allocator gives back what is free at
/// the end of its heap, and nothing before that.
fn prefault_heap(bytes: usize) -> Vec<u8> {
    // Less than what malloc(3) maps for itself (M_MMAP_THRESHOLD).
    const BLOCK: usize = 64 << 10;
    let count = bytes.min(HEAP_BYTES_MAX).div_ceil(BLOCK);
    let blocks: Vec<Vec<u8>> = (0..count).map(|_| vec![1; BLOCK]).collect();
    let last = vec![1; BLOCK];
    drop(black_box(blocks));
    // Otherwise the compiler would leave it out.
    black_box(last)
}

/// Waits until the predecessor has stopped its rings, and starts them here. Every port of `running` is prepared. If the
/// predecessor goes on, this process ends.
pub(crate) fn take_over(running: &Running, supervisor: &Supervisor) {
    learn(running);
    let _kept = prefault_heap(running.held().ring_count() * RING_HEAP_BYTES);
    supervisor.say(Kind::Ready, "");
    let mut positions = AllPositions::new();
    let mut uplinks = Vec::new();
    loop {
        let Some(message) = supervisor.next() else {
            refuse_and_end("the supervisor has ended");
        };
        match message.kind {
            Kind::Record if message.name == POSITIONS => {
                positions = match serde_json::from_slice(&message.body) {
                    Ok(positions) => positions,
                    Err(why) => refuse_and_end(&format!("positions that cannot be read: {why}")),
                };
            }
            Kind::Record if message.name == UPLINKS => uplinks = message.body,
            Kind::Record if message.name == CONNECTIONS_SINCE => {
                running.dataplane.take_connections(&message.body);
            }
            Kind::Go if supervisor.claim.as_ref().is_none_or(Claim::take) => break,
            Kind::Go => refuse_and_end("its predecessor goes on"),
            Kind::Unknown => {}
            kind => refuse_and_end(&format!(
                "an unexpected message of the supervisor: {kind:?}"
            )),
        }
    }
    let started = Instant::now();
    let ports = running.held();
    ports.thaw_all(Some(&positions), false, Nics::Taken(&uplinks));
    supervisor.say(Kind::Confirmed, "");
    if let Some(predecessor) = &supervisor.predecessor {
        let _ = predecessor.send(Kind::Confirmed, "", b"", &[]);
    }
    supervisor.own_adoption_socket();
    let us = started.elapsed().as_micros();
    let guests = positions.len();
    tracing::info!(
        "has taken over from its predecessor: {guests} guest port(s), started in {us} us"
    );
    ports.settle_all();
    drop(ports);
    begin_own(running);
    loop {
        match supervisor.next() {
            Some(message) if message.kind == Kind::Alone => break,
            Some(message) if message.kind != Kind::Record => {}
            // Passed on by a supervisor of an earlier version, which makes no connection to the predecessor.
            Some(message) if supervisor.predecessor.is_none() && is_last(&message) => {
                take_last(running, message);
            }
            // Of uplinks, changed since this process began.
            Some(message) => supervisor.put_late(message),
            // It has died.
            None => break,
        }
    }
    hear_predecessor(running, supervisor);
    running.open_uplinks(&super::heartbeat);
}

/// Whether a record is one that a process sends when it leaves.
fn is_last(record: &Message) -> bool {
    record.name == COUNTERS || record.name == CONNECTIONS_SINCE
}

fn take_last(running: &Running, record: Message) {
    if record.name == COUNTERS {
        count(running, Some(record));
    } else {
        running.dataplane.take_connections(&record.body);
    }
}

/// Hears the predecessor's last records, which it has sent by now unless the supervisor has just died.
fn hear_predecessor(running: &Running, supervisor: &Supervisor) {
    let deadline = Instant::now() + LAST_TIME_MAX;
    let Some(predecessor) = &supervisor.predecessor else {
        return;
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!("the predecessor's counters may be missing: it does not end");
            return;
        }
        match predecessor.receive_within(left) {
            Ok(Some(message)) if message.kind == Kind::Leave => return,
            Ok(Some(record)) if is_last(&record) => take_last(running, record),
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(why) => {
                tracing::warn!("the predecessor's counters may be missing: {why}");
                return;
            }
        }
    }
}

/// Goes on after a predecessor's crash: with its tables as they were last recorded, and its guests.
pub(crate) fn go_on(running: &Running) {
    learn(running);
    count(running, take(COUNTERS));
    let ports = running.held();
    ports.thaw_all(None, false, Nics::None);
    ports.settle_all();
    drop(ports);
    begin_own(running);
    // Last, since a NIC may take its time.
    running.open_uplinks(&super::heartbeat);
}

/// From now on ports are this process's own.
fn begin_own(running: &Running) {
    end_taking_over();
    if let Some(supervisor) = supervisor() {
        supervisor.disconnect_all();
    }
    running.release_all();
}

/// Hands everything over to a successor, or goes on.
fn hand_over(running: &Running, supervisor: &Supervisor, hold: Message) {
    let mut fds = hold.fds.into_iter();
    let attempt = Attempt {
        claim: fds.next().map(Claim::of),
        successor: fds.next().map(Link::of),
    };
    let mut was_started = false;
    let held = running.while_held(HOLD_TIME_MAX, SHUT_TIME_MAX, |ports| {
        put(ADDRESSES, &running.dataplane.learned(), &[]);
        let connections = running.dataplane.connections_text(None);
        let seen = connections.map(|(text, seen)| {
            put_bytes(CONNECTIONS, &text, &[]);
            seen
        });
        supervisor.say(Kind::Held, "");
        match supervisor
            .next_within(PREPARED_TIME_MAX)
            .map(|message| message.kind)
        {
            Some(Kind::Freeze) => {
                was_started =
                    hand_rings_over(ports, running, (supervisor, &attempt), seen.as_ref());
            }
            Some(_) => {}
            None => tracing::warn!("the supervisor says nothing, or has died: no upgrade"),
        }
    });
    if was_started {
        running.reopen_uplinks(&super::heartbeat);
    }
    match held {
        Ok(()) => {
            record_connections(running);
            tracing::info!("the upgrade is off: this process goes on");
        }
        Err(why) => supervisor.say(Kind::Refused, &why),
    }
}

/// What an attempt at an upgrade has in case that the supervisor dies.
struct Attempt {
    claim: Option<Claim>,
    /// The connection to the new process.
    successor: Option<Link>,
}

impl Attempt {
    /// Whether the new process, which has the claim, has ended before all its workers had the rings.
    fn has_successor_ended(&self) -> bool {
        let successor = self.successor.as_ref();
        let said = successor.map(|successor| successor.receive_within(CONFIRMED_TIME_MAX));
        matches!(said, Some(Ok(None)))
    }
}

/// Stops all rings, and ends this process once its successor has them. Otherwise they go on; returns whether the successor may
/// have used them.
fn hand_rings_over(
    ports: &HeldPorts<'_>,
    running: &Running,
    (supervisor, attempt): (&Supervisor, &Attempt),
    seen: Option<&Exported>,
) -> bool {
    // Nearly all, while the rings still run.
    let since = record_since(running, seen);
    let (positions, mut nics) = ports.freeze_all();
    put_bytes(UPLINKS, &nics.write(), &[]);
    put(POSITIONS, &positions, &[]);
    supervisor.say(Kind::Frozen, "");
    match supervisor.next() {
        Some(message) if message.kind == Kind::Leave => leave(running, attempt, since.as_ref()),
        message => {
            let was_started = match &message {
                Some(message) => message.text() == WAS_STARTED,
                // The supervisor has died.
                None if attempt.claim.as_ref().is_some_and(Claim::take) => false,
                None if attempt.has_successor_ended() => true,
                // The successor has the rings, or may have: two owners are worse than none.
                None => leave(running, attempt, since.as_ref()),
            };
            let nics = match was_started {
                // Where its frames are is not known.
                true => Nics::None,
                false => Nics::Own(nics),
            };
            ports.thaw_all(None, was_started, nics);
            ports.settle_all();
            was_started
        }
    }
}

/// Records the connections that have begun or changed since `seen`.
fn record_since(running: &Running, seen: Option<&Exported>) -> Option<Exported> {
    let (text, seen) = running.dataplane.connections_text(seen)?;
    put_bytes(CONNECTIONS_SINCE, &text, &[]);
    Some(seen)
}

/// Sends the successor what it counts on from, ends this process, and leaves sockets' files, interfaces and guests as they are.
fn leave(running: &Running, attempt: &Attempt, since: Option<&Exported>) -> ! {
    let last = |name: &str, body: &[u8]| {
        let sent = attempt
            .successor
            .as_ref()
            .map(|successor| successor.send(Kind::Record, name, body, &[]));
        if let Some(Err(why)) = sent {
            tracing::warn!("the successor does not get {name}: {why}");
        }
    };
    match serde_json::to_vec(&running.dataplane.counters()) {
        Ok(counters) => last(COUNTERS, &counters),
        Err(why) => tracing::warn!("the successor does not get {COUNTERS}: {why}"),
    }
    if let Some((text, _)) = running.dataplane.connections_text(since) {
        last(CONNECTIONS_SINCE, &text);
    }
    if let Some(successor) = &attempt.successor {
        let _ = successor.send(Kind::Leave, "", b"", &[]);
    }
    running.end_exports(EXPORTS_TIME_MAX);
    capture::end_all(&running.dataplane, CAPTURES_TIME_MAX);
    tracing::info!("a successor has taken over");
    log::drain();
    std::process::exit(0)
}

impl Supervisor {
    fn say(&self, kind: Kind, text: &str) {
        if let Err(why) = self.connection.send(kind, text) {
            tracing::warn!("the supervisor does not get {kind:?}: {why}");
        }
    }

    /// Makes this process the one that another supervisor finds.
    fn own_adoption_socket(&self) {
        if let Some(Err(why)) = self.adoption_socket.as_ref().map(AdoptionSocket::own) {
            tracing::warn!("another supervisor would not find this process: {why}");
        }
    }

    /// Waits for another supervisor after the last one has died, and gives it all records. Returns `false` when none has come in
    /// time: the daemon is to end.
    fn wait_for_another(&self) -> bool {
        let time = Duration::from_secs(self.begin.unsupervised_s_max);
        tracing::warn!(
            "the supervisor has died: this process goes on, and ends if no other one has started within {} s",
            time.as_secs()
        );
        let (upgrades, crashes) = (self.begin.upgrades, self.begin.crashes);
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let own = Adopted {
            upgrades,
            crashes,
            pid,
        };
        let adopted = self
            .adoption_socket
            .as_ref()
            .is_some_and(|adoption_socket| {
                let adopted = self.connection.wait(adoption_socket, &own, time);
                adopted.unwrap_or_else(|why| {
                    tracing::error!("no supervisor can be waited for: {why}");
                    false
                })
            });
        match adopted {
            true => tracing::info!("another supervisor has started"),
            false => {
                tracing::error!("no other supervisor has started: this process ends");
                self.is_abandoned.store(true, Ordering::SeqCst);
            }
        }
        adopted
    }

    /// The next message; `None` when the supervisor has ended.
    fn next(&self) -> Option<Message> {
        loop {
            match self.connection.link().receive() {
                Ok(message) => return message,
                // It still runs, so this process does not wait for another one.
                Err(LinkError::Io(why)) => {
                    tracing::error!("the supervisor cannot be heard: {why}");
                    std::thread::sleep(HEAR_PAUSE);
                }
                Err(why) => tracing::error!("a message of the supervisor is ignored: {why}"),
            }
        }
    }

    /// Like [`next`](Self::next); `None` too when none has come after `time`.
    fn next_within(&self, time: Duration) -> Option<Message> {
        self.connection.link().receive_within(time).ok().flatten()
    }
}
