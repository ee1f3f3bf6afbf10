//! Hosts that send through tunnels and with extension headers: the work that their kernels leave undone in inner headers is
//! completed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::harness::{CommandGuest, Host, Lab, Ledger, Metrics, Switch, s, xdp};

/// Bytes sent through each connection: several segments, each with a checksum.
const BYTES: usize = 100_000;
const PORT: u16 = 7000;

/// Two hosts with IPv6 addresses as well, and a switch between them.
fn with_two_hosts(test: impl FnOnce(&Lab, &Host<'_>, &Host<'_>)) {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    for (host, number) in [(&a, 1), (&b, 2)] {
        host.must_run("echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        host.must_run("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
        host.must_run("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        host.ip(&format!("addr add fd00::{number}/64 dev eth0 nodad"));
    }
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    test(&lab, &a, &b);
    switch.ledger();
}

/// TCP and a datagram from `a` to `address` of `b`, and back.
fn exchange(a: &Host<'_>, b: &Host<'_>, address: &str) {
    exchange_with(a, b, address, |_| {});
}

/// The same, where `prepare` sets options of the socket that has connected.
fn exchange_with(a: &Host<'_>, b: &Host<'_>, address: &str, prepare: fn(&TcpStream)) {
    let to = SocketAddr::new(address.parse().expect("an address"), PORT);
    let (listener, datagrams) = b.inside(|| {
        let listener = TcpListener::bind(to).expect("an address of the host");
        (
            listener,
            UdpSocket::bind(to).expect("an address of the host"),
        )
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(s(10))).expect("a time limit");
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes).expect("what was sent");
            stream.write_all(&bytes).expect("sent back");
            datagrams
                .set_read_timeout(Some(s(10)))
                .expect("a time limit");
            let (len, from) = datagrams.recv_from(&mut bytes).expect("a datagram");
            datagrams.send_to(&bytes[..len], from).expect("sent back");
        });
        a.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, s(10))
                .unwrap_or_else(|error| panic!("TCP to {address}: {error}"));
            prepare(&stream);
            stream.set_read_timeout(Some(s(10))).expect("a time limit");
            stream.write_all(&[7; BYTES]).expect("sent");
            let mut bytes = vec![0; BYTES];
            stream.read_exact(&mut bytes).expect("what was sent back");
            assert!(bytes.iter().all(|byte| *byte == 7));
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(s(10))).expect("a time limit");
            socket.send_to(b"a datagram", to).expect("sent");
            let len = socket.recv(&mut bytes).expect("it came back");
            assert_eq!(bytes.get(..len), Some(&b"a datagram"[..]));
        });
    });
}

/// Creates devices `name` on both hosts, of a type with these options, and addresses 10.`net`.0.1 and 2. "LOCAL" and
/// "REMOTE" in the options are the hosts' numbers.
fn tunnel(a: &Host<'_>, b: &Host<'_>, name: &str, options: &str, net: u8) {
    for (host, local, remote) in [(a, "1", "2"), (b, "2", "1")] {
        let options = options.replace("LOCAL", local).replace("REMOTE", remote);
        host.ip(&format!("link add {name} type {options}"));
        host.ip(&format!("addr add 10.{net}.0.{local}/24 dev {name}"));
        host.ip(&format!("link set {name} up"));
    }
}

#[test]
fn tcp_and_datagrams_cross_in_vxlan_with_and_without_a_checksum_around_them() {
    with_two_hosts(|_, a, b| {
        let plain = "vxlan id 1 remote 10.9.0.REMOTE dstport 4789";
        let summed = "vxlan id 2 remote 10.9.0.REMOTE dstport 51234 udpcsum";
        let sixth = "vxlan id 3 remote fd00::REMOTE dstport 8472";
        let policy = "vxlan id 4 remote 10.9.0.REMOTE dstport 4790 gbp";
        for (net, options) in [(20, plain), (21, summed), (22, sixth), (23, policy)] {
            tunnel(a, b, &format!("t{net}"), options, net);
            exchange(a, b, &format!("10.{net}.0.2"));
        }
        // One tunnel in another, with checksums and without.
        let inner = "vxlan id 5 remote 10.21.0.REMOTE dstport 4789 udpcsum";
        tunnel(a, b, "t24", inner, 24);
        exchange(a, b, "10.24.0.2");
    });
}

