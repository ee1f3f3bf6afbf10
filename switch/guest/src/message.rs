//! vhost-user messages: a header of three 32-bit fields in host byte order, a payload, file descriptors.
//!
//! Messages are not checked before they are sent, so that hostile messages are as easy as valid ones.

use crate::event::wait_readable;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Request numbers, front end to back end.
pub mod request {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Protocol feature bits, as masks.
pub mod protocol {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

/// Header flags: version 1.
pub const FLAG_VERSION: u32 = 1;
/// Header flags: this is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// Header flags: acknowledge this message.
pub const FLAG_NEED_REPLY: u32 = 1 << 3;
/// In the payload of `SET_VRING_KICK`, `_CALL` and `_ERR`: no file descriptor comes with the message.
pub const VRING_NO_FD: u64 = 1 << 8;
/// Maximum file descriptors of one message here.
pub const FDS_MAX: usize = 64;
/// Size of the header in bytes.
pub const HEADER_LEN: usize = 12;
/// Payload length above which a received header is treated as garbage.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;

/// In the flags of `SET_VRING_ADDR`: log writes to the used ring (`VHOST_VRING_F_LOG`).
pub const VRING_LOG: u32 = 1;
/// Size of a memory region in `SET_MEM_TABLE`, in bytes.
pub const MEMORY_REGION_LEN: usize = 32;
/// Size of the payload of `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD` in bytes, including padding.
pub const INFLIGHT_LEN: usize = 24;

const FDS_SPACE: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// A message as received.
#[derive(Debug)]
pub struct Message {
    /// `request::*`.
    pub request: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Bytes after the header.
    pub payload: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The 32-bit field at byte `offset` of the payload.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> Option<u32> {
        self.payload
            .get(offset..offset + 4)?
            .try_into()
            .ok()
            .map(u32::from_ne_bytes)
    }

    /// The 16-bit field at byte `offset` of the payload.
    #[must_use]
    pub fn u16_at(&self, offset: usize) -> Option<u16> {
        self.payload
            .get(offset..offset + 2)?
            .try_into()
            .ok()
            .map(u16::from_ne_bytes)
    }

    /// The 64-bit field at byte `offset` of the payload.
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> Option<u64> {
        self.payload
            .get(offset..offset + 8)?
            .try_into()
            .ok()
            .map(u64::from_ne_bytes)
    }
}

/// `struct vhost_memory_region`: guest physical address, bytes, user address, offset in the file.
#[must_use]
pub fn memory_region(fields: [u64; 4]) -> [u8; MEMORY_REGION_LEN] {
    let mut bytes = [0; MEMORY_REGION_LEN];
    for (bytes, field) in bytes.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// The payload of `ADD_MEM_REG` and `REM_MEM_REG`: padding, and a region in the form of [`memory_region`].
#[must_use]
pub fn single_memory_region(fields: [u64; 4]) -> [u8; 8 + MEMORY_REGION_LEN] {
    let mut bytes = [0; 8 + MEMORY_REGION_LEN];
    bytes[8..].copy_from_slice(&memory_region(fields));
    bytes
}

/// The payload of `SET_LOG_BASE`: size of the log in bytes, and its offset in its file.
#[must_use]
pub fn log_base(len: u64, offset: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&len.to_ne_bytes());
    bytes[8..].copy_from_slice(&offset.to_ne_bytes());
    bytes
}

/// The payload of `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD`: size of the region in bytes, its offset in its file, number
/// of rings, entries of each.
#[must_use]
pub fn inflight(len: u64, offset: u64, queues: u16, queue_size: u16) -> [u8; INFLIGHT_LEN] {
    let mut bytes = [0; INFLIGHT_LEN];
    bytes[..16].copy_from_slice(&log_base(len, offset));
    bytes[16..18].copy_from_slice(&queues.to_ne_bytes());
    bytes[18..20].copy_from_slice(&queue_size.to_ne_bytes());
    bytes
}

/// The payload of `SET_VRING_ADDR`: ring, `VRING_LOG` or 0, user addresses of descriptors, used ring, available ring,
/// and the guest physical address under which writes to the used ring are logged.
#[must_use]
pub fn vring_addr(index: u32, flags: u32, addresses: [u64; 4]) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..4].copy_from_slice(&index.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..].copy_from_slice(&memory_region(addresses));
    bytes
}

/// Header and payload as bytes.
#[must_use]
pub fn encode(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for field in [request, flags, payload.len() as u32] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends `bytes` unchanged, with `fds` attached to the first byte.
///
/// # Errors
/// Socket errors; more than [`FDS_MAX`] file descriptors.
pub fn send_bytes(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); FDS_SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sent += sendmsg(
            stream,
            &[IoSlice::new(&bytes[sent..])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

/// Receives one message, waiting up to `timeout` for all of it.
///
/// # Errors
/// Socket errors; `UnexpectedEof` when the peer is gone; `TimedOut`; `InvalidData` for an absurd payload length.
pub fn receive(stream: &UnixStream, timeout: Duration) -> io::Result<Message> {
    let deadline = Instant::now() + timeout;
    let mut fds = Vec::new();
    let mut header = [0; HEADER_LEN];
    receive_exact(stream, &mut header, &mut fds, deadline)?;
    let field = |i: usize| {
        u32::from_ne_bytes([
            header[4 * i],
            header[4 * i + 1],
            header[4 * i + 2],
            header[4 * i + 3],
        ])
    };
    let payload_len = field(2) as usize;
    if payload_len > PAYLOAD_LEN_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; payload_len];
    receive_exact(stream, &mut payload, &mut fds, deadline)?;
    Ok(Message {
        request: field(0),
        flags: field(1),
        payload,
        fds,
    })
}

fn receive_exact(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Instant,
) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        if !wait_readable(stream, deadline.saturating_duration_since(Instant::now()))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut space = [MaybeUninit::uninit(); FDS_SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let iov = &mut [IoSliceMut::new(&mut bytes[filled..])];
        let received = recvmsg(stream, iov, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += received;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
    }
    Ok(())
}
