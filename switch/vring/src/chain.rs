//! Walks descriptor chains; every step is checked and counted.

use crosspoint_frame::Work;
use crosspoint_memory::GuestMemory;

use crate::RingFault;
use crate::split::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE, SplitRing};

/// The fault of a chain that takes more work than a whole burst may.
pub(crate) fn costly() -> RingFault {
    RingFault::ChainCostly { most: STEPS as u16 }
}

/// Direction of a buffer's data.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver wrote them: a frame to send.
    Read,
    /// The device writes them: a receive buffer.
    Write,
}

impl Direction {
    #[inline(always)]
    pub(crate) fn flag(self) -> u16 {
        match self {
            Direction::Read => 0,
            Direction::Write => F_WRITE,
        }
    }
}

/// The buffer of a chain that is one plain descriptor, as nearly every chain is. Null for anything else, including a
/// fault: [`walk`] handles it.
///
/// Returned in two registers, not as a `Result`: a value returned through memory is stored in parts and loaded whole,
/// and such a load waits for every older store, some of which go to cache lines that the guest's core holds.
#[inline(always)]
pub(crate) fn single(
    ring: &SplitRing,
    memory: &GuestMemory,
    index: u16,
    direction: Direction,
) -> (*mut u8, u32) {
    let nothing = (std::ptr::null_mut(), 0);
    let Some(d) = ring.descriptor(index) else {
        return nothing;
    };
    if d.flags & (F_NEXT | F_INDIRECT | F_WRITE) != direction.flag() {
        return nothing;
    }
    match memory.translate(d.address, d.len) {
        Some(ptr) => (ptr, d.len),
        None => nothing,
    }
}

/// Longest chain that is followed. The specification allows as many descriptors as the ring has entries; no driver uses
/// more than a few tens, and a longer chain would be unbounded work.
pub(crate) const MAX_CHAIN: u16 = 1024;
/// Maximum pieces of one descriptor's buffer; each piece is in another memory region. Drivers' buffers are in one
/// region, or cross one boundary between two.
const MAX_PIECES: u32 = 16;
/// Steps to read one burst of frames, all chains together: one for each descriptor, and one for each further region
/// that a descriptor spans. A guest with long chains gets shorter bursts.
pub(crate) const STEPS: u32 = Work::READ / Work::STEP;
/// The same as a work budget. A chain that cannot be read with all of it is a fault.
pub(crate) const WORK: Work = Work::new(Work::READ);

/// Calls `piece` with each contiguous host memory range of the chain that begins at `head`, in order. Returns `false`
/// when `work` ran out. A buffer that spans regions has several pieces, an empty descriptor none.
pub(crate) fn walk(
    ring: &SplitRing,
    memory: &GuestMemory,
    head: u16,
    direction: Direction,
    indirect_allowed: bool,
    work: &mut Work,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<bool, RingFault> {
    let size = ring.size();
    let mut index = head;
    // A chain that visits more descriptors than the ring has is a loop.
    for _ in 0..size.min(MAX_CHAIN) {
        let d = ring
            .descriptor(index)
            .ok_or(RingFault::DescriptorIndex { index, size })?;
        if d.flags & F_INDIRECT != 0 {
            if !indirect_allowed || d.flags & F_NEXT != 0 {
                return Err(RingFault::IndirectPlace);
            }
            return walk_table(ring, memory, d, direction, work, piece);
        }
        if !buffer(memory, d, direction, work, piece)? {
            return Ok(false);
        }
        if d.flags & F_NEXT == 0 {
            return Ok(true);
        }
        index = d.next;
    }
    Err(RingFault::ChainTooLong {
        size: size.min(MAX_CHAIN),
    })
}

fn walk_table(
    ring: &SplitRing,
    memory: &GuestMemory,
    table: Descriptor,
    direction: Direction,
    work: &mut Work,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<bool, RingFault> {
    let (host, count) = find_table(memory, ring.size(), table.address, table.len)?;
    let mut index = 0;
    for _ in 0..count.min(MAX_CHAIN) {
        // SAFETY: `find_table` translated 16 * count bytes.
        let d = unsafe { ring.indirect(host, count, index) }
            .ok_or(RingFault::DescriptorIndex { index, size: count })?;
        if d.flags & F_INDIRECT != 0 {
            return Err(RingFault::IndirectPlace);
        }
        if !buffer(memory, d, direction, work, piece)? {
            return Ok(false);
        }
        if d.flags & F_NEXT == 0 {
            return Ok(true);
        }
        index = d.next;
    }
    Err(RingFault::ChainTooLong {
        size: count.min(MAX_CHAIN),
    })
}

/// Host address and number of descriptors of an indirect table. It may be longer than a small ring of `ring_size`
/// entries: Linux makes such tables.
pub(crate) fn find_table(
    memory: &GuestMemory,
    ring_size: u16,
    address: u64,
    len: u32,
) -> Result<(*mut u8, u16), RingFault> {
    let size = ring_size.max(MAX_CHAIN);
    let bad_length = RingFault::IndirectLength { len, size };
    let count = u16::try_from(len / 16).map_err(|_| bad_length)?;
    if !len.is_multiple_of(16) || count == 0 || count > size {
        return Err(bad_length);
    }
    let outside = RingFault::Address { address, len };
    let host = memory.translate(address, len).ok_or(outside)?;
    Ok((host, count))
}

/// Calls `piece` with each contiguous host memory range of one descriptor's buffer. Returns `false` when `work` ran
/// out.
pub(crate) fn buffer(
    memory: &GuestMemory,
    d: Descriptor,
    direction: Direction,
    work: &mut Work,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<bool, RingFault> {
    if !work.spend(Work::STEP) {
        return Ok(false);
    }
    if d.flags & F_WRITE != direction.flag() {
        return Err(RingFault::Direction);
    }
    let fault = RingFault::Address {
        address: d.address,
        len: d.len,
    };
    let (mut address, mut left) = (d.address, d.len);
    for number in 0..MAX_PIECES {
        if left == 0 {
            return Ok(true);
        }
        // The first piece is included in the cost of the descriptor.
        if number > 0 && !work.spend(Work::STEP) {
            return Ok(false);
        }
        let (ptr, room) = memory.translate_some(address).ok_or(fault)?;
        let n = u32::try_from(room).unwrap_or(u32::MAX).min(left);
        piece(ptr, n);
        address = address.checked_add(u64::from(n)).ok_or(fault)?;
        left -= n;
    }
    match left {
        0 => Ok(true),
        _ => Err(RingFault::Scattered {
            address: d.address,
            len: d.len,
            most: MAX_PIECES as u16,
        }),
    }
}
