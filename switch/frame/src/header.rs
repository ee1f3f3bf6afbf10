//! The virtio-net header of unfinished frames.

use crate::{HeaderOp, Offload};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM (virtio 1.2, 5.1.6).
pub const NEEDS_CSUM: u8 = 1;

/// Makes the struct virtio_net_hdr before a frame (virtio 1.2, 5.1.6.4; packet(7), PACKET_VNET_HDR); with 10 bytes, the
/// one without `num_buffers`. It requests what `offload` does, for a copy whose tag is changed by `tag`; nothing if the
/// copy is `completed`.
///
/// Assembled from two words, not field by field. A load that is wider than one store cannot be forwarded from the store
/// buffer; it waits until every earlier store is in the cache, including those to the guest's cache lines. This took a
/// third of the time of a 64-byte frame.
#[inline(always)]
pub fn virtio_header<const HEADER: usize>(
    offload: &Offload,
    tag: HeaderOp,
    buffers: u16,
    completed: bool,
) -> [u8; HEADER] {
    let (mut low, mut high) = (0, u32::from(buffers) << 16);
    if offload.needs_csum && !completed {
        low = asked(offload, tag);
        high |= u32::from(offload.csum_offset);
    }
    let mut header = [0; HEADER];
    if let Some((first, rest)) = header.split_at_mut_checked(8) {
        first.copy_from_slice(&low.to_le_bytes());
        match rest.len() {
            4 => rest.copy_from_slice(&high.to_le_bytes()),
            _ => rest.copy_from_slice(&(high as u16).to_le_bytes()),
        }
    }
    header
}

/// flags, gso_type, hdr_len, gso_size and csum_start of a frame that needs an offload.
#[inline(never)]
fn asked(offload: &Offload, tag: HeaderOp) -> u64 {
    let start = usize::from(offload.csum_start).saturating_add_signed(tag.growth()) as u16;
    let mut low = u64::from(NEEDS_CSUM) | u64::from(start) << 48;
    if offload.gso_type != 0 {
        let len = usize::from(offload.hdr_len).saturating_add_signed(tag.growth()) as u16;
        low |= u64::from(offload.gso_type) << 8 | u64::from(len) << 16;
        low |= u64::from(offload.gso_size) << 32;
    }
    low
}
