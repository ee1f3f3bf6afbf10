//! What `show port` says of a guest's device.

use crosspoint_vring::{GuestMemory, RegionSpec, feature};
use vhost::vhost_user::VhostUserProtocolFeatures;

use super::{Device, Vring};
use crate::config::Role;
use crate::fabric::PortState;
use crate::status::{DeviceStatus, MemoryRegionStatus, VringStatus};

/// Bits of the device status by name (virtio 1.2, 2.1).
const STATUS_NAMES: &[(u64, &str)] = &[
    (1 << 0, "ACKNOWLEDGE"),
    (1 << 1, "DRIVER"),
    (1 << 2, "DRIVER_OK"),
    (1 << 3, "FEATURES_OK"),
    (1 << 6, "DEVICE_NEEDS_RESET"),
    (super::messages::FAILED as u64, "FAILED"),
];

/// What is known of a device beside its rings.
#[derive(Default)]
pub(super) struct Notes {
    /// The device status, as the front end last set it.
    pub(super) status: u8,
    /// The MTU that the front end has set.
    pub(super) mtu: Option<u16>,
    /// How many front ends have connected.
    pub(super) connections: u64,
    /// Why the last one went.
    pub(super) last_end: Option<String>,
    /// Why nobody can connect, if nobody can.
    pub(super) socket_problem: Option<String>,
}

impl Notes {
    /// What outlives a front end.
    pub(super) fn after(&mut self, end: &str) -> Notes {
        Notes {
            connections: self.connections,
            last_end: Some(end.to_owned()),
            socket_problem: self.socket_problem.take(),
            ..Notes::default()
        }
    }
}

impl Device {
    /// Notes why nobody can connect, or that they can.
    pub(in super::super) fn note_socket(&mut self, problem: Option<&str>) {
        self.notes.socket_problem = problem.map(str::to_owned);
        self.describe();
    }

    /// Tells the fabric how the device is now. After every message: it costs no worker anything.
    pub(in super::super) fn describe(&self) {
        self.fabric.describe(&self.attachment, self.picture());
    }

    fn picture(&self) -> DeviceStatus {
        let protocol = |bit: VhostUserProtocolFeatures| self.protocol_features & bit.bits() != 0;
        let packed = self.features.has(feature::RING_PACKED);
        let cut_off = self.port_state() == PortState::Quarantined;
        let all = VhostUserProtocolFeatures::all();
        let protocol_names = all.iter_names().map(|(name, bit)| (bit.bits(), name));
        let statuses = || names(self.notes.status.into(), STATUS_NAMES.iter().copied());
        DeviceStatus {
            role: match self.config.role {
                Role::Server => "server",
                Role::Client => "client",
            }
            .to_owned(),
            socket: self.config.socket.display().to_string(),
            connections: self.notes.connections,
            last_end: self.notes.last_end.clone(),
            socket_problem: self.notes.socket_problem.clone(),
            features: names(self.features.bits(), feature::NAMES.iter().copied()),
            protocol_features: names(self.protocol_features, protocol_names),
            device_status: protocol(VhostUserProtocolFeatures::STATUS).then(statuses),
            ring_type: if packed { "packed" } else { "split" }.to_owned(),
            mac: self.config.mac.map(|mac| mac.to_string()),
            mtu: self.config.mtu,
            mtu_set: self.notes.mtu,
            memory: self
                .memory
                .iter()
                .flat_map(|cell| regions(cell.get()))
                .collect(),
            vrings: (0..)
                .zip(&self.vrings)
                .map(|one| VringStatus {
                    has_call: self.attachment.caller.notifier(one.0.into()).has_target(),
                    ..vring(one, cut_off)
                })
                .collect(),
        }
    }
}

/// The bits' names; a bit without one is shown by its number.
fn names(bits: u64, known: impl Iterator<Item = (u64, &'static str)>) -> Vec<String> {
    let mut left = bits;
    let mut list = Vec::new();
    for (bit, name) in known.filter(|(bit, _)| bits & bit != 0) {
        left &= !bit;
        list.push(name.to_owned());
    }
    let unnamed = (0..64).filter(|bit| left >> bit & 1 != 0);
    list.extend(unnamed.map(|bit| format!("bit {bit}")));
    list
}

fn regions(memory: &GuestMemory) -> Vec<MemoryRegionStatus> {
    let region = |spec: RegionSpec| MemoryRegionStatus {
        guest_address: spec.guest_address,
        size: spec.size,
    };
    memory.regions().map(region).collect()
}

fn vring((index, vring): (u16, &Vring), cut_off: bool) -> VringStatus {
    let is_receive = index.is_multiple_of(2);
    VringStatus {
        index,
        direction: if is_receive { "receive" } else { "transmit" }.to_owned(),
        size: vring.size,
        enabled: vring.enabled,
        running: vring.running && !cut_off,
        base: vring.base as u16,
        has_kick: vring.kick.is_some(),
        has_call: false,
    }
}
