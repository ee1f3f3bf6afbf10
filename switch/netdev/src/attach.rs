//! Attaches the XDP program to an interface by a BPF link, so that it is detached when the process ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::maps::{Map, MapData, MapError, XskMap};
use aya::programs::{ProgramError, Xdp};
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
    /// The map's descriptor, for another process.
    map: OwnedFd,
    link: OwnedFd,
    promiscuous: Promiscuous,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Another process may hold copies of the link.
        detach(self.link.as_fd());
    }
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

    /// Goes on with the program that another process has attached to interface number `index`, by the descriptors from [`record`](Self::record).
    pub fn resume(
        index: u32,
        mode: XdpMode,
        [map, link, promiscuous]: [OwnedFd; 3],
    ) -> io::Result<Attachment> {
        if linked_interface(link.as_fd())? != index {
            return Err(io::Error::other("it is detached"));
        }
        let copy = map.try_clone()?;
        let other = |why: MapError| io::Error::other(why);
        let data = MapData::from_fd(map).map_err(other)?;
        Ok(Attachment {
            mode,
            sockets: XskMap::try_from(Map::XskMap(data)).map_err(other)?,
            map: copy,
            link,
            promiscuous: Promiscuous::of(promiscuous, index),
        })
    }

    /// The descriptors by which another process goes on: map, link, and what keeps the interface promiscuous. The program stays
    /// attached as long as the link has a copy and this value is not dropped.
    pub fn record(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.map.as_fd(),
            self.link.as_fd(),
            self.promiscuous.as_fd(),
        ]
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
    let fd = program.fd().map_err(|e| other(e.to_string()))?;
    let link = create_link(fd.as_fd(), interface.index, mode);
    let link = link.map_err(|why| refused(interface, &why))?;
    let map = ebpf
        .take_map(crosspoint_ebpf::SOCKETS)
        .ok_or_else(missing)?;
    let fd = match &map {
        Map::XskMap(data) => data.fd().as_fd().try_clone_to_owned(),
        _ => return Err(missing()),
    };
    let fd = fd.map_err(|e| other(e.to_string()))?;
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
        map: fd,
        link,
        promiscuous,
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
    match errno(&error) {
        Some(number) => refused(of, &io::Error::from_raw_os_error(number)),
        None => AttachError::Other {
            interface: of.name.clone(),
            why: chain(&error),
        },
    }
}

/// Translates the kernel's answer to an attempt to attach the program.
fn refused(of: &Interface, why: &io::Error) -> AttachError {
    let interface = of.name.clone();
    match why.raw_os_error() {
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
            why: why.to_string(),
        },
    }
}

/// Finds the kernel's error number in aya's error types.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        _ => None,
    }
}

/// Commands of bpf(2), and the attach type of XDP (include/uapi/linux/bpf.h).
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_XDP: u32 = 37;
/// Modes of XDP (include/uapi/linux/if_link.h).
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches a program by a BPF link (Linux 5.9), which is what its descriptor refers to. (aya keeps the descriptor of its links to
/// itself, and another process needs a copy.)
fn create_link(program: BorrowedFd<'_>, index: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let flags = match mode {
        XdpMode::Native => XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
    };
    let attributes = [program.as_raw_fd() as u32, index, BPF_XDP, flags];
    let fd = bpf(BPF_LINK_CREATE, &attributes)?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// The interface of a link; 0 if its program is detached (Linux 5.9).
fn linked_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_link_info: type, id, program's id, padding, and for XDP the interface. The kernel writes as much as it has, up
    // to the length, and later kernels have more.
    let mut info = [0u32; 32];
    let address = info.as_mut_ptr() as u64;
    let attributes = [
        link.as_raw_fd() as u32,
        size_of_val(&info) as u32,
        address as u32,
        (address >> 32) as u32,
    ];
    // The address has its lower half first on little-endian hosts, which all that run this are.
    const { assert!(cfg!(target_endian = "little")) };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info[4])
}

/// Detaches a link's program, though other processes have copies of the link (Linux 5.9).
fn detach(link: BorrowedFd<'_>) {
    // If the interface is gone, so is the program.
    let _ = bpf(BPF_LINK_DETACH, &[link.as_raw_fd() as u32, 0, 0, 0]);
}

/// bpf(2) with a command whose attributes are up to four words of 32 bits.
fn bpf(command: libc::c_int, attributes: &[u32; 4]) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes during the call, as many bytes as the size says. Of the three commands one writes:
    // BPF_OBJ_GET_INFO_BY_FD, to `info` of `linked_interface`, no more than the length that it gives.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    match rc {
        0.. => Ok(rc),
        _ => Err(io::Error::last_os_error()),
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
