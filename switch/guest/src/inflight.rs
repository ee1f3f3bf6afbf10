//! The inflight region: the back end's record of its work in progress, so that its successor can continue after a
//! crash. The front end keeps the region from one session to the next and does not read it.

use crate::memory::{GuestMemory, MemoryError, Region};
use crate::message::{self, INFLIGHT_LEN};
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// An inflight region, as GET_INFLIGHT_FD returned it.
#[derive(Clone, Debug)]
pub struct Inflight {
    /// Size in bytes.
    pub len: u64,
    /// Offset in its file, in bytes.
    pub offset: u64,
    /// Number of rings.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    memory: Arc<GuestMemory>,
}

impl Inflight {
    /// Maps the region that `file` and the numbers describe.
    ///
    /// # Errors
    /// A shorter file; an offset that is not page-aligned; system errors.
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
