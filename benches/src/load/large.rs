//! Two guests in this process, one of which sends large TCP frames with Linux's layout: one piece with virtio-net header,
//! Ethernet, IPv4 and TCP, and pages for the payload; indirect if negotiated.
//!
//! At most [`IN_FLIGHT`] frames are in flight, as with TCP's window: a switch that takes larger bursts than the receiver has
//! buffers for is not forced to drop.

use crate::error::BenchError;
use crate::lab::Ports;
use crate::load::connect::connect;
use crate::load::{
    CHECKSUM_OFFSET, HEADERS_LEN, ID_AT, Load, MSS, Offered, SEQUENCE_AT, TCP_AT, addresses, tcp,
};
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::net::{self, features};
use crosspoint_guest::ring::DESCRIPTOR_LEN;
use crosspoint_guest::{Buffer, Guest, GuestOptions, RegionLayout, RxPump, VirtioNetHdr, Window};
use std::time::{Duration, Instant};

/// Address of the frames: far from everything that [`Guest`] places itself.
const FRAMES_BASE: u64 = 1 << 32;
/// Room for the first piece of a frame: the virtio-net header and the protocol headers, which begin at a cache line.
const HEAD_ROOM: usize = 256;
const HEAD_AT: usize = 128;
/// Features that a Linux guest accepts as well, and that some switches require before they pass on large frames whole.
const WANTED: u64 = features::HOST_TSO6 | features::GUEST_TSO6;
/// Without any of these there is nothing to measure here.
const NEEDED: [(u64, &str); 5] = [
    (features::CSUM, "CSUM"),
    (features::GUEST_CSUM, "GUEST_CSUM"),
    (features::HOST_TSO4, "HOST_TSO4"),
    (features::GUEST_TSO4, "GUEST_TSO4"),
    (features::VERSION_1, "VERSION_1"),
];
/// Frames that are compared byte for byte before the first trial.
const CHECKED: usize = 64;
/// Longest wait for these.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// After this long without a frame, the frames in flight are lost.
const LOST_AFTER: Duration = Duration::from_millis(20);
/// Longest wait for the last frames of a trial.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Bytes of a receive buffer, as Linux posts them.
const RX_BUFFER: usize = 4096;
/// Most frames in flight.
const IN_FLIGHT: u64 = 8;
/// Number of different frames, sent in turn: together 8 MiB.
const FRAMES: u16 = 128;
/// Entries of each virtqueue.
const RING: u16 = 256;

/// The shape of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Payload, in units of 1448 bytes.
    pub segments: u16,
    /// Size of the payload's pieces in bytes.
    pub piece: usize,
}

impl Shape {
    /// Whether such frames can be sent.
    pub fn is_valid(self) -> bool {
        (2..=45).contains(&self.segments) && (64..=65536).contains(&self.piece)
    }

    /// Length in bytes, headers included.
    pub fn frame_len(self) -> usize {
        HEADERS_LEN + usize::from(self.segments) * MSS
    }

    /// Number of the payload's pieces.
    pub fn pieces(self) -> usize {
        (self.frame_len() - HEADERS_LEN).div_ceil(self.piece)
    }
}

/// A frame's place.
struct Slot {
    table: Window,
    buffers: Vec<Buffer>,
    /// Offset of the frame's first byte from the start of the area.
    at: usize,
}

/// The sending guest.
struct Sender {
    guest: Guest,
    area: Window,
    slots: Vec<Slot>,
    /// Slots that are not in flight. They are taken in turn, so that all frames of the area are sent again and again.
    idle: std::collections::VecDeque<u16>,
    /// The slot of each descriptor.
    slot_of: Vec<u16>,
    indirect: bool,
    sent: u64,
}

/// Both guests.
pub struct LargeGuests {
    sender: Sender,
    rx: RxPump,
    arrived: u64,
    lost: u64,
    clock: Clock,
    _receiver: Guest,
}

impl LargeGuests {
    /// Connects, and checks that large frames arrive whole, with the bytes and the header with which they were sent.
    pub fn connect(
        ports: &Ports,
        shape: Shape,
        huge_pages: bool,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let name = ports.sockets[0].display().to_string();
        let guest = guest_options(shape, huge_pages);
        let mut guests = connect(ports, &[(0, guest.clone()), (1, guest)])?.into_iter();
        let (Some(a), Some(mut receiver)) = (guests.next(), guests.next()) else {
            unreachable!("two were asked for");
        };
        for guest in [&a, &receiver] {
            let have = guest.negotiated().features;
            if let Some((_, missing)) = NEEDED.iter().find(|(bit, _)| have & bit == 0) {
                let what = format!("does not offer {missing}, so it has no large frames");
                return Err(BenchError::backend(&name, what));
            }
        }
        let mut sender = Sender::new(a, shape)?;
        learn(&mut sender, &mut receiver, &name)?;
        check(&mut sender, &mut receiver, &name)?;
        let arrived = sender.sent;
        Ok(Self {
            rx: receiver.take_rx_pump(0, true)?,
            sender,
            arrived,
            lost: 0,
            clock,
            _receiver: receiver,
        })
    }

