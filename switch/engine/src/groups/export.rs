//! Connections as text: for another process of the switch that goes on with them, and for another switch to which a guest
//! migrates ([`migrate`](super::migrate)).
//!
//! Each connection is 56 bytes, least significant bytes first: the key's six words; the phase's number; whether the originator
//! is the key's lower end; the direction of the first packet, 1 for out; a byte that is not used; and the seconds since its
//! last packet.

use super::connections::Connections;
use super::key::Key;
use super::rules::Direction;
use super::state::{Entry, Phase, TICK_MASK, idle};
use super::zone::Zone;

/// Length of a connection in the text.
pub const EXPORTED_LEN: usize = 56;

/// What an export has seen: by slot, a part of the state that changes with each connection and phase.
#[derive(Default)]
pub struct Exported(Vec<u16>);

impl Connections {
    /// Writes the connections that `before` has not seen in their present phase; all of them, if there is no `before`.
    pub fn export(&self, before: Option<&Exported>) -> (Vec<u8>, Exported) {
        let mut bytes = Vec::new();
        let now = self.now();
        let mut seen = Exported(vec![0; self.capacity()]);
        for slot in 0..self.capacity() as u32 {
            let Some((state, key)) = self.live_at(slot) else {
                continue;
            };
            let mark = state.mark();
            if let Some(place) = seen.0.get_mut(slot as usize) {
                *place = mark;
            }
            let known = before.and_then(|before| before.0.get(slot as usize));
            let entry = state.entry();
            if known == Some(&mark) || entry.phase == Phase::Fragments {
                continue;
            }
            write(&mut bytes, &key, &entry, now);
        }
        (bytes, seen)
    }

    /// Adds connections that [`export`](Self::export) has written `age_s` seconds ago, or changes those that are there. `zone`
    /// returns the zone that takes the place of one of these, by its number. The rules of now are asked again when a
    /// connection's next packet comes. Connections beyond a zone's quota, or that do not fit, are left out. Returns how many
    /// were taken.
    pub fn import<'z>(
        &self,
        bytes: &[u8],
        age_s: u32,
        zone: impl Fn(u32) -> Option<&'z Zone>,
    ) -> usize {
        let connections = bytes.chunks_exact(EXPORTED_LEN);
        let taken = connections.filter(|bytes| self.import_one(bytes, age_s, &zone).is_some());
        taken.count()
    }

    fn import_one<'z>(
        &self,
        bytes: &[u8],
        age_s: u32,
        zone: &impl Fn(u32) -> Option<&'z Zone>,
    ) -> Option<()> {
        let (mut key, mut entry, idle) = read(bytes)?;
        let zone = zone(key.zone())?;
        key.set_zone(zone.id());
        // Another one than that of now.
        entry.generation = zone.generation().wrapping_sub(1);
        self.put(&key, entry, idle.saturating_add(age_s), zone)
    }

    /// Adds a connection whose last packet came `idle` seconds ago, or changes the one that is there.
    pub(super) fn put(&self, key: &Key, mut entry: Entry, idle: u32, zone: &Zone) -> Option<()> {
        if idle >= self.timeout_of(entry.phase, key) {
            return None;
        }
        entry.tick = self.now().wrapping_sub(idle) & TICK_MASK;
        let place = self.place(key);
        if let Some(found) = self.find(key, &place) {
            let (before, after) = self.change(&found, |_| entry)?;
            zone.note_change(&before, &after);
            return Some(());
        }
        if !zone.reserve(&entry) {
            return None;
        }
        if self.insert(key, &place, &entry).is_none() {
            zone.note_gone(&entry);
            return None;
        }
        Some(())
    }
}

/// Adds a connection to the text.
pub(super) fn write(bytes: &mut Vec<u8>, key: &Key, entry: &Entry, now: u32) {
    bytes.extend(key.words.iter().flat_map(|word| word.to_le_bytes()));
    let is_out = entry.direction == Direction::Out;
    let phase = entry.phase.number();
    bytes.extend([phase, entry.is_low_originator.into(), is_out.into(), 0]);
    bytes.extend(idle(entry.tick, now).to_le_bytes());
}

