//! A guest that sends from its own memory, over a real veth pair with the kernel in between.

use std::collections::VecDeque;
use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::egress::deliver::deliver;
use crosspoint_engine::egress::direct::Direct;
use crosspoint_engine::egress::direct::DirectGuest;
use crosspoint_engine::egress::tx::Tx;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::stages::Keys;
use crosspoint_engine::stages::admit;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::lookup;
use crosspoint_engine::stages::parse;
use crosspoint_engine::stream::Source;
use crosspoint_engine::stream::Stream;
use crosspoint_frame::Burst;
use crosspoint_guest::queue::TransmitQueue;
use crosspoint_guest::{ChainSplit, VirtioNetHdr};
use crosspoint_netdev::{Attachment, Interface};
use crosspoint_packet::FlowHasher;
use crosspoint_vring::feature;
use crosspoint_xsk::{BindMode, DirectTx, PacketMemory, Pages, SocketOptions, XskRx};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::checks::{assert_balanced, ledger_of};
use crate::large::{large, read};
use crate::world::{Guest, LAYOUTS, MODERN, Random, tagged};

const MTU: u32 = 3400;
const LONGEST: usize = MTU as usize + 14;
const RING: u16 = 64;
const FRAME_LEN_MAX: usize = 24_000;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status();
    assert!(status.expect("iproute2 and ethtool").success(), "{line}");
}

/// Makes `near` and `wire`, the two ends of a wire with two queues. The thread gets its own namespaces.
fn wire() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes a network namespace: run it as root"
    );
    // SAFETY: no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.expect("namespaces");
    run("mount --make-rprivate /");
    run("mount -t sysfs sysfs /sys");
    for kind in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{kind}/disable_ipv6");
        std::fs::write(file, "1").expect("the kernel has IPv6");
    }
    let queues = "numrxqueues 2 numtxqueues 2";
    run(&format!(
        "ip link add near {queues} type veth peer name wire {queues}"
    ));
    // An AF_XDP socket at the far end gets checksums unfinished unless the sender computes them.
    run("ethtool -K near tx off");
    for end in ["near", "wire"] {
        run(&format!("ip link set {end} mtu {MTU} up"));
    }
}

/// A guest whose frames all leave through `near`, and a receiver at `wire`.
struct World {
    view: Snapshot,
    stream: Stream,
    tx: Tx,
    keys: Keys,
    burst: Burst,
    driver: TransmitQueue,
    _guest: Guest,
    far: Vec<XskRx>,
    _attachment: Attachment,
    arrived: Vec<Vec<u8>>,
}

impl World {
    /// The guest is in one VLAN; frames at `near` are tagged if `tags`.
    fn new(features: u64, tags: bool) -> World {
        wire();
        let (far, attachment) = far_end();
        let (area, tables) = TransmitQueue::memory_len(RING, FRAME_LEN_MAX);
        let mut guest = Guest::new((area + tables + 0x8000).next_multiple_of(4096));
        let (driver, from) = guest.transmit(RING, 0, features, FRAME_LEN_MAX);
        let memory = guest.shared.shared();
        let files = guest.memory.regions().iter().map(|region| {
            let file = region.file().try_clone_to_owned().unwrap();
            File::from(file)
        });
        let files: Vec<_> = memory.regions().zip(files).collect();
        let run = memory.contiguous(DirectTx::OWN_LEN, &files).unwrap();
        let up = Interface::find("near").unwrap().unwrap().index;
        let limit = Arc::new(AtomicU32::new(LONGEST as u32));
        let queue = DirectTx::open((up, 1), BindMode::Auto, run, limit).unwrap();
        assert!(!queue.status().zero_copy(), "veth copies");
        let direct = Box::new(Direct::new(queue, 1, u64::MAX));
        let port = |name: &str, vlan, egress| PortSnapshot {
            name: name.into(),
            bridge: 0,
            tags: None,
            vlan: Arc::new(vlan),
            egress,
            counters: Arc::new(PortCounters::new(1, 1)),
            quota: Arc::new(Quota::new(0)),
            joins: false,
            weight: 1,
            storm: None,
            meter_out: None,
            meter_in: None,
            uplink_share: None,
            sources: None,
            groups: None,
            is_server: true,
            is_isolated: false,
            is_uplink: false,
            control: ControlAddresses::NONE,
        };
        let uplink_vlan = match tags {
            true => VlanPolicy::trunk(&[7], None),
            false => VlanPolicy::Access(7),
        };
        let ports = [
            Some(port("guest", VlanPolicy::Access(7), Egress::Down)),
            Some(port("up", uplink_vlan, Egress::Nic)),
        ];
        let counters = ports[0].as_ref().unwrap().counters.clone();
        let source = Source::Direct(Box::new(DirectGuest::new(Box::new(from), direct)));
        World {
            stream: Stream::new((0, 0), source, counters),
            view: Snapshot::new(
                Box::new(ports),
                Arc::new(Fdb::new(0, [1, 2])),
                FlowHasher::new(3),
                Box::new([]),
            ),
            tx: Tx::new(0, 65_000),
            keys: Keys::default(),
            burst: Burst::new(),
            driver,
            _guest: guest,
            far,
            _attachment: attachment,
            arrived: Vec::new(),
        }
    }

