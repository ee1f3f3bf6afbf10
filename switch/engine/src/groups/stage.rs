//! Where security groups are applied: to what a guest sends, and to what is sent to it.

mod counted;

use std::cell::OnceCell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crosspoint_frame::{BURST, Burst, Decision, Frame, Verdict};
use crosspoint_packet::DropReason;

use crate::egress::deliver::unicast;
use crate::groups::GroupPolicy;
use crate::groups::connections::Connections;
use crate::groups::explain::Judgement;
use crate::groups::judge::{Address, Judge, Passed};
use crate::groups::packet::{Flow, Packet, PlainKey, plain_key, read, read_plain};
use crate::groups::recent::{By, Recent, SetNumber};
use crate::groups::rules::Direction;
use crate::snapshot::{PortSnapshot, Snapshot};

/// A worker's working memory: what the frames of a burst are. A plain packet takes two cache lines.
pub(crate) struct Packets {
    /// Frames, by bits, that are in the first list; the others are in the third.
    plain: u64,
    flows: Box<[Flow; BURST]>,
    addresses: Box<[Address; BURST]>,
    others: Box<[Packet; BURST]>,
    /// Frames, by bits, that have a key; and of these, those that are equal to a packet that has passed.
    keyed: u64,
    repeated: u64,
    keys: Box<[(PlainKey, SetNumber); BURST]>,
    by: Box<[By; BURST]>,
    recent: Recent,
    /// Frames, by bits, that go to one port and that its groups do not allow,
    denied: u64,
    /// and why.
    reasons: [DropReason; BURST],
}

/// What is known of a plain packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It has passed, by a stateless rule.
    Passed,
    /// It passes if its connection is what it was.
    Repeated,
    /// It must be decided on.
    New,
}

