//! An open port of the configuration.

use std::sync::Arc;

use crosspoint_engine::vlan::VlanPolicy;

use crate::config::{Config, Port, PortKind, Vlan};
use crate::daemon::StartError;
use crate::fabric::{Fabric, PortOptions, PortSettings, PortState};
use crate::nic::{self, UplinkOptions, Uplinks};
use crate::plan::PortDiff;
use crate::vhost::VhostPort;

/// An open port: its number, and what serves it.
pub(super) struct Attached {
    number: u16,
    by: By,
}

enum By {
    Guest { port: VhostPort },
    Nic { port: Uplinks },
}

impl Attached {
    /// Adds `port`, which is part of `config`, to the fabric, and serves it.
    pub fn open(
        fabric: &Arc<Fabric>,
        config: &Config,
        port: &Port,
    ) -> Result<Attached, StartError> {
        let number = fabric.add_port(options(port));
        let number = number.ok_or_else(|| StartError::TooManyPorts(port.name.clone()))?;
        match serve(fabric, number, config, port) {
            Ok(by) => {
                fabric.set_slo(number, port.slo);
                Ok(Attached { number, by })
            }
            Err(why) => {
                // Its earlier counts, if it was open before, are kept for the next attempt.
                fabric.set_aside(number);
                Err(why)
            }
        }
    }

    /// Whether its peer is there, but frames will flow only in a moment.
    pub fn is_coming_up(&self, fabric: &Fabric) -> bool {
        let state = fabric.port_state(self.number);
        match &self.by {
            By::Guest { port } => state == PortState::Connected || !port.has_asked(),
            By::Nic { port } => port.lost_carrier && state == PortState::Down,
        }
    }

    /// Whether it is a guest port.
    pub fn is_guest(&self) -> bool {
        matches!(self.by, By::Guest { .. })
    }

    /// Asks a guest port's threads to end, without waiting: so closing several ports takes no longer than closing one.
    pub fn begin_end(&self) {
        if let By::Guest { port } = &self.by {
            port.begin_end();
        }
    }

    /// Releases the guest or interface, and takes the port out of the fabric, permanently or until it is reopened.
    pub fn close(self, fabric: &Fabric, comes_again: bool) {
        drop(self.by);
        match comes_again {
            true => fabric.set_aside(self.number),
            false => fabric.remove_port(self.number),
        }
    }

    /// Changes the settings that can change while frames flow.
    pub fn set(&self, fabric: &Fabric, diff: &PortDiff) {
        let (before, after) = (&diff.before, &diff.after);
        let settings = PortSettings {
            vlan: (before.vlan != after.vlan).then(|| vlan_policy(&after.vlan)),
            mac_limit: (before.mac_limit != after.mac_limit).then_some(after.mac_limit),
            weight: (before.weight != after.weight).then_some(after.weight),
            storm: (before.storm != after.storm).then_some(after.storm),
            addresses: (before.addresses != after.addresses).then(|| after.addresses.clone()),
            forward_control: (before.forward_control != after.forward_control)
                .then_some(after.forward_control),
            loop_protect: (before.loop_protect != after.loop_protect).then_some(after.loop_protect),
            worker: (before.worker != after.worker).then_some(after.worker),
            required: (before.required != after.required).then_some(after.required),
        };
        fabric.set_port(self.number, settings);
        if before.slo != after.slo {
            fabric.set_slo(self.number, after.slo);
        }
    }
}

fn serve(
    fabric: &Arc<Fabric>,
    number: u16,
    config: &Config,
    port: &Port,
) -> Result<By, StartError> {
    Ok(match &port.kind {
        PortKind::Vhost(vhost) => By::Guest {
            port: VhostPort::open(fabric.clone(), number, &port.name, vhost)?,
        },
        PortKind::Xdp(xdp) => {
            let options = UplinkOptions {
                number,
                name: port.name.clone(),
                config: xdp.clone(),
                direct: config.direct_queues(&port.name),
            };
            By::Nic {
                port: Uplinks::start(fabric, vec![options])?,
            }
        }
    })
}

fn options(port: &Port) -> PortOptions {
    let (kind, queues) = match &port.kind {
        PortKind::Vhost(vhost) => ("vhost", usize::from(vhost.queue_pairs)),
        PortKind::Xdp(xdp) => ("xdp", nic::queue_count(xdp)),
    };
    let (vlan, vlan_text) = vlan_policy(&port.vlan);
    PortOptions {
        name: port.name.clone(),
        kind,
        vlan,
        vlan_text,
        mac_limit: port.mac_limit,
        queues,
        joins: matches!(&port.kind, PortKind::Xdp(xdp) if xdp.gro),
        worker: port.worker,
        required: port.required,
        weight: port.weight,
        storm: port.storm,
        addresses: port.addresses.clone(),
        forward_control: port.forward_control,
        loop_protect: port.loop_protect,
    }
}

fn vlan_policy(vlan: &Vlan) -> (VlanPolicy, String) {
    match vlan {
        Vlan::Unaware => (VlanPolicy::Unaware, "unaware".to_owned()),
        Vlan::Access(id) => (VlanPolicy::Access(*id), format!("access {id}")),
        Vlan::Trunk { ids, native } => {
            let list: Vec<String> = ids.iter().map(u16::to_string).collect();
            let native_text = native.map_or(String::new(), |id| format!(" native {id}"));
            (
                VlanPolicy::trunk(ids, *native),
                format!("trunk {}{native_text}", list.join(",")),
            )
        }
    }
}
