//! What groups would decide on a packet: for `trace`.

use crosspoint_packet::DropReason;

use crate::groups::judge::Judge;
use crate::groups::packet::{Flow, Packet};
use crate::groups::rules::Direction;
use crate::groups::state::Phase;

/// What groups decide on a packet, and by what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It passes without a rule.
    Exempt,
    /// It belongs to a connection in this phase, and passes.
    Connection(Phase),
    /// The guest has just arrived from another switch: it may belong to a connection that the guest brings along, and passes.
    Arrived,
    /// It follows the first fragment of its datagram, and passes.
    Fragment,
    /// This rule of the port's list allows it, and no earlier one.
    Rule(usize),
    /// It is dropped.
    Denied(DropReason),
}

impl Judge<'_> {
    /// Returns what would be decided on a packet now. Nothing is counted, and no connection begins or changes.
    pub(super) fn explain(&self, packet: &Packet) -> Judgement {
        let flow = match packet {
            Packet::Exempt => return Judgement::Exempt,
            Packet::Link(frame) => {
                return match self.policy.rules.allows_link(self.direction, frame) {
                    Some(rule) => Judgement::Rule(rule),
                    None => Judgement::Denied(self.denied()),
                };
            }
            Packet::Other => return Judgement::Denied(self.denied()),
            Packet::Later(fragments) => {
                return match self.decide_later(fragments) {
                    Ok(()) => Judgement::Fragment,
                    Err(reason) => Judgement::Denied(reason),
                };
            }
            Packet::Dhcp { to_server, .. } if *to_server == (self.direction == Direction::Out) => {
                return Judgement::Exempt;
            }
            Packet::Error { about, own, .. } if about.ends.destination == own.ends.destination => {
                match self.phase_of(about) {
                    Some(phase) if phase != Phase::Revoked => return Judgement::Connection(phase),
                    _ => own,
                }
            }
            Packet::Error { own: flow, .. } | Packet::Dhcp { flow, .. } | Packet::Flow(flow, _) => {
                flow
            }
        };
        let phase = self.phase_of(flow);
        let phase = phase.filter(|_| flow.is_tracked && self.tracks());
        match phase {
            Some(Phase::Revoked) => return Judgement::Denied(self.denied()),
            Some(phase) => return Judgement::Connection(phase),
            None => {}
        }
        match self.policy.rules.allows(&self.question(flow)) {
            Some(rule) => self.explain_begin(rule, flow),
            None if flow.is_tracked && self.tracks() && self.is_of_arrived(flow) => {
                Judgement::Arrived
            }
            None => Judgement::Denied(self.denied()),
        }
    }

    /// The same for a packet that a rule allows, and that may begin a connection.
    fn explain_begin(&self, rule: usize, flow: &Flow) -> Judgement {
        let begins = flow.is_tracked && flow.begins && self.policy.rules.is_stateful(rule);
        let begins = begins && Phase::first(flow.protocol, flow.flags) != Phase::Closed;
        match self.time_to_begin() {
            Err(reason) if begins => Judgement::Denied(reason),
            _ => Judgement::Rule(rule),
        }
    }

    /// The phase of a packet's connection, as this packet would find it; `None` if the packet begins another one.
    fn phase_of(&self, flow: &Flow) -> Option<Phase> {
        let address = self.address(flow);
        let entry = self.connections.find(&address.key, &address.place)?.entry;
        let is_stale = entry.generation != self.policy.generation && !self.policy.keeps;
        let phase = match is_stale && !self.is_still_allowed(&entry, flow, &address) {
            true => Phase::Revoked,
            false => entry.phase,
        };
        let is_original = address.is_from_low == entry.is_low_originator;
        let is_other = !self.fits_direction(&entry, is_original)
            || phase.is_begun_again(flow.flags)
            || phase.is_syn_of_responder(is_original, flow.flags);
        (!is_other).then_some(phase)
    }
}
