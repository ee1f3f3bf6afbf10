//! The addresses that guests have leased by DHCP, as snooping has heard it.
//!
//! What a server says is believed only as the answer to what a guest has asked just before: it has the number of that request, and
//! the MAC address of its client, which is in the `addresses.mac` of the port that asked. And it must be sent to all stations, to
//! the leased address or, by DHCPv6, to a link-local address: a packet that a router has brought from elsewhere is none of these.
//! An address that a server gives to a second guest before the lease of the first has ended is no guest's until it has: servers
//! know clients by identifiers that others can copy.
//!
//! Whatever is in doubt is forgotten: requests for the address are then flooded.

mod message;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_engine::bridge::leases::{DhcpMessage, DhcpMessages, Leases as View};
use crosspoint_engine::bridge::multicast::Place;
use crosspoint_engine::snapshot::{PortSnapshot, Snapshot};
use crosspoint_model::status::LeaseStatus;
use crosspoint_packet::Mac;
use message::Said;

use super::{Dataplane, State};

/// Shortest time between two publications to the workers, and between two looks for leases that have ended.
const PUBLISH: Duration = Duration::from_secs(1);
/// Most leases of a guest, and of the switch.
const LEASES_OF_PORT_MAX: usize = 256;
const LEASES_MAX: usize = 65_536;
/// How long a lease is believed that is not renewed.
const LEASE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a request waits for its answer, and most that wait: of a guest, and of the switch.
const REQUEST_TIME: Duration = Duration::from_secs(30);
const REQUESTS_OF_PORT_MAX: usize = 32;
const REQUESTS_MAX: usize = 16_384;
/// Shortest time between two lines of the log about messages that were not read.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// A leased address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    port: u16,
    mac: Mac,
    until: Instant,
    /// Whether another guest has got it too.
    is_disputed: bool,
}

/// A request: where it was made, its number, and its client.
type Request = (Place, u32, Mac);

/// What snooping knows.
#[derive(Default)]
pub(super) struct Leases {
    messages: Option<Arc<DhcpMessages>>,
    leases: BTreeMap<(Place, IpAddr), Lease>,
    /// The addresses of each station: what a message changes is found without a look at all leases.
    stations: BTreeSet<(Place, Mac, IpAddr)>,
    /// How many each port has.
    counts: HashMap<u16, usize>,
    /// Requests without an answer: the port, and until when they wait.
    requests: HashMap<Request, (u16, Instant)>,
    /// How many each port has.
    request_counts: HashMap<u16, usize>,
    has_changed: bool,
    /// When leases that have ended were looked for.
    looked_at: Option<Instant>,
    /// When the log had a line about messages that were not read, and their number.
    logged: Option<(Instant, u64)>,
    published: Arc<HashMap<(Place, IpAddr), u16>>,
}

impl Leases {
    /// What workers need: nothing if snooping is off.
    pub(super) fn view(&self) -> Option<View> {
        Some(View {
            messages: self.messages.clone()?,
            ports: self.published.clone(),
        })
    }

    /// Takes a message.
    fn note(&mut self, message: &DhcpMessage, view: &Snapshot, now: Instant) {
        let place = message.place;
        for said in message::read(message) {
            match said {
                Said::Asked { number, mac } => {
                    let port = view.port(message.port);
                    if port.is_some_and(|port| is_at(port, place, mac)) {
                        self.ask((place, number, mac), message.port, now);
                    }
                }
                Said::Leased {
                    number,
                    address,
                    mac,
                    time,
                } => {
                    let asked = self.requests.get(&(place, number, mac)).copied();
                    match asked.filter(|(_, until)| *until > now) {
                        Some((port, _)) => {
                            let until = now + time.min(LEASE_MAX);
                            let lease = Lease {
                                port,
                                mac,
                                until,
                                is_disputed: false,
                            };
                            self.lease((place, address), lease, now);
                        }
                        // It is a station's behind an uplink now, or a repeated answer.
                        None => self.remove_unless(&(place, address), mac),
                    }
                }
                Said::Refused { mac } => self.remove_v4_of(place, mac, None),
                Said::Ended { address } => {
                    let key = (place, address);
                    let is_its = |lease: &Lease| message.is_of_server || lease.port == message.port;
                    if self.leases.get(&key).is_some_and(is_its) {
                        self.remove(&key);
                    }
                }
            }
        }
    }

