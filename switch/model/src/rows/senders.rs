//! Who sent what receivers dropped. The data path counts a drop at a receiver there, and at the sender only among all
//! dropped copies. So a sender is known where there is only one.

use crosspoint_packet::{DropReason, Side};

use super::total;
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

/// The only port whose frames receivers have dropped since `before`, or since the daemon started. `None` if there are
/// several, or none, or if a port that was removed may have been one.
pub fn only_sender<'s>(before: Option<&Status>, now: &'s Status) -> Option<&'s str> {
    let removed = |status: &Status| of_removed(&status.removed);
    if removed(now) > before.map_or(0, removed) {
        return None;
    }
    let earlier = |name: &str| {
        let ports = before.map_or(&[][..], |before| &before.ports);
        let port = ports.iter().find(|port| port.name == name);
        port.map_or(0, dropped_elsewhere)
    };
    let ports = now.ports.iter();
    let mut senders = ports.filter(|port| dropped_elsewhere(port) > earlier(&port.name));
    match (senders.next(), senders.next()) {
        (Some(one), None) => Some(&one.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn the_sender_is_named_where_there_is_only_one() {
        let one = status(&[port("a", 50, 8), port("b", 8, 8)]);
        assert_eq!(dropped_elsewhere(&one.ports[0]), 42);
        assert_eq!(only_sender(None, &one), Some("a"));
        let two = status(&[port("a", 50, 8), port("b", 9, 8)]);
        assert_eq!(only_sender(None, &two), None);
        assert_eq!(only_sender(Some(&one), &two), Some("b"));
        assert_eq!(only_sender(Some(&two), &two), None);
        let mut gone = one.clone();
        gone.removed.dropped_copies = 3;
        assert_eq!(
            only_sender(None, &gone),
            None,
            "it may have been the removed one"
        );
    }
}
