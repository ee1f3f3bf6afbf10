//! The four rings by the crate `xsk-rs`, in the form that `ring.rs` gives them.
//!
//! Its queues take and give whole batches of descriptors, copied, and a consumer's entries go
//! back to the kernel as they are read. So a ring here has a batch of its own beside the
//! kernel's: what was read and is not released, or what was written and is not submitted.

use std::cell::RefCell;
use std::marker::PhantomData;

use crosspoint_frame::BURST;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::RING_SIZE;
use crate::crate_backend::Frames;

/// Received frames that are read ahead at most. The kernel can use their entries meanwhile, but
/// not their memory.
const RX_BATCH: usize = 4 * BURST;

/// One of the four. An entry is a `u64`, the address of a frame (fill and completion ring), or
/// an `xdp_desc` (receive and transmit ring).
pub(crate) struct Ring<T> {
    // The crate's queues want `&mut` even to be asked how full they are. A ring has one owner and
    // no borrow of it leaves a method here, so none is ever refused.
    // Boxed, since the crate's queues are large.
    state: Box<RefCell<State>>,
    _entries: PhantomData<T>,
}

struct State {
    queue: Queue,
    frames: Frames,
    /// Consumers: the entries `first..end` were read and not released. Producers: what is written.
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

    /// Whether the kernel asks for a system call to go on (XDP_RING_NEED_WAKEUP).
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        match &self.state.borrow().queue {
            Queue::Fill(queue) => queue.needs_wakeup(),
            Queue::Tx(queue) => queue.needs_wakeup(),
            Queue::Completion(_) | Queue::Rx(_) => false,
        }
    }

    /// Entries that the kernel has produced and we have not consumed, as far as the batch goes.
    #[inline]
    pub(crate) fn filled(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        if state.end - state.first < BURST {
            state.read_on();
        }
        (state.end - state.first) as u32
    }

    /// Entry `i` of those that [`filled`](Self::filled) counted.
    #[inline]
    pub(crate) fn get(&self, i: u32) -> T {
        let state = self.state.borrow();
        let at = state.first + i as usize;
        T::of(&state.batch.get(at).copied().unwrap_or_default())
    }

    /// Gives `n` consumed entries back.
    #[inline]
    pub(crate) fn release(&mut self, n: u32) {
        let state = self.state.get_mut();
        state.first = state.end.min(state.first + n as usize);
    }

    /// Entries that we have produced and the kernel has not consumed.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        RING_SIZE - self.room()
    }

    /// Entries that we may produce.
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
        // SAFETY: frames of this queue's own UMEM, made by `describe`. That none is in two places
        // is for the ring's owner to see to, as with rings of our own: an address that came out
        // of one ring goes into the next.
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
        // SAFETY: only writes to `free`. What is read are frames of this queue's own UMEM.
        self.end += unsafe {
            match &mut self.queue {
                Queue::Completion(queue) => queue.consume(free),
                Queue::Rx(queue) => queue.consume(free),
                Queue::Fill(_) | Queue::Tx(_) => 0,
            }
        };
    }
}

/// What a ring holds, to and from the crate's descriptor.
pub(crate) trait Entry: Copy {
    fn of(desc: &FrameDesc) -> Self;
    fn describe(self, frames: &Frames) -> FrameDesc;
}

impl Entry for u64 {
    #[inline]
    fn of(desc: &FrameDesc) -> u64 {
        desc.addr() as u64
    }

    /// The kernel takes any address within a frame for that frame.
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
