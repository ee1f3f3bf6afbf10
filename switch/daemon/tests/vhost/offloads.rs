//! Offloads that a port does not offer.

use crosspoint_config::Offloads;
use crosspoint_guest::GuestOptions;
use crosspoint_guest::message::request;
use crosspoint_guest::net::{HDR_F_NEEDS_CSUM, VirtioNetHdr};
use crosspoint_packet::checksum::{fold, sum};
use crosspoint_vring::Features;

use super::{PATIENCE, Switch};

/// Feature bits of offloads that a driver accepts, and that a device accepts (virtio 1.2, 5.1.3).
const RECEIVE: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 54 | 1 << 55;
const TRANSMIT: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 56;

#[test]
fn a_port_offers_no_offload_that_its_configuration_withholds() {
    for (receive, transmit, withheld) in [
        (true, true, 0),
        (false, true, RECEIVE),
        (true, false, TRANSMIT),
        (false, false, RECEIVE | TRANSMIT),
    ] {
        let switch = Switch::start(&["a"], |config| {
            config.offloads = Offloads { receive, transmit };
        });
        let offered = switch.session("a").query_u64(request::GET_FEATURES);
        assert_eq!(offered.ok(), Some(Features::offered(1) & !withheld));
    }
}

/// A guest that will turn its offloads off, as XDP does, without the switch noticing: from the beginning it gets
/// finished frames of at most wire length.
#[test]
fn a_guest_that_is_offered_no_receive_offloads_gets_segments_with_their_checksums() {
    let switch = Switch::start(&["a", "b"], |config| {
        config.offloads.receive = !config.socket.ends_with("b");
    });
    let all = GuestOptions {
        features: GuestOptions::default().features | RECEIVE | TRANSMIT,
        frame_len_max: 65_536,
        ..GuestOptions::default()
    };
    let mut a = switch.guest("a", all.clone());
    let mut b = switch.guest("b", all);
    assert_eq!(b.negotiated().features & (RECEIVE | TRANSMIT), TRANSMIT);
    assert!(
        switch
            .device("b")
            .features
            .iter()
            .all(|name| !name.starts_with("GUEST_"))
    );
    // 10000 bytes of TCP over IPv4.
    let addresses = [10, 0, 0, 1, 10, 0, 0, 2];
    let mut ip = vec![0x45, 0];
    ip.extend([10_040u16, 1, 0x4000].map(u16::to_be_bytes).concat());
    ip.extend([&[64, 6, 0, 0][..], &addresses].concat());
    let mut tcp = [
        &[
            0, 5, 0, 6, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ][..],
        &[7; 10_000],
    ]
    .concat();
    let pseudo = |len: u16| {
        sum(
            &[&[0, 6], &len.to_be_bytes()[..]].concat(),
            sum(&addresses, 0),
        )
    };
    tcp[16..18].copy_from_slice(&fold(pseudo(10_020)).to_be_bytes());
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 0], &ip, &tcp].concat();
    let header = VirtioNetHdr {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    assert!(a.send_with_header(0, &header, &frame).expect("sent"));
    let got = b.receive_at_least(0, 7, PATIENCE).expect("frames");
    assert_eq!(got.len(), 7);
    let mut payload = 0;
    for (header, bytes) in got {
        assert_eq!((header.flags, header.gso_type), (0, 0));
        let segment = &bytes[34..];
        payload += segment.len() - 20;
        assert!(bytes.len() <= 1514);
        let checksum = fold(sum(segment, pseudo(segment.len() as u16)));
        assert_eq!(checksum, 0xffff);
    }
    assert_eq!(payload, 10_000);
    switch.check_ledger();
}
