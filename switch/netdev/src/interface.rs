//! Reads the state of an interface (rtnetlink), and sets its MTU.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::request::Requests;
use crate::{Ethtool, LinkError, Reach, below, reach};

/// State of one interface at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Whether it is administratively up (IFF_UP).
    pub up: bool,
    /// Whether it has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
    /// Whether it is a software interface, such as a veth or a tap.
    pub software: bool,
    /// For a veth: its peer.
    pub peer: Option<Peer>,
    /// Whether an XDP program is attached, ours or another.
    pub has_program: bool,
    /// Which frames it receives.
    pub reach: Reach,
    /// Its type, if the kernel removes the outer VLAN tag of each frame before the interface gets it.
    pub takes_tags: Option<&'static str>,
    /// Peers of veths below it: a bridge or a macvlan may be on top of veths.
    pub peers_below: Vec<Peer>,
}

/// The peer of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number, in its own namespace.
    pub index: u32,
    /// Its network namespace, by the number in ours; `None`: our own.
    pub namespace: Option<i32>,
}

/// Reads interfaces and changes their settings by rtnetlink.
pub struct Links {
    requests: Requests,
}

impl Interface {
    /// The interface of this name in the thread's network namespace; `None` if there is no such interface.
    pub fn find(name: &str) -> Result<Option<Interface>, LinkError> {
        Links::open()?.find(name)
    }
}

impl Links {
    /// Opens a socket in the thread's network namespace.
    pub fn open() -> Result<Links, LinkError> {
        let requests = Requests::open(NETLINK_ROUTE)?;
        Ok(Links { requests })
    }

    /// Reads interface `name`; `None` if there is none.
    pub fn find(&mut self, name: &str) -> Result<Option<Interface>, LinkError> {
        let mut found = self.find_alone(name)?;
        if let Some(interface) = &mut found {
            interface.peers_below = below::peers(self, interface);
        }
        Ok(found)
    }

    /// The same without the interfaces below it.
    pub(crate) fn find_alone(&mut self, name: &str) -> Result<Option<Interface>, LinkError> {
        let mut message = LinkMessage::default();
        let name = LinkAttribute::IfName(name.to_owned());
        message.attributes.push(name);
        let request = RouteNetlinkMessage::GetLink(message);
        match self.requests.ask("asking for the interface", request) {
            Ok(answers) => Ok(answers.into_iter().find_map(interface)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of the XDP program attached to interface `name`; `None` if there is none.
    pub fn program_id(&mut self, name: &str) -> Result<Option<u32>, LinkError> {
        let mut message = LinkMessage::default();
        let name = LinkAttribute::IfName(name.to_owned());
        message.attributes.push(name);
        let request = RouteNetlinkMessage::GetLink(message);
        let answers = self.requests.ask("asking for the XDP program", request)?;
        Ok(answers.into_iter().find_map(program_id))
    }

    /// Sets the MTU of interface number `index`, bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let request = RouteNetlinkMessage::SetLink(message);
        self.requests.ask("setting the MTU", request).map(drop)
    }

    pub(crate) fn requests(&mut self) -> &mut Requests {
        &mut self.requests
    }
}

fn interface(message: RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut found = Interface {
        name: String::new(),
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        rx_queues: 1,
        tx_queues: 1,
        software: false,
        peer: None,
        has_program: false,
        reach: reach::of(&message),
        takes_tags: below::takes_tags(&message),
        peers_below: Vec::new(),
    };
    let (mut is_veth, mut other_end, mut namespace) = (false, None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::NumRxQueues(count) => found.rx_queues = count,
            LinkAttribute::NumTxQueues(count) => found.tx_queues = count,
            LinkAttribute::Link(index) => other_end = Some(index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(id),
            LinkAttribute::Xdp(xdp) => {
                found.has_program = xdp.iter().any(is_attached);
            }
            LinkAttribute::LinkInfo(info) => {
                // Only interfaces made by `ip link add`, or like a tap, have a kind.
                found.software = info.iter().any(|info| matches!(info, LinkInfo::Kind(_)));
                is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    found.peer = other_end
        .filter(|index| is_veth && *index > 0)
        .map(|index| Peer { index, namespace });
    // rtnetlink reports the maximum number of queues only.
    if let Some((rx, tx)) = queues_in_sysfs(&found).or_else(|| queues_by_ethtool(found.index)) {
        (found.rx_queues, found.tx_queues) = (rx, tx);
    }
    Some(found)
}

fn program_id(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let of_xdp = |attribute: LinkAttribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp.into_iter().find_map(|part| match part {
            LinkXdp::ProgId(id) => Some(id),
            _ => None,
        }),
        _ => None,
    };
    message.attributes.into_iter().find_map(of_xdp)
}

fn is_attached(xdp: &LinkXdp) -> bool {
    matches!(xdp, LinkXdp::Attached(how) if *how != XdpAttached::None)
}

/// Returns the number of queues in use, receive and transmit: sysfs has a folder for each, with any driver. `None` if the
/// mounted /sys belongs to another namespace.
fn queues_in_sysfs(interface: &Interface) -> Option<(u32, u32)> {
    let folder = PathBuf::from("/sys/class/net").join(&interface.name);
    let index = fs::read_to_string(folder.join("ifindex")).ok()?;
    if index.trim().parse() != Ok(interface.index) {
        return None;
    }
    let (mut rx, mut tx) = (0, 0);
    for entry in fs::read_dir(folder.join("queues")).ok()? {
        match entry.ok()?.file_name().to_string_lossy() {
            name if name.starts_with("rx-") => rx += 1,
            name if name.starts_with("tx-") => tx += 1,
            _ => {}
        }
    }
    Some((rx, tx))
}

fn queues_by_ethtool(index: u32) -> Option<(u32, u32)> {
    let channels = Ethtool::open().ok()?.channels(index).ok()?;
    // A tap without a user reports 0.
    let (rx, tx) = (
        channels.rx + channels.combined,
        channels.tx + channels.combined,
    );
    Some((rx.max(1), tx.max(1)))
}
