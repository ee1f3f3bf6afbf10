//! The server's behaviour towards good and bad clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_daemon::metrics::{Access, Exposition, MetricsServer};
use crosspoint_model::status::ShownState;
use miette::Diagnostic;

use crate::exposition::of_the_switch;
use crate::picture::{large, picture};

fn start() -> MetricsServer {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    MetricsServer::start(any, Access::default(), Arc::new(picture())).expect("a port is free")
}

pub fn connect(server: &MetricsServer) -> TcpStream {
    let client = TcpStream::connect(server.local_addr()).expect("the server listens");
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time");
    client
}

/// Everything that the server sends until it closes the connection.
fn rest(mut client: TcpStream) -> String {
    let mut reply = Vec::new();
    match client.read_to_end(&mut reply) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(reply).expect("replies are text"),
    }
}

fn ask(server: &MetricsServer, request_line: &str) -> String {
    let mut client = connect(server);
    write!(client, "{request_line} HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
    rest(client)
}

#[test]
fn metrics_are_served_at_their_path() {
    let server = start();
    let reply = ask(&server, "GET /metrics");
    let (header, body) = reply.split_once("\r\n\r\n").expect("a header and a body");
    assert!(header.starts_with("HTTP/1.1 200 OK\r\n"), "{header}");
    assert!(
        header.contains("content-type: text/plain; version=0.0.4\r\n"),
        "{header}"
    );
    let exposition = Exposition::new(Arc::new(picture())).expect("the metrics agree");
    let text = exposition.render().expect("the metrics are text");
    assert_eq!(of_the_switch(&text), of_the_switch(body));
    assert!(body.contains("\nprocess_start_time_seconds "));
}

#[test]
fn other_paths_and_methods_are_refused() {
    let server = start();
    for (request, status) in [
        ("GET /", "404"),
        ("GET /metrics/", "404"),
        ("POST /metrics", "405"),
        ("nonsense", "400"),
        ("GET /metrics?x=1", "200"),
    ] {
        let reply = ask(&server, request);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {reply}"
        );
    }
    let head = ask(&server, "HEAD /metrics");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[test]
fn a_busy_address_is_named() {
    let server = start();
    let addr = server.local_addr();
    let error = MetricsServer::start(addr, Access::default(), Arc::new(picture()))
        .expect_err("it is taken");
    let message = format!("cannot serve metrics on {addr}: another program listens there");
    assert_eq!(error.to_string(), message);
    let help = error.help().expect("there is help").to_string();
    assert!(
        help.contains(&format!("sport = :{}", addr.port())),
        "{help}"
    );
}

#[test]
fn an_address_of_another_host_is_named() {
    let addr = SocketAddr::from(([192, 0, 2, 1], 9477));
    let error = MetricsServer::start(addr, Access::default(), Arc::new(picture()))
        .expect_err("it is not ours");
    assert!(
        error
            .to_string()
            .starts_with("cannot serve metrics on 192.0.2.1:9477: ")
    );
}

#[test]
fn the_address_is_free_again_once_it_has_stopped() {
    let server = start();
    let addr = server.local_addr();
    assert!(ask(&server, "GET /metrics").len() > 1000);
    server.stop();
    let again =
        MetricsServer::start(addr, Access::default(), Arc::new(picture())).expect("it is free");
    drop(again);
    MetricsServer::start(addr, Access::default(), Arc::new(picture()))
        .expect("it is free after a drop, too");
}

#[test]
fn clients_that_wait_do_not_hold_up_others_nor_the_end() {
    let server = start();
    let silent: Vec<TcpStream> = (0..10).map(|_| connect(&server)).collect();
    let mut half = connect(&server);
    half.write_all(b"GET /metrics HTT")
        .expect("the server reads");
    assert!(ask(&server, "GET /metrics").starts_with("HTTP/1.1 200 "));
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    println!("stopped in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop((silent, half));
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_up_the_end() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = MetricsServer::start(any, Access::default(), Arc::new(large(1000, 0)))
        .expect("a port is free");
    let mut client = connect(&server);
    client
        .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        .expect("the server reads");
    client.read_exact(&mut [0; 100]).expect("the reply begins");
    let start = Instant::now();
    server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

/// Far more than are served at once, per address or in total.
pub const HELD: usize = 400;
/// Shorter than a held connection may last, so a probe that waits for one to end fails.
pub const PROMPT: Duration = Duration::from_millis(1900);

/// Connects from `source`, an address of this host.
pub fn connect_from(source: [u8; 4], server: &MetricsServer) -> TcpStream {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let client = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let client = client.expect("a socket");
    bind(&client, &SocketAddr::from((source, 0))).expect("127.0.0.0/8 is this host's");
    connect(&client, &server.local_addr()).expect("the server listens");
    let client = TcpStream::from(client);
    let patience = Some(Duration::from_secs(20));
    client.set_read_timeout(patience).expect("a time");
    client
}

/// Both probes and the metrics are answered, from another address and from the one with held connections.
fn all_are_answered_beside(server: &MetricsServer, held: &str) {
    for source in [[127, 0, 0, 2], [127, 0, 0, 1]] {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let start = Instant::now();
            let mut client = connect_from(source, server);
            write!(client, "GET {path} HTTP/1.1\r\n\r\n").expect("the server reads");
            let reply = rest(client);
            let took = start.elapsed();
            assert!(
                reply.starts_with("HTTP/1.1 ") && !reply.starts_with("HTTP/1.1 4"),
                "{held}, {path} from {source:?}: {reply:?} after {took:?}"
            );
            assert!(took < PROMPT, "{held}, {path} from {source:?}: {took:?}");
        }
    }
}

#[test]
fn held_connections_and_half_requests_keep_no_other_from_health_and_metrics() {
    let server = start();
    for half in ["", "GET /met", "GET /metrics HTTP/1.1\r\nX: "] {
        let held: Vec<TcpStream> = (0..HELD)
            .map(|_| {
                let mut client = connect(&server);
                // It may have been disconnected already.
                let _ = client.write_all(half.as_bytes());
                client
            })
            .collect();
        all_are_answered_beside(&server, half);
        drop(held);
    }
    assert!(gave_way() >= HELD, "{}", gave_way());
}

/// How many connections of this process's servers gave way.
pub fn gave_way() -> usize {
    let exposition = Exposition::new(Arc::new(picture())).expect("the metrics agree");
    let metrics = exposition.render().expect("the metrics are text");
    let series = "crosspoint_clients_closed_total{server=\"metrics\",why=\"gave_way\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(series));
    count.and_then(|count| count.parse().ok()).expect(series)
}

#[test]
fn clients_that_do_not_read_the_metrics_keep_no_other_from_health_and_metrics() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = MetricsServer::start(any, Access::default(), Arc::new(large(1000, 0)))
        .expect("a port is free");
    let deaf: Vec<TcpStream> = (0..HELD)
        .map(|_| {
            let mut client = connect(&server);
            let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            client
        })
        .collect();
    for path in ["/healthz", "/readyz", "/metrics"] {
        // Two texts are made meanwhile, and one of several megabytes is sent.
        let start = Instant::now();
        let reply = ask(&server, &format!("GET {path}"));
        let took = start.elapsed();
        println!("{path}: {} bytes in {took:?}", reply.len());
        assert!(reply.starts_with("HTTP/1.1 "), "{path}: {reply:?}");
        // An unread text is kept for ten seconds, and there were 400.
        assert!(took < Duration::from_secs(8), "{path}: {took:?}");
    }
    drop(deaf);
}

#[test]
fn headers_without_end_are_cut_off() {
    let server = start();
    let mut client = connect(&server);
    let mut sent = client.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
    // More than the sockets' buffers hold while the server is not running.
    for _ in 0..1000 {
        sent = sent.and_then(|()| client.write_all(&[b'a'; 1 << 16]));
    }
    assert!(sent.is_err(), "64 MiB of header were taken");
    assert!(ask(&server, "GET /metrics").starts_with("HTTP/1.1 200 "));
}

/// A connection that is reset before it is accepted kills a server that asks for its peer.
#[test]
fn clients_that_reset_their_connections_do_no_harm() {
    let server = start();
    for _ in 0..2000 {
        let mut client = connect(&server);
        client
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .expect("the server reads");
        let now = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&client, now).expect("a reset is asked for");
    }
    assert!(ask(&server, "GET /metrics").starts_with("HTTP/1.1 200 "));
}

