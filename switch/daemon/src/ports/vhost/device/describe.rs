//! Status of a guest's device for `show port`.

use std::collections::BTreeMap;

use crosspoint_config::Role;
use crosspoint_memory::{GuestMemory, RegionSpec};
use crosspoint_model::status::{DeviceStatus, MemoryRegionStatus, VringStatus};
use crosspoint_vring::feature;
use vhost::vhost_user::VhostUserProtocolFeatures;

use super::super::request;
use super::{Device, Vring};
use crate::dataplane::PortState;

/// Bits of the device status by name (virtio 1.2, 2.1).
const STATUS_NAMES: &[(u64, &str)] = &[
    (1 << 0, "ACKNOWLEDGE"),
    (1 << 1, "DRIVER"),
    (1 << 2, "DRIVER_OK"),
    (1 << 3, "FEATURES_OK"),
    (1 << 6, "DEVICE_NEEDS_RESET"),
    (super::messages::FAILED as u64, "FAILED"),
];

/// State of a device other than its rings.
#[derive(Default)]
pub(super) struct Notes {
    /// The device status, as the front end last set it.
    pub(super) status: u8,
    /// The MTU that the front end has set.
    pub(super) mtu: Option<u16>,
    /// Number of front ends that have connected.
    pub(super) connections: u64,
    /// Why the last one disconnected.
    pub(super) last_end: Option<String>,
    /// Why no front end can connect, if that is so.
    pub(super) socket_problem: Option<String>,
    /// The last request of the current front end,
    pub(super) request: Option<u32>,
    /// and of the previous one.
    pub(super) last_request: Option<String>,
    /// Whether a ring of the current front end has run.
    pub(super) has_run: bool,
    /// Number of consecutive front ends that left before a ring of theirs ran.
    pub(super) early_ends: u64,
}

impl Notes {
    /// The notes that remain after a front end has disconnected because of `end`.
    pub(super) fn after(&mut self, end: &str) -> Notes {
        Notes {
            connections: self.connections,
            last_end: Some(end.to_owned()),
            socket_problem: self.socket_problem.take(),
            last_request: self.request.map(request::name),
            early_ends: match self.has_run {
                true => 0,
                false => self.early_ends + 1,
            },
            ..Notes::default()
        }
    }

    /// Text about front ends that left before their rings ran; empty if the last one's ran.
    fn early_ends_text(&self) -> String {
        let after = match &self.last_request {
            Some(request) => format!("after {request}"),
            None => "without a request".to_owned(),
        };
        match self.early_ends {
            0 => String::new(),
            1 => format!("; the last one left before its rings ran, {after}"),
            n => format!("; the last {n} left before their rings ran, {after}"),
        }
    }
}

impl Device {
    /// Records why no front end can connect; `None` if one can.
    pub(in super::super) fn note_socket(&mut self, problem: Option<&str>) {
        self.notes.socket_problem = problem.map(str::to_owned);
        self.describe();
    }

    /// Records a front end's request.
    pub(in super::super) fn note_request(&mut self, request: u32) {
        self.notes.request = Some(request);
    }

    /// Detail of a port whose front end is setting up.
    pub(super) fn setting_up(&self) -> String {
        let early = self.notes.early_ends_text();
        format!("the front end is setting up{early}")
    }

    /// Detail of a port without a front end.
    pub(super) fn absent(&self) -> String {
        let early = self.notes.early_ends_text();
        format!("no front end is connected{early}")
    }

    /// Reports the device's status to the dataplane. Called after every message: it costs workers nothing.
    pub(in super::super) fn describe(&mut self) {
        self.record();
        self.dataplane.describe(&self.attachment, self.picture());
    }

    pub(super) fn state(&self) -> (PortState, String) {
        let running = |parity| {
            let of_parity = self.vrings.iter().skip(parity).step_by(2);
            of_parity.filter(|vring| vring.running).count()
        };
        let detail = format!("{} receive and {} transmit queues", running(0), running(1));
        let both = running(0) > 0 && running(1) > 0;
        (
            if both {
                PortState::Up
            } else {
                PortState::Connected
            },
            detail,
        )
    }

    pub(super) fn properties(&self, memory: &GuestMemory) -> BTreeMap<String, String> {
        let names = feature::NAMES
            .iter()
            .filter(|(bit, _)| self.features.has(*bit));
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        let sizes: Vec<String> = self
            .vrings
            .iter()
            .filter(|v| v.running)
            .map(|v| v.size.to_string())
            .collect();
        let always = [
            ("features", names.join(" ")),
            ("ring_sizes", sizes.join(" ")),
            ("memory_regions", memory.region_count().to_string()),
            ("memory_bytes", memory.size_bytes().to_string()),
        ];
        let direct = self.direct.text(self.config.direct.as_ref());
        always
            .into_iter()
            .chain(direct.map(|text| ("direct", text)))
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
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
            last_request: self.notes.last_request.clone(),
            early_ends: self.notes.early_ends,
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

/// The bits' names; an unnamed bit is shown by its number.
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
