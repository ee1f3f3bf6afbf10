//! Replacement for `os.rs` under miri, which has no shared file mappings and no fstat: zeroed memory of the file's
//! length. Writes to the file are not visible in it, so only tests that play both sides through this memory can run.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use super::{Identity, MappingError};

pub fn check_file(_: impl AsFd) -> Result<(), String> {
    Ok(())
}

pub(super) fn len_and_block(file: &File) -> std::io::Result<(u64, u64)> {
    Ok((file.metadata()?.len(), 4096))
}

pub(crate) fn identify(file: &File, offset: u64, size: u64) -> Result<Identity, MappingError> {
    let stat = file
        .metadata()
        .map_err(|e| MappingError::Refused(e.to_string()))?;
    let (device, inode) = (stat.dev(), stat.ino());
    Ok(Identity {
        device,
        inode,
        offset,
        size,
    })
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, 4096).expect("a region fits the address space")
}

pub(super) fn map_shared(_: &File, _: u64, len: usize) -> Result<NonNull<u8>, &'static str> {
    // SAFETY: `len` is not zero, since a region is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout(len)) }).ok_or("no memory")
}

/// Nothing to release: no memory is lost under miri.
pub(super) fn release(_: NonNull<u8>) {}

/// # Safety
/// As for the function in `os.rs`.
pub(super) unsafe fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: `map_shared` allocated it with this layout, and the caller's contract.
    unsafe { dealloc(start.as_ptr(), layout(len)) };
}
