//! The SIGBUS handler: it replaces a mapping whose file was truncated with other memory.
//!
//! The replacement is a shared mapping of a file of the switch. The whole mapping shows bytes beyond that file's end,
//! so each access faults again. Each of these accesses then gets a *window*, [`WINDOW_BYTES`] of the file, at the
//! faulting address. The process has [`WINDOWS_MAX`] windows. The oldest one is reused: it is removed from its place
//! and zeroed.
//!
//! - *It works with any memory accounting.* The kernel accounts private writable mappings by their whole length
//!   (`vm.overcommit_memory = 2`, where MAP_NORESERVE has no effect; RLIMIT_DATA), so mappings of a guest's size can be
//!   refused. Shared mappings are not accounted, and the pages of a memfd are accounted when they are allocated
//!   (mm/mmap.c, mm/shmem.c): here all of them, when the first region is mapped. So no memory is allocated when memory
//!   is lost.
//! - *Memory is bounded*: [`POOL_BYTES`] for the process, however much guests truncate, and two kernel mappings
//!   (`vm.max_map_count`) for each window plus one for each lost region.
//! - *No byte goes from one guest to another*: a window is in one place at a time. It is unmapped there, on all cores,
//!   before it is zeroed, and zeroed before it is mapped at the next place.
//! - *It makes progress*: an instruction touches at most four windows, and there are four for each of 64 workers, so
//!   other workers do not take a worker's windows before its instruction is done.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::super::{LOST, SLOTS, Slot};

/// Size of a window; a multiple of the page size.
pub(super) const WINDOW_BYTES: usize = 16 << 10;
pub(super) const WINDOWS_MAX: usize = 256;
/// Total memory that replaces lost mappings.
pub(super) const POOL_BYTES: usize = WINDOWS_MAX * WINDOW_BYTES;

/// Location of a window. Written under [`TURN`].
struct Window {
    /// Address; 0 if it is not mapped.
    at: AtomicUsize,
    len: AtomicUsize,
    /// Start of the mapping that contains it.
    base: AtomicUsize,
}

static WINDOWS: [Window; WINDOWS_MAX] = [const {
    Window {
        at: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
    }
}; WINDOWS_MAX];
/// The next window to use.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Held by handlers and by the unmapping thread while they change windows, for some microseconds; and once before the
/// handler is installed, while the windows are allocated.
static TURN: AtomicBool = AtomicBool::new(false);
/// The file and a mapping of all of it. Both are kept until the process ends.
static POOL: AtomicI32 = AtomicI32::new(-1);
static POOL_AT: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Allocates the windows and installs the handler, once for the process.
pub(super) fn install() -> rustix::io::Result<()> {
    let _turn = Turn::take();
    if POOL.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let (file, address) = pool()?;
    POOL_AT.store(address.as_ptr(), Ordering::Release);
    POOL.store(file.as_raw_fd(), Ordering::Release);
    // The file stays open as long as the process lives.
    std::mem::forget(file);
    install_handler();
    Ok(())
}

/// Creates a file of [`POOL_BYTES`] with all pages allocated, and maps it.
fn pool() -> rustix::io::Result<(File, NonNull<u8>)> {
    let file = File::from(memfd()?);
    fallocate(&file, FallocateFlags::empty(), 0, POOL_BYTES as u64)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            POOL_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }?;
    let address = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
    Ok((file, address))
}

/// With `vm.memfd_noexec = 2` only files with NOEXEC_SEAL can be created; Linux before 6.3 does not know the flag.
fn memfd() -> rustix::io::Result<OwnedFd> {
    let name = "crosspoint-lost-memory";
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC),
        made => made,
    }
}

fn install_handler() {
    // SAFETY: a zeroed sigaction is valid (no flags, empty mask, default action), and the handler set below does only
    // what is safe in a signal handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Signal handler. Async-signal-safe: loads, stores and system calls only.
extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let at = unsafe { (*info).si_addr() } as usize;
    if stand_in(at) {
        return;
    }
    // Not one of our mappings: the access is repeated and ends the process, as it would have without this handler.
    // SAFETY: a zeroed sigaction is valid: no flags, an empty mask, the default action. sigaction is async-signal-safe.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &default, std::ptr::null_mut());
    }
}

