//! Opening an AF_XDP socket on one queue of an interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
#[cfg(not(feature = "xsk-rs"))]
use std::{os::fd::FromRawFd, sync::Arc, time::Instant};

use thiserror::Error;

use crate::umem::Umem;
#[cfg(not(feature = "xsk-rs"))]
use crate::{FRAME_SIZE, RING_SIZE, XskRx, XskTx, ring::Ring};

#[cfg(feature = "xsk-rs")]
#[path = "crate_backend/open.rs"]
mod open;
#[cfg(feature = "xsk-rs")]
pub use open::open;

/// How a socket moves frames between the NIC and its UMEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindMode {
    /// Zero-copy where the driver does it, else copy.
    Auto,
    /// The NIC reads and writes the UMEM itself; an error where the driver cannot.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// Why a socket could not be opened.
#[derive(Debug, Error)]
#[error("{what}: {why}")]
pub struct SocketError {
    /// What was being done.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub why: io::Error,
}

impl SocketError {
    fn new(what: &'static str) -> impl FnOnce(io::Error) -> SocketError {
        move |why| SocketError { what, why }
    }
}

/// The kernel's counters of one socket (XDP_STATISTICS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Frames dropped for other reasons than those below.
    pub rx_dropped: u64,
    /// Descriptors of ours on the receive side that were invalid.
    pub rx_invalid_descs: u64,
    /// Descriptors of ours on the transmit side that were invalid.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the transmit ring empty.
    pub tx_ring_empty_descs: u64,
}

/// What the two halves of a socket, and the control thread, share.
pub struct XskSocket {
    fd: OwnedFd,
    umem: Umem,
    zero_copy: bool,
}

impl XskSocket {
    /// The memory that its frames lie in.
    #[inline(always)]
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Whether the NIC reads and writes the UMEM itself.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The kernel's counters.
    pub fn statistics(&self) -> io::Result<Statistics> {
        // SAFETY: six u64: all zero is a value.
        let mut raw: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        get_option(self.fd.as_fd(), libc::XDP_STATISTICS, &mut raw)?;
        Ok(Statistics {
            rx_dropped: raw.rx_dropped,
            rx_invalid_descs: raw.rx_invalid_descs,
            tx_invalid_descs: raw.tx_invalid_descs,
            rx_ring_full: raw.rx_ring_full,
            rx_fill_ring_empty_descs: raw.rx_fill_ring_empty_descs,
            tx_ring_empty_descs: raw.tx_ring_empty_descs,
        })
    }

    /// Has the kernel look at the transmit ring. Returns whether it is worth calling again.
    pub(crate) fn wake_tx(&self) -> bool {
        // SAFETY: no buffer, no address: a doorbell only (af_xdp.rst, XDP_USE_NEED_WAKEUP).
        let rc = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        // EAGAIN: its budget is used up and there is more; the rest (EBUSY, ENOBUFS, ENETDOWN)
        // is for a later iteration.
        rc >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    }

    /// Has the kernel look at the fill ring.
    pub(crate) fn wake_rx(&self) {
        // SAFETY: no buffer, no address: a doorbell only.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// Since Linux 6.17; not in libc yet (include/uapi/linux/if_xdp.h).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Frames that one doorbell sends in copy mode. The kernel's default is 32.
const TX_BUDGET: u32 = 256;
/// How long a queue may stay busy after its last socket was closed.
const REBIND_PATIENCE: Duration = Duration::from_secs(1);

/// Opens a socket with a UMEM of its own and binds it to a queue.
#[cfg(not(feature = "xsk-rs"))]
pub fn open(ifindex: u32, queue: u32, mode: BindMode) -> Result<(XskRx, XskTx), SocketError> {
    // SAFETY: plain system call; the descriptor is owned from here on.
    let raw = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(SocketError::new("opening an AF_XDP socket")(
            io::Error::last_os_error(),
        ));
    }
    // SAFETY: just made, ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let umem = Umem::new(2 * RING_SIZE).map_err(SocketError::new("allocating packet memory"))?;
    register(fd.as_fd(), &umem).map_err(SocketError::new("registering packet memory"))?;

    // SAFETY: plain integers: all zero is a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    get_option(fd.as_fd(), libc::XDP_MMAP_OFFSETS, &mut offsets)
        .map_err(SocketError::new("asking for the ring layout"))?;
    let fail = || SocketError::new("mapping a ring");
    let at = fd.as_fd();
    let fill =
        Ring::map(at, libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, RING_SIZE).map_err(fail())?;
    let completion = Ring::map(
        at,
        libc::XDP_UMEM_PGOFF_COMPLETION_RING,
        &offsets.cr,
        RING_SIZE,
    )
    .map_err(fail())?;
    let rx =
        Ring::map(at, libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, RING_SIZE).map_err(fail())?;
    let tx =
        Ring::map(at, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, RING_SIZE).map_err(fail())?;

    bind(at, ifindex, queue, mode).map_err(SocketError::new("binding to the queue"))?;
    // Older kernels do not know it and send 32 frames a call: slower, not wrong.
    let _ = set_option(at, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
    let mut options = libc::xdp_options { flags: 0 };
    get_option(at, libc::XDP_OPTIONS, &mut options)
        .map_err(SocketError::new("asking for the mode"))?;
    let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
    let socket = Arc::new(XskSocket {
        fd,
        umem,
        zero_copy,
    });
    Ok((
        XskRx::new(socket.clone(), rx, fill),
        XskTx::new(socket, tx, completion),
    ))
}

#[cfg(not(feature = "xsk-rs"))]
fn register(socket: BorrowedFd<'_>, umem: &Umem) -> io::Result<()> {
    // SAFETY: plain integers: all zero is a value, and "none" for the fields not set below.
    let mut reg: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    reg.addr = umem.base() as u64;
    reg.len = umem.len() as u64;
    reg.chunk_size = FRAME_SIZE;
    set_option(socket, libc::XDP_UMEM_REG, &reg)?;
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_RX_RING,
        libc::XDP_TX_RING,
    ] {
        set_option(socket, ring, &RING_SIZE)?;
    }
    Ok(())
}

#[cfg(not(feature = "xsk-rs"))]
fn bind(socket: BorrowedFd<'_>, ifindex: u32, queue: u32, mode: BindMode) -> io::Result<()> {
    let how = match mode {
        // Neither flag: zero-copy if it works, else copy.
        BindMode::Auto => 0,
        BindMode::ZeroCopy => libc::XDP_ZEROCOPY,
        BindMode::Copy => libc::XDP_COPY,
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: how | libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let started = Instant::now();
    loop {
        // SAFETY: a sockaddr_xdp of the length given.
        let rc = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_xdp>() as u32,
            )
        };
        let error = io::Error::last_os_error();
        if rc == 0 {
            return Ok(());
        }
        // The kernel lets go of a queue some 20 ms after its last socket was closed.
        if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > REBIND_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn set_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a plain kernel structure of the size given.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as u32;
    // SAFETY: `value` is a plain kernel structure of the size given; the kernel writes at most
    // `len` bytes.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
