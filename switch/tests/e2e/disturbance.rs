//! Guests that connect, disconnect, crash and reboot while others work: the others lose nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crosspoint_guest::{Guest, GuestOptions};

use crate::harness::{
    Exchange, Host, Lab, Ledger, LinuxGuest, Switch, Testpmd, TestpmdPort, frame, guest, mac,
    ping_pong, s, wait_until, xdp,
};

/// Number of frames that two guests exchange before, during and after a disturbance.
const FRAMES: u64 = 5_000;
/// The guests that must not be disturbed.
const CALM: [&str; 2] = ["calm0", "calm1"];

/// Copies of frames of the calm guests that were dropped.
fn lost(ledger: &Ledger) -> u64 {
    CALM.iter()
        .map(|name| ledger.port(name).dropped_copies)
        .sum()
}

/// Runs `disturb` while the calm guests exchange frames: each frame must arrive, and the ledger must show it.
fn while_others_work(switch: &Switch<'_>, lab: &Lab, disturb: impl FnOnce(&Exchange)) {
    let exchange = Exchange::start(lab, switch, CALM);
    exchange.run(FRAMES);
    let before = lost(&Ledger::new(&switch.metrics()));
    disturb(&exchange);
    exchange.run(FRAMES);
    exchange.stop();
    let ledger = switch.ledger();
    assert_eq!(lost(&ledger), before, "frames of the calm guests\n{ledger}");
}

#[test]
fn a_dpdk_guest_killed_again_and_again_under_load_costs_others_nothing_and_comes_back() {
    killed_under_load("queues=1,queue_size=256", 30);
}

#[test]
fn a_dpdk_guest_with_packed_rings_killed_under_load_costs_others_nothing_and_comes_back() {
    killed_under_load("queues=1,queue_size=256,packed_vq=1", 8);
}

fn killed_under_load(options: &str, times: u64) {
    let lab = Lab::new(s(150));
    // Two VLANs: otherwise frames flooded while the victim is away would fill all rings.
    let port = |name, vlan: u16| guest(&lab, name) + &format!("vlan = {{ access = {vlan} }}\n");
    let ports = [
        port(CALM[0], 8),
        port(CALM[1], 8),
        port("victim", 7),
        port("partner", 7),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let partner =
        Guest::connect(lab.socket("partner"), GuestOptions::default()).expect("the guest connects");
    let labels = [("port", "victim"), ("direction", "rx")];
    let reflected = || {
        switch
            .metrics()
            .sum("crosspoint_queue_packets_total", &labels)
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = EndOfScope(&over);
        scope.spawn(|| load(partner, &over));
        while_others_work(&switch, &lab, |exchange| {
            for number in 1..=times {
                let before = reflected();
                let mut victim = reflector(&lab, &switch, options);
                // The time of the kill varies: during the first burst, or after several rounds of the rings.
                wait_until("load on the victim", s(5), || {
                    (reflected() > before + 20 * number).then_some(())
                });
                victim.kill();
                switch.wait_down(&["victim"]);
                exchange.run(FRAMES / 50);
            }
            // The ledger is read when no frame is in flight.
            over.store(true, Ordering::Relaxed);
        });
    });
}

/// Ends a thread when this scope ends, also by a panic.
struct EndOfScope<'a>(&'a AtomicBool);

