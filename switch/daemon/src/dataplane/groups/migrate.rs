//! Connections of a guest that migrates to another switch, or arrives from one.

use std::sync::Arc;

use crosspoint_engine::groups::{Arrived, Connections, GroupPolicy};

use crate::dataplane::Dataplane;

impl Dataplane {
    /// The rules of a port and the table of connections, if it has groups.
    fn groups_of(&self, port: &str) -> Option<(Arc<GroupPolicy>, Arc<Connections>)> {
        let groups = &self.lock().groups;
        Some((groups.policy(port)?, groups.connections()?))
    }

    /// Whether a port has groups.
    pub(crate) fn has_groups(&self, port: &str) -> bool {
        self.lock().groups.policy(port).is_some()
    }

    /// The connections of a port's guest, for another switch; none if the port has no groups. Reads the table without the lock.
    pub(crate) fn connections_to_leave(&self, port: &str, max: usize) -> Vec<u8> {
        let of_port = self.groups_of(port);
        of_port.map_or(Vec::new(), |(policy, table)| {
            table.export_zone(policy.zone().id(), max)
        })
    }

    /// Takes connections that another switch has written. `None` if the port has no groups: then all may pass.
    pub(crate) fn connections_arrive(&self, port: &str, connections: &[u8]) -> Option<Arrived> {
        let (policy, table) = self.groups_of(port)?;
        Some(table.arrive(connections, &policy))
    }

    /// Notes that a port's guest has arrived from another switch, with connections that are not known here.
    pub(crate) fn note_arrival(&self, port: &str) {
        if let Some((policy, table)) = self.groups_of(port) {
            table.note_arrival(policy.zone());
        }
    }
}
