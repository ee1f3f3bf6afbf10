//! Opening an AF_XDP socket on one queue of an interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
#[cfg(not(feature = "xsk-rs"))]
use std::{os::fd::FromRawFd, time::Instant};

#[cfg(not(feature = "xsk-rs"))]
use crate::SocketError;
use crate::ring::Ring;
use crate::umem::{Pages, Umem};
#[cfg(not(feature = "xsk-rs"))]
use crate::{FRAME_SIZE, RING_SIZE, XskRx, XskTx, fill::METADATA_LEN};

#[cfg(feature = "xsk-rs")]
#[path = "crate_backend/opening.rs"]
mod opening;
#[cfg(feature = "xsk-rs")]
pub(crate) use opening::Opening;

/// How a socket moves frames between the NIC and its UMEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindMode {
    /// Zero-copy if the driver supports it, else copy.
    Auto,
    /// The NIC reads and writes the UMEM itself; an error if the driver cannot.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// Options of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketOptions {
    /// How frames move.
    pub bind: BindMode,
    /// Whether it receives and sends frames that take several UMEM frames (XDP_USE_SG, Linux 6.6). The XDP program must
    /// be the one for such frames.
    pub multi_buffer: bool,
    /// Whether the kernel polls the NIC when the worker asks for frames, instead of on interrupts (SO_PREFER_BUSY_POLL,
    /// Linux 5.11).
    pub busy_poll: bool,
    /// Kind of pages of its packet memory.
    pub pages: Pages,
    /// The longest frame that it sends, bytes, without up to two tags: the interface's MTU plus 14.
    pub frame_len_max: u32,
}

/// The kernel's counters of one socket (XDP_STATISTICS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Frames dropped for reasons other than those below.
    pub rx_dropped: u64,
    /// Invalid descriptors from us on the receive side.
    pub rx_invalid_descs: u64,
    /// Invalid descriptors from us on the transmit side.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the kernel found the transmit ring empty.
    pub tx_ring_empty_descs: u64,
}

/// State shared by the two halves of a socket and the control thread.
pub struct XskSocket {
    fd: OwnedFd,
    umem: Arc<Umem>,
    slot: u16,
    zero_copy: bool,
    multi_buffer: bool,
    finishes_checksums: bool,
    busy_poll: bool,
    frame_len_max: Arc<AtomicU32>,
}

impl XskSocket {
    /// Makes the socket of a descriptor whose other properties are known.
    pub(crate) fn with(
        fd: OwnedFd,
        (umem, slot): (Arc<Umem>, u16),
        (zero_copy, finishes_checksums): (bool, bool),
        options: &SocketOptions,
    ) -> XskSocket {
        XskSocket {
            fd,
            umem,
            slot,
            zero_copy,
            multi_buffer: options.multi_buffer,
            finishes_checksums,
            busy_poll: options.busy_poll,
            frame_len_max: Arc::new(AtomicU32::new(options.frame_len_max)),
        }
    }

    /// Returns its packet memory.
    #[inline(always)]
    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Returns its number among the sockets that share the memory.
    pub(crate) fn slot(&self) -> u16 {
        self.slot
    }

    /// Returns whether the NIC reads and writes the UMEM itself.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Returns whether it receives and sends frames that take several UMEM frames.
    #[inline(always)]
    pub fn multi_buffer(&self) -> bool {
        self.multi_buffer
    }

    /// Returns whether the kernel, or the NIC, finishes the checksums of sent frames.
    #[inline(always)]
    pub fn finishes_checksums(&self) -> bool {
        self.finishes_checksums
    }

    /// Returns whether the kernel polls the NIC when this socket is asked for frames.
    #[inline(always)]
    pub fn polls_busily(&self) -> bool {
        self.busy_poll
    }

    /// Returns the longest frame that it sends, bytes, without tags.
    #[inline(always)]
    pub fn frame_len_max(&self) -> u32 {
        self.frame_len_max.load(Ordering::Relaxed)
    }

    /// Returns the same as a shared value that is kept up to date, for other senders on the interface.
    pub fn frame_limit(&self) -> Arc<AtomicU32> {
        self.frame_len_max.clone()
    }

    /// Sets the longest frame that it sends, bytes: the interface's MTU has changed.
    pub fn set_frame_len_max(&self, len: u32) {
        self.frame_len_max.store(len, Ordering::Relaxed);
    }

    /// Reads the kernel's counters.
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

    /// Makes the kernel process the transmit ring. Returns whether it is worth calling again.
    pub(crate) fn wake_tx(&self) -> bool {
        matches!(wake_tx(self.fd.as_fd()), Woken::GoOn)
    }

