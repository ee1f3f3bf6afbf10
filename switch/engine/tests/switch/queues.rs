//! Which receive queue of a guest a frame goes to.

use crosspoint_engine::vlan::VlanPolicy;
use proptest::prelude::*;

use crate::frames::{Flow, Ip, host};
use crate::ports::PortOptions;
use crate::rig::Rig;

fn options(vlan: VlanPolicy, queues: usize) -> PortOptions {
    PortOptions {
        vlan,
        queues,
        transmit_size: 8,
        receive_size: 8,
        ..PortOptions::default()
    }
}

/// Where the frame arrived: port and queue. Nothing else may arrive.
fn passed(rig: &mut Rig, ingress: usize, frame: Vec<u8>) -> (usize, usize) {
    rig.pass(ingress, &[frame]);
    let mut arrived = Vec::new();
    for (port, driver) in rig.drivers.iter_mut().enumerate() {
        for (queue, frames) in driver.received().iter().enumerate() {
            arrived.extend(frames.iter().map(|_| (port, queue)));
        }
    }
    assert_eq!(arrived.len(), 1);
    arrived[0]
}

fn end() -> impl Strategy<Value = (u8, u16)> {
    (any::<u8>(), any::<u16>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A request and its answer meet on one queue index, at guests with as many queues each; whether the link layer
    /// on the way has a tag or not.
    #[test]
    fn both_directions_of_a_flow_have_the_same_queue(
        queues in 1usize..=16,
        trunk: bool,
        seed: u64,
        flows in proptest::collection::vec((end(), end(), any::<bool>(), any::<bool>(), any::<bool>()), 1..20),
    ) {
        let far = if trunk { VlanPolicy::trunk(&[5], None) } else { VlanPolicy::Access(5) };
        let ports = [options(VlanPolicy::Access(5), queues), options(far, queues)];
        let mut rig = Rig::new(&ports, 1, seed);
        rig.drivers.iter_mut().for_each(|driver| driver.post_all());
        for (from, to, v6, fragment, is_ip) in flows {
            let ip = is_ip.then_some(Ip { v6, from, to, fragment });
            let there = Flow { ip, ..Flow::plain(host(1), host(2)) };
            let back = Flow { tag: trunk.then_some(0x6005), ..there.back() };
            let (port, queue) = passed(&mut rig, 0, there.frame(120, 0, 0, 1));
            prop_assert_eq!(port, 1);
            prop_assert_eq!(passed(&mut rig, 1, back.frame(1500, 0, 0, 2)), (0, queue));
        }
    }
}

/// Many flows use all the queues that there are.
#[test]
fn flows_use_every_queue() {
    let ports = [
        options(VlanPolicy::Unaware, 1),
        options(VlanPolicy::Unaware, 4),
    ];
    let mut rig = Rig::new(&ports, 1, 3);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    let mut count = [0; 4];
    for port in 0..400 {
        let ip = Some(Ip {
            v6: false,
            from: (1, port),
            to: (2, 80),
            fragment: false,
        });
        let flow = Flow {
            ip,
            ..Flow::plain(host(1), host(2))
        };
        count[passed(&mut rig, 0, flow.frame(100, 0, 0, 0)).1] += 1;
    }
    assert!(count.iter().all(|n| (60..140).contains(n)), "{count:?}");
}
