//! What the thread does: takes samples, polls counters, and sends both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::Sflow;
use crosspoint_engine::observe::sample::Sampler;
use crosspoint_engine::observe::tap::{Fate, Slot};
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_model::status::{PortStatus, QueueStatus, SflowStatus, ShownState};
use crosspoint_packet::{DropReason, Side};

use super::super::collector::Collector;
use super::super::thread::{self, SHORT_PAUSE};
use super::encode::{Counters, DATAGRAM_LEN_MAX, FlowSample, Header, Output, Samples};
use super::interfaces::Interfaces;
use crate::dataplane::Dataplane;

/// How long a sample waits for others that fit into its datagram.
const WAIT: Duration = Duration::from_secs(1);
/// Samples that one round takes, some 50 datagrams: a collector with a small receive buffer has room for them.
const ROUND_MAX: usize = 256;
/// Ports whose counters are sent in one round: no burst of datagrams overfills the send buffer.
const POLLS_MAX: usize = 64;
/// Time between two updates of the status.
const STATUS_AGE: Duration = Duration::from_millis(200);

/// The exporter's state.
pub(crate) struct Exporter<'d> {
    dataplane: &'d Dataplane,
    began: Instant,
    options: Sflow,
    target: Option<Target>,
    interfaces: Interfaces,
    /// Samples that wait, and since when.
    samples: Samples,
    since: Instant,
    one: Samples,
    datagram: Vec<u8>,
    status: SflowStatus,
    status_at: Option<Instant>,
}

/// The collector, and the workers' side.
struct Target {
    collector: Collector,
    sampler: Arc<Sampler>,
    /// When the current turn of counter samples began, and the number of ports that had theirs.
    polled_at: Option<Instant>,
    polled: usize,
}

impl<'d> Exporter<'d> {
    /// An exporter that exports nothing yet.
    pub(super) fn new(dataplane: &'d Dataplane) -> Self {
        Exporter {
            dataplane,
            began: Instant::now(),
            options: Sflow::default(),
            target: None,
            interfaces: Interfaces::default(),
            samples: Samples::default(),
            since: Instant::now(),
            one: Samples::default(),
            datagram: Vec::with_capacity(DATAGRAM_LEN_MAX),
            status: SflowStatus::default(),
            status_at: None,
        }
    }

    /// Sends all samples of a sampler that no worker uses any more.
    fn finish(&mut self, mut target: Target) {
        while self.take_samples(&mut target) == ROUND_MAX {
            std::thread::sleep(SHORT_PAUSE);
        }
        self.flush(&mut target);
    }

    /// Encodes the samples that workers have taken. Returns their number.
    fn take_samples(&mut self, target: &mut Target) -> usize {
        let taken = std::iter::from_fn(|| target.sampler.next());
        let slots: Vec<Box<Slot>> = taken.take(ROUND_MAX).collect();
        // After the slots: it has the ports of all of them, except those that were removed meanwhile.
        let view = self.dataplane.picture().0;
        let names_before = self.interfaces.refresh(&view);
        self.interfaces.count_missed(&target.sampler);
        let count = slots.len();
        for slot in slots {
            let names = match target.sampler.is_of_removed(&slot) {
                true => &names_before[..],
                false => self.interfaces.names(),
            };
            let name = names.get(usize::from(slot.port)).cloned().flatten();
            if let Some(name) = name {
                self.encode(&slot, &name, (&view, target.sampler.every()));
                self.queue(target);
            }
            target.sampler.give_back(slot);
        }
        count
    }

    /// Encodes a sample into `one`, unless the port is not selected.
    fn encode(&mut self, slot: &Slot, name: &str, (view, sampling): (&Snapshot, u32)) {
        let output = output(slot, view, &self.interfaces);
        let chosen = self.interfaces.get_mut(name);
        let Some(interface) = chosen.filter(|interface| interface.is_chosen) else {
            return;
        };
        interface.update_pool();
        interface.samples += 1;
        self.one.add_flow(&FlowSample {
            sequence: interface.samples as u32,
            input: interface.index,
            output,
            sampling,
            // The frame itself may not have been counted yet.
            pool: interface.pool.max(interface.samples) as u32,
            drops: interface.missed as u32,
            frame_len: slot.len,
            header: &slot.bytes,
            vlan: slot.vlan.into(),
            priority: slot.priority.into(),
        });
    }

