//! An open port of the configuration.

use std::sync::Arc;

use crosspoint_config::plan::PortDiff;
use crosspoint_config::{Admin, Config, Port, PortKind, Vlan, vlan_list};
use crosspoint_engine::bridge::vlan::VlanPolicy;

use crate::dataplane::{Dataplane, PortBridges, PortOptions, PortSettings, PortState};
use crate::ports::nic;
use crate::ports::nic::{UplinkOptions, Uplinks};
use crate::ports::vhost::VhostPort;
use crate::start_error::StartError;

/// An open port: its number, and what serves it.
pub(super) struct PortHandle {
    number: u16,
    by: PortDriver,
}

enum PortDriver {
    Guest {
        port: VhostPort,
    },
    Nic {
        port: Uplinks,
    },
    /// An uplink whose interface this process's predecessor still has.
    Reserved,
}

impl PortHandle {
    /// Adds `port`, which is part of `config`, to the dataplane, and serves it.
    pub fn open(
        dataplane: &Arc<Dataplane>,
        config: &Config,
        port: &Port,
    ) -> Result<PortHandle, StartError> {
        let number = dataplane.add_port(options(port));
        let number = number.ok_or_else(|| StartError::TooManyPorts(port.name.clone()))?;
        match serve(dataplane, number, config, port) {
            Ok(by) => {
                dataplane.set_slo(number, port.slo);
                Ok(PortHandle { number, by })
            }
            Err(why) => {
                // Its earlier counts, if it was open before, are kept for the next attempt.
                dataplane.set_aside(number);
                Err(why)
            }
        }
    }

    /// Adds an uplink to the dataplane without its interface: see [`open_reserved`](Self::open_reserved).
    pub fn reserve(
        dataplane: &Arc<Dataplane>,
        config: &Config,
        port: &Port,
    ) -> Result<PortHandle, StartError> {
        let number = dataplane.add_port(options(port));
        let number = number.ok_or_else(|| StartError::TooManyPorts(port.name.clone()))?;
        dataplane.set_slo(number, port.slo);
        nic::taken::map(dataplane, number, config, &port.name);
        let by = PortDriver::Reserved;
        Ok(PortHandle { number, by })
    }

    /// Opens a reserved uplink's interface. Does nothing with other ports.
    pub fn open_reserved(
        &mut self,
        dataplane: &Arc<Dataplane>,
        config: &Config,
        port: &Port,
    ) -> Result<(), StartError> {
        if matches!(self.by, PortDriver::Reserved) {
            self.by = serve(dataplane, self.number, config, port)?;
        }
        Ok(())
    }

    /// Whether its peer is there, but frames will flow only in a moment.
    pub fn is_coming_up(&self, dataplane: &Dataplane) -> bool {
        let state = dataplane.port_state(self.number);
        match &self.by {
            PortDriver::Guest { port } => state == PortState::Connected || !port.has_asked(),
            PortDriver::Nic { port } => port.lost_carrier && state == PortState::Down,
            PortDriver::Reserved => false,
        }
    }

    /// Whether it is a guest port.
    pub fn is_guest(&self) -> bool {
        matches!(self.by, PortDriver::Guest { .. })
    }

    /// The guest port, if it is one.
    pub fn guest(&self) -> Option<&VhostPort> {
        match &self.by {
            PortDriver::Guest { port } => Some(port),
            PortDriver::Nic { .. } | PortDriver::Reserved => None,
        }
    }

    /// The thread that follows the port's interface, if it has one.
    pub fn uplinks(&self) -> Option<&Uplinks> {
        match &self.by {
            PortDriver::Nic { port } => Some(port),
            PortDriver::Guest { .. } | PortDriver::Reserved => None,
        }
    }

    /// Closes an uplink, to be opened again by [`open_reserved`](Self::open_reserved). Does nothing with other ports.
    pub fn close_nic(&mut self) {
        if matches!(self.by, PortDriver::Nic { .. }) {
            self.by = PortDriver::Reserved;
        }
    }

    /// Asks a guest port's threads to end, without waiting: so closing several ports takes no longer than closing one.
    pub fn begin_end(&self) {
        if let PortDriver::Guest { port } = &self.by {
            port.begin_end();
        }
    }

