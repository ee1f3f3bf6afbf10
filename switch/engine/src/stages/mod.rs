//! The stages between receiving and delivering. Each is a loop over a burst.

pub mod control;
pub mod guard;
pub mod meter;
pub mod port_security;
mod servers;

use crosspoint_frame::{BURST, Burst, Frame, Offload, Verdict};
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::offload::{is_checksum_place, is_dhcp};
use crosspoint_packet::partial::HEADERS_LEN_MAX;
use crosspoint_packet::segment::{GsoRequest, Segmentation, Whole};
use crosspoint_packet::{
    DropReason, ETHERNET_LEN, ETHERTYPE_QINQ, ETHERTYPE_VLAN, MAX_FRAME_LEN, Mac, Parsed, TAG_LEN,
};

use crate::bridge::fdb::Learned;
use crate::bridge::fdb::{Fdb, Key};
use crate::bridge::multicast;
use crate::bridge::several::{self, DEFAULT_BRIDGE};
use crate::bridge::vlan::NO_VLAN;
use crate::bridge::vlan::VlanPolicy;
use crate::snapshot::PortSnapshot;
use crate::snapshot::Snapshot;
use crate::stages::control::ControlAddresses;

const TAG_TYPE: [u8; 2] = ETHERTYPE_VLAN.to_be_bytes();
/// An 802.1ad tag. It is treated as payload, except in the check of the frame's length.
const SERVICE_TAG_TYPE: [u8; 2] = ETHERTYPE_QINQ.to_be_bytes();

/// Returns whether a type is that of a tag, of either kind.
pub(crate) fn is_tag(kind: [u8; 2]) -> bool {
    kind == TAG_TYPE || kind == SERVICE_TAG_TYPE
}

/// Parses the link header of every frame, and drops invalid frames.
#[inline(never)]
pub fn parse(burst: &mut Burst) {
    let mut large = false;
    // A frame without a tag and with the same header as the one before has the same parse result.
    let mut before = Link::default();
    for frame in burst.frames_mut() {
        let len = frame.len as usize;
        if len < ETHERNET_LEN {
            frame.drop_for(DropReason::Runt);
            continue;
        }
        let (low, high) = link_words(frame);
        if low != before.low || high != before.high || !before.whole {
            before = Link::read(frame, low, high);
        }
        frame.dst = before.dst;
        frame.src = before.src;
        frame.tci = before.tci;
        frame.tagged = before.tagged;
        frame.stacked = before.stacked;
        frame.tags = before.tags;
        if len > MAX_FRAME_LEN + TAG_LEN * usize::from(frame.tags) {
            frame.drop_for(DropReason::Oversize);
            continue;
        }
        if !before.valid_source {
            frame.drop_for(DropReason::BadSource);
        } else if frame.offload.needs_csum || frame.offload.gso_type != 0 {
            large |= check_offload(frame);
        }
    }
    if large {
        check_headers(burst);
    }
}

/// A parsed link header.
#[derive(Default)]
struct Link {
    /// Its first 16 bytes. Two words, not an array: an array would be stored as two words and loaded as one, and the load
    /// would wait until both stores are in the cache.
    low: u64,
    high: u64,
    /// Whether these bytes decide the result. With a tag they do not: the frame's length decides whether there is room
    /// for one.
    whole: bool,
    dst: Mac,
    src: Mac,
    tci: u16,
    tagged: bool,
    stacked: bool,
    tags: u8,
    valid_source: bool,
}

impl Link {
    /// Nearly all frames are untagged, and the two words hold all that is read of these.
    #[inline(always)]
    fn read(frame: &Frame, low: u64, high: u64) -> Link {
        let kind = ((high >> 32) as u16).to_le_bytes();
        if kind == TAG_TYPE || kind == SERVICE_TAG_TYPE {
            return Link::read_tagged(frame, low, high);
        }
        let src = Mac::from_le_word(low >> 48 | high << 16);
        Link {
            low,
            high,
            whole: true,
            dst: Mac::from_le_word(low),
            src,
            tci: 0,
            tagged: false,
            stacked: false,
            tags: 0,
            valid_source: src.is_valid_source(),
        }
    }

