//! A generator and a sink that are fast enough for the switch between them to be the bottleneck.
//!
//! Both do per frame what a real driver does and no more: see [`TxWrites`]. Neither allocates after creation.

mod receive;

pub use receive::RxPump;

use crate::event::EventFd;
use crate::memory::{CACHE_LINE_LEN, View, Window};
use crate::net::{HEADER_LEN, VirtioNetHdr};
use crate::queue::{QueueError, ReceiveQueue, TransmitQueue};
use crate::ring::{Buffer, Descriptor, RingError, SplitRing, UsedElement};
use crate::virtqueue::{DriverRing, Virtqueue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Maximum frames of one poll.
pub const BATCH_MAX: usize = 64;
/// Length in bytes of the shortest frame that a pump makes, without the frame check sequence: a "64-byte frame".
pub const FRAME_LEN_MIN: usize = 60;
/// Offset of the low 16 bits of a frame's sequence number, big-endian.
pub const SEQUENCE_OFFSET: usize = 42;
/// Offset of the stamp of [`TxPump::poll_stamped`] in a frame, little-endian, 8 bytes.
pub const STAMP_OFFSET: usize = 44;
/// Visible bytes of a received frame: most of its first cache line.
pub const HEAD_LEN: usize = CACHE_LINE_LEN - HEADER_LEN;
/// Number of flows that differ in the UDP source port only; further ones differ in the source address too.
pub const PORTS: u32 = 60_000;
const PORT_FIRST: u32 = 1024;
const SOURCE_ADDRESS: u32 = 0x0a00_0001;
const ETHERNET_LEN: usize = 14;
/// Step from one frame's destination to the next one's, for [`TxPumpOptions::addresses`]: a prime, so that all numbers
/// occur, and neighbours among the sources are not neighbours among the destinations.
const DESTINATION_STEP: u32 = 7919;
/// Offset in an address of the bytes that [`TxPumpOptions::addresses`] numbers.
const ADDRESS_NUMBER_OFFSET: usize = 2;

/// What is written for each sent frame, besides the available ring. The device has to fetch what a driver writes from
/// this core's cache, so this strongly affects the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxWrites {
    /// Nothing: the same descriptors and bytes repeat. Favours the switch.
    Nothing,
    /// The descriptor.
    Descriptor,
    /// The descriptor and the first line of the frame: flow, sequence number, stamp. The minimum that real guests
    /// write.
    #[default]
    Frame,
}

/// Options of a [`TxPump`].
#[derive(Clone, Copy, Debug)]
pub struct TxPumpOptions {
    /// Length of each frame in bytes, without frame check sequence: 60 for a "64-byte frame".
    pub frame_len: usize,
    /// If not empty, replaces `frame_len`: buffers get these lengths in turn, and so do frames if buffers are used in
    /// order. If the ring's size is not a multiple of their number, the first lengths occur more often.
    pub mix: &'static [u16],
    /// Source MAC address.
    pub source: [u8; 6],
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Number of different flows, in turn: UDP source ports from 1024 on; from 60000 flows on, IPv4 source addresses
    /// too.
    pub flows: u32,
    /// Number of addresses on either side, in turn, up to 65536: bytes 2 and 3 of source and destination are a number.
    /// The destination's steps differ from the source's, so no frame equals the previous one. 1: both addresses
    /// unchanged.
    pub addresses: u32,
    /// Frames in a batch, up to [`BATCH_MAX`].
    pub batch: usize,
    /// What is written for each frame.
    pub writes: TxWrites,
    /// Header before each frame.
    pub header: VirtioNetHdr,
}

impl Default for TxPumpOptions {
    /// 60 bytes from 02:00:00:00:00:01 to 02:00:00:00:00:02, one flow, batches of 32.
    fn default() -> Self {
        Self {
            frame_len: FRAME_LEN_MIN,
            mix: &[],
            source: [2, 0, 0, 0, 0, 1],
            destination: [2, 0, 0, 0, 0, 2],
            flows: 1,
            addresses: 1,
            batch: 32,
            writes: TxWrites::Frame,
            header: VirtioNetHdr::default(),
        }
    }
}

