//! The XDP program of crosspoint's uplinks, built, as bytes to load.
//!
//! [`PROGRAM`] hands every frame that arrives on a receive queue to the AF_XDP socket that [`SOCKETS`] holds for that
//! queue, and every other frame to the kernel. Its source is `src/bpf/crosspoint_xdp.bpf.c`; `build.sh` makes the
//! committed object from it, and a test shows that the two belong together, so that no user needs clang. [`traffic`] is
//! another object, for the bench.

#![forbid(unsafe_code)]

pub mod traffic;

/// An ELF file's headers are read in place, so its bytes start on the boundary of their widest field.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ELF: &Aligned<[u8]> = &Aligned(*include_bytes!("../crosspoint_xdp.bpf.o"));

/// The built object: an ELF file for little-endian machines, aligned to 8 bytes.
pub const OBJECT: &[u8] = &ELF.0;

/// The program to attach to a network interface.
pub const PROGRAM: &str = "crosspoint";

/// The same program for an MTU whose frames take more than one buffer. Its sockets must be bound with `XDP_USE_SG`:
/// the kernel drops a frame of several buffers at any other.
pub const PROGRAM_FRAGS: &str = "crosspoint_frags";

/// The map from receive queue index to AF_XDP socket (`BPF_MAP_TYPE_XSKMAP`).
pub const SOCKETS: &str = "xsks";

/// Queues that [`SOCKETS`] has room for. Frames of queues beyond it go to the kernel.
pub const MAX_QUEUES: u32 = 256;
