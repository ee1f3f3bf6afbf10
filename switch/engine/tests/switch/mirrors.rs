//! Mirrors copy what they are asked to and change nothing else. The model is the same switch without the mirror: from
//! what its guests receive follows what a mirror must copy.

use std::collections::{BTreeMap, BTreeSet};

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::observe::mirror::{Mirror, MirrorCounters, MirrorOptions, PortSet};
use crosspoint_packet::DropReason;
use crosspoint_packet::filter::Filter;
use proptest::prelude::*;

use crate::frames::{Flow, host, trailer};
use crate::ports::{PortOptions, port};
use crate::single::Single;

const GUESTS: usize = 5;
const OUTPUT: usize = 5;
const FRAME_LEN: usize = 200;
const VLANS: [u16; 2] = [7, 8];

/// A frame that a guest sends.
#[derive(Clone, Debug)]
struct Sent {
    from: usize,
    /// `None`: a broadcast.
    to: Option<usize>,
    tag: Option<u16>,
}

/// What a mirror is asked to copy.
#[derive(Clone, Debug)]
struct Asked {
    received: BTreeSet<usize>,
    sent: BTreeSet<usize>,
    vlan_only: Option<u16>,
    unicast_only: bool,
    output_vlan: Option<u16>,
}

fn policy() -> impl Strategy<Value = VlanPolicy> {
    prop_oneof![
        Just(VlanPolicy::Access(VLANS[0])),
        Just(VlanPolicy::Access(VLANS[1])),
        Just(VlanPolicy::trunk(&VLANS, Some(VLANS[0]))),
        Just(VlanPolicy::trunk(&VLANS, None)),
    ]
}