    #[inline(never)]
    fn read_tagged(frame: &Frame, low: u64, high: u64) -> Link {
        let parsed = Parsed::new(&frame.head, frame.len as usize);
        let tagged = parsed.tci.is_some();
        Link {
            low,
            high,
            whole: false,
            dst: parsed.dst,
            src: parsed.src,
            tci: parsed.tci.unwrap_or(0),
            tagged,
            stacked: match tagged {
                true => is_tag([frame.head[16], frame.head[17]]),
                false => is_tag([frame.head[12], frame.head[13]]),
            },
            tags: parsed.tags,
            valid_source: parsed.src.is_valid_source(),
        }
    }
}

/// Returns the first 16 bytes.
#[inline(always)]
fn link_words(frame: &Frame) -> (u64, u64) {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&frame.head[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    (word(0), word(8))
}

/// Checks the frame's offload request: it must lie within the frame, and a frame to be segmented must have a checksum to
/// be finished (virtio 1.2, 5.1.6.2.1). Returns whether more than its first bytes must be checked: it is to be segmented,
/// or its headers are long.
#[cold]
fn check_offload(frame: &mut Frame) -> bool {
    let offload = &frame.offload;
    let end = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
    // The sum must not begin within the link header, where a tag may be inserted or removed.
    let link_len = ETHERNET_LEN + TAG_LEN * usize::from(frame.tagged);
    // Pushing a tag increases it, and the field has 16 bits.
    let start_ok =
        (link_len..=usize::from(u16::MAX) - TAG_LEN).contains(&usize::from(offload.csum_start));
    let large = offload.gso_type != 0;
    let cut_ok = !large || (offload.needs_csum && offload.gso_size != 0);
    if end > frame.len || !start_ok || !cut_ok {
        frame.drop_for(DropReason::BadOffload);
        return false;
    }
    if large {
        return true;
    }
    if offload.any_size {
        frame.drop_for(DropReason::SegmentSizeUnknown);
        return false;
    }
    // Not used for a frame that is not segmented.
    (frame.offload.hdr_len, frame.offload.gso_size) = (0, 0);
    let place = checksum_place(frame);
    let allowed = is_checksum_place(frame.headers(), frame.len as usize, place);
    if allowed == Some(false) {
        frame.drop_for(DropReason::BadOffload);
    }
    let finish = is_dhcp(frame.headers(), frame.len as usize, place);
    frame.offload.finish = finish == Some(true);
    allowed.is_none() || finish.is_none()
}

fn checksum_place(frame: &Frame) -> Partial {
    Partial {
        start: frame.offload.csum_start,
        offset: frame.offload.csum_offset,
    }
}

/// Checks the full headers of every frame with an offload request. A request that contradicts the headers drops the frame
/// for every receiver, because a receiver that takes such frames would follow it. Fields that follow from the headers are
/// set from them.
#[cold]
fn check_headers(burst: &mut Burst) {
    let mut large = false;
    let mut headers = [0; HEADERS_LEN_MAX];
    for index in 0..burst.len() {
        let Some(frame) = burst.frames().get(index) else {
            continue;
        };
        if frame.verdict != Verdict::PENDING || !frame.offload.needs_csum {
            continue;
        }
        let len = burst.read_beginning(frame, &mut headers);
        let checked = match headers.get(..len) {
            Some(headers) => checked_offload(frame, headers),
            None => None,
        };
        let Some(frame) = burst.frames_mut().get_mut(index) else {
            continue;
        };
        match checked {
            Some(offload) => {
                large |= offload.gso_type != 0;
                frame.offload = offload;
            }
            None => frame.drop_for(DropReason::BadOffload),
        }
    }
    if large {
        burst.set_large();
    }
}

/// Returns the checked offload request of a frame that begins with `headers`; `None` if it is not allowed.
pub(crate) fn checked_offload(frame: &Frame, headers: &[u8]) -> Option<Offload> {
    let (offload, len) = (frame.offload, frame.len as usize);
    let place = checksum_place(frame);
    if offload.gso_type == 0 {
        let allowed = is_checksum_place(headers, len, place) == Some(true);
        let finish = is_dhcp(headers, len, place) == Some(true);
        return allowed.then_some(Offload { finish, ..offload });
    }
    let request = GsoRequest {
        gso_type: offload.gso_type,
        gso_size: offload.gso_size,
        checksum: Some(place),
    };
    // The values written into fragments do not affect whether the frame can be fragmented.
    let whole = || Whole {
        checksum: 0,
        identification: 0,
    };
    let plan = Segmentation::new(headers, len, request, whole).ok()?;
    Some(Offload {
        hdr_len: plan.header_len() as u16,
        ..offload
    })
}

/// Places every frame in its VLAN or drops it, and drops frames that the port's source guard does not allow, or that claim
/// another port's address. The port's VLAN policy is checked once per burst, not per frame.
#[inline(never)]
pub fn admit(burst: &mut Burst, ingress: u16, view: &Snapshot) {
    let port = view.port(ingress);
    match port.filter(|_| view.has_bridges) {
        None => place(burst, port, 0),
        Some(port) => place_in_bridges(burst, port, view),
    }
    if let Some(guard) = port.and_then(|port| port.sources.as_deref()) {
        guard.enforce(burst);
    }
    if view.has_bound_ips(port) {
        port_security::refuse_claims(burst, |address, at| {
            view.is_bound_elsewhere(address, at, ingress)
        });
    }
    if port.is_some_and(|port| !port.is_server) {
        if view.snooping.is_some() {
            multicast::refuse_routers(burst);
        }
        servers::refuse(burst);
    }
}

/// Places every frame in its bridge, and in its VLAN there.
#[cold]
#[inline(never)]
fn place_in_bridges(burst: &mut Burst, port: &PortSnapshot, view: &Snapshot) {
    if port.bridge != DEFAULT_BRIDGE {
        let tag = view
            .other_bridge(port.bridge)
            .map_or([0; TAG_LEN], |bridge| bridge.tag);
        several::place(burst, port.bridge, tag);
    }
    let elsewhere = match &port.tags {
        Some(tags) => several::place_tagged(burst, tags),
        None => 0,
    };
    place(burst, Some(port), elsewhere);
}

/// Places every frame in its VLAN, except those of `elsewhere`, which have one: a bit for each.
#[inline(always)]
fn place(burst: &mut Burst, port: Option<&PortSnapshot>, elsewhere: u64) {
    if elsewhere != 0 {
        return place_others(burst, port, elsewhere);
    }
    let frames = burst.frames_mut().iter_mut();
    match port.map(|port| (&*port.vlan, port.control)) {
        Some((VlanPolicy::Unaware, _)) => {
            for frame in frames {
                frame.vlan = VlanPolicy::vid(frame.tci);
            }
        }
        Some((policy, control)) => {
            frames.for_each(|frame| admit_aware(frame, policy, control));
        }
        // A stream is removed before its port, so this does not happen; if it does, it is counted.
        None => frames.for_each(|frame| frame.drop_for(DropReason::NoDestination)),
    }
}

#[cold]
#[inline(never)]
fn place_others(burst: &mut Burst, port: Option<&PortSnapshot>, elsewhere: u64) {
    for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
        if let (Some(port), 0) = (port, elsewhere >> index & 1) {
            admit_aware(frame, &port.vlan, port.control);
        }
    }
}

