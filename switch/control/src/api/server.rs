//! The daemon's side of the control socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use super::capture::{self, EndOnDrop};
use super::change::{self, Change};
use super::socket::{self, SocketError, SocketFile};
use super::thread::{ServerThread, serve};
use super::{Place, Request, Source, snapshot};
use crate::health;
use crate::show::{self, Topic};

/// The longest request, its newline not counted.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest that a client may take to send a request, and to think of the next.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest that an answer is worked on. Below what `crosspoint` waits for, so that it can tell why.
const LOOK_TIME_MAX: Duration = Duration::from_secs(8);
/// Answers that are worked on at once; more wait. The largest takes tens of megabytes.
const LOOKS_MAX: usize = 4;
/// The longest that a client may take to read a reply.
pub const REPLY_TIME_MAX: Duration = Duration::from_secs(10);
/// The most clients at once; more wait.
pub const CLIENTS_MAX: usize = 64;
/// Of those, that may only look: they cannot keep out those who may change something.
const LOOKERS_MAX: usize = 48;

/// The control socket, served by a thread of its own until this is dropped.
///
/// The thread inherits the caller's CPU affinity: start it before pinning the calling thread to anything.
#[derive(Debug)]
pub struct ControlServer {
    // In this order: while the socket is open its inode is not used again, so the file that is removed is ours.
    _file: SocketFile,
    _thread: ServerThread,
}

