use crate::HEAD_LEN;
use crate::sum::sum_copy;

/// A run of readable bytes in memory that others may write concurrently: a guest's memory or a UMEM.
///
/// A segment is an address, not a borrow; it lives as long as its burst. It is valid from the `receive` that made it to
/// the end of the same poll iteration, because the mapping it points into is unmapped only after every worker has
/// passed a quiescent point, and a worker passes one only between iterations. Segments leave a [`Burst`](crate::Burst)
/// only by being copied.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: *const u8,
    len: u32,
}

/// A run of writable bytes: a guest's receive buffer, or a free UMEM frame. It lives as long as a [`Segment`]. Code
/// that keeps one longer must check before each use that the memory is still the same (a guest's receive queue compares
/// its generation).
#[derive(Clone, Copy, Debug)]
pub struct SegmentMut {
    ptr: *mut u8,
    len: u32,
}

impl Segment {
    /// # Safety
    /// `ptr..ptr + len` must be within one mapping that stays mapped and readable until the end of the worker's poll
    /// iteration. Its bytes may change at any time.
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
        // SAFETY: n <= len, so the rest lies within the run that `new`'s caller guarantees.
        unsafe { Segment::new(self.ptr.add(n), self.len - n as u32) }
    }

    /// The segment's first `n` bytes (all of them if it has fewer).
    #[inline(always)]
    pub fn first(&self, n: usize) -> Segment {
        let n = n.min(self.len());
        // SAFETY: n <= len, so they lie within the run that `new`'s caller guarantees.
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

    /// Sum of the bytes, in the form of [`checksum::sum`](crosspoint_packet::checksum::sum).
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        // SAFETY: len bytes are readable by `new`'s contract; nothing is written.
        unsafe { sum_copy::<false>(self.ptr, std::ptr::null_mut(), self.len()) }
    }

    /// Copies `N` bytes from `at` if the segment has them. A fixed size compiles to a few vector moves.
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
    /// `ptr..ptr + len` must be within one mapping that stays mapped and writable until the end of the worker's poll
    /// iteration, and no Rust reference may point into it.
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
        // SAFETY: n <= len, so the rest lies within the run that `new`'s caller guarantees.
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

    /// Writes `N` bytes at the start if they fit, with a few vector moves. Returns whether they fit.
    #[inline(always)]
    pub fn write_array<const N: usize>(&self, from: &[u8; N]) -> bool {
        if self.len() < N {
            return false;
        }
        // SAFETY: N <= len, writable by `new`'s contract; u8 arrays have no alignment.
        unsafe { self.ptr.cast::<[u8; N]>().write_unaligned(*from) };
        true
    }

    /// Writes `header` and then the first `n` bytes of `head`. If there is no room for both whole arrays, writes
    /// nothing and returns `false`.
    ///
    /// A header that ends at a cache line boundary, as DPDK places it ([`has_own_line`]), shares no line with the
    /// frame. The buffer nearly always has this header already, since drivers reuse buffers. Then it is not written,
    /// and the line stays with the driver's core, which reads the number of buffers in it, instead of moving between
    /// the cores twice for each frame. A guest that changes the header between this check and its driver's read only
    /// changes what it reads itself.
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
        // SAFETY: n bytes are readable and writable by the two contracts. A guest may have made the two overlap (its
        // own transmit and receive buffers, reached through one mapping or two): `copy` allows that, and only this
        // guest receives the result.
        unsafe { copy(from.ptr, self.ptr, n) };
        n
    }

    /// Copies from `from`, as many bytes as both have; returns how many, and the sum of those bytes.
    #[inline(always)]
    pub fn write_summed(&self, from: &Segment) -> (usize, u64) {
        let n = from.len().min(self.len());
        // SAFETY: as in `write_segment`.
        (n, unsafe { sum_copy::<true>(from.ptr, self.ptr, n) })
    }
}

