use super::*;
use crate::dataplane::{PortOptions, testing};

/// A switch whose ports have these VLANs, are up, and block for a second.
fn dataplane(ports: &[VlanPolicy]) -> Arc<Dataplane> {
    let dataplane = testing::start(1);
    for (number, vlan) in ports.iter().enumerate() {
        let options = PortOptions {
            name: format!("up{number}"),
            kind: "xdp",
            vlan: vlan.clone(),
            mac_limit: 16,
            required: true,
            loop_protect: Some(LoopProtect {
                action: LoopAction::Block,
                block_time: Duration::from_secs(1),
            }),
            ..PortOptions::default()
        };
        dataplane.add_port(options).expect("there is room");
    }
    for port in dataplane.lock().ports.iter_mut().flatten() {
        port.state = PortState::Up;
    }
    dataplane
}

fn blocked(state: &State) -> Vec<bool> {
    let ports = state.ports.iter().flatten();
    ports.map(|port| port.blocked.is_some()).collect()
}

#[test]
fn an_old_probe_and_one_of_a_vlan_that_a_port_does_not_carry_are_ignored() {
    let dataplane = dataplane(&[VlanPolicy::Access(7), VlanPolicy::trunk(&[7, 8], None)]);
    let mut state = dataplane.lock();
    let start = Instant::now();
    dataplane.probe_loops(&mut state, start);
    let now = start + Duration::from_secs(20);
    let returned = |vlan, second| Returned {
        from: 0,
        at: 1,
        vlan,
        bridge: 0,
        second,
    };
    // Ten seconds old; from the future; of a VLAN that the sender left.
    for (vlan, second) in [(7, 10), (7, 15), (7, 21), (8, 20)] {
        dataplane.note_returned(&mut state, returned(vlan, second), now);
        assert!(!state.is_looping(0) && blocked(&state) == [false, false]);
    }
    dataplane.note_returned(&mut state, returned(7, 16), now);
    assert!(state.is_looping(0) && blocked(&state) == [false, true]);
    drop(state);
    dataplane.stop();
}

/// Probes come back in one of 64 VLANs, for 20 seconds.
#[test]
fn a_loop_in_one_of_many_vlans_keeps_its_port_blocked_and_all_are_probed() {
    const VLAN: u16 = 60;
    let ids: Vec<u16> = (1..=64).collect();
    let trunk = VlanPolicy::trunk(&ids, None);
    let dataplane = dataplane(&[trunk.clone(), trunk]);
    let mut state = dataplane.lock();
    let start = Instant::now();
    let (mut first, mut probed) = (None, BTreeSet::new());
    for look in 0..400 {
        let now = start + Duration::from_millis(100) * look;
        let second = state.probing.second(now);
        for (number, vlan) in Dataplane::due(&mut state, now) {
            probed.insert((number, vlan));
            if vlan == VLAN && look < 200 {
                let returned = Returned {
                    from: number,
                    at: 1 - number,
                    vlan,
                    bridge: 0,
                    second,
                };
                dataplane.note_returned(&mut state, returned, now);
            }
        }
        dataplane.end_loops(&mut state, now);
        first = first.or(state.is_looping(0).then_some(look));
        let is_there = first.is_some() && look < 200;
        assert!(!is_there || blocked(&state) == [false, true], "{look}");
    }
    assert!(first.is_some_and(|look| look < 50), "{first:?}");
    assert_eq!(probed.len(), 2 * ids.len());
    assert_eq!(blocked(&state), [false, false]);
    drop(state);
    dataplane.stop();
}

#[test]
fn a_trunk_of_many_vlans_takes_turns_and_one_of_few_has_all_each_time() {
    let mut probing = Probing::default();
    let ids: Vec<u16> = (10..50).collect();
    let many = VlanPolicy::trunk(&ids, None);
    let mut seen: Vec<u16> = (0..5).flat_map(|_| probing.vlans(3, &many)).collect();
    assert_eq!(seen.len(), 5 * VLANS_MAX);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, ids);
    let few = VlanPolicy::trunk(&[7, 9], Some(1));
    assert_eq!(probing.vlans(4, &few), [1, 7, 9]);
    assert_eq!(probing.vlans(4, &few), [1, 7, 9]);
    assert_eq!(probing.vlans(5, &VlanPolicy::Access(12)), [12]);
    assert_eq!(probing.vlans(6, &VlanPolicy::Unaware), [NO_VLAN]);
}
