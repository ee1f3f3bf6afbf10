//! The last stage: every copy goes to its port, or is counted as dropped.

use crosspoint_frame::{BURST, Burst, Decision, Frame, Pick, TagOp, Verdict};
use crosspoint_packet::DropReason;

use crate::counters::QueueCounters;
use crate::joins::Joiner;
use crate::segments::Segmenter;
use crate::tap::{Fate, Origin, Taps};
use crate::tx::Tx;
use crate::view::{Egress, PortView, View};
use crate::way::Way;

/// What became of one burst's copies; all came from one queue.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
    /// Of those: large frames that a NIC port's interface does not take, as they were when it had them.
    pub(crate) refused: u32,
}

/// Delivers a burst that came in on `ingress`, whose counters are `from`: groups it by queue,
/// then makes one reservation, one run of copies and one publication per queue.
#[inline(always)]
pub fn deliver(burst: &Burst, ingress: u16, view: &View, tx: &mut Tx, from: &QueueCounters) {
    let (mut flood, mut dropped) = (false, 0);
    (tx.used_groups, tx.used_nics) = (0, false);
    let frames = burst.frames();
    let bytes: u64 = frames.iter().map(|frame| u64::from(frame.len)).sum();
    let mut rest = 0..frames.len();
    // Run by run: frames that follow each other and are the same in all that decides are decided on once.
    while let Some(first) = frames.get(rest.start) {
        let route = first.route();
        let same = frames.iter().skip(rest.start + 1);
        let len = 1 + same.take_while(|frame| frame.route() == route).count();
        let run = rest.start..rest.start + len;
        rest.start = run.end;
        let reason = match first.verdict.decision() {
            Decision::Port(number) => match unicast(first, number, view) {
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
            // Nobody decided: `lookup` leaves none so.
            Decision::Pending => DropReason::NoDestination,
        };
        from.drop(reason, len as u32);
        dropped += len as u64;
    }
    let mut tally = Tally {
        dropped,
        ..Tally::default()
    };
    let joins = view.port(ingress).is_some_and(|port| port.joins);
    let to = Destinations { view, joins };
    if flood {
        deliver_with_flood(burst, ingress, to, tx, from, &mut tally);
    } else {
        send_groups(burst, to, tx, from, &mut tally);
    }
    from.drop(DropReason::BadOffload, tally.refused);
    from.rx_frames.add(burst.len() as u64);
    from.rx_bytes.add(bytes);
    from.rx_bursts.record(burst.len() as u32);
    from.delivered_copies.add(tally.delivered);
    from.dropped_copies.add(tally.dropped);
}

/// The port that a frame goes to, and what becomes of its tag.
#[inline(always)]
pub(crate) fn unicast<'v>(
    frame: &Frame,
    number: u16,
    view: &'v View,
) -> Result<(&'v PortView, TagOp), DropReason> {
    // Learned on a port that is gone since; ageing takes the entry.
    let port = view.port(number).ok_or(DropReason::NoDestination)?;
    let tag = port.tag_op(frame).ok_or(DropReason::VlanNotCarried)?;
    Ok((port, tag))
}

/// What becomes of a frame that has been looked up, as far as that is known before copies are made.
pub(crate) fn fate(frame: &Frame, view: &View) -> Fate {
    match frame.verdict.decision() {
        Decision::Port(number) => match unicast(frame, number, view) {
            Ok(_) => Fate::Port(number),
            Err(reason) => Fate::Dropped(reason),
        },
        Decision::Flood => Fate::Flood,
        Decision::Drop(reason) => Fate::Dropped(reason),
        Decision::Pending => Fate::Dropped(DropReason::NoDestination),
    }
}

/// A guest's receive queue for a frame: by flow, whoever delivers it.
#[inline(always)]
pub(crate) fn queue_of(port: &PortView, view: &View, frame: &Frame) -> u16 {
    match &port.egress {
        Egress::Guest(queues) if queues.len() > 1 => {
            let hash = u64::from(view.flows.hash(frame.headers()));
            // The high bits choose, without a division (Lemire 2016).
            ((hash * queues.len() as u64) >> 32) as u16
        }
        _ => 0,
    }
}

