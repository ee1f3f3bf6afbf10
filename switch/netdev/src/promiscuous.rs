//! Promiscuous mode of an interface, for as long as a socket asks for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Keeps an interface promiscuous while this value lives (packet(7), PACKET_MR_PROMISC): otherwise a NIC would drop
/// frames for guests. The kernel counts the requests, so this one ends with the process, and requests of other processes
/// stay.
pub(crate) struct Promiscuous {
    socket: OwnedFd,
    index: u32,
}

impl Promiscuous {
    /// Requests promiscuous mode. `PermissionDenied` without CAP_NET_RAW.
    pub(crate) fn new(index: u32) -> io::Result<Promiscuous> {
        // Without a protocol, so that this socket receives no frames.
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_membership(&socket, index, libc::PACKET_ADD_MEMBERSHIP)?;
        Ok(Promiscuous { socket, index })
    }

    /// The request that another process has made by `socket`.
    pub(crate) fn of(socket: OwnedFd, index: u32) -> Promiscuous {
        Promiscuous { socket, index }
    }
}

impl Drop for Promiscuous {
    fn drop(&mut self) {
        // Another process may hold a copy of the socket. If the interface is gone, so is the request.
        let _ = set_membership(&self.socket, self.index, libc::PACKET_DROP_MEMBERSHIP);
    }
}

fn set_membership(socket: &OwnedFd, index: u32, option: libc::c_int) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: `request` is a `packet_mreq`, as these options want it, and the length is that of it.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(&request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl AsFd for Promiscuous {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
