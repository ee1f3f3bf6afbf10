//! A minimal AF_XDP socket that a socket map accepts, and a raw socket for the other end of the wire.

use std::io::Error;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const FRAME_BYTES: usize = 2048;
const FRAMES: usize = 8;

/// An AF_XDP socket bound to one receive queue. Its fill ring stays empty: the socket counts the frames that it gets, and
/// drops them.
pub struct Xsk {
    // The socket is dropped before the memory that is registered with it (fields drop in this order).
    fd: OwnedFd,
    _umem: Umem,
}

/// Page-aligned memory for the frames.
struct Umem(*mut libc::c_void);

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `Umem::new` made, and nothing here refers to it any more.
        unsafe { libc::munmap(self.0, FRAMES * FRAME_BYTES) };
    }
}

impl Umem {
    fn new() -> Self {
        // SAFETY: a new anonymous mapping, at an address the kernel chooses: it replaces nothing.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FRAMES * FRAME_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED, "umem: {}", Error::last_os_error());
        Self(memory)
    }
}

impl Xsk {
    /// Opens a socket and binds it, in copy mode, to a receive queue of an interface.
    pub fn bind(ifindex: u32, queue: u32) -> Self {
        let fd = socket(libc::AF_XDP, libc::SOCK_RAW, 0);
        let umem = Umem::new();
        // SAFETY: all-zero is a valid value of this struct of integers.
        let mut registration: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
        registration.addr = umem.0 as u64;
        registration.len = (FRAMES * FRAME_BYTES) as u64;
        registration.chunk_size = FRAME_BYTES as u32;
        set(&fd, libc::XDP_UMEM_REG, &registration);
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
        ] {
            set(&fd, ring, &(FRAMES as u32));
        }
        // SAFETY: all-zero is a valid value of this struct of integers.
        let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
        address.sxdp_family = libc::AF_XDP as u16;
        address.sxdp_flags = libc::XDP_COPY;
        address.sxdp_ifindex = ifindex;
        address.sxdp_queue_id = queue;
        bind(&fd, &address);
        Self { fd, _umem: umem }
    }

    /// Returns how many frames the kernel has passed to this socket.
    pub fn frames(&self) -> u64 {
        // SAFETY: all-zero is a valid value of this struct of integers.
        let mut statistics: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::xdp_statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, the size of `statistics`, and the new length.
        let rc = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                (&raw mut statistics).cast(),
                &mut length,
            )
        };
        assert_eq!(rc, 0, "XDP_STATISTICS: {}", Error::last_os_error());
        // With an empty fill ring, each frame that is passed is dropped.
        statistics.rx_dropped
    }
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A raw socket on an interface, below the network stack and above XDP.
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens a non-blocking socket.
    pub fn open(ifindex: u32) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let fd = socket(libc::AF_PACKET, kind, i32::from(protocol));
        // SAFETY: all-zero is a valid value of this struct of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex as i32;
        bind(&fd, &address);
        Self(fd)
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the kernel reads `frame.len()` bytes from `frame`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", Error::last_os_error());
    }

    /// Reads all frames that have arrived, and returns how many are equal to `frame`.
    pub fn received(&self, frame: &[u8]) -> u64 {
        let mut buffer = [0; FRAME_BYTES];
        let mut equal = 0;
        loop {
            // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
            let length = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    FRAME_BYTES,
                    0,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                return equal;
            };
            equal += u64::from(&buffer[..length] == frame);
        }
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: socket takes integers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "socket({family}): {}", Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn set<T>(fd: &OwnedFd, option: i32, value: &T) {
    let length = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, the size of `value`.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    assert_eq!(
        rc,
        0,
        "setsockopt SOL_XDP {option}: {}",
        Error::last_os_error()
    );
}

fn bind<T>(fd: &OwnedFd, address: &T) {
    let length = size_of_val(address) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, the size of `address`.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), length) };
    assert_eq!(rc, 0, "bind: {}", Error::last_os_error());
}
