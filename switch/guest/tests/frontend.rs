//! Tests of the front end against a back end that records its messages.

#[path = "frontend/backend.rs"]
mod backend;
mod device;
#[path = "frontend/memory_changes.rs"]
mod memory_changes;

use backend::*;
use crosspoint_guest::message::{
    self, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Message, VRING_NO_FD, protocol, request,
};
use crosspoint_guest::net::features::{
    EVENT_IDX, LOG_ALL, MRG_RXBUF, PROTOCOL_FEATURES, RING_PACKED, VERSION_1,
};
use crosspoint_guest::{
    DirtyLog, EventFd, Guest, GuestError, GuestMemory, GuestOptions, Listener, RegionLayout,
    Session, SessionError, TxPumpOptions,
};
use device::packed::PackedDevice;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

fn options() -> GuestOptions {
    GuestOptions {
        timeout: TIMEOUT,
        ..GuestOptions::default()
    }
}

fn of(messages: &[Message], number: u32) -> Vec<&Message> {
    messages.iter().filter(|m| m.request == number).collect()
}

#[test]
fn features_in_force_are_those_offered_and_wanted() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let guest = Guest::connect(
        &path,
        GuestOptions {
            features: VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES,
            protocol_features: protocol::REPLY_ACK | protocol::MTU,
            ..options()
        },
    )
    .unwrap();
    let negotiated = guest.negotiated();
    assert_eq!(negotiated.offered, BACKEND.features);
    assert_eq!(negotiated.features, VERSION_1 | PROTOCOL_FEATURES);
    assert_eq!(negotiated.protocol_features, protocol::REPLY_ACK);
    assert_eq!(negotiated.queue_pairs_max, None);
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    assert_eq!(
        of(&messages, request::SET_FEATURES)[0].u64_at(0),
        Some(VERSION_1 | PROTOCOL_FEATURES)
    );
    assert_eq!(
        of(&messages, request::SET_PROTOCOL_FEATURES)[0].u64_at(0),
        Some(protocol::REPLY_ACK)
    );
}

#[test]
fn every_region_is_described_with_its_file() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let extra = RegionLayout {
        guest_base: 1 << 40,
        len: 8192,
        huge_pages: false,
    };
    let guest = Guest::connect(
        &path,
        GuestOptions {
            region_bases: vec![0x1000, 1 << 32],
            extra_regions: vec![extra],
            ..options()
        },
    )
    .unwrap();
    let regions: Vec<_> = guest
        .memory()
        .regions()
        .iter()
        .map(|r| (r.guest_base(), r.len() as u64, r.user_address()))
        .collect();
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    let table = of(&messages, request::SET_MEM_TABLE)[0];
    assert_eq!(
        (table.u32_at(0), table.fds.len(), table.payload.len()),
        (Some(3), 3, 8 + 3 * 32)
    );
    for (i, (base, len, user)) in regions.into_iter().enumerate() {
        let field = |j: usize| table.u64_at(8 + 32 * i + 8 * j).unwrap();
        assert_eq!(
            [field(0), field(1), field(2), field(3)],
            [base, len, user, 0]
        );
        assert_eq!(
            rustix::fs::fstat(&table.fds[i]).unwrap().st_size as u64,
            len
        );
    }
}

