//! Every combination of offloads that a guest's card leaves to the device or accepts from it: the bytes are the same,
//! nothing is lost, and the switch does what was negotiated.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::Value;

use crate::harness::{Host, Lab, Ledger, LinuxGuest, Process, Switch, guest, s, xdp};

/// Number of bytes sent in one transfer.
const BLOB: usize = 1 << 20;
/// TCP port on which all hosts and guests serve it.
const BLOB_PORT: u16 = 6001;
/// Sizes of datagrams: the smallest, the largest that fits a frame, and those that need fragments.
const DATAGRAMS: [usize; 4] = [1, 1472, 8000, 65000];
/// UDP port on which guests send every datagram back.
const ECHO_PORT: u16 = 5003;
/// Attempts to ask a service, each with three seconds to answer.
const ASKED_MAX: usize = 10;
/// A guest's service for the blob, and the end of a pipe that compares with it.
const SERVE: &str = "socat -U -b 131072 TCP4-LISTEN:6001,fork,reuseaddr OPEN:/tmp/blob,rdonly";
const SAME: &str = "cmp - /tmp/blob && echo same";
/// The headers of Ethernet, IPv4 and TCP with a timestamp, which Linux puts into every segment.
const HEADERS: i64 = 14 + 20 + 32;
/// A TCP receive window that is smaller, in full frames, than a ring of 256 buffers, so that no ring is ever full. Also no
/// probe for a lost tail, which a guest without a core of its own would send too soon; and none for a known neighbour.
const TUNING: &str = "sysctl -q -w net.ipv4.tcp_rmem='4096 131072 131072' net.ipv4.tcp_early_retrans=0; \
    for time in /proc/sys/net/ipv4/neigh/*/delay_first_probe_time; do echo 300 > $time; done";
const COUNTERS: &str = "cat /proc/net/dev /proc/net/snmp /proc/net/netstat";

/// Which of QEMU's options a card has.
#[derive(Clone, Copy, Debug)]
struct Card {
    csum: bool,
    host_tso4: bool,
    guest_csum: bool,
    guest_tso4: bool,
    mrg_rxbuf: bool,
    /// The MTU is in the configuration space. A driver with neither mergeable buffers nor GUEST_TSO has large buffers only
    /// because of this.
    jumbo: bool,
}

impl Card {
    /// Combination `bits`, below 16.
    fn new(bits: usize) -> Self {
        let has = |bit: u32| bits & (1 << bit) != 0;
        Self {
            csum: has(0),
            host_tso4: has(1),
            guest_csum: true,
            guest_tso4: has(2),
            mrg_rxbuf: has(3),
            jumbo: false,
        }
    }

    /// Every combination; then, for MTU 9000, those whose driver would otherwise have no buffers for it; then those for
    /// which the switch completes every checksum.
    fn all() -> Vec<Self> {
        let matrix = (0..16).map(Self::new);
        let small = matrix.clone().filter(|card| !card.takes_jumbo());
        let jumbo = small.map(|card| Self {
            jumbo: true,
            ..card
        });
        let unchecked = [3, 11].map(|bits| Self {
            guest_csum: false,
            ..Self::new(bits)
        });
        matrix.clone().chain(jumbo).chain(unchecked).collect()
    }

    fn options(self) -> String {
        let word = |has| if has { "on" } else { "off" };
        let (csum, host_tso4) = (word(self.csum), word(self.host_tso4));
        let (guest_csum, guest_tso4) = (word(self.guest_csum), word(self.guest_tso4));
        let mut text = format!(
            "csum={csum},host_tso4={host_tso4},guest_csum={guest_csum},guest_tso4={guest_tso4},mrg_rxbuf={},\
            host_tso6=off,host_ecn=off,guest_tso6=off,guest_ecn=off,host_uso=off,guest_uso4=off,guest_uso6=off,\
            host_ufo=off,guest_ufo=off",
            word(self.mrg_rxbuf)
        );
        if self.jumbo {
            text += ",host_mtu=9000";
        }
        text
    }

