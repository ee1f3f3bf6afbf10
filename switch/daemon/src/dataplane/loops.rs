//! Loop detection by symptom: addresses move between two ports over and over.
//!
//! A frame that is flooded into a loop comes back at the other end, thousands of times a second, and its source address
//! with it. Neither two stations nor a migration cause that. A guest that sends with a neighbour's address can look
//! like a loop, but then only one port is affected, not two, since the neighbour's address stays where it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Dataplane, State};

/// Interval between two checks.
const LOOK: Duration = Duration::from_secs(1);
/// Address changes per second, made or refused, on a port with a loop behind it. A loop with a single frame makes as
/// many changes as its slower link is times the length of the loop: thousands.
const CHANGES_MIN_PER_S: u64 = 1000;
/// Checks in a row with so many changes before a loop is reported, and checks without before it is over.
const LOOKS_BEGIN: u32 = 3;
const LOOKS_END: u32 = 10;

/// State of one port.
#[derive(Default)]
struct Seen {
    /// Its count at the last check.
    changes: u64,
    /// Checks in a row that contradict `is_looping`.
    looks: u32,
    is_looping: bool,
}

/// State of all ports.
#[derive(Default)]
pub(super) struct Loops {
    last: Option<Instant>,
    ports: BTreeMap<u16, Seen>,
}

/// A change of state.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Begun(u16),
    Over(u16),
}

impl Loops {
    /// Whether a loop seems to go through the port.
    pub(super) fn has(&self, port: u16) -> bool {
        self.ports.get(&port).is_some_and(|seen| seen.is_looping)
    }

    /// Checks each port's count of address changes, if a check is due.
    fn look(&mut self, now: Instant, counts: impl Iterator<Item = (u16, u64)>) -> Vec<News> {
        let Some(last) = self.last else {
            self.ports = counts
                .map(|(port, changes)| {
                    (
                        port,
                        Seen {
                            changes,
                            ..Seen::default()
                        },
                    )
                })
                .collect();
            self.last = Some(now);
            return Vec::new();
        };
        let elapsed = now.saturating_duration_since(last);
        if elapsed < LOOK {
            return Vec::new();
        }
        self.last = Some(now);
        let least = (CHANGES_MIN_PER_S as f64 * elapsed.as_secs_f64()) as u64;
        let mut before = std::mem::take(&mut self.ports);
        let mut many = 0;
        for (port, changes) in counts {
            let mut seen = before.remove(&port).unwrap_or(Seen {
                changes,
                ..Seen::default()
            });
            // A port that got the number of a removed one counts from zero.
            let more = changes.saturating_sub(seen.changes);
            let is_many = more >= least;
            many += usize::from(is_many);
            seen.changes = changes;
            seen.looks = if is_many != seen.is_looping {
                seen.looks + 1
            } else {
                0
            };
            self.ports.insert(port, seen);
        }
        let mut news = Vec::new();
        for (port, seen) in &mut self.ports {
            // One port alone is no loop, but its state may last for a while after the other port was removed.
            if !seen.is_looping && seen.looks >= LOOKS_BEGIN && many >= 2 {
                (seen.is_looping, seen.looks) = (true, 0);
                news.push(News::Begun(*port));
            } else if seen.is_looping && seen.looks >= LOOKS_END {
                (seen.is_looping, seen.looks) = (false, 0);
                news.push(News::Over(*port));
            }
        }
        news
    }
}

impl Dataplane {
    /// Checks for loops once a second, and logs them.
    pub(super) fn report_loops(state: &mut State, now: Instant) {
        let State { ports, loops, .. } = state;
        let counts = (0..).zip(&*ports).filter_map(|(number, port)| {
            let events = &port.as_ref()?.view.quota.events;
            let moved = events.addresses_moved.get();
            Some((number, moved.saturating_add(events.addresses_damped.get())))
        });
        let news = loops.look(now, counts);
        if news.is_empty() {
            return;
        }
        let name = |number: u16| {
            let port = ports.get(usize::from(number)).and_then(Option::as_ref);
            port.map_or("?", |port| port.options.name.as_str())
        };
        let begun = news.iter().filter_map(|one| match one {
            News::Begun(port) => Some(name(*port)),
            News::Over(_) => None,
        });
        let begun = begun.collect::<Vec<&str>>().join(", ");
        // A line for each port, so that a search for either port finds it.
        for one in &news {
            match one {
                News::Begun(port) => tracing::error!(
                    port = name(*port),
                    "a loop: the same addresses come in at several ports thousands of times a second ({begun}); \
                     remove one of the links, or let the network's spanning tree see the loop \
                     (forward_control = [\"stp\"] on both ports)"
                ),
                News::Over(port) => tracing::info!(port = name(*port), "the loop is over"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks two ports with these changes per second once a second; returns each change of state with its check.
    fn news(
        changes: [u64; 2],
        looks: std::ops::Range<u64>,
        loops: &mut Loops,
        start: Instant,
    ) -> Vec<(u64, News)> {
        let mut found = Vec::new();
        for look in looks {
            let counts = (0..).zip(changes.map(|changes| changes * look));
            let new = loops.look(start + LOOK * look as u32, counts);
            found.extend(new.into_iter().map(|one| (look, one)));
        }
        found
    }

    #[test]
    fn a_loop_is_told_of_when_it_has_lasted_and_when_it_is_over() {
        let (mut loops, start) = (Loops::default(), Instant::now());
        let begun = news([40_000, 36_000], 0..20, &mut loops, start);
        assert_eq!(begun, [(3, News::Begun(0)), (3, News::Begun(1))]);
        assert!(loops.has(0) && loops.has(1) && !loops.has(2));
        // The counts do not change any more.
        let counts = || (0..).zip([40_000 * 19, 36_000 * 19]);
        let over: Vec<Vec<News>> = (20..40)
            .map(|look| loops.look(start + LOOK * look, counts()))
            .collect();
        assert_eq!(over[9], [News::Over(0), News::Over(1)]);
        assert_eq!(over.iter().map(Vec::len).sum::<usize>(), 2);
    }

    #[test]
    fn one_port_with_many_changes_is_no_loop_and_few_on_two_are_none() {
        for changes in [[900_000, 0], [900, 900]] {
            let (mut loops, start) = (Loops::default(), Instant::now());
            assert_eq!(news(changes, 0..20, &mut loops, start), []);
        }
    }
}
