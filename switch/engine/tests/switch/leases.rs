//! DHCP snooping: what servers and clients say is passed on once and changes no frame, and requests for a leased address go to
//! its port alone.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crosspoint_engine::bridge::leases::{
    DhcpMessage, DhcpMessages, Leases, MESSAGES_MAX, MESSAGES_OF_SERVERS_MAX,
};
use crosspoint_engine::bridge::vlan::VlanPolicy;
use crosspoint_packet::Mac;
use etherparse::PacketBuilder;

use crate::frames::host;
use crate::ports::PortOptions;
use crate::rig::Rig;

const SERVER: u16 = 0;
const GUEST: u16 = 1;
const OTHER: u16 = 2;
const VLAN: u16 = 7;
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

fn rig() -> (Rig, Arc<DhcpMessages>) {
    let port = |is_server| PortOptions {
        vlan: VlanPolicy::Access(VLAN),
        is_server,
        ..PortOptions::default()
    };
    let mut rig = Rig::new(&[port(true), port(false), port(false)], 1, 3);
    let messages = Arc::new(DhcpMessages::default());
    let leased = ((0, VLAN), IpAddr::V4(LEASED));
    rig.view.set_leases(Some(Leases {
        messages: messages.clone(),
        ports: Arc::new(HashMap::from([(leased, GUEST)])),
    }));
    rig.view.suppresses = true;
    rig.drivers.iter_mut().for_each(|driver| driver.post_all());
    (rig, messages)
}