impl Default for Packets {
    fn default() -> Packets {
        Packets {
            plain: 0,
            flows: Box::new([Flow::NONE; BURST]),
            addresses: Box::new([Address::default(); BURST]),
            others: Box::new([Packet::Other; BURST]),
            keyed: 0,
            repeated: 0,
            keys: Box::new([Default::default(); BURST]),
            by: Box::new([By::Rule(0); BURST]),
            recent: Recent::new(RandomState::new().hash_one(0)),
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

    /// Begins to look for what is known of the packet in a frame, for `judge`. Returns `false` if it is not plain.
    #[inline(always)]
    fn look(&mut self, frame: &Frame, index: usize, judge: &Judge<'_>) -> bool {
        let key = plain_key(frame);
        if let Some(key) = key {
            let set = self.recent.look(&key, judge.stamp());
            self.keys[index % BURST] = (key, set);
        }
        key.is_some()
    }

    /// Goes on with a plain packet that was looked for. If it is not equal to one that has passed, it is read, and looked for
    /// among the connections.
    #[inline(always)]
    fn find(&mut self, frame: &Frame, index: usize, judge: &Judge<'_>) -> Known {
        let place = index % BURST;
        let (key, set) = &self.keys[place];
        match self.recent.find(*set, key, judge.stamp()) {
            Some(by @ By::Rule(_)) => {
                // Only with rules that are all stateless: no packet of the burst changes what they decide.
                judge.passes_by(by);
                self.by[place] = by;
                return Known::Passed;
            }
            Some(by) if judge.is_current(by) => {
                judge.prefetch_by(by);
                self.by[place] = by;
                return Known::Repeated;
            }
            _ => {}
        }
        self.read_plain(frame, place, judge);
        if judge.tracks() {
            judge.prefetch(&self.addresses[place]);
        }
        Known::New
    }

    /// Reads a plain packet, and where its connection may be.
    #[inline(always)]
    fn read_plain(&mut self, frame: &Frame, place: usize, judge: &Judge<'_>) {
        read_plain(frame, judge.direction, &mut self.flows[place]);
        if judge.tracks() {
            judge.set_address(&self.flows[place], &mut self.addresses[place]);
        }
    }

    /// Goes on to look for the connections of the frames that were read.
    #[inline(always)]
    fn prefetch_keys(&mut self, judge: &Judge<'_>) {
        let new = self.keyed & !self.repeated;
        if judge.tracks() {
            for place in bits(new) {
                judge.prefetch_key(&mut self.addresses[place]);
            }
        }
    }

    /// Decides on a frame that was read for the same judge. `before`: the plain frame before it that passed, and by what.
    #[inline(always)]
    fn decide(
        &mut self,
        frame: &Frame,
        index: usize,
        judge: &Judge<'_>,
        before: &mut Option<(usize, Passed)>,
    ) -> Result<(), DropReason> {
        let (place, bit) = (index % BURST, 1u64 << (index % BURST));
        if self.repeated & bit != 0 && judge.passes_by(self.by[place]) {
            return Ok(());
        }
        if self.keyed & bit == 0 {
            return judge.decide(&self.others[place]);
        }
        self.decide_new(frame, place, judge, before)
    }

    /// Decides on a plain packet that is not known to pass.
    #[inline(never)]
    fn decide_new(
        &mut self,
        frame: &Frame,
        place: usize,
        judge: &Judge<'_>,
        before: &mut Option<(usize, Passed)>,
    ) -> Result<(), DropReason> {
        if self.repeated >> place & 1 == 1 {
            self.read_plain(frame, place, judge);
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
        if let Some(by) = result.ok().and_then(|passed| judge.by(passed)) {
            let (key, set) = &self.keys[place];
            self.recent.put(*set, key, judge.stamp(), by);
        }
        result.map(|_| ())
    }

    /// Reads a frame that is flooded: each copy is decided on for another guest, by whatever rules.
    fn read_copies(&mut self, burst: &mut Burst, index: usize) {
        let (place, bit) = (index % BURST, 1u64 << (index % BURST));
        let frame = burst.frames().get(index);
        match frame.filter(|frame| plain_key(frame).is_some()) {
            Some(frame) => {
                self.plain |= bit;
                read_plain(frame, Direction::In, &mut self.flows[place]);
            }
            None => {
                self.plain &= !bit;
                self.others[place] = read(burst, index, Direction::In);
            }
        }
    }

    /// Notes which frames have keys, and which of these are equal to a packet that has passed.
    fn note(&mut self, keyed: u64, repeated: u64) {
        (self.keyed, self.repeated) = (keyed, repeated);
        self.plain = keyed;
    }

    /// Reads the frames `which` by bits, which are not plain.
    #[inline(always)]
    fn read_others(&mut self, burst: &mut Burst, which: u64, direction: Direction) {
        for index in bits(which) {
            self.others[index] = read(burst, index, direction);
        }
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
    let table = (connections, connections.is_dense());
    let judge = judge(policy, table, Direction::Out, worker);
    let (mut keyed, mut others, mut repeated, mut passed) = (0, 0, 0, 0);
    for (index, frame) in burst.frames().iter().enumerate() {
        let bit = 1u64 << (index % BURST);
        if frame.verdict != Verdict::PENDING {
            continue;
        }
        match packets.look(frame, index, &judge) {
            true => keyed |= bit,
            false => others |= bit,
        }
    }
    for (index, frame) in burst.frames().iter().enumerate() {
        let bit = 1u64 << (index % BURST);
        if keyed & bit != 0 {
            match packets.find(frame, index, &judge) {
                Known::Passed => passed |= bit,
                Known::Repeated => repeated |= bit,
                Known::New => {}
            }
        }
    }
    packets.note(keyed, repeated | passed);
    packets.read_others(burst, others, Direction::Out);
    packets.prefetch_keys(&judge);
    let mut before = None;
    for index in bits((keyed | others) & !passed) {
        let Some(frame) = burst.frames_mut().get_mut(index) else {
            break;
        };
        let decided = packets.decide(frame, index, &judge, &mut before);
        match (decided, &view.probes) {
            (Ok(()), _) => {}
            // A probe that came back shows a loop, also where it may not pass.
            (Err(reason), Some(probes)) => probes.refuse(frame, ingress, reason),
            (Err(reason), None) => frame.drop_for(reason),
        }
    }
    if let Some(accounting) = connections.accounting() {
        counted::sent(burst, &judge, accounting, packets);
    }
}

/// The numbers of the bits that are set.
#[inline(always)]
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (index < BURST).then_some(index)
    })
}

/// `is_dense`: see [`Connections::is_dense`]; it matters only for frames that are decided on together.
fn judge<'v>(
    policy: &'v GroupPolicy,
    (connections, is_dense): (&'v Connections, bool),
    direction: Direction,
    worker: usize,
) -> Judge<'v> {
    Judge {
        policy,
        connections,
        direction,
        worker,
        is_dense,
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
    // Not asked where no receiver has groups.
    let is_dense = OnceCell::new();
    let judge_of = |number: u16| {
        let policy = view.port(number)?.groups.as_deref()?;
        let is_dense = *is_dense.get_or_init(|| connections.is_dense());
        Some(judge(
            policy,
            (connections, is_dense),
            Direction::In,
            worker,
        ))
    };
    let (mut to_judge, mut last) = (0u64, None);
    let (mut keyed, mut repeated, mut passed, mut floods) = (0, 0, 0, 0);
    // Most frames go to the port of the frame before.
    let mut without_groups = Verdict::PENDING;
    for (index, frame) in burst.frames().iter().enumerate() {
        let bit = 1u64 << (index % BURST);
        if frame.verdict == without_groups {
            continue;
        }
        match frame.verdict.decision() {
            Decision::Port(number) => {
                let Some(judge) = judge_of(number) else {
                    without_groups = frame.verdict;
                    continue;
                };
                // What does not arrive for another reason is in no connection of its receiver's.
                if unicast(frame, (source, number), view).is_err() {
                    continue;
                }
                to_judge |= bit;
                if packets.look(frame, index, &judge) {
                    keyed |= bit;
                }
                last = Some(judge);
            }
            Decision::Flood => floods |= bit,
            _ => {}
        }
    }
    if to_judge | floods == 0 {
        return;
    }
    for (index, frame) in burst.frames().iter().enumerate() {
        let bit = 1u64 << (index % BURST);
        if keyed & bit != 0
            && let Decision::Port(number) = frame.verdict.decision()
            && let Some(judge) = judge_of(number)
        {
            match packets.find(frame, index, &judge) {
                Known::Passed => passed |= bit,
                Known::Repeated => repeated |= bit,
                Known::New => {}
            }
        }
    }
    packets.note(keyed, repeated | passed);
    packets.read_others(burst, to_judge & !keyed, Direction::In);
    for index in bits(floods) {
        packets.read_copies(burst, index);
    }
    if let Some(judge) = last {
        packets.prefetch_keys(&judge);
    }
    let (mut before, mut receiver) = (None, 0);
    for index in bits(to_judge & !passed) {
        let Some(frame) = burst.frames().get(index) else {
            break;
        };
        let Decision::Port(number) = frame.verdict.decision() else {
            continue;
        };
        if receiver != number {
            (before, receiver) = (None, number);
        }
        if let Some(judge) = judge_of(number)
            && let Err(reason) = packets.decide(frame, index, &judge, &mut before)
        {
            packets.denied |= 1 << (index % BURST);
            packets.reasons[index % BURST] = reason;
        }
    }
    if to_judge != 0 && connections.accounting().is_some() {
        counted::received(burst, view, worker, packets, to_judge);
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
    let judge = judge(policy, (view.connections.as_deref()?, false), direction, 0);
    Some(judge.explain(&read(burst, 0, direction)))
}

/// Returns why a port's groups do not allow a copy of flooded frame `index`, if they do not.
#[cold]
#[inline(never)]
pub(crate) fn flooded(
    (index, frame): (usize, &Frame),
    port: &PortSnapshot,
    view: &Snapshot,
    worker: usize,
    packets: &Packets,
) -> Option<DropReason> {
    let (policy, connections) = (port.groups.as_deref()?, view.connections.as_deref()?);
    let judge = judge(policy, (connections, false), Direction::In, worker);
    let denied = packets.decide_copy(index, &judge).err();
    counted::copied(index, frame, &judge, packets, denied);
    denied
}
