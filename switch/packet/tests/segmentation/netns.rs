//! Tap devices in a network namespace of the thread.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Makes a tap device, and returns its other end. `flags`: what of `IFF_*` it has besides having no header of its own.
pub fn tap(name: &str, flags: libc::c_int) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("the tun driver");
    // `struct ifreq`: the name, flags, and the rest of a union of 24 bytes.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, 40 bytes, which is what `request` has.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{name}: {}", std::io::Error::last_os_error());
    file
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.expect("iproute2").success(), "ip {arguments}");
}

/// Moves the thread to its own network namespace.
pub fn namespace() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes a network namespace: run it as root"
    );
    // SAFETY: no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
}
