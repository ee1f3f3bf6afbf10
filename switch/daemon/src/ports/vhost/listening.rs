//! A guest port's listening socket. It is created with the port and checked while the port exists. If its file or
//! folder is removed or replaced, the socket is created again, since no front end could connect otherwise.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crosspoint_config as config;
use crosspoint_config::Access;
use crosspoint_handover::Message;
use crosspoint_model::client::connect;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::access::{self, Refused};
use super::{Shared, VhostPortError};
use crate::handover;
use crate::service::socket_file::{ENDING_PAUSE, Folders, Place, SocketFile};

/// Interval between two checks of the socket's file.
const LOOK: Duration = Duration::from_secs(1);
/// Interval between two attempts to create it again. Each attempt connects to a process that listens in its place.
const RETRY: Duration = Duration::from_secs(3);
/// How long the start of a port waits for another process that listens there: a killed switch takes a moment to end. It has
/// no longer than that after its control socket, which is waited for first.
const ENDING_TIME_MAX: Duration = Duration::from_millis(250);
/// Shortest time between two log lines about a recreated socket.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// The longest time that a process listening at the port's path may take to accept our connection.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(200);
/// Permission bits of a file's mode.
const MODE_BITS: u32 = 0o777;

/// A port's listening socket, and the state of its file.
pub(super) struct Listening {
    port: String,
    path: PathBuf,
    listener: UnixListener,
    place: Place,
    /// The access settings with which it was first created.
    access: Access,
    /// The access settings of the configuration.
    wanted: Access,
    folders: Folders,
    look_at: Instant,
    problem: Option<String>,
    /// When a recreated socket was last logged.
    said_at: Option<Instant>,
}

impl Listening {
    /// Creates the socket. The caller keeps its file.
    pub(super) fn start(
        port: &str,
        config: &config::VhostPort,
    ) -> Result<(Listening, SocketFile), VhostPortError> {
        if let Some(taken) = Listening::adopt(port, config) {
            return Ok(taken);
        }
        let path = config.socket.as_path();
        let fail = |why| VhostPortError::Listen {
            port: port.to_owned(),
            path: path.to_owned(),
            why,
        };
        clear_in_time(port, path)?;
        make_folder(port, path);
        let listen = access::listen(path, &config.access);
        let listener = listen.map_err(|refused| refused.explain(port, path))?;
        let file = SocketFile::of(path).map_err(fail)?;
        let found = std::fs::symlink_metadata(path).map_err(fail)?;
        let created = Access {
            mode: Some(found.mode() & MODE_BITS),
            group: Some(found.gid().to_string()),
        };
        let listening = Listening::new(port, config, listener, &file, created);
        Ok((listening, file))
    }

    /// A socket at the port's path, created with the access `created`. It is recorded for a successor of this process.
    fn new(
        port: &str,
        config: &config::VhostPort,
        listener: UnixListener,
        file: &SocketFile,
        created: Access,
    ) -> Listening {
        let path = config.socket.as_path();
        let listening = Listening {
            port: port.to_owned(),
            path: path.to_owned(),
            listener,
            place: file.place().clone(),
            access: created,
            wanted: config.access.clone(),
            folders: Folders::of(path),
            look_at: Instant::now() + LOOK,
            problem: None,
            said_at: None,
        };
        listening.record();
        listening
    }

    /// Goes on with the predecessor's socket, if it is the one that the port is to have now. Before a predecessor has left, any
    /// other ends this process: only one of the two may create sockets.
    fn adopt(port: &str, config: &config::VhostPort) -> Option<(Listening, SocketFile)> {
        let handed = handover::take(&record_name(port))?;
        let adopted = Listening::adopt_record(port, config, handed);
        match adopted {
            Ok(taken) => Some(taken),
            Err(why) if handover::is_preparing() => {
                handover::refuse_and_end(&format!("port {port}: {why}"))
            }
            Err(why) => {
                tracing::warn!(port, "its socket is created again: {why}");
                None
            }
        }
    }

    fn adopt_record(
        port: &str,
        config: &config::VhostPort,
        handed: Message,
    ) -> Result<(Listening, SocketFile), String> {
        let path = config.socket.as_path();
        let of: Record = serde_json::from_slice(&handed.body).map_err(|why| why.to_string())?;
        let listener = handed.fds.into_iter().next().map(UnixListener::from);
        let listener = listener.ok_or("its record is malformed")?;
        let wanted = (config.access.mode, config.access.group.clone());
        if of.path != path || of.access != wanted {
            return Err(
                "it has another socket, or other access to it, than the running one: reload first"
                    .to_owned(),
            );
        }
        // If another file has taken its place, the socket is created again, as in the middle of a process's life.
        let file = SocketFile::known(path, of.file);
        let (mode, group) = of.created;
        let created = Access { mode, group };
        let listening = Listening::new(port, config, listener, &file, created);
        Ok((listening, file))
    }

