//! Places for a server's clients: a limit for all clients together, and one for each client.
//!
//! A client that holds connections open, sends half a request, or does not read its answer cannot keep other clients out.
//! Where no place is free, the connection that has been without a request for longest gives way to the new one. If every
//! connection has a request, the one whose answer has waited or been sent for longest gives way. The connection that gives
//! way is closed.
//!
//! The same type also limits large answers, which a connection needs a place for only while it has one.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

/// How often a waiting client checks whether another one must give way by now.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A connection's phase, which decides whether it gives way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// It has sent no complete request.
    Idle,
    /// It has sent a request; work on the answer has not begun.
    Waiting,
    /// Its answer is being sent, as fast as the client reads it.
    Sending,
    /// Its answer is being worked on.
    Working,
}

/// The number of places, and the time in each phase after which a connection gives way; `None`: never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Places of all clients together.
    pub total_max: usize,
    /// Places of one client.
    pub peer_max: usize,
    pub idle: Option<Duration>,
    pub waiting: Option<Duration>,
    pub sending: Option<Duration>,
    pub working: Option<Duration>,
}

impl Limits {
    fn patience(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Idle => self.idle,
            Phase::Waiting => self.waiting,
            Phase::Sending => self.sending,
            Phase::Working => self.working,
        }
    }
}

/// Connections that a server has closed for lack of places, since the process started.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    gave_way: AtomicU64,
    refused: AtomicU64,
}

impl Closed {
    pub(crate) const fn new() -> Closed {
        Closed {
            gave_way: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Counts a new connection that was refused because none gave way.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of connections that gave way to newer ones, and number refused.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.gave_way, &self.refused].map(|count| count.load(Ordering::Relaxed))
    }
}

/// The places of one kind. `P` tells clients apart.
#[derive(Debug)]
pub(crate) struct Places<P> {
    limits: Limits,
    closed: &'static Closed,
    table: Mutex<Table<P>>,
    /// Notified when a place is free, or a waiting client has got one.
    changed: Notify,
}

#[derive(Debug)]
struct Table<P> {
    held: Vec<Held<P>>,
    /// Clients that wait for a place, with their sequence numbers.
    waiting: Vec<(u64, P)>,
    number_next: u64,
}

#[derive(Debug)]
struct Held<P> {
    number: u64,
    peer: P,
    phase: Phase,
    since: Instant,
    closing: Arc<Notify>,
}

impl<P: Copy + Eq> Places<P> {
    pub(crate) fn new(limits: Limits, closed: &'static Closed) -> Arc<Places<P>> {
        Arc::new(Places {
            limits,
            closed,
            table: Mutex::new(Table {
                held: Vec::new(),
                waiting: Vec::new(),
                number_next: 0,
            }),
            changed: Notify::new(),
        })
    }

    /// Takes a place for `peer` in phase `phase`, if one is free or a connection must give way. `closing` is notified when
    /// the new connection must give way later.
    pub(crate) fn try_take(
        self: &Arc<Self>,
        peer: P,
        phase: Phase,
        closing: &Arc<Notify>,
    ) -> Option<Place<P>> {
        let number = self.lock().take(&self.limits, peer, phase, closing);
        let (number, gave_way) = number?;
        if gave_way {
            self.closed.gave_way.fetch_add(1, Ordering::Relaxed);
        }
        Some(Place {
            places: Arc::clone(self),
            number,
            peer,
            closing: Arc::clone(closing),
        })
    }

