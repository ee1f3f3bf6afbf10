//! Attaches the XDP program to an interface by a BPF link, so that it is detached when the process ends.

use std::io;
use std::os::fd::AsFd;

use aya::maps::{MapData, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode};
use aya::{Ebpf, EbpfError};
use thiserror::Error;

use crate::Interface;
use crate::promiscuous::Promiscuous;

/// Place in the kernel where the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver, before the kernel makes a packet buffer.
    Native,
    /// After the packet buffer is made: works with any driver, slower.
    Generic,
}

impl XdpMode {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        }
    }
}

/// Why the program could not be attached; each message says what to do.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Another process's program is attached.
    #[error(
        "interface `{interface}` already has an XDP program, attached by another process: \
         find it with `bpftool net show dev {interface}` and remove it (`ip link set dev {interface} xdp off`)"
    )]
    InUse {
        /// Its name.
        interface: String,
    },
    /// A veth needs a receive queue for every transmit queue of its peer.
    #[error(
        "interface `{interface}` has {rx_queues} receive queue(s), fewer than its veth peer has transmit \
         queues, so it refuses native XDP: `ethtool -L {interface} rx N` with as many as the peer has, or \
         set `mode = \"generic\"`"
    )]
    PeerQueues {
        /// Its name.
        interface: String,
        /// Its number of receive queues.
        rx_queues: u32,
    },
    /// Frames of this MTU do not fit in one page.
    #[error(
        "interface `{interface}` has an MTU of {mtu} (or its veth peer has a large one), too large for native XDP: \
         set the MTU to 3498 or less on both ends, or set `mode = \"generic\"`"
    )]
    Mtu {
        /// Its name.
        interface: String,
        /// Its MTU, bytes.
        mtu: u32,
    },
    /// The driver has no native XDP.
    #[error(
        "interface `{interface}`: its driver has no native XDP; set `mode = \"auto\"` or \"generic\""
    )]
    NoNative {
        /// Its name.
        interface: String,
    },
    /// Permission denied.
    #[error(
        "attaching to interface `{interface}` is not permitted: run as root, or with CAP_NET_ADMIN and CAP_BPF"
    )]
    Permission {
        /// Its name.
        interface: String,
    },
    /// Anything else.
    #[error("the XDP program cannot be attached to interface `{interface}`: {why}")]
    Other {
        /// Its name.
        interface: String,
        /// The kernel's error.
        why: String,
    },
}

/// The attached program, and the interface's promiscuous mode. Dropping it ends both.
pub struct Attachment {
    /// Place where it runs.
    pub mode: XdpMode,
    sockets: XskMap<MapData>,
    _link: FdLink,
    _promiscuous: Promiscuous,
}

impl Attachment {
    /// Loads the program and attaches it: in native mode, or in generic mode if `generic` is set, or if the driver has no
    /// native XDP and `fallback` is set. With `multi_buffer`, it is the program for frames that take several buffers.
    pub fn new(
        interface: &Interface,
        generic: bool,
        fallback: bool,
        multi_buffer: bool,
    ) -> Result<Attachment, AttachError> {
        let first = if generic {
            XdpMode::Generic
        } else {
            XdpMode::Native
        };
        match attach(interface, first, multi_buffer) {
            Err(AttachError::NoNative { .. }) if fallback => {
                attach(interface, XdpMode::Generic, multi_buffer)
            }
            other => other,
        }
    }

    /// Redirects the frames of receive queue `queue` to `socket`. Frames of queues without a socket go to the kernel.
    pub fn redirect(&mut self, queue: u32, socket: &impl AsFd) -> io::Result<()> {
        self.sockets
            .set(queue, socket.as_fd(), 0)
            .map_err(io::Error::other)
    }
}

fn attach(
    interface: &Interface,
    mode: XdpMode,
    multi_buffer: bool,
) -> Result<Attachment, AttachError> {
    let other = |why: String| AttachError::Other {
        interface: interface.name.clone(),
        why,
    };
    let mut ebpf = Ebpf::load(crosspoint_ebpf::OBJECT).map_err(|e| load_error(interface, &e))?;
    let missing = || other("the object lacks its program or map".into());
    let name = match multi_buffer {
        true => crosspoint_ebpf::PROGRAM_FRAGS,
        false => crosspoint_ebpf::PROGRAM,
    };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    let program: &mut Xdp = program
        .try_into()
        .map_err(|e: ProgramError| other(e.to_string()))?;
    program.load().map_err(|e| attach_error(interface, e))?;
    let how = match mode {
        XdpMode::Native => AyaMode::Driver,
        XdpMode::Generic => AyaMode::Skb,
    };
    let id = program
        .attach_to_if_index(interface.index, how)
        .map_err(|e| attach_error(interface, e))?;
    let link = program.take_link(id).map_err(|e| other(e.to_string()))?;
    // A program attached by netlink, the older interface, would outlive the process.
    let link: FdLink = link
        .try_into()
        .map_err(|_| other("the kernel gave no BPF link (it needs 5.9)".into()))?;
    let map = ebpf
        .take_map(crosspoint_ebpf::SOCKETS)
        .ok_or_else(missing)?;
    let sockets = XskMap::try_from(map).map_err(|e| other(e.to_string()))?;
    let promiscuous = Promiscuous::new(interface.index).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => AttachError::Permission {
            interface: interface.name.clone(),
        },
        _ => other(format!("it cannot be made promiscuous: {e}")),
    })?;
    Ok(Attachment {
        mode,
        sockets,
        _link: link,
        _promiscuous: promiscuous,
    })
}

fn load_error(interface: &Interface, error: &EbpfError) -> AttachError {
    let interface = interface.name.clone();
    let text = chain(error);
    if text.contains("EPERM") || text.contains("not permitted") {
        return AttachError::Permission { interface };
    }
    AttachError::Other {
        interface,
        why: text,
    }
}

fn attach_error(of: &Interface, error: ProgramError) -> AttachError {
    let interface = of.name.clone();
    match errno(&error) {
        Some(libc::EBUSY | libc::EEXIST) => AttachError::InUse { interface },
        Some(libc::ENOSPC) => AttachError::PeerQueues {
            interface,
            rx_queues: of.rx_queues,
        },
        Some(libc::ERANGE) => AttachError::Mtu {
            interface,
            mtu: of.mtu,
        },
        Some(libc::EOPNOTSUPP) => AttachError::NoNative { interface },
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission { interface },
        _ => AttachError::Other {
            interface,
            why: chain(&error),
        },
    }
}

/// Finds the kernel's error number in aya's error types.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::XdpError(aya::programs::xdp::XdpError::NetlinkError(e)) => e.raw_os_error(),
        _ => None,
    }
}

/// Formats an error with all its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
