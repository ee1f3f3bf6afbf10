//! Several bridges: no frame of one reaches another, whatever its tags; each bridge forwards as if it were alone.

use std::collections::HashMap;
use std::sync::Arc;

use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::several::{Bridge, BridgeTags};
use crosspoint_engine::bridge::vlan::VlanPolicy;
use proptest::prelude::*;

use crate::ports::PortOptions;
use crate::rig::Rig;

type Tag = [u8; 4];

/// The tags of bridges 1 and 2.
const TAGS: [Tag; 2] = [[0x81, 0, 0, 100], [0x88, 0xa8, 0, 200]];

/// One port: its own bridge, its VLANs there, and the bridges whose tags it has.
struct Place {
    bridge: u8,
    policy: VlanPolicy,
    others: &'static [u8],
}

fn places() -> Vec<Place> {
    let place = |bridge, policy, others| Place {
        bridge,
        policy,
        others,
    };
    vec![
        place(0, VlanPolicy::Unaware, &[]),
        place(0, VlanPolicy::Access(5), &[]),
        place(1, VlanPolicy::Unaware, &[]),
        place(1, VlanPolicy::Access(7), &[]),
        place(1, VlanPolicy::trunk(&[7, 8], Some(5)), &[]),
        place(2, VlanPolicy::Unaware, &[]),
        // Uplinks.
        place(0, VlanPolicy::Untagged, &[1, 2]),
        place(0, VlanPolicy::trunk(&[5, 8], Some(7)), &[1]),
        place(0, VlanPolicy::Access(5), &[2]),
        place(2, VlanPolicy::Unaware, &[]),
        place(1, VlanPolicy::Untagged, &[2]),
        place(1, VlanPolicy::Access(7), &[2]),
    ]
}

