//! The last stage: every copy is delivered to its port or counted as dropped.

use std::ops::Range;

use crosspoint_frame::{BURST, Burst, Decision, Frame, HeaderOp, TxEntry, Work, tsc};
use crosspoint_packet::DropReason;
use crosspoint_packet::segment::Segmentation;

use crate::bridge::flood;
use crate::egress::gro::Gro;
use crate::egress::gso::Gso;
use crate::egress::queue::EgressQueue;
use crate::egress::tx::Asked;
use crate::egress::tx::Groups;
use crate::egress::tx::Tx;
use crate::observe::counters::QueueCounters;
use crate::observe::tap;
use crate::observe::tap::Fate;
use crate::observe::tap::Origin;
use crate::observe::tap::Taps;
use crate::shares::Account;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;

/// Result of one burst's copies; all came from one queue.
#[derive(Clone, Copy, Default)]
pub(crate) struct TxResult {
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
    /// The part of `dropped` that is large frames which a NIC port's interface refused.
    pub(crate) refused: u32,
    /// Cost of the receivers' buffers beyond plain ones, in units of [`Work`]: the part within each copy's allowance,
    pub(crate) work: u32,
    /// and beyond it.
    pub(crate) excess: u32,
    /// Cost of flooded copies and segments, in the same units, without their receivers' buffers.
    pub(crate) made: u32,
}

/// Delivers a burst received on port `ingress`, whose counters are `from`: groups it by queue, then makes one
/// reservation, one run of copies and one publication per queue.
#[inline(never)]
pub fn deliver(burst: &Burst, ingress: u16, view: &Snapshot, tx: &mut Tx, from: &QueueCounters) {
    let (mut flood, mut dropped) = (false, 0);
    tx.nic_use.begin();
    tx.flood_cycles = 0;
    tx.groups.clear();
    tx.spreads.clear();
    tx.work = Work::default();
    tx.scratch.begin_burst();
    let is_contended = tx.shares.is_contended();
    let frames = burst.frames();
    let bytes: u64 = frames.iter().map(|frame| u64::from(frame.len)).sum();
    let source = view.port(ingress);
    let mut rest = 0..frames.len();
    // Run by run: consecutive frames with the same route are decided on once.
    while let Some(first) = frames.get(rest.start) {
        let route = first.route();
        // Where there are several bridges, frames with equal routes may be of different ones.
        let behind = match view.has_bridges {
            true => &[],
            false => frames.get(rest.start + 1..).unwrap_or(&[]),
        };
        let same = behind.iter().take_while(|frame| frame.route() == route);
        let len = 1 + same.count();
        let run = rest.start..rest.start + len;
        rest.start = run.end;
        let reason = match first.verdict.decision() {
            Decision::Port(number) => match unicast(first, (source, number), view) {
                Ok((port, tag)) if is_contended && tx.shares.is_ahead(Account::To(number)) => {
                    let counters = port.counters.at(tx.worker, 0);
                    counters.drop(DropReason::OverShare, len as u32);
                    dropped += len as u64;
                    if !view.taps.is_empty() {
                        let frames = run.map(|index| index as u8);
                        let picks = frames.map(|frame| TxEntry { frame, tag });
                        tap::refused(burst, (picks, DropReason::OverShare), number, view, tx);
                    }
                    continue;
                }
                Ok((port, tag)) if view.refuses && port.is_policed() => {
                    dropped += push_policed(burst, (number, port, tag), run, view, tx);
                    continue;
                }
                Ok((port, tag)) => {
                    tx.push_run(number, port, tag, run, burst, view);
                    continue;
                }
                Err(reason) => reason,
            },
            Decision::Flood => {
                flood = true;
                continue;
            }
            Decision::Drop(reason) => reason,
            // Does not happen: `lookup` leaves no frame pending.
            Decision::Pending => DropReason::NoDestination,
        };
        from.drop(reason, len as u32);
        dropped += len as u64;
    }
    let mut tally = TxResult {
        dropped,
        ..TxResult::default()
    };
    let joins = source.is_some_and(|port| port.joins);
    let to = Destinations {
        view,
        joins,
        ingress,
    };
    if flood {
        let began = tsc();
        flood::send(burst, to, tx, from, &mut tally);
        tx.flood_cycles = tsc().wrapping_sub(began);
    }
    let groups = std::mem::take(&mut tx.groups);
    send_groups(burst, &groups, to, tx, from, &mut tally);
    tx.groups = groups;
    tx.asked = Asked {
        made: tally.made,
        own: tally.work,
        excess: tally.excess,
    };
    tx.is_plain = !flood && tally.work == 0 && tally.excess == 0 && burst.is_plain();
    from.drop(DropReason::BadOffload, tally.refused);
    from.rx_frames.add(burst.len() as u64);
    from.rx_bytes.add(bytes);
    from.rx_bursts.record(burst.len() as u32);
    from.delivered_copies.add(tally.delivered);
    from.dropped_copies.add(tally.dropped);
}

