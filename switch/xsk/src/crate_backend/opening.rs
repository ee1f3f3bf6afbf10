//! Opens a socket by the crate `xsk-rs`. Doorbells, counters and options are system calls on the descriptor, as with our
//! own sockets: the crate does not return the result of its doorbell.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::{
    BindMode, Bound, REBIND_PATIENCE, Registration, SocketOptions, TX_BUDGET,
    XDP_MAX_TX_SKB_BUDGET, XskSocket, get_option, poll_busily, set_option,
};
use crate::crate_backend::source_of;
use crate::ring::Ring;
use crate::{RING_SIZE, SocketError, Umem, XskRx, XskTx};

/// A socket to be bound. The crate creates it only when it is bound.
pub(crate) struct Opening(());

impl Opening {
    /// Prepares a socket. Checksum requests and guests' memory are refused.
    pub(crate) fn new(memory: &Registration<'_>) -> Result<Opening, SocketError> {
        match memory {
            Registration::Own(_, true) => Err(cannot("leaving checksums to the kernel")),
            Registration::Own(_, false) | Registration::Of(_) => Ok(Opening(())),
            #[cfg(not(loom))]
            Registration::Guest(..) => Err(cannot("sending out of a guest's memory")),
        }
    }

    /// Binds it to a queue.
    pub(crate) fn bind(
        self,
        (ifindex, queue): (u32, u32),
        options: &SocketOptions,
        memory: &Registration<'_>,
        (umem, slot): (Arc<Umem>, u16),
    ) -> Result<(XskRx, XskTx), SocketError> {
        let interface =
            interface(ifindex).map_err(SocketError::new("asking for the interface's name"))?;
        let config = config(options).map_err(SocketError::new("configuring the socket"))?;
        let memory = match memory {
            Registration::Own(umem, _) => umem,
            Registration::Of(socket) => socket.umem(),
            #[cfg(not(loom))]
            Registration::Guest(..) => return Err(cannot("sending out of a guest's memory")),
        };
        let (tx, rx, fill, completion) = bind(memory, &interface, queue, config)
            .map_err(SocketError::new("binding to the queue"))?;
        let fd = descriptor(&rx).map_err(SocketError::new("duplicating the descriptor"))?;
        if options.busy_poll {
            poll_busily(fd.as_fd()).map_err(SocketError::new("asking for busy polling"))?;
        }
        // Older kernels do not know it and send 32 frames per call: slower, but correct.
        let _ = set_option(fd.as_fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
        let mut how = libc::xdp_options { flags: 0 };
        get_option(fd.as_fd(), libc::XDP_OPTIONS, &mut how)
            .map_err(SocketError::new("asking for the mode"))?;

        let frames = umem.inner.clone();
        let (rx, fill) = (Ring::rx(rx, &frames), Ring::fill(fill, &frames));
        let (tx, completion) = (Ring::tx(tx, &frames), Ring::completion(completion, &frames));
        let zero_copy = how.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        let socket = XskSocket::with(fd, (umem, slot), (zero_copy, false), options);
        let socket = Arc::new(socket);
        let rx = XskRx::new(socket.clone(), rx, fill);
        Ok((rx, XskTx::new(socket, tx, completion)))
    }

    /// Never reached: `new` refuses a guest's memory.
    #[cfg(not(loom))]
    pub(crate) fn bind_plain(
        self,
        _: (u32, u32),
        _: &SocketOptions,
        _: &Registration<'_>,
    ) -> Result<Bound, SocketError> {
        Err(cannot("sending out of a guest's memory"))
    }
}

fn cannot(what: &'static str) -> SocketError {
    SocketError::new(what)(io::Error::new(
        io::ErrorKind::Unsupported,
        "built with the feature xsk-rs, which cannot do this",
    ))
}

/// Returns the interface's name, which the crate needs.
fn interface(index: u32) -> io::Result<Interface> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let name = rustix::net::netdevice::index_to_name(&socket, index)?;
    Ok(Interface::new(CString::new(name)?))
}

fn config(options: &SocketOptions) -> io::Result<SocketConfig> {
    let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
    flags |= match options.bind {
        // Neither flag: zero-copy if it works, else copy.
        BindMode::Auto => BindFlags::empty(),
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        BindMode::Copy => BindFlags::XDP_COPY,
    };
    flags.set(BindFlags::XDP_USE_SG, options.multi_buffer);
    let size = QueueSize::new(RING_SIZE).map_err(io::Error::other)?;
    Ok(SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        // The program is ours: `attach.rs`.
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build())
}

fn bind(
    umem: &Umem,
    interface: &Interface,
    queue: u32,
    config: SocketConfig,
) -> io::Result<(TxQueue, RxQueue, FillQueue, CompQueue)> {
    let started = Instant::now();
    loop {
        // SAFETY: required is only that the crate loads no program if a UMEM is bound to one queue twice. It loads none.
        let error = match unsafe { Socket::new(config, umem.inner.umem(), interface, queue) } {
            Ok((tx, rx, Some((fill, completion)))) => return Ok((tx, rx, fill, completion)),
            // Only if the UMEM is already bound to this queue.
            Ok((_, _, None)) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => source_of(&error),
        };
        // The kernel releases a queue some 20 ms after its last socket was closed.
        if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > REBIND_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Duplicates the socket's descriptor. The crate closes its own with the last of its queues; the control thread and
/// workers that hand frames off use the socket too.
fn descriptor(rx: &RxQueue) -> io::Result<OwnedFd> {
    // SAFETY: open as long as `rx` lives, which is longer than the borrow.
    unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) }.try_clone_to_owned()
}
