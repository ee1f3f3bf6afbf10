//! The generations of rules that connections were compared with. They have 8 bits.

use super::connections::{Connections, Found};
use super::state::{Entry, State};
use super::zone::Zone;

/// How often rules may change before [`Connections::age_generations`] is needed.
pub const GENERATIONS_MAX: u32 = 100;

impl Connections {
    /// Generations wrap: an old one must not come to be the present one again. So those of all connections that are neither
    /// the present nor the last one become the last. [`sweep`](Self::sweep) does that too, in its time; the control side calls
    /// this if rules change more than [`GENERATIONS_MAX`] times meanwhile.
    pub fn age_generations<'z>(&self, zone: impl Fn(u32) -> Option<&'z Zone>) {
        for slot in 0..self.capacity() as u32 {
            if let Some((state, key)) = self.live_at(slot)
                && let Some(zone) = zone(key.zone())
            {
                self.age_generation(slot, state, zone);
            }
        }
    }

    pub(super) fn age_generation(&self, slot: u32, state: State, zone: &Zone) {
        let entry = state.entry();
        let (now, before) = (zone.generation(), zone.generation().wrapping_sub(1));
        let is_old = |entry: &Entry| entry.generation != now && entry.generation != before;
        if is_old(&entry) {
            let found = Found { slot, state, entry };
            // A worker may have compared it with the rules meanwhile.
            self.change(&found, |entry| match is_old(&entry) {
                true => Entry {
                    generation: before,
                    ..entry
                },
                false => entry,
            });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Timeouts;
    use super::super::key::Ends;
    use super::super::key::tests::of;
    use super::super::rules::Direction;
    use super::super::state::Phase;
    use super::*;

    /// However often rules change, and however long nothing of a connection comes meanwhile.
    #[test]
    fn a_generation_that_wraps_is_not_taken_for_the_present_one() {
        let table = Connections::new(10, Timeouts::default());
        let zone = Zone::new(9, 10);
        let ends = Ends {
            source: 1,
            destination: 2,
            source_port: 3,
            destination_port: 4,
        };
        let (key, _) = of(&ends, 6, (0, 9));
        let entry = Entry {
            phase: Phase::Established,
            is_low_originator: true,
            direction: Direction::In,
            generation: 3,
            tick: 5,
        };
        assert!(table.insert(&key, &table.place(&key), &entry).is_some());
        let mut generation = entry.generation;
        for changes in 1..2000 {
            generation = generation.wrapping_add(1);
            zone.set_generation(generation);
            if changes % GENERATIONS_MAX == 0 {
                table.age_generations(|id| (id == 9).then_some(&zone));
            }
            let found = table.find(&key, &table.place(&key)).expect("it is there");
            assert_ne!(found.entry.generation, generation, "after {changes}");
        }
    }
}
