//! A second mapping of a guest's memory in one contiguous address range, which the kernel requires for packet memory
//! (UMEM).

use std::fs::File;
use std::ptr::NonNull;

use crosspoint_frame::SegmentMut;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::{Identity, MappingError, span_in};

/// Smallest page size.
const PAGE: usize = 4096;

/// One region to map.
pub(crate) struct Part<'a> {
    /// Start of the region in the first mapping.
    pub(crate) host: *const u8,
    pub(crate) identity: Identity,
    pub(crate) file: &'a File,
}

/// The switch's own memory, followed by all of a guest's memory, in one address range. Only the kernel reads the
/// guest's part; it finds bytes by their offset in the range, which [`offset_of`](Self::offset_of) returns.
///
/// The kernel keeps the pages that it was given, whatever happens to the files afterwards.
#[derive(Debug)]
pub struct Contiguous {
    base: NonNull<u8>,
    len: usize,
    own: usize,
    /// Sorted by host address.
    runs: Box<[Run]>,
}

/// Location of one region in the range.
#[derive(Debug)]
struct Run {
    host: u64,
    size: u64,
    offset: u64,
}

// SAFETY: the mapping belongs to the value. The own part is written through `SegmentMut`s only, by the owner of the
// value, and the rest is not accessed.
unsafe impl Send for Contiguous {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for Contiguous {}

impl Contiguous {
    /// Maps `own` bytes (whole pages) and the parts after them.
    pub(crate) fn new(own: usize, parts: &[Part<'_>]) -> Result<Contiguous, MappingError> {
        let refused = |why: rustix::io::Errno| MappingError::Refused(why.to_string());
        let mut spans = Vec::with_capacity(parts.len());
        for part in parts {
            let span = span_in(part.file, part.identity.offset, part.identity.size)?;
            spans.push((part, span));
        }
        // Large pages first: this avoids gaps before them.
        spans.sort_by_key(|(_, span)| std::cmp::Reverse(span.block));
        let block = spans.first().map_or(PAGE, |(_, span)| span.block as usize);
        let room = |len: usize, block: u64| len.next_multiple_of(PAGE) + block as usize;
        let most: usize = spans.iter().map(|(_, s)| room(s.len, s.block)).sum();
        let mut run = reserve(own, most, block).map_err(refused)?;
        let mut runs = Vec::with_capacity(parts.len());
        let mut at = own;
        for (part, span) in &spans {
            let address = run.base.as_ptr() as usize;
            at = (address + at).next_multiple_of(span.block as usize) - address;
            run.show(at, part.file, span.start, span.len)
                .map_err(refused)?;
            runs.push(Run {
                host: part.host as u64,
                size: part.identity.size,
                offset: at as u64 + (part.identity.offset - span.start),
            });
            at += span.len.next_multiple_of(PAGE);
        }
        run.truncate(at);
        runs.sort_by_key(|run| run.host);
        run.runs = runs.into();
        Ok(run)
    }

    /// Address of the first byte; page-aligned.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Total size in bytes: whole pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size of the switch's own part; the guest's memory begins after it.
    #[inline(always)]
    pub fn own(&self) -> usize {
        self.own
    }

    /// `len` bytes of the own part from offset `at` on, if they are within it.
    #[inline(always)]
    pub fn own_mut(&self, at: usize, len: usize) -> Option<SegmentMut> {
        if at > self.own || len > self.own - at {
            return None;
        }
        // SAFETY: within the own part, which is mapped as long as the value lives: longer than a worker's poll
        // iteration, since the control thread drops the value after the worker has given it back. No reference points
        // into it.
        Some(unsafe { SegmentMut::new(self.base.as_ptr().wrapping_add(at), len as u32) })
    }

    /// Offset in the range of `len` bytes that begin at `host` in the guest's first mapping; `None` if they are not all
    /// within the guest's memory as it was when this value was made.
    #[inline(always)]
    pub fn offset_of(&self, host: *const u8, len: usize) -> Option<u64> {
        let host = host as u64;
        let behind = self.runs.partition_point(|run| run.host <= host);
        let run = self.runs.get(behind.wrapping_sub(1))?;
        let at = host - run.host;
        (at < run.size && run.size - at >= len as u64).then(|| run.offset + at)
    }

    /// Maps `len` bytes of `file`, from `start` on, at offset `at`.
    fn show(&mut self, at: usize, file: &File, start: u64, len: usize) -> rustix::io::Result<()> {
        if at > self.len || len > self.len - at {
            return Err(rustix::io::Errno::NOMEM);
        }
        // SAFETY: within the reserved range, which is ours and not yet known to other code.
        unsafe {
            mmap(
                self.base.as_ptr().wrapping_add(at).cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                file,
                start,
            )
        }?;
        Ok(())
    }

    /// Unmaps everything after `len` bytes.
    fn truncate(&mut self, len: usize) {
        if len < self.len {
            // SAFETY: the end of our own mapping, which no other code knows yet.
            let _ = unsafe { munmap(self.base.as_ptr().wrapping_add(len).cast(), self.len - len) };
            self.len = len;
        }
    }
}

/// Reserves `own` bytes and `more` bytes after them, which begin at a multiple of `block`.
fn reserve(own: usize, more: usize, block: usize) -> rustix::io::Result<Contiguous> {
    let (len, flags) = (own + more + block, MapFlags::PRIVATE | MapFlags::NORESERVE);
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }? as usize;
    let before = (start + own).next_multiple_of(block) - own - start;
    if before > 0 {
        // SAFETY: the beginning of the mapping just made, less than a block of it.
        let _ = unsafe { munmap(start as *mut _, before) };
    }
    let base = NonNull::new((start + before) as *mut u8).ok_or(rustix::io::Errno::NOMEM)?;
    Ok(Contiguous {
        base,
        len: len - before,
        own,
        runs: Box::default(),
    })
}

impl Drop for Contiguous {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no other reference to the value exists. Pages that the kernel still reads are
        // pinned.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use crate::memory::tests::memfd;
    use crate::{GuestMemory, RegionSpec};

