//! Sets of cores, as the kernel writes them.

use std::collections::BTreeSet;
use std::fmt;

/// A set of cores. Displayed as the kernel writes its lists: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(BTreeSet<usize>);

/// The highest core number: no Linux is built for more cores. Higher ones are ignored when a set is read.
const CORE_MAX: usize = 8191;

impl Cpus {
    /// Reads a list: `0-3,8`. Parts that are not numbers or ranges are ignored.
    pub fn from_list(text: &str) -> Cpus {
        let ranges = text.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = first.trim().parse().ok()?;
            // No kernel file that is read here uses a stride, as in `0-8:2/4`.
            let last: usize = last.trim().parse().ok()?;
            Some(first..=last.min(CORE_MAX))
        });
        Cpus(ranges.flatten().collect())
    }

    /// Reads a mask: hexadecimal digits in groups of 32 bits, the highest first: `1,00000000`.
    pub fn from_mask(text: &str) -> Cpus {
        let digits = text.trim().bytes().rev().filter(|byte| *byte != b',');
        let bits = digits.take(CORE_MAX / 4 + 1).enumerate();
        let cores = bits.flat_map(|(place, digit)| {
            let digit = char::from(digit).to_digit(16).unwrap_or(0);
            let is_set = move |bit: &usize| digit & (1 << bit) != 0;
            (0..4).filter(is_set).map(move |bit| 4 * place + bit)
        });
        Cpus(cores.collect())
    }

    /// The mask, as [`from_mask`](Self::from_mask) reads it.
    pub fn mask(&self) -> String {
        let groups = self.0.last().map_or(1, |last| last / 32 + 1);
        let group = |group: usize| {
            let bits = (0..32).filter(|bit| self.has(32 * group + bit));
            format!("{:08x}", bits.map(|bit| 1u32 << bit).sum::<u32>())
        };
        let all: Vec<String> = (0..groups).rev().map(group).collect();
        all.join(",")
    }

    /// For a sentence: `core 4`, `cores 2-3`.
    pub fn named(&self) -> String {
        match self.len() {
            1 => format!("core {self}"),
            _ => format!("cores {self}"),
        }
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of cores.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `core` is in the set.
    pub fn has(&self, core: usize) -> bool {
        self.0.contains(&core)
    }

    /// The cores in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }

    /// The cores that are in both sets.
    pub fn and(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.intersection(&other.0).copied().collect())
    }

    /// The cores that are in either set.
    pub fn or(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.union(&other.0).copied().collect())
    }

    /// The cores that are not in `other`.
    pub fn without(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<usize> for Cpus {
    fn from_iter<T: IntoIterator<Item = usize>>(cores: T) -> Cpus {
        Cpus(cores.into_iter().collect())
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for core in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == core => *last = core,
                _ => runs.push((core, core)),
            }
        }
        let runs = runs.into_iter().map(|(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        });
        f.write_str(&runs.collect::<Vec<_>>().join(","))
    }
}