#[test]
fn rings_are_set_up_before_they_are_kicked_and_enabled() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let guest = Guest::connect(
        &path,
        GuestOptions {
            queue_pairs: 2,
            base: 77,
            protocol_features: u64::MAX,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(guest.negotiated().queue_pairs_max, Some(4));
    let user: Vec<u64> = guest
        .memory()
        .regions()
        .iter()
        .map(|r| r.user_address())
        .collect();
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    let order: Vec<u32> = messages.iter().map(|m| m.request).collect();
    let ring = [
        request::SET_VRING_NUM,
        request::SET_VRING_BASE,
        request::SET_VRING_ADDR,
        request::SET_VRING_CALL,
        request::SET_VRING_KICK,
    ];
    let mut want = vec![
        request::GET_FEATURES,
        request::GET_PROTOCOL_FEATURES,
        request::SET_PROTOCOL_FEATURES,
        request::GET_QUEUE_NUM,
        request::SET_OWNER,
        request::SET_FEATURES,
        request::SET_STATUS,
        request::SET_MEM_TABLE,
    ];
    (0..4).for_each(|_| want.extend(ring));
    want.extend([request::SET_VRING_ENABLE; 4]);
    want.push(request::SET_STATUS);
    assert_eq!(order, want);
    for (i, message) in of(&messages, request::SET_VRING_BASE).iter().enumerate() {
        assert_eq!(
            (message.u32_at(0), message.u32_at(4)),
            (Some(i as u32), Some(77))
        );
    }
    for message in of(&messages, request::SET_VRING_ADDR) {
        let (descriptors, used, available) = (
            message.u64_at(8).unwrap(),
            message.u64_at(16).unwrap(),
            message.u64_at(24).unwrap(),
        );
        assert!(user[0] < descriptors && descriptors < available && available < used);
    }
    for kick in of(&messages, request::SET_VRING_KICK) {
        assert_eq!(kick.fds.len(), 1);
        let mut count = [0; 8];
        rustix::io::read(&kick.fds[0], &mut count).unwrap();
        assert!(
            u64::from_ne_bytes(count) > 0,
            "a ring starts when it is kicked"
        );
    }
}

#[test]
fn without_protocol_features_nothing_is_enabled_or_acknowledged() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let guest = Guest::connect(
        &path,
        GuestOptions {
            features: VERSION_1,
            ..options()
        },
    )
    .unwrap();
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    assert!(of(&messages, request::SET_VRING_ENABLE).is_empty());
    assert!(of(&messages, request::GET_PROTOCOL_FEATURES).is_empty());
    assert!(messages.iter().all(|m| m.flags == FLAG_VERSION));
}

#[test]
fn a_polling_guest_hands_over_no_eventfd() {
    let (_directory, path, backend) = BACKEND.listen(1);
    drop(
        Guest::connect(
            &path,
            GuestOptions {
                polling: true,
                ..options()
            },
        )
        .unwrap(),
    );
    let messages = backend.join().unwrap().remove(0);
    for number in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
        for (i, message) in of(&messages, number).iter().enumerate() {
            assert_eq!(
                (message.u64_at(0), message.fds.len()),
                (Some(i as u64 | VRING_NO_FD), 0)
            );
        }
    }
}

#[test]
fn a_refused_request_is_an_error_that_names_it() {
    let backend = Backend {
        refuse: request::SET_VRING_ADDR,
        ..BACKEND
    };
    let (_directory, path, backend) = backend.listen(1);
    let error = Guest::connect(&path, options()).unwrap_err();
    assert!(
        matches!(
            error,
            GuestError::Session(SessionError::Refused {
                request: request::SET_VRING_ADDR,
                code: 1
            })
        ),
        "{error}"
    );
    backend.join().unwrap();
}

#[test]
fn a_silent_back_end_does_not_hang_the_guest() {
    let (front, _back) = UnixStream::pair().unwrap();
    let mut session = Session::from_stream(front, Duration::from_millis(30)).unwrap();
    let error = session.negotiate(u64::MAX, 0).unwrap_err();
    assert!(
        matches!(error, SessionError::Io { request: request::GET_FEATURES, source } if source.kind() == std::io::ErrorKind::TimedOut)
    );
}

#[test]
fn after_a_stop_the_rings_resume_where_the_back_end_stopped() {
    let (_directory, path, backend) = BACKEND.listen(2);
    let mut guest = Guest::connect(&path, options()).unwrap();
    assert_eq!(guest.stop().unwrap(), [1000, 1001]);
    guest.disconnect();
    guest.reconnect().unwrap();
    drop(guest);
    let sessions = backend.join().unwrap();
    assert_eq!(
        of(&sessions[0], request::SET_VRING_BASE)[1].u32_at(4),
        Some(0)
    );
    assert_eq!(
        of(&sessions[0], request::SET_VRING_ENABLE)
            .last()
            .unwrap()
            .u32_at(4),
        Some(0)
    );
    let bases: Vec<_> = of(&sessions[1], request::SET_VRING_BASE)
        .iter()
        .map(|m| m.u32_at(4))
        .collect();
    assert_eq!(bases, [Some(1000), Some(1001)]);
}

