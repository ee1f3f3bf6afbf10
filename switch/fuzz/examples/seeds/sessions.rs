//! Sessions of a front end, in the format of the target `message_reader`.

#[allow(dead_code, reason = "some is for the target alone")]
#[path = "../../fuzz_targets/reader/record.rs"]
mod record;

use crosspoint_guest::message::{
    VRING_NO_FD, inflight, log_base, memory_region, protocol, request, single_memory_region,
    vring_addr,
};
use crosspoint_guest::net::features;
use crosspoint_vring::InflightRegion;
use record::*;

/// The front end's own address of guest address 0.
const USER: u64 = 0x7000_0000;
/// Entries of every ring, and its address: ring `n` begins at `n * RING`, followed by its other areas.
const SIZE: u16 = 16;
const RING: u64 = 0x800;
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x300;
/// A frame, with the header before it, and the receive buffers.
const FRAME: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const RINGS: u32 = 4;

const MODERN: u64 = features::VERSION_1
    | features::MRG_RXBUF
    | features::INDIRECT_DESC
    | features::EVENT_IDX
    | features::PROTOCOL_FEATURES;
const PROTOCOL: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;
const STATUS_DRIVER_OK: u64 = 15;

/// An input under construction.
#[derive(Default)]
struct Session(Vec<u8>);

impl Session {
    fn record(mut self, order: u8, head: &[u8], bytes: &[u8], kinds: &[u8]) -> Session {
        self.0.push(order | kinds.len() as u8);
        self.0.extend(head);
        self.0.extend((bytes.len() as u16).to_le_bytes());
        self.0.extend(bytes);
        self.0.extend(kinds);
        self
    }

    /// Adds a message without a requested acknowledgement.
    fn say(self, number: u32, payload: &[u8], kinds: &[u8]) -> Session {
        self.record(MESSAGE, &[number as u8], payload, kinds)
    }

    fn ask(self, number: u32, payload: &[u8], kinds: &[u8]) -> Session {
        self.record(ACKED, &[number as u8], payload, kinds)
    }

    fn word(self, number: u32, value: u64) -> Session {
        self.ask(number, &value.to_ne_bytes(), &[])
    }

    fn fill(self, at: u64, bytes: &[u8]) -> Session {
        self.record(FILL, &(at as u16).to_le_bytes(), bytes, &[])
    }

    fn state(self, number: u32, index: u32, value: u32) -> Session {
        let payload = [index.to_ne_bytes(), value.to_ne_bytes()].concat();
        self.ask(number, &payload, &[])
    }

    fn negotiate(self, features: u64) -> Session {
        self.say(request::GET_FEATURES, &[], &[])
            .say(request::GET_PROTOCOL_FEATURES, &[], &[])
            .say(request::SET_PROTOCOL_FEATURES, &PROTOCOL.to_ne_bytes(), &[])
            .say(request::GET_QUEUE_NUM, &[], &[])
            .ask(request::SET_OWNER, &[], &[])
            .word(request::SET_FEATURES, features)
    }

    /// SET_MEM_TABLE: the memory's first half from the first file, its second half from the next.
    fn table(self, kinds: [u8; 2]) -> Session {
        let half = MEMORY_LEN / 2;
        let mut payload = 2u64.to_ne_bytes().to_vec();
        for at in [0, half] {
            payload.extend(memory_region([at, half, USER + at, at]));
        }
        self.ask(request::SET_MEM_TABLE, &payload, &kinds)
    }

    fn ring(self, index: u32, base: u32) -> Session {
        let at = USER + RING * u64::from(index);
        let addresses = [at, at + USED, at + AVAILABLE, 0];
        let fd = u64::from(index).to_ne_bytes();
        self.state(request::SET_VRING_NUM, index, SIZE.into())
            .state(request::SET_VRING_BASE, index, base)
            .ask(
                request::SET_VRING_ADDR,
                &vring_addr(index, 0, addresses),
                &[],
            )
            .ask(request::SET_VRING_CALL, &fd, &[EVENT])
            .ask(request::SET_VRING_KICK, &fd, &[EVENT])
    }

