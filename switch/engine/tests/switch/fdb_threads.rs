//! The forwarding database with real threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_engine::bridge::fdb::Quota;
use crosspoint_packet::Mac;

use crate::world::Random;

const PORTS: usize = 8;
const OPERATIONS: usize = 1_000_000;
/// More addresses than the table can hold, so that buckets fill up and empty again.
const ADDRESSES: usize = 40_000;

/// An address and its VLAN; it is only ever learned on ports `n % 8` and the next.
fn address(n: usize) -> (Mac, u16) {
    let [a, b, c, ..] = n.to_le_bytes();
    (Mac::new([2, 0, 0, a, b, c]), (n % 4) as u16)
}

fn is_learned_on(n: usize, port: u16) -> bool {
    let port = usize::from(port);
    port == n % PORTS || port == (n + 1) % PORTS
}

struct Table {
    fdb: Fdb,
    quotas: Vec<Quota>,
    stop: AtomicBool,
    found: AtomicU64,
    swept: AtomicU64,
}

impl Table {
    fn quota(&self, port: u16) -> Option<&Quota> {
        self.quotas.get(usize::from(port))
    }

    /// Learns and looks up, as workers do.
    fn learn_and_look_up(&self, seed: u64, tick: u8) {
        let mut random = Random(seed);
        for _ in 0..OPERATIONS / 2 {
            // Half of the accesses go to a few addresses, so that threads conflict there.
            let range = if random.one_in(2) { 16 } else { ADDRESSES };
            let n = random.below(range);
            let (mac, vlan) = address(n);
            let key = self.fdb.key(mac, vlan);
            if random.one_in(2) {
                let port = (n + random.below(2)) % PORTS;
                self.fdb.learn(key, port as u16, tick, |p| self.quota(p));
            } else if let Some(port) = self.fdb.lookup(key) {
                assert!(is_learned_on(n, port), "{mac} in {vlan} on {port}");
                self.found.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sweeps, as the control thread does.
    fn sweep(&self, tick: u8) {
        let mut random = Random(99);
        while !self.stop.load(Ordering::Relaxed) {
            let doomed = random.below(PORTS) as u16;
            let quotas = |port| self.quota(port);
            self.fdb.sweep(tick, quotas, |port, _| port == doomed);
            self.swept.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn lookups_find_only_where_an_address_was_learned_and_quotas_end_exact() {
    // Ports without a limit, with one that is reached sometimes, and with one that is always reached.
    let limits = [0, 0, 0, 1500, 1500, 1500, 10, 1];
    let table = Table {
        fdb: Fdb::new(0, [5, 6]),
        quotas: limits.into_iter().map(Quota::new).collect(),
        stop: AtomicBool::new(false),
        found: AtomicU64::new(0),
        swept: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let learners = [1, 2].map(|seed| {
            let table = &table;
            scope.spawn(move || table.learn_and_look_up(seed, 7))
        });
        scope.spawn(|| table.sweep(7));
        let results = learners.map(|learner| learner.join());
        table.stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert!(table.found.load(Ordering::Relaxed) > 10_000);
    assert!(table.swept.load(Ordering::Relaxed) > 10);

    let entries = table.fdb.dump(7);
    for (port, quota) in table.quotas.iter().enumerate() {
        let on = |entry: &&(Mac, u16, u16, u8)| usize::from(entry.2) == port;
        let (used, limit) = (quota.used() as usize, limits[port] as usize);
        assert_eq!(used, entries.iter().filter(on).count(), "port {port}");
        assert!(limit == 0 || used <= limit, "port {port}: {used}");
    }
    let quotas = |port| table.quota(port);
    assert_eq!(table.fdb.sweep(7, quotas, |_, _| true), 0);
    assert!(table.quotas.iter().all(|quota| quota.used() == 0));
}
