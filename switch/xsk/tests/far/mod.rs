//! Receiver at the other end of a wire: frames, with the kernel's metadata.

use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// struct virtio_net_hdr.
pub const HEADER: usize = 10;

/// A packet socket that receives the frames of an interface, with their virtio-net headers.
pub struct Far(OwnedFd);

impl Far {
    /// Receives the frames that arrive at interface number `index`.
    pub fn new(index: u32) -> Far {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system call.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all.into()) };
        assert!(raw >= 0, "{}", Error::last_os_error());
        // SAFETY: just made, ours alone.
        let far = Far(unsafe { OwnedFd::from_raw_fd(raw) });
        far.set(libc::SOL_PACKET, 15, &1);
        far.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1);
        far.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64 << 20));
        let time = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        far.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time);
        // SAFETY: plain integers: all zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: an address of the length given.
        let rc = unsafe { libc::bind(raw, (&raw const address).cast(), len) };
        assert_eq!(rc, 0, "{}", Error::last_os_error());
        far
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) {
        let (raw, len) = (self.0.as_raw_fd(), size_of::<T>() as u32);
        // SAFETY: a plain kernel structure of the size given.
        let rc = unsafe { libc::setsockopt(raw, level, option, (&raw const *value).cast(), len) };
        assert_eq!(rc, 0, "option {option}: {}", Error::last_os_error());
    }

    /// Returns the next frame and the kernel's header of it; `None` if none comes.
    pub fn take(&self) -> Option<([u8; HEADER], Vec<u8>)> {
        let (mut bytes, mut control) = (vec![0u8; 70_000], [0u64; 32]);
        let mut iov = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: plain integers and pointers: all zero is "none".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&mut iov, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message names buffers of ours, of the lengths given.
        let n = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, 0) };
        bytes.truncate(usize::try_from(n).ok()?);
        let header = bytes[..HEADER].try_into().expect("10 bytes");
        let mut bytes = bytes.split_off(HEADER);
        // SAFETY: the message as the kernel has filled it.
        let first = unsafe { libc::CMSG_FIRSTHDR(&message) };
        assert!(!first.is_null(), "no auxiliary data");
        // SAFETY: there is one, aligned, and it is what was asked for.
        let aux = unsafe {
            libc::CMSG_DATA(first)
                .cast::<libc::tpacket_auxdata>()
                .read()
        };
        // The kernel has removed the tag.
        if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
            let ([a, b], [high, low]) = (
                aux.tp_vlan_tpid.to_be_bytes(),
                aux.tp_vlan_tci.to_be_bytes(),
            );
            bytes.splice(12..12, [a, b, high, low]);
        }
        Some((header, bytes))
    }
}
