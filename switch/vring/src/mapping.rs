//! Mappings of memory that a front end shares, and the guard that keeps the process alive when
//! it takes the memory away.
//!
//! Whoever holds a file can truncate it, and then the next access to a page beyond its end is
//! SIGBUS, which ends the process. The handler that is installed here puts anonymous memory in
//! the place of the whole mapping: the access goes on, reads zeroes, and harms nobody; the
//! mapping is marked, and the control thread quarantines the port.

// All that miri cannot run is in one of them, and the other stands in for it.
#[cfg_attr(not(miri), path = "mapping/os.rs")]
#[cfg_attr(miri, path = "mapping/miri.rs")]
mod os;

mod contiguous;

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

pub use self::contiguous::Contiguous;
pub(crate) use self::contiguous::Part;
pub use self::os::check_file;
pub(crate) use self::os::identify;
use self::os::{len_and_block, map_shared, unmap};

/// Most mappings at a time, of all guests together: 64 with 509 memory slots each, or 4096 with
/// eight regions. The kernel allows a process 65530 (vm.max_map_count).
pub const MAX_MAPPINGS: usize = 32768;

/// A slot of the table that the signal handler searches. Free when `len` is 0.
struct Slot {
    taken: AtomicBool,
    start: AtomicPtr<u8>,
    len: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAX_MAPPINGS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicPtr::new(std::ptr::null_mut()),
        len: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_MAPPINGS];
/// How many mappings have been lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many mappings have been lost, of all there were: when it changes, somebody's
/// [`GuestMemory::is_lost`](crate::GuestMemory::is_lost) has become true.
pub fn lost_mappings() -> u64 {
    LOST.load(Ordering::Acquire)
}

/// Which bytes of which file a mapping shows: two that are equal show the same memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    offset: u64,
    size: u64,
}

impl Identity {
    /// Where in the file the bytes begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

/// A shared, writable mapping of a file, guarded. The file is not kept open.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Where in it the wanted bytes begin.
    skip: usize,
    slot: usize,
    identity: Identity,
}

