//! Counts the packets of connections, for a collector: a pass of its own over a burst that was decided on, which there is only
//! while something is exported. So deciding costs the same whether or not it is.

use crosspoint_frame::{BURST, Burst, Decision, Frame, tsc};
use crosspoint_packet::{DropReason, TAG_LEN};

use super::{Packets, bits, judge};
use crate::groups::accounting::Accounting;
use crate::groups::judge::Judge;
use crate::groups::packet::{Flow, Packet};
use crate::groups::rules::Direction;
use crate::snapshot::Snapshot;
use crate::stages::meter::Size;

/// Length of an Ethernet header without tags.
const ETHERNET_LEN: usize = 14;
/// Length of the shortest frame without its checksum: shorter packets are filled up to it.
const FRAME_LEN_MIN: usize = 60;

/// One pass over a burst.
struct Pass<'v> {
    packets: &'v Packets,
    accounting: &'v Accounting,
    now: u64,
    /// The plain packet before: its place, its port's zone, its connection's slot, and the side that it comes from.
    before: Option<(usize, u32, u32, usize)>,
}

/// Packets of a frame, and their octets with IP headers.
fn size_of(frame: &Frame) -> (u32, u64) {
    let size = Size::of(frame);
    let link_len = ETHERNET_LEN + usize::from(frame.tags) * TAG_LEN;
    let octets = size.bytes.saturating_sub(size.packets * link_len as u64);
    let is_filled_up = frame.len as usize <= FRAME_LEN_MIN + link_len - ETHERNET_LEN;
    let own = is_filled_up.then(|| ip_len(frame, link_len)).flatten();
    let octets = own.map_or(octets, |own| own.min(octets));
    (u32::try_from(size.packets).unwrap_or(u32::MAX), octets)
}

/// The length that a short packet's IP header has (RFC 791, 3.1; RFC 8200, 3).
fn ip_len(frame: &Frame, at: usize) -> Option<u64> {
    let header = frame.head.get(at..)?;
    let word = |at: usize| {
        Some(u64::from(u16::from_be_bytes(
            *header.get(at..)?.first_chunk()?,
        )))
    };
    match header.first()? >> 4 {
        4 => word(2),
        6 => Some(word(4)? + 40),
        _ => None,
    }
}

/// Whether a packet that was dropped for this reason would have begun a connection.
fn is_denial(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::GroupDeniedIn
            | DropReason::GroupDeniedOut
            | DropReason::ConnectionLimitIn
            | DropReason::ConnectionLimitOut
            | DropReason::ConnectionRateIn
            | DropReason::ConnectionRateOut
    )
}

impl Packets {
    /// Reads the frames that passed like earlier ones, without being read: for the judge of each.
    fn read_repeated<'v>(&mut self, burst: &Burst, judge_of: impl Fn(&Frame) -> Option<Judge<'v>>) {
        for index in bits(self.repeated) {
            if let Some(frame) = burst.frames().get(index)
                && let Some(judge) = judge_of(frame)
            {
                self.read_plain(frame, index, &judge);
            }
        }
    }

    /// What was read of a frame, if it may belong to a connection.
    fn flow_of(&self, place: usize) -> Option<&Flow> {
        if self.plain >> place & 1 == 1 {
            return self.flows.get(place);
        }
        match self.others.get(place)? {
            Packet::Flow(flow, _) | Packet::Dhcp { flow, .. } => Some(flow),
            _ => None,
        }
    }
}

impl Pass<'_> {
    /// Counts a frame that has passed the judge, or that it has dropped for this reason.
    fn count(
        &mut self,
        index: usize,
        frame: &Frame,
        judge: &Judge<'_>,
        denied: Option<DropReason>,
    ) {
        let (place, zone) = (index % BURST, judge.policy.zone().id());
        let is_plain = self.packets.plain >> place & 1 == 1;
        let Some(flow) = self.packets.flow_of(place).filter(|_| judge.tracks()) else {
            return;
        };
        if let Some(reason) = denied {
            if is_denial(reason) {
                judge.note_denied(self.accounting, flow, size_of(frame), self.now);
            }
            return;
        }
        let flows = &self.packets.flows;
        let known = self
            .before
            .filter(|(same, of, ..)| is_plain && *of == zone && flows[*same % BURST] == *flow);
        let found = match known {
            Some((_, _, slot, side)) => Some((slot, side)),
            None if !flow.is_tracked => None,
            None if is_plain => judge.slot_of(&self.packets.addresses[place]),
            None => judge.slot_of(&judge.address(flow)),
        };
        let Some((slot, side)) = found else { return };
        if is_plain {
            self.before = Some((place, zone, slot, side));
        }
        let at = (judge.worker, slot);
        self.accounting.add(at, side, size_of(frame), self.now);
    }
}

/// Counts what a guest has sent.
#[cold]
#[inline(never)]
pub(super) fn sent(
    burst: &Burst,
    judge: &Judge<'_>,
    accounting: &Accounting,
    packets: &mut Packets,
) {
    packets.read_repeated(burst, |_| Some(*judge));
    let mut pass = Pass {
        packets,
        accounting,
        now: tsc(),
        before: None,
    };
    for (index, frame) in burst.frames().iter().enumerate() {
        match frame.verdict.decision() {
            Decision::Pending => pass.count(index, frame, judge, None),
            // Groups alone drop for these reasons, in this direction.
            Decision::Drop(reason) if is_denial(reason) => {
                pass.count(index, frame, judge, Some(reason));
            }
            _ => {}
        }
    }
}

/// Counts what is sent to guests: the frames, by bits, that were decided on.
#[cold]
#[inline(never)]
pub(super) fn received(
    burst: &Burst,
    view: &Snapshot,
    worker: usize,
    packets: &mut Packets,
    decided: u64,
) {
    let Some(connections) = view.connections.as_deref() else {
        return;
    };
    let Some(accounting) = connections.accounting() else {
        return;
    };
    let judge_of = |number: u16| {
        let policy = view.port(number)?.groups.as_deref()?;
        Some(judge(policy, (connections, false), Direction::In, worker))
    };
    packets.read_repeated(burst, |frame| match frame.verdict.decision() {
        Decision::Port(number) => judge_of(number),
        _ => None,
    });
    let mut pass = Pass {
        packets,
        accounting,
        now: tsc(),
        before: None,
    };
    for (index, frame) in burst.frames().iter().enumerate() {
        let Decision::Port(number) = frame.verdict.decision() else {
            continue;
        };
        let is_decided = decided >> (index % BURST) & 1 == 1;
        if let Some(judge) = judge_of(number).filter(|_| is_decided) {
            pass.count(index, frame, &judge, packets.refusal(index));
        }
    }
}

/// Counts a copy of a flooded frame for a guest.
#[cold]
#[inline(never)]
pub(super) fn copied(
    index: usize,
    frame: &Frame,
    judge: &Judge<'_>,
    packets: &Packets,
    denied: Option<DropReason>,
) {
    let Some(accounting) = judge.connections.accounting() else {
        return;
    };
    // The address that was read is of no judge.
    let Some(flow) = packets.flow_of(index % BURST).filter(|_| judge.tracks()) else {
        return;
    };
    let now = tsc();
    match denied {
        Some(reason) if is_denial(reason) => {
            judge.note_denied(accounting, flow, size_of(frame), now);
        }
        None if flow.is_tracked => {
            if let Some((slot, side)) = judge.slot_of(&judge.address(flow)) {
                accounting.add((judge.worker, slot), side, size_of(frame), now);
            }
        }
        _ => {}
    }
}
