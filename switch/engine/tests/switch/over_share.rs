//! Frames for a port that exceeds its share of a busy worker: dropped before they are copied, counted at their
//! destination, and captured so by taps.

use std::sync::Arc;

use crosspoint_engine::observe::tap::{Direction, Fate, Tap, Wanted};
use crosspoint_frame::Clock;
use crosspoint_guest::ChainSplit;
use crosspoint_packet::DropReason;
use crosspoint_vring::feature;

use crate::frames::{Flow, host};
use crate::ports::{PortOptions, port};
use crate::single::Single;

const SENDER: u16 = 0;
const COSTLY: u16 = 1;
const OTHER: u16 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];

/// A worker that the test runs, with a competing sender of large weight, a receiver whose buffers are in a hundred pieces
/// each, and a receiver with plain buffers.
fn start(tap: Arc<Tap>) -> Single {
    let plain = PortOptions {
        transmit_size: 1024,
        receive_size: 4096,
        ..PortOptions::default()
    };
    let costly = PortOptions {
        features: feature::VERSION_1 | feature::CSUM | feature::INDIRECT_DESC,
        split: ChainSplit::Pieces(20),
        ..plain.clone()
    };
    let made = [&plain, &costly, &plain].into_iter().enumerate();
    let made = made.map(|(number, options)| {
        let (driver, mut made) = port(number as u16, options, 1);
        // The sender's virtual time grows slowly, so that the receiver gets ahead of it also on a slow machine.
        made.view.weight = if number == 0 { 10_000 } else { 1 };
        (driver, made)
    });
    Single::start(made.collect(), Box::new([tap]))
}

/// A capture shows frames dropped for a port over its share, unicast or flooded, as dropped there with that reason, and
/// as often as counted.
#[test]
fn taps_see_frames_for_a_port_that_is_over_its_share_as_dropped() {
    let wanted = Wanted {
        port: None,
        queue: None,
        received: false,
        sent: true,
        dropped_only: true,
        snap_len: 64,
        rate_max: u64::MAX,
        filter: None,
    };
    let tap = Tap::new(wanted, 16_384, 1, &Clock::calibrate());
    let mut single = start(tap.clone());
    let frames = [host(COSTLY as u8), host(COSTLY as u8), BROADCAST];
    let frames = frames.map(|dst| Flow::plain(host(SENDER as u8), dst).frame(1514, 0, 0, 1));
    let over_share = DropReason::OverShare;
    let mut seen = [0u64; 2];
    for _ in 0..60 {
        for frame in frames.iter().cycle().take(250) {
            single.drivers[0].send(frame);
        }
        // A long burst makes the next ones shorter.
        single.drain();
        single
            .drivers
            .iter_mut()
            .for_each(|driver| drop(driver.received()));
        for slot in std::iter::from_fn(|| tap.next()) {
            if slot.fate == Fate::Dropped(over_share) {
                assert_eq!((slot.direction, slot.port), (Direction::Sent, COSTLY));
                assert!(slot.bytes[..6] == frames[0][..6] || slot.bytes[..6] == BROADCAST);
                seen[usize::from(slot.bytes[..6] == BROADCAST)] += 1;
            }
            tap.give_back(slot);
        }
    }
    assert_eq!((tap.counts().missed, tap.counts().over_rate), (0, 0));
    let ledgers = single.ledgers();
    let counted = ledgers[usize::from(COSTLY)].drops.get(&over_share).copied();
    assert_eq!(Some(seen[0] + seen[1]), counted, "{seen:?}");
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    assert!(!ledgers[usize::from(OTHER)].drops.contains_key(&over_share));
}
