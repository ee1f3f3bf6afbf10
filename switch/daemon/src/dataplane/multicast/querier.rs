//! The switch as the querier of multicast groups, where there is no multicast router.
//!
//! A port is asked when it comes up, and every 125 s. Where another querier is heard that has an address, the switch is silent
//! (RFC 3376, 6.6.2; RFC 4541, 2.1.1): for IGMP it asks from 0.0.0.0, and for MLD the lower address wins.
//!
//! Until stations have had time to answer, multicast is flooded there.
//!
//! Behind an uplink, members may answer the querier of another host. So uplinks get all multicast of a place that the switch
//! itself asks in, as ports with routers do.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crosspoint_engine::bridge::multicast::{Family, Place};
use crosspoint_engine::bridge::vlan::{NO_VLAN, VlanPolicy};
use crosspoint_engine::snapshot::{Egress, PortSnapshot, Snapshot};
use crosspoint_engine::worker::Injected;
use crosspoint_packet::Mac;

use super::super::{Dataplane, State};
use super::{Snooping, query};

/// Time between two queries for all groups (RFC 3376, 8.2).
const INTERVAL: Duration = Duration::from_secs(125);
/// Time between the two queries for a group that a station has left (RFC 3376, 8.8 and 8.9).
const AGAIN: Duration = Duration::from_secs(1);
/// Queries sent in one call, of which there are ten a second. Others wait.
const QUERIES_PER_LOOK: usize = 64;
/// Most queries that wait. Further ones for a single group are not made: its members report again when all are asked.
const WAITING_MAX: usize = 8192;
/// How long all multicast of a place is still flooded once it is asked in: an answer takes 10 s at most.
const SETTLE: Duration = Duration::from_secs(11);
/// Most VLANs of one trunk that are asked in; the lowest ones.
const VLANS_MAX: usize = 64;
const VLAN_ID_MAX: u16 = 4094;

/// A query that is to be sent out of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Query {
    port: u16,
    place: Place,
    /// The group; unspecified for all.
    group: IpAddr,
}

/// What the switch asks, and where.
#[derive(Default)]
pub(super) struct Querier {
    /// Where there are ports to ask, and since when.
    places: BTreeMap<(Place, Family), Instant>,
    /// Where the switch is the querier, and stations have had time to answer.
    ready: BTreeSet<(Place, Family)>,
    /// The ports that are uplinks.
    uplinks: BTreeSet<u16>,
    /// The ports that have been up since they were asked.
    asked: HashSet<u16>,
    /// When all are asked again.
    next: Option<Instant>,
    due: VecDeque<Query>,
    /// Second queries for groups, and when they are due.
    later: VecDeque<(Instant, Query)>,
}

fn all_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The VLANs of its own bridge in which a port is asked.
fn vlans(policy: &VlanPolicy) -> Vec<u16> {
    match policy {
        VlanPolicy::Unaware | VlanPolicy::Untagged => vec![NO_VLAN],
        VlanPolicy::Access(vlan) => vec![*vlan],
        VlanPolicy::Trunk { .. } => {
            let carried = (1..=VLAN_ID_MAX).filter(|vlan| policy.carries(*vlan));
            carried.take(VLANS_MAX).collect()
        }
    }
}

fn is_attached(port: &PortSnapshot) -> bool {
    matches!(port.egress, Egress::Guest(_) | Egress::Nic) && !port.is_blocked()
}

/// The ports of a snapshot with their numbers.
fn numbered(view: &Snapshot) -> impl Iterator<Item = (u16, &PortSnapshot)> {
    let ports = (0..).zip(&view.ports);
    ports.filter_map(|(number, port)| Some((number, port.as_ref()?)))
}

/// Those that are up.
fn attached(view: &Snapshot) -> impl Iterator<Item = (u16, &PortSnapshot)> {
    numbered(view).filter(|(_, port)| is_attached(port))
}

impl Querier {
    /// Adds what is due now. Returns whether what workers need to know has changed.
    fn look(
        &mut self,
        view: &Snapshot,
        now: Instant,
        is_silent: impl Fn(Place, Family) -> bool,
    ) -> bool {
        let is_round = self.next.is_none_or(|next| now >= next);
        if is_round {
            self.next = Some(now + INTERVAL);
            self.due.clear();
        }
        let mut places = BTreeMap::new();
        let mut asked = HashSet::new();
        for (number, port) in attached(view) {
            asked.insert(number);
            let is_new = !self.asked.contains(&number);
            for vlan in vlans(&port.vlan) {
                let place = (port.bridge, vlan);
                for family in [Family::V4, Family::V6] {
                    let since = self.places.get(&(place, family)).copied();
                    places.insert((place, family), since.unwrap_or(now));
                    if (is_round || is_new) && !is_silent(place, family) {
                        self.due.push_back(Query {
                            port: number,
                            place,
                            group: all_of(family),
                        });
                    }
                }
            }
        }
        (self.places, self.asked) = (places, asked);
        let later = self.later.iter().take_while(|(at, _)| *at <= now).count();
        self.due
            .extend(self.later.drain(..later).map(|(_, query)| query));
        let has_answers = |since: Instant| now.saturating_duration_since(since) >= SETTLE;
        let ready = self
            .places
            .iter()
            .filter(|((place, family), since)| has_answers(**since) && !is_silent(*place, *family));
        let ready = ready.map(|(key, _)| *key).collect();
        let uplinks = numbered(view).filter(|(_, port)| port.is_uplink);
        let uplinks = uplinks.map(|(number, _)| number).collect();
        std::mem::replace(&mut self.ready, ready) != self.ready
            || std::mem::replace(&mut self.uplinks, uplinks) != self.uplinks
    }

