//! Whose turn it is on a worker, and what is charged for it: [`crate::shares`] at work on streams.

use crosspoint_frame::BURST;

use crate::shares::{Account, Shares};
use crate::stream::Stream;
use crate::tx::Tx;
use crate::view::View;

/// When a stream is polled.
pub(crate) enum Turn {
    Now,
    /// Not before other ports have had as much.
    Ahead,
    /// In the next iteration.
    PutOff,
}

/// Whether it is a stream's turn, at `now`. A NIC's queue never waits: its frames are other ports', and the NIC drops
/// those that do not fit it.
#[inline(always)]
pub(crate) fn turn_of(stream: &Stream, shares: &mut Shares, now: u64) -> Turn {
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

/// Charges a burst of `count` frames that took the cycles from `before` to `now`: those of a guest to its port, those of
/// a NIC to the ports that its frames were for. What receivers' buffers cost they have been charged with already; a guest
/// that sends to such a receiver pays for it too, so that two ports that work together have no more than one. It does so
/// for a quantum only: then the receiver is ahead, and its frames are dropped after the lookup.
#[inline(always)]
pub(crate) fn charge(
    stream: &mut Stream,
    view: &View,
    count: usize,
    (before, now): (u64, u64),
    tx: &mut Tx,
) {
    let took = now.wrapping_sub(before);
    // A plain burst that is long after a short one: the core was taken away. One that is long again is long by itself.
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
        // One whose bursts are not full takes little.
        if count == BURST && tx.shares.is_contended() {
            let others = cycles.saturating_sub(tx.charged + flooded);
            tx.charge_destinations(view, count, others, now);
        }
        return;
    }
    tx.shares.charge(account, weight, cycles, now);
    if stream.has_backlog() {
        tx.shares.want(account, now);
    }
}
