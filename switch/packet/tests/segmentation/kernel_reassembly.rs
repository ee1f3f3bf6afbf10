//! Linux as the receiver: its IP reassembles our fragments, and a socket gets the datagram.

use std::net::UdpSocket;
use std::time::Duration;

use crosspoint_packet::segment::GsoRequest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::frames::{Ip, Large, Transport, cut, datagram, finished};
use crate::netns::{ip, namespace};
use crate::tap::Tap;

const PORT: u16 = 4567;
/// Tags that a receiver without VLANs accepts: priority tags.
const TAGS: [&[(u16, bool)]; 3] = [&[], &[(0, false)], &[(0, true), (0, false)]];

/// A host behind a tap device, in its own namespace.
fn host() -> (Tap, UdpSocket) {
    namespace();
    let tap = Tap::new("tap", 0);
    for all in ["all", "default"] {
        // Accept packets regardless of routes.
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{all}/rp_filter"), "0").expect("root");
    }
    ip("link set lo up");
    ip("link set tap address 02:00:00:00:00:22 mtu 65500 up");
    ip("address add 10.0.0.2/24 dev tap");
    ip("address add fd00::2/64 dev tap nodad");
    // For both IP versions.
    let socket = UdpSocket::bind(("::", PORT)).expect("a socket");
    let limit = Some(Duration::from_secs(2));
    socket.set_read_timeout(limit).expect("a timeout");
    // Each small fragment counts for a whole buffer.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).expect("root");
    // The kernel needs some time to activate an IPv6 address: until then it does not deliver locally.
    let own = UdpSocket::bind(("::", 0)).expect("a socket");
    let soon = Some(Duration::from_millis(10));
    socket.set_read_timeout(soon).expect("a timeout");
    while socket.recv(&mut [0]).is_err() {
        let _ = own.send_to(b"?", ("fd00::2", PORT));
    }
    // Discard late packets.
    while socket.recv(&mut [0]).is_ok() {}
    socket.set_read_timeout(limit).expect("a timeout");
    (tap, socket)
}

/// Readdresses the datagram to the host.
fn addressed(mut large: Large, tags: usize) -> Large {
    large.tags = TAGS[tags].to_vec();
    match &mut large.ip {
        Ip::V4(header) => (header.source, header.destination) = ([10, 0, 0, 1], [10, 0, 0, 2]),
        Ip::V6(header, _) => {
            let mut address = [0; 16];
            (address[0], address[15]) = (0xfd, 1);
            header.source = address;
            address[15] = 2;
            header.destination = address;
        }
    }
    if let Transport::Udp(header) = &mut large.transport {
        header.destination_port = PORT;
    }
    large
}

fn sent_in_fragments_arrives_whole(
    tap: &mut Tap,
    socket: &UdpSocket,
    large: &Large,
) -> Result<(), TestCaseError> {
    let nothing = GsoRequest {
        gso_type: 0,
        gso_size: 0,
        checksum: None,
    };
    let mut bytes = vec![0; 70_000];
    // A kernel that is short of time drops what comes in while its backlog is full: then once more.
    for attempt in 1.. {
        for fragment in cut(&large.frame(), large.request()) {
            tap.send(nothing, &finished(fragment));
        }
        match socket.recv(&mut bytes) {
            Ok(n) => {
                prop_assert!(bytes[..n] == large.payload, "another datagram");
                break;
            }
            Err(_) if attempt < 3 => {}
            Err(error) => prop_assert!(false, "no datagram: {}", error),
        }
    }
    Ok(())
}

#[test]
fn linux_puts_fragments_together_to_the_datagram() {
    // A separate thread, since the namespace stays with it.
    let judged = std::thread::spawn(|| {
        let (tap, socket) = host();
        let tap = std::cell::RefCell::new(tap);
        let frames = (datagram(), 0..TAGS.len()).prop_map(|(large, tags)| addressed(large, tags));
        // A lost datagram costs the whole timeout, each time it is shrunk.
        let config = ProptestConfig {
            max_shrink_time: 10_000,
            ..ProptestConfig::default()
        };
        let run = TestRunner::new(config).run(&frames, |large| {
            sent_in_fragments_arrives_whole(&mut tap.borrow_mut(), &socket, &large)
        });
        if let Err(difference) = run {
            panic!("{difference}");
        }
    });
    judged
        .join()
        .unwrap_or_else(|e| std::panic::resume_unwind(e));
}
