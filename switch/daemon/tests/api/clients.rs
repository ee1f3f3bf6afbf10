//! Many clients, and malicious ones.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crosspoint_daemon::api::{CLIENTS_MAX, REPLY_TIME_MAX};
use crosspoint_model::client::request;
use crosspoint_model::request::{REQUEST_TIME_MAX, Request};
use crosspoint_model::topic::Topic;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Fixture;
use crate::picture::{large, picture};

const PORTS: &[u8] = b"{\"show\":\"ports\"}\n";

fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised to the hard one");
}

#[test]
fn a_thousand_clients_at_once_are_all_answered() {
    raise_open_files();
    let fixture = Fixture::new(picture());
    let start = Instant::now();
    let mut clients: Vec<UnixStream> = (0..1000).map(|_| fixture.connect()).collect();
    for client in &mut clients {
        client.write_all(PORTS).expect("there is room for a line");
    }
    for client in clients {
        let mut reply = String::new();
        BufReader::new(client)
            .read_line(&mut reply)
            .expect("the server answers");
        assert!(reply.starts_with(r#"{"ok":"#), "{reply}");
    }
    println!(
        "1000 clients, {CLIENTS_MAX} at once, in {:?}",
        start.elapsed()
    );
}

#[test]
fn a_client_that_trickles_is_told_so_and_others_do_not_wait_for_it() {
    let fixture = Fixture::new(picture());
    let mut slow = fixture.connect();
    let start = Instant::now();
    // A byte from time to time does not extend the time limit.
    while start.elapsed() < REQUEST_TIME_MAX - Duration::from_millis(500) {
        slow.write_all(b" ").expect("the server reads");
        let begin = Instant::now();
        request(&fixture.path(), &Request::Show(Topic::Ports)).expect("an answer");
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut reply = String::new();
    slow.read_to_string(&mut reply)
        .expect("the server hangs up");
    let error =
        "{\"error\":\"no request for 5 s\",\"help\":\"end every request with a newline\"}\n";
    assert_eq!(reply, error);
    assert!(start.elapsed() < REQUEST_TIME_MAX + Duration::from_secs(3));
}

/// Clients of the same user, root, as the ones that are answered: far more than are served at once, with no request or
/// half a request.
#[test]
fn held_connections_and_half_requests_keep_no_other_from_an_answer() {
    raise_open_files();
    let fixture = Fixture::new(picture());
    for half in ["", "{\"show\":"] {
        let held: Vec<UnixStream> = (0..2 * CLIENTS_MAX)
            .map(|_| {
                let mut client = fixture.connect();
                // It may have been disconnected already.
                let _ = client.write_all(half.as_bytes());
                client
            })
            .collect();
        for ask in [Request::Show(Topic::Ports), Request::Health {}] {
            let start = Instant::now();
            request(&fixture.path(), &ask).expect("an answer");
            let took = start.elapsed();
            println!("beside {} clients, answered in {took:?}", held.len());
            // Shorter than a held connection lasts by itself.
            assert!(
                took < REQUEST_TIME_MAX - Duration::from_millis(500),
                "{took:?}"
            );
        }
    }
}

/// Their answers are larger than a socket's buffer.
#[test]
fn clients_that_read_no_answer_keep_no_other_from_one() {
    let fixture = Fixture::new(large(10, 10_000));
    let deaf: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut client = fixture.connect();
            let _ = client.write_all(b"{\"show\":\"fdb\"}\n{\"show\":\"fdb\"}\n");
            client
        })
        .collect();
    for topic in [Topic::Fdb, Topic::Workers] {
        let start = Instant::now();
        request(&fixture.path(), &Request::Show(topic)).expect("an answer");
        let took = start.elapsed();
        println!("beside {} clients, answered in {took:?}", deaf.len());
        assert!(took < REPLY_TIME_MAX - Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn clients_that_wait_do_not_hold_up_the_end() {
    let fixture = Fixture::new(large(1000, 100_000));
    let silent: Vec<UnixStream> = (0..100).map(|_| fixture.connect()).collect();
    let mut half = fixture.connect();
    half.write_all(b"{\"show\":").expect("the server reads");
    let path = fixture.path();
    let start = Instant::now();
    fixture.server.stop();
    let took = start.elapsed();
    println!("stopped in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!path.exists());
    drop((silent, half));
}

#[test]
fn a_client_that_reads_nothing_holds_up_neither_others_nor_the_end() {
    let fixture = Fixture::new(large(10, 100_000));
    let mut deaf = fixture.connect();
    deaf.write_all(b"{\"show\":\"fdb\"}\n")
        .expect("the server reads");
    deaf.read_exact(&mut [0; 100]).expect("the reply begins");
    request(&fixture.path(), &Request::Show(Topic::Workers)).expect("an answer");
    let start = Instant::now();
    fixture.server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_client_that_hangs_up_does_no_harm() {
    // Larger than a socket's buffer; each of the replies is made before the awaited one.
    let fixture = Fixture::new(large(10, 10_000));
    for _ in 0..50 {
        let mut gone = fixture.connect();
        gone.write_all(b"{\"show\":\"fdb\"}\n{\"show")
            .expect("the server reads");
    }
    request(&fixture.path(), &Request::Show(Topic::Ports)).expect("an answer");
}
