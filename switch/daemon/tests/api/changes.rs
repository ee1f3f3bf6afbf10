//! Requests that change the switch.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crosspoint_config::plan::Plan;
use crosspoint_config::{Config, PortTable};
use crosspoint_daemon::api::{ControlServer, Source};
use crosspoint_daemon::dataplane::MoveError;
use crosspoint_model::client::{ClientError, request};
use crosspoint_model::plan::{Failure, PlanAnswer, ReloadAnswer};
use crosspoint_model::request::{ChangeError, PortAdd, PortRemove, PortSet, Request};
use crosspoint_model::status::{FdbEntry, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::picture::picture;
use crate::{exchange, socket};

/// A switch with nothing but a configuration.
#[derive(Default)]
struct Configured {
    config: Mutex<Config>,
    /// The last request.
    asked: Mutex<String>,
    is_busy: AtomicBool,
}

impl Configured {
    fn become_(&self, wanted: Config, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        assert!(!self.is_busy.swap(true, Ordering::SeqCst), "two at once");
        std::thread::sleep(Duration::from_millis(20));
        let mut config = self.config.lock().expect("no thread panics");
        let answer = ReloadAnswer {
            plan: PlanAnswer::from(&Plan::between(&config, &wanted)),
            failed: match keep {
                true => vec![Failure {
                    what: "keep".to_owned(),
                    error: "no".to_owned(),
                }],
                false => Vec::new(),
            },
            notes: Vec::new(),
        };
        *config = wanted;
        self.is_busy.store(false, Ordering::SeqCst);
        Ok(answer)
    }

    fn config(&self) -> Config {
        self.config.lock().expect("no thread panics").clone()
    }
}

impl Source for Configured {
    fn status(&self) -> Status {
        picture().status
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        Vec::new()
    }

    fn move_stream(&self, _: &str, _: u16, _: usize) -> Result<(), MoveError> {
        Ok(())
    }

    fn plan(&self, config: Option<&Path>) -> Result<PlanAnswer, ChangeError> {
        *self.asked.lock().expect("no thread panics") = format!("{config:?}");
        Ok(PlanAnswer::default())
    }

    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        panic!("a mistake of ours")
    }

    fn port_add(&self, add: &PortAdd) -> Result<ReloadAnswer, ChangeError> {
        let wanted = self.config().with_port(&add.port)?;
        self.become_(wanted, add.keep)
    }

    fn port_remove(&self, remove: &PortRemove) -> Result<ReloadAnswer, ChangeError> {
        let wanted = self.config().without_port(&remove.name)?;
        self.become_(wanted, remove.keep)
    }

    fn port_set(&self, set: &PortSet) -> Result<ReloadAnswer, ChangeError> {
        let wanted = self.config().with_port_set(&set.name, &set.set)?;
        self.become_(wanted, set.keep)
    }
}

fn serve() -> (ControlServer, PathBuf, Arc<Configured>, TempDir) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (path, source) = (socket(directory.path()), Arc::new(Configured::default()));
    let server = ControlServer::start(&path, source.clone()).expect("nothing is in the way");
    (server, path, source, directory)
}

fn table(value: Value) -> PortTable {
    value.as_object().expect("a table").clone()
}

fn guest(name: &str) -> Value {
    json!({"name": name, "type": "vhost", "socket": format!("/run/{name}")})
}

