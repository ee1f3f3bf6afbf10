//! Large frames that the kernel hands to a generic XDP program before it segments them, and frames with two tags.

use std::net::UdpSocket;

use crate::harness::{Host, Lab, Switch, iperf3_at_least, s, xdp};

/// The least TCP rate if no frame is segmented into useless pieces: the fault that this tests left 0.2 Mb/s.
const RATE_MIN_MBITS: f64 = 200.0;

fn generic(port: &str, interface: &str) -> String {
    format!(
        "[[port]]\nname = \"{port}\"\ntype = \"xdp\"\ninterface = \"{interface}\"\nmode = \"generic\"\n"
    )
}

fn both_ways(a: &Host<'_>, b: &Host<'_>, address: &str) {
    iperf3_at_least(RATE_MIN_MBITS, a, b, address, "-t 1");
    iperf3_at_least(RATE_MIN_MBITS, a, b, address, "-t 1 -R");
}

#[test]
fn tcp_crosses_generic_ports_whose_peers_are_asked_to_cut() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let ports = [generic("a", "up-a"), generic("b", "up-b")];
    let switch = Switch::start(&lab, &[1], &ports);
    both_ways(&a, &b, &b.address);
    let ledger = switch.ledger();
    assert_eq!(ledger.port("b").drops.get("mtu_exceeded"), None, "{ledger}");
    assert!(
        switch.log().contains("tx-tcp-segmentation"),
        "{}",
        switch.log()
    );
}

/// Frames of a bridge and of a macvlan come from veths below, whose other ends can be told to segment. Those of a vxlan
/// device come from a sender that cannot be told.
#[test]
fn what_is_large_crosses_generic_ports_on_a_bridge_a_macvlan_and_a_tunnel() {
    let lab = Lab::new(s(90));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let c = Host::new(&lab, "c", 3);
    let d = Host::new(&lab, "d", 4);
    // For b: a bridge that its wire ends in. For c: a macvlan on its wire. For d: the inside of a tunnel.
    lab.ip("link add br0 type bridge");
    lab.ip("link set up-b master br0");
    lab.ip("link set br0 up");
    lab.ip("link add mac0 link up-c type macvlan mode passthru");
    lab.ip("link set mac0 up");
    lab.ip("addr add 192.168.7.1/24 dev up-d");
    lab.ip("link add vx0 type vxlan id 7 remote 192.168.7.2 dstport 4789");
    lab.ip("link set vx0 up");
    d.ip("addr flush dev eth0");
    d.ip("addr add 192.168.7.2/24 dev eth0");
    d.ip("link add vx0 type vxlan id 7 remote 192.168.7.1 dstport 4789");
    d.ip(&format!("addr add {}/24 dev vx0", d.address));
    d.ip("link set vx0 up");
    let ports = [
        xdp("a", &a),
        generic("b", "br0"),
        generic("c", "mac0"),
        generic("d", "vx0"),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    for (name, host, is_asked) in [("b", &b, true), ("c", &c, true), ("d", &d, false)] {
        both_ways(&a, host, &host.address);
        for (from, to) in [(host, &a), (&a, host)] {
            // In fragments, which the sender makes itself.
            assert_eq!(datagrams(from, to, 8000, 1), 1, "{name}");
        }
        // In one packet, which a card would segment into datagrams.
        let whole = if is_asked { DATAGRAMS } else { 0 };
        assert_eq!(datagrams(host, &a, 1000, DATAGRAMS), whole, "{name}");
        let drops = switch.ledger().port(name).drops.clone();
        let named = drops.get("segment_size_unknown").copied();
        assert_eq!(named.is_none(), is_asked, "{name}: {drops:?}");
    }
    both_ways(&b, &d, &d.address);
    let ledger = switch.ledger();
    let long = |name: &str| ledger.port(name).drops.get("mtu_exceeded").copied();
    assert_eq!(["a", "b", "c", "d"].map(long), [None; 4], "{ledger}");
    // Their tags are lost, and this is logged.
    for text in ["`br0` is a bridge", "`mac0` is a macvlan"] {
        let said = format!("{text}: the kernel takes the outer VLAN tag out");
        assert!(switch.log().contains(&said), "{}", switch.log());
    }
}

/// Most datagrams that one packet is segmented into here.
const DATAGRAMS: usize = 20;

/// Sends `count` datagrams of `len` bytes from one host to another, given to the kernel at once (UDP_SEGMENT). Returns how
/// many arrive.
fn datagrams(from: &Host<'_>, to: &Host<'_>, len: usize, count: usize) -> usize {
    use std::os::fd::AsRawFd;
    let bind = |host: &Host<'_>| {
        let socket = host.inside(|| UdpSocket::bind((host.address.as_str(), 0)));
        socket.expect("an address of the host")
    };
    let (sender, receiver) = (bind(from), bind(to));
    receiver.set_read_timeout(Some(s(1))).expect("a time limit");
    if count > 1 {
        let size = len as libc::c_int;
        // SAFETY: `size` is readable for its length, and the kernel takes a copy.
        let rc = unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                std::ptr::from_ref(&size).cast(),
                size_of_val(&size) as u32,
            )
        };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    }
    let address = receiver.local_addr().expect("it is bound");
    let sent = sender.send_to(&vec![7; len * count], address);
    assert_eq!(sent.expect("sent"), len * count);
    let mut bytes = vec![0; len + 1];
    let arrives = || receiver.recv(&mut bytes).is_ok_and(|got| got == len);
    std::iter::repeat_with(arrives)
        .take(count)
        .take_while(|arrived| *arrived)
        .count()
}

/// A provider's and a customer's tag, of 802.1ad and of 802.1Q, on frames of full length.
#[test]
fn full_frames_with_two_tags_cross_a_wire_of_the_usual_mtu() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    // The sender and the links behind the wires accept two tags; the end of a veth accepts one beyond its MTU.
    a.ip("link set eth0 mtu 1508");
    b.ip("link set eth0 mtu 1504");
    lab.ip("link set up-a mtu 1504");
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    let send = |types: &[u16], len: usize| {
        let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9]].concat();
        for ethertype in types {
            frame.extend(ethertype.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend([0x88, 0xb5]);
        frame.resize(len, 0);
        a.send_frame(&frame);
    };
    let long = |ledger: &crate::harness::Ledger| {
        let drops = &ledger.port("b").drops;
        drops.get("mtu_exceeded").copied().unwrap_or(0)
    };
    let mut before = switch.ledger();
    let cases: [&[u16]; 5] = [
        &[],
        &[0x88a8],
        &[0x88a8, 0x8100],
        &[0x8100, 0x8100],
        &[0x88a8, 0x88a8],
    ];
    for types in cases {
        let full = 1514 + 4 * types.len();
        let mut seen = b.listen("ether src 02:00:00:00:00:09");
        send(types, full);
        seen.wait_for(&format!("length {full}"), s(5));
        let now = switch.ledger();
        assert_eq!(long(&now), long(&before), "{types:x?}: {now}");
        before = now;
    }
    // One byte too many.
    send(&[0x8100], 1519);
    crate::harness::wait_until("the drop", s(5), || {
        (long(&switch.ledger()) == long(&before) + 1).then_some(())
    });
}