impl Drop for EndOfScope<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends to the victim as much as the ring takes, and receives what it sends.
fn load(mut guest: Guest, over: &AtomicBool) {
    let to_victim = frame(mac(3), mac(4), 0, 200);
    while !over.load(Ordering::Relaxed) {
        guest
            .send(0, &[&to_victim[..]; 32])
            .expect("the device follows the rules");
        guest.receive(0).expect("the device follows the rules");
        // Four guests share two cores.
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

/// A testpmd on port "victim" that sends back all that it receives.
fn reflector(lab: &Lab, switch: &Switch<'_>, options: &str) -> Testpmd {
    let port = TestpmdPort::virtio(lab, 0, "victim", options);
    let options = "--forward-mode=macswap --total-num-mbufs=2048";
    let mut testpmd = Testpmd::start(lab, "victim", 64, &[port], options);
    testpmd.wait_ready();
    switch.wait_up(&["victim"]);
    testpmd.command("start");
    testpmd
}

#[test]
fn a_uml_guest_killed_under_load_costs_others_nothing_and_boots_again() {
    let lab = Lab::new(s(90));
    let ports = [CALM[0], CALM[1], "victim", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut peer = LinuxGuest::uml(
        &lab,
        "peer",
        "--job server --ip 10.9.0.12/24 --mac 52:54:00:09:00:02",
    );
    peer.wait_ready();
    while_others_work(&switch, &lab, |exchange| {
        for _ in 0..2 {
            let client =
                "--job client --ip 10.9.0.11/24 --mac 52:54:00:09:00:01 --secs 20 --peer 10.9.0.12";
            let mut victim = LinuxGuest::uml(&lab, "victim", client);
            victim.wait_for("RESULT ping=ok");
            // iperf3 is running.
            exchange.run(FRAMES);
            victim.kill();
            switch.wait_down(&["victim"]);
            exchange.run(FRAMES);
        }
    });
}

#[test]
fn a_guest_that_reboots_starts_over() {
    let lab = Lab::new(s(60));
    let ports = [CALM[0], CALM[1], "rebooting", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let (mut rebooting, mut peer) = (lab.connect("rebooting"), lab.connect("peer"));
    while_others_work(&switch, &lab, |exchange| {
        for number in 0..5 {
            switch.wait_up(&["rebooting", "peer"]);
            ping_pong(&mut rebooting, &mut peer, number);
            exchange.run(FRAMES / 5);
            // Rings are stopped and reset, as the firmware of the next boot does; then the driver starts them again.
            rebooting.stop().expect("the rings stop");
            rebooting.reset(0);
            rebooting.disconnect();
            switch.wait_down(&["rebooting"]);
            rebooting.reconnect().expect("the guest connects again");
        }
    });
}

/// An available index that jumps too far (virtio 1.2, 2.7.6) is the simplest violation. The package vring tests all kinds of
/// invalid rings, and that each is detected.
#[test]
fn a_guest_that_breaks_the_rules_is_quarantined_until_it_reconnects() {
    let lab = Lab::new(s(60));
    let ports = [CALM[0], CALM[1], "liar", "peer"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let (mut liar, mut peer) = (lab.connect("liar"), lab.connect("peer"));
    while_others_work(&switch, &lab, |exchange| {
        for number in 0..3 {
            switch.wait_up(&["liar", "peer"]);
            ping_pong(&mut liar, &mut peer, number);
            let queue = liar.transmit_queue(0).expect("a queue");
            let runaway = queue.ring().avail_idx().wrapping_add(5000);
            queue.ring().set_avail_idx(runaway);
            switch.wait_quarantined("entries ahead");
            exchange.run(FRAMES / 5);
            // Frames sent to it meanwhile are counted.
            let lost = frame(mac(21), mac(22), number, 60);
            assert_eq!(peer.send(0, &[&lost]).expect("a ring"), 1);
            assert!(peer.drain_transmit(0, s(5)).expect("a ring"));
            liar.disconnect();
            switch.wait_down(&["liar"]);
            liar.reset(0);
            liar.reconnect().expect("the guest connects again");
        }
    });
    let drops = [("port", "liar"), ("reason", "guest_quarantined")];
    let metrics = switch.metrics();
    assert_eq!(metrics.sum("crosspoint_drops_total", &drops), 3);
}

#[test]
fn a_switch_that_restarts_finds_its_guests_again() {
    let lab = Lab::new(s(60));
    let ports = ["left", "right"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    let (mut left, mut right) = (lab.connect("left"), lab.connect("right"));
    switch.wait_up(&["left", "right"]);
    ping_pong(&mut left, &mut right, 1);
    switch.kill();

    // The guests keep running: their rings continue at the same indices.
    let switch = Switch::start(&lab, &[1], &ports);
    for guest in [&mut left, &mut right] {
        guest.disconnect();
        guest.reconnect().expect("the guest connects again");
    }
    switch.wait_up(&["left", "right"]);
    ping_pong(&mut left, &mut right, 2);
    switch.ledger();
}

#[test]
fn a_qemu_guest_that_changes_its_queues_reloads_its_driver_and_reboots_under_load_goes_on() {
    churn("packed=off");
}

#[test]
fn a_qemu_guest_with_packed_rings_that_changes_queues_and_driver_and_reboots_goes_on() {
    churn("packed=on");
}

/// The guest's steps are in deploy/guest/net-job.sh: `churn`.
fn churn(props: &str) {
    let lab = Lab::new(s(170));
    let host = Host::new(&lab, "a", 1);
    // Two VLANs: otherwise frames flooded while the guest has no driver would fill all rings.
    let vlan = |port: String, id: u16| port + &format!("vlan = {{ access = {id} }}\n");
    let ports = [
        vlan(guest(&lab, CALM[0]), 8),
        vlan(guest(&lab, CALM[1]), 8),
        vlan(guest(&lab, "victim") + "queue_pairs = 4\n", 7),
        vlan(xdp("a", &host), 7),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let _service = LinuxGuest::service(&lab, &host);
    while_others_work(&switch, &lab, |exchange| {
        let line = format!(
            "--job churn --queues 4 --smp 2 --blob-mib 4 --reboot --device {props} --ip 10.9.0.11/24 \
             --mac 52:54:00:09:00:01 --peer {}",
            host.address
        );
        let mut guest = LinuxGuest::qemu(&lab, "victim", &line);
        guest.wait_for("GUEST-UP");
        let packed = switch.negotiated("victim", "RING_PACKED");
        assert_eq!(packed, props == "packed=on");
        guest.wait_for("CHURN-DONE");
        let log = guest.log();
        assert!(log.contains("CHURN-DONE 0"), "{log}");
        for good in [
            "queues_1=ok",
            "queues_2=ok",
            "queues_4=ok",
            "unbind=ok",
            "bind=ok",
            "sha=ok",
            "fetch=ok",
        ] {
            assert!(log.contains(&format!("RESULT {good}")), "no {good}:\n{log}");
        }
        exchange.run(FRAMES);
        // After its reboot.
        guest.wait_for_times("RESULT ping=ok", 2, s(60));
        exchange.run(FRAMES);
    });
}

/// With split and packed rings: QEMU connects to the switch repeatedly, or listens for it.
#[test]
fn a_switch_killed_under_transfers_of_a_qemu_guest_restarts_and_the_transfers_go_on() {
    let lab = Lab::new(s(150));
    let host = Host::new(&lab, "a", 1);
    let cards = [
        ("connecting", "packed=off,reconnect=1", "server"),
        ("listening", "packed=off,listen", "client"),
        ("connecting-packed", "packed=on,reconnect=1", "server"),
        ("listening-packed", "packed=on,listen", "client"),
    ];
    let names = cards.map(|(name, ..)| name);
    let port =
        |(name, _, role): (&str, &str, &str)| guest(&lab, name) + &format!("role = \"{role}\"\n");
    let mut ports = vec![xdp("a", &host), guest(&lab, "idle")];
    ports.extend(cards.map(port));
    let switch = Switch::start(&lab, &[1], &ports);
    let mut line = "--job server --reconnect 1 --mac 52:54:00:09:00:00".to_owned();
    let mut addresses = vec!["10.9.0.11/24".to_owned()];
    for (index, (name, options, _)) in cards
        .iter()
        .enumerate()
        .map(|(index, card)| (index + 1, card))
    {
        let socket = lab.socket(name);
        line += &format!(
            " --nic {},{options},mac=52:54:00:09:00:{index:02}",
            socket.display()
        );
        addresses.push(format!("10.9.{index}.11/24"));
        host.ip(&format!("addr add 10.9.{index}.1/24 dev eth0"));
    }
    line += &format!(" --ip {}", addresses.join(","));
    let mut guest = LinuxGuest::qemu(&lab, "idle", &line);
    guest.wait_ready();
    let peers = [1, 2, 3, 4].map(|index| format!("10.9.{index}.11"));
    let client =
        |peer: &String| ["sha", "fetch"].map(|job| LinuxGuest::client(&lab, &host, job, peer, 16));
    let mut clients = peers.iter().flat_map(client).collect::<Vec<_>>();
    wait_until("transfers by all cards", s(30), || {
        let ledger = Ledger::new(&switch.metrics());
        let busy = |name: &&str| ledger.port(name).tx > 100 && ledger.port(name).rx > 100;
        names.iter().all(busy).then_some(())
    });
    switch.kill();

    let switch = Switch::start(&lab, &[1], &ports);
    switch.wait_up(&names);
    clients.iter_mut().for_each(LinuxGuest::must_transfer);
    peers.iter().for_each(|peer| host.must_ping_address(peer));
    for name in names {
        let packed = switch.negotiated(name, "RING_PACKED");
        assert_eq!(packed, name.ends_with("packed"), "{name}");
    }
    switch.ledger();
}

/// DPDK's driver listens. It resets its rings when the switch is there again, which it notices only when its application
/// asks for the link state.
#[test]
fn a_switch_killed_under_a_dpdk_guest_that_listens_finds_it_again() {
    killed_under_a_dpdk_guest("queues=1,queue_size=256,server=1");
}

#[test]
fn a_switch_killed_under_packed_rings_of_a_dpdk_guest_that_listens_finds_it_again() {
    killed_under_a_dpdk_guest("queues=1,queue_size=256,server=1,packed_vq=1");
}

fn killed_under_a_dpdk_guest(options: &str) {
    let lab = Lab::new(s(60));
    let ports = [
        guest(&lab, "victim") + "role = \"client\"\n",
        guest(&lab, "partner"),
    ];
    let mut switch = Switch::start(&lab, &[1], &ports);
    let mut partner =
        Guest::connect(lab.socket("partner"), GuestOptions::default()).expect("the guest connects");
    let mut victim = reflector(&lab, &switch, options);
    for number in 0..4 {
        if number > 0 {
            switch.kill();
            switch = Switch::start(&lab, &[1], &ports);
            partner.disconnect();
            partner.reconnect().expect("the guest connects again");
            wait_until("the victim's rings", s(10), || {
                victim.command("show port summary 0");
                let up = [("port", "victim")];
                (switch.metrics().sum("crosspoint_port_up", &up) == 1).then_some(())
            });
        }
        switch.wait_up(&["victim", "partner"]);
        let sent = frame(mac(3), mac(4), number, 1000);
        let back = [&sent[6..12], &sent[..6], &sent[12..]].concat();
        // Frames in flight when the switch dies, or while DPDK resets its rings, are lost.
        wait_until("a frame that comes back", s(10), || {
            partner
                .send(0, &[&sent])
                .expect("the device follows the rules");
            let frames = partner
                .receive_at_least(0, 1, s(1))
                .expect("the device follows the rules");
            frames.iter().any(|(_, bytes)| *bytes == back).then_some(())
        });
        let packed = switch.negotiated("victim", "RING_PACKED");
        assert_eq!(packed, options.contains("packed_vq=1"));
        switch.ledger();
    }
}

#[test]
fn twenty_attachments_under_load_cost_others_nothing() {
    let lab = Lab::new(s(60));
    let ports = [CALM[0], CALM[1], "visited"].map(|name| guest(&lab, name));
    let switch = Switch::start(&lab, &[1], &ports);
    while_others_work(&switch, &lab, |exchange| {
        for number in 0..20 {
            let mut visitor = Guest::connect(lab.socket("visited"), GuestOptions::default())
                .expect("it connects");
            switch.wait_up(&["visited"]);
            visitor
                .send(0, &[&frame(mac(101), mac(30), number, 300)])
                .expect("a ring");
            assert!(
                visitor.drain_transmit(0, s(5)).expect("a ring"),
                "visit {number}: the frame is taken"
            );
            drop(visitor);
            switch.wait_down(&["visited"]);
            exchange.run(FRAMES / 10);
        }
    });
    let ledger = switch.ledger();
    assert_eq!(
        ledger.port("visited").delivered_copies,
        20,
        "and those of the visitors arrived\n{ledger}"
    );
}
