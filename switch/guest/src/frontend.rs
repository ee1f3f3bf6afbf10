//! A vhost-user session, as a front end.
//!
//! Uses [`crate::message`] and not `vhost::vhost_user::Frontend`, which waits forever for a back end that does not
//! answer, cannot set a ring without a kick eventfd, and treats the answer of GET_QUEUE_NUM (for a net device: queue
//! *pairs*) as a number of rings.

mod messages;

use crate::event::{EventFd, wait_readable};
use crate::inflight::Inflight;
use crate::log::DirtyLog;
use crate::memory::{GuestMemory, MemoryError, Region};
use crate::message::{
    self, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Message, VRING_LOG, VRING_NO_FD, protocol,
    request,
};
use crate::net::features;
use crate::ring::RingLayout;
use rustix::fd::{AsFd, BorrowedFd};
use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `VIRTIO_CONFIG_S_ACKNOWLEDGE | DRIVER | FEATURES_OK` (virtio 1.2, 2.1).
pub const STATUS_FEATURES_OK: u64 = 1 | 2 | 8;
/// [`STATUS_FEATURES_OK`] and `DRIVER_OK`.
pub const STATUS_DRIVER_OK: u64 = STATUS_FEATURES_OK | 4;

/// Session errors.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A socket error, or a reply that did not arrive in time.
    #[error("vhost-user request {request}: {source}")]
    Io {
        /// Request number, 0 when connecting.
        request: u32,
        /// The socket's error.
        source: io::Error,
    },
    /// The back end acknowledged with a failure (REPLY_ACK).
    #[error("vhost-user request {request} refused with {code}")]
    Refused {
        /// Request number.
        request: u32,
        /// The non-zero code.
        code: u64,
    },
    /// A reply to another request, or one that is too short or not flagged as a reply.
    #[error("vhost-user request {request}: unfit reply {reply:?}")]
    Reply {
        /// Request number.
        request: u32,
        /// The message that was received.
        reply: Message,
    },
    /// An address that is not in guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Offered and negotiated features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Device features that the back end offers.
    pub offered: u64,
    /// Device features in force: offered and wanted.
    pub features: u64,
    /// Protocol features that the back end offers.
    pub protocol_offered: u64,
    /// Protocol features in force: offered and wanted.
    pub protocol_features: u64,
    /// Answer to GET_QUEUE_NUM, when `MQ` is among the protocol features in force.
    pub queue_pairs_max: Option<u64>,
}

/// One ring, for [`Session::start_vring`].
#[derive(Clone, Copy, Debug)]
pub struct Vring<'a> {
    /// 2n receives, 2n + 1 transmits (virtio 1.2, 5.1.2).
    pub index: u32,
    /// Size and guest addresses.
    pub layout: RingLayout,
    /// Position at which the device continues. Split: the index of the available ring. Packed: the position of the next
    /// available descriptor ([`crate::Position::to_bits`]), and in the upper half that of the next used one.
    pub base: u32,
    /// Log writes to the used ring under its guest physical address. For a packed ring this is the address of the
    /// device event suppression area, as in QEMU; the descriptor ring has no log address.
    pub log: bool,
    /// Driver to device; without it, the device polls.
    pub kick: Option<&'a EventFd>,
    /// Device to driver; without it, the driver polls.
    pub call: Option<&'a EventFd>,
}

/// A listening socket, for switches that connect to their guests.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path` and replaces an existing socket.
    ///
    /// # Errors
    /// System errors.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// Whether a back end has connected, and [`accept`](Self::accept) would not wait.
    ///
    /// # Errors
    /// System errors.
    pub fn is_ready(&self) -> io::Result<bool> {
        wait_readable(&self.listener, Duration::ZERO)
    }

    /// Waits up to `timeout` for a back end to connect; the session also uses this `timeout`.
    ///
    /// # Errors
    /// System errors; `TimedOut`.
    pub fn accept(&self, timeout: Duration) -> Result<Session, SessionError> {
        let accept = || {
            if !wait_readable(&self.listener, timeout)? {
                return Err(ErrorKind::TimedOut.into());
            }
            Session::from_stream(self.listener.accept()?.0, timeout)
        };
        accept().map_err(|source| SessionError::Io { request: 0, source })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A connected session. Dropping it disconnects.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    timeout: Duration,
    negotiated: Negotiated,
}