/// Maps memory at the faulting address if it belongs to one of our mappings.
fn stand_in(at: usize) -> bool {
    let mut slots = SLOTS.iter().map(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        (slot, slot.start.load(Ordering::Relaxed) as usize, len)
    });
    let ours = slots.find(|(_, start, len)| at.wrapping_sub(*start) < *len);
    let Some((slot, start, len)) = ours else {
        return false;
    };
    // The thread that has just accessed the mapping keeps it mapped.
    let _turn = Turn::take();
    if WINDOWS.iter().any(|window| window.has(at)) {
        // Another thread was first.
        return true;
    }
    if !slot.lost.load(Ordering::Acquire) && !lose(slot, start, len) {
        return false;
    }
    let from = at - (at - start) % WINDOW_BYTES;
    let window_len = WINDOW_BYTES.min(start + len - from);
    open_window(from, window_len, start)
}

/// Makes every access to a mapping fault, including the remaining part of its file: the guest has lost that memory too.
fn lose(slot: &Slot, start: usize, len: usize) -> bool {
    // SAFETY: exactly the range of one of our mappings, which the thread that has just accessed it keeps mapped.
    let lost = unsafe { show(start, len, POOL_BYTES) };
    if lost {
        slot.lost.store(true, Ordering::Release);
        LOST.fetch_add(1, Ordering::Release);
    }
    lost
}

/// Maps the next window at `at`, in the lost mapping that begins at `base`. The caller holds the [`Turn`].
fn open_window(at: usize, len: usize, base: usize) -> bool {
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % WINDOWS_MAX;
    let Some(window) = WINDOWS.get(number) else {
        return false;
    };
    if !window.take_out() {
        return false;
    }
    let pool = POOL_AT.load(Ordering::Acquire);
    // SAFETY: these are the window's bytes of the pool: `number` is below the number of windows. The window is mapped
    // nowhere else now, and other windows are not touched.
    unsafe {
        pool.wrapping_add(number * WINDOW_BYTES)
            .write_bytes(0, WINDOW_BYTES);
    }
    // SAFETY: part of one of our mappings that is lost, which the thread whose access is handled keeps mapped.
    let shown = unsafe { show(at, len, number * WINDOW_BYTES) };
    if shown {
        window.base.store(base, Ordering::Relaxed);
        window.len.store(len, Ordering::Relaxed);
        window.at.store(at, Ordering::Relaxed);
    }
    shown
}

impl Window {
    fn has(&self, at: usize) -> bool {
        let start = self.at.load(Ordering::Relaxed);
        start != 0 && at.wrapping_sub(start) < self.len.load(Ordering::Relaxed)
    }

    /// Makes the window's place fault again. The caller holds the [`Turn`].
    fn take_out(&self) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        if at == 0 {
            return true;
        }
        // The same file offset as the rest of its mapping has, so that the kernel merges them into one mapping.
        let offset = POOL_BYTES + (at - self.base.load(Ordering::Relaxed));
        // SAFETY: the window is in an existing mapping, since `release` removes the window before the mapping is
        // unmapped.
        let out = unsafe { show(at, self.len.load(Ordering::Relaxed), offset) };
        if out {
            self.at.store(0, Ordering::Relaxed);
        }
        out
    }
}

/// Maps `len` bytes of the pool's file from `offset` on at `at`, replacing what is mapped there.
///
/// # Safety
/// The whole range must belong to mappings of guest memory.
unsafe fn show(at: usize, len: usize, offset: usize) -> bool {
    // SAFETY: the caller's contract.
    let put = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            POOL.load(Ordering::Acquire),
            offset as libc::off_t,
        )
    };
    put != libc::MAP_FAILED
}

/// Frees the windows in the mapping that begins at `base`, which is about to be unmapped. No window is mapped there
/// afterwards.
pub(super) fn release(base: usize) {
    let is_there = |window: &&Window| {
        window.at.load(Ordering::Relaxed) != 0 && window.base.load(Ordering::Relaxed) == base
    };
    // No new window can appear, so mappings that are not lost need no lock.
    if !WINDOWS.iter().any(|window| is_there(&window)) {
        return;
    }
    let _turn = Turn::take();
    for window in WINDOWS.iter().filter(is_there) {
        window.at.store(0, Ordering::Relaxed);
    }
}

/// Lock for changing windows. A handler may wait for it: its holder accesses no guest memory, so no handler interrupts
/// the holder.
struct Turn;

impl Turn {
    fn take() -> Turn {
        while TURN
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            std::hint::spin_loop();
        }
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.store(false, Ordering::Release);
    }
}
