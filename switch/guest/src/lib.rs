//! A guest without a virtual machine: the driver side of virtio-net rings, and a vhost-user front end.
//!
//! The benches use it because it is fast (`TxPump`, `RxPump`), the tests because it does on demand what real guests do
//! not: unusual descriptor chains, indices that start anywhere, memory that is removed, hostile messages. It depends on
//! no other crate of the workspace, and not on the `vhost` crate either, so that an error in how the switch implements
//! the specification is not repeated here.
//!
//! | module | what |
//! |---|---|
//! | [`net`] | feature bits, `struct virtio_net_hdr` (virtio 1.2, 5.1) |
//! | [`memory`] | guest memory: mappings, windows on them; all of the crate's `unsafe` |
//! | [`ring`] | driver side of a split virtqueue (virtio 1.2, 2.7) |
//! | [`packed`] | driver side of a packed virtqueue (virtio 1.2, 2.8) |
//! | [`virtqueue`] | either of the two |
//! | [`event`] | kick and call eventfds |
//! | [`message`] | vhost-user messages as bytes, hostile ones included |
//! | [`frontend`] | a vhost-user session: negotiation, memory table, rings |
//! | [`log`], [`inflight`] | what front end and back end share besides guest memory |
//! | [`queue`] | frames in and out of one ring, byte for byte |
//! | [`guest`] | memory + queue pairs + session |
//! | [`pump`] | tight generator and sink loops |
//! | [`forward`] | a tight forwarding loop |
#![deny(unsafe_code)]

pub mod event;
pub mod forward;
pub mod frontend;
pub mod guest;
pub mod inflight;
pub mod log;
pub mod memory;
pub mod message;
pub mod net;
pub mod packed;
mod plan;
pub mod pump;
pub mod queue;
pub mod ring;
pub mod virtqueue;

pub use event::EventFd;
pub use forward::{ForwardPump, Forwarded};
pub use frontend::{Listener, Negotiated, Session, SessionError};
pub use guest::{Guest, GuestError, GuestOptions};
pub use inflight::Inflight;
pub use log::DirtyLog;
pub use memory::{GuestMemory, MemoryError, RegionLayout, View, Window};
pub use net::VirtioNetHdr;
pub use packed::{PackedDescriptor, PackedRing, Position};
pub use pump::{Received, RxPump, Sent, TxPump, TxPumpOptions, TxWrites};
pub use queue::{ChainSplit, QueueError};
pub use ring::{Buffer, RingError, RingLayout, SplitRing, UsedElement};
pub use virtqueue::Virtqueue;