    /// The features by the switch's names.
    fn features(self) -> [(&'static str, bool); 6] {
        [
            ("CSUM", self.csum),
            ("HOST_TSO4", self.host_tso4),
            ("GUEST_CSUM", self.guest_csum),
            ("GUEST_TSO4", self.guest_tso4),
            ("MRG_RXBUF", self.mrg_rxbuf),
            ("MTU", self.jumbo),
        ]
    }

    /// Linux sends no large frames if it must compute the checksum itself.
    fn sends_large(self) -> bool {
        self.csum && self.host_tso4
    }

    fn takes_large(self) -> bool {
        self.guest_csum && self.guest_tso4
    }

    fn takes_jumbo(self) -> bool {
        self.mrg_rxbuf || self.guest_tso4 || self.jumbo
    }
}

/// Two guests, each with all the cards, and a host on each card's network.
struct Bench<'a> {
    switch: &'a Switch<'a>,
    host: &'a Host<'a>,
    guests: [LinuxGuest; 2],
    cards: Vec<Card>,
    blob: Vec<u8>,
    before: Ledger,
}

const NAMES: [&str; 2] = ["a", "b"];

#[test]
fn two_qemu_guests_and_a_host_exchange_every_byte_with_every_combination_of_offloads() {
    let lab = Lab::new(s(170));
    let host = Host::new(&lab, "h", 1);
    // The switch's end accepts long frames from the start; the host sends none yet.
    lab.ip(&format!("link set {} mtu 9000", host.interface));
    let cards = Card::all();
    let names = NAMES
        .iter()
        .flat_map(|name| (0..cards.len()).map(move |card| format!("{name}{card}")));
    let mut ports = names
        .map(|name| guest(&lab, &name) + "mtu = 9000\n")
        .collect::<Vec<_>>();
    ports.push(xdp("h", &host));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut bench = Bench::start(&lab, &switch, &host, cards);
    bench.assert_negotiated();
    let numbers = 0..bench.cards.len();
    let usual = numbers.clone().filter(|card| !bench.cards[*card].jumbo);
    let usual = usual.collect::<Vec<_>>();
    bench.exchange(&usual, 1500);
    host.ip("link set eth0 mtu 9000");
    let able = numbers.filter(|card| bench.cards[*card].takes_jumbo());
    let able = able.collect::<Vec<_>>();
    bench.raise_mtu(&able);
    bench.exchange(&able, 9000);
    bench.assert_nothing_lost();
}

impl<'a> Bench<'a> {
    fn start(lab: &Lab, switch: &'a Switch<'a>, host: &'a Host<'a>, cards: Vec<Card>) -> Self {
        for card in 1..cards.len() {
            host.ip(&format!("addr add 10.9.{card}.1/24 dev eth0"));
        }
        host.must_run(TUNING);
        let guests = [0, 1].map(|number| boot(lab, number, &cards));
        let mut bench = Self {
            switch,
            host,
            guests,
            cards,
            blob: blob(),
            before: Ledger::default(),
        };
        bench.guests.iter_mut().for_each(LinuxGuest::wait_ready);
        bench.introduce();
        bench
    }

    /// All hosts and guests get the blob, serve it, and learn each other's addresses: from here on nothing is flooded.
    fn introduce(&mut self) {
        let last = self.cards.len() - 1;
        for guest in 0..2 {
            self.guests[guest].run(TUNING);
            self.fetch_from_host(guest, 0, "cat > /tmp/blob");
            self.guests[guest].run(&format!("{SERVE} & net-job.sh echo & true"));
        }
        let pings = format!(
            "for n in $(seq 0 {last}); do ping -c 1 -W 5 10.9.$n.1 && ping -c 1 -W 5 10.9.$n.12; done | grep -c ' 0% packet loss'"
        );
        let answers = self.guests[0].run(&pings);
        assert_eq!(answers.trim(), (2 * last + 2).to_string());
        self.before = self.switch.ledger();
    }

