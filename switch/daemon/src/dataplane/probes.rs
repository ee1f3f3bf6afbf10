//! Loop detection by probes: a probe that leaves through one port and comes in at another port, or at the same one, has
//! gone round a loop.
//!
//! Ports with `loop_protect` send a probe each second, in each of their VLANs. When one comes back, this is logged, and
//! one of the two ports is blocked if its configuration allows that. The other port stays open, so the network behind
//! them stays reachable. A blocked port goes on sending and receiving probes. So the switch knows whether the loop
//! still exists; the port is unblocked only when the loop is over and the block time has passed.
//!
//! A station that sees a probe can replay it. So only probes of the last seconds count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::limits::VLAN_ID_MAX;
use crosspoint_config::{Addresses, LoopAction, LoopProtect};
use crosspoint_engine::bridge::probe::Returned;
use crosspoint_engine::bridge::vlan::NO_VLAN;
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_engine::stages::guard::SourceGuard;
use crosspoint_engine::worker::Injected;
use crosspoint_engine::worker::Update;
use crosspoint_packet::DropReason;

use super::change::streams_of;
use super::{Dataplane, Port, PortState, State};

/// Interval between two probes of a port in a VLAN.
const INTERVAL: Duration = Duration::from_secs(1);
/// A loop is over when no probe has come back for this time: three in a row are missing.
const QUIET: Duration = Duration::from_millis(3500);
/// VLANs of one port that are probed in one interval; a trunk with more probes them in rotation.
const VLANS_MAX: usize = 16;
/// Probes sent in one call, of which there are ten a second. Ports that are still due wait for the next call.
const PROBES_PER_LOOK: usize = 32;
/// VLANs with a loop that are probed before all others; VLANs beyond this number are probed in rotation with the
/// others.
const WATCHED_MAX: usize = 64;
/// Older probes are ignored, seconds.
const AGE_MAX_S: u32 = 5;

/// State of a blocked port.
pub(super) struct Blocked {
    /// When the port is unblocked, if the loop is over.
    until: Instant,
    /// The other end of the loop; the port itself if its own probe came back to it.
    with: String,
    /// The VLAN in which the loop was seen.
    vlan: u16,
}

/// A detected loop.
struct Seen {
    last: Instant,
    /// The VLAN in which it was seen last.
    vlan: u16,
}

/// The detected loops, and the probes to send.
#[derive(Default)]
pub(super) struct Probing {
    /// The time of the first call, from which seconds are counted.
    started: Option<Instant>,
    begun: Option<Instant>,
    /// When the VLANs with a loop were last probed.
    watched: Option<Instant>,
    /// Ports and VLANs whose probe is due.
    due: VecDeque<(u16, u16)>,
    /// The VLAN with which each trunk's next rotation begins.
    turns: BTreeMap<u16, u16>,
    /// Loops by their two ports, the lower number first.
    seen: BTreeMap<(u16, u16), Seen>,
}

impl Probing {
    /// The other ends of the loops through port `number` that probes have shown.
    pub(super) fn others(&self, number: u16) -> impl Iterator<Item = u16> {
        let ends = self.seen.keys();
        ends.filter_map(move |(a, b)| match number {
            number if number == *a => Some(*b),
            number if number == *b => Some(*a),
            _ => None,
        })
    }

    /// Forgets port `number`, which was removed.
    pub(super) fn forget(&mut self, number: u16) {
        self.seen.retain(|(a, b), _| *a != number && *b != number);
        self.due.retain(|(port, _)| *port != number);
        self.turns.remove(&number);
    }

    /// The current second.
    fn second(&mut self, now: Instant) -> u32 {
        let started = *self.started.get_or_insert(now);
        now.saturating_duration_since(started).as_secs() as u32
    }

    /// Moves these ports and VLANs before the others that are due.
    fn watch(&mut self, watched: &BTreeSet<(u16, u16)>) {
        self.due.retain(|due| !watched.contains(due));
        watched
            .iter()
            .rev()
            .for_each(|due| self.due.push_front(*due));
    }

