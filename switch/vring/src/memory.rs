//! Guest memory: the regions that a front end shares, and translation of guest addresses.

use std::fs::File;
use std::os::fd::AsFd;

use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion};

/// One region as SET_MEM_TABLE describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionSpec {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// The front end's own address of the first byte: vring addresses are given so.
    pub user_address: u64,
    /// Where the region begins in the file, bytes.
    pub mmap_offset: u64,
}

/// Why a memory table cannot be used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region without bytes, or whose addresses overflow.
    #[error("memory region {index} is empty, or its address and size overflow 64 bits")]
    Size {
        /// Position in the table.
        index: usize,
    },
    /// Two regions share guest addresses.
    #[error("memory regions overlap at guest address {guest_address:#x}")]
    Overlap {
        /// Where the second one begins.
        guest_address: u64,
    },
    /// The file ends before the region does.
    #[error("memory region {index} reaches to byte {end} of a file of {len} bytes")]
    FileTooShort {
        /// Position in the table.
        index: usize,
        /// First byte after the region.
        end: u64,
        /// The file's length.
        len: u64,
    },
    /// The kernel refused.
    #[error("memory region {index} cannot be mapped: {why}")]
    Map {
        /// Position in the table.
        index: usize,
        /// What the kernel said.
        why: String,
    },
}

struct Region {
    guest_address: u64,
    user_address: u64,
    size: u64,
    host: *mut u8,
}

/// A guest's memory, mapped. Flat and immutable: a new table is a new value, and the old one is
/// unmapped (dropped, on the control thread) after every worker has passed a quiescent point.
pub struct GuestMemory {
    regions: Box<[Region]>,
    /// Keeps the mappings alive; never touched on the data path.
    _maps: Vec<MmapRegion<()>>,
}

// SAFETY: the pointers are into shared mappings that live as long as the value, and are only
// ever accessed through atomics or byte copies that allow for concurrent writers.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps every region, each from the file beside it.
    pub fn map(table: Vec<(RegionSpec, File)>) -> Result<GuestMemory, MemoryError> {
        check_layout(&table)?;
        let mut regions = Vec::with_capacity(table.len());
        let mut maps = Vec::with_capacity(table.len());
        for (index, (spec, file)) in table.into_iter().enumerate() {
            let (map, skip) = map_region(index, &spec, file)?;
            regions.push(Region {
                guest_address: spec.guest_address,
                user_address: spec.user_address,
                size: spec.size,
                host: map.as_ptr().wrapping_add(skip),
            });
            maps.push(map);
        }
        regions.sort_by_key(|region| region.guest_address);
        Ok(GuestMemory {
            regions: regions.into(),
            _maps: maps,
        })
    }

    /// How many regions there are.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Guest physical bytes in all.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// Host address of `len` bytes at guest physical `address`, if one region holds them all.
    #[inline(always)]
    pub fn translate(&self, address: u64, len: u32) -> Option<*mut u8> {
        for region in &self.regions {
            let offset = address.wrapping_sub(region.guest_address);
            if offset < region.size && region.size - offset >= u64::from(len) {
                return Some(region.host.wrapping_add(offset as usize));
            }
        }
        None
    }

    /// Host address of guest physical `address`, and how many bytes its region has from there.
    pub(crate) fn translate_some(&self, address: u64) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = address.wrapping_sub(region.guest_address);
            (offset < region.size).then(|| {
                (
                    region.host.wrapping_add(offset as usize),
                    region.size - offset,
                )
            })
        })
    }

    /// Host address of `len` bytes at the front end's own `address` (how SET_VRING_ADDR names
    /// rings), if one region holds them all.
    pub fn translate_user(&self, address: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = address.wrapping_sub(region.user_address);
            (offset < region.size && region.size - offset >= len)
                .then(|| region.host.wrapping_add(offset as usize))
        })
    }
}

fn check_layout(table: &[(RegionSpec, File)]) -> Result<(), MemoryError> {
    for (index, (spec, _)) in table.iter().enumerate() {
        let sums = [spec.guest_address, spec.user_address, spec.mmap_offset];
        if spec.size == 0 || sums.iter().any(|at| at.checked_add(spec.size).is_none()) {
            return Err(MemoryError::Size { index });
        }
    }
    let mut sorted: Vec<&RegionSpec> = table.iter().map(|(spec, _)| spec).collect();
    sorted.sort_by_key(|spec| spec.guest_address);
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && a.guest_address + a.size > b.guest_address
        {
            return Err(MemoryError::Overlap {
                guest_address: b.guest_address,
            });
        }
    }
    Ok(())
}

