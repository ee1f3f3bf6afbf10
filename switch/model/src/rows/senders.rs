//! The senders of what receivers dropped. The data path counts a drop at a receiver there, and at the sender only among all
//! dropped copies. So a sender is known where there is only one; of several, only the sums are known.

use std::cmp::Reverse;

use crosspoint_packet::{DropReason, Side};

use super::{SenderRow, total};
use crate::status::{PortStatus, RemovedStatus, Status};

/// Whether drops for this reason are counted at the port that sent the frame.
pub fn is_at_sender(reason: &str) -> bool {
    let known = DropReason::ALL.iter().find(|one| one.label() == reason);
    known.is_some_and(|one| one.side() == Side::Ingress)
}

fn elsewhere<'d>(dropped: u64, drops: impl Iterator<Item = (&'d String, &'d u64)>) -> u64 {
    let own = drops.filter(|(reason, _)| is_at_sender(reason));
    let own = own.map(|(_, count)| *count).fold(0, total);
    dropped.saturating_sub(own)
}

/// Copies of the port's frames that were dropped at receivers.
pub fn dropped_elsewhere(port: &PortStatus) -> u64 {
    let queues = port.queues.iter();
    let each = queues.map(|queue| elsewhere(queue.dropped_copies, queue.drops.iter()));
    each.fold(0, total)
}

fn of_removed(removed: &RemovedStatus) -> u64 {
    elsewhere(removed.dropped_copies, removed.drops.iter())
}

/// The ports whose frames receivers have dropped since `before`, or since the daemon started, with most dropped copies
/// first.
pub fn senders(before: Option<&Status>, now: &Status) -> Vec<SenderRow> {
    let earlier = |name: &str| {
        let ports = before.map_or(&[][..], |before| &before.ports);
        let port = ports.iter().find(|port| port.name == name);
        port.map_or(0, dropped_elsewhere)
    };
    let ports = now.ports.iter().map(|port| SenderRow {
        port: Some(port.name.clone()),
        dropped: dropped_elsewhere(port).saturating_sub(earlier(&port.name)),
    });
    let removed = before.map_or(0, |before| of_removed(&before.removed));
    let removed = SenderRow {
        port: None,
        dropped: of_removed(&now.removed).saturating_sub(removed),
    };
    let mut all: Vec<SenderRow> = ports.chain([removed]).collect();
    all.retain(|one| one.dropped > 0);
    all.sort_by_key(|one| Reverse(one.dropped));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::DropRow;
    use crate::status::QueueStatus;

    fn port(name: &str, dropped_copies: u64, hairpin: u64) -> PortStatus {
        PortStatus {
            name: name.into(),
            queues: vec![QueueStatus {
                dropped_copies,
                drops: [
                    ("hairpin".to_owned(), hairpin),
                    ("guest_ring_full".to_owned(), 9),
                ]
                .into(),
                ..QueueStatus::default()
            }],
            ..PortStatus::default()
        }
    }

    fn status(ports: &[PortStatus]) -> Status {
        Status {
            ports: ports.to_vec(),
            ..Status::default()
        }
    }

    fn sent(names: &[(Option<&str>, u64)]) -> Vec<SenderRow> {
        let row = |(port, dropped): &(Option<&str>, u64)| SenderRow {
            port: port.map(str::to_owned),
            dropped: *dropped,
        };
        names.iter().map(row).collect()
    }

    #[test]
    fn senders_are_those_whose_frames_receivers_dropped_with_most_first() {
        let one = status(&[port("a", 50, 8), port("b", 8, 8)]);
        assert_eq!(dropped_elsewhere(&one.ports[0]), 42);
        assert_eq!(senders(None, &one), sent(&[(Some("a"), 42)]));
        let two = status(&[port("b", 9, 8), port("a", 50, 8)]);
        let both = sent(&[(Some("a"), 42), (Some("b"), 1)]);
        assert_eq!(senders(None, &two), both);
        assert_eq!(senders(Some(&one), &two), sent(&[(Some("b"), 1)]));
        assert_eq!(senders(Some(&two), &two), []);
        let mut gone = one.clone();
        gone.removed.dropped_copies = 3;
        let with_removed = sent(&[(Some("a"), 42), (None, 3)]);
        assert_eq!(senders(None, &gone), with_removed);
    }

    #[test]
    fn a_row_has_its_only_sender_or_several_but_never_its_own_port() {
        let row = |port: &str, reason: &str| DropRow {
            port: port.to_owned(),
            reason: reason.to_owned(),
            ..DropRow::default()
        };
        let all = sent(&[(Some("a"), 42), (Some("b"), 1), (Some("c"), 1)]);
        let at = |port: &str| row(port, "guest_ring_full");
        assert_eq!(at("d").sent_by(&all).senders, all);
        assert_eq!(at("b").sent_by(&all).senders.len(), 2);
        let one = at("b").sent_by(&all[..2]);
        assert_eq!((one.sender.as_deref(), one.senders.len()), (Some("a"), 0));
        assert_eq!(at("a").sent_by(&all[..1]), at("a"));
        // The removed ports may be several.
        let removed = sent(&[(None, 3)]);
        assert_eq!(at("a").sent_by(&removed).senders, removed);
        let own = row("a", "hairpin");
        assert_eq!(own.clone().sent_by(&all), own);
    }
}
