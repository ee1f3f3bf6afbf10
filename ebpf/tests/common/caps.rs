//! Drops capabilities of this thread only.

use std::io::Error;

/// Capability numbers, from linux/capability.h.
pub const NET_ADMIN: u32 = 12;
pub const BPF: u32 = 39;

/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities, in two words.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all capabilities except these, permanently.
pub fn keep_only(kept: &[u32]) {
    // Zero is the calling thread.
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut words = [Words::default(); 2];
    for capability in kept {
        let word = &mut words[*capability as usize / 32];
        word.effective |= 1 << (capability % 32);
        word.permitted = word.effective;
    }
    // SAFETY: both structs have the kernel's layout, and version 3 makes it read two `Words`. The raw system call
    // changes the calling thread only.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) };
    assert_eq!(rc, 0, "capset: {}", Error::last_os_error());
}
