//! A guest that forwards: does the work of a router's driver per frame, and no more.
//!
//! Nothing is copied. The buffer that a frame came in is also sent, and the receive ring gets a spare one in its place,
//! as in DPDK's drivers.

use crate::event::EventFd;
use crate::memory::Window;
use crate::net::HEADER_LEN;
use crate::pump::BATCH_MAX;
use crate::queue::{
    QueueError, ReceiveParts, ReceiveQueue, TransmitQueue, receive_lead, receive_stride,
};
use crate::ring::{Buffer, RingError, UsedElement};
use crate::virtqueue::{DriverRing, Virtqueue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Destination and source address, at the start of a frame.
const ADDRESSES_LEN: usize = 12;

/// Result of one poll of a [`ForwardPump`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Frames received and sent.
    pub frames: u32,
    /// Frames received and dropped: longer than one buffer, or shorter than two addresses.
    pub dropped: u32,
    /// The transmit ring was full, so nothing was received.
    pub full: bool,
}

/// Sends the frames of a receive ring through a transmit ring, with other addresses.
#[derive(Debug)]
pub struct ForwardPump {
    rx: Virtqueue,
    tx: Virtqueue,
    kick_rx: Arc<EventFd>,
    kick_tx: Arc<EventFd>,
    buffers: ForwardBuffers,
}

/// A forwarding pump without its rings. Buffers are identified by their offset in `area`.
#[derive(Debug)]
struct ForwardBuffers {
    area: Window,
    buffer_len: u32,
    header_len: usize,
    mergeable: bool,
    /// Destination and source of forwarded frames.
    addresses: [u8; ADDRESSES_LEN],
    /// By receive descriptor: its buffer.
    rx_buffers: Vec<u32>,
    /// By transmit descriptor: its buffer, and the bytes to send of it.
    tx_buffers: Vec<(u32, u32)>,
    /// Transmit descriptors that are not in flight; in the order of the table, as long as the device uses them in order.
    tx_idle: VecDeque<u16>,
    /// Buffers in neither ring.
    spare: Vec<u32>,
    received: [UsedElement; BATCH_MAX],
    sent: [UsedElement; BATCH_MAX],
    /// Buffers of the current frame that have not arrived yet.
    continuation: u16,
}

impl ForwardPump {
    /// Creates a pump on two queues of one guest: the first has its buffers posted, the second is idle. The second
    /// queue's memory becomes the spare buffers.
    pub(crate) fn new(
        receive: ReceiveQueue,
        transmit: TransmitQueue,
        (kick_rx, kick_tx): (Arc<EventFd>, Arc<EventFd>),
        destination: [u8; 6],
        source: [u8; 6],
    ) -> Result<Self, QueueError> {
        let ReceiveParts {
            ring: mut rx,
            area: rx_area,
            offsets,
            buffer_len,
            header_len,
            mergeable,
        } = receive.into_parts()?;
        let (mut tx, tx_area, _) = transmit.into_parts()?;
        let area = joined(&rx_area, &tx_area)?;
        let base = |part: &Window| (part.guest_address() - area.guest_address()) as u32;
        let size = tx.layout().size;
        let (first, step) = (base(&tx_area), receive_stride(buffer_len as usize));
        let lead = receive_lead(header_len);
        let spare: Vec<u32> = (0..(tx_area.len() / step).min(size.into()))
            .map(|i| first + (i * step + lead) as u32)
            .collect();
        if spare.is_empty() {
            return Err(QueueError::NotPumpable);
        }
        rx.disable_calls();
        tx.disable_calls();
        let mut addresses = [0; ADDRESSES_LEN];
        addresses[..6].copy_from_slice(&destination);
        addresses[6..].copy_from_slice(&source);
        let buffers = ForwardBuffers {
            buffer_len,
            header_len,
            mergeable,
            addresses,
            rx_buffers: offsets.iter().map(|at| base(&rx_area) + at).collect(),
            tx_buffers: vec![(0, 0); size.into()],
            tx_idle: (0..size).collect(),
            spare,
            received: [UsedElement::default(); BATCH_MAX],
            sent: [UsedElement::default(); BATCH_MAX],
            continuation: 0,
            area,
        };
        Ok(Self {
            rx,
            tx,
            kick_rx,
            kick_tx,
            buffers,
        })
    }

    /// Forwards at most one batch. Frames stay in the receive ring while there is no room to send.
    ///
    /// # Errors
    /// Faults of the device.
    #[inline]
    pub fn poll(&mut self) -> Result<Forwarded, RingError> {
        let buffers = &mut self.buffers;
        let forwarded = match (&mut self.rx, &mut self.tx) {
            (Virtqueue::Split(rx), Virtqueue::Split(tx)) => buffers.forward(rx, tx),
            (Virtqueue::Packed(rx), Virtqueue::Packed(tx)) => buffers.forward(rx, tx),
            (Virtqueue::Split(rx), Virtqueue::Packed(tx)) => buffers.forward(rx, tx),
            (Virtqueue::Packed(rx), Virtqueue::Split(tx)) => buffers.forward(rx, tx),
        };
        let (forwarded, [kick_rx, kick_tx]) = forwarded?;
        if kick_rx {
            let _ = self.kick_rx.signal();
        }
        if kick_tx {
            let _ = self.kick_tx.signal();
        }
        Ok(forwarded)
    }

