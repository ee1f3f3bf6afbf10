//! Memory tables that are invalid, or claim what does not belong to the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crosspoint_daemon::dataplane::PortState;
use crosspoint_guest::message::request;

use crate::rig::{Census, Fate, PATIENCE, Target, attack, memfd, must_fail, say, table};

const LEN: u64 = 0x10_0000;

fn refuse(target: &Target<'_>, regions: &[[u64; 4]], file: &OwnedFd) {
    let fds: Vec<BorrowedFd<'_>> = regions.iter().map(|_| file.as_fd()).collect();
    must_fail(
        &mut target.negotiated(),
        request::SET_MEM_TABLE,
        &table(regions),
        &fds,
    );
}

#[test]
fn regions_overlap() {
    attack(|target| {
        let file = memfd(LEN);
        for second in [0, 0x1000, 0x8000 - 1] {
            refuse(
                target,
                &[[0, 0x8000, 0, 0], [second, 0x8000, 0x10_0000, 0]],
                &file,
            );
        }
    });
}

#[test]
fn a_region_is_empty_or_overflows() {
    attack(|target| {
        let file = memfd(LEN);
        for region in [
            [0, 0, 0, 0],
            [u64::MAX, 2, 0, 0],
            [0, 2, u64::MAX, 0],
            [0, 2, 0, u64::MAX],
            [0, u64::MAX, 1, 1],
            [1 << 63, 1 << 63, 0, 0],
        ] {
            refuse(target, &[region], &file);
        }
    });
}

#[test]
fn regions_are_none_or_too_many() {
    attack(|target| {
        let file = memfd(LEN);
        let regions: Vec<_> = (0..33)
            .map(|i| [i * 0x1000, 0x1000, i * 0x1000, 0])
            .collect();
        for count in [0, 9, 32, 33] {
            refuse(target, &regions[..count], &file);
        }
        // More or fewer regions than descriptors.
        for (regions, fds) in [(2, 1), (1, 2), (8, 7)] {
            let (payload, fds) = (table(&regions_of(regions)), vec![file.as_fd(); fds]);
            must_fail(
                &mut target.negotiated(),
                request::SET_MEM_TABLE,
                &payload,
                &fds,
            );
        }
    });
}

fn regions_of(count: u64) -> Vec<[u64; 4]> {
    (0..count)
        .map(|i| [i * 0x1000, 0x1000, i * 0x1000, 0])
        .collect()
}

#[test]
fn a_file_is_shorter_than_its_region() {
    attack(|target| {
        let file = memfd(LEN);
        for (size, offset) in [
            (LEN + 1, 0),
            (LEN, 1),
            (0x1000, LEN),
            (1, LEN),
            (1 << 40, 0),
            (0x1000, 1 << 40),
            (1, (1 << 63) - 2),
        ] {
            refuse(target, &[[0, size, 0, offset]], &file);
        }
        refuse(target, &[[0, 1, 0, 0]], &memfd(0));
    });
}

#[test]
fn memory_is_no_memory() {
    attack(|target| {
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        // The last one is opened read-only.
        for file in [
            open("/dev/zero"),
            open("/dev/null"),
            open("/proc/self/mem"),
            open("/"),
            open("/proc/self/exe"),
            read,
            write,
            event,
        ] {
            refuse(target, &[[0, 0x1000, 0, 0]], &file);
        }
    });
}

#[test]
fn memory_may_not_be_written() {
    attack(|target| {
        let file = memfd(LEN);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        refuse(
            target,
            &[[0, LEN, 0, 0]],
            &std::fs::File::open(path).unwrap().into(),
        );
    });
}

/// One valid region does not let the invalid one in, and leaves nothing behind.
#[test]
fn the_last_of_eight_regions_is_wrong() {
    attack(|target| {
        let file = memfd(LEN);
        let before = Census::now();
        for _ in 0..100 {
            let mut regions = regions_of(8);
            regions[7][1] = LEN + 1;
            refuse(target, &regions, &file);
        }
        before.assert_same();
    });
}

#[test]
fn the_same_table_is_sent_a_thousand_times() {
    attack(|target| {
        let file = memfd(LEN);
        let mut session = target.negotiated();
        let mut send = |times| {
            for _ in 0..times {
                let fds = [file.as_fd(); 8];
                session
                    .request(request::SET_MEM_TABLE, &table(&regions_of(8)), &fds)
                    .unwrap();
            }
        };
        send(1);
        let before = Census::now();
        send(1000);
        // Regions with the same bytes share a mapping from the second time on.
        before.assert_no_more();
    });
}

#[test]
fn the_table_of_a_guest_that_runs_is_sent_a_thousand_times() {
    attack(|target| {
        let mut guest = target.guest();
        let memory = guest.memory().clone();
        let before = Census::now();
        for _ in 0..1000 {
            guest.session().unwrap().set_mem_table(&memory).unwrap();
        }
        before.assert_same();
        assert_eq!(guest.send(0, &[&[0xff; 60]]).unwrap(), 1);
        assert!(guest.drain_transmit(0, PATIENCE).unwrap());
    });
}

/// A table without the rings' memory: the rings stop, and nothing else does.
#[test]
fn memory_goes_from_under_the_rings() {
    attack(|target| {
        let mut guest = target.guest();
        let file = memfd(0x1000);
        let payload = table(&[[1 << 40, 0x1000, 1 << 50, 0]]);
        let fate = say(
            guest.session().unwrap(),
            request::SET_MEM_TABLE,
            &payload,
            &[file.as_fd()],
        );
        assert_ne!(fate, Fate::Closed);
        target.others_go_on();
    });
}

/// A sparse file costs nothing, and eight of the largest mappings leave the process no addresses for others.
#[test]
fn a_table_takes_all_addresses() {
    attack(|target| {
        let file = memfd(16 << 40);
        for size in [15 << 40, 8 << 40, 4 << 40, 1 << 40] {
            let regions: Vec<_> = (0..8).map(|i| [i * size, size, i * size, 0]).collect();
            refuse(target, &regions, &file);
        }
    });
}

#[test]
fn ring_addresses_are_outside_the_memory() {
    attack(|target| {
        for area in 0..3 {
            for at in 0..7 {
                let mut guest = target.guest();
                let start = guest.memory().user_address(0).unwrap();
                let end = start + guest.memory().regions()[0].len() as u64;
                let at = [
                    0,
                    start - 16,
                    end - 16,
                    end,
                    u64::MAX - 15,
                    u64::MAX,
                    1 << 63,
                ][at];
                let mut addresses = [start, start + 0x4000, start + 0x8000, 0];
                addresses[area] = at;
                // Refused, or kept because its memory may come later: the ring does not run.
                let session = guest.session().unwrap();
                if session.set_vring_addr(0, addresses).is_ok() {
                    let _ = session.set_vring_addr(1, addresses);
                }
                target.send_to_it(1);
            }
            target.others_go_on();
        }
    });
}

#[test]
fn a_port_without_rings_is_not_up() {
    attack(|target| {
        let mut guest = target.guest();
        (0..2).for_each(|index| _ = guest.session().unwrap().vring_base(index).unwrap());
        target.wait_state(PortState::Connected);
    });
}

#[test]
fn ring_areas_lie_over_each_other() {
    attack(|target| {
        let mut guest = target.guest();
        let start = guest.memory().user_address(0).unwrap();
        let session = guest.session().unwrap();
        for index in 0..2 {
            session
                .set_vring_addr(index, [start, start, start, 0])
                .unwrap();
        }
        // The used ring overwrites the guest's own buffers, which harms only the guest.
        target.send_to_it(10);
        target.others_go_on();
    });
}
