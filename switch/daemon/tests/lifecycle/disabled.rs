//! Ports that the operator disables and enables again while their guests stay attached.

use std::time::Duration;

use crosspoint_daemon::dataplane::PortSettings;
use crosspoint_guest::Guest;
use crosspoint_model::status::{PortStatus, ShownState};

use super::load::{Load, Loss};
use super::{Case, PORTS, Switch};

impl Switch {
    fn set_disabled(&self, name: &str, disabled: bool) {
        let number = self.dataplane.port_number(name).expect("a port");
        let settings = PortSettings {
            disabled: Some(disabled),
            ..PortSettings::default()
        };
        self.dataplane.set_port(number, settings);
    }
}

/// Frames for the disabled port are counted as dropped, and all others have arrived once.
#[test]
fn a_disabled_port_passes_nothing_and_goes_on_where_it_was() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        let others = switch.bystanders(case);
        let mut a = switch.guest("a", case.guest(0));
        let mut b = switch.guest("b", case.guest(0));
        let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
        for _ in 0..4 {
            load.flow(100);
            switch.set_disabled("b", true);
            let before = switch.port("b");
            let worker = before.queues[0].worker;
            let seen = (before.state, before.addresses, worker);
            assert_eq!(seen, (ShownState::Disabled, 0, None));
            assert!(before.detail.contains("ready"), "{}", before.detail);
            std::thread::sleep(Duration::from_millis(5));
            let after = switch.port("b");
            let frames = |port: &PortStatus| (port.queues[0].rx_packets, port.queues[0].tx_packets);
            assert_eq!(frames(&after), frames(&before));
            assert_eq!(after.addresses, 0);
            switch.set_disabled("b", false);
            assert_eq!(switch.port("b").state, ShownState::Up);
        }
        load.flow(100);
        let pair = load.finish();
        let dropped = switch.drops("b", "port_disabled") + switch.drops("a", "no_destination");
        let lost = (pair.lost(0), pair.lost(1), pair.doubled(), pair.late());
        assert_eq!(lost, (dropped, 0, 0, 0));
        let device = switch.port("b").device.expect("a device");
        assert_eq!(device.connections, 1, "its front end has stayed connected");
        others.check(&switch);
        switch.check_ledger();
    });
}

#[test]
fn the_time_in_a_state_begins_when_a_port_is_disabled_or_enabled() {
    let switch = Switch::start(1, &PORTS, 1);
    for disabled in [true, false] {
        switch.wait("b", |port| port.state_for_s >= 1);
        let before = switch.port("b").state_for_s;
        switch.set_disabled("b", disabled);
        assert!(
            switch.port("b").state_for_s < before,
            "disabled: {disabled}"
        );
    }
}

#[test]
fn a_guest_that_comes_and_goes_while_its_port_is_disabled_is_served_only_when_it_is_enabled() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &PORTS, 1);
        switch.set_disabled("b", true);
        for _ in 0..3 {
            let mut a = switch.guest("a", case.guest(0));
            let b = Guest::connect(switch.socket("b"), case.guest(0));
            let mut b = b.expect("the guest connects");
            switch.wait("b", |port| port.detail.contains("ready"));
            let port = switch.port("b");
            assert_eq!((port.state, port.addresses), (ShownState::Disabled, 0));
            b.stop().expect("the bases");
            switch.wait("b", |port| port.detail.contains("connected"));
            b.restart().expect("on we go");
            switch.wait("b", |port| port.detail.contains("ready"));
            switch.set_disabled("b", false);
            let load = Load::start(&mut a, &mut b, 1, Loss::Counted);
            load.flow(50);
            switch.set_disabled("b", true);
            drop(load.abort());
            drop(b);
            switch.wait("b", |port| port.detail.contains("nothing is attached"));
            assert_eq!(switch.port("b").state, ShownState::Disabled);
        }
        switch.set_disabled("b", false);
        assert_eq!(switch.port("b").state, ShownState::Down);
        switch.check_ledger();
    });
}
