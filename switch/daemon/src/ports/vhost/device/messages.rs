//! Messages about other things than rings: status, reset, MTU, announcement, configuration space.

use crosspoint_config::limits::MTU_MIN;
use crosspoint_packet::Mac;
use crosspoint_vring::{Features, feature};
use vhost::vhost_user::Result;

use super::{Device, Vring, refusal};

/// Length of the largest configuration space (vhost-user protocol, "Virtio device config space").
const CONFIG_SPACE_LEN: usize = 256;
/// Device status bit: the driver has given up on the device (virtio 1.2, 2.1).
pub(super) const FAILED: u8 = 1 << 7;

impl Device {
    /// The front end resets the device, and goes on. Rings, features and status return to their initial state; memory
    /// and connection stay. Ring indices stay too, since GET_VRING_BASE may still ask for them, and so do call
    /// descriptors, which front ends set only once.
    pub(in super::super) fn reset(&mut self) {
        self.forget_rings();
        self.note_reset();
    }

    /// Returns rings, features and status to their initial state.
    pub(super) fn forget_rings(&mut self) {
        self.stop_all();
        self.features = Features::default();
        for vring in &mut self.vrings {
            *vring = Vring {
                base: vring.base,
                // Front ends set it only once.
                call: vring.call.take(),
                ..Vring::default()
            };
        }
        self.notes.status = 0;
        self.reconcile();
    }

    /// SET_STATUS: records the status. Rings start by their kicks, regardless of the status; 0 is a reset (virtio 1.2,
    /// 2.1.2).
    pub(in super::super) fn set_status(&mut self, status: u8) {
        if status & !self.notes.status & FAILED != 0 {
            tracing::warn!(
                port = self.name,
                "the driver has given up on the device (status FAILED)"
            );
        }
        match status {
            0 => self.reset(),
            _ => self.notes.status = status,
        }
    }

    /// GET_STATUS.
    pub(in super::super) fn status(&self) -> u8 {
        self.notes.status
    }

    /// NET_SET_MTU: the MTU that the front end has announced to the guest. No frame is dropped because of it.
    pub(in super::super) fn set_mtu(&mut self, mtu: u64) -> Result<()> {
        let known = u16::try_from(mtu).ok().filter(|mtu| *mtu >= MTU_MIN);
        let Some(mtu) = known else {
            tracing::warn!(
                port = self.name,
                "the front end sets an MTU of {mtu}, which is not from {MTU_MIN} to 65535"
            );
            return Err(refusal());
        };
        self.notes.mtu = Some(mtu);
        Ok(())
    }

    /// SEND_RARP: the guest has migrated here, and cannot announce itself.
    pub(in super::super) fn announce(&mut self, mac: Mac) -> Result<()> {
        if !mac.is_valid_source() {
            tracing::warn!(
                port = self.name,
                "the front end announces {mac}, which is not a station's address"
            );
            return Err(refusal());
        }
        self.dataplane.announce(&self.attachment, mac);
        Ok(())
    }

    /// `size` bytes of struct virtio_net_config from `offset` (virtio 1.2, 5.1.4). Fields that the device does not have
    /// read as zero.
    pub(in super::super) fn config_space(&self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let mac = self.config.mac.unwrap_or_default().bytes();
        let [status, pairs, mtu] =
            [self.link_status(), self.queue_pairs, self.config.mtu].map(u16::to_le_bytes);
        let mut space = [mac.as_slice(), &status, &pairs, &mtu].concat();
        space.resize(CONFIG_SPACE_LEN, 0);
        let (offset, size) = (offset as usize, size as usize);
        let wanted = space.get(offset..offset.saturating_add(size));
        wanted.map(<[u8]>::to_vec).ok_or_else(refusal)
    }
}

/// The features that a port offers: those of its rings, without the offloads that the configuration disables, and MAC
/// if an address is configured.
pub(crate) fn offered(config: &crosspoint_config::VhostPort) -> u64 {
    let mac = if config.mac.is_some() {
        feature::MAC
    } else {
        0
    };
    let withheld = |is_offered: bool, bits| if is_offered { 0 } else { bits };
    let withheld = withheld(config.offloads.receive, feature::RECEIVE_OFFLOADS)
        | withheld(config.offloads.transmit, feature::TRANSMIT_OFFLOADS);
    (Features::offered(config.queue_pairs) | mac) & !withheld
}
