use crate::HEAD_LEN;
use crate::sum::sum_copy;

/// A run of readable bytes in memory that somebody else may be writing: a guest's, or a UMEM.
///
/// A segment is an address, not a borrow: its lifetime is the burst's. It is valid from the
/// `receive` that made it to the end of the same loop iteration, because the mapping it points
/// into is unmapped only after every worker has passed a quiescent point, and a worker passes
/// one only between iterations. Segments leave a [`Burst`](crate::Burst) only by being copied.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: *const u8,
    len: u32,
}

/// A run of writable bytes: a guest's receive buffer, or a free UMEM frame. Lifetime as [`Segment`]'s; who keeps one longer
/// must know before each use that the memory is still what it was (a guest's receive queue compares its generation).
#[derive(Clone, Copy, Debug)]
pub struct SegmentMut {
    ptr: *mut u8,
    len: u32,
}

impl Segment {
    /// # Safety
    /// `ptr..ptr + len` must lie within one mapping that stays mapped and readable until the end
    /// of the worker's iteration. Its bytes may change at any time.
    #[inline(always)]
    pub unsafe fn new(ptr: *const u8, len: u32) -> Segment {
        Segment { ptr, len }
    }

    /// Address of the first byte.
    #[inline(always)]
    pub fn ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is nothing to read.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segment without its first `n` bytes (all of them, when it has fewer).
    #[inline(always)]
    pub fn skip(&self, n: usize) -> Segment {
        let n = n.min(self.len());
        // SAFETY: n <= len, so the rest lies within the run that `new`'s caller vouched for.
        unsafe { Segment::new(self.ptr.add(n), self.len - n as u32) }
    }

    /// Its first `n` bytes (all of them, when it has fewer).
    #[inline(always)]
    pub fn first(&self, n: usize) -> Segment {
        let n = n.min(self.len());
        // SAFETY: n <= len, so they lie within the run that `new`'s caller vouched for.
        unsafe { Segment::new(self.ptr, n as u32) }
    }

    /// Copies the first bytes into `out`, as many as both have; returns how many.
    #[inline(always)]
    pub fn read(&self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len());
        // SAFETY: n <= len bytes are readable by `new`'s contract; `out` is ours.
        unsafe { copy(self.ptr, out.as_mut_ptr(), n) };
        n
    }

    /// Sum of its bytes, as [`checksum::sum`](crosspoint_packet::checksum::sum)'s.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        // SAFETY: len bytes are readable by `new`'s contract; nothing is written.
        unsafe { sum_copy::<false>(self.ptr, std::ptr::null_mut(), self.len()) }
    }

    /// Copies `N` bytes from `at` if the segment has them: a fixed size compiles to a few
    /// vector moves.
    #[inline(always)]
    pub fn read_array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if self.len() < at + N {
            return None;
        }
        // SAFETY: at + N <= len, readable by `new`'s contract; u8 arrays have no alignment.
        Some(unsafe { self.ptr.add(at).cast::<[u8; N]>().read_unaligned() })
    }
}

impl SegmentMut {
    /// # Safety
    /// `ptr..ptr + len` must lie within one mapping that stays mapped and writable until the end
    /// of the worker's iteration, and be no memory that Rust references point into.
    #[inline(always)]
    pub unsafe fn new(ptr: *mut u8, len: u32) -> SegmentMut {
        SegmentMut { ptr, len }
    }

    /// Address of the first byte.
    #[inline(always)]
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no room.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segment without its first `n` bytes (all of them, when it has fewer).
    #[inline(always)]
    pub fn skip(&self, n: usize) -> SegmentMut {
        let n = n.min(self.len());
        // SAFETY: n <= len, so the rest lies within the run that `new`'s caller vouched for.
        unsafe { SegmentMut::new(self.ptr.add(n), self.len - n as u32) }
    }