#[test]
fn tcp_and_datagrams_cross_behind_segment_routing_headers() {
    with_two_hosts(|_, a, b| {
        // Each host has an address that is reached through a segment, in both modes.
        for (host, own, other) in [(a, 1, 2), (b, 2, 1)] {
            host.must_run("echo 1 > /proc/sys/net/ipv6/conf/all/seg6_enabled");
            host.must_run("echo 1 > /proc/sys/net/ipv6/conf/eth0/seg6_enabled");
            for (net, mode) in [(1, "inline"), (2, "encap")] {
                host.ip(&format!("addr add fd0{net}::{own}/128 dev lo nodad"));
                host.ip(&format!(
                    "-6 route add fd0{net}::{other}/128 encap seg6 mode {mode} segs fd00::{other} dev eth0 src fd0{net}::{own}"
                ));
            }
        }
        exchange(a, b, "fd01::2");
        exchange(a, b, "fd02::2");
    });
}

#[test]
fn tcp_crosses_behind_options_for_the_destination_and_for_every_hop() {
    // Padding of eight bytes: next header, length, and one option (RFC 8200, 4.2).
    const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    with_two_hosts(|_, a, b| {
        for (from, to, address) in [(a, b, "fd00::2"), (b, a, "fd00::1")] {
            exchange_with(from, to, address, |stream| {
                set_ipv6_option(stream, libc::IPV6_DSTOPTS, &OPTIONS);
            });
            exchange_with(from, to, address, |stream| {
                set_ipv6_option(stream, libc::IPV6_HOPOPTS, &OPTIONS);
            });
        }
    });
}

fn set_ipv6_option(stream: &TcpStream, name: libc::c_int, value: &[u8]) {
    use std::os::fd::AsRawFd;
    // SAFETY: `value` is readable for its length, and the kernel takes a copy.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_IPV6,
            name,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

/// Most kinds that a kernel with all modules may lack: no distribution's small kernel has bareudp.
const NOT_RUN_MAX: usize = 1;
/// Number of kinds in tunnels.sh.
const CASES: usize = 35;

/// Runs in a guest, between two namespaces of a kernel that has all modules, which this machine's kernel may lack. One port
/// is native, one generic, and ethtool is not run.
#[test]
fn every_kind_of_tunnel_and_sctp_cross_and_no_checksum_is_wrong() {
    const PORT: &str = "vlan = { trunk = [7], native = 1 }\n[[port]]\ntype = \"xdp\"\n";
    let lab = Lab::new(s(170));
    let config = format!(
        "version = 1\n[workers]\ncores = [1]\n[[port]]\ntype = \"xdp\"\nname = \"a\"\ninterface = \"up-a\"\n{PORT}\
        name = \"b\"\ninterface = \"up-b\"\nmode = \"generic\"\nvlan = {{ trunk = [7], native = 1 }}\n"
    );
    let script = include_str!("tunnels.sh");
    let files = [("tunnels.toml", config.as_str()), ("tunnels.sh", script)];
    let mut guest = CommandGuest::lab(&lab, &files);
    let text = guest.ask("sh /switch/tunnels.sh", s(140));
    let cases = text.lines().filter_map(|line| line.strip_prefix("CASE "));
    let cases: Vec<&str> = cases.collect();
    assert_eq!(cases.len(), CASES, "{text}");
    let is_not_run =
        |case: &&&str| case.contains("=not run: ") && case.contains("Unknown device type");
    let not_run: Vec<_> = cases.iter().filter(is_not_run).collect();
    not_run.iter().for_each(|case| eprintln!("{case}"));
    let good = cases.iter().filter(|case| case.ends_with("=ok")).count();
    assert_eq!(good + not_run.len(), CASES, "{text}");
    assert!(not_run.len() <= NOT_RUN_MAX, "{not_run:?}");
    assert!(!text.contains("COUNTER "), "{text}");
    // SCTP's checksum was left to a card before; it is not while the switch runs; and it is again afterwards.
    let setting = |when: &str| {
        let of_line = |line: &'_ str| {
            line.strip_prefix(&format!("SETTING {when} "))
                .map(str::to_owned)
        };
        text.lines().find_map(of_line).expect("a line")
    };
    assert!(setting("before").contains("tx-checksum-sctp: on"), "{text}");
    assert!(
        setting("during").contains("tx-checksum-sctp: off"),
        "{text}"
    );
    assert_eq!(setting("after"), setting("before"));
    let ledger = Ledger::new(&Metrics::of_text(&guest.ask("cat /tmp/metrics", s(20))));
    assert_eq!(ledger.fault(), None, "{ledger}");
    // Frames that a host broadcasts when its wire comes up, before the other port is up.
    let mut drops = ledger.ports.values().flat_map(|port| port.drops.keys());
    let drops = drops.all(|reason| reason == "no_destination");
    assert!(drops, "{ledger}");
}
