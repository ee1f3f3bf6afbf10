//! Frames of one flow arrive in the order in which they were sent, whatever happens to their destination meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::lookup;
use crosspoint_frame::{BURST, Verdict};
use crosspoint_packet::Mac;
use proptest::prelude::*;

use crate::frames::{Flow, Ip, host, trailer};
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::Random;

const SENDER: usize = 0;
const STATION: u8 = 9;

/// A sender, and three possible ports of the station, the second with several queues.
fn rig(seed: u64) -> Rig {
    let several = PortOptions {
        queues: 3,
        ..PortOptions::default()
    };
    let one = PortOptions::default();
    let mut rig = Rig::new(&[one.clone(), several, one.clone(), one], 1, seed);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

/// Returns a flow to the station; flows differ in fields that the hash uses.
fn flow(number: u32) -> Flow {
    let ip = Ip {
        v6: number.is_multiple_of(2),
        from: (1, number as u16),
        to: (2, 80),
        fragment: false,
    };
    Flow {
        ip: Some(ip),
        ..Flow::plain(host(SENDER as u8), host(STATION))
    }
}

/// Port and queue at which each flow's frames arrived, with their numbers in order.
#[derive(Default)]
struct Seen(std::collections::BTreeMap<(usize, usize, u32), Vec<u64>>);

impl Seen {
    fn collect(&mut self, rig: &mut Rig) {
        for (port, driver) in rig.drivers.iter_mut().enumerate() {
            for (queue, frames) in driver.received().iter().enumerate() {
                for frame in frames {
                    let (_, flow, number) = trailer(frame);
                    self.0.entry((port, queue, flow)).or_default().push(number);
                }
            }
        }
    }

    fn assert_in_order(&self) {
        let mut queues = std::collections::BTreeMap::new();
        for ((port, queue, flow), numbers) in &self.0 {
            let rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(rising, "port {port}, flow {flow}: {numbers:?}");
            let other = queues.insert((port, flow), queue);
            assert_eq!(other, None, "flow {flow} on two queues of port {port}");
        }
    }
}

/// Sets the station's port in the switch's forwarding database, or none.
fn place(view: &Snapshot, port: Option<u16>) {
    let key = view.fdb.key(Mac::new(host(STATION)), 0);
    let quotas = |port| view.port(port).map(|port| &*port.quota);
    match port {
        Some(port) => drop(view.fdb.learn(key, port, 0, quotas)),
        None => drop(view.fdb.sweep(0, quotas, |_, _| true)),
    }
}

proptest! {
    /// The station is learned, moves or is forgotten between two frames of a burst; between bursts its port goes down and
    /// up. No receiver gets a flow's frames out of order, or twice, or on two queues.
    #[test]
    fn a_flow_keeps_its_order_while_its_destination_changes_in_mid_burst(
        steps in proptest::collection::vec((0..=BURST, proptest::option::of(0u16..4), 0u8..8), 1..20),
        seed: u64,
    ) {
        let (mut rig, mut random) = (rig(seed), Random(seed));
        let ports = rig.view.ports.clone();
        let (mut seen, mut number) = (Seen::default(), 0);
        for (from, to, down) in steps {
            for (number, port) in rig.view.ports.iter_mut().enumerate() {
                port.clone_from(&ports[number]);
                if let (1, Some(port)) = (down >> number & 1, port) {
                    port.egress = Egress::Down;
                }
            }
            for _ in 0..BURST {
                let id = random.below(4) as u32;
                rig.drivers[SENDER].send(&flow(id).frame(100, 0, id, number));
                number += 1;
            }
            let _ = rig.drivers[SENDER].transmit.ring().publish();
            let count = rig.turn_with(0, SENDER, |burst, view, keys| {
                place(view, to);
                for frame in &mut burst.frames_mut()[from..] {
                    frame.verdict = Verdict::PENDING;
                }
                lookup(burst, SENDER as u16, view, 0, keys);
            });
            prop_assert_eq!(count, BURST);
            seen.collect(&mut rig);
        }
        seen.assert_in_order();
    }
}

/// The same while another thread moves the station concurrently, as another worker would.
#[test]
fn a_flow_keeps_its_order_while_another_worker_moves_its_destination() {
    let mut rig = rig(1);
    let (fdb, stop) = (rig.view.fdb.clone(), AtomicBool::new(false));
    let (mut seen, mut number) = (Seen::default(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(2);
            while !stop.load(Ordering::Relaxed) {
                let key = fdb.key(Mac::new(host(STATION)), 0);
                match random.below(5) {
                    0 => drop(fdb.sweep(0, |_| None, |_, _| true)),
                    port => drop(fdb.learn(key, port as u16 - 1, 0, |_| None)),
                }
                (0..random.below(300)).for_each(|_| std::hint::spin_loop());
            }
        });
        for _ in 0..2000 {
            let frame = |i: u64| flow((i % 3) as u32).frame(100, 0, (i % 3) as u32, i);
            let frames: Vec<_> = (number..number + BURST as u64).map(frame).collect();
            number += BURST as u64;
            rig.pass(SENDER, &frames);
            seen.collect(&mut rig);
        }
        stop.store(true, Ordering::Relaxed);
    });
    seen.assert_in_order();
    // Otherwise the test has tested nothing.
    for port in 1..4 {
        let frames = seen.0.iter().filter(|(key, _)| key.0 == port);
        assert!(frames.map(|(_, numbers)| numbers.len()).sum::<usize>() > 1000);
    }
}
