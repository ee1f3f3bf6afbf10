//! Promiscuous mode of an interface, for as long as a socket asks for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Keeps an interface promiscuous while this value lives (packet(7), PACKET_MR_PROMISC): otherwise a NIC would drop
/// frames for guests. The kernel counts the requests, so this one ends with the process, and requests of other processes
/// stay.
pub(crate) struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// Requests promiscuous mode. `PermissionDenied` without CAP_NET_RAW.
    pub(crate) fn new(index: u32) -> io::Result<Promiscuous> {
        // Without a protocol, so that this socket receives no frames.
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        let request = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
        // SAFETY: `request` is a `packet_mreq`, as this option wants it, and the length is that of it.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(&request).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        match rc {
            0 => Ok(Promiscuous { _socket: socket }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
