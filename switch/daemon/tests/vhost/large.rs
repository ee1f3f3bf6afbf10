//! A guest's acknowledged features decide in which form it gets large frames.

use std::time::Duration;

use crosspoint_guest::net::{GSO_UDP, HDR_F_NEEDS_CSUM, VirtioNetHdr, features};
use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_packet::checksum::{finish, fold, sum};

use super::{PATIENCE, Switch};

/// Length of the Ethernet and IPv4 headers.
const HEADERS: usize = 34;
const SIZE: u16 = 1480;

/// A large broadcast datagram with the pseudo-header's sum in its checksum field, and the datagram with its finished
/// checksum.
fn datagram(len: usize) -> (Vec<u8>, Vec<u8>) {
    let udp_len = len as u16 + 8;
    let mut udp = [5u16, 6, udp_len, 0].map(u16::to_be_bytes).concat();
    udp.extend((0..len).map(|i| (i * 7 + i / 251) as u8));
    let mut ip = vec![0x45, 0];
    ip.extend(
        [udp_len + 20, 0x1234, 0x4000]
            .map(u16::to_be_bytes)
            .concat(),
    );
    ip.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let rest = [&[0, 17], &udp_len.to_be_bytes()[..]].concat();
    let pseudo = fold(sum(&rest, sum(&ip[12..], 0)));
    udp[6..8].copy_from_slice(&pseudo.to_be_bytes());
    let link = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    let frame = [&link, &[8, 0][..], &ip, &udp].concat();
    let whole = finish(sum(&udp, 0)).to_be_bytes();
    udp[6..8].copy_from_slice(&whole);
    (frame, udp)
}

fn receive(guest: &mut Guest, count: usize) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let frames = guest.receive_at_least(0, count, PATIENCE).expect("frames");
    assert_eq!(frames.len(), count);
    // And no more than that.
    let more = guest.receive_at_least(0, 1, Duration::from_millis(20));
    assert_eq!(more.expect("nothing"), []);
    frames
}

#[test]
fn a_large_datagram_comes_whole_to_who_acknowledged_such_and_in_fragments_to_others() {
    let switch = Switch::start(&["a", "b", "c"], |_| ());
    let options = |more, packed| {
        let mut options = GuestOptions {
            packed,
            frame_len_max: 65_536,
            ..GuestOptions::default()
        };
        options.features |= more;
        options
    };
    let sums = features::CSUM | features::GUEST_CSUM;
    let mut a = switch.guest("a", options(sums | features::HOST_UFO, false));
    let mut b = switch.guest("b", options(sums | features::GUEST_UFO, true));
    let mut c = switch.guest("c", options(sums | features::GUEST_TSO4, false));
    let (frame, datagram) = datagram(50_000);
    let header = VirtioNetHdr {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP,
        hdr_len: HEADERS as u16 + 8,
        gso_size: SIZE,
        csum_start: HEADERS as u16,
        csum_offset: 6,
        num_buffers: 0,
    };
    assert!(a.send_with_header(0, &header, &frame).expect("sent"));

    let (head, bytes) = receive(&mut b, 1).remove(0);
    let num_buffers = head.num_buffers;
    assert_eq!(
        head,
        VirtioNetHdr {
            num_buffers,
            ..header
        }
    );
    assert!(bytes == frame, "another frame");

    let parts: Vec<&[u8]> = datagram.chunks(SIZE.into()).collect();
    let fragments = receive(&mut c, parts.len());
    for (index, ((head, bytes), part)) in fragments.iter().zip(&parts).enumerate() {
        assert_eq!((head.flags, head.gso_type), (0, 0));
        let offset = index as u16 * (SIZE / 8);
        let more = if index + 1 < parts.len() { 0x2000 } else { 0 };
        let ip = &bytes[14..HEADERS];
        assert_eq!(
            ip[4..8],
            [[0x12, 0x34], (offset | more).to_be_bytes()].concat()
        );
        assert_eq!(fold(sum(ip, 0)), 0xffff);
        assert!(bytes[HEADERS..] == **part, "fragment {index} is another");
    }
    switch.check_ledger();
}
