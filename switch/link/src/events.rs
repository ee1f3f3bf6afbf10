//! Changes to interfaces, as the kernel tells of them (RTNLGRP_LINK).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::LinkError;
use crate::request::messages;

/// RTNLGRP_LINK.
const LINK_GROUP: u32 = 1;
/// Room for one datagram: the kernel makes none longer.
const DATAGRAM_BYTES: usize = 1 << 16;

/// Why a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Interfaces changed.
    Changed(Changes),
    /// The time is over.
    Timeout,
    /// Somebody called [`Stopper::stop`].
    Stop,
}

/// Which interfaces changed: came, went, or are otherwise than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These, by number and name.
    Of(Vec<(u32, String)>),
    /// Any: events were lost, since there were more than the socket holds.
    Any,
}

impl Changes {
    /// Whether the interface of this name, or this number where it has one, may be among them.
    pub fn concern(&self, name: &str, index: Option<u32>) -> bool {
        match self {
            Changes::Any => true,
            Changes::Of(list) => list
                .iter()
                .any(|(number, called)| Some(*number) == index || called == name),
        }
    }
}

/// Ends a wait, from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// The wait that is going on, and every later one, ends with [`Wake::Stop`].
    pub fn stop(&self) {
        // It cannot fail: the count is far from full.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Waits for changes.
pub struct Events {
    socket: Socket,
    stop: Arc<OwnedFd>,
}

impl Events {
    /// From now on, changes in the thread's network namespace are noted.
    pub fn open() -> Result<(Events, Stopper), LinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(LINK_GROUP)?;
            socket.set_non_blocking(true)?;
            let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok((socket, Arc::new(stop)))
        };
        let (socket, stop) =
            open().map_err(|why: io::Error| LinkError::new("watching interfaces", why))?;
        let stopper = Stopper(stop.clone());
        Ok((Events { socket, stop }, stopper))
    }

    /// Waits for changes, for `limit` at most; `None`: as long as it takes.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<Wake, LinkError> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        loop {
            let (stop, socket) = (self.stop.as_fd(), self.socket.as_fd());
            let mut fds = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(socket, PollFlags::IN),
            ];
            match poll(&mut fds, limit.as_ref()) {
                Ok(0) => return Ok(Wake::Timeout),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(why) => return Err(LinkError::new("watching interfaces", why)),
            }
            if !fds[0].revents().is_empty() {
                return Ok(Wake::Stop);
            }
            return self.take().map(Wake::Changed);
        }
    }

    /// Everything that has been told so far.
    fn take(&mut self) -> Result<Changes, LinkError> {
        let (mut list, mut lost) = (Vec::new(), false);
        let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => match changed(&buffer) {
                    Some(changed) => list.extend(changed),
                    None => lost = true,
                },
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if is_overrun(&why) => lost = true,
                Err(why) => return Err(LinkError::new("watching interfaces", why)),
            }
        }
        Ok(if lost {
            Changes::Any
        } else {
            Changes::Of(list)
        })
    }
}

fn is_overrun(why: &io::Error) -> bool {
    why.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

/// The interfaces that a datagram tells of; `None` where it cannot be read.
fn changed(datagram: &[u8]) -> Option<Vec<(u32, String)>> {
    let mut list = Vec::new();
    for bytes in messages(datagram) {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
        let NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        ) = message.payload
        else {
            continue;
        };
        let name = link
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
        list.push((link.header.index, name.unwrap_or_default()));
    }
    Some(list)
}
