//! Loops through the switch, by probes: what leaves through one port and comes in at another, or at the same, has gone
//! round a loop.
//!
//! Ports with `loop_protect` send a probe each second, in each of their VLANs. Where one comes back the log tells of it,
//! and one of the two ports is blocked if it may be: the other goes on, so that the network behind them is still reached.
//! A blocked port goes on sending probes and looking for them. So it is known whether the loop is still there, and the port
//! comes back only when it is not, and its time is up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_engine::guard::SourceGuard;
use crosspoint_engine::probe::{RETURNED_MAX, Returned};
use crosspoint_engine::vlan::{NO_VLAN, VlanPolicy};
use crosspoint_engine::worker::{Injected, Update};

use super::change::streams_of;
use super::{Fabric, Port, PortState, State};
use crate::config::{LoopAction, LoopProtect};

/// Between two probes of a port in a VLAN.
const INTERVAL: Duration = Duration::from_secs(1);
/// A loop is over when no probe has come back for so long: three in a row.
const QUIET: Duration = Duration::from_millis(3500);
/// VLANs of one port that are probed in one interval; a trunk with more takes turns.
const VLANS_MAX: usize = 16;
/// Probes that are sent at one look, of which there are ten a second. Ports that are still due then wait for the next.
const PROBES_PER_LOOK: usize = 32;
const VLAN_ID_MAX: u16 = 4094;

/// That a port is blocked.
#[derive(Clone, Copy)]
pub(super) struct Blocked {
    /// When it may come back, if the loop is over.
    until: Instant,
    /// The other end of the loop; itself, where its own probe came back to it.
    with: u16,
}

/// A loop that was seen.
struct Seen {
    last: Instant,
}

/// What is known of loops, and which probes are to be sent.
#[derive(Default)]
pub(super) struct Probing {
    begun: Option<Instant>,
    /// Ports and VLANs that are due.
    due: VecDeque<(u16, u16)>,
    /// The VLAN that each trunk's next turn begins with.
    turns: BTreeMap<u16, u16>,
    /// Loops by their two ports, the lower number first.
    seen: BTreeMap<(u16, u16), Seen>,
}

impl Probing {
    /// The other ends of the loops through port `number`, as probes have shown them.
    pub(super) fn others(&self, number: u16) -> impl Iterator<Item = u16> {
        let ends = self.seen.keys();
        ends.filter_map(move |(a, b)| match number {
            number if number == *a => Some(*b),
            number if number == *b => Some(*a),
            _ => None,
        })
    }

    /// Forgets port `number`: it is gone.
    pub(super) fn forget(&mut self, number: u16) {
        self.seen.retain(|(a, b), _| *a != number && *b != number);
        self.due.retain(|(port, _)| *port != number);
        self.turns.remove(&number);
    }

    /// The VLANs of a port that are to be probed now.
    fn vlans(&mut self, number: u16, policy: &VlanPolicy) -> Vec<u16> {
        match policy {
            VlanPolicy::Unaware => vec![NO_VLAN],
            VlanPolicy::Access(vlan) => vec![*vlan],
            VlanPolicy::Trunk { .. } => {
                let from = self.turns.get(&number).copied().unwrap_or(1);
                let round = (from..=VLAN_ID_MAX).chain(1..from);
                let mut all = round.filter(|vlan| policy.carries(*vlan));
                let vlans: Vec<u16> = all.by_ref().take(VLANS_MAX).collect();
                // Where there are no more than fit, it is the same again.
                self.turns.insert(number, all.next().unwrap_or(from));
                vlans
            }
        }
    }
}

fn key(a: u16, b: u16) -> (u16, u16) {
    (a.min(b), a.max(b))
}

/// Which of a loop's two ports is blocked, if one may be.
fn choose(ends: [Option<&Port>; 2]) -> Option<usize> {
    let may = |port: &Port| {
        let protect = port.options.loop_protect;
        protect.is_some_and(|protect| protect.action == LoopAction::Block)
    };
    // A guest's before an uplink, since more depends on those; then by name, so that it is the same after a restart.
    let rank = |port: &Port| (port.options.kind == "vhost", port.options.name.clone());
    let ends = ends.into_iter().enumerate();
    let ends = ends.filter_map(|(end, port)| Some((end, port.filter(|port| may(port))?)));
    ends.max_by_key(|(_, port)| rank(port)).map(|(end, _)| end)
}

