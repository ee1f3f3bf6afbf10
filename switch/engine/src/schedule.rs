//! Decides which streams a worker polls and what their bursts are charged: applies [`crate::shares`] to streams.

use crosspoint_frame::{BURST, tsc};
use crosspoint_xsk::Flushed;

use crate::egress::tx::Tx;
use crate::shares::Account;
use crate::shares::Shares;
use crate::snapshot::Egress;
use crate::snapshot::Snapshot;
use crate::stream::Stream;

/// When a stream is polled.
pub(crate) enum Turn {
    Now,
    /// When other ports have had as much time.
    Ahead,
    /// In the next iteration.
    PutOff,
    /// When its rate allows it: after this many cycles.
    Shaped(u64),
}

/// Decides whether a stream is polled at `now`. A NIC's queue never waits: its frames are for other ports, and the NIC
/// drops frames that do not fit its ring.
#[inline(always)]
pub(crate) fn turn_of(stream: &Stream, shares: &mut Shares, now: u64) -> Turn {
    let wait = stream.wait(now);
    if wait > 0 {
        return Turn::Shaped(wait);
    }
    let account = Account::From(stream.id.0);
    if shares.is_contended() && shares.is_ahead(account) && !stream.is_nic() {
        shares.skip(account, now);
        return Turn::Ahead;
    }
    if shares.puts_off(stream.burst_cycles(), now) && !stream.is_nic() {
        if stream.has_backlog() {
            shares.skip(account, now);
        }
        return Turn::PutOff;
    }
    Turn::Now
}

/// Charges a burst of `count` frames that took the cycles from `before` to `now`: a guest's burst to its port, a NIC's
/// burst to the destination ports. Receivers have already been charged for the cost of their buffers. A guest that sends
/// to such a receiver pays for that cost too, so that two cooperating ports get no more than one. This lasts for one
/// quantum only: then the receiver is ahead, and its frames are dropped after the lookup.
#[inline(always)]
pub(crate) fn charge(
    stream: &mut Stream,
    view: &Snapshot,
    count: usize,
    (before, now): (u64, u64),
    tx: &mut Tx,
) {
    let took = now.wrapping_sub(before);
    // A plain burst that is long after a short one: the worker lost its core. If the next one is long too, the bursts are
    // really long.
    let is_outlier = tx.is_plain && tx.shares.is_short(stream.burst_cycles());
    let cycles = tx.shares.plausible(took, is_outlier);
    stream.note_burst(count, tx.shares.plausible(took, false), &tx.shares);
    let account = Account::From(stream.id.0);
    let weight = view.port(stream.id.0).map_or(1, |port| port.weight);
    if stream.is_nic() {
        let flooded = tx.shares.plausible(tx.flood_cycles, false);
        if flooded > 0 {
            tx.shares.charge(account, weight, flooded, now);
        }
        // A NIC stream with bursts that are not full uses little time.
        if count == BURST && tx.shares.is_contended() {
            let receivers = u64::from(tx.asked.excess);
            let others = cycles.saturating_sub(receivers + flooded);
            tx.charge_destinations(view, count, others, now);
        }
        return;
    }
    tx.shares.charge(account, weight, cycles, now);
    if stream.has_backlog() {
        tx.shares.want(account, now);
    }
}

/// Charges a guest's port with an empty poll since `mark`; only while ports compete. A driver that keeps writing to its
/// ring's cache lines makes each empty poll a cache miss, 100 to 500 ns, and an occasional frame keeps its stream polled.
/// Returns the time now.
#[cold]
#[inline(never)]
pub(crate) fn charge_empty(stream: &Stream, view: &Snapshot, mark: u64, tx: &mut Tx) -> u64 {
    let now = tsc();
    if !stream.is_nic() {
        let weight = view.port(stream.id.0).map_or(1, |port| port.weight);
        let cycles = now.wrapping_sub(mark);
        tx.shares.charge_aside(stream.id.0, weight, cycles);
    }
    now
}

