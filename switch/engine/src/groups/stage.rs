//! Where security groups are applied: to what a guest sends, and to what is sent to it.

use crosspoint_frame::{BURST, Burst, Decision, Verdict};
use crosspoint_packet::DropReason;

use crate::groups::GroupPolicy;
use crate::groups::connections::{Connections, Found, Key, Place};
use crate::groups::numbers::{ICMP, ICMPV6, address_of};
use crate::groups::packet::{Flow, Fragments, Packet, read};
use crate::groups::rules::{Direction, Question};
use crate::groups::state::{Entry, Phase};
use crate::snapshot::{PortSnapshot, Snapshot};

/// A worker's working memory: what the frames of a burst are.
pub(crate) struct Packets {
    list: Box<[Packet; BURST]>,
    /// Frames, by bits, that go to one port and that its groups do not allow,
    pub(crate) denied: u64,
    /// and why.
    reasons: [DropReason; BURST],
}

impl Default for Packets {
    fn default() -> Packets {
        Packets {
            list: Box::new([Packet::Other; BURST]),
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
}

/// Drops the frames of a guest that its groups do not allow.
#[cold]
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
    let judge = Judge {
        policy,
        connections,
        direction: Direction::Out,
        worker,
    };
    for index in 0..burst.len() {
        let is_pending = |frame: &crosspoint_frame::Frame| frame.verdict == Verdict::PENDING;
        if burst.frames().get(index).is_some_and(is_pending) {
            let packet = read(burst, index);
            judge.prefetch(&packet);
            packets.list[index % BURST] = packet;
        }
    }
    for (frame, packet) in burst.frames_mut().iter_mut().zip(packets.list.iter()) {
        if frame.verdict == Verdict::PENDING
            && let Err(reason) = judge.decide(packet)
        {
            frame.drop_for(reason);
        }
    }
}

/// Finds the frames that the groups of their receivers do not allow. Frames that are flooded are only read: each copy is
/// decided on when it is made, by [`flooded`].
#[cold]
#[inline(never)]
pub(crate) fn receive(burst: &mut Burst, view: &Snapshot, worker: usize, packets: &mut Packets) {
    packets.denied = 0;
    let Some(connections) = view.connections.as_deref() else {
        return;
    };
    let judge_of = |number: u16| {
        let policy = view.port(number)?.groups.as_deref()?;
        Some(Judge {
            policy,
            connections,
            direction: Direction::In,
            worker,
        })
    };
    for index in 0..burst.len() {
        let decision = burst
            .frames()
            .get(index)
            .map(|frame| frame.verdict.decision());
        let judge = match decision {
            Some(Decision::Port(number)) => match judge_of(number) {
                None => continue,
                judge => judge,
            },
            Some(Decision::Flood) => None,
            _ => continue,
        };
        let packet = read(burst, index);
        if let Some(judge) = judge {
            judge.prefetch(&packet);
        }
        packets.list[index % BURST] = packet;
    }
    for (index, frame) in burst.frames().iter().enumerate() {
        let Decision::Port(number) = frame.verdict.decision() else {
            continue;
        };
        if let Some(judge) = judge_of(number)
            && let Err(reason) = judge.decide(&packets.list[index % BURST])
        {
            packets.denied |= 1 << (index % BURST);
            packets.reasons[index % BURST] = reason;
        }
    }
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
    let judge = Judge {
        policy: port.groups.as_deref()?,
        connections: view.connections.as_deref()?,
        direction: Direction::In,
        worker,
    };
    judge.decide(&packets.list[index % BURST]).err()
}

/// Decides on packets from or to one guest.
#[derive(Clone, Copy)]
struct Judge<'v> {
    policy: &'v GroupPolicy,
    connections: &'v Connections,
    direction: Direction,
    worker: usize,
}

/// A packet's connection: its key, whether the packet comes from its lower end, and where it may be in the table.
struct Address {
    key: Key,
    is_from_low: bool,
    place: Place,
}