#[test]
fn after_the_back_end_vanished_the_rings_resume_at_the_used_index() {
    let (_directory, path, backend) = BACKEND.listen(2);
    let mut guest = Guest::connect(
        &path,
        GuestOptions {
            base: 500,
            ..options()
        },
    )
    .unwrap();
    guest.send(0, &[&[1; 60], &[2; 60]]).unwrap();
    let used = guest.transmit_queue(0).unwrap().ring().layout().used;
    guest
        .memory()
        .write(used + 2, &501u16.to_le_bytes())
        .unwrap();
    guest.disconnect();
    guest.reconnect().unwrap();
    drop(guest);
    let sessions = backend.join().unwrap();
    let bases: Vec<_> = of(&sessions[1], request::SET_VRING_BASE)
        .iter()
        .map(|m| m.u32_at(4))
        .collect();
    assert_eq!(bases, [Some(500), Some(501)]);
}

const PACKED: Backend = Backend {
    features: BACKEND.features | RING_PACKED,
    ..BACKEND
};

fn bases(messages: &[Message]) -> Vec<u32> {
    of(messages, request::SET_VRING_BASE)
        .iter()
        .filter_map(|message| message.u32_at(4))
        .collect()
}

#[test]
fn packed_rings_are_negotiated_when_asked_for_and_only_then() {
    for (packed, base) in [(false, 0), (true, 0x8000_8000)] {
        let (_directory, path, backend) = PACKED.listen(1);
        let features = u64::MAX;
        let options = GuestOptions {
            packed,
            features,
            ..options()
        };
        let guest = Guest::connect(&path, options).unwrap();
        let negotiated = guest.negotiated().features & RING_PACKED != 0;
        assert_eq!(negotiated, packed);
        drop(guest);
        let messages = backend.join().unwrap().remove(0);
        assert_eq!(bases(&messages), [base, base]);
    }
    let (_directory, path, backend) = BACKEND.listen(1);
    let options = GuestOptions {
        packed: true,
        ..options()
    };
    let error = Guest::connect(&path, options).unwrap_err();
    assert!(matches!(error, GuestError::NotPacked { .. }), "{error}");
    backend.join().unwrap();
}

#[test]
fn the_areas_of_a_packed_ring_are_passed_in_the_places_of_the_split_ones() {
    let (_directory, path, backend) = PACKED.listen(1);
    let options = GuestOptions {
        packed: true,
        ring_size: 100,
        ..options()
    };
    let mut guest = Guest::connect(&path, options).unwrap();
    let layout = guest.receive_queue(0).unwrap().virtqueue().layout();
    let user = [layout.descriptors, layout.used, layout.available]
        .map(|address| guest.memory().user_address(address).unwrap());
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    let message = of(&messages, request::SET_VRING_ADDR)[0];
    assert_eq!(
        [8, 16, 24].map(|offset| message.u64_at(offset).unwrap()),
        user
    );
}

#[test]
fn packed_rings_resume_where_the_back_end_stopped() {
    let base = 0x0007_8009;
    let (_directory, path, backend) = Backend { base, ..PACKED }.listen(2);
    let options = GuestOptions {
        packed: true,
        ..options()
    };
    let mut guest = Guest::connect(&path, options).unwrap();
    assert_eq!(guest.stop().unwrap(), [base, base + 1]);
    guest.disconnect();
    guest.reconnect().unwrap();
    drop(guest);
    assert_eq!(bases(&backend.join().unwrap()[1]), [base, base + 1]);
}

#[test]
fn packed_rings_resume_behind_the_used_descriptors_when_the_back_end_vanished() {
    for pump in [false, true] {
        let (_directory, path, backend) = PACKED.listen(2);
        let options = GuestOptions {
            packed: true,
            base: 255,
            ..options()
        };
        let mut guest = Guest::connect(&path, options).unwrap();
        let layout = guest.transmit_queue(0).unwrap().virtqueue().layout();
        let tx = if pump {
            let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
            tx.poll().unwrap();
            Some(tx)
        } else {
            guest.send(0, &[&[1; 60], &[2; 60], &[3; 60]]).unwrap();
            None
        };
        let mut device = PackedDevice::new(guest.memory(), layout, 255);
        for _ in 0..2 {
            let chain = device.take().unwrap();
            device.put(chain.id, 0, chain.slots);
        }
        guest.disconnect();
        guest.reconnect().unwrap();
        drop((guest, tx));
        // The last slot of the first lap, and the first of the second; there the wrap counter is 0.
        assert_eq!(
            bases(&backend.join().unwrap()[1]),
            [0x80ff_80ff, 0x0001_0001]
        );
    }
}

