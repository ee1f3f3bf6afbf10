//! DPDK's virtio-user driver as the guest, by testpmd: every byte of every frame, over the rings it knows.
//!
//! A testpmd has two pcap files on one side and two guest ports on the other, and copies between them:
//! `in0 -> virtio-user 0 -> switch -> virtio-user 1 -> out1`, and the same the other way. Frames of one flow keep
//! their order; which queue of the receiver a flow takes is the switch's choice.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::harness::{Lab, Switch, Testpmd, TestpmdPort, capture, flow_of, guest, mac, s, udp};

/// Frames in one direction: fewer than a ring has entries, so that no pace of any side loses one.
const FRAMES: u32 = 1000;
const RING: u32 = 1024;
const FLOWS: u32 = 40;

macro_rules! matrix {
    ($($name:ident: $case:expr;)+) => { $(#[test] fn $name() { every_byte_gets_across(&$case); })+ };
}

matrix! {
    mergeable_buffers_one_pair: Case { mergeable: true, pairs: 1, switch_listens: true };
    mergeable_buffers_four_pairs: Case { mergeable: true, pairs: 4, switch_listens: true };
    mergeable_buffers_one_pair_where_the_guest_listens: Case { mergeable: true, pairs: 1, switch_listens: false };
    mergeable_buffers_four_pairs_where_the_guest_listens: Case { mergeable: true, pairs: 4, switch_listens: false };
    plain_buffers_one_pair: Case { mergeable: false, pairs: 1, switch_listens: true };
    plain_buffers_four_pairs: Case { mergeable: false, pairs: 4, switch_listens: true };
    plain_buffers_one_pair_where_the_guest_listens: Case { mergeable: false, pairs: 1, switch_listens: false };
    plain_buffers_four_pairs_where_the_guest_listens: Case { mergeable: false, pairs: 4, switch_listens: false };
}

struct Case {
    mergeable: bool,
    pairs: u32,
    switch_listens: bool,
}

fn every_byte_gets_across(case: &Case) {
    let lab = Lab::new(s(60));
    let role = if case.switch_listens {
        "server"
    } else {
        "client"
    };
    let port =
        |name| guest(&lab, name) + &format!("queue_pairs = {}\nrole = \"{role}\"\n", case.pairs);
    let switch = Switch::start(&lab, &[1], &[port("g0"), port("g1")]);
    let sent = [frames(2, 1), frames(1, 2)];
    let mut testpmd = start(&lab, case, &sent);
    switch.wait_up(&["g0", "g1"]);
    testpmd.command("start");
    for pcap_port in [0, 2] {
        testpmd.wait_transmitted(pcap_port, FRAMES.into());
    }
    testpmd.quit();

    for (receiver, sent) in [(1, &sent[0]), (0, &sent[1])] {
        let queues = files(&lab, "out", receiver, case.pairs);
        let queues = queues
            .iter()
            .map(|path| capture::read(path))
            .collect::<Vec<_>>();
        assert!(
            flows(queues.iter().flatten()) == flows(sent),
            "frames differ from those that were sent"
        );
        let used = queues.iter().filter(|queue| !queue.is_empty()).count();
        assert!(used > 1 || case.pairs == 1, "all flows went to one queue");
    }
    let ledger = switch.ledger();
    for name in ["g0", "g1"] {
        let port = ledger.port(name);
        assert_eq!(
            (port.rx, port.tx, port.dropped_copies),
            (FRAMES.into(), FRAMES.into(), 0),
            "{ledger}"
        );
    }
}

/// Frames of all lengths that Ethernet has.
fn frames(to: u8, from: u8) -> Vec<Vec<u8>> {
    let one = |n: u32| {
        udp(
            mac(to),
            mac(from),
            1024 + (n % FLOWS) as u16,
            n,
            60 + (n as usize * 677) % 1455,
        )
    };
    (0..FRAMES).map(one).collect()
}

/// What each flow carried, in order.
fn flows<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> BTreeMap<u16, Vec<&'a Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for frame in frames {
        flows.entry(flow_of(frame)).or_default().push(frame);
    }
    flows
}

/// The pcap files of one side, one for each queue.
fn files(lab: &Lab, kind: &str, side: usize, pairs: u32) -> Vec<PathBuf> {
    (0..pairs)
        .map(|queue| lab.dir().join(format!("{kind}{side}-{queue}.pcap")))
        .collect()
}

fn start(lab: &Lab, case: &Case, sent: &[Vec<Vec<u8>>; 2]) -> Testpmd {
    let mut ports = Vec::new();
    for (side, frames) in sent.iter().enumerate() {
        let inputs = files(lab, "in", side, case.pairs);
        for (queue, path) in inputs.iter().enumerate() {
            let of_queue =
                |frame: &&Vec<u8>| u32::from(flow_of(frame)) % case.pairs == queue as u32;
            capture::write(
                path,
                &frames.iter().filter(of_queue).cloned().collect::<Vec<_>>(),
            );
        }
        let mut pcap = format!("net_pcap{side}");
        inputs
            .iter()
            .for_each(|path| pcap += &format!(",rx_pcap={}", path.display()));
        files(lab, "out", side, case.pairs)
            .iter()
            .for_each(|path| pcap += &format!(",tx_pcap={}", path.display()));
        let options = format!(
            "queues={},queue_size={RING},mrg_rxbuf={},server={}",
            case.pairs,
            u8::from(case.mergeable),
            u8::from(!case.switch_listens)
        );
        ports.push(TestpmdPort(pcap));
        ports.push(TestpmdPort::virtio(
            lab,
            side,
            &format!("g{side}"),
            &options,
        ));
    }
    let queues = format!(
        "--rxq={0} --txq={0} --rxd={RING} --txd={RING} --total-num-mbufs=32768",
        case.pairs
    );
    let mut testpmd = Testpmd::start(lab, "testpmd", &ports, &queues);
    testpmd.wait_ready();
    // A full ring is to be waited for: whatever testpmd reads must reach the switch.
    testpmd.command("set fwd io retry");
    testpmd.command("set burst tx delay 10 retry 10000");
    testpmd
}
