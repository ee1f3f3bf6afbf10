//! Decides whether a packet from or to one guest passes.

use crosspoint_frame::tsc;
use crosspoint_packet::DropReason;

use crate::groups::GroupPolicy;
use crate::groups::accounting::Accounting;
use crate::groups::connections::{Connections, Found, Place};
use crate::groups::key::Key;
use crate::groups::links::LinkFrame;
use crate::groups::migrate::first_question;
use crate::groups::numbers::{SYN, TCP};
use crate::groups::packet::{Flow, Fragments, Packet};
use crate::groups::recent::{By, Stamp};
use crate::groups::rules::{Direction, Question};
use crate::groups::state::{Entry, Phase, State};

/// What decides: the guest's rules, the connections, and the direction of the packets.
#[derive(Clone, Copy)]
pub(super) struct Judge<'v> {
    pub(super) policy: &'v GroupPolicy,
    pub(super) connections: &'v Connections,
    pub(super) direction: Direction,
    pub(super) worker: usize,
    /// Whether many connections are in their second bucket.
    pub(super) is_dense: bool,
}

/// By what a packet passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// By a connection, or by a stateful rule.
    InConnection,
    /// By the connection in this slot, which has this state now; an equal packet would not change it.
    Unchanged { slot: u32, state: State },
    /// By this stateless rule, which counts its packets.
    Stateless(usize),
}

/// A packet's connection: its key, whether the packet comes from its lower end, and where it may be in the table.
#[derive(Clone, Copy, Default)]
pub(super) struct Address {
    pub(super) key: Key,
    pub(super) place: Place,
    pub(super) is_from_low: bool,
}

