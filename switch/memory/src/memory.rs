//! Guest memory: the regions that a front end shares, and the translation of guest addresses.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use thiserror::Error;

use crate::DirtyLog;
use crate::mapping::{Contiguous, Mapping, MappingError, Part, identify};

/// One region as SET_MEM_TABLE describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the first byte in the front end's address space; vring addresses are given in it.
    pub user_address: u64,
    /// Offset of the region in the file, in bytes.
    pub mmap_offset: u64,
}

/// Why a memory table cannot be used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region is empty, or its addresses overflow.
    #[error("memory region {index} is empty, or its address and size overflow 64 bits")]
    Size {
        /// Position in the table.
        index: usize,
    },
    /// Two regions share guest addresses.
    #[error("memory regions overlap at guest address {guest_address:#x}")]
    Overlap {
        /// Start of the second region.
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
    /// More than the limit: the process has finite address space.
    #[error("guest memory of {size} bytes: at most {MAX_GUEST_BYTES} (4 TiB) are mapped")]
    TooMuch {
        /// Total size in bytes.
        size: u64,
    },
    /// The inflight region is too small or misaligned.
    #[error(
        "an inflight region of {len} bytes: it must have {needed}, for a ring size that is a power of two, at a multiple of 64"
    )]
    Inflight {
        /// Size of the region in bytes.
        len: u64,
        /// Bytes that its queues need.
        needed: u64,
    },
    /// The kernel refused the mapping.
    #[error("memory region {index} cannot be mapped: {why}")]
    Map {
        /// Position in the table.
        index: usize,
        /// The kernel's error.
        why: String,
    },
}

#[derive(Clone)]
struct Region {
    guest_address: u64,
    user_address: u64,
    size: u64,
    host: *mut u8,
    /// Keeps the mapping alive; several tables may share it. Not accessed on the data path.
    mapping: Arc<Mapping>,
}

/// A guest's mapped memory. Flat and immutable: a new memory table is a new value, which shares the mappings that both
/// tables have. The control thread drops the old value after every worker has passed a quiescent point.
#[derive(Clone)]
pub struct GuestMemory {
    /// Sorted by guest address.
    regions: Box<[Region]>,
    /// Indices of the regions, sorted by host address.
    by_host: Box<[u16]>,
    /// Unique per value: addresses that another value translated may be unmapped.
    generation: u64,
    log: Option<Arc<DirtyLog>>,
}

// SAFETY: the pointers point into shared mappings that live as long as the value, and are accessed only through atomics
// or byte copies that allow concurrent writers.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for GuestMemory {}

