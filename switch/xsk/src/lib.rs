//! AF_XDP: UMEM, rings and sockets. `unsafe` is confined to [`umem`], [`ring`],
//! [`socket`] and [`large`]. With the feature `xsk-rs` the first three use the crate of that name: see `crate_backend`.
//!
//! Kernel interface: Documentation/networking/af_xdp.rst.

#[cfg(feature = "xsk-rs")]
mod crate_backend;
#[cfg(not(loom))]
mod direct;
mod error;
mod fill;
mod handoff;
mod large;
mod memory;
#[cfg_attr(feature = "xsk-rs", path = "crate_backend/ring.rs")]
mod ring;
mod rx;
mod socket;
mod takeover;
mod tx;
mod umem;

#[cfg(not(loom))]
pub use direct::{DIRECT_FRAMES, DirectStatus, DirectTx};
pub use error::SocketError;
pub use handoff::Handoff;
pub use memory::PacketMemory;
pub use rx::XskRx;
pub use socket::{BindMode, SocketOptions, Statistics, XskSocket};
pub use takeover::{FramePlaces, MappedSocket, SocketRecord};
pub use tx::{Flushed, NicOutcome, XskTx};
pub use umem::{FRAME_SIZE, Pages, Umem};

/// Implementation of rings and sockets: "own", or "xsk-rs", the crate of that name.
pub const BACKEND: &str = if cfg!(feature = "xsk-rs") {
    "xsk-rs"
} else {
    "own"
};

/// Number of entries of each of a socket's four rings, and of frames of each of its halves.
pub const RING_SIZE: u32 = 2048;
/// The largest MTU whose frames fit in one UMEM frame together with the kernel's data: 4096 bytes, less 256 before the
/// packet and `struct skb_shared_info` after it. Larger frames need sockets and a program for several UMEM frames.
pub const SINGLE_BUFFER_MTU: u32 = 3498;