    /// The VLANs of a port to probe now.
    fn vlans(&mut self, number: u16, policy: &VlanPolicy) -> Vec<u16> {
        match policy {
            VlanPolicy::Unaware | VlanPolicy::Untagged => vec![NO_VLAN],
            VlanPolicy::Access(vlan) => vec![*vlan],
            VlanPolicy::Trunk { .. } => {
                let from = self.turns.get(&number).copied().unwrap_or(1);
                let round = (from..=VLAN_ID_MAX).chain(1..from);
                let mut all = round.filter(|vlan| policy.carries(*vlan));
                let vlans: Vec<u16> = all.by_ref().take(VLANS_MAX).collect();
                // If all fit, the next rotation begins with the same VLAN.
                self.turns.insert(number, all.next().unwrap_or(from));
                vlans
            }
        }
    }
}

fn key(a: u16, b: u16) -> (u16, u16) {
    (a.min(b), a.max(b))
}

/// Which of a loop's two ports to block; `None` if neither may be blocked.
fn choose(ends: [Option<&Port>; 2]) -> Option<usize> {
    let may = |port: &Port| {
        let protect = port.options.loop_protect;
        protect.is_some_and(|protect| protect.action == LoopAction::Block)
    };
    // A guest port before an uplink, since more depends on an uplink; then by name, so that the choice is the same
    // after a restart.
    let rank = |port: &Port| (port.options.kind == "vhost", port.options.name.clone());
    let ends = ends.into_iter().enumerate();
    let ends = ends.filter_map(|(end, port)| Some((end, port.filter(|port| may(port))?)));
    ends.max_by_key(|(_, port)| rank(port)).map(|(end, _)| end)
}

impl Port {
    /// The guard that limits the port to its addresses, and drops its frames while it is blocked.
    pub(super) fn guard(&self, dataplane: &Dataplane, number: u16) -> Option<Arc<SourceGuard>> {
        let Addresses { mac, ip } = &self.options.addresses;
        if self.blocked.is_none() && mac.is_empty() {
            return None;
        }
        let guard = SourceGuard::new(mac.clone()).with_ips(ip);
        let guard = guard.looking(number, dataplane.probes.clone());
        Some(Arc::new(match self.blocked {
            Some(_) => guard.blocked(DropReason::LoopBlocked),
            None => guard,
        }))
    }

    fn sends_probes(&self) -> bool {
        self.options.loop_protect.is_some() && self.state == PortState::Up && !self.options.disabled
    }

    /// The other end of the loop that the port is blocked for; the port itself if its own probes came back to it.
    pub(super) fn blocked_with(&self) -> Option<&str> {
        Some(self.blocked.as_ref()?.with.as_str())
    }

    /// The reason for the block, as text, if the port is blocked.
    pub(super) fn why_blocked(&self) -> Option<String> {
        let blocked = self.blocked.as_ref()?;
        let left = blocked.until.saturating_duration_since(Instant::now());
        let then = match left.as_secs() {
            0 => "as soon as the loop is over".to_owned(),
            seconds => format!("in {seconds} s, if the loop is over then"),
        };
        let other = &blocked.with;
        Some(match *other == self.options.name {
            true => {
                format!("a loop behind it: its own probes come back; it is unblocked {then}")
            }
            false => format!("a loop through it and port {other}; it is unblocked {then}"),
        })
    }
}

fn port(state: &State, number: u16) -> Option<&Port> {
    state.ports.get(usize::from(number))?.as_ref()
}

fn name(state: &State, number: u16) -> &str {
    port(state, number).map_or("?", |port| port.options.name.as_str())
}

impl State {
    /// Whether probes or moving addresses show a loop through port `number`.
    pub(super) fn is_looping(&self, number: u16) -> bool {
        self.loops.has(number) || self.probing.others(number).next().is_some()
    }
}

impl Dataplane {
    /// Processes probes that came back, unblocks ports, and sends the probes that are due. Called about ten times a
    /// second.
    pub(super) fn probe_loops(&self, state: &mut State, now: Instant) {
        self.probes.set_second(state.probing.second(now));
        for returned in self.probes.returned() {
            self.note_returned(state, returned, now);
        }
        self.end_loops(state, now);
        self.send_probes(state, now);
    }

