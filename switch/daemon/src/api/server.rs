//! The daemon's side of the control socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as PlainListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crosspoint_model::request::{Place, REQUEST_TIME_MAX, Request};
use crosspoint_model::topic::Topic;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};
use tokio::time::timeout;

use super::asked::{Asked, User, line_of, may_change, refuse};
use super::capture::{self, EndOnDrop};
use super::change::{self, Change};
use super::places::{self, Closed, Limits, Phase, Places};
use super::socket::{self, SocketError};
use super::thread::{ServerThread, serve};
use super::{Source, health, show, snapshot};
use crate::handover;
use crate::service::socket_file::{Folders, SocketFile};

/// The longest request, its newline not counted.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest that an answer is worked on. Shorter than `crosspoint` waits, so that the daemon can still report the
/// timeout.
const LOOK_TIME_MAX: Duration = Duration::from_secs(8);
/// Answers that are worked on at the same time; more wait.
const LOOKS_MAX: usize = 4;
/// Answers that are held at the same time, until the client has read them; more wait. The largest takes tens of megabytes.
const REPLIES_MAX: usize = 16;
/// Of those, one user's. Two users that read nothing block others for no longer than [`REPLY_PATIENCE`].
const REPLIES_OF_USER_MAX: usize = 8;
/// The longest that a client may take to read a reply.
pub const REPLY_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer while others wait for theirs; where none waits, [`REPLY_TIME_MAX`].
const REPLY_PATIENCE: Duration = Duration::from_secs(1);
/// The most clients connected at the same time that may change something; more wait. Each takes a file descriptor.
pub const CLIENTS_MAX: usize = 256;
/// The most clients connected at the same time that may only look. They cannot keep out those that may change something.
const LOOKERS_MAX: usize = 48;
/// Of those, one user's.
const LOOKERS_OF_USER_MAX: usize = 32;
/// How long a client without a complete request is kept while others wait for a place; where none waits,
/// [`REQUEST_TIME_MAX`]. `crosspoint` sends its request at once.
const IDLE_PATIENCE: Duration = Duration::from_millis(500);

/// Connections to control sockets that were closed for lack of places.
pub(crate) static CLOSED: Closed = Closed::new();

/// Places for clients that may change something, for those that may only look, and for answers.
struct AllPlaces {
    changers: Arc<Places<User>>,
    lookers: Arc<Places<User>>,
    replies: Arc<Places<User>>,
}

impl AllPlaces {
    fn new() -> Self {
        let clients = |total_max, peer_max| {
            let limits = Limits {
                total_max,
                peer_max,
                idle: Some(IDLE_PATIENCE),
                waiting: None,
                sending: Some(REPLY_PATIENCE),
                working: None,
            };
            Places::new(limits, &CLOSED)
        };
        AllPlaces {
            changers: clients(CLIENTS_MAX, CLIENTS_MAX),
            lookers: clients(LOOKERS_MAX, LOOKERS_OF_USER_MAX),
            replies: clients(REPLIES_MAX, REPLIES_OF_USER_MAX),
        }
    }

    /// A place for a new client of `user`. Users that may change something wait for one; others are refused.
    async fn admit(&self, user: User) -> Option<places::Place<User>> {
        let closing = Arc::new(Notify::new());
        if may_change(user, rustix::process::geteuid().as_raw()) {
            return Some(self.changers.take(user, Phase::Idle, &closing).await);
        }
        let place = self.lookers.try_take(user, Phase::Idle, &closing);
        if place.is_none() {
            CLOSED.refuse();
        }
        place
    }
}

/// The control socket, served by a separate thread until this is dropped.
///
/// The thread inherits the caller's CPU affinity: start it before pinning the calling thread to anything.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    folders: Folders,
    /// Sends a listener that replaces the current one.
    listeners: mpsc::UnboundedSender<PlainListener>,
    // Dropped in this order: while the socket is open, its inode is not used again, so the file that is removed is this
    // socket's.
    file: SocketFile,
    _thread: ServerThread,
}

/// Name of the record of the listening socket.
const RECORD: &str = "control";

fn record(path: &Path, listener: &PlainListener) {
    handover::put(RECORD, &path, &[listener.as_fd()]);
}

