//! Guest memory: memfd-backed shared mappings at chosen guest physical addresses.
//!
//! All of the crate's `unsafe` is here. The device may write this memory at any time, so no function returns a
//! reference to it: ring fields are accessed with atomics, bytes are copied.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Size of a huge page in bytes: huge-page regions are rounded up to it.
pub const HUGE_PAGE_LEN: usize = 2 << 20;
const PAGE_LEN: usize = 4096;
/// Size of a cache line in bytes.
pub const CACHE_LINE_LEN: usize = 64;

/// Errors of guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A range that is not wholly inside one region.
    #[error("guest range {address:#x}+{len:#x} is not inside one region")]
    OutOfBounds {
        /// Guest physical address of the range.
        address: u64,
        /// Size in bytes.
        len: usize,
    },
    /// Two regions overlap, or one is empty or wraps around the address space.
    #[error("guest memory regions are empty, overlap or wrap")]
    BadLayout,
    /// The system refused the request.
    #[error("guest memory: {0}")]
    System(#[from] rustix::io::Errno),
}

/// Address and size of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Guest physical address of the first byte.
    pub guest_base: u64,
    /// Size in bytes; rounded up to whole pages.
    pub len: usize,
    /// Back it with 2 MiB pages.
    pub huge_pages: bool,
}

/// One mapped memfd.
#[derive(Debug)]
pub struct Region {
    guest_base: u64,
    len: usize,
    page_len: usize,
    host: NonNull<u8>,
    file: OwnedFd,
}

impl Region {
    fn new(layout: &RegionLayout, number: usize) -> Result<Self, MemoryError> {
        let page_len = if layout.huge_pages {
            HUGE_PAGE_LEN
        } else {
            PAGE_LEN
        };
        let len = layout
            .len
            .checked_next_multiple_of(page_len)
            .ok_or(MemoryError::BadLayout)?;
        if len == 0 || layout.guest_base.checked_add(len as u64).is_none() {
            return Err(MemoryError::BadLayout);
        }
        let mut flags = MemfdFlags::CLOEXEC;
        if layout.huge_pages {
            flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        }
        let file = memfd_create(format!("guest-memory-{number}"), flags)?;
        ftruncate(&file, len as u64)?;
        let host = map(&file, 0, len)?;
        Ok(Self {
            guest_base: layout.guest_base,
            len,
            page_len,
            host,
            file,
        })
    }

    /// `len` bytes from `offset` of a file from elsewhere, at guest address 0.
    fn of_file(file: OwnedFd, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let file_len = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let end = offset.checked_add(len).filter(|&end| end <= file_len);
        let len = usize::try_from(len)
            .ok()
            .filter(|&len| len > 0 && end.is_some());
        let len = len.ok_or(MemoryError::BadLayout)?;
        Ok(Self {
            guest_base: 0,
            len,
            page_len: PAGE_LEN,
            host: map(&file, offset, len)?,
            file,
        })
    }

    /// Guest physical address of the first byte.
    #[must_use]
    pub fn guest_base(&self) -> u64 {
        self.guest_base
    }

    /// Size in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its address in this process: vhost-user's "user address".
    #[must_use]
    pub fn user_address(&self) -> u64 {
        self.host.as_ptr() as u64
    }

    /// The memfd.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Guest physical address after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.guest_base + self.len as u64 // `new` has checked that it does not wrap
    }
}

/// Maps `len` bytes of `file`, shared.
fn map(file: &OwnedFd, offset: u64, len: usize) -> Result<NonNull<u8>, MemoryError> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: no address is requested, so no existing mapping can be replaced; the callers have checked that the file
    // has `len` bytes from `offset`.
    let host = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, file, offset)? };
    NonNull::new(host.cast()).ok_or(MemoryError::BadLayout)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `host` and `len` are the mapping that `new` made, and every `Window` on it keeps the region alive.
        let _ = unsafe { munmap(self.host.as_ptr().cast(), self.len) };
    }
}

/// All memory of a guest.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

