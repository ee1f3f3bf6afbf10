//! The dirty log of a live migration: one bit per page of written guest memory (vhost-user protocol, "Migration").

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::MemoryError;
use crate::mapping::Mapping;

/// Page size of the log, in bytes (VHOST_LOG_PAGE).
pub const LOG_PAGE_LEN: u64 = 4096;

/// The bitmap that the front end shares: page `p` is bit `p % 8` of byte `p / 8`.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Mapping,
    len: u64,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset` on.
    pub fn map(file: &File, offset: u64, size: u64) -> Result<DirtyLog, MemoryError> {
        if size == 0 || offset.checked_add(size).is_none() {
            return Err(MemoryError::Size { index: 0 });
        }
        let bits = Mapping::new(file, offset, size).map_err(|error| MemoryError::of(0, error))?;
        Ok(DirtyLog { bits, len: size })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// First guest address that has no bit.
    pub fn end(&self) -> u64 {
        self.len.saturating_mul(8 * LOG_PAGE_LEN)
    }

    /// Whether its file was truncated.
    pub fn is_lost(&self) -> bool {
        self.bits.is_lost()
    }

    /// Marks `len` bytes from guest address `address` on. Pages beyond the log's end have no bit: a front end that sets
    /// a log must make it cover the memory.
    pub fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|n| address.checked_add(n)) else {
            return;
        };
        let pages = self.len.saturating_mul(8);
        let (first, last) = (address / LOG_PAGE_LEN, last / LOG_PAGE_LEN);
        for page in first..=last.min(pages.saturating_sub(1)) {
            let at = self.bits.address().wrapping_add((page / 8) as usize);
            // SAFETY: page < 8 * len, so the byte is one of the `len` bytes that stay mapped as long as `bits` lives.
            // Atomic, because the front end clears bits concurrently.
            let byte = unsafe { AtomicU8::from_ptr(at) };
            byte.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::memfd;
    use std::os::unix::fs::FileExt;

    /// Every page that a write touches has its bit set, no other page has, and nothing is written beyond the log's end.
    #[test]
    fn pages_that_were_written_have_their_bits_and_no_others() {
        let file = memfd(8);
        let log = DirtyLog::map(&file, 2, 4).unwrap();
        assert_eq!(log.end(), 32 * 4096);
        log.mark(0xfff, 2);
        log.mark(0x9000, 1);
        log.mark(0x8000, 0);
        log.mark(31 * 4096 + 5, 0x10_0000);
        log.mark(32 * 4096, 1);
        log.mark(u64::MAX, 1);
        log.mark(u64::MAX - 1, u64::MAX);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0, 0, 0b11, 0b10, 0, 0x80, 0, 0]);
    }
}
