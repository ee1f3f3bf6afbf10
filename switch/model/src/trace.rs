//! What happened, or would happen, to one frame, stage by stage.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crosspoint_packet::DropReason;
use serde::{Deserialize, Serialize};

use crate::capture::{Offload, time_of_day};

/// A frame, and what happened to it. Stages that it did not reach are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The port that it came in on.
    pub port: String,
    /// Where and when it came in; absent for a made-up frame.
    pub seen: Option<Seen>,
    /// The whole frame's length, bytes.
    pub len: u32,
    /// Its contents, in one line.
    pub summary: String,
    /// Its first bytes, in hexadecimal.
    pub bytes: String,
    /// Offload work that its sender has left to the receiver, if any.
    pub offload: Option<Offload>,
    /// Its link header.
    pub link: Option<Link>,
    /// The VLANs of the port, as in `show ports`.
    pub vlans: String,
    /// The VLAN that it was assigned to; 0 for none.
    pub vlan: Option<u16>,
    /// The bridge that it was assigned to; absent for the default bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What the port's security groups decide on it, if it has groups; absent for a frame that was received before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// The forwarding database's entry for its source.
    pub source: Option<Source>,
    /// The forwarding database's entry for its destination.
    pub destination: Option<Goal>,
    /// Label of the reason for which the frame itself was dropped, if it was.
    pub dropped: Option<String>,
    /// Its copies, and the ports that did not get one.
    pub copies: Vec<Copy>,
}

/// Where and when a frame came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Nanoseconds since 1970 (UTC).
    pub time_ns: u64,
    /// The port's queue.
    pub queue: u16,
    /// The worker that handled it.
    pub worker: usize,
}

/// A link header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Destination address.
    pub destination: String,
    /// Source address.
    pub source: String,
    /// VLAN and priority of its tag, if it has one.
    pub tag: Option<(u16, u8)>,
    /// Whether another tag follows it.
    pub stacked: bool,
}

/// What the forwarding database holds for a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// "known" on this port, "new", "moved" here, "refused" (the port has reached its limit of addresses), "full" (the
    /// database has no room for it), "damped" (it has moved too often) or "not_allowed" (it is in another port's
    /// `addresses`).
    pub learned: String,
    /// The port that it moved from; if it has moved too often, the port that it stays on.
    pub from: Option<String>,
    /// Seconds since it was last seen, if it was.
    pub age_s: Option<u64>,
}

/// The destination of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// To the port where its destination was last seen.
    Port {
        /// Its name.
        name: String,
        /// Seconds since it was last seen there.
        age_s: u64,
    },
    /// To the port that the requested IP address is bound to.
    BoundPort {
        /// Its name.
        name: String,
    },
    /// To all ports, as a broadcast or multicast.
    Group,
    /// To all ports, since the address has not been learned in this VLAN.
    Unknown,
    /// To no port: a link-local control frame.
    LinkLocal,
}

/// A copy for one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// The port.
    pub port: String,
    /// What happened to the tag: "keep", "push", "pop", "push_bridge", "push_both" or "pop_both". Absent where there was no copy, since the port does not carry the
    /// VLAN (or a second tag would become the outer one).
    pub tag: Option<String>,
    /// The port's queue.
    pub queue: u16,
    /// Number of queues to choose from.
    pub queues: u16,
    /// The flow's hash; its high bits choose the queue.
    pub hash: u32,
    /// How a large frame is handled; absent for others.
    pub large: Option<Cut>,
    /// What the port's security groups decide on it, if it has groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// Label of the reason to drop it before a copy is made.
    pub dropped: Option<String>,
    /// What the tap recorded of it; absent for a made-up frame.
    pub outcome: Option<Outcome>,
}

/// How a large frame is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// It goes whole: the guest accepts such frames.
    Whole,
    /// It is cut into this many segments.
    Segments(usize),
    /// It would have to be cut, but its headers are inconsistent.
    Uncuttable,
    /// The NIC port's interface decides.
    Interface,
}

/// What the tap recorded of a copy, or of the segments that it was cut into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How many the port took.
    pub delivered: u64,
    /// How many were dropped, by reason label.
    pub dropped: BTreeMap<String, u64>,
}

/// Explanation of a drop reason, by its label.
fn help(label: &str) -> &'static str {
    let reason = DropReason::ALL
        .iter()
        .find(|reason| reason.label() == label);
    reason.map_or("", |reason| reason.help())
}

/// The most ports listed in one line.
const NAMES_MAX: usize = 8;