// SAFETY: the pointers point to shared mappings that live as long as the regions. Access is by atomics, or by copies of
// bytes whose value does not matter if the device writes them at the same time.
unsafe impl Send for GuestMemory {}
// SAFETY: as for Send.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Creates and maps the regions, zeroed.
    ///
    /// # Errors
    /// Regions that overlap, wrap or are empty; system errors.
    pub fn new(layout: &[RegionLayout]) -> Result<Arc<Self>, MemoryError> {
        let regions = layout
            .iter()
            .enumerate()
            .map(|(i, region)| Region::new(region, i))
            .collect::<Result<Vec<_>, _>>()?;
        for (i, a) in regions.iter().enumerate() {
            if regions[..i]
                .iter()
                .any(|b| a.guest_base < b.end() && b.guest_base < a.end())
            {
                return Err(MemoryError::BadLayout);
            }
        }
        if regions.is_empty() {
            return Err(MemoryError::BadLayout);
        }
        Ok(Arc::new(Self { regions }))
    }

    /// Maps `len` bytes from `offset` of a file that came with a message, at address 0. If the file's owner truncates
    /// it afterwards, an access beyond its end kills this process.
    ///
    /// # Errors
    /// A file that is shorter; system errors.
    pub fn map_file(file: OwnedFd, offset: u64, len: u64) -> Result<Arc<Self>, MemoryError> {
        let regions = vec![Region::of_file(file, offset, len)?];
        Ok(Arc::new(Self { regions }))
    }

    /// The regions, in the given order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn locate(&self, address: u64, len: usize) -> Result<(&Region, NonNull<u8>), MemoryError> {
        for region in &self.regions {
            let Some(offset) = address.checked_sub(region.guest_base) else {
                continue;
            };
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            if offset <= region.len && len <= region.len - offset {
                // SAFETY: offset <= region.len, the length of the mapping at `host`: checked on the line above.
                return Ok((region, unsafe { region.host.add(offset) }));
            }
        }
        Err(MemoryError::OutOfBounds { address, len })
    }

    /// A window on `len` bytes at guest address `address`, for repeated access.
    ///
    /// # Errors
    /// A range that is not wholly inside one region.
    pub fn window(self: &Arc<Self>, address: u64, len: usize) -> Result<Window, MemoryError> {
        let (_, host) = self.locate(address, len)?;
        Ok(Window {
            memory: Arc::clone(self),
            host,
            len,
            guest_address: address,
        })
    }

    /// Copies `bytes` to guest address `address`.
    ///
    /// # Errors
    /// A range that is not wholly inside one region.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (_, host) = self.locate(address, bytes.len())?;
        // SAFETY: `locate` has checked that `bytes.len()` bytes from `host` are inside one mapping; `bytes` cannot
        // overlap it, because no reference into guest memory exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), host.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies from guest address `address` to `bytes`.
    ///
    /// # Errors
    /// A range that is not wholly inside one region.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (_, host) = self.locate(address, bytes.len())?;
        // SAFETY: as in `write`, with the directions exchanged.
        unsafe { ptr::copy_nonoverlapping(host.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// The user address (vhost-user) of guest address `address`.
    ///
    /// # Errors
    /// An address outside all regions.
    pub fn user_address(&self, address: u64) -> Result<u64, MemoryError> {
        self.locate(address, 1)
            .map(|(_, host)| host.as_ptr() as u64)
    }

    /// Fault injection: truncates the memfd of region number `region` to `len` bytes (rounded up to whole pages), as a
    /// hostile front end would, so that every other process that has mapped it gets SIGBUS beyond `len`.
    ///
    /// This guest keeps a private copy of the tail at the same address, so that its own rings and windows continue to
    /// work; other processes do not see what it writes there.
    ///
    /// # Errors
    /// A region number or length that does not exist; system errors.
    pub fn truncate(&self, region: usize, len: usize) -> Result<(), MemoryError> {
        let region = self.regions.get(region).ok_or(MemoryError::BadLayout)?;
        let len = len.next_multiple_of(region.page_len);
        let tail_len = region.len.checked_sub(len).ok_or(MemoryError::BadLayout)?;
        if tail_len > 0 {
            let mut tail = vec![0u8; tail_len];
            // SAFETY: len + tail_len = region.len, the length of the mapping, so both the copies and the new mapping
            // stay inside what this region owns. The new mapping replaces pages that stay readable and writable, and is
            // in place before the file shrinks, so our own accesses cannot fault.
            unsafe {
                let host = region.host.add(len).as_ptr();
                ptr::copy_nonoverlapping(host, tail.as_mut_ptr(), tail_len);
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap_anonymous(
                    host.cast(),
                    tail_len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    flags,
                )?;
                ptr::copy_nonoverlapping(tail.as_ptr(), host, tail_len);
            }
        }
        ftruncate(&region.file, len as u64)?;
        Ok(())
    }
}

/// A checked range of guest memory, kept alive. Access is through [`Window::view`].
#[derive(Clone, Debug)]
pub struct Window {
    memory: Arc<GuestMemory>,
    host: NonNull<u8>,
    len: usize,
    guest_address: u64,
}

// SAFETY: see GuestMemory, which the window keeps alive.
unsafe impl Send for Window {}
// SAFETY: see GuestMemory, which the window keeps alive.
unsafe impl Sync for Window {}

impl Window {
    /// Guest physical address of the first byte.
    #[must_use]
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }

    /// Size in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "no caller asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory that contains the window.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// A sub-window of `len` bytes from `offset`.
    ///
    /// # Errors
    /// A range that is not inside this window.
    pub fn window(&self, offset: usize, len: usize) -> Result<Self, MemoryError> {
        let address = self.guest_address.wrapping_add(offset as u64);
        if offset > self.len || len > self.len - offset {
            return Err(MemoryError::OutOfBounds { address, len });
        }
        self.memory.window(address, len)
    }

    /// Access to the bytes. A loop should take the view once, so that pointer and length stay in registers: through the
    /// window, they would be loaded again after each write to guest memory.
    #[inline(always)]
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            host: self.host,
            len: self.len,
            window: PhantomData,
        }
    }
}

