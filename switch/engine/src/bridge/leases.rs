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
use crosspoint_frame::{Burst, Decision, Frame};
use crosspoint_packet::Mac;
use crosspoint_packet::headers::{Fragment, Headers, Stop};

use super::multicast::Place;
use crate::MAX_PORTS;

/// Bytes of a message that are passed on. Servers put what matters first.
pub const MESSAGE_LEN_MAX: usize = 1024;
/// Most messages that wait for the control thread. Further ones are counted, and lost: a client renews its lease.
pub const MESSAGES_MAX: usize = 256;
/// Most of them from one guest until the control thread looks, so that one leaves room for others.
pub const MESSAGES_OF_PORT_MAX: u16 = 8;

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
    /// By port: how many clients' messages wait.
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
    /// Whether a message of this port may wait. Servers are not limited: an uplink has those of all guests.
    fn has_room(&self, port: u16, is_of_server: bool) -> bool {
        let waiting = self.waiting.get(usize::from(port));
        // Two workers may both pass this and exceed the limit by one.
        let has_room = |waiting: &AtomicU16| waiting.load(Ordering::Relaxed) < MESSAGES_OF_PORT_MAX;
        waiting.is_some_and(|waiting| is_of_server || has_room(waiting))
    }

    fn push(&self, message: DhcpMessage) {
        let port = usize::from(message.port);
        let is_counted = !message.is_of_server;
        if self.queue.push(message).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        } else if let (true, Some(waiting)) = (is_counted, self.waiting.get(port)) {
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
            if is_dropped || !may_be_dhcp(frame) {
                continue;
            }
            let Some((is_of_server, is_v6, at)) = message_at(frame.headers()) else {
                continue;
            };
            if is_of_server != is_server {
                continue;
            }
            if !self.messages.has_room(ingress, is_of_server) {
                self.messages.missed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let mut bytes = [0; 64 + MESSAGE_LEN_MAX + 64];
            let len = burst.read_beginning(frame, &mut bytes);
            let payload = bytes.get(at..len).unwrap_or(&[]);
            let place = (frame.bridge, frame.vlan);
            let kind = (is_of_server, is_v6);
            let message = DhcpMessage::new(ingress, place, kind, [frame.src, frame.dst], payload);
            self.messages.push(message);
        }
    }
}

/// `false` for nearly all frames: untagged IP without options, and not UDP or not between these ports.
fn may_be_dhcp(frame: &Frame) -> bool {
    let head = &frame.head;
    let is_between = |at: usize, ports: [u16; 2]| {
        let of = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        ports.contains(&of(at)) && ports.contains(&of(at + 2))
    };
    match (&head[12..14], head[14]) {
        ([0x08, 0x00], 0x45) => head[23] == UDP && is_between(34, V4_PORTS),
        ([0x86, 0xdd], _) => head[20] == UDP && is_between(54, V6_PORTS),
        ([0x81, 0x00] | [0x88, 0xa8], _) => true,
        ([0x08, 0x00], _) => true,
        _ => false,
    }
}

/// Whether a frame with this beginning is of a server, whether it is DHCPv6, and where the message begins.
fn message_at(bytes: &[u8]) -> Option<(bool, bool, usize)> {
    let headers = Headers::parse(bytes);
    let is_udp = headers.stop == Stop::Layer4 && headers.protocol == UDP;
    let ports = match headers.ip_version {
        4 => V4_PORTS,
        6 => V6_PORTS,
        _ => return None,
    };
    if !is_udp || headers.fragment != Fragment::No {
        return None;
    }
    let port = |at: usize| -> Option<u16> {
        let bytes = bytes.get(headers.offset + at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let (from, to) = (port(0)?, port(2)?);
    let is_of_server = match [from, to] {
        pair if pair == ports => true,
        pair if pair == [ports[1], ports[0]] => false,
        // A relay asks a server (RFC 2131, 4.1).
        _ => return None,
    };
    Some((
        is_of_server,
        headers.ip_version == 6,
        headers.offset + UDP_LEN,
    ))
}