fn rig(places: &[Place], seed: u64) -> Rig {
    let options: Vec<PortOptions> = places
        .iter()
        .map(|place| PortOptions {
            vlan: place.policy.clone(),
            transmit_size: 64,
            receive_size: 512,
            ..PortOptions::default()
        })
        .collect();
    let mut rig = Rig::new(&options, 1, seed);
    for (port, place) in rig.view.ports.iter_mut().flatten().zip(places) {
        port.bridge = place.bridge;
        let tags = place.others.iter();
        let tags = tags.map(|bridge| (TAGS[usize::from(*bridge) - 1], *bridge));
        port.tags = (!place.others.is_empty()).then(|| Arc::new(BridgeTags::new(tags.collect())));
    }
    let bridge = |number: u8| {
        let fdb = Arc::new(Fdb::new(0, [seed, u64::from(number)]));
        Some(Bridge::new(
            "tenant".into(),
            fdb,
            TAGS[usize::from(number) - 1],
        ))
    };
    let view = Rig::new(&[], 1, seed).view;
    let view = std::mem::replace(&mut rig.view, view);
    rig.view = view.with_bridges(Box::new([bridge(1), bridge(2)]));
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

/// A frame within its bridge: its VLAN, its tag with priority if it has one, and what follows the addresses and that tag.
#[derive(Clone, Debug)]
struct Inner {
    bridge: u8,
    vlan: u16,
    tci: u16,
    is_tagged: bool,
    addresses: Vec<u8>,
    rest: Vec<u8>,
    /// Its bridge's tag with priority; as it arrived, if it did.
    outer: Tag,
}

fn is_tag(bytes: &[u8]) -> bool {
    matches!(bytes, [0x81, 0, ..] | [0x88, 0xa8, ..])
}

fn vid(tag: &[u8]) -> u16 {
    u16::from_be_bytes([tag[2], tag[3]]) & 0xfff
}

/// What a port makes of a frame; `None` if it refuses it.
fn decode(place: &Place, frame: &[u8]) -> Option<Inner> {
    let (addresses, mut rest) = frame.split_at(12);
    let mut bridge = place.bridge;
    let mut outer = [0; 4];
    let mut policy = &place.policy;
    let mut came_with_outer = false;
    if !place.others.is_empty() && is_tag(rest) {
        let is_it = |other: &&u8| {
            let tag = TAGS[usize::from(**other) - 1];
            tag[..2] == rest[..2] && vid(&tag) == vid(rest)
        };
        if let Some(other) = place.others.iter().find(is_it) {
            bridge = *other;
            outer.copy_from_slice(&rest[..4]);
            rest = &rest[4..];
            policy = &VlanPolicy::Unaware;
            came_with_outer = true;
        } else if rest[0] == 0x88 {
            return None;
        }
    }
    let is_tagged = rest[..2] == [0x81, 0];
    let mut tci = match (is_tagged, came_with_outer) {
        (true, _) => u16::from_be_bytes([rest[2], rest[3]]),
        (false, true) => u16::from_be_bytes([outer[2], outer[3]]) & 0xf000,
        (false, false) => 0,
    };
    let priority = tci & 0xf000;
    let vlan = match (policy, tci & 0xfff) {
        (VlanPolicy::Unaware, vid) => vid,
        (VlanPolicy::Untagged, 0) => 0,
        (VlanPolicy::Access(id), 0) => *id,
        (VlanPolicy::Trunk { native, .. }, 0) => (*native)?,
        (VlanPolicy::Untagged | VlanPolicy::Access(_), _) => return None,
        (trunk, vid) => trunk.carries(vid).then_some(vid)?,
    };
    tci = priority | vlan;
    if !came_with_outer && bridge != 0 {
        outer = TAGS[usize::from(bridge) - 1];
        outer[2] |= (priority >> 8) as u8;
    }
    Some(Inner {
        bridge,
        vlan,
        tci,
        is_tagged,
        addresses: addresses.to_vec(),
        rest: rest[if is_tagged { 4 } else { 0 }..].to_vec(),
        outer,
    })
}

/// The frame as it leaves through a port; `None` if it may not.
fn encode(place: &Place, inner: &Inner) -> Option<Vec<u8>> {
    let tci = inner.tci.to_be_bytes();
    let tag = [0x81, 0, tci[0], tci[1]];
    let tags: Vec<Tag> = if place.bridge == inner.bridge {
        let policy = &place.policy;
        if !policy.carries(inner.vlan) {
            return None;
        }
        let is_out_tagged = match inner.vlan {
            0 => inner.is_tagged,
            vlan => policy.sends_tagged(vlan),
        };
        let follows = is_tag(&inner.rest);
        // Behind a removed tag, or one without a VLAN, nothing may be that names another VLAN or bridge.
        if !is_out_tagged && inner.is_tagged && policy.is_trunk() && follows {
            return None;
        }
        let is_bare = !is_out_tagged || inner.vlan == 0;
        if !place.others.is_empty() && is_bare && follows {
            return None;
        }
        if is_out_tagged { vec![tag] } else { vec![] }
    } else if place.others.contains(&inner.bridge) {
        // In a VLAN of its bridge, it has a tag behind the bridge's.
        match inner.is_tagged || inner.vlan != 0 {
            true => vec![inner.outer, tag],
            false => vec![inner.outer],
        }
    } else {
        return None;
    };
    Some([&inner.addresses[..], &tags.concat(), &inner.rest].concat())
}

/// A bridge by hand.
#[derive(Default)]
struct Model {
    learned: HashMap<(u8, u16, Vec<u8>), usize>,
}

impl Model {
    /// What each port gets of a frame from port `from`.
    fn pass(&mut self, places: &[Place], from: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let Some(inner) = decode(&places[from], frame) else {
            return Vec::new();
        };
        let key = |address: &[u8]| (inner.bridge, inner.vlan, address.to_vec());
        self.learned.insert(key(&frame[6..12]), from);
        let to: Vec<usize> = match self.learned.get(&key(&frame[..6])) {
            Some(to) => vec![*to],
            None => (0..places.len()).collect(),
        };
        let others = to.into_iter().filter(|to| *to != from);
        others
            .filter_map(|to| Some((to, encode(&places[to], &inner)?)))
            .collect()
    }
}

#[derive(Clone, Debug)]
struct Sent {
    from: usize,
    frames: Vec<Vec<u8>>,
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let address = || (0u8..5).prop_map(|last| [2, 0, 0, 0, 0, last]);
    let target = prop_oneof![3 => address(), 1 => Just([0xff; 6])];
    let kind = prop_oneof![3 => Just([0x81u8, 0]), 1 => Just([0x88, 0xa8])];
    let vids = prop_oneof![Just(0u16), Just(5), Just(7), Just(8), Just(100), Just(200)];
    let tag = (kind, vids, 0u16..16).prop_map(|(kind, vid, priority)| {
        [&kind[..], &(priority << 12 | vid).to_be_bytes()].concat()
    });
    let tags = prop::collection::vec(tag, 0..4);
    (target, address(), tags, any::<u32>()).prop_map(|(dst, src, tags, mark)| {
        let head = [&dst[..], &src, &tags.concat(), &[0x88, 0xb7]].concat();
        [&head[..], &mark.to_be_bytes(), &[0; 60]].concat()
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    let frames = prop::collection::vec(frame(), 1..8);
    (0usize..12, frames).prop_map(|(from, frames)| Sent { from, frames })
}

proptest! {
    /// Every port gets exactly what a bridge by hand sends it, and every frame that arrives is of the bridge that it was sent
    /// in: at guests, at uplinks of one bridge, and at uplinks that have several by tags of either kind.
    #[test]
    fn no_frame_crosses_bridges(all in prop::collection::vec(sent(), 1..24), seed: u64) {
        let places = places();
        let mut rig = rig(&places, seed);
        let mut model = Model::default();
        for Sent { from, frames } in &all {
            let mut expected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); places.len()];
            for frame in frames {
                for (to, bytes) in model.pass(&places, *from, frame) {
                    let is_of = |place: &Place, bytes: &[u8]| decode(place, bytes).map(|it| it.bridge);
                    let bridge = is_of(&places[*from], frame);
                    // What leaves an uplink is read alike by a switch at its other end.
                    prop_assert_eq!(is_of(&places[to], &bytes).or(bridge), bridge);
                    expected[to].push(bytes);
                }
            }
            rig.pass(*from, frames);
            for (port, (driver, mut expected)) in rig.drivers.iter_mut().zip(expected).enumerate() {
                let mut got = driver.received().concat();
                // Flooded frames of a burst may pass frames for known addresses of other flows.
                got.sort();
                expected.sort();
                prop_assert_eq!(got, expected, "at port {} from {}", port, from);
            }
        }
    }
}

/// One address on two ports, in two bridges: each bridge finds its own.
#[test]
fn the_same_address_lives_in_two_bridges() {
    let places = places();
    let mut rig = rig(&places, 7);
    let frame = |dst: u8, src: u8| {
        let addresses = [[2, 0, 0, 0, 0, dst], [2, 0, 0, 0, 0, src]].concat();
        [&addresses[..], &[0x88, 0xb7], &[0; 50]].concat()
    };
    // Address 1 is behind port 0 of the default bridge, port 2 of bridge 1 and port 5 of bridge 2.
    for port in [0, 2, 5] {
        rig.pass(port, &[frame(9, 1)]);
    }
    rig.drivers
        .iter_mut()
        .for_each(|driver| drop(driver.received()));
    let tagged = |tag: Tag| {
        let frame = frame(1, 3);
        [&frame[..12], &tag, &frame[12..]].concat()
    };
    rig.pass(6, &[frame(1, 3), tagged(TAGS[0]), tagged(TAGS[1])]);
    let got: Vec<usize> = rig
        .drivers
        .iter_mut()
        .map(|driver| driver.received().concat().len())
        .collect();
    assert_eq!(got, [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
}
