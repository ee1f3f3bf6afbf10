//! Addresses that move between ports, for the log and `show`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crosspoint_engine::bridge::fdb::Damping;
use crosspoint_engine::bridge::fdb::Mover;
use crosspoint_model::status::FdbMover;
use crosspoint_packet::Mac;

use super::{Dataplane, State};

/// The most log lines about moving addresses...
const LINES_MAX: usize = 10;
/// ...within this time.
const LINES_WINDOW: Duration = Duration::from_secs(10);

/// More moves within the window than a migrating guest causes: two ports have the address.
const SUSPECT_MOVES: u8 = 3;
/// Shortest time between two checks of moving addresses.
const LOOK: Duration = Duration::from_secs(1);

/// What has been logged.
#[derive(Default)]
pub(super) struct Reported {
    /// Counts of moves and of refused moves at the last check.
    counted: (u64, u64),
    looked: Option<Instant>,
    /// Addresses that have been logged, and whether they were logged as damped.
    known: BTreeSet<(Mac, u8, u16, bool)>,
    /// Time of the first line in the current window, and the number of lines.
    lines: Option<(Instant, usize)>,
    /// Whether a line about further addresses was written in this window.
    told_of_more: bool,
}

impl Reported {
    /// Counts a line, and returns whether it may be written at `now`.
    fn has_room(&mut self, now: Instant) -> bool {
        let lines = self.lines.filter(|(first, _)| now - *first < LINES_WINDOW);
        self.told_of_more &= lines.is_some();
        let (first, count) = lines.unwrap_or((now, 0));
        self.lines = Some((first, count + 1));
        count < LINES_MAX
    }
}

impl Dataplane {
    /// Sets how many moves of an address are too many.
    pub fn set_damping(&self, damping: Damping) {
        self.fdb.set_damping(damping);
        self.lock().bridges.set_damping(damping);
    }

    /// Addresses that have moved recently, those with most moves first.
    pub fn movers(&self) -> Vec<FdbMover> {
        let state = self.lock();
        let mut movers = self.all_movers(&state);
        movers.sort_unstable_by_key(|(bridge, mover)| {
            (u8::MAX - mover.moves, *bridge, mover.vlan, mover.mac)
        });
        movers.iter().map(|mover| status(mover, &state)).collect()
    }

    /// Those of every bridge, with its number.
    fn all_movers(&self, state: &State) -> Vec<(u8, Mover)> {
        let fdbs = self.fdbs(state).into_iter();
        let movers = fdbs.map(|(bridge, fdb)| (bridge, fdb.movers()));
        let movers = movers.flat_map(|(bridge, all)| all.into_iter().map(move |one| (bridge, one)));
        movers.collect()
    }

    /// Logs each address that two ports have, and again when it is damped, up to a limit.
    pub(super) fn report_moves(&self, state: &mut State) {
        let ports = state.ports.iter().flatten();
        let moved = ports.map(|port| port.view.quota.events.addresses_moved.get());
        let refused = self
            .fdbs(state)
            .into_iter()
            .map(|(_, fdb)| fdb.moves_refused());
        let counted = (moved.sum(), refused.sum());
        let now = Instant::now();
        let is_early = state.moves.looked.is_some_and(|at| now - at < LOOK);
        if counted == state.moves.counted || is_early {
            return;
        }
        (state.moves.counted, state.moves.looked) = (counted, Some(now));
        let mut movers = self.all_movers(state);
        movers.retain(|(_, mover)| mover.is_damped || mover.moves >= SUSPECT_MOVES);
        let id = |(bridge, mover): &(u8, Mover)| (mover.mac, *bridge, mover.vlan, mover.is_damped);
        let known = std::mem::replace(&mut state.moves.known, movers.iter().map(id).collect());
        let new = movers.iter().filter(|mover| !known.contains(&id(mover)));
        let mut silent = 0;
        for mover in new {
            if state.moves.has_room(now) {
                say(&status(mover, state));
            } else {
                silent += 1;
            }
        }
        // Once in each window.
        if silent > 0 && !state.moves.told_of_more {
            state.moves.told_of_more = true;
            tracing::warn!(
                "{silent} more addresses move between ports too often: see `crosspoint show fdb --moves`"
            );
        }
    }
}

fn say(mover: &FdbMover) {
    let FdbMover {
        mac,
        vlan,
        home,
        other,
        moves,
        since_s,
        damped,
        ..
    } = mover;
    let then = match damped {
        true => format!("it stays at {home}"),
        false => "both send with it, so frames for it go to either".to_owned(),
    };
    tracing::warn!(port = %home, vlan,
        "address {mac} moves between ports {home} and {other}: {moves} times in {since_s} s; {then}");
}

fn status((bridge, mover): &(u8, Mover), state: &State) -> FdbMover {
    let port = |number: u16| state.view.port(number);
    let name = |number: u16| port(number).map_or("?".into(), |p| p.name.to_string());
    FdbMover {
        mac: mover.mac.to_string(),
        vlan: mover.vlan,
        bridge: state.bridges.name(*bridge).map(|name| name.to_string()),
        home: name(mover.home),
        other: name(mover.other),
        port: name(mover.port),
        moves: mover.moves,
        since_s: mover.since_s,
        damped: mover.is_damped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_however_many_addresses_move() {
        let (mut reported, start) = (Reported::default(), Instant::now());
        let lines = |reported: &mut Reported, now| {
            let room = (0..1000).filter(|_| reported.has_room(now));
            room.count()
        };
        assert_eq!(lines(&mut reported, start), LINES_MAX);
        assert_eq!(lines(&mut reported, start + LINES_WINDOW / 2), 0);
        assert_eq!(lines(&mut reported, start + LINES_WINDOW), LINES_MAX);
    }
}
