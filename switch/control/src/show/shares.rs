//! Ports' shares of the workers' time, and what limits have held back.

use std::collections::BTreeMap;

use crosspoint_packet::DropReason;

use super::format::count;
use super::rows::{PortRow, total};
use crate::status::{PortStatus, Status};

/// Each port's part of the time of one worker, percent; with several workers, the sum. Without ports whose workers have not
/// run.
pub(super) fn shares(status: &Status) -> BTreeMap<&str, f64> {
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
pub(super) fn held_back(port: &PortStatus) -> u64 {
    let queues = port.queues.iter().map(|queue| queue.held_back);
    queues.fold(0, total)
}

/// The port's drops for these reasons.
pub(super) fn drops_for(port: &PortStatus, is_one: impl Fn(&str) -> bool) -> u64 {
    let drops = port.queues.iter().flat_map(|queue| &queue.drops);
    let those = drops.filter(|(reason, _)| is_one(reason));
    those.map(|(_, count)| *count).fold(0, total)
}

/// Whether the reason is a storm limit.
pub(super) fn is_storm(reason: &str) -> bool {
    let storms = [
        DropReason::StormBroadcast,
        DropReason::StormMulticast,
        DropReason::StormUnknownUnicast,
    ];
    storms.iter().any(|storm| storm.label() == reason)
}

/// Whether the reason is that the sender was above its share.
pub(super) fn is_over_share(reason: &str) -> bool {
    DropReason::OverShare.label() == reason
}

/// What has been held back of a port so far, in words; counts of 0 are left out.
pub(super) fn kept_back(row: &PortRow) -> Vec<String> {
    let all = [
        (row.held_back, "held back", "times"),
        (row.over_share, "over their share:", "frames dropped"),
        (
            row.floods_dropped,
            "over its flood limits:",
            "frames dropped",
        ),
        (
            row.addresses_moved,
            "addresses came from other ports",
            "times",
        ),
        (row.addresses_damped, "addresses kept from it", "times"),
        (
            row.addresses_refused,
            "addresses over its mac_limit:",
            "refused",
        ),
    ];
    let met = all.into_iter().filter(|(n, ..)| *n > 0);
    met.map(|(n, what, of)| format!("{what} {} {of}", count(n)))
        .collect()
}
