//! Tests with real interfaces, in network namespaces that end with the test's threads and processes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crosspoint_netdev::{
    Changes, Ethtool, Events, Frames, HostUse, Links, Netdev, Reach, Settings, Wake, Wanted,
    XdpSupport,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Moves this thread into a new network namespace. Commands it starts run there too.
fn enter_new_namespace() {
    // SAFETY: only the network namespace of this thread changes, and no memory or descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace: run the tests as root");
}

fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {text}{error}");
    text
}

/// Another namespace, kept by a process.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Elsewhere {
        let script = "ip link set lo up; echo; exec sleep infinity";
        let mut child = Command::new("unshare")
            .args([
                "--net",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
                script,
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let ready = child.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(ready, &mut [0]).expect("it is there");
        Elsewhere(child)
    }

    fn run(&self, line: &str) -> String {
        run(&format!("nsenter --target {} --net {line}", self.0.id()))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_on(features: &str, name: &str) -> bool {
    let line = features.lines().find(|line| line.trim().starts_with(name));
    line.expect("the feature").contains(": on")
}

fn use_of(name: &str) -> HostUse {
    let found = Links::open().and_then(|mut links| links.find(name));
    let found = found.expect("an answer").expect("it is there");
    HostUse::of(found.index).expect("an answer")
}

#[test]
fn what_the_host_uses_an_interface_for_is_found() {
    enter_new_namespace();
    for line in [
        "ip link add up0 type veth peer name far",
        "ip link set up0 up",
        "ip link set far up",
        "ip link add br0 type bridge",
        "ip link set br0 up",
        "ip link set lo up",
    ] {
        run(line);
    }
    // The kernel's own link-local address is no use.
    assert_eq!(use_of("up0"), HostUse::default());
    assert!(use_of("lo").loopback && use_of("lo").is_vital());

    run("ip addr add 10.0.0.5/24 dev up0");
    run("ip route add 10.7.0.0/16 via 10.0.0.1");
    let used = use_of("up0");
    assert_eq!(used.addresses, ["10.0.0.5/24"]);
    assert_eq!(used.routes, ["10.7.0.0/16"]);
    assert!(!used.is_vital());
    run("ip route add default via 10.0.0.1");
    assert_eq!(use_of("up0").default_route.as_deref(), Some("up0"));
    // Not a use of the other interfaces.
    assert_eq!(use_of("far"), HostUse::default());

    // A bridge takes the interface, the address and the route; then a macvlan on the bridge.
    run("ip addr flush dev up0");
    run("ip link set up0 master br0");
    assert_eq!(use_of("up0").controller.as_deref(), Some("bridge `br0`"));
    run("ip link add link br0 name mv0 type macvlan mode bridge");
    run("ip link set mv0 up");
    run("ip addr add 10.0.0.5/24 dev mv0");
    run("ip -6 addr add 2001:db8::5/64 dev mv0 nodad");
    run("ip -6 route add default via 2001:db8::1");
    let used = use_of("up0");
    assert_eq!(
        used.addresses,
        ["10.0.0.5/24 on mv0", "2001:db8::5/64 on mv0"]
    );
    assert_eq!(used.default_route.as_deref(), Some("mv0"));
    let text = used.text().expect("a use");
    assert!(
        text.contains("default route goes through it (by mv0)"),
        "{text}"
    );
}

#[test]
fn an_interface_is_found_as_it_is() {
    enter_new_namespace();
    let mut links = Links::open().expect("a socket");
    assert_eq!(links.find("up0").expect("an answer"), None);
    run(
        "ip link add up0 numrxqueues 4 numtxqueues 4 type veth peer name far numrxqueues 4 numtxqueues 4",
    );
    run("ethtool -L up0 rx 3 tx 2");
    run("ip link set up0 mtu 1400");
    let found = links.find("up0").expect("an answer").expect("it is there");
    assert_eq!((found.name.as_str(), found.mtu), ("up0", 1400));
    assert_eq!((found.up, found.carrier), (false, false));
    assert_eq!(
        (found.rx_queues, found.tx_queues),
        (3, 2),
        "those in use, of four"
    );
    let far = links.find("far").expect("an answer").expect("it is there");
    let peer = found.peer.expect("the other end");
    assert_eq!((peer.index, peer.namespace), (far.index, None));

    run("ip link set up0 up");
    let found = links.find("up0").expect("an answer").expect("it is there");
    assert_eq!((found.up, found.carrier), (true, false));
    run("ip link set far up");
    let found = links.find("up0").expect("an answer").expect("it is there");
    assert_eq!((found.up, found.carrier), (true, true));
}

#[test]
fn an_interface_that_has_frames_for_its_own_address_alone_is_told_from_others() {
    enter_new_namespace();
    run("ip link add low type veth peer name far");
    run("ip tuntap add tun mode tun");
    run("ip tuntap add tap mode tap");
    let mut links = Links::open().expect("a socket");
    let mut reach = |name: &str| {
        links
            .find(name)
            .expect("an answer")
            .expect("it is there")
            .reach
    };
    assert_eq!(reach("low"), Reach::All);
    assert_eq!(reach("tap"), Reach::All);
    assert_eq!(reach("tun"), Reach::None("no Ethernet interface"));
    for mode in ["private", "vepa", "bridge"] {
        run(&format!(
            "ip link add link low name upper type macvlan mode {mode}"
        ));
        let Reach::OwnAddress(what) = reach("upper") else {
            panic!("{mode}: {:?}", reach("upper"));
        };
        assert!(what.ends_with(mode), "{what}");
        run("ip link del upper");
    }
    run("ip link add link low name upper type macvlan mode passthru");
    assert_eq!(reach("upper"), Reach::All);
    run("ip link del upper");
    run("ip link add link low name upper type macvtap mode bridge");
    assert_eq!(
        reach("upper"),
        Reach::OwnAddress("a macvlan in mode bridge")
    );
}

#[test]
fn a_tap_has_queues_and_no_other_end() {
    enter_new_namespace();
    run("ip tuntap add dev tap0 mode tap multi_queue");
    let mut links = Links::open().expect("a socket");
    let found = links.find("tap0").expect("an answer").expect("it is there");
    assert_eq!(found.peer, None);
    assert!(found.rx_queues >= 1 && found.tx_queues >= 1);
}

#[test]
fn a_driver_says_what_it_can_do_with_xdp() {
    enter_new_namespace();
    run("ip link add up0 type veth peer name far");
    run("ip link add br0 type bridge");
    let index = |name: &str| {
        let found = Links::open().and_then(|mut links| links.find(name));
        found.expect("an answer").expect("it is there").index
    };
    let mut netdev = Netdev::open().expect("Linux 6.3 or later");
    let veth = netdev.xdp(index("up0")).expect("an answer");
    assert!(veth.native && veth.several_buffers, "{veth:?}");
    assert!(!veth.zero_copy && !veth.tx_checksum, "{veth:?}");
    let bridge = netdev.xdp(index("br0")).expect("an answer");
    let nothing = XdpSupport {
        zero_copy_buffers_max: 1,
        ..XdpSupport::default()
    };
    assert_eq!(bridge, nothing);
    let gone = netdev.xdp(99_999).expect_err("there is no such interface");
    assert!(gone.is_gone(), "{gone}");
}

#[test]
fn changes_are_told_until_somebody_stops_the_wait() {
    enter_new_namespace();
    let (mut events, stopper) = Events::open().expect("a subscription");
    let nothing = events.wait(Some(Duration::from_millis(10)));
    assert_eq!(nothing.expect("a wait"), Wake::Timeout);

    run("ip link add up0 numrxqueues 3 type veth peer name far");
    let index = Links::open().and_then(|mut links| links.find("up0"));
    let index = index.expect("an answer").expect("it is there").index;
    must_tell(&mut events, index, "came");
    for change in ["up", "mtu 1400", "down", "name up1"] {
        run(&format!("ip link set up0 {change}"));
        must_tell(&mut events, index, change);
    }
    run("ethtool -L up1 rx 2");
    must_tell(&mut events, index, "has another number of queues");
    run("ip link del up1");
    must_tell(&mut events, index, "went");

    let waiting = std::thread::scope(|scope| {
        let wait = scope.spawn(|| events.wait(None));
        std::thread::sleep(Duration::from_millis(20));
        stopper.stop();
        wait.join().expect("no panic")
    });
    assert_eq!(waiting.expect("a wait"), Wake::Stop);
}

fn must_tell(events: &mut Events, index: u32, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match events.wait(Some(PATIENCE)).expect("a wait") {
            Wake::Changed(changes) if changes.concern("nobody", Some(index)) => return,
            _ => {}
        }
    }
    panic!("nothing was told of: {what}");
}

#[test]
fn lost_events_may_be_about_any_interface() {
    enter_new_namespace();
    let (mut events, _stopper) = Events::open().expect("a subscription");
    run("ip link add up0 type veth peer name far");
    // Far more events than a socket holds.
    let script =
        "for i in $(seq 400); do echo link set up0 mtu $((1000 + i % 2)); done | ip -batch -";
    let status = Command::new("sh").args(["-c", script]).status();
    assert!(status.expect("it starts").success());
    let lost = Wake::Changed(Changes::Any);
    assert_eq!(events.wait(Some(PATIENCE)).expect("a wait"), lost);
    assert!(Changes::Any.concern("up0", None));
    // And events continue to work.
    let index = Links::open().and_then(|mut links| links.find("up0"));
    let index = index.expect("an answer").expect("it is there").index;
    run("ip link set up0 mtu 1400");
    must_tell(&mut events, index, "has another MTU");
}

#[test]
fn what_was_set_is_put_back() {
    enter_new_namespace();
    run(
        "ip link add up0 numrxqueues 4 numtxqueues 4 type veth peer name far numrxqueues 4 numtxqueues 4",
    );
    run("ethtool -L up0 rx 3 tx 2");
    let mut links = Links::open().expect("a socket");
    let before = links.find("up0").expect("an answer").expect("it is there");
    let wanted = Wanted {
        mtu: Some(3000),
        channels: Some(4),
    };
    let mut settings = Settings::new(&before);
    settings.apply(wanted, &before).expect("it can be set");
    let during = links.find("up0").expect("an answer").expect("it is there");
    assert_eq!(
        (during.mtu, during.rx_queues, during.tx_queues),
        (3000, 4, 4)
    );
    // Again, as when a port is reopened: the saved original values stay.
    settings.apply(wanted, &during).expect("it can be set");
    drop(settings);
    assert_eq!(links.find("up0").expect("an answer"), Some(before));
}

#[test]
fn what_somebody_else_has_set_since_is_left_alone() {
    enter_new_namespace();
    run(
        "ip link add up0 numrxqueues 4 numtxqueues 4 type veth peer name far numrxqueues 4 numtxqueues 4",
    );
    let mut links = Links::open().expect("a socket");
    let before = links.find("up0").expect("an answer").expect("it is there");
    let wanted = Wanted {
        mtu: Some(3000),
        channels: Some(2),
    };
    let mut settings = Settings::new(&before);
    settings.apply(wanted, &before).expect("it can be set");
    run("ip link set up0 mtu 2000");
    run("ethtool -L up0 rx 1 tx 3");
    drop(settings);
    let after = links.find("up0").expect("an answer").expect("it is there");
    assert_eq!((after.mtu, after.rx_queues, after.tx_queues), (2000, 1, 3));
}

#[test]
fn what_cannot_be_set_is_said_in_words_and_nothing_changes() {
    enter_new_namespace();
    run("ip link add up0 numrxqueues 1 numtxqueues 1 type veth peer name far");
    let mut links = Links::open().expect("a socket");
    let before = links.find("up0").expect("an answer").expect("it is there");
    let refused = |wanted: Wanted| {
        let mut settings = Settings::new(&before);
        settings
            .apply(wanted, &before)
            .expect_err("refused")
            .to_string()
    };
    let text = refused(Wanted {
        mtu: None,
        channels: Some(9),
    });
    assert!(
        text.contains("number of queues") && text.contains("1 at most"),
        "{text}"
    );
    let text = refused(Wanted {
        mtu: Some(70_000),
        channels: None,
    });
    assert!(text.contains("MTU"), "{text}");
    assert_eq!(links.find("up0").expect("an answer"), Some(before.clone()));

    let spread = Settings::new(&before)
        .spread(&[0])
        .expect_err("a veth has no table");
    assert!(spread.is_unsupported(), "{spread}");
    run("ip link del up0");
    let gone = Ethtool::open().and_then(|mut ethtool| ethtool.channels(before.index));
    assert!(gone.expect_err("no interface").is_gone());
}

#[test]
fn nothing_of_a_frame_is_beside_it_while_an_interface_is_ours() {
    enter_new_namespace();
    // An interface without a peer: the tap.
    run("ip tuntap add dev tap0 mode tap");
    let mut links = Links::open().expect("a socket");
    let tap = links.find("tap0").expect("an answer").expect("it is there");
    assert_eq!(
        Settings::new(&tap).keep_frames(&tap, true),
        Frames::Whole,
        "it takes nothing out"
    );
    // The peer of a veth, in this namespace and in another.
    let elsewhere = Elsewhere::new();
    run("ip link add up0 type veth peer name far");
    let id = elsewhere.0.id();
    run(&format!(
        "ip link add up1 type veth peer name far netns {id}"
    ));
    let beside = [
        "tx-vlan-offload",
        "tx-vlan-stag-hw-insert",
        "tx-checksum-sctp",
    ];
    let large = ["tx-tcp-segmentation", "tx-udp-segmentation", "tx-gso-list"];
    for (name, features) in [
        ("up0", &(|| run("ethtool -k far")) as &dyn Fn() -> String),
        ("up1", &|| elsewhere.run("ethtool -k far")),
    ] {
        for is_generic in [false, true] {
            let before = features();
            assert!(
                beside
                    .iter()
                    .chain(&large)
                    .all(|feature| is_on(&before, feature))
            );
            let found = links.find(name).expect("an answer").expect("it is there");
            let mut settings = Settings::new(&found);
            let changed = settings.keep_frames(&found, is_generic);
            assert!(matches!(changed, Frames::Changed(_)), "{changed:?}");
            let now = features();
            assert!(
                beside.iter().all(|feature| !is_on(&now, feature)),
                "{name}: {now}"
            );
            assert!(
                large
                    .iter()
                    .all(|feature| is_on(&now, feature) != is_generic),
                "{name}: {now}"
            );
            let again = settings.keep_frames(&found, is_generic);
            assert_eq!(again, Frames::Whole, "they are already");
            drop(settings);
            assert_eq!(features(), before, "{name}");
        }
    }
}

/// A bridge, and a macvlan on it, get their frames from veths: features of the veths' peers are changed.
#[test]
fn nothing_is_beside_frames_that_come_from_veths_below() {
    enter_new_namespace();
    // With its own /sys, which shows the interfaces below.
    // SAFETY: only the mounts of this thread change, and no memory or descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .expect("a mount namespace");
    run("mount --make-rprivate /");
    run("mount -t sysfs sysfs /sys");
    let elsewhere = Elsewhere::new();
    let id = elsewhere.0.id();
    run("ip link add br0 type bridge");
    run(&format!(
        "ip link add up0 type veth peer name far0 netns {id}"
    ));
    run("ip link set up0 master br0");
    run("ip link add up1 type veth peer name far1");
    run("ip link set up1 master br0");
    run("ip link add mac0 link br0 type macvlan mode passthru");
    let features = || [elsewhere.run("ethtool -k far0"), run("ethtool -k far1")];
    let before = features();
    let mut links = Links::open().expect("a socket");
    for (name, what) in [("br0", "a bridge"), ("mac0", "a macvlan")] {
        let found = links.find(name).expect("an answer").expect("it is there");
        assert_eq!(found.takes_tags, Some(what));
        assert_eq!(found.peers_below.len(), 2, "{found:?}");
        let mut settings = Settings::new(&found);
        let kept = settings.keep_frames_below(&found);
        let all_changed = kept.iter().all(|one| matches!(one, Frames::Changed(_)));
        assert!(all_changed && kept.len() == 2, "{kept:?}");
        for now in features() {
            assert!(!is_on(&now, "tx-udp-segmentation"), "{now}");
            assert!(!is_on(&now, "tx-checksum-sctp"), "{now}");
        }
        assert!(settings.keep_frames_below(&found).is_empty());
        drop(settings);
        assert_eq!(features(), before, "{name}");
    }
}

#[test]
fn a_feature_is_turned_off_and_on_where_it_can_be() {
    enter_new_namespace();
    // A feature that is turned off at NICs: a veth has it too, although without effect.
    const NAME: &str = "rx-vlan-hw-parse";
    run("ip link add up0 type veth peer name far");
    let mut links = Links::open().expect("a socket");
    let found = links.find("up0").expect("an answer").expect("it is there");
    let mut ethtool = Ethtool::open().expect("the family");
    for on in [false, true] {
        let set = ethtool.set_feature(found.index, NAME, on);
        set.expect("it can be changed");
        let feature = ethtool.feature(found.index, NAME).expect("an answer");
        assert_eq!(
            (feature.active, feature.wanted, feature.changeable),
            (on, on, true)
        );
        assert_eq!(is_on(&run("ethtool -k up0"), "rx-vlan-offload"), on);
    }
    let fixed = ethtool
        .feature(found.index, "netns-local")
        .expect("an answer");
    assert!(!fixed.changeable);
}
