//! Connections that travel with a guest to another switch.
//!
//! What arrives comes through the guest's front end, which may be hostile: a connection that it makes up must pass nothing that
//! the rules forbid. So the rules are asked when it arrives, also where a change of rules keeps connections. And what others
//! began is taken only if it is TCP: no segment of a guest begins a connection in it, since a SYN is asked about anew. A
//! datagram of another protocol begins one, and the guest could send it to every address that may send to the guest; the
//! next packet of the other side begins such a connection anew. So does the SYN that the sender repeats if a connection was
//! half-open: in one that is made up, a SYN of the other side would pass. And until a packet has passed, its side must be the one
//! that sends in its direction.

use super::GroupPolicy;
use super::connections::Connections;
use super::export::{read, write};
use super::key::{Ends, Key};
use super::numbers::{ECHO, ECHO_V6, ICMP, ICMPV6, TCP};
use super::rules::{Direction, Question, RuleTable};
use super::state::{Entry, Phase};
use super::zone::Zone;

/// What was done with the connections of a guest that has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// They go on.
    pub taken: usize,
    /// The rules here do not allow them.
    pub denied: usize,
    /// They were idle for too long, are beyond the port's quota, are no connections, or begin anew.
    pub left: usize,
}

impl Connections {
    /// Writes the connections of a zone, [`EXPORTED_LEN`](super::EXPORTED_LEN) bytes each, `max` of them at most. What is
    /// half-open or ends, what rules do not allow any more, and fragments stay here.
    pub fn export_zone(&self, zone: u32, max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let now = self.now();
        let slots = 0..self.capacity() as u32;
        let live = slots.filter_map(|slot| self.live_at(slot));
        let own = live.filter(|(state, key)| key.zone() == zone && state.entry().phase.travels());
        for (state, key) in own.take(max) {
            write(&mut bytes, &key, &state.entry(), now);
        }
        bytes
    }

    /// Notes that the guest of a zone has arrived from another switch: for [`ARRIVAL_S`](super::zone::ARRIVAL_S) seconds, segments
    /// of TCP pass if the rules allow them or their other direction, though their connections are not known here.
    pub fn note_arrival(&self, zone: &Zone) {
        zone.note_arrival(self.now());
    }

    /// Adds connections that [`export_zone`](Self::export_zone) of another switch has written, if the port's rules allow
    /// them. Rules that compare MAC addresses allow none of them: the other side's address is not known.
    pub fn arrive(&self, bytes: &[u8], policy: &GroupPolicy) -> Arrived {
        let mut arrived = Arrived::default();
        for bytes in bytes.chunks_exact(super::EXPORTED_LEN) {
            let Some((mut key, entry, idle)) = read(bytes).filter(can_arrive) else {
                arrived.left += 1;
                continue;
            };
            key.set_zone(policy.zone.id());
            if !is_allowed(&policy.rules, &key, &entry) {
                arrived.denied += 1;
                continue;
            }
            let entry = Entry {
                phase: match key.protocol() {
                    TCP => Phase::Arrived,
                    _ => Phase::ArrivedOther,
                },
                generation: policy.generation,
                ..entry
            };
            match self.put(&key, entry, idle, &policy.zone) {
                Some(()) => arrived.taken += 1,
                None => arrived.left += 1,
            }
        }
        arrived
    }
}

impl Phase {
    /// Whether a connection in this phase goes on at another switch.
    fn travels(self) -> bool {
        let has_ended = matches!(
            self,
            Phase::FinFromOriginator | Phase::FinFromOther | Phase::Closed
        );
        let stays = matches!(self, Phase::Revoked | Phase::Fragments);
        !has_ended && !stays && !self.is_half_open()
    }
}

/// Whether a connection is one that may come from another switch.
fn can_arrive((key, entry, _): &(Key, Entry, u32)) -> bool {
    let is_tcp = key.protocol() == TCP;
    entry.phase.travels() && key.is_flow() && (is_tcp || entry.direction == Direction::Out)
}

/// Whether a stateful rule allows the first packet of a connection.
fn is_allowed(rules: &RuleTable, key: &Key, entry: &Entry) -> bool {
    let low = key.ends();
    let ends = match entry.is_low_originator {
        true => low,
        false => low.turned(),
    };
    let question = first_question(&ends, key.protocol(), entry.direction);
    let question = Question {
        vlan: key.vlan(),
        ..question
    };
    let rule = rules.allows(&question);
    rule.is_some_and(|rule| rules.is_stateful(rule))
}

/// What rules are asked about a connection whose first packet has these ends. That packet's MAC address, VLAN and flags are not
/// known any more, and flags are not compared.
pub(super) fn first_question(ends: &Ends, protocol: u8, direction: Direction) -> Question {
    Question {
        direction,
        remote: match direction {
            Direction::Out => ends.destination,
            Direction::In => ends.source,
        },
        protocol,
        service: match protocol {
            ICMP => ECHO,
            ICMPV6 => ECHO_V6,
            _ => ends.destination_port,
        },
        mac: Default::default(),
        vlan: 0,
        flags: None,
    }
}
