//! The inflight region: where the back end keeps what it has in hand, so that its successor can go on after a crash.
//! The front end keeps it from one session to the next, and does not look inside.

use crate::memory::{GuestMemory, MemoryError, Region};
use crate::message::{self, INFLIGHT_LEN};
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// An inflight region, as GET_INFLIGHT_FD returned it.
#[derive(Clone, Debug)]
pub struct Inflight {
    /// Bytes.
    pub len: u64,
    /// Where it begins in its file, bytes.
    pub offset: u64,
    /// Rings.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    memory: Arc<GuestMemory>,
}

impl Inflight {
    /// Maps the region that `file` and the numbers describe.
    ///
    /// # Errors
    /// A file that is shorter than that; an offset that is not of whole pages; the system's.
    pub fn map(
        file: OwnedFd,
        (len, offset): (u64, u64),
        queues: u16,
        queue_size: u16,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            len,
            offset,
            queues,
            queue_size,
            memory: GuestMemory::map_file(file, offset, len)?,
        })
    }

    /// The region's bytes, from address 0 on.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// File and mapping.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.memory.regions()[0]
    }

    /// The payload of SET_INFLIGHT_FD.
    #[must_use]
    pub fn payload(&self) -> [u8; INFLIGHT_LEN] {
        message::inflight(self.len, self.offset, self.queues, self.queue_size)
    }
}
