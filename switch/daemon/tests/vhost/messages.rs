//! Messages that the `vhost` crate does not know, in the form that front ends send.

use crosspoint_config::Addresses;
use crosspoint_daemon::dataplane::PortSettings;
use crosspoint_guest::message::{FLAG_NEED_REPLY, FLAG_VERSION, protocol, request};
use crosspoint_guest::net::features;
use crosspoint_guest::{GuestOptions, Session, SessionError};
use crosspoint_model::status::ShownState;
use crosspoint_packet::Mac;

use super::{PATIENCE, Switch};

const STATUS: u64 = protocol::STATUS | protocol::REPLY_ACK;
/// The configuration space has a MAC address (virtio 1.2, 5.1.3).
const MAC: u64 = 1 << 5;
const FEATURES: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES;

fn names(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|name| name.to_string()).collect())
}

fn refused(result: Result<(), SessionError>) -> bool {
    matches!(result, Err(SessionError::Refused { code: 1, .. }))
}

fn negotiated(switch: &Switch, protocol_features: u64) -> Session {
    let mut session = switch.session("a");
    session
        .negotiate(FEATURES, protocol_features)
        .expect("the switch agrees");
    session
}

#[test]
fn what_works_is_offered_and_nothing_else() {
    let switch = Switch::start(&["a"], |_| ());
    let offer = negotiated(&switch, protocol::REPLY_ACK).negotiated();
    let protocol = protocol::RARP
        | protocol::REPLY_ACK
        | protocol::MTU
        | protocol::BACKEND_REQ
        | protocol::CONFIG
        | protocol::RESET_DEVICE
        | protocol::STATUS
        | protocol::LOG_SHMFD
        | protocol::INFLIGHT_SHMFD
        | protocol::CONFIGURE_MEM_SLOTS;
    assert_eq!(offer.protocol_offered, protocol);
    let datagrams = features::HOST_UFO | features::GUEST_UFO;
    let always = features::MTU | features::STATUS | datagrams;
    let never = MAC | features::MQ | features::GUEST_ANNOUNCE | features::CTRL_VQ;
    assert_eq!(offer.offered & (always | never), always);

    let many = Switch::start(&["a"], |config| config.queue_pairs = 2);
    let offer = negotiated(&many, protocol::REPLY_ACK).negotiated();
    assert_eq!(offer.protocol_offered, protocol | protocol::MQ);
    let pairs = features::MQ | features::GUEST_ANNOUNCE;
    assert_eq!(offer.offered & (always | never), always | pairs);
}

#[test]
fn the_configuration_space_is_what_was_configured() {
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let switch = Switch::start(&["a"], |config| {
        (config.mac, config.mtu) = (Some(Mac::new(mac)), 9000);
        config.queue_pairs = 4;
    });
    let mut session = negotiated(&switch, protocol::CONFIG | protocol::REPLY_ACK);
    assert_ne!(session.negotiated().offered & MAC, 0);
    let space = session.config(0, 256).expect("the whole of it");
    let fields = [1u16, 4, 9000].map(u16::to_le_bytes).concat();
    assert_eq!((&space[..6], &space[6..12]), (&mac[..], &fields[..]));
    assert_eq!(space[12..], [0; 244]);
    assert_eq!(session.config(10, 2).expect("a part"), fields[4..]);
    assert_eq!(switch.device("a").mac.as_deref(), Some("52:54:00:12:34:56"));
}

