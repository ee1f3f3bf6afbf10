//! The members of multicast groups, as snooping has heard them, and the ports with multicast routers behind them.

mod querier;
mod query;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::{Multicast as Settings, UnknownMulticast};
use crosspoint_engine::bridge::multicast::{
    Family, Heard, Messages, Multicast, Place, Said, Snooping as View, is_wide,
};
use crosspoint_engine::snapshot::Snapshot;
use crosspoint_model::rows::{MulticastGroupRow, MulticastTable, QuerierRow};

use super::{Dataplane, State};
use querier::Querier;

/// How long a membership lasts without a report: two queries and the time for answers (RFC 3376, 8.4).
const MEMBERSHIP: Duration = Duration::from_secs(260);
/// How long a querier, and a port with a router, is known without a query (RFC 3376, 8.5).
const QUERIER: Duration = Duration::from_secs(255);
/// How long a group stays after a station has left it, if no other reports it: the querier asks twice within this time
/// (RFC 3376, 8.8).
const LAST_MEMBER: Duration = Duration::from_millis(2500);
/// Shortest time between two publications to the workers.
const PUBLISH: Duration = Duration::from_secs(1);
/// Most memberships of the switch.
const MEMBERSHIPS_MAX: usize = 65_536;

/// A group in a VLAN of a bridge.
type Group = (Place, IpAddr);

/// What snooping knows. It stays through reloads; a port that is reopened reports again when it is asked.
#[derive(Default)]
pub(super) struct Snooping {
    settings: Settings,
    messages: Option<Arc<Messages>>,
    /// By group: its ports, and until when each is a member.
    members: BTreeMap<Group, BTreeMap<u16, Instant>>,
    /// How many groups each port is in, by bridge.
    counts: HashMap<(u16, u8), usize>,
    /// How many memberships there are.
    total: usize,
    /// By place and family: the ports with routers, and until when.
    routers: BTreeMap<(Place, Family), BTreeMap<u16, Instant>>,
    /// By place and family: the querier that spoke last: its address, its port, and until when it is known.
    queriers: BTreeMap<(Place, Family), (IpAddr, u16, Instant)>,
    /// Memberships that were not taken because a port, or the switch, has as many as it may.
    refused: u64,
    /// Whether what workers have is out of date.
    has_changed: bool,
    /// When it was last published.
    published_at: Option<Instant>,
    /// What workers have.
    published: Option<Arc<Multicast>>,
    /// The switch's own questions.
    querier: Querier,
}

impl Snooping {
    /// What workers need: nothing if snooping is off.
    pub(super) fn view(&self) -> Option<View> {
        Some(View {
            messages: self.messages.clone()?,
            multicast: self.published.clone()?,
        })
    }

    /// Takes a message. Returns whether the ports of any group change.
    fn note(&mut self, heard: Heard, now: Instant) -> bool {
        let Heard { port, place, said } = heard;
        match said {
            Said::Query(from) => {
                let key = (place, Family::of(from));
                let known = self.queriers.insert(key, (from, port, now + QUERIER));
                let is_router = !from.is_unspecified() && self.note_router(key, port, now);
                known.is_none() || is_router
            }
            Said::Router(family) => self.note_router((place, family), port, now),
            Said::Join(group) if is_wide(group) => self.join((place, group), port, now),
            Said::Leave(group) if is_wide(group) => self.leave((place, group), port, now),
            Said::Join(_) | Said::Leave(_) => false,
        }
    }

    fn note_router(&mut self, key: (Place, Family), port: u16, now: Instant) -> bool {
        let routers = self.routers.entry(key).or_default();
        routers.insert(port, now + QUERIER).is_none()
    }

    fn join(&mut self, group: Group, port: u16, now: Instant) -> bool {
        if let Some(until) = self
            .members
            .get_mut(&group)
            .and_then(|all| all.get_mut(&port))
        {
            *until = now + MEMBERSHIP;
            return false;
        }
        let ((bridge, _), _) = group;
        let count = self.counts.entry((port, bridge)).or_default();
        if *count >= self.settings.groups_max as usize || self.total >= MEMBERSHIPS_MAX {
            self.refused += 1;
            return false;
        }
        *count += 1;
        self.total += 1;
        let members = self.members.entry(group).or_default();
        members.insert(port, now + MEMBERSHIP);
        true
    }

    fn leave(&mut self, group: Group, port: u16, now: Instant) -> bool {
        if self.settings.fast_leave {
            return self.drop_member(group, port);
        }
        if let Some(until) = self
            .members
            .get_mut(&group)
            .and_then(|all| all.get_mut(&port))
        {
            *until = (*until).min(now + LAST_MEMBER);
            self.note_left(port, group, now);
        }
        false
    }