impl Session {
    /// Connects to the socket `path`, retrying until `timeout` has passed. Later requests wait at most this long too.
    ///
    /// # Errors
    /// System errors, from the last try.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, SessionError> {
        let deadline = Instant::now() + timeout;
        let error = |source| SessionError::Io { request: 0, source };
        loop {
            match UnixStream::connect(path.as_ref()) {
                Ok(stream) => return Self::from_stream(stream, timeout).map_err(error),
                Err(source) => {
                    let retry = matches!(
                        source.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    );
                    if !retry || Instant::now() >= deadline {
                        return Err(error(source));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Creates a session on a connected socket.
    ///
    /// # Errors
    /// System errors.
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream,
            timeout,
            negotiated: Negotiated::default(),
        })
    }

    /// Features that [`Session::negotiate`] agreed on.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Negotiates features: the offered ones that are in the two masks. Without `features::PROTOCOL_FEATURES` in the
    /// mask (or in the offer) there are no protocol features, and rings need not be enabled.
    ///
    /// # Errors
    /// Session errors.
    pub fn negotiate(
        &mut self,
        features: u64,
        protocol_features: u64,
    ) -> Result<Negotiated, SessionError> {
        let offered = self.query_u64(request::GET_FEATURES)?;
        let mut negotiated = Negotiated {
            offered,
            features: offered & features,
            ..Negotiated::default()
        };
        if negotiated.features & features::PROTOCOL_FEATURES != 0 {
            negotiated.protocol_offered = self.query_u64(request::GET_PROTOCOL_FEATURES)?;
            negotiated.protocol_features = negotiated.protocol_offered & protocol_features;
            self.request_u64(request::SET_PROTOCOL_FEATURES, negotiated.protocol_features)?;
            if negotiated.protocol_features & protocol::MQ != 0 {
                negotiated.queue_pairs_max = Some(self.query_u64(request::GET_QUEUE_NUM)?);
            }
        }
        self.negotiated = negotiated;
        self.request(request::SET_OWNER, &[], &[])?;
        self.request_u64(request::SET_FEATURES, negotiated.features)?;
        if negotiated.protocol_features & protocol::STATUS != 0 {
            self.set_status(STATUS_FEATURES_OK)?;
        }
        Ok(negotiated)
    }

    /// SET_MEM_TABLE with all regions of `memory`.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_mem_table(&mut self, memory: &GuestMemory) -> Result<(), SessionError> {
        let regions: Vec<_> = memory.regions().iter().collect();
        self.set_mem_regions(&regions)
    }

    /// SET_MEM_TABLE with `regions`.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_mem_regions(&mut self, regions: &[&Region]) -> Result<(), SessionError> {
        let mut payload = Vec::from((regions.len() as u32).to_ne_bytes());
        payload.extend_from_slice(&0u32.to_ne_bytes());
        for region in regions {
            payload.extend_from_slice(&message::memory_region(region_fields(region)));
        }
        let fds: Vec<_> = regions.iter().map(|region| region.file()).collect();
        self.request(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// GET_MAX_MEM_SLOTS: maximum number of regions in the back end.
    ///
    /// # Errors
    /// Session errors.
    pub fn max_mem_slots(&mut self) -> Result<u64, SessionError> {
        self.query_u64(request::GET_MAX_MEM_SLOTS)
    }

    /// ADD_MEM_REG.
    ///
    /// # Errors
    /// Session errors.
    pub fn add_mem_region(&mut self, region: &Region) -> Result<(), SessionError> {
        let payload = message::single_memory_region(region_fields(region));
        self.request(request::ADD_MEM_REG, &payload, &[region.file()])
    }

    /// REM_MEM_REG.
    ///
    /// # Errors
    /// Session errors.
    pub fn remove_mem_region(&mut self, region: &Region) -> Result<(), SessionError> {
        let payload = message::single_memory_region(region_fields(region));
        self.request(request::REM_MEM_REG, &payload, &[])
    }

    /// SET_FEATURES after [`Session::negotiate`], with `LOG_ALL` in a migration. [`Session::negotiated`] is not
    /// changed.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_features(&mut self, features: u64) -> Result<(), SessionError> {
        self.request_u64(request::SET_FEATURES, features)
    }

