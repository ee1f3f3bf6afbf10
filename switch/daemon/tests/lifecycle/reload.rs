//! Reloads of a switch while guests that are not changed are busy.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_config::Config;
use crosspoint_daemon::daemon::Daemon;
use crosspoint_guest::Guest;
use crosspoint_model::client;
use crosspoint_model::request::Request;
use crosspoint_model::status::{PortStatus, ShownState, Status};
use tempfile::TempDir;

use super::ports::assert_balanced;
use super::{Case, Load, Loss, PATIENCE};

/// Number of ports that come and go at once.
const MANY: usize = 200;
/// A case for tests in which the kind of ring does not matter.
pub(super) const PLAIN: Case = Case {
    packed: false,
    in_order: false,
    workers: 1,
};

/// A daemon with its files in a temporary folder, and housekeeping like the program's main thread.
pub(super) struct Host {
    pub(super) daemon: Arc<Daemon>,
    over: Arc<AtomicBool>,
    housekeeper: Option<JoinHandle<()>>,
    pub(super) folder: TempDir,
}

impl Host {
    /// Starts with guest ports c and d, and a folder for more.
    pub(super) fn start(workers: usize, settings: &str) -> Host {
        let folder = tempfile::tempdir().expect("a directory can be made");
        fs::create_dir(folder.path().join("ports.d")).expect("a directory can be made");
        let cores: Vec<usize> = core_affinity::get_core_ids()
            .expect("cores")
            .iter()
            .map(|core| core.id)
            .collect();
        let list: Vec<String> = (0..workers)
            .map(|n| cores[n % cores.len()].to_string())
            .collect();
        let main = folder.path().join("main.toml");
        let own = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "version = 1\nports_dir = \"ports.d\"\n{settings}\n[workers]\ncores = [{}]\n[metrics]\nlisten = \"off\"\n\
             [control]\nsocket = {:?}\n[[port]]\nname = \"c\"\ntype = \"vhost\"\nsocket = {:?}\nvlan = {{ access = 20 }}\n\
             [[port]]\nname = \"d\"\ntype = \"vhost\"\nsocket = {:?}\nvlan = {{ access = 20 }}\n",
            list.join(", "),
            own("control.sock"),
            own("c"),
            own("d"),
        );
        fs::write(&main, text).expect("the file");
        let loaded = Config::load_lenient(&main, None, &cores).expect("a configuration");
        assert!(loaded.problems.is_none());
        let daemon = Daemon::start_from(&main, loaded, &cores).expect("it starts");
        let (daemon, over) = (Arc::new(daemon), Arc::new(AtomicBool::new(false)));
        let (looked_after, seen) = (daemon.clone(), over.clone());
        let housekeeper = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                looked_after.housekeep();
                std::thread::sleep(Daemon::HOUSEKEEPING);
            }
        });
        Host {
            daemon,
            over,
            housekeeper: Some(housekeeper),
            folder,
        }
    }

    fn drop_in(&self, name: &str) -> PathBuf {
        self.folder
            .path()
            .join("ports.d")
            .join(format!("{name}.toml"))
    }

    pub(super) fn write(&self, name: &str, more: &str) {
        let socket = self.folder.path().join(name);
        let text = format!(
            "[[port]]\nname = {name:?}\ntype = \"vhost\"\nsocket = {socket:?}\nvlan = {{ access = 10 }}\n{more}\n"
        );
        fs::write(self.drop_in(name), text).expect("the file");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.drop_in(name)).expect("the file is there");
    }

    pub(super) fn status(&self) -> Status {
        self.daemon.status()
    }

    pub(super) fn port(&self, name: &str) -> Option<PortStatus> {
        let mut ports = self.status().ports.into_iter();
        ports.find(|port| port.name == name)
    }

    pub(super) fn wait(&self, what: &str, is: impl Fn(&Host) -> bool) {
        let start = Instant::now();
        while !is(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:#?}", self.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn guest(&self, name: &str, case: Case) -> Guest {
        let guest = Guest::connect(self.folder.path().join(name), case.guest(0));
        let guest = guest.expect("the guest connects");
        self.wait(name, |host| {
            host.port(name)
                .is_some_and(|port| port.state == ShownState::Up)
        });
        guest
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.housekeeper.take().map(JoinHandle::join);
    }
}

fn names() -> Vec<String> {
    (0..MANY).map(|n| format!("vm-{n}")).collect()
}

