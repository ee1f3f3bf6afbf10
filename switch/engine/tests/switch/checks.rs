//! Runs the switch beside the model in `bridge`, with the same ports and frames, and compares the results.

use std::collections::{BTreeMap, HashMap};

use crosspoint_engine::observe::BurstSizes;
use crosspoint_engine::observe::counters::Counter;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::observe::counters::QueueCounters;
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_packet::DropReason;

use crate::bridge::{Bridge, Condition, Copy, FRAME_LEN_MAX, Ledger, Sent};
use crate::rig::Rig;

/// Reads the switch's counters of one port, summed over all workers.
pub fn ledger_of(counters: &PortCounters) -> Ledger {
    let queues = 0..counters.queues();
    let all = |pick: fn(&QueueCounters) -> &Counter| -> u64 {
        queues.clone().map(|queue| counters.sum(queue, pick)).sum()
    };
    let tx = |queue| {
        let frames = counters.sum(queue, |c| &c.tx_frames);
        (frames, counters.sum(queue, |c| &c.tx_bytes))
    };
    let drops = DropReason::ALL.iter().map(|reason| {
        let one = |queue| counters.sum(queue, |c| &c.drops[*reason as usize]);
        (*reason, queues.clone().map(one).sum())
    });
    Ledger {
        rx: (all(|c| &c.rx_frames), all(|c| &c.rx_bytes)),
        tx: queues.clone().map(tx).collect(),
        flood_copies: all(|c| &c.flood_copies),
        segment_copies: all(|c| &c.segment_copies),
        mirror_copies: all(|c| &c.mirror_copies),
        joined_copies: all(|c| &c.joined_copies),
        delivered: all(|c| &c.delivered_copies),
        dropped: all(|c| &c.dropped_copies),
        drops: drops.filter(|(_, n)| *n > 0).collect(),
    }
}

/// Fails unless the counted burst sizes fit the number of frames.
pub fn assert_bursts_fit(counters: &PortCounters) {
    let check = |what, sizes: &BurstSizes, frames: u64| {
        let bursts = sizes.counts();
        let most = BurstSizes::BOUNDS.iter().zip(bursts);
        let most: u64 = most.map(|(bound, n)| bound * n).sum();
        // Each burst has more frames than the bound before its own.
        let least = [0].iter().chain(&BurstSizes::BOUNDS).zip(bursts);
        let least: u64 = least.map(|(bound, n)| (bound + 1) * n).sum();
        assert!(
            (least..=most).contains(&frames),
            "{what}: {frames} frames in {bursts:?}"
        );
    };
    for one in (0..counters.queues()).flat_map(|queue| counters.of_queue(queue)) {
        check("received", &one.rx_bursts, one.rx_frames.get());
        check("delivered", &one.tx_bursts, one.tx_frames.get());
    }
}

/// Checks what always holds for the switch's counters: each port's frames and all copies are accounted for.
pub fn assert_balanced(ledgers: &[Ledger]) {
    for (port, ledger) in ledgers.iter().enumerate() {
        let (taken, given) = (
            ledger.rx.0 + ledger.flood_copies + ledger.segment_copies + ledger.mirror_copies,
            ledger.delivered + ledger.dropped + ledger.joined_copies,
        );
        assert_eq!(taken, given, "port {port}: {ledger:?}");
    }
    let sum = |of: &dyn Fn(&Ledger) -> u64| ledgers.iter().map(of).sum::<u64>();
    let sent = sum(&|ledger| ledger.tx.iter().map(|(frames, _)| frames).sum());
    assert_eq!(sum(&|ledger| ledger.delivered), sent);
    assert_eq!(
        sum(&|ledger| ledger.dropped),
        sum(&|ledger| ledger.drops.values().sum())
    );
}

/// A frame that arrived, and its partial checksum: start and offset.
type Arrived = (Vec<u8>, Option<(u16, u16)>);

/// The switch and the bridge, side by side.
pub struct Pair {
    pub rig: Rig,
    pub bridge: Bridge,
    /// The view of each port, whether or not the switch has the port now.
    pub ports: Vec<PortSnapshot>,
}

