//! What the thread does: takes events of connections, looks for those that last, and sends records of both.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crosspoint_config::Ipfix;
use crosspoint_config::pattern::matches;
use crosspoint_engine::groups::{
    Accounting, AccountingOptions, Connections, Counts, Direction, FlowEnd, FlowEvent, FlowRecord,
};
use crosspoint_frame::{Clock, tsc};
use crosspoint_model::status::IpfixStatus;

use super::super::collector::Collector;
use super::super::thread::{self, SHORT_PAUSE};
use super::encode::{MESSAGE_LEN_MAX, Message, Record, What};
use super::names::Names;
use crate::dataplane::Dataplane;

/// How long a record waits for others that fit into its message.
const WAIT: Duration = Duration::from_secs(1);
/// Events that one round takes, some 25 messages: a collector with a small receive buffer has room for them.
const ROUND_MAX: usize = 256;
/// Slots of the table that one round looks at for connections that last: a table of a million in half a second.
const SCAN_MAX: u32 = 1 << 16;
/// Parts into which a smaller table is divided.
const SCAN_PARTS: u32 = 50;
/// Time after which templates are sent again that could not be sent.
const TEMPLATES_RETRY: Duration = Duration::from_secs(1);
/// Time between two updates of the status.
const STATUS_AGE: Duration = Duration::from_millis(200);
/// IP protocols with the type and code of a message in place of ports: ICMP and ICMPv6, and their echo requests.
const ECHO_REQUESTS: [(u8, u16); 2] = [(1, 8 << 8), (58, 128 << 8)];

/// What was reported of a connection that lasts.
struct Reported {
    /// With the slot, no other connection has the same.
    began_at: u64,
    counts: Counts,
    /// When, cycles.
    at: u64,
}

/// The time stamp counter beside the clock of 1970.
#[derive(Clone, Copy)]
struct Now {
    cycles: u64,
    ms: u64,
    clock: Clock,
}

impl Now {
    fn read(clock: Clock) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            cycles: tsc(),
            ms: since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            clock,
        }
    }

    /// Milliseconds since 1970 at a time that is past.
    fn ms_at(&self, cycles: u64) -> u64 {
        let age_ns = self.clock.ns(self.cycles.saturating_sub(cycles));
        self.ms.saturating_sub((age_ns / 1e6) as u64)
    }
}

/// The collector.
struct Target {
    collector: Collector,
    templates_at: Instant,
    /// Records for this collector, sent or lost on their way: the sequence number.
    records: u32,
}

/// The exporter's state.
pub(crate) struct Exporter<'d> {
    dataplane: &'d Dataplane,
    options: Ipfix,
    target: Option<Target>,
    names: Names,
    /// By slot, connections that last.
    reported: HashMap<u32, Reported>,
    /// The slot that the next round looks at first.
    next_slot: u32,
    message: Message,
    since: Instant,
    datagram: Vec<u8>,
    /// Denied packets of this second.
    denied: (Option<Instant>, u32),
    /// Those beyond their number.
    denied_unsent: u64,
    status: IpfixStatus,
    status_at: Option<Instant>,
}

impl<'d> Exporter<'d> {
    /// An exporter that exports nothing yet.
    pub(super) fn new(dataplane: &'d Dataplane) -> Self {
        Exporter {
            dataplane,
            options: Ipfix::default(),
            target: None,
            names: Names::default(),
            reported: HashMap::new(),
            next_slot: 0,
            message: Message::default(),
            since: Instant::now(),
            datagram: Vec::with_capacity(MESSAGE_LEN_MAX),
            denied: (None, 0),
            denied_unsent: 0,
            status: IpfixStatus::default(),
            status_at: None,
        }
    }

    fn now(&self) -> Now {
        Now::read(self.dataplane.clock())
    }

    /// Takes events. Returns how many there were.
    fn take_events(&mut self, accounting: &Accounting, target: &mut Target) -> usize {
        let now = self.now();
        let mut count = 0;
        while count < ROUND_MAX
            && let Some((event, record)) = accounting.next_event()
        {
            count += 1;
            let what = match event {
                FlowEvent::Begun => What::Begun,
                // Those of other ports take no part of what may be sent.
                FlowEvent::Denied if !self.is_chosen(record.connection.zone) => continue,
                FlowEvent::Denied if !self.may_send_denied() => continue,
                FlowEvent::Denied => What::Denied,
                FlowEvent::Ended(FlowEnd::Idle) => What::Idle,
                FlowEvent::Ended(FlowEnd::Closed) => What::Closed,
                FlowEvent::Ended(FlowEnd::Forced) => What::Forced,
            };
            self.report(what, &record, now, target);
        }
        count
    }

