//! Attacks that could harm the whole process: each test starts its own daemon as a child.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crosspoint_config::Config;
use crosspoint_daemon::daemon::Daemon;
use crosspoint_guest::{Guest, GuestOptions};
use rustix::process::{Resource, Rlimit, setrlimit};
use tempfile::TempDir;

use crate::rig::{Exchange, FRAMES, PATIENCE, frame, until};

const CONFIG: &str = "CROSSPOINT_HOSTILE_CONFIG";
const DESCRIPTORS: &str = "CROSSPOINT_HOSTILE_DESCRIPTORS";

/// The child: a daemon that runs until its configuration is removed.
#[test]
#[ignore = "the other tests start it, as a process of its own"]
fn daemon() {
    let Ok(path) = std::env::var(CONFIG) else {
        return;
    };
    let config = Config::load(Path::new(&path)).expect("a good configuration");
    let cores: Vec<usize> = core_affinity::get_core_ids()
        .expect("cores")
        .iter()
        .map(|core| core.id)
        .collect();
    if let Some(most) = std::env::var(DESCRIPTORS)
        .ok()
        .and_then(|most| most.parse().ok())
    {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(Resource::Nofile, limit).expect("it can be lowered");
    }
    let daemon = Daemon::start(&config, &cores).expect("it starts");
    while Path::new(&path).exists() {
        daemon.housekeep();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon in its own process, with ports `calm0`, `calm1` and a number of ports to attack.
struct Switch {
    child: Child,
    directory: TempDir,
}

impl Switch {
    fn start(targets: usize, descriptors: Option<u64>) -> Switch {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let at = |name: &str| directory.path().join(name);
        let core = core_affinity::get_core_ids().and_then(|ids| ids.last().map(|core| core.id));
        let mut config = format!(
            "version = 1\n[workers]\ncores = [{}]\npoll = \"adaptive\"\n[metrics]\nlisten = \"off\"\n[control]\nsocket = {:?}\n",
            core.expect("a core"),
            at("control")
        );
        let targets = (0..targets).map(|number| (format!("target{number}"), 100 + number));
        for (name, vlan) in [("calm0".to_owned(), 8), ("calm1".to_owned(), 8)]
            .into_iter()
            .chain(targets)
        {
            config += &format!(
                "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = {:?}\nvlan = {{ access = {vlan} }}\n",
                at(&name)
            );
        }
        let path = at("config.toml");
        std::fs::write(&path, config).expect("it can be written");
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["process::daemon", "--exact", "--ignored", "--nocapture"])
            .env(CONFIG, path);
        if let Some(most) = descriptors {
            command.env(DESCRIPTORS, most.to_string());
        }
        let child = command.stdout(Stdio::null()).spawn().expect("it starts");
        Switch { child, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Two guests that reach each other.
    fn calm_guests(&self) -> [Guest; 2] {
        let connect =
            |name| Guest::connect(self.path(name), GuestOptions::default()).expect("it connects");
        let mut guests = ["calm0", "calm1"].map(connect);
        for (from, to) in [(0, 1), (1, 0)] {
            let hello = frame(0xff, 11 + from as u8, 0, 60);
            let reached = until(PATIENCE, || {
                guests[from].send(0, &[&hello]).expect("a ring");
                std::thread::sleep(Duration::from_millis(5));
                let frames = guests[to].receive(0).expect("a ring");
                frames.iter().any(|(_, bytes)| *bytes == hello)
            });
            assert!(reached, "a frame between honest guests");
        }
        // Drops greetings that came late.
        std::thread::sleep(Duration::from_millis(50));
        guests
            .iter_mut()
            .for_each(|guest| _ = guest.receive(0).expect("a ring"));
        guests
    }

    fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("a child");
        assert!(ended.is_none(), "the daemon has ended: {ended:?}");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path("config.toml"));
        let mut ended = || self.child.try_wait().is_ok_and(|status| status.is_some());
        if !until(PATIENCE, &mut ended) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn attack(targets: usize, descriptors: Option<u64>, body: impl FnOnce(&Switch)) {
    let mut switch = Switch::start(targets, descriptors);
    let exchange = Exchange::start(switch.calm_guests());
    exchange.run(FRAMES);
    body(&switch);
    std::thread::sleep(Duration::from_millis(300));
    switch.assert_alive();
    exchange.run(FRAMES);
    exchange.stop();
    let mut guest = Guest::connect(switch.path("target0"), GuestOptions::default())
        .expect("an honest front end connects");
    assert!(until(PATIENCE, || {
        guest.send(0, &[&frame(0xff, 21, 0, 60)]).expect("a ring") == 1
            && guest
                .drain_transmit(0, Duration::from_millis(100))
                .expect("a ring")
    }));
    switch.assert_alive();
}

/// Front ends use up the process's descriptors. PortHandle guests do not notice; others wait until descriptors are free
/// again.
#[test]
fn descriptors_are_exhausted() {
    attack(8, Some(72), |switch| {
        let options = || GuestOptions {
            timeout: Duration::from_millis(300),
            ..GuestOptions::default()
        };
        let attach = |number| Guest::connect(switch.path(&format!("target{number}")), options());
        let guests: Vec<_> = (0..8).map(attach).collect();
        assert!(
            guests.iter().any(Result::is_err),
            "there were enough for all"
        );
        std::thread::sleep(Duration::from_millis(300));
    });
}

#[test]
fn memory_is_truncated_under_a_ring() {
    attack(1, None, |switch| {
        let mut guest =
            Guest::connect(switch.path("target0"), GuestOptions::default()).expect("it connects");
        assert_eq!(
            guest.send(0, &[&frame(0xff, 21, 0, 60)]).expect("a ring"),
            1
        );
        assert!(guest.drain_transmit(0, PATIENCE).expect("a ring"));
        guest.memory().truncate(0, 0).expect("it can be cut");
        let _ = guest.kick(1);
        std::thread::sleep(Duration::from_millis(200));
    });
}

/// Buffers in memory that is truncated, in a ring that stays.
#[test]
fn memory_is_truncated_under_a_buffer() {
    attack(1, None, |switch| {
        let options = GuestOptions {
            region_bases: vec![0, 1 << 30],
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(switch.path("target0"), options).expect("it connects");
        // Rings, buffers and tables are placed in the regions alternately: the buffers are in the second.
        guest.memory().truncate(1, 0).expect("it can be cut");
        let _ = guest.send(0, &[&frame(0xff, 21, 0, 1000)]);
        std::thread::sleep(Duration::from_millis(200));
    });
}