    /// Waits like [`Shared::wait`] for what happens to the current front end and, if `others` is set, for another front
    /// end to connect; checks the socket meanwhile. Calls `noted` when a problem of the socket appears, changes or
    /// ends.
    pub(super) fn wait(
        &mut self,
        shared: &Shared,
        (current, others): (Option<Current<'_>>, bool),
        time: Option<Duration>,
        noted: &mut dyn FnMut(Option<&str>),
    ) -> Option<Ready> {
        let deadline = time.map(|time| Instant::now() + time);
        loop {
            if Instant::now() >= self.look_at && self.look(shared) {
                noted(self.problem.as_deref());
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let all = [
                current.map(|(connection, _)| (Ready::Message, connection.as_fd())),
                current.map(|(_, link)| (Ready::Link, link)),
                others.then(|| (Ready::Another, self.listener.as_fd())),
            ];
            let (kinds, fds): (Vec<Ready>, Vec<BorrowedFd<'_>>) = all.into_iter().flatten().unzip();
            let ready = shared.wait(&fds, Some(left.map_or(LOOK, |left| left.min(LOOK))));
            if let Some(index) = ready {
                return kinds.get(index).copied();
            }
            if shared.stopping() || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
        }
    }

    /// Accepts a front end's connection.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (connection, _) = self.listener.accept()?;
        connection.set_nonblocking(false)?;
        Ok(connection)
    }

    /// Records the socket for a successor of this process.
    fn record(&self) {
        let of = |access: &Access| (access.mode, access.group.clone());
        let record = Record {
            path: self.path.clone(),
            file: self.place.identity(),
            access: of(&self.wanted),
            created: of(&self.access),
        };
        handover::put(&record_name(&self.port), &record, &[self.listener.as_fd()]);
    }

    /// Checks the file, and creates the socket again if it is gone. Returns whether its problem has changed.
    fn look(&mut self, shared: &Shared) -> bool {
        self.look_at = Instant::now() + LOOK;
        // When a port ends, its file is removed on purpose.
        if self.place.is_there() || shared.stopping() {
            return self.note(None);
        }
        match self.make_again() {
            Ok((listener, file)) => {
                // Connections that wait at the old listener are dropped here.
                (self.listener, self.place) = (listener, file.place().clone());
                self.record();
                shared.keep_socket_file(file);
                // Limits the log if something removes it again and again.
                if self.said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    self.said_at = Some(Instant::now());
                    tracing::warn!(
                        port = self.port,
                        "its socket {} was removed or replaced; it has been created again, and front ends can connect",
                        self.path.display()
                    );
                }
                self.note(None)
            }
            Err(why) => {
                self.look_at = Instant::now() + RETRY;
                self.note(Some(why))
            }
        }
    }

    /// Creates the socket again: in a folder as it was, with the access settings of the first time.
    fn make_again(&self) -> Result<(UnixListener, SocketFile), String> {
        clear(&self.port, &self.path).map_err(|why| why.to_string())?;
        self.folders.make_again().map_err(|why| why.to_string())?;
        let explain = |refused: Refused| refused.explain(&self.port, &self.path).to_string();
        let listener = match access::listen(&self.path, &self.access) {
            // The folder's group was the socket's, and has changed.
            Err(Refused::Group(..)) => access::listen(&self.path, &self.wanted),
            done => done,
        };
        let listener = listener.map_err(explain)?;
        let file = SocketFile::of(&self.path).map_err(|why| why.to_string())?;
        Ok((listener, file))
    }

    /// Records the current problem, and logs it if it is new. Returns whether it has changed.
    fn note(&mut self, why: Option<String>) -> bool {
        let problem = why.map(|why| format!("no front end can connect: its socket was removed or replaced, and cannot be made again: {why}"));
        if problem == self.problem {
            return false;
        }
        if let Some(problem) = &problem {
            tracing::error!(
                port = self.port,
                "{problem}; it is tried again every {} s",
                RETRY.as_secs()
            );
        }
        self.problem = problem;
        true
    }
}

fn record_name(port: &str) -> String {
    format!("listener/{port}")
}

/// The body of the record of a port's socket.
#[derive(Serialize, Deserialize)]
struct Record {
    path: PathBuf,
    /// Device and inode of its file.
    file: (u64, u64),
    /// Mode and group of the configuration,
    access: (Option<u32>, Option<String>),
    /// and with which it was first created.
    created: (Option<u32>, Option<String>),
}

/// Ends the record of a port's socket.
pub(super) fn forget(port: &str) {
    handover::forget(&record_name(port));
}

/// The connection of the current front end, and what is readable when the link of its guest has changed.
pub(super) type Current<'a> = (&'a UnixStream, BorrowedFd<'a>);

/// What became ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ready {
    /// The current front end has sent a message or disconnected.
    Message,
    /// The link of its guest has gone down or up.
    Link,
    /// Another front end wants to connect.
    Another,
}

/// Makes the folder of the socket if it is missing. If that fails, listening there fails too, with the reason.
fn make_folder(port: &str, path: &Path) {
    let Some(folder) = path.parent().filter(|folder| !folder.exists()) else {
        return;
    };
    if std::fs::create_dir_all(folder).is_ok() {
        tracing::warn!(
            port,
            "the folder {} of its socket did not exist; it has been made, with this process's user and umask",
            folder.display()
        );
    }
}

/// Like [`clear`], but waits while another process listens there: a killed switch takes a moment to end.
fn clear_in_time(port: &str, path: &Path) -> Result<(), VhostPortError> {
    let deadline = Instant::now() + ENDING_TIME_MAX;
    loop {
        match clear(port, path) {
            Err(VhostPortError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(ENDING_PAUSE);
            }
            done => return done,
        }
    }
}

/// Removes a socket that a dead process left behind. Anything else in the way is an error.
fn clear(port: &str, path: &Path) -> Result<(), VhostPortError> {
    let Ok(there) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let (port, at) = (port.to_owned(), path.to_owned());
    if !there.file_type().is_socket() {
        return Err(VhostPortError::NoSocket { port, path: at });
    }
    // A process that listens and does not accept must not block us; and only a socket without a listener is removed.
    match connect(path, ANSWER_TIME_MAX) {
        Err(Errno::CONNREFUSED) => drop(std::fs::remove_file(path)),
        Err(Errno::NOENT) => {}
        Ok(_) | Err(_) => return Err(VhostPortError::InUse { port, path: at }),
    }
    Ok(())
}