/// Maximum memory of one guest, in bytes. A sparse file costs nothing, and the process has 128 TiB of address space for
/// all guests.
pub const MAX_GUEST_BYTES: u64 = 4 << 40;
/// With more regions than this, binary search is used.
const FEW_REGIONS: usize = 8;

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl GuestMemory {
    /// Maps every region from the file beside it.
    pub fn map(table: Vec<(RegionSpec, File)>) -> Result<GuestMemory, MemoryError> {
        GuestMemory::map_after(None, table)
    }

    /// Maps every region. A region that `before` already maps (the same bytes of the same file) keeps its host address.
    pub fn map_after(
        before: Option<&GuestMemory>,
        table: Vec<(RegionSpec, File)>,
    ) -> Result<GuestMemory, MemoryError> {
        let specs: Vec<RegionSpec> = table.iter().map(|(spec, _)| *spec).collect();
        check_layout(&specs)?;
        let mut regions = Vec::with_capacity(table.len());
        for (index, (spec, file)) in table.iter().enumerate() {
            let known = before.and_then(|memory| memory.mapping_of(spec, file));
            let mapping = match known {
                Some(mapping) => mapping,
                None => Arc::new(map_region(index, spec, file)?),
            };
            regions.push(Region {
                guest_address: spec.guest_address,
                user_address: spec.user_address,
                size: spec.size,
                host: mapping.address(),
                mapping,
            });
        }
        Ok(GuestMemory::of(
            regions,
            before.and_then(|memory| memory.log.clone()),
        ))
    }

    fn of(mut regions: Vec<Region>, log: Option<Arc<DirtyLog>>) -> GuestMemory {
        regions.sort_by_key(|region| region.guest_address);
        let mut by_host: Vec<u16> = (0u16..).take(regions.len()).collect();
        by_host.sort_by_key(|index| regions[usize::from(*index)].host as u64);
        GuestMemory {
            regions: regions.into(),
            by_host: by_host.into(),
            generation: next_generation(),
            log,
        }
    }

    fn mapping_of(&self, spec: &RegionSpec, file: &File) -> Option<Arc<Mapping>> {
        let wanted = identify(file, spec.mmap_offset, spec.size).ok()?;
        let mut known = self.regions.iter().map(|region| &region.mapping);
        known
            .find(|mapping| mapping.identity() == wanted && !mapping.is_lost())
            .cloned()
    }

    /// Returns this memory with one more region.
    pub fn with_region(&self, spec: RegionSpec, file: &File) -> Result<GuestMemory, MemoryError> {
        let mut specs: Vec<RegionSpec> = self.regions().collect();
        specs.push(spec);
        check_layout(&specs)?;
        let mapping = Arc::new(map_region(specs.len() - 1, &spec, file)?);
        let mut regions = self.regions.to_vec();
        regions.push(Region {
            guest_address: spec.guest_address,
            user_address: spec.user_address,
            size: spec.size,
            host: mapping.address(),
            mapping,
        });
        Ok(GuestMemory::of(regions, self.log.clone()))
    }

    /// Returns this memory without the region with these addresses and this size; `None` if there is no such region.
    /// The file offset is not compared (vhost-user protocol, REM_MEM_REG).
    pub fn without_region(&self, spec: &RegionSpec) -> Option<GuestMemory> {
        let is_it = |region: &Region| {
            (region.guest_address, region.user_address, region.size)
                == (spec.guest_address, spec.user_address, spec.size)
        };
        let mut regions = self.regions.to_vec();
        let at = regions.iter().position(is_it)?;
        regions.remove(at);
        Some(GuestMemory::of(regions, self.log.clone()))
    }

    /// Maps this memory a second time, in one contiguous address range after `own` bytes of the switch's (whole pages).
    /// `files` are the files that the regions were mapped from.
    pub fn contiguous(
        &self,
        own: usize,
        files: &[(RegionSpec, File)],
    ) -> Result<Contiguous, MemoryError> {
        let mut parts = Vec::with_capacity(self.regions.len());
        for (index, region) in self.regions.iter().enumerate() {
            let identity = region.mapping.identity();
            let shows = |(spec, file): &&(RegionSpec, File)| {
                identify(file, spec.mmap_offset, spec.size).is_ok_and(|found| found == identity)
            };
            let (_, file) = files.iter().find(shows).ok_or_else(|| MemoryError::Map {
                index,
                why: "its file is not known any more".to_owned(),
            })?;
            parts.push(Part {
                host: region.host,
                identity,
                file,
            });
        }
        Contiguous::new(own, &parts).map_err(|error| MemoryError::of(0, error))
    }

    /// Whether both values have the same regions with the same mappings at the same addresses.
    pub fn is_same_place(&self, other: &GuestMemory) -> bool {
        let at = |region: &Region| (region.guest_address, region.size, region.host);
        self.regions.len() == other.regions.len()
            && self
                .regions
                .iter()
                .zip(&other.regions)
                .all(|(a, b)| at(a) == at(b) && Arc::ptr_eq(&a.mapping, &b.mapping))
    }

    /// Returns this memory with writes marked in `log`, or in no log.
    pub fn with_log(&self, log: Option<Arc<DirtyLog>>) -> GuestMemory {
        GuestMemory::of(self.regions.to_vec(), log)
    }

    /// The dirty log, if there is one.
    #[inline(always)]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// A shared reference to the dirty log.
    pub fn shared_log(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone()
    }

    /// A number that only this value and its clones have.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of regions.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The regions, sorted by guest address. File offsets are those that the front end gave, as far as they are known.
    pub fn regions(&self) -> impl Iterator<Item = RegionSpec> + '_ {
        self.regions.iter().map(|region| RegionSpec {
            guest_address: region.guest_address,
            size: region.size,
            user_address: region.user_address,
            mmap_offset: region.mapping.identity().offset(),
        })
    }

    /// Total guest physical bytes.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// First guest physical address after all regions.
    pub fn end(&self) -> u64 {
        self.regions
            .last()
            .map_or(0, |region| region.guest_address + region.size)
    }

    /// Whether the file of a region or of the log was truncated: the guest's memory has lost content.
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_lost())
            || self.log.as_ref().is_some_and(|log| log.is_lost())
    }

    /// Host address of `len` bytes at guest physical `address`, if one region contains them all.
    #[inline(always)]
    pub fn translate(&self, address: u64, len: u32) -> Option<*mut u8> {
        for region in self.likely(address) {
            let offset = address.wrapping_sub(region.guest_address);
            if offset < region.size && region.size - offset >= u64::from(len) {
                return Some(region.host.wrapping_add(offset as usize));
            }
        }
        None
    }

    /// The regions that may contain `address`: all regions if there are few.
    #[inline(always)]
    fn likely(&self, address: u64) -> &[Region] {
        if self.regions.len() <= FEW_REGIONS {
            return &self.regions;
        }
        self.search(address)
    }

    #[inline(never)]
    fn search(&self, address: u64) -> &[Region] {
        let behind = self
            .regions
            .partition_point(|region| region.guest_address <= address);
        self.regions
            .get(behind.wrapping_sub(1)..behind)
            .unwrap_or(&[])
    }

    /// Host address of guest physical `address`, and the number of bytes from there to the region's end.
    pub fn translate_some(&self, address: u64) -> Option<(*mut u8, u64)> {
        self.likely(address).iter().find_map(|region| {
            let offset = address.wrapping_sub(region.guest_address);
            (offset < region.size).then(|| {
                (
                    region.host.wrapping_add(offset as usize),
                    region.size - offset,
                )
            })
        })
    }

    /// Host address of `len` bytes at `address` in the front end's address space (used by SET_VRING_ADDR), if one
    /// region contains them all.
    pub fn translate_user(&self, address: u64, len: u64) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = address.wrapping_sub(region.user_address);
            (offset < region.size && region.size - offset >= len)
                .then(|| region.host.wrapping_add(offset as usize))
        })
    }

    /// Marks `len` bytes at host address `at` as written, if there is a log. Call it after the write: a page that is
    /// copied between mark and write would be stale.
    #[cold]
    pub fn mark(&self, at: *mut u8, len: usize) {
        let Some(log) = &self.log else { return };
        let host_of = |index: &u16| {
            let region = self.regions.get(usize::from(*index));
            region.map_or(0, |region| region.host as u64)
        };
        let behind = self
            .by_host
            .partition_point(|index| host_of(index) <= at as u64);
        let before = behind.checked_sub(1).and_then(|n| self.by_host.get(n));
        if let Some(region) = before.and_then(|index| self.regions.get(usize::from(*index))) {
            let offset = (at as u64).wrapping_sub(region.host as u64);
            if offset < region.size {
                log.mark(region.guest_address + offset, len as u64);
            }
        }
    }
}

