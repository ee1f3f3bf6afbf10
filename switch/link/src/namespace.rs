//! Reaching into the network namespace that the other end of a veth is in.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Links;

/// Runs `job` in the namespace that ours calls number `id`, on a thread that goes there. `None`: no name and no process
/// that we can see leads there, or we may not enter.
pub(crate) fn within<T: Send>(id: i32, job: impl FnOnce() -> T + Send) -> Option<T> {
    let mut links = Links::open().ok()?;
    let mut seen = HashSet::new();
    let namespace = candidates().find_map(|path| {
        // Not a FIFO that is there by mistake: it would be waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags).open(path).ok()?;
        let is_new = seen.insert(file.metadata().ok()?.ino());
        (is_new && id_of(&mut links, &file) == Some(id)).then_some(file)
    })?;
    let inside = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        Some(job())
    };
    thread::scope(|scope| scope.spawn(inside).join().ok().flatten())
}

/// Where namespaces may be found: those with names (`ip netns`), and those that processes are in.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let list = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let named = list("/run/netns").map(|entry| entry.path());
    let processes = list("/proc")
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path().join("ns/net"));
    named.chain(processes)
}

/// The number that our namespace has for this one.
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