    fn send(&mut self, header: &VirtioNetHdr, frame: &[u8]) -> bool {
        let sent = self.driver.send(header, frame).unwrap();
        let _ = self.driver.virtqueue().publish();
        sent
    }

    /// One poll of a worker, without the doorbell. Returns how many frames were taken.
    fn take(&mut self) -> usize {
        let World {
            view,
            stream,
            tx,
            keys,
            burst,
            ..
        } = self;
        let count = stream.receive(burst);
        if count > 0 {
            parse(burst);
            admit(burst, 0, view);
            lookup(burst, 0, view, 0, keys);
            tx.lend_direct(stream.take_direct());
            deliver(burst, 0, view, tx, stream.counters(0));
            stream.put_direct(tx.return_direct());
            stream.complete(burst, 0, 0);
        }
        count
    }

    fn look(&mut self) {
        let mut burst = Burst::new();
        for far in &mut self.far {
            burst.clear();
            far.receive(&mut burst);
            for frame in burst.frames() {
                let mut bytes = vec![0; frame.len as usize];
                burst.read_beginning(frame, &mut bytes);
                self.arrived.push(bytes);
            }
            far.complete(&burst);
        }
    }

    /// Polls until `arrived` frames have arrived and the guest has got all buffers back.
    fn settle(&mut self, arrived: usize) {
        let start = Instant::now();
        loop {
            self.take();
            let busy = self.stream.flush_direct();
            self.look();
            self.driver.reap().unwrap();
            let done = !busy && self.arrived.len() >= arrived;
            if done && self.driver.virtqueue().outstanding() == 0 {
                return;
            }
            let (have, held) = (self.arrived.len(), self.driver.virtqueue().outstanding());
            assert!(
                start.elapsed() < PATIENCE,
                "{have} of {arrived} arrived, {held} not given back"
            );
        }
    }

    fn check_ledger(&self) {
        let ports = self.view.ports.iter().flatten();
        let ledgers: Vec<_> = ports.map(|port| ledger_of(&port.counters)).collect();
        assert_balanced(&ledgers);
    }
}

fn far_end() -> (Vec<XskRx>, Attachment) {
    let wire = Interface::find("wire").unwrap().unwrap();
    let mut attachment = Attachment::new(&wire, false, false, false).unwrap();
    let mut memory = PacketMemory::new(2, None);
    let options = SocketOptions {
        bind: BindMode::Copy,
        multi_buffer: false,
        busy_poll: false,
        pages: Pages::Small,
        frame_len_max: LONGEST as u32,
    };
    let mut open = |queue| {
        let (rx, _) = memory.open(wire.index, queue, &options).unwrap();
        attachment.redirect(queue, &**rx.socket()).unwrap();
        rx
    };
    (vec![open(0), open(1)], attachment)
}

fn plain(random: &mut Random, len: usize) -> Vec<u8> {
    let addresses = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    [&addresses[..], &random.bytes(len - 14)].concat()
}

/// Frames of every length, at any place in pages, in one piece or several, arrive unchanged and in order.
#[test]
fn frames_leave_a_guests_memory_as_they_are() {
    let mut random = Random(5);
    for (layout, tags) in LAYOUTS.into_iter().zip([false, true, false, true]) {
        let mut world = World::new(MODERN | layout, tags);
        let mut sent = VecDeque::new();
        for round in 0..40 {
            let count = 1 + random.below(32);
            let before = world.arrived.len();
            let mut added = 0;
            for _ in 0..count {
                let longest = if round % 2 == 0 { LONGEST } else { 400 };
                let len = 60 + random.below(longest - 59);
                let pieces = 1 + random.below(4);
                let split = ChainSplit::Pieces((len + 12).div_ceil(pieces));
                world.driver.set_split(split);
                let frame = plain(&mut random, len);
                if world.send(&VirtioNetHdr::default(), &frame) {
                    let tag = if tags {
                        crosspoint_frame::HeaderOp::Push
                    } else {
                        crosspoint_frame::HeaderOp::Keep
                    };
                    sent.push_back(tagged(&frame, tag, 7));
                    added += 1;
                }
            }
            world.settle(before + added);
        }
        for (number, frame) in world.arrived.iter().enumerate() {
            assert!(Some(frame) == sent.pop_front().as_ref(), "frame {number}");
        }
        assert!(sent.is_empty());
        let completion = &world.stream.counters(0).completion;
        let completed: u64 = completion.buckets().map(|(_, n)| n).sum();
        assert_eq!(completed, world.arrived.len() as u64);
        world.check_ledger();
    }
}

