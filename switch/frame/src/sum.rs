//! The Internet checksum's sum (RFC 1071), computed while copying or separately, with the widest vectors that the
//! processor has.
//!
//! Each byte is loaded once: the summed bytes are the copied bytes, even if a guest writes there concurrently.
//!
//! With vectors, the 16-bit words are treated as signed numbers, each 32768 too low, because adding pairs of signed
//! words is one instruction (PMADDWD by ones); the difference is added at the end. The copy is limited by its stores,
//! one vector a cycle, and three vector instructions beside each store fit into that cycle.

use crosspoint_packet::checksum;

/// Bytes summed before the 32-bit lanes are emptied: 2048 steps of a vector of 32 bytes, each of at most 2^16, stay
/// well below 2^31.
const BLOCK: usize = 64 << 10;

/// Sums pieces of any length. A piece that begins at an odd byte is added byte-swapped (RFC 1071, 2B).
#[derive(Default)]
pub(crate) struct Summer {
    total: u64,
    odd: bool,
}

impl Summer {
    /// Adds bytes in the switch's own memory.
    #[inline(always)]
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.add_sum(checksum::sum(bytes, 0), bytes.len());
    }

    /// Adds the sum of `len` bytes, in native order.
    #[inline(always)]
    pub(crate) fn add_sum(&mut self, sum: u64, len: usize) {
        let folded = checksum::fold(sum);
        let placed = if self.odd {
            folded.swap_bytes()
        } else {
            folded
        };
        self.total += u64::from(placed.to_be());
        self.odd ^= len % 2 == 1;
    }

    /// The sum, in the form that [`checksum::finish`] takes.
    #[inline(always)]
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

/// Sums `n` bytes from `from`, and copies them to `to` if `COPY`. Native byte order, not folded; an odd last byte is
/// padded.
///
/// # Safety
/// `n` bytes must be readable at `from` and, if `COPY`, writable at `to`. They may overlap: then the copied bytes
/// differ from the original ones, but the sum is that of the copied bytes.
#[inline(always)]
pub(crate) unsafe fn sum_copy<const COPY: bool>(from: *const u8, to: *mut u8, n: usize) -> u64 {
    let (mut sum, mut at) = (0, 0);
    while n - at > BLOCK {
        // SAFETY: at + BLOCK < n, so it is within the range that the caller guarantees.
        sum += unsafe { block::<COPY>(from.add(at), to.wrapping_add(at), BLOCK) };
        at += BLOCK;
    }
    // SAFETY: as above.
    sum + unsafe { block::<COPY>(from.add(at), to.wrapping_add(at), n - at) }
}

/// Below this many bytes a call costs more than vectors save.
const VECTOR_MIN: usize = 32;

/// Sums at most [`BLOCK`] bytes with the fastest available method.
///
/// # Safety
/// As [`sum_copy`]'s.
#[inline(always)]
unsafe fn block<const COPY: bool>(from: *const u8, to: *mut u8, n: usize) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if n >= VECTOR_MIN {
        // Each test is a load and a branch: the standard library caches the processor's features.
        if std::arch::is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has it; the rest is the caller's contract.
            return unsafe { x86::avx512::<COPY>(from, to, n) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            let whole = n & !(VECTOR_MIN - 1);
            // SAFETY: likewise; whole <= n.
            let sum = unsafe { x86::avx2::<COPY>(from, to, whole) };
            // SAFETY: the caller's contract.
            return sum
                + unsafe { words::<COPY>(from.add(whole), to.wrapping_add(whole), n - whole) };
        }
    }
    // SAFETY: the caller's contract.
    unsafe { words::<COPY>(from, to, n) }
}

