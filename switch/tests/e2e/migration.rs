//! Live migration: a working guest moves from one host's switch to another's.
//!
//! ```text
//! host a -- switch A -- wire -- switch B
//!              |                   |
//!            QEMU   -- migrates --> QEMU    and back
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Host, Lab, Ledger, LinuxGuest, Process, Qmp, Switch, guest, s, wait_until, xdp,
};

const MAC: &str = "52:54:00:09:00:01";
const ADDRESS: &str = "10.9.0.11";
/// Time between two pings.
const PING_MS: u64 = 5;

#[test]
fn a_guest_with_split_rings_migrates_live_and_back_under_load_without_a_wrong_byte() {
    there_and_back("split", "packed=off", 1);
}

#[test]
fn a_guest_with_packed_rings_migrates_live_and_back_under_load_without_a_wrong_byte() {
    there_and_back("packed", "packed=on", 2);
}

/// The first migration is of a silent guest, so that only its announcement can show where it is; the way back is under load.
fn there_and_back(kind: &str, props: &str, pairs: u32) {
    let lab = Lab::new(s(170));
    let host = Host::new(&lab, "a", 1);
    lab.ip("link add wire-a type veth peer name wire-b");
    lab.ip("link set wire-a up");
    lab.ip("link set wire-b up");
    let wire =
        |end| format!("[[port]]\nname = \"wire\"\ntype = \"xdp\"\ninterface = \"wire-{end}\"\n");
    let port = |name| guest(&lab, name) + &format!("queue_pairs = {pairs}\n");
    let a = Switch::start(&lab, &[1], &[port("guest-a"), xdp("a", &host), wire("a")]);
    let b = Switch::start_second(&lab, &[0], &[port("guest-b"), wire("b")]);
    let boot =
        |place: &str, life: &str, more: &str| Machine::boot(&lab, place, life, props, pairs, more);

    let mut first = boot("guest-a", "first", "");
    first.guest.wait_ready();
    host.must_ping_address(ADDRESS);
    assert_eq!(a.negotiated("guest-a", "RING_PACKED"), props == "packed=on");
    let mut second = boot("guest-b", "second", &incoming(&lab, "second"));
    let silent = first.migrate(&mut second, &incoming(&lab, "second"));
    // Nothing has been sent to the guest since.
    let places = || [a.port_of(MAC), b.port_of(MAC)];
    wait_until("the guest's announcement", s(5), || {
        (places() == [Some("wire".to_owned()), Some("guest-b".to_owned())]).then_some(())
    });
    host.must_ping_address(ADDRESS);
    first.guest.kill();

    // Booted before the load begins, so that the load need not last while a machine starts.
    let mut third = boot("guest-a", "third", &incoming(&lab, "third"));
    let load = Load::start(&lab, &host);
    let carried =
        |switch: &Switch<'_>, port: &str| Ledger::new(&switch.metrics()).port(port).clone();
    let before = carried(&b, "guest-b");
    wait_until("load on the guest", s(30), || {
        let now = carried(&b, "guest-b");
        // Fewer to the guest, since frames for it are joined.
        (now.rx > before.rx + 1000 && now.tx > before.tx + 300).then_some(())
    });
    load.must_be_running();
    let loaded = second.migrate(&mut third, &incoming(&lab, "third"));
    second.guest.kill();
    let before = carried(&a, "guest-a");
    let text = load.end();
    let after = carried(&a, "guest-a");
    assert!(
        after.rx > before.rx + 100 && after.tx > before.tx + 100,
        "both ways through A: {before:?} {after:?}"
    );
    assert_eq!(a.port_of(MAC).as_deref(), Some("guest-a"));
    assert_eq!(b.port_of(MAC).as_deref(), Some("wire"));
    host.must_ping_address(ADDRESS);
    a.ledger();
    b.ledger();
    report(
        kind,
        &format!("silent guest: {silent}\nunder load: {loaded}\n{text}"),
    );
}

/// A group whose members may begin nothing: what they send must belong to a connection.
const GROUP: &str = r#"
[[group]]
name = "server"
rules = [
    { direction = "in", protocol = "icmp" },
    { direction = "in", protocol = "tcp", ports = ["90-91"] },
]
"#;

