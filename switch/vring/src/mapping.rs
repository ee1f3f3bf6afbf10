//! Mappings of memory that a front end shares, and the guard that keeps the process alive when
//! it takes the memory away.
//!
//! Whoever holds a file can truncate it, and then the next access to a page beyond its end is
//! SIGBUS, which ends the process. The handler that is installed here puts other memory in the
//! place of the whole mapping: the access goes on, reads zeroes (or what was written there
//! lately), and harms no other guest; the mapping is marked, and the control thread quarantines
//! the port. How, and how much memory that takes: `mapping/guard.rs`.

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
use self::os::{len_and_block, map_shared, release, unmap};

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
        release(self.start);
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

    /// Lines of /proc/self/smaps that begin so, of mappings between these addresses.
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

    /// However the kernel accounts memory (`vm.overcommit_memory` may be 2), and however much a guest had: nothing of what
    /// stands in its place is accounted, there are few mappings of it, and little memory.
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

    /// The same where the kernel refuses: RLIMIT_DATA is to one process what `vm.overcommit_memory = 2` is to the host.
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

    /// A mapping whose file is cut short.
    fn lost(len: u64) -> Mapping {
        let file = memfd(len);
        let mapping = Mapping::new(&file, 0, len).unwrap();
        file.set_len(0).unwrap();
        mapping
    }

    /// No guest's bytes are in another's lost memory, however much of both is used, nor in one that comes later.
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

    /// Workers that copy between lost memory of several guests all come to an end.
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
                        // SAFETY: both are mapped, and as long; that others write there too is
                        // what these bytes are for.
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
