//! DHCP snooping: a worker passes on what servers and clients say of leases, and the control thread keeps the addresses that
//! guests have leased. Requests for these go to their ports alone ([`suppress`](super::suppress)).
//!
//! A worker copies a message into a bounded queue, and goes on: it reads no option, and nothing that a guest sends makes it wait.
//! The frame itself is not changed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Decision, Frame, HEAD_LEN};
use crosspoint_packet::Mac;
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use super::multicast::Place;
use crate::MAX_PORTS;

/// Bytes of a message that are passed on. Servers put what matters first.
pub const MESSAGE_LEN_MAX: usize = 1024;
/// Most messages that wait for the control thread. Further ones are counted, and lost: a client renews its lease.
pub const MESSAGES_MAX: usize = 256;
/// Most of them from one guest, and from one port with servers behind it, until the control thread looks: so one leaves room
/// for others.
pub const MESSAGES_OF_PORT_MAX: u16 = 8;
/// See [`MESSAGES_OF_PORT_MAX`].
pub const MESSAGES_OF_SERVERS_MAX: u16 = 64;

/// Bytes of a frame that are read: headers, with tags and extension headers, and the message.
const BYTES_MAX: usize = 128 + MESSAGE_LEN_MAX;

const UDP: u8 = 17;
const UDP_LEN: usize = 8;
/// UDP ports of servers and of clients: DHCP (RFC 2131, 4.1) and DHCPv6 (RFC 8415, 7.2).
const V4_PORTS: [u16; 2] = [67, 68];
const V6_PORTS: [u16; 2] = [547, 546];

/// A message, and where it came in.
#[derive(Clone)]
pub struct DhcpMessage {
    /// The port.
    pub port: u16,
    /// The bridge and the VLAN.
    pub place: Place,
    /// Whether a server has sent it, to a client; otherwise the other way.
    pub is_of_server: bool,
    /// Whether it is DHCPv6.
    pub is_v6: bool,
    /// Addresses of its frame.
    pub source: Mac,
    /// See `source`.
    pub destination: Mac,
    /// The destination of its packet.
    pub to: IpAddr,
    len: usize,
    bytes: [u8; MESSAGE_LEN_MAX],
}

impl DhcpMessage {
    /// Creates a message of a server, or of a client, with the source and the destination of its frame. What does not fit of the
    /// payload is left out.
    pub fn new(
        port: u16,
        place: Place,
        (is_of_server, is_v6): (bool, bool),
        [source, destination]: [Mac; 2],
        to: IpAddr,
        payload: &[u8],
    ) -> DhcpMessage {
        let len = payload.len().min(MESSAGE_LEN_MAX);
        let mut message = DhcpMessage {
            port,
            place,
            is_of_server,
            is_v6,
            source,
            destination,
            to,
            len,
            bytes: [0; MESSAGE_LEN_MAX],
        };
        if let (Some(bytes), Some(payload)) = (message.bytes.get_mut(..len), payload.get(..len)) {
            bytes.copy_from_slice(payload);
        }
        message
    }

    /// Returns what follows the UDP header, or its beginning.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Messages on their way to the control thread.
pub struct DhcpMessages {
    queue: ArrayQueue<DhcpMessage>,
    /// By port: how many wait.
    waiting: Box<[AtomicU16]>,
    missed: AtomicU64,
}

impl Default for DhcpMessages {
    fn default() -> DhcpMessages {
        DhcpMessages {
            queue: ArrayQueue::new(MESSAGES_MAX),
            waiting: (0..MAX_PORTS).map(|_| AtomicU16::new(0)).collect(),
            missed: AtomicU64::new(0),
        }
    }
}

impl DhcpMessages {
    /// Whether a message of this port may wait.
    fn has_room(&self, port: u16, is_of_server: bool) -> bool {
        let max = match is_of_server {
            true => MESSAGES_OF_SERVERS_MAX,
            false => MESSAGES_OF_PORT_MAX,
        };
        let waiting = self.waiting.get(usize::from(port));
        // Two workers may both pass this and exceed the limit by one.
        waiting.is_some_and(|waiting| waiting.load(Ordering::Relaxed) < max)
    }

