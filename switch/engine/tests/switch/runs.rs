//! The decision on one frame is reused for the next only if all relevant fields are equal.

use std::sync::Arc;

use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_packet::DropReason;

use crate::checks::ledger_of;
use crate::frames::{Flow, host};
use crate::ports::PortOptions;
use crate::rig::Rig;

/// Two trunks of VLANs 100 and 200, the second with 100 untagged; host 1 is on the second, in both VLANs.
fn rig() -> Rig {
    let options = |native| PortOptions {
        vlan: VlanPolicy::trunk(&[100, 200], native),
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[options(None), options(Some(100))], 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig.pass(1, &[None, Some(200)].map(|tag| frame(1, 0, tag)));
    rig.drivers[0].received();
    rig
}

fn frame(src: u8, dst: u8, tag: Option<u16>) -> Vec<u8> {
    let flow = Flow {
        tag,
        ..Flow::plain(host(src), host(dst))
    };
    flow.frame(100, 0, 0, 0)
}

#[test]
fn frames_that_differ_in_their_vlan_alone_are_tagged_each_as_its_vlan_says() {
    let mut rig = rig();
    let tags = [100, 100, 200, 200, 100, 200];
    rig.pass(0, &tags.map(|tag| frame(0, 1, Some(tag))));
    let arrived = rig.drivers[1].received().concat();
    let untagged: Vec<bool> = arrived.iter().map(|f| f[12..14] != [0x81, 0]).collect();
    assert_eq!(untagged, tags.map(|tag| tag == 100));
}

/// The station's port left the VLAN after the station was seen there.
#[test]
fn a_port_gets_no_frame_of_a_vlan_that_it_has_left() {
    let mut rig = rig();
    if let Some(port) = &mut rig.view.ports[1] {
        port.vlan = Arc::new(VlanPolicy::trunk(&[200], None));
    }
    let tags = [200, 100, 100, 200];
    rig.pass(0, &tags.map(|tag| frame(0, 1, Some(tag))));
    let sent = frame(0, 1, Some(200));
    assert_eq!(rig.drivers[1].received().concat(), [sent.clone(), sent]);
    let ledger = ledger_of(&rig.view.port(0).unwrap().counters);
    assert_eq!(ledger.drops[&DropReason::VlanNotCarried], 2);
}