    fn drop_member(&mut self, group: Group, port: u16) -> bool {
        let Some(members) = self.members.get_mut(&group) else {
            return false;
        };
        let was_there = members.remove(&port).is_some();
        if members.is_empty() {
            self.members.remove(&group);
        }
        let ((bridge, _), _) = group;
        if let (true, Some(count)) = (was_there, self.counts.get_mut(&(port, bridge))) {
            *count = count.saturating_sub(1);
            self.total = self.total.saturating_sub(1);
        }
        was_there
    }

    /// Forgets what has not been heard of for long, and what `is_there` denies. Returns whether that changes anything.
    fn expire(&mut self, now: Instant, is_there: impl Fn(u16, u8) -> bool) -> bool {
        let mut gone = Vec::new();
        for (group, members) in &self.members {
            let (bridge, _) = group.0;
            let old = members
                .iter()
                .filter(|(port, until)| **until <= now || !is_there(**port, bridge));
            gone.extend(old.map(|(port, _)| (*group, *port)));
        }
        let mut has_changed = !gone.is_empty();
        for (group, port) in gone {
            self.drop_member(group, port);
        }
        self.routers.retain(|((bridge, _), _), ports| {
            let before = ports.len();
            ports.retain(|port, until| *until > now && is_there(*port, *bridge));
            has_changed |= ports.len() < before;
            !ports.is_empty()
        });
        let before = self.queriers.len();
        self.queriers
            .retain(|((bridge, _), _), (_, port, until)| *until > now && is_there(*port, *bridge));
        has_changed || self.queriers.len() < before
    }

    /// Forgets what was heard on a port. The next look publishes it.
    pub(super) fn forget_port(&mut self, number: u16) {
        self.has_changed |= self.expire(Instant::now(), |port, _| port != number);
        self.querier.ask_again(number);
    }

    /// Forgets what was heard in a bridge.
    pub(super) fn forget_bridge(&mut self, number: u8) {
        self.has_changed |= self.expire(Instant::now(), |_, bridge| bridge != number);
        self.querier.forget_bridge(number);
    }

    /// The ports of each group now.
    fn compile(&self, view: &Snapshot) -> Multicast {
        let mut multicast = Multicast::new(self.settings.unknown == UnknownMulticast::Drop);
        let routers = |place: Place, family| -> Vec<u16> {
            let heard = self.routers.get(&(place, family)).into_iter();
            let mut ports: Vec<u16> = heard.flat_map(BTreeMap::keys).copied().collect();
            if self.asks_in(place, family) {
                ports.extend(self.ports_with_all_multicast(view, place));
            }
            ports
        };
        for (place, family) in self.queriers.keys() {
            multicast.add_querier(*place, *family, routers(*place, *family));
        }
        for (place, family) in self.own_places() {
            multicast.add_querier(place, family, routers(place, family));
        }
        for ((place, group), ports) in &self.members {
            let mut all = routers(*place, Family::of(*group));
            all.extend(ports.keys());
            multicast.add_group(*place, *group, all);
        }
        multicast
    }
}

impl Dataplane {
    /// Puts the settings of multicast into use. When snooping ends, all multicast is flooded again.
    pub fn set_multicast(&self, settings: Settings) {
        let mut state = self.lock();
        if state.snooping.settings == settings {
            return;
        }
        let State { snooping, view, .. } = &mut *state;
        if settings.snooping {
            snooping.settings = settings;
            snooping.messages.get_or_insert_default();
            snooping.published = Some(Arc::new(snooping.compile(view)));
        } else {
            *snooping = Snooping {
                settings,
                ..Snooping::default()
            };
        }
        drop(self.publish(&mut state, Vec::new()));
    }

    /// Takes what workers have heard, and publishes the ports of each group if they have changed. Called about ten times a second.
    pub(super) fn snoop(&self, state: &mut State, now: Instant) {
        let Some(messages) = state.snooping.messages.clone() else {
            return;
        };
        let mut has_changed = self.ask(state, now);
        let State { snooping, view, .. } = &mut *state;
        has_changed |= snooping.has_changed;
        for heard in messages.take() {
            let own = || self.query_source(heard.port).link_local();
            if let Said::Query(from) = heard.said
                && !snooping.is_accepted_querier(from, own())
            {
                continue;
            }
            has_changed |= snooping.note(heard, now);
        }
        let is_there = |port: u16, bridge| view.port(port).is_some_and(|port| port.is_in(bridge));
        has_changed |= snooping.expire(now, is_there);
        snooping.has_changed = has_changed;
        // A guest that joins and leaves all the time makes the switch do this no oftener.
        let is_due = |at: Instant| now.saturating_duration_since(at) >= PUBLISH;
        if has_changed && snooping.published_at.is_none_or(is_due) {
            snooping.has_changed = false;
            snooping.published_at = Some(now);
            snooping.published = Some(Arc::new(snooping.compile(view)));
            drop(self.publish(state, Vec::new()));
        }
    }