/// Result of one poll of a [`TxPump`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames made available.
    pub frames: u32,
    /// The device had returned no buffer.
    pub full: bool,
    /// The device asked to be kicked, and was.
    pub kicked: bool,
}

/// Result of one poll of an [`RxPump`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Frames.
    pub frames: u32,
    /// Bytes of these frames, headers not counted.
    pub bytes: u64,
    /// There were no frames.
    pub empty: bool,
}

/// The start of a received frame, for [`RxPump::poll_each`].
#[derive(Clone, Copy, Debug)]
pub struct FrameHead {
    /// The first bytes of the frame; after the frame's end, the buffer's previous contents.
    pub bytes: [u8; HEAD_LEN],
    /// Bytes of the frame in its first buffer.
    pub len: u32,
}

impl FrameHead {
    /// Low 16 bits of the sequence number that the [`TxPump`] wrote.
    #[must_use]
    pub fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.bytes[SEQUENCE_OFFSET], self.bytes[SEQUENCE_OFFSET + 1]])
    }

    /// The stamp that the [`TxPump`] wrote.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        let mut stamp = [0; 8];
        stamp.copy_from_slice(&self.bytes[STAMP_OFFSET..STAMP_OFFSET + 8]);
        u64::from_le_bytes(stamp)
    }
}

/// Keeps a transmit ring full.
#[derive(Debug)]
pub struct TxPump {
    ring: Virtqueue,
    kick: Arc<EventFd>,
    frames: TxFrames,
}

/// A transmit pump without its ring.
#[derive(Debug)]
struct TxFrames {
    area: Window,
    options: TxPumpOptions,
    /// By buffer, the frame's length; empty if all are equal.
    lens: Vec<u16>,
    header_len: usize,
    /// Bytes from one frame to the next.
    stride: usize,
    /// Descriptors that are not in flight; the next one to use is last.
    idle: VecDeque<u16>,
    elements: [UsedElement; BATCH_MAX],
    /// Frames made available so far.
    sequence: u64,
    flow: u32,
    /// Numbers of the next frame's source and destination.
    addresses: [u32; 2],
}

impl TxPump {
    /// Creates a pump on an idle queue. Descriptor i is for buffer i from now on. Frames begin at a cache line, with
    /// the header at the end of the previous line, as with DPDK.
    pub(crate) fn new(
        queue: TransmitQueue,
        kick: Arc<EventFd>,
        options: &TxPumpOptions,
    ) -> Result<Self, QueueError> {
        let (mut ring, area, header_len) = queue.into_parts()?;
        let options = TxPumpOptions {
            frame_len: frame_len_max(options),
            flows: options.flows.max(1),
            addresses: options.addresses.clamp(1, 1 << 16),
            batch: options.batch.clamp(1, BATCH_MAX),
            ..*options
        };
        // An odd number of cache lines, so that frames spread over all sets of a cache.
        let stride = ((1 + options.frame_len.div_ceil(CACHE_LINE_LEN)) | 1) * CACHE_LINE_LEN;
        let count = (area.len() / stride).min(ring.layout().size.into()) as u16;
        if count == 0 {
            return Err(QueueError::FrameTooLong {
                len: options.frame_len,
                pieces: 1,
            });
        }
        ring.disable_calls();
        let of_mix = options.mix.iter().cycle().take(count.into());
        let frames = TxFrames {
            area,
            options,
            lens: of_mix.map(|len| (*len).max(FRAME_LEN_MIN as u16)).collect(),
            header_len,
            stride,
            idle: (0..count).rev().collect(),
            elements: [UsedElement::default(); BATCH_MAX],
            sequence: 0,
            flow: 0,
            addresses: [0, 0],
        };
        frames.write_all(count);
        if let Some(ring) = ring.split_mut() {
            let place = frames.place();
            let descriptor = |id| (id, Descriptor::of(&place.buffer(id, &frames.lens), None));
            ring.write_descs((0..count).map(descriptor));
        }
        Ok(Self { ring, kick, frames })
    }