#[test]
fn the_device_status_is_remembered_and_shown() {
    let switch = Switch::start(&["a"], |_| ());
    let mut session = negotiated(&switch, STATUS);
    let mut set = |status: u64| {
        let done = session.request_u64(request::SET_STATUS, status);
        done.expect("any status will do");
        session.query_u64(request::GET_STATUS).expect("the status")
    };
    assert_eq!((set(0), set(1 | 2 | 4 | 8)), (0, 15));
    let all = ["ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK"];
    switch.wait("a", |port| {
        port.device.as_ref().expect("a device").device_status == names(&all)
    });
    assert_eq!(set(0x80), 0x80);
    switch.wait("a", |port| {
        port.device.as_ref().expect("a device").device_status == names(&["FAILED"])
    });
    // Without a request for it there is no reply, except to GET_STATUS.
    let word = 3u64.to_ne_bytes();
    let sent = session.send(request::SET_STATUS, FLAG_VERSION, &word, &[]);
    sent.expect("the switch reads");
    assert_eq!(session.query_u64(request::GET_STATUS).ok(), Some(3));
}

/// As QEMU does when a guest resets, and DPDK's virtio-user before it starts.
#[test]
fn a_reset_stops_the_rings_and_keeps_memory_and_connection() {
    let switch = Switch::start(&["a"], |_| ());
    let options = || GuestOptions {
        protocol_features: STATUS | protocol::RESET_DEVICE,
        ..GuestOptions::default()
    };
    for number in [request::SET_STATUS, request::RESET_DEVICE] {
        let mut guest = switch.guest("a", options());
        let frame = [2; 60];
        assert_eq!(guest.send(0, &[&frame]).ok(), Some(1));
        assert!(guest.drain_transmit(0, PATIENCE).expect("a ring"));
        let session = guest.session().expect("a session");
        let status = session.query_u64(request::GET_STATUS).expect("a status");
        assert_ne!(status, 0);
        let done = match number {
            request::SET_STATUS => session.request_u64(number, 0),
            _ => session.request(number, &[], &[]),
        };
        done.expect("a device can be reset");
        switch.wait("a", |port| {
            let device = port.device.as_ref().expect("a device");
            device.vrings.iter().all(|v| !v.running && !v.enabled)
        });
        let device = switch.device("a");
        assert_eq!(switch.port("a").state, ShownState::Connected);
        assert_eq!((device.features, device.memory.len()), (Vec::new(), 1));
        let session = guest.session().expect("a session");
        assert_eq!(session.query_u64(request::GET_STATUS).ok(), Some(0));
        // The rings' indices are still known, and the device starts again.
        assert_eq!(guest.stop().expect("the bases"), [0, 1]);
        let again = guest.session().expect("a session");
        assert!(again.request_u64(request::SET_FEATURES, FEATURES).is_ok());
        drop(guest);
        switch.wait("a", |port| port.state == ShownState::Down);
    }
    switch.check_ledger();
}

#[test]
fn an_mtu_is_taken_if_virtio_allows_it_and_shown() {
    let switch = Switch::start(&["a"], |_| ());
    let mut session = negotiated(&switch, protocol::MTU | protocol::REPLY_ACK);
    for mtu in [67, 65_536, u64::MAX] {
        assert!(refused(session.request_u64(request::NET_SET_MTU, mtu)));
    }
    for mtu in [68u16, 65_535] {
        let done = session.request_u64(request::NET_SET_MTU, mtu.into());
        done.expect("it is in range");
        switch.wait("a", |port| {
            port.device.as_ref().expect("a device").mtu_set == Some(mtu)
        });
    }
}

#[test]
fn who_refuses_reply_ack_gets_no_reply_and_keeps_its_connection() {
    let switch = Switch::start(&["a"], |_| ());
    let mut session = negotiated(&switch, protocol::MTU | protocol::STATUS);
    let flags = FLAG_VERSION | FLAG_NEED_REPLY;
    for (number, word) in [(request::NET_SET_MTU, 1u64), (request::SEND_RARP, 0)] {
        let sent = session.send(number, flags, &word.to_ne_bytes(), &[]);
        sent.expect("the switch reads");
    }
    // The next message is not a late acknowledgement: those have the numbers of their requests.
    assert_eq!(session.query_u64(request::GET_STATUS).ok(), Some(11));
}