    /// Groups and queriers, for `show`.
    pub fn multicast(&self) -> MulticastTable {
        let state = self.lock();
        let snooping = &state.snooping;
        let now = Instant::now();
        let port = |number: &u16| {
            let port = state.view.port(*number);
            port.map_or("?".to_owned(), |port| port.name.to_string())
        };
        let bridge = |number: u8| state.bridges.name(number).map(|name| name.to_string());
        let groups = snooping.members.iter();
        let groups = groups.map(|(((number, vlan), group), members)| MulticastGroupRow {
            group: group.to_string(),
            vlan: *vlan,
            bridge: bridge(*number),
            ports: members.keys().map(port).collect(),
        });
        let queriers = snooping.queriers.iter();
        let queriers = queriers.map(|(((number, vlan), _), (address, on, until))| QuerierRow {
            address: address.to_string(),
            vlan: *vlan,
            bridge: bridge(*number),
            own: false,
            port: port(on),
            left_s: until.saturating_duration_since(now).as_secs(),
        });
        let own = snooping
            .own_places()
            .map(|((number, vlan), family)| QuerierRow {
                address: match family {
                    Family::V4 => Ipv4Addr::UNSPECIFIED.to_string(),
                    Family::V6 => "link-local".to_owned(),
                },
                vlan,
                bridge: bridge(number),
                own: true,
                port: String::new(),
                left_s: 0,
            });
        MulticastTable {
            snooping: snooping.settings.snooping,
            groups: groups.collect(),
            queriers: queriers.chain(own).collect(),
            missed: snooping.messages.as_ref().map_or(0, |all| all.missed()),
            refused: snooping.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use crosspoint_engine::bridge::fdb::Fdb;
    use crosspoint_packet::FlowHasher;

    use super::*;

    const PLACE: Place = (0, 7);

    fn snooping(groups_max: u32, fast_leave: bool) -> Snooping {
        Snooping {
            settings: Settings {
                snooping: true,
                groups_max,
                fast_leave,
                ..Settings::default()
            },
            ..Snooping::default()
        }
    }

    fn nothing() -> Snapshot {
        let fdb = Arc::new(Fdb::new(1, [1, 2]));
        Snapshot::new(Box::new([]), fdb, FlowHasher::new(1), Box::new([]))
    }

    fn heard(port: u16, said: Said) -> Heard {
        Heard {
            port,
            place: PLACE,
            said,
        }
    }

    fn group(last: u8) -> IpAddr {
        IpAddr::from([239, 1, 2, last])
    }

    fn members(snooping: &Snooping, group: IpAddr) -> Vec<u16> {
        let view = snooping.compile(&nothing());
        view.ports_of(PLACE, group)
            .map_or(Vec::new(), |ports| ports.to_vec())
    }

    #[test]
    fn a_member_stays_while_it_reports_and_goes_soon_after_it_leaves() {
        let mut snooping = snooping(10, false);
        let start = Instant::now();
        assert!(snooping.note(heard(3, Said::Join(group(1))), start));
        assert!(snooping.note(heard(1, Said::Join(group(1))), start));
        let router = IpAddr::from([192, 0, 2, 1]);
        assert!(snooping.note(heard(5, Said::Query(router)), start));
        assert_eq!(members(&snooping, group(1)), [1, 3, 5]);
        // One leaves; another station behind the same port answers the query that follows.
        assert!(!snooping.note(heard(3, Said::Leave(group(1))), start));
        let soon = start + LAST_MEMBER / 2;
        assert!(!snooping.note(heard(3, Said::Join(group(1))), soon));
        assert!(!snooping.expire(start + LAST_MEMBER, |_, _| true));
        snooping.note(heard(3, Said::Leave(group(1))), start + LAST_MEMBER);
        assert!(snooping.expire(start + 2 * LAST_MEMBER, |_, _| true));
        assert_eq!(members(&snooping, group(1)), [1, 5]);
        // Without a querier, nothing is known that could be used.
        assert!(snooping.expire(start + QUERIER, |_, _| true));
        assert!(members(&snooping, group(1)).is_empty());
        assert!(snooping.expire(start + MEMBERSHIP, |_, _| true));
        assert!(snooping.members.is_empty());
    }

    #[test]
    fn one_port_has_a_limit_and_its_neighbours_do_not_notice() {
        let mut snooping = snooping(4, true);
        let now = Instant::now();
        snooping.note(heard(2, Said::Query(group(0))), now);
        for last in 0..100 {
            snooping.note(heard(1, Said::Join(group(last))), now);
        }
        assert_eq!((snooping.members.len(), snooping.refused), (4, 96));
        assert!(snooping.note(heard(2, Said::Join(group(50))), now));
        // What it leaves, it may replace.
        assert!(snooping.note(heard(1, Said::Leave(group(0))), now));
        assert!(snooping.note(heard(1, Said::Join(group(60))), now));
        // A port that is gone, or in another bridge, is no member.
        assert!(snooping.expire(now, |port, _| port != 1));
        assert_eq!(members(&snooping, group(50)), [2]);
        assert_eq!(snooping.members.len(), 1);
    }
}
