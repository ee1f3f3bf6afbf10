//! For any ports and frames: exactly the frames that the model in `bridge` expects arrive, and the counters match.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::snapshot::Egress;
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_packet::DropReason;
use crosspoint_vring::feature;
use proptest::prelude::*;

use crate::bridge::{Bridge, BridgePort, Condition, Ledger, Membership, Ring, Sent};
use crate::checks::Pair;
use crate::frames::{Flow, Ip, TRAILER, host};
use crate::ports::PortOptions;
use crate::rig::Rig;
use crate::world::{MODERN, Random, header_len};

const VLANS: [u16; 4] = [1, 100, 200, 4094];
const FRAME_LEN_MAX: usize = 70_000;
const CSUM: u64 = feature::CSUM | feature::GUEST_CSUM;

fn pick<T: Clone>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len())].clone()
}

fn membership(random: &mut Random) -> (VlanPolicy, Membership) {
    match random.below(5) {
        0 | 1 => (VlanPolicy::Unaware, Membership::All),
        2 => {
            let vlan = pick(random, &VLANS);
            (VlanPolicy::Access(vlan), Membership::Access(vlan))
        }
        _ => {
            let tagged: BTreeSet<u16> = VLANS.into_iter().filter(|_| !random.one_in(3)).collect();
            let native = random.one_in(2).then(|| pick(random, &VLANS));
            let ids: Vec<u16> = tagged.iter().copied().collect();
            let policy = VlanPolicy::trunk(&ids, native);
            (policy, Membership::Trunk(tagged, native))
        }
    }
}

fn options(random: &mut Random, vlan: VlanPolicy) -> PortOptions {
    let features = pick(random, &[MODERN | CSUM, feature::VERSION_1 | CSUM, CSUM]);
    let is_mergeable = features & feature::MRG_RXBUF != 0;
    let lengths: &[usize] = if is_mergeable {
        &[1000, 1526, 2048, 9000]
    } else {
        &[600, 2048, 66_000]
    };
    PortOptions {
        vlan,
        features,
        queues: 1 + random.below(3),
        transmit_size: 128,
        receive_size: pick(random, &[4, 16, 64, 256]),
        receive_base: 1,
        buffer_len: pick(random, lengths),
        split: pick(random, &[ChainSplit::Single, ChainSplit::HeaderApart]),
        frame_len_max: FRAME_LEN_MAX,
        mac_limit: pick(random, &[0, 0, 0, 1, 3]),
        drops_beyond: pick(random, &[false, true]),
        joins: true,
        ..PortOptions::default()
    }
}

fn pair(seed: u64, random: &mut Random) -> Pair {
    let (mut all, mut ports) = (Vec::new(), Vec::new());
    for _ in 0..2 + random.below(4) {
        let (policy, vlans) = membership(random);
        let options = options(random, policy);
        let ring = Ring {
            size: options.receive_size.into(),
            free: 0,
            buffer_len: options.buffer_len,
            mergeable: options.features & feature::MRG_RXBUF != 0,
            header_len: header_len(options.features),
        };
        ports.push(BridgePort {
            vlans,
            condition: Condition::Up,
            rings: vec![ring; options.queues],
            mac_limit: options.mac_limit as usize,
            drops_beyond: options.drops_beyond,
            ledger: Ledger {
                tx: vec![(0, 0); options.queues],
                ..Ledger::default()
            },
            out: vec![Vec::new(); options.queues],
        });
        all.push(options);
    }
    let mut rig = Rig::new(&all, 1 + random.below(2), seed);
    for driver in &mut rig.drivers {
        driver.receive.iter_mut().for_each(|q| q.set_repost(false));
    }
    Pair {
        bridge: Bridge {
            ports,
            stations: HashMap::new(),
            flows: rig.view.flows,
        },
        ports: rig.view.ports.iter().flatten().cloned().collect(),
        rig,
    }
}

