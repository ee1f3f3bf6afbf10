//! Packets of a guest that has arrived from another switch, and whose connections are not known here.

use crosspoint_packet::DropReason;

use crate::groups::judge::{Judge, Passed};
use crate::groups::migrate::first_question;
use crate::groups::numbers::{SYN, TCP};
use crate::groups::packet::Flow;
use crate::groups::rules::{Direction, Question};

impl Judge<'_> {
    /// A packet that cannot belong to the connection with its addresses.
    #[cold]
    #[inline(never)]
    pub(super) fn decide_invalid(&self, flow: &Flow) -> Result<Passed, DropReason> {
        match self.ask(flow) {
            Err(reason) if !self.is_of_arrived(flow) => Err(reason),
            _ => Ok(Passed::InConnection),
        }
    }

    /// Whether a packet that the rules deny may be of a connection that a guest which has just arrived brings along, and its
    /// other direction is the one that the rules allow. It begins no connection, so that it cannot use up any: the other side's
    /// next segment does.
    #[cold]
    #[inline(never)]
    pub(super) fn is_of_arrived(&self, flow: &Flow) -> bool {
        let is_segment = flow.protocol == TCP && flow.flags & SYN == 0;
        if !is_segment || !self.policy.zone.has_arrived(self.connections.now()) {
            return false;
        }
        let direction = match self.direction {
            Direction::In => Direction::Out,
            Direction::Out => Direction::In,
        };
        let question = Question {
            mac: flow.mac,
            vlan: flow.vlan,
            ..first_question(&flow.ends.turned(), TCP, direction)
        };
        let rules = &self.policy.rules;
        let rule = rules.allows(&question);
        rule.is_some_and(|rule| rules.is_stateful(rule))
    }
}
