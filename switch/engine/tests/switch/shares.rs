//! A worker's time, shared out among ports that all want it.

use crosspoint_engine::counters::{Counter, QueueCounters};
use crosspoint_engine::worker::Idle;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_vring::feature;

use crate::floor::{Change, Floor, wait_for};
use crate::frames::{Flow, host};
use crate::large::large;
use crate::ports::{Driver, Port, PortOptions, port};
use crate::world::MODERN;

fn add(floor: &mut Floor, number: u16, made: Port, weight: u32) {
    let mut view = made.view;
    view.weight = weight;
    floor.change(Change {
        port: Some((number, view)),
        add: vec![(0, made.stream)],
        ..Change::default()
    });
}

/// Refills a transmit ring with this frame.
fn refill(driver: &mut Driver, header: &VirtioNetHdr, frame: &[u8]) {
    driver.transmit.reap().unwrap();
    while driver.transmit.send(header, frame).unwrap() {}
    let _ = driver.transmit.ring().publish();
}

/// Two guests that have frames waiting. A frame of one costs a thousand times what one of the other does; while both want
/// the worker, that one is held back.
#[test]
fn costly_frames_wait_for_plain_ones() {
    for weights in [[1, 1], [1, 3]] {
        let mut floor = Floor::start(1, Idle::Spin, 16, |run| run());
        let options = |transmit_size, frame_len_max| PortOptions {
            features: MODERN | feature::CSUM | feature::GUEST_CSUM,
            transmit_size,
            frame_len_max,
            receive_size: 1024,
            ..PortOptions::default()
        };
        let (mut sink, made) = port(2, &options(8, 1600), 1);
        sink.post_all();
        add(&mut floor, 2, made, 1);
        let (mut costly, made) = port(0, &options(8, 65_600), 1);
        let (header, segments) = large(&[7; 40_000], 40, false);
        // No address is known: frames are flooded to the others.
        let segments = [&host(9)[..], &host(0), &segments[12..]].concat();
        refill(&mut costly, &header, &segments);
        add(&mut floor, 0, made, weights[0]);
        let (mut plain, made) = port(1, &options(256, 200), 1);
        let small = Flow::plain(host(1), host(8)).frame(60, 0, 0, 1);
        refill(&mut plain, &VirtioNetHdr::default(), &small);
        let sum = |floor: &Floor, number: usize, counter: fn(&QueueCounters) -> &Counter| {
            floor.view.ports[number]
                .as_ref()
                .map_or(0, |port| port.counters.sum(0, counter))
        };
        add(&mut floor, 1, made, weights[1]);
        wait_for("all of the plain frames", || {
            refill(&mut costly, &header, &segments);
            drop(sink.received());
            sum(&floor, 1, |c| &c.rx_frames) == 256
        });
        assert!(sum(&floor, 0, |c| &c.held_back) > 0, "{weights:?}");
    }
}