#[test]
fn a_back_end_that_comes_back_with_less_is_refused() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let mut guest = Guest::connect(&path, options()).unwrap();
    guest.disconnect();
    backend.join().unwrap();
    let (front, back) = UnixStream::pair().unwrap();
    let less = Backend {
        features: VERSION_1 | PROTOCOL_FEATURES,
        ..BACKEND
    };
    let backend = std::thread::spawn(move || less.serve(&back));
    let error = guest
        .attach(Session::from_stream(front, TIMEOUT).unwrap())
        .unwrap_err();
    assert!(matches!(error, GuestError::FeaturesLost { .. }), "{error}");
    backend.join().unwrap();
}

#[test]
fn a_rebooted_guest_starts_over_with_nothing_outstanding() {
    let (_directory, path, backend) = BACKEND.listen(2);
    let mut guest = Guest::connect(&path, options()).unwrap();
    guest.send(0, &[&[1; 60]]).unwrap();
    guest.stop().unwrap();
    guest.disconnect();
    guest.reset(65_535);
    guest.reconnect().unwrap();
    assert_eq!(guest.transmit_queue(0).unwrap().ring().outstanding(), 0);
    assert_eq!(guest.receive_queue(0).unwrap().ring().outstanding(), 256);
    drop(guest);
    let sessions = backend.join().unwrap();
    let bases: Vec<_> = of(&sessions[1], request::SET_VRING_BASE)
        .iter()
        .map(|m| m.u32_at(4))
        .collect();
    assert_eq!(bases, [Some(65_535), Some(65_535)]);
}