    /// SET_LOG_BASE with the log's file; waits for the reply that it has with LOG_SHMFD, and ignores its payload (back
    /// ends differ).
    ///
    /// # Errors
    /// Session errors.
    pub fn set_log_base(&mut self, log: &DirtyLog) -> Result<(), SessionError> {
        let payload = message::log_base(log.len() as u64, 0);
        let fds = [log.region().file()];
        self.query(request::SET_LOG_BASE, &payload, &fds)
            .map(|_| ())
    }

    /// SET_LOG_FD: the eventfd that the back end signals when it has logged.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_log_fd(&mut self, event: &EventFd) -> Result<(), SessionError> {
        self.request(request::SET_LOG_FD, &[], &[event.as_fd()])
    }

    /// GET_INFLIGHT_FD for `queues` rings of `queue_size` entries; maps the returned region.
    ///
    /// # Errors
    /// Session errors; a reply without a file, or whose file is too short.
    pub fn inflight(&mut self, queues: u16, queue_size: u16) -> Result<Inflight, SessionError> {
        let payload = message::inflight(0, 0, queues, queue_size);
        let mut reply = self.query(request::GET_INFLIGHT_FD, &payload, &[])?;
        let fields = (
            reply.u64_at(0),
            reply.u64_at(8),
            reply.u16_at(16),
            reply.u16_at(18),
        );
        match (fields, reply.fds.pop()) {
            ((Some(len), Some(offset), Some(queues), Some(size)), Some(file)) => {
                Ok(Inflight::map(file, (len, offset), queues, size)?)
            }
            _ => Err(SessionError::Reply {
                request: request::GET_INFLIGHT_FD,
                reply,
            }),
        }
    }

    /// SET_INFLIGHT_FD.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_inflight(&mut self, inflight: &Inflight) -> Result<(), SessionError> {
        let fds = [inflight.region().file()];
        self.request(request::SET_INFLIGHT_FD, &inflight.payload(), &fds)
    }

    /// SEND_RARP: asks the back end to announce the guest's MAC address after a migration.
    ///
    /// # Errors
    /// Session errors.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), SessionError> {
        let mut payload = [0; 8];
        payload[..6].copy_from_slice(&mac);
        self.request(request::SEND_RARP, &payload, &[])
    }

    /// NET_SET_MTU, in bytes.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<(), SessionError> {
        self.request_u64(request::NET_SET_MTU, mtu)
    }

    /// RESET_DEVICE: all rings stop.
    ///
    /// # Errors
    /// Session errors.
    pub fn reset_device(&mut self) -> Result<(), SessionError> {
        self.request(request::RESET_DEVICE, &[], &[])
    }

    /// SET_STATUS, the device status field (virtio 1.2, 2.1).
    ///
    /// # Errors
    /// Session errors.
    pub fn set_status(&mut self, status: u64) -> Result<(), SessionError> {
        self.request_u64(request::SET_STATUS, status)
    }

    /// GET_STATUS.
    ///
    /// # Errors
    /// Session errors.
    pub fn status(&mut self) -> Result<u64, SessionError> {
        self.query_u64(request::GET_STATUS)
    }

    /// Sets up a ring: NUM, BASE, ADDR, CALL, KICK. If protocol features are in force, it must still be enabled.
    ///
    /// # Errors
    /// Session errors; a layout outside `memory`.
    pub fn start_vring(
        &mut self,
        memory: &GuestMemory,
        vring: &Vring<'_>,
    ) -> Result<(), SessionError> {
        self.set_vring_state(
            request::SET_VRING_NUM,
            vring.index,
            vring.layout.size.into(),
        )?;
        self.set_vring_state(request::SET_VRING_BASE, vring.index, vring.base)?;
        self.set_vring_layout(memory, vring)?;
        self.set_vring_fd(request::SET_VRING_CALL, vring.index, vring.call)?;
        self.set_vring_fd(request::SET_VRING_KICK, vring.index, vring.kick)
    }

    /// SET_VRING_ADDR with the addresses of `vring`; also used while the ring runs, to begin and end logging.
    ///
    /// # Errors
    /// Session errors; a layout outside `memory`.
    pub fn set_vring_layout(
        &mut self,
        memory: &GuestMemory,
        vring: &Vring<'_>,
    ) -> Result<(), SessionError> {
        let user = |address| memory.user_address(address);
        let (flags, log) = if vring.log {
            (VRING_LOG, vring.layout.used)
        } else {
            (0, 0)
        };
        let addresses = [
            user(vring.layout.descriptors)?,
            user(vring.layout.used)?,
            user(vring.layout.available)?,
            log,
        ];
        let payload = message::vring_addr(vring.index, flags, addresses);
        self.request(request::SET_VRING_ADDR, &payload, &[])
    }

    /// SET_VRING_ADDR with user addresses of descriptors, used ring, available ring, and the log address, which is
    /// ignored.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_vring_addr(&mut self, index: u32, addresses: [u64; 4]) -> Result<(), SessionError> {
        let payload = message::vring_addr(index, 0, addresses);
        self.request(request::SET_VRING_ADDR, &payload, &[])
    }

    /// SET_VRING_KICK, `_CALL` or `_ERR`.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_vring_fd(
        &mut self,
        number: u32,
        index: u32,
        fd: Option<&EventFd>,
    ) -> Result<(), SessionError> {
        let value = u64::from(index) | if fd.is_none() { VRING_NO_FD } else { 0 };
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        self.request(number, &value.to_ne_bytes(), &fds)
    }

    /// SET_VRING_ENABLE.
    ///
    /// # Errors
    /// Session errors.
    pub fn enable_vring(&mut self, index: u32, enable: bool) -> Result<(), SessionError> {
        self.set_vring_state(request::SET_VRING_ENABLE, index, enable.into())
    }

    /// GET_VRING_BASE: stops the ring and returns the position at which the device continues, in the form of
    /// [`Vring::base`].
    ///
    /// # Errors
    /// Session errors; of a split ring, a base beyond 65535.
    pub fn vring_base(&mut self, index: u32) -> Result<u32, SessionError> {
        let packed = self.negotiated.features & features::RING_PACKED != 0;
        let fits = |base: &u32| packed || *base <= u32::from(u16::MAX);
        let reply = self.query(request::GET_VRING_BASE, &vring_state(index, 0), &[])?;
        match (reply.u32_at(0), reply.u32_at(4).filter(fits)) {
            (Some(of), Some(base)) if of == index => Ok(base),
            _ => Err(SessionError::Reply {
                request: request::GET_VRING_BASE,
                reply,
            }),
        }
    }

    /// A request whose payload is `struct vhost_vring_state`: SET_VRING_NUM, `_BASE`, `_ENABLE`.
    ///
    /// # Errors
    /// Session errors.
    pub fn set_vring_state(
        &mut self,
        number: u32,
        index: u32,
        value: u32,
    ) -> Result<(), SessionError> {
        self.request(number, &vring_state(index, value), &[])
    }

    /// GET_CONFIG: `len` bytes of the device configuration space from byte `offset`.
    ///
    /// # Errors
    /// Session errors.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, SessionError> {
        let mut payload = Vec::new();
        [offset, len, 0]
            .iter()
            .for_each(|field| payload.extend_from_slice(&field.to_ne_bytes()));
        payload.resize(12 + len as usize, 0);
        let mut reply = self.query(request::GET_CONFIG, &payload, &[])?;
        if reply.payload.len() != payload.len() {
            return Err(SessionError::Reply {
                request: request::GET_CONFIG,
                reply,
            });
        }
        Ok(reply.payload.split_off(12))
    }
}

fn region_fields(region: &Region) -> [u64; 4] {
    [
        region.guest_base(),
        region.len() as u64,
        region.user_address(),
        0,
    ]
}

fn vring_state(index: u32, value: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&index.to_ne_bytes());
    payload[4..].copy_from_slice(&value.to_ne_bytes());
    payload
}