#[test]
fn ports_are_added_changed_and_removed() {
    let (_server, path, source, _directory) = serve();
    let mut client = std::os::unix::net::UnixStream::connect(&path).expect("the server listens");
    let mut ask = |line: Value| -> Value {
        let line = format!("{line}\n");
        serde_json::from_str(&exchange(&mut client, line.as_bytes())).expect("JSON")
    };
    let answer = ask(json!({"port_add": guest("a")}));
    assert_eq!(answer["ok"]["add"][0]["keys"]["mtu"], 1500);
    assert_eq!(answer["ok"]["failed"], json!([]));
    let set = json!({"mac_limit": 10, "vlan": {"access": 5}});
    let answer = ask(json!({"port_set": {"name": "a", "set": set, "keep": true}}));
    assert_eq!(answer["ok"]["change"][0]["how"], "in_place");
    assert_eq!(
        answer["ok"]["failed"],
        json!([{"what": "keep", "error": "no"}])
    );
    assert_eq!(source.config().ports[0].mac_limit, 10);
    assert_eq!(
        ask(json!({"port_remove": "a"}))["ok"]["remove"],
        json!(["a"])
    );
    ask(json!({"port_add": guest("b")}));
    let remove = json!({"port_remove": {"name": "b", "keep": true}});
    assert_eq!(ask(remove)["ok"]["failed"][0]["what"], "keep");
    ask(json!({"plan": {"config": "/etc/new.toml"}}));
    assert_eq!(
        *source.asked.lock().expect("no thread panics"),
        "Some(\"/etc/new.toml\")"
    );
    ask(json!({"plan": {}}));
    assert_eq!(*source.asked.lock().expect("no thread panics"), "None");
    for wrong in [
        json!({"plan": {"file": "/x"}}),
        json!({"reload": {"now": true}}),
        json!({"port_remove": {"name": "b", "kep": true}}),
        json!({"port_set": {"name": "b"}}),
        json!({"port_add": "b"}),
    ] {
        let error = ask(wrong)["error"].to_string();
        assert!(error.starts_with("\"invalid request: "), "{error}");
    }
}

#[test]
fn the_client_sends_what_the_server_reads_and_shows_the_report_of_a_refusal() {
    let (_server, path, _source, _directory) = serve();
    let (port, keep) = (table(guest("a")), false);
    let add = Request::PortAdd(PortAdd {
        port,
        keep,
        may_exist: false,
    });
    let answer = request(&path, &add).expect("it is right");
    let answer: ReloadAnswer = serde_json::from_value(answer).expect("an answer");
    assert_eq!(answer.plan.add[0].name, "a");
    let Err(ClientError::Refused { error, report, .. }) = request(&path, &add) else {
        panic!("it is there already");
    };
    // Its name and its socket.
    assert_eq!(error, "2 problems in the new port");
    assert!(report.expect("a report").contains("[the new port:"));
    let set = table(json!({"mtu": 9000}));
    let name = "a".to_owned();
    let set = Request::PortSet(PortSet { name, set, keep });
    request(&path, &set).expect("it is right");
    let name = "b".to_owned();
    let remove = Request::PortRemove(PortRemove {
        name,
        keep,
        if_exists: false,
    });
    assert!(request(&path, &remove).is_err());
    // A request that fails by itself does not affect the server.
    let refusal = request(&path, &Request::Reload {}).expect_err("a refusal");
    assert!(
        refusal
            .to_string()
            .contains("the change ended unexpectedly"),
        "{refusal}"
    );
    request(&path, &Request::Plan { config: None }).expect("an answer");
}

#[test]
fn changes_wait_for_each_other() {
    let (_server, path, source, _directory) = serve();
    let add = |number: usize| {
        let (port, path) = (table(guest(&format!("p{number}"))), path.clone());
        let add = Request::PortAdd(PortAdd {
            port,
            keep: false,
            may_exist: false,
        });
        std::thread::spawn(move || request(&path, &add))
    };
    let clients: Vec<_> = (0..10).map(add).collect();
    for client in clients {
        client.join().expect("it ends").expect("it has its turn");
    }
    assert_eq!(source.config().ports.len(), 10);
}

#[test]
fn others_than_root_and_the_daemons_user_may_change_nothing() {
    if !rustix::process::geteuid().is_root() {
        return; // who is not root cannot be somebody else
    }
    let (_server, path, source, directory) = serve();
    for (path, mode) in [(directory.path(), 0o755), (&*path, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let somebody = std::thread::spawn(move || {
        // Only for this thread.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).expect("root may");
        let (name, keep) = ("a".to_owned(), false);
        for wanted in [
            Request::Plan { config: None },
            Request::Reload {},
            Request::PortAdd(PortAdd {
                may_exist: false,
                port: table(guest("a")),
                keep,
            }),
            Request::PortRemove(PortRemove {
                if_exists: false,
                name: name.clone(),
                keep,
            }),
            Request::PortSet(PortSet {
                name,
                set: PortTable::new(),
                keep,
            }),
        ] {
            let refusal = request(&path, &wanted).expect_err("a refusal").to_string();
            assert!(
                refusal.contains("only root and the daemon's user"),
                "{refusal}"
            );
        }
    });
    somebody.join().expect("all is refused");
    assert!(source.config().ports.is_empty());
}
