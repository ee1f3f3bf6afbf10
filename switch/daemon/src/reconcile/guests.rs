//! Effects of a plan on running guests: when a front end has negotiated something that its port no longer offers, it
//! disconnects after each reconnect, and retries forever.

use crosspoint_config::plan::{How, Plan, PortDiff};
use crosspoint_config::{PortKind, VhostPort};
use crosspoint_model::plan::PlanAnswer;
use crosspoint_model::status::{DeviceStatus, PortStatus, VringStatus};
use crosspoint_vring::feature;

use crate::ports::vhost::offered;

/// Adds a warning to each port change of `answer` that takes something from the running guest; `ports` is the status of
/// the ports.
pub fn warn(answer: &mut PlanAnswer, plan: &Plan, ports: &[PortStatus]) {
    for (diff, changed) in plan.change.iter().zip(&mut answer.change) {
        let port = ports.iter().find(|port| port.name == diff.name);
        let device = port.and_then(|port| port.device.as_ref());
        changed.warnings = device.map_or(Vec::new(), |device| warnings(diff, device));
    }
}

fn warnings(diff: &PortDiff, device: &DeviceStatus) -> Vec<String> {
    let PortKind::Vhost(after) = &diff.after.kind else {
        return Vec::new();
    };
    // Nothing is negotiated yet, or no renegotiation is needed.
    if diff.how != How::Reopen || device.features.is_empty() {
        return Vec::new();
    }
    let pairs = pairs_in_use(device);
    let fewer = (pairs > after.queue_pairs).then(|| {
        format!(
            "its front end has {pairs} queue pairs, and cannot reconnect with fewer: restart the guest with {}",
            after.queue_pairs
        )
    });
    let names = withdrawn(after, device);
    let features = (!names.is_empty()).then(|| {
        format!(
            "its guest has negotiated {}, which the port will no longer offer: its front end cannot reconnect until the guest is restarted",
            names.join(", ")
        )
    });
    fewer.into_iter().chain(features).collect()
}

/// The number of queue pairs that the front end has set up; the guest may use fewer.
fn pairs_in_use(device: &DeviceStatus) -> u16 {
    let is_used = |vring: &&VringStatus| vring.enabled || vring.has_call || vring.size > 0;
    let used = device.vrings.iter().filter(is_used);
    used.map(|vring| vring.index / 2 + 1).max().unwrap_or(0)
}

/// Features that the guest has negotiated, but the port will not offer.
fn withdrawn(after: &VhostPort, device: &DeviceStatus) -> Vec<&'static str> {
    let offered = offered(after);
    let known = feature::NAMES.iter();
    let gone = known.filter(|(bit, name)| {
        offered & bit == 0 && device.features.iter().any(|feature| feature == name)
    });
    gone.map(|(_, name)| *name).collect()
}
