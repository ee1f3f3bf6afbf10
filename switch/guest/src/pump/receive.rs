//! The pump of a receive queue.

use super::*;

/// Consumes all frames of a receive ring and posts the buffers again.
#[derive(Debug)]
pub struct RxPump {
    ring: Virtqueue,
    kick: Arc<EventFd>,
    buffers: RxBuffers,
}

/// A receive pump without its ring.
#[derive(Debug)]
struct RxBuffers {
    area: Window,
    /// By descriptor: offset of its buffer in bytes.
    offsets: Vec<u32>,
    buffer_len: u32,
    header_len: u32,
    mergeable: bool,
    write_descriptors: bool,
    batch: usize,
    elements: [UsedElement; BATCH_MAX],
    /// Buffers of the current frame that have not arrived yet.
    continuation: u16,
}

impl RxPump {
    /// Creates a pump on a queue with its buffers posted. `write_descriptors`: write each descriptor again when its
    /// buffer is posted, as real drivers do because they post a new buffer.
    pub(crate) fn new(
        queue: ReceiveQueue,
        kick: Arc<EventFd>,
        write_descriptors: bool,
    ) -> Result<Self, QueueError> {
        let parts = queue.into_parts()?;
        let mut ring = parts.ring;
        ring.disable_calls();
        Ok(Self {
            ring,
            kick,
            buffers: RxBuffers {
                area: parts.area,
                offsets: parts.offsets,
                buffer_len: parts.buffer_len,
                header_len: parts.header_len as u32,
                mergeable: parts.mergeable,
                write_descriptors,
                batch: BATCH_MAX,
                elements: [UsedElement::default(); BATCH_MAX],
                continuation: 0,
            },
        })
    }

    /// Sets the maximum number of buffers per poll, up to [`BATCH_MAX`], the default.
    pub fn set_batch(&mut self, batch: usize) {
        self.buffers.batch = batch.clamp(1, BATCH_MAX);
    }

    /// Takes one batch and posts its buffers again. Of each frame, the cache line with the header and the first one
    /// with its bytes are read, as a driver and the receiving program would.
    ///
    /// # Errors
    /// Faults of the device.
    #[inline]
    pub fn poll(&mut self) -> Result<Received, RingError> {
        self.poll_inner(|_, _, _| {})
    }

    /// Like [`RxPump::poll`], and passes the start of each frame to `see`.
    ///
    /// # Errors
    /// Faults of the device.
    #[inline]
    pub fn poll_each(&mut self, mut see: impl FnMut(&FrameHead)) -> Result<Received, RingError> {
        self.poll_inner(|view, at, frame_len| {
            see(&FrameHead {
                bytes: view.read_array(at),
                len: frame_len,
            });
        })
    }

    #[inline(always)]
    fn poll_inner(&mut self, see: impl FnMut(View<'_>, usize, u32)) -> Result<Received, RingError> {
        let received = match &mut self.ring {
            Virtqueue::Split(ring) => self.buffers.receive(ring, see),
            Virtqueue::Packed(ring) => self.buffers.receive(ring, see),
        };
        let (received, kick) = received?;
        if kick {
            let _ = self.kick.signal();
        }
        Ok(received)
    }

    /// The ring.
    pub fn virtqueue(&mut self) -> &mut Virtqueue {
        &mut self.ring
    }

    /// The split ring.
    ///
    /// # Panics
    /// If the ring is packed; [`Self::virtqueue`] serves either.
    pub fn ring(&mut self) -> &mut SplitRing {
        self.ring.expect_split()
    }
}

impl RxBuffers {
    /// Takes one batch and posts its buffers again. Returns true if the device must be kicked.
    #[inline(always)]
    fn receive(
        &mut self,
        ring: &mut impl DriverRing,
        mut see: impl FnMut(View<'_>, usize, u32),
    ) -> Result<(Received, bool), RingError> {
        let count = ring.take_used(&mut self.elements[..self.batch])?;
        if count == 0 {
            let nothing = Received {
                empty: true,
                ..Received::default()
            };
            return Ok((nothing, false));
        }
        let elements = &self.elements[..count];
        let (view, offsets) = (self.area.view(), self.offsets.as_slice());
        let header_len = self.header_len as usize;
        let frame_at =
            |element: &UsedElement| offsets[usize::from(element.id)] as usize + header_len;
        for element in elements {
            view.prefetch(offsets[usize::from(element.id)] as usize);
            view.prefetch(frame_at(element));
        }
        let frame_len = |element: &UsedElement| element.len.saturating_sub(header_len as u32);
        // The 16 bits before a frame: num_buffers, or the end of a header without it.
        let word = |element: &UsedElement| view.load_u16(frame_at(element) - 2, Relaxed);
        let mut received = Received::default();
        // All headers first: in one loop with the rest, each address would depend on the previous one.
        let several = elements
            .iter()
            .fold(false, |several, element| several | (word(element) > 1));
        for element in elements {
            std::hint::black_box(view.load_u16(frame_at(element), Relaxed));
        }
        if self.continuation == 0 && !(several && self.mergeable) {
            received.frames = count as u32;
            for element in elements {
                received.bytes += u64::from(frame_len(element));
                see(view, frame_at(element), frame_len(element));
            }
        } else {
            for element in elements {
                if self.continuation > 0 {
                    self.continuation -= 1;
                    received.bytes += u64::from(element.len);
                } else {
                    self.continuation = word(element).saturating_sub(1);
                    received.frames += 1;
                    received.bytes += u64::from(frame_len(element));
                    see(view, frame_at(element), frame_len(element));
                }
            }
        }
        let (base, len) = (self.area.guest_address(), self.buffer_len);
        ring.offer_buffers(elements, self.write_descriptors, |id| Buffer {
            address: base + u64::from(offsets[usize::from(id)]),
            len,
            device_writes: true,
        });
        Ok((received, ring.publish()))
    }
}