impl Judge<'_> {
    /// Whether packets may belong to connections: with stateless rules alone there are none, but for those that are kept.
    #[inline(always)]
    pub(super) fn tracks(&self) -> bool {
        self.policy.tracks
    }

    /// Computes the address of a packet's connection.
    pub(super) fn address(&self, flow: &Flow) -> Address {
        let mut address = Address::default();
        self.set_address(flow, &mut address);
        address
    }

    /// The same, in place.
    #[inline(always)]
    pub(super) fn set_address(&self, flow: &Flow, address: &mut Address) {
        let at = (flow.vlan, self.policy.zone.id());
        address.is_from_low = address.key.set(&flow.ends, flow.protocol, at);
        address.place = self.connections.place(&address.key);
    }

    /// Prefetches where the connection may be.
    #[inline(always)]
    pub(super) fn prefetch(&self, address: &Address) {
        self.connections.prefetch(&address.place, self.is_dense);
    }

    /// Prefetches the key of the connection, once that is done.
    #[inline(always)]
    pub(super) fn prefetch_key(&self, address: &mut Address) {
        self.connections
            .prefetch_key(&mut address.place, self.is_dense);
    }

    /// Returns whether a packet passes, or why it does not.
    #[inline(never)]
    pub(super) fn decide(&self, packet: &Packet) -> Result<(), DropReason> {
        let first_of = match packet {
            Packet::Exempt => return Ok(()),
            Packet::Link(frame) => return self.decide_link(frame),
            Packet::Other => return Err(self.denied()),
            Packet::Later(fragments) => return self.decide_later(fragments),
            // The part of a client that the guest is.
            Packet::Dhcp {
                to_server,
                first_of,
                ..
            } if *to_server == (self.direction == Direction::Out) => first_of,
            Packet::Dhcp { flow, first_of, .. } | Packet::Flow(flow, first_of) => {
                self.decide_flow(flow, &self.address(flow)).map(|_| ())?;
                first_of
            }
            Packet::Error {
                about,
                own,
                first_of,
            } => {
                self.decide_error(about, own)?;
                first_of
            }
        };
        if let Some(fragments) = first_of {
            self.note_fragments(fragments);
        }
        Ok(())
    }

    /// A frame that is not IP: it belongs to no connection.
    #[cold]
    #[inline(never)]
    fn decide_link(&self, frame: &LinkFrame) -> Result<(), DropReason> {
        let rules = &self.policy.rules;
        let rule = rules.allows_link(self.direction, frame);
        let rule = rule.ok_or_else(|| self.denied())?;
        rules.count(rule, self.worker);
        Ok(())
    }

    /// The same for a packet that is no fragment and nothing special.
    #[inline(always)]
    pub(super) fn decide_flow(&self, flow: &Flow, address: &Address) -> Result<Passed, DropReason> {
        if !flow.is_tracked || !self.tracks() {
            return self.ask(flow);
        }
        match self.connections.find(&address.key, &address.place) {
            Some(found) => self.known(&found, flow, address),
            None => self.begin(flow, address),
        }
    }

    /// The rules and the direction, until the rules change.
    #[inline(always)]
    pub(super) fn stamp(&self) -> Stamp {
        let is_out = self.direction == Direction::Out;
        Stamp(self.policy.number << 1 | u32::from(is_out))
    }

    /// By what a plain packet that is equal to one that passed so passes too. `None` if that must be decided again.
    #[inline(always)]
    pub(super) fn by(&self, passed: Passed) -> Option<By> {
        match passed {
            Passed::Unchanged { slot, state } => Some(By::Connection {
                slot,
                state: state.0,
            }),
            // A connection that begins later would have to see the packets.
            Passed::Stateless(rule)
                if !self.tracks() && !self.policy.rules.compares_mac(self.direction) =>
            {
                Some(By::Rule(rule as u32))
            }
            Passed::Stateless(_) | Passed::InConnection => None,
        }
    }

    /// Whether a verdict may still hold: that by a connection holds in the second of its last packet.
    #[inline(always)]
    pub(super) fn is_current(&self, by: By) -> bool {
        match by {
            By::Rule(_) => true,
            By::Connection { state, .. } => State(state).tick() == self.connections.now(),
        }
    }

    /// Prefetches what [`passes_by`](Self::passes_by) reads.
    #[inline(always)]
    pub(super) fn prefetch_by(&self, by: By) {
        if let By::Connection { slot, .. } = by {
            self.connections.prefetch_state(slot);
        }
    }

    /// Passes a packet that is equal to an earlier one. `false` if that must be decided again.
    #[inline(always)]
    pub(super) fn passes_by(&self, by: By) -> bool {
        match by {
            By::Rule(rule) => {
                self.policy.rules.count(rule as usize, self.worker);
                true
            }
            By::Connection { slot, state } => self.connections.has_state(slot, State(state)),
        }
    }

    /// Passes a packet that is equal, in all that is decided on, to the one before, which passed.
    #[inline(always)]
    pub(super) fn pass_again(&self, before: Passed) {
        if let Passed::Stateless(rule) = before {
            self.policy.rules.count(rule, self.worker);
        }
    }

    pub(super) fn denied(&self) -> DropReason {
        match self.direction {
            Direction::In => DropReason::GroupDeniedIn,
            Direction::Out => DropReason::GroupDeniedOut,
        }
    }

    fn over_limit(&self) -> DropReason {
        self.policy.zone.note_refused();
        match self.direction {
            Direction::In => DropReason::ConnectionLimitIn,
            Direction::Out => DropReason::ConnectionLimitOut,
        }
    }

    /// Returns when a connection begins, cycles, if a limit has to know it and has room for it.
    #[inline(always)]
    pub(super) fn time_to_begin(&self) -> Result<Option<u64>, DropReason> {
        let rate = self.policy.zone.rate();
        if !rate.is_limited() {
            return Ok(None);
        }
        let now = tsc();
        match rate.has_room(self.direction, now) {
            true => Ok(Some(now)),
            false => Err(self.over_rate()),
        }
    }

    pub(super) fn over_rate(&self) -> DropReason {
        match self.direction {
            Direction::In => DropReason::ConnectionRateIn,
            Direction::Out => DropReason::ConnectionRateOut,
        }
    }

    /// Counts that a connection has begun. `now`: see [`time_to_begin`](Self::time_to_begin).
    fn note_begun(&self, now: Option<u64>) {
        let zone = &self.policy.zone;
        zone.note_created();
        if let Some(now) = now {
            zone.rate().pay(self.direction, now);
        }
    }

    /// A packet of a connection that is known.
    #[inline(always)]
    fn known(&self, found: &Found, flow: &Flow, address: &Address) -> Result<Passed, DropReason> {
        let (entry, policy) = (found.entry, self.policy);
        if (entry.generation != policy.generation && !policy.keeps) || entry.phase == Phase::Revoked
        {
            self.compare_again(found, flow, address);
            let now = self.connections.find(&address.key, &address.place);
            let Some(now) = now else {
                return self.begin(flow, address);
            };
            return match now.entry.phase {
                Phase::Revoked => self
                    .revoked(&now, flow, address)
                    .map(|()| Passed::InConnection),
                _ => self.go_on(&now, flow, address),
            };
        }
        self.go_on(found, flow, address)
    }

    /// A packet of a connection that the rules allow.
    #[inline(always)]
    fn go_on(&self, found: &Found, flow: &Flow, address: &Address) -> Result<Passed, DropReason> {
        let entry = found.entry;
        let is_original = address.is_from_low == entry.is_low_originator;
        if !self.fits_direction(&entry, is_original) {
            return self.decide_invalid(flow);
        }
        if flow.flags & SYN != 0 {
            if entry.phase.is_begun_again(flow.flags) {
                let begun = self.begin_again(found, flow, address);
                return begun.map(|()| Passed::InConnection);
            }
            if entry.phase.is_syn_of_responder(is_original, flow.flags) {
                return self.ask(flow).map(|_| Passed::InConnection);
            }
        }
        let now = self.connections.now();
        let changed = self.connections.change(found, |entry| Entry {
            phase: entry.phase.after(is_original, flow.flags),
            tick: now,
            ..entry
        });
        let Some((before, after)) = changed else {
            return Ok(Passed::InConnection);
        };
        if before.phase != after.phase {
            self.policy.zone.note_change(&before, &after);
        }
        // A SYN may begin another connection.
        let is_settled = flow.flags & SYN == 0
            && after.phase.after(is_original, flow.flags) == after.phase
            && after.phase != Phase::Revoked;
        Ok(match is_settled {
            true => Passed::Unchanged {
                slot: found.slot,
                state: found.state.with(&after),
            },
            false => Passed::InConnection,
        })
    }

    /// Whether a packet of this side can belong to a connection: of one that a front end has made up
    /// ([`migrate`](crate::groups::migrate)), it may have called the guest the other side.
    #[inline(always)]
    pub(super) fn fits_direction(&self, entry: &Entry, is_original: bool) -> bool {
        !entry.phase.is_arrived() || is_original == (entry.direction == self.direction)
    }

    /// Compares a connection with changed rules.
    #[cold]
    #[inline(never)]
    fn compare_again(&self, found: &Found, flow: &Flow, address: &Address) {
        let is_allowed = self.is_still_allowed(&found.entry, flow, address);
        let generation = self.policy.generation;
        let phase_of = |entry: &Entry| match (is_allowed, entry.phase, address.key.protocol()) {
            (false, ..) => Phase::Revoked,
            (true, Phase::Revoked, TCP) => Phase::Adopted,
            (true, Phase::Revoked, _) => Phase::OneWay,
            (true, phase, _) => phase,
        };
        let changed = self.connections.change(found, |entry| Entry {
            phase: phase_of(&entry),
            generation,
            ..entry
        });
        if let Some((before, after)) = changed {
            self.policy.zone.note_change(&before, &after);
        }
    }

    /// Whether the rules of now allow the first packet of the connection that `flow` is a packet of. That packet's MAC address
    /// and flags are not known any more: the other side's address is taken as it is in `flow`, and flags are not compared.
    pub(super) fn is_still_allowed(&self, entry: &Entry, flow: &Flow, address: &Address) -> bool {
        let low = address.key.ends();
        let ends = match entry.is_low_originator {
            true => low,
            false => low.turned(),
        };
        let question = Question {
            mac: flow.mac,
            vlan: flow.vlan,
            ..first_question(&ends, address.key.protocol(), entry.direction)
        };
        self.policy.rules.allows(&question).is_some()
    }

    /// A packet of a connection that changed rules do not allow. Both sides' packets are dropped: the other direction may be
    /// allowed, and the connection would go on as if that side had begun it. A SYN begins another one.
    #[cold]
    #[inline(never)]
    fn revoked(&self, found: &Found, flow: &Flow, address: &Address) -> Result<(), DropReason> {
        if found.entry.phase.is_begun_again(flow.flags) {
            return self.begin_again(found, flow, address);
        }
        let now = self.connections.now();
        self.connections
            .change(found, |entry| Entry { tick: now, ..entry });
        Err(self.denied())
    }

    pub(super) fn question(&self, flow: &Flow) -> Question {
        let remote = match self.direction {
            Direction::Out => flow.ends.destination,
            Direction::In => flow.ends.source,
        };
        Question {
            direction: self.direction,
            remote,
            protocol: flow.protocol,
            service: flow.service,
            mac: flow.mac,
            vlan: flow.vlan,
            flags: Some(flow.flags),
        }
    }

    /// Asks the rules about a packet that belongs to no connection, and counts what one of them allows.
    pub(super) fn ask(&self, flow: &Flow) -> Result<Passed, DropReason> {
        let (rule, passed) = self.ask_uncounted(flow)?;
        self.policy.rules.count(rule, self.worker);
        Ok(passed)
    }

    /// The same for a packet that may be refused for another reason. Returns the rule to be counted if it is not.
    fn ask_uncounted(&self, flow: &Flow) -> Result<(usize, Passed), DropReason> {
        let rules = &self.policy.rules;
        let rule = rules
            .allows(&self.question(flow))
            .ok_or_else(|| self.denied())?;
        Ok(match rules.is_stateful(rule) {
            true => (rule, Passed::InConnection),
            false => (rule, Passed::Stateless(rule)),
        })
    }

    /// A packet that belongs to no connection.
    #[inline(never)]
    fn begin(&self, flow: &Flow, address: &Address) -> Result<Passed, DropReason> {
        let (rule, passed) = match self.ask_uncounted(flow) {
            Ok(allowed) => allowed,
            Err(_) if self.is_of_arrived(flow) => return Ok(Passed::InConnection),
            Err(reason) => return Err(reason),
        };
        let phase = Phase::first(flow.protocol, flow.flags);
        let (rules, zone) = (&self.policy.rules, &self.policy.zone);
        // A reset of a connection that is not known begins none.
        let is_stateful = passed == Passed::InConnection;
        if !is_stateful || !flow.begins || phase == Phase::Closed {
            rules.count(rule, self.worker);
            return Ok(passed);
        }
        let now = self
            .time_to_begin()
            .inspect_err(|_| zone.rate().note_refused())?;
        let entry = self.new_entry(phase, address);
        if !zone.reserve(&entry) {
            return Err(self.over_limit());
        }
        let inserted = self
            .connections
            .insert(&address.key, &address.place, &entry);
        let Some(slot) = inserted else {
            zone.note_gone(&entry);
            return Err(self.over_limit());
        };
        rules.count(rule, self.worker);
        self.note_begun(now);
        if let Some(accounting) = self.connections.accounting() {
            accounting.begun(self.worker, slot, &address.key, &entry);
        }
        Ok(passed)
    }

    /// A connection between the same ports as one that is closed, or not allowed any more.
    #[cold]
    #[inline(never)]
    fn begin_again(&self, found: &Found, flow: &Flow, address: &Address) -> Result<(), DropReason> {
        let (rules, zone) = (&self.policy.rules, &self.policy.zone);
        let (rule, passed) = self.ask_uncounted(flow)?;
        let new = self.new_entry(Phase::SynSent, address);
        if passed != Passed::InConnection {
            rules.count(rule, self.worker);
            return Ok(());
        }
        let now = self
            .time_to_begin()
            .inspect_err(|_| zone.rate().note_refused())?;
        // For the time of the change it counts twice.
        if !zone.reserve(&new) {
            return Err(self.over_limit());
        }
        rules.count(rule, self.worker);
        let changed = self.connections.change(found, |now| match now.phase {
            Phase::Closed | Phase::Revoked => new,
            // Another worker was faster.
            _ => now,
        });
        match changed {
            Some((before, after)) if after == new => {
                zone.note_gone(&before);
                self.note_begun(now);
                let entries = (&before, &after);
                self.connections
                    .account_again(self.worker, found.slot, &address.key, entries);
            }
            _ => zone.note_gone(&new),
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

    /// An ICMP error belongs to the connection whose packet it quotes: it goes to that packet's sender.
    #[cold]
    #[inline(never)]
    fn decide_error(&self, about: &Flow, own: &Flow) -> Result<(), DropReason> {
        let address = self.address(about);
        let is_its = about.ends.destination == own.ends.destination;
        let is_known = || {
            let found = self.connections.find(&address.key, &address.place);
            found.is_some_and(|found| {
                let is_stale = found.entry.generation != self.policy.generation;
                let is_allowed =
                    || self.policy.keeps || self.is_still_allowed(&found.entry, about, &address);
                found.entry.phase != Phase::Revoked && (!is_stale || is_allowed())
            })
        };
        match is_its && is_known() {
            true => Ok(()),
            false => self.ask(own).map(|_| ()),
        }
    }

    /// Returns the slot of a packet's connection, and the side that the packet comes from: 0 for the originator.
    pub(super) fn slot_of(&self, address: &Address) -> Option<(u32, usize)> {
        let found = self.connections.find(&address.key, &address.place)?;
        let is_original = address.is_from_low == found.entry.is_low_originator;
        Some((found.slot, usize::from(!is_original)))
    }

    /// Notes for a collector that a packet was dropped that would have begun a connection.
    pub(super) fn note_denied(
        &self,
        accounting: &Accounting,
        flow: &Flow,
        size: (u32, u64),
        now: u64,
    ) {
        let address = self.address(flow);
        if self.slot_of(&address).is_none()
            && accounting.has_room_for_denied(self.worker, self.direction, now)
        {
            let entry = self.new_entry(Phase::first(flow.protocol, flow.flags), &address);
            accounting.denied(self.worker, (&address.key, &entry), size, now);
        }
    }

    /// A fragment that is not the first passes if the first one has.
    #[cold]
    #[inline(never)]
    pub(super) fn decide_later(&self, fragments: &Fragments) -> Result<(), DropReason> {
        let key = fragments.key(self.policy.zone.id());
        let found = self.connections.find(&key, &self.connections.place(&key));
        match (found, self.direction) {
            (Some(_), _) => Ok(()),
            (None, Direction::In) => Err(DropReason::FragmentUnknownIn),
            (None, Direction::Out) => Err(DropReason::FragmentUnknownOut),
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
        // Without a note, later fragments are dropped and counted by name.
        if zone.reserve(&entry) && self.connections.insert(&key, &place, &entry).is_none() {
            zone.note_gone(&entry);
        }
    }
}