/// Checksums that the guest left to the device are right, for whole frames and for each segment of a cut frame.
#[test]
fn checksums_are_finished_and_large_frames_are_cut() {
    let features = MODERN | feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6;
    let mut world = World::new(features, true);
    let mut random = Random(6);
    for round in 0..60 {
        let v6 = random.one_in(2);
        let cut = random.one_in(2);
        let len = if cut {
            3000 + random.below(18_000)
        } else {
            1 + random.below(3000)
        };
        let payload = random.bytes(len);
        let mss = 500 + random.below(2500);
        let (header, frame) = large(&payload, mss as u16, v6);
        let header = match cut {
            true => header,
            false => VirtioNetHdr {
                gso_type: 0,
                gso_size: 0,
                ..header
            },
        };
        world.driver.set_split(ChainSplit::Pieces(
            frame.len().div_ceil(1 + random.below(3)),
        ));
        assert!(world.send(&header, &frame));
        let before = world.arrived.len();
        let segments = if cut { payload.len().div_ceil(mss) } else { 1 };
        world.settle(before + segments);
        let mut got = Vec::new();
        for segment in &world.arrived[before..] {
            assert_eq!(segment[12..16], [0x81, 0, 0, 7]);
            let untagged = tagged(segment, crosspoint_frame::HeaderOp::Pop, 0);
            got.extend(read(&untagged).1);
        }
        assert!(got == payload, "round {round}");
    }
    world.check_ledger();
}

/// A frame leaves with the header that was checked, whatever the guest writes to its buffers afterwards; the buffers are
/// not given back before the kernel has read them.
#[test]
fn a_header_that_is_rewritten_after_the_check_changes_nothing() {
    let mut world = World::new(MODERN, false);
    let mut random = Random(7);
    let frames = [60, 200, 300, 1514, LONGEST].map(|len| plain(&mut random, len));
    for frame in &frames {
        assert!(world.send(&VirtioNetHdr::default(), frame));
    }
    assert_eq!(world.take(), frames.len());
    assert_eq!(world.take(), 0);
    assert_eq!(
        world.driver.reap().unwrap(),
        0,
        "the kernel has not seen them yet"
    );
    // Overwrites all that the guest has sent.
    let area = world.driver.area().clone();
    area.view().fill(0, area.len(), 0xee);
    world.settle(frames.len());
    for (sent, got) in frames.iter().zip(&world.arrived) {
        assert_eq!(sent.len(), got.len());
        assert_eq!(sent[..64.min(sent.len())], got[..64.min(got.len())]);
    }
    world.check_ledger();
}

/// A frame in more pieces than the kernel takes goes through the shared queue, which does not exist here.
#[test]
fn a_frame_in_too_many_pieces_is_copied() {
    let mut world = World::new(MODERN | feature::INDIRECT_DESC, false);
    let mut random = Random(8);
    world.driver.set_split(ChainSplit::Pieces(70));
    assert!(world.send(&VirtioNetHdr::default(), &plain(&mut random, LONGEST)));
    assert!(world.send(&VirtioNetHdr::default(), &plain(&mut random, 200)));
    world.settle(1);
    assert_eq!(world.arrived[0].len(), 200);
    let to = &world.view.port(1).unwrap().counters;
    assert_eq!(to.at(0, 0).drops.iter().map(|n| n.get()).sum::<u64>(), 1);
    world.check_ledger();
}

/// A queue that ends gives all buffers back, sent or not, and keeps the ring's position; the guest continues.
#[test]
fn a_queue_that_ends_gives_everything_back() {
    let mut random = Random(9);
    for down in [false, true] {
        let mut world = World::new(MODERN, false);
        if down {
            run("ip link set near down");
        }
        for _ in 0..10 {
            assert!(world.send(&VirtioNetHdr::default(), &plain(&mut random, 1000)));
        }
        assert_eq!(world.take(), 10);
        let World { stream, .. } = world;
        let mut stream = stream.end_direct(Duration::from_secs(1));
        assert!(!stream.is_direct());
        // The guest's next worker calls it, not this thread: a call can block forever.
        assert!(stream.has_given_back());
        stream.flush(0);
        assert!(!stream.has_given_back());
        world = World { stream, ..world };
        assert_eq!(world.driver.reap().unwrap(), 10);
        let base = world.stream.guest().unwrap().base();
        assert_eq!(base, u32::from(world.driver.ring().used_idx()));
        if !down {
            world.look();
            assert_eq!(world.arrived.len(), 10);
        }
    }
}