    fn note_returned(&self, state: &mut State, returned: Returned, now: Instant) {
        let Returned {
            from,
            at,
            vlan,
            bridge,
            ..
        } = returned;
        let age = state.probing.second(now).checked_sub(returned.second);
        let has_sent = port(state, from).is_some_and(|port| port.options.loop_protect.is_some());
        // Probes leave in the port's own bridge.
        let is_in = |port: &Port| match port.view.bridge == bridge {
            true => port.view.vlan.carries(vlan),
            false => port.view.is_in(bridge),
        };
        let carries = |number| port(state, number).is_some_and(is_in);
        let is_fresh = age.is_some_and(|age| age < AGE_MAX_S);
        if !is_fresh || !has_sent || !carries(from) || !carries(at) {
            return;
        }
        let seen = Seen { last: now, vlan };
        let is_new = state.probing.seen.insert(key(from, at), seen).is_none();
        let ends = [from, at].map(|number| port(state, number));
        let mut numbers = [from, at].into_iter();
        let is_blocked = |number: &u16| port(state, *number).is_some_and(|p| p.blocked.is_some());
        let outcome = match (numbers.find(is_blocked), choose(ends)) {
            (Some(number), _) => Outcome::Already(number),
            (None, Some(0)) => Outcome::Block(from),
            (None, Some(_)) => Outcome::Block(at),
            (None, None) => Outcome::Nothing,
        };
        if is_new || matches!(outcome, Outcome::Block(_)) {
            report(state, (from, at), vlan, outcome);
        }
        if let Outcome::Block(number) = outcome {
            let with = if number == from { at } else { from };
            self.block(state, number, (with, vlan), now);
        }
    }

    fn block(&self, state: &mut State, number: u16, (with, vlan): (u16, u16), now: Instant) {
        let with = name(state, with).to_owned();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        let Some(LoopProtect { block_time, .. }) = port.options.loop_protect else {
            return;
        };
        let until = now + block_time;
        port.blocked = Some(Blocked { until, with, vlan });
        port.view.sources = port.guard(self, number);
        drop(self.publish(state, Vec::new()));
        // Frames for its addresses are flooded from now on and so reach other ports; no copy is made for a blocked
        // port.
        self.forget(state, number);
    }

    /// Unblocks a port.
    pub(super) fn unblock(&self, state: &mut State, number: u16) {
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        if port.blocked.take().is_none() {
            return;
        }
        port.view.sources = port.guard(self, number);
        tracing::info!(port = %port.view.name, "no longer blocked");
        drop(self.publish(state, Vec::new()));
    }

    /// Ends loops that no probe has gone round for a while, and unblocks the ports whose time is up.
    fn end_loops(&self, state: &mut State, now: Instant) {
        let is_over = |seen: &Seen| now.saturating_duration_since(seen.last) >= QUIET;
        let seen = state.probing.seen.iter();
        let over = seen.filter(|(_, seen)| is_over(seen));
        let over: Vec<(u16, u16)> = over.map(|(ends, _)| *ends).collect();
        for (a, b) in over {
            state.probing.seen.remove(&(a, b));
            for port in BTreeSet::from([a, b]) {
                let (port, others) = (name(state, port), ends_text(state, (a, b)));
                tracing::info!(port, "the loop is over: {others}");
            }
        }
        let mut back = Vec::new();
        let State { ports, probing, .. } = &mut *state;
        for (number, port) in (0..).zip(ports) {
            let Some(port) = port else { continue };
            let Some(blocked) = &mut port.blocked else {
                continue;
            };
            let protect = port.options.loop_protect;
            let block_time = match protect {
                Some(protect) if protect.action == LoopAction::Block => protect.block_time,
                // The configuration no longer allows it to be blocked.
                _ => {
                    back.push(number);
                    continue;
                }
            };
            if now < blocked.until {
                continue;
            }
            match probing.others(number).next().is_some() {
                true => blocked.until = now + block_time,
                false => back.push(number),
            }
        }
        for number in back {
            self.unblock(state, number);
        }
    }

    /// The ports and VLANs with a loop, and those of ports that are blocked.
    fn watched(state: &State) -> BTreeSet<(u16, u16)> {
        let State { ports, probing, .. } = state;
        let seen = probing.seen.iter();
        let ends = seen.flat_map(|((a, b), seen)| [(*a, seen.vlan), (*b, seen.vlan)]);
        let blocked = ports.iter().flatten().filter_map(|port| {
            let Blocked { with, vlan, .. } = port.blocked.as_ref()?;
            Some(([&port.options.name, with], *vlan))
        });
        let number_of = |name: &String| {
            let is_it =
                |port: &Option<Port>| port.as_ref().is_some_and(|p| p.options.name == *name);
            Some(ports.iter().position(is_it)? as u16)
        };
        let blocked = blocked.flat_map(|(names, vlan)| {
            let numbers = names.into_iter().filter_map(number_of);
            numbers.map(move |number| (number, vlan))
        });
        let sends = |(number, vlan): &(u16, u16)| {
            port(state, *number)
                .is_some_and(|port| port.sends_probes() && port.view.vlan.carries(*vlan))
        };
        ends.chain(blocked)
            .filter(sends)
            .take(WATCHED_MAX)
            .collect()
    }