/// The portable method: eight bytes at a time, then the remaining 4, 2 and 1.
///
/// # Safety
/// As [`sum_copy`]'s.
#[inline(always)]
unsafe fn words<const COPY: bool>(from: *const u8, to: *mut u8, n: usize) -> u64 {
    /// # Safety
    /// `N` bytes must be readable at `from`, and writable at `to` if `COPY`.
    #[inline(always)]
    unsafe fn take<const COPY: bool, const N: usize>(from: *const u8, to: *mut u8) -> [u8; N] {
        // SAFETY: the caller's contract; byte arrays have no alignment.
        let bytes = unsafe { from.cast::<[u8; N]>().read_unaligned() };
        if COPY {
            // SAFETY: likewise.
            unsafe { to.cast::<[u8; N]>().write_unaligned(bytes) };
        }
        bytes
    }
    // The halves are summed separately: neither overflows before 2^32 words.
    let (mut low, mut high, mut at) = (0, 0, 0);
    // SAFETY: each step stays within n, and `at` is even before each step.
    unsafe {
        while n - at >= 8 {
            let word = u64::from_ne_bytes(take::<COPY, 8>(from.add(at), to.wrapping_add(at)));
            low += word & 0xffff_ffff;
            high += word >> 32;
            at += 8;
        }
        if n & 4 != 0 {
            let word = take::<COPY, 4>(from.add(at), to.wrapping_add(at));
            low += u64::from(u32::from_ne_bytes(word));
            at += 4;
        }
        if n & 2 != 0 {
            let word = take::<COPY, 2>(from.add(at), to.wrapping_add(at));
            low += u64::from(u16::from_ne_bytes(word));
            at += 2;
        }
        if n & 1 != 0 {
            let [byte] = take::<COPY, 1>(from.add(at), to.wrapping_add(at));
            low += u64::from(u16::from_ne_bytes([byte, 0]));
        }
    }
    low + high
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::*;

    /// Total amount by which the words of `n` bytes were taken too low.
    const fn bias(n: usize) -> i64 {
        (n / 2) as i64 * 32768
    }

    /// # Safety
    /// As `sum_copy`'s; `n` is a multiple of `VECTOR_MIN` and at most `BLOCK`; the processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2<const COPY: bool>(from: *const u8, to: *mut u8, n: usize) -> u64 {
        let (flip, ones) = (_mm256_set1_epi16(i16::MIN), _mm256_set1_epi16(1));
        let step = |at: usize, sum: __m256i| {
            // SAFETY: at + 32 <= n at every call; the load is unaligned.
            let bytes = unsafe { _mm256_loadu_si256(from.add(at).cast()) };
            if COPY {
                // SAFETY: likewise.
                unsafe { _mm256_storeu_si256(to.add(at).cast(), bytes) };
            }
            _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_xor_si256(bytes, flip), ones))
        };
        let mut sums = [_mm256_setzero_si256(); 4];
        let mut at = 0;
        while n - at >= 128 {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = step(at + 32 * i, *sum);
            }
            at += 128;
        }
        while n - at >= 32 {
            sums[0] = step(at, sums[0]);
            at += 32;
        }
        let sum = _mm256_add_epi32(
            _mm256_add_epi32(sums[0], sums[1]),
            _mm256_add_epi32(sums[2], sums[3]),
        );
        let mut lanes = [0i32; 8];
        // SAFETY: 32 bytes of our own.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        let total: i64 = lanes.iter().map(|lane| i64::from(*lane)).sum();
        (total + bias(n)) as u64
    }

    /// # Safety
    /// As `sum_copy`'s; `n` is at most `BLOCK`; the processor has AVX-512BW.
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    pub(super) unsafe fn avx512<const COPY: bool>(from: *const u8, to: *mut u8, n: usize) -> u64 {
        let (flip, ones) = (_mm512_set1_epi16(i16::MIN), _mm512_set1_epi16(1));
        let add = |bytes, sum| {
            _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_xor_si512(bytes, flip), ones))
        };
        let step = |at: usize, sum: __m512i| {
            // SAFETY: at + 64 <= n at every call; the load is unaligned.
            let bytes = unsafe { _mm512_loadu_si512(from.add(at).cast()) };
            if COPY {
                // SAFETY: likewise.
                unsafe { _mm512_storeu_si512(to.add(at).cast(), bytes) };
            }
            add(bytes, sum)
        };
        let mut sums = [_mm512_setzero_si512(); 2];
        let mut at = 0;
        while n - at >= 128 {
            sums[0] = step(at, sums[0]);
            sums[1] = step(at + 64, sums[1]);
            at += 128;
        }
        // The remaining bytes with masks: bytes beyond them are not accessed and count as zero.
        while at < n {
            let mask = u64::MAX >> (64 - (n - at).min(64));
            // SAFETY: the mask has the bytes below n only; others are not accessed.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, from.add(at).cast()) };
            if COPY {
                // SAFETY: likewise.
                unsafe { _mm512_mask_storeu_epi8(to.add(at).cast(), mask, bytes) };
            }
            sums[0] = add(bytes, sums[0]);
            at += 64;
        }
        let total = i64::from(_mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])));
        (total + bias(at)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// More than a block; miri would take minutes for that.
    const LONG: usize = if cfg!(miri) { 300 } else { 70_000 };

    fn same(a: u64, b: u64) -> bool {
        // 0 and 0xffff are the same number in one's complement.
        let (a, b) = (checksum::fold(a), checksum::fold(b));
        a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
    }

    proptest! {
        /// Every method gives the sum of RFC 1071 and the copied bytes, for every length and alignment.
        #[test]
        fn what_is_copied_is_what_is_summed(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..700),
                proptest::collection::vec(Just(0xffu8), 0..LONG),
                proptest::collection::vec(prop_oneof![Just(0u8), Just(0x80)], 0..LONG),
            ],
            skip in 0usize..70,
        ) {
            let from = bytes.get(skip..).unwrap_or(&[]);
            let want = checksum::sum(from, 0);
            let mut to = vec![0u8; from.len() + 1];
            // SAFETY: both have the length of `from` and do not overlap.
            let sums = unsafe {[
                sum_copy::<true>(from.as_ptr(), to.as_mut_ptr(), from.len()),
                sum_copy::<false>(from.as_ptr(), std::ptr::null_mut(), from.len()),
                words::<false>(from.as_ptr(), std::ptr::null_mut(), from.len()),
            ]};
            prop_assert_eq!(&to[..from.len()], from);
            prop_assert_eq!(to[from.len()], 0);
            for sum in sums {
                prop_assert!(same(sum, want), "{:x} {:x}", sum, want);
            }
        }
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn the_widest_sums_do_not_overflow() {
        for fill in [0u8, 0xff, 0x7f, 0x80] {
            let bytes = vec![fill; BLOCK];
            let want = checksum::sum(&bytes, 0);
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it, and the bytes are there.
                let sum =
                    unsafe { x86::avx2::<false>(bytes.as_ptr(), std::ptr::null_mut(), BLOCK) };
                assert!(same(sum, want), "{fill}");
            }
            if std::arch::is_x86_feature_detected!("avx512bw") {
                // SAFETY: likewise.
                let sum =
                    unsafe { x86::avx512::<false>(bytes.as_ptr(), std::ptr::null_mut(), BLOCK) };
                assert!(same(sum, want), "{fill}");
            }
        }
    }
}