    /// Makes the kernel process the fill ring.
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

/// The kernel's answer to a transmit doorbell.
pub(crate) enum Woken {
    /// It has sent some frames, and there may be more.
    GoOn,
    /// Not now.
    Later,
    /// Never: the interface is down or was removed.
    Gone,
}

/// Makes the kernel process a socket's transmit ring.
pub(crate) fn wake_tx(socket: BorrowedFd<'_>) -> Woken {
    // SAFETY: no buffer, no address: a doorbell only (af_xdp.rst, XDP_USE_NEED_WAKEUP).
    let rc = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if rc >= 0 {
        return Woken::GoOn;
    }
    match io::Error::last_os_error().raw_os_error() {
        // Its budget is used up and there are more frames; or the driver has dropped one, and the next may succeed.
        Some(libc::EAGAIN | libc::EBUSY) => Woken::GoOn,
        Some(libc::ENETDOWN | libc::ENXIO) => Woken::Gone,
        // Other errors (ENOBUFS): try again in a later iteration.
        _ => Woken::Later,
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
/// How long to wait for a queue that stays busy after its last socket was closed.
const REBIND_PATIENCE: Duration = Duration::from_secs(1);

/// Duration of busy polling in one call, microseconds, and the most frames that it takes: the values of
/// Documentation/networking/af_xdp.rst and the kernel's samples.
const BUSY_POLL_US: libc::c_int = 20;
const BUSY_POLL_BUDGET: libc::c_int = 64;

/// Most bytes of a socket that the kernel holds at a time in copy mode. The default is enough for only twenty frames of
/// several pages.
pub(crate) const SEND_BUFFER: libc::c_int = 16 << 20;

/// A bound socket with its rings.
#[cfg_attr(feature = "xsk-rs", expect(dead_code, reason = "the crate gives none"))]
pub(crate) struct Bound {
    pub(crate) fd: OwnedFd,
    fill: Ring<u64>,
    pub(crate) completion: Ring<u64>,
    rx: Ring<libc::xdp_desc>,
    pub(crate) tx: Ring<libc::xdp_desc>,
    pub(crate) zero_copy: bool,
    /// In copy mode the kernel makes a packet buffer of the frame, and finishes checksums that the driver cannot.
    pub(crate) finishes_checksums: bool,
}

/// A socket with its rings that is not bound yet.
#[cfg(not(feature = "xsk-rs"))]
pub(crate) struct Opening {
    fd: OwnedFd,
    rings: Rings,
}

/// The four rings of a socket.
#[cfg(not(feature = "xsk-rs"))]
pub(crate) struct Rings {
    pub(crate) fill: Ring<u64>,
    pub(crate) completion: Ring<u64>,
    pub(crate) rx: Ring<libc::xdp_desc>,
    pub(crate) tx: Ring<libc::xdp_desc>,
}

#[cfg(not(feature = "xsk-rs"))]
impl Rings {
    /// Maps the rings of a socket that has them. If it is bound, the kernel must be one that allows that.
    pub(crate) fn map(socket: BorrowedFd<'_>) -> Result<Rings, SocketError> {
        // SAFETY: plain integers: all zero is a value.
        let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        get_option(socket, libc::XDP_MMAP_OFFSETS, &mut offsets)
            .map_err(SocketError::new("asking for the ring layout"))?;
        let fail = || SocketError::new("mapping a ring");
        let (fill, completion) = (
            libc::XDP_UMEM_PGOFF_FILL_RING,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING,
        );
        let (rx, tx) = (
            libc::XDP_PGOFF_RX_RING as u64,
            libc::XDP_PGOFF_TX_RING as u64,
        );
        Ok(Rings {
            fill: Ring::map(socket, fill, &offsets.fr, RING_SIZE).map_err(fail())?,
            completion: Ring::map(socket, completion, &offsets.cr, RING_SIZE).map_err(fail())?,
            rx: Ring::map(socket, rx, &offsets.rx, RING_SIZE).map_err(fail())?,
            tx: Ring::map(socket, tx, &offsets.tx, RING_SIZE).map_err(fail())?,
        })
    }
}

/// The packet memory that a socket uses.
pub(crate) enum Registration<'a> {
    /// Its own: it is the first of the sockets that will share it. The flag: whether checksum requests are placed before
    /// sent data.
    Own(&'a Umem, bool),
    /// That of a bound socket.
    Of(&'a XskSocket),
    /// A guest's memory, with frames anywhere in it. The flag: as above.
    #[cfg(not(loom))]
    #[cfg_attr(feature = "xsk-rs", expect(dead_code, reason = "it is refused"))]
    Guest(&'a crosspoint_memory::Contiguous, bool),
}

#[cfg(not(feature = "xsk-rs"))]
impl Opening {
    /// Creates a socket. Fails if the kernel does not know checksum requests and they are asked for.
    pub(crate) fn new(memory: &Registration<'_>) -> Result<Opening, SocketError> {
        // SAFETY: plain system call; the descriptor is owned from here on.
        let raw = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            let why = io::Error::last_os_error();
            return Err(SocketError::new("opening an AF_XDP socket")(why));
        }
        // SAFETY: just made, ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let (registered, len) = match memory {
            Registration::Own(umem, metadata) => {
                let memory = (umem.base(), umem.len());
                (register(fd.as_fd(), memory, 0, *metadata), umem.len())
            }
            Registration::Of(_) => (Ok(()), 0),
            #[cfg(not(loom))]
            Registration::Guest(memory, metadata) => {
                let flags = libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG;
                let (base, len) = (memory.base(), memory.len());
                (register(fd.as_fd(), (base, len), flags, *metadata), len)
            }
        };
        registered.map_err(SocketError::locking(len))?;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ] {
            set_option(fd.as_fd(), libc::SOL_XDP, ring, &RING_SIZE)
                .map_err(SocketError::new("making a ring"))?;
        }
        let rings = Rings::map(fd.as_fd())?;
        Ok(Opening { fd, rings })
    }

    /// Binds it to a queue, and makes its two halves.
    pub(crate) fn bind(
        self,
        to: (u32, u32),
        options: &SocketOptions,
        memory: &Registration<'_>,
        (umem, slot): (Arc<Umem>, u16),
    ) -> Result<(XskRx, XskTx), SocketError> {
        let bound = self.bind_plain(to, options, memory)?;
        let how = (bound.zero_copy, bound.finishes_checksums);
        let socket = Arc::new(XskSocket::with(bound.fd, (umem, slot), how, options));
        Ok((
            XskRx::new(socket.clone(), bound.rx, bound.fill),
            XskTx::new(socket, bound.tx, bound.completion),
        ))
    }

    /// Binds it to a queue, without making the two halves.
    pub(crate) fn bind_plain(
        self,
        (ifindex, queue): (u32, u32),
        options: &SocketOptions,
        memory: &Registration<'_>,
    ) -> Result<Bound, SocketError> {
        let at = self.fd.as_fd();
        if options.busy_poll {
            poll_busily(at).map_err(SocketError::new("asking for busy polling"))?;
        }
        let (flags, shared) = match memory {
            // Flags of shared memory are given once, by the first socket.
            Registration::Of(socket) => (libc::XDP_SHARED_UMEM, Some(socket.as_fd())),
            _ => (flags_of(options), None),
        };
        bind(at, ifindex, queue, flags, shared)
            .map_err(SocketError::new("binding to the queue"))?;
        // Older kernels do not know it and send 32 frames per call: slower, but correct.
        let _ = set_option(at, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let mut how = libc::xdp_options { flags: 0 };
        get_option(at, libc::XDP_OPTIONS, &mut how)
            .map_err(SocketError::new("asking for the mode"))?;
        let zero_copy = how.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        let metadata = match memory {
            Registration::Own(_, metadata) => *metadata,
            Registration::Of(socket) => socket.finishes_checksums,
            #[cfg(not(loom))]
            Registration::Guest(_, metadata) => {
                // Without the permission, the default stays: slower, but correct.
                let _ = set_option(at, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
                *metadata
            }
        };
        Ok(Bound {
            fd: self.fd,
            fill: self.rings.fill,
            completion: self.rings.completion,
            rx: self.rings.rx,
            tx: self.rings.tx,
            zero_copy,
            finishes_checksums: metadata && !zero_copy,
        })
    }
}

#[cfg(not(feature = "xsk-rs"))]
fn flags_of(options: &SocketOptions) -> u16 {
    let how = match options.bind {
        // Neither flag: zero-copy if it works, else copy.
        BindMode::Auto => 0,
        BindMode::ZeroCopy => libc::XDP_ZEROCOPY,
        BindMode::Copy => libc::XDP_COPY,
    };
    let several = match options.multi_buffer {
        true => libc::XDP_USE_SG,
        false => 0,
    };
    how | several | libc::XDP_USE_NEED_WAKEUP
}

#[cfg(not(feature = "xsk-rs"))]
fn register(
    socket: BorrowedFd<'_>,
    (base, len): (*mut u8, usize),
    flags: u32,
    metadata: bool,
) -> io::Result<()> {
    // SAFETY: plain integers: all zero is a value, and "none" for the fields not set below.
    let mut reg: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    reg.addr = base as u64;
    reg.len = len as u64;
    reg.chunk_size = FRAME_SIZE;
    reg.flags = flags;
    if metadata {
        reg.flags |= libc::XDP_UMEM_TX_METADATA_LEN;
        reg.tx_metadata_len = METADATA_LEN;
    }
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &reg)
}

fn poll_busily(socket: BorrowedFd<'_>) -> io::Result<()> {
    for (option, value) in [
        (libc::SO_PREFER_BUSY_POLL, 1),
        (libc::SO_BUSY_POLL, BUSY_POLL_US),
        (libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET),
    ] {
        set_option(socket, libc::SOL_SOCKET, option, &value)?;
    }
    Ok(())
}

#[cfg(not(feature = "xsk-rs"))]
fn bind(
    socket: BorrowedFd<'_>,
    ifindex: u32,
    queue: u32,
    flags: u16,
    shared: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared.map_or(0, |fd| fd.as_raw_fd() as u32),
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
        // The kernel releases a queue some 20 ms after its last socket was closed.
        if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > REBIND_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: `value` is a plain kernel structure of the size given.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
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
