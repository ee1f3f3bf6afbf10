//! Memory regions that come and go under load.

use std::sync::Arc;

use crosspoint_guest::message::protocol;
use crosspoint_guest::{Guest, GuestMemory, GuestOptions, RegionLayout, SessionError};
use crosspoint_model::status::ShownState;

use super::load::{Load, Loss};
use super::{Case, PORTS, Switch};

const FAR: u64 = 1 << 32;
const SLOTS: u64 = protocol::CONFIGURE_MEM_SLOTS;

fn layout(number: u64, len: usize) -> RegionLayout {
    RegionLayout {
        guest_base: FAR + number * (16 << 20),
        len,
        huge_pages: false,
    }
}

/// Moves the buffers of the first guest's receive and transmit rings to new places.
fn move_buffers(load: &Load, places: [(Arc<GuestMemory>, u64); 2]) {
    load.with(move |pair| {
        let lanes = pair.ends[0].lanes.iter_mut().zip(places);
        lanes.for_each(|(lane, (memory, base))| lane.move_to(&memory, base));
    });
    load.wait(|pair| pair.ends[0].lanes.iter().all(|lane| lane.has_moved()));
    load.flow(300);
}

fn places(load: &Load) -> [(Arc<GuestMemory>, u64); 2] {
    load.with(|pair| {
        [0, 1].map(|lane| {
            let lane = &pair.ends[0].lanes[lane];
            (lane.memory().clone(), lane.area().0)
        })
    })
}

/// Adds a region, moves all buffers into it, and back.
pub fn visit_new_memory(load: &Load, guest: &mut Guest, number: u64) {
    let home = places(load);
    let new = guest.add_memory(layout(number, 2 << 20)).expect("a region");
    let base = layout(number, 0).guest_base;
    let away = [(new.clone(), base), (new, base + (1 << 20))];
    move_buffers(load, away);
    move_buffers(load, home);
    guest.remove_memory(base).expect("nothing lies there");
}

#[test]
fn hundreds_of_regions_come_and_go_under_load_one_by_one() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(SLOTS));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        visit_new_memory(&load, &mut a, 600);
        let wait_regions = |count: u64| {
            switch.wait("a", |port| {
                let device = port.device.as_ref().expect("a device");
                device.memory.len() as u64 == count
            })
        };
        let count = if case.workers == 1 { 508 } else { 150 };
        for number in 0..count {
            a.add_memory(layout(number, 4096)).expect("a region");
        }
        wait_regions(count + 1);
        // More than 509 regions are refused, without other effects.
        let refused = a.add_memory(layout(509, 4096)).is_err();
        assert_eq!(refused, count == 508);
        a.remove_memory(layout(100, 0).guest_base)
            .expect("it is there");
        visit_new_memory(&load, &mut a, 100);
        for number in (0..count).rev().filter(|number| *number != 100) {
            let base = layout(number, 0).guest_base;
            a.remove_memory(base).expect("it is there");
        }
        if !refused {
            a.remove_memory(layout(509, 0).guest_base)
                .expect("it is there");
        }
        wait_regions(1);
        assert_eq!(switch.port("a").state, ShownState::Up);
        load.flow(200);
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

#[test]
fn tables_that_grow_shrink_and_stay_the_same_lose_nothing() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(0));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        for _ in 0..10 {
            for number in 0..7 {
                a.add_memory(layout(number, 4096)).expect("a region");
            }
            for number in 0..7 {
                let base = layout(number, 0).guest_base;
                a.remove_memory(base).expect("it is there");
            }
            let memory = a.memory().clone();
            for _ in 0..5 {
                let same = a.session().expect("a session").set_mem_table(&memory);
                same.expect("the same again");
            }
        }
        visit_new_memory(&load, &mut a, 3);
        load.flow(200);
        load.finish().expect_all();
        others.check(&switch);
        switch.check_ledger();
    });
}

/// A guest whose rings lie in separate regions: 0 has the receive ring, 1 its buffers, 3 the transmit ring, 4 its
/// buffers.
fn scattered(case: Case, protocol_features: u64) -> GuestOptions {
    GuestOptions {
        region_bases: (0..6).map(|region| region << 28).collect(),
        ..case.guest(protocol_features)
    }
}

/// Removes the main memory's region `number`, or adds it again.
fn tell(a: &mut Guest, number: usize, there: bool) -> Result<(), SessionError> {
    let memory = a.memory().clone();
    let slots = a.negotiated().protocol_features & SLOTS != 0;
    let session = a.session().expect("a session");
    match (slots, there) {
        (true, true) => session.add_mem_region(&memory.regions()[number]),
        (true, false) => session.remove_mem_region(&memory.regions()[number]),
        (false, _) => {
            let regions = memory.regions().iter().enumerate();
            let kept = regions.filter(|(n, _)| there || *n != number);
            session.set_mem_regions(&kept.map(|(_, region)| region).collect::<Vec<_>>())
        }
    }
}

#[test]
fn a_ring_stops_with_its_memory_and_goes_on_with_it() {
    Case::each(|case| {
        for features in [SLOTS, 0] {
            let switch = Switch::start(case.workers, &PORTS, 1);
            let others = switch.bystanders(case);
            let mut a = switch.guest("a", scattered(case, features));
            let mut b = switch.guest("b", case.guest(0));
            let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
            let before = switch.drops("a", "port_down");
            for (region, detail) in [
                (3, "1 receive and 0 transmit queues"),
                (0, "0 receive and 1 transmit queues"),
            ] {
                tell(&mut a, region, false).expect("a region less");
                let port = switch.port("a");
                assert_eq!(
                    (port.state, port.detail.as_str()),
                    (ShownState::Connected, detail)
                );
                std::thread::sleep(std::time::Duration::from_millis(50));
                tell(&mut a, region, true).expect("the region again");
                switch.wait("a", |port| port.state == ShownState::Up);
                load.flow(300);
            }
            let pair = load.finish();
            let lost = (pair.lost(0), pair.lost(1), pair.doubled());
            // Frames of the guest waited in its ring; frames for it were dropped.
            assert_eq!(lost, (0, switch.drops("a", "port_down") - before, 0));
            others.check(&switch);
            switch.check_ledger();
        }
    });
}