/// Two switches with a host at the first, and guests' ports with the group on both.
struct Pair<'a> {
    lab: &'a Lab,
    host: Host<'a>,
    a: Switch<'a>,
    b: Switch<'a>,
}

impl<'a> Pair<'a> {
    /// The ports `names` are the guest's at the first switch and at the second; `options` are those of each.
    fn start(lab: &'a Lab, names: [(&str, &str); 3]) -> Self {
        let host = Host::new(lab, "a", 1);
        lab.ip("link add wire-a type veth peer name wire-b");
        lab.ip("link set wire-a up");
        lab.ip("link set wire-b up");
        let wire = |end| {
            format!("[[port]]\nname = \"wire\"\ntype = \"xdp\"\ninterface = \"wire-{end}\"\n")
        };
        let [at_a, others @ ..] = names.map(|(name, options)| {
            guest(lab, name) + &format!("groups = [\"server\"]\n{options}\n")
        });
        let a = [at_a, xdp("a", &host), wire("a"), GROUP.to_owned()];
        let [one, other] = others;
        let b = [one, other, wire("b"), GROUP.to_owned()];
        Pair {
            a: Switch::start(lab, &[1], &a),
            b: Switch::start_second(lab, &[0], &b),
            lab,
            host,
        }
    }

    fn boot(&self, place: &str, more: &str) -> Machine {
        Machine::boot_with("orders", self.lab, place, place, "packed=off", 1, more)
    }

    /// A guest at a port of the first switch, which runs `serve` for each connection to port 90.
    fn serving(&self, place: &str, serve: &str) -> Machine {
        let mut machine = self.boot(place, "");
        machine.guest.wait_ready();
        machine.guest.run(&format!(
            "socat TCP4-LISTEN:90,fork,reuseaddr SYSTEM:'{serve}' > /dev/null 2>&1 & true"
        ));
        machine
    }

    /// A client at the host that prints a line for each byte that it gets, and sends one first if `speaks`. It ends when none has
    /// come for three seconds.
    fn client(&self, speaks: bool) -> Process {
        let say = if speaks { "s.sendall(b'x')" } else { "pass" };
        let script = format!(
            "import socket, time\n\
             for _ in range(100):\n\
             \x20   try:\n\
             \x20       s = socket.create_connection(('{ADDRESS}', 90), 5)\n\
             \x20       break\n\
             \x20   except ConnectionRefusedError:\n\
             \x20       time.sleep(0.1)\n\
             s.settimeout(3)\n\
             n = 0\n\
             while True:\n\
             \x20   {say}\n\
             \x20   assert s.recv(1)\n\
             \x20   n += 1\n\
             \x20   print('got', n, flush=True)\n\
             \x20   time.sleep(0.05)\n"
        );
        let mut command = self.host.command("python3 -c");
        command.arg(script);
        let mut process = Process::start(self.lab.dir(), &format!("client-{speaks}"), &command);
        process.wait_for("got 10\n", s(15));
        process
    }
}

/// The number of bytes that a client has got.
fn got(client: &Process) -> u32 {
    let log = client.log();
    let mut numbers = log
        .lines()
        .rev()
        .filter_map(|line| line.strip_prefix("got "));
    let last = numbers.next().and_then(|number| number.parse().ok());
    last.unwrap_or(0)
}

fn must_go_on(client: &Process) {
    let before = got(client);
    wait_until("more of the stream", s(5), || {
        (got(client) > before + 20).then_some(())
    });
}