/// Access to a [`Window`]. Offsets are bytes from its start; an offset out of range panics, as with a slice.
///
/// Ring indices and flags are atomic. Everything else is plain and ordered by them: a correct device does not write
/// what it has published, and for an incorrect one any value is acceptable.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    host: NonNull<u8>,
    len: usize,
    window: PhantomData<&'a Window>,
}

impl View<'_> {
    #[inline(always)]
    fn at(self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "beyond the guest window"
        );
        // SAFETY: offset + len <= self.len, checked on the line above; `GuestMemory::window` has checked that
        // self.len bytes from `host` are inside one mapping, and the borrowed window keeps that alive.
        unsafe { self.host.add(offset).as_ptr() }
    }

    /// Address of a field of `T` that both sides access atomically.
    #[inline(always)]
    fn atomic<T>(self, offset: usize) -> *mut T {
        let at = self.at(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned(), "misaligned ring field");
        at
    }

    /// Loads a ring index, flags or event field.
    #[inline(always)]
    #[must_use]
    pub fn load_u16(self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: `atomic` has checked bounds and alignment; both sides access these fields atomically.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.atomic(offset)) }.load(order))
    }

    /// Stores a ring index, flags or event field.
    #[inline(always)]
    pub fn store_u16(self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(self.atomic(offset)) }.store(value.to_le(), order);
    }

    /// Loads an event suppression area of a packed ring.
    #[inline(always)]
    #[must_use]
    pub fn load_u32(self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: as in `load_u16`.
        u32::from_le(unsafe { AtomicU32::from_ptr(self.atomic(offset)) }.load(order))
    }

    /// Stores an event suppression area of a packed ring.
    #[inline(always)]
    pub fn store_u32(self, offset: usize, value: u32, order: Ordering) {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(self.atomic(offset)) }.store(value.to_le(), order);
    }

    /// Replaces 64 bits of a dirty log by `value`, and returns what they were.
    #[must_use]
    pub fn swap_u64(self, offset: usize, value: u64, order: Ordering) -> u64 {
        // SAFETY: as in `load_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(self.atomic(offset)) }.swap(value.to_le(), order))
    }

    /// Copies `bytes` in.
    #[inline(always)]
    pub fn write(self, offset: usize, bytes: &[u8]) {
        let at = self.at(offset, bytes.len());
        // SAFETY: `at` has checked the bounds; `bytes` cannot overlap, because no reference into guest memory exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Copies `bytes.len()` bytes out.
    #[inline(always)]
    pub fn read(self, offset: usize, bytes: &mut [u8]) {
        let at = self.at(offset, bytes.len());
        // SAFETY: as in `write`, with the directions exchanged.
        unsafe { ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies `N` bytes in.
    #[inline(always)]
    pub fn write_array<const N: usize>(self, offset: usize, bytes: [u8; N]) {
        self.write(offset, &bytes);
    }

    /// Copies `N` bytes out.
    #[inline(always)]
    #[must_use]
    pub fn read_array<const N: usize>(self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Copies out `count` consecutive elements of `N` bytes each, with one bounds check.
    #[inline(always)]
    pub fn read_each<const N: usize>(
        self,
        offset: usize,
        count: usize,
        mut each: impl FnMut(usize, [u8; N]),
    ) {
        let at = self.at(offset, N * count).cast::<[u8; N]>();
        for i in 0..count {
            // SAFETY: i < count, and `at` has checked N * count bytes; an array of bytes needs no alignment.
            each(i, unsafe { at.add(i).read() });
        }
    }

    /// Sets `len` bytes to `value`.
    pub fn fill(self, offset: usize, len: usize, value: u8) {
        let at = self.at(offset, len);
        // SAFETY: `at` has checked the bounds.
        unsafe { ptr::write_bytes(at, value, len) };
    }

    /// Prefetches the cache line at `offset`.
    #[inline(always)]
    pub fn prefetch(self, offset: usize) {
        let at = self.at(offset, 1);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect that a program can see, and `at` is in bounds.
        unsafe {
            std::arch::x86_64::_mm_prefetch(at.cast::<i8>(), std::arch::x86_64::_MM_HINT_T0);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}