/// Adds a run of frames for a port whose rate is limited, or that has groups, without those that exceed the one or that the
/// other does not allow. Returns how many are refused.
#[cold]
#[inline(never)]
fn push_policed(
    burst: &Burst,
    (number, port, tag): (u16, &PortSnapshot, HeaderOp),
    run: Range<usize>,
    view: &Snapshot,
    tx: &mut Tx,
) -> u64 {
    let mut count = 0;
    for index in run {
        let Some(reason) = tx.refusal(index) else {
            tx.push_run(number, port, tag, index..index + 1, burst, view);
            continue;
        };
        count += 1;
        port.counters.at(tx.worker, 0).drop(reason, 1);
        let pick = TxEntry {
            frame: index as u8,
            tag,
        };
        tap::refused(burst, (std::iter::once(pick), reason), number, view, tx);
    }
    count
}

/// Returns the port that a frame goes to, and its tag operation.
#[inline(always)]
pub(crate) fn unicast<'v>(
    frame: &Frame,
    (source, number): (Option<&PortSnapshot>, u16),
    view: &'v Snapshot,
) -> Result<(&'v PortSnapshot, HeaderOp), DropReason> {
    // The port was removed after the address was learned; the entry ages out.
    let port = view.port(number).ok_or(DropReason::NoDestination)?;
    let tag = port.way_out(frame, source, view)?;
    Ok((port, tag))
}

/// Returns the result of a frame that has been looked up, as far as it is known before copies are made.
pub(crate) fn fate(frame: &Frame, ingress: u16, view: &Snapshot) -> Fate {
    match frame.verdict.decision() {
        Decision::Port(number) => match unicast(frame, (view.port(ingress), number), view) {
            Ok(_) => Fate::Port(number),
            Err(reason) => Fate::Dropped(reason),
        },
        Decision::Flood => Fate::Flood,
        Decision::Drop(reason) => Fate::Dropped(reason),
        Decision::Pending => Fate::Dropped(DropReason::NoDestination),
    }
}

/// Destinations of copies, and whether TCP segments are joined.
#[derive(Clone, Copy)]
pub(crate) struct Destinations<'v> {
    pub(crate) view: &'v Snapshot,
    pub(crate) joins: bool,
    pub(crate) ingress: u16,
}

/// Sends the copies of each group.
#[inline(always)]
pub(crate) fn send_groups(
    burst: &Burst,
    groups: &Groups,
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    for group in groups.iter() {
        // Its copies were sent together with those of flooded frames.
        if group.picks.is_empty() {
            continue;
        }
        let Tx {
            worker,
            scratch,
            nics,
            touched,
            faults,
            segmenter,
            joiner,
            direct,
            nic_use,
            serial,
            work,
            shares,
            ..
        } = tx;
        let Some(port) = to.view.port(group.port) else {
            return;
        };
        let mut way = EgressQueue {
            worker: *worker,
            port,
            number: group.port,
            queue: group.queue,
            to: port.counters.at(*worker, group.queue),
            scratch,
            nics,
            touched,
            faults,
            direct,
            nic_use,
            shares,
            ingress: to.ingress,
            taps: Taps {
                taps: &to.view.taps,
                serial: *serial,
                origin: Origin::Received,
            },
            is_full: false,
        };
        if burst.has_large() {
            send_cut(
                &mut way,
                (segmenter, work),
                burst,
                &group.picks,
                from,
                tally,
            );
        } else if to.joins && group.picks.len() > 1 {
            send_joined(&mut way, joiner, burst, &group.picks, from, tally);
        } else {
            way.send(burst, &group.picks, tally);
        }
    }
}

