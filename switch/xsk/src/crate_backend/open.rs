//! Opening a socket by the crate `xsk-rs`. What comes after, doorbells, counters and options, is
//! `socket.rs`: system calls on the descriptor, of which the crate hides the outcome.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::{
    BindMode, REBIND_PATIENCE, SocketError, TX_BUDGET, XDP_MAX_TX_SKB_BUDGET, XskSocket,
    get_option, set_option,
};
use crate::ring::Ring;
use crate::umem::source_of;
use crate::{RING_SIZE, Umem, XskRx, XskTx};

/// Opens a socket with a UMEM of its own and binds it to a queue.
pub fn open(ifindex: u32, queue: u32, mode: BindMode) -> Result<(XskRx, XskTx), SocketError> {
    let interface = interface(ifindex).map_err(SocketError::new("asking for the interface"))?;
    let umem = Umem::new(2 * RING_SIZE).map_err(SocketError::new("allocating packet memory"))?;
    let config = config(mode).map_err(SocketError::new("configuring the socket"))?;
    let queues =
        bind(&umem, &interface, queue, config).map_err(SocketError::new("binding to the queue"))?;
    let (tx, rx, fill, completion) = queues;

    // The crate has the descriptor closed with the last of its queues; the socket is also the
    // control thread's, and whoever hands over.
    // SAFETY: open as long as `rx` lives, which is longer than this borrow.
    let lent = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
    let fd: OwnedFd = lent
        .try_clone_to_owned()
        .map_err(SocketError::new("duplicating the descriptor"))?;
    // Older kernels do not know it and send 32 frames a call: slower, not wrong.
    let _ = set_option(fd.as_fd(), XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET);
    let mut options = libc::xdp_options { flags: 0 };
    get_option(fd.as_fd(), libc::XDP_OPTIONS, &mut options)
        .map_err(SocketError::new("asking for the mode"))?;
    let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;

    let (rx, fill) = (Ring::rx(rx, &umem), Ring::fill(fill, &umem));
    let (tx, completion) = (Ring::tx(tx, &umem), Ring::completion(completion, &umem));
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

/// The crate wants names.
fn interface(index: u32) -> io::Result<Interface> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let name = rustix::net::netdevice::index_to_name(&socket, index)?;
    Ok(Interface::new(CString::new(name)?))
}

fn config(mode: BindMode) -> io::Result<SocketConfig> {
    let how = match mode {
        // Neither flag: zero-copy if it works, else copy.
        BindMode::Auto => BindFlags::empty(),
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        BindMode::Copy => BindFlags::XDP_COPY,
    };
    let size = QueueSize::new(RING_SIZE).map_err(io::Error::other)?;
    Ok(SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        // The program is ours: `attach.rs`.
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(how | BindFlags::XDP_USE_NEED_WAKEUP)
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
        // SAFETY: no program is loaded by the crate, which is all that this could go wrong with.
        let error = match unsafe { Socket::new(config, umem.inner(), interface, queue) } {
            Ok((tx, rx, Some((fill, completion)))) => return Ok((tx, rx, fill, completion)),
            // Only for a UMEM that is bound to this queue already.
            Ok((_, _, None)) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => source_of(&error),
        };
        // The kernel lets go of a queue some 20 ms after its last socket was closed.
        if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() > REBIND_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
