//! The control socket, from the server's and the client's side.

#[path = "api/changes.rs"]
mod changes;
#[path = "api/clients.rs"]
mod clients;
#[path = "api/file.rs"]
mod file;
#[path = "show/picture.rs"]
mod picture;
#[path = "api/protocol.rs"]
mod protocol;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crosspoint_daemon::api::ControlServer;
use picture::Picture;
use tempfile::TempDir;

/// A server, and the directory of its socket.
struct Fixture {
    server: ControlServer,
    directory: TempDir,
}

impl Fixture {
    fn new(picture: Picture) -> Fixture {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let server = ControlServer::start(&socket(directory.path()), Arc::new(picture));
        Fixture {
            server: server.expect("nothing is in the way"),
            directory,
        }
    }

    fn path(&self) -> PathBuf {
        socket(self.directory.path())
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).expect("the server listens");
        let time = Some(Duration::from_secs(20));
        client.set_read_timeout(time).expect("a time");
        client
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Sends bytes and reads a line, which is empty if the server closed the connection instead.
fn exchange(client: &mut UnixStream, request: &[u8]) -> String {
    client.write_all(request).expect("the server reads");
    let mut reply = String::new();
    BufReader::new(client)
        .read_line(&mut reply)
        .expect("the server answers");
    reply
}
