//! Assigns packet memory to sockets: sockets of one worker with the same properties share it, so that a frame goes from
//! one NIC to another without a copy.

#[cfg(not(feature = "xsk-rs"))]
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
#[cfg(not(feature = "xsk-rs"))]
use std::os::{fd::AsFd, unix::fs::MetadataExt};
use std::sync::{Arc, Weak};
use std::time::Duration;

#[cfg(not(feature = "xsk-rs"))]
use crate::socket::Rings;
use crate::socket::{Opening, Registration};
use crate::{BindMode, MappedSocket, Pages, SocketError, SocketOptions, SocketRecord, Umem};
use crate::{XskRx, XskSocket, XskTx};

/// Whether sockets share memory. The crate keeps the first socket of a UMEM bound until the last is closed, so a port
/// that is opened again would find its queue busy.
const SHARES: bool = cfg!(not(feature = "xsk-rs"));

/// A worker's packet memory.
pub struct PacketMemory {
    /// Number of sockets that a memory is made for. Further sockets get another memory.
    sockets: u16,
    node: Option<u32>,
    /// Whether another process may go on with the sockets: the memory is then in files.
    in_files: bool,
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
    /// Whether another process has made it. It takes no further socket: whether the former sockets of its free slots are
    /// closed is not known.
    is_taken_over: bool,
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
            in_files: false,
            groups: Vec::new(),
        }
    }

    /// Memory with whose sockets another process may go on.
    pub fn in_files(mut self, in_files: bool) -> PacketMemory {
        self.in_files = in_files;
        self
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
        let with_room = |group: &&mut Group| {
            group.kind == kind && !group.is_taken_over && group.free_slot(to).is_some()
        };
        if let Some(group) = self.groups.iter_mut().find(with_room) {
            return join(group, to, &options);
        }
        let umem = match self.in_files {
            true => Umem::new_file(self.sockets, kind.pages, self.node),
            false => Umem::new(self.sockets, kind.pages, self.node),
        };
        let len = Umem::len_of(self.sockets);
        let umem = umem.map_err(SocketError::allocating(len, kind.pages))?;
        let (group, halves) = found(umem, kind, to, &options)?;
        self.groups.push(group);
        Ok(halves)
    }

    /// Maps a socket of another process, which still uses it. `fds` are the socket and its memory, `frame_len_max` is as in
    /// [`SocketOptions`].
    #[cfg(not(feature = "xsk-rs"))]
    pub fn map_socket(
        &mut self,
        to: (u32, u32),
        record: &SocketRecord,
        frame_len_max: u32,
        [socket, memory]: [OwnedFd; 2],
    ) -> Result<MappedSocket, SocketError> {
        let fail = SocketError::new("mapping the predecessor's packet memory");
        let group = self.group_of(memory, record).map_err(fail)?;
        let rings = Rings::map(socket.as_fd())?;
        let options = SocketOptions {
            // It is bound.
            bind: BindMode::Auto,
            multi_buffer: record.multi_buffer,
            busy_poll: record.busy_poll,
            pages: record.pages,
            frame_len_max,
        };
        let how = (record.zero_copy, record.finishes_checksums);
        let umem = (group.umem.clone(), record.slot);
        let socket = Arc::new(XskSocket::with(socket, umem, how, &options));
        if let Some(slot) = group.slots.get_mut(usize::from(record.slot)) {
            *slot = Slot {
                socket: Arc::downgrade(&socket),
                last: Some(to),
            };
        }
        Ok(MappedSocket { socket, rings })
    }

    /// Returns the group of a memory of another process: the sockets that share it there share it here.
    #[cfg(not(feature = "xsk-rs"))]
    fn group_of(&mut self, memory: OwnedFd, record: &SocketRecord) -> io::Result<&mut Group> {
        let kind = Kind {
            zero_copy: record.zero_copy,
            multi_buffer: record.multi_buffer,
            pages: record.pages,
        };
        let file = File::from(memory);
        let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino()));
        let wanted = identity(&file)?;
        let is_it = |group: &Group| {
            let file = group
                .umem
                .file()
                .and_then(|fd| fd.try_clone_to_owned().ok());
            file.is_some_and(|fd| identity(&File::from(fd)).is_ok_and(|it| it == wanted))
        };
        let index = match self.groups.iter().position(is_it) {
            Some(index) => index,
            None => {
                let umem = Umem::of_file(file, record.sockets, record.pages)?;
                self.groups.push(Group {
                    kind,
                    umem: Arc::new(umem),
                    metadata: record.finishes_checksums,
                    is_taken_over: true,
                    slots: (0..record.sockets).map(|_| Slot::default()).collect(),
                });
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[index];
        let is_free = group.slots.get(usize::from(record.slot)).map(Slot::is_free);
        match group.kind == kind && is_free == Some(true) {
            true => Ok(group),
            false => Err(io::Error::other("its record contradicts another one")),
        }
    }

    /// Never succeeds: the crate maps no socket of another process.
    #[cfg(feature = "xsk-rs")]
    pub fn map_socket(
        &mut self,
        _: (u32, u32),
        _: &SocketRecord,
        _: u32,
        _: [OwnedFd; 2],
    ) -> Result<MappedSocket, SocketError> {
        Err(SocketError::new("mapping the predecessor's socket")(
            io::ErrorKind::Unsupported.into(),
        ))
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
    umem: Umem,
    kind: Kind,
    to: (u32, u32),
    options: &SocketOptions,
) -> Result<(Group, (XskRx, XskTx)), SocketError> {
    let umem = Arc::new(umem);
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
    let mut slots: Vec<_> = (0..umem.sockets()).map(|_| Slot::default()).collect();
    slots[0] = Slot {
        socket: Arc::downgrade(halves.0.socket()),
        last: Some(to),
    };
    let group = Group {
        kind,
        umem,
        metadata,
        is_taken_over: false,
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
