//! Frames of an isolated port reach uplinks only, by any address; what only servers send is dropped where it comes in.

use crosspoint_engine::worker::Injected;
use crosspoint_packet::DropReason;

use crate::frames::{Flow, host};
use crate::ports::PortOptions;
use crate::rates::start;

const SENDER: u16 = 0;
const GUEST: u16 = 1;
const UPLINK: u16 = 2;
const FRAMES: usize = 30;

/// Sends `frames` in turn from the sender, and returns what each port has received, and each one's drops.
fn send(
    options: [PortOptions; 3],
    frames: &[Vec<u8>],
) -> ([usize; 3], Vec<Vec<(DropReason, u64)>>) {
    let mut single = start(options);
    for frame in frames.iter().cycle().take(FRAMES) {
        single.drivers[0].send(frame);
    }
    single.drain();
    let ledgers = single.ledgers();
    let drivers = single.drivers.iter_mut();
    let received: Vec<usize> = drivers
        .map(|driver| driver.received().concat().len())
        .collect();
    let drops = ledgers
        .into_iter()
        .map(|ledger| ledger.drops.into_iter().collect());
    (received.try_into().unwrap(), drops.collect())
}

#[test]
fn frames_of_an_isolated_port_reach_uplinks_only() {
    let isolated = PortOptions {
        is_isolated: true,
        ..PortOptions::default()
    };
    let uplink = PortOptions {
        is_uplink: true,
        ..PortOptions::default()
    };
    // To a guest, to an uplink, to all.
    let to = [host(GUEST as u8), host(UPLINK as u8), [0xff; 6]];
    let frames = to.map(|dst| Flow::plain(host(SENDER as u8), dst).frame(100, 0, 0, 1));
    let plain = PortOptions::default();
    let (received, drops) = send([isolated.clone(), plain.clone(), uplink], &frames);
    assert_eq!(received, [0, 0, 2 * FRAMES / 3]);
    assert_eq!(drops[0], [(DropReason::Isolated, FRAMES as u64 / 3)]);
    // Two isolated ports do not reach each other, and nothing is lost without a reason.
    let (received, drops) = send([isolated.clone(), isolated, plain], &frames);
    assert_eq!(received, [0; 3]);
    let sum: u64 = drops[0].iter().map(|(_, count)| count).sum();
    assert_eq!(sum, FRAMES as u64);
}

/// A loop probe is sent out of the port that it is a probe of.
#[test]
fn what_the_switch_sends_out_of_an_isolated_port_leaves() {
    let isolated = PortOptions {
        is_isolated: true,
        ..PortOptions::default()
    };
    let plain = PortOptions::default();
    let mut single = start([isolated, plain.clone(), plain]);
    let mut bytes = [0; 60];
    bytes[..12].copy_from_slice(&[[0xff; 6], host(9)].concat());
    single.inject(Injected::new(SENDER, Some(0), &bytes));
    let received = single
        .drivers
        .iter_mut()
        .map(|driver| driver.received().concat().len());
    assert_eq!(received.collect::<Vec<_>>(), [1, 0, 0]);
    assert!(single.ledgers()[0].drops.is_empty());
}

#[test]
fn what_only_servers_send_is_dropped_where_it_comes_in() {
    let guest = PortOptions {
        groups: None,
        is_server: false,
        ..PortOptions::default()
    };
    let flow = Flow::plain(host(SENDER as u8), host(GUEST as u8));
    let plain = flow.frame(100, 0, 0, 1);
    let mut reply = plain.clone();
    reply[12..15].copy_from_slice(&[8, 0, 0x45]);
    reply[20..24].copy_from_slice(&[0, 0, 64, 17]);
    reply[34..38].copy_from_slice(&[0, 67, 0, 68]);
    let options = [guest, PortOptions::default(), PortOptions::default()];
    let (received, drops) = send(options, &[plain.clone(), reply.clone()]);
    assert_eq!(received, [0, FRAMES / 2, 0]);
    assert_eq!(
        drops[0],
        [(DropReason::ServerNotAllowed, FRAMES as u64 / 2)]
    );
    let options = [(); 3].map(|()| PortOptions::default());
    let (received, _) = send(options, &[plain, reply]);
    assert_eq!(received, [0, FRAMES, 0]);
}
