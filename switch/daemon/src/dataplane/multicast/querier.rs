//! The switch as the querier of multicast groups, where there is no multicast router.
//!
//! A port is asked when it comes up, once more half a minute later, and every 125 s. Where another querier is heard that has an
//! address, the switch is other_queriers (RFC 3376, 6.6.2; RFC 4541, 2.1.1): for IGMP it asks from 0.0.0.0, and for MLD the lower address
//! wins. Until stations have had time to answer, multicast is flooded.
//!
//! Some ports get all multicast of a place where the switch is the querier, as ports with routers do: uplinks, since members behind
//! them answer the querier of another host, and ports that carry the VLAN and are not asked in it.

mod queries;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::limits::VLAN_ID_MAX;
use crosspoint_engine::bridge::multicast::{Family, Place};
use crosspoint_engine::bridge::several::BridgeTags;
use crosspoint_engine::bridge::vlan::{NO_VLAN, VlanPolicy};
use crosspoint_engine::snapshot::{PortSnapshot, Snapshot};
use crosspoint_engine::worker::Injected;
use crosspoint_packet::Mac;

use super::super::{Dataplane, State};
use super::{Snooping, query};
use queries::{Key, Later, Query, Waiting};

/// Time from a port's first query to its second one (RFC 3376, 8.6).
const STARTUP_QUERY_INTERVAL: Duration = Duration::from_secs(31);
/// Time between the two queries for a group that a station has left (RFC 3376, 8.8 and 8.9).
const LAST_MEMBER_QUERY_INTERVAL: Duration = Duration::from_secs(1);
/// How long all multicast of a place is still flooded after its ports were asked first: an answer takes 10 s at most.
const SETTLE: Duration = query::QUERY_RESPONSE_INTERVAL.saturating_add(Duration::from_secs(1));
/// Queries sent in one call, of which there are ten a second. Others wait.
const QUERIES_PER_LOOK: usize = 64;
/// Of these, the most for single groups: a port that comes up does not wait for those that leave.
const OF_GROUPS_PER_LOOK: usize = 48;
/// Most groups of one port that are asked for at a time. A member of a further one is lost until it reports again.
const GROUPS_OF_PORT_MAX: usize = 16;
/// Most VLANs of one trunk that are asked in; the lowest ones.
const VLANS_MAX: usize = 64;

/// What of a port decides where it is asked, and what it gets.
#[derive(Clone)]
struct PortState {
    number: u16,
    bridge: u8,
    is_uplink: bool,
    is_attached: bool,
    vlan: Arc<VlanPolicy>,
    tags: Option<Arc<BridgeTags>>,
}

impl PortState {
    fn is_same(&self, other: &PortState) -> bool {
        let of = |seen: &PortState| (seen.number, seen.bridge, seen.is_uplink, seen.is_attached);
        let has_same_tags = match (&self.tags, &other.tags) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        of(self) == of(other) && Arc::ptr_eq(&self.vlan, &other.vlan) && has_same_tags
    }
}

/// What the switch asks, and where.
#[derive(Default)]
pub(super) struct Querier {
    /// The number of the snapshot that was looked at last, and its ports.
    snapshot: Option<u64>,
    ports: Vec<PortState>,
    /// By port that is up: the bridge and the VLANs that it is asked in.
    asked: BTreeMap<u16, (u8, Vec<u16>)>,
    /// Where another querier asks.
    other_queriers: BTreeSet<Key>,
    /// Where the switch asks, and when all ports there had been asked first; `None` while a first query waits.
    places: BTreeMap<Key, Option<Instant>>,
    /// Where the switch is the querier, and stations have had time to answer.
    ready: BTreeSet<Key>,
    /// When all are asked again.
    next: Option<Instant>,
    /// Queries for all groups, and for single ones.
    all: Waiting,
    groups: Waiting,
    /// Second queries of both kinds.
    later_all: Later,
    later_groups: Later,
    /// The single groups that are asked for, and whether the second query is still to come.
    asking: HashMap<Query, bool>,
    /// How many of these each port has.
    counts: HashMap<u16, usize>,
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

/// The ports of a snapshot with their numbers.
fn numbered(view: &Snapshot) -> impl Iterator<Item = (u16, &PortSnapshot)> {
    let ports = (0..).zip(&view.ports);
    ports.filter_map(|(number, port)| Some((number, port.as_ref()?)))
}

impl Querier {
    /// Adds what is due now. Returns whether workers need to know of a change. `other_queriers`: where another querier asks.
    fn look(
        &mut self,
        (number, view): (u64, &Snapshot),
        now: Instant,
        other_queriers: BTreeSet<Key>,
    ) -> bool {
        let (mut new, mut has_changed) = (BTreeSet::new(), false);
        if self.snapshot.replace(number) != Some(number) {
            has_changed = self.update_ports(view, &mut new);
        }
        let is_round = self.next.is_none_or(|next| now >= next);
        if is_round {
            self.next = Some(now + query::QUERY_INTERVAL);
        }
        let is_other =
            std::mem::replace(&mut self.other_queriers, other_queriers) != self.other_queriers;
        if is_other || has_changed || is_round {
            self.update_places(&new, is_round, now);
        }
        for query in self.later_all.take(now) {
            self.all.push(query);
        }
        for query in self.later_groups.take(now) {
            self.asking.insert(query, false);
            self.groups.push(query);
        }
        self.find_ready(now) || has_changed || is_other
    }