/// Maps a region from the last block boundary at or before its offset (huge-page files map only
/// whole pages); returns the mapping and where in it the region begins.
fn map_region(
    index: usize,
    spec: &RegionSpec,
    file: File,
) -> Result<(MmapRegion<()>, usize), MemoryError> {
    let fail = |why: String| MemoryError::Map { index, why };
    let stat = rustix::fs::fstat(file.as_fd()).map_err(|e| fail(e.to_string()))?;
    let end = spec.mmap_offset + spec.size;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    if end > len {
        return Err(MemoryError::FileTooShort { index, end, len });
    }
    let block = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
    let start = spec.mmap_offset - spec.mmap_offset % block;
    let size = usize::try_from(end - start).map_err(|e| fail(e.to_string()))?;
    let size = size
        .next_multiple_of(block as usize)
        .min((len - start) as usize);
    let map = MmapRegion::from_file(FileOffset::new(file, start), size)
        .map_err(|e| fail(e.to_string()))?;
    Ok((map, (spec.mmap_offset - start) as usize))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An anonymous file of `size` bytes.
    pub(crate) fn memfd(size: u64) -> File {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(size).unwrap();
        file
    }

    fn spec(guest_address: u64, size: u64) -> RegionSpec {
        RegionSpec {
            guest_address,
            size,
            user_address: guest_address + 0x7000_0000,
            mmap_offset: 0,
        }
    }

    #[test]
    fn translation_keeps_within_one_region() {
        let table = vec![
            (spec(0x10000, 0x4000), memfd(0x4000)),
            (spec(0, 0x1000), memfd(0x1000)),
        ];
        let memory = GuestMemory::map(table).unwrap();
        assert_eq!((memory.region_count(), memory.size_bytes()), (2, 0x5000));
        assert!(memory.translate(0, 0x1000).is_some());
        assert!(memory.translate(0xfff, 1).is_some());
        assert!(memory.translate(0xfff, 2).is_none());
        assert!(memory.translate(0x13fff, 1).is_some());
        assert!(memory.translate(0x14000, 1).is_none());
        assert!(memory.translate(0xffff, 2).is_none());
        assert!(memory.translate(u64::MAX, 2).is_none());
        assert!(memory.translate(u64::MAX - 1, u32::MAX).is_none());
        let by_user = memory.translate_user(0x7001_0010, 16);
        assert_eq!(by_user, memory.translate(0x10010, 16));
        assert!(memory.translate_user(0x7001_0010, 0x4000).is_none());
    }

    #[test]
    fn absurd_tables_are_refused() {
        let bad = |a: RegionSpec, b: RegionSpec| {
            GuestMemory::map(vec![(a, memfd(0x4000)), (b, memfd(0x4000))])
                .err()
                .unwrap()
                .to_string()
        };
        let fine = spec(0, 0x1000);
        assert!(bad(fine, spec(0xfff, 0x1000)).contains("overlap"));
        assert!(bad(fine, spec(0x8000, 0)).contains("region 1 is empty"));
        assert!(
            bad(
                fine,
                RegionSpec {
                    guest_address: u64::MAX,
                    ..spec(0, 2)
                }
            )
            .contains("overflow")
        );
        assert!(
            bad(
                fine,
                RegionSpec {
                    mmap_offset: u64::MAX,
                    ..spec(0x8000, 2)
                }
            )
            .contains("overflow")
        );
        assert!(bad(fine, spec(0x8000, 0x4001)).contains("of a file of 16384 bytes"));
    }

    #[test]
    fn a_region_may_begin_anywhere_in_its_file() {
        let file = memfd(0x3000);
        let at = RegionSpec {
            mmap_offset: 0x1234,
            ..spec(0, 0x1000)
        };
        let memory = GuestMemory::map(vec![(at, file.try_clone().unwrap())]).unwrap();
        use std::os::unix::fs::FileExt;
        file.write_at(b"!", 0x1234 + 0x10).unwrap();
        let ptr = memory.translate(0x10, 1).unwrap();
        // SAFETY: one byte of the mapping, translated just now.
        assert_eq!(unsafe { ptr.read_volatile() }, b'!');
    }
}
