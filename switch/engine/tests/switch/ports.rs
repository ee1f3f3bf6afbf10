//! A port of the switch with a guest behind it.

use std::sync::Arc;

use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::egress::guest_queues::GuestQueues;
use crosspoint_engine::groups::GroupPolicy;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::guard::SourceGuard;
use crosspoint_engine::stages::meter::Meter;
use crosspoint_engine::stream::Source;
use crosspoint_engine::stream::Stream;
use crosspoint_guest::queue::{ReceiveQueue, TransmitQueue};
use crosspoint_guest::{ChainSplit, RingLayout, VirtioNetHdr};
use crosspoint_packet::{DropReason, IpNet, Mac};
use crosspoint_vring::feature;

use crate::world::{Guest, MODERN, call};

/// Properties of a port and its guest.
#[derive(Clone, Debug)]
pub struct PortOptions {
    pub vlan: VlanPolicy,
    pub features: u64,
    /// Receive queues. There is one transmit queue.
    pub queues: usize,
    pub transmit_size: u16,
    pub receive_size: u16,
    /// First index of the receive rings. With 0, a ring gets no flow before its driver has offered a buffer.
    pub receive_base: u16,
    /// Length of a receive buffer including the header, bytes.
    pub buffer_len: usize,
    pub split: ChainSplit,
    pub frame_len_max: usize,
    /// Address limit; 0 for none.
    pub mac_limit: u32,
    /// Whether frames from addresses beyond it are dropped.
    pub drops_beyond: bool,
    /// Whether its TCP segments are joined for guests that take large frames, as a NIC port's are.
    pub joins: bool,
    /// Limits of what its guest sends, and of what is sent to it.
    pub meter_out: Option<Arc<Meter>>,
    pub meter_in: Option<Arc<Meter>>,
    /// Whether its frames reach uplinks only, and whether it counts as one.
    pub is_isolated: bool,
    pub is_uplink: bool,
    /// Its security groups.
    pub groups: Option<Arc<GroupPolicy>>,
    /// Whether it may send what DHCP servers send.
    pub is_server: bool,
    /// The only addresses that it may claim: MAC, and IP if that is limited too.
    pub macs: Vec<[u8; 6]>,
    pub ips: Vec<IpNet>,
    /// Whether it is the port of a mirror.
    pub takes_mirror: bool,
    /// Whether positions of its rings are recorded in inflight regions.
    pub tracks: bool,
}

impl Default for PortOptions {
    fn default() -> PortOptions {
        PortOptions {
            vlan: VlanPolicy::Unaware,
            features: MODERN | feature::CSUM | feature::GUEST_CSUM,
            queues: 1,
            transmit_size: 256,
            receive_size: 256,
            receive_base: 1,
            buffer_len: 2048,
            split: ChainSplit::Single,
            frame_len_max: 1600,
            mac_limit: 0,
            drops_beyond: false,
            joins: false,
            meter_out: None,
            meter_in: None,
            is_isolated: false,
            is_uplink: false,
            groups: None,
            is_server: true,
            macs: Vec::new(),
            ips: Vec::new(),
            takes_mirror: false,
            tracks: false,
        }
    }
}

/// The guest's side.
pub struct Driver {
    pub guest: Guest,
    pub transmit: TransmitQueue,
    pub receive: Vec<ReceiveQueue>,
}

impl Driver {
    /// Adds a frame without offloads; the ring must have room.
    pub fn send(&mut self, frame: &[u8]) {
        let sent = self.transmit.send(&VirtioNetHdr::default(), frame);
        assert!(sent.unwrap(), "no room");
    }

    /// Posts all buffers and publishes them to the switch.
    pub fn post_all(&mut self) {
        for queue in &mut self.receive {
            queue.post(u16::MAX).unwrap();
            let _ = queue.virtqueue().publish();
        }
    }

    /// Returns the received frames, by queue. Their buffers are posted again, unless that was turned off.
    pub fn received(&mut self) -> Vec<Vec<Vec<u8>>> {
        let take = |queue: &mut ReceiveQueue| {
            let frames = queue.receive().unwrap();
            let _ = queue.virtqueue().publish();
            frames.into_iter().map(|(_, bytes)| bytes).collect()
        };
        self.receive.iter_mut().map(take).collect()
    }
}

/// The switch's side.
pub struct Port {
    pub view: PortSnapshot,
    pub stream: Stream,
}

/// Creates port `number` of a switch with `workers` workers, and its guest; no buffers are posted yet.
pub fn port(number: u16, options: &PortOptions, workers: usize) -> (Driver, Port) {
    let PortOptions {
        features,
        transmit_size,
        receive_size,
        receive_base,
        buffer_len,
        frame_len_max,
        ..
    } = *options;
    let (area, tables) = TransmitQueue::memory_len(transmit_size, frame_len_max);
    let (buffers, more_tables) = ReceiveQueue::memory_len(receive_size, buffer_len);
    let rings = RingLayout::contiguous_len(transmit_size)
        + options.queues * RingLayout::contiguous_len(receive_size);
    let len = area + tables + options.queues * (buffers + more_tables + 0x1000) + rings + 0x2000;
    let mut guest = Guest::new(len.next_multiple_of(4096));
    guest.tracks = options.tracks;
    let (transmit, from) = guest.transmit(transmit_size, 0, features, frame_len_max);
    let (mut receive, mut to) = (Vec::new(), Vec::new());
    for pair in 0..options.queues {
        let (_event, notifier) = call();
        let ring = (receive_size, receive_base);
        let (queue, device) =
            guest.receive(ring, features, buffer_len, options.split, workers, notifier);
        receive.push(queue);
        to.push((pair as u8, Arc::new(device)));
    }
    let counters = Arc::new(PortCounters::new(workers, options.queues));
    let view = PortSnapshot {
        name: format!("guest-{number}").into(),
        bridge: 0,
        tags: None,
        vlan: Arc::new(options.vlan.clone()),
        egress: Egress::Guest(Arc::new(GuestQueues::new(to, workers, None))),
        counters: counters.clone(),
        quota: Arc::new(quota(options)),
        joins: options.joins,
        weight: 1,
        storm: None,
        meter_out: options.meter_out.clone(),
        meter_in: options.meter_in.clone(),
        uplink_share: None,
        sources: guard(options).map(Arc::new),
        groups: options.groups.clone(),
        is_server: options.is_server,
        is_isolated: options.is_isolated,
        is_uplink: options.is_uplink,
        control: ControlAddresses::NONE,
    };
    let stream = Stream::new((number, 0), Source::Guest(Box::new(from)), counters);
    let driver = Driver {
        guest,
        transmit,
        receive,
    };
    (driver, Port { view, stream })
}

fn quota(options: &PortOptions) -> Quota {
    let quota = Quota::new(options.mac_limit);
    quota.set_drops(options.drops_beyond);
    quota
}

/// The guard of a port with these options.
fn guard(options: &PortOptions) -> Option<SourceGuard> {
    let macs: Vec<Mac> = options.macs.iter().copied().map(Mac::new).collect();
    let is_guarded = options.takes_mirror || !macs.is_empty();
    let guard = SourceGuard::new(macs).with_ips(&options.ips);
    is_guarded.then(|| match options.takes_mirror {
        true => guard.blocked(DropReason::MirrorPort),
        false => guard,
    })
}