    /// Finds the places of which the switch is the querier now. Returns whether they are others than before.
    fn find_ready(&mut self, now: Instant) -> bool {
        let is_known = |key: &Key| self.places.contains_key(key);
        if self.ready.len() == self.places.len() && self.ready.iter().all(is_known) {
            return false;
        }
        let has_answers =
            |since: &Option<Instant>| since.is_some_and(|since| now >= since + SETTLE);
        let ready = self.places.iter().filter(|(_, since)| has_answers(since));
        let ready = ready.map(|(key, _)| *key).collect();
        std::mem::replace(&mut self.ready, ready) != self.ready
    }

    /// Takes the ports of a new snapshot. Adds those to `new` that have come up, or are in other VLANs. Returns whether any is
    /// not as before.
    fn update_ports(&mut self, view: &Snapshot, new: &mut BTreeSet<u16>) -> bool {
        let seen = numbered(view).map(|(number, port)| PortState {
            number,
            bridge: port.bridge,
            is_uplink: port.is_uplink,
            is_attached: port.is_attached(),
            vlan: port.vlan.clone(),
            tags: port.tags.clone(),
        });
        let seen: Vec<PortState> = seen.collect();
        let mut pairs = seen.iter().zip(&self.ports);
        if seen.len() == self.ports.len() && pairs.all(|(a, b)| a.is_same(b)) {
            return false;
        }
        let attached = seen.iter().filter(|port| port.is_attached);
        let asked: BTreeMap<_, _> = attached
            .map(|port| (port.number, (port.bridge, vlans(&port.vlan))))
            .collect();
        let is_other = |(number, at): &(&u16, &(u8, Vec<u16>))| self.asked.get(number) != Some(*at);
        new.extend(asked.iter().filter(is_other).map(|(number, _)| *number));
        (self.asked, self.ports) = (asked, seen);
        true
    }

    /// Finds the places to ask in, and asks the new ports there, all ports of a place that is new or was another querier's, and
    /// in a round all ports.
    fn update_places(&mut self, new: &BTreeSet<u16>, is_round: bool, now: Instant) {
        let mut places = BTreeMap::new();
        for (port, (bridge, vlans)) in &self.asked {
            for place in vlans.iter().map(|vlan| (*bridge, *vlan)) {
                for family in [Family::V4, Family::V6] {
                    let key = (place, family);
                    if self.other_queriers.contains(&key) {
                        continue;
                    }
                    let since = self.places.get(&key).copied();
                    places.insert(key, since.flatten());
                    let is_new = since.is_none() || new.contains(port);
                    if is_new || is_round {
                        let (port, group) = (*port, all_of(family));
                        let query = Query { port, place, group };
                        self.all.push(query);
                        if is_new {
                            self.later_all.push(now + STARTUP_QUERY_INTERVAL, query);
                        }
                    }
                }
            }
        }
        self.places = places;
    }

    /// Takes the queries to send now: for single groups first, since a station has little time to answer these.
    fn take(&mut self) -> Vec<Query> {
        let mut queries = self.groups.take(OF_GROUPS_PER_LOOK);
        queries.extend(self.all.take(QUERIES_PER_LOOK - queries.len()));
        // Another querier asks there now.
        let is_silent = |query: &Query| self.other_queriers.contains(&query.key());
        let (dropped, queries): (Vec<Query>, Vec<Query>) = queries.into_iter().partition(is_silent);
        dropped.iter().for_each(|query| self.note_sent(query));
        queries
    }

    /// Notes the places of these queries, which were sent, as asked in, if no first query waits there.
    fn note_asked(&mut self, sent: &[Query], now: Instant) {
        let waiting: HashSet<Key> = self.all.queue.iter().map(Query::key).collect();
        for key in sent
            .iter()
            .map(Query::key)
            .filter(|key| !waiting.contains(key))
        {
            if let Some(since @ None) = self.places.get_mut(&key) {
                *since = Some(now);
            }
        }
    }

    /// Gives back a query that could not be sent.
    fn requeue(&mut self, query: Query) {
        match query.group.is_unspecified() {
            true => self.all.push(query),
            false => self.groups.push(query),
        }
    }

    /// Has a port asked at once, as one that comes up.
    pub(super) fn ask_again(&mut self, port: u16) {
        self.asked.remove(&port);
        self.ports.clear();
        self.snapshot = None;
    }

    /// Begins anew in a bridge.
    pub(super) fn forget_bridge(&mut self, number: u8) {
        let is_other = |((bridge, _), _): &Key| *bridge != number;
        self.places.retain(|key, _| is_other(key));
        self.ready.retain(is_other);
        self.asked.retain(|_, (bridge, _)| *bridge != number);
        self.ports.clear();
        self.snapshot = None;
    }