    /// Like [`try_take`](Self::try_take), but waits until there is a place. Of one peer's waiting clients, the latest goes
    /// first: those before it may be gone, or belong to a client that asks more than it reads.
    pub(crate) async fn take(
        self: &Arc<Self>,
        peer: P,
        phase: Phase,
        closing: &Arc<Notify>,
    ) -> Place<P> {
        let turn = Turn::new(self, peer);
        loop {
            let changed = self.changed.notified();
            if turn.is_next()
                && let Some(place) = self.try_take(peer, phase, closing)
            {
                return place;
            }
            // The timeout is for connections that must give way by then.
            let _ = timeout(LOOK_INTERVAL, changed).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<P>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Copy + Eq> Table<P> {
    fn count(&self, peer: P) -> usize {
        self.held.iter().filter(|held| held.peer == peer).count()
    }

    /// Returns the number of the place, and whether another connection gave way.
    fn take(
        &mut self,
        limits: &Limits,
        peer: P,
        phase: Phase,
        closing: &Arc<Notify>,
    ) -> Option<(u64, bool)> {
        let now = Instant::now();
        let gives_way = match () {
            () if self.count(peer) >= limits.peer_max => {
                Some(self.giving_way(limits, now, |held| held.peer == peer)?)
            }
            // A peer that has no more places than this one keeps its places.
            () if self.held.len() >= limits.total_max => {
                let own = self.count(peer);
                let may = |held: &Held<P>| held.peer == peer || self.count(held.peer) > own;
                Some(self.giving_way(limits, now, may)?)
            }
            () => None,
        };
        if let Some(index) = gives_way {
            self.held.swap_remove(index).closing.notify_one();
        }
        let number = self.number();
        self.held.push(Held {
            number,
            peer,
            phase,
            since: now,
            closing: Arc::clone(closing),
        });
        Some((number, gives_way.is_some()))
    }

    /// Chooses the connection that gives way, among those that `may`: of the peer with the most places, the one that has
    /// been in its phase for longest.
    fn giving_way(
        &self,
        limits: &Limits,
        now: Instant,
        may: impl Fn(&Held<P>) -> bool,
    ) -> Option<usize> {
        let must = |held: &Held<P>| {
            let patience = limits.patience(held.phase);
            patience.is_some_and(|patience| now.duration_since(held.since) >= patience)
        };
        let all = self.held.iter().enumerate();
        let able = all.filter(|(_, held)| may(held) && must(held));
        let first = able.min_by_key(|(_, held)| {
            let of_peer = Reverse(self.count(held.peer));
            (of_peer, held.phase, held.since, held.number)
        });
        first.map(|(index, _)| index)
    }

    fn number(&mut self) -> u64 {
        self.number_next += 1;
        self.number_next
    }
}

/// A waiting client's position in the queue.
struct Turn<'a, P: Copy + Eq> {
    places: &'a Places<P>,
    number: u64,
    peer: P,
}

impl<'a, P: Copy + Eq> Turn<'a, P> {
    fn new(places: &'a Places<P>, peer: P) -> Self {
        let mut table = places.lock();
        let number = table.number();
        table.waiting.push((number, peer));
        Turn {
            places,
            number,
            peer,
        }
    }

    /// Whether no later client of the same peer waits.
    fn is_next(&self) -> bool {
        let table = self.places.lock();
        let mut waiting = table.waiting.iter();
        !waiting.any(|(number, peer)| *peer == self.peer && *number > self.number)
    }
}

impl<P: Copy + Eq> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        let mut table = self.places.lock();
        table.waiting.retain(|(number, _)| *number != self.number);
        drop(table);
        self.places.changed.notify_waiters();
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<P: Copy + Eq> {
    places: Arc<Places<P>>,
    number: u64,
    peer: P,
    closing: Arc<Notify>,
}

impl<P: Copy + Eq> Place<P> {
    /// The client.
    pub(crate) fn peer(&self) -> P {
        self.peer
    }

    /// Notified when the connection must give way.
    pub(crate) fn closing(&self) -> &Arc<Notify> {
        &self.closing
    }

    /// Sets the connection's phase.
    pub(crate) fn enter(&self, phase: Phase) {
        let mut table = self.places.lock();
        let mut held = table.held.iter_mut();
        if let Some(held) = held.find(|held| held.number == self.number) {
            (held.phase, held.since) = (phase, Instant::now());
        }
    }
}

impl<P: Copy + Eq> Drop for Place<P> {
    fn drop(&mut self) {
        let mut table = self.places.lock();
        // A place that gave way is no longer in the table.
        table.held.retain(|held| held.number != self.number);
        drop(table);
        self.places.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CLOSED: Closed = Closed::new();
    const ALWAYS: Option<Duration> = Some(Duration::ZERO);

    fn places(idle: Option<Duration>, working: Option<Duration>) -> Arc<Places<u32>> {
        let limits = Limits {
            total_max: 8,
            peer_max: 4,
            idle,
            waiting: ALWAYS,
            sending: ALWAYS,
            working,
        };
        Places::new(limits, &CLOSED)
    }

    fn take(places: &Arc<Places<u32>>, peer: u32, phase: Phase) -> Option<Place<u32>> {
        places.try_take(peer, phase, &Arc::default())
    }

    /// Over any order of clients and phases: there are never more places than the limit, and a client that has its share
    /// takes none from others.
    #[test]
    fn no_client_has_more_than_its_share_nor_takes_from_others_what_is_theirs() {
        let places = places(ALWAYS, None);
        let (mut random, mut held) = (1_u64, Vec::new());
        for _ in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (peer, what) = ((random >> 33) as u32 % 4, (random >> 40) % 5);
            let before = places.lock().count(peer + 1);
            match what {
                0 if !held.is_empty() => {
                    drop(held.swap_remove((random >> 45) as usize % held.len()))
                }
                1 | 2 => held.extend(take(&places, peer, Phase::Idle)),
                3 => held.extend(take(&places, peer, Phase::Working)),
                _ => {
                    if let Some(place) = held.last() {
                        place.enter(Phase::Sending);
                    }
                }
            }
            let table = places.lock();
            assert!(table.held.len() <= 8);
            assert!((0..4).all(|peer| table.count(peer) <= 4));
            // A place is taken only from a client that had more.
            let other = table.count(peer + 1);
            assert!(what == 0 || other >= before || before >= table.count(peer));
        }
    }

    #[test]
    fn idle_connections_give_way_before_those_that_are_sent_an_answer_and_the_oldest_first() {
        let places = places(ALWAYS, ALWAYS);
        let all = [Phase::Working, Phase::Sending, Phase::Waiting, Phase::Idle];
        let all = all.map(|phase| take(&places, 1, phase).expect("a place is free"));
        let mut order = Vec::new();
        for _ in 0..4 {
            let newer = take(&places, 1, Phase::Working).expect("one gives way");
            let numbers: Vec<u64> = places.lock().held.iter().map(|held| held.number).collect();
            let gone = all.iter().map(|place| !numbers.contains(&place.number));
            order.push(gone.collect::<Vec<bool>>());
            // A new phase makes it the newest of equal ones, so that it is not the next to give way.
            newer.enter(Phase::Working);
            std::mem::forget(newer);
        }
        let expected = [
            [false, false, false, true],
            [false, false, true, true],
            [false, true, true, true],
            [true, true, true, true],
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn where_none_gives_way_a_client_waits_and_the_last_is_the_first() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let places = places(None, None);
            let held = [(); 4].map(|()| take(&places, 1, Phase::Working).expect("a place is free"));
            assert!(take(&places, 1, Phase::Working).is_none());
            assert!(take(&places, 2, Phase::Working).is_some());
            let order = Arc::new(Mutex::new(Vec::new()));
            let waits = [0, 1, 2].map(|number| {
                let (places, order) = (Arc::clone(&places), Arc::clone(&order));
                tokio::spawn(async move {
                    let place = places.take(1, Phase::Working, &Arc::default()).await;
                    order.lock().expect("a test's own").push(number);
                    drop(place);
                })
            });
            tokio::task::yield_now().await;
            drop(held);
            for wait in waits {
                wait.await.expect("it ends");
            }
            assert_eq!(*order.lock().expect("a test's own"), [2, 1, 0]);
            assert!(places.lock().waiting.is_empty());
        });
    }
}