    /// Counts frames. Some may have been counted as lost, if a thread was off its core for long.
    fn arrive(&mut self, frames: u64) {
        self.arrived += frames;
        self.lost = self.lost.min(self.sender.sent.saturating_sub(self.arrived));
    }

    fn on_their_way(&self) -> u64 {
        self.sender.sent.saturating_sub(self.arrived + self.lost)
    }

    fn drain(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + DRAIN_MAX;
        while self.on_their_way() > 0 && Instant::now() < deadline {
            let frames = u64::from(self.rx.poll()?.frames);
            self.arrive(frames);
        }
        self.lost += self.on_their_way();
        Ok(())
    }
}

impl Load for LargeGuests {
    /// These frames have no stamps, so there is no latency; runs of lost frames are not measured.
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let (sent_before, lost_before) = (self.sender.sent, self.lost);
        let (start, mut arrived_within) = (tsc(), 0);
        let end = start + self.clock.cycles(time);
        let lost_after = self.clock.cycles(LOST_AFTER);
        let (mut now, mut last) = (start, start);
        let (mut due, mut polls, mut polls_full) = (0, 0_u64, 0_u64);
        while now < end {
            let mut room = IN_FLIGHT.saturating_sub(self.on_their_way()) as usize;
            if let Some(rate) = rate {
                due = (self.clock.ns(now - start) * rate / 1e9) as u64;
                room = room.min(due.saturating_sub(self.sender.sent - sent_before) as usize);
            }
            let sent = self.sender.poll(room)?;
            if room > 0 {
                polls += 1;
                polls_full += u64::from(sent == 0);
            }
            let frames = u64::from(self.rx.poll()?.frames);
            arrived_within += frames;
            self.arrive(frames);
            now = tsc();
            if frames > 0 || sent > 0 {
                last = now;
            } else if now - last > lost_after {
                self.lost += self.on_their_way();
                last = now;
            }
        }
        let seconds = (now - start) as f64 / self.clock.hz();
        self.drain()?;
        let sent = self.sender.sent - sent_before;
        Ok(Offered {
            seconds,
            due: if rate.is_some() { due } else { sent },
            sent,
            arrived: sent - self.lost.saturating_sub(lost_before),
            arrived_within,
            polls,
            polls_full,
            ..Offered::default()
        })
    }
}

impl Sender {
    fn new(guest: Guest, shape: Shape) -> Result<Self, BenchError> {
        let (frame_len, pieces) = (shape.frame_len(), shape.pieces());
        let window = |address, len| {
            let window = guest.memory().window(address, len);
            window.map_err(|why| BenchError::Guest(why.into()))
        };
        let stride = stride(shape);
        let area = window(FRAMES_BASE, stride * usize::from(FRAMES))?;
        let table_len = DESCRIPTOR_LEN * (1 + pieces);
        let tables_at = FRAMES_BASE + (stride * usize::from(FRAMES)) as u64;
        let header = header().to_bytes();
        let mut slots = Vec::new();
        for slot in 0..FRAMES {
            let base = usize::from(slot) * stride;
            let (at, mut payload_at) = (base + HEAD_AT, base + HEAD_ROOM);
            let frame = tcp::frame(frame_len, addresses::of(0), addresses::of(1), slot);
            let (head, payload) = frame.split_at(HEADERS_LEN);
            let view = area.view();
            view.write(at - header.len(), &header);
            view.write(at, head);
            let buffer = |at: usize, len: usize| Buffer {
                address: FRAMES_BASE + at as u64,
                len: len as u32,
                device_writes: false,
            };
            let mut buffers = vec![buffer(at - header.len(), header.len() + HEADERS_LEN)];
            for piece in payload.chunks(shape.piece) {
                view.write(payload_at, piece);
                buffers.push(buffer(payload_at, piece.len()));
                payload_at += shape.piece;
            }
            let table = tables_at + u64::from(slot) * table_room(shape) as u64;
            let table = window(table, table_len)?;
            slots.push(Slot { table, buffers, at });
        }
        Ok(Self {
            indirect: guest.negotiated().features & features::INDIRECT_DESC != 0,
            idle: (0..FRAMES).collect(),
            slot_of: vec![0; RING.into()],
            sent: 0,
            guest,
            area,
            slots,
        })
    }

