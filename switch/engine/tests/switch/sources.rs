//! A guest can send only from its own addresses.

use std::collections::BTreeSet;
use std::sync::Arc;

use crosspoint_engine::bridge::probe::Probes;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::stages::guard::SourceGuard;
use crosspoint_packet::{DropReason, Mac};
use proptest::prelude::*;

use crate::frames::{Flow, host};
use crate::ports::PortOptions;
use crate::rig::Rig;

const PORTS: usize = 4;
const HOSTS: u8 = 6;

/// Each port's addresses, if it has a guard. No address is in two guards.
fn guards() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    let owners = prop::collection::vec(prop::option::of(0..PORTS), usize::from(HOSTS));
    owners.prop_map(|owners| {
        let of = |port| {
            let hosts = (0..HOSTS).zip(&owners);
            let own = hosts.filter(|(_, owner)| **owner == Some(port));
            let own: Vec<u8> = own.map(|(host, _)| host).collect();
            (!own.is_empty()).then_some(own)
        };
        (0..PORTS).map(of).collect()
    })
}

fn rig(vlans: &[u16], guards: &[Option<Vec<u8>>]) -> Rig {
    let options = |vlan: &u16| PortOptions {
        vlan: VlanPolicy::Access(*vlan),
        ..PortOptions::default()
    };
    let options: Vec<PortOptions> = vlans.iter().map(options).collect();
    let mut rig = Rig::new(&options, 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    for (port, guard) in rig.view.ports.iter_mut().zip(guards) {
        let addresses = |hosts: &Vec<u8>| hosts.iter().map(|n| Mac::new(host(*n))).collect();
        let guard = guard.as_ref().map(addresses).map(SourceGuard::new);
        port.as_mut().unwrap().sources = guard.map(Arc::new);
    }
    rig.view.renew_members();
    rig
}

fn dropped(rig: &Rig, port: usize) -> u64 {
    let counters = &rig.view.port(port as u16).unwrap().counters;
    let reason = DropReason::SourceNotAllowed as usize;
    counters.sum(0, |queue| &queue.drops[reason])
}

proptest! {
    /// A frame from an address that is not the sender's own, or that belongs to another port, reaches no port, is not
    /// learned, and is counted at its sender. Every other frame is delivered.
    #[test]
    fn no_frame_from_a_foreign_address_gets_through(
        guards in guards(),
        vlans in prop::collection::vec(1u16..=2, PORTS),
        sends in prop::collection::vec((0..PORTS, 0..HOSTS, 0..HOSTS + 1), 1..60),
    ) {
        let mut rig = rig(&vlans, &guards);
        let has = |port: usize, host: u8| guards[port].as_ref().map(|own| own.contains(&host));
        let mut refused = [0; PORTS];
        for (number, (from, source, to)) in sends.into_iter().enumerate() {
            let owner = (0..PORTS).find(|port| has(*port, source) == Some(true));
            let is_bound_elsewhere = owner.is_some_and(|owner| owner != from && vlans[owner] == vlans[from]);
            let is_foreign = has(from, source) == Some(false) || is_bound_elsewhere;
            let dst = if to == HOSTS { [0xff; 6] } else { host(to) };
            rig.pass(from, &[Flow::plain(host(source), dst).frame(60, from as u32, 0, number as u64)]);
            let seen: Vec<Vec<u8>> = rig.drivers.iter_mut().flat_map(|driver| driver.received().concat()).collect();
            if is_foreign {
                refused[from] += 1;
                prop_assert!(seen.is_empty(), "a frame from {:?} of port {}", host(source), from);
            } else if to == HOSTS {
                let others = (0..PORTS).filter(|port| *port != from && vlans[*port] == vlans[from]);
                prop_assert_eq!(seen.len(), others.count());
            }
            prop_assert_eq!(dropped(&rig, from), refused[from]);
        }
        let known: BTreeSet<(Mac, u16, u16)> =
            rig.view.fdb.dump(0).into_iter().map(|(mac, vlan, port, _)| (mac, vlan, port)).collect();
        for (mac, vlan, port) in known {
            prop_assert!(rig.view.allows_source(mac, vlan, port), "{} on port {}", mac, port);
        }
    }
}

/// All equal frames from a stolen address are dropped, not only the first of each burst.
#[test]
fn every_frame_of_a_burst_is_refused() {
    let mut rig = rig(&[1, 1, 1], &[Some(vec![0]), None, None]);
    let frame = Flow::plain(host(0), host(9)).frame(60, 1, 0, 0);
    rig.pass(1, &vec![frame; 40]);
    assert_eq!(dropped(&rig, 1), 40);
    assert!(rig.drivers[2].received().concat().is_empty());
    assert!(rig.view.fdb.dump(0).is_empty());
}

/// A loop probe uses none of the addresses that a port may have, and moves none.
#[test]
fn nothing_is_learned_of_a_probe() {
    let mut rig = rig(&[7, 7], &[None, None]);
    let probes = Arc::new(Probes::default());
    rig.view.probes = Some(probes.clone());
    let probe = probes.frame(1, 7, "x").to_vec();
    rig.pass(0, std::slice::from_ref(&probe));
    let learned = |rig: &Rig| rig.view.port(0).unwrap().quota.used();
    assert_eq!((learned(&rig), probes.returned().len()), (0, 1));
    // Another process's probe is treated like any frame.
    rig.pass(0, &[Probes::default().frame(1, 7, "x").to_vec()]);
    assert_eq!((learned(&rig), probes.returned().len()), (1, 0));
}