impl ControlServer {
    /// Listens at `path`, with mode 0660, in a directory that is made if it is missing. The socket of a process that
    /// died is replaced; that of a living one is not, and is an error.
    pub fn start(path: &Path, source: Arc<dyn Source>) -> Result<ControlServer, SocketError> {
        let (listener, file) = socket::listen(path)?;
        let serving = move || async move {
            let listener = UnixListener::from_std(listener)?;
            let accept = async || listener.accept().await.map(|(client, _)| client);
            let (moving, end) = (Arc::default(), EndOnDrop::default());
            let looks = Arc::new(Semaphore::new(LOOKS_MAX));
            let lookers = Arc::new(Semaphore::new(LOOKERS_MAX));
            serve("control", CLIENTS_MAX, accept, move |client| {
                let asked = Asked {
                    source: Arc::clone(&source),
                    moving: Arc::clone(&moving),
                    looks: Arc::clone(&looks),
                    lookers: Arc::clone(&lookers),
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
            _file: file,
            _thread: thread,
        })
    }

    /// Removes the socket, ends the thread, whatever its clients do, and waits until it has ended. A move that is under
    /// way is waited for for a second at most. Dropping it does the same.
    pub fn stop(self) {
        drop(self);
    }
}

/// Who is asked, and by whom.
pub(super) struct Asked {
    pub source: Arc<dyn Source>,
    /// Held while a stream moves, or anything else changes.
    pub moving: Arc<Mutex<()>>,
    /// A place is held while something is looked at.
    looks: Arc<Semaphore>,
    /// A place is held by each client that may only look.
    lookers: Arc<Semaphore>,
    /// The client's process, as the kernel knows it.
    pub peer: Option<UCred>,
    /// Whether the server ends. A job that has a thread of its own has to look.
    pub ending: Arc<AtomicBool>,
}

/// Answers one client's requests. Its errors are its own affair, and it notices them.
async fn converse(client: UnixStream, asked: Asked) {
    let mut client = BufReader::new(client);
    let uid = asked.peer.map(|peer| peer.uid());
    let _place = match may_change(uid, rustix::process::geteuid().as_raw()) {
        true => None,
        // More of them wait elsewhere: they notice that they are hung up on.
        false => match Arc::clone(&asked.lookers).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => return,
        },
    };
    loop {
        let (reply, more) = match timeout(REQUEST_TIME_MAX, read(&mut client)).await {
            Ok(Ok(Line::Request(line))) => match capture::wanted(&line) {
                Some(job) => return capture::show_frames(client, asked, job).await,
                None => (answer(&line, &asked).await, true),
            },
            Ok(Ok(Line::TooLong)) => (too_long(), false),
            Ok(Ok(Line::End) | Err(_)) => return,
            Err(_) => (too_slow(), false),
        };
        let Ok(reply) = reply else { return };
        match timeout(REPLY_TIME_MAX, client.get_mut().write_all(&reply)).await {
            Ok(Ok(())) if more => {}
            _ => return,
        }
    }
}

enum Line {
    Request(Vec<u8>),
    TooLong,
    End,
}

/// Reads a line, of which it never keeps more than is allowed. The last one need not end in a newline.
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

#[derive(Serialize)]
struct Refusal {
    error: String,
    help: String,
}

async fn answer(line: &[u8], asked: &Asked) -> serde_json::Result<Vec<u8>> {
    match serde_json::from_slice(line) {
        Ok(Request::Show(topic)) => {
            let write = move |source: &dyn Source| {
                let mut reply = br#"{"ok":"#.to_vec();
                show::write_json(topic, source, &mut reply)?;
                reply.extend_from_slice(b"}\n");
                Ok(reply)
            };
            look(asked, write).await
        }
        Ok(Request::Port(name)) => {
            let write = move |source: &dyn Source| match show::port(&name, source) {
                Ok(ok) => line_of(&Answer { ok }),
                Err(unknown) => refuse(unknown.to_string(), unknown.help()),
            };
            look(asked, write).await
        }
        Ok(Request::Snapshot {}) => {
            let write = |source: &dyn Source| {
                line_of(&Answer {
                    ok: snapshot::of(source),
                })
            };
            look(asked, write).await
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
        Ok(Request::Capture(_) | Request::Trace(_)) => refuse(
            "frames are shown on a connection of their own".to_owned(),
            usage(),
        ),
        Err(error) => refuse(format!("not a request: {error}"), usage()),
    }
}

/// Answers one that only looks. On a thread of its own: it waits for changes of ports, and a change waits for workers. Who
/// asks whether a worker is stuck must not wait for it.
async fn look(
    asked: &Asked,
    write: impl FnOnce(&dyn Source) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> serde_json::Result<Vec<u8>> {
    let (source, looks) = (Arc::clone(&asked.source), Arc::clone(&asked.looks));
    let looking = async move {
        let place = looks.acquire_owned().await;
        let look = move || {
            let _place = place;
            write(&*source)
        };
        tokio::task::spawn_blocking(look).await
    };
    match timeout(LOOK_TIME_MAX, looking).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(why)) => refuse(
            format!("not answered: {why}"),
            "see the daemon's log".to_owned(),
        ),
        Err(_) => refuse(
            "the ports are being changed, and a worker is waited for".to_owned(),
            "`crosspoint health` says whether one does not come round".to_owned(),
        ),
    }
}

/// Whether a process of user `uid` may change anything, where the daemon's user is `own`. Others that may connect, such as
/// its group, may look.
pub(super) fn may_change(uid: Option<u32>, own: u32) -> bool {
    uid.is_some_and(|uid| uid == 0 || uid == own)
}

/// It waits for workers and NICs, so it has a thread of its own; and it holds up changes of all ports, so there is one at a
/// time.
async fn move_stream(place: Place, asked: &Asked) -> serde_json::Result<Vec<u8>> {
    let uid = asked.peer.map(|peer| peer.uid());
    if !may_change(uid, rustix::process::geteuid().as_raw()) {
        return refuse(
            "only root and the daemon's user may move queues".to_owned(),
            "`show` is for all who may connect".to_owned(),
        );
    }
    let Ok(turn) = Arc::clone(&asked.moving).try_lock_owned() else {
        return refuse(
            "another change is under way".to_owned(),
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
        worker = place.worker, "was asked to go to worker-{} by hand", place.worker);
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
