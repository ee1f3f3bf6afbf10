//! A guest port's own socket: made when the port is, and looked after as long as the port is there. Where somebody has
//! removed it, or its folder, or put another file in its place, it is made again: else no front end would find it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::access::{self, Refused};
use super::{Shared, VhostPortError};
use crate::api::connect;
use crate::config::{self, Access};
use crate::socket_file::{Folders, Place, SocketFile};

/// Between two looks at the socket's file.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to make it again. Who listens in its place is connected to each time.
const RETRY: Duration = Duration::from_secs(3);
/// The log says no more often that a socket was made again.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How long a process that listens where a port is to may take to let us connect.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(200);
/// Bits of a file's mode that say who may do what.
const MODE_BITS: u32 = 0o777;

/// The listening socket of a port, and what is known of its place.
pub(super) struct Listening {
    port: String,
    path: PathBuf,
    listener: UnixListener,
    place: Place,
    /// Who was let in when it was made first.
    access: Access,
    /// The configuration's.
    wanted: Access,
    folders: Folders,
    look_at: Instant,
    problem: Option<String>,
    /// When the log last said that the socket was made again.
    said_at: Option<Instant>,
}

impl Listening {
    /// Makes the socket. Its file is the caller's to keep.
    pub(super) fn start(
        port: &str,
        config: &config::VhostPort,
    ) -> Result<(Listening, SocketFile), VhostPortError> {
        let path = config.socket.as_path();
        let fail = |why| VhostPortError::Listen {
            port: port.to_owned(),
            path: path.to_owned(),
            why,
        };
        clear(port, path)?;
        if let Some(folder) = path.parent() {
            let _ = std::fs::create_dir_all(folder);
        }
        let listen = access::listen(path, &config.access);
        let listener = listen.map_err(|refused| refused.explain(port, path))?;
        let file = SocketFile::of(path).map_err(fail)?;
        let found = std::fs::symlink_metadata(path).map_err(fail)?;
        let listening = Listening {
            port: port.to_owned(),
            path: path.to_owned(),
            listener,
            place: file.place().clone(),
            access: Access {
                mode: Some(found.mode() & MODE_BITS),
                group: Some(found.gid().to_string()),
            },
            wanted: config.access.clone(),
            folders: Folders::of(path),
            look_at: Instant::now() + LOOK,
            problem: None,
            said_at: None,
        };
        Ok((listening, file))
    }

    /// Waits, as [`Shared::wait`] does, for the front end at hand to speak, and, if `others` count, for another one to
    /// connect; and looks after the socket meanwhile. `noted` hears of what is wrong with it, when that changes.
    pub(super) fn wait(
        &mut self,
        shared: &Shared,
        (connection, others): (Option<&UnixStream>, bool),
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
                connection.map(|connection| (Ready::Message, connection.as_fd())),
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

    /// A front end that has connected.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (connection, _) = self.listener.accept()?;
        connection.set_nonblocking(false)?;
        Ok(connection)
    }

    /// Whether the file is still there, and if not, makes it again. Whether another thing is wrong with it than before.
    fn look(&mut self, shared: &Shared) -> bool {
        self.look_at = Instant::now() + LOOK;
        // The file of a port that ends is gone, and is to be.
        if self.place.is_there() || shared.stopping() {
            return self.note(None);
        }
        match self.make_again() {
            Ok((listener, file)) => {
                // Connections that wait at the old listener are dropped here.
                (self.listener, self.place) = (listener, file.place().clone());
                shared.keep_socket_file(file);
                // Where somebody removes it again and again, once in a while.
                if self.said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    self.said_at = Some(Instant::now());
                    tracing::warn!(
                        port = self.port,
                        "its socket {} had been removed or replaced: it is made again, and front ends can connect",
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

    /// In a folder that is as it was, for those who were let in before.
    fn make_again(&self) -> Result<(UnixListener, SocketFile), String> {
        clear(&self.port, &self.path).map_err(|why| why.to_string())?;
        self.folders.make_again().map_err(|why| why.to_string())?;
        let explain = |refused: Refused| refused.explain(&self.port, &self.path).to_string();
        let listener = match access::listen(&self.path, &self.access) {
            // The folder's group was the socket's, and is another now.
            Err(Refused::Group(..)) => access::listen(&self.path, &self.wanted),
            done => done,
        };
        let listener = listener.map_err(explain)?;
        let file = SocketFile::of(&self.path).map_err(|why| why.to_string())?;
        Ok((listener, file))
    }

    /// Notes what is wrong; the log has it when that is new.
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

/// What was waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ready {
    /// The front end at hand has something to say, or is gone.
    Message,
    /// Another one wants to connect.
    Another,
}

/// Removes the socket that a process left behind when it died. Anything else that is in the way is an error.
fn clear(port: &str, path: &Path) -> Result<(), VhostPortError> {
    let Ok(there) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let (port, at) = (port.to_owned(), path.to_owned());
    if !there.file_type().is_socket() {
        return Err(VhostPortError::NoSocket { port, path: at });
    }
    // Who listens and does not accept must hold nobody up; and only what nobody listens on is removed.
    match connect(path, ANSWER_TIME_MAX) {
        Err(Errno::CONNREFUSED) => drop(std::fs::remove_file(path)),
        Err(Errno::NOENT) => {}
        Ok(_) | Err(_) => return Err(VhostPortError::InUse { port, path: at }),
    }
    Ok(())
}