    fn assert_negotiated(&self) {
        let ports = self.switch.show_json("ports");
        for row in ports.as_array().expect("a list of ports") {
            let name = row["name"].as_str().expect("a name");
            if name == "h" {
                assert_eq!(row["properties"]["tso"], "whole");
            }
            let Some(index) = NAMES.iter().find_map(|letter| name.strip_prefix(letter)) else {
                continue;
            };
            let card = self.cards[index.parse::<usize>().expect("a number")];
            let features = row["properties"]["features"].as_str().unwrap_or_default();
            for (feature, wanted) in card.features() {
                let has = features.split_whitespace().any(|name| name == feature);
                assert_eq!(has, wanted, "{feature} of {card:?}: {features}");
            }
        }
    }

    /// All directions between guests and host, with these cards.
    fn exchange(&mut self, cards: &[usize], mtu: u64) {
        for card in cards {
            self.with_host(*card);
        }
        self.between_guests(cards, 0, mtu);
        self.between_guests(cards, 1, mtu);
        for card in cards {
            self.datagrams_with_host(*card);
            // Each takes a second, so only some: the cards with nothing and with all, and those that differ in how checksums
            // are handled.
            if [0, 1, 15, 16, 20, 21].contains(card) {
                self.datagrams(*card);
            }
        }
        self.moved();
    }