/// The memory of a guest's rings and buffers, exchanged as a whole while workers use it.
pub struct MemoryCell {
    current: AtomicPtr<GuestMemory>,
}

impl MemoryCell {
    /// Creates a cell with `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Arc<MemoryCell> {
        Arc::new(MemoryCell {
            current: AtomicPtr::new(Arc::into_raw(memory).cast_mut()),
        })
    }

    /// The current memory. A worker keeps the reference at most until its next quiescent point.
    #[inline(always)]
    pub fn get(&self) -> &GuestMemory {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: from `Arc::into_raw`. The caller of `swap` keeps the old value until every worker has passed a
        // quiescent point, and `drop` has exclusive access.
        unsafe { &*current }
    }

    /// A shared reference to the current memory.
    pub fn shared(&self) -> Arc<GuestMemory> {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: as `get`; the count is increased before the second owner is made.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// Exchanges the memory. Workers may use the returned value until each has passed a quiescent point; keep it until
    /// then.
    #[must_use = "workers may be using the old memory: drop it after they have passed a quiescent point"]
    pub fn swap(&self, memory: Arc<GuestMemory>) -> Arc<GuestMemory> {
        let new = Arc::into_raw(memory).cast_mut();
        let old = self.current.swap(new, Ordering::AcqRel);
        // SAFETY: from `Arc::into_raw`; the swap has just taken it out, so it is ours.
        unsafe { Arc::from_raw(old) }
    }
}

impl Drop for MemoryCell {
    fn drop(&mut self) {
        // SAFETY: from `Arc::into_raw`; no other reference to the cell exists.
        drop(unsafe { Arc::from_raw(*self.current.get_mut()) });
    }
}

fn check_layout(specs: &[RegionSpec]) -> Result<(), MemoryError> {
    let size = specs
        .iter()
        .fold(0u64, |sum, spec| sum.saturating_add(spec.size));
    for (index, spec) in specs.iter().enumerate() {
        let sums = [spec.guest_address, spec.user_address, spec.mmap_offset];
        if spec.size == 0 || sums.iter().any(|at| at.checked_add(spec.size).is_none()) {
            return Err(MemoryError::Size { index });
        }
    }
    if size > MAX_GUEST_BYTES {
        return Err(MemoryError::TooMuch { size });
    }
    let mut sorted: Vec<&RegionSpec> = specs.iter().collect();
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

fn map_region(index: usize, spec: &RegionSpec, file: &File) -> Result<Mapping, MemoryError> {
    Mapping::new(file, spec.mmap_offset, spec.size).map_err(|error| MemoryError::of(index, error))
}

impl MemoryError {
    /// The error of region `index`.
    pub fn of(index: usize, error: MappingError) -> MemoryError {
        match error {
            MappingError::TooShort { end, len } => MemoryError::FileTooShort { index, end, len },
            MappingError::Refused(why) => MemoryError::Map { index, why },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An anonymous file of `size` bytes.
    pub fn memfd(size: u64) -> File {
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
