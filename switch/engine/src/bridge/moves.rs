//! Damping of addresses that move between ports too often.
//!
//! One word per slot of the forwarding database. Only moves access it: an address that does not move costs nothing here.
//!
//! The rule is that of EVPN for duplicate addresses (RFC 7432, 15.1): a first move starts a window, and after a number of
//! moves within it the address stays until the window ends. It stays on its home, the port that it was on before the
//! first move, not on the port of the last move. So a guest that sends with a neighbour's address gets its traffic only
//! for a moment, and a guest that migrates, which is one move, is not delayed.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use crosspoint_packet::Mac;

use crate::bridge::quota::Count;

/// No moves recorded: a recorded entry has a count of at least one.
const NONE: u64 = 0;
/// Exchanges that a worker tries before it leaves a move uncounted. Each failed exchange means that another worker has
/// counted a move.
const TRIES: usize = 8;
/// Bits of a port's number.
const PORT_BITS: u32 = 12;
const PORT_MASK: u64 = (1 << PORT_BITS) - 1;
const _: () = assert!(crate::MAX_PORTS <= 1 << PORT_BITS);

/// The longest window, seconds. Times have 16 bits, and old records are removed within an hour.
pub const WINDOW_S_MAX: u16 = 3600;

/// Limit on the moves of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damping {
    /// Moves within the window after which the address stays on its home. 0 for no limit.
    pub moves_max: u8,
    /// The window's length, seconds: at most [`WINDOW_S_MAX`].
    pub window_s: u16,
}

impl Damping {
    /// No limit: addresses may move at any rate.
    pub const OFF: Damping = Damping {
        moves_max: 0,
        window_s: 180,
    };
}

/// An address that has moved recently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mover {
    /// The address.
    pub mac: Mac,
    /// Its VLAN.
    pub vlan: u16,
    /// The port that it was on before the first move.
    pub home: u16,
    /// The last other port that it was on.
    pub other: u16,
    /// The port that it is on now.
    pub port: u16,
    /// Number of moves; 255 means 255 or more.
    pub moves: u8,
    /// Seconds since the first move.
    pub since_s: u16,
    /// Whether it has moved too often and so stays on its home.
    pub is_damped: bool,
}

/// Move record of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Noted {
    /// Part of the address's key.
    pub(crate) mark: u16,
    first_s: u16,
    count: u8,
    home: u16,
    other: u16,
}

impl Noted {
    fn pack(self) -> u64 {
        u64::from(self.mark) << 48
            | u64::from(self.first_s) << 32
            | u64::from(self.count) << (2 * PORT_BITS)
            | (u64::from(self.home) & PORT_MASK) << PORT_BITS
            | (u64::from(self.other) & PORT_MASK)
    }

    fn unpack(word: u64) -> Option<Noted> {
        (word != NONE).then_some(Noted {
            mark: (word >> 48) as u16,
            first_s: (word >> 32) as u16,
            count: (word >> (2 * PORT_BITS)) as u8,
            home: (word >> PORT_BITS & PORT_MASK) as u16,
            other: (word & PORT_MASK) as u16,
        })
    }

    /// Returns the record with one more move.
    fn with(self, from: u16, to: u16) -> Noted {
        Noted {
            count: self.count.saturating_add(1),
            other: if to == self.home { from } else { to },
            ..self
        }
    }
}

/// Move records of all slots.
pub(crate) struct Moves {
    words: Box<[AtomicU64]>,
    /// [`Damping`], packed, and the clock in seconds. loom does not need to model them.
    damping: std::sync::atomic::AtomicU32,
    time_s: std::sync::atomic::AtomicU64,
    refused: Count,
}

impl Moves {
    pub(crate) fn new(places: usize) -> Moves {
        let moves = Moves {
            words: (0..places).map(|_| AtomicU64::new(NONE)).collect(),
            damping: std::sync::atomic::AtomicU32::new(0),
            time_s: std::sync::atomic::AtomicU64::new(0),
            refused: Count::default(),
        };
        moves.set_damping(Damping::OFF);
        moves
    }