    fn rings(mut self, base: u32) -> Session {
        for index in 0..RINGS {
            self = self.ring(index, base);
        }
        for index in 0..RINGS {
            self = self.state(request::SET_VRING_ENABLE, index, 1);
        }
        self
    }

    fn stop(mut self) -> Session {
        for index in 0..RINGS {
            let payload = u64::from(index).to_ne_bytes();
            self = self.say(request::GET_VRING_BASE, &payload, &[]);
        }
        self
    }

    /// Rings with frames to send and buffers to fill.
    fn memory(mut self, packed: bool) -> Session {
        for index in 0..u64::from(RINGS) {
            self = self.fill(RING * index, &descriptors(index, packed));
            if !packed {
                let heads = (0..SIZE).flat_map(u16::to_le_bytes);
                let available = [0, 0, SIZE as u8, 0].into_iter().chain(heads);
                self = self.fill(RING * index + AVAILABLE, &available.collect::<Vec<u8>>());
            }
        }
        let mut frame = vec![0; 12];
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 7, 7, 0x88, 0xb5]);
        self.fill(FRAME, &frame)
    }

    /// The start of every session, up to its running rings.
    fn running(packed: bool) -> Session {
        let (layout, base) = match packed {
            true => (features::RING_PACKED, 0x8000_8000),
            false => (0, 0),
        };
        Session::default()
            .memory(packed)
            .negotiate(MODERN | layout)
            .table([MEMORY, MEMORY])
            .rings(base)
    }
}

/// A ring's descriptors: buffers in an even ring, the same frame repeated in an odd one.
fn descriptors(index: u64, packed: bool) -> Vec<u8> {
    let (write, avail) = (2u16, 1u16 << 7);
    let mut bytes = Vec::new();
    for i in 0..u64::from(SIZE) {
        let (address, len, flags) = match index % 2 {
            0 => (BUFFERS + 0x800 * i, 0x800u32, write),
            _ => (FRAME, 80, 0),
        };
        bytes.extend(address.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        let last = match packed {
            true => [i as u16, flags | avail],
            false => [flags, 0],
        };
        bytes.extend(last.iter().flat_map(|half| half.to_le_bytes()));
    }
    bytes
}

fn config(number: u32, session: Session, offset: u32, size: u32) -> Session {
    let mut payload: Vec<u8> = [offset, size, 0]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    payload.resize(12 + size as usize, 0);
    session.say(number, &payload, &[])
}

/// Names and bytes.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = ordinary();
    let half = MEMORY_LEN / 2;
    let one = |at: u64| single_memory_region([at, half, USER + at, at]);
    seeds.extend([
        (
            "end_in_a_header",
            begun().record(RAW, &[], &[1, 0, 0, 0, 1], &[]),
        ),
        (
            "end_in_a_payload",
            begun().record(
                RAW,
                &[],
                &[5, 0, 0, 0, 1, 0, 0, 0, 72, 0, 0, 0, 2],
                &[MEMORY],
            ),
        ),
        ("read_only", begun().table([READ_ONLY; 2]).rings(0)),
        ("a_page", begun().table([PAGE, EMPTY]).rings(0)),
        ("no_memory", begun().table([NULL, REGULAR]).rings(0)),
        (
            "too_many",
            begun().record(
                ACKED | MANY,
                &[request::ADD_MEM_REG as u8],
                &one(0),
                &[MEMORY],
            ),
        ),
        (
            "rings_first",
            Session::default()
                .rings(0)
                .negotiate(MODERN)
                .table([MEMORY, OTHER]),
        ),
        (
            "calls_to_a_pipe",
            Session::running(false)
                .ask(request::SET_VRING_CALL, &0u64.to_ne_bytes(), &[PIPE_WRITE])
                .ask(request::SET_VRING_CALL, &1u64.to_ne_bytes(), &[PIPE_READ])
                .ask(request::SET_VRING_KICK, &1u64.to_ne_bytes(), &[PIPE_READ])
                .stop(),
        ),
    ]);
    seeds
        .into_iter()
        .map(|(name, session)| (name, session.0))
        .collect()
}