    fn ask(&mut self, request: Request, port: u16, now: Instant) {
        let of_port = self.request_counts.get(&port).copied().unwrap_or(0);
        let has_room = self.requests.len() < REQUESTS_MAX && of_port < REQUESTS_OF_PORT_MAX;
        if !has_room && !self.requests.contains_key(&request) {
            return;
        }
        let before = self.requests.insert(request, (port, now + REQUEST_TIME));
        *self.request_counts.entry(port).or_default() += 1;
        if let Some((before, _)) = before {
            self.note_request_gone(before);
        }
    }

    fn note_request_gone(&mut self, port: u16) {
        if let Some(count) = self.request_counts.get_mut(&port) {
            *count = count.saturating_sub(1);
        }
    }

    /// Forgets the requests that `stays` does not name.
    fn retain_requests(&mut self, stays: impl Fn(&Request, &(u16, Instant)) -> bool) {
        self.requests.retain(|request, of| stays(request, of));
        self.request_counts.clear();
        for (port, _) in self.requests.values() {
            *self.request_counts.entry(*port).or_default() += 1;
        }
    }

    /// Forgets the IPv4 addresses of a station, but for one.
    fn remove_v4_of(&mut self, place: Place, mac: Mac, except: Option<IpAddr>) {
        let first = IpAddr::from([0; 4]);
        let own = self.stations.range((place, mac, first)..);
        let own = own.take_while(|(at, of, _)| (*at, *of) == (place, mac));
        let own = own.map(|(_, _, address)| *address);
        let gone = own.filter(|address| address.is_ipv4() && Some(*address) != except);
        let gone: Vec<IpAddr> = gone.collect();
        gone.iter()
            .for_each(|address| self.remove(&(place, *address)));
    }

    /// Takes an answer to a request.
    fn lease(&mut self, key: (Place, IpAddr), lease: Lease, now: Instant) {
        let (place, address) = key;
        if address.is_ipv4() {
            // The client has one address there.
            self.remove_v4_of(place, lease.mac, Some(address));
        }
        if let Some(known) = self.leases.get_mut(&key).filter(|known| known.until > now) {
            if known.port == lease.port && known.mac == lease.mac && !known.is_disputed {
                *known = lease;
                return;
            }
            known.until = known.until.max(lease.until);
            self.has_changed |= !std::mem::replace(&mut known.is_disputed, true);
            return;
        }
        self.remove(&key);
        let count = self.counts.get(&lease.port).copied().unwrap_or(0);
        if count < LEASES_OF_PORT_MAX && self.leases.len() < LEASES_MAX {
            *self.counts.entry(lease.port).or_default() += 1;
            self.leases.insert(key, lease);
            self.stations.insert((place, lease.mac, address));
            self.has_changed = true;
        }
    }

