//! What is counted of connections, for the export to a collector.

use std::collections::HashMap;
use std::sync::Arc;

use crosspoint_engine::groups::{AccountingOptions, Connections};

use super::Dataplane;

/// The port and the bridge of a zone.
pub(crate) type ZoneNames = (Arc<str>, Arc<str>);

impl Dataplane {
    /// Begins to count what connections carry, or changes what is exported of it; `None`: nothing is. The table of connections may
    /// not be there yet.
    pub(crate) fn set_accounting(&self, options: Option<AccountingOptions>) {
        let table = {
            let groups = &mut self.lock().groups;
            groups.accounting = options;
            groups.connections()
        };
        let Some(table) = table else { return };
        match options {
            // Not under the lock: it takes memory.
            Some(options) => {
                table.start_accounting(self.workers(), &options);
            }
            None => table.accounting().into_iter().for_each(|of| of.stop()),
        }
    }

    /// The table of connections, once a port has had groups.
    pub(crate) fn connection_table(&self) -> Option<Arc<Connections>> {
        self.lock().groups.connections()
    }

    /// The port and the bridge of each zone. They do not change: a port in another bridge has another zone.
    pub(crate) fn zone_names(&self) -> HashMap<u32, ZoneNames> {
        self.lock().groups.zone_names()
    }
}
