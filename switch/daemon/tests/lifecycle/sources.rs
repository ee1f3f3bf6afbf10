//! Addresses that are bound to a port, and addresses that move too often, with guests and a daemon.

use crosspoint_guest::{Guest, GuestOptions};
use crosspoint_model::client;
use crosspoint_model::request::Request;
use crosspoint_model::rows::Fdb;
use crosspoint_model::status::ShownState;
use crosspoint_model::topic::Topic;

use super::reload::{Host, PLAIN};
use super::{Load, Loss, PATIENCE};

pub(super) const ALL: [u8; 6] = [0xff; 6];
pub(super) const DISPUTED: [u8; 6] = [0x52, 0x54, 0, 9, 9, 1];
pub(super) const PEER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 2];
pub(super) const OTHER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 3];
const BOUND: &str = "addresses = { mac = [\"52:54:00:09:09:01\"] }";

/// Three guests of one VLAN, with all their buffers posted: the owner of the disputed address, another guest that sends
/// with it, and an observer.
pub(super) fn guests(host: &Host) -> [Guest; 3] {
    let names = ["owner", "thief", "peer"];
    names.iter().for_each(|name| host.write(name, ""));
    host.daemon.reload();
    names.map(|name| {
        let path = host.folder.path().join(name);
        let guest = Guest::connect(path, GuestOptions::default()).expect("the guest connects");
        host.wait(name, |host| {
            host.port(name)
                .is_some_and(|port| port.state == ShownState::Up)
        });
        guest
    })
}

pub(super) fn send(guest: &mut Guest, src: [u8; 6], dst: [u8; 6]) {
    let frame = [&dst[..], &src, &[0x88, 0xb5], &[0; 46]].concat();
    assert_eq!(guest.send(0, &[&frame]).expect("a ring"), 1);
}

/// Whether this guest receives a frame from `src` to `dst`.
pub(super) fn receives(guest: &mut Guest, src: [u8; 6], dst: [u8; 6]) -> bool {
    let frames = guest.receive_at_least(0, 1, PATIENCE).expect("a ring");
    frames
        .iter()
        .any(|(_, bytes)| bytes[..6] == dst && bytes[6..12] == src)
}

pub(super) fn is_silent(guest: &mut Guest) -> bool {
    guest.receive(0).expect("a ring").is_empty()
}

pub(super) fn refused(host: &Host, port: &str) -> u64 {
    let port = host.port(port).expect("a port");
    let drops = port.queues[0].drops.get("source_not_allowed");
    drops.copied().unwrap_or(0)
}

pub(super) fn wait_refused(host: &Host, port: &str, count: u64) {
    host.wait("they are dropped", |host| refused(host, port) == count);
}

pub(super) fn fdb(host: &Host) -> Fdb {
    let socket = host.folder.path().join("control.sock");
    let answer = client::request(&socket, &Request::Show(Topic::Fdb)).expect("an answer");
    serde_json::from_value(answer).expect("a table")
}

pub(super) fn place(host: &Host) -> Option<String> {
    let mut known = fdb(host).addresses.into_iter();
    let entry = known.find(|entry| entry.mac == "52:54:00:09:09:01");
    entry.map(|entry| entry.port)
}

#[test]
fn an_address_is_bound_and_freed_by_reloads_while_others_lose_nothing() {
    let host = Host::start(2, "");
    let (mut c, mut d) = (host.guest("c", PLAIN), host.guest("d", PLAIN));
    let load = Load::start(&mut c, &mut d, 20, Loss::None);
    let [mut owner, mut thief, mut peer] = guests(&host);
    // Without a binding, the first sender has the address.
    send(&mut thief, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL) && receives(&mut owner, DISPUTED, ALL));
    assert_eq!(place(&host).as_deref(), Some("thief"));

    host.write("owner", BOUND);
    host.daemon.reload();
    assert_eq!(place(&host), None, "learned where it may not be any more");
    send(&mut thief, DISPUTED, ALL);
    wait_refused(&host, "thief", 1);
    send(&mut owner, OTHER, ALL);
    wait_refused(&host, "owner", 1);
    assert!(is_silent(&mut peer) && is_silent(&mut owner) && is_silent(&mut thief));
    send(&mut owner, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL) && receives(&mut thief, DISPUTED, ALL));
    send(&mut thief, DISPUTED, ALL);
    wait_refused(&host, "thief", 2);
    send(&mut peer, PEER, DISPUTED);
    assert!(receives(&mut owner, PEER, DISPUTED));
    assert!(is_silent(&mut thief));

    host.write("owner", "");
    host.daemon.reload();
    send(&mut thief, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL));
    assert_eq!(place(&host).as_deref(), Some("thief"));
    assert_eq!((refused(&host, "owner"), refused(&host, "thief")), (1, 2));
    load.finish().expect_all();
}

#[test]
fn an_address_that_two_guests_use_stays_with_the_first() {
    let host = Host::start(1, "");
    let [mut owner, mut thief, mut peer] = guests(&host);
    for _ in 0..20 {
        for guest in [&mut owner, &mut thief] {
            send(guest, DISPUTED, ALL);
            assert!(
                receives(&mut peer, DISPUTED, ALL),
                "only learning is refused"
            );
        }
    }
    assert_eq!(place(&host).as_deref(), Some("owner"));
    let [mover] = &fdb(&host).movers[..] else {
        panic!("one address moves")
    };
    assert!(mover.damped && mover.moves >= 5, "{mover:?}");
    assert_eq!((&*mover.home, &*mover.other), ("owner", "thief"));
    let [owner_port, thief_port] = ["owner", "thief"].map(|name| host.port(name).expect("a port"));
    assert!(thief_port.addresses_moved <= 3 && thief_port.addresses_damped >= 15);
    assert_eq!(owner_port.addresses_damped, 0);
    let _ = owner.receive(0).expect("a ring");
    send(&mut peer, PEER, DISPUTED);
    assert!(receives(&mut owner, PEER, DISPUTED));
}
