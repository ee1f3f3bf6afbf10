//! Tests of counts and events.

use super::*;
use crate::groups::key::Ends;
use crate::groups::key::tests::of;
use crate::groups::timeouts::Timeouts;
use crate::groups::zone::Zone;

const OPTIONS: AccountingOptions = AccountingOptions {
    begins: true,
    denied_per_s: 10,
    hz: 2.6e9,
};
const WORKERS: usize = 3;

fn key(number: u32) -> Key {
    let ends = Ends {
        source: number.into(),
        destination: u128::MAX,
        source_port: 1,
        destination_port: 2,
    };
    of(&ends, 17, (4, 1)).0
}

fn entry(tick: u32) -> Entry {
    Entry {
        phase: Phase::OneWay,
        is_low_originator: true,
        direction: Direction::In,
        generation: 0,
        tick,
    }
}

fn insert(table: &Connections, number: u32, tick: u32) -> u32 {
    let key = key(number);
    let slot = table.insert(&key, &table.place(&key), &entry(tick));
    slot.expect("room")
}

/// Several workers count packets of the same connections at the same time: the sums have all of them.
#[test]
fn counts_of_several_workers_are_added_up() {
    let table = Connections::new(8, Timeouts::default());
    table.start_accounting(WORKERS, &OPTIONS);
    let slots = [1, 2].map(|number| insert(&table, number, 0));
    let count = |worker: usize| {
        let accounting = table.accounting().expect("it is on");
        for number in 0..30_000u64 {
            let (slot, side) = (slots[number as usize % 2], number as usize / 2 % 2);
            accounting.add((worker, slot), side, (1, 100 + worker as u64), 1 << 30);
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || count(worker));
        }
    });
    for slot in slots {
        let record = table.flow_at(slot).expect("it is there");
        assert_eq!(record.counts.packets, [7500 * 3; 2]);
        assert_eq!(record.counts.octets, [7500 * 303; 2]);
        assert_eq!((record.base, record.vlan), (Counts::default(), 4));
    }
}

/// However often a slot is used again, each connection has its own packets; what ends is an event with all of them. Only the
/// events that find their queue full are lost, and counted.
#[test]
fn a_slot_that_is_used_again_counts_for_the_next_connection() {
    let table = Connections::new(1, Timeouts::default());
    let accounting = table.start_accounting(WORKERS, &OPTIONS);
    let zone = Zone::new(1, 100);
    let mut octets = 0;
    for number in 0..200u32 {
        let slot = insert(&table, number, number * 100);
        for worker in 0..WORKERS {
            let more = u64::from(number) * 10 + worker as u64;
            octets += more;
            accounting.add((worker, slot), worker % 2, (1, more), tsc());
        }
        let swept = table.sweep(number * 100 + 31, table.capacity(), |_| Some(&zone));
        assert_eq!(swept.removed, 1);
        let (event, record) = accounting.next_event().expect("an event");
        assert_eq!(event, FlowEvent::Ended(FlowEnd::Idle));
        let counts = record.counts.since(&record.base);
        assert_eq!(counts.packets, [2, 1]);
        octets -= counts.octets.iter().sum::<u64>();
        assert!(record.began_at <= record.last_at && record.last_at <= tsc());
    }
    assert_eq!(
        (octets, accounting.next_event(), accounting.events_lost()),
        (0, None, 0)
    );
    for number in 0..SWEPT_EVENTS as u32 + 5 {
        insert(&table, number, 20_000);
        table.sweep(20_031, table.capacity(), |_| None);
    }
    assert_eq!(accounting.events_lost(), 5);
    let forced = (FlowEvent::Ended(FlowEnd::Forced), table.capacity() as u32);
    let (event, record) = accounting.next_event().expect("an event");
    assert!(event == forced.0 && record.slot < forced.1);
}

/// Counts wrap, and a value that was read late adds nothing.
#[test]
fn differences_of_counts_wrap() {
    let counts = |packets: u32, octets: u64| Counts {
        packets: [packets; 2],
        octets: [octets; 2],
    };
    let before = counts(u32::MAX, u64::MAX);
    assert_eq!(counts(4, 9).since(&before), counts(5, 10));
    assert!(before.since(&counts(4, 9)).is_zero());
}

/// Denied packets are events up to their rate; the others are counted.
#[test]
fn denied_packets_keep_to_their_rate() {
    let table = Connections::new(8, Timeouts::default());
    let accounting = table.start_accounting(WORKERS, &OPTIONS);
    for _ in 0..100 {
        if accounting.has_room_for_denied(1, Direction::In, 1 << 40) {
            accounting.denied(1, (&key(1), &entry(0)), (1, 40), 1 << 40);
        }
    }
    let events = std::iter::from_fn(|| accounting.next_event());
    assert_eq!(events.count(), 10);
    assert_eq!(accounting.denied_unsent(), 90);
    accounting.stop();
    assert!(table.accounting().is_none());
}