    /// Reclaims and resends at most one batch.
    ///
    /// # Errors
    /// Faults of the device.
    #[inline]
    pub fn poll(&mut self) -> Result<Sent, RingError> {
        self.poll_stamped(self.frames.options.batch, 0)
    }

    /// Like [`TxPump::poll`], but sends at most `limit` frames, for a rate below the maximum, and writes `stamp` into
    /// each frame (if it writes frames).
    ///
    /// # Errors
    /// Faults of the device.
    #[inline]
    pub fn poll_stamped(&mut self, limit: usize, stamp: u64) -> Result<Sent, RingError> {
        let sent = match &mut self.ring {
            Virtqueue::Split(ring) => self.frames.send(ring, limit, stamp),
            Virtqueue::Packed(ring) => self.frames.send(ring, limit, stamp),
        };
        let (mut sent, kick) = sent?;
        if kick {
            let _ = self.kick.signal();
        }
        sent.kicked = kick;
        Ok(sent)
    }

    /// Takes back used buffers without resending them, and returns the number of frames still in flight: at 0, the
    /// device has read everything.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn drain(&mut self) -> Result<u16, RingError> {
        while let Some(used) = self.ring.pop_used()? {
            // Behind the others: a ring that is used in order continues in table order.
            self.frames.idle.push_front(used.id);
        }
        Ok(self.ring.outstanding())
    }

    /// Frames made available so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.frames.sequence
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

impl TxFrames {
    /// Writes headers and frames of the first `count` buffers.
    fn write_all(&self, count: u16) {
        let (view, place) = (self.area.view(), self.place());
        let header = &self.options.header.to_bytes()[..self.header_len];
        for id in 0..count {
            let (at, len) = (place.frame_at(id), self.frame_len(id));
            view.write(at - header.len(), header);
            view.write(at, &frame(&self.options, len));
            let flow = u32::from(id) % self.options.flows;
            write_flow(view, at, flow, self.options.flows, len);
        }
    }

    /// Reclaims and resends up to `limit` frames. Returns true if the device must be kicked.
    #[inline(always)]
    fn send(
        &mut self,
        ring: &mut impl DriverRing,
        limit: usize,
        stamp: u64,
    ) -> Result<(Sent, bool), RingError> {
        let limit = limit.min(self.options.batch);
        let mut count = 0;
        while count < limit
            && let Some(id) = self.idle.pop_back()
        {
            self.elements[count].id = id;
            count += 1;
        }
        count += ring.take_used(&mut self.elements[count..limit])?;
        if count == 0 {
            let full = limit > 0;
            let nothing = Sent {
                full,
                ..Sent::default()
            };
            return Ok((nothing, false));
        }
        if self.options.writes == TxWrites::Frame {
            self.write_frames(count, stamp);
        }
        let (place, write) = (self.place(), self.options.writes != TxWrites::Nothing);
        let lens = self.lens.as_slice();
        ring.offer_buffers(&self.elements[..count], write, |id| place.buffer(id, lens));
        self.sequence += count as u64;
        let sent = Sent {
            frames: count as u32,
            ..Sent::default()
        };
        Ok((sent, ring.publish()))
    }

    #[inline(always)]
    fn write_frames(&mut self, count: usize, stamp: u64) {
        let (view, place) = (self.area.view(), self.place());
        let (mut sequence, mut flow) = (self.sequence as u16, self.flow);
        let (mut numbers, count_of_addresses) = (self.addresses, self.options.addresses);
        for element in &self.elements[..count] {
            let at = place.frame_at(element.id);
            if self.options.flows > 1 {
                let len = self.frame_len(element.id);
                write_flow(view, at, flow, self.options.flows, len);
                flow = if flow + 1 == self.options.flows {
                    0
                } else {
                    flow + 1
                };
            }
            if count_of_addresses > 1 {
                write_addresses(view, at, numbers);
                let step = DESTINATION_STEP % count_of_addresses;
                numbers = [(numbers[0], 1), (numbers[1], step)]
                    .map(|(number, step)| wrapped(number + step, count_of_addresses));
            }
            view.write_array(at + SEQUENCE_OFFSET, sequence.to_be_bytes());
            view.write_array(at + STAMP_OFFSET, stamp.to_le_bytes());
            sequence = sequence.wrapping_add(1);
        }
        self.flow = flow;
        self.addresses = numbers;
    }

