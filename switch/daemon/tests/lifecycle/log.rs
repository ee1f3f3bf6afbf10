//! The dirty log, and migration with it, under load.

use std::sync::Arc;

use crosspoint_guest::message::{self, protocol, request};
use crosspoint_guest::{DirtyLog, Guest, GuestMemory, RegionLayout, RingLayout, Session};
use crosspoint_model::status::{PortStatus, ShownState};

use super::load::{Load, Loss, Pair};
use super::{Case, PATIENCE, PORTS, Switch};

const PAGE: usize = 4096;

/// All of a guest's memory, which is one region starting at 0.
fn snapshot(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.regions()[0].len()];
    memory.read(0, &mut bytes).expect("guest memory");
    bytes
}

/// The numbers of the pages that hold `len` bytes from `address`.
fn pages(address: u64, len: usize) -> std::ops::RangeInclusive<usize> {
    let first = address as usize;
    first / PAGE..=(first + len - 1) / PAGE
}

/// Pages that only the device writes: the buffers of the receive ring, without pages shared with the driver's part of
/// the ring before them. And pages of the rings that the device writes: after hundreds of frames each of them is dirty.
fn of_the_device(pair: &mut Pair, packed: bool) -> (Vec<usize>, Vec<usize>) {
    let (base, len) = pair.ends[0].lanes[0].area();
    let (base, end) = (base as usize, base as usize + len);
    let buffers = (base.div_ceil(PAGE)..end / PAGE).collect();
    let rings = pair.ends[0].lanes.iter().flat_map(|lane| {
        let RingLayout {
            size,
            descriptors,
            used,
            ..
        } = lane.layout();
        match packed {
            true => pages(descriptors, 16 * usize::from(size)),
            false => pages(used, 4 + 8 * usize::from(size)),
        }
    });
    (buffers, rings.collect())
}

#[test]
fn every_page_that_is_written_while_the_log_runs_has_its_bit() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(protocol::LOG_SHMFD));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        let (buffers, rings) = load.with(move |pair| of_the_device(pair, case.packed));
        // More frames than a ring has entries, plus those in flight before.
        for count in [400, 1, 40, 600] {
            let log = a.start_dirty_log().expect("a log");
            let before = snapshot(a.memory());
            load.flow(count);
            let after = snapshot(a.memory());
            a.stop_dirty_log().expect("its end");
            let differs = |page: &&usize| {
                let span = **page * PAGE..(**page + 1) * PAGE;
                before[span.clone()] != after[span]
            };
            let changed: Vec<usize> = buffers.iter().filter(differs).copied().collect();
            assert!(count < 300 || !changed.is_empty());
            let wanted = changed.iter().chain(rings.iter().filter(|_| count >= 300));
            let clean: Vec<&usize> = wanted
                .filter(|page| !log.is_dirty((**page * PAGE) as u64))
                .collect();
            assert!(
                clean.is_empty(),
                "written, and clean: pages {clean:?}; {count} frames; rings: pages {rings:?}"
            );
            // Nothing more is logged.
            let _ = log.take();
            load.flow(50);
            assert_eq!(log.take(), [] as [u64; 0]);
        }
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

/// One log replaces another without an end between them, while memory comes and goes: each write is in one of the logs.
#[test]
fn a_log_that_is_replaced_while_memory_changes_misses_nothing() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let features = protocol::LOG_SHMFD | protocol::CONFIGURE_MEM_SLOTS;
        let mut a = switch.guest("a", case.guest(features));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        let (buffers, _) = load.with(move |pair| of_the_device(pair, case.packed));
        let more = |number: u64| RegionLayout {
            guest_base: (number + 1) << 24,
            len: PAGE,
            huge_pages: false,
        };
        let mut logs = vec![a.start_dirty_log().expect("a log")];
        let before = snapshot(a.memory());
        for number in 0..10 {
            load.flow(7);
            a.add_memory(more(number)).expect("a region");
            logs.push(a.start_dirty_log().expect("a log"));
            a.remove_memory(more(number).guest_base)
                .expect("it is there");
        }
        load.flow(7);
        let after = snapshot(a.memory());
        a.stop_dirty_log().expect("its end");
        let is_dirty = |page: &usize| logs.iter().any(|log| log.is_dirty((page * PAGE) as u64));
        let clean = buffers.iter().filter(|page| {
            let span = **page * PAGE..(**page + 1) * PAGE;
            before[span.clone()] != after[span] && !is_dirty(page)
        });
        assert_eq!(clean.collect::<Vec<_>>(), [] as [&usize; 0]);
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

/// Memory of the same size on the destination host.
fn elsewhere(memory: &GuestMemory) -> Arc<GuestMemory> {
    let layout = RegionLayout {
        guest_base: 0,
        len: memory.regions()[0].len(),
        huge_pages: false,
    };
    GuestMemory::new(&[layout]).expect("memory")
}

fn copy(from: &GuestMemory, to: &GuestMemory, address: u64, len: usize) {
    let mut bytes = vec![0; len];
    from.read(address, &mut bytes).expect("guest memory");
    to.write(address, &bytes).expect("guest memory");
}

