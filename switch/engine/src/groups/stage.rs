//! Where security groups are applied: to what a guest sends, and to what is sent to it.

use crosspoint_frame::{BURST, Burst, Decision, Verdict};
use crosspoint_packet::DropReason;

use crate::egress::deliver::unicast;
use crate::groups::GroupPolicy;
use crate::groups::connections::Connections;
use crate::groups::judge::{Address, Judge, Judgement, Passed};
use crate::groups::packet::{Flow, Packet, read, read_plain};
use crate::groups::rules::Direction;
use crate::snapshot::{PortSnapshot, Snapshot};

/// A worker's working memory: what the frames of a burst are. A plain packet takes two cache lines.
pub(crate) struct Packets {
    /// Frames, by bits, that are in the first list; the others are in the third.
    plain: u64,
    flows: Box<[Flow; BURST]>,
    addresses: Box<[Address; BURST]>,
    others: Box<[Packet; BURST]>,
    /// Frames, by bits, that go to one port and that its groups do not allow,
    denied: u64,
    /// and why.
    reasons: [DropReason; BURST],
}

impl Default for Packets {
    fn default() -> Packets {
        Packets {
            plain: 0,
            flows: Box::new([Flow::NONE; BURST]),
            addresses: Box::new([Address::default(); BURST]),
            others: Box::new([Packet::Other; BURST]),
            denied: 0,
            reasons: [DropReason::GroupDeniedIn; BURST],
        }
    }
}

impl Packets {
    /// Returns why a frame that goes to one port is dropped, if its groups do not allow it.
    pub(crate) fn refusal(&self, index: usize) -> Option<DropReason> {
        let is_denied = self.denied >> (index % BURST) & 1 == 1;
        is_denied.then(|| self.reasons[index % BURST])
    }

    /// Forgets the burst before.
    pub(crate) fn forget(&mut self) {
        self.denied = 0;
    }

    /// Reads a frame for `judge`, and begins to look for its connection.
    #[inline(always)]
    fn read(&mut self, burst: &mut Burst, index: usize, judge: Option<&Judge<'_>>) {
        let (place, bit) = (index % BURST, 1u64 << (index % BURST));
        let flow = &mut self.flows[place];
        let frame = burst.frames().get(index);
        // Without a judge it is flooded: each copy is decided on for another guest, by whatever rules.
        let direction = judge.map_or(Direction::In, |judge| judge.direction);
        if !frame.is_some_and(|frame| read_plain(frame, direction, flow)) {
            self.plain &= !bit;
            self.others[place] = read(burst, index, direction);
            return;
        }
        self.plain |= bit;
        if let Some(judge) = judge.filter(|judge| judge.tracks()) {
            let address = &mut self.addresses[place];
            judge.set_address(&self.flows[place], address);
            judge.prefetch(address);
        }
    }

    /// Goes on to look for the connections of the frames that were read.
    #[inline(always)]
    fn prefetch_keys(&mut self, len: usize, judge: &Judge<'_>) {
        if judge.tracks() {
            for (place, address) in self.addresses.iter_mut().enumerate().take(len) {
                if self.plain >> place & 1 == 1 {
                    judge.prefetch_key(address);
                }
            }
        }
    }

    /// Decides on a frame that was read for the same judge. `before`: the plain frame before it that passed, and by what.
    #[inline(always)]
    fn decide(
        &self,
        index: usize,
        judge: &Judge<'_>,
        before: &mut Option<(usize, Passed)>,
    ) -> Result<(), DropReason> {
        let place = index % BURST;
        if self.plain >> place & 1 == 0 {
            return judge.decide(&self.others[place]);
        }
        let flow = &self.flows[place];
        // Most bursts have several packets of a connection.
        if let Some((same, passed)) = before
            && self.flows[*same % BURST] == *flow
        {
            judge.pass_again(*passed);
            return Ok(());
        }
        let result = judge.decide_flow(flow, &self.addresses[place]);
        *before = result.ok().map(|passed| (place, passed));
        result.map(|_| ())
    }

    /// Decides on a frame that was read for no judge.
    fn decide_copy(&self, index: usize, judge: &Judge<'_>) -> Result<(), DropReason> {
        let place = index % BURST;
        match self.plain >> place & 1 == 1 {
            true => judge.decide(&Packet::Flow(self.flows[place], None)),
            false => judge.decide(&self.others[place]),
        }
    }
}

