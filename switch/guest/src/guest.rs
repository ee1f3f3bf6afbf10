//! A guest: memory, queue pairs, a session.

use crate::event::EventFd;
use crate::frontend::{Negotiated, STATUS_DRIVER_OK, Session, SessionError, Vring};
use crate::memory::{CACHE_LINE_LEN, GuestMemory, MemoryError, RegionLayout};
use crate::message::{protocol, request};
use crate::net::{VirtioNetHdr, features, header_len};
use crate::packed::{Position, Progress};
use crate::pump::{RxPump, TxPump, TxPumpOptions};
use crate::queue::{ChainSplit, QueueError, ReceiveQueue, TransmitQueue};
use crate::ring::{RingError, RingLayout};
use crate::virtqueue::Virtqueue;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes at the start of each region that nothing is put in: guest address 0 is nobody's buffer.
const RESERVED_LEN: usize = 4096;

/// Why a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The memory's.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The session's.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A queue's.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// An eventfd's.
    #[error("guest: {0}")]
    Io(#[from] io::Error),
    /// No such queue pair, or a pump has taken the queue.
    #[error("guest: queue {0} does not exist, or a pump has it")]
    NoQueue(usize),
    /// There is no session, or the guest was not connected by path.
    #[error("guest: not connected")]
    NotConnected,
    /// After a reconnect the back end offers less than the driver was started with.
    #[error("guest: started with features {started:#x}, offered {offered:#x}")]
    FeaturesLost {
        /// In force until now.
        started: u64,
        /// Negotiated now.
        offered: u64,
    },
    /// Packed rings are wanted, and the back end does not offer them.
    #[error("guest: no packed rings among the features {offered:#x}")]
    NotPacked {
        /// What it offers.
        offered: u64,
    },
}

impl From<RingError> for GuestError {
    fn from(error: RingError) -> Self {
        Self::Queue(error.into())
    }
}

/// How a guest is made.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Entries of each ring, a power of two up to 32768 (packed rings: any number up to 32768).
    pub ring_size: u16,
    /// Packed rings instead of split ones; a back end that does not offer them is refused.
    pub packed: bool,
    /// Device features to take when offered; `RING_PACKED` follows from `packed`.
    pub features: u64,
    /// Protocol features to take when offered.
    pub protocol_features: u64,
    /// Guest physical bases of the regions that rings and buffers are spread over, in turn.
    pub region_bases: Vec<u64>,
    /// Regions that nothing is put in: the test's own.
    pub extra_regions: Vec<RegionLayout>,
    /// Back the memory with 2 MiB pages.
    pub huge_pages: bool,
    /// Bytes of a receive buffer, header included.
    pub rx_buffer_len: usize,
    /// Receive buffers posted at the start.
    pub rx_posted: u16,
    /// How a receive buffer is split over descriptors.
    pub rx_split: ChainSplit,
    /// How a transmitted frame is split over descriptors.
    pub tx_split: ChainSplit,
    /// Chains go through indirect tables, when `INDIRECT_DESC` is negotiated.
    pub indirect: bool,
    /// Bytes of the longest frame to transmit.
    pub frame_len_max: usize,
    /// Where the rings start: [`Virtqueue::reset`].
    pub base: u16,
    /// No call and kick eventfds: both sides poll.
    pub polling: bool,
    /// Longest wait for the back end.
    pub timeout: Duration,
}

impl Default for GuestOptions {
    /// One queue pair of 256 entries, mergeable 2048-byte buffers, modern device, no event index, no offloads.
    fn default() -> Self {
        Self {
            queue_pairs: 1,
            ring_size: 256,
            packed: false,
            features: features::VERSION_1 | features::MRG_RXBUF | features::PROTOCOL_FEATURES,
            protocol_features: protocol::MQ | protocol::REPLY_ACK,
            region_bases: vec![0],
            extra_regions: Vec::new(),
            huge_pages: false,
            rx_buffer_len: 2048,
            rx_posted: u16::MAX,
            rx_split: ChainSplit::Single,
            tx_split: ChainSplit::Single,
            indirect: false,
            frame_len_max: 2048,
            base: 0,
            polling: false,
            timeout: Duration::from_secs(5),
        }
    }
}

