//! Objectives for the completion of a guest's descriptors, and other status of its queues.

use std::time::Duration;

use crosspoint_config::Slo;
use crosspoint_model::status::{ObjectiveStatus, PortStatus};

use super::load::{Load, Loss};
use super::{Case, Switch};

fn p99(port: &PortStatus) -> ObjectiveStatus {
    let slo = port.slo.expect("it has objectives");
    slo.completion_p99.expect("it has this one")
}

/// Whether many of the guest's descriptors have been completed.
fn has_completions(port: &PortStatus) -> bool {
    port.slo.is_some_and(|slo| slo.completions > 100)
}

fn slo(p99: Duration) -> Option<Slo> {
    Some(Slo {
        completion_p50: None,
        completion_p99: Some(p99),
    })
}

#[test]
fn objectives_are_met_or_missed_by_the_guests_own_descriptors() {
    Case::each(|case| {
        let switch = Switch::start(case.workers, &["a", "b"], 1);
        switch.dataplane.set_slo(0, slo(Duration::from_secs(100)));
        // No burst is that fast.
        switch.dataplane.set_slo(1, slo(Duration::from_nanos(1)));
        for port in ["a", "b"] {
            assert_eq!(
                p99(&switch.port(port)).is_met(),
                None,
                "there was no traffic"
            );
        }
        let (mut a, mut b) = (
            switch.guest("a", case.guest(0)),
            switch.guest("b", case.guest(0)),
        );
        let load = Load::start(&mut a, &mut b, 1, Loss::None);
        load.flow(300);
        let up = switch.port("a");
        load.finish();
        let [a, b] = ["a", "b"].map(|port| {
            switch.wait(port, has_completions);
            switch.port(port)
        });
        assert_eq!(
            (p99(&a).is_met(), p99(&b).is_met()),
            (Some(true), Some(false))
        );

        // Objectives may change, and measurements stay.
        switch.dataplane.set_slo(0, slo(Duration::from_nanos(1)));
        switch.dataplane.set_slo(1, None);
        let (now, none) = (switch.port("a"), switch.port("b"));
        assert_eq!((p99(&now).is_met(), none.slo), (Some(false), None));

        let queue = &a.queues[0];
        assert_eq!(queue.rx_burst_sizes.iter().sum::<u64>(), queue.bursts);
        assert!((1..=queue.rx_packets).contains(&queue.bursts));
        let ring = &up.queues[0];
        let entries = ring.receive_ring_entries.expect("it has a ring");
        assert_eq!(ring.receive_buffers.is_some(), !case.packed);
        assert!(ring.receive_buffers <= Some(entries.into()));
    });
}