#[test]
fn a_payload_of_another_length_ends_the_connection() {
    let switch = Switch::start(&["a"], |_| ());
    for number in [
        request::SEND_RARP,
        request::NET_SET_MTU,
        request::SET_STATUS,
    ] {
        let mut session = negotiated(&switch, STATUS);
        let sent = session.send(number, FLAG_VERSION, &[1; 4], &[]);
        sent.expect("the switch reads");
        assert!(session.wait_closed(PATIENCE).expect("a socket"));
    }
    let end = switch.device("a").last_end.expect("it went");
    assert_eq!(
        end,
        "request 39 with 4 bytes and 0 descriptors: it has 8 and 0"
    );
}

#[test]
fn an_announcement_reaches_the_other_guests_and_is_learned() {
    let switch = Switch::start(&["a", "b", "c"], |_| ());
    let options = || GuestOptions {
        protocol_features: protocol::RARP | protocol::REPLY_ACK,
        ..GuestOptions::default()
    };
    let mut guests = ["a", "b", "c"].map(|name| switch.guest(name, options()));
    let [a, b, c] = &mut guests;
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    let mut payload = [0; 8];
    payload[..6].copy_from_slice(&mac);
    // It was learned at port c, and is at port a now.
    for guest in [&mut *c, &mut *a] {
        let session = guest.session().expect("a session");
        session
            .request(request::SEND_RARP, &payload, &[])
            .expect("it is a station's address");
    }
    let got = b.receive_at_least(0, 2, PATIENCE).expect("a ring");
    for (_, frame) in &got {
        assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &mac[..]));
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(
            (&frame[22..28], &frame[32..38], frame.len()),
            (&mac[..], &mac[..], 60)
        );
    }
    assert_eq!(got.len(), 2);
    let entry = switch.dataplane.fdb().remove(0);
    assert_eq!(
        (entry.mac.as_str(), entry.port.as_str()),
        ("52:54:00:01:02:03", "a")
    );
    assert_eq!(switch.port("a").queues[0].rx_packets, 1);
    switch.check_ledger();
}

#[test]
fn the_address_zero_and_group_addresses_are_not_announced() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let mut session = negotiated(&switch, protocol::RARP | protocol::REPLY_ACK);
    for address in [0u64, 1, 0xffff_ffff_ffff] {
        assert!(refused(session.request_u64(request::SEND_RARP, address)));
    }
    assert_eq!(switch.port("a").queues[0].rx_packets, 0);
    assert!(switch.dataplane.fdb().is_empty());
}

#[test]
fn an_address_that_is_not_the_ports_is_not_announced() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let [own, others, free] = [1, 2, 3].map(|last| Mac::new([0x52, 0x54, 0, 0, 0, last]));
    for (name, mac) in [("a", own), ("b", others)] {
        let number = switch.dataplane.port_number(name).expect("a port");
        let addresses = Some(Addresses {
            mac: vec![mac],
            ip: Vec::new(),
        });
        switch.dataplane.set_port(
            number,
            PortSettings {
                addresses,
                ..PortSettings::default()
            },
        );
    }
    let mut session = negotiated(&switch, protocol::RARP | protocol::REPLY_ACK);
    for mac in [others, free, own] {
        session.send_rarp(mac.bytes()).expect("it is taken");
    }
    switch.wait("a", |port| port.queues[0].rx_packets == 1);
    let known = switch.dataplane.fdb();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].mac, own.to_string());
}

/// More than can wait for a worker; each lost one is counted with a reason.
#[test]
fn many_announcements_are_all_counted() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let mut session = negotiated(&switch, protocol::RARP | protocol::REPLY_ACK);
    for n in 0..200u64 {
        let address = 0x02 | n << 40;
        let done = session.request_u64(request::SEND_RARP, address);
        done.expect("it is a station's address");
    }
    // Each one was published, so only the last may still be on its way.
    switch.wait("a", |port| port.queues[0].rx_packets == 200);
    switch.wait("a", |port| port.queues[0].dropped_copies == 200);
    switch.check_ledger();
}