/// One ring as the session sees it.
#[derive(Debug)]
struct Attachment {
    layout: RingLayout,
    /// Of a packed ring.
    progress: Option<Progress>,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
}

#[derive(Debug)]
struct QueuePair {
    receive: Option<ReceiveQueue>,
    transmit: Option<TransmitQueue>,
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    options: GuestOptions,
    memory: Arc<GuestMemory>,
    pairs: Vec<QueuePair>,
    /// By vring index: 2n receives, 2n + 1 transmits.
    attachments: Vec<Attachment>,
    /// Features that the driver was started with.
    started: Option<u64>,
    session: Option<Session>,
    path: Option<PathBuf>,
    /// What the back end said at [`Guest::stop`].
    bases: Option<Vec<u32>>,
    kicks: u64,
}

/// Making and connecting.
impl Guest {
    /// A guest that is connected to nothing. Its rings are laid out; [`Guest::start`] posts the receive buffers.
    ///
    /// # Errors
    /// Options that make no sense, the system's.
    pub fn new(options: GuestOptions) -> Result<Self, GuestError> {
        let plan = Plan::new(&options);
        let memory = GuestMemory::new(&plan.regions(&options))?;
        let mut guest = Self {
            pairs: Vec::new(),
            attachments: Vec::new(),
            started: None,
            session: None,
            path: None,
            bases: None,
            kicks: 0,
            memory,
            options,
        };
        for pair in &plan.pairs {
            guest.add_pair(pair)?;
        }
        Ok(guest)
    }

    fn add_pair(&mut self, plan: &PairPlan) -> Result<(), GuestError> {
        let options = &self.options;
        let indirect = options.indirect && options.features & features::INDIRECT_DESC != 0;
        let window = |(address, len): (u64, usize)| self.memory.window(address, len);
        let ring = |address| {
            let layout = RingLayout::contiguous(options.ring_size, address);
            Virtqueue::new(&self.memory, layout, options.packed, options.base)
        };
        let (mut receive_ring, mut transmit_ring) =
            (ring(plan.receive.ring.0)?, ring(plan.transmit.ring.0)?);
        for ring in [&mut receive_ring, &mut transmit_ring] {
            let (kick, call) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
            self.attachments.push(Attachment {
                layout: ring.layout(),
                progress: ring.packed_mut().map(|ring| ring.progress()),
                kick,
                call,
            });
        }
        let tables = |plan: &QueuePlan| {
            if indirect {
                window(plan.tables).map(Some)
            } else {
                Ok(None)
            }
        };
        let receive = ReceiveQueue::new(
            receive_ring,
            window(plan.receive.area)?,
            tables(&plan.receive)?,
            options.rx_split,
            options.rx_buffer_len,
        );
        let transmit = TransmitQueue::new(
            transmit_ring,
            window(plan.transmit.area)?,
            tables(&plan.transmit)?,
            options.tx_split,
            options.frame_len_max,
        );
        self.pairs.push(QueuePair {
            receive: Some(receive),
            transmit: Some(transmit),
        });
        Ok(())
    }

    /// A guest connected to the switch that listens on `path`.
    ///
    /// # Errors
    /// Those of [`Guest::new`] and [`Guest::attach`].
    pub fn connect(path: impl AsRef<Path>, options: GuestOptions) -> Result<Self, GuestError> {
        let mut guest = Self::new(options)?;
        guest.path = Some(path.as_ref().to_path_buf());
        guest.reconnect()?;
        Ok(guest)
    }

