//! Errors of opening a NIC port.

use std::io;

use crosspoint_netdev::LinkError;
use crosspoint_netdev::attach::AttachError;
use crosspoint_xsk::{BindMode, SocketError};
use rustix::io::Errno;
use thiserror::Error;

/// Why a NIC port cannot be opened; each names the interface and says what to do.
#[derive(Debug, Error)]
pub enum NicPortError {
    /// The interface is not up.
    #[error("interface `{interface}` is down: `ip link set {interface} up`")]
    Down {
        /// The interface.
        interface: String,
    },
    /// No frame for a guest can come in through it.
    #[error(
        "interface `{interface}` is {what}, which receives no frames for guests' addresses: name the interface below it, or an Ethernet interface of its own"
    )]
    NoReach {
        /// The interface.
        interface: String,
        /// The kind of interface.
        what: &'static str,
    },
    /// The host would lose its network.
    #[error(
        "interface `{interface}` is the host's own: {what}; as a port it would cut the host off: name another interface, or set `take_over = true`"
    )]
    HostsOwn {
        /// The interface.
        interface: String,
        /// What the host uses it for.
        what: String,
    },
    /// The configuration names a queue that does not exist.
    #[error(
        "interface `{interface}` has {count} receive queue(s), so there is no queue {queue}: see `ethtool -l {interface}`"
    )]
    NoQueue {
        /// The interface.
        interface: String,
        /// The number of queues.
        count: u32,
        /// The one that was asked for.
        queue: u32,
    },
    /// Guests have all queues.
    #[error(
        "guests have all {count} queue(s) of interface `{interface}`: none is left for the port"
    )]
    AllDirect {
        /// The interface.
        interface: String,
        /// The number of queues.
        count: u32,
    },
    /// Another process has the queue.
    #[error(
        "queue {queue} of interface `{interface}` is used by another AF_XDP socket: end the process that holds it"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// Zero-copy was configured, but is not possible.
    #[error("interface `{interface}` cannot do zero-copy: set `mode = \"auto\"` or \"copy\"")]
    NoZeroCopy {
        /// The interface.
        interface: String,
    },
    /// `rss = "queues"` was configured, but is not possible.
    #[error(
        "interface `{interface}` has no RSS table that could keep frames to the port's queues: \
         set `rss = \"keep\"`, or take all queues"
    )]
    NoRss {
        /// The interface.
        interface: String,
    },
    /// Attaching the program failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Opening a socket failed.
    #[error("queue {queue} of interface `{interface}`: {why}")]
    Socket {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The error.
        why: SocketError,
    },
    /// Giving a socket to the program failed.
    #[error("interface `{interface}`: {why}")]
    Kernel {
        /// The interface.
        interface: String,
        /// The kernel's error.
        why: io::Error,
    },
    /// Following network interfaces failed.
    #[error("network interfaces cannot be followed: {0}")]
    Follow(LinkError),
    /// Reading the interface or its configured settings failed.
    #[error("interface `{interface}`: {why}")]
    Link {
        /// The interface.
        interface: String,
        /// The error.
        why: LinkError,
    },
}

impl NicPortError {
    /// The error for a refused socket on a queue.
    pub(super) fn of_socket(
        interface: &str,
        queue: u32,
        mode: BindMode,
        why: SocketError,
    ) -> NicPortError {
        let interface = interface.to_owned();
        match why.why.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::BUSY) => NicPortError::Busy { interface, queue },
            // virtio_net without an IOMMU answers EINVAL.
            Some(Errno::OPNOTSUPP | Errno::INVAL) if mode == BindMode::ZeroCopy => {
                NicPortError::NoZeroCopy { interface }
            }
            Some(Errno::NETDOWN) => NicPortError::Down { interface },
            _ => NicPortError::Socket {
                interface,
                queue,
                why,
            },
        }
    }

    /// Whether this process lacks the permission, so that waiting does not help.
    pub fn is_permission(&self) -> bool {
        let why = match self {
            NicPortError::Attach(AttachError::Permission { .. }) => return true,
            NicPortError::Socket { why, .. } => &why.why,
            NicPortError::Kernel { why, .. } => why,
            NicPortError::Link { why, .. } | NicPortError::Follow(why) => &why.why,
            _ => return false,
        };
        why.kind() == io::ErrorKind::PermissionDenied
    }
}