/// A burst with frames to flood: port by port, each port's frames in the order they came, so
/// that a flow whose destination becomes known in mid-burst keeps its order.
#[cold]
fn deliver_with_flood(
    burst: &Burst,
    ingress: u16,
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut Tally,
) {
    // Of some frames several copies are made, so the memory of none may be taken.
    burst.lease().close();
    let view = to.view;
    let mut copies = [0u64; BURST];
    for (number, port) in view.ports.iter().enumerate() {
        let (number, Some(port)) = (number as u16, port) else {
            continue;
        };
        tx.used_groups = 0;
        for (index, (frame, copies)) in burst.frames().iter().zip(&mut copies).enumerate() {
            let flooded = frame.verdict == Verdict::FLOOD && number != ingress;
            let wanted = flooded || frame.verdict == Verdict::port(number);
            if wanted && let Some(tag) = port.tag_op(frame) {
                let pick = Pick {
                    frame: index as u8,
                    tag,
                };
                let group = tx.group(number, queue_of(port, view, frame));
                tx.push(group, pick);
                *copies += u64::from(flooded);
            }
        }
        send_groups(burst, to, tx, from, tally);
    }
    for (frame, copies) in burst.frames().iter().zip(copies) {
        match (frame.verdict, copies) {
            (Verdict::FLOOD, 0) => {
                from.drop(DropReason::NoDestination, 1);
                tally.dropped += 1;
            }
            (Verdict::FLOOD, copies) => from.flood_copies.add(copies - 1),
            _ => {}
        }
    }
}

/// Where copies go, and whether segments are joined on the way.
#[derive(Clone, Copy)]
struct Destinations<'v> {
    view: &'v View,
    joins: bool,
}

#[inline(always)]
fn send_groups(
    burst: &Burst,
    to: Destinations<'_>,
    tx: &mut Tx,
    from: &QueueCounters,
    tally: &mut Tally,
) {
    for index in 0..tx.used_groups {
        let Tx {
            worker,
            scratch,
            nics,
            groups,
            touched,
            faults,
            segmenter,
            joiner,
            direct,
            used_nics,
            serial,
            ..
        } = tx;
        let Some(group) = groups.get(index) else {
            return;
        };
        let Some(port) = to.view.port(group.port) else {
            return;
        };
        let mut way = Way {
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
            used_nics,
            taps: Taps {
                taps: &to.view.taps,
                serial: *serial,
                origin: Origin::Received,
            },
            is_full: false,
        };
        if burst.has_large() {
            send_cut(&mut way, segmenter, burst, &group.picks, from, tally);
        } else if to.joins && group.picks.len() > 1 {
            send_joined(&mut way, joiner, burst, &group.picks, from, tally);
        } else {
            way.send(burst, &group.picks, tally);
        }
    }
}

/// Sends copies of segments that came off a wire, joined where the receiver takes that.
fn send_joined(
    way: &mut Way,
    joiner: &mut Joiner,
    burst: &Burst,
    picks: &[Pick],
    from: &QueueCounters,
    tally: &mut Tally,
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

/// Sends copies of which some may have to be cut, in the order they came.
#[cold]
fn send_cut(
    way: &mut Way,
    segmenter: &mut Segmenter,
    burst: &Burst,
    picks: &[Pick],
    from: &QueueCounters,
    tally: &mut Tally,
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
        let Ok(plan) = segmenter.begin(burst, frame) else {
            from.drop(DropReason::BadOffload, 1);
            tally.dropped += 1;
            continue;
        };
        way.taps.origin = Origin::CutFrom(usize::from(pick.frame));
        let mut made = 0;
        while made < plan.count() {
            let (segments, picks) = segmenter.make(&plan, (burst, frame), pick.tag, made);
            if picks.is_empty() {
                break;
            }
            made += picks.len();
            way.send(segments, picks, tally);
        }
        way.taps.origin = Origin::Received;
        from.segment_copies.add(plan.count() as u64 - 1);
        // A frame in thousands of pieces, of which the rest fits no burst.
        let rest = (plan.count() - made) as u32;
        from.drop(DropReason::BadOffload, rest);
        tally.dropped += u64::from(rest);
    }
    way.send(burst, picks.get(whole..).unwrap_or(&[]), tally);
}