    /// Releases the guest or interface, and takes the port out of the dataplane, permanently or until it is reopened.
    pub fn close(self, dataplane: &Dataplane, comes_again: bool) {
        drop(self.by);
        // An uplink that was never opened may have its predecessor's sockets.
        nic::taken::close(dataplane, self.number);
        match comes_again {
            true => dataplane.set_aside(self.number),
            false => dataplane.remove_port(self.number),
        }
    }

    /// Changes the settings that can change while frames flow.
    pub fn set(&self, dataplane: &Dataplane, diff: &PortDiff) {
        let (before, after) = (&diff.before, &diff.after);
        let settings = PortSettings {
            vlan: (policy(before) != policy(after)).then(|| policy(after)),
            bridges: (PortBridges::of(before) != PortBridges::of(after))
                .then(|| PortBridges::of(after)),
            mac_limit: (before.mac_limit != after.mac_limit).then_some(after.mac_limit),
            mac_limit_action: (before.mac_limit_action != after.mac_limit_action)
                .then_some(after.mac_limit_action),
            weight: (before.weight != after.weight).then_some(after.weight),
            storm: (before.storm != after.storm).then_some(after.storm),
            dhcp_server: (before.dhcp_server != after.dhcp_server).then_some(after.dhcp_server),
            isolated: (before.isolated != after.isolated).then_some(after.isolated),
            rates: (before.limit != after.limit).then_some(after.limit),
            addresses: (before.addresses != after.addresses).then(|| after.addresses.clone()),
            forward_control: (before.forward_control != after.forward_control)
                .then_some(after.forward_control),
            loop_protect: (before.loop_protect != after.loop_protect).then_some(after.loop_protect),
            worker: (before.worker != after.worker).then_some(after.worker),
            required: (before.required != after.required).then_some(after.required),
            disabled: (before.admin != after.admin).then_some(after.admin == Admin::Down),
        };
        dataplane.set_port(self.number, settings);
        if before.slo != after.slo {
            dataplane.set_slo(self.number, after.slo);
        }
    }
}

fn serve(
    dataplane: &Arc<Dataplane>,
    number: u16,
    config: &Config,
    port: &Port,
) -> Result<PortDriver, StartError> {
    Ok(match &port.kind {
        PortKind::Vhost(vhost) => PortDriver::Guest {
            port: VhostPort::open(dataplane.clone(), number, &port.name, vhost)?,
        },
        PortKind::Xdp(xdp) => {
            let options = UplinkOptions {
                number,
                name: port.name.clone(),
                config: xdp.clone(),
                direct: config.direct_queues(&port.name),
            };
            PortDriver::Nic {
                port: Uplinks::start(dataplane, vec![options])?,
            }
        }
    })
}

fn options(port: &Port) -> PortOptions {
    let (kind, queues) = match &port.kind {
        PortKind::Vhost(vhost) => ("vhost", usize::from(vhost.queue_pairs)),
        PortKind::Xdp(xdp) => ("xdp", nic::queue_count(xdp)),
    };
    let (vlan, vlan_text) = policy(port);
    PortOptions {
        name: port.name.clone(),
        kind,
        vlan,
        vlan_text,
        mac_limit: port.mac_limit,
        mac_limit_action: port.mac_limit_action,
        queues,
        bridges: PortBridges::of(port),
        joins: matches!(&port.kind, PortKind::Xdp(xdp) if xdp.gro),
        worker: port.worker,
        required: port.required,
        weight: port.weight,
        storm: port.storm,
        rates: port.limit,
        dhcp_server: port.dhcp_server,
        isolated: port.isolated,
        addresses: port.addresses.clone(),
        forward_control: port.forward_control,
        loop_protect: port.loop_protect,
        disabled: port.admin == Admin::Down,
    }
}

/// The port's VLANs in its own bridge, and the same as text.
fn policy(port: &Port) -> (VlanPolicy, String) {
    match port.has_untagged_only() {
        true => (VlanPolicy::Untagged, "untagged".to_owned()),
        false => vlan_policy(&port.vlan),
    }
}

pub(super) fn vlan_policy(vlan: &Vlan) -> (VlanPolicy, String) {
    match vlan {
        Vlan::Unaware => (VlanPolicy::Unaware, "unaware".to_owned()),
        Vlan::Access(id) => (VlanPolicy::Access(*id), format!("access {id}")),
        Vlan::Trunk { ids, native } => {
            let native_text = native.map_or(String::new(), |id| format!(" native {id}"));
            (
                VlanPolicy::trunk(ids, *native),
                format!("trunk {}{native_text}", vlan_list(ids)),
            )
        }
    }
}
