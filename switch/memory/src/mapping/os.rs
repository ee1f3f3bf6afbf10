//! System calls for mapping files.

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Identity, MappingError};
use crate::descriptor::Kind;

mod guard;

/// File systems whose pages the host's kernel has or makes, as named in /proc/self/mountinfo; tmpfs and hugetlbfs are
/// recognised without this list. On other file systems (FUSE, NFS, 9p, overlays of them and similar) a server decides
/// when a page arrives, if ever.
const LOCAL_FILE_SYSTEMS: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "ramfs"];

/// Checks that a front end's file can be examined, mapped and closed without waiting for another process. Returns the
/// reason if it cannot. What each check may wait for:
///
/// - The name of the link in /proc: nothing (see [`Kind`]).
/// - F_GET_SEALS: nothing. Only files of tmpfs (memfd too) and hugetlbfs have seals, in any mount namespace; for all
///   others the kernel returns an error without asking their file system.
/// - statx with AT_STATX_DONT_SYNC: nothing; FUSE and NFS answer from their caches. fstat and fstatfs ask their
///   servers, and so does closing a FUSE file: such a file is closed on a thread that may wait.
/// - /proc/self/mountinfo: nothing.
///
/// After these checks, fstat and mmap of the file wait at most for local memory and disks.
pub fn check_file(file: impl AsFd) -> Result<(), String> {
    let file = file.as_fd();
    let kind = Kind::of(file);
    if kind != Kind::Path {
        return Err(format!(
            "memory must be a file, and this is {kind}: use memfd, hugetlbfs or tmpfs"
        ));
    }
    if rustix::fs::fcntl_get_seals(file).is_ok() {
        return Ok(());
    }
    let unknown = |why: &dyn std::fmt::Display| {
        format!(
            "the kernel does not report the file system of the file ({why}): use memfd, hugetlbfs or tmpfs"
        )
    };
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
    let stat = statx(file, "", flags, wanted).map_err(|e| unknown(&e))?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Err("memory must be a regular file, and this is a folder or a device: use memfd, hugetlbfs or tmpfs".to_owned());
    }
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(unknown(&"Linux before 5.8"));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| unknown(&e))?;
    match file_system(&mounts, stat.stx_mnt_id) {
        Some(name) if LOCAL_FILE_SYSTEMS.contains(&name) => Ok(()),
        Some(name) => Err(format!(
            "the file is on a file system ({name}) that could block the switch: use memfd, hugetlbfs or tmpfs"
        )),
        None => Err(unknown(&"it is not mounted here")),
    }
}

/// File system type of mount `id` in proc_pid_mountinfo(5).
fn file_system(mounts: &str, id: u64) -> Option<&str> {
    let is_it = |line: &&str| line.split(' ').next().and_then(|word| word.parse().ok()) == Some(id);
    let (_, rest) = mounts.lines().find(is_it)?.split_once(" - ")?;
    rest.split(' ').next()
}

/// Returns the identity of `size` bytes from `offset` on. Refuses files whose pages may never arrive.
pub(crate) fn identify(file: &File, offset: u64, size: u64) -> Result<Identity, MappingError> {
    check_file(file).map_err(MappingError::Refused)?;
    let stat = rustix::fs::fstat(file).map_err(|e| MappingError::Refused(e.to_string()))?;
    Ok(Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        offset,
        size,
    })
}

/// Length of a file and its block size, in bytes.
pub(super) fn len_and_block(file: &File) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file.as_fd())?;
    let block = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
    Ok((u64::try_from(stat.st_size).unwrap_or(0), block))
}

/// # Safety
/// The `len` bytes from `start`, which `map_shared` returned, must not be used any more.
pub(super) unsafe fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's contract.
    let _ = unsafe { munmap(start.as_ptr().cast(), len) };
}

/// Must be called before the mapping that begins at `start` is unmapped, when nothing accesses it any more.
pub(super) fn release(start: NonNull<u8>) {
    guard::release(start.as_ptr() as usize);
}

/// Maps `len` bytes of `file`, guarded. `offset` must be a multiple of the file's block size.
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
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_mount_is_found_by_its_number() {
        let mounts = "21 26 0:19 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                      26 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
                      210 26 0:44 / /a\\040-\\040ext4 rw - fuse.mine x rw\n";
        assert_eq!(file_system(mounts, 26), Some("ext4"));
        assert_eq!(file_system(mounts, 210), Some("fuse.mine"));
        assert_eq!(file_system(mounts, 2), None);
    }
}