fn admit_aware(frame: &mut Frame, policy: &VlanPolicy, control: ControlAddresses) {
    match policy.admit(frame.tagged.then_some(frame.tci)) {
        Ok(admitted) => {
            frame.vlan = admitted.vlan;
            frame.tci = admitted.tci;
            // A priority tag now carries the VLAN that the frame was placed in.
            if frame.tagged {
                frame.head[14..16].copy_from_slice(&admitted.tci.to_be_bytes());
            }
        }
        // A control frame is in no VLAN.
        Err(DropReason::UntaggedOnTrunk) if !frame.tagged && control.has(frame.dst) => {
            (frame.vlan, frame.tci) = (NO_VLAN, 0);
        }
        Err(reason) => frame.drop_for(reason),
    }
}

/// Working memory of `lookup`: the keys of each frame whose addresses or VLAN differ from those of the frame before it.
pub struct Keys {
    /// Source and destination.
    pairs: [(Key, Key); BURST],
    /// Bit `i`: frame `i` has keys of its own.
    own: u64,
}

impl Default for Keys {
    fn default() -> Keys {
        Keys {
            pairs: [(Key::default(), Key::default()); BURST],
            own: 0,
        }
    }
}

/// Learns the frames' sources and looks up their destinations. Returns whether any frame is to be flooded.
#[inline(never)]
pub fn lookup(burst: &mut Burst, ingress: u16, view: &Snapshot, tick: u8, keys: &mut Keys) -> bool {
    if view.has_bridges {
        return lookup_in_bridges(burst, ingress, view, tick, keys);
    }
    look_up::<false>(burst, ingress, view, tick, keys, |_| &view.fdb)
}