    /// Has a port asked at once, as one that comes up.
    pub(super) fn ask_again(&mut self, port: u16) {
        self.asked.remove(&port);
    }

    /// Asks for a group that a station behind the port has left: now, and a second later.
    fn ask_for(&mut self, port: u16, (place, group): (Place, IpAddr), now: Instant) {
        if self.due.len() + self.later.len() < WAITING_MAX {
            let query = Query { port, place, group };
            self.due.push_back(query);
            self.later.push_back((now + AGAIN, query));
        }
    }
}

impl Snooping {
    /// Whether the switch is the querier of a place, and has answers.
    pub(super) fn asks_in(&self, place: Place, family: Family) -> bool {
        self.querier.ready.contains(&(place, family))
    }

    /// The places of which the switch is the querier, and has answers.
    pub(super) fn own_places(&self) -> impl Iterator<Item = (Place, Family)> + '_ {
        self.querier.ready.iter().copied()
    }

    /// Notes a station that has left a group: whether others behind the port are still members is asked.
    pub(super) fn note_left(&mut self, port: u16, group: (Place, IpAddr), now: Instant) {
        if self.asks_in(group.0, Family::of(group.1)) {
            self.querier.ask_for(port, group, now);
        }
    }

    /// Whether another querier is heeded: it has an address, and for MLD one that is lower than the switch's own
    /// (RFC 3810, 7.6.2), `own`.
    pub(super) fn yields_to(&self, from: IpAddr, own: Ipv6Addr) -> bool {
        match from {
            _ if !self.settings.querier => true,
            IpAddr::V4(from) => !from.is_unspecified(),
            IpAddr::V6(from) => from < own,
        }
    }
}

impl Dataplane {
    /// The address that queries which leave through a port come from.
    pub(super) fn query_source(&self, port: u16) -> Mac {
        self.probes.source(port)
    }

    /// Sends the queries that are due. Returns whether the places in which the switch asks have changed.
    pub(super) fn ask(&self, state: &mut State, now: Instant) -> bool {
        if !state.snooping.settings.querier {
            let querier = std::mem::take(&mut state.snooping.querier);
            return !querier.ready.is_empty();
        }
        let view = state.view.clone();
        let mut querier = std::mem::take(&mut state.snooping.querier);
        let snooping = &state.snooping;
        let is_silent = |place, family| snooping.queriers.contains_key(&(place, family));
        let has_changed = querier.look(&view, now, is_silent);
        let count = querier.due.len().min(QUERIES_PER_LOOK);
        let due: Vec<Query> = querier.due.drain(..count).collect();
        state.snooping.querier = querier;
        let mut workers = BTreeSet::new();
        for query in due {
            self.send_query(state, query, &mut workers);
        }
        self.nudge(state, workers);
        has_changed
    }

    /// Gives a query to the worker of its port. It is lost if too many wait there.
    fn send_query(&self, state: &State, query: Query, workers: &mut BTreeSet<usize>) {
        let port = state.ports.get(usize::from(query.port));
        let Some(port) = port.and_then(Option::as_ref) else {
            return;
        };
        let (bridge, vlan) = query.place;
        let is_there = port.view.bridge == bridge && port.view.vlan.carries(vlan);
        let worker = port
            .streams
            .values()
            .next()
            .map_or(0, |placed| placed.worker);
        // The change would have to wait for a stalled worker.
        if !is_there || self.watch.stalls(worker).0 {
            return;
        }
        // Behind a guest's port is one station, which need not wait for others' answers.
        let has_many = port.view.is_uplink && query.group.is_unspecified();
        let answers = match has_many {
            true => query::ANSWERS_OF_MANY,
            false => query::ANSWERS_OF_ONE,
        };
        let frame = query::frame(self.query_source(query.port), query.group, answers);
        let injected = Injected::new(query.port, Some(vlan), &frame);
        if let Some(link) = self.links.get(worker)
            && link.injected.push(injected).is_ok()
        {
            workers.insert(worker);
        }
    }
}

/// The ports that get all multicast of a bridge where the switch asks: its uplinks.
pub(super) fn uplinks(view: &Snapshot, bridge: u8) -> impl Iterator<Item = u16> + '_ {
    let all = numbered(view).filter(move |(_, port)| port.is_uplink && port.is_in(bridge));
    all.map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_querier_with_an_address_is_heeded_and_a_stand_in_is_not() {
        let mut snooping = Snooping::default();
        let own: Ipv6Addr = "fe80::20:1".parse().unwrap();
        let heeds =
            |snooping: &Snooping, from: &str| snooping.yields_to(from.parse().unwrap(), own);
        // Without an own querier, any counts.
        assert!(heeds(&snooping, "0.0.0.0") && heeds(&snooping, "fe80::20:2"));
        snooping.settings.querier = true;
        assert!(!heeds(&snooping, "0.0.0.0") && heeds(&snooping, "192.0.2.1"));
        // Of two with link-local addresses, the lower one asks.
        assert!(!heeds(&snooping, "fe80::20:2") && heeds(&snooping, "fe80::20:0"));
    }
}
