//! What becomes of frames from addresses beyond a port's limit.

use crosspoint_engine::observe::explain::{Packet, explain};
use crosspoint_frame::Offload;
use crosspoint_packet::DropReason;

use crate::checks::ledger_of;
use crate::frames::{Flow, host};
use crate::ports::PortOptions;
use crate::rig::Rig;

fn frame(source: u8) -> Vec<u8> {
    Flow::plain(host(source), host(1)).frame(100, 0, 0, 1)
}

/// Frames from known addresses pass in either case, between those that are dropped and after them.
#[test]
fn frames_from_further_addresses_pass_or_are_dropped_under_their_reason() {
    for drops in [false, true] {
        let limited = PortOptions {
            mac_limit: 2,
            drops_beyond: drops,
            ..PortOptions::default()
        };
        let mut rig = Rig::new(&[limited, PortOptions::default()], 1, 7);
        rig.drivers.iter_mut().for_each(|driver| driver.post_all());
        let sources = [10, 11, 12, 12, 10, 13, 11];
        rig.pass(0, &sources.map(frame));
        let got = rig.drivers[1].received().concat();
        let got: Vec<[u8; 6]> = got
            .iter()
            .map(|frame| frame[6..12].try_into().unwrap())
            .collect();
        let pass = sources.iter().filter(|source| !drops || **source < 12);
        assert_eq!(got, pass.map(|source| host(*source)).collect::<Vec<_>>());
        let port = rig.view.port(0).unwrap();
        let dropped = ledger_of(&port.counters)
            .drops
            .remove(&DropReason::MacLimit);
        assert_eq!(dropped, drops.then_some(3));
        assert_eq!(port.quota.used(), 2);
        let bytes = frame(14);
        let specimen = Packet {
            ingress: 0,
            bytes: &bytes,
            len: bytes.len() as u32,
            offload: Offload::default(),
            fate: None,
        };
        let said = explain(specimen, &rig.view, 0);
        assert_eq!(said.dropped, drops.then_some(DropReason::MacLimit));
    }
}