/// Text for people: a line for each stage.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            Some(seen) => {
                let (port, queue, worker) = (&self.port, seen.queue, seen.worker);
                let time = time_of_day(seen.time_ns);
                writeln!(f, "{time} received on {port}:{queue} by worker-{worker}")?;
            }
            None => writeln!(
                f,
                "a frame that is not sent, as if it came in on {}",
                self.port
            )?,
        }
        line(f, "frame", &self.summary)?;
        if let Some(link) = &self.link {
            line(f, "link", &link.to_string())?;
        }
        if let Some(offload) = &self.offload {
            line(f, "offload", &offload.to_string())?;
        }
        if let Some(words) = self.placed() {
            line(f, "vlan", &format!("{}: {words}", self.vlans))?;
        }
        if let Some(bridge) = &self.bridge {
            line(f, "bridge", bridge)?;
        }
        if let Some(words) = &self.groups {
            line(f, "groups", words)?;
        }
        if let Some(source) = &self.source {
            line(f, "source", &source.words(&self.port))?;
        }
        if let Some(goal) = &self.destination {
            line(f, "destination", &goal.words(self.vlan.unwrap_or(0)))?;
        }
        let (none, copies): (Vec<_>, Vec<_>) = self.copies.iter().partition(|copy| copy.is_none());
        for copy in copies {
            line(f, &format!("to {}", copy.port), &copy.to_string())?;
        }
        if !none.is_empty() {
            let names: Vec<&str> = none
                .iter()
                .take(NAMES_MAX)
                .map(|copy| &*copy.port)
                .collect();
            let more = none.len().saturating_sub(NAMES_MAX);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let words = format!("{}{more}: other VLANs", names.join(", "));
            line(f, "not to", &words)?;
        }
        if let Some(reason) = &self.dropped {
            line(f, "dropped", &format!("{reason}: {}", help(reason)))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, stage: &str, words: &str) -> fmt::Result {
    writeln!(f, "  {stage:<12} {words}")
}

impl Trace {
    /// The decision of the port's VLAN settings, if the frame reached them.
    fn placed(&self) -> Option<String> {
        let turned_away = [DropReason::VlanNotCarried, DropReason::UntaggedOnTrunk];
        match (self.vlan, self.dropped.as_deref()) {
            (Some(0), _) => Some("in no VLAN".to_owned()),
            (Some(vlan), _) => Some(format!("placed in VLAN {vlan}")),
            (None, Some(reason)) if turned_away.iter().any(|why| why.label() == reason) => {
                Some("rejected".to_owned())
            }
            _ => None,
        }
    }
}

impl Copy {
    /// Whether there was no copy.
    fn is_none(&self) -> bool {
        self.tag.is_none() && self.outcome.is_none()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}, ", self.source, self.destination)?;
        match self.tag {
            // A tag of the other kind counts as such at uplinks of several bridges only.
            None if self.stacked => return f.write_str("an 802.1ad tag"),
            None => write!(f, "untagged"),
            Some((vlan, priority)) => write!(f, "tag of VLAN {vlan}, priority {priority}"),
        }?;
        f.write_str(if self.stacked {
            ", another tag behind it"
        } else {
            ""
        })
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((start, offset)) = self.checksum {
            let at = u32::from(start) + u32::from(offset);
            write!(f, "checksum from byte {start}, to be stored at byte {at}")?;
        }
        if self.gso_type != 0 {
            let (kind, size) = (self.gso_type, self.gso_size);
            write!(
                f,
                "; to be cut into segments of {size} bytes of payload (gso type {kind})"
            )?;
        }
        Ok(())
    }
}

impl Source {
    fn words(&self, port: &str) -> String {
        match (&*self.learned, &self.from, self.age_s) {
            ("known", _, Some(age)) => format!("known on {port}, seen {age} s ago"),
            ("new", ..) => format!("new: learned on {port}"),
            ("moved", Some(from), _) => format!("was on {from}: moves to {port}"),
            ("refused", ..) => {
                format!("not learned: {port} has as many addresses as mac_limit allows")
            }
            ("damped", Some(home), _) => {
                format!("not learned: it has moved too often, and stays on {home} for now")
            }
            ("not_allowed", ..) => "not learned: it is in another port's `addresses`".to_owned(),
            ("full", ..) => "not learned: the table has no room for it".to_owned(),
            (other, ..) => other.to_owned(),
        }
    }
}