/// Copies `n` bytes, which may overlap. Up to 64 bytes (every header and every small frame) are copied by two moves
/// that overlap in the middle, since a call costs more.
///
/// # Safety
/// `n` bytes must be readable at `from` and writable at `to`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    /// # Safety
    /// As `copy`, with `N <= n <= 2 * N`.
    #[inline(always)]
    unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, n: usize) {
        // SAFETY: N <= n, so both ends are within the n bytes. Both are read before either is written, so overlap does
        // no harm.
        unsafe {
            let head = from.cast::<[u8; N]>().read_unaligned();
            let tail = from.add(n - N).cast::<[u8; N]>().read_unaligned();
            to.cast::<[u8; N]>().write_unaligned(head);
            to.add(n - N).cast::<[u8; N]>().write_unaligned(tail);
        }
    }
    // SAFETY: each arm's sizes satisfy the function that it calls; the rest is the caller's contract.
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

/// Like `copy`, for 32 to 64 bytes: four moves of 16 bytes stay in registers; two of 32 would go through the stack.
///
/// # Safety
/// As `copy`, with `32 <= n <= 64`.
#[inline(always)]
unsafe fn copy_head(from: *const u8, to: *mut u8, n: usize) {
    type Word = u128;
    // SAFETY: 32 <= n <= 64, so all four are within the n bytes, and together cover them. All are read before any is
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

/// Prefetches the cache line at `ptr` for reading. Any address is allowed.
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

/// Size of a cache line on every x86-64, in bytes.
const LINE_LEN: usize = 64;

/// Whether the `header` bytes at `ptr` end at a cache line boundary.
#[inline(always)]
fn has_own_line(ptr: *const u8, header: usize) -> bool {
    (ptr as usize).wrapping_add(header).is_multiple_of(LINE_LEN)
}

/// Prefetches the first two cache lines of a receive buffer at `ptr`, which begins with `header` bytes of the ring's
/// header. They are prefetched for writing, except for a header in a line of its own, which is read and seldom written.
#[inline(always)]
pub fn prefetch_buffer(ptr: *const u8, header: usize) {
    match has_own_line(ptr, header) {
        true => prefetch_read(ptr),
        false => prefetch_write(ptr),
    }
    prefetch_write(ptr.wrapping_add(LINE_LEN));
}

/// Prefetches the cache line at `ptr` for writing (PREFETCHW), so that the store does not wait for another core to
/// release it. Any address is allowed.
///
/// This uses the instruction itself. The intrinsic compiles to a prefetch for reading unless the whole program is built
/// for processors with the target feature `prfchw`, and then the line is transferred twice. Every x86-64 processor
/// since 2014 (Intel Broadwell; AMD from the first) has it, and older Intel processors execute it as a no-op.
#[inline(always)]
pub fn prefetch_write(ptr: *const u8) {
    // Miri does not support inline assembly.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address, mapped or not, has no architectural effect; it accesses no memory that the
    // compiler knows of, and changes neither flags nor stack.
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
        /// Header and frame are in the buffer afterwards, wherever in a cache line the buffer begins and whatever it
        /// held before, including the same header; nothing beyond them is changed.
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
            // SAFETY: 128 bytes from `at` < 128 on are within the 256 bytes, which are ours.
            let to = unsafe { SegmentMut::new(memory.0.as_mut_ptr().add(at), 128) };
            prop_assert!(to.write_head(&header, &whole, n));
            prop_assert!(memory.0 == want);
        }
    }

    /// The compiled instruction is PREFETCHW: opcode 0F 0D /1. With a prefetch for reading (0F 18) each line would be
    /// transferred twice.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[test]
    fn a_write_prefetch_is_compiled_to_prefetchw() {
        #[inline(never)]
        fn prefetch(ptr: *const u8) {
            prefetch_write(ptr);
        }
        let code = prefetch as fn(*const u8) as *const u8;
        // SAFETY: the function has at least this instruction and a return, and its code, like that of the test after
        // it, is mapped readable.
        let code = unsafe { std::slice::from_raw_parts(code, 16) };
        let is_prefetchw = |w: &[u8]| w[0] == 0x0f && w[1] == 0x0d && (w[2] >> 3) & 7 == 1;
        assert!(code.windows(3).any(is_prefetchw), "{code:02x?}");
    }
}
