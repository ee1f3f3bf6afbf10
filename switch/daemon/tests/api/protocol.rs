//! Requests and replies.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crosspoint_daemon::api::show::{port, write_json};
use crosspoint_daemon::api::{ControlServer, REQUEST_BYTES_MAX, Source};
use crosspoint_daemon::dataplane::MoveError;
use crosspoint_model::client::{Client, ClientError, request};
use crosspoint_model::request::{Place, REQUEST_TIME_MAX, Request};
use crosspoint_model::status::{FdbEntry, Status, StatusReport};
use crosspoint_model::topic::Topic;
use miette::Diagnostic;
use proptest::prelude::*;
use serde_json::Value;

use crate::picture::{large, picture};
use crate::{Fixture, exchange, socket};

#[test]
fn every_topic_is_answered_with_its_json() {
    let fixture = Fixture::new(picture());
    for topic in Topic::ALL {
        let mut expected = Vec::new();
        write_json(topic, &picture(), &mut expected).expect("a picture is JSON");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let answer = request(&fixture.path(), &Request::Show(topic)).expect("an answer");
        assert_eq!(answer, expected);
    }
}

#[test]
fn a_request_is_this_line() {
    let line = serde_json::to_string(&Request::Show(Topic::Fdb)).expect("JSON");
    assert_eq!(line, r#"{"show":"fdb"}"#);
}

#[test]
fn one_port_is_answered_with_its_json_and_an_unknown_one_with_the_names() {
    let fixture = Fixture::new(picture());
    let ask = |name: &str| request(&fixture.path(), &Request::Port(name.to_owned()));
    let expected = serde_json::to_value(port("db-1", &picture()).expect("a port"));
    assert_eq!(ask("db-1").expect("an answer"), expected.expect("JSON"));
    let line = serde_json::to_string(&Request::Port("db-1".to_owned())).expect("JSON");
    assert_eq!(line, r#"{"port":"db-1"}"#);
    let error = ask("db").expect_err("no port has this name");
    assert_eq!(
        error.to_string(),
        "crosspoint refuses: no port is named \"db\""
    );
    let help = error.help().expect("there is help").to_string();
    assert_eq!(help, "the ports are web-1, db-1, uplink");
}

#[test]
fn a_snapshot_has_the_daemon_and_all_its_counters() {
    let fixture = Fixture::new(picture());
    let line = serde_json::to_string(&Request::Snapshot {}).expect("JSON");
    assert_eq!(line, r#"{"snapshot":{}}"#);
    let mut client = Client::new(&fixture.path());
    let snapshot: StatusReport = client.request(&Request::Snapshot {}).expect("an answer");
    assert_eq!(snapshot.daemon, picture().daemon());
    let json = |status: &Status| serde_json::to_value(status).expect("JSON");
    assert_eq!(json(&snapshot.status), json(&picture().status));
}

#[test]
fn a_client_keeps_its_connection_while_it_asks_and_makes_another_when_that_is_gone() {
    let mut fixture = Fixture::new(picture());
    let path = fixture.path();
    let mut client = Client::new(&path);
    let ask = |client: &mut Client| client.request::<Value>(&Request::Show(Topic::Fdb)).is_ok();
    assert!(ask(&mut client) && ask(&mut client));
    // The socket's file is gone; only the open connection can be used.
    fs::rename(&path, path.with_extension("away")).expect("it is ours");
    assert!(ask(&mut client));
    fs::rename(path.with_extension("away"), &path).expect("it is ours");
    // Another daemon.
    fixture.server.stop();
    assert!(!ask(&mut client));
    fixture.server =
        ControlServer::start(&path, Arc::new(picture())).expect("nothing is in the way");
    assert!(ask(&mut client));
    // The server has timed out and reported that meanwhile.
    std::thread::sleep(REQUEST_TIME_MAX + Duration::from_millis(200));
    assert!(ask(&mut client));
}

#[test]
fn a_stream_is_moved_or_the_answer_says_why_not() {
    let fixture = Fixture::new(picture());
    let place = |port: &str, queue| Place {
        port: port.to_owned(),
        queue,
        worker: 1,
    };
    let ask = |place: Place| request(&fixture.path(), &Request::Move(place));
    let line = serde_json::to_string(&Request::Move(place("web-1", 0))).expect("JSON");
    assert_eq!(line, r#"{"move":{"port":"web-1","queue":0,"worker":1}}"#);
    let moved = ask(place("web-1", 0)).expect("an answer");
    assert_eq!(
        moved,
        serde_json::json!({"port": "web-1", "queue": 0, "worker": 1})
    );
    let error = ask(place("web", 0)).expect_err("no port has this name");
    assert_eq!(
        error.to_string(),
        "crosspoint refuses: no port is named \"web\""
    );
    let error = ask(place("web-1", 7)).expect_err("no worker polls it");
    let help = error.help().expect("there is help").to_string();
    assert!(help.contains("show workers"), "{help}");
}

/// A user with read access only, such as a member of the daemon's group.
#[test]
fn others_than_root_and_the_daemons_user_may_look_and_not_move() {
    if !rustix::process::geteuid().is_root() {
        return; // who is not root cannot be somebody else
    }
    let fixture = Fixture::new(picture());
    for (path, mode) in [(fixture.directory.path(), 0o755), (&*fixture.path(), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let path = fixture.path();
    let somebody = std::thread::spawn(move || {
        // Only for this thread.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).expect("root may");
        request(&path, &Request::Show(Topic::Ports)).expect("an answer");
        request(&path, &Request::Move(place(0))).expect_err("a refusal")
    });
    let refusal = somebody.join().expect("a refusal").to_string();
    assert_eq!(
        refusal,
        "crosspoint refuses: only root and the daemon's user may move queues"
    );
    request(&fixture.path(), &Request::Move(place(0))).expect("root may");
}

/// A source whose moves do not finish before `end` is dropped.
struct Slow {
    begun: Sender<()>,
    end: Mutex<Receiver<()>>,
}

impl Source for Slow {
    fn status(&self) -> Status {
        picture().status
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        Vec::new()
    }

    fn move_stream(&self, _: &str, _: u16, _: usize) -> Result<(), MoveError> {
        self.begun.send(()).expect("somebody waits for it");
        let _ = self.end.lock().expect("no thread panics").recv();
        Ok(())
    }
}

fn place(queue: u16) -> Place {
    Place {
        port: "web-1".to_owned(),
        queue,
        worker: 1,
    }
}

#[test]
fn a_move_that_does_not_end_keeps_out_other_moves_and_neither_looks_nor_the_end() {
    let ((begun, begins), (end, ends)) = (channel(), channel());
    let source = Slow {
        begun,
        end: Mutex::new(ends),
    };
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let server = ControlServer::start(&path, Arc::new(source)).expect("nothing is in the way");
    let first = {
        let path = path.clone();
        std::thread::spawn(move || request(&path, &Request::Move(place(0))))
    };
    begins.recv().expect("it begins");
    let refusal = request(&path, &Request::Move(place(1))).expect_err("a refusal");
    assert_eq!(
        refusal.to_string(),
        "crosspoint refuses: another change is in progress"
    );
    request(&path, &Request::Show(Topic::Ports)).expect("an answer");
    let start = Instant::now();
    server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    first.join().expect("it ends").expect_err("no answer");
    drop(end);
}

#[test]
fn requests_that_are_sent_together_are_answered_in_order() {
    let fixture = Fixture::new(picture());
    let mut client = fixture.connect();
    client
        .write_all(b"{\"show\":\"fdb\"}\n{\"show\":\"nonsense\"}\n{\"show\":\"workers\"}")
        .expect("the server reads");
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("it is open");
    let replies: Vec<String> = BufReader::new(client)
        .lines()
        .map_while(Result::ok)
        .collect();
    assert_eq!(replies.len(), 3);
    assert!(replies[0].starts_with(r#"{"ok":{"entries":3,"#));
    assert!(replies[1].starts_with(r#"{"error":"invalid request: unknown variant `nonsense`"#));
    assert!(replies[2].starts_with(r#"{"ok":[{"worker":0,"#));
}

#[test]
fn what_is_no_request_is_answered_with_the_mistake_and_help() {
    let fixture = Fixture::new(picture());
    let mut client = fixture.connect();
    let deep = [b"[".repeat(60_000), b"\n".to_vec()].concat();
    for line in [
        b"\n".as_slice(),
        b"show ports\n",
        b"{}\n",
        b"{\"show\":\"ports\",\"show\":\"fdb\"}\n",
        b"{\"drop\":\"ports\"}\n",
        b"\xff\xfe\n",
        b"\"show\"\n",
        &deep,
    ] {
        let reply: Value = serde_json::from_str(&exchange(&mut client, line)).expect("JSON");
        let error = reply["error"].as_str().expect("an error");
        assert!(error.starts_with("invalid request: "), "{error}");
        let help = r#"send one line such as {"show":"ports"} (topics are switch, ports, queues, workers, fdb, drops, latency, guests, xdp, mirrors, bridges, bindings, multicast, groups, rules, sets, connections, sflow, ipfix), {"port":"web-1"}, {"health":{}}, {"plan":{}}, {"reload":{}}, {"port_remove":"web-1"}, or {"move":{"port":"web-1","queue":0,"worker":1}}"#;
        assert_eq!(reply["help"], help);
    }
    assert!(exchange(&mut client, b"{\"show\":\"ports\"}\n").starts_with(r#"{"ok":"#));
}

#[test]
fn a_request_at_the_limit_is_read_and_a_longer_one_is_not() {
    let fixture = Fixture::new(picture());
    let mut request = br#"{"show":"ports"}"#.to_vec();
    request.resize(REQUEST_BYTES_MAX, b' ');
    request.push(b'\n');
    let mut client = fixture.connect();
    assert!(exchange(&mut client, &request).starts_with(r#"{"ok":"#));

    request.insert(0, b' ');
    let reply = exchange(&mut client, &request);
    assert!(reply.starts_with(r#"{"error":"the request is longer than 65536 bytes","help":""#));
    assert!(
        !matches!(client.read(&mut [0]), Ok(1..)),
        "the connection is closed"
    );
}

/// One server for all cases, since it must survive all of them.
static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| Fixture::new(picture()));

proptest! {
    #[test]
    fn any_line_gets_one_reply_of_one_line(line in "[^\n]{0,200}") {
        let mut client = FIXTURE.connect();
        let reply = exchange(&mut client, format!("{line}\n").as_bytes());
        let reply: Value = serde_json::from_str(&reply).expect("JSON");
        prop_assert!(reply.get("ok").is_some() != reply.get("error").is_some());
        client.shutdown(std::net::Shutdown::Write).expect("it is open");
        prop_assert_eq!(client.read(&mut [0]).ok(), Some(0), "there is nothing more");
    }
}

#[test]
fn the_largest_table_of_addresses_is_answered() {
    let fixture = Fixture::new(large(1000, 458_752));
    let start = std::time::Instant::now();
    let answer = request(&fixture.path(), &Request::Show(Topic::Fdb)).expect("an answer");
    println!("458752 addresses in {:?}", start.elapsed());
    assert_eq!(answer["addresses"].as_array().map(Vec::len), Some(458_752));
}

#[test]
fn a_socket_that_is_missing_or_dead_raises_the_question_whether_crosspoint_runs() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let ask = || request(&path, &Request::Show(Topic::Ports)).expect_err("no process is there");
    let missing = ask();
    assert!(matches!(missing, ClientError::Missing { .. }), "{missing}");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("nothing is in the way"));
    let dead = ask();
    assert!(matches!(dead, ClientError::Dead { .. }), "{dead}");
    for error in [missing, dead] {
        assert!(
            error.to_string().contains(path.to_str().expect("UTF-8")),
            "{error}"
        );
        let help = error.help().expect("there is help").to_string();
        assert!(
            help.starts_with("is crosspoint running?") && help.contains("--socket"),
            "{help}"
        );
    }
}

/// The client's result for a server that sends `reply` and closes the connection.
fn answer_to(reply: &'static [u8]) -> Result<Value, ClientError> {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("nothing is in the way");
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        BufReader::new(&client)
            .read_line(&mut String::new())
            .expect("a request");
        client.write_all(reply).expect("the client reads");
    });
    let answer = request(&path, &Request::Show(Topic::Ports));
    server.join().expect("it has not panicked");
    answer
}

#[test]
fn the_daemons_mistakes_and_refusals_are_told() {
    assert_eq!(
        answer_to(b"{\"ok\":[1]}\n").ok(),
        Some(serde_json::json!([1]))
    );
    let refused = answer_to(b"{\"error\":\"no\",\"help\":\"ask again\"}\n").expect_err("no");
    assert_eq!(refused.to_string(), "crosspoint refuses: no");
    assert_eq!(
        refused.help().expect("there is help").to_string(),
        "ask again"
    );
    for nonsense in [
        b"".as_slice(),
        b"SSH-2.0-OpenSSH\n",
        b"{\"ok\":[1]",
        b"{}\n",
    ] {
        let error = answer_to(nonsense).expect_err("no reply");
        assert!(error.to_string().contains("is not crosspoint: "), "{error}");
    }
}