    /// Copies the first bytes of `from` here, as many as fit; returns how many.
    #[inline(always)]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = from.len().min(self.len());
        // SAFETY: n <= len bytes are writable by `new`'s contract.
        unsafe { copy(from.as_ptr(), self.ptr, n) };
        n
    }

    /// Writes `N` bytes at the start if they fit: a few vector moves. Returns whether they did.
    #[inline(always)]
    pub fn write_array<const N: usize>(&self, from: &[u8; N]) -> bool {
        if self.len() < N {
            return false;
        }
        // SAFETY: N <= len, writable by `new`'s contract; u8 arrays have no alignment.
        unsafe { self.ptr.cast::<[u8; N]>().write_unaligned(*from) };
        true
    }

    /// Writes `header` and, behind it, the first `n` bytes of `head`. Where there is no room for both arrays whole, nothing
    /// is written (`false`).
    ///
    /// A header that ends where a cache line does, as DPDK lays it ([`has_own_line`]), has no line in common with the frame.
    /// It is nearly always there already, since a driver uses its buffers again: then it is not written, and the line stays
    /// with the driver's core, which reads the number of buffers in it, instead of crossing twice for each frame. A guest
    /// that changes it between the look and the driver's own has changed what it reads itself.
    #[inline(always)]
    pub fn write_head<const N: usize>(
        &self,
        header: &[u8; N],
        head: &[u8; HEAD_LEN],
        n: usize,
    ) -> bool {
        if self.len() < N + HEAD_LEN || n > HEAD_LEN {
            return false;
        }
        // SAFETY: N + n <= N + HEAD_LEN <= len bytes are writable by `new`'s contract; n <= HEAD_LEN bytes of `head` are
        // readable, and `head` is ours.
        unsafe {
            let at = self.ptr.cast::<[u8; N]>();
            if !has_own_line(self.ptr, N) || at.read_unaligned() != *header {
                at.write_unaligned(*header);
            }
            copy(head.as_ptr(), self.ptr.add(N), n);
        }
        true
    }

    /// Copies from `from`, as many bytes as both have; returns how many.
    #[inline(always)]
    pub fn write_segment(&self, from: &Segment) -> usize {
        let n = from.len().min(self.len());
        // SAFETY: n bytes are readable and writable by the two contracts. A guest may have made
        // the two overlap (its own transmit and receive buffers, reached through two mappings or
        // one): `copy` allows that, and what such a guest then receives is its own affair.
        unsafe { copy(from.ptr, self.ptr, n) };
        n
    }

    /// Copies from `from`, as many bytes as both have; returns how many, and the sum of those bytes.
    #[inline(always)]
    pub fn write_summed(&self, from: &Segment) -> (usize, u64) {
        let n = from.len().min(self.len());
        // SAFETY: as `write_segment`'s.
        (n, unsafe { sum_copy::<true>(from.ptr, self.ptr, n) })
    }
}

/// Copies `n` bytes, which may overlap. Up to 64 bytes, which is every header and every small
/// frame, by two moves that overlap in the middle: a call costs more than that.
///
/// # Safety
/// `n` bytes must be readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    /// # Safety
    /// As `copy`, with `N <= n <= 2 * N`.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: N <= n, so both ends lie within the n bytes. Both are read before either is
        // written, so overlap does no harm.
        unsafe {
            let head = from.cast::<[u8; N]>().read_unaligned();
            let tail = from.add(n - N).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(head);
            to.add(n - N).cast::<[u8; N]>().write_unaligned(tail);
        }
    }
    // SAFETY: each arm's sizes are what it asks for; the rest is the caller's contract.
    unsafe {
        match n {
            32..=64 => copy_head(from, to, n),
            16..32 => ends::<16>(from, to, n),
            8..16 => ends::<8>(from, to, n),
            4..8 => ends::<4>(from, to, n),
            2..4 => ends::<2>(from, to, n),
            0 => {}
            _ => std::ptr::copy(from, to, n),
        }
    }
}

/// As `copy`, 32 to 64 bytes: four moves of 16, which stay in registers where two of 32 go over the stack.
///
/// # Safety
/// As `copy`, with `32 <= n <= 64`.
#[inline(always)]
unsafe fn copy_head(from: *const u8, to: *mut u8, n: usize) {
    type Word = u128;
    // SAFETY: 32 <= n <= 64, so all four lie within the n bytes, and together cover them. All are read before any is
    // written, so overlap does no harm.
    unsafe {
        let word = |at: usize| from.add(at).cast::<Word>().read_unaligned();
        let words = [word(0), word(16), word(n - 32), word(n - 16)];
        let put = |at: usize, word: Word| to.add(at).cast::<Word>().write_unaligned(word);
        put(0, words[0]);
        put(16, words[1]);
        put(n - 32, words[2]);
        put(n - 16, words[3]);
    }
}