    /// Asks for a group that a station behind the port has left: now, and a second later. An uplink gets all groups in any case.
    fn ask_for(&mut self, port: u16, (place, group): (Place, IpAddr), now: Instant) {
        let query = Query { port, place, group };
        let is_uplink = self
            .ports
            .iter()
            .any(|seen| seen.number == port && seen.is_uplink);
        let count = self.counts.entry(port).or_default();
        if is_uplink || *count >= GROUPS_OF_PORT_MAX || self.asking.contains_key(&query) {
            return;
        }
        *count += 1;
        self.asking.insert(query, true);
        self.groups.push(query);
        self.later_groups
            .push(now + LAST_MEMBER_QUERY_INTERVAL, query);
    }

    /// Notes what was sent.
    fn note_sent(&mut self, query: &Query) {
        if self.asking.get(query) != Some(&false) {
            return;
        }
        self.asking.remove(query);
        if let Some(count) = self.counts.get_mut(&query.port) {
            *count = count.saturating_sub(1);
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

    /// The ports that get all multicast of a place where the switch is the querier.
    pub(super) fn ports_with_all_multicast(
        &self,
        view: &Snapshot,
        (bridge, vlan): Place,
    ) -> Vec<u16> {
        let asked = |number: u16| {
            let asked = self.querier.asked.get(&number);
            asked.is_some_and(|(own, vlans)| *own == bridge && vlans.binary_search(&vlan).is_ok())
        };
        let gets_all = |number: u16, port: &PortSnapshot| match port.is_uplink {
            true => port.is_in(bridge),
            false => port.bridge == bridge && port.vlan.carries(vlan) && !asked(number),
        };
        let ports = numbered(view).filter(|(number, port)| gets_all(*number, port));
        ports.map(|(number, _)| number).collect()
    }

    /// Notes a station that has left a group: whether others behind the port are still members is asked.
    pub(super) fn note_left(&mut self, port: u16, group: (Place, IpAddr), now: Instant) {
        if self.asks_in(group.0, Family::of(group.1)) {
            self.querier.ask_for(port, group, now);
        }
    }

    /// Whether another querier is heeded: it has an address, and for MLD one that stations accept (RFC 3810, 5.1.14) and that is
    /// lower than the switch's own (7.6.2), `own`.
    pub(super) fn is_accepted_querier(&self, from: IpAddr, own: Ipv6Addr) -> bool {
        match from {
            _ if !self.settings.querier => true,
            IpAddr::V4(from) => !from.is_unspecified(),
            IpAddr::V6(from) => from.is_unicast_link_local() && from < own,
        }
    }
}

impl Dataplane {
    /// The address that queries which leave through a port come from.
    pub(super) fn query_source(&self, port: u16) -> Mac {
        self.probes.source(port)
    }

    /// Sends the queries that are due. Returns whether the places where the switch is the querier have changed.
    pub(super) fn ask(&self, state: &mut State, now: Instant) -> bool {
        let mut querier = std::mem::take(&mut state.snooping.querier);
        if !state.snooping.settings.querier {
            return !querier.ready.is_empty();
        }
        let other_queriers = state.snooping.queriers.keys().copied().collect();
        let has_changed = querier.look((state.published, &state.view), now, other_queriers);
        let (mut workers, mut sent) = (BTreeSet::new(), Vec::new());
        for query in querier.take() {
            match self.send_query(state, query, &mut workers) {
                true => sent.push(query),
                false => querier.requeue(query),
            }
        }
        sent.iter().for_each(|query| querier.note_sent(query));
        querier.note_asked(&sent, now);
        state.snooping.querier = querier;
        self.nudge(state, workers);
        has_changed
    }

    /// Gives a query to the worker of its port. Returns `false` if that cannot take it now.
    fn send_query(&self, state: &State, query: Query, workers: &mut BTreeSet<usize>) -> bool {
        let port = state.ports.get(usize::from(query.port));
        let (bridge, vlan) = query.place;
        let is_there = |port: &&super::super::Port| {
            port.view.bridge == bridge && port.view.vlan.carries(vlan) && port.view.is_attached()
        };
        let Some(port) = port.and_then(Option::as_ref).filter(is_there) else {
            // It is asked when it is there again.
            return true;
        };
        let first = port.streams.values().next();
        let worker = first.map_or(0, |placed| placed.worker);
        // The change would have to wait for a stalled worker.
        if self.watch.stalls(worker).0 {
            return false;
        }
        // Behind a guest's port is one station, which need not wait for others' answers.
        let answers = match port.view.is_uplink {
            true => query::QUERY_RESPONSE_INTERVAL,
            false => query::LAST_MEMBER_RESPONSE_INTERVAL,
        };
        let frame = query::frame(self.query_source(query.port), query.group, answers);
        let injected = Injected::new(query.port, Some(vlan), &frame);
        let link = self.links.get(worker);
        let is_sent = link.is_some_and(|link| link.injected.push(injected).is_ok());
        if is_sent {
            workers.insert(worker);
        }
        is_sent
    }
}

#[cfg(test)]
mod tests;
