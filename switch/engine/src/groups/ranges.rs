//! Ranges of numbers (addresses, ports) with the set of things that each belongs to, for a binary search.
//!
//! All ranges are cut where any of them begins or ends. Each piece has a *class*: the set of things whose ranges cover it.
//! Pieces with the same set have the same class, and neighbours of one class are one piece. So a look-up costs the same
//! whatever the number of things is (the equivalence classes of Gupta and McKeown, "Packet classification on multiple
//! fields", SIGCOMM '99).

use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Pieces that are all compared with a number.
const FEW: usize = 8;

/// A set of things, a bit for each.
pub(super) type Bits = Box<[u64]>;

/// A number that can be searched for.
pub(super) trait Number: Copy + Ord {
    /// The least number.
    const MIN: Self;
    /// The next number; `None` after the last one.
    fn next(self) -> Option<Self>;
}

macro_rules! number {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            const MIN: $kind = 0;
            fn next(self) -> Option<$kind> {
                self.checked_add(1)
            }
        }
    )*};
}

number!(u16, u32, u128);

/// The pieces, ascending.
#[derive(Debug)]
pub(super) struct Pieces<N> {
    /// First number of each piece; the first piece begins with the least number.
    begins: Box<[N]>,
    /// Class of each piece.
    classes: Box<[u32]>,
    /// Things of each class.
    sets: Box<[Bits]>,
}

/// Begin or end of a range of one thing.
struct Edge<N> {
    at: N,
    thing: usize,
    is_begin: bool,
}

impl<N: Number> Pieces<N> {
    /// Cuts the ranges of `count` things; each range comes with its thing's number. Ranges of a thing may overlap.
    pub(super) fn new(
        count: usize,
        ranges: impl Iterator<Item = (RangeInclusive<N>, usize)>,
    ) -> Pieces<N> {
        let mut edges = Vec::new();
        for (range, thing) in ranges {
            edges.push(Edge {
                at: *range.start(),
                thing,
                is_begin: true,
            });
            // A range up to the last number does not end.
            if let Some(at) = range.end().next() {
                edges.push(Edge {
                    at,
                    thing,
                    is_begin: false,
                });
            }
        }
        edges.sort_unstable_by_key(|edge| edge.at);
        let mut pieces = Building::new(count);
        let mut rest = edges.as_slice();
        while let Some(first) = rest.first() {
            let same = rest.partition_point(|edge| edge.at == first.at);
            let (here, after) = rest.split_at(same);
            here.iter().for_each(|edge| pieces.cross(edge));
            pieces.begin(first.at);
            rest = after;
        }
        pieces.finish()
    }

    /// Returns the set of a number.
    #[inline(always)]
    pub(super) fn of(&self, number: N) -> &[u64] {
        let after = match self.begins.len() {
            // Few: counted without branches.
            0..=FEW => self
                .begins
                .iter()
                .map(|begin| usize::from(*begin <= number))
                .sum(),
            _ => self.begins.partition_point(|begin| *begin <= number),
        };
        let class = self.classes.get(after.saturating_sub(1));
        class
            .and_then(|class| self.sets.get(*class as usize))
            .map_or(&[], |set| set)
    }

    /// Returns the number of classes.
    pub(super) fn class_count(&self) -> usize {
        self.sets.len()
    }

    /// Returns the pieces with each class replaced by the set that `with` makes of it.
    pub(super) fn map(self, with: impl Fn(&[u64]) -> Bits) -> Pieces<N> {
        let sets = self.sets.iter().map(|set| with(set)).collect();
        Pieces { sets, ..self }
    }
}

/// Pieces while they are cut.
struct Building<N> {
    begins: Vec<N>,
    classes: Vec<u32>,
    sets: Vec<Bits>,
    known: HashMap<Bits, u32>,
    /// How many ranges of each thing cover the current number, and the things with any.
    cover: Vec<u32>,
    now: Bits,
}

impl<N: Number> Building<N> {
    fn new(count: usize) -> Building<N> {
        let mut building = Building {
            begins: Vec::new(),
            classes: Vec::new(),
            sets: Vec::new(),
            known: HashMap::new(),
            cover: vec![0; count],
            now: vec![0; count.div_ceil(64)].into(),
        };
        building.begin(N::MIN);
        building
    }

    fn cross(&mut self, edge: &Edge<N>) {
        let Some(cover) = self.cover.get_mut(edge.thing) else {
            return;
        };
        *cover = match edge.is_begin {
            true => *cover + 1,
            false => cover.saturating_sub(1),
        };
        let (is_covered, bit) = (*cover > 0, 1u64 << (edge.thing % 64));
        if let Some(word) = self.now.get_mut(edge.thing / 64) {
            *word = if is_covered {
                *word | bit
            } else {
                *word & !bit
            };
        }
    }

    fn begin(&mut self, at: N) {
        let class = match self.known.get(&self.now) {
            Some(class) => *class,
            None => {
                let class = self.sets.len() as u32;
                self.sets.push(self.now.clone());
                self.known.insert(self.now.clone(), class);
                class
            }
        };
        if self.begins.last() == Some(&at) {
            // The least number: what begins there replaces the empty piece.
            self.begins.pop();
            self.classes.pop();
        }
        if self.classes.last() != Some(&class) {
            self.begins.push(at);
            self.classes.push(class);
        }
    }

    fn finish(self) -> Pieces<N> {
        Pieces {
            begins: self.begins.into(),
            classes: self.classes.into(),
            sets: self.sets.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn has(set: &[u64], thing: usize) -> bool {
        set.get(thing / 64)
            .is_some_and(|word| word >> (thing % 64) & 1 != 0)
    }

    proptest! {
        /// A number has exactly the things whose ranges contain it.
        #[test]
        fn a_number_has_the_things_whose_ranges_contain_it(
            ranges in prop::collection::vec((any::<u16>(), any::<u16>(), 0usize..70), 0..60),
            probes in prop::collection::vec(any::<u16>(), 40),
        ) {
            let ranges: Vec<_> = ranges
                .into_iter()
                .map(|(a, b, thing)| (a.min(b)..=a.max(b), thing))
                .collect();
            let pieces = Pieces::<u16>::new(70, ranges.iter().cloned());
            let edges = ranges.iter().flat_map(|(range, _)| {
                [*range.start(), *range.end(), range.end().saturating_add(1), range.start().saturating_sub(1)]
            });
            for number in probes.into_iter().chain(edges).chain([0, u16::MAX]) {
                for thing in 0..70 {
                    let expected = ranges.iter().any(|(range, of)| *of == thing && range.contains(&number));
                    prop_assert_eq!(has(pieces.of(number), thing), expected, "{} {}", number, thing);
                }
            }
        }
    }
}