/// A guest whose group lets it begin nothing goes on with its clients at the other switch, since its connections travel with it.
/// Where the other switch does not take them, the migration fails and the guest goes on where it was.
#[test]
fn connections_of_a_guest_with_groups_travel_with_it() {
    let lab = Lab::new(s(170));
    let pair = Pair::start(
        &lab,
        [
            ("guest-a", ""),
            ("guest-b", ""),
            ("guest-c", "migrate_connections = false"),
        ],
    );
    let mut source = pair.serving("guest-a", "cat");
    let client = pair.client(true);

    let mut unable = pair.boot("guest-c", &incoming(&lab, "guest-c"));
    source.must_not_migrate(&mut unable, &incoming(&lab, "guest-c"));
    must_go_on(&client);
    unable.guest.kill();

    let mut target = pair.boot("guest-b", &incoming(&lab, "guest-b"));
    target.set_return_path();
    source.migrate(&mut target, &incoming(&lab, "guest-b"));
    must_go_on(&client);
    source.guest.kill();
    let log = pair.b.log();
    assert!(
        log.contains("1 of its connections go on, 0 are not allowed here"),
        "{log}"
    );
    let shown = pair.b.show_json("connections");
    let shown = &shown["connections"][0];
    assert_eq!(
        (&shown["port"], &shown["direction"], &shown["state"]),
        (&json!("guest-b"), &json!("in"), &json!("established"))
    );
    pair.a.ledger();
    pair.b.ledger();
}

/// Without that, the guest's segments pass for a while if its rules allow the other direction: here the client only listens, so
/// that no packet of it begins the connection.
#[test]
fn a_guest_that_arrives_without_its_connections_goes_on_by_its_rules() {
    let lab = Lab::new(s(120));
    let without = "migrate_connections = false";
    let pair = Pair::start(
        &lab,
        [
            ("guest-a", without),
            ("guest-b", without),
            ("guest-c", without),
        ],
    );
    let mut source = pair.serving("guest-a", "while echo -n x; do sleep 0.05; done");
    let client = pair.client(false);
    let mut target = pair.boot("guest-b", &incoming(&lab, "guest-b"));
    source.migrate(&mut target, &incoming(&lab, "guest-b"));
    must_go_on(&client);
    source.guest.kill();
    assert!(!pair.b.log().contains("go on"));
    // Nothing else of it passes.
    pair.host.must_ping_address(ADDRESS);
    pair.a.ledger();
    pair.b.ledger();
}

fn incoming(lab: &Lab, life: &str) -> String {
    format!("unix:{}", lab.socket(&format!("incoming-{life}")).display())
}

/// A QEMU that runs the guest, or waits for it.
struct Machine {
    guest: LinuxGuest,
    qmp: Qmp,
}

impl Machine {
    fn boot(lab: &Lab, place: &str, life: &str, props: &str, pairs: u32, incoming: &str) -> Self {
        Self::boot_with("server", lab, place, life, props, pairs, incoming)
    }

    fn boot_with(
        job: &str,
        lab: &Lab,
        place: &str,
        life: &str,
        props: &str,
        pairs: u32,
        incoming: &str,
    ) -> Self {
        let control = lab.socket(&format!("qmp-{life}"));
        let mut line = format!(
            "--job {job} --ip {ADDRESS}/24 --mac {MAC} --queues {pairs} --device {props} --qmp {}",
            control.display()
        );
        if !incoming.is_empty() {
            line += &format!(" --incoming {incoming}");
        }
        let guest = LinuxGuest::qemu(lab, place, &line);
        Self {
            guest,
            qmp: Qmp::connect(&control),
        }
    }

    /// The two sides tell each other whether they succeed; otherwise the source does not know, and its guest stays stopped.
    fn set_return_path(&mut self) {
        let path = json!([{ "capability": "return-path", "state": true }]);
        let capabilities = json!({ "capabilities": path });
        self.qmp.must("migrate-set-capabilities", capabilities);
    }

    /// Tries to migrate the guest to `target`, which waits at `uri` and cannot take it.
    fn must_not_migrate(&mut self, target: &mut Machine, uri: &str) {
        self.set_return_path();
        target.set_return_path();
        self.qmp.must("migrate", json!({ "uri": uri }));
        wait_until("the end of the migration", s(60), || {
            let info = self.qmp.must("query-migrate", json!({}));
            assert_ne!(info["status"], "completed");
            (info["status"] == "failed").then_some(())
        });
        wait_until("the guest running where it was", s(10), || {
            (self.qmp.must("query-status", json!({}))["status"] == "running").then_some(())
        });
    }