/// The same, where frames are in several bridges.
#[inline(never)]
fn lookup_in_bridges(
    burst: &mut Burst,
    ingress: u16,
    view: &Snapshot,
    tick: u8,
    keys: &mut Keys,
) -> bool {
    if view.port(ingress).is_none_or(|port| port.tags.is_some()) {
        // `view` has a bridge for each that a frame of it is in; were it gone, its frames would go nowhere.
        for frame in burst.frames_mut() {
            if view.fdb_of(frame.bridge).is_none() {
                frame.drop_for(DropReason::NoDestination);
            }
        }
        let fdb = |bridge| view.fdb_of(bridge).unwrap_or(&view.fdb);
        return look_up::<true>(burst, ingress, view, tick, keys, fdb);
    }
    let bridge = view
        .port(ingress)
        .map_or(DEFAULT_BRIDGE, |port| port.bridge);
    match view.fdb_of(bridge) {
        Some(fdb) => look_up::<false>(burst, ingress, view, tick, keys, |_| fdb),
        None => {
            let frames = burst.frames_mut().iter_mut();
            frames.for_each(|frame| frame.drop_for(DropReason::NoDestination));
            false
        }
    }
}

/// `fdb` returns the forwarding database of a bridge; with `MANY`, frames of one burst are in several bridges.
#[inline(always)]
fn look_up<'v, const MANY: bool>(
    burst: &mut Burst,
    ingress: u16,
    view: &'v Snapshot,
    tick: u8,
    keys: &mut Keys,
    fdb: impl Fn(u8) -> &'v Fdb,
) -> bool {
    prepare::<MANY>(burst, keys, &fdb);
    let (mut last, mut floods, mut own) = (Verdict::PENDING, false, keys.own);
    for (frame, pair) in burst.frames_mut().iter_mut().zip(&keys.pairs) {
        let is_own = own & 1 != 0;
        own >>= 1;
        if frame.verdict != Verdict::PENDING {
            continue;
        }
        // A frame without keys has the addresses and VLAN of the one before, and so the same verdict.
        if is_own {
            let fdb = fdb(frame.bridge);
            last = match fdb.known_way(*pair, ingress, tick) {
                Some(port) => Verdict::port(port),
                None => {
                    let verdict = decide(frame, *pair, ingress, (view, fdb), tick);
                    floods |= verdict == Verdict::FLOOD;
                    verdict
                }
            };
        }
        frame.verdict = last;
    }
    floods
}

/// Learns one frame's source and looks up its destination.
#[inline(never)]
fn decide(
    frame: &Frame,
    (src, dst): (Key, Key),
    ingress: u16,
    (view, fdb): (&Snapshot, &Fdb),
    tick: u8,
) -> Verdict {
    let is_aware = view.port(ingress).is_some_and(PortSnapshot::is_vlan_aware);
    let is_aware = is_aware && !frame.has_bridge_tag;
    let is_free = || view.is_free_for(frame.src, (frame.bridge, frame.vlan), ingress);
    match learn((view, fdb), src, frame, (ingress, is_aware), tick, is_free) {
        Learned::NotAllowed => Verdict::drop(DropReason::SourceNotAllowed),
        Learned::Refused if view.drops_beyond_limit(ingress) => Verdict::drop(DropReason::MacLimit),
        _ => destination((view, fdb), dst, frame, ingress),
    }
}

/// Learns a frame's source. Two kinds of frames are not learned from. A control frame that a VLAN-aware port takes
/// without a tag is in no VLAN: its source would be learned in the VLAN of ports that are unaware of VLANs. A loop
/// probe's source is no station, and it arrives wherever there is a loop.
#[inline(always)]
fn learn(
    (view, fdb): (&Snapshot, &Fdb),
    src: Key,
    frame: &Frame,
    (ingress, is_aware): (u16, bool),
    tick: u8,
    is_free: impl FnOnce() -> bool,
) -> Learned {
    let is_probe = || {
        let probes = view.probes.as_ref();
        probes.is_some_and(|probes| frame.dst == Mac::BROADCAST && probes.is_own(frame))
    };
    if (is_aware && frame.vlan == NO_VLAN) || is_probe() {
        return match is_free() {
            true => Learned::Known,
            false => Learned::NotAllowed,
        };
    }
    let quotas = |port| view.port(port).map(|port| &*port.quota);
    fdb.learn_if(src, ingress, tick, quotas, is_free)
}