/// Asks the core to fetch the line at `ptr`, soon to be read. Any address will do.
#[inline(always)]
pub fn prefetch_read(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address, mapped or not, has no architectural effect.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Bytes of a cache line, on every x86-64.
const LINE_LEN: usize = 64;

/// Whether the `header` bytes at `ptr` end where a cache line does.
#[inline(always)]
fn has_own_line(ptr: *const u8, header: usize) -> bool {
    (ptr as usize).wrapping_add(header).is_multiple_of(LINE_LEN)
}

/// Asks for the first two lines of a receive buffer at `ptr`, whose first `header` bytes are the ring's own: to be written,
/// but for a header in a line of its own, which is read, and seldom written.
#[inline(always)]
pub fn prefetch_buffer(ptr: *const u8, header: usize) {
    match has_own_line(ptr, header) {
        true => prefetch_read(ptr),
        false => prefetch_write(ptr),
    }
    prefetch_write(ptr.wrapping_add(LINE_LEN));
}

/// Asks the core to fetch the line at `ptr` for writing (PREFETCHW), so that the store does not
/// wait for the other core to give it up. Any address will do.
///
/// The instruction itself: the intrinsic for it compiles to a prefetch for reading unless the whole program is built
/// for processors that announce it (target feature `prfchw`), and then the line crosses twice. Every x86-64 processor
/// since 2014 (Intel Broadwell; AMD from the first) announces it, and older ones of Intel take it for no operation.
#[inline(always)]
pub fn prefetch_write(ptr: *const u8) {
    // Miri knows no assembly.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address, mapped or not, has no architectural effect; it reads and writes no memory that
    // the compiler knows of, and leaves flags and stack alone.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) ptr.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = ptr;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[repr(align(64))]
    struct Lines([u8; 256]);

    proptest! {
        /// Header and frame are what is there afterwards, wherever in a line the buffer begins and whatever was there
        /// before, the same header included; nothing beyond them is changed.
        #[test]
        fn header_and_head_replace_what_was_there(
            at in 0usize..128,
            header: [u8; 12],
            is_there: bool,
            before: [u8; 32],
            head: [u8; 32],
            n in 0usize..=HEAD_LEN,
        ) {
            let mut memory = Lines([before[0]; 256]);
            memory.0[at..at + 32].copy_from_slice(&before);
            if is_there {
                memory.0[at..at + 12].copy_from_slice(&header);
            }
            let mut whole = [7; HEAD_LEN];
            whole[..32].copy_from_slice(&head);
            let mut want = memory.0;
            want[at..at + 12].copy_from_slice(&header);
            want[at + 12..at + 12 + n].copy_from_slice(&whole[..n]);
            // SAFETY: 128 bytes from `at` < 128 on are within the 256, which are ours.
            let to = unsafe { SegmentMut::new(memory.0.as_mut_ptr().add(at), 128) };
            prop_assert!(to.write_head(&header, &whole, n));
            prop_assert!(memory.0 == want);
        }
    }

    /// The instruction that is meant is the one that is there: opcode 0F 0D /1. A prefetch for reading (0F 18) would have
    /// each line cross twice.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[test]
    fn a_write_prefetch_is_compiled_to_prefetchw() {
        #[inline(never)]
        fn prefetch(ptr: *const u8) {
            prefetch_write(ptr);
        }
        let code = prefetch as fn(*const u8) as *const u8;
        // SAFETY: the function is at least this instruction and a return, and its code, as that of the test behind it, is
        // mapped readable.
        let code = unsafe { std::slice::from_raw_parts(code, 16) };
        let is_prefetchw = |w: &[u8]| w[0] == 0x0f && w[1] == 0x0d && (w[2] >> 3) & 7 == 1;
        assert!(code.windows(3).any(is_prefetchw), "{code:02x?}");
    }
}