    /// Moves `one` to the samples that wait, and sends these first if there is no room.
    fn queue(&mut self, target: &mut Target) {
        if !self.samples.has_room_for(&self.one) {
            self.flush(target);
        }
        if self.samples.is_empty() {
            self.since = Instant::now();
        }
        self.samples.append(&mut self.one);
    }

    /// Adds counter samples of the ports whose turn it is.
    fn poll(&mut self, target: &mut Target) {
        let Some(interval) = self.options.polling else {
            return;
        };
        if target.polled_at.is_none_or(|at| at.elapsed() >= interval) {
            (target.polled_at, target.polled) = (Some(Instant::now()), 0);
        }
        let left = self.interfaces.names().len().saturating_sub(target.polled);
        if left == 0 {
            return;
        }
        let ports = self.dataplane.status().ports;
        for port in ports.iter().skip(target.polled).take(POLLS_MAX) {
            let counters = counters(port);
            let interface = self.interfaces.get_mut(&port.name);
            if let Some(interface) = interface.filter(|interface| interface.is_chosen) {
                self.one.add_counters(&Counters {
                    sequence: interface.next_poll(counters.in_frames),
                    index: interface.index,
                    ..counters
                });
                self.queue(target);
            }
        }
        target.polled = match target.polled + POLLS_MAX {
            polled if polled < ports.len() => polled,
            _ => usize::MAX,
        };
    }

    /// Sends the samples that wait.
    fn flush(&mut self, target: &mut Target) {
        if self.samples.is_empty() {
            return;
        }
        let agent = self.options.agent.or_else(|| target.collector.source());
        let header = Header {
            agent,
            sequence: (self.status.datagrams + self.status.send_errors + 1) as u32,
            uptime_ms: self.began.elapsed().as_millis() as u32,
        };
        let (flows, counters) = self.samples.finish(header, &mut self.datagram);
        match target.collector.send(&self.datagram) {
            Ok(()) => {
                self.status.datagrams += 1;
                self.status.flow_samples += u64::from(flows);
                self.status.counter_samples += u64::from(counters);
            }
            Err(error) => {
                self.status.send_errors += 1;
                self.status.last_error = Some(error.to_string());
            }
        }
    }
}

impl thread::Exporter for Exporter<'_> {
    type Options = (SocketAddr, Sflow);
    type Status = SflowStatus;

    /// Changes the options. Samples of frames that were received until now are sent as before.
    fn set(&mut self, options: Option<(SocketAddr, Sflow)>, _within: Duration) {
        let before = self.target.take();
        let Some((address, options)) = options else {
            self.dataplane.set_sampler(None);
            if let Some(target) = before {
                self.finish(target);
            }
            self.status = SflowStatus {
                collector: None,
                agent: None,
                interfaces: Vec::new(),
                ..std::mem::take(&mut self.status)
            };
            return;
        };
        let sampling = (options.sampling, usize::from(options.header_len));
        let is_same = |target: &Target| {
            let before = (self.options.sampling, usize::from(self.options.header_len));
            target.collector.address() == address && before == sampling
        };
        let target = match before {
            Some(target) if is_same(&target) => target,
            before => {
                let is_first = before.is_none();
                if is_first {
                    self.interfaces.refresh(&self.dataplane.picture().0);
                    self.interfaces.begin_pools();
                }
                let Some(sampler) = self.dataplane.set_sampler(Some(sampling)) else {
                    return;
                };
                if let Some(target) = before {
                    self.finish(target);
                }
                self.interfaces.begin_sampler();
                Target {
                    collector: Collector::new(address, None),
                    sampler,
                    polled_at: None,
                    polled: 0,
                }
            }
        };
        self.target = Some(target);
        self.interfaces.choose(&options.ports);
        self.options = options;
        self.status_at = None;
        self.note_status();
    }

    /// Whether there is nothing to do until the options change.
    fn is_idle(&self) -> bool {
        self.target.is_none()
    }

    /// Takes what is there, and sends what is due. Returns whether more may be there.
    fn round(&mut self) -> bool {
        let Some(mut target) = self.target.take() else {
            return false;
        };
        let is_full = self.take_samples(&mut target) == ROUND_MAX;
        self.poll(&mut target);
        if !self.samples.is_empty() && self.since.elapsed() >= WAIT {
            self.flush(&mut target);
        }
        self.target = Some(target);
        is_full
    }

    /// Brings the status up to date if it is old. Returns whether it was.
    fn note_status(&mut self) -> bool {
        let Some(target) = &mut self.target else {
            return false;
        };
        if self.status_at.is_some_and(|at| at.elapsed() < STATUS_AGE) {
            return false;
        }
        self.status_at = Some(Instant::now());
        self.interfaces.update_pools();
        let options = &self.options;
        let agent = options.agent.or_else(|| target.collector.source());
        self.status.collector = Some(target.collector.address().to_string());
        self.status.agent = agent.map(|address| address.to_string());
        self.status.sampling = options.sampling;
        self.status.header_len_bytes = options.header_len;
        self.status.polling_ms = options.polling.map(|time| time.as_millis() as u64);
        self.status.interfaces = self.interfaces.status();
        true
    }

    /// The status, as of the last round.
    fn status(&self) -> SflowStatus {
        SflowStatus {
            samples_missed: self.interfaces.missed(),
            ..self.status.clone()
        }
    }
}