/// Sessions of ordinary front ends.
fn ordinary() -> Vec<(&'static str, Session)> {
    let half = MEMORY_LEN / 2;
    let one = |at: u64| single_memory_region([at, half, USER + at, at]);
    let log = log_base(0x1000, 0);
    let no_fd = |index: u64| (index | VRING_NO_FD).to_ne_bytes();
    let len = InflightRegion::len(RINGS as usize, SIZE, false) as u64;
    let region = inflight(len, 0, RINGS as u16, SIZE);
    let rarp = u64::from_ne_bytes([2, 0, 0, 0, 7, 7, 0, 0]);
    vec![
        ("split", Session::running(false).stop()),
        ("packed", Session::running(true).stop()),
        (
            "legacy",
            Session::default()
                .memory(false)
                .say(request::SET_FEATURES, &0u64.to_ne_bytes(), &[])
                .table([MEMORY, OTHER])
                .ring(0, 0)
                .ring(1, 0),
        ),
        (
            "polled",
            Session::running(false)
                .ask(request::SET_VRING_CALL, &no_fd(0), &[])
                .ask(request::SET_VRING_KICK, &no_fd(1), &[])
                .say(request::SET_VRING_ERR, &no_fd(1), &[]),
        ),
        (
            "slots",
            Session::default()
                .memory(false)
                .negotiate(MODERN)
                .say(request::GET_MAX_MEM_SLOTS, &[], &[])
                .ask(request::ADD_MEM_REG, &one(0), &[MEMORY])
                .rings(0)
                .ask(request::ADD_MEM_REG, &one(half), &[OTHER])
                .ask(request::REM_MEM_REG, &one(half), &[])
                .ask(request::REM_MEM_REG, &one(0), &[MEMORY]),
        ),
        (
            "log",
            Session::running(false)
                .say(request::SET_LOG_BASE, &log, &[OTHER])
                .say(request::SET_LOG_FD, &[], &[EVENT])
                .word(request::SET_FEATURES, MODERN | features::LOG_ALL)
                .word(request::SET_FEATURES, MODERN)
                .stop(),
        ),
        (
            "inflight",
            Session::default()
                .memory(false)
                .negotiate(MODERN)
                .say(
                    request::GET_INFLIGHT_FD,
                    &inflight(0, 0, RINGS as u16, SIZE),
                    &[],
                )
                .ask(request::SET_INFLIGHT_FD, &region, &[OTHER])
                .table([MEMORY, MEMORY])
                .rings(0),
        ),
        (
            "words",
            Session::running(false)
                .say(request::GET_STATUS, &[], &[])
                .word(request::SET_STATUS, STATUS_DRIVER_OK)
                .word(request::NET_SET_MTU, 9000)
                .word(request::SEND_RARP, rarp)
                .word(request::SET_STATUS, 0),
        ),
        (
            "config",
            config(
                request::SET_CONFIG,
                config(request::GET_CONFIG, begun(), 0, 12),
                0,
                6,
            ),
        ),
        (
            "resets",
            Session::running(false)
                .ask(request::RESET_DEVICE, &[], &[])
                .rings(0)
                .ask(request::RESET_OWNER, &[], &[]),
        ),
        (
            "memory_exchanged",
            Session::running(false)
                .table([MEMORY, OTHER])
                .table([OTHER, MEMORY])
                .table([MEMORY, MEMORY])
                .state(request::SET_VRING_ENABLE, 0, 0)
                .state(request::SET_VRING_ENABLE, 0, 1),
        ),
        (
            "channel",
            begun().ask(request::SET_BACKEND_REQ_FD, &[], &[SOCKET]),
        ),
    ]
}

fn begun() -> Session {
    Session::default().negotiate(MODERN)
}