pub struct Run {
    pub pair: Pair,
    random: Random,
    pub workers: usize,
    flows: HashMap<Flow, u32>,
    number: u64,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut random = Random(seed);
        let pair = pair(seed, &mut random);
        let mut run = Run {
            workers: pair.rig.workers(),
            pair,
            random,
            flows: HashMap::new(),
            number: 0,
        };
        for port in 0..run.pair.ports.len() {
            run.post(port);
        }
        run
    }

    pub fn flow(&mut self, source: usize) -> Flow {
        let random = &mut self.random;
        let own = host(source as u8);
        let src = match random.below(16) {
            0 => [0; 6],
            1 => [3, 0, 0, 0, 0, 1],
            2..4 => host(random.below(6) as u8),
            _ => own,
        };
        let dst = match random.below(16) {
            0 => [0xff; 6],
            1 => [0x33, 0x33, 0, 0, 0, 1],
            2 => [1, 0x80, 0xc2, 0, 0, random.below(32) as u8],
            3 => own,
            _ => host(random.below(6) as u8),
        };
        let tci = [&VLANS[..], &[0, 7, 4095]].concat();
        let tag = pick(random, &tci) | (random.below(16) as u16) << 12;
        let end = |random: &mut Random| (random.below(3) as u8, random.below(3) as u16);
        let ip = Ip {
            v6: random.one_in(2),
            from: end(random),
            to: end(random),
            fragment: random.one_in(8),
        };
        Flow {
            dst,
            src,
            tag: random.one_in(2).then_some(tag),
            ip: (!random.one_in(4)).then_some(ip),
        }
    }

    pub fn len(&mut self) -> usize {
        let random = &mut self.random;
        match random.below(32) {
            0 => random.below(14),
            1..4 => 14 + random.below(8),
            4..8 => 56 + random.below(20),
            8..12 => 1490 + random.below(40),
            12 => 65_530 + random.below(40),
            13 if random.one_in(2) => random.below(FRAME_LEN_MAX),
            _ => 60 + random.below(1400),
        }
    }

    pub fn header(&mut self, len: usize) -> VirtioNetHdr {
        let random = &mut self.random;
        let mut header = VirtioNetHdr::default();
        match random.below(32) {
            0 => header.gso_type = 1,
            1 | 2 => {
                header.flags = 1;
                header.csum_start = random.below(len.clamp(1, 60_000) + 2) as u16;
                header.csum_offset = random.below(20) as u16;
            }
            // Possible places of UDP's checksum, with a tag or without, over IPv4 or IPv6.
            3..6 => {
                header.flags = 1;
                header.csum_start = pick(random, &[34, 38, 54, 58]);
                header.csum_offset = 6;
            }
            _ => {}
        }
        header
    }

    /// Sends a batch of frames from one port through the switch and the bridge.
    fn frames(&mut self) {
        let ingress = self.random.below(self.pair.ports.len());
        let mut batch: Vec<Sent> = Vec::new();
        let mut flow = self.flow(ingress);
        for _ in 0..1 + self.random.below(100) {
            // Fast paths are for runs of one flow.
            if self.random.one_in(3) {
                flow = self.flow(ingress);
            } else if self.random.one_in(4) {
                // The same except for one field.
                let other = self.flow(ingress);
                match self.random.below(3) {
                    0 => flow.tag = other.tag,
                    1 => flow.src = other.src,
                    _ => flow.ip = other.ip,
                }
            }
            let len = self.len();
            let known = self.flows.len() as u32;
            let id = *self.flows.entry(flow).or_insert(known);
            let bytes = flow.frame(len, ingress as u32, id, self.number);
            let is_marked = len >= 64 + TRAILER;
            let identity = is_marked.then_some((ingress as u32, id, self.number));
            self.number += 1;
            let header = self.header(len);
            let piece = 1 + self.random.below(2000).max(len / 40);
            let splits = [
                ChainSplit::Single,
                ChainSplit::HeaderApart,
                ChainSplit::Pieces(piece),
            ];
            let split = pick(&mut self.random, &splits);
            match self.pair.send(ingress, header, split, bytes, identity) {
                Some(sent) => batch.push(sent),
                None => break,
            }
        }
        let (random, workers) = (&mut self.random, self.workers);
        self.pair.handle(ingress, &batch, || random.below(workers));
        self.pair.compare_arrivals();
    }

    /// Posts some buffers, or all, or none.
    fn post(&mut self, port: usize) {
        let driver = &mut self.pair.rig.drivers[port];
        let rings = &mut self.pair.bridge.ports[port].rings;
        for (queue, ring) in driver.receive.iter_mut().zip(rings) {
            let size = ring.size;
            let count = match self.random.below(4) {
                0 => self.random.below(size + 1),
                1 => self.random.below(4),
                _ => size,
            };
            ring.free += usize::from(queue.post(count as u16).unwrap());
            let _ = queue.ring().publish();
        }
    }

    /// A port goes down, comes up, or is removed.
    fn change(&mut self, port: usize) {
        use Condition::*;
        let condition = pick(
            &mut self.random,
            &[Up, Up, Down, Quarantined, Disabled, Gone],
        );
        let before = self.pair.bridge.ports[port].condition;
        if before == Gone && condition != Gone {
            // Another port with the same number: no address was seen there.
            self.forget(port);
            let limit = self.pair.bridge.ports[port].mac_limit as u32;
            let quota = Quota::new(limit);
            quota.set_drops(self.pair.bridge.ports[port].drops_beyond);
            self.pair.ports[port].quota = Arc::new(quota);
        }
        self.pair.bridge.ports[port].condition = condition;
        let mut view = self.pair.ports[port].clone();
        match condition {
            Down => view.egress = Egress::Down,
            Quarantined => view.egress = Egress::Quarantined,
            Disabled => view.egress = Egress::Disabled,
            Up | Gone => {}
        }
        self.pair.rig.view.ports[port] = (condition != Gone).then_some(view);
    }

    /// The switch forgets the addresses of a port.
    fn forget(&mut self, port: usize) {
        let ports = &self.pair.ports;
        let quotas = |port: u16| Some(&*ports[usize::from(port)].quota);
        let fdb = &self.pair.rig.view.fdb;
        let left = fdb.sweep(0, quotas, |on, _| usize::from(on) == port);
        self.pair.bridge.stations.retain(|_, on| *on != port);
        assert_eq!(left, self.pair.bridge.stations.len());
    }

    pub fn step(&mut self) {
        let port = self.random.below(self.pair.ports.len());
        match self.random.below(16) {
            0 => self.change(port),
            1 => self.forget(port),
            2..6 => self.post(port),
            _ => self.frames(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Exactly the bridge's copies arrive, each flow's in order; every frame and byte is counted at the right place; and
    /// frames that did not arrive were dropped for the bridge's reason.
    #[test]
    fn every_frame_is_delivered_or_counted(seed: u64, steps in 1usize..60) {
        let mut run = Run::new(seed);
        for _ in 0..steps {
            run.step();
            run.pair.compare_ledgers();
        }
    }
}

/// Checks that the property above covers drops: these runs meet every drop reason that guests alone can cause.
#[test]
fn random_runs_meet_every_reason() {
    let mut met: BTreeMap<DropReason, u64> = BTreeMap::new();
    let (mut delivered, mut flooded) = (0, 0);
    for seed in 0..100 {
        let mut run = Run::new(seed);
        for _ in 0..40 {
            run.step();
        }
        run.pair.compare_ledgers();
        for port in &run.pair.bridge.ports {
            delivered += port.ledger.delivered;
            flooded += port.ledger.flood_copies;
            for (reason, n) in &port.ledger.drops {
                *met.entry(*reason).or_default() += n;
            }
        }
    }
    assert!(
        delivered > 10_000 && flooded > 5_000,
        "{delivered} {flooded}"
    );
    use DropReason::*;
    // These need a NIC, or racing workers, or a guard (`sources`).
    let others = [
        SourceNotAllowed,
        GuestRingContended,
        NicRingFull,
        MtuExceeded,
        SegmentSizeUnknown,
        NicFrameSmall,
        HandoverFull,
        // And these need a port's settings, a busy worker, or specific attacks.
        SourceNotAllowed,
        StormBroadcast,
        StormMulticast,
        StormUnknownUnicast,
        BurstBudget,
        GuestBuffersCostly,
        OverShare,
        RateExceeded,
        ServerNotAllowed,
        GroupDeniedOut,
        GroupDeniedIn,
        ConnectionLimitOut,
        ConnectionLimitIn,
        ConnectionRateOut,
        ConnectionRateIn,
        FragmentUnknownOut,
        FragmentUnknownIn,
        Isolated,
        LoopBlocked,
        LoopProbe,
        MirrorPort,
        IpNotAllowed,
        NoListener,
        NeighborNotAllowed,
    ];
    for reason in DropReason::ALL.iter().filter(|r| !others.contains(r)) {
        assert!(met.get(reason) > Some(&20), "{reason:?} in {met:?}");
    }
}
