//! The four rings by the crate `xsk-rs`, with the interface of `ring.rs`.
//!
//! The crate's queues copy whole batches of descriptors, and return a consumer's entries to the kernel as they are read.
//! So a ring here has its own batch beside the kernel's ring: entries read and not released, or written and not
//! submitted.

use std::cell::RefCell;
use std::marker::PhantomData;

use crosspoint_frame::BURST;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::RING_SIZE;
use crate::crate_backend::Frames;

/// Most received frames that are read ahead. The kernel can reuse their entries meanwhile, but not their memory.
const RX_BATCH: usize = 4 * BURST;

/// One of the four. An entry is a `u64`, the address of a frame (fill and completion ring), or
/// an `xdp_desc` (receive and transmit ring).
pub(crate) struct Ring<T> {
    // The crate's queues need `&mut` even to return how full they are. A ring has one owner and no borrow of it leaves a
    // method here, so no borrow ever fails. Boxed, since the crate's queues are large.
    state: Box<RefCell<State>>,
    _entries: PhantomData<T>,
}

struct State {
    queue: Queue,
    frames: Frames,
    /// Consumers: the entries `first..end` were read and not released. Producers: entries written.
    batch: Box<[FrameDesc]>,
    first: usize,
    end: usize,
}

enum Queue {
    Fill(FillQueue),
    Completion(CompQueue),
    Rx(RxQueue),
    Tx(TxQueue),
}

impl Ring<u64> {
    pub(crate) fn fill(queue: FillQueue, frames: &Frames) -> Self {
        Self::new(Queue::Fill(queue), frames, RING_SIZE as usize)
    }

    pub(crate) fn completion(queue: CompQueue, frames: &Frames) -> Self {
        Self::new(Queue::Completion(queue), frames, RING_SIZE as usize)
    }
}

impl Ring<libc::xdp_desc> {
    pub(crate) fn rx(queue: RxQueue, frames: &Frames) -> Self {
        Self::new(Queue::Rx(queue), frames, RX_BATCH)
    }

    pub(crate) fn tx(queue: TxQueue, frames: &Frames) -> Self {
        Self::new(Queue::Tx(queue), frames, RING_SIZE as usize)
    }
}

impl<T: Entry> Ring<T> {
    fn new(queue: Queue, frames: &Frames, batch: usize) -> Ring<T> {
        Ring {
            state: Box::new(RefCell::new(State {
                queue,
                frames: frames.clone(),
                batch: vec![FrameDesc::default(); batch].into(),
                first: 0,
                end: 0,
            })),
            _entries: PhantomData,
        }
    }

    /// Returns whether the kernel needs a system call to continue (XDP_RING_NEED_WAKEUP).
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        match &self.state.borrow().queue {
            Queue::Fill(queue) => queue.needs_wakeup(),
            Queue::Tx(queue) => queue.needs_wakeup(),
            Queue::Completion(_) | Queue::Rx(_) => false,
        }
    }

    /// Returns the number of entries that the kernel has produced and we have not consumed, as far as they fit in the
    /// batch.
    #[inline]
    pub(crate) fn filled(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        if state.end - state.first < BURST {
            state.read_on();
        }
        (state.end - state.first) as u32
    }

    /// Returns entry `i` of those that [`filled`](Self::filled) counted.
    #[inline]
    pub(crate) fn get(&self, i: u32) -> T {
        let state = self.state.borrow();
        let at = state.first + i as usize;
        T::of(&state.batch.get(at).copied().unwrap_or_default())
    }

    /// Releases `n` consumed entries.
    #[inline]
    pub(crate) fn release(&mut self, n: u32) {
        let state = self.state.get_mut();
        state.first = state.end.min(state.first + n as usize);
    }

    /// Returns the number of entries that we have produced and the kernel has not consumed.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        RING_SIZE - self.room()
    }

    /// Returns the number of entries that we may produce.
    #[inline]
    pub(crate) fn room(&self) -> u32 {
        match &mut self.state.borrow_mut().queue {
            Queue::Fill(queue) => queue.nb_free_exact(),
            Queue::Tx(queue) => queue.nb_free_exact(),
            Queue::Completion(_) | Queue::Rx(_) => 0,
        }
    }

    /// Writes entry `i` of those that [`room`](Self::room) counted.
    #[inline]
    pub(crate) fn set(&mut self, i: u32, value: T) {
        let state = self.state.get_mut();
        if let Some(slot) = state.batch.get_mut(i as usize) {
            *slot = value.describe(&state.frames);
        }
    }

    /// Hands `n` written entries to the kernel.
    #[inline]
    pub(crate) fn submit(&mut self, n: u32) {
        let state = self.state.get_mut();
        let descs = state.batch.get(..n as usize).unwrap_or(&[]);
        // SAFETY: frames of this queue's own UMEM, made by `describe`. The ring's owner makes sure that none is in two
        // places, as with our own rings: an address that came out of one ring goes into the next.
        let taken = unsafe {
            match &mut state.queue {
                Queue::Fill(queue) => queue.produce(descs),
                Queue::Tx(queue) => queue.produce(descs),
                Queue::Completion(_) | Queue::Rx(_) => 0,
            }
        };
        debug_assert_eq!(taken, descs.len(), "more entries than `room` counted");
    }
}

impl State {
    /// Reads what the kernel has produced into the free part of the batch.
    fn read_on(&mut self) {
        self.batch.copy_within(self.first..self.end, 0);
        self.end -= self.first;
        self.first = 0;
        let free = self.batch.get_mut(self.end..).unwrap_or_default();
        // SAFETY: only writes to `free`. The entries read are frames of this queue's own UMEM.
        self.end += unsafe {
            match &mut self.queue {
                Queue::Completion(queue) => queue.consume(free),
                Queue::Rx(queue) => queue.consume(free),
                Queue::Fill(_) | Queue::Tx(_) => 0,
            }
        };
    }
}

/// Conversion between a ring's entry and the crate's descriptor.
pub(crate) trait Entry: Copy {
    fn of(desc: &FrameDesc) -> Self;
    fn describe(self, frames: &Frames) -> FrameDesc;
}

impl Entry for u64 {
    #[inline]
    fn of(desc: &FrameDesc) -> u64 {
        desc.addr() as u64
    }

    /// The kernel accepts any address within a frame for that frame.
    #[inline]
    fn describe(self, frames: &Frames) -> FrameDesc {
        frames.at(self)
    }
}

impl Entry for libc::xdp_desc {
    #[inline]
    fn of(desc: &FrameDesc) -> libc::xdp_desc {
        libc::xdp_desc {
            addr: desc.addr() as u64,
            len: desc.lengths().data() as u32,
            options: desc.options(),
        }
    }

    #[inline]
    fn describe(self, frames: &Frames) -> FrameDesc {
        frames.describe(&self)
    }
}