/// Sends copies of TCP segments from a wire, joined if the receiver takes large frames.
fn send_joined(
    way: &mut EgressQueue,
    joiner: &mut Gro,
    burst: &Burst,
    picks: &[TxEntry],
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    let takes = way.takes_large();
    let joined = match takes.v4 || takes.v6 {
        true => joiner.join(burst, picks, takes),
        false => None,
    };
    match joined {
        None => way.send(burst, picks, tally),
        Some((large, fewer)) => {
            from.joined_copies.add((picks.len() - fewer.len()) as u64);
            way.taps.origin = Origin::Joined;
            way.send(large, fewer, tally);
        }
    }
}

/// Sends copies in order; some may have to be cut into segments.
#[cold]
fn send_cut(
    way: &mut EgressQueue,
    (segmenter, work): (&mut Gso, &mut Work),
    burst: &Burst,
    picks: &[TxEntry],
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    let mut whole = 0;
    for (index, pick) in picks.iter().enumerate() {
        let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
            continue;
        };
        if way.takes(burst, frame, pick.tag) {
            continue;
        }
        way.send(burst, picks.get(whole..index).unwrap_or(&[]), tally);
        whole = index + 1;
        let limit = way.frame_len_max();
        let Ok(plan) = segmenter.begin(burst, frame, limit) else {
            from.drop(DropReason::BadOffload, 1);
            tally.dropped += 1;
            continue;
        };
        way.taps.origin = Origin::CutFrom(usize::from(pick.frame));
        let cut = Cut {
            plan: &plan,
            burst,
            frame,
            tag: pick.tag,
        };
        send_segments(way, (segmenter, work), &cut, from, tally);
        way.taps.origin = Origin::Received;
        from.segment_copies.add(plan.count() as u64 - 1);
    }
    way.send(burst, picks.get(whole..).unwrap_or(&[]), tally);
}

/// A large frame that is cut into segments.
struct Cut<'c> {
    plan: &'c Segmentation,
    burst: &'c Burst,
    frame: &'c Frame,
    tag: HeaderOp,
}

/// Makes and sends the segments of one large frame, as many as the burst's budget and the receiver's ring allow: when the
/// ring was full for one segment, the receiver gets none of the later ones.
fn send_segments(
    way: &mut EgressQueue,
    (segmenter, work): (&mut Gso, &mut Work),
    cut: &Cut<'_>,
    from: &QueueCounters,
    tally: &mut TxResult,
) {
    let count = cut.plan.count();
    let each = Work::SEGMENT + Work::COPY + Work::of_bytes(cut.frame.len / count as u32);
    let mut made = 0;
    while made < count {
        let full = way.full_copies();
        let cost = each * (count - made).min(BURST) as u32;
        if work.left() < cost {
            // The frame has very many segments, or the burst has many such frames.
            let rest = (count - made) as u32;
            from.drop(DropReason::BurstBudget, rest);
            tally.dropped += u64::from(rest);
            return;
        }
        work.spend(cost);
        tally.made += cost;
        let (segments, picks) = segmenter.make(cut.plan, (cut.burst, cut.frame), cut.tag, made);
        if picks.is_empty() {
            // The frame is in thousands of pieces, and the next segment fits in no burst.
            let rest = (count - made) as u32;
            from.drop(DropReason::BadOffload, rest);
            tally.dropped += u64::from(rest);
            return;
        }
        made += picks.len();
        let before = tally.work;
        way.send(segments, picks, tally);
        work.spend(tally.work - before);
        if way.full_copies() != full && made < count {
            way.drop_as_full((count - made) as u32, tally);
            return;
        }
    }
}