/// Where a sampled frame goes.
fn output(slot: &Slot, view: &Snapshot, interfaces: &Interfaces) -> Output {
    let index = |number: u16| {
        let name = interfaces.names().get(usize::from(number));
        interfaces.index(name.and_then(Option::as_ref))
    };
    match slot.fate {
        Fate::Port(number) => Output::Interface(index(number)),
        Fate::Flood => {
            let mut ports = view.flooded_to(slot.port, (slot.bridge, slot.vlan));
            match (ports.next(), ports.count() as u32) {
                (None, _) => Output::Discarded(code(DropReason::NoDestination)),
                (Some(only), 0) => Output::Interface(index(only)),
                (Some(_), others) => Output::Several(1 + others),
            }
        }
        Fate::Dropped(reason) => Output::Discarded(code(reason)),
        // Samples are of received frames.
        Fate::Delivered => Output::Interface(0),
    }
}

/// The code of a drop reason: those of the specification (section 5), and from 263 those of
/// <https://sflow.org/sflow_drops.txt>. Reasons that are found at the receiver are not known when a frame is sampled.
fn code(reason: DropReason) -> u32 {
    const UNKNOWN: u32 = 256;
    const ACL: u32 = 258;
    const RATE_LIMITING: u32 = 261;
    const TOO_BIG: u32 = 262;
    match reason {
        DropReason::SourceNotAllowed
        | DropReason::MacLimit
        | DropReason::ServerNotAllowed
        | DropReason::Isolated => ACL,
        DropReason::StormBroadcast
        | DropReason::StormMulticast
        | DropReason::StormUnknownUnicast => RATE_LIMITING,
        DropReason::Oversize => TOO_BIG,
        DropReason::BadSource => 263,
        DropReason::UntaggedOnTrunk => 264,
        DropReason::VlanNotCarried => 265,
        DropReason::LoopBlocked => 266,
        DropReason::NoDestination => 267,
        DropReason::Hairpin => 268,
        _ => UNKNOWN,
    }
}

/// A port's counters, without the numbers of interface and sample.
fn counters(port: &PortStatus) -> Counters<'_> {
    let sum = |of: fn(&QueueStatus) -> u64| port.queues.iter().map(of).sum();
    let drops = |side: Side| {
        let all = port.queues.iter().flat_map(|queue| &queue.drops);
        let reason = |label: &str| DropReason::ALL.iter().find(|one| one.label() == label);
        let of_side = all.filter(|(label, _)| reason(label).is_some_and(|one| one.side() == side));
        of_side.map(|(_, count)| count).sum()
    };
    Counters {
        name: &port.name,
        is_enabled: port.state != ShownState::Disabled,
        is_up: port.state == ShownState::Up,
        in_octets: sum(|queue| queue.rx_bytes),
        in_frames: sum(|queue| queue.rx_packets),
        in_multicasts: sum(|queue| queue.multicasts),
        in_broadcasts: sum(|queue| queue.broadcasts),
        in_discards: drops(Side::Ingress),
        out_octets: sum(|queue| queue.tx_bytes),
        out_frames: sum(|queue| queue.tx_packets),
        out_discards: drops(Side::Egress),
        ..Counters::default()
    }
}