    /// Takes back what the switch has read, and sends up to `limit` frames. Returns their number.
    fn poll(&mut self, limit: usize) -> Result<usize, BenchError> {
        let queue = self.guest.transmit_queue(0)?.virtqueue();
        queue.disable_calls();
        while let Some(used) = queue.pop_used()? {
            self.idle.push_back(self.slot_of[usize::from(used.id)]);
        }
        let (view, mut count) = (self.area.view(), 0);
        while count < limit
            && let Some(number) = self.idle.front().copied()
        {
            let slot = &self.slots[usize::from(number)];
            // The fields that TCP writes in every frame. The checksum field holds the sum of the pseudo-header, which is the
            // same.
            view.write_array(slot.at + SEQUENCE_AT, (self.sent as u32).to_be_bytes());
            let id = if self.indirect {
                queue.add_indirect(&slot.table, &slot.buffers)
            } else {
                queue.add(&slot.buffers)
            };
            let Some(id) = id else {
                break; // the ring is full
            };
            self.slot_of[usize::from(id)] = number;
            self.idle.pop_front();
            self.sent += 1;
            count += 1;
        }
        if queue.publish() {
            self.guest.kick(1)?;
        }
        Ok(count)
    }

    /// The frame that lies in `slot`.
    fn frame(&self, slot: u16) -> Option<Vec<u8>> {
        let buffers = &self.slots.get(usize::from(slot))?.buffers;
        let mut frame = Vec::new();
        for buffer in buffers {
            let mut bytes = vec![0; buffer.len as usize];
            let at = (buffer.address - FRAMES_BASE) as usize;
            self.area.view().read(at, &mut bytes);
            frame.extend(bytes);
        }
        Some(frame.split_off(net::HEADER_LEN))
    }
}

/// The header of each frame.
fn header() -> VirtioNetHdr {
    VirtioNetHdr {
        flags: net::HDR_F_NEEDS_CSUM,
        gso_type: net::GSO_TCPV4,
        hdr_len: HEADERS_LEN as u16,
        gso_size: MSS as u16,
        csum_start: TCP_AT as u16,
        csum_offset: CHECKSUM_OFFSET as u16,
        num_buffers: 0,
    }
}

fn stride(shape: Shape) -> usize {
    // An odd number of lines, so that frames spread over all sets of a cache; pieces begin at a line.
    HEAD_ROOM + shape.pieces() * shape.piece.next_multiple_of(64) + 64
}

fn table_room(shape: Shape) -> usize {
    (DESCRIPTOR_LEN * (1 + shape.pieces())).next_multiple_of(64)
}

fn guest_options(shape: Shape, huge_pages: bool) -> GuestOptions {
    let needed = NEEDED.iter().fold(0, |all, (bit, _)| all | bit);
    let wanted = WANTED | features::MRG_RXBUF | features::INDIRECT_DESC;
    GuestOptions {
        ring_size: RING,
        rx_buffer_len: RX_BUFFER,
        features: needed | wanted | features::PROTOCOL_FEATURES,
        huge_pages,
        extra_regions: vec![RegionLayout {
            guest_base: FRAMES_BASE,
            len: usize::from(FRAMES) * (stride(shape) + table_room(shape)),
            huge_pages,
        }],
        ..GuestOptions::default()
    }
}

/// Lets the switch learn the receiver's address.
fn learn(sender: &mut Sender, receiver: &mut Guest, name: &str) -> Result<(), BenchError> {
    let hello = tcp::frame(60, addresses::of(1), addresses::of(0), 0);
    let deadline = Instant::now() + CHECK_MAX;
    loop {
        receiver.send(0, &[&hello])?;
        let wait = Duration::from_millis(100);
        let frames = sender.guest.receive_at_least(0, 1, wait)?;
        let is_hello = |(_, frame): &(_, Vec<u8>)| frame.starts_with(&hello[..12]);
        if frames.iter().any(is_hello) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(BenchError::backend(name, "short frames do not arrive"));
        }
    }
}

/// Checks every byte of some frames, and their headers.
fn check(sender: &mut Sender, receiver: &mut Guest, name: &str) -> Result<(), BenchError> {
    let deadline = Instant::now() + CHECK_MAX;
    let mut checked = 0;
    while checked < CHECKED {
        if Instant::now() > deadline {
            let what = format!("{checked} of {CHECKED} large frames arrived in {CHECK_MAX:?}");
            return Err(BenchError::backend(name, what));
        }
        if sender.poll(1)? == 0 {
            continue;
        }
        for (header, mut frame) in receiver.receive_at_least(0, 1, Duration::from_secs(1))? {
            let slot = u16::from_be_bytes([frame[ID_AT], frame[ID_AT + 1]]);
            let mut sent = sender.frame(slot).unwrap_or_default();
            // A switch may put a different pseudo-header sum in the field; a receiver does not read it.
            for bytes in [&mut frame, &mut sent] {
                let field = bytes.iter_mut().skip(TCP_AT + CHECKSUM_OFFSET);
                field.take(2).for_each(|byte| *byte = 0);
            }
            // `hdr_len` is a hint, and `num_buffers` is set by the device.
            let got = VirtioNetHdr {
                hdr_len: HEADERS_LEN as u16,
                num_buffers: 0,
                ..header
            };
            if frame != sent || got != self::header() {
                let (len, sent) = (frame.len(), sent.len());
                let what =
                    format!("a frame of {sent} bytes arrives as {len}, or changed: {header:?}");
                return Err(BenchError::backend(name, what));
            }
            checked += 1;
        }
    }
    Ok(())
}
