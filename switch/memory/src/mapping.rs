//! Mappings of memory that a front end shares, and the guard that keeps the process alive when the front end truncates
//! the file.
//!
//! Every process that holds the file can truncate it. The next access to a page beyond its end then raises SIGBUS,
//! which ends the process. The handler that is installed here replaces the whole mapping with other memory: the access
//! continues, reads zeroes (or what was recently written there), and affects no other guest. The mapping is marked, and
//! the control thread quarantines the port. For the method and its memory use, see `mapping/guard.rs`.

// `os.rs` has everything that miri cannot run; `miri.rs` replaces it under miri.
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
use self::os::{len_and_block, map_shared, release, unmap};

/// Maximum number of mappings at a time, all guests together: 64 guests with 509 memory slots each, or 4096 with eight
/// regions. The kernel allows a process 65530 (vm.max_map_count).
pub const MAX_MAPPINGS: usize = 32768;

/// A slot of the table that the signal handler searches. Free if `len` is 0.
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
/// Number of mappings lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Number of mappings ever lost. When it changes, [`GuestMemory::is_lost`](crate::GuestMemory::is_lost) has become true
/// for some guest memory.
pub fn lost_mappings() -> u64 {
    LOST.load(Ordering::Acquire)
}

/// File and byte range of a mapping. Two mappings with equal identities show the same memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    device: u64,
    inode: u64,
    offset: u64,
    size: u64,
}

impl Identity {
    /// Offset of the first byte in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// A shared, writable mapping of a file, guarded. The file is not kept open.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Offset of the wanted bytes in the mapping.
    skip: usize,
    slot: usize,
    identity: Identity,
}

// SAFETY: the mapping belongs to the value, which gives out addresses only; every accessor uses atomics or byte copies
// that allow concurrent writers.
unsafe impl Send for Mapping {}
// SAFETY: as above; the value itself is immutable.
unsafe impl Sync for Mapping {}

/// Reason why a file cannot be mapped, for error messages.
#[derive(Debug)]
pub enum MappingError {
    /// The file ends, at `len` bytes, before `end`.
    TooShort {
        /// First byte behind the mapping, counted in the file.
        end: u64,
        /// Length of the file, bytes.
        len: u64,
    },
    /// The kernel or the switch refused.
    Refused(String),
}

/// Range of a file to map: whole blocks, as files with huge pages require.
struct Span {
    start: u64,
    len: usize,
    block: u64,
}

/// The blocks that contain `size` bytes from `offset` on; `offset + size` must not overflow.
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
    /// Maps `size` bytes of `file` from `offset` on. The mapping begins at the block boundary before `offset`, since
    /// files with huge pages are mapped in whole pages only. `offset + size` must not overflow.
    pub fn new(file: &File, offset: u64, size: u64) -> Result<Mapping, MappingError> {
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

    /// Address of the first wanted byte. `size` bytes from there stay mapped as long as the value lives.
    pub fn address(&self) -> *mut u8 {
        self.start.as_ptr().wrapping_add(self.skip)
    }

    /// File and byte range of the mapping.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether its file was truncated while mapped.
    pub fn is_lost(&self) -> bool {
        SLOTS[self.slot].lost.load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        release_slot(self.slot);
        release(self.start);
        // SAFETY: the mapping is ours; workers that had its addresses have passed a quiescent point since they lost
        // them (the owner of the value upholds it).
        unsafe { unmap(self.start, self.len) };
    }
}