/// The predecessor's socket, if it listens at `path`.
fn adopt(path: &Path) -> Option<(PlainListener, SocketFile)> {
    let taken = handover::take(RECORD)?;
    let of: PathBuf = serde_json::from_slice(&taken.body).ok()?;
    let listener = PlainListener::from(taken.fds.into_iter().next()?);
    let file = SocketFile::of(path).ok()?;
    (of == path).then_some((listener, file))
}

/// The current listener, and the channel of its replacements.
struct Listening {
    now: UnixListener,
    next: mpsc::UnboundedReceiver<PlainListener>,
}

impl Listening {
    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                client = self.now.accept() => return client.map(|(client, _)| client),
                Some(next) = self.next.recv() => self.now = UnixListener::from_std(next)?,
            }
        }
    }
}

impl ControlServer {
    /// Listens at `path`, with mode 0660, in a directory that is created if it is missing. The socket of a process that died
    /// is replaced; the socket of a living process is an error.
    pub fn start(path: &Path, source: Arc<dyn Source>) -> Result<ControlServer, SocketError> {
        let (listener, file) = match adopt(path) {
            Some(taken) => taken,
            None => socket::listen(path, socket::LOCK_TIME_MAX)?,
        };
        record(path, &listener);
        let (listeners, next) = mpsc::unbounded_channel();
        let serving = move || async move {
            let now = UnixListener::from_std(listener)?;
            let listening = Mutex::new(Listening { now, next });
            let accept = async || listening.lock().await.accept().await;
            let (moving, end) = (Arc::default(), EndOnDrop::default());
            let looks = Arc::new(Semaphore::new(LOOKS_MAX));
            let places = AllPlaces::new();
            let admit = async |client: &UnixStream| {
                let peer = client.peer_cred().ok();
                places.admit(peer.map(|peer| peer.uid())).await
            };
            serve("control", accept, admit, |client, place| {
                let asked = Asked {
                    source: Arc::clone(&source),
                    moving: Arc::clone(&moving),
                    looks: Arc::clone(&looks),
                    replies: Arc::clone(&places.replies),
                    place,
                    peer: client.peer_cred().ok(),
                    ending: Arc::clone(&end.0),
                };
                converse(client, asked)
            })
            .await
        };
        let thread = ServerThread::start("control", serving).map_err(|cause| SocketError::Io {
            what: "start a thread for",
            path: path.to_owned(),
            cause,
        })?;
        Ok(ControlServer {
            path: path.to_owned(),
            folders: Folders::of(path),
            listeners,
            file,
            _thread: thread,
        })
    }

    /// Makes the socket again if it, or its folder, was removed or replaced. Connected clients stay.
    pub fn look_after(&mut self) -> Result<(), SocketError> {
        if self.file.place().is_there() {
            return Ok(());
        }
        let path = &self.path;
        self.folders.make_again().map_err(|lost| SocketError::Io {
            what: "make again",
            path: path.clone(),
            cause: io::Error::other(lost),
        })?;
        // The main thread must not wait here; it calls this again later.
        let (listener, file) = socket::listen(path, Duration::ZERO)?;
        record(path, &listener);
        // If the server thread has ended, that has been logged already.
        let _ = self.listeners.send(listener);
        self.file = file;
        tracing::warn!(
            "the control socket {} was removed or replaced; it has been created again",
            path.display()
        );
        Ok(())
    }

    /// Removes the socket, ends the thread regardless of its clients, and waits until it has ended. It waits for a move in
    /// progress for a second at most. Dropping the server does the same.
    pub fn stop(self) {
        drop(self);
    }
}

/// Answers one client's requests. Connection errors end it; the client notices them.
async fn converse(client: UnixStream, asked: Asked) {
    let mut client = BufReader::new(client);
    loop {
        asked.place.enter(Phase::Idle);
        let line = timeout(REQUEST_TIME_MAX, read(&mut client)).await;
        asked.place.enter(Phase::Working);
        let (answered, more) = match line {
            Ok(Ok(Line::Request(line))) => match capture::wanted(&line) {
                Some(job) => return capture::show_frames(client, asked, job).await,
                None => (answer(&line, &asked).await, true),
            },
            Ok(Ok(Line::TooLong)) => (too_long().map(Reply::from), false),
            Ok(Ok(Line::End) | Err(_)) => return,
            Err(_) => (too_slow().map(Reply::from), false),
        };
        let Ok(reply) = answered else { return };
        asked.place.enter(Phase::Sending);
        if let Some(place) = &reply.place {
            place.enter(Phase::Sending);
        }
        match timeout(REPLY_TIME_MAX, client.get_mut().write_all(&reply.line)).await {
            Ok(Ok(())) if more => {}
            _ => return,
        }
    }
}

