//! Several bridges: each has a forwarding database, member lists and bindings of its own, so no frame and no address of one
//! is seen in another.
//!
//! A port is in one bridge. A port with [`BridgeTags`] also has frames of other bridges, each behind a tag of its own, which
//! is popped on the way into the bridge and pushed on the way out (IEEE 802.1Q-2018, clause 15: a provider bridge's customer
//! edge). What follows the tag is the frame as the bridge has it, with its own VLAN tag or without.

use std::sync::Arc;

use crosspoint_frame::{Burst, Frame, HeaderOp};
use crosspoint_packet::{DropReason, ETHERNET_LEN, ETHERTYPE_QINQ, ETHERTYPE_VLAN, TAG_LEN};

use crate::bridge::fdb::Fdb;
use crate::bridge::members::Members;
use crate::bridge::vlan::{NO_VLAN, VID_MASK};
use crate::snapshot::PortSnapshot;
use crate::stages::guard::Bindings;

const TAG: [u8; 2] = ETHERTYPE_VLAN.to_be_bytes();
const SERVICE_TAG: [u8; 2] = ETHERTYPE_QINQ.to_be_bytes();
/// Most bridges, with the default bridge. Numbers have 8 bits, and one is [`NO_BRIDGE`].
pub const BRIDGES_MAX: usize = 255;
/// The number of the default bridge.
pub const DEFAULT_BRIDGE: u8 = 0;
/// The number of a bridge that does not exist: its frames go nowhere.
pub const NO_BRIDGE: u8 = 255;

/// A bridge, besides the default one.
pub struct Bridge {
    /// Its name.
    pub name: Arc<str>,
    /// Its forwarding database.
    pub fdb: Arc<Fdb>,
    /// The ports of each of its VLANs.
    pub members: Members,
    /// Bindings of addresses to its ports.
    pub bindings: Bindings,
    /// Its tag, where it has one: type, and a VLAN without a priority.
    pub tag: [u8; TAG_LEN],
}

impl Bridge {
    /// Creates a bridge without ports: the snapshot that it is put into knows them.
    pub fn new(name: Arc<str>, fdb: Arc<Fdb>, tag: [u8; TAG_LEN]) -> Bridge {
        Bridge {
            name,
            fdb,
            members: Members::new(&[], NO_BRIDGE),
            bindings: Bindings::new(&[], NO_BRIDGE),
            tag,
        }
    }

    /// Renews members and bindings from the ports: the bridge has number `number`.
    pub(crate) fn renew(&mut self, ports: &[Option<PortSnapshot>], number: u8) {
        self.members = Members::new(ports, number);
        let statics = self.bindings.statics().clone();
        self.bindings = Bindings::new(ports, number).with_statics(statics);
    }
}

/// The other bridges whose frames a port has, each behind its tag.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BridgeTags {
    /// By tag, ascending: its type, its VLAN and the bridge's number.
    by_tag: Box<[([u8; TAG_LEN], u8)]>,
}

impl BridgeTags {
    /// Creates the list of tags, each with its bridge's number.
    pub fn new(mut tags: Vec<([u8; TAG_LEN], u8)>) -> BridgeTags {
        tags.sort_unstable();
        BridgeTags {
            by_tag: tags.into(),
        }
    }

    /// Returns whether frames of the bridge leave through the port.
    pub fn has(&self, bridge: u8) -> bool {
        self.by_tag.iter().any(|(_, other)| *other == bridge)
    }

    /// Returns the bridge whose frames have this tag, whatever its priority.
    fn bridge_of(&self, tag: [u8; TAG_LEN]) -> Option<(u8, [u8; TAG_LEN])> {
        let place = self.by_tag.binary_search_by(|(one, _)| one.cmp(&tag));
        self.by_tag
            .get(place.ok()?)
            .map(|(tag, bridge)| (*bridge, *tag))
    }
}

/// Returns `tag` with the priority of `tci`; nothing if there is no tag.
fn with_priority([a, b, c, d]: [u8; TAG_LEN], tci: u16) -> [u8; TAG_LEN] {
    if [a, b] == [0, 0] {
        return [0; TAG_LEN];
    }
    let [high, _] = (tci & !VID_MASK).to_be_bytes();
    [a, b, c | high, d]
}

/// Puts the frames of a port that is in another bridge than the default one into that bridge, whose tag elsewhere is `tag`.
#[cold]
#[inline(never)]
pub(crate) fn place(burst: &mut Burst, bridge: u8, tag: [u8; TAG_LEN]) {
    burst.set_bridge(bridge, tag);
    for frame in burst.frames_mut() {
        frame.bridge_tag = with_priority(tag, frame.tci);
    }
}

/// Puts the frames that have the tag of another bridge into that bridge, and reads the tag behind it. Returns a bit for each
/// of these frames. An 802.1ad tag of no bridge is refused: elsewhere such a tag is payload, but here it would be another
/// bridge's if that bridge had it.
#[cold]
#[inline(never)]
pub(crate) fn place_tagged(burst: &mut Burst, tags: &BridgeTags) -> u64 {
    burst.note_bridges();
    let mut placed = 0;
    for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
        let Some(kind) = tag_at(frame, 0) else {
            continue;
        };
        let tci = tci_at(frame, 0);
        let [high, low] = (tci & VID_MASK).to_be_bytes();
        match tags.bridge_of([kind[0], kind[1], high, low]) {
            Some((bridge, tag)) => {
                (frame.bridge, frame.bridge_tag) = (bridge, with_priority(tag, tci));
                enter(frame, tci);
                placed |= 1 << index;
            }
            None if kind == SERVICE_TAG => frame.drop_for(DropReason::VlanNotCarried),
            None => {}
        }
    }
    placed
}