    /// Whether connections of a zone's port are reported.
    fn is_chosen(&mut self, zone: u32) -> bool {
        let (port, _) = self.names.of(zone, self.dataplane);
        let ports = &self.options.ports;
        ports.iter().any(|pattern| matches(pattern, &port))
    }

    /// Whether another denied packet may be sent in this second. Each worker leaves as many as there may be of all.
    fn may_send_denied(&mut self) -> bool {
        let (since, sent) = &mut self.denied;
        if since.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            (*since, *sent) = (Some(Instant::now()), 0);
        }
        let has_room = *sent < self.options.denied;
        match has_room {
            true => *sent += 1,
            false => self.denied_unsent += 1,
        }
        has_room
    }

    /// Looks for connections that last: those of which nothing was reported for the active timeout, and that had packets.
    fn scan(&mut self, table: &Connections, budget: usize, target: &mut Target) {
        let now = self.now();
        let slots = u32::try_from(table.capacity()).unwrap_or(u32::MAX);
        let age = now.clock.cycles(self.options.active_timeout);
        let mut left = budget;
        for _ in 0..(slots / SCAN_PARTS + 1).min(SCAN_MAX) {
            if left == 0 {
                break;
            }
            let slot = self.next_slot % slots.max(1);
            self.next_slot = slot + 1;
            let Some(record) = table.flow_at(slot) else {
                continue;
            };
            if now.cycles.saturating_sub(record.began_at) < age {
                continue;
            }
            let before = self.reported.get(&slot);
            let before = before.filter(|before| before.began_at == record.began_at);
            let is_recent = before.is_some_and(|before| now.cycles.saturating_sub(before.at) < age);
            let base = before.map_or(record.base, |before| before.counts);
            if is_recent || record.counts.since(&base).is_zero() {
                continue;
            }
            left -= 1;
            self.report(What::Goes, &record, now, target);
        }
    }

    /// Adds a record to the message.
    fn report(&mut self, what: What, record: &FlowRecord, now: Now, target: &mut Target) {
        let counts = match what {
            What::Begun => Counts::default(),
            What::Denied => record.counts,
            _ => self.counts_since(what, record, now),
        };
        let of = &record.connection;
        if !self.is_chosen(of.zone) {
            return;
        }
        let (port, bridge) = self.names.of(of.zone, self.dataplane);
        let echo = ECHO_REQUESTS.iter().find(|(icmp, _)| *icmp == of.protocol);
        let (source, destination) = match echo {
            Some((_, request)) => ((of.source.0, 0), (of.destination.0, *request)),
            None => (of.source, of.destination),
        };
        let began_ms = now.ms_at(record.began_at);
        let made = Record {
            what,
            began_ms,
            ended_ms: now.ms_at(record.last_at).max(began_ms),
            source,
            destination,
            protocol: of.protocol,
            octets: counts.octets,
            packets: counts.packets.map(u64::from),
            is_from_guest: of.direction == Direction::Out,
            vlan: record.vlan,
            port: &port,
            bridge: &bridge,
        };
        if self.message.is_empty() {
            self.since = Instant::now();
        }
        if !self.message.add(&made) {
            self.flush(target);
            // A message without records has room for any.
            self.message.add(&made);
            self.since = Instant::now();
        }
        self.note(what);
    }

    /// What was counted since the last record, which this one takes the place of.
    fn counts_since(&mut self, what: What, record: &FlowRecord, now: Now) -> Counts {
        let before = self.reported.remove(&record.slot);
        let before = before.filter(|before| before.began_at == record.began_at);
        let base = before.map_or(record.base, |before| before.counts);
        if what == What::Goes {
            let reported = Reported {
                began_at: record.began_at,
                counts: record.counts,
                at: now.cycles,
            };
            self.reported.insert(record.slot, reported);
        }
        record.counts.since(&base)
    }

    fn note(&mut self, what: What) {
        let count = match what {
            What::Begun => &mut self.status.begun,
            What::Goes => &mut self.status.updated,
            What::Idle | What::Closed | What::Forced => &mut self.status.ended,
            What::Denied => &mut self.status.denied,
        };
        *count += 1;
    }

    /// Sends the templates, if it is time.
    fn send_templates(&mut self, target: &mut Target) {
        if Instant::now() < target.templates_at {
            return;
        }
        self.flush(target);
        self.message.add_templates();
        target.templates_at = Instant::now() + self.options.templates;
        if !self.flush(target) {
            target.templates_at = Instant::now() + TEMPLATES_RETRY;
        }
    }

    /// Sends the message. Returns `false` if it is lost.
    fn flush(&mut self, target: &mut Target) -> bool {
        if self.message.is_empty() {
            return true;
        }
        let time_s = u32::try_from(self.now().ms / 1000).unwrap_or(u32::MAX);
        let header = (time_s, target.records, self.options.domain);
        let records = self.message.finish(header, &mut self.datagram);
        // Lost records count, too: the collector sees that they are missing (RFC 7011, 3.1).
        target.records = target.records.wrapping_add(records);
        match target.collector.send(&self.datagram) {
            Ok(()) => self.status.messages += 1,
            Err(error) => {
                self.status.send_errors += 1;
                self.status.records_unsent += u64::from(records);
                self.status.last_error = Some(error.to_string());
                return false;
            }
        }
        true
    }

    /// Reports all connections as ended, as many as there is time for: nothing is counted any more.
    fn finish(&mut self, mut target: Target, within: Duration) {
        let table = self.dataplane.connection_table();
        let accounting = table.as_ref().and_then(|table| table.accounting());
        self.dataplane.set_accounting(None);
        if let (Some(table), Some(accounting)) = (&table, accounting) {
            let until = Instant::now() + within;
            while self.take_events(accounting, &mut target) == ROUND_MAX && Instant::now() < until {
                std::thread::sleep(SHORT_PAUSE);
            }
            self.end_all(table, until, &mut target);
        }
        self.flush(&mut target);
        self.reported.clear();
    }

    fn end_all(&mut self, table: &Arc<Connections>, until: Instant, target: &mut Target) {
        let (now, mut sent) = (self.now(), 0);
        let slots = 0..u32::try_from(table.capacity()).unwrap_or(u32::MAX);
        for record in slots.filter_map(|slot| table.flow_at(slot)) {
            if Instant::now() >= until {
                self.status.records_unsent += 1;
                continue;
            }
            self.report(What::Forced, &record, now, target);
            sent += 1;
            if sent % ROUND_MAX == 0 {
                std::thread::sleep(SHORT_PAUSE);
            }
        }
    }
}

