//! The compiled XDP program of crosspoint's uplinks, as bytes to load.
//!
//! [`PROGRAM`] redirects every frame of a receive queue to the AF_XDP socket that [`SOCKETS`] holds for that queue, and
//! passes all other frames to the kernel. Its source is `src/bpf/crosspoint_xdp.bpf.c`; `build.sh` makes the committed
//! object from it, and a test checks that the two match, so that users do not need clang. [`traffic`] is another object,
//! for the bench.

#![forbid(unsafe_code)]

pub mod traffic;

/// An ELF file's headers are read in place, so its bytes start on the boundary of their widest field.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ELF: &Aligned<[u8]> = &Aligned(*include_bytes!("../crosspoint_xdp.bpf.o"));

/// The compiled object: an ELF file for little-endian machines, aligned to 8 bytes.
pub const OBJECT: &[u8] = &ELF.0;

/// The program to attach to a network interface.
pub const PROGRAM: &str = "crosspoint";

/// The same program for an MTU whose frames take more than one buffer. Its sockets must be bound with `XDP_USE_SG`: with
/// other sockets the kernel drops frames of several buffers.
pub const PROGRAM_FRAGS: &str = "crosspoint_frags";

/// The map from receive queue index to AF_XDP socket (`BPF_MAP_TYPE_XSKMAP`).
pub const SOCKETS: &str = "xsks";

/// Number of queues that [`SOCKETS`] has room for. Frames of further queues go to the kernel.
pub const MAX_QUEUES: u32 = 256;
