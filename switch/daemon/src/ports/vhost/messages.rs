//! Messages that are handled outside the `vhost` crate; see [`wire`] for which, and why.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crosspoint_packet::Mac;
use vhost::vhost_user::VhostUserProtocolFeatures;

use super::device::Device;
use super::handler::Handler;
use super::wire::{self, Header};

/// Whether the message that was peeked at is handled here.
pub(super) fn is_ours(header: Header) -> bool {
    matches!(
        header.request,
        wire::SET_MEM_TABLE
            | wire::SET_VRING_ENABLE
            | wire::SEND_RARP
            | wire::NET_SET_MTU
            | wire::SET_STATUS
            | wire::GET_STATUS
            | wire::SET_LOG_FD
            | wire::SET_BACKEND_REQ_FD
    )
}

/// Reads the message that was peeked at, executes it, and replies if the front end asked for that.
pub(super) fn handle(
    connection: &UnixStream,
    header: Header,
    handler: &Arc<Handler>,
) -> io::Result<()> {
    let (payload, fds) = wire::receive(connection, header)?;
    let mut device = handler.device();
    if let Err(why) = wire::check_shape(header.request, payload.len(), fds.len()) {
        device.retire(fds);
        return Err(why);
    }
    if header.request == wire::GET_STATUS {
        return wire::reply(connection, header, device.status().into());
    }
    let done = obey(&mut device, header.request, &payload, fds)?;
    let reply_ack = device.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
    if header.needs_reply() && reply_ack {
        return wire::acknowledge(connection, header, done.is_ok());
    }
    match header.request {
        // Without a reply the front end would assume that it worked.
        wire::SET_MEM_TABLE | wire::SET_VRING_ENABLE => done.map_err(io::Error::other),
        // It has been logged, and the device works without it.
        _ => Ok(()),
    }
}

/// Executes a message. The outer error is for an invalid message, the inner one for a valid one that cannot be done.
fn obey(
    device: &mut Device,
    request: u32,
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> io::Result<Result<(), String>> {
    let plain = |done: vhost::vhost_user::Result<()>| done.map_err(|e| e.to_string());
    Ok(match request {
        wire::SET_MEM_TABLE => device.set_memory(wire::memory_table(payload, fds)?),
        wire::SET_VRING_ENABLE => {
            let (index, value) = wire::vring_state(payload)?;
            plain(device.set_vring_enable(index, value != 0))
        }
        // The address is the first six bytes, in network order.
        wire::SEND_RARP => {
            let [a, b, c, d, e, f, ..] = wire::word(payload)?.to_ne_bytes();
            plain(device.announce(Mac::new([a, b, c, d, e, f])))
        }
        // An eventfd to signal each mark in the log: it is not needed, and is closed.
        wire::SET_LOG_FD => {
            device.retire(fds);
            Ok(())
        }
        wire::SET_BACKEND_REQ_FD => {
            device.set_channel(fds)?;
            Ok(())
        }
        wire::NET_SET_MTU => plain(device.set_mtu(wire::word(payload)?)),
        // The status has 8 bits (virtio 1.2, 2.1); the others are ignored.
        _ => {
            device.set_status(wire::word(payload)? as u8);
            Ok(())
        }
    })
}