    /// The ports and VLANs to probe in this call.
    fn due(state: &mut State, now: Instant) -> Vec<(u16, u16)> {
        let is_early = |begun| now.saturating_duration_since(begun) < INTERVAL;
        if state.probing.due.is_empty() && !state.probing.begun.is_some_and(is_early) {
            let State { ports, probing, .. } = &mut *state;
            for (number, port) in (0..).zip(ports) {
                let Some(port) = port else { continue };
                if port.sends_probes() {
                    let vlans = probing.vlans(number, &port.view.vlan);
                    let due = vlans.into_iter().map(|vlan| (number, vlan));
                    probing.due.extend(due);
                    probing.begun = Some(now);
                }
            }
        }
        if !state.probing.watched.is_some_and(is_early) {
            let watched = Self::watched(state);
            if !watched.is_empty() {
                state.probing.watch(&watched);
                state.probing.watched = Some(now);
            }
        }
        let count = state.probing.due.len().min(PROBES_PER_LOOK);
        state.probing.due.drain(..count).collect()
    }

    fn send_probes(&self, state: &mut State, now: Instant) {
        let mut workers = BTreeSet::new();
        for (number, vlan) in Self::due(state, now) {
            let Some(port) = port(state, number) else {
                continue;
            };
            let first = port.streams.values().next();
            let worker = first.map_or(0, |placed| placed.worker);
            // The change would have to wait for a stalled worker.
            if self.watch.stalls(worker).0 {
                continue;
            }
            let frame = self.probes.frame(number, vlan, &port.options.name);
            let injected = Injected::new(number, Some(vlan), &frame);
            // If the queue is full, the next probe is sent a second later.
            if let Some(link) = self.links.get(worker)
                && link.injected.push(injected).is_ok()
            {
                workers.insert(worker);
            }
        }
        self.nudge(state, workers);
    }

    /// Makes these workers look at injected frames, which they do when they get an update.
    pub(super) fn nudge(&self, state: &State, workers: BTreeSet<usize>) {
        for worker in &workers {
            let Some(link) = self.links.get(*worker) else {
                continue;
            };
            let update = Update::new(state.view.clone(), streams_of(state, *worker));
            // The previous update was waited for, so there is room.
            let _ = link.mailbox.publish(update);
            link.waker.wake();
        }
        for worker in workers {
            drop(self.await_retired(worker));
        }
    }
}

/// The action on a loop.
#[derive(Clone, Copy)]
enum Outcome {
    /// Block this port.
    Block(u16),
    /// This port is already blocked, which breaks the loop.
    Already(u16),
    Nothing,
}

/// Both ends of a loop, as text.
fn ends_text(state: &State, (a, b): (u16, u16)) -> String {
    match a == b {
        true => format!("behind port {}", name(state, a)),
        false => format!("through ports {} and {}", name(state, a), name(state, b)),
    }
}

/// Logs a loop, one line for each end.
fn report(state: &State, (from, at): (u16, u16), vlan: u16, outcome: Outcome) {
    let vlan = match vlan {
        NO_VLAN => "no VLAN".to_owned(),
        vlan => format!("VLAN {vlan}"),
    };
    let (left, back) = (name(state, from), name(state, at));
    let what =
        format!("a loop: a probe that left through port {left} in {vlan} came back at port {back}");
    for number in BTreeSet::from([from, at]) {
        let port = name(state, number);
        match outcome {
            Outcome::Block(blocked) => {
                let (name, seconds) = (name(state, blocked), block_time(state, blocked).as_secs());
                tracing::error!(
                    port,
                    "{what}; port {name} is blocked for {seconds} s, and longer while the loop is there"
                );
            }
            Outcome::Already(blocked) => {
                let name = name(state, blocked);
                tracing::info!(port, "{what}; port {name} is blocked already");
            }
            Outcome::Nothing => tracing::error!(
                port,
                "{what}; no port is blocked (loop_protect = {{ action = \"block\" }} would)"
            ),
        }
    }
}

fn block_time(state: &State, number: u16) -> Duration {
    let protect = port(state, number).and_then(|port| port.options.loop_protect);
    protect.map_or(Duration::ZERO, |protect| protect.block_time)
}

#[cfg(test)]
mod tests;