impl Pair {
    /// Adds a frame to the ring of port `ingress`, split as requested. `None` if the ring has no room.
    pub fn send(
        &mut self,
        ingress: usize,
        header: VirtioNetHdr,
        split: ChainSplit,
        bytes: Vec<u8>,
        identity: Option<(u32, u32, u64)>,
    ) -> Option<Sent> {
        let transmit = &mut self.rig.drivers[ingress].transmit;
        transmit.set_split(split);
        if !transmit.send(&header, &bytes).unwrap() {
            return None;
        }
        let header_len = self.bridge.ports[ingress].rings[0].header_len;
        // A chain that is too long is not followed to its end; the length of a single buffer is known.
        let is_too_long =
            split != ChainSplit::Single && header_len + bytes.len() > FRAME_LEN_MAX + 8 + 12;
        Some(Sent {
            known_len: if is_too_long {
                FRAME_LEN_MAX + 9
            } else {
                bytes.len()
            },
            csum: (header.flags != 0).then_some((header.csum_start, header.csum_offset)),
            gso: header.gso_type != 0,
            bytes,
            identity,
        })
    }

    /// Processes what port `ingress` has sent, in as many bursts as the switch makes of it.
    pub fn handle(&mut self, ingress: usize, sent: &[Sent], mut worker: impl FnMut() -> usize) {
        let _ = self.rig.drivers[ingress].transmit.ring().publish();
        let mut rest = sent;
        loop {
            let count = self.rig.turn(worker(), ingress);
            let (burst, later) = rest.split_at(count);
            self.bridge.burst(ingress, burst);
            rest = later;
            if count == 0 {
                break;
            }
        }
        assert!(rest.is_empty(), "{} frames were not taken", rest.len());
        let transmit = &mut self.rig.drivers[ingress].transmit;
        assert_eq!(transmit.reap().unwrap(), sent.len(), "not completed");
    }

    /// Takes the arrived frames of all ports, and compares.
    pub fn compare_arrivals(&mut self) {
        let both = self.rig.drivers.iter_mut().zip(&mut self.bridge.ports);
        for (number, (driver, port)) in both.enumerate() {
            let queues = driver.receive.iter_mut().zip(&mut port.out);
            for (queue, (receive, expected)) in queues.enumerate() {
                let arrived = receive.receive().unwrap();
                let arrived: Vec<_> = arrived
                    .into_iter()
                    .map(|(header, bytes)| {
                        let csum = (header.flags & 1 != 0)
                            .then_some((header.csum_start, header.csum_offset));
                        (bytes, csum)
                    })
                    .collect();
                assert_same(&arrived, &std::mem::take(expected), (number, queue));
            }
        }
    }

    /// Compares every counter.
    pub fn compare_ledgers(&self) {
        for port in &self.ports {
            assert_bursts_fit(&port.counters);
        }
        let counted: Vec<Ledger> = self.ports.iter().map(|p| ledger_of(&p.counters)).collect();
        for (number, (counted, port)) in counted.iter().zip(&self.bridge.ports).enumerate() {
            assert_eq!(*counted, port.ledger, "port {number}: counted, expected");
        }
        assert_balanced(&counted);
        assert_eq!(
            self.rig.view.fdb.dump(0).len(),
            self.bridge.stations.len(),
            "stations known"
        );
        for (number, port) in self.ports.iter().enumerate() {
            // The counters of a removed port are not compared.
            if self.bridge.ports[number].condition != Condition::Gone {
                let stations = self.bridge.stations_on(number);
                assert_eq!(port.quota.used() as usize, stations, "port {number}");
            }
        }
    }
}

/// Checks for the same frames, equally often, with each flow's frames in the order in which they were sent.
fn assert_same(arrived: &[Arrived], expected: &[Copy], at: (usize, usize)) {
    let mut count: HashMap<(&[u8], _), i64> = HashMap::new();
    for (bytes, csum) in arrived {
        *count.entry((bytes, *csum)).or_default() += 1;
    }
    for copy in expected {
        *count.entry((&copy.bytes, copy.csum)).or_default() -= 1;
    }
    let wrong: Vec<_> = count.iter().filter(|(_, n)| **n != 0).collect();
    let show = |((bytes, csum), n): &(&(&[u8], _), &i64)| {
        let head = &bytes[..bytes.len().min(24)];
        format!("{n:+} of {} bytes, {csum:?}: {head:02x?}", bytes.len())
    };
    let wrong: Vec<String> = wrong.iter().take(4).map(show).collect();
    assert!(wrong.is_empty(), "port, queue {at:?}: {wrong:#?}");

    let identity: HashMap<&[u8], _> = expected
        .iter()
        .filter_map(|copy| Some((copy.bytes.as_slice(), copy.identity?)))
        .collect();
    let mut last: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for (bytes, _) in arrived {
        if let Some((source, flow, number)) = identity.get(bytes.as_slice()) {
            let before = last.insert((*source, *flow), *number);
            assert!(
                before.is_none_or(|before| before < *number),
                "port, queue {at:?}: source {source}, flow {flow}: {number} after {before:?}"
            );
        }
    }
}
