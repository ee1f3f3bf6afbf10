//! The four rings between a socket and the kernel: single producer, single consumer, wrapping 32-bit indices, entries of
//! type `T`.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// One side's mapping of a ring.
pub(crate) struct Ring<T> {
    map: *mut u8,
    map_len: usize,
    producer: *mut u32,
    consumer: *mut u32,
    flags: *mut u32,
    entries: *mut T,
    mask: u32,
    _entries: PhantomData<T>,
}

// SAFETY: each index is written by one side only, and a `Ring` is that side: `&mut self` where
// it writes. The mapping is shared with the kernel alone.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// Maps the ring of `entries` entries at page offset `at` of the socket.
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        at: u64,
        offsets: &libc::xdp_ring_offset,
        entries: u32,
    ) -> io::Result<Ring<T>> {
        let map_len = offsets.desc as usize + entries as usize * size_of::<T>();
        // SAFETY: a new shared mapping of the socket's ring, at the kernel's choice of address.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                socket,
                at,
            )
        }?;
        let map: *mut u8 = map.cast();
        let place = |offset: u64| map.wrapping_add(offset as usize);
        Ok(Ring {
            map,
            map_len,
            producer: place(offsets.producer).cast(),
            consumer: place(offsets.consumer).cast(),
            flags: place(offsets.flags).cast(),
            entries: place(offsets.desc).cast(),
            mask: entries - 1,
            _entries: PhantomData,
        })
    }

    #[inline(always)]
    fn word(&self, at: *mut u32) -> &AtomicU32 {
        // SAFETY: `at` is one of the three words that the kernel placed in our mapping,
        // 4-aligned; the mapping lives as long as `self`.
        unsafe { AtomicU32::from_ptr(at) }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> *mut T {
        self.entries.wrapping_add((index & self.mask) as usize)
    }

    /// Returns whether the kernel needs a system call to continue (XDP_RING_NEED_WAKEUP).
    #[inline(always)]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Returns the number of entries that the kernel has produced and we have not consumed.
    #[inline(always)]
    pub(crate) fn filled(&self) -> u32 {
        let consumer = self.word(self.consumer).load(Ordering::Relaxed);
        let filled = self
            .word(self.producer)
            .load(Ordering::Acquire)
            .wrapping_sub(consumer);
        filled.min(self.mask + 1)
    }

    /// Returns entry `i` of those that [`filled`](Self::filled) counted.
    #[inline(always)]
    pub(crate) fn get(&self, i: u32) -> T {
        let consumer = self.word(self.consumer).load(Ordering::Relaxed);
        // SAFETY: masked, so within the ring; the kernel does not write entries that it has
        // produced and we have not released.
        unsafe { self.slot(consumer.wrapping_add(i)).read() }
    }

    /// Releases `n` consumed entries.
    #[inline(always)]
    pub(crate) fn release(&mut self, n: u32) {
        let consumer = self.word(self.consumer);
        consumer.store(
            consumer.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Release,
        );
    }

    /// Returns the number of entries that we have produced and the kernel has not consumed.
    #[inline(always)]
    pub(crate) fn pending(&self) -> u32 {
        let producer = self.word(self.producer).load(Ordering::Relaxed);
        producer
            .wrapping_sub(self.word(self.consumer).load(Ordering::Acquire))
            .min(self.mask + 1)
    }

    /// Returns the number of entries that we may produce.
    #[inline(always)]
    pub(crate) fn room(&self) -> u32 {
        self.mask + 1 - self.pending()
    }

    /// Writes entry `i` of those that [`room`](Self::room) counted.
    #[inline(always)]
    pub(crate) fn set(&mut self, i: u32, value: T) {
        let producer = self.word(self.producer).load(Ordering::Relaxed);
        // SAFETY: masked, so within the ring; the kernel does not read entries before they are
        // submitted.
        unsafe { self.slot(producer.wrapping_add(i)).write(value) };
    }

    /// Hands `n` written entries to the kernel.
    #[inline(always)]
    pub(crate) fn submit(&mut self, n: u32) {
        let producer = self.word(self.producer);
        producer.store(
            producer.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Release,
        );
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping. A ring left mapped would keep the NIC's queue busy forever.
        let _ = unsafe { rustix::mm::munmap(self.map.cast(), self.map_len) };
    }
}
