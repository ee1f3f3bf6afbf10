//! Connecting to a socket, within a time.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Connects to a daemon. If its queue is still full after `time_max`, the error is `AGAIN`.
pub fn connect(path: &Path, time_max: Duration) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // For a Unix socket this bounds `connect` too, which waits for room in the listener's queue.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(time_max))?;
    net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
