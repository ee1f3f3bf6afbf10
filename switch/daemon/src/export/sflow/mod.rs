//! sFlow version 5: samples of frames, and ports' counters, for a collector.
//!
//! The engine's [`Sampler`](crosspoint_engine::observe::sample::Sampler) copies the first bytes of chosen frames. A thread
//! takes them from its slots, encodes them and sends datagrams. A collector that is gone, a full send buffer or a slow
//! thread costs samples, which are counted, and never a frame.

mod encode;
mod exporter;
mod interfaces;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crosspoint_config::Sflow;
use crosspoint_model::status::SflowStatus;

use super::thread::{Export, Kind};
use crate::dataplane::Dataplane;
use exporter::Exporter;

/// The export of samples. Ports keep their interface numbers when it is turned off and on. The slots of samples have room for
/// what one of 4096 frames is in a round, at 800 million frames per second.
#[derive(Debug)]
pub(crate) struct OfFrames;

/// The export and its status.
pub(crate) type SflowExport = Export<OfFrames>;

impl Kind for OfFrames {
    const THREAD: &'static str = "cp-sflow";
    type Options = (SocketAddr, Sflow);
    type Status = SflowStatus;
    type Exporter<'d> = Exporter<'d>;

    fn exporter(dataplane: &Dataplane) -> Exporter<'_> {
        Exporter::new(dataplane)
    }
}

impl SflowExport {
    /// Begins, changes or ends the export. A change loses no sample; the end sends those that are there.
    pub(crate) fn set(&self, dataplane: &Arc<Dataplane>, options: &Sflow) -> io::Result<()> {
        let options = options.collector.map(|to| (to, options.clone()));
        self.set_options(dataplane, options)
    }
}
