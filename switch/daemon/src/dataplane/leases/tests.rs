use crosspoint_config::Addresses;

use super::message::tests::v4;
use super::*;
use crate::dataplane::{PortOptions, testing};

const PLACE: Place = (0, 0);
const UPLINK: u16 = 2;
const LEASED: [u8; 4] = [192, 0, 2, 77];
const OTHER: [u8; 4] = [192, 0, 2, 78];

fn mac(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, port as u8 + 1]
}

fn key(address: [u8; 4]) -> (Place, IpAddr) {
    (PLACE, IpAddr::from(address))
}

/// Two guests with a MAC address each, and an uplink; what snooping knows, and the time.
struct Rig {
    view: Arc<Snapshot>,
    leases: Leases,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let dataplane = testing::start(1);
        for number in 0..=UPLINK {
            let own = Addresses {
                mac: vec![Mac::new(mac(number))],
                ..Addresses::default()
            };
            let options = PortOptions {
                name: number.to_string(),
                addresses: if number == UPLINK {
                    Addresses::default()
                } else {
                    own
                },
                ..PortOptions::default()
            };
            dataplane.add_port(options).expect("there is room");
        }
        let view = dataplane.lock().view.clone();
        dataplane.stop();
        Rig {
            view,
            leases: Leases::default(),
            now: Instant::now(),
        }
    }

    fn hear(&mut self, port: u16, is_of_server: bool, client: [u8; 6], payload: &[u8]) {
        let (server, client) = (Mac::new(mac(UPLINK)), Mac::new(client));
        let macs = if is_of_server {
            [server, client]
        } else {
            [client, server]
        };
        let to = IpAddr::from([255; 4]);
        let message = DhcpMessage::new(port, PLACE, (is_of_server, false), macs, to, payload);
        self.leases.note(&message, &self.view, self.now);
        self.leases.compile();
    }

    fn ask(&mut self, port: u16, client: [u8; 6]) {
        let request = v4(3, client, [0; 4], [0; 4], &[]);
        self.hear(port, false, client, &request);
    }

    /// The server's answer, for a minute.
    fn answer(&mut self, client: [u8; 6], address: [u8; 4]) {
        let ack = v4(5, client, [0; 4], address, &[51, 4, 0, 0, 0, 60]);
        self.hear(UPLINK, true, client, &ack);
    }

    fn lease(&mut self, port: u16, address: [u8; 4]) {
        self.ask(port, mac(port));
        self.answer(mac(port), address);
    }

    fn release(&mut self, port: u16, address: [u8; 4]) {
        let release = v4(7, mac(port), address, [0; 4], &[]);
        self.hear(port, false, mac(port), &release);
    }

    fn owner(&self, address: [u8; 4]) -> Option<u16> {
        self.leases.published.get(&key(address)).copied()
    }
}

#[test]
fn a_lease_is_of_the_port_that_has_asked_for_it_and_ends() {
    let mut rig = Rig::new();
    rig.lease(0, LEASED);
    assert_eq!(rig.owner(LEASED), Some(0));
    let of_ports = rig.leases.of_ports(rig.now);
    assert_eq!((of_ports[&0][0].left_s, of_ports.len()), (60, 1));
    // Another guest cannot end it.
    rig.release(1, LEASED);
    assert_eq!(rig.owner(LEASED), Some(0));
    rig.release(0, LEASED);
    assert_eq!(rig.owner(LEASED), None);
    // A client has one address.
    rig.lease(0, LEASED);
    rig.lease(0, OTHER);
    assert_eq!((rig.owner(LEASED), rig.owner(OTHER)), (None, Some(0)));
    let nak = v4(6, mac(0), [0; 4], [0; 4], &[]);
    rig.hear(UPLINK, true, mac(0), &nak);
    assert_eq!(rig.owner(OTHER), None);
    // Ports that are down have none, and what has ended is forgotten.
    rig.lease(0, LEASED);
    rig.leases.expire(&rig.view.clone(), rig.now);
    rig.leases.compile();
    assert!(rig.leases.leases.is_empty() && rig.owner(LEASED).is_none());
}

#[test]
fn what_was_not_asked_for_is_not_believed() {
    let mut rig = Rig::new();
    rig.answer(mac(0), LEASED);
    assert_eq!(rig.owner(LEASED), None);
    // From a port that does not have the address; and too late.
    rig.ask(1, mac(0));
    rig.answer(mac(0), LEASED);
    assert_eq!(rig.owner(LEASED), None);
    rig.ask(0, mac(0));
    rig.now += REQUEST_TIME;
    rig.answer(mac(0), LEASED);
    assert_eq!(rig.owner(LEASED), None);
}

#[test]
fn an_address_that_two_guests_get_is_of_neither_until_the_first_has_ended() {
    let mut rig = Rig::new();
    rig.lease(0, LEASED);
    rig.lease(1, LEASED);
    assert_eq!(rig.owner(LEASED), None);
    rig.lease(1, LEASED);
    assert_eq!(rig.owner(LEASED), None);
    assert!(rig.leases.of_ports(rig.now).is_empty());
    rig.now += Duration::from_secs(61);
    rig.lease(1, LEASED);
    assert_eq!(rig.owner(LEASED), Some(1));
    // The first one gives it back.
    rig.release(1, LEASED);
    rig.lease(0, LEASED);
    assert_eq!(rig.owner(LEASED), Some(0));
    // A station behind the uplink has it now.
    rig.answer([6; 6], LEASED);
    assert_eq!(rig.owner(LEASED), None);
}

#[test]
fn a_port_has_limits_and_goes_with_all_it_has() {
    let mut rig = Rig::new();
    let now = rig.now;
    let lease = |port| Lease {
        port,
        mac: Mac::new(mac(port)),
        until: now + Duration::from_secs(60),
        is_disputed: false,
    };
    let of = |number: u32| (PLACE, IpAddr::from(u128::from(number).to_be_bytes()));
    for number in 0..300 {
        rig.leases.lease(of(number), lease(0), now);
    }
    assert_eq!(rig.leases.leases.len(), LEASES_OF_PORT_MAX);
    rig.leases.lease(of(400), lease(1), now);
    for number in 0..100 {
        let request = (PLACE, number, Mac::new(mac(0)));
        rig.leases.ask(request, 0, now);
    }
    assert_eq!(rig.leases.requests.len(), REQUESTS_OF_PORT_MAX);
    rig.leases.compile();
    assert_eq!(rig.leases.published.len(), LEASES_OF_PORT_MAX + 1);
    // To workers too, at once: another port may get the number.
    rig.leases.forget_port(0);
    assert_eq!((rig.leases.published.len(), rig.leases.counts[&0]), (1, 0));
    assert!(rig.leases.requests.is_empty());
    rig.leases.forget_bridge(PLACE.0);
    assert!(rig.leases.published.is_empty() && rig.leases.leases.is_empty());
}