    /// Connects again to the path of [`Guest::connect`]; see [`Guest::attach`].
    ///
    /// # Errors
    /// Those of [`Guest::attach`].
    pub fn reconnect(&mut self) -> Result<(), GuestError> {
        let path = self.path.as_ref().ok_or(GuestError::NotConnected)?;
        let session = Session::connect(path, self.options.timeout)?;
        self.attach(session)
    }

    /// Starts the device over `session`. The first time also starts the driver; again, the rings go on where the back
    /// end said that it stopped ([`Guest::stop`]), or, when it went away, at the used index, as QEMU does. A packed
    /// ring has no such index in memory: there it is what the driver has taken, and the used descriptors behind that.
    /// A pump on a packed ring that is used in order has to have taken all of them.
    ///
    /// # Errors
    /// The session's; no packed rings.
    pub fn attach(&mut self, mut session: Session) -> Result<(), GuestError> {
        let negotiated = session.negotiate(self.wanted(), self.options.protocol_features)?;
        if self.options.packed && negotiated.features & features::RING_PACKED == 0 {
            return Err(GuestError::NotPacked {
                offered: negotiated.offered,
            });
        }
        match self.started {
            None => self.start(negotiated.features)?,
            Some(started)
                if started & !features::PROTOCOL_FEATURES
                    != negotiated.features & !features::PROTOCOL_FEATURES =>
            {
                return Err(GuestError::FeaturesLost {
                    started,
                    offered: negotiated.features,
                });
            }
            Some(_) => {}
        }
        session.set_mem_table(&self.memory)?;
        for index in 0..self.attachments.len() {
            let base = self.resume_at(index)?;
            let attachment = &self.attachments[index];
            let (kick, call) = (attachment.kick.as_ref(), attachment.call.as_ref());
            let polling = self.options.polling;
            let (kick, call) = ((!polling).then_some(kick), (!polling).then_some(call));
            let vring = Vring {
                index: index as u32,
                layout: attachment.layout,
                base,
                kick,
                call,
            };
            session.start_vring(&self.memory, &vring)?;
        }
        self.session = Some(session);
        self.bases = None;
        self.enable(true)?;
        if negotiated.protocol_features & protocol::STATUS != 0 {
            self.session()?
                .request_u64(request::SET_STATUS, STATUS_DRIVER_OK)?;
        }
        // A kick starts a ring (vhost-user, "Starting and stopping rings").
        self.attachments
            .iter()
            .try_for_each(|attachment| attachment.kick.signal())?;
        Ok(())
    }

    /// Features to take when offered.
    fn wanted(&self) -> u64 {
        let packed = if self.options.packed {
            features::RING_PACKED
        } else {
            0
        };
        self.options.features & !features::RING_PACKED | packed
    }

    fn resume_at(&mut self, index: usize) -> Result<u32, GuestError> {
        if let Some(bases) = &self.bases {
            return Ok(bases[index]);
        }
        if let Some(position) = self.packed_position(index) {
            let bits = u32::from(position.to_bits());
            return Ok(bits | (bits << 16));
        }
        let mut used_index = [0; 2];
        self.memory
            .read(self.attachments[index].layout.used + 2, &mut used_index)?;
        Ok(u16::from_le_bytes(used_index).into())
    }

    /// Where the device that went away had come to, if the ring is packed.
    fn packed_position(&mut self, index: usize) -> Option<Position> {
        let progress = self.attachments[index].progress.as_ref()?;
        let pair = &mut self.pairs[index / 2];
        let ring = if index.is_multiple_of(2) {
            pair.receive.as_mut().map(ReceiveQueue::virtqueue)
        } else {
            pair.transmit.as_mut().map(TransmitQueue::virtqueue)
        };
        match ring.and_then(Virtqueue::packed_mut) {
            Some(ring) => Some(ring.device_position()),
            None if self.started.unwrap_or(0) & features::IN_ORDER != 0 => {
                Some(progress.used_position())
            }
            None => Some(progress.device_position()),
        }
    }