    /// The host sends the blob to one guest, which pipes it into `sink`.
    fn fetch_from_host(&mut self, guest: usize, card: usize, sink: &str) -> String {
        let listener = self
            .host
            .inside(|| TcpListener::bind(("0.0.0.0", BLOB_PORT)));
        let listener = listener.expect("a port of the host");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("the guest connects");
                stream.write_all(&self.blob).expect("the guest reads");
            });
            self.guests[guest].run(&format!("{} | {sink}", fetch(card, 1)))
        })
    }

    /// Both directions between the first guest and the host.
    fn with_host(&mut self, card: usize) {
        let same = self.fetch_from_host(0, card, SAME);
        assert_eq!(same, "same\n", "from the host to {:?}", self.cards[card]);
        let address = format!("10.9.{card}.11:{BLOB_PORT}");
        let received = self.host.inside(|| {
            let mut bytes = Vec::new();
            let mut stream = TcpStream::connect(address).expect("the guest listens");
            stream.read_to_end(&mut bytes).expect("the guest sends");
            bytes
        });
        assert!(
            received == self.blob,
            "to the host from {:?}",
            self.cards[card]
        );
        let moved = self.moved();
        let guest = format!("a{card}");
        let kind = self.cards[card];
        // The host accepts whole frames, so its own counters show these few frames. Frames from the host are joined for
        // guests that accept large ones.
        let joined = [Changed::Nothing, Changed::Joined][usize::from(kind.takes_large())];
        moved.assert_way(&guest, "h", Changed::Nothing, kind);
        moved.assert_way("h", &guest, joined, kind);
    }

    /// From one guest to the other, with one card after the other. Each card has its own ports, so one reading of the ledger
    /// covers all.
    fn between_guests(&mut self, cards: &[usize], from: usize, mtu: u64) {
        let to = 1 - from;
        for card in cards {
            let same = self.guests[to].run(&format!("{} | {SAME}", fetch(*card, 11 + from)));
            assert_eq!(
                same, "same\n",
                "between guests with {:?}",
                self.cards[*card]
            );
        }
        let moved = self.moved();
        for card in cards {
            let [sender, receiver] = [from, to].map(|guest| format!("{}{card}", NAMES[guest]));
            self.assert_between(
                self.cards[*card],
                &moved.only(&sender, &receiver),
                [&sender, &receiver],
                mtu,
            );
        }
        assert_eq!(moved.0.len(), 2 * cards.len(), "{moved:?}");
    }

    fn assert_between(&self, kind: Card, moved: &Moved, [sender, receiver]: [&str; 2], mtu: u64) {
        let cut = usize::from(kind.sends_large() && !kind.takes_large());
        let changed = [Changed::Nothing, Changed::Cut][cut];
        moved.assert_way(sender, receiver, changed, kind);
        moved.assert_way(receiver, sender, Changed::Nothing, kind);
        // The least number of frames; a few more for the handshake.
        let (full, frames) = (BLOB as u64 / (mtu - 52), moved.of(sender).rx as u64);
        if kind.sends_large() {
            assert!(
                frames < full * 3 / 4,
                "large frames from {kind:?}: {moved:?}"
            );
        } else {
            assert!(frames >= full, "none large from {kind:?}: {moved:?}");
            assert!(
                frames < full + full / 8 + 50,
                "full ones from {kind:?}: {moved:?}"
            );
        }
    }

    /// What was moved since the last call. Nothing may be lost or flooded.
    fn moved(&mut self) -> Moved {
        let after = self.switch.ledger();
        let mut moved = BTreeMap::new();
        for (name, now) in &after.ports {
            assert!(now.drops.is_empty(), "drops\n{after}");
            let then = self.before.port(name);
            assert_eq!(now.flood_copies, then.flood_copies, "floods\n{after}");
            let way = Way {
                rx: now.rx as i64 - then.rx as i64,
                tx: now.tx as i64 - then.tx as i64,
                rx_bytes: now.rx_bytes as i64 - then.rx_bytes as i64,
                tx_bytes: now.tx_bytes as i64 - then.tx_bytes as i64,
                cut: now.segment_copies as i64 - then.segment_copies as i64,
                joined: now.joined_copies as i64 - then.joined_copies as i64,
            };
            if way != Way::default() {
                moved.insert(name.clone(), way);
            }
        }
        self.before = after;
        Moved(moved)
    }

    /// Sets an MTU of 9000 for these cards of both guests.
    fn raise_mtu(&mut self, cards: &[usize]) {
        let numbers = cards.iter().map(usize::to_string).collect::<Vec<_>>();
        let numbers = numbers.join(" ");
        for guest in &mut self.guests {
            let said = guest.run(&format!(
                "for n in {numbers}; do ip link set eth$n mtu 9000; done"
            ));
            assert_eq!(said, "");
        }
    }

    /// UDP between the guests, in both directions; also in fragments, whose checksum cannot be left to a card.
    fn datagrams(&mut self, card: usize) {
        let said = self.guests[0].run(&format!("net-job.sh datagrams 10.9.{card}.12"));
        let good = said.matches("=ok\n").count();
        assert_eq!(good, DATAGRAMS.len(), "{:?}: {said}", self.cards[card]);
    }

    /// The same from the host to a guest. If the service was not fast enough, it is asked again from another socket: frames
    /// lost on the way would show in the counters.
    fn datagrams_with_host(&mut self, card: usize) {
        let guest = format!("10.9.{card}.11");
        for size in DATAGRAMS {
            let datagram = &self.blob[size..2 * size];
            let answer = (0..ASKED_MAX).find_map(|_| self.echoed(&guest, datagram));
            let answer = answer.unwrap_or_else(|| {
                let (ledger, host) = (self.switch.ledger(), self.host.must_run(COUNTERS));
                panic!("no answer to {size} bytes to {guest}\n{ledger}\n{host}")
            });
            assert!(answer == datagram, "{size} bytes to {guest}");
        }
    }

    fn echoed(&self, guest: &str, datagram: &[u8]) -> Option<Vec<u8>> {
        let socket = self.host.inside(|| UdpSocket::bind("0.0.0.0:0"));
        let socket = socket.expect("a port of the host");
        socket.set_read_timeout(Some(s(3))).expect("a time limit");
        socket.connect((guest, ECHO_PORT)).expect("an address");
        socket.send(datagram).expect("it is sent");
        let mut answer = vec![0; 65536];
        let len = socket.recv(&mut answer).ok()?;
        answer.truncate(len);
        Some(answer)
    }

    /// The counters of guests and host: what they have sent and received must equal the switch's counts, in frames and in
    /// bytes, and their TCP must have lost nothing.
    fn assert_nothing_lost(&mut self) {
        let ledger = self.switch.ledger();
        let mut seen = 0;
        let host = self.host.must_run(COUNTERS);
        let texts = self.guests.each_mut().map(|guest| guest.run(COUNTERS));
        for (who, text) in NAMES.iter().zip(&texts).chain([(&"h", &host)]) {
            assert_clean(who, text);
            let put_together = protocols(text)["Ip.ReasmOKs"];
            assert!(put_together > 0, "fragments arrived at {who}\n{text}");
            for (index, mut counts) in interfaces(text) {
                let name = match *who {
                    "h" => who.to_string(),
                    guest => format!("{guest}{index}"),
                };
                let port = ledger.port(&name);
                // A veth whose peer has an XDP program counts what it sends without Ethernet headers.
                if *who == "h" && counts[2] != port.rx_bytes {
                    counts[2] += 14 * counts[3];
                }
                let switch = [port.tx_bytes, port.tx, port.rx_bytes, port.rx];
                assert_eq!(switch, counts, "what {name} got and sent\n{text}");
                seen += 1;
            }
        }
        assert_eq!(seen, ledger.ports.len());
    }
}