fn copy_dirty(from: &GuestMemory, to: &GuestMemory, log: &DirtyLog) {
    for page in log.take() {
        copy(from, to, page, PAGE);
    }
}

/// Copies what the driver wrote, which the hypervisor learns by other means than the device's log.
fn copy_what_the_driver_wrote(from: &GuestMemory, to: &GuestMemory, pair: &Pair, packed: bool) {
    for lane in &pair.ends[0].lanes {
        let layout = lane.layout();
        let descriptors = 16 * usize::from(layout.size);
        copy(from, to, layout.descriptors, descriptors);
        let available = if packed {
            4
        } else {
            6 + 2 * usize::from(layout.size)
        };
        copy(from, to, layout.available, available);
    }
    let (base, len) = pair.ends[0].lanes[1].area();
    copy(from, to, base, len);
}

/// Stops when each ring holds something: frames that the guest has not read yet, and frames that the switch has not
/// taken yet. No frame is on its way to the guest, which could not receive it.
fn stop_in_the_middle(load: &Load) {
    load.with(|pair| pair.quiet = true);
    load.wait(|pair| pair.ends[1].lanes[1].outstanding() == 0);
    load.with(|pair| {
        (pair.quiet, pair.held) = (false, true);
        pair.send(1);
    });
    load.wait(|pair| {
        pair.ends[1].lanes[1].take(false);
        pair.ends[1].lanes[1].outstanding() == 0
    });
    load.with(|pair| pair.send(0));
}

fn migrate(load: &Load, a: &mut Guest, switch: &Switch, case: Case, [left, to]: [&str; 2]) {
    let home = a.memory().clone();
    let away = elsewhere(&home);
    let log = a.start_dirty_log().expect("a log");
    copy(&home, &away, 0, home.regions()[0].len());
    for _ in 0..4 {
        load.flow(100);
        copy_dirty(&home, &away, &log);
    }
    stop_in_the_middle(load);
    a.stop().expect("the bases");
    copy_dirty(&home, &away, &log);
    a.stop_dirty_log().expect("its end");
    let (from, into) = (home.clone(), away.clone());
    load.with(move |pair| copy_what_the_driver_wrote(&from, &into, pair, case.packed));
    let (there, here) = (snapshot(&away), snapshot(&home));
    let stale = there.chunks(PAGE).zip(here.chunks(PAGE));
    let stale: Vec<usize> = stale
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(page, _)| page)
        .collect();
    assert!(
        stale.is_empty(),
        "pages that were written unnoticed: {stale:?}"
    );
    a.disconnect();
    // The guest goes on with what has arrived, and nothing else.
    home.write(0, &vec![0xee; here.len()])
        .expect("guest memory");
    copy(&away, &home, 0, there.len());
    let session = Session::connect(switch.socket(to), PATIENCE).expect("the switch listens");
    a.attach(session).expect("it goes on");
    switch.wait(to, |port| port.state == ShownState::Up);
    // Until the switch has seen the disconnect at the old port, frames for the guest go there.
    let is_left = |port: &PortStatus| port.state == ShownState::Down && port.addresses == 0;
    switch.wait(left, is_left);
    load.with(|pair| pair.held = false);
}

#[test]
fn a_guest_that_migrates_by_the_log_loses_nothing() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &["a", "b", "c", "d", "e"], 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(protocol::LOG_SHMFD));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        for way in [["a", "e"], ["e", "a"], ["a", "e"]] {
            migrate(&load, &mut a, &switch, case, way);
            load.flow(600);
        }
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

#[test]
fn a_log_that_cannot_be_used_is_refused_with_a_reason() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(protocol::LOG_SHMFD));
        let mut b = switch.guest("b", case.guest(0));
        let mut load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        let log = DirtyLog::new(1 << 30).expect("a log");
        for ((len, offset), reason) in [
            ((1, 0), "a dirty log of 1 bytes ends at"),
            ((0, 0), "invalid message"),
            ((4096, u64::MAX - 8), ""),
            ((1 << 20, 0), "of a file of"),
            ((4096, 1 << 40), "of a file of"),
        ] {
            let session = a.session().expect("a session");
            let payload = message::log_base(len, offset);
            let fds = [log.region().file()];
            assert!(
                session
                    .query(request::SET_LOG_BASE, &payload, &fds)
                    .is_err()
            );
            switch.wait("a", |port| port.state == ShownState::Down);
            let end = switch.last_end("a");
            assert!(end.contains("request 6") && end.contains(reason), "{end}");
            let mut pair = load.abort();
            pair.lend(0, &mut a, |a| a.reconnect().expect("the next connection"));
            switch.wait("a", |port| port.state == ShownState::Up);
            load = Load::of(pair);
            load.flow(100);
        }
        let pair = load.finish();
        assert_eq!((pair.lost(0), pair.doubled()), (0, 0));
        others.check(&switch);
        switch.check_ledger();
    });
}