    /// Migrates the guest to `target`, which waits at `uri`. Returns how long that took, in words.
    fn migrate(&mut self, target: &mut Machine, uri: &str) -> String {
        let limits = json!({ "max-bandwidth": 1_u64 << 30, "downtime-limit": 300 });
        self.qmp.must("migrate-set-parameters", limits);
        self.qmp.must("migrate", json!({ "uri": uri }));
        let info = wait_until("the end of the migration", s(60), || {
            let info = self.qmp.must("query-migrate", json!({}));
            assert!(
                info["status"] != "failed" && info["status"] != "cancelled",
                "{info}"
            );
            (info["status"] == "completed").then_some(info)
        });
        wait_until("the guest running at its new place", s(10), || {
            (target.qmp.must("query-status", json!({}))["status"] == "running").then_some(())
        });
        format!(
            "{} ms in all, of which QEMU counts {} ms of downtime",
            info["total-time"], info["downtime"]
        )
    }
}

/// Traffic between the guest and the host meanwhile: TCP both ways with checksums, UDP both ways, and numbered pings.
struct Load {
    transfers: [LinuxGuest; 2],
    stream: Process,
    ping: Process,
}

impl Load {
    fn start(lab: &Lab, host: &Host<'_>) -> Self {
        let run = |name: &str, line: &str| Process::start(lab.dir(), name, &host.command(line));
        let stream =
            format!("iperf3 -J -u --bidir -b 4M -l 1000 -t 10 -c {ADDRESS} --connect-timeout 5000");
        let ping = format!("ping -n -s 400 -i 0.{PING_MS:03} {ADDRESS}");
        Self {
            transfers: ["sha", "fetch"].map(|job| LinuxGuest::client(lab, host, job, ADDRESS, 24)),
            stream: run("stream", &stream),
            ping: run("ping", &ping),
        }
    }

    /// The whole load must still be running when the migration begins.
    fn must_be_running(&self) {
        for transfer in &self.transfers {
            let log = transfer.log();
            assert!(!log.contains("CLIENT-DONE"), "over too soon: {log}");
        }
    }

    /// Waits for the load's end. Returns the losses, in words. No wrong byte may have arrived.
    fn end(mut self) -> String {
        self.transfers
            .iter_mut()
            .for_each(LinuxGuest::must_transfer);
        let ended = self.stream.wait(s(60));
        let log = self.stream.log();
        assert!(ended.is_some_and(|status| status.success()), "{log}");
        let report: Value = serde_json::from_str(&log).expect("iperf3 -J prints JSON");
        self.ping.signal(Signal::INT);
        self.ping.wait(s(5));
        let (longest, missing) = gaps(&self.ping.log());
        let mut text = String::new();
        for stream in report["end"]["streams"].as_array().expect("streams") {
            let udp = &stream["udp"];
            let way = if udp["sender"] == true {
                "to the guest"
            } else {
                "from the guest"
            };
            let _ = writeln!(
                text,
                "UDP {way}: {} of {} datagrams lost",
                udp["lost_packets"], udp["packets"]
            );
        }
        let ms = longest * PING_MS;
        let _ = writeln!(
            text,
            "pings every {PING_MS} ms: {missing} lost, at most {longest} in a row, hence {ms} ms without the guest"
        );
        assert!(ms < 10_000, "{text}");
        text
    }
}

/// The longest run of numbers without a reply, and the number of all missing replies.
fn gaps(log: &str) -> (u64, u64) {
    assert!(
        !log.contains("wrong data"),
        "a ping with other bytes came back\n{log}"
    );
    let number = |line: &str| -> Option<u64> {
        let (_, rest) = line.split_once("icmp_seq=")?;
        line.contains("time=")
            .then(|| rest.split(' ').next()?.parse().ok())?
    };
    let mut numbers = log.lines().filter_map(number).collect::<Vec<_>>();
    numbers.sort_unstable();
    let missing = numbers
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).saturating_sub(1));
    (missing.clone().max().unwrap_or_default(), missing.sum())
}

/// Writes the numbers for the documentation: `live-migration-KIND.txt` in cargo's folder for tests.
fn report(kind: &str, text: &str) {
    let path: PathBuf =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("live-migration-{kind}.txt"));
    eprintln!("{}:\n{text}", path.display());
    std::fs::write(&path, text).expect("the report is written");
}
