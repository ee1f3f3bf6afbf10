//! IPFIX (RFC 7011): records of the connections that security groups track, for a collector.
//!
//! Workers and the control side leave events in bounded queues ([`Accounting`](crosspoint_engine::groups::Accounting)). A thread
//! takes them, adds records of connections that last, and sends messages. A collector that is gone, or a slow thread, costs
//! records, which are counted, and never a frame.

mod encode;
mod exporter;
mod names;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crosspoint_config::Ipfix;
use crosspoint_model::status::IpfixStatus;

use super::thread::{Export, Kind};
use crate::dataplane::Dataplane;
use exporter::Exporter;

/// The export to a collector of IPFIX.
#[derive(Debug)]
pub(crate) struct OfConnections;

/// The export and its status.
pub(crate) type IpfixExport = Export<OfConnections>;

impl Kind for OfConnections {
    const THREAD: &'static str = "cp-ipfix";
    type Options = (SocketAddr, Ipfix);
    type Status = IpfixStatus;
    type Exporter<'d> = Exporter<'d>;

    fn exporter(dataplane: &Dataplane) -> Exporter<'_> {
        Exporter::new(dataplane)
    }
}

impl IpfixExport {
    /// Begins, changes or ends the export.
    pub(crate) fn set(&self, dataplane: &Arc<Dataplane>, options: &Ipfix) -> io::Result<()> {
        let options = options.collector.map(|to| (to, options.clone()));
        self.set_options(dataplane, options)
    }
}