fn v4(from: u16, to: u16, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(host(from as u8), host(to as u8))
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(ports.0, ports.1)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn v6(from: u16, to: u16, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(host(from as u8), host(to as u8))
        .ipv6(
            Ipv6Addr::LOCALHOST.octets(),
            Ipv6Addr::LOCALHOST.octets(),
            64,
        )
        .udp(ports.0, ports.1)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// What is passed on of frames of a port.
fn heard(from: u16, frames: &[Vec<u8>]) -> Vec<DhcpMessage> {
    let (mut rig, messages) = rig();
    for frame in frames {
        rig.pass(usize::from(from), std::slice::from_ref(frame));
    }
    let got = rig
        .drivers
        .iter_mut()
        .flat_map(|driver| driver.received().concat());
    let got: Vec<Vec<u8>> = got.collect();
    assert!(got.iter().all(|frame| frames.contains(frame)), "unchanged");
    messages.take()
}

#[test]
fn what_servers_and_clients_say_is_passed_on_with_its_place() {
    let payload: Vec<u8> = (0..=255).cycle().take(300).collect();
    for (is_v6, ports, frame) in [
        (
            false,
            (67, 68),
            v4 as fn(u16, u16, (u16, u16), &[u8]) -> Vec<u8>,
        ),
        (true, (547, 546), v6),
    ] {
        let (server, client) = (ports, (ports.1, ports.0));
        let of_server = heard(SERVER, &[frame(SERVER, GUEST, server, &payload)]);
        let [message] = &of_server[..] else {
            panic!("{} messages", of_server.len());
        };
        assert_eq!(message.payload(), payload);
        assert_eq!((message.port, message.place), (SERVER, (0, VLAN)));
        assert!(message.is_of_server && message.is_v6 == is_v6 && message.to.is_ipv6() == is_v6);
        let [source, destination] = [SERVER, GUEST].map(|port| Mac::new(host(port as u8)));
        assert_eq!((message.source, message.destination), (source, destination));
        let of_client = heard(GUEST, &[frame(GUEST, SERVER, client, &payload)]);
        assert!(of_client.len() == 1 && !of_client[0].is_of_server);
        // Each side as what it is; and nothing else.
        assert!(heard(GUEST, &[frame(GUEST, OTHER, server, &payload)]).is_empty());
        assert!(heard(SERVER, &[frame(SERVER, GUEST, client, &payload)]).is_empty());
        for other in [(ports.0, ports.0), (ports.0, 53), (53, ports.1)] {
            assert!(heard(SERVER, &[frame(SERVER, GUEST, other, &payload)]).is_empty());
        }
        // Of another network, behind two tags.
        let whole = frame(SERVER, GUEST, server, &payload);
        let tags = [0x88, 0xa8, 0, 9, 0x81, 0, 0, 5];
        let tagged = [&whole[..12], &tags, &whole[12..]].concat();
        assert!(heard(SERVER, &[tagged]).is_empty());
        let mut fragment = frame(SERVER, GUEST, server, &payload);
        // More fragments; of IPv6, the next header is a fragment's.
        fragment[20] = if is_v6 { 44 } else { 0x20 };
        assert!(heard(SERVER, &[fragment]).is_empty());
    }
}

#[test]
fn a_guest_that_floods_loses_its_own_messages_only() {
    let (mut rig, messages) = rig();
    let release = v4(GUEST, SERVER, (68, 67), &[3; 240]);
    let other = v4(OTHER, SERVER, (68, 67), &[4; 240]);
    let ack = v4(SERVER, GUEST, (67, 68), &[5; 240]);
    for _ in 0..100 {
        rig.pass(usize::from(GUEST), std::slice::from_ref(&release));
    }
    rig.pass(usize::from(OTHER), &[other]);
    for _ in 0..20 {
        rig.pass(usize::from(SERVER), std::slice::from_ref(&ack));
    }
    rig.drivers
        .iter_mut()
        .for_each(|driver| drop(driver.received()));
    let count = |messages: &[DhcpMessage], port| {
        messages
            .iter()
            .filter(|message| message.port == port)
            .count()
    };
    let all = messages.take();
    let counts = [GUEST, OTHER, SERVER].map(|port| count(&all, port));
    assert_eq!((counts, messages.missed()), ([8, 1, 20], 92));
    // However many servers send, there is room for others.
    for _ in 0..MESSAGES_MAX {
        rig.pass(usize::from(SERVER), std::slice::from_ref(&ack));
        rig.drivers.iter_mut().for_each(|driver| {
            drop(driver.received());
            driver.post_all();
        });
    }
    assert_eq!(messages.take().len(), usize::from(MESSAGES_OF_SERVERS_MAX));
}

#[test]
fn a_request_for_a_leased_address_goes_to_its_port_alone() {
    let ask = |from: u16, target: Ipv4Addr| {
        let own = host(from as u8);
        let head = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        let sender = [10, 0, 0, 9];
        [
            &head[..],
            &own,
            &sender,
            &[0; 6],
            &target.octets(),
            &[0; 18],
        ]
        .concat()
    };
    let receivers = |rig: &mut Rig, from: u16, target| -> Vec<u16> {
        rig.pass(usize::from(from), &[ask(from, target)]);
        let drivers = (0..).zip(&mut rig.drivers);
        let got = drivers.map(|(number, driver)| (number, driver.received().concat().len()));
        let got = got.filter(|(_, frames)| *frames > 0);
        got.map(|(number, _)| number).collect()
    };
    let (mut rig, _) = rig();
    assert_eq!(receivers(&mut rig, SERVER, LEASED), [GUEST]);
    assert_eq!(receivers(&mut rig, OTHER, LEASED), [GUEST]);
    // The owner itself asks all: another station may use the address. So does anyone for another address.
    assert_eq!(receivers(&mut rig, GUEST, LEASED), [SERVER, OTHER]);
    let other = Ipv4Addr::new(10, 0, 0, 78);
    assert_eq!(receivers(&mut rig, SERVER, other), [GUEST, OTHER]);
    rig.view.suppresses = false;
    assert_eq!(receivers(&mut rig, SERVER, LEASED), [GUEST, OTHER]);
}

/// On a trunk, the VLAN is that of the tag.
#[test]
fn a_message_behind_a_tag_is_passed_on_with_its_vlan() {
    for (is_v6, frame) in [
        (false, v4(SERVER, GUEST, (67, 68), &[5; 240])),
        (true, v6(SERVER, GUEST, (547, 546), &[5; 240])),
    ] {
        let (mut rig, messages) = rig();
        let port = rig.view.ports[usize::from(SERVER)].as_mut().unwrap();
        port.vlan = Arc::new(VlanPolicy::trunk(&[VLAN, 8], None));
        rig.view.renew_members();
        let other = [&frame[..36], &[0, 99], &frame[38..]].concat();
        for (frame, heard) in [(&frame, 1), (&other, usize::from(is_v6))] {
            let tagged = [&frame[..12], &[0x81, 0, 0, VLAN as u8], &frame[12..]].concat();
            rig.pass(usize::from(SERVER), &[tagged]);
            let all = messages.take();
            assert_eq!(all.len(), heard, "IPv6: {is_v6}");
            assert!(all.iter().all(|message| message.place == (0, VLAN)));
            assert!(all.iter().all(|message| message.payload() == [5; 240]));
        }
        rig.drivers
            .iter_mut()
            .for_each(|driver| drop(driver.received()));
    }
}
