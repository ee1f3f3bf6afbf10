//! Notifications of interface changes from the kernel: RTNLGRP_LINK, and ethtool's group "monitor".

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::ethtool::{Message, interface_of};
use crate::request::messages;
use crate::{Ethtool, LinkError};

/// RTNLGRP_LINK.
const LINK_GROUP: u32 = 1;
/// Room for one datagram: the kernel's are not longer.
const DATAGRAM_BYTES: usize = 1 << 16;

/// Why a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Interfaces changed.
    Changed(Changes),
    /// The time limit has passed.
    Timeout,
    /// [`Stopper::stop`] was called.
    Stop,
}

/// Interfaces that were added, removed or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These, by number and name.
    Of(Vec<(u32, String)>),
    /// Possibly any: events were lost because there were more than the socket holds.
    Any,
}

impl Changes {
    /// Merges with `others`.
    fn and(self, others: Changes) -> Changes {
        match (self, others) {
            (Changes::Of(mut list), Changes::Of(others)) => {
                list.extend(others);
                Changes::Of(list)
            }
            _ => Changes::Any,
        }
    }

    /// Returns whether the interface with this name, or this number if it has one, may have changed.
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
    /// Ends the current wait, and every later one, with [`Wake::Stop`].
    pub fn stop(&self) {
        // It cannot fail: the counter is far from full.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Waits for changes.
pub struct Events {
    links: Socket,
    /// For settings that rtnetlink does not report, such as the number of queues. `None` if the kernel has no such group.
    settings: Option<Socket>,
    stop: Arc<OwnedFd>,
}

const WATCHING: &str = "watching interfaces";

impl Events {
    /// Starts to record changes in the thread's network namespace.
    pub fn open() -> Result<(Events, Stopper), LinkError> {
        let fail = |why| LinkError::new(WATCHING, why);
        let links = subscribe(NETLINK_ROUTE, LINK_GROUP).map_err(fail)?;
        let monitor = Ethtool::open()
            .ok()
            .and_then(|family| family.monitor_group());
        let settings = monitor.and_then(|group| subscribe(NETLINK_GENERIC, group).ok());
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|why| fail(why.into()))?);
        let events = Events {
            links,
            settings,
            stop: stop.clone(),
        };
        Ok((events, Stopper(stop)))
    }

    /// Waits for changes, at most for `limit`; `None`: without a limit.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<Wake, LinkError> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        loop {
            let poll_of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let mut fds = vec![poll_of(self.stop.as_fd()), poll_of(self.links.as_fd())];
            let settings = self.settings.as_ref();
            fds.extend(settings.map(|socket| poll_of(socket.as_fd())));
            match poll(&mut fds, limit.as_ref()) {
                Ok(0) => return Ok(Wake::Timeout),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(why) => return Err(LinkError::new(WATCHING, why)),
            }
            if !fds[0].revents().is_empty() {
                return Ok(Wake::Stop);
            }
            let mut changes = take(&self.links, links_in)?;
            if let Some(settings) = &self.settings {
                changes = changes.and(take(settings, settings_in)?);
            }
            return Ok(Wake::Changed(changes));
        }
    }
}

/// Opens a non-blocking socket that is a member of `group`.
fn subscribe(protocol: isize, group: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(group)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Reads all pending messages of a socket; `read` finds the interface in a message.
fn take(socket: &Socket, read: Read) -> Result<Changes, LinkError> {
    let (mut list, mut lost) = (Vec::new(), false);
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {
                for found in messages(&buffer).map(read) {
                    match found {
                        Ok(interface) => list.extend(interface),
                        // It can concern any interface.
                        Err(Unreadable) => lost = true,
                    }
                }
            }
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) if is_overrun(&why) => lost = true,
            Err(why) => return Err(LinkError::new(WATCHING, why)),
        }
    }
    Ok(match lost {
        true => Changes::Any,
        false => Changes::Of(list),
    })
}

fn is_overrun(why: &io::Error) -> bool {
    why.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

struct Unreadable;

/// Finds the interface that a message concerns, if any.
type Read = fn(&[u8]) -> Result<Option<(u32, String)>, Unreadable>;

fn links_in(message: &[u8]) -> Result<Option<(u32, String)>, Unreadable> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
    ) = message.map_err(|_| Unreadable)?.payload
    else {
        return Ok(None);
    };
    let mut attributes = link.attributes.into_iter();
    let name = attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Ok(Some((link.header.index, name.unwrap_or_default())))
}

fn settings_in(message: &[u8]) -> Result<Option<(u32, String)>, Unreadable> {
    let message = NetlinkMessage::<GenlMessage<Message>>::deserialize(message);
    match message.map_err(|_| Unreadable)?.payload {
        NetlinkPayload::InnerMessage(message) => Ok(interface_of(&message.payload)),
        _ => Ok(None),
    }
}
