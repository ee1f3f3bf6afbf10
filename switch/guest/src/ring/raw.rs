//! A split ring field by field, for tests that break its rules.

use super::*;

/// Raw access to the ring's memory. These functions do not change the driver's own state, so a test can write what no
/// driver would.
impl SplitRing {
    /// Writes descriptor `index`.
    #[inline(always)]
    pub fn write_desc(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(
            index,
            Descriptor {
                address,
                len,
                flags,
                next,
            },
        );
    }

    /// Writes descriptors.
    #[inline(always)]
    pub fn write_descs(&self, descriptors: impl Iterator<Item = (u16, Descriptor)>) {
        let table = self.descriptors.view();
        descriptors.for_each(|(index, descriptor)| descriptor.store(table, index.into()));
    }

    pub(super) fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        descriptor.store(self.descriptors.view(), index.into());
    }

    /// Reads descriptor `index`.
    #[must_use]
    pub fn read_desc(&self, index: u16) -> Descriptor {
        Descriptor::load(self.descriptors.view(), index.into())
    }

    /// Writes entry `slot` of the available ring.
    pub fn set_avail(&mut self, slot: u16, id: u16) {
        self.entries[usize::from(slot)] = id;
        self.available
            .view()
            .store_u16(RING_HEADER_LEN + 2 * usize::from(slot), id, Relaxed);
    }

    /// Entry `slot` of the available ring.
    #[must_use]
    pub fn avail(&self, slot: u16) -> u16 {
        self.available
            .view()
            .load_u16(RING_HEADER_LEN + 2 * usize::from(slot), Relaxed)
    }

    /// Writes the available index, after all earlier writes.
    pub fn set_avail_idx(&self, index: u16) {
        self.available.view().store_u16(2, index, Release);
    }

    /// The available index.
    #[must_use]
    pub fn avail_idx(&self) -> u16 {
        self.available.view().load_u16(2, Acquire)
    }

    /// Writes the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.available.view().store_u16(0, flags, Relaxed);
    }

    /// Writes `used_event` (2.7.7).
    pub fn set_used_event(&self, index: u16) {
        self.available.view().store_u16(
            RING_HEADER_LEN + 2 * usize::from(self.layout.size),
            index,
            Relaxed,
        );
    }

    /// The used index.
    #[inline(always)]
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.used.view().load_u16(2, Acquire)
    }

    /// Id and length of the used entry of index `index` (modulo the ring size).
    #[must_use]
    pub fn used_element(&self, index: u16) -> (u32, u32) {
        let slot = usize::from(index & (self.layout.size - 1));
        let bits = u64::from_le_bytes(
            self.used
                .view()
                .read_array(RING_HEADER_LEN + USED_ELEMENT_LEN * slot),
        );
        (bits as u32, (bits >> 32) as u32)
    }

    /// The flags of the used ring.
    #[inline(always)]
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.used.view().load_u16(0, Relaxed)
    }

    /// `avail_event` (2.7.9).
    #[inline(always)]
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.used.view().load_u16(
            RING_HEADER_LEN + USED_ELEMENT_LEN * usize::from(self.layout.size),
            Relaxed,
        )
    }
}