/// Reads a connection, whose generation and tick are not known, and the seconds since its last packet.
pub(super) fn read(bytes: &[u8]) -> Option<(Key, Entry, u32)> {
    let mut key = Key::default();
    for (word, bytes) in key.words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    let [phase, is_low, is_out, _, a, b, c, d] = *bytes.get(48..)?.first_chunk::<8>()?;
    let entry = Entry {
        phase: Phase::of_number(phase)?,
        is_low_originator: is_low != 0,
        direction: match is_out {
            0 => Direction::In,
            _ => Direction::Out,
        },
        generation: 0,
        tick: 0,
    };
    Some((key, entry, u32::from_le_bytes([a, b, c, d])))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::key::Ends;
    use super::super::key::tests::of;
    use super::super::timeouts::Timeouts;
    use super::*;

    fn table() -> Connections {
        Connections::new(4096, Timeouts::default())
    }

    fn key(number: u32, zone: u32) -> Key {
        let ends = Ends {
            source: u128::from(number),
            destination: 7,
            source_port: number as u16,
            destination_port: 443,
        };
        of(&ends, 6, (3, zone)).0
    }

    fn insert(table: &Connections, number: u32, phase: Phase) {
        let key = key(number, 5);
        let entry = Entry {
            phase,
            is_low_originator: number.is_multiple_of(2),
            direction: [Direction::In, Direction::Out][number as usize % 2],
            generation: 9,
            tick: table.now(),
        };
        assert!(table.insert(&key, &table.place(&key), &entry).is_some());
    }

    /// Every connection is found in the other table, in the zone that takes the place of its own, with its phase, its originator
    /// and its direction; what has begun or changed after a first export is in the second.
    #[test]
    fn connections_arrive_in_another_table_and_so_do_those_that_begin_meanwhile() {
        let (from, to) = (table(), table());
        (0..2000).for_each(|number| insert(&from, number, Phase::Established));
        let (first, seen) = from.export(None);
        assert_eq!(first.len(), 2000 * EXPORTED_LEN);
        (2000..2100).for_each(|number| insert(&from, number, Phase::SynSent));
        let changed = from.find(&key(1, 5), &from.place(&key(1, 5))).unwrap();
        let closed = |entry: Entry| Entry {
            phase: Phase::Closed,
            ..entry
        };
        from.change(&changed, closed).unwrap();
        let (second, _) = from.export(Some(&seen));
        assert_eq!(second.len(), 101 * EXPORTED_LEN);

        let zone = Zone::new(8, 4096);
        let of_zone = |id: u32| (id == 5).then_some(&zone);
        assert_eq!(to.import(&first, 3, of_zone), 2000);
        assert_eq!(to.import(&second, 0, of_zone), 101);
        assert_eq!((zone.connections(), zone.half_open()), (2100, 100));
        for number in 0..2100 {
            let there = from
                .find(&key(number, 5), &from.place(&key(number, 5)))
                .unwrap();
            let here = to
                .find(&key(number, 8), &to.place(&key(number, 8)))
                .unwrap();
            let of = |entry: &Entry| (entry.phase, entry.is_low_originator, entry.direction);
            assert_eq!(of(&here.entry), of(&there.entry), "{number}");
            assert_ne!(here.entry.generation, zone.generation());
        }
        assert_eq!(to.import(&first, 0, |_| None), 0, "zones that are gone");
        // Three that have been idle for too long, and a part of one.
        assert_eq!(to.import(&[1; 3 * EXPORTED_LEN + 9], 0, |_| Some(&zone)), 0);
        assert_eq!(to.import(&first, 1 << 19, of_zone), 0, "idle for too long");
        assert_eq!(zone.connections(), 2100);
        let full = Zone::new(8, 64);
        assert_eq!(table().import(&first, 0, |_| Some(&full)), 64);
    }
}
