//! `crosspoint upgrade`, and the supervisor's socket that it uses: a line of JSON each way.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// How long a client may take to send its request, or to read the answer.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(1);
/// How long an upgrade may take: more than all its steps together.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest request and answer.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Only the supervisor's user, and root, may ask.
const MODE: u32 = 0o600;

/// The supervisor's socket.
#[derive(clap::Args)]
pub(crate) struct Socket {
    /// The supervisor's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "CROSSPOINT_SUPERVISOR_SOCKET",
        default_value = "/run/crosspoint/supervisor.sock"
    )]
    pub(super) supervisor_socket: PathBuf,
}

/// Replace the running switch by the program that is installed now; guests and their connections stay
///
/// The new process prepares everything while the old one forwards frames; then all rings stop for about a millisecond, and longer with many guests. If
/// the new process cannot take over, the old one goes on, and the reason is printed. `crosspoint supervise` must run the switch.
#[derive(clap::Args, Serialize, Deserialize, Clone, Copy, Default, Debug, PartialEq, Eq)]
#[command(after_long_help = crate::help::UPGRADE)]
pub(crate) struct Upgrade {
    /// Try everything but the last step, and say what would happen
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Go back to the program before the last upgrade
    #[arg(long, conflicts_with = "if_changed")]
    pub(super) back: bool,
    /// Do nothing if the installed program is the one that runs
    #[arg(long)]
    #[serde(default)]
    pub(super) if_changed: bool,
}

/// `crosspoint upgrade`.
#[derive(clap::Args)]
pub(crate) struct UpgradeCommand {
    #[command(flatten)]
    upgrade: Upgrade,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(String),
    Error(String),
}

impl UpgradeCommand {
    pub(crate) fn run(self) -> ExitCode {
        let path = &self.socket.supervisor_socket;
        match ask(path, self.upgrade) {
            Ok(Answer::Ok(text)) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Ok(Answer::Error(why)) => {
                eprintln!("error: {why}");
                eprintln!("help: the switch goes on as before; the log of the service has more");
                ExitCode::FAILURE
            }
            Err(why) => {
                eprintln!("error: no supervisor answers on {}: {why}", path.display());
                eprintln!(
                    "help: run the switch by `crosspoint supervise`, as the packaged service does, or name the socket by --supervisor-socket"
                );
                ExitCode::FAILURE
            }
        }
    }
}

fn ask(path: &Path, upgrade: Upgrade) -> io::Result<Answer> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut line = serde_json::to_string(&upgrade)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes())?;
    Ok(serde_json::from_str(&read_line(&stream)?)?)
}

fn read_line(mut stream: &UnixStream) -> io::Result<String> {
    let deadline = Instant::now() + stream.read_timeout()?.unwrap_or(ANSWER_TIME_MAX);
    let mut line = Vec::new();
    let mut byte = [0];
    // A line has some fifty bytes.
    while line.len() < LINE_BYTES_MAX && stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// The listening side.
pub(super) struct Requests {
    listener: UnixListener,
    path: PathBuf,
}

impl Requests {
    pub(super) fn listen(path: &Path) -> io::Result<Requests> {
        let explained = |why: io::Error| super::explained(path, why);
        if UnixStream::connect(path).is_ok() {
            return Err(explained(io::ErrorKind::AddrInUse.into()));
        }
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::create_dir_all(folder).map_err(explained)?;
        }
        match fs::remove_file(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(explained(why)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(explained)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(explained)?;
        listener.set_nonblocking(true)?;
        Ok(Requests {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers one client, unless it is process `switch`, which may have been taken over by a guest.
    pub(super) fn answer(
        &self,
        switch: Pid,
        mut upgrade: impl FnMut(Upgrade) -> Result<String, String>,
    ) {
        let Ok((client, _)) = self.listener.accept() else {
            return;
        };
        let peer = rustix::net::sockopt::socket_peercred(&client);
        let is_switch = |peer: rustix::net::UCred| peer.pid == switch;
        if peer.is_ok_and(is_switch) {
            return;
        }
        let prepared = client.set_nonblocking(false).and_then(|()| {
            client.set_read_timeout(Some(CLIENT_TIME_MAX))?;
            client.set_write_timeout(Some(CLIENT_TIME_MAX))
        });
        let Ok(line) = prepared.and_then(|()| read_line(&client)) else {
            return;
        };
        let answer = match serde_json::from_str(&line) {
            Ok(wanted) => match upgrade(wanted) {
                Ok(text) => Answer::Ok(text),
                Err(why) => Answer::Error(why),
            },
            Err(why) => Answer::Error(format!("invalid request: {why}")),
        };
        if let Ok(mut line) = serde_json::to_string(&answer) {
            line.push('\n');
            let _ = (&client).write_all(line.as_bytes());
        }
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