    fn spec(guest_address: u64, size: u64, mmap_offset: u64) -> RegionSpec {
        RegionSpec {
            guest_address,
            size,
            user_address: guest_address,
            mmap_offset,
        }
    }

    /// For any regions, each byte of the guest is found at its offset, and nothing else is found.
    #[test]
    fn every_byte_of_a_guest_lies_where_it_is_said_to() {
        let (a, b) = (memfd(0x9000), memfd(0x3234));
        let specs = [
            spec(0x10_0000, 0x2100, 0x1234),
            spec(0, 0x1000, 0x5000),
            spec(0x20_0000, 0x1234, 0x2000),
        ];
        let files = [&a, &a, &b];
        let table = || -> Vec<(RegionSpec, std::fs::File)> {
            let file = |file: &&std::fs::File| file.try_clone().unwrap();
            specs.iter().copied().zip(files.iter().map(file)).collect()
        };
        let memory = GuestMemory::map(table()).unwrap();
        let run = memory.contiguous(0x4000, &table()).unwrap();
        assert!((run.base() as usize).is_multiple_of(4096) && run.len().is_multiple_of(4096));
        for (spec, file) in specs.iter().zip(files) {
            for at in [0, 1, 0xfff, spec.size - 1] {
                let host = memory.translate(spec.guest_address + at, 1).unwrap();
                let offset = run.offset_of(host, 1).unwrap() as usize;
                assert!(offset >= run.own() && offset < run.len());
                let byte = [((spec.guest_address >> 16) + at) as u8];
                file.write_at(&byte, spec.mmap_offset + at).unwrap();
                // SAFETY: within the run, as asserted.
                assert_eq!(unsafe { run.base().add(offset).read_volatile() }, byte[0]);
            }
            let host = memory.translate(spec.guest_address, 1).unwrap();
            let size = spec.size as usize;
            assert!(run.offset_of(host, size).is_some());
            assert_eq!(run.offset_of(host, size + 1), None);
        }
        assert_eq!(run.offset_of(std::ptr::null(), 1), None);
        assert_eq!(run.offset_of(run.base(), 1), None);
        assert!(run.own_mut(0x3fff, 1).unwrap().write_array(&[1]));
        assert!(run.own_mut(0x4000, 1).is_none() && run.own_mut(usize::MAX, 2).is_none());

        let mut known = table();
        known.pop();
        assert!(memory.contiguous(0x4000, &known).is_err(), "one is missing");
    }
}
