//! Descriptor chains: followed with every step checked and counted.

use crate::split::{Descriptor, F_INDIRECT, F_NEXT, F_WRITE, SplitRing};
use crate::{GuestMemory, RingFault};

/// Which way the bytes go.
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

/// The buffer of a chain that is a single plain descriptor, which nearly every chain is; null
/// when it is anything else, a fault included: [`walk`] finds out which.
///
/// Two registers and no `Result`: what is returned through memory is stored in parts and loaded
/// whole, which waits for every older store, and those go to lines that the guest's core has.
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

/// Longest chain that is followed. The specification allows as many as the ring has entries;
/// no driver makes more than a few tens, and a longer one is work without end.
pub(crate) const MAX_CHAIN: u16 = 1024;
/// Descriptors that are followed for one burst, all its chains together: a guest whose chains
/// are long gets shorter bursts, and holds nobody up. Any one chain fits.
pub(crate) const BUDGET: u32 = 4096;

/// Calls `piece` with every run of host memory of the chain that begins at `head`, in order,
/// for as many descriptors as `budget` has left; `false` when those ran out. Buffers that span
/// regions come in several pieces; empty descriptors in none.
pub(crate) fn walk(
    ring: &SplitRing,
    memory: &GuestMemory,
    head: u16,
    direction: Direction,
    indirect_allowed: bool,
    budget: &mut u32,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<bool, RingFault> {
    let size = ring.size();
    let mut index = head;
    // A chain that visits more descriptors than the ring has, loops.
    for _ in 0..size.min(MAX_CHAIN) {
        let d = ring
            .descriptor(index)
            .ok_or(RingFault::DescriptorIndex { index, size })?;
        if d.flags & F_INDIRECT != 0 {
            if !indirect_allowed || d.flags & F_NEXT != 0 {
                return Err(RingFault::IndirectPlace);
            }
            return walk_table(ring, memory, d, direction, budget, piece);
        }
        if !spend(budget) {
            return Ok(false);
        }
        buffer(memory, d, direction, piece)?;
        if d.flags & F_NEXT == 0 {
            return Ok(true);
        }
        index = d.next;
    }
    Err(RingFault::ChainTooLong {
        size: size.min(MAX_CHAIN),
    })
}

pub(crate) fn spend(budget: &mut u32) -> bool {
    let left = budget.checked_sub(1);
    *budget = left.unwrap_or(0);
    left.is_some()
}

fn walk_table(
    ring: &SplitRing,
    memory: &GuestMemory,
    table: Descriptor,
    direction: Direction,
    budget: &mut u32,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<bool, RingFault> {
    let (host, count) = find_table(memory, ring.size(), table.address, table.len)?;
    let mut index = 0;
    for _ in 0..count.min(MAX_CHAIN) {
        if !spend(budget) {
            return Ok(false);
        }
        // SAFETY: `find_table` translated 16 * count bytes.
        let d = unsafe { ring.indirect(host, count, index) }
            .ok_or(RingFault::DescriptorIndex { index, size: count })?;
        if d.flags & F_INDIRECT != 0 {
            return Err(RingFault::IndirectPlace);
        }
        buffer(memory, d, direction, piece)?;
        if d.flags & F_NEXT == 0 {
            return Ok(true);
        }
        index = d.next;
    }
    Err(RingFault::ChainTooLong {
        size: count.min(MAX_CHAIN),
    })
}

/// Host address of an indirect table, and how many descriptors it has. It may be longer than a
/// small ring of `ring_size` entries: Linux makes such.
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

/// Calls `piece` with every run of host memory of one descriptor's buffer.
pub(crate) fn buffer(
    memory: &GuestMemory,
    d: Descriptor,
    direction: Direction,
    piece: &mut dyn FnMut(*mut u8, u32),
) -> Result<(), RingFault> {
    if d.flags & F_WRITE != direction.flag() {
        return Err(RingFault::Direction);
    }
    let fault = RingFault::Address {
        address: d.address,
        len: d.len,
    };
    let (mut address, mut left) = (d.address, d.len);
    // Each turn leaves one region behind, so the loop is bounded by their number.
    while left > 0 {
        let (ptr, room) = memory.translate_some(address).ok_or(fault)?;
        let n = u32::try_from(room).unwrap_or(u32::MAX).min(left);
        piece(ptr, n);
        address = address.checked_add(u64::from(n)).ok_or(fault)?;
        left -= n;
    }
    Ok(())
}