/// What a port has received and sent in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Way {
    rx: i64,
    tx: i64,
    rx_bytes: i64,
    tx_bytes: i64,
    cut: i64,
    joined: i64,
}

/// By port; only ports where anything moved.
#[derive(Debug)]
struct Moved(BTreeMap<String, Way>);

impl Moved {
    fn of(&self, port: &str) -> Way {
        self.0
            .get(port)
            .copied()
            .unwrap_or_else(|| panic!("nothing at {port}: {self:?}"))
    }

    /// Only these two ports.
    fn only(&self, one: &str, other: &str) -> Self {
        let of_these = |name: &&str| Some(((*name).to_owned(), *self.0.get(*name)?));
        Self([one, other].iter().filter_map(of_these).collect())
    }

    /// Checks the ledger of one direction, in frames and bytes; no other port may have sent or received. Each additional or
    /// missing copy adds or removes headers.
    fn assert_way(&self, from: &str, to: &str, changed: Changed, kind: Card) {
        let what = format!("from {from} to {to}, {kind:?}: {self:?}");
        assert_eq!(self.0.len(), 2, "{what}");
        let (sent, received) = (self.of(from), self.of(to));
        assert_eq!(sent.cut > 0, changed == Changed::Cut, "cut {what}");
        assert_eq!(sent.joined > 0, changed == Changed::Joined, "joined {what}");
        let more = sent.cut - sent.joined;
        assert_eq!(received.tx, sent.rx + more, "frames {what}");
        let bytes = sent.rx_bytes + HEADERS * more;
        assert_eq!(received.tx_bytes, bytes, "bytes {what}");
    }
}

/// What the switch must have done to the frames.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    Cut,
    Joined,
}

/// Bytes that do not repeat.
fn blob() -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(BLOB).collect()
}

/// A shell command that fetches the blob from host number `host` of a card's network. It reads and writes large pieces, so
/// that TCP can make large frames of them.
fn fetch(card: usize, host: usize) -> String {
    format!("socat -u -b 131072 TCP4:10.9.{card}.{host}:{BLOB_PORT},connect-timeout=5 -")
}