impl Goal {
    fn words(&self, vlan: u16) -> String {
        match self {
            Goal::Port { name, age_s } => format!("on {name}, seen {age_s} s ago"),
            Goal::BoundPort { name } => {
                format!(
                    "a request for an address bound to {name}: to that port only (suppress_neighbors)"
                )
            }
            Goal::Group => "a group: flooded".to_owned(),
            Goal::Unknown if vlan == 0 => "not known: flooded".to_owned(),
            Goal::Unknown => format!("not known in VLAN {vlan}: flooded"),
            Goal::LinkLocal => "link-local control, which a bridge does not forward".to_owned(),
        }
    }
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = String::new();
        match self.tag.as_deref() {
            None => {}
            Some("push") => words += "tag pushed, ",
            Some("pop") => words += "tag popped, ",
            Some("push_bridge") => words += "bridge's tag pushed, ",
            Some("push_both") => words += "tag and bridge's tag pushed, ",
            Some("pop_both") => words += "bridge's tag and tag popped, ",
            Some(_) => words += "tag as it is, ",
        }
        match self.queues {
            0 | 1 => write!(words, "queue {}", self.queue),
            queues => write!(
                words,
                "queue {} of {queues} by flow hash {:08x}",
                self.queue, self.hash
            ),
        }?;
        match self.large {
            None => {}
            Some(Cut::Whole) => words += ", sent whole",
            Some(Cut::Segments(count)) => write!(words, ", cut into {count} segments")?,
            Some(Cut::Uncuttable) => words += ", cannot be cut",
            Some(Cut::Interface) => words += ", whole or cut, as its interface accepts it",
        }
        if let Some(judgement) = &self.groups {
            write!(words, ", groups: {judgement}")?;
        }
        match (&self.outcome, &self.dropped) {
            (Some(outcome), _) => write!(words, ": {outcome}")?,
            (None, Some(reason)) => write!(words, ": dropped, {reason}: {}", help(reason))?,
            (None, None) => words += ": delivered, if there is room for it",
        }
        f.write_str(&words)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = match self.delivered {
            0 => Vec::new(),
            1 => vec!["delivered".to_owned()],
            more => vec![format!("{more} delivered")],
        };
        words.extend(self.dropped.iter().map(|(reason, count)| match count {
            1 => format!("dropped, {reason}: {}", help(reason)),
            more => format!("{more} dropped, {reason}: {}", help(reason)),
        }));
        match words.is_empty() {
            true => f.write_str("result not recorded"),
            false => f.write_str(&words.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(port: &str, tag: Option<&str>) -> Copy {
        Copy {
            port: port.to_owned(),
            tag: tag.map(str::to_owned),
            queue: 1,
            queues: 4,
            hash: 0x5000_0000,
            large: None,
            groups: None,
            dropped: None,
            outcome: None,
        }
    }

    #[test]
    fn every_stage_has_its_line() {
        let seen = Seen {
            time_ns: 3_723_000_004_000,
            queue: 0,
            worker: 1,
        };
        let mut trace = Trace {
            port: "web-1".to_owned(),
            seen: Some(seen),
            len: 1514,
            summary: "IP 10.0.0.1.5 > 10.0.0.2.80: TCP [.], length 1514".to_owned(),
            bytes: String::new(),
            offload: Some(Offload {
                checksum: Some((34, 16)),
                gso_type: 1,
                gso_size: 1448,
            }),
            link: Some(Link {
                destination: "52:54:00:00:00:02".to_owned(),
                source: "52:54:00:00:00:01".to_owned(),
                tag: None,
                stacked: false,
            }),
            vlans: "access 100".to_owned(),
            vlan: Some(100),
            bridge: None,
            groups: None,
            source: Some(Source {
                learned: "moved".to_owned(),
                from: Some("web-2".to_owned()),
                age_s: Some(3),
            }),
            destination: Some(Goal::Unknown),
            dropped: None,
            copies: vec![
                copy("db-1", Some("push")),
                copy("up0", Some("keep")),
                copy("x", None),
            ],
        };
        trace.copies[0].large = Some(Cut::Segments(2));
        trace.copies[0].outcome = Some(Outcome {
            delivered: 1,
            dropped: [("guest_ring_full".to_owned(), 1)].into(),
        });
        trace.copies[1].outcome = Some(Outcome::default());
        let expected = "\
01:02:03.000004 received on web-1:0 by worker-1
  frame        IP 10.0.0.1.5 > 10.0.0.2.80: TCP [.], length 1514
  link         52:54:00:00:00:01 > 52:54:00:00:00:02, untagged
  offload      checksum from byte 34, to be stored at byte 50; to be cut into segments of 1448 bytes of payload (gso type 1)
  vlan         access 100: placed in VLAN 100
  source       was on web-2: moves to web-1
  destination  not known in VLAN 100: flooded
  to db-1      tag pushed, queue 1 of 4 by flow hash 50000000, cut into 2 segments: delivered; dropped, guest_ring_full: The guest has no free receive buffers.
  to up0       tag as it is, queue 1 of 4 by flow hash 50000000: result not recorded
  not to       x: other VLANs
";
        assert_eq!(trace.to_string(), expected);
        let text = serde_json::to_string(&trace).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&text).unwrap(), trace);
        (trace.vlan, trace.source, trace.destination) = (None, None, None);
        trace.copies.clear();
        trace.dropped = Some("vlan_not_carried".to_owned());
        let text = trace.to_string();
        assert!(
            text.contains(
                "  vlan         access 100: rejected\n  dropped      vlan_not_carried: This"
            ),
            "{text}"
        );
    }
}