    /// Length of the frame in buffer `id`.
    #[inline(always)]
    fn frame_len(&self, id: u16) -> usize {
        match self.lens.get(usize::from(id)) {
            Some(len) => usize::from(*len),
            None => self.options.frame_len,
        }
    }

    #[inline(always)]
    fn place(&self) -> Place {
        Place {
            guest_address: self.area.guest_address(),
            stride: self.stride,
            header_len: self.header_len,
            len: (self.header_len + self.options.frame_len) as u32,
        }
    }
}

/// Location of a transmit pump's frames; a value, so that a loop can keep it in registers.
#[derive(Clone, Copy)]
struct Place {
    guest_address: u64,
    stride: usize,
    header_len: usize,
    len: u32,
}

impl Place {
    #[inline(always)]
    fn frame_at(self, id: u16) -> usize {
        usize::from(id) * self.stride + CACHE_LINE_LEN
    }

    #[inline(always)]
    fn buffer(self, id: u16, lens: &[u16]) -> Buffer {
        let address = self.guest_address + (self.frame_at(id) - self.header_len) as u64;
        let len = match lens.is_empty() {
            true => self.len,
            false => self.header_len as u32 + u32::from(lens[usize::from(id)]),
        };
        Buffer {
            address,
            len,
            device_writes: false,
        }
    }
}

/// UDP source port, and if there are not enough ports, the source address with the header checksum.
#[inline(always)]
fn write_flow(view: View<'_>, at: usize, flow: u32, flows: u32, frame_len: usize) {
    let port = (PORT_FIRST + flow % PORTS) as u16;
    view.write_array(at + ETHERNET_LEN + 20, port.to_be_bytes());
    if flows > PORTS {
        let header = ipv4_header(frame_len, SOURCE_ADDRESS + ((flow / PORTS) << 8));
        view.write(at + ETHERNET_LEN + 10, &header[10..16]);
    }
}

/// Numbers of source and destination.
#[inline(always)]
fn write_addresses(view: View<'_>, at: usize, [source, destination]: [u32; 2]) {
    let (to, from) = (at + ADDRESS_NUMBER_OFFSET, at + 6 + ADDRESS_NUMBER_OFFSET);
    view.write_array(to, (destination as u16).to_be_bytes());
    view.write_array(from, (source as u16).to_be_bytes());
}

/// Reduces a number below twice `count` to one below `count`.
#[inline(always)]
fn wrapped(number: u32, count: u32) -> u32 {
    if number >= count {
        number - count
    } else {
        number
    }
}

/// Length of the longest frame.
fn frame_len_max(options: &TxPumpOptions) -> usize {
    let longest = match options.mix.iter().max() {
        Some(longest) => usize::from(*longest),
        None => options.frame_len,
    };
    longest.max(FRAME_LEN_MIN)
}

/// Ethernet, IPv4, UDP to port 9 without checksum, and a counting payload.
fn frame(options: &TxPumpOptions, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&options.destination);
    frame.extend_from_slice(&options.source);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ipv4_header(len, SOURCE_ADDRESS));
    let udp_len = (len - ETHERNET_LEN - 20) as u16;
    for field in [PORT_FIRST as u16, 9, udp_len, 0] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

fn ipv4_header(frame_len: usize, source: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((frame_len - ETHERNET_LEN) as u16).to_be_bytes());
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&source.to_be_bytes());
    header[16..20].copy_from_slice(&0x0a00_00feu32.to_be_bytes());
    let sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header
}
