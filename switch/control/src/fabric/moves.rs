//! Addresses that move between ports: what the log and `show` say of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crosspoint_engine::fdb::{Damping, Mover};
use crosspoint_engine::view::View;
use crosspoint_packet::Mac;

use super::{Fabric, State};
use crate::status::FdbMover;

/// At most so many lines about moving addresses...
const LINES_MAX: usize = 10;
/// ...within this time.
const LINES_WINDOW: Duration = Duration::from_secs(10);

/// So many moves within the window are more than one of a guest that migrates: two ports have the address.
const SUSPECT_MOVES: u8 = 3;
/// Between two looks at addresses that move, where none has come to stay.
const LOOK: Duration = Duration::from_secs(1);

/// What the log has said of them.
#[derive(Default)]
pub(super) struct Reported {
    /// How often addresses had moved, and workers had refused moves, when that was last looked at.
    counted: (u64, u64),
    looked: Option<Instant>,
    /// The addresses that were spoken of; and whether as ones that stay since they moved too often.
    known: BTreeSet<(Mac, u16, bool)>,
    /// When the first of the last lines was written, and how many there were.
    lines: Option<(Instant, usize)>,
    /// Whether it has said since then that there are more.
    told_of_more: bool,
}

impl Reported {
    /// Whether one more line may be written at `now`.
    fn has_room(&mut self, now: Instant) -> bool {
        let lines = self.lines.filter(|(first, _)| now - *first < LINES_WINDOW);
        self.told_of_more &= lines.is_some();
        let (first, count) = lines.unwrap_or((now, 0));
        self.lines = Some((first, count + 1));
        count < LINES_MAX
    }
}

impl Fabric {
    /// From now on, how many moves of an address are too many.
    pub fn set_damping(&self, damping: Damping) {
        self.fdb.set_damping(damping);
    }

    /// The addresses that have moved of late, those that moved most first.
    pub fn movers(&self) -> Vec<FdbMover> {
        let (view, ..) = self.picture();
        let mut movers = self.fdb.movers();
        movers.sort_unstable_by_key(|mover| (u8::MAX - mover.moves, mover.vlan, mover.mac));
        movers.iter().map(|mover| status(mover, &view)).collect()
    }

    /// Has the log tell of each address that two ports have, and again when it has begun to stay where it was, unless there
    /// are too many.
    pub(super) fn report_moves(&self, state: &mut State) {
        let ports = state.ports.iter().flatten();
        let moved = ports.map(|port| port.view.quota.moved());
        let counted = (moved.sum(), self.fdb.moves_refused());
        let now = Instant::now();
        let is_early = state.moves.looked.is_some_and(|at| now - at < LOOK);
        if counted == state.moves.counted || is_early {
            return;
        }
        (state.moves.counted, state.moves.looked) = (counted, Some(now));
        let mut movers = self.fdb.movers();
        movers.retain(|mover| mover.is_damped || mover.moves >= SUSPECT_MOVES);
        let id = |mover: &Mover| (mover.mac, mover.vlan, mover.is_damped);
        let known = std::mem::replace(&mut state.moves.known, movers.iter().map(id).collect());
        let new = movers.iter().filter(|mover| !known.contains(&id(mover)));
        let mut silent = 0;
        for mover in new {
            if state.moves.has_room(now) {
                say(&status(mover, &state.view));
            } else {
                silent += 1;
            }
        }
        // Once in each of these times, too.
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

fn status(mover: &Mover, view: &View) -> FdbMover {
    let name = |number: u16| view.port(number).map_or("?".into(), |p| p.name.to_string());
    FdbMover {
        mac: mover.mac.to_string(),
        vlan: mover.vlan,
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
