//! The state of a connection as one word, and how packets change it.
//!
//! The states are those of the kernel's connection tracking, without sequence numbers: windows would bounce a cache line
//! between workers for each packet. A connection counts as established only after a packet of its originator answered
//! that of the other side: a server that answers forged requests establishes nothing.

use super::numbers::{ACK, FIN, RST, SYN, TCP};
use super::rules::Direction;

/// Whether a slot is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    Free,
    /// A worker fills it.
    Busy,
    Live,
}

/// Phase of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// TCP: the originator has sent a SYN.
    SynSent,
    /// TCP: the other side has answered it.
    SynReceived,
    /// TCP: both sides have sent.
    Established,
    /// TCP: the originator has sent a FIN, or the other side has.
    FinFromOriginator,
    /// The same of the other side.
    FinFromOther,
    /// TCP: both have, or one has sent a RST.
    Closed,
    /// TCP that began before this switch saw it: established as soon as the other side sends.
    Adopted,
    /// Other protocols: only the originator has sent.
    OneWay,
    /// Other protocols: the other side has answered.
    Answered,
    /// Other protocols: and the originator has sent again.
    TwoWay,
    /// Changed rules do not allow it any more: packets of both sides are dropped until it has been idle.
    Revoked,
    /// The first fragment of a datagram has passed.
    Fragments,
    /// TCP that came from another switch with its guest; established with its next packet.
    Arrived,
    /// The same of other protocols.
    ArrivedOther,
}

const PHASES: [Phase; 14] = [
    Phase::SynSent,
    Phase::SynReceived,
    Phase::Established,
    Phase::FinFromOriginator,
    Phase::FinFromOther,
    Phase::Closed,
    Phase::Adopted,
    Phase::OneWay,
    Phase::Answered,
    Phase::TwoWay,
    Phase::Revoked,
    Phase::Fragments,
    Phase::Arrived,
    Phase::ArrivedOther,
];

impl Phase {
    /// Returns its name, as shown to operators.
    pub fn label(self) -> &'static str {
        match self {
            Phase::SynSent => "syn_sent",
            Phase::SynReceived => "syn_received",
            Phase::Established => "established",
            Phase::FinFromOriginator | Phase::FinFromOther => "closing",
            Phase::Closed => "closed",
            Phase::Adopted => "adopted",
            Phase::OneWay => "one_way",
            Phase::Answered => "answered",
            Phase::TwoWay => "two_way",
            Phase::Revoked => "revoked",
            Phase::Fragments => "fragments",
            Phase::Arrived | Phase::ArrivedOther => "arrived",
        }
    }

    /// Its number in words and in texts for other processes.
    pub(super) fn number(self) -> u8 {
        let number = PHASES.iter().position(|phase| *phase == self);
        number.unwrap_or(0) as u8
    }

    /// The phase with a number.
    pub(super) fn of_number(number: u8) -> Option<Phase> {
        PHASES.get(usize::from(number)).copied()
    }

    /// Returns whether it is a TCP connection that is not yet established.
    pub fn is_half_open(self) -> bool {
        matches!(self, Phase::SynSent | Phase::SynReceived)
    }

    /// The phase after the first packet of a connection.
    pub(super) fn first(protocol: u8, flags: u8) -> Phase {
        match (protocol, flags & (SYN | ACK | FIN | RST)) {
            (TCP, SYN) => Phase::SynSent,
            (TCP, flags) if flags & RST != 0 => Phase::Closed,
            (TCP, _) => Phase::Adopted,
            _ => Phase::OneWay,
        }
    }

    /// The phase after another packet, from the originator or from the other side.
    #[inline(always)]
    pub(super) fn after(self, is_original: bool, flags: u8) -> Phase {
        match self {
            Phase::OneWay if !is_original => Phase::Answered,
            Phase::Answered if is_original => Phase::TwoWay,
            Phase::OneWay | Phase::Answered | Phase::TwoWay => self,
            Phase::ArrivedOther => Phase::TwoWay,
            Phase::Fragments | Phase::Revoked => self,
            _ => self.after_segment(is_original, flags),
        }
    }

    fn after_segment(self, is_original: bool, flags: u8) -> Phase {
        let has = |flag: u8| flags & flag != 0;
        if has(RST) {
            return Phase::Closed;
        }
        if has(FIN) {
            return match self {
                Phase::FinFromOriginator if !is_original => Phase::Closed,
                Phase::FinFromOther if is_original => Phase::Closed,
                Phase::Closed => Phase::Closed,
                Phase::FinFromOriginator | Phase::FinFromOther => self,
                _ if is_original => Phase::FinFromOriginator,
                _ => Phase::FinFromOther,
            };
        }
        match self {
            // Both sides open at once: each answers the other's SYN with a SYN and ACK.
            Phase::SynSent if !is_original && has(SYN) && !has(ACK) => Phase::SynSent,
            Phase::SynSent if !is_original && has(SYN) => Phase::SynReceived,
            // A side that answers without a SYN has the connection from before.
            Phase::SynSent if !is_original && has(ACK) => Phase::Established,
            Phase::SynReceived if is_original && has(ACK) => Phase::Established,
            Phase::Adopted if !is_original && has(ACK) => Phase::Established,
            Phase::Arrived => Phase::Established,
            _ => self,
        }
    }

    /// Whether only its originator has sent.
    pub(super) fn is_unanswered(self) -> bool {
        self.is_half_open() || matches!(self, Phase::Adopted | Phase::OneWay)
    }

    /// Whether it came from another switch, and no packet of it has passed here.
    pub(super) fn is_arrived(self) -> bool {
        matches!(self, Phase::Arrived | Phase::ArrivedOther)
    }

    /// Whether this is a SYN of the side that did not open the connection, after that side has answered: it would open a
    /// connection of its own. The kernel calls it invalid.
    pub(super) fn is_syn_of_responder(self, is_original: bool, flags: u8) -> bool {
        let is_syn = flags & (SYN | ACK | RST | FIN) == SYN;
        is_syn && !is_original && self != Phase::SynSent && !self.is_begun_again(flags)
    }

    /// Whether a segment with these flags begins another connection between the same ports (RFC 9293, 3.6.1).
    pub(super) fn is_begun_again(self, flags: u8) -> bool {
        matches!(self, Phase::Closed | Phase::Revoked) && flags & (SYN | ACK | RST | FIN) == SYN
    }
}