    /// Starts the driver with `features`: posts the receive buffers. [`Guest::attach`] does this by itself.
    ///
    /// # Errors
    /// Buffers in more pieces than there are ring entries.
    pub fn start(&mut self, features: u64) -> Result<(), GuestError> {
        let header_len = header_len(features);
        let event_index = features & features::EVENT_IDX != 0;
        let in_order = features & features::IN_ORDER != 0;
        let mergeable = features & features::MRG_RXBUF != 0;
        for pair in &mut self.pairs {
            if let Some(queue) = &mut pair.transmit {
                queue.start(header_len, event_index);
                queue.virtqueue().set_in_order(in_order);
            }
            if let Some(queue) = &mut pair.receive {
                queue.start(header_len, event_index, mergeable);
                queue.virtqueue().set_in_order(in_order);
                queue.post(self.options.rx_posted)?;
                let _ = queue.virtqueue().publish(); // `attach` kicks in any case
            }
        }
        self.started = Some(features);
        Ok(())
    }

    /// Enables or disables all rings, when protocol features are in force.
    ///
    /// # Errors
    /// The session's.
    pub fn enable(&mut self, enable: bool) -> Result<(), GuestError> {
        let count = self.attachments.len();
        let session = self.session()?;
        if session.negotiated().features & features::PROTOCOL_FEATURES != 0 {
            for index in 0..count {
                session.enable_vring(index as u32, enable)?;
            }
        }
        Ok(())
    }

    /// Stops all rings (GET_VRING_BASE), and returns where each goes on, by vring index, as [`Vring::base`] has it. The
    /// session stays.
    ///
    /// # Errors
    /// The session's.
    pub fn stop(&mut self) -> Result<Vec<u32>, GuestError> {
        self.enable(false)?;
        let count = self.attachments.len();
        let session = self.session()?;
        let bases = (0..count)
            .map(|index| session.vring_base(index as u32))
            .collect::<Result<Vec<_>, _>>()?;
        self.bases = Some(bases.clone());
        Ok(bases)
    }

    /// Hangs up without a word, as a killed guest does. Memory and rings stay.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// What a reboot does to the rings: nothing outstanding, rings at `base` ([`Virtqueue::reset`]). The driver is to be
    /// started again, which [`Guest::attach`] does. Call with the rings stopped, or disconnected.
    pub fn reset(&mut self, base: u16) {
        for pair in &mut self.pairs {
            if let Some(queue) = &mut pair.receive {
                queue.reset(base);
            }
            if let Some(queue) = &mut pair.transmit {
                queue.reset(base);
            }
        }
        self.started = None;
        self.bases = None;
    }
}

/// Frames.
impl Guest {
    /// Sends frames with an empty header on queue pair `queue`, and kicks if the device asks for it. Returns how many
    /// the ring took.
    ///
    /// # Errors
    /// No such queue; what the device did wrong.
    pub fn send(&mut self, queue: usize, frames: &[&[u8]]) -> Result<usize, GuestError> {
        let transmit = self.transmit_queue(queue)?;
        let mut sent = 0;
        while sent < frames.len() && transmit.send(&VirtioNetHdr::default(), frames[sent])? {
            sent += 1;
        }
        self.publish_transmit(queue)?;
        Ok(sent)
    }

    /// Sends one frame with `header`. False when the ring is full.
    ///
    /// # Errors
    /// No such queue; what the device did wrong.
    pub fn send_with_header(
        &mut self,
        queue: usize,
        header: &VirtioNetHdr,
        frame: &[u8],
    ) -> Result<bool, GuestError> {
        let sent = self.transmit_queue(queue)?.send(header, frame)?;
        self.publish_transmit(queue)?;
        Ok(sent)
    }

    fn publish_transmit(&mut self, queue: usize) -> Result<(), GuestError> {
        if self.transmit_queue(queue)?.virtqueue().publish() {
            self.kick(2 * queue + 1)?;
        }
        Ok(())
    }