impl Judge<'_> {
    fn address(&self, flow: &Flow) -> Address {
        let (key, is_from_low) = Key::new(&flow.ends, flow.protocol, self.policy.zone.id());
        let place = self.connections.place(&key);
        Address {
            key,
            is_from_low,
            place,
        }
    }

    #[inline(always)]
    fn prefetch(&self, packet: &Packet) {
        if let Packet::Flow(flow) = packet {
            self.connections.prefetch(&self.address(flow).place);
        }
    }

    /// Returns whether a packet passes, or why it does not.
    fn decide(&self, packet: &Packet) -> Result<(), DropReason> {
        let flow = match packet {
            Packet::Exempt => return Ok(()),
            Packet::Invalid | Packet::Other => return Err(self.denied()),
            // The part of a client that the guest is.
            Packet::Dhcp { to_server, .. } if *to_server == (self.direction == Direction::Out) => {
                return Ok(());
            }
            Packet::Dhcp { flow, .. } | Packet::Flow(flow) => flow,
            Packet::Error { about, own } => return self.decide_error(about, own),
            Packet::Later(fragments) => return self.decide_later(fragments),
        };
        let address = self.address(flow);
        match self.connections.find(&address.key, &address.place) {
            Some(found) => self.known(&found, flow, &address)?,
            None => self.begin(flow, &address)?,
        }
        if let Some(fragments) = &flow.first_of {
            self.note_fragments(fragments);
        }
        Ok(())
    }

    fn denied(&self) -> DropReason {
        match self.direction {
            Direction::In => DropReason::GroupDeniedIn,
            Direction::Out => DropReason::GroupDeniedOut,
        }
    }

    fn over_limit(&self) -> DropReason {
        match self.direction {
            Direction::In => DropReason::ConnectionLimitIn,
            Direction::Out => DropReason::ConnectionLimitOut,
        }
    }

    /// A packet of a connection that is known.
    #[inline(always)]
    fn known(&self, found: &Found, flow: &Flow, address: &Address) -> Result<(), DropReason> {
        let (entry, policy) = (found.entry, self.policy);
        let is_stale = entry.generation != policy.generation && !policy.keeps;
        if is_stale && !self.is_still_allowed(&entry, address) {
            self.connections.remove(found, &policy.zone);
            // Perhaps it is allowed in this direction.
            return self.begin(flow, address);
        }
        if entry.phase.is_begun_again(flow.flags) {
            return self.begin_again(found, flow, address);
        }
        let now = self.connections.now();
        let is_original = address.is_from_low == entry.is_low_originator;
        let generation = match policy.keeps {
            true => entry.generation,
            false => policy.generation,
        };
        let changed = self.connections.change(found, |entry| Entry {
            phase: entry.phase.after(is_original, flow.flags),
            generation,
            tick: now,
            ..entry
        });
        if let Some((before, after)) = changed
            && before.phase != after.phase
        {
            policy.zone.note_change(before.phase, after.phase);
        }
        Ok(())
    }

    /// Whether the rules of now allow a connection's first packet.
    #[cold]
    #[inline(never)]
    fn is_still_allowed(&self, entry: &Entry, address: &Address) -> bool {
        let low = address.key.ends();
        let ends = match entry.is_low_originator {
            true => low,
            false => low.turned(),
        };
        let remote = match entry.direction {
            Direction::Out => ends.destination,
            Direction::In => ends.source,
        };
        let protocol = address.key.protocol();
        let service = match protocol {
            // Of ICMP, only echo requests make connections.
            ICMP => 8 << 8,
            ICMPV6 => 128 << 8,
            _ => ends.destination_port,
        };
        let question = Question {
            direction: entry.direction,
            remote: address_of(remote),
            protocol,
            service,
        };
        self.policy.rules.allows(&question).is_some()
    }

    /// Asks the rules about a packet that belongs to no connection. Returns whether its answers pass too.
    fn ask(&self, flow: &Flow) -> Result<bool, DropReason> {
        let rules = &self.policy.rules;
        let question = Question {
            direction: self.direction,
            remote: flow.remote(self.direction == Direction::Out),
            protocol: flow.protocol,
            service: flow.service,
        };
        let rule = rules.allows(&question).ok_or_else(|| self.denied())?;
        rules.count(rule, self.worker);
        Ok(rules.is_stateful(rule))
    }

    /// A packet that belongs to no connection.
    #[inline(never)]
    fn begin(&self, flow: &Flow, address: &Address) -> Result<(), DropReason> {
        let is_stateful = self.ask(flow)?;
        let phase = Phase::first(flow.protocol, flow.flags);
        // A reset of a connection that is not known begins none.
        if !is_stateful || !flow.has_answers || phase == Phase::Closed {
            return Ok(());
        }
        let zone = &self.policy.zone;
        let entry = self.new_entry(phase, address);
        let is_added = zone.has_room(phase)
            && self
                .connections
                .insert(&address.key, &address.place, &entry);
        if !is_added {
            zone.note_refused();
            return Err(self.over_limit());
        }
        zone.note_new(phase);
        Ok(())
    }

    /// A connection between the same ports as one that is closed.
    #[cold]
    #[inline(never)]
    fn begin_again(&self, found: &Found, flow: &Flow, address: &Address) -> Result<(), DropReason> {
        let zone = &self.policy.zone;
        if !self.ask(flow)? {
            return Ok(());
        }
        if !zone.has_room(Phase::SynSent) {
            zone.note_refused();
            return Err(self.over_limit());
        }
        let entry = self.new_entry(Phase::SynSent, address);
        if let Some((before, after)) = self.connections.change(found, |_| entry) {
            zone.note_change(before.phase, after.phase);
        }
        Ok(())
    }

    fn new_entry(&self, phase: Phase, address: &Address) -> Entry {
        Entry {
            phase,
            is_low_originator: address.is_from_low,
            direction: self.direction,
            generation: self.policy.generation,
            tick: self.connections.now(),
        }
    }

    /// An ICMP error belongs to the connection whose packet it quotes.
    #[cold]
    #[inline(never)]
    fn decide_error(&self, about: &Flow, own: &Flow) -> Result<(), DropReason> {
        let address = self.address(about);
        let is_its = about.ends.destination == own.ends.destination;
        let is_known = || {
            self.connections
                .find(&address.key, &address.place)
                .is_some()
        };
        match is_its && is_known() {
            true => Ok(()),
            false => self.ask(own).map(|_| ()),
        }
    }

    /// A fragment that is not the first passes if the first one has.
    #[cold]
    #[inline(never)]
    fn decide_later(&self, fragments: &Fragments) -> Result<(), DropReason> {
        let key = fragments.key(self.policy.zone.id());
        let found = self.connections.find(&key, &self.connections.place(&key));
        match found {
            Some(_) => Ok(()),
            None => Err(match self.direction {
                Direction::In => DropReason::FragmentUnknownIn,
                Direction::Out => DropReason::FragmentUnknownOut,
            }),
        }
    }

    /// Remembers that the first fragment of a datagram has passed.
    #[cold]
    #[inline(never)]
    fn note_fragments(&self, fragments: &Fragments) {
        let zone = &self.policy.zone;
        let key = fragments.key(zone.id());
        let (place, now) = (self.connections.place(&key), self.connections.now());
        if let Some(found) = self.connections.find(&key, &place) {
            self.connections
                .change(&found, |entry| Entry { tick: now, ..entry });
            return;
        }
        let entry = Entry {
            phase: Phase::Fragments,
            is_low_originator: true,
            direction: self.direction,
            generation: self.policy.generation,
            tick: now,
        };
        if zone.has_room(Phase::Fragments) && self.connections.insert(&key, &place, &entry) {
            zone.note_new(Phase::Fragments);
        }
    }
}
