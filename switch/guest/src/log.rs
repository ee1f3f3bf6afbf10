//! The dirty log of a live migration: a bitmap, shared with the back end, of the guest pages that the back end has
//! written.

use crate::memory::{GuestMemory, MemoryError, Region, RegionLayout, Window};
use std::sync::atomic::Ordering::AcqRel;

/// Bytes of guest memory per bit (vhost-user, "Migration").
pub const PAGE_LEN: u64 = 4096;
const WORD_LEN: usize = 8;
const WORD_PAGES: u64 = 64;

/// A dirty log. Clones are handles on the same bitmap.
#[derive(Clone, Debug)]
pub struct DirtyLog {
    bitmap: Window,
}

impl DirtyLog {
    /// Creates a log for guest physical addresses below `end`, with all pages clean.
    ///
    /// # Errors
    /// System errors.
    pub fn new(end: u64) -> Result<Self, MemoryError> {
        let words = end.div_ceil(PAGE_LEN).div_ceil(WORD_PAGES).max(1);
        let len = usize::try_from(words).map_err(|_| MemoryError::BadLayout)? * WORD_LEN;
        let layout = RegionLayout {
            guest_base: 0,
            len,
            huge_pages: false,
        };
        let bitmap = GuestMemory::new(&[layout])?.window(0, len)?;
        Ok(Self { bitmap })
    }

    /// Size of the bitmap in bytes; the file is rounded up to a whole page.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a log is never empty")]
    pub fn len(&self) -> usize {
        self.bitmap.len()
    }

    /// The file of the bitmap, and its address in this process. To truncate the file, use [`GuestMemory::truncate`] of
    /// [`DirtyLog::memory`].
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.bitmap.memory().regions()[0]
    }

    /// The bitmap as memory, for tests that write it themselves.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        self.bitmap.memory()
    }

    /// Whether the page at guest physical address `address` is dirty. Pages beyond the log are clean.
    #[must_use]
    pub fn is_dirty(&self, address: u64) -> bool {
        let page = address / PAGE_LEN;
        let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
        byte < self.bitmap.len()
            && self.bitmap.view().read_array::<1>(byte)[0] >> (page % 8) & 1 != 0
    }

    /// Takes the guest physical addresses of all dirty pages, lowest first, and marks them clean. A page that the back
    /// end writes concurrently is in this result or in the next one.
    #[must_use]
    pub fn take(&self) -> Vec<u64> {
        let mut dirty = Vec::new();
        for word in 0..self.bitmap.len() / WORD_LEN {
            // Little-endian, so bit 8 * byte + bit of the word is bit `bit` of that byte.
            let mut bits = self.bitmap.view().swap_u64(WORD_LEN * word, 0, AcqRel);
            while bits != 0 {
                let page = word as u64 * WORD_PAGES + u64::from(bits.trailing_zeros());
                dirty.push(page * PAGE_LEN);
                bits &= bits - 1;
            }
        }
        dirty
    }
}