    /// All frames that queue pair `queue` has received, put together from their buffers, which go back to the device.
    ///
    /// # Errors
    /// No such queue; what the device did wrong.
    pub fn receive(&mut self, queue: usize) -> Result<Vec<(VirtioNetHdr, Vec<u8>)>, GuestError> {
        let receive = self.receive_queue(queue)?;
        let frames = receive.receive()?;
        if receive.virtqueue().publish() {
            self.kick(2 * queue)?;
        }
        Ok(frames)
    }

    /// Receives until there are `count` frames or `timeout` has passed, asleep on the call eventfd in between (or
    /// yielding the core, when there is none).
    ///
    /// # Errors
    /// Those of [`Guest::receive`].
    pub fn receive_at_least(
        &mut self,
        queue: usize,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<(VirtioNetHdr, Vec<u8>)>, GuestError> {
        let deadline = Instant::now() + timeout;
        let mut frames = self.receive(queue)?;
        while frames.len() < count && Instant::now() < deadline {
            if self.options.polling {
                std::thread::yield_now();
            } else if !self.receive_queue(queue)?.virtqueue().enable_calls()? {
                let left = deadline.saturating_duration_since(Instant::now());
                self.call_event(2 * queue)?.wait(left)?;
            }
            frames.extend(self.receive(queue)?);
        }
        Ok(frames)
    }

    /// Waits until all frames sent on queue pair `queue` have been used: true, or `timeout` has passed: false.
    ///
    /// # Errors
    /// No such queue; what the device did wrong.
    pub fn drain_transmit(&mut self, queue: usize, timeout: Duration) -> Result<bool, GuestError> {
        let deadline = Instant::now() + timeout;
        loop {
            let transmit = self.transmit_queue(queue)?;
            transmit.reap()?;
            if transmit.virtqueue().outstanding() == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Kicks vring `index` (2n receives, 2n + 1 transmits), wanted or not.
    ///
    /// # Errors
    /// No such ring; the system's.
    pub fn kick(&mut self, index: usize) -> Result<(), GuestError> {
        self.attachments
            .get(index)
            .ok_or(GuestError::NoQueue(index))?
            .kick
            .signal()?;
        self.kicks += 1;
        Ok(())
    }
}

/// Parts.
impl Guest {
    /// The receive queue of pair `queue`.
    ///
    /// # Errors
    /// No such queue.
    pub fn receive_queue(&mut self, queue: usize) -> Result<&mut ReceiveQueue, GuestError> {
        self.pairs
            .get_mut(queue)
            .and_then(|pair| pair.receive.as_mut())
            .ok_or(GuestError::NoQueue(queue))
    }

    /// The transmit queue of pair `queue`.
    ///
    /// # Errors
    /// No such queue.
    pub fn transmit_queue(&mut self, queue: usize) -> Result<&mut TransmitQueue, GuestError> {
        self.pairs
            .get_mut(queue)
            .and_then(|pair| pair.transmit.as_mut())
            .ok_or(GuestError::NoQueue(queue))
    }

    /// Turns the transmit queue of pair `queue` into a pump, for good.
    ///
    /// # Errors
    /// No such queue; frames in flight.
    pub fn take_tx_pump(
        &mut self,
        queue: usize,
        options: &TxPumpOptions,
    ) -> Result<TxPump, GuestError> {
        self.transmit_queue(queue)?;
        let transmit = self.pairs[queue]
            .transmit
            .take()
            .ok_or(GuestError::NoQueue(queue))?;
        Ok(TxPump::new(
            transmit,
            self.kick_event(2 * queue + 1)?,
            options,
        )?)
    }

    /// Turns the receive queue of pair `queue` into a pump, for good. `write_descriptors`: write each descriptor
    /// again when its buffer is posted, as real drivers do because theirs is a new buffer.
    ///
    /// # Errors
    /// No such queue; buffers that are chains.
    pub fn take_rx_pump(
        &mut self,
        queue: usize,
        write_descriptors: bool,
    ) -> Result<RxPump, GuestError> {
        self.receive_queue(queue)?;
        let receive = self.pairs[queue]
            .receive
            .take()
            .ok_or(GuestError::NoQueue(queue))?;
        Ok(RxPump::new(
            receive,
            self.kick_event(2 * queue)?,
            write_descriptors,
        )?)
    }

    /// The kick eventfd of vring `index`.
    ///
    /// # Errors
    /// No such ring.
    pub fn kick_event(&self, index: usize) -> Result<Arc<EventFd>, GuestError> {
        self.attachments
            .get(index)
            .map(|a| Arc::clone(&a.kick))
            .ok_or(GuestError::NoQueue(index))
    }

    /// The call eventfd of vring `index`.
    ///
    /// # Errors
    /// No such ring.
    pub fn call_event(&self, index: usize) -> Result<Arc<EventFd>, GuestError> {
        self.attachments
            .get(index)
            .map(|a| Arc::clone(&a.call))
            .ok_or(GuestError::NoQueue(index))
    }

    /// The session, for messages that no guest sends.
    ///
    /// # Errors
    /// There is none.
    pub fn session(&mut self) -> Result<&mut Session, GuestError> {
        self.session.as_mut().ok_or(GuestError::NotConnected)
    }

    /// What was negotiated with the present session.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.session
            .as_ref()
            .map_or_else(Negotiated::default, Session::negotiated)
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Kicks sent so far; those of pumps are not counted.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }
}

/// Address and bytes.
type Range = (u64, usize);

#[derive(Debug)]
struct QueuePlan {
    ring: Range,
    area: Range,
    tables: Range,
}

#[derive(Debug)]
struct PairPlan {
    receive: QueuePlan,
    transmit: QueuePlan,
}

/// Where everything goes.
struct Plan {
    pairs: Vec<PairPlan>,
    /// By region: base, and bytes taken.
    regions: Vec<Range>,
}

impl Plan {
    fn new(options: &GuestOptions) -> Self {
        let regions = options
            .region_bases
            .iter()
            .map(|&base| (base, RESERVED_LEN))
            .collect();
        let mut plan = Self {
            pairs: Vec::new(),
            regions,
        };
        let size = options.ring_size;
        let mut turn = 0;
        for _ in 0..options.queue_pairs {
            let receive = plan.queue(
                size,
                ReceiveQueue::memory_len(size, options.rx_buffer_len),
                &mut turn,
            );
            let transmit = plan.queue(
                size,
                TransmitQueue::memory_len(size, options.frame_len_max),
                &mut turn,
            );
            plan.pairs.push(PairPlan { receive, transmit });
        }
        plan
    }

    fn queue(
        &mut self,
        size: u16,
        (area_len, tables_len): (usize, usize),
        turn: &mut usize,
    ) -> QueuePlan {
        let ring = self.take(RingLayout::contiguous_len(size), turn);
        let area = self.take(area_len, turn);
        let tables = self.take(tables_len, turn);
        QueuePlan { ring, area, tables }
    }

    fn take(&mut self, len: usize, turn: &mut usize) -> Range {
        let count = self.regions.len().max(1);
        let Some((base, taken)) = self.regions.get_mut(*turn % count) else {
            return (0, len);
        };
        *turn += 1;
        let address = base.wrapping_add(*taken as u64);
        *taken = (*taken + len).next_multiple_of(CACHE_LINE_LEN);
        (address, len)
    }

    fn regions(&self, options: &GuestOptions) -> Vec<RegionLayout> {
        let huge_pages = options.huge_pages;
        let own = self.regions.iter().map(|&(guest_base, len)| RegionLayout {
            guest_base,
            len,
            huge_pages,
        });
        own.chain(options.extra_regions.iter().copied()).collect()
    }
}
