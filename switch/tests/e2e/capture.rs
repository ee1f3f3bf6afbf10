//! Captures and traces, as an operator sees them.

use std::collections::BTreeMap;

use rustix::process::Signal;

use crate::harness::{Host, Lab, Ledger, Process, Switch, run, s, xdp};

/// Number of frames of a capture file by port, direction, and the verdict's word or the drop reason.
type Counts = BTreeMap<(String, &'static str, String), u64>;

fn tshark(lab: &Lab, file: &str) -> Counts {
    let mut command = lab.command("tshark");
    command.args(["-n", "-r", file, "-T", "fields", "-E", "separator=|"]);
    for field in [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.comment",
    ] {
        command.args(["-e", field]);
    }
    let (status, text) = run(lab.dir(), &command, s(20));
    assert!(status.success(), "tshark: {text}");
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| line.contains('|')) {
        let mut words = line.split('|');
        let (port, direction) = (words.next().unwrap_or_default(), words.next());
        let direction = match direction {
            Some("0x00000001") => "in",
            Some("0x00000002") => "out",
            other => panic!("{other:?} in {line}"),
        };
        let comment = words.next().unwrap_or_default();
        let value = |key: &str| comment.split(' ').find_map(|word| word.strip_prefix(key));
        let word = value("reason=").or(value("verdict=")).expect("a verdict");
        let key = (port.to_owned(), direction, word.to_owned());
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// Starts a capture or a trace; it is running when this returns.
fn begin(switch: &Switch<'_>, name: &str, words: &[&str]) -> Process {
    let begun = |log: String| log.matches("has started pid").count();
    let before = begun(switch.log());
    let process = switch.start_command(name, words);
    crate::harness::wait_until(name, s(10), || (begun(switch.log()) > before).then_some(()));
    process
}

#[test]
fn a_capture_has_what_the_ledger_counts_and_a_trace_says_where_a_ping_goes() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    lab.ip(&format!("link set {} mtu 4000", a.interface));
    a.ip("link set eth0 mtu 4000");
    let switch = Switch::start(&lab, &[1], &[xdp("a", &a), xdp("b", &b)]);
    let file = lab.dir().join("frames.pcapng");
    let file = file.to_str().expect("a plain path");
    let mut capture = begin(&switch, "capture", &["capture", "--write", file]);
    let mut trace = begin(
        &switch,
        "trace",
        &["trace", "a", "--filter", "icmp", "--json"],
    );
    let before = switch.ledger();
    a.must_ping(&b);
    // The sender is not informed that the other wire is narrower.
    let long = a.command(&format!(
        "ping -M do -c 3 -i 0.01 -W 1 -s 3000 {}",
        b.address
    ));
    assert!(!run(lab.dir(), &long, s(10)).0.success());
    let after = switch.ledger();
    capture.signal(Signal::INT);
    let status = capture.wait(s(10)).expect("it ends");
    assert!(
        status.success() && capture.log().contains(" 0 missed, 0 over the rate"),
        "{}",
        capture.log()
    );

    let seen = tshark(&lab, file);
    let of = |ledger: &Ledger, port: &str| ledger.port(port).clone();
    for port in ["a", "b"] {
        let (before, after) = (of(&before, port), of(&after, port));
        let sum = |direction: &str, is: &dyn Fn(&str) -> bool| {
            let these = seen
                .iter()
                .filter(|((of, way, word), _)| of == port && *way == direction && is(word));
            these.map(|(_, count)| count).sum::<u64>()
        };
        assert_eq!(sum("in", &|_| true), after.rx - before.rx, "{seen:?}");
        assert_eq!(
            sum("out", &|word| word == "delivered"),
            after.tx - before.tx,
            "{seen:?}"
        );
        let dropped = |reason: &str| {
            after.drops.get(reason).unwrap_or(&0) - before.drops.get(reason).unwrap_or(&0)
        };
        for reason in after.drops.keys() {
            assert_eq!(
                sum("out", &|word| word == reason),
                dropped(reason),
                "{reason}: {seen:?}"
            );
        }
    }
    let long = ("b".to_owned(), "out", "mtu_exceeded".to_owned());
    assert_eq!(seen.get(&long), Some(&3), "{seen:?}");

    let status = trace.wait(s(10)).expect("it ends");
    let said: serde_json::Value = serde_json::from_str(&trace.log()).expect("a line of JSON");
    assert!(status.success(), "{said}");
    assert!(
        said["summary"]
            .as_str()
            .is_some_and(|text| text.contains("ICMP echo request")),
        "{said}"
    );
    assert_eq!(said["link"]["source"], a.mac().as_str());
    assert_eq!(said["destination"]["port"]["name"], "b", "{said}");
    assert_eq!(said["copies"][0]["outcome"]["delivered"], 1, "{said}");
    // The same for a frame that was not sent.
    let frame = format!("{} {} 0800", b.mac(), a.mac());
    let mut made_up = switch.start_command("made-up", &["trace", "a", "--frame", &frame]);
    assert!(made_up.wait(s(10)).is_some_and(|status| status.success()));
    let text = made_up.log();
    assert!(
        text.contains("destination  on b, seen") && text.contains("to b "),
        "{text}"
    );
}
