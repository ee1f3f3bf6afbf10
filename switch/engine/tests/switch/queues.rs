//! Choice of a guest's receive queue.

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_vring::feature;
use proptest::prelude::*;

use crate::frames::{Flow, Ip, host};
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::{LAYOUTS, MODERN};

fn options(vlan: VlanPolicy, queues: usize) -> PortOptions {
    PortOptions {
        vlan,
        queues,
        transmit_size: 8,
        receive_size: 8,
        ..PortOptions::default()
    }
}

/// Returns the port and queue at which the frame arrived. Nothing else may arrive.
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

    /// A request and its answer use the same queue index if both guests have as many queues, with or without a tag on the
    /// way.
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

/// Many flows use all queues.
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

/// Returns a UDP flow with this port, from the first guest to the second.
fn flow(port: u16) -> Flow {
    let ip = Some(Ip {
        v6: false,
        from: (1, port),
        to: (2, 80),
        fragment: false,
    });
    Flow {
        ip,
        ..Flow::plain(host(1), host(2))
    }
}

/// A port of a guest with one queue, and one of a guest with `queues` queues and these features.
fn pair(queues: usize, features: u64, workers: usize) -> Rig {
    let many = PortOptions {
        receive_size: 64,
        receive_base: 0,
        features,
        ..options(VlanPolicy::Unaware, queues)
    };
    let few = PortOptions {
        transmit_size: 64,
        ..options(VlanPolicy::Unaware, 1)
    };
    let mut rig = Rig::new(&[few, many], workers, 3);
    let queues = &mut rig.drivers[1].receive;
    queues.iter_mut().for_each(|queue| queue.set_repost(false));
    // The switch learns the second guest's address.
    rig.pass(1, &[flow(0).back().frame(100, 0, 0, 0)]);
    rig
}

fn post(rig: &mut Rig, queue: usize, count: u16) {
    let queue = &mut rig.drivers[1].receive[queue];
    queue.post(count).unwrap();
    let _ = queue.virtqueue().publish();
}

/// Takes the arrived frames, by queue, and offers the same number of buffers again.
fn take(rig: &mut Rig) -> Vec<Vec<Vec<u8>>> {
    let arrived = rig.drivers[1].received();
    for (queue, frames) in arrived.iter().enumerate() {
        post(rig, queue, frames.len() as u16);
        let ring = rig.drivers[1].receive[queue].virtqueue();
        assert!(!ring.enable_calls().unwrap(), "more has arrived");
    }
    arrived
}

/// Counts how many of 64 flows, and of a broadcast from each station, arrive at each queue.
fn spread(rig: &mut Rig, queues: usize) -> Vec<usize> {
    let mut count = vec![0; queues];
    for port in 0..64 {
        let to_all = Flow {
            dst: [0xff; 6],
            src: host(30 + port as u8),
            ip: None,
            ..flow(port)
        };
        for flow in [flow(port), to_all] {
            rig.pass(0, &[flow.frame(100, 0, 0, 0)]);
            for (queue, frames) in take(rig).iter().enumerate() {
                count[queue] += frames.len();
            }
        }
    }
    count
}

/// Cloud Hypervisor enables all its queues, and a driver may use one: no frame goes to an unused queue.
#[test]
fn a_queue_without_a_buffer_takes_no_flow_until_it_has_one() {
    for features in LAYOUTS.map(|layout| MODERN | layout) {
        let mut rig = pair(4, features, 1);
        post(&mut rig, 0, 64);
        assert_eq!(spread(&mut rig, 4), [128, 0, 0, 0]);
        assert_eq!(spread(&mut rig, 4), [128, 0, 0, 0]);
        // Two queues join, and one of them is not the next.
        post(&mut rig, 1, 64);
        post(&mut rig, 3, 64);
        spread(&mut rig, 4);
        let three = spread(&mut rig, 4);
        assert_eq!((three[2], three.iter().sum()), (0, 128));
        assert!(
            three.iter().all(|n| *n == 0 || (20..70).contains(n)),
            "{three:?}"
        );
        post(&mut rig, 2, 64);
        spread(&mut rig, 4);
        let all = spread(&mut rig, 4);
        assert_eq!(all.iter().sum::<usize>(), 128);
        assert!(all.iter().all(|n| (15..55).contains(n)), "{all:?}");
    }
}

/// While no queue has a buffer, frames to all queues are lost; later no flow stays on an unused queue.
#[test]
fn a_guest_whose_queues_have_no_buffers_gets_its_flows_where_the_first_ones_are() {
    let mut rig = pair(2, MODERN, 1);
    assert_eq!(spread(&mut rig, 2), [0, 0]);
    post(&mut rig, 1, 64);
    spread(&mut rig, 2);
    assert_eq!(spread(&mut rig, 2), [0, 128]);
}

/// A flow leaves its queue only when the driver has taken all its frames there; other flows move at once.
#[test]
fn a_flow_that_goes_to_another_queue_keeps_its_order() {
    let layouts = LAYOUTS.map(|layout| MODERN | layout);
    // A driver shows this by asking for a call, or by a ring full of buffers.
    let plain = layouts.map(|layout| (layout, 64));
    let with_events = layouts.map(|layout| (layout | feature::EVENT_IDX, 40));
    for (features, buffers) in plain.into_iter().chain(with_events) {
        let mut rig = pair(2, features, 2);
        post(&mut rig, 0, buffers);
        let frames = |count: u16| -> Vec<Vec<u8>> {
            (0..count)
                .map(|port| flow(port).frame(100, 0, 0, 0))
                .collect()
        };
        rig.pass(0, &frames(16));
        post(&mut rig, 1, buffers);
        // The driver has 16 frames in its first queue, and has taken none of them.
        rig.pass(0, &frames(16));
        let taken: Vec<usize> = take(&mut rig).iter().map(Vec::len).collect();
        assert_eq!(taken, [32, 0], "{features:#x}");
        // Now it has taken all, and offers its buffers again.
        rig.pass(0, &frames(16));
        let taken: Vec<usize> = take(&mut rig).iter().map(Vec::len).collect();
        assert_eq!(taken.iter().sum::<usize>(), 16);
        assert!(taken.iter().all(|n| *n > 3), "{taken:?}");
    }
}

/// Within one burst: frames of a flow wait for delivery to the queue that the flow is about to leave.
#[test]
fn a_flow_does_not_change_its_queue_in_the_middle_of_a_burst() {
    let mut rig = pair(2, MODERN, 1);
    post(&mut rig, 0, 64);
    rig.pass(0, &[flow(0).frame(100, 0, 0, 0)]);
    post(&mut rig, 1, 64);
    let frames: Vec<Vec<u8>> = (0..8)
        .flat_map(|_| (0..8).map(|port| flow(port).frame(60, 0, 0, 0)))
        .collect();
    for _ in 0..8 {
        rig.drivers[0].received();
        for chunk in frames.chunks(32) {
            rig.pass(0, chunk);
            let taken = take(&mut rig);
            for port in 0..8 {
                let of = |frames: &Vec<Vec<u8>>| frames.contains(&flow(port).frame(60, 0, 0, 0));
                assert_eq!(taken.iter().filter(|frames| of(frames)).count(), 1);
            }
        }
    }
}