#[test]
fn a_listening_guest_serves_a_switch_that_connects() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.sock");
    std::fs::write(&path, b"stale").unwrap();
    let listener = Listener::bind(&path).unwrap();
    assert!(listener.accept(Duration::from_millis(10)).is_err());
    let to = path.clone();
    let backend = std::thread::spawn(move || BACKEND.serve(&UnixStream::connect(to).unwrap()));
    let mut guest = Guest::new(options()).unwrap();
    guest.attach(listener.accept(TIMEOUT).unwrap()).unwrap();
    guest.disconnect();
    assert!(backend.join().unwrap().len() > 10);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn configuration_space_is_read_from_the_reply() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let mut guest = Guest::connect(
        &path,
        GuestOptions {
            protocol_features: u64::MAX,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(guest.session().unwrap().config(0, 12).unwrap(), [0x40; 12]);
    drop(guest);
    backend.join().unwrap();
}

#[test]
fn every_typed_request_is_the_bytes_of_the_specification() {
    let (front, back) = UnixStream::pair().unwrap();
    let backend = std::thread::spawn(move || BACKEND.serve(&back));
    let mut session = Session::from_stream(front, TIMEOUT).unwrap();
    let layout = RegionLayout {
        guest_base: 0x5000_0000,
        len: 8192,
        huge_pages: false,
    };
    let memory = GuestMemory::new(&[layout]).unwrap();
    let (region, event) = (&memory.regions()[0], EventFd::new().unwrap());
    let log = DirtyLog::new(0x5000_2000).unwrap();
    session.send_rarp([2, 0, 0, 0, 0, 9]).unwrap();
    session.set_mtu(9000).unwrap();
    session.reset_device().unwrap();
    assert_eq!(session.max_mem_slots().unwrap(), 32);
    session.add_mem_region(region).unwrap();
    session.remove_mem_region(region).unwrap();
    session.set_status(7).unwrap();
    assert_eq!(session.status().unwrap(), 15);
    session.set_log_base(&log).unwrap();
    session.set_log_fd(&event).unwrap();
    session.set_features(1 << 26).unwrap();
    let inflight = session.inflight(4, 256).unwrap();
    session.set_inflight(&inflight).unwrap();
    drop(session);

    let region_bytes = [0, 0x5000_0000, 8192, region.user_address(), 0]
        .map(u64::to_ne_bytes)
        .concat();
    // 0x50002 pages are 0x1401 words of 64 bits.
    let log_bytes = [0xa008u64, 0].map(u64::to_ne_bytes).concat();
    let inflight_head = |len: u64, offset: u64| {
        let queues = [4u16, 256, 0, 0].map(u16::to_ne_bytes).concat();
        [[len, offset].map(u64::to_ne_bytes).concat(), queues].concat()
    };
    let word = |word: u64| word.to_ne_bytes().to_vec();
    let expected = [
        (request::SEND_RARP, vec![2, 0, 0, 0, 0, 9, 0, 0], 0),
        (request::NET_SET_MTU, word(9000), 0),
        (request::RESET_DEVICE, vec![], 0),
        (request::GET_MAX_MEM_SLOTS, vec![], 0),
        (request::ADD_MEM_REG, region_bytes.clone(), 1),
        (request::REM_MEM_REG, region_bytes, 0),
        (request::SET_STATUS, word(7), 0),
        (request::GET_STATUS, vec![], 0),
        (request::SET_LOG_BASE, log_bytes, 1),
        (request::SET_LOG_FD, vec![], 1),
        (request::SET_FEATURES, word(1 << 26), 0),
        (request::GET_INFLIGHT_FD, inflight_head(0, 0), 0),
        (request::SET_INFLIGHT_FD, inflight_head(4096, 4096), 1),
    ];
    let sent: Vec<_> = backend
        .join()
        .unwrap()
        .into_iter()
        .map(|message| (message.request, message.payload, message.fds.len()))
        .collect();
    assert_eq!(sent, expected);
}

#[test]
fn what_the_back_end_does_not_offer_is_an_error_and_not_sent() {
    let (_directory, path, backend) = BACKEND.listen(1);
    let mut guest = Guest::connect(&path, options()).unwrap();
    assert!(matches!(
        guest.start_dirty_log(),
        Err(GuestError::NotOffered("LOG_SHMFD"))
    ));
    assert!(matches!(
        guest.reset_device(),
        Err(GuestError::NotOffered("RESET_DEVICE"))
    ));
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    assert!(of(&messages, request::SET_LOG_BASE).is_empty());
    assert!(of(&messages, request::GET_VRING_BASE).is_empty());
}

#[test]
fn stopped_rings_start_again_on_the_same_session() {
    let resetting = Backend {
        protocol_features: BACKEND.protocol_features | protocol::RESET_DEVICE,
        ..BACKEND
    };
    let (_directory, path, backend) = resetting.listen(1);
    let options = GuestOptions {
        protocol_features: u64::MAX,
        ..options()
    };
    let mut guest = Guest::connect(&path, options).unwrap();
    guest.stop().unwrap();
    guest.restart().unwrap();
    guest.reset_device().unwrap();
    guest.restart().unwrap();
    drop(guest);
    let messages = backend.join().unwrap().remove(0);
    assert_eq!(bases(&messages), [0, 0, 1000, 1001, 1000, 1001]);
    assert_eq!(of(&messages, request::RESET_DEVICE).len(), 1);
}

#[test]
fn hostile_messages_arrive_as_written() {
    let (front, back) = UnixStream::pair().unwrap();
    let mut session = Session::from_stream(front, TIMEOUT).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let fds = [rustix::fd::AsFd::as_fd(&a), rustix::fd::AsFd::as_fd(&b)];
    session.send(9999, 0xffff_fff0, &[1, 2, 3], &fds).unwrap();
    let message = message::receive(&back, TIMEOUT).unwrap();
    assert_eq!(
        (
            message.request,
            message.flags,
            message.payload.as_slice(),
            message.fds.len()
        ),
        (9999, 0xffff_fff0, &[1, 2, 3][..], 2)
    );
    session.send_bytes(&[5, 0, 0], &[]).unwrap();
    assert!(!session.wait_closed(Duration::from_millis(20)).unwrap());
    drop(back);
    assert!(session.wait_closed(TIMEOUT).unwrap());
}
