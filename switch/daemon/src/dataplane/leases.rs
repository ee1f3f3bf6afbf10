//! The addresses that guests have leased by DHCP, as snooping has heard it.
//!
//! A lease counts for the port whose `addresses.mac` has the client's MAC address: a guest cannot make the switch believe that
//! another's lease is its own. Guests may not answer as servers unless `dhcp_server` allows it, so what servers say is believed.

mod message;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_engine::bridge::leases::{DhcpMessage, DhcpMessages, Leases as View};
use crosspoint_engine::bridge::multicast::Place;
use crosspoint_engine::snapshot::{PortSnapshot, Snapshot};
use crosspoint_model::status::LeaseStatus;
use crosspoint_packet::Mac;
use message::Change;

use super::{Dataplane, State};

/// Shortest time between two publications to the workers, and between two looks for leases that have ended.
const PUBLISH: Duration = Duration::from_secs(1);
/// Most leases of a guest, and of the switch.
const LEASES_OF_PORT_MAX: usize = 256;
const LEASES_MAX: usize = 65_536;
/// The longest lease that is believed; an endless one is renewed in this time.
const LEASE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A leased address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    port: u16,
    mac: Mac,
    until: Instant,
}

/// What snooping knows.
#[derive(Default)]
pub(super) struct Leases {
    messages: Option<Arc<DhcpMessages>>,
    leases: BTreeMap<(Place, IpAddr), Lease>,
    /// How many each port has.
    counts: HashMap<u16, usize>,
    has_changed: bool,
    /// When leases that have ended were looked for.
    looked_at: Option<Instant>,
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
        for change in message::read(message) {
            match change {
                Change::Leased { address, mac, time } => {
                    if let Some(port) = owner(view, message.place, mac) {
                        let until = now + time.min(LEASE_MAX);
                        let lease = Lease { port, mac, until };
                        self.put((message.place, address), lease);
                    }
                }
                Change::Ended { address } => {
                    let key = (message.place, address);
                    let is_its = |lease: &Lease| message.is_of_server || lease.port == message.port;
                    if self.leases.get(&key).is_some_and(is_its) {
                        self.remove(&key);
                    }
                }
            }
        }
    }

    fn put(&mut self, key: (Place, IpAddr), lease: Lease) {
        if let Some(known) = self
            .leases
            .get_mut(&key)
            .filter(|known| known.port == lease.port)
        {
            *known = lease;
            return;
        }
        let count = self.counts.get(&lease.port).copied().unwrap_or(0);
        if count >= LEASES_OF_PORT_MAX || self.leases.len() >= LEASES_MAX {
            return;
        }
        self.remove(&key);
        *self.counts.entry(lease.port).or_default() += 1;
        self.leases.insert(key, lease);
        self.has_changed = true;
    }

    fn remove(&mut self, key: &(Place, IpAddr)) {
        let Some(lease) = self.leases.remove(key) else {
            return;
        };
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

    /// Forgets the leases of a port, also for workers: its number may soon be another's.
    pub(super) fn forget_port(&mut self, number: u16) {
        self.retain(|_, lease| lease.port != number);
        self.compile();
    }

    /// Forgets the leases in a bridge.
    pub(super) fn forget_bridge(&mut self, number: u8) {
        self.retain(|(bridge, _), _| bridge != number);
        self.compile();
    }

    fn compile(&mut self) {
        if std::mem::take(&mut self.has_changed) {
            let ports = self.leases.iter().map(|(key, lease)| (*key, lease.port));
            self.published = Arc::new(ports.collect());
        }
    }

    /// The leases of each port.
    pub(super) fn of_ports(&self, now: Instant) -> HashMap<u16, Vec<LeaseStatus>> {
        let mut all: HashMap<u16, Vec<LeaseStatus>> = HashMap::new();
        for (((_, vlan), address), lease) in &self.leases {
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
    let has_mac = sources.is_some_and(|sources| sources.addresses().contains(&mac));
    has_mac && port.bridge == bridge && port.vlan.carries(vlan)
}

/// The port to which a station's address is bound.
fn owner(view: &Snapshot, place: Place, mac: Mac) -> Option<u16> {
    let numbered = (0u16..).zip(&view.ports);
    let is_owner =
        |port: &Option<PortSnapshot>| port.as_ref().is_some_and(|port| is_at(port, place, mac));
    let mut owners = numbered.filter(|(_, port)| is_owner(port));
    let (owner, other) = (owners.next()?, owners.next());
    other.is_none().then_some(owner.0)
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
        leases.retain(|place, lease| {
            let port = view.port(lease.port);
            lease.until > now && port.is_some_and(|port| is_at(port, place, lease.mac))
        });
        if leases.has_changed {
            leases.compile();
            drop(self.publish(state, Vec::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (0, 7);

    fn lease(port: u16, now: Instant) -> Lease {
        Lease {
            port,
            mac: Mac::new([2, 0, 0, 0, 0, port as u8]),
            until: now + Duration::from_secs(60),
        }
    }

    fn key(number: u32) -> (Place, IpAddr) {
        (PLACE, IpAddr::from((0x0a00_0000 + number).to_be_bytes()))
    }

    #[test]
    fn an_address_has_one_port_and_a_port_a_limit() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        for number in 0..300 {
            leases.put(key(number), lease(1, now));
        }
        assert_eq!(leases.leases.len(), LEASES_OF_PORT_MAX);
        // The server gives it to another guest, and so there is room again.
        leases.put(key(0), lease(2, now));
        leases.put(key(299), lease(1, now));
        leases.compile();
        assert_eq!(leases.published.get(&key(0)), Some(&2));
        assert_eq!(leases.published.get(&key(299)), Some(&1));
        assert_eq!(leases.published.get(&key(298)), None);
        // To workers too, at once: another port may get the number.
        leases.forget_port(1);
        assert_eq!((leases.published.len(), leases.counts[&1]), (1, 0));
        leases.forget_bridge(PLACE.0);
        assert!(leases.published.is_empty() && leases.leases.is_empty());
    }
}