/// Returns the verdict for a frame received on `ingress` whose destination has the key `key`.
#[inline(always)]
pub(crate) fn destination(
    (view, fdb): (&Snapshot, &Fdb),
    key: Key,
    frame: &Frame,
    ingress: u16,
) -> Verdict {
    let dst = frame.dst;
    if !dst.is_group() {
        match fdb.lookup(key) {
            Some(port) if port == ingress => Verdict::drop(DropReason::Hairpin),
            Some(port) => Verdict::port(port),
            None => Verdict::FLOOD,
        }
    } else if dst.is_link_local_control() {
        let control = view.port(ingress).map(|port| port.control);
        // A link-local control frame is in no VLAN, so a tagged one is dropped.
        match control.is_some_and(|control| control.has(dst) && !frame.tagged) {
            true => Verdict::FLOOD,
            false => Verdict::drop(DropReason::LinkLocal),
        }
    } else {
        Verdict::FLOOD
    }
}

/// Hashes addresses and prefetches their cache lines, so that the misses of a whole burst overlap. A frame with the
/// addresses of the one before it needs neither.
#[inline(always)]
fn prepare<'v, const MANY: bool>(burst: &Burst, keys: &mut Keys, fdb: &impl Fn(u8) -> &'v Fdb) {
    let mut before = (Mac::default(), Mac::default(), 0, false);
    let mut bridge = DEFAULT_BRIDGE;
    // The initial value matches no frame: `parse` drops frames with an all-zero source.
    let (mut own, mut bit) = (0, 1u64);
    for (frame, pair) in burst.frames().iter().zip(&mut keys.pairs) {
        let this = (frame.src, frame.dst, frame.vlan, frame.tagged);
        let is_other = this != before || (MANY && frame.bridge != bridge);
        if frame.verdict == Verdict::PENDING && is_other {
            (before, bridge) = (this, frame.bridge);
            let fdb = fdb(frame.bridge);
            let src = fdb.key(frame.src, frame.vlan);
            let dst = fdb.key(frame.dst, frame.vlan);
            fdb.prefetch(src);
            fdb.prefetch(dst);
            *pair = (src, dst);
            own |= bit;
        }
        bit <<= 1;
    }
    keys.own = own;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Headers of few kinds, so that equal ones often follow each other: few addresses, tagged, double tagged, all zero,
    /// and cut off before or after the tag.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let address = || prop_oneof![Just([0u8; 6]), Just([2, 0, 0, 0, 0, 1]), Just([0xff; 6])];
        let link_type = prop_oneof![
            Just([0u8, 0]),
            Just([0x81, 0]),
            Just([0x88, 0xa8]),
            Just([0x08, 0]),
            Just([0x86, 0xdd])
        ];
        let behind = prop_oneof![
            Just([0u8; 4]),
            Just([0, 7, 0x81, 0]),
            Just([0, 7, 0x88, 0xa8]),
            Just([0, 9, 8, 0])
        ];
        let len = prop_oneof![Just(60usize), 12..=20usize];
        (address(), address(), link_type, behind, len).prop_map(|(dst, src, kind, behind, len)| {
            let mut bytes = [&dst[..], &src, &kind, &behind].concat();
            bytes.resize(60, 0);
            bytes.truncate(len);
            bytes
        })
    }

    proptest! {
        /// The parse result of a frame does not depend on the frames before it.
        #[test]
        fn a_frame_is_parsed_as_if_it_were_alone(frames in prop::collection::vec(frame(), 1..=BURST)) {
            let mut together = Burst::new();
            for bytes in &frames {
                prop_assert!(together.push_short(bytes));
            }
            parse(&mut together);
            for (bytes, frame) in frames.iter().zip(together.frames()) {
                let mut alone = Burst::new();
                prop_assert!(alone.push_short(bytes));
                parse(&mut alone);
                let of = |f: &Frame| {
                    (f.dst, f.src, f.tci, f.tagged, f.stacked, f.tags, f.verdict)
                };
                // A runt's fields are not parsed.
                if bytes.len() >= ETHERNET_LEN {
                    prop_assert_eq!(of(frame), of(&alone.frames()[0]));
                } else {
                    prop_assert_eq!(frame.verdict, alone.frames()[0].verdict);
                }
            }
        }
    }
}
