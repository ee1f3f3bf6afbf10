//! Explains a frame by the switch's state: what happened, or would happen, to it, stage by stage.

use std::time::Duration;

use crosspoint_engine::bridge::fdb::Learned;
use crosspoint_engine::groups::Judgement;
use crosspoint_engine::observe::explain::Destination;
use crosspoint_engine::observe::explain::EgressDecision;
use crosspoint_engine::observe::explain::Explained;
use crosspoint_engine::observe::explain::Large;
use crosspoint_engine::observe::explain::Packet;
use crosspoint_engine::observe::explain::explain;
use crosspoint_engine::observe::tap::Fate;
use crosspoint_engine::observe::tap::Slot;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_frame::{self as frame, HeaderOp};
use crosspoint_model::capture::decode;
use crosspoint_model::trace::{Copy, Cut, Goal, Link, Outcome, Seen, Source, Trace};
use crosspoint_packet::DropReason;

use super::records::offload;

/// The switch at one moment, by which frames are explained.
pub(crate) struct Scene<'v> {
    pub(crate) view: &'v Snapshot,
    /// The forwarding database's clock, and the length of its tick.
    pub(crate) tick: u8,
    pub(crate) tick_length: Duration,
}

impl Scene<'_> {
    fn name(&self, port: u16) -> String {
        let port_view = self.view.port(port);
        port_view.map_or_else(|| format!("#{port}"), |port| port.name.to_string())
    }

    fn seconds(&self, ticks: u8) -> u64 {
        u64::from(ticks) * self.tick_length.as_secs()
    }

    /// Explains what would happen to a made-up frame that comes in on a port.
    pub(crate) fn made_up(&self, ingress: u16, bytes: &[u8], vlans: &str) -> Trace {
        let specimen = Packet {
            ingress,
            bytes,
            len: bytes.len() as u32,
            offload: frame::Offload::default(),
            fate: None,
        };
        self.trace(specimen, vlans)
    }

    /// Explains what happened to a frame that a tap recorded, and to its copies.
    pub(crate) fn seen(
        &self,
        slot: &Slot,
        time_ns: u64,
        copies: &[Box<Slot>],
        vlans: &str,
    ) -> Trace {
        let specimen = Packet {
            ingress: slot.port,
            bytes: &slot.bytes,
            len: slot.len,
            offload: slot.offload,
            fate: Some(slot.fate),
        };
        let mut trace = self.trace(specimen, vlans);
        trace.seen = Some(Seen {
            time_ns,
            queue: slot.queue,
            worker: slot.worker,
        });
        for copy in &mut trace.copies {
            copy.outcome = copy.tag.is_some().then(Outcome::default);
        }
        for slot in copies {
            self.note(&mut trace.copies, slot);
        }
        trace
    }

    /// Adds a recorded copy. If the ports have changed since, the copy is listed without further details.
    fn note(&self, copies: &mut Vec<Copy>, slot: &Slot) {
        let name = self.name(slot.port);
        let is_it = |copy: &&mut Copy| copy.port == name && copy.queue == slot.queue;
        let outcome = match copies.iter_mut().find(is_it) {
            Some(copy) => copy.outcome.get_or_insert_default(),
            None => {
                copies.push(Copy {
                    port: name,
                    tag: None,
                    queue: slot.queue,
                    queues: 0,
                    hash: 0,
                    large: None,
                    groups: None,
                    dropped: None,
                    outcome: None,
                });
                let Some(copy) = copies.last_mut() else {
                    return;
                };
                copy.outcome.get_or_insert_default()
            }
        };
        match slot.fate {
            Fate::Dropped(reason) => {
                *outcome.dropped.entry(label(reason)).or_default() += 1;
            }
            _ => outcome.delivered += 1,
        }
    }

    fn trace(&self, specimen: Packet<'_>, vlans: &str) -> Trace {
        let explained = explain(specimen, self.view, self.tick);
        let Explained { link, vlan, .. } = explained;
        let bridge = self.view.other_bridge(explained.bridge);
        let hex = |text: String, byte: &u8| text + &format!("{byte:02x}");
        Trace {
            port: self.name(specimen.ingress),
            seen: None,
            len: specimen.len,
            summary: decode(specimen.bytes, specimen.len, false),
            bytes: specimen.bytes.iter().fold(String::new(), hex),
            offload: offload(&specimen.offload),
            link: link.map(|link| Link {
                destination: link.dst.to_string(),
                source: link.src.to_string(),
                tag: link.tci.map(|tci| (tci & 0x0fff, (tci >> 13) as u8)),
                stacked: link.stacked,
            }),
            vlans: vlans.to_owned(),
            vlan,
            bridge: bridge.map(|bridge| bridge.name.to_string()),
            groups: explained
                .judgement
                .map(|judgement| self.judgement(specimen.ingress, judgement)),
            source: explained.source.map(|source| self.source(source)),
            destination: explained.destination.map(|goal| self.goal(goal)),
            dropped: explained.dropped.map(label),
            copies: explained
                .copies
                .iter()
                .map(|copy| self.copy(copy))
                .collect(),
        }
    }

    /// What the groups of a port decide, and by what.
    fn judgement(&self, port: u16, judgement: Judgement) -> String {
        let policy = self.view.port(port).and_then(|port| port.groups.as_deref());
        match judgement {
            Judgement::Exempt => "pass it in any case".to_owned(),
            Judgement::Connection(phase) => {
                format!("pass it with its connection ({})", phase.label())
            }
            Judgement::Arrived => {
                "pass it: the guest has just arrived, and the rules allow the other direction"
                    .to_owned()
            }
            Judgement::Fragment => "pass it with the first fragment of its datagram".to_owned(),
            Judgement::Rule(rule) => {
                let name = policy.map_or("", |policy| policy.rules().name(rule));
                format!("pass it by the rule: {name}")
            }
            Judgement::Denied(DropReason::FragmentUnknownIn | DropReason::FragmentUnknownOut) => {
                "have not passed the first fragment of its datagram".to_owned()
            }
            Judgement::Denied(DropReason::ConnectionRateIn | DropReason::ConnectionRateOut) => {
                "pass it, but more connections begin in a second than the port's `connections_rate` allows"
                    .to_owned()
            }
            Judgement::Denied(_) => {
                "have no rule for it, and know no connection that it belongs to".to_owned()
            }
        }
    }

    fn source(&self, (learned, age): (Learned, Option<u8>)) -> Source {
        let (word, from) = match learned {
            Learned::Known => ("known", None),
            Learned::New => ("new", None),
            Learned::Moved(from) => ("moved", Some(self.name(from))),
            Learned::Refused => ("refused", None),
            Learned::Full => ("full", None),
            Learned::Damped(home) => ("damped", Some(self.name(home))),
            Learned::NotAllowed => ("not_allowed", None),
        };
        Source {
            learned: word.to_owned(),
            from,
            age_s: age.map(|age| self.seconds(age)),
        }
    }

    fn goal(&self, goal: Destination) -> Goal {
        match goal {
            Destination::Port(port, age) => Goal::Port {
                name: self.name(port),
                age_s: self.seconds(age),
            },
            Destination::BoundPort(port) => Goal::BoundPort {
                name: self.name(port),
            },
            Destination::Group => Goal::Group,
            Destination::Unknown => Goal::Unknown,
            Destination::LinkLocal => Goal::LinkLocal,
        }
    }

    fn copy(&self, copy: &EgressDecision) -> Copy {
        let tag = copy.tag.map(|tag| match tag {
            HeaderOp::Keep => "keep",
            HeaderOp::Push => "push",
            HeaderOp::Pop => "pop",
            HeaderOp::PushBridge => "push_bridge",
            HeaderOp::PushBoth => "push_both",
            HeaderOp::PopBoth => "pop_both",
        });
        Copy {
            port: self.name(copy.port),
            tag: tag.map(str::to_owned),
            queue: copy.queue,
            queues: copy.queues,
            hash: copy.hash,
            large: match copy.large {
                Large::No => None,
                Large::Whole => Some(Cut::Whole),
                Large::Cut(count) => Some(Cut::Segments(count)),
                Large::Uncuttable => Some(Cut::Uncuttable),
                Large::Interface => Some(Cut::Interface),
            },
            groups: copy
                .judgement
                .map(|judgement| self.judgement(copy.port, judgement)),
            dropped: copy.dropped.map(label),
            outcome: None,
        }
    }
}

fn label(reason: DropReason) -> String {
    reason.label().to_owned()
}