/// An answer. A large one has a place until the client has read it.
struct Reply {
    line: Vec<u8>,
    place: Option<Arc<places::Place<User>>>,
}

impl From<Vec<u8>> for Reply {
    fn from(line: Vec<u8>) -> Reply {
        Reply { line, place: None }
    }
}

enum Line {
    Request(Vec<u8>),
    TooLong,
    End,
}

/// Reads a line, and never holds more bytes of it than are allowed. The last line need not end in a newline.
async fn read(client: &mut BufReader<UnixStream>) -> io::Result<Line> {
    let mut line = Vec::new();
    let limit = REQUEST_BYTES_MAX as u64 + 1;
    client.take(limit).read_until(b'\n', &mut line).await?;
    Ok(match line.strip_suffix(b"\n") {
        Some(request) => Line::Request(request.to_vec()),
        None if line.is_empty() => Line::End,
        None if line.len() > REQUEST_BYTES_MAX => Line::TooLong,
        None => Line::Request(line),
    })
}

#[derive(Serialize)]
struct Answer<T> {
    ok: T,
}

async fn answer(line: &[u8], asked: &Asked) -> serde_json::Result<Reply> {
    let line = match serde_json::from_slice(line) {
        Ok(Request::Show(topic)) => {
            let write = move |source: &dyn Source| {
                let mut reply = br#"{"ok":"#.to_vec();
                show::write_json(topic, source, &mut reply)?;
                reply.extend_from_slice(b"}\n");
                Ok(reply)
            };
            return look(asked, write).await;
        }
        Ok(Request::Port(name)) => {
            let write = move |source: &dyn Source| match show::port(&name, source) {
                Ok(ok) => line_of(&Answer { ok }),
                Err(unknown) => refuse(unknown.to_string(), unknown.help()),
            };
            return look(asked, write).await;
        }
        Ok(Request::Connections(wanted)) => {
            let write = move |source: &dyn Source| match source.connections(&wanted) {
                Ok(ok) => line_of(&Answer { ok }),
                Err(refused) => line_of(&refused),
            };
            return look(asked, write).await;
        }
        Ok(Request::Snapshot {}) => {
            let write = |source: &dyn Source| {
                line_of(&Answer {
                    ok: snapshot::of(source),
                })
            };
            return look(asked, write).await;
        }
        Ok(Request::Config {}) => {
            let write = |source: &dyn Source| match source.config_text() {
                Some(config) => line_of(&Answer {
                    ok: serde_json::json!({ "config": config }),
                }),
                None => refuse("there is no configuration".to_owned(), usage()),
            };
            return look(asked, write).await;
        }
        Ok(Request::Move(place)) => move_stream(place, asked).await,
        Ok(Request::Health {}) => line_of(&Answer {
            ok: health::look(&*asked.source).await,
        }),
        Ok(Request::Plan { config }) => change::answer(Change::Plan(config), asked).await,
        Ok(Request::Reload {}) => change::answer(Change::Reload, asked).await,
        Ok(Request::PortAdd(port)) => change::answer(Change::Add(port), asked).await,
        Ok(Request::PortRemove(port)) => change::answer(Change::Remove(port), asked).await,
        Ok(Request::PortSet(port)) => change::answer(Change::Set(port), asked).await,
        Ok(Request::Keep {}) => change::answer(Change::Keep, asked).await,
        Ok(Request::FdbFlush(flush)) => change::answer(Change::FdbFlush(flush), asked).await,
        Ok(Request::FdbAdd(add)) => change::answer(Change::FdbAdd(add), asked).await,
        Ok(Request::FdbRemove(remove)) => change::answer(Change::FdbRemove(remove), asked).await,
        Ok(Request::SetAdd(change)) => change::answer(Change::SetAdd(change), asked).await,
        Ok(Request::SetRemove(change)) => change::answer(Change::SetRemove(change), asked).await,
        Ok(Request::Capture(_) | Request::Trace(_)) => refuse(
            "a capture or a trace needs a connection of its own".to_owned(),
            usage(),
        ),
        Err(error) => refuse(format!("invalid request: {error}"), usage()),
    };
    line.map(Reply::from)
}