/// Notes the port whose burst was just delivered as a payer for NIC doorbells, by its number of copies for NICs. Only
/// while ports compete; then the doorbells are timed.
#[inline(always)]
pub(crate) fn note_nic_user(port: u16, tx: &mut Tx) {
    if tx.nic_use.copies == 0 || !tx.shares.is_contended() {
        return;
    }
    match tx.nic_users.iter_mut().find(|(user, _)| *user == port) {
        Some((_, copies)) => *copies += tx.nic_use.copies,
        // One entry for each port, so there is room: no allocation.
        None => tx.nic_users.push((port, tx.nic_use.copies)),
    }
}

/// Charges the time of NIC doorbells, `cycles`, to the guests whose copies they were rung for, without the part for other
/// workers. The part for frames from a NIC is not charged: these frames belong to other ports, which have been charged
/// for full bursts.
#[cold]
#[inline(never)]
pub(crate) fn charge_doorbells(view: &Snapshot, flushed: &Flushed, cycles: u64, tx: &mut Tx) {
    let own = flushed.rung.saturating_sub(flushed.taken);
    let cycles = cycles * u64::from(own) / u64::from(flushed.rung.max(flushed.taken)).max(1);
    let copies = tx.nic_users.iter().map(|(_, copies)| u64::from(*copies));
    let copies = copies.sum::<u64>().max(1);
    for (number, of_port) in tx.nic_users.drain(..) {
        if let Some(port) = view.port(number)
            && !matches!(port.egress, Egress::Nic)
        {
            let part = cycles * u64::from(of_port) / copies;
            tx.shares.charge_aside(number, port.weight, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crosspoint_packet::FlowHasher;

    use super::*;
    use crate::bridge::fdb::Fdb;
    use crate::bridge::fdb::Quota;
    use crate::bridge::vlan::VlanPolicy;
    use crate::observe::counters::PortCounters;
    use crate::snapshot::PortSnapshot;
    use crate::stages::control::ControlAddresses;

    const QUANTUM: u64 = 1000;

    fn port(egress: Egress, weight: u32) -> Option<PortSnapshot> {
        Some(PortSnapshot {
            name: "".into(),
            bridge: 0,
            tags: None,
            vlan: Arc::new(VlanPolicy::Unaware),
            egress,
            counters: Arc::new(PortCounters::new(1, 1)),
            quota: Arc::new(Quota::new(0)),
            joins: false,
            weight,
            storm: None,
            meter_out: None,
            meter_in: None,
            uplink_share: None,
            sources: None,
            groups: None,
            is_server: true,
            is_isolated: false,
            is_uplink: false,
            control: ControlAddresses::NONE,
        })
    }

    /// Two guests and a NIC send through another NIC; the doorbell took 6000 cycles, a quarter of it for other workers.
    #[test]
    fn doorbells_are_paid_for_by_the_guests_that_they_were_rung_for() {
        let ports = [
            port(Egress::Down, 1),
            port(Egress::Down, 2),
            port(Egress::Nic, 1),
        ];
        let fdb = Arc::new(Fdb::new(0, [1, 2]));
        let view = Snapshot::new(ports.into(), fdb, FlowHasher::new(3), Box::new([]));
        let mut tx = Tx::new(0, QUANTUM);
        let use_nic = |tx: &mut Tx, port, copies| {
            tx.nic_use.copies = copies;
            note_nic_user(port, tx);
        };
        use_nic(&mut tx, 0, 7);
        assert!(tx.nic_users.is_empty(), "no queue competes");
        tx.shares.begin(0);
        tx.shares.charge(Account::From(9), 1, 1, 0);
        tx.shares.want(Account::From(9), 0);
        tx.shares.begin(1);
        for (port, copies) in [(0, 10), (1, 40), (0, 10), (2, 40), (1, 0)] {
            use_nic(&mut tx, port, copies);
        }
        let flushed = Flushed {
            taken: 25,
            rung: 100,
            ..Flushed::default()
        };
        charge_doorbells(&view, &flushed, 6000, &mut tx);
        let debts = [0, 1, 2].map(|port| tx.shares.debt(Account::From(port)));
        // 4500 in 100 copies: 20 at weight 1, 40 at weight 2, and 40 of the NIC's.
        assert_eq!(debts, [900, 900, 0]);
        assert!(tx.nic_users.is_empty());
    }
}