/// Drops the frames of a guest that its groups do not allow.
#[inline(never)]
pub(crate) fn send(
    burst: &mut Burst,
    ingress: u16,
    view: &Snapshot,
    worker: usize,
    packets: &mut Packets,
) {
    let policy = view.port(ingress).and_then(|port| port.groups.as_deref());
    let (Some(policy), Some(connections)) = (policy, view.connections.as_deref()) else {
        return;
    };
    let judge = judge(policy, connections, Direction::Out, worker);
    for index in 0..burst.len() {
        let frame = burst.frames().get(index);
        if frame.is_some_and(|frame| frame.verdict == Verdict::PENDING) {
            packets.read(burst, index, Some(&judge));
        }
    }
    packets.prefetch_keys(burst.len(), &judge);
    let mut before = None;
    for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
        if frame.verdict != Verdict::PENDING {
            continue;
        }
        match (packets.decide(index, &judge, &mut before), &view.probes) {
            (Ok(()), _) => {}
            // A probe that came back shows a loop, also where it may not pass.
            (Err(reason), Some(probes)) => probes.refuse(frame, ingress, reason),
            (Err(reason), None) => frame.drop_for(reason),
        }
    }
}

fn judge<'v>(
    policy: &'v GroupPolicy,
    connections: &'v Connections,
    direction: Direction,
    worker: usize,
) -> Judge<'v> {
    Judge {
        policy,
        connections,
        direction,
        worker,
    }
}

/// Finds the frames that the groups of their receivers do not allow. Frames that are flooded are only read: each copy is
/// decided on when it is made, by [`flooded`].
#[inline(never)]
pub(crate) fn receive(
    burst: &mut Burst,
    ingress: u16,
    view: &Snapshot,
    worker: usize,
    packets: &mut Packets,
) {
    let Some(connections) = view.connections.as_deref() else {
        return;
    };
    let source = view.port(ingress);
    let judge_of = |number: u16| {
        let policy = view.port(number)?.groups.as_deref()?;
        Some(judge(policy, connections, Direction::In, worker))
    };
    let (mut to_judge, mut last) = (0u64, None);
    packets.plain = 0;
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            break;
        };
        match frame.verdict.decision() {
            Decision::Port(number) => {
                let Some(judge) = judge_of(number) else {
                    continue;
                };
                // What does not arrive for another reason is in no connection of its receiver's.
                if unicast(frame, (source, number), view).is_err() {
                    continue;
                }
                to_judge |= 1 << (index % BURST);
                packets.read(burst, index, Some(&judge));
                last = Some(judge);
            }
            Decision::Flood => packets.read(burst, index, None),
            _ => {}
        }
    }
    if let Some(judge) = last {
        packets.prefetch_keys(burst.len(), &judge);
    }
    let (mut before, mut receiver) = (None, 0);
    for (index, frame) in burst.frames().iter().enumerate() {
        if to_judge >> (index % BURST) & 1 == 0 {
            continue;
        }
        let Decision::Port(number) = frame.verdict.decision() else {
            continue;
        };
        if receiver != number {
            (before, receiver) = (None, number);
        }
        if let Some(judge) = judge_of(number)
            && let Err(reason) = packets.decide(index, &judge, &mut before)
        {
            packets.denied |= 1 << (index % BURST);
            packets.reasons[index % BURST] = reason;
        }
    }
}

/// Explains what a port's groups decide on the frame of a burst that has it alone; `None` if the port has no groups.
pub(crate) fn explain(
    burst: &mut Burst,
    port: u16,
    view: &Snapshot,
    direction: Direction,
) -> Option<Judgement> {
    let policy = view.port(port)?.groups.as_deref()?;
    let judge = judge(policy, view.connections.as_deref()?, direction, 0);
    Some(judge.explain(&read(burst, 0, direction)))
}

/// Returns why a port's groups do not allow a copy of flooded frame `index`, if they do not.
#[cold]
#[inline(never)]
pub(crate) fn flooded(
    index: usize,
    port: &PortSnapshot,
    view: &Snapshot,
    worker: usize,
    packets: &Packets,
) -> Option<DropReason> {
    let (policy, connections) = (port.groups.as_deref()?, view.connections.as_deref()?);
    let judge = judge(policy, connections, Direction::In, worker);
    packets.decide_copy(index, &judge).err()
}