fn reserve_slot() -> Option<usize> {
    // Starts after the last slot found, so that a table of many regions is not searched from the start for each region.
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

    /// Lines of /proc/self/smaps that begin with `begin`, for mappings in this address range.
    #[cfg(not(miri))]
    fn smaps(range: std::ops::Range<usize>, begin: &str) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut is_in, mut found) = (false, Vec::new());
        for line in text.lines() {
            let start = line.split_once('-').map(|(start, _)| start);
            if let Some(Ok(start)) = start.map(|start| usize::from_str_radix(start, 16)) {
                is_in = range.contains(&start);
            }
            if is_in && line.starts_with(begin) {
                found.push(line.to_owned());
            }
        }
        found
    }

    /// Whatever the kernel's accounting (`vm.overcommit_memory` may be 2) and the guest's size: the replacement memory
    /// is not accounted, has few mappings and is small.
    #[cfg(not(miri))]
    #[test]
    fn lost_memory_is_not_accounted_and_takes_little() {
        const LEN: usize = 1 << 40;
        let mapping = lost(LEN as u64);
        for at in (0..LEN).step_by(LEN / 5000 / 4096 * 4096) {
            touch(&mapping, at, 1);
        }
        let start = mapping.address() as usize;
        let flags = smaps(start..start + LEN, "VmFlags:");
        assert!(flags.len() > 1 && flags.len() < 600, "{}", flags.len());
        for flags in &flags {
            let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
            assert!(has("sh") && !has("ac"), "{flags}");
        }
        let resident_kib = smaps(start..start + LEN, "Rss:")
            .iter()
            .fold(0, |sum, line| {
                let number = line.split_whitespace().nth(1).unwrap();
                sum + number.parse::<usize>().unwrap()
            });
        assert!((1..=4096).contains(&resident_kib), "{resident_kib} KiB");
    }

    /// The same when the kernel refuses memory: RLIMIT_DATA limits one process as `vm.overcommit_memory = 2` limits the
    /// host.
    #[cfg(not(miri))]
    #[test]
    fn memory_is_lost_without_harm_where_the_kernel_gives_no_more() {
        const CHILD: &str = "CROSSPOINT_TEST_NO_MORE_MEMORY";
        if std::env::var_os(CHILD).is_none() {
            let this = "mapping::tests::memory_is_lost_without_harm_where_the_kernel_gives_no_more";
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([this, "--exact"])
                .env(CHILD, "yes")
                .output()
                .unwrap();
            assert!(child.status.success(), "{child:?}");
            return;
        }
        let file = memfd(1 << 34);
        let mapping = Mapping::new(&file, 0, 1 << 34).unwrap();
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Data);
        limit.current = Some(256 << 20);
        rustix::process::setrlimit(rustix::process::Resource::Data, limit).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(touch(&mapping, 1 << 33, 5), 0);
        assert_eq!(touch(&mapping, 1 << 33, 5), 5);
        assert!(mapping.is_lost());
    }

    /// A front end may truncate its file at any time: from then on reads return zeroes, writes are discarded, the
    /// process lives, and the mapping reports the loss.
    #[test]
    fn a_file_cut_short_under_its_mapping_kills_no_process() {
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
        // SAFETY: still mapped; the file under it is truncated, which the guard handles.
        unsafe {
            assert_eq!(last.read_volatile(), 0);
            last.write_volatile(3);
            assert_eq!(last.read_volatile(), 3);
            assert_eq!(first.read_volatile(), 0);
        }
        assert!(mapping.is_lost() && !other.is_lost());
        assert!(lost_mappings() > before);
    }

    /// Reads and writes a byte.
    fn touch(mapping: &Mapping, at: usize, write: u8) -> u8 {
        // SAFETY: `at` is within the mapping, in every test.
        unsafe {
            let address = mapping.address().add(at);
            let read = address.read_volatile();
            address.write_volatile(write);
            read
        }
    }

    /// A mapping whose file is truncated.
    fn lost(len: u64) -> Mapping {
        let file = memfd(len);
        let mapping = Mapping::new(&file, 0, len).unwrap();
        file.set_len(0).unwrap();
        mapping
    }

    /// No guest's bytes appear in another guest's lost memory, however much of both is used, nor in a later mapping.
    #[cfg(not(miri))]
    #[test]
    fn lost_memory_shows_no_other_guests_bytes() {
        const LEN: u64 = 16 << 20;
        let mappings = [lost(LEN), lost(LEN)];
        for round in 0..3 {
            for at in (0..LEN as usize).step_by(4096) {
                for (mapping, own) in mappings.iter().zip([1, 2]) {
                    let read = touch(mapping, at, own);
                    assert!(read == 0 || read == own, "{read} in {own}'s, round {round}");
                }
            }
        }
        drop(mappings);
        let later = lost(LEN);
        for at in (0..LEN as usize).step_by(1024) {
            assert_eq!(touch(&later, at, 0), 0);
        }
    }

    /// Workers that copy between the lost memory of several guests all finish.
    #[cfg(not(miri))]
    #[test]
    fn many_threads_go_on_in_lost_memory() {
        const LEN: usize = 8 << 20;
        let mappings = [lost(LEN as u64), lost(LEN as u64)];
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (from, to) = (&mappings[thread % 2], &mappings[(thread + 1) % 2]);
                scope.spawn(move || {
                    for at in (0..LEN - 65_536).step_by(65_536 + 123) {
                        // SAFETY: both are mapped and have this length; concurrent writes to these bytes are allowed.
                        unsafe {
                            let (from, to) = (from.address().add(at), to.address().add(at + 77));
                            std::ptr::copy(from, to, 65_000);
                        }
                    }
                });
            }
        });
        assert!(mappings.iter().all(Mapping::is_lost));
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
