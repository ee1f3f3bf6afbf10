//! The handler of SIGBUS: it puts other memory in the place of a mapping whose file was cut short.
//!
//! What it puts there is a shared mapping of a file of our own. The whole mapping shows bytes beyond that file's end, so
//! that each access faults again; and of those accesses, each gets a *window*, [`WINDOW_BYTES`] of the file, where it
//! happened. There are [`WINDOWS_MAX`] windows for the process. The one that is taken is the oldest: it is taken out of
//! where it was, and zeroed.
//!
//! - *It works however memory is accounted.* The kernel accounts private writable mappings by their whole length
//!   (`vm.overcommit_memory = 2`, where MAP_NORESERVE means nothing; RLIMIT_DATA), and those of a guest's size can be
//!   refused. Shared mappings it does not account, and pages of a memfd it accounts when they are allocated (mm/mmap.c,
//!   mm/shmem.c): here all of them, when the first region is mapped. So nothing is allocated when memory is lost.
//! - *Memory is bounded*: [`POOL_BYTES`] for the process, whatever guests take away, and two mappings of the kernel
//!   (`vm.max_map_count`) for each window beside one for each lost region.
//! - *No byte goes from one guest to another*: a window is at one place at a time. It is gone from there, on all cores,
//!   before it is zeroed, and zeroed before it is at the next.
//! - *It goes on*: an instruction touches four windows at the most, and there are four for each of 64 workers, so that
//!   others do not take away what a worker has before its instruction is done.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::super::{LOST, SLOTS, Slot};

/// A multiple of a page.
pub(super) const WINDOW_BYTES: usize = 16 << 10;
pub(super) const WINDOWS_MAX: usize = 256;
/// All memory that stands in the place of lost mappings.
pub(super) const POOL_BYTES: usize = WINDOWS_MAX * WINDOW_BYTES;

/// Where a window is. Written under [`TURN`].
struct Window {
    /// Address; 0 where it is nowhere.
    at: AtomicUsize,
    len: AtomicUsize,
    /// Where the mapping begins that it is in.
    base: AtomicUsize,
}

static WINDOWS: [Window; WINDOWS_MAX] = [const {
    Window {
        at: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
    }
}; WINDOWS_MAX];
/// The window that is taken next.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Held while windows change, by handlers and by the thread that unmaps: for some microseconds; once, while they are
/// allocated, before there is a handler.
static TURN: AtomicBool = AtomicBool::new(false);
/// The file, and a mapping of all of it. Both stay for ever.
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
    // It is open for as long as the process lives.
    std::mem::forget(file);
    install_handler();
    Ok(())
}

/// A file of [`POOL_BYTES`], all of them allocated, and a mapping of it.
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

/// With `vm.memfd_noexec = 2` only files that say so are made; before Linux 6.3 none can.
fn memfd() -> rustix::io::Result<OwnedFd> {
    let name = "crosspoint-lost-memory";
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC),
        made => made,
    }
}

fn install_handler() {
    // SAFETY: a zeroed sigaction is a valid one (no flags, empty mask, default action), and the
    // handler set below only does what is safe in a signal handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Async-signal-safe: loads, stores and system calls.
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
    // Not ours to make good: the access is made again, and ends the process as it would have.
    // SAFETY: restores the default action; a zeroed sigaction is that.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &default, std::ptr::null_mut());
    }
}

/// Puts memory at an address that was accessed, if it is of one of our mappings.
fn stand_in(at: usize) -> bool {
    let mut slots = SLOTS.iter().map(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        (slot, slot.start.load(Ordering::Relaxed) as usize, len)
    });
    let ours = slots.find(|(_, start, len)| at.wrapping_sub(*start) < *len);
    let Some((slot, start, len)) = ours else {
        return false;
    };
    // The thread that has just accessed it keeps it mapped.
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

/// Has all of a mapping fault, what is left of its file too: what it showed is gone for the guest as well.
fn lose(slot: &Slot, start: usize, len: usize) -> bool {
    // SAFETY: exactly the range of a mapping of ours, which the thread that has just accessed it keeps mapped.
    let lost = unsafe { show(start, len, POOL_BYTES) };
    if lost {
        slot.lost.store(true, Ordering::Release);
        LOST.fetch_add(1, Ordering::Release);
    }
    lost
}

/// Puts the next window at `at`, in the lost mapping that begins at `base`. To be called in one's turn.
fn open_window(at: usize, len: usize, base: usize) -> bool {
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % WINDOWS_MAX;
    let Some(window) = WINDOWS.get(number) else {
        return false;
    };
    if !window.take_out() {
        return false;
    }
    let pool = POOL_AT.load(Ordering::Acquire);
    // SAFETY: the window's bytes of the pool, of which `number` is below the number of windows; the window is nowhere
    // else now, and other windows are not touched.
    unsafe {
        pool.wrapping_add(number * WINDOW_BYTES)
            .write_bytes(0, WINDOW_BYTES);
    }
    // SAFETY: part of a mapping of ours that is lost, and that the thread whose access is handled keeps mapped.
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

    /// Has the place where it is fault again. To be called in one's turn.
    fn take_out(&self) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        if at == 0 {
            return true;
        }
        // As the rest of its mapping, so that the kernel makes one of them again.
        let offset = POOL_BYTES + (at - self.base.load(Ordering::Relaxed));
        // SAFETY: it is in a mapping that is there, since `release` takes it out before that is unmapped.
        let out = unsafe { show(at, self.len.load(Ordering::Relaxed), offset) };
        if out {
            self.at.store(0, Ordering::Relaxed);
        }
        out
    }
}

/// Maps `len` bytes of the pool's file from `offset` on at `at`, in the place of what is there.
///
/// # Safety
/// All of that is of mappings of guests' memory.
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

/// The mapping that begins at `base` is about to be unmapped: its windows are free, and none is put there any more.
pub(super) fn release(base: usize) {
    let is_there = |window: &&Window| {
        window.at.load(Ordering::Relaxed) != 0 && window.base.load(Ordering::Relaxed) == base
    };
    // None comes any more, so that mappings which are not lost need no turn.
    if !WINDOWS.iter().any(|window| is_there(&window)) {
        return;
    }
    let _turn = Turn::take();
    for window in WINDOWS.iter().filter(is_there) {
        window.at.store(0, Ordering::Relaxed);
    }
}

/// The turn to change windows. A handler may wait for it: its holder accesses no guest's memory, so that no
/// handler interrupts it.
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
