use crosspoint_engine::bridge::fdb::Fdb;
use crosspoint_packet::FlowHasher;

use super::*;

const PLACE: Place = (0, 7);
const V4: Key = (PLACE, Family::V4);

fn nothing() -> Snapshot {
    let fdb = Arc::new(Fdb::new(1, [1, 2]));
    Snapshot::new(Box::new([]), fdb, FlowHasher::new(1), Box::new([]))
}

/// A querier with these ports, all in one VLAN.
fn querier(ports: std::ops::Range<u16>) -> Querier {
    let asked = ports.map(|port| (port, (0, vec![7]))).collect();
    Querier {
        asked,
        snapshot: Some(1),
        ..Querier::default()
    }
}

#[test]
fn a_querier_with_an_address_is_heeded_and_a_stand_in_is_not() {
    let mut snooping = Snooping::default();
    let own: Ipv6Addr = "fe80::20:1".parse().unwrap();
    let heeds =
        |snooping: &Snooping, from: &str| snooping.is_accepted_querier(from.parse().unwrap(), own);
    // Without an own querier, any counts.
    assert!(heeds(&snooping, "0.0.0.0") && heeds(&snooping, "fe80::20:2"));
    snooping.settings.querier = true;
    assert!(!heeds(&snooping, "0.0.0.0") && heeds(&snooping, "192.0.2.1"));
    // Of two with link-local addresses, the lower one asks; stations do not answer others.
    assert!(!heeds(&snooping, "fe80::20:2") && heeds(&snooping, "fe80::20:0"));
    assert!(!heeds(&snooping, "::") && !heeds(&snooping, "2001:db8::1"));
}

/// However many ports there are, the switch counts as the querier only when the last one has had time to answer.
#[test]
fn a_place_is_ready_when_all_of_its_ports_could_answer() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..100);
    let mut asked_at = None;
    for look in 0..200u32 {
        let now = start + look * Duration::from_millis(100);
        querier.look((1, &view), now, BTreeSet::new());
        let sent = querier.take();
        querier.note_asked(&sent, now);
        let count = sent.len();
        assert!(count <= QUERIES_PER_LOOK);
        let is_ready = querier.ready.contains(&V4);
        if querier.all.queue.is_empty() {
            asked_at.get_or_insert(now);
        }
        let could_answer = asked_at.is_some_and(|at| now >= at + SETTLE);
        assert!(!is_ready || could_answer, "look {look}");
    }
    assert!(querier.ready.contains(&V4));
}

#[test]
fn what_another_querier_leaves_is_asked_at_once_and_flooded_until_there_are_answers() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..2);
    for look in 0..300u32 {
        let now = start + look * Duration::from_secs(1);
        querier.look((1, &view), now, BTreeSet::from([V4]));
        let asked = querier.take();
        querier.note_asked(&asked, now);
        assert!(asked.iter().all(|query| query.key() != V4));
    }
    assert!(!querier.ready.contains(&V4));
    let now = start + Duration::from_secs(300);
    querier.look((1, &view), now, BTreeSet::new());
    let asked = querier.take();
    querier.note_asked(&asked, now);
    assert_eq!(asked.iter().filter(|query| query.key() == V4).count(), 2);
    assert!(!querier.ready.contains(&V4));
    querier.look((1, &view), now + SETTLE, BTreeSet::new());
    assert!(querier.ready.contains(&V4));
}

/// A station that leaves all the time costs two queries a second for each of a few groups, and others nothing.
#[test]
fn one_port_that_leaves_groups_delays_no_others_queries() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..2);
    let group = |number: u8| IpAddr::from([239, 1, 1, number]);
    for look in 0..600u32 {
        let now = start + look * Duration::from_millis(100);
        for number in 0..64 {
            querier.ask_for(0, (PLACE, group(number)), now);
        }
        querier.look((1, &view), now, BTreeSet::new());
        if look % 50 == 0 {
            querier.ask_for(1, (PLACE, group(200)), now);
        }
        let sent = querier.take();
        if look % 50 == 0 {
            assert!(
                sent.iter()
                    .any(|query| query.port == 1 && query.group == group(200))
            );
        }
        sent.iter().for_each(|query| querier.note_sent(query));
        assert!(querier.groups.queue.len() <= 2 * GROUPS_OF_PORT_MAX);
    }
}

/// A port that comes up where the switch already asks is asked twice, as any.
#[test]
fn a_port_that_comes_up_later_is_asked_twice() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..1);
    let mut asked = Vec::new();
    for look in 0..100u32 {
        let now = start + look * Duration::from_secs(1);
        if look == 20 {
            querier.asked.insert(9, (0, vec![7]));
            querier.update_places(&BTreeSet::from([9]), false, now);
        }
        querier.look((1, &view), now, BTreeSet::new());
        let sent = querier.take();
        asked.extend(
            sent.iter()
                .filter(|query| query.port == 9 && query.key() == V4)
                .map(|_| look),
        );
        querier.note_asked(&sent, now);
    }
    assert_eq!(asked, [20, 51]);
}

/// Another querier's word ends the switch's own questions, and leaves nothing behind.
#[test]
fn groups_that_were_asked_for_when_another_querier_came_can_be_asked_for_again() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..1);
    let group = |number: u8| (PLACE, IpAddr::from([239, 1, 1, number]));
    (0..16).for_each(|number| querier.ask_for(0, group(number), start));
    for look in 0..40u32 {
        let now = start + look * Duration::from_millis(100);
        querier.look((1, &view), now, BTreeSet::from([V4]));
        querier
            .take()
            .iter()
            .for_each(|query| querier.note_sent(query));
    }
    assert!(querier.asking.is_empty());
    querier.ask_for(0, group(1), start);
    assert_eq!(querier.asking.len(), 1);
}

/// A guest that takes its link up and down all the time makes no more questions wait than one that does so once.
#[test]
fn a_port_that_comes_and_goes_makes_no_queue_grow() {
    let (view, start) = (nothing(), Instant::now());
    let mut querier = querier(0..2);
    for look in 0..300u32 {
        let now = start + look * Duration::from_millis(100);
        querier.update_places(&BTreeSet::from([0]), false, now);
        querier.look((1, &view), now, BTreeSet::new());
        let sent = querier.take();
        querier.note_asked(&sent, now);
    }
    assert!(querier.later_all.queue.len() <= 4);
    assert!(querier.all.queue.len() <= 4);
}