    /// Frames sent that the device has not read yet.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn in_flight(&mut self) -> Result<u16, RingError> {
        Ok(self.tx.outstanding() - self.tx.pending_used()?)
    }
}

impl ForwardBuffers {
    /// Forwards one batch. Returns whether the device must be kicked, for the receive ring and the transmit ring.
    #[inline(always)]
    fn forward(
        &mut self,
        rx: &mut impl DriverRing,
        tx: &mut impl DriverRing,
    ) -> Result<(Forwarded, [bool; 2]), RingError> {
        self.reclaim(tx)?;
        let mut forwarded = Forwarded::default();
        let room = BATCH_MAX.min(self.tx_idle.len()).min(self.spare.len());
        if room == 0 {
            forwarded.full = true;
            return Ok((forwarded, [false; 2]));
        }
        let count = rx.take_used(&mut self.received[..room])?;
        if count == 0 {
            return Ok((forwarded, [false; 2]));
        }
        let view = self.area.view();
        for element in &self.received[..count] {
            view.prefetch(self.rx_buffers[usize::from(element.id)] as usize);
        }
        let mut sent = 0;
        for i in 0..count {
            let element = self.received[i];
            if !self.is_whole(element) {
                forwarded.dropped += 1;
                continue;
            }
            // Both have at least `room`.
            let (Some(id), Some(spare)) = (self.tx_idle.pop_front(), self.spare.pop()) else {
                break;
            };
            let buffer = std::mem::replace(&mut self.rx_buffers[usize::from(element.id)], spare);
            self.readdress(buffer);
            self.tx_buffers[usize::from(id)] = (buffer, element.len.min(self.buffer_len));
            self.sent[sent].id = id;
            sent += 1;
        }
        forwarded.frames = sent as u32;
        self.offer(rx, count, tx, sent);
        Ok((forwarded, [rx.publish(), tx.publish()]))
    }

    /// Takes back buffers that the device has sent.
    #[inline(always)]
    fn reclaim(&mut self, tx: &mut impl DriverRing) -> Result<(), RingError> {
        let count = tx.take_used(&mut self.sent)?;
        for element in &self.sent[..count] {
            self.spare.push(self.tx_buffers[usize::from(element.id)].0);
            self.tx_idle.push_back(element.id);
        }
        Ok(())
    }

    /// Whether the buffer contains a whole frame with both addresses.
    #[inline(always)]
    fn is_whole(&mut self, element: UsedElement) -> bool {
        if self.continuation > 0 {
            self.continuation -= 1;
            return false;
        }
        let at = self.rx_buffers[usize::from(element.id)] as usize;
        if self.mergeable {
            let buffers = self.area.view().load_u16(at + self.header_len - 2, Relaxed);
            self.continuation = buffers.saturating_sub(1);
        }
        self.continuation == 0 && element.len as usize >= self.header_len + ADDRESSES_LEN
    }

    /// Writes an empty virtio-net header, since no offload is left, and the next hop's addresses.
    #[inline(always)]
    fn readdress(&self, buffer: u32) {
        let (view, at) = (self.area.view(), buffer as usize);
        view.write(at, &[0; HEADER_LEN][..self.header_len]);
        view.write_array(at + self.header_len, self.addresses);
    }

    /// Posts the `received` buffers of the receive ring, and makes `sent` ones available for sending.
    #[inline(always)]
    fn offer(
        &self,
        rx: &mut impl DriverRing,
        received: usize,
        tx: &mut impl DriverRing,
        sent: usize,
    ) {
        let base = self.area.guest_address();
        let (tx_buffers, rx_buffers) = (self.tx_buffers.as_slice(), self.rx_buffers.as_slice());
        tx.offer_buffers(&self.sent[..sent], true, |id| {
            let (at, len) = tx_buffers[usize::from(id)];
            Buffer {
                address: base + u64::from(at),
                len,
                device_writes: false,
            }
        });
        let len = self.buffer_len;
        rx.offer_buffers(&self.received[..received], true, |id| Buffer {
            address: base + u64::from(rx_buffers[usize::from(id)]),
            len,
            device_writes: true,
        });
    }
}

/// A window on both and on the range between them.
fn joined(a: &Window, b: &Window) -> Result<Window, QueueError> {
    let first = a.guest_address().min(b.guest_address());
    let end = |window: &Window| window.guest_address() + window.len() as u64;
    let len = end(a).max(end(b)) - first;
    if u32::try_from(len).is_err() {
        return Err(QueueError::NotPumpable);
    }
    let window = a.memory().window(first, len as usize);
    window.map_err(|_| QueueError::NotPumpable) // in two regions
}
