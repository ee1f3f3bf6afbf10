//! Assigns packet memory to sockets: sockets of one worker with the same properties share it, so that a frame goes from
//! one NIC to another without a copy.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::socket::{Opening, Registration};
use crate::{BindMode, Pages, SocketError, SocketOptions, Umem, XskRx, XskSocket, XskTx};

/// Whether sockets share memory. The crate keeps the first socket of a UMEM bound until the last is closed, so a port
/// that is opened again would find its queue busy.
const SHARES: bool = cfg!(not(feature = "xsk-rs"));

/// A worker's packet memory.
pub struct PacketMemory {
    /// Number of sockets that a memory is made for. Further sockets get another memory.
    sockets: u16,
    node: Option<u32>,
    groups: Vec<Group>,
}

/// Properties that sockets must have in common to share memory: the kernel binds all of them like the first.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    zero_copy: bool,
    multi_buffer: bool,
    pages: Pages,
}

struct Group {
    kind: Kind,
    umem: Arc<Umem>,
    /// Whether checksum requests are placed before sent data.
    metadata: bool,
    slots: Vec<Slot>,
}

/// A socket's share of the memory. A later socket can reuse it after this one was closed.
#[derive(Default)]
struct Slot {
    socket: Weak<XskSocket>,
    /// Interface and queue of the last socket here.
    last: Option<(u32, u32)>,
}

impl Slot {
    fn is_free(&self) -> bool {
        self.socket.strong_count() == 0
    }
}

/// How long a NIC may use a socket's memory after the socket was closed: the kernel releases it some 20 ms later. For the
/// same queue the kernel itself makes the next socket wait.
const CLOSING: Duration = Duration::from_millis(100);

impl Group {
    /// Returns a free slot, preferably one that no other queue may still use; and whether one may.
    fn free_slot(&self, to: (u32, u32)) -> Option<(u16, bool)> {
        let own = |slot: &Slot| slot.last.is_none_or(|last| last == to);
        let find = |wanted: &dyn Fn(&Slot) -> bool| {
            let slot = self
                .slots
                .iter()
                .position(|slot| slot.is_free() && wanted(slot));
            slot.map(|slot| slot as u16)
        };
        let best = find(&own).map(|slot| (slot, false));
        best.or_else(|| find(&|_| true).map(|slot| (slot, true)))
    }
}

impl PacketMemory {
    /// Creates memory for `sockets` sockets, at least one, on memory node `node`. Nothing is allocated before the first
    /// socket.
    pub fn new(sockets: u16, node: Option<u32>) -> PacketMemory {
        PacketMemory {
            sockets: if SHARES { sockets.max(1) } else { 1 },
            node,
            groups: Vec::new(),
        }
    }

    /// Opens a socket on queue `queue` of interface number `ifindex`, with `options`.
    pub fn open(
        &mut self,
        ifindex: u32,
        queue: u32,
        options: &SocketOptions,
    ) -> Result<(XskRx, XskTx), SocketError> {
        let to = (ifindex, queue);
        // A socket that shares memory cannot choose its bind mode, so the mode is determined first.
        let zero_copy = match options.bind {
            BindMode::Copy => false,
            BindMode::ZeroCopy => true,
            BindMode::Auto => does_zero_copy(to, options),
        };
        let bind = match zero_copy {
            true => BindMode::ZeroCopy,
            false => BindMode::Copy,
        };
        let options = SocketOptions { bind, ..*options };
        let kind = Kind {
            zero_copy,
            multi_buffer: options.multi_buffer,
            pages: options.pages,
        };
        // Drop memory without sockets.
        self.groups
            .retain(|group| !group.slots.iter().all(Slot::is_free));
        let with_room = |group: &&mut Group| group.kind == kind && group.free_slot(to).is_some();
        if let Some(group) = self.groups.iter_mut().find(with_room) {
            return join(group, to, &options);
        }
        let (group, halves) = found((self.sockets, self.node), kind, to, &options)?;
        self.groups.push(group);
        Ok(halves)
    }
}

/// Opens the next socket of a group.
fn join(
    group: &mut Group,
    to: (u32, u32),
    options: &SocketOptions,
) -> Result<(XskRx, XskTx), SocketError> {
    let (slot, in_use) = group.free_slot(to).unwrap_or_default();
    if in_use {
        std::thread::sleep(CLOSING);
    }
    let first = group.slots.iter().find_map(|slot| slot.socket.upgrade());
    // There is one: groups without a socket are dropped, by the one thread that opens sockets.
    let memory = match &first {
        Some(socket) => Registration::Of(socket),
        None => Registration::Own(&group.umem, group.metadata),
    };
    let halves = Opening::new(&memory)?.bind(to, options, &memory, (group.umem.clone(), slot))?;
    group.slots[usize::from(slot)] = Slot {
        socket: Arc::downgrade(halves.0.socket()),
        last: Some(to),
    };
    Ok(halves)
}

/// Opens the first socket of a group.
fn found(
    (sockets, node): (u16, Option<u32>),
    kind: Kind,
    to: (u32, u32),
    options: &SocketOptions,
) -> Result<(Group, (XskRx, XskTx)), SocketError> {
    let umem = Umem::new(sockets, kind.pages, node);
    let umem = umem.map_err(SocketError::allocating(Umem::len_of(sockets), kind.pages));
    let umem = Arc::new(umem?);
    // Linux before 6.8 does not know checksum requests, and refuses them.
    let ask = Registration::Own(&umem, true);
    let (opening, memory) = match Opening::new(&ask) {
        Ok(opening) => (opening, ask),
        Err(_) => {
            let plain = Registration::Own(&umem, false);
            (Opening::new(&plain)?, plain)
        }
    };
    let metadata = matches!(memory, Registration::Own(_, true));
    let halves = opening.bind(to, options, &memory, (umem.clone(), 0))?;
    let mut slots: Vec<_> = (0..sockets).map(|_| Slot::default()).collect();
    slots[0] = Slot {
        socket: Arc::downgrade(halves.0.socket()),
        last: Some(to),
    };
    let group = Group {
        kind,
        umem,
        metadata,
        slots,
    };
    Ok((group, halves))
}

/// Returns whether the driver does zero-copy on this queue. Tries it, with separate memory.
pub(crate) fn does_zero_copy(to: (u32, u32), options: &SocketOptions) -> bool {
    let Ok(umem) = Umem::new(1, Pages::Small, None).map(Arc::new) else {
        return false;
    };
    let options = SocketOptions {
        bind: BindMode::ZeroCopy,
        pages: Pages::Small,
        ..*options
    };
    let memory = Registration::Own(&umem, false);
    let bound = |opening: Opening| opening.bind(to, &options, &memory, (umem.clone(), 0));
    Opening::new(&memory).and_then(bound).is_ok()
}
