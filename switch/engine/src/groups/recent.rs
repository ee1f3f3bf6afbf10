//! Verdicts on packets that a worker has let pass a moment ago.
//!
//! A plain packet ([`PlainKey`]) that is equal to an earlier one in all that groups look at passes like that one, as long as
//! the port's rules are the same, and its connection's state is, word for word: then it would change nothing. So most packets
//! cost a look at one line here, and, with a connection, at one in the table; neither a key nor a rule is compared. What does
//! not pass, or changes a connection, is never remembered.
//!
//! A guest that sends many flows displaces what others have here. Their packets then cost what they cost without this.

use crosspoint_frame::prefetch_read;

use crate::groups::packet::PlainKey;

/// Verdicts that a worker remembers: those of some ten thousand flows; 1 MiB.
const ENTRIES: usize = 1 << 15;
/// Words of a verdict: the key's two, the state of the connection, and what decided with the policy's stamp.
const ENTRY_WORDS: usize = 4;
/// Two verdicts share a cache line.
const SETS: usize = ENTRIES / 2;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([u64; 2 * ENTRY_WORDS]);

/// By what a packet passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// This stateless rule.
    Rule(u32),
    /// The connection in this slot of the table, while the slot has this state, which is not 0.
    Connection { slot: u32, state: u64 },
}

/// Which rules have decided: those of one port in one direction, until they change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(pub(super) u32);

/// Where a verdict is: the number of its set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SetNumber(u32);

/// The verdicts that a worker remembers.
pub(super) struct Recent {
    sets: Box<[Set]>,
    /// Random: guests choose what is hashed.
    seed: u64,
    /// Which of two verdicts the next one replaces.
    turn: usize,
}

impl Recent {
    pub(super) fn new(seed: u64) -> Recent {
        Recent {
            sets: vec![Set([0; 2 * ENTRY_WORDS]); SETS].into(),
            seed: seed | 1,
            turn: 0,
        }
    }

    /// Returns where the verdict on a packet is, and prefetches it.
    #[inline(always)]
    pub(super) fn look(&self, key: &PlainKey, stamp: Stamp) -> SetNumber {
        let product = u128::from(key.ends ^ self.seed)
            * u128::from(key.rest ^ u64::from(stamp.0) << 32 ^ self.seed.rotate_left(32));
        let hash = product as u64 ^ (product >> 64) as u64;
        let number = (hash >> 32) as u32 % SETS as u32;
        if let Some(set) = self.sets.get(number as usize) {
            prefetch_read(std::ptr::from_ref(set).cast());
        }
        SetNumber(number)
    }

    /// Returns by what an equal packet passed.
    #[inline(always)]
    pub(super) fn find(&self, number: SetNumber, key: &PlainKey, stamp: Stamp) -> Option<By> {
        let Set([a, b, c, d, e, f, g, h]) = *self.sets.get(number.0 as usize)?;
        let by = |state: u64, word: u64| match state {
            0 => By::Rule(word as u32),
            state => By::Connection {
                slot: word as u32,
                state,
            },
        };
        let differs = |ends: u64, rest: u64, word: u64| {
            (ends ^ key.ends) | (rest ^ key.rest) | ((word >> 32) ^ u64::from(stamp.0))
        };
        if differs(a, b, d) == 0 {
            return Some(by(c, d));
        }
        (differs(e, f, h) == 0).then(|| by(g, h))
    }

    /// Remembers by what a packet passed.
    #[inline(always)]
    pub(super) fn put(&mut self, number: SetNumber, key: &PlainKey, stamp: Stamp, by: By) {
        let (state, at) = match by {
            By::Rule(rule) => (0, rule),
            By::Connection { slot, state } => (state, slot),
        };
        let Some(Set(words)) = self.sets.get_mut(number.0 as usize) else {
            return;
        };
        // The one of the same packet, if there is one: its connection has changed.
        let mut ways = words.as_chunks::<ENTRY_WORDS>().0.iter();
        let is_it = |[ends, rest, _, word]: &[u64; ENTRY_WORDS]| {
            (*ends, *rest, *word >> 32) == (key.ends, key.rest, u64::from(stamp.0))
        };
        let way = ways.position(is_it).unwrap_or_else(|| {
            self.turn ^= 1;
            self.turn
        });
        if let Some(entry) = words.as_chunks_mut::<ENTRY_WORDS>().0.get_mut(way) {
            let word = u64::from(stamp.0) << 32 | u64::from(at);
            *entry = [key.ends, key.rest, state, word];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> PlainKey {
        PlainKey {
            ends: number,
            rest: !number,
        }
    }

    #[test]
    fn a_verdict_is_found_for_the_same_packet_and_rules_and_for_no_other() {
        let mut recent = Recent::new(7);
        let by = |number: u64| match number % 2 {
            0 => By::Rule(number as u32),
            _ => By::Connection {
                slot: number as u32,
                state: number << 40,
            },
        };
        assert_eq!(
            recent.find(recent.look(&key(0), Stamp(1)), &key(0), Stamp(1)),
            None
        );
        for number in 1..=1000 {
            let set = recent.look(&key(number), Stamp(5));
            recent.put(set, &key(number), Stamp(5), by(number));
            assert_eq!(recent.find(set, &key(number), Stamp(5)), Some(by(number)));
            assert_eq!(recent.find(set, &key(number), Stamp(4)), None);
            assert_eq!(recent.find(set, &key(number + 2000), Stamp(5)), None);
        }
        let found = |number: &u64| {
            let set = recent.look(&key(*number), Stamp(5));
            recent.find(set, &key(*number), Stamp(5)) == Some(by(*number))
        };
        assert!((1..=1000).filter(found).count() > 950);
    }

    #[test]
    fn a_packet_has_one_verdict_which_its_next_one_replaces() {
        let mut recent = Recent::new(1);
        let set = recent.look(&key(3), Stamp(2));
        for rule in 0..9 {
            recent.put(set, &key(3), Stamp(2), By::Rule(rule));
            recent.put(set, &key(4), Stamp(2), By::Rule(100));
            assert_eq!(recent.find(set, &key(3), Stamp(2)), Some(By::Rule(rule)));
            assert_eq!(recent.find(set, &key(4), Stamp(2)), Some(By::Rule(100)));
        }
    }
}