    pub(crate) fn set_damping(&self, damping: Damping) {
        let window_s = damping.window_s.min(WINDOW_S_MAX);
        let both = u32::from(damping.moves_max) << 16 | u32::from(window_s);
        self.damping
            .store(both, std::sync::atomic::Ordering::Relaxed);
    }

    fn damping(&self) -> Damping {
        let both = self.damping.load(std::sync::atomic::Ordering::Relaxed);
        Damping {
            moves_max: (both >> 16) as u8,
            window_s: both as u16,
        }
    }

    pub(crate) fn set_time_s(&self, time_s: u64) {
        self.time_s
            .store(time_s, std::sync::atomic::Ordering::Relaxed);
    }

    fn time_s(&self) -> u16 {
        self.time_s.load(std::sync::atomic::Ordering::Relaxed) as u16
    }

    pub(crate) fn count_refused(&self) {
        self.refused.add_one();
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    fn is_recent(&self, noted: &Noted) -> bool {
        self.time_s().wrapping_sub(noted.first_s) < self.damping().window_s
    }

    fn is_damped(&self, noted: &Noted) -> bool {
        let moves_max = self.damping().moves_max;
        moves_max != 0 && noted.count >= moves_max && self.is_recent(noted)
    }

    /// Returns the home of the address `mark` at `place`, if the address has moved too often.
    pub(crate) fn home_if_damped(&self, place: usize, mark: u16) -> Option<u16> {
        if self.damping().moves_max == 0 {
            return None;
        }
        let noted = Noted::unpack(self.words.get(place)?.load(Ordering::Relaxed))?;
        (noted.mark == mark && self.is_damped(&noted)).then_some(noted.home)
    }

    /// Records a move. The first within a window makes `from` the home.
    pub(crate) fn note(&self, place: usize, mark: u16, from: u16, to: u16) {
        let Some(word) = self.words.get(place) else {
            return;
        };
        let first = Noted {
            mark,
            first_s: self.time_s(),
            count: 0,
            home: from,
            other: to,
        };
        for _ in 0..TRIES {
            let before = word.load(Ordering::Relaxed);
            let noted = Noted::unpack(before)
                .filter(|noted| noted.mark == mark && self.is_recent(noted))
                .unwrap_or(first);
            let after = noted.with(from, to).pack();
            let won = word.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
            if won.is_ok() {
                return;
            }
        }
    }

    /// Clears the record of `place`: another address has the slot.
    pub(crate) fn forget(&self, place: usize) {
        if let Some(word) = self.words.get(place)
            && word.load(Ordering::Relaxed) != NONE
        {
            word.store(NONE, Ordering::Relaxed);
        }
    }

    pub(crate) fn forget_home(&self, port: u16) {
        self.forget_if(|noted| noted.home == port);
    }

    pub(crate) fn forget_old(&self) {
        self.forget_if(|noted| !self.is_recent(noted));
    }

    fn forget_if(&self, is_doomed: impl Fn(&Noted) -> bool) {
        for word in &self.words {
            let before = word.load(Ordering::Relaxed);
            if Noted::unpack(before).is_some_and(|noted| is_doomed(&noted)) {
                // If another move was recorded meanwhile, it stays.
                let _ = word.compare_exchange(before, NONE, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Returns the slots with moves within the window.
    pub(crate) fn recent(&self) -> impl Iterator<Item = (usize, Noted)> {
        let words = self.words.iter().enumerate();
        words.filter_map(|(place, word)| {
            let noted = Noted::unpack(word.load(Ordering::Relaxed))?;
            self.is_recent(&noted).then_some((place, noted))
        })
    }

    pub(crate) fn mover(&self, noted: Noted, mac: Mac, vlan: u16, port: u16) -> Mover {
        Mover {
            mac,
            vlan,
            home: noted.home,
            other: noted.other,
            port,
            moves: noted.count,
            since_s: self.time_s().wrapping_sub(noted.first_s),
            is_damped: self.is_damped(&noted),
        }
    }
}
