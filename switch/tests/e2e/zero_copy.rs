//! A driver that writes into the switch's memory and sends from it: the switch runs in a guest, between two network cards.
//! No software device of this machine does that; Linux's virtio_net does, since 6.13.

use std::fs;
use std::net::UdpSocket;

use serde_json::Value;

use crate::harness::{
    CommandGuest, Host, Lab, Ledger, LinuxGuest, Metrics, QEMU_SWITCH, s, wait_until,
};

/// The longest payload of a datagram that fits one frame.
const PAYLOAD_MAX: usize = 1472;
/// Datagrams in flight: fewer than a card's ring of 256 entries.
const WINDOW: usize = 32;
const BLOB_MIB: u64 = 4;

/// Also after upgrades: the successor maps the rings and the memory of sockets that are bound, and binds nothing anew, so the cards'
/// queues are not set up again.
#[test]
fn two_cards_in_zero_copy_carry_every_byte_and_go_on_through_upgrades() {
    let lab = Lab::new(s(90));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let mut switch = GuestSwitch::start(&lab, &[("a", &a, "zero-copy"), ("b", &b, "auto")]);
    a.must_ping(&b);
    datagrams_of_every_length(&a, &b);
    let _service = LinuxGuest::service(&lab, &b);
    for job in ["sha", "fetch"] {
        let mut client = LinuxGuest::client(&lab, &a, job, &b.address, BLOB_MIB as u32);
        println!(
            "{job}: {}",
            switch.ask("crosspoint upgrade --supervisor-socket /tmp/supervisor")
        );
        client.must_transfer();
    }
    datagrams_of_every_length(&a, &b);
    switch.assert_zero_copy(&["a", "b"]);
    let log = switch.ask("cat /tmp/switch.log");
    assert!(!log.contains("opened anew"), "{log}");
    let (metrics, ledger) = switch.ledger();
    // A TCP segment has 1460 bytes at most.
    let frames = 2 * (PAYLOAD_MAX as u64 + 1) + BLOB_MIB * 1024 * 1024 / 1460;
    for port in ["a", "b"] {
        let port = ledger.port(port);
        assert!(port.rx > frames && port.tx > frames, "{frames}\n{ledger}");
    }
    for invalid in ["rx", "tx"] {
        let name = format!("crosspoint_xdp_{invalid}_invalid_descriptors_total");
        assert_eq!(metrics.of(&name).count(), 2, "{}", metrics.text);
        assert_eq!(metrics.sum(&name, &[]), 0, "{}", metrics.text);
    }
}

/// In each direction, a frame of each length, in a window of others of similar length.
fn datagrams_of_every_length(a: &Host<'_>, b: &Host<'_>) {
    let [a, b] = [a, b].map(|host| {
        let socket = host.inside(|| UdpSocket::bind((host.address.as_str(), 7777)));
        let socket = socket.expect("an address of the host");
        socket.set_read_timeout(Some(s(5))).expect("a time limit");
        socket
    });
    for (from, to) in [(&a, &b), (&b, &a)] {
        let address = to.local_addr().expect("it is bound");
        let lengths = (0..=PAYLOAD_MAX).collect::<Vec<_>>();
        for window in lengths.chunks(WINDOW) {
            for len in window {
                let sent = from.send_to(&payload(*len), address);
                assert_eq!(sent.expect("a datagram is sent"), *len);
            }
            for len in window {
                let mut bytes = [0; PAYLOAD_MAX + 1];
                let got = to.recv(&mut bytes).expect("the datagram arrives");
                assert!(bytes[..got] == payload(*len), "{len} bytes, or other ones");
            }
        }
    }
}

fn payload(len: usize) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + len * 7) as u8;
    (0..len).map(byte).collect()
}

/// A switch in a guest, controlled by the console.
struct GuestSwitch {
    console: CommandGuest,
}

impl GuestSwitch {
    /// Starts it with ports of these names and modes, each on a card that is bridged with a host's wire.
    fn start(lab: &Lab, ports: &[(&str, &Host<'_>, &str)]) -> Self {
        let mut config = "version = 1\n[workers]\ncores = [1]\n".to_owned();
        let mut command = lab.command(QEMU_SWITCH);
        let path = lab.dir().join("guest-switch.toml");
        command.arg(env!("CARGO_BIN_EXE_crosspoint")).arg(&path);
        for (number, (name, host, mode)) in ports.iter().enumerate() {
            let (tap, bridge) = (format!("tap-{name}"), format!("bridge-{name}"));
            lab.ip(&format!("tuntap add {tap} mode tap"));
            lab.ip(&format!("link add {bridge} type bridge"));
            for link in [&tap, &host.interface] {
                lab.ip(&format!("link set {link} up master {bridge}"));
            }
            lab.ip(&format!("link set {bridge} up"));
            command.arg(tap);
            config += &format!(
                "[[port]]\nname = \"{name}\"\ntype = \"xdp\"\ninterface = \"eth{number}\"\nmode = \"{mode}\"\n"
            );
        }
        fs::write(&path, config).expect("the configuration is written");
        let console = CommandGuest::start(lab, &command);
        let mut switch = Self { console };
        wait_until("ports on all cards", s(20), || {
            let rows = switch.ports();
            let is_up = |row: &Value| row["state"] == "up";
            rows.iter().all(is_up).then_some(())
        });
        switch
    }

    /// Runs a command in the guest, which must succeed. Returns its output.
    fn ask(&mut self, line: &str) -> String {
        self.console.ask(line, s(20))
    }

    /// The rows of `show ports`.
    fn ports(&mut self) -> Vec<Value> {
        let text = self.ask("crosspoint show ports --json");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn assert_zero_copy(&mut self, ports: &[&str]) {
        let rows = self.ports();
        for port in ports {
            let row = rows.iter().find(|row| row["name"] == *port);
            let row = row.unwrap_or_else(|| panic!("no port {port:?} in {rows:?}"));
            assert_eq!(row["properties"]["copy"], "zero-copy", "{row}");
            assert_eq!(row["properties"]["xdp"], "native", "{row}");
        }
    }

    /// The metrics and the ledger, once it balances and two readings are equal: nothing is in flight.
    fn ledger(&mut self) -> (Metrics, Ledger) {
        let mut before = None;
        wait_until("a ledger at rest, which balances", s(20), || {
            let text = self.ask("wget -qO- http://127.0.0.1:9477/metrics");
            let metrics = Metrics::of_text(&text);
            let ledger = Ledger::new(&metrics);
            let quiet = ledger.fault().is_none() && before.as_ref() == Some(&ledger);
            before = Some(ledger.clone());
            quiet.then_some((metrics, ledger))
        })
    }
}
