//! AF_XDP: UMEM, rings, sockets, and the XDP program that fills them. `unsafe` is confined to
//! [`umem`], [`ring`], [`socket`] and [`large`]. With the feature `xsk-rs` the crate of that name is beneath
//! these three: see `crate_backend`.
//!
//! Kernel interface: Documentation/networking/af_xdp.rst.

pub mod attach;
#[cfg(feature = "xsk-rs")]
mod crate_backend;
#[cfg(not(loom))]
mod direct;
mod error;
mod fill;
mod handover;
pub mod interface;
mod large;
mod memory;
#[cfg_attr(feature = "xsk-rs", path = "crate_backend/ring.rs")]
mod ring;
mod rx;
mod socket;
mod tx;
mod umem;

pub use attach::{Attachment, XdpMode};
#[cfg(not(loom))]
pub use direct::{DIRECT_FRAMES, DirectStatus, DirectTx};
pub use error::SocketError;
pub use handover::Handover;
pub use memory::PacketMemory;
pub use rx::XskRx;
pub use socket::{BindMode, SocketOptions, Statistics, XskSocket};
pub use tx::{Flushed, NicOutcome, XskTx};
pub use umem::{FRAME_SIZE, Pages, Umem};

/// Whose rings and sockets these are: "own", or "xsk-rs", the crate of that name.
pub const BACKEND: &str = if cfg!(feature = "xsk-rs") {
    "xsk-rs"
} else {
    "own"
};

/// Entries of each of a socket's four rings, and frames of each of its halves.
pub const RING_SIZE: u32 = 2048;
/// The largest MTU whose frames fit one UMEM frame together with what the kernel keeps there: 4096 bytes, less its 256
/// before the packet and `struct skb_shared_info` behind it. Beyond it, frames need sockets and a program for several.
pub const SINGLE_BUFFER_MTU: u32 = 3498;