// SAFETY: the mapping belongs to the value, which gives out addresses only; whoever accesses
// them does so by atomics or byte copies that allow for concurrent writers.
unsafe impl Send for Mapping {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for Mapping {}

/// Why a file cannot be mapped; for people.
#[derive(Debug)]
pub(crate) enum MappingError {
    /// The file ends, at `len` bytes, before `end`.
    TooShort { end: u64, len: u64 },
    /// The kernel refused, or we do.
    Refused(String),
}

/// What of a file is mapped for some bytes of it: whole blocks, as huge-page files need it.
struct Span {
    start: u64,
    len: usize,
    block: u64,
}

/// The blocks with `size` bytes from `offset` on; `offset + size` must not overflow.
fn span_in(file: &File, offset: u64, size: u64) -> Result<Span, MappingError> {
    let refused = |why: &dyn std::fmt::Display| MappingError::Refused(why.to_string());
    let (len, block) = len_and_block(file).map_err(|e| refused(&e))?;
    let end = offset + size;
    if end > len {
        return Err(MappingError::TooShort { end, len });
    }
    let start = offset - offset % block;
    let whole = usize::try_from(end - start).map_err(|e| refused(&e))?;
    let whole = whole
        .next_multiple_of(block as usize)
        .min((len - start) as usize);
    Ok(Span {
        start,
        len: whole,
        block,
    })
}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset` on; from the last block boundary before it,
    /// since huge-page files map only whole pages. `offset + size` must not overflow.
    pub(crate) fn new(file: &File, offset: u64, size: u64) -> Result<Mapping, MappingError> {
        let refused = |why: &dyn std::fmt::Display| MappingError::Refused(why.to_string());
        let identity = identify(file, offset, size)?;
        let Span {
            start, len: whole, ..
        } = span_in(file, offset, size)?;
        let slot = reserve_slot().ok_or_else(|| {
            refused(&format!(
                "{MAX_MAPPINGS} memory regions are mapped already, all guests together"
            ))
        })?;
        let mapped = map_shared(file, start, whole);
        let Ok(address) = mapped else {
            release_slot(slot);
            return Err(refused(&mapped.unwrap_err()));
        };
        fill_slot(slot, address, whole);
        Ok(Mapping {
            start: address,
            len: whole,
            skip: (offset - start) as usize,
            slot,
            identity,
        })
    }

    /// Address of the first wanted byte. `size` bytes from there are mapped for as long as the
    /// value lives.
    pub(crate) fn address(&self) -> *mut u8 {
        self.start.as_ptr().wrapping_add(self.skip)
    }

    /// Which bytes it shows.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether its file was cut short under it.
    pub(crate) fn is_lost(&self) -> bool {
        SLOTS[self.slot].lost.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        release_slot(self.slot);
        // SAFETY: the mapping is ours; workers that had its addresses have passed a quiescent
        // point since they were taken from them (the owner of the value upholds it).
        unsafe { unmap(self.start, self.len) };
    }
}

fn reserve_slot() -> Option<usize> {
    // From where the last one was found: a table of many regions is not searched from the start
    // for each of them.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let from = NEXT.load(Ordering::Relaxed);
    let slot = (from..from + MAX_MAPPINGS)
        .map(|number| number % MAX_MAPPINGS)
        .find(|slot| {
            SLOTS[*slot]
                .taken
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })?;
    NEXT.store(slot + 1, Ordering::Relaxed);
    Some(slot)
}

fn fill_slot(slot: usize, start: NonNull<u8>, len: usize) {
    let slot = &SLOTS[slot];
    slot.lost.store(false, Ordering::Relaxed);
    slot.start.store(start.as_ptr(), Ordering::Relaxed);
    // Release: the handler that sees the length sees the rest.
    slot.len.store(len, Ordering::Release);
}

fn release_slot(slot: usize) {
    let slot = &SLOTS[slot];
    slot.len.store(0, Ordering::Release);
    slot.taken.store(false, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::memfd;

    /// A front end may truncate its file at any time: reads give zeroes from then on, writes go
    /// nowhere, the process lives, and the mapping says what happened to it.
    #[test]
    fn a_file_cut_short_under_its_mapping_kills_nobody() {
        let file = memfd(0x4000);
        let (mapping, other) = (
            Mapping::new(&file, 0x1000, 0x3000).unwrap(),
            Mapping::new(&memfd(0x1000), 0, 0x1000).unwrap(),
        );
        // SAFETY: the first byte of the mapping, and one of its last page.
        let (first, last) = unsafe {
            mapping.address().write_volatile(7);
            (mapping.address(), mapping.address().add(0x2fff))
        };
        let before = lost_mappings();
        file.set_len(0x1000).unwrap();
        assert!(!mapping.is_lost());
        // SAFETY: mapped still; the file under it is gone, which is what the guard is for.
        unsafe {
            assert_eq!(last.read_volatile(), 0);
            last.write_volatile(3);
            assert_eq!(last.read_volatile(), 3);
            assert_eq!(first.read_volatile(), 0);
        }
        assert!(mapping.is_lost() && !other.is_lost());
        assert!(lost_mappings() > before);
    }

    #[test]
    fn a_file_system_that_may_never_answer_is_refused() {
        for (path, what) in [
            ("/proc/self/comm", "(proc)"),
            ("/dev/zero", "a device"),
            ("/tmp", "a folder"),
        ] {
            let refused = identify(&File::open(path).unwrap(), 0, 4096).unwrap_err();
            let is_told = matches!(&refused, MappingError::Refused(why) if why.contains(what));
            assert!(is_told, "{path}: {refused:?}");
        }
        let pipe = File::from(rustix::pipe::pipe().unwrap().0);
        let refused = check_file(&pipe).unwrap_err();
        assert!(refused.contains("this is a pipe"), "{refused}");
    }

    #[test]
    fn the_same_bytes_of_the_same_file_are_the_same_memory() {
        let (file, other) = (memfd(0x4000), memfd(0x4000));
        let of = |file: &File, offset, size| identify(file, offset, size).unwrap();
        let again = file.try_clone().unwrap();
        assert_eq!(of(&file, 0, 0x1000), of(&again, 0, 0x1000));
        assert_ne!(of(&file, 0, 0x1000), of(&file, 0x1000, 0x1000));
        assert_ne!(of(&file, 0, 0x1000), of(&file, 0, 0x2000));
        assert_ne!(of(&file, 0, 0x1000), of(&other, 0, 0x1000));
    }
}
