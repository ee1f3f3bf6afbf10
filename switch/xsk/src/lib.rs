//! AF_XDP: UMEM, rings, sockets, and the XDP program that fills them. `unsafe` is confined to
//! [`umem`], [`ring`] and [`socket`].
//!
//! Kernel interface: Documentation/networking/af_xdp.rst.

pub mod attach;
mod handover;
pub mod interface;
mod ring;
mod rx;
mod socket;
mod tx;
mod umem;

pub use attach::{Attachment, XdpMode};
pub use handover::Handover;
pub use rx::XskRx;
pub use socket::{BindMode, SocketError, Statistics, XskSocket, open};
pub use tx::{NicOutcome, XskTx};
pub use umem::{FRAME_SIZE, Umem};

/// Entries of each of a socket's four rings, and frames in each half of its UMEM.
pub const RING_SIZE: u32 = 2048;
