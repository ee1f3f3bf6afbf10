//! Memory that comes and goes, is logged, and outlives a connection.

use super::*;

/// A region that is added to a guest that runs.
const ADDED: RegionLayout = RegionLayout {
    guest_base: 1 << 32,
    len: 4096,
    huge_pages: false,
};

fn all_protocol_features() -> GuestOptions {
    GuestOptions {
        protocol_features: u64::MAX,
        ..options()
    }
}

#[test]
fn the_inflight_region_is_kept_over_reconnects_until_a_reboot() {
    let with_inflight = Backend {
        protocol_features: BACKEND.protocol_features | protocol::INFLIGHT_SHMFD,
        ..BACKEND
    };
    let (_directory, path, backend) = with_inflight.listen(3);
    let mut guest = Guest::connect(&path, all_protocol_features()).unwrap();
    let region = guest.inflight().unwrap().clone();
    assert_eq!((region.queues, region.queue_size), (2, 256));
    let mut bytes = [0; 7];
    region.memory().read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"in hand", "mapped from its offset on");
    guest.disconnect();
    guest.reconnect().unwrap();
    guest.disconnect();
    guest.reset(0);
    guest.reconnect().unwrap();
    drop(guest);
    let sessions = backend.join().unwrap();
    let asked: Vec<_> = sessions
        .iter()
        .map(|messages| of(messages, request::GET_INFLIGHT_FD).len())
        .collect();
    assert_eq!(asked, [1, 0, 1]);
    let inode = |messages: &[Message]| {
        let message = of(messages, request::SET_INFLIGHT_FD)[0];
        rustix::fs::fstat(&message.fds[0]).unwrap().st_ino
    };
    assert_eq!(inode(&sessions[0]), inode(&sessions[1]));
    assert_ne!(inode(&sessions[0]), inode(&sessions[2]));
    let order: Vec<_> = sessions[1].iter().map(|m| m.request).collect();
    let at = |number| order.iter().position(|&n| n == number).unwrap();
    assert!(at(request::SET_INFLIGHT_FD) > at(request::SET_FEATURES));
    assert!(at(request::SET_INFLIGHT_FD) < at(request::SET_VRING_KICK));
}

#[test]
fn memory_comes_and_goes_one_region_at_a_time_or_in_a_new_table() {
    for slots in [protocol::CONFIGURE_MEM_SLOTS, 0] {
        let with_slots = Backend {
            protocol_features: BACKEND.protocol_features | slots,
            ..BACKEND
        };
        let (_directory, path, backend) = with_slots.listen(2);
        let mut guest = Guest::connect(&path, all_protocol_features()).unwrap();
        let added = guest.add_memory(ADDED).unwrap();
        added.write((1 << 32) + 4090, &[7; 6]).unwrap();
        assert!(guest.add_memory(ADDED).is_err(), "overlap");
        guest.disconnect();
        guest.reconnect().unwrap();
        guest.remove_memory(1 << 32).unwrap();
        assert!(matches!(
            guest.remove_memory(1 << 32),
            Err(GuestError::NoMemory(_))
        ));
        drop(guest);
        let sessions = backend.join().unwrap();
        let count = |session: usize, number| of(&sessions[session], number).len();
        let tables: Vec<_> = sessions
            .iter()
            .flat_map(|messages| of(messages, request::SET_MEM_TABLE))
            .map(|message| message.fds.len())
            .collect();
        if slots == 0 {
            assert_eq!(tables, [1, 2, 2, 1]);
        } else {
            assert_eq!(tables, [0; 0]);
            assert_eq!([0, 1].map(|i| count(i, request::ADD_MEM_REG)), [2, 2]);
            assert_eq!([0, 1].map(|i| count(i, request::REM_MEM_REG)), [0, 1]);
        }
    }
}

#[test]
fn memory_that_the_back_end_does_not_let_go_stays() {
    let refusing = Backend {
        refuse: request::REM_MEM_REG,
        protocol_features: protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS,
        ..BACKEND
    };
    let (_directory, path, backend) = refusing.listen(2);
    let mut guest = Guest::connect(&path, all_protocol_features()).unwrap();
    guest.add_memory(ADDED).unwrap();
    let refused = guest.remove_memory(1 << 32);
    assert!(matches!(
        refused,
        Err(GuestError::Session(SessionError::Refused { .. }))
    ));
    guest.disconnect();
    guest.reconnect().unwrap();
    drop(guest);
    let sessions = backend.join().unwrap();
    assert_eq!(of(&sessions[1], request::ADD_MEM_REG).len(), 2);
}

#[test]
fn a_dirty_log_is_shared_before_the_rings_log_and_goes_on_over_reconnects() {
    let with_log = Backend {
        features: BACKEND.features | LOG_ALL,
        protocol_features: BACKEND.protocol_features | protocol::LOG_SHMFD,
        ..BACKEND
    };
    let (_directory, path, backend) = with_log.listen(2);
    let options = GuestOptions {
        features: u64::MAX,
        protocol_features: u64::MAX,
        ..options()
    };
    let mut guest = Guest::connect(&path, options).unwrap();
    assert_eq!(guest.negotiated().features & LOG_ALL, 0, "not yet");
    let used = guest.receive_queue(0).unwrap().virtqueue().layout().used;
    guest.start_dirty_log().unwrap();
    guest.disconnect();
    guest.reconnect().unwrap();
    guest.stop_dirty_log().unwrap();
    drop(guest);
    let sessions = backend.join().unwrap();
    let addresses = |session: usize| -> Vec<_> {
        of(&sessions[session], request::SET_VRING_ADDR)
            .iter()
            .filter(|message| message.u32_at(0) == Some(0))
            .map(|message| (message.u32_at(4).unwrap(), message.u64_at(32).unwrap()))
            .collect()
    };
    assert_eq!(addresses(0), [(0, 0), (1, used)]);
    assert_eq!(addresses(1), [(1, used), (0, 0)]);
    let logging = |session: usize| -> Vec<_> {
        of(&sessions[session], request::SET_FEATURES)
            .iter()
            .map(|message| message.u64_at(0).unwrap() & LOG_ALL != 0)
            .collect()
    };
    assert_eq!(logging(0), [false, true]);
    assert_eq!(logging(1), [false, true, false]);
    for messages in &sessions {
        let order: Vec<_> = messages.iter().map(|m| m.request).collect();
        let log = order.iter().position(|&n| n == request::SET_LOG_BASE);
        let log_all = messages.iter().position(|m| {
            m.request == request::SET_FEATURES && m.u64_at(0).unwrap() & LOG_ALL != 0
        });
        assert!(log.unwrap() < log_all.unwrap());
    }
}

#[test]
fn a_dirty_log_gives_each_page_once() {
    let log = DirtyLog::new(300 * 4096 + 1).unwrap();
    assert_eq!(log.len(), 40, "301 pages in words of 64 bits");
    let write = |byte: u64, bits: u8| log.memory().write(byte, &[bits]).unwrap();
    write(0, 0b1000_0001);
    write(37, 0b0001_0000);
    assert!(log.is_dirty(0) && log.is_dirty(4095) && log.is_dirty(7 * 4096));
    assert!(!log.is_dirty(4096) && !log.is_dirty(u64::MAX));
    assert_eq!(log.take(), [0, 7 * 4096, 300 * 4096]);
    assert_eq!(log.take(), [0; 0]);
}