/// The status and the body (text for people) of an answer.
fn probe(server: &MetricsServer, path: &str) -> (String, String) {
    let reply = ask(server, &format!("GET {path}"));
    let (header, body) = reply.split_once("\r\n\r\n").expect("a header and a body");
    assert!(
        header.contains("content-type: text/plain; charset=utf-8\r\n"),
        "{header}"
    );
    let status = header.split(' ').nth(1).expect("a status");
    (status.to_owned(), body.to_owned())
}

#[test]
fn probes_tell_which_worker_and_which_port() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut picture = picture();
    picture
        .status
        .workers
        .iter_mut()
        .for_each(|worker| worker.stalled = false);
    let start = |picture: &crate::picture::Picture| {
        let (status, fdb) = (picture.status.clone(), picture.fdb.clone());
        let movers = Vec::new();
        let same = crate::picture::Picture {
            status,
            fdb,
            movers,
        };
        MetricsServer::start(any, Access::default(), Arc::new(same)).expect("a port is free")
    };
    let server = start(&picture);
    let (status, body) = probe(&server, "/healthz");
    assert!(status == "200" && body.starts_with("live: "), "{body}");
    let (status, body) = probe(&server, "/readyz?verbose");
    assert!(status == "200" && body.starts_with("ready: "), "{body}");
    assert!(ask(&server, "POST /healthz").starts_with("HTTP/1.1 405 "));
    assert!(ask(&server, "GET /metrics").contains("\ncrosspoint_ready 1\n"));

    let uplink = picture.status.ports.iter_mut().find(|port| port.required);
    let uplink = uplink.expect("the uplink is");
    (uplink.state, uplink.detail) = (ShownState::Down, "waiting for interface `eth7`".into());
    let server = start(&picture);
    assert_eq!(probe(&server, "/healthz").0, "200");
    let (status, body) = probe(&server, "/readyz");
    let why = "\nport uplink is down: waiting for interface `eth7`\n";
    assert!(
        status == "503" && body.starts_with("not ready: ") && body.ends_with(why),
        "{body}"
    );
    assert!(ask(&server, "GET /metrics").contains("\ncrosspoint_ready 0\n"));

    picture.status.workers[0].stalled = true;
    let server = start(&picture);
    let (status, body) = probe(&server, "/healthz");
    assert!(
        status == "503" && body.starts_with("not live\nworker-0 (core "),
        "{body}"
    );
    assert!(probe(&server, "/readyz").1.contains("\nworker-0 (core "));
}

