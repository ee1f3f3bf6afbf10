//! Interfaces below another one: a bridge's ports, or the interfaces from which a bond or a macvlan gets its frames.

use std::fs;
use std::path::PathBuf;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::{Interface, Links, Peer};

/// Most interfaces below one that are checked, and most layers of them.
const LOOKS_MAX: usize = 256;
const DEPTH_MAX: usize = 8;

/// Returns the interface's type, if the kernel removes the outer VLAN tag of its frames before it gets them.
/// `__netif_receive_skb_core` does that before it calls the handlers of these types, independent of the features of the
/// interface below.
pub(crate) fn takes_tags(message: &LinkMessage) -> Option<&'static str> {
    let infos = message.attributes.iter().filter_map(|one| match one {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some("a bridge"),
        LinkInfo::Kind(InfoKind::Bond) => Some("a bond"),
        LinkInfo::Kind(InfoKind::MacVlan) => Some("a macvlan"),
        LinkInfo::Kind(InfoKind::MacVtap) => Some("a macvtap"),
        LinkInfo::Kind(InfoKind::Other(kind)) if kind == "team" => Some("a team"),
        _ => None,
    })
}

/// Returns the peers of all veths below `interface`, the nearest first. Interfaces that cannot be read are left out.
pub(crate) fn peers(links: &mut Links, interface: &Interface) -> Vec<Peer> {
    let (mut peers, mut looks) = (Vec::new(), 0);
    let mut layer = names(interface);
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for name in layer {
            looks += 1;
            if looks > LOOKS_MAX {
                return peers;
            }
            if let Ok(Some(found)) = links.find_alone(&name) {
                peers.extend(found.peer.filter(|peer| !peers.contains(peer)));
                next.extend(names(&found));
            }
        }
        layer = next;
    }
    peers
}

/// Returns the interfaces directly below. Empty if the mounted /sys belongs to another namespace.
fn names(interface: &Interface) -> Vec<String> {
    let folder = PathBuf::from("/sys/class/net").join(&interface.name);
    let index = fs::read_to_string(folder.join("ifindex")).unwrap_or_default();
    if index.trim().parse() != Ok(interface.index) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("lower_")?.to_owned())
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}