impl Port {
    /// What keeps the port to its addresses, and out of the switch while it is blocked.
    pub(super) fn guard(&self, fabric: &Fabric, number: u16) -> Option<Arc<SourceGuard>> {
        let addresses = self.options.addresses.clone();
        match self.blocked {
            Some(_) => {
                let probes = fabric.probes.clone();
                Some(Arc::new(SourceGuard::blocked(addresses, number, probes)))
            }
            None if addresses.is_empty() => None,
            None => Some(Arc::new(SourceGuard::new(addresses))),
        }
    }

    /// Why it is blocked, for people, if it is.
    pub(super) fn why_blocked(&self, state: &State) -> Option<String> {
        let blocked = self.blocked?;
        let left = blocked.until.saturating_duration_since(Instant::now());
        let then = match left.as_secs() {
            0 => "as soon as the loop is over".to_owned(),
            seconds => format!("in {seconds} s, if the loop is over then"),
        };
        let other = name(state, blocked.with);
        Some(match other == self.options.name {
            true => {
                format!("a loop behind it: its own probes come back; it is let in again {then}")
            }
            false => format!("a loop through it and port {other}; it is let in again {then}"),
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
    /// Whether a loop goes through port `number`, by probes or by addresses that move.
    pub(super) fn is_looping(&self, number: u16) -> bool {
        self.loops.has(number) || self.probing.others(number).next().is_some()
    }
}

impl Fabric {
    /// Takes note of probes that came back, lets ports in again, and sends the probes that are due. Called about ten times a
    /// second.
    pub(super) fn probe_loops(&self, state: &mut State, now: Instant) {
        for _ in 0..RETURNED_MAX {
            let Some(returned) = self.probes.next_returned() else {
                break;
            };
            self.note_returned(state, returned, now);
        }
        self.end_loops(state, now);
        self.send_probes(state, now);
    }

    fn note_returned(&self, state: &mut State, returned: Returned, now: Instant) {
        let Returned {
            from: (from, vlan),
            at: (at, vlan_there),
        } = returned;
        let sends = port(state, from).is_some_and(|port| port.options.loop_protect.is_some());
        // In another VLAN, frames that went round would not leave through the first port again.
        if !sends || port(state, at).is_none() || vlan != vlan_there {
            return;
        }
        let seen = Seen { last: now };
        let is_new = state.probing.seen.insert(key(from, at), seen).is_none();
        let ends = [from, at].map(|number| port(state, number));
        let is_handled = ends.iter().flatten().any(|port| port.blocked.is_some());
        let blocked = match is_handled {
            true => None,
            false => choose(ends).and_then(|end| [from, at].get(end).copied()),
        };
        if is_new || blocked.is_some() {
            report(state, (from, at), vlan, blocked);
        }
        if let Some(number) = blocked {
            let with = if number == from { at } else { from };
            self.block(state, number, with, now);
        }
    }

    fn block(&self, state: &mut State, number: u16, with: u16, now: Instant) {
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        let Some(LoopProtect { block_time, .. }) = port.options.loop_protect else {
            return;
        };
        let until = now + block_time;
        port.blocked = Some(Blocked { until, with });
        port.view.sources = port.guard(self, number);
        drop(self.publish(state, Vec::new()));
        // Frames for them are flooded, and so go to other ports: no copy is made for a blocked one.
        self.forget(state, number);
    }

    /// Lets a port in again.
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

    /// Ends loops that no probe has gone round for a while, and lets in the ports whose time is up.
    fn end_loops(&self, state: &mut State, now: Instant) {
        let is_over = |seen: &Seen| now.saturating_duration_since(seen.last) >= QUIET;
        let seen = state.probing.seen.iter();
        let over = seen.filter(|(_, seen)| is_over(seen));
        let over: Vec<(u16, u16)> = over.map(|(ends, _)| *ends).collect();
        for (a, b) in over {
            state.probing.seen.remove(&(a, b));
            let (a, b) = (name(state, a), name(state, b));
            tracing::info!(ports = format!("{a}, {b}"), "the loop is over");
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
                // It was told not to.
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

    fn send_probes(&self, state: &mut State, now: Instant) {
        let is_early = |begun| now.saturating_duration_since(begun) < INTERVAL;
        if state.probing.due.is_empty() && !state.probing.begun.is_some_and(is_early) {
            let State { ports, probing, .. } = &mut *state;
            for (number, port) in (0..).zip(ports) {
                let Some(port) = port else { continue };
                if port.options.loop_protect.is_some() && port.state == PortState::Up {
                    let vlans = probing.vlans(number, &port.view.vlan);
                    let due = vlans.into_iter().map(|vlan| (number, vlan));
                    probing.due.extend(due);
                    probing.begun = Some(now);
                }
            }
        }
        let count = state.probing.due.len().min(PROBES_PER_LOOK);
        let due: Vec<(u16, u16)> = state.probing.due.drain(..count).collect();
        let mut workers = BTreeSet::new();
        for (number, vlan) in due {
            let Some(port) = port(state, number) else {
                continue;
            };
            let first = port.streams.values().next();
            let worker = first.map_or(0, |placed| placed.worker);
            // One that does not come round would be waited for.
            if self.watch.stalls(worker).0 {
                continue;
            }
            let injected = Injected {
                port: number,
                out: Some(vlan),
                bytes: self.probes.frame(number, vlan, &port.options.name),
            };
            // Where too many wait the next is sent in a second.
            if let Some(link) = self.links.get(worker)
                && link.injected.push(injected).is_ok()
            {
                workers.insert(worker);
            }
        }
        self.nudge(state, workers);
    }

    /// Has these workers look for injected frames, as they do when they have news.
    fn nudge(&self, state: &State, workers: BTreeSet<usize>) {
        for worker in &workers {
            let Some(link) = self.links.get(*worker) else {
                continue;
            };
            let update = Update::new(state.view.clone(), streams_of(state, *worker));
            // The last one was waited for, so there is room.
            let _ = link.mailbox.publish(update);
            link.waker.wake();
        }
        for worker in workers {
            drop(self.await_retired(worker));
        }
    }
}

/// Has the log tell of a loop.
fn report(state: &State, (from, at): (u16, u16), vlan: u16, blocked: Option<u16>) {
    let (from, at) = (name(state, from), name(state, at));
    let vlan = match vlan {
        NO_VLAN => "no VLAN".to_owned(),
        vlan => format!("VLAN {vlan}"),
    };
    let then = match blocked.and_then(|number| port(state, number)) {
        Some(port) => {
            let time = port
                .options
                .loop_protect
                .map_or(0, |p| p.block_time.as_secs());
            let name = &port.options.name;
            format!("port {name} is blocked for {time} s, and longer while the loop is there")
        }
        None => "no port is blocked (loop_protect = { action = \"block\" } would)".to_owned(),
    };
    tracing::error!(
        ports = format!("{from}, {at}"),
        "a loop: a probe that left through port {from} in {vlan} came back at port {at}; {then}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trunk_of_many_vlans_takes_turns_and_one_of_few_has_all_each_time() {
        let mut probing = Probing::default();
        let ids: Vec<u16> = (10..50).collect();
        let many = VlanPolicy::trunk(&ids, None);
        let mut seen: Vec<u16> = (0..5).flat_map(|_| probing.vlans(3, &many)).collect();
        assert_eq!(seen.len(), 5 * VLANS_MAX);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, ids);
        let few = VlanPolicy::trunk(&[7, 9], Some(1));
        assert_eq!(probing.vlans(4, &few), [1, 7, 9]);
        assert_eq!(probing.vlans(4, &few), [1, 7, 9]);
        assert_eq!(probing.vlans(5, &VlanPolicy::Access(12)), [12]);
        assert_eq!(probing.vlans(6, &VlanPolicy::Unaware), [NO_VLAN]);
    }
}