/// The word. From the lowest bit: slot 2, sequence 8, phase 4, two directions 2, generation 8, tick 20, tag 20.
///
/// The sequence number changes when the slot is used for another connection: a reader that has compared a connection's key
/// knows by it that the key was not replaced meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(pub(super) u64);

const SEQUENCE_AT: u32 = 2;
const PHASE_AT: u32 = 10;
const ORIGINATOR_AT: u32 = 14;
const DIRECTION_AT: u32 = 15;
const GENERATION_AT: u32 = 16;
const TICK_AT: u32 = 24;
const TAG_AT: u32 = 44;
pub(super) const TICK_MASK: u32 = 0xf_ffff;
pub(super) const TAG_MASK: u32 = 0xf_ffff;

/// What the word says of a connection that is live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) phase: Phase,
    /// Whether its originator is the lower end of its key.
    pub(super) is_low_originator: bool,
    /// Direction of its first packet.
    pub(super) direction: Direction,
    /// Generation of the rules that allowed it.
    pub(super) generation: u8,
    /// When its last packet passed, seconds.
    pub(super) tick: u32,
}

impl State {
    fn field(self, at: u32, mask: u64) -> u64 {
        self.0 >> at & mask
    }

    pub(super) fn slot(self) -> Slot {
        match self.0 & 3 {
            0 => Slot::Free,
            1 => Slot::Busy,
            _ => Slot::Live,
        }
    }

    fn sequence(self) -> u64 {
        self.field(SEQUENCE_AT, 0xff)
    }

    /// Whether it is the same use of the same slot.
    pub(super) fn is_same_use(self, other: State) -> bool {
        self.slot() == other.slot() && self.sequence() == other.sequence()
    }

    #[inline(always)]
    pub(super) fn is_live_with(self, tag: u32) -> bool {
        self.0 & 3 == 2 && self.field(TAG_AT, TAG_MASK.into()) == u64::from(tag)
    }

    pub(super) fn entry(self) -> Entry {
        let phase = self.field(PHASE_AT, 0xf) as usize;
        Entry {
            phase: PHASES.get(phase).copied().unwrap_or(Phase::Closed),
            is_low_originator: self.field(ORIGINATOR_AT, 1) == 1,
            direction: match self.field(DIRECTION_AT, 1) {
                0 => Direction::In,
                _ => Direction::Out,
            },
            generation: self.field(GENERATION_AT, 0xff) as u8,
            tick: self.tick(),
        }
    }

    /// When the connection's last packet passed, seconds.
    #[inline(always)]
    pub(super) fn tick(self) -> u32 {
        self.field(TICK_AT, TICK_MASK.into()) as u32
    }

    /// What changes with each use of the slot and each phase; not 0 while a connection is there.
    pub(super) fn mark(self) -> u16 {
        (self.sequence() << 4 | self.field(PHASE_AT, 0xf)) as u16 | 1 << 15
    }

    /// The slot, free, before its next use.
    pub(super) fn freed(self) -> State {
        State(((self.sequence() + 1) & 0xff) << SEQUENCE_AT)
    }

    /// The slot while it is filled.
    pub(super) fn busy(self) -> State {
        State(self.sequence() << SEQUENCE_AT | 1)
    }

    /// The slot with a connection.
    pub(super) fn live(self, tag: u32, entry: &Entry) -> State {
        let State(word) = self.busy();
        let direction = u64::from(entry.direction == Direction::Out);
        State(
            (word & !3)
                | 2
                | u64::from(entry.phase.number()) << PHASE_AT
                | u64::from(entry.is_low_originator) << ORIGINATOR_AT
                | direction << DIRECTION_AT
                | u64::from(entry.generation) << GENERATION_AT
                | u64::from(entry.tick & TICK_MASK) << TICK_AT
                | u64::from(tag & TAG_MASK) << TAG_AT,
        )
    }

    /// The same connection with another entry.
    pub(super) fn with(self, entry: &Entry) -> State {
        self.live(self.field(TAG_AT, TAG_MASK.into()) as u32, entry)
    }
}

/// Seconds from `tick` to `now`.
pub(super) fn idle(tick: u32, now: u32) -> u32 {
    now.wrapping_sub(tick) & TICK_MASK
}
