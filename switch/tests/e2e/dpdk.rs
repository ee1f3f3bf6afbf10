//! DPDK's virtio-user driver as the guest, by testpmd: every byte of every frame, over all kinds of rings that it supports.
//!
//! One testpmd has a port for each case of a group, with that case's kind of rings. It sends back what it receives, with the
//! addresses swapped. For each port there is a guest of this test in the same VLAN. That guest sends windows of frames until
//! each ring of the case has wrapped several times. A window has fewer frames than any ring has entries, so that no frame is
//! lost at any speed. Each frame must come back with every byte, in the order of its flow.
//!
//! DPDK chooses its receive and transmit functions by the kind of ring. The vectorised ones of packed rings need a processor
//! with AVX-512, in-order rings and plain buffers; those of split rings need plain buffers and no in-order rings.
//! Combinations without a vectorised function run too.

use std::collections::BTreeMap;
use std::fs;

use crosspoint_guest::{Guest, GuestOptions};

use crate::harness::{Lab, Switch, Testpmd, TestpmdPort, flow_of, guest, mac, s, udp, wait_until};

/// Windows of frames for each queue pair.
const WINDOWS: u32 = 6;
const FLOWS: u32 = 40;

macro_rules! groups {
    ($($name:ident: $kind:expr, $pairs:expr, $listener:ident;)+) => {
        $(#[test] fn $name() { every_byte_comes_back(&Group { kind: $kind, pairs: $pairs, listener: Listener::$listener }); })+
    };
}

const SPLIT: Kind = Kind {
    packed: false,
    in_order: false,
};
const SPLIT_IN_ORDER: Kind = Kind {
    packed: false,
    in_order: true,
};
const PACKED: Kind = Kind {
    packed: true,
    in_order: false,
};
const PACKED_IN_ORDER: Kind = Kind {
    packed: true,
    in_order: true,
};

groups! {
    split_one_pair: SPLIT, 1, Switch;
    split_one_pair_where_the_guest_listens: SPLIT, 1, Guest;
    split_four_pairs: SPLIT, 4, Switch;
    split_four_pairs_where_the_guest_listens: SPLIT, 4, Guest;
    split_in_order_one_pair: SPLIT_IN_ORDER, 1, Switch;
    split_in_order_one_pair_where_the_guest_listens: SPLIT_IN_ORDER, 1, Guest;
    split_in_order_four_pairs: SPLIT_IN_ORDER, 4, Switch;
    split_in_order_four_pairs_where_the_guest_listens: SPLIT_IN_ORDER, 4, Guest;
    packed_one_pair: PACKED, 1, Switch;
    packed_one_pair_where_the_guest_listens: PACKED, 1, Guest;
    packed_four_pairs: PACKED, 4, Switch;
    packed_four_pairs_where_the_guest_listens: PACKED, 4, Guest;
    packed_in_order_one_pair: PACKED_IN_ORDER, 1, Switch;
    packed_in_order_one_pair_where_the_guest_listens: PACKED_IN_ORDER, 1, Guest;
    packed_in_order_four_pairs: PACKED_IN_ORDER, 4, Switch;
    packed_in_order_four_pairs_where_the_guest_listens: PACKED_IN_ORDER, 4, Guest;
}

#[derive(Clone, Copy)]
struct Kind {
    packed: bool,
    in_order: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Listener {
    Switch,
    Guest,
}

/// Options that all ports of one testpmd share.
#[derive(Clone, Copy)]
struct Group {
    kind: Kind,
    pairs: u32,
    listener: Listener,
}

/// One port of the testpmd.
#[derive(Clone, Copy)]
struct Case {
    group: Group,
    index: usize,
    ring: u32,
    mergeable: bool,
    vectorised: bool,
}

impl Group {
    fn cases(self) -> Vec<Case> {
        let case = |index: usize| Case {
            group: self,
            index,
            ring: if index & 4 == 0 { 256 } else { 1024 },
            mergeable: index & 2 == 0,
            vectorised: index & 1 != 0,
        };
        (0..8).map(case).collect()
    }
}

impl Case {
    fn name(&self) -> String {
        format!("g{}", self.index)
    }

    /// The name of the port of this test's own guest.
    fn far(&self) -> String {
        format!("far{}", self.index)
    }

    /// The options of virtio-user, which also name the case.
    fn options(&self) -> String {
        let Group {
            kind,
            pairs,
            listener,
        } = self.group;
        format!(
            "queues={pairs},queue_size={},packed_vq={},in_order={},mrg_rxbuf={},vectorized={},server={}",
            self.ring,
            u8::from(kind.packed),
            u8::from(kind.in_order),
            u8::from(self.mergeable),
            u8::from(self.vectorised),
            u8::from(listener == Listener::Guest)
        )
    }

    /// Frames in flight at the same time: two windows are fewer than a ring has entries, and no number of windows is exactly
    /// a ring.
    fn window(&self) -> u32 {
        self.ring * 9 / 20
    }

    fn windows(&self) -> u32 {
        WINDOWS * self.group.pairs
    }

    /// The frames of window `number`, of all lengths that Ethernet allows.
    fn frames(&self, number: u32) -> Vec<Vec<u8>> {
        let one = |n: u32| {
            let len = 60 + (n as usize * 677) % 1455;
            udp(mac(2), mac(1), 1024 + (n % FLOWS) as u16, n, len)
        };
        let first = number * self.window();
        (first..first + self.window()).map(one).collect()
    }

    /// Whether DPDK has a vectorised receive function for packed rings of this kind, on this processor.
    fn has_packed_vectors(&self) -> bool {
        let flags = fs::read_to_string("/proc/cpuinfo").expect("the processor's flags");
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        let processor = ["avx512f", "avx512bw", "avx512vl"].into_iter().all(has);
        let Kind { packed, in_order } = self.group.kind;
        processor && packed && in_order && self.vectorised && !self.mergeable
    }
}

fn every_byte_comes_back(group: &Group) {
    let lab = Lab::new(s(120));
    let cases = group.cases();
    let role = if group.listener == Listener::Switch {
        "server"
    } else {
        "client"
    };
    let ports = cases.iter().map(|case| {
        let vlan = format!("vlan = {{ access = {} }}\n", 100 + case.index);
        let keys = format!("queue_pairs = {}\nrole = \"{role}\"\n", group.pairs);
        guest(&lab, &case.name()) + &keys + &vlan + &guest(&lab, &case.far()) + &vlan
    });
    let switch = Switch::start(&lab, &[1], &ports.collect::<Vec<_>>());
    let mut testpmd = start(&lab, group, &cases);
    let options = GuestOptions {
        ring_size: 2048,
        ..GuestOptions::default()
    };
    let connect = |case: &Case| {
        Guest::connect(lab.socket(&case.far()), options.clone()).expect("the guest connects")
    };
    let mut guests = cases.iter().map(connect).collect::<Vec<_>>();
    let names = cases
        .iter()
        .flat_map(|case| [case.name(), case.far()])
        .collect::<Vec<_>>();
    switch.wait_up(&names.iter().map(String::as_str).collect::<Vec<_>>());
    cases
        .iter()
        .for_each(|case| assert_negotiated(&switch, &testpmd, case));
    testpmd.command("start");

    for number in 0..cases[0].windows() {
        for (case, guest) in cases.iter().zip(&mut guests) {
            send(case, guest, number);
        }
        for (case, guest) in cases.iter().zip(&mut guests) {
            receive(&switch, case, guest, number);
        }
    }
    testpmd.quit();
    assert_ledger(&switch, &cases);
}

/// Starts a testpmd with a port for each case, and waits until the switch has all its rings.
fn start(lab: &Lab, group: &Group, cases: &[Case]) -> Testpmd {
    let port = |case: &Case| TestpmdPort::virtio(lab, case.index, &case.name(), &case.options());
    let ports = cases.iter().map(port).collect::<Vec<_>>();
    // For every entry of every ring, and some in flight.
    let entries = cases.iter().map(|case| 2 * case.ring * group.pairs);
    let mbufs = 4096 + entries.sum::<u32>();
    let queues = format!(
        "--rxq={0} --txq={0} --rxd=1024 --txd=1024 --total-num-mbufs={mbufs} --forward-mode=macswap --port-topology=loop",
        group.pairs
    );
    let mut testpmd = Testpmd::start(lab, "testpmd", 64 + mbufs / 256, &ports, &queues);
    testpmd.wait_ready();
    testpmd
}

/// Checks that the negotiated rings are those of the case.
fn assert_negotiated(switch: &Switch<'_>, testpmd: &Testpmd, case: &Case) {
    let features = switch.property(&case.name(), "features");
    let kind = case.group.kind;
    let expected = [
        ("RING_PACKED", kind.packed),
        ("IN_ORDER", kind.in_order),
        ("MRG_RXBUF", case.mergeable),
        ("VERSION_1", true),
    ];
    for (name, wanted) in expected {
        let has = features.iter().any(|feature| feature == name);
        assert_eq!(has, wanted, "{name} in {features:?}: {}", case.options());
    }
    let sizes = switch.property(&case.name(), "ring_sizes");
    let expected = vec![case.ring.to_string(); 2 * case.group.pairs as usize];
    assert_eq!(sizes, expected, "{}", case.options());
    let path = format!(
        "using packed ring vectorized Rx path on port {}\n",
        case.index
    );
    assert!(
        !case.has_packed_vectors() || testpmd.log().contains(&path),
        "{}: no {path:?} in\n{}",
        case.options(),
        testpmd.log()
    );
}

/// Sends a window, as fast as the switch takes it.
fn send(case: &Case, guest: &mut Guest, number: u32) {
    let frames = case.frames(number);
    let frames = frames.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut sent = 0;
    wait_until(&format!("a window sent: {}", case.options()), s(5), || {
        let took = guest.send(0, &frames[sent..]);
        sent += took.expect("the device follows the rules");
        (sent == frames.len()).then_some(())
    });
}

/// Receives a window, and compares it.
fn receive(switch: &Switch<'_>, case: &Case, guest: &mut Guest, number: u32) {
    let mut expected = case.frames(number);
    for frame in &mut expected {
        let (to, from) = frame.split_at_mut(6);
        to.swap_with_slice(&mut from[..6]);
    }
    let frames = guest
        .receive_at_least(0, expected.len(), s(5))
        .expect("the device follows the rules");
    let frames = frames
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect::<Vec<_>>();
    assert_eq!(
        frames.len(),
        expected.len(),
        "frames that came back of window {number}: {}\n{}",
        case.options(),
        switch.ledger()
    );
    assert!(
        flows(&frames) == flows(&expected),
        "frames of window {number} differ from those that were sent: {}",
        case.options()
    );
}

/// The frames of each flow, in order.
fn flows(frames: &[Vec<u8>]) -> BTreeMap<u16, Vec<&Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for frame in frames {
        flows.entry(flow_of(frame)).or_default().push(frame);
    }
    flows
}

/// Each frame was received twice and delivered twice, and every queue pair carried some.
fn assert_ledger(switch: &Switch<'_>, cases: &[Case]) {
    let ledger = switch.ledger();
    let metrics = switch.metrics();
    for case in cases {
        let frames = u64::from(case.windows() * case.window());
        for name in [case.name(), case.far()] {
            let port = ledger.port(&name);
            let counts = (port.rx, port.tx, port.dropped_copies);
            assert_eq!(counts, (frames, frames, 0), "{}\n{ledger}", case.options());
        }
        for queue in 0..case.group.pairs {
            let queue = queue.to_string();
            let labels = [
                ("port", &*case.name()),
                ("queue", &queue),
                ("direction", "tx"),
            ]
            .map(|(key, value)| (key, value.to_owned()));
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            let carried = metrics.sum("crosspoint_queue_packets_total", &labels);
            // More than two rings' worth, so that its indices have wrapped.
            assert!(
                carried > 2 * u64::from(case.ring) || case.group.pairs > 1 && carried > 0,
                "queue {queue} carried {carried} frames: {}",
                case.options()
            );
        }
    }
}
