//! A frame in the switch: a *reference* to bytes in a guest's memory or in a UMEM, with the first 64 bytes copied; and
//! the one copy that delivers it.
//!
//! The first 64 bytes are read once, when the frame is received. Every decision uses this copy, and it is what is
//! delivered, so a guest that rewrites a header after the check changes nothing.

mod burst;
mod clock;
mod copy;
mod header;
mod header_op;
mod hold;
mod lease;
mod parts;
mod segment;
mod sum;
mod work;

pub use burst::{
    BURST, BURST_BYTES, Burst, Decision, Frame, HEAD_LEN, MAX_BURST_SEGMENTS, Offload, TxEntry,
    Verdict,
};
pub use clock::{Clock, tsc};
pub use copy::{Gather, Prefix, copy_plain, copy_plain_finished};
pub use header::{NEEDS_CSUM, virtio_header};
pub use header_op::HeaderOp;
pub use hold::HELD_LEN;
pub use lease::FrameSwap;
pub use parts::{DerivedBurst, PartCursor};
pub use segment::{Segment, SegmentMut, prefetch_buffer, prefetch_read, prefetch_write};
pub use work::Work;
