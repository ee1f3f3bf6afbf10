use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn no_quota(_: u16) -> Option<&'static Quota> {
    None
}

#[test]
fn a_bucket_is_one_cache_line() {
    assert_eq!(std::mem::size_of::<Bucket>(), 64);
    assert_eq!(Fdb::new(1, [1, 2]).capacity(), MIN_CAPACITY);
    assert_eq!(
        Fdb::new(MIN_CAPACITY + 1, [1, 2]).capacity(),
        2 * MIN_CAPACITY
    );
}

proptest! {
    /// A key contains the whole address and VLAN, so two addresses are never confused.
    #[test]
    fn keys_are_a_bijection(mac in 0u64..1 << 48, vlan in 0u16..4096, seed: [u64; 2]) {
        let fdb = Fdb::with_buckets(1 << IMPLIED_BITS, seed);
        let mac = Mac::from_le_word(mac);
        prop_assert_eq!(fdb.unkey(fdb.key(mac, vlan)), (mac, vlan));
    }

    /// Compared with a map: each learned address is found on the port where it was last seen, in its own VLAN.
    #[test]
    fn finds_what_it_learned(steps in proptest::collection::vec((0u8..40, 0u16..3, 0u16..5), 1..300), seed: [u64; 2]) {
        let fdb = Fdb::new(0, seed);
        let mut model = HashMap::new();
        for (mac, vlan, port) in steps {
            let mac = Mac::new([2, 0, 0, 0, 0, mac]);
            let learned = fdb.learn(fdb.key(mac, vlan), port, 0, no_quota);
            let want = match model.insert((mac, vlan), port) {
                None => Learned::New,
                Some(old) if old == port => Learned::Known,
                Some(old) => Learned::Moved(old),
            };
            prop_assert_eq!(learned, want);
        }
        for ((mac, vlan), port) in &model {
            prop_assert_eq!(fdb.lookup(fdb.key(*mac, *vlan)), Some(*port));
        }
        let mut dump: Vec<_> = fdb.dump(0).into_iter().map(|(m, v, p, _)| ((m, v), p)).collect();
        let mut want: Vec<_> = model.into_iter().collect();
        dump.sort();
        want.sort();
        prop_assert_eq!(dump, want);
    }
}

#[test]
fn a_full_bucket_keeps_what_it_has() {
    let fdb = Fdb::with_buckets(1, [3, 5]);
    // With one bucket the tag is not the whole key, so pick keys whose tags differ.
    let key = |i: u64| Key(i << IMPLIED_BITS);
    for i in 1..=7 {
        assert_eq!(fdb.learn(key(i), i as u16, 0, no_quota), Learned::New);
    }
    assert_eq!(fdb.learn(key(8), 8, 0, no_quota), Learned::Full);
    assert_eq!(fdb.lookup(key(7)), Some(7));
    assert_eq!(fdb.learn(key(7), 9, 0, no_quota), Learned::Moved(7));
}

#[test]
fn only_what_was_not_seen_ages_out_and_quota_comes_back() {
    let fdb = Fdb::new(0, [7, 9]);
    let quota = Quota::new(2);
    let quotas = |_: u16| Some(&quota);
    let key = |n| fdb.key(Mac::new([2, 0, 0, 0, 0, n]), 1);
    assert_eq!(fdb.learn(key(1), 0, 250, quotas), Learned::New);
    assert_eq!(fdb.learn(key(2), 0, 250, quotas), Learned::New);
    assert_eq!(fdb.learn(key(3), 0, 250, quotas), Learned::Refused);
    assert_eq!(fdb.learn(key(2), 0, 3, quotas), Learned::Known);
    // 250 to 4 is ten ticks, across the wrap.
    assert_eq!(fdb.sweep(4, quotas, |_, age| age >= 10), 1);
    assert_eq!((fdb.lookup(key(1)), fdb.lookup(key(2))), (None, Some(0)));
    assert_eq!(quota.used(), 1);
    assert_eq!(fdb.learn(key(3), 0, 4, quotas), Learned::New);
    assert_eq!(fdb.sweep(4, quotas, |port, _| port == 0), 0);
    assert_eq!(quota.used(), 0);
}
