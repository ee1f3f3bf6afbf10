//! DHCP: clients read raw frames before they have an address.

use crosspoint_guest::net::{HDR_F_NEEDS_CSUM, VirtioNetHdr, features};
use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_packet::checksum::{finish, fold, sum};

use super::{PATIENCE, Switch};

/// A datagram to `port` whose sender leaves the checksum unfinished: the frame, the offset of its UDP header, and the
/// same frame with a finished checksum.
fn datagram(tags: &[u8], v6: bool, port: u16, len: usize) -> (Vec<u8>, u16, Vec<u8>) {
    let udp_len = len as u16 + 8;
    let mut udp = [500, port, udp_len, 0].map(u16::to_be_bytes).concat();
    udp.extend((0..len).map(|i| (i * 7 + i / 251) as u8));
    let addresses = if v6 {
        [[0xfe; 16], [0xfd; 16]].concat()
    } else {
        [[10; 4], [11; 4]].concat()
    };
    let mut head = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], tags].concat();
    if v6 {
        head.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        head.extend(udp_len.to_be_bytes());
        head.extend([17, 64]);
    } else {
        head.extend([8, 0, 0x45, 0]);
        head.extend((udp_len + 20).to_be_bytes());
        head.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    }
    head.extend(&addresses);
    let rest = [&[0, 17], &udp_len.to_be_bytes()[..]].concat();
    let pseudo = fold(sum(&rest, sum(&addresses, 0)));
    udp[6..8].copy_from_slice(&pseudo.to_be_bytes());
    let partial = [&head[..], &udp].concat();
    let whole = finish(sum(&udp, 0)).to_be_bytes();
    udp[6..8].copy_from_slice(&whole);
    (partial, head.len() as u16, [head, udp].concat())
}

fn guest(switch: &Switch, name: &str, packed: bool) -> Guest {
    let mut options = GuestOptions {
        packed,
        ..GuestOptions::default()
    };
    options.features |= features::CSUM | features::GUEST_CSUM;
    switch.guest(name, options)
}

/// Old clients, and FreeBSD's, read raw frames and discard those with an unfinished checksum, although their driver has
/// accepted such frames.
#[test]
fn a_dhcp_message_has_its_checksum_finished_for_every_receiver() {
    let switch = Switch::start(&["a", "b", "c"], |_| ());
    let mut a = guest(&switch, "a", false);
    let mut others = [guest(&switch, "b", false), guest(&switch, "c", true)];
    let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]];
    for (tags, v6) in tags
        .into_iter()
        .flat_map(|tags| [(tags, false), (tags, true)])
    {
        // The last two ports are not DHCP's; at these lengths the checksum is an ordinary one.
        for (port, is_dhcp) in [
            (67, true),
            (68, true),
            (546, true),
            (547, true),
            (69, false),
            (53, false),
        ] {
            for len in [1, 300, 1200] {
                let case = format!(
                    "{} bytes of tags, IPv6 {v6}, port {port}, {len} bytes",
                    tags.len()
                );
                let (partial, start, whole) = datagram(tags, v6, port, len);
                let asks = VirtioNetHdr {
                    flags: HDR_F_NEEDS_CSUM,
                    csum_start: start,
                    csum_offset: 6,
                    ..VirtioNetHdr::default()
                };
                assert!(a.send_with_header(0, &asks, &partial).expect("sent"));
                for other in &mut others {
                    let got = other.receive_at_least(0, 1, PATIENCE).expect("a ring");
                    let (header, bytes) = got.first().expect("a frame");
                    assert_eq!(header.flags & HDR_F_NEEDS_CSUM == 0, is_dhcp, "{case}");
                    assert!(
                        *bytes == if is_dhcp { &whole[..] } else { &partial },
                        "{case}"
                    );
                }
            }
        }
    }
    switch.check_ledger();
}
