use super::*;
use loom::sync::Arc;

fn bounded(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Two workers learn one address on different ports while a third looks it up and the sweeper ages: a lookup finds
/// one of the ports or nothing, never a mixture; quotas match the entries; when all threads are done there is at most
/// one entry.
#[test]
fn insertion_lookup_and_ageing_at_once_never_show_a_wrong_port() {
    bounded(|| {
        let fdb = Arc::new(Fdb::with_buckets(1, [1, 1]));
        let quotas = Arc::new([Quota::new(0), Quota::new(0)]);
        let key = Key(5 << IMPLIED_BITS);
        let learners: Vec<_> = (0..2u16)
            .map(|port| {
                let (fdb, quotas) = (fdb.clone(), quotas.clone());
                loom::thread::spawn(move || {
                    fdb.learn(key, port, 1, |p| quotas.get(usize::from(p)));
                })
            })
            .collect();
        let found = fdb.lookup(key);
        assert!(matches!(found, None | Some(0) | Some(1)));
        fdb.sweep(9, |p| quotas.get(usize::from(p)), |_, age| age >= 8);
        for learner in learners {
            learner.join().unwrap();
        }
        fdb.learn(key, 0, 1, |p| quotas.get(usize::from(p)));
        let entries = fdb.buckets[0].entries.iter();
        let left = entries
            .filter(|e| e.load(Ordering::Relaxed) != EMPTY)
            .count() as u32;
        assert_eq!(quotas[0].used() + quotas[1].used(), left);
        assert_eq!(fdb.lookup(key), Some(0));
    });
}

/// An address that may move once is claimed by two ports at once, one of them its home. In any order it has one entry
/// at the end, and quotas match.
#[test]
fn damped_moves_leave_quotas_even() {
    bounded(|| {
        let fdb = Arc::new(Fdb::with_buckets(1, [1, 1]));
        fdb.set_damping(Damping {
            moves_max: 1,
            window_s: 180,
        });
        let quotas = Arc::new([Quota::new(0), Quota::new(0)]);
        let key = Key(5 << IMPLIED_BITS);
        fdb.learn(key, 0, 1, |p| quotas.get(usize::from(p)));
        fdb.learn(key, 1, 1, |p| quotas.get(usize::from(p)));
        let claims: Vec<_> = (0..2u16)
            .map(|port| {
                let (fdb, quotas) = (fdb.clone(), quotas.clone());
                loom::thread::spawn(move || {
                    fdb.learn(key, port, 1, |p| quotas.get(usize::from(p)));
                })
            })
            .collect();
        for claim in claims {
            claim.join().unwrap();
        }
        assert_eq!((quotas[0].used(), quotas[1].used()), (1, 0));
        assert_eq!(fdb.lookup(key), Some(0));
    });
}