#[test]
fn hundreds_of_ports_come_go_and_change_by_reloads_under_load() {
    for workers in [1, 2] {
        let case = Case {
            packed: workers == 2,
            in_order: false,
            workers,
        };
        let host = Host::start(workers, "");
        let (mut c, mut d) = (host.guest("c", case), host.guest("d", case));
        let load = Load::start(&mut c, &mut d, 20, Loss::None);
        for round in 0..2 {
            names().iter().for_each(|name| host.write(name, ""));
            host.daemon.reload();
            assert_eq!(host.status().ports.len(), MANY + 2);
            // New ports are busy while the others are removed and changed.
            let (mut a, mut b) = (host.guest("vm-0", case), host.guest("vm-1", case));
            let new = Load::start(&mut a, &mut b, 1, Loss::None);
            new.flow(50);
            let (stay, go) = (&names()[..MANY / 2], &names()[MANY / 2..]);
            stay.iter()
                .for_each(|name| host.write(name, "mac_limit = 7"));
            go.iter().for_each(|name| host.remove(name));
            host.daemon.reload();
            assert_eq!(host.status().ports.len(), MANY / 2 + 2);
            new.flow(50);
            new.finish().expect_all();
            stay.iter().for_each(|name| host.remove(name));
            host.daemon.reload();
            assert_eq!(host.status().ports.len(), 2);
            assert_eq!(host.status().removed.ports, (MANY * (round + 1)) as u64);
            load.flow(50);
        }
        load.finish().expect_all();
        assert_balanced(&host.status());
    }
}

/// Its counts continue; its own counts and those of removed ports balance all the time.
#[test]
fn a_port_that_is_opened_again_goes_on_counting() {
    let host = Host::start(2, "");
    let (mut c, mut d) = (host.guest("c", PLAIN), host.guest("d", PLAIN));
    let load = Load::start(&mut c, &mut d, 20, Loss::None);
    host.write("web", "");
    host.daemon.reload();
    let total = |host: &Host| {
        let port = host.port("web").expect("it is there");
        let sent: u64 = port.queues.iter().map(|queue| queue.rx_packets).sum();
        (sent, port.device.expect("a device").connections)
    };
    let mut expected = (0, 0);
    for pairs in [1, 2, 3, 1] {
        let mut guest = host.guest("web", PLAIN);
        let mut frame = [0xff; 60];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        assert_eq!(guest.send(0, &[&frame]).ok(), Some(1));
        expected = (expected.0 + 1, expected.1 + 1);
        host.wait("it is counted", |host| total(host) == expected);
        host.write("web", &format!("queue_pairs = {}", pairs + 1));
        host.daemon.reload();
        assert_eq!(total(&host), expected);
        assert_eq!(host.status().removed.ports, 0);
    }
    // A port that cannot be opened is missing meanwhile, and continues its counts when it can be opened.
    let socket = host.folder.path().join("web");
    host.write("web", "queue_pairs = 8");
    let text = fs::read_to_string(host.drop_in("web")).expect("the file");
    let other = host.folder.path().join("other");
    fs::write(&other, "in the way").expect("nothing is there");
    let moved = |to: &std::path::Path| text.replace(&format!("{socket:?}"), &format!("{to:?}"));
    fs::write(host.drop_in("web"), moved(&other)).expect("the file");
    host.daemon.reload();
    assert_eq!(
        total(&host),
        expected,
        "it is open again with its former settings"
    );
    load.finish().expect_all();
    assert_balanced(&host.status());
    host.remove("web");
    host.daemon.reload();
    assert_eq!(host.status().removed.ports, 1);
    assert_balanced(&host.status());
    host.write("web", "");
    host.daemon.reload();
    assert_eq!(total(&host), (0, 0), "it may be another guest's");
}

#[test]
fn a_bad_file_changes_nothing_by_a_reload() {
    let host = Host::start(1, "");
    let (mut c, mut d) = (host.guest("c", PLAIN), host.guest("d", PLAIN));
    let load = Load::start(&mut c, &mut d, 20, Loss::None);
    host.write("good", "");
    host.write("bad", "queue_pairs = 0");
    host.daemon.reload();
    assert_eq!(host.status().ports.len(), 2);
    load.flow(50);
    host.write("bad", "");
    host.daemon.reload();
    assert_eq!(host.status().ports.len(), 4);
    load.finish().expect_all();
}

#[test]
fn a_watched_folder_is_followed_and_a_bad_file_costs_only_its_own_port() {
    let host = Host::start(1, "watch_ports = true");
    let (mut c, mut d) = (host.guest("c", PLAIN), host.guest("d", PLAIN));
    let load = Load::start(&mut c, &mut d, 20, Loss::None);
    host.write("one", "");
    host.wait("it comes", |host| host.port("one").is_some());
    host.write("one", "mac_limit = -1");
    host.write("two", "");
    host.wait("the other comes", |host| host.port("two").is_some());
    assert!(host.port("one").is_some(), "as it was when it was good");
    host.remove("one");
    host.wait("it goes", |host| host.port("one").is_none());
    assert!(host.port("two").is_some());
    load.finish().expect_all();
    assert_balanced(&host.status());
}

