//! VLANs: which ports reach each other, and which see tags.

use crosspoint_guest::Guest;

use crate::harness::{Host, Lab, Switch, frame, guest, mac, run, s, tagged, xdp};

#[test]
fn access_ports_reach_their_own_vlan_only() {
    let lab = Lab::new(s(60));
    let (a, b, c) = (
        Host::new(&lab, "a", 1),
        Host::new(&lab, "b", 2),
        Host::new(&lab, "c", 3),
    );
    let access = |port: String, id| format!("{port}vlan = {{ access = {id} }}\n");
    let ports = [
        access(xdp("a", &a), 100),
        access(xdp("b", &b), 100),
        access(xdp("c", &c), 200),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let seen = c.listen("arp or icmp");
    a.must_ping(&b);
    a.must_not_ping(&c.address);
    // Not even when the address is known.
    a.ip(&format!(
        "neigh replace {} lladdr {} dev eth0",
        c.address,
        c.mac()
    ));
    a.must_not_ping(&c.address);
    assert!(!seen.log().contains("10.9.0.1"), "{}", seen.log());
    switch.ledger();
}

#[test]
fn a_trunk_sees_the_tags_that_access_ports_do_not() {
    let lab = Lab::new(s(30));
    let ports = [
        guest(&lab, "red") + "vlan = { access = 100 }\n",
        guest(&lab, "blue") + "vlan = { access = 200 }\n",
        guest(&lab, "trunk") + "vlan = { trunk = [100, 200], native = 1 }\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let (mut red, mut blue, mut trunk) = (
        lab.connect("red"),
        lab.connect("blue"),
        lab.connect("trunk"),
    );
    switch.wait_up(&["red", "blue", "trunk"]);

    let from_red = frame(mac(3), mac(1), 1, 100);
    assert_eq!(red.send(0, &[&from_red]).expect("a ring"), 1);
    assert_eq!(
        one(&mut trunk),
        tagged(&from_red, 100),
        "a tag is added towards the trunk"
    );

    let to_blue = frame(mac(2), mac(3), 2, 1514);
    assert_eq!(trunk.send(0, &[&tagged(&to_blue, 200)]).expect("a ring"), 1);
    assert_eq!(
        one(&mut blue),
        to_blue,
        "and taken away towards an access port"
    );

    // This trunk does not carry VLAN 300: a drop with a name.
    assert_eq!(trunk.send(0, &[&tagged(&to_blue, 300)]).expect("a ring"), 1);
    assert!(
        red.receive(0).expect("a ring").is_empty(),
        "VLAN 200 is nothing to VLAN 100"
    );
    let ledger = switch.ledger();
    assert_eq!(
        ledger.port("trunk").drops.get("vlan_not_carried"),
        Some(&1),
        "{ledger}"
    );
}

/// The one frame that `guest` receives.
fn one(guest: &mut Guest) -> Vec<u8> {
    let mut frames = guest.receive_at_least(0, 1, s(5)).expect("a ring");
    assert_eq!(frames.len(), 1);
    frames.remove(0).1
}

/// Does what a VLAN interface does: the kernel puts the tag beside the frame, and it stays there as long as the driver
/// offers to take it from there.
const TAGGER: &str = r#"
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
static long (*skb_vlan_push)(struct __sk_buff *, __be16, __u16) = (void *)BPF_FUNC_skb_vlan_push;
__attribute__((section("tagger"), used)) int tag(struct __sk_buff *skb)
{
    skb_vlan_push(skb, __builtin_bswap16(0x8100), 100);
    return TC_ACT_OK;
}
"#;

#[test]
fn a_tag_that_a_sender_leaves_beside_its_frame_arrives() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let (source, object) = (lab.dir().join("tagger.c"), lab.dir().join("tagger.o"));
    std::fs::write(&source, TAGGER).expect("a file");
    let mut clang = lab.command("clang");
    clang.args([
        "-O2",
        "-target",
        "bpf",
        "-I/usr/include/x86_64-linux-gnu",
        "-c",
    ]);
    clang.arg(&source).arg("-o").arg(&object);
    let (status, text) = run(lab.dir(), &clang, s(20));
    assert!(status.success(), "{text}");
    let attach = format!(
        "tc filter add dev eth0 egress bpf direct-action object-file {} section tagger",
        object.display()
    );
    for line in ["tc qdisc add dev eth0 clsact", &attach] {
        let (status, text) = run(lab.dir(), &a.command(line), s(10));
        assert!(status.success(), "{line}: {text}");
    }

    let ports = [
        xdp("a", &a) + "vlan = { trunk = [100] }\n",
        xdp("b", &b) + "vlan = { access = 100 }\n",
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let seen = b.listen("arp");
    a.ip("neigh flush dev eth0");
    a.must_not_ping(&b.address);
    assert!(seen.log().contains("who-has 10.9.0.2"), "{}", seen.log());
    let ledger = switch.ledger();
    assert_eq!(ledger.port("a").rx, ledger.port("b").tx, "{ledger}");
}

/// The kernel of a host with a bridge takes the tag out of what it receives, and leaves it beside what it sends.
#[test]
fn a_providers_tag_stays_in_the_frame_and_brings_it_into_no_other_vlan() {
    let lab = Lab::new(s(30));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    a.ip("link add x0 type veth peer name x1");
    a.ip("link add br0 type bridge");
    for link in ["x0", "eth0"] {
        a.ip(&format!("link set {link} master br0"));
    }
    for link in ["x0", "x1", "br0"] {
        a.ip(&format!("link set {link} up"));
    }
    let access = "vlan = { access = 100 }\n";
    let ports = [xdp("a", &a) + access, xdp("b", &b) + access];
    let switch = Switch::start(&lab, &[1], &ports);
    let mut seen = b.listen("ether src 02:00:00:00:00:09");
    let frame = |ethertype: [u8; 2], last: u8| {
        let link = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &ethertype, &[0, 7]].concat();
        [&link[..], &[0x88, 0xb5], &[last; 46]].concat()
    };
    a.send_frame_on("x1", &frame([0x88, 0xa8], 1));
    seen.wait_for("802.1Q-QinQ", s(5));
    assert!(seen.log().contains("vlan 7"), "{}", seen.log());
    // A frame with an 802.1Q tag is in a VLAN that this port does not carry.
    a.send_frame_on("x1", &frame([0x81, 0x00], 2));
    crate::harness::wait_until("the drop", s(5), || {
        let drops = switch.ledger().port("a").drops.clone();
        (drops.get("vlan_not_carried") == Some(&1)).then_some(())
    });
    switch.ledger();
}