impl thread::Exporter for Exporter<'_> {
    type Options = (SocketAddr, Ipfix);
    type Status = IpfixStatus;

    /// Changes the options. Records until now are sent as before.
    fn set(&mut self, options: Option<(SocketAddr, Ipfix)>, within: Duration) {
        let before = self.target.take();
        let Some((address, options)) = options else {
            before
                .into_iter()
                .for_each(|target| self.finish(target, within));
            self.status.collector = None;
            self.status.source = None;
            return;
        };
        let (from, domain) = (options.source, options.domain);
        let is_same = |target: &Target| {
            let of = (self.options.source, self.options.domain);
            target.collector.address() == address && of == (from, domain)
        };
        let target = match before {
            Some(target) if is_same(&target) => target,
            before => {
                if let Some(mut target) = before {
                    self.flush(&mut target);
                }
                Target {
                    collector: Collector::new(address, from),
                    templates_at: Instant::now(),
                    records: 0,
                }
            }
        };
        self.target = Some(target);
        self.dataplane.set_accounting(Some(AccountingOptions {
            begins: options.begins,
            denied_per_s: options.denied,
            hz: self.dataplane.clock().hz(),
        }));
        self.options = options;
        self.status_at = None;
        self.note_status();
    }

    fn is_idle(&self) -> bool {
        self.target.is_none()
    }

    fn round(&mut self) -> bool {
        let Some(mut target) = self.target.take() else {
            return false;
        };
        self.names.refresh(self.dataplane);
        self.send_templates(&mut target);
        let mut events = 0;
        if let Some(table) = self.dataplane.connection_table()
            && let Some(accounting) = table.accounting()
        {
            events = self.take_events(accounting, &mut target);
            self.scan(&table, ROUND_MAX - events, &mut target);
        }
        if !self.message.is_empty() && self.since.elapsed() >= WAIT {
            self.flush(&mut target);
        }
        self.target = Some(target);
        events == ROUND_MAX
    }

    fn note_status(&mut self) -> bool {
        let Some(target) = &mut self.target else {
            return false;
        };
        if self.status_at.is_some_and(|at| at.elapsed() < STATUS_AGE) {
            return false;
        }
        self.status_at = Some(Instant::now());
        let (options, status) = (&self.options, &mut self.status);
        status.collector = Some(target.collector.address().to_string());
        let source = target.collector.source();
        status.source = source.map(|address| address.to_string());
        status.domain = options.domain;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        status.active_timeout_ms = ms(options.active_timeout);
        status.templates_ms = ms(options.templates);
        let table = self.dataplane.connection_table();
        if let Some(accounting) = table.as_ref().and_then(|table| table.accounting()) {
            status.bytes = accounting.bytes();
            status.records_missed = accounting.events_lost();
            status.denied_unsent = accounting.denied_unsent() + self.denied_unsent;
        }
        true
    }

    fn status(&self) -> IpfixStatus {
        self.status.clone()
    }
}