    fn push(&self, message: DhcpMessage) {
        let port = usize::from(message.port);
        if self.queue.push(message).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        } else if let Some(waiting) = self.waiting.get(port) {
            waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the messages since the last call, at most [`MESSAGES_MAX`].
    pub fn take(&self) -> Vec<DhcpMessage> {
        for waiting in &self.waiting {
            waiting.store(0, Ordering::Relaxed);
        }
        std::iter::from_fn(|| self.queue.pop())
            .take(MESSAGES_MAX)
            .collect()
    }

    /// Returns the number of messages that were lost.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// DHCP snooping, as workers have it.
#[derive(Clone)]
pub struct Leases {
    /// Where they put what they hear.
    pub messages: Arc<DhcpMessages>,
    /// The port of each leased address.
    pub ports: Arc<HashMap<(Place, IpAddr), u16>>,
}

impl Leases {
    /// Returns the port whose guest has leased the address there.
    pub(crate) fn port_of(&self, place: Place, address: IpAddr) -> Option<u16> {
        self.ports.get(&(place, address)).copied()
    }

    /// Passes on what frames of a port say of leases. `is_server`: what it says as a server counts; otherwise, as a client.
    #[cold]
    #[inline(never)]
    pub(crate) fn listen(&self, burst: &Burst, ingress: u16, is_server: bool) {
        for frame in burst.frames() {
            let is_dropped = matches!(frame.verdict.decision(), Decision::Drop(_));
            // What is behind a further tag is another network's.
            if is_dropped || frame.stacked || !may_be_dhcp(frame) {
                continue;
            }
            let mut bytes = [0; BYTES_MAX];
            let len = burst.read_beginning(frame, &mut bytes);
            let bytes = bytes.get(..len).unwrap_or(&[]);
            let Some(datagram) = datagram_in(bytes) else {
                continue;
            };
            let is_of_server = datagram.is_of_server;
            if is_of_server != is_server {
                continue;
            }
            if !self.messages.has_room(ingress, is_of_server) {
                self.messages.missed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let place = (frame.bridge, frame.vlan);
            let payload = bytes.get(datagram.at..).unwrap_or(&[]);
            let kind = (is_of_server, datagram.to.is_ipv6());
            let macs = [frame.src, frame.dst];
            let message = DhcpMessage::new(ingress, place, kind, macs, datagram.to, payload);
            self.messages.push(message);
        }
    }
}

/// `false` for nearly all frames: not UDP, or not between these ports. Decided on the head alone.
fn may_be_dhcp(frame: &Frame) -> bool {
    let head = &frame.head;
    let is_between = |at: usize, ports: [u16; 2]| {
        let of = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        ports.contains(&of(at)) && ports.contains(&of(at + 2))
    };
    match (&head[12..14], head[14]) {
        // Most frames: untagged, without options.
        ([0x08, 0x00], 0x45) => head[23] == UDP && is_between(34, V4_PORTS),
        ([0x86, 0xdd], _) => head[20] == UDP && is_between(54, V6_PORTS),
        _ => {
            let headers = Headers::parse(head);
            let is_udp = headers.stop == Stop::Layer4 && headers.protocol == UDP;
            let ports = match headers.ip_version {
                4 => V4_PORTS,
                6 => V6_PORTS,
                _ => return false,
            };
            let at = headers.offset;
            is_udp && (at + 4 > HEAD_LEN || is_between(at, ports))
        }
    }
}

/// A message in a frame.
struct Datagram {
    is_of_server: bool,
    to: IpAddr,
    /// Where it begins.
    at: usize,
}

/// The message in a frame that begins so.
fn datagram_in(bytes: &[u8]) -> Option<Datagram> {
    let headers = Headers::parse(bytes);
    let is_udp = headers.stop == Stop::Layer4 && headers.protocol == UDP;
    let ip = bytes.get(headers.network..)?;
    let (ports, to) = match headers.ip_version {
        4 => (V4_PORTS, IpAddr::from(*ip.get(16..)?.first_chunk::<4>()?)),
        6 => (V6_PORTS, IpAddr::from(*ip.get(24..)?.first_chunk::<16>()?)),
        _ => return None,
    };
    if !is_udp || headers.fragment != Fragment::No {
        return None;
    }
    let port = |at: usize| -> Option<u16> {
        let bytes = bytes.get(headers.offset + at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let pair = [port(0)?, port(2)?];
    // A relay asks a server from the server's port (RFC 2131, 4.1).
    let is_of_server = pair == ports;
    (is_of_server || pair == [ports[1], ports[0]]).then_some(Datagram {
        is_of_server,
        to,
        at: headers.offset + UDP_LEN,
    })
}