/// Interfaces `ethN`: bytes and frames received, then sent, read from /proc/net/dev.
fn interfaces(text: &str) -> Vec<(usize, [u64; 4])> {
    let of_line = |line: &str| {
        let (name, numbers) = line.trim().strip_prefix("eth")?.split_once(':')?;
        let numbers = numbers.split_whitespace().map(str::parse);
        let numbers = numbers.collect::<Result<Vec<u64>, _>>().ok()?;
        let counts = [numbers[0], numbers[1], numbers[8], numbers[9]];
        Some((name.parse().ok()?, counts))
    };
    text.lines().filter_map(of_line).collect()
}

/// The kernel's protocol counters: pairs of lines, names and then numbers, in /proc/net/snmp and netstat.
fn protocols(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().collect::<Vec<_>>();
    let mut counts = BTreeMap::new();
    for pair in lines.windows(2) {
        let (Some((protocol, names)), Some((same, numbers))) =
            (pair[0].split_once(": "), pair[1].split_once(": "))
        else {
            continue;
        };
        if protocol == same {
            let names = names.split_whitespace();
            for (name, number) in names.zip(numbers.split_whitespace()) {
                if let Ok(number) = number.parse() {
                    counts.insert(format!("{protocol}.{name}"), number);
                }
            }
        }
    }
    counts
}

/// Nothing arrived damaged, and nothing was sent again because it was lost. (A sender that got no answer for a fifth of a
/// second, because the receiver had no core, may send again what has arrived; the receiver then reports it.)
fn assert_clean(who: &str, text: &str) {
    let counts = protocols(text);
    let of = |name: &str| {
        *counts
            .get(name)
            .unwrap_or_else(|| panic!("no {name}:\n{text}"))
    };
    for name in [
        "Ip.InHdrErrors",
        "Ip.ReasmFails",
        "Tcp.InErrs",
        "Tcp.InCsumErrors",
        "Udp.InCsumErrors",
        "Icmp.InCsumErrors",
    ] {
        assert_eq!(of(name), 0, "{name} of {who}\n{text}");
    }
    let (again, needless) = (of("Tcp.RetransSegs"), of("TcpExt.TCPDSACKRecv"));
    assert!(again <= needless, "{who} lost {again} segments\n{text}");
}

/// A participant of an iperf3 run.
enum Peer<'a, 'b> {
    Guest(&'a mut LinuxGuest),
    Host(&'a Host<'b>),
}

impl Peer<'_, '_> {
    fn run(&mut self, line: &str) -> String {
        match self {
            Peer::Guest(guest) => guest.run(line),
            Peer::Host(host) => host.must_run(line),
        }
    }