#[test]
fn a_port_added_by_hand_stays_and_whose_file_clashes_with_it_is_alone_to_blame() {
    let host = Host::start(1, "watch_ports = true");
    let (mut c, mut d) = (host.guest("c", PLAIN), host.guest("d", PLAIN));
    let load = Load::start(&mut c, &mut d, 20, Loss::None);
    let socket = host.folder.path().join("control.sock");
    let ask = |text: String| {
        let asked: Request = serde_json::from_str(&text).expect("a request");
        client::request(&socket, &asked)
    };
    let own = host.folder.path().join("taken");
    ask(format!(
        r#"{{"port_add":{{"name":"hand","type":"vhost","socket":{own:?}}}}}"#
    ))
    .expect("it is added");
    ask(r#"{"reload":{}}"#.to_owned()).expect("nothing is wrong");
    assert!(host.port("hand").is_some());
    // A file for another port claims its socket, and appears together with a file without conflicts.
    host.write("taken", "");
    host.write("fine", "");
    host.wait("the other comes", |host| host.port("fine").is_some());
    assert!(host.port("hand").is_some() && host.port("taken").is_none());
    // Reported after everything is done.
    host.wait("it is told", |host| {
        !host.status().config.last_reload_successful
    });
    let refused = ask(r#"{"reload":{}}"#.to_owned()).expect_err("a reload is strict");
    assert!(refused.to_string().contains("refuses"), "{refused}");
    ask(r#"{"port_remove":"hand"}"#.to_owned()).expect("it is removed");
    ask(r#"{"reload":{}}"#.to_owned()).expect("nothing is wrong any more");
    assert!(host.port("hand").is_none() && host.port("taken").is_some());
    assert!(host.status().config.last_reload_successful);
    load.finish().expect_all();
    assert_balanced(&host.status());
}

#[test]
fn a_port_that_is_kept_has_a_file_of_its_own() {
    let host = Host::start(1, "");
    let socket = host.folder.path().join("control.sock");
    let ask = |text: String| {
        let asked: Request = serde_json::from_str(&text).expect("a request");
        client::request(&socket, &asked)
    };
    let own = host.folder.path().join("kept");
    ask(format!(
        r#"{{"port_add":{{"name":"kept","type":"vhost","socket":{own:?},"keep":true}}}}"#
    ))
    .expect("it is added");
    ask(r#"{"port_set":{"name":"kept","set":{"mac_limit":9},"keep":true}}"#.to_owned())
        .expect("it is changed");
    let text = fs::read_to_string(host.drop_in("kept")).expect("it has a file");
    assert!(text.contains("mac_limit = 9"), "{text}");
    let plan = ask(r#"{"plan":{}}"#.to_owned()).expect("a plan");
    let empty = serde_json::json!({"add": [], "remove": [], "change": [], "settings": []});
    assert_eq!(plan, empty, "what runs is what the files say");
    ask(r#"{"port_remove":{"name":"kept","keep":true}}"#.to_owned()).expect("it is removed");
    assert!(!host.drop_in("kept").exists() && host.port("kept").is_none());
}

#[test]
fn a_port_of_the_main_file_is_kept_there() {
    let host = Host::start(1, "# Nothing else.");
    let socket = host.folder.path().join("control.sock");
    let ask = |text: &str| {
        let asked: Request = serde_json::from_str(text).expect("a request");
        client::request(&socket, &asked)
    };
    let main = host.folder.path().join("main.toml");
    let text = || fs::read_to_string(&main).expect("the file");
    let before = text();
    ask(r#"{"port_set":{"name":"c","set":{"mac_limit":9},"keep":true}}"#).expect("it is kept");
    ask(r#"{"port_set":{"name":"d","set":{"vlan":{"access":7}}}}"#).expect("it is changed");
    let kept = ask(r#"{"keep":{}}"#).expect("an answer");
    assert_eq!(kept["kept"][0]["path"], main.display().to_string());
    let vlan = "vlan = { access = 20 }\n";
    let (first, second) = before.rsplit_once(vlan).expect("two ports");
    let first = first.replacen(vlan, &[vlan, "mac_limit = 9\n"].concat(), 1);
    assert_eq!(text(), [&first, "vlan = { access = 7 }\n", second].concat());
    let plan = ask(r#"{"plan":{}}"#).expect("a plan");
    let empty = serde_json::json!({"add": [], "remove": [], "change": [], "settings": []});
    assert_eq!(plan, empty, "what runs is what the files say");

    // An edit that was not reloaded is not overwritten, and then the switch does not change either.
    let edited = text().replace("mac_limit = 9", "mac_limit = 8");
    fs::write(&main, &edited).expect("the file");
    let set = r#"{"port_set":{"name":"c","set":{"mac_limit":5},"keep":true}}"#;
    let refused = ask(set).expect_err("it was edited");
    assert!(
        refused.to_string().contains("since the switch read"),
        "{refused}"
    );
    assert_eq!(text(), edited);
    let shown = ask(r#"{"plan":{}}"#).expect("a plan");
    assert_eq!(shown["change"][0]["keys"][0]["before"], 9, "{shown}");

    ask(r#"{"port_remove":{"name":"d","keep":true}}"#).expect("it is removed");
    assert!(host.port("d").is_none() && !text().contains("name = \"d\""));
    host.daemon.reload();
    assert!(host.port("d").is_none() && host.port("c").is_some());
}
