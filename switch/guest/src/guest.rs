//! A guest: memory, queue pairs, a session.

mod memory;
mod parts;
mod traffic;

use crate::event::EventFd;
use crate::forward::ForwardPump;
use crate::frontend::{Negotiated, STATUS_DRIVER_OK, Session, SessionError, Vring};
use crate::inflight::Inflight;
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, MemoryError, Region, RegionLayout};
use crate::message::protocol;
use crate::net::{VirtioNetHdr, features, header_len};
use crate::packed::{Position, Progress};
use crate::plan::{PairPlan, Plan, QueuePlan};
use crate::pump::{RxPump, TxPump, TxPumpOptions};
use crate::queue::{ChainSplit, QueueError, ReceiveQueue, TransmitQueue};
use crate::ring::{RingError, RingLayout};
use crate::virtqueue::Virtqueue;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Guest physical bytes that a dirty log covers beyond the existing memory, for regions added later: a back end refuses
/// memory that it cannot log.
const LOG_ROOM: u64 = 1 << 30;

/// Errors of a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A memory error.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A session error.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A queue error.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// An eventfd error.
    #[error("guest: {0}")]
    Io(#[from] io::Error),
    /// No such queue pair, or a pump has taken the queue.
    #[error("guest: queue {0} does not exist, or a pump has it")]
    NoQueue(usize),
    /// There is no session, or the guest was not connected by path.
    #[error("guest: not connected")]
    NotConnected,
    /// The back end does not offer a required feature.
    #[error("guest: the back end does not offer {0}")]
    NotOffered(&'static str),
    /// No such memory was added.
    #[error("guest: no memory was added at {0:#x}")]
    NoMemory(u64),
    /// After a reconnect the back end offers less than the driver was started with.
    #[error("guest: started with features {started:#x}, offered {offered:#x}")]
    FeaturesLost {
        /// Features until now.
        started: u64,
        /// Features negotiated now.
        offered: u64,
    },
    /// Packed rings were requested, and the back end does not offer them.
    #[error("guest: no packed rings among the features {offered:#x}")]
    NotPacked {
        /// Features that it offers.
        offered: u64,
    },
}

impl From<RingError> for GuestError {
    fn from(error: RingError) -> Self {
        Self::Queue(error.into())
    }
}

/// Options of a guest.
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
    /// Guest physical bases of the regions; rings and buffers are spread over them in turn.
    pub region_bases: Vec<u64>,
    /// Empty regions, for the test's own use.
    pub extra_regions: Vec<RegionLayout>,
    /// Back the memory with 2 MiB pages.
    pub huge_pages: bool,
    /// Bytes of a receive buffer, header included.
    pub rx_buffer_len: usize,
    /// Receive buffers posted at the start.
    pub rx_posted: u16,
    /// Split of a receive buffer over descriptors.
    pub rx_split: ChainSplit,
    /// Split of a transmitted frame over descriptors.
    pub tx_split: ChainSplit,
    /// Chains go through indirect tables, when `INDIRECT_DESC` is negotiated.
    pub indirect: bool,
    /// Length of the longest frame to transmit, in bytes.
    pub frame_len_max: usize,
    /// Start of the rings: see [`Virtqueue::reset`].
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

/// One ring, as the session uses it.
#[derive(Debug)]
struct Attachment {
    layout: RingLayout,
    /// For a packed ring only.
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
    /// The back end's positions at [`Guest::stop`].
    bases: Option<Vec<u32>>,
    /// Memory that [`Guest::add_memory`] added, one region each.
    added: Vec<Arc<GuestMemory>>,
    /// The log of the running migration.
    log: Option<DirtyLog>,
    /// Kept from one session to the next.
    inflight: Option<Inflight>,
    kicks: u64,
}

/// Creation and connection.
impl Guest {
    /// Creates a guest without a connection. Its rings are laid out; [`Guest::start`] posts the receive buffers.
    ///
    /// # Errors
    /// Invalid options; system errors.
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
            added: Vec::new(),
            log: None,
            inflight: None,
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

    /// Creates a guest and connects it to the switch that listens on `path`.
    ///
    /// # Errors
    /// Errors of [`Guest::new`] and [`Guest::attach`].
    pub fn connect(path: impl AsRef<Path>, options: GuestOptions) -> Result<Self, GuestError> {
        let mut guest = Self::new(options)?;
        guest.path = Some(path.as_ref().to_path_buf());
        guest.reconnect()?;
        Ok(guest)
    }

    /// Connects again to the path of [`Guest::connect`]; see [`Guest::attach`].
    ///
    /// # Errors
    /// Errors of [`Guest::attach`].
    pub fn reconnect(&mut self) -> Result<(), GuestError> {
        let path = self.path.as_ref().ok_or(GuestError::NotConnected)?;
        let session = Session::connect(path, self.options.timeout)?;
        self.attach(session)
    }

    /// Starts the device over `session`. The first call also starts the driver. Later, the rings continue where the
    /// back end stopped ([`Guest::stop`]), or, if it disappeared, at the used index, as in QEMU. A packed ring has no
    /// such index in memory: its position is what the driver has taken plus the used descriptors after that. A pump on
    /// a packed ring that is used in order must have taken all of them.
    ///
    /// # Errors
    /// Session errors; no packed rings.
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
        self.share_memory(&mut session)?;
        self.start_rings(&mut session)?;
        self.session = Some(session);
        Ok(())
    }

    /// Passes inflight region, memory and log of the guest to a new session.
    fn share_memory(&mut self, session: &mut Session) -> Result<(), GuestError> {
        let protocol_features = session.negotiated().protocol_features;
        if protocol_features & protocol::INFLIGHT_SHMFD != 0 {
            let queues = self.attachments.len() as u16;
            let inflight = match &self.inflight {
                Some(inflight) => inflight.clone(),
                None => session.inflight(queues, self.options.ring_size)?,
            };
            session.set_inflight(&inflight)?;
            self.inflight = Some(inflight);
        }
        if protocol_features & protocol::CONFIGURE_MEM_SLOTS != 0 {
            // As in QEMU: no SET_MEM_TABLE at all.
            session.max_mem_slots()?;
            for region in self.regions() {
                session.add_mem_region(region)?;
            }
        } else {
            session.set_mem_regions(&self.regions())?;
        }
        if let Some(log) = &self.log {
            session.set_log_base(log)?;
            session.set_features(session.negotiated().features | features::LOG_ALL)?;
        }
        Ok(())
    }

    fn start_rings(&mut self, session: &mut Session) -> Result<(), GuestError> {
        for index in 0..self.attachments.len() {
            let base = self.resume_at(index)?;
            session.start_vring(&self.memory, &self.vring(index, base))?;
        }
        self.bases = None;
        self.enable_on(session, true)?;
        if session.negotiated().protocol_features & protocol::STATUS != 0 {
            session.set_status(STATUS_DRIVER_OK)?;
        }
        // A kick starts a ring (vhost-user, "Starting and stopping rings").
        self.attachments
            .iter()
            .try_for_each(|attachment| attachment.kick.signal())?;
        Ok(())
    }

    fn vring(&self, index: usize, base: u32) -> Vring<'_> {
        let attachment = &self.attachments[index];
        let eventfds = !self.options.polling;
        Vring {
            index: index as u32,
            layout: attachment.layout,
            base,
            log: self.log.is_some(),
            kick: eventfds.then_some(attachment.kick.as_ref()),
            call: eventfds.then_some(attachment.call.as_ref()),
        }
    }

    /// Features to take when offered.
    fn wanted(&self) -> u64 {
        let packed = if self.options.packed {
            features::RING_PACKED
        } else {
            0
        };
        self.options.features & !(features::RING_PACKED | features::LOG_ALL) | packed
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

    /// Position of the device that disappeared, if the ring is packed.
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

    /// Starts the driver with `features`: posts the receive buffers. [`Guest::attach`] calls it.
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
    /// Session errors.
    pub fn enable(&mut self, enable: bool) -> Result<(), GuestError> {
        let mut session = self.session.take().ok_or(GuestError::NotConnected)?;
        let result = self.enable_on(&mut session, enable);
        self.session = Some(session);
        result
    }

    fn enable_on(&self, session: &mut Session, enable: bool) -> Result<(), GuestError> {
        if session.negotiated().features & features::PROTOCOL_FEATURES != 0 {
            for index in 0..self.attachments.len() {
                session.enable_vring(index as u32, enable)?;
            }
        }
        Ok(())
    }

    /// Stops all rings (GET_VRING_BASE) and returns the position at which each continues, by vring index, in the form
    /// of [`Vring::base`]. The session stays.
    ///
    /// # Errors
    /// Session errors.
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

    /// Starts the rings again on the same session: after [`Guest::stop`] at the back end's positions, or after
    /// [`Guest::reset_device`].
    ///
    /// # Errors
    /// Session errors; there is none.
    pub fn restart(&mut self) -> Result<(), GuestError> {
        let mut session = self.session.take().ok_or(GuestError::NotConnected)?;
        let result = self.start_rings(&mut session);
        self.session = Some(session);
        result
    }

    /// Stops all rings and resets the back end's device (RESET_DEVICE). The driver keeps its buffers and continues with
    /// [`Guest::restart`].
    ///
    /// # Errors
    /// Session errors; the back end does not offer this.
    pub fn reset_device(&mut self) -> Result<(), GuestError> {
        self.require(protocol::RESET_DEVICE, "RESET_DEVICE")?;
        self.stop()?;
        let session = self.session()?;
        session.reset_device()?;
        // The reset has cleared them.
        let features = session.negotiated().features;
        Ok(session.set_features(features)?)
    }

    /// Returns an error if a protocol feature is not in force.
    fn require(&self, feature: u64, name: &'static str) -> Result<(), GuestError> {
        match &self.session {
            None => Err(GuestError::NotConnected),
            Some(session) if session.negotiated().protocol_features & feature == 0 => {
                Err(GuestError::NotOffered(name))
            }
            Some(_) => Ok(()),
        }
    }

    /// Closes the connection without a message, as a killed guest does. Memory and rings stay.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// Resets the rings as a reboot does: nothing outstanding, rings at `base` ([`Virtqueue::reset`]). The driver must
    /// then be started again, which [`Guest::attach`] does. Call it while the rings are stopped or the guest is
    /// disconnected.
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
        self.inflight = None;
    }
}