    /// Both directions, to a server that listens at `address`. Returns the number of lost datagrams, with UDP.
    fn iperf3(&mut self, what: &str, address: &str, options: &str) -> u64 {
        let runs = ["", "-R"].map(|way| {
            // Standard error is closed because of a warning that datagrams may be too long, which they are not.
            let line = format!("iperf3 -J -i 0 -c {address} {options} {way} 2>&-");
            let text = self.run(&line);
            let report: Value = serde_json::from_str(&text).unwrap_or_default();
            let end = &report["end"];
            let lost = end["sum"]["lost_packets"].as_u64().unwrap_or_default();
            let sum = if options.starts_with("-u") {
                "sum"
            } else {
                "sum_received"
            };
            let rate = end[sum]["bits_per_second"].as_f64().unwrap_or_default() / 1e6;
            eprintln!("{what} {options} {way}: {rate:.0} Mb/s, {lost} lost");
            assert!(rate > 1.0, "{what} {options} {way}: {text}");
            lost
        });
        runs.iter().sum()
    }
}

#[test]
fn two_uml_guests_and_two_hosts_lose_nothing_of_tcp_and_no_datagram_without_a_name() {
    let lab = Lab::new(s(120));
    let (x, y) = (Host::new(&lab, "x", 1), Host::new(&lab, "y", 2));
    for host in [&x, &y] {
        lab.ip(&format!("link set {} mtu 9000", host.interface));
        host.must_run(TUNING);
    }
    let ports = [
        guest(&lab, "u0") + "mtu = 9000\n",
        guest(&lab, "u1") + "mtu = 9000\n",
        xdp("x", &x),
        xdp("y", &y),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut guests = ["u0", "u1"].map(|name| boot_uml(&lab, name));
    for guest in &mut guests {
        guest.wait_ready();
        guest.run(TUNING);
    }
    guests[1].run("iperf3 -s > /dev/null & sleep 0.3");
    let _service = Process::start(lab.dir(), "iperf3-y", &y.command("iperf3 -s"));

    let everywhere = |guests: &mut [LinuxGuest; 2], options: &str| {
        let mut first = Peer::Guest(&mut guests[0]);
        first.iperf3("guest to guest", "10.9.0.12", options)
            + first.iperf3("guest to host", "10.9.0.2", options)
            + Peer::Host(&x).iperf3("host to host", "10.9.0.2", options)
    };
    for mtu in [1500, 9000] {
        let line = format!("ip link set eth0 mtu {mtu}");
        for guest in &mut guests {
            assert_eq!(guest.run(&line), "");
        }
        for host in [&x, &y] {
            host.must_run(&line);
        }
        everywhere(&mut guests, "-n 32M");
    }
    let ledger = switch.ledger();
    let drops = ledger.ports.values().all(|port| port.drops.is_empty());
    assert!(drops, "{ledger}");
    // No port needs segmented frames; and host x gets frames joined that the other host has sent, its only peer.
    let cut = ledger.ports.values().map(|port| port.segment_copies);
    assert_eq!(cut.sum::<u64>(), 0, "{ledger}");
    assert!(ledger.port("x").joined_copies > 0, "{ledger}");

    // A receiver that has no core for a tenth of a second loses some: in its ring or in its socket, and nowhere else.
    let lost = everywhere(&mut guests, "-u -b 20M -l 1472 -k 800");
    let ledger = switch.ledger();
    let mut counters = guests.each_mut().map(|guest| guest.run(COUNTERS)).to_vec();
    counters.extend([&x, &y].map(|host| host.must_run(COUNTERS)));
    let full = |port: &str| ledger.port(port).drops.get("guest_ring_full");
    let mut named = [full("u0"), full("u1")].into_iter().flatten().sum::<u64>();
    for text in &counters {
        assert_clean("somebody", text);
        named += protocols(text)["Udp.RcvbufErrors"];
    }
    assert!(
        lost <= named,
        "{lost} lost, {named} with a name\n{ledger}{counters:?}"
    );
}

fn boot_uml(lab: &Lab, name: &str) -> LinuxGuest {
    let number = &name[1..];
    let line = format!(
        "--job orders --append ipv6.disable=1 --ip 10.9.0.1{}/24 --mac 52:54:00:09:08:0{number}",
        1 + number.parse::<u32>().expect("a number")
    );
    LinuxGuest::uml(lab, name, &line)
}

fn boot(lab: &Lab, number: usize, cards: &[Card]) -> LinuxGuest {
    let name = NAMES[number];
    let mac = |card: usize| format!("mac=52:54:00:09:{number:02x}:{card:02x}");
    let first = cards[0].options();
    // No IPv6, so that only the test's own frames move.
    let mut line = format!(
        "--job orders --mem 384 --append ipv6.disable=1 --device {first},{}",
        mac(0)
    );
    let mut addresses = Vec::new();
    for (index, card) in cards.iter().enumerate() {
        addresses.push(format!("10.9.{index}.{}/24", 11 + number));
        if index > 0 {
            let socket = lab.socket(&format!("{name}{index}"));
            let (socket, options) = (socket.display(), card.options());
            line += &format!(" --nic {socket},{options},{}", mac(index));
        }
    }
    line += &format!(" --ip {}", addresses.join(","));
    LinuxGuest::qemu(lab, &format!("{name}0"), &line)
}