    /// Forgets a lease of another station than this.
    fn remove_unless(&mut self, key: &(Place, IpAddr), mac: Mac) {
        if self.leases.get(key).is_some_and(|lease| lease.mac != mac) {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &(Place, IpAddr)) {
        let Some(lease) = self.leases.remove(key) else {
            return;
        };
        self.stations.remove(&(key.0, lease.mac, key.1));
        if let Some(count) = self.counts.get_mut(&lease.port) {
            *count = count.saturating_sub(1);
        }
        self.has_changed = true;
    }

    /// Forgets the leases that `stays` does not name.
    fn retain(&mut self, stays: impl Fn(Place, &Lease) -> bool) {
        let gone = self.leases.iter();
        let gone = gone.filter(|((place, _), lease)| !stays(*place, lease));
        let gone: Vec<(Place, IpAddr)> = gone.map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// Forgets what has ended, and what the ports of now do not allow.
    fn expire(&mut self, view: &Snapshot, now: Instant) {
        self.retain_requests(|_, (_, until)| *until > now);
        self.retain(|place, lease| {
            let port = view.port(lease.port);
            let is_there =
                |port: &PortSnapshot| port.is_attached() && is_at(port, place, lease.mac);
            lease.until > now && port.is_some_and(is_there)
        });
    }

    /// Forgets the leases of a port, also for workers: its number may soon be another's.
    pub(super) fn forget_port(&mut self, number: u16) {
        self.retain_requests(|_, (port, _)| *port != number);
        self.retain(|_, lease| lease.port != number);
        self.compile();
    }

    /// Forgets the leases in a bridge.
    pub(super) fn forget_bridge(&mut self, number: u8) {
        self.requests
            .retain(|((bridge, _), _, _), _| *bridge != number);
        self.retain(|(bridge, _), _| bridge != number);
        self.compile();
    }

    fn compile(&mut self) {
        if std::mem::take(&mut self.has_changed) {
            let leases = self.leases.iter();
            let ports = leases.filter(|(_, lease)| !lease.is_disputed);
            let ports = ports.map(|(key, lease)| (*key, lease.port));
            self.published = Arc::new(ports.collect());
        }
    }

    /// Says in the log that messages were not read.
    fn report_missed(&mut self, missed: u64, now: Instant) {
        let is_due = |(at, known): &(Instant, u64)| {
            missed > *known && now.saturating_duration_since(*at) >= LOG_AGAIN
        };
        if missed > 0 && self.logged.as_ref().is_none_or(is_due) {
            tracing::warn!(
                "{missed} messages of DHCP were not read since the switch noted leases: more came than it reads"
            );
            self.logged = Some((now, missed));
        }
    }

    /// The leases of each port.
    pub(super) fn of_ports(&self, now: Instant) -> HashMap<u16, Vec<LeaseStatus>> {
        let mut all: HashMap<u16, Vec<LeaseStatus>> = HashMap::new();
        let leases = self.leases.iter();
        for (((_, vlan), address), lease) in leases.filter(|(_, lease)| !lease.is_disputed) {
            all.entry(lease.port).or_default().push(LeaseStatus {
                address: address.to_string(),
                mac: lease.mac.to_string(),
                vlan: *vlan,
                left_s: lease.until.saturating_duration_since(now).as_secs(),
            });
        }
        all
    }
}

/// Whether a station with this address may be behind the port, by its `addresses`, and in this place.
fn is_at(port: &PortSnapshot, (bridge, vlan): Place, mac: Mac) -> bool {
    let sources = port.sources.as_ref();
    let has_mac = sources.is_some_and(|sources| sources.addresses().binary_search(&mac).is_ok());
    has_mac && port.bridge == bridge && port.vlan.carries(vlan)
}

impl Dataplane {
    /// Sets whether leases are looked for. They are forgotten when that ends.
    pub fn set_dhcp_snooping(&self, snoops: bool) {
        let mut state = self.lock();
        if snoops == state.leases.messages.is_some() {
            return;
        }
        state.leases = Leases {
            messages: snoops.then(Arc::default),
            ..Leases::default()
        };
        drop(self.publish(&mut state, Vec::new()));
    }

    /// Takes what workers have heard, and publishes the leases if they have changed. Called about ten times a second.
    pub(super) fn note_leases(&self, state: &mut State, now: Instant) {
        let State { leases, view, .. } = &mut *state;
        let Some(messages) = leases.messages.clone() else {
            return;
        };
        for message in messages.take() {
            leases.note(&message, view, now);
        }
        // A guest that leases and releases all the time makes the switch do this no oftener.
        let is_due = |at: Instant| now.saturating_duration_since(at) >= PUBLISH;
        if !leases.looked_at.is_none_or(is_due) {
            return;
        }
        leases.looked_at = Some(now);
        leases.expire(view, now);
        leases.report_missed(messages.missed(), now);
        if leases.has_changed {
            leases.compile();
            drop(self.publish(state, Vec::new()));
        }
    }
}

#[cfg(test)]
mod tests;
