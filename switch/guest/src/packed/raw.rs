//! A packed ring field by field, for tests that break its rules.

use super::*;

/// Raw access to the ring's memory. These functions do not change the driver's own state, so a test can write what no
/// driver would.
impl PackedRing {
    /// Writes the descriptor in `slot`, flags last and after all earlier writes.
    pub fn write_desc(&self, slot: u16, descriptor: PackedDescriptor) {
        let table = self.descriptors.view();
        descriptor.store_body(table, slot.into());
        let at = DESCRIPTOR_LEN * usize::from(slot) + FLAGS_AT;
        table.store_u16(at, descriptor.flags, Release);
    }

    /// Reads the descriptor in `slot`.
    #[must_use]
    pub fn read_desc(&self, slot: u16) -> PackedDescriptor {
        PackedDescriptor::load(self.descriptors.view(), slot.into())
    }

    /// Writes the driver's event suppression area.
    pub fn set_driver_event(&self, event: EventArea) {
        store_event(&self.driver_event, event);
    }

    /// The driver's event suppression area.
    #[must_use]
    pub fn driver_event(&self) -> EventArea {
        load_event(&self.driver_event)
    }

    /// Writes the device's event suppression area, which normally only the device writes.
    pub fn set_device_event(&self, event: EventArea) {
        store_event(&self.device_event, event);
    }

    /// The device's event suppression area.
    #[inline(always)]
    #[must_use]
    pub fn device_event(&self) -> EventArea {
        load_event(&self.device_event)
    }
}
