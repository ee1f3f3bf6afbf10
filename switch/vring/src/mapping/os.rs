//! Mapping files: the kernel's part.

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Identity, MappingError};

mod guard;

/// File systems whose pages the host's kernel has or makes (linux/magic.h). On others (FUSE,
/// NFS, 9p and the like) whoever serves them decides when a page comes, if ever.
const LOCAL_FILE_SYSTEMS: [u64; 6] = [
    // tmpfs, and memfd.
    0x0102_1994,
    // hugetlbfs.
    0x9584_58f6,
    // ramfs.
    0x8584_58f6,
    // ext2, ext3, ext4.
    0xef53,
    // XFS.
    0x5846_5342,
    // Btrfs.
    0x9123_683e,
];

/// Which memory `size` bytes from `offset` on are. Refuses files whose pages may never come.
pub(crate) fn identify(file: &File, offset: u64, size: u64) -> Result<Identity, MappingError> {
    let refused = |e: rustix::io::Errno| MappingError::Refused(e.to_string());
    let stat = rustix::fs::fstat(file.as_fd()).map_err(refused)?;
    // A fault on such a file waits for a process or a server, and with it the
    // worker and every guest.
    if let Ok(fs) = rustix::fs::fstatfs(file.as_fd())
        && !LOCAL_FILE_SYSTEMS.contains(&(fs.f_type as u32).into())
    {
        return Err(MappingError::Refused(format!(
            "the file is on a file system (magic number {:#x}) that could hold up the switch for ever: use memfd, hugetlbfs or tmpfs",
            fs.f_type
        )));
    }
    Ok(Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        offset,
        size,
    })
}

/// Bytes of a file, and of its blocks.
pub(super) fn len_and_block(file: &File) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file.as_fd())?;
    let block = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
    Ok((u64::try_from(stat.st_size).unwrap_or(0), block))
}

/// # Safety
/// Nobody may use the `len` bytes from `start`, which `map_shared` gave, any more.
pub(super) unsafe fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's contract.
    let _ = unsafe { munmap(start.as_ptr().cast(), len) };
}

/// To be called before the mapping that begins at `start` is unmapped, when nothing accesses it any more.
pub(super) fn release(start: NonNull<u8>) {
    guard::release(start.as_ptr() as usize);
}

/// Maps `len` bytes of `file`, guarded. `offset` is a multiple of the file's block.
pub(super) fn map_shared(file: &File, offset: u64, len: usize) -> rustix::io::Result<NonNull<u8>> {
    guard::install()?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::NORESERVE,
            file.as_fd(),
            offset,
        )
    }?;
    NonNull::new(address.cast()).ok_or(rustix::io::Errno::NOMEM)
}
