//! Ports' shares of the workers' time, and what limits have held back.

use std::collections::BTreeMap;

use crosspoint_packet::DropReason;

use super::total;
use crate::status::{PortStatus, Status};

/// Each port's part of the time of one worker, percent; with several workers, the sum. Without ports whose workers have not
/// run.
pub fn shares(status: &Status) -> BTreeMap<&str, f64> {
    let mut shares: BTreeMap<&str, f64> = BTreeMap::new();
    let have_run = status.workers.iter().filter(|worker| worker.window.ms > 0);
    for stream in have_run.flat_map(|worker| &worker.streams) {
        *shares.entry(&stream.port).or_default() += stream.share;
    }
    let percent = |share: &mut f64| *share = (*share * 1000.0).round() / 10.0;
    shares.values_mut().for_each(percent);
    shares
}

/// Poll iterations in which a queue of the port was held back.
pub fn held_back(port: &PortStatus) -> u64 {
    let queues = port.queues.iter().map(|queue| queue.held_back);
    queues.fold(0, total)
}

/// The port's drops for these reasons.
pub fn drops_for(port: &PortStatus, is_one: impl Fn(&str) -> bool) -> u64 {
    let drops = port.queues.iter().flat_map(|queue| &queue.drops);
    let those = drops.filter(|(reason, _)| is_one(reason));
    those.map(|(_, count)| *count).fold(0, total)
}

/// Whether the reason is a storm limit.
pub fn is_storm(reason: &str) -> bool {
    let storms = [
        DropReason::StormBroadcast,
        DropReason::StormMulticast,
        DropReason::StormUnknownUnicast,
    ];
    storms.iter().any(|storm| storm.label() == reason)
}

/// Whether the reason is that the sender was above its share.
pub fn is_over_share(reason: &str) -> bool {
    DropReason::OverShare.label() == reason
}
