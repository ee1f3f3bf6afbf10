//! Guests that send nothing for long are checked by a glance, not polled: their next frames are not missed.

use std::time::{Duration, Instant};

use crosspoint_engine::worker::Idle;
use crosspoint_vring::feature;

use crate::floor::{Change, Floor, wait_for};
use crate::frames::{Flow, host};
use crate::ports::{PortOptions, port};
use crate::world::Random;

const SENDERS: u16 = 6;
/// Nearly always longer than an idle worker needs to make a stream quiet.
const QUIET: Duration = Duration::from_micros(300);

/// Sends frames from quiet and other guests to one that never sends. At times the worker gets an update; if `is_busy`,
/// one guest always has frames to send.
fn frames_after_a_pause(features: u64, is_busy: bool) {
    let mut floor = Floor::start(1, Idle::Spin, 16, |run| run());
    let options = PortOptions {
        features: PortOptions::default().features | features,
        ..PortOptions::default()
    };
    let mut drivers: Vec<_> = (0..=SENDERS)
        .map(|number| {
            let (mut driver, made) = port(number, &options, 1);
            driver.post_all();
            floor.change(Change {
                port: Some((number, made.view)),
                add: vec![(0, made.stream)],
                ..Change::default()
            });
            floor.learn(host(number as u8), number);
            driver
        })
        .collect();
    let mut receiver = drivers.pop().expect("the last");
    let mut random = Random(features + u64::from(is_busy));
    let last = SENDERS as u8;
    for round in 0..200 {
        let until = Instant::now() + QUIET;
        while random.one_in(2) && Instant::now() < until {
            if is_busy {
                // For itself: dropped after the lookup.
                let _ = drivers[0].transmit.virtqueue().publish();
                let hairpin = Flow::plain(host(0), host(0)).frame(60, 0, 0, 0);
                let _ = drivers[0].transmit.send(&Default::default(), &hairpin);
                let _ = drivers[0].transmit.virtqueue().publish();
            }
            std::hint::spin_loop();
        }
        if random.one_in(20) {
            floor.change(Change::default());
        }
        let from = 1 + random.below(usize::from(SENDERS) - 1);
        let frame = Flow::plain(host(from as u8), host(last)).frame(80, 0, 0, round);
        drivers[from].send(&frame);
        let _ = drivers[from].transmit.virtqueue().publish();
        wait_for(&format!("frame {round} from {from}"), || {
            receiver.received().concat() == [frame.clone()]
        });
    }
    floor.stop();
}

#[test]
fn the_first_frame_of_a_quiet_guest_is_served() {
    for features in [0, feature::EVENT_IDX, feature::RING_PACKED] {
        frames_after_a_pause(features, false);
        frames_after_a_pause(features, true);
    }
}
