//! AF_XDP: UMEM, rings, sockets, and the XDP program that fills them. `unsafe` is confined to
//! [`umem`], [`ring`] and [`socket`]. With the feature `xsk-rs` these three, and no other, are
//! made with the crate of that name: see `crate_backend`.
//!
//! Kernel interface: Documentation/networking/af_xdp.rst.

pub mod attach;
mod handover;
pub mod interface;
#[cfg_attr(feature = "xsk-rs", path = "crate_backend/ring.rs")]
mod ring;
mod rx;
mod socket;
mod tx;
#[cfg_attr(feature = "xsk-rs", path = "crate_backend/umem.rs")]
mod umem;

pub use attach::{Attachment, XdpMode};
pub use handover::Handover;
pub use rx::XskRx;
pub use socket::{BindMode, SocketError, Statistics, XskSocket, open};
pub use tx::{NicOutcome, XskTx};
pub use umem::{FRAME_SIZE, Umem};

/// Whose rings and sockets these are: "own", or "xsk-rs", the crate of that name.
pub const BACKEND: &str = if cfg!(feature = "xsk-rs") {
    "xsk-rs"
} else {
    "own"
};

/// Entries of each of a socket's four rings, and frames in each half of its UMEM.
pub const RING_SIZE: u32 = 2048;