/// Answers a request that only looks. It runs on a thread of its own, since it waits for changes of ports, and a change
/// waits for workers. A request whether a worker is stuck must not wait for it.
async fn look(
    asked: &Asked,
    write: impl FnOnce(&dyn Source) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> serde_json::Result<Reply> {
    let (source, looks) = (Arc::clone(&asked.source), Arc::clone(&asked.looks));
    let client = &asked.place;
    let looking = async move {
        let replies = &asked.replies;
        let place = replies.take(client.peer(), Phase::Working, client.closing());
        let place = Arc::new(place.await);
        let looks = looks.acquire_owned().await;
        let held = Arc::clone(&place);
        let look = move || {
            let _held = (held, looks);
            write(&*source)
        };
        (tokio::task::spawn_blocking(look).await, place)
    };
    let refused = match timeout(LOOK_TIME_MAX, looking).await {
        Ok((Ok(reply), place)) => {
            let place = Some(place);
            return reply.map(|line| Reply { line, place });
        }
        Ok((Err(why), _)) => refuse(
            format!("not answered: {why}"),
            "see the daemon's log".to_owned(),
        ),
        Err(_) => refuse(
            "a port change is in progress, and it waits for a worker".to_owned(),
            "`crosspoint health` shows whether a worker makes no progress".to_owned(),
        ),
    };
    refused.map(Reply::from)
}

/// Moves a stream. It waits for workers and NICs, so it runs on a separate thread. It blocks changes of all ports, so only
/// one runs at a time.
async fn move_stream(place: Place, asked: &Asked) -> serde_json::Result<Vec<u8>> {
    let uid = asked.peer.map(|peer| peer.uid());
    if !may_change(uid, rustix::process::geteuid().as_raw()) {
        return refuse(
            "only root and the daemon's user may move queues".to_owned(),
            "`crosspoint show` works for every user who may connect".to_owned(),
        );
    }
    let Ok(turn) = Arc::clone(&asked.moving).try_lock_owned() else {
        return refuse(
            "another change is in progress".to_owned(),
            "try again".to_owned(),
        );
    };
    let (wanted, source) = (place.clone(), Arc::clone(&asked.source));
    let task = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        source.move_stream(&wanted.port, wanted.queue, wanted.worker)
    });
    let result = task.await;
    let pid = asked.peer.and_then(|peer| peer.pid());
    tracing::info!(pid, uid, port = %place.port.escape_debug(), queue = place.queue, moved = matches!(result, Ok(Ok(()))),
        worker = place.worker, "a move to worker-{} was requested by hand", place.worker);
    match result {
        Ok(Ok(())) => line_of(&Answer { ok: place }),
        Ok(Err(why)) => refuse(why.to_string(), why.help().to_owned()),
        Err(why) => refuse(
            format!("not moved: {why}"),
            "see the daemon's log".to_owned(),
        ),
    }
}

fn usage() -> String {
    let topics = Topic::ALL.map(Topic::name).join(", ");
    format!(
        r#"send one line such as {{"show":"ports"}} (topics are {topics}), {{"port":"web-1"}}, {{"health":{{}}}}, {{"plan":{{}}}}, {{"reload":{{}}}}, {{"port_remove":"web-1"}}, or {{"move":{{"port":"web-1","queue":0,"worker":1}}}}"#
    )
}

fn too_long() -> serde_json::Result<Vec<u8>> {
    let error = format!("the request is longer than {REQUEST_BYTES_MAX} bytes");
    refuse(error, usage())
}

fn too_slow() -> serde_json::Result<Vec<u8>> {
    let seconds = REQUEST_TIME_MAX.as_secs();
    let error = format!("no request for {seconds} s");
    refuse(error, "end every request with a newline".to_owned())
}
