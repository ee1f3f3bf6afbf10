//! Sharing of a worker's time among ports that all want it.

use crosspoint_engine::observe::counters::Counter;
use crosspoint_engine::observe::counters::QueueCounters;
use crosspoint_engine::worker::Idle;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_guest::ring::Buffer;
use crosspoint_vring::feature;

use crate::floor::{Change, Floor, wait_for};
use crate::frames::{Flow, host};
use crate::large::large;
use crate::ports::{Driver, Port, PortOptions, port};
use crate::world::MODERN;

/// Frames that wait in the rings before the worker starts: no guest competes with it for a core.
const PLAIN: usize = 8192;
const COSTLY: usize = 24;
/// Runs. One of them must show the shares.
const TRIES: usize = 5;
/// Segments of a costly frame. The sink gets them all.
const SEGMENTS: usize = 1000;

/// Fills a transmit ring: all its entries refer to the one frame.
fn fill(driver: &mut Driver, header: &VirtioNetHdr, frame: &[u8], frames: usize) {
    let bytes = [&header.to_bytes()[..], frame].concat();
    driver.transmit.area().view().write(0, &bytes);
    let buffer = Buffer {
        address: driver.transmit.area().guest_address(),
        len: bytes.len() as u32,
        device_writes: false,
    };
    for _ in 0..frames {
        let added = driver.transmit.ring().add(&[buffer]);
        assert!(added.is_some(), "no room");
    }
    let _ = driver.transmit.ring().publish();
}

fn sum(floor: &Floor, number: usize, counter: fn(&QueueCounters) -> &Counter) -> u64 {
    let port = floor.view.ports[number].as_ref();
    port.map_or(0, |port| port.counters.sum(0, counter))
}

/// Two guests have frames waiting; a costly frame takes as long as hundreds of plain ones. Returns how many plain frames
/// were taken per costly one while both guests had frames waiting.
fn plain_per_costly(weight: u32) -> f64 {
    let mut floor = Floor::start(1, Idle::Spin, 16, |run| run());
    let options = |transmit_size, frame_len_max| PortOptions {
        features: MODERN | feature::CSUM | feature::GUEST_CSUM,
        transmit_size,
        frame_len_max,
        receive_size: 32_768,
        buffer_len: 256,
        ..PortOptions::default()
    };
    // No address is known: frames are flooded, and only the sink has buffers for them.
    let (mut sink, receiver) = port(2, &options(8, 1600), 1);
    sink.post_all();
    let (header, segments) = large(&[7; 40 * SEGMENTS], 40, false);
    let segments = [&host(9)[..], &host(0), &segments[12..]].concat();
    let (mut driver, costly) = port(0, &options(64, 65_600), 1);
    fill(&mut driver, &header, &segments, COSTLY);
    let (mut other, plain) = port(1, &options(PLAIN as u16, 200), 1);
    let small = Flow::plain(host(1), host(8)).frame(60, 0, 0, 1);
    fill(&mut other, &VirtioNetHdr::default(), &small, PLAIN);
    let mut streams = Vec::new();
    for (number, made, weight) in [(2, receiver, 1), (0, costly, 1), (1, plain, weight)] {
        let Port { mut view, stream } = made;
        view.weight = weight;
        streams.push((0, stream));
        floor.change(Change {
            port: Some((number, view)),
            ..Change::default()
        });
    }
    floor.change(Change {
        add: streams,
        ..Change::default()
    });
    let mut last = (0, 0);
    wait_for("all of one kind", || {
        let taken = (
            sum(&floor, 1, |c| &c.rx_frames),
            sum(&floor, 0, |c| &c.rx_frames),
        );
        let is_done = taken.0 == PLAIN as u64 || taken.1 == COSTLY as u64;
        if !is_done {
            last = taken;
        }
        is_done
    });
    assert!(sum(&floor, 0, |c| &c.held_back) > 0);
    last.0 as f64 / last.1.max(1) as f64
}

/// With simple alternation, one costly frame would be taken for each burst of 64 plain ones. A run takes milliseconds and
/// is spoiled if the worker loses its core in it, so one of several runs must show the shares.
#[test]
fn costly_frames_wait_for_plain_ones() {
    let runs: Vec<(f64, f64)> = (0..TRIES)
        .map(|_| (plain_per_costly(1), plain_per_costly(3)))
        .collect();
    let is_shared = |(one, three): &(f64, f64)| *one > 80.0 && *three > 1.5 * one;
    assert!(
        runs.iter().any(is_shared),
        "plain frames to a costly one, by weight 1 and 3: {runs:?}"
    );
}
