//! Guest memory: what a front end shares, mapped; the table of its regions; the log of written pages.
//!
//! `unsafe` is confined to [`mapping`], [`memory`] and [`dirty`].

pub mod descriptor;
mod dirty;
pub mod mapping;
pub mod memory;

pub use descriptor::Kind;
pub use dirty::{DirtyLog, LOG_PAGE_LEN};
pub use mapping::{Contiguous, MAX_MAPPINGS, check_file, lost_mappings};
pub use memory::{GuestMemory, MAX_GUEST_BYTES, MemoryCell, MemoryError, RegionSpec};
