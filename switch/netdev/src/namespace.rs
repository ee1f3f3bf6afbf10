//! Netlink sockets in the network namespace of a veth's peer.
//!
//! Entering a namespace takes CAP_SYS_ADMIN, and finding it among those of processes takes CAP_SYS_PTRACE. A process that
//! gives up both has a helper for it, another process: see [`helper`](crate::helper).

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::helper::{Ways, ways};
use crate::request::Requests;
use crate::{LinkError, Links};

/// A generic netlink socket in the namespace with number `id` in ours. `None` if no name and no visible process leads there, or
/// entering it is not permitted.
pub(crate) fn generic_socket(id: i32) -> Option<Result<Requests, LinkError>> {
    match ways() {
        Ways::Own => generic_socket_by_thread(id),
        Ways::Helper(helper) => helper.ask(id).map(|socket| Ok(Requests::of(socket))),
        Ways::None => None,
    }
}

/// Opens it on a separate thread, which enters the namespace.
pub(crate) fn generic_socket_by_thread(id: i32) -> Option<Result<Requests, LinkError>> {
    let mut links = Links::open().ok()?;
    let mut seen = HashSet::new();
    let namespace = candidates().find_map(|path| {
        // Non-blocking: opening a FIFO that is there by mistake would wait.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags).open(path).ok()?;
        let is_new = seen.insert(file.metadata().ok()?.ino());
        (is_new && id_of(&mut links, &file) == Some(id)).then_some(file)
    })?;
    let inside = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        Some(Requests::open(NETLINK_GENERIC))
    };
    thread::scope(|scope| scope.spawn(inside).join().ok().flatten())
}

/// Returns paths of namespaces: named ones (`ip netns`), and those of processes.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let list = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let named = list("/run/netns").map(|entry| entry.path());
    let processes = list("/proc")
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path().join("ns/net"));
    named.chain(processes)
}

/// Returns the number of this namespace in ours.
fn id_of(links: &mut Links, namespace: &File) -> Option<i32> {
    let mut message = NsidMessage::default();
    let fd = NsidAttribute::Fd(namespace.as_raw_fd() as u32);
    message.attributes.push(fd);
    let request = RouteNetlinkMessage::GetNsId(message);
    let answers = links
        .requests()
        .ask("asking for a namespace", request)
        .ok()?;
    answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                })
        }
        _ => None,
    })
}
