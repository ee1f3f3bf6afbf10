//! Regression tests: frames that earlier versions let through.

use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::fdb::Learned;
use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_guest::VirtioNetHdr;
use crosspoint_packet::Mac;

use crate::frames::{Flow, host};
use crate::ports::PortOptions;
use crate::rig::Rig;

fn rig(vlans: [VlanPolicy; 2], frame_len_max: usize) -> Rig {
    let options = vlans.map(|vlan| PortOptions {
        vlan,
        transmit_size: 16,
        frame_len_max,
        ..PortOptions::default()
    });
    let mut rig = Rig::new(&options, 1, 1);
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    rig
}

/// An address's owner has moved to a port that has reached its address limit. The old entry is wrong now, so it must age
/// out; the owner's own frames must not refresh it.
#[test]
fn an_address_that_moved_to_a_full_port_ages_out_at_the_old_one() {
    let fdb = Fdb::new(0, [1, 2]);
    let quotas = [Quota::new(0), Quota::new(1)];
    let quota = |port: u16| quotas.get(usize::from(port));
    let (key, other) = (fdb.key(Mac::new(host(1)), 0), fdb.key(Mac::new(host(2)), 0));
    assert_eq!(fdb.learn(key, 0, 0, quota), Learned::New);
    assert_eq!(fdb.learn(other, 1, 0, quota), Learned::New);
    for tick in 1..=10 {
        assert_eq!(fdb.learn(key, 1, tick, quota), Learned::Refused);
        fdb.sweep(tick, quota, |port, age| port == 0 && age > 5);
    }
    assert_eq!(fdb.lookup(key), None, "still on the port that it left");
}

/// An access port is in one VLAN. A priority tag is accepted, and popped where that VLAN is untagged; a second tag behind
/// it must not be exposed there and name another VLAN.
#[test]
fn a_guest_cannot_leave_its_vlan_with_two_tags() {
    let trunk = VlanPolicy::trunk(&[200], Some(100));
    let mut rig = rig([VlanPolicy::Access(100), trunk], 1600);
    let mut flow = Flow::plain(host(0), host(1));
    flow.tag = Some(0);
    let mut frame = flow.frame(100, 0, 0, 0);
    frame[16..20].copy_from_slice(&[0x81, 0, 0, 200]);
    rig.pass(0, &[frame]);
    for frame in rig.drivers[1].received().concat() {
        assert_ne!(frame[12..16], [0x81, 0, 0, 200], "a frame of VLAN 200");
    }
}

/// Pushing a tag moves the checksum by four bytes; its offset field has 16 bits.
#[test]
fn a_checksum_never_moves_into_the_ethernet_header() {
    let mut rig = rig(
        [VlanPolicy::Access(5), VlanPolicy::trunk(&[5], None)],
        65_540,
    );
    let frame = Flow::plain(host(0), host(1)).frame(65_540, 0, 0, 0);
    let header = VirtioNetHdr {
        flags: 1,
        csum_start: 65_533,
        csum_offset: 2,
        ..VirtioNetHdr::default()
    };
    let transmit = &mut rig.drivers[0].transmit;
    assert!(transmit.send(&header, &frame).unwrap());
    rig.pass(0, &[]);
    for (header, frame) in rig.drivers[1].receive[0].receive().unwrap() {
        let start = header.csum_start;
        assert!(
            header.flags == 0 || start >= 18,
            "{start} of {}",
            frame.len()
        );
    }
}

/// The largest IP packet passes from an access port to a trunk; it must also pass in the other direction.
#[test]
fn the_largest_packet_passes_in_both_directions() {
    let mut rig = rig(
        [VlanPolicy::Access(5), VlanPolicy::trunk(&[5], None)],
        65_560,
    );
    let there = Flow::plain(host(0), host(1));
    rig.pass(0, &[there.frame(14 + 65_535, 0, 0, 0)]);
    assert_eq!(rig.drivers[1].received().concat().len(), 1);
    let mut back = there.back();
    back.tag = Some(5);
    rig.pass(1, &[back.frame(18 + 65_535, 0, 0, 0)]);
    assert_eq!(rig.drivers[0].received().concat().len(), 1);
}