/// A switch whose port table is locked permanently.
struct Held(std::sync::Mutex<()>);

impl crosspoint_daemon::api::Source for Held {
    fn status(&self) -> crosspoint_model::status::Status {
        drop(self.0.lock());
        Default::default()
    }

    fn fdb(&self) -> Vec<crosspoint_model::status::FdbEntry> {
        Vec::new()
    }

    fn health(&self) -> crosspoint_model::health::Health {
        let worker = crosspoint_model::health::WorkerLook {
            worker: 1,
            core: 3,
            stalled: true,
        };
        let ports = None::<std::iter::Empty<_>>;
        crosspoint_model::health::Health::new([worker].into_iter(), ports)
    }

    fn move_stream(
        &self,
        _: &str,
        _: u16,
        _: usize,
    ) -> Result<(), crosspoint_daemon::dataplane::MoveError> {
        Ok(())
    }
}

#[test]
fn probes_are_answered_while_scrapes_wait_for_the_port_table() {
    let source = Arc::new(Held(std::sync::Mutex::new(())));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server =
        MetricsServer::start(any, Access::default(), source.clone()).expect("a port is free");
    let held = source.0.lock().expect("no other thread has it");
    let mut scrapes: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    for scrape in &mut scrapes {
        scrape
            .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            .expect("the server reads");
    }
    let (status, body) = probe(&server, "/healthz");
    assert_eq!(status, "503");
    assert!(
        body.contains("\nworker-1 (core 3) makes no progress"),
        "{body}"
    );
    drop(held);
    assert!(rest(scrapes.remove(0)).starts_with("HTTP/1.1 200 "));
}
