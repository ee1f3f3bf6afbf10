//! A network interface as the kernel reports it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::socket::set_option;

/// One interface, by name, in the process's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Whether it is administratively up (IFF_UP).
    pub up: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
}

impl Interface {
    /// Reads the interface `name` from the kernel. `NotFound` if there is no such interface.
    pub fn find(name: &str) -> io::Result<Interface> {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            None,
        )?;
        let index = rustix::net::netdevice::name_to_index(&socket, name).map_err(|e| match e {
            rustix::io::Errno::NODEV => io::Error::from(io::ErrorKind::NotFound),
            other => other.into(),
        })?;
        let dir = PathBuf::from("/sys/class/net").join(name);
        let read = |file: &str| fs::read_to_string(dir.join(file));
        let flags = read("flags")?;
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        let (mut rx_queues, mut tx_queues) = (0, 0);
        for entry in fs::read_dir(dir.join("queues"))? {
            match entry?.file_name().to_string_lossy() {
                name if name.starts_with("rx-") => rx_queues += 1,
                name if name.starts_with("tx-") => tx_queues += 1,
                _ => {}
            }
        }
        Ok(Interface {
            name: name.to_owned(),
            index,
            rx_queues,
            tx_queues,
            up: flags & 1 != 0,
            mtu: read("mtu")?.trim().parse().unwrap_or(1500),
        })
    }
}

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
        set_option(socket.as_fd(), level, option, &request)?;
        Ok(Promiscuous { _socket: socket })
    }
}
