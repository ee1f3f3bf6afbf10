//! Creates a listening socket's file, with its configured mode and group in place before any connection.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, io};

use crosspoint_config::Access;
use rustix::fs::{AtFlags, Gid, Mode};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::VhostPortError;
use crate::service::sandbox::explain;
use crate::service::socket_file::{own_socket, set_mode};

/// Backlog for front ends that wait until the current one is done.
const BACKLOG: i32 = 128;
const GROUPS: &str = "/etc/group";

/// Why the socket was not created.
pub(super) enum Refused {
    /// The group does not exist.
    NoGroup(String),
    /// The group cannot be set.
    Group(String, io::Error),
    /// Any other error.
    Kernel(io::Error),
}

impl Refused {
    /// Converts to a port's error, with the port and its socket.
    pub(super) fn explain(self, port: &str, path: &Path) -> VhostPortError {
        let (port, path) = (port.to_owned(), path.to_owned());
        match self {
            Self::NoGroup(group) => VhostPortError::NoGroup { port, group },
            Self::Group(group, why) => VhostPortError::Group {
                port,
                path,
                group,
                why,
            },
            Self::Kernel(why) => {
                let why = explain(&path, why);
                VhostPortError::Listen { port, path, why }
            }
        }
    }
}

impl<E: Into<io::Error>> From<E> for Refused {
    fn from(why: E) -> Self {
        Self::Kernel(why.into())
    }
}

/// Listens at `path`, where no file exists, with the permissions of `access`. The listener is nonblocking.
pub(super) fn listen(path: &Path, access: &Access) -> Result<UnixListener, Refused> {
    let gid = access
        .group
        .as_deref()
        .map(|group| group_number(group).ok_or_else(|| Refused::NoGroup(group.to_owned())));
    let gid = gid.transpose()?;
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    if access.mode.is_some() {
        // `bind` gives the file the socket's mode. It starts restrictive: a process that passed the permission check of
        // `connect` early, and then lost its core, would get through once there is a listener.
        rustix::fs::fchmod(&socket, Mode::RWXU)?;
    }
    net::bind(&socket, &address)?;
    // No connection is possible before `listen`, so none is made while mode and group are not set yet.
    let done = set(path, access, gid).and_then(|()| Ok(net::listen(&socket, BACKLOG)?));
    if let Err(why) = done {
        let _ = fs::remove_file(path);
        return Err(why);
    }
    Ok(UnixListener::from(socket))
}

/// Sets the group and mode of the socket at `path`.
fn set(path: &Path, access: &Access, gid: Option<Gid>) -> Result<(), Refused> {
    if access.mode.is_none() && gid.is_none() {
        return Ok(());
    }
    let file = own_socket(path)?;
    if let (Some(gid), Some(group)) = (gid, &access.group) {
        rustix::fs::chownat(&file, "", None, Some(gid), AtFlags::EMPTY_PATH)
            .map_err(|why| Refused::Group(group.clone(), why.into()))?;
    }
    if let Some(mode) = access.mode {
        set_mode(&file, mode)?;
    }
    Ok(())
}

/// The number of a group, by its name or number.
pub(crate) fn group_number(group: &str) -> Option<Gid> {
    gid(&fs::read_to_string(GROUPS).unwrap_or_default(), group)
}

/// A group's number, by its name in `groups` (lines as in /etc/group) or by the number itself. The C library's lookup
/// would load plugins, which a static program cannot do; groups of system services are local.
fn gid(groups: &str, group: &str) -> Option<Gid> {
    let named = groups.lines().find_map(|line| {
        let mut words = line.split(':');
        let is_it = words.next() == Some(group);
        is_it.then(|| words.nth(1)?.parse().ok()).flatten()
    });
    // chown() takes all ones for "leave it as it is".
    let number = named.or_else(|| group.parse().ok());
    number.filter(|gid| *gid != u32::MAX).map(Gid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_before_number() {
        let groups = "root:x:0:\nkvm:x:104:qemu\n7:x:9:\nwrong\nworse:x\nmany:x:4294967295:\n";
        let found = |group| gid(groups, group).map(Gid::as_raw);
        assert_eq!(found("kvm"), Some(104));
        assert_eq!(found("7"), Some(9));
        assert_eq!(found("64055"), Some(64055));
        for none in [
            "",
            "qemu",
            "wrong",
            "worse",
            "many",
            "-1",
            "4294967295",
            "kvm:x",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