fn guest() -> impl Strategy<Value = PortOptions> {
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    (policy(), flags).prop_map(|(vlan, (is_isolated, is_uplink))| PortOptions {
        vlan,
        is_isolated: is_isolated && !is_uplink,
        is_uplink,
        ..PortOptions::default()
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    let tag = prop_oneof![2 => Just(None), 1 => prop::sample::select(&VLANS[..]).prop_map(Some)];
    let to = prop_oneof![3 => (0..GUESTS).prop_map(Some), 1 => Just(None)];
    (0..GUESTS, to, tag).prop_map(|(from, to, tag)| Sent { from, to, tag })
}

fn asked() -> impl Strategy<Value = Asked> {
    let some = || prop::collection::btree_set(0..GUESTS, 0..GUESTS);
    let vlan = || prop::option::weighted(0.3, prop::sample::select(&VLANS[..]));
    let output_vlan = prop::option::weighted(0.3, Just(999));
    (some(), some(), vlan(), any::<bool>(), output_vlan).prop_map(
        |(received, sent, vlan_only, unicast_only, output_vlan)| Asked {
            received,
            sent,
            vlan_only,
            unicast_only,
            output_vlan,
        },
    )
}

fn frame(number: usize, sent: &Sent) -> Vec<u8> {
    let to = sent.to.map_or([0xff; 6], |to| host(to as u8));
    let flow = Flow::plain(host(sent.from as u8), to);
    let mut bytes = flow.frame(FRAME_LEN, sent.from as u32, 0, number as u64);
    if let Some(tag) = sent.tag {
        let tag = (0x6000 | tag).to_be_bytes();
        bytes.splice(12..12, [0x81, 0, tag[0], tag[1]]);
    }
    bytes
}

fn options_of(asked: &Asked) -> MirrorOptions {
    let set = |ports: &BTreeSet<usize>| {
        let mut set = PortSet::default();
        ports.iter().for_each(|port| set.add(*port as u16));
        set
    };
    MirrorOptions {
        received: set(&asked.received),
        sent: set(&asked.sent),
        vlans: asked.vlan_only.map(|vlan| {
            let mut vlans = Box::new([0; 64]);
            vlans[usize::from(vlan) / 64] = 1 << (vlan % 64);
            vlans
        }),
        filter: asked
            .unicast_only
            .then(|| Filter::parse("not ether broadcast").unwrap()),
        output: OUTPUT as u16,
        vlan: asked.output_vlan,
    }
}

/// What happened to the frames.
struct Run {
    /// By port.
    received: Vec<Vec<Vec<u8>>>,
    drops: Vec<BTreeMap<DropReason, u64>>,
    /// The mirror's copies: delivered, and missed.
    counts: (u64, u64),
}

/// Sends the frames.
fn run(guests: &[PortOptions], frames: &[Sent], asked: Option<&Asked>) -> Run {
    let output = PortOptions {
        takes_mirror: true,
        ..PortOptions::default()
    };
    let made = guests.iter().chain([&output]).enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let counters = MirrorCounters::new(1);
    let mut single = Single::start_with(made.collect(), Box::new([]), |view| {
        let mirror =
            asked.map(|asked| Mirror::new(options_of(asked), &view.ports, counters.clone()));
        view.mirrors = mirror.into_iter().collect();
    });
    // Runs of one sender are a burst.
    for (number, sent) in frames.iter().enumerate() {
        single.drivers[sent.from].send(&frame(number, sent));
        if frames
            .get(number + 1)
            .is_none_or(|next| next.from != sent.from)
        {
            single.drain_of(sent.from);
        }
    }
    let ledgers = single.ledgers();
    let drops = ledgers.into_iter().map(|ledger| ledger.drops);
    let drivers = single.drivers.iter_mut();
    let received = drivers.map(|driver| driver.received().concat());
    Run {
        received: received.collect(),
        drops: drops.collect(),
        counts: counters.get(),
    }
}

/// The VLAN that a guest's frame is in, if its port takes it.
fn vlan_of(guest: &PortOptions, tag: Option<u16>) -> Option<u16> {
    let admitted = guest.vlan.admit(tag.map(|tag| 0x6000 | tag)).ok();
    admitted.map(|admitted| admitted.vlan)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// A mirror gets exactly one copy of each frame that comes from or goes to its ports and matches its VLAN and filter,
    /// in order, with the tag of its VLAN or of the mirror's; every other port gets the same bytes as without it.
    #[test]
    fn a_mirror_copies_what_it_is_asked_to_and_changes_nothing_else(
        guests in prop::collection::vec(guest(), GUESTS),
        frames in prop::collection::vec(sent(), 1..120),
        asked in asked(),
    ) {
        let Run { received: plain, drops: plain_drops, .. } = run(&guests, &frames, None);
        let Run { received: mirrored, drops, counts } = run(&guests, &frames, Some(&asked));
        prop_assert_eq!(&plain[..OUTPUT], &mirrored[..OUTPUT]);
        prop_assert_eq!(&plain_drops, &drops);
        prop_assert!(plain[OUTPUT].is_empty());

        // By frame: the ports that got it.
        let mut reached: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        for (port, frames) in plain.iter().enumerate() {
            for bytes in frames {
                reached.entry(trailer(bytes).2).or_default().insert(port);
            }
        }
        let (mut expected, mut unreached) = (Vec::new(), Vec::new());
        for (number, sent) in frames.iter().enumerate() {
            let Some(vlan) = vlan_of(&guests[sent.from], sent.tag) else { continue };
            let ports = reached.get(&(number as u64));
            let is_sent = ports.is_some_and(|ports| !ports.is_disjoint(&asked.sent));
            let is_wanted = asked.vlan_only.is_none_or(|wanted| wanted == vlan)
                && (!asked.unicast_only || sent.to.is_some());
            if !is_wanted || !(is_sent || asked.received.contains(&sent.from)) {
                continue;
            }
            // A frame that no port gets is copied if it was flooded, and not if it was dropped.
            match ports {
                Some(_) => expected.push(number as u64),
                None => unreached.push(number as u64),
            }
        }
        let numbers: Vec<u64> = mirrored[OUTPUT].iter().map(|bytes| trailer(bytes).2).collect();
        let (unreached_got, got): (Vec<u64>, Vec<u64>) =
            numbers.iter().partition(|number| !reached.contains_key(number));
        prop_assert_eq!(got, expected);
        prop_assert!(unreached_got.iter().all(|number| unreached.contains(number)));
        prop_assert_eq!(counts, (mirrored[OUTPUT].len() as u64, 0));
        for (number, bytes) in numbers.iter().zip(&mirrored[OUTPUT]) {
            let sent = &frames[*number as usize];
            let vlan = asked.output_vlan.or(vlan_of(&guests[sent.from], sent.tag)).unwrap();
            let priority = if sent.tag.is_some() { 0x6000 } else { 0 };
            let mut untagged = bytes.clone();
            let tag: Vec<u8> = untagged.drain(12..16).collect();
            let tci = (priority | vlan).to_be_bytes();
            prop_assert_eq!(tag, vec![0x81, 0, tci[0], tci[1]]);
            prop_assert_eq!(untagged, frame(*number as usize, &Sent { tag: None, ..sent.clone() }));
        }
    }
}

/// A mirror's port whose guest takes no frames costs the others none, and what it misses is counted.
#[test]
fn a_mirror_whose_guest_is_slow_loses_its_own_copies_only() {
    let guests = vec![PortOptions::default(); GUESTS];
    let frames = vec![
        Sent {
            from: 0,
            to: Some(1),
            tag: None
        };
        200
    ];
    let asked = Asked {
        received: BTreeSet::from([0]),
        sent: BTreeSet::from([1]),
        vlan_only: None,
        unicast_only: false,
        output_vlan: None,
    };
    let output = PortOptions {
        takes_mirror: true,
        receive_size: 64,
        ..PortOptions::default()
    };
    let made = guests.iter().chain([&output]).enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let counters = MirrorCounters::new(1);
    let mut single = Single::start_with(made.collect(), Box::new([]), |view| {
        let mirror = Mirror::new(options_of(&asked), &view.ports, counters.clone());
        view.mirrors = Box::new([mirror]);
    });
    for (number, sent) in frames.iter().enumerate() {
        single.drivers[0].send(&frame(number, sent));
    }
    single.drain();
    let ledgers = single.ledgers();
    assert_eq!(single.drivers[1].received().concat().len(), 200);
    let got = single.drivers[OUTPUT].received().concat().len() as u64;
    assert_eq!((got, counters.get()), (64, (64, 136)));
    assert_eq!(ledgers[OUTPUT].drops[&DropReason::GuestRingFull], 136);
    assert_eq!(ledgers[0].mirror_copies, 200);
}

/// What the guest behind a mirror's port sends goes nowhere.
#[test]
fn frames_from_a_mirrors_port_are_dropped() {
    let output = PortOptions {
        takes_mirror: true,
        ..PortOptions::default()
    };
    let made = [output, PortOptions::default()];
    let made = made.iter().enumerate();
    let made = made.map(|(number, options)| port(number as u16, options, 1));
    let mut single = Single::start(made.collect(), Box::new([]));
    single.drivers[0].send(&Flow::plain(host(9), [0xff; 6]).frame(FRAME_LEN, 0, 0, 0));
    single.drain();
    assert_eq!(single.ledgers()[0].drops[&DropReason::MirrorPort], 1);
    assert!(single.drivers[1].received().concat().is_empty());
}
