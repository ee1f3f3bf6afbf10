//! What a change's answer says besides its plan: what new ports wait for, what the host loses with their interfaces, and
//! which folders were made for their sockets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crosspoint_config::plan::{How, Plan};
use crosspoint_config::{Config, Port, PortKind, Role};
use crosspoint_model::plan::Failure;
use crosspoint_model::status::ShownState;

use super::{Changing, Running};
use crate::ports::nic;

impl Running {
    /// Carries out a plan. Returns what failed, and notes about the ports that were opened.
    pub(super) fn apply_and_note(
        &self,
        changing: &mut Changing,
        wanted: &Config,
        plan: &Plan,
    ) -> (Vec<Failure>, Vec<String>) {
        let reopened = plan.change.iter().filter(|diff| diff.how == How::Reopen);
        let opened: Vec<&Port> = plan
            .add
            .iter()
            .chain(reopened.map(|diff| &diff.after))
            .collect();
        let absent = absent_folders(&opened);
        let lost = losses(plan);
        let failed = self.apply(changing, wanted, plan);
        let made = absent.into_iter().filter(|folder| folder.exists());
        let made = made.map(|folder| {
            let folder = folder.display();
            format!(
                "the folder {folder} of a socket did not exist; it was made with the daemon's user and umask, and stays when the port is removed"
            )
        });
        let waiting = opened.into_iter().filter_map(|port| self.note_of_new(port));
        let notes = made.chain(lost).chain(waiting).collect();
        (failed, notes)
    }

    /// What a new port waits for, if its interface is not there or not up.
    pub(super) fn note_of_new(&self, port: &Port) -> Option<String> {
        if !matches!(port.kind, PortKind::Xdp(_)) {
            return None;
        }
        let ports = self.dataplane.status().ports;
        let status = ports.into_iter().find(|one| one.name == port.name)?;
        if status.state != ShownState::Down {
            return None;
        }
        let ready = match port.required {
            true => "; /readyz answers 503 until it is up (required = false changes that)",
            false => "",
        };
        Some(format!("port {}: {}{ready}", port.name, status.detail))
    }
}

/// What the host loses with interfaces that become ports.
fn losses(plan: &Plan) -> Vec<String> {
    let xdp = |port: &Port| match &port.kind {
        PortKind::Xdp(xdp) => Some(xdp.clone()),
        PortKind::Vhost(_) => None,
    };
    let interface = |port: &Port| xdp(port).map(|xdp| xdp.interface);
    let changed = plan.change.iter();
    let changed = changed.filter(|diff| interface(&diff.before) != interface(&diff.after));
    let taken = plan.add.iter().chain(changed.map(|diff| &diff.after));
    let note = |port: &Port| Some(format!("port {}: {}", port.name, nic::loss(&xdp(port)?)?));
    taken.filter_map(note).collect()
}

/// The folders that the daemon makes if these ports are opened.
fn absent_folders(ports: &[&Port]) -> BTreeSet<PathBuf> {
    let sockets = ports.iter().filter_map(|port| match &port.kind {
        PortKind::Vhost(guest) if guest.role == Role::Server => Some(&guest.socket),
        _ => None,
    });
    let folders = sockets.filter_map(|socket| socket.parent());
    let absent = folders.filter(|folder| !folder.exists());
    absent.map(Path::to_owned).collect()
}