/// Reads what follows the bridge's tag of a frame, which has tag control information `outer`.
fn enter(frame: &mut Frame, outer: u16) {
    frame.has_bridge_tag = true;
    frame.tagged = tag_at(frame, 1) == Some(TAG);
    frame.stacked = is_tag_type(frame, 1 + usize::from(frame.tagged));
    // A frame without a tag of its own has the priority of its bridge's tag.
    frame.tci = match frame.tagged {
        true => tci_at(frame, 1),
        false => outer & !VID_MASK,
    };
    frame.vlan = frame.tci & VID_MASK;
    // The sum must not begin within the tags, which may be removed.
    let link_len = ETHERNET_LEN + TAG_LEN * (1 + usize::from(frame.tagged));
    if frame.offload.needs_csum && usize::from(frame.offload.csum_start) < link_len {
        frame.drop_for(DropReason::BadOffload);
    }
    // A link-local control frame is between neighbours: it is not carried behind a tag.
    if frame.dst.is_link_local_control() {
        frame.drop_for(DropReason::LinkLocal);
    }
}

/// Returns the type of tag number `number` of a frame; `None` if something else is there, or the frame ends within it.
fn tag_at(frame: &Frame, number: usize) -> Option<[u8; 2]> {
    let at = ETHERNET_LEN - 2 + TAG_LEN * number;
    let kind = *frame.headers().get(at..at + TAG_LEN + 2)?.first_chunk()?;
    (kind == TAG || kind == SERVICE_TAG).then_some(kind)
}

/// Returns whether the type of tag number `number` is there, even if the frame ends within that tag: a card pads it.
fn is_tag_type(frame: &Frame, number: usize) -> bool {
    let at = ETHERNET_LEN - 2 + TAG_LEN * number;
    let kind = frame.head.get(at..at + 2);
    kind.is_some_and(|kind| kind == TAG || kind == SERVICE_TAG)
}

/// Returns the tag control information of tag number `number`, which is there.
fn tci_at(frame: &Frame, number: usize) -> u16 {
    let at = ETHERNET_LEN + TAG_LEN * number;
    let bytes = frame.head.get(at..at + 2).unwrap_or(&[0; 2]);
    u16::from_be_bytes([bytes[0], bytes[1]])
}

impl PortSnapshot {
    /// Returns whether the port has frames of the bridge.
    pub fn is_in(&self, bridge: u8) -> bool {
        self.bridge == bridge || self.tags.as_ref().is_some_and(|tags| tags.has(bridge))
    }

    /// Like [`tag_op`](Self::tag_op), where there are several bridges: `None` also for a frame of a bridge whose frames do not
    /// leave through this port.
    #[cold]
    pub(crate) fn tag_op_of_bridge(&self, frame: &Frame) -> Option<HeaderOp> {
        if self.bridge == frame.bridge {
            return self.tag_op_of_own(frame);
        }
        // A link-local control frame is between neighbours: it is not carried behind a tag. Without a tag of its own, a bridge's
        // frames do not leave through a port that has others.
        let has_tag = frame.bridge_tag != [0; TAG_LEN];
        if !self.is_in(frame.bridge) || frame.dst.is_link_local_control() || !has_tag {
            return None;
        }
        Some(match (frame.has_bridge_tag, frame.tagged, frame.vlan) {
            (true, ..) => HeaderOp::Keep,
            (false, false, vlan) if vlan != NO_VLAN => HeaderOp::PushBoth,
            _ => HeaderOp::PushBridge,
        })
    }

    /// The tag operation for a frame of the port's own bridge.
    fn tag_op_of_own(&self, frame: &Frame) -> Option<HeaderOp> {
        let own = match frame.dst.is_link_local_control() {
            true => self.flooded_tag_op(frame)?,
            false => self.tag_op(frame)?,
        };
        if self.tags.is_some() && names_another(frame, own) {
            return None;
        }
        if !frame.has_bridge_tag {
            return Some(own);
        }
        match own {
            HeaderOp::Keep => Some(HeaderOp::Pop),
            HeaderOp::Pop => Some(HeaderOp::PopBoth),
            // A frame without a tag of its own is in no VLAN of its bridge, so none is pushed.
            _ => None,
        }
    }
}

/// Returns whether a port that has frames of several bridges would take a copy for another bridge's, because of what its guest
/// wrote behind or instead of the VLAN's tag: the double-tagging attack.
fn names_another(frame: &Frame, own: HeaderOp) -> bool {
    match own {
        HeaderOp::Pop => frame.stacked,
        // A tag without a VLAN may be removed on the way.
        HeaderOp::Keep if frame.tagged => frame.vlan == NO_VLAN && frame.stacked,
        HeaderOp::Keep => frame.stacked,
        _ => false,
    }
}
