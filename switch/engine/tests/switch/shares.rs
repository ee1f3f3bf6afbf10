//! A worker's time, shared out among ports that all want it.

use crosspoint_engine::worker::Idle;
use crosspoint_frame::BURST;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_vring::feature;

use crate::floor::{Change, Floor, QUANTUM_CYCLES, wait_for};
use crate::frames::{Flow, host};
use crate::large::large;
use crate::ports::{Driver, PortOptions, port};
use crate::world::MODERN;

/// The most that one burst takes on a machine that is busy with something else.
const BURST_CYCLES_MAX: u64 = 200 * QUANTUM_CYCLES;

fn add(floor: &mut Floor, number: u16, options: &PortOptions, weight: u32) -> Driver {
    let (mut driver, mut port) = port(number, options, 1);
    driver.post_all();
    port.view.weight = weight;
    floor.change(Change {
        port: Some((number, port.view)),
        add: vec![(0, port.stream)],
        ..Change::default()
    });
    driver
}

/// Refills a transmit ring with this frame. Returns how many the switch has given back.
fn refill(driver: &mut Driver, header: &VirtioNetHdr, frame: &[u8]) -> u64 {
    let back = driver.transmit.reap().unwrap();
    while driver.transmit.send(header, frame).unwrap() {}
    let _ = driver.transmit.ring().publish();
    back as u64
}

/// Two guests that always have frames. A frame of one costs a thousand times what one of the other does, and each has the
/// time that its weight says.
#[test]
fn time_goes_by_weight_whatever_the_frames_cost() {
    for weights in [[1, 1], [1, 3]] {
        let mut floor = Floor::start(1, Idle::Spin, 16, |run| run());
        let options = |transmit_size, frame_len_max| PortOptions {
            features: MODERN | feature::CSUM | feature::GUEST_CSUM,
            transmit_size,
            frame_len_max,
            ..PortOptions::default()
        };
        let mut costly = add(&mut floor, 0, &options(8, 65_600), weights[0]);
        // Enough for as long as the test's thread may be away.
        let mut plain = add(&mut floor, 1, &options(8192, 1600), weights[1]);
        let (header, segments) = large(&[7; 40_000], 40, false);
        // No address is known: each floods to the other.
        let segments = [&host(9)[..], &host(0), &segments[12..]].concat();
        let small = Flow::plain(host(1), host(8)).frame(60, 0, 0, 1);
        let cycles = |floor: &Floor, number: usize| {
            let port = floor.view.ports[number].as_ref().unwrap();
            port.counters.sum(0, |c| &c.cycles)
        };
        let (mut begun, mut frames) = (None, 0);
        wait_for("enough of both", || {
            refill(&mut costly, &header, &segments);
            frames += refill(&mut plain, &VirtioNetHdr::default(), &small);
            drop((plain.received(), costly.received()));
            let now = [cycles(&floor, 0), cycles(&floor, 1)];
            // From when both have begun.
            let begun = *begun.get_or_insert(now);
            now[1] - begun[1] > 2000 * QUANTUM_CYCLES && frames > 100 * BURST as u64
        });
        let begun = begun.unwrap();
        let [costly, plain] = [0, 1].map(|number| cycles(&floor, number) - begun[number]);
        // A machine that is busy with something else may keep the plain guest from having frames at all times.
        let fair = plain as f64 * f64::from(weights[0]) / f64::from(weights[1]);
        assert!(
            (costly as f64) < 1.5 * fair + BURST_CYCLES_MAX as f64,
            "{costly} beside {plain} with {weights:?}"
        );
    }
}
