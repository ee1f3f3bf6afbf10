//! The clients that may read the metrics: TLS, clients' certificates and the token, with curl and openssl as the other side.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::{Metrics, MetricsTls};
use crosspoint_daemon::metrics::{Access, AccessError, MetricsServer};
use miette::Diagnostic as _;

use crate::certificates::{Authority, Dates, VALID};
use crate::picture::picture;
use crate::server::{HELD, PROMPT, connect, connect_from, gave_way};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Valid until 2021.
const EXPIRED: Dates = ("20200101000000Z", "20210101000000Z");
/// Valid from 2099.
const EARLY: Dates = ("20990101000000Z", "21000101000000Z");

/// An authority with the server's certificate `server`, a client's `client`, and a token.
fn authority() -> Authority {
    let authority = Authority::new();
    authority.make("server", VALID);
    authority.make("client", VALID);
    let token = authority.path("token");
    fs::write(&token, format!("{TOKEN}\n")).expect("written");
    for secret in [token, authority.path("server.key")] {
        fs::set_permissions(secret, PermissionsExt::from_mode(0o600)).expect("its owner");
    }
    authority
}

/// What is read: the names of certificate and key, whether clients need certificates, whether there is a token.
fn metrics(authority: &Authority, tls: Option<(&str, &str)>, mutual: bool, token: bool) -> Metrics {
    Metrics {
        tls: tls.map(|(certificate, key)| MetricsTls {
            certificate: authority.path(certificate),
            key: authority.path(key),
            client_ca: mutual.then(|| authority.path("ca.crt")),
        }),
        token_file: token.then(|| authority.path("token")),
        ..Metrics::default()
    }
}

const PAIR: Option<(&str, &str)> = Some(("server.crt", "server.key"));

fn read(metrics: &Metrics) -> Access {
    Access::read(metrics).unwrap_or_else(|why| panic!("{why}"))
}

fn refusal(metrics: &Metrics) -> (String, String) {
    let why: AccessError = Access::read(metrics).expect_err("it is wrong");
    let help = why.help().expect("there is help").to_string();
    (why.to_string(), help)
}

fn start(metrics: &Metrics) -> MetricsServer {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    MetricsServer::start(any, read(metrics), Arc::new(picture())).expect("a port is free")
}

/// `curl WORDS URL`: the status (000: none) and the body, or curl's error.
fn curl(
    authority: &Authority,
    server: &MetricsServer,
    words: &str,
    path: &str,
) -> (String, String) {
    let scheme = match words.contains("--cacert") {
        true => "https",
        false => "http",
    };
    let url = format!("{scheme}://{}{path}", server.local_addr());
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "10", "-w", "\n%{http_code}", "-D", "-"]);
    let words = words.split(' ').filter(|word| !word.is_empty());
    let words = words.map(|word| word.replace("BEARER", &format!("Authorization: Bearer {TOKEN}")));
    let output = command.args(words).arg(url);
    let output = output.current_dir(authority.folder()).output();
    let output = output.expect("apt-get install curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let why = String::from_utf8_lossy(&output.stderr);
    (status.to_owned(), format!("{body}{why}"))
}

#[test]
fn every_usual_kind_of_key_serves_tls_1_3_and_nothing_else() {
    let authority = authority();
    for kind in ["ec -pkeyopt ec_paramgen_curve:P-384", "rsa:2048", "ed25519"] {
        authority.make_of_kind("server", kind, VALID);
        let server = start(&metrics(&authority, PAIR, false, false));
        let ask = |words: &str| curl(&authority, &server, words, "/metrics");
        let (status, body) = ask("--cacert ca.crt --tlsv1.3");
        assert!(
            status == "200" && body.contains("\ncrosspoint_port_up{"),
            "{kind}: {body}"
        );
        let (status, why) = ask("--cacert ca.crt --tls-max 1.2");
        assert!(
            status == "000" && why.contains("protocol version"),
            "{kind}: {why}"
        );
        // Plain HTTP gets no metrics, and a client that trusts others takes none.
        assert_eq!(ask("").0, "000", "{kind}");
        assert_eq!(ask("--cacert server.key").0, "000", "{kind}");
    }
}

#[test]
fn without_a_certificate_of_the_authority_no_client_is_answered() {
    let authority = authority();
    let other = Authority::new();
    other.make("client", VALID);
    for name in ["client.crt", "client.key"] {
        fs::copy(other.path(name), authority.path(&format!("other-{name}"))).expect("copied");
    }
    authority.make("late", EXPIRED);
    let server = start(&metrics(&authority, PAIR, true, false));
    let ask = |words: &str, path: &str| {
        curl(
            &authority,
            &server,
            &format!("--cacert ca.crt {words}"),
            path,
        )
    };
    for path in ["/metrics", "/healthz"] {
        let (status, body) = ask("--cert client.crt --key client.key", path);
        assert_ne!(status, "000", "{path}: {body}");
        for words in [
            "",
            "--cert other-client.crt --key other-client.key",
            "--cert late.crt --key late.key",
        ] {
            let (status, body) = ask(words, path);
            assert_eq!(status, "000", "{path} with {words:?}: {body}");
        }
    }
    // openssl shows whose certificates the server asks for.
    let address = server.local_addr().to_string();
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-CAfile", "ca.crt"])
        .current_dir(authority.folder())
        .stdin(Stdio::null())
        .output()
        .expect("apt-get install openssl");
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "Acceptable client certificate CA names\nCN = authority",
        "TLSv1.3",
        "Verification: OK",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(
        !text.contains("Session-ID:"),
        "no session is resumed: {text}"
    );
}

#[test]
fn metrics_need_the_token_and_probes_tell_no_more_than_yes_or_no_without() {
    let authority = authority();
    for tls in [None, PAIR] {
        let server = start(&metrics(&authority, tls, false, true));
        let trust = tls.map_or("", |_| "--cacert ca.crt");
        let ask =
            |words: &str, path: &str| curl(&authority, &server, &format!("{trust} {words}"), path);
        let (status, body) = ask("", "/metrics");
        assert!(status == "401", "{body}");
        let header = body.to_ascii_lowercase();
        assert!(header.contains("\nwww-authenticate: bearer\r\n"), "{body}");
        assert!(!body.contains("crosspoint_"), "{body}");
        assert_eq!(ask("--oauth2-bearer wrong", "/metrics").0, "401");
        assert_eq!(ask(&format!("-u x:{TOKEN}"), "/metrics").0, "401");
        let (status, body) = ask(&format!("--oauth2-bearer {TOKEN}"), "/metrics");
        assert!(
            status == "200" && body.contains("\ncrosspoint_port_up{"),
            "{body}"
        );
        for path in ["/healthz", "/readyz"] {
            let (status, short) = ask("", path);
            let (same, long) = ask(&format!("--oauth2-bearer {TOKEN}"), path);
            assert_eq!(status, same);
            let body = |text: &str| {
                text.rsplit("\r\n\r\n")
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            };
            assert!(
                ["live", "not live", "ready", "not ready"].contains(&body(&short).trim_end()),
                "{short}"
            );
            assert!(
                body(&long).len() > body(&short).len()
                    && body(&long).starts_with(body(&short).trim_end())
            );
        }
    }
}

#[test]
fn new_files_take_effect_for_the_next_connection() {
    let authority = authority();
    let server = start(&metrics(&authority, PAIR, false, true));
    let other = Authority::new();
    other.make("server", VALID);
    for name in ["server.crt", "server.key"] {
        fs::copy(other.path(name), authority.path(name)).expect("copied");
    }
    fs::copy(other.path("ca.crt"), authority.path("new.crt")).expect("copied");
    let other_token = TOKEN.replace('0', "9");
    fs::write(authority.path("token"), &other_token).expect("written");
    let ask = |trust: &str, token: &str| {
        let words = format!("--cacert {trust} --oauth2-bearer {token}");
        curl(&authority, &server, &words, "/metrics").0
    };
    assert_eq!(
        ask("ca.crt", TOKEN),
        "200",
        "nothing is read before it is asked for"
    );
    server.set_access(read(&metrics(&authority, PAIR, false, true)));
    assert_eq!(ask("ca.crt", TOKEN), "000");
    assert_eq!(ask("new.crt", TOKEN), "401");
    assert_eq!(ask("new.crt", &other_token), "200");
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_helps() {
    let authority = authority();
    authority.make("other", VALID);
    authority.openssl("ec -in server.key -aes128 -passout pass:x -out locked.key");
    authority.openssl("genpkey -algorithm x25519 -out odd.key");
    for (name, text) in [
        ("empty", ""),
        ("torn.crt", "-----BEGIN CERTIFICATE-----\nMIIB\n"),
        (
            "wrong.crt",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        ),
    ] {
        fs::write(authority.path(name), text).expect("written");
    }
    let cases = [
        (
            "absent.crt",
            "server.key",
            "tls.certificate: cannot read ",
            "check the path",
        ),
        (
            "server.crt",
            "absent.key",
            "tls.key: cannot read ",
            "check the path",
        ),
        (
            ".",
            "server.key",
            "it is a directory, not a regular file",
            "regular file",
        ),
        (
            "empty",
            "server.key",
            "has no certificate in PEM",
            "BEGIN CERTIFICATE",
        ),
        ("torn.crt", "server.key", "is not PEM", "BEGIN CERTIFICATE"),
        ("wrong.crt", "server.key", "cannot be used", "openssl x509"),
        (
            "server.key",
            "server.key",
            "has no certificate in PEM",
            "BEGIN CERTIFICATE",
        ),
        (
            "server.crt",
            "server.crt",
            "has no private key in PEM",
            "BEGIN PRIVATE KEY",
        ),
        (
            "server.crt",
            "other.key",
            "does not belong to the first certificate in",
            "openssl pkey -pubout",
        ),
        ("server.crt", "locked.key", "tls.key: ", "passphrase"),
        ("server.crt", "odd.key", "cannot be used", "ECDSA"),
    ];
    for (certificate, key, message, help) in cases {
        let told = refusal(&metrics(&authority, Some((certificate, key)), false, false));
        assert!(
            told.0.starts_with("[metrics] tls.") && told.0.contains(message),
            "{told:?}"
        );
        assert!(told.1.contains(help), "{told:?}");
    }
    let mut mutual = metrics(&authority, PAIR, true, false);
    let client_ca = mutual.tls.as_mut().and_then(|tls| tls.client_ca.as_mut());
    *client_ca.expect("there is one") = authority.path("empty");
    assert!(refusal(&mutual).0.starts_with("[metrics] tls.client_ca: "));
}

#[test]
fn tokens_that_are_none_are_refused() {
    let authority = authority();
    let with = metrics(&authority, None, false, true);
    for (text, message) in [
        ("", "has no token in it"),
        (" \n\n", "has no token in it"),
        ("two words", "has more in it than a token"),
        ("first-line\nsecond-line", "has more in it than a token"),
        (
            "schl\u{fc}ssel-schl\u{fc}ssel",
            "has more in it than a token",
        ),
        (&"a".repeat(4097), "more than 4096 bytes"),
    ] {
        fs::write(authority.path("token"), text).expect("written");
        let (told, help) = refusal(&with);
        assert!(
            told.starts_with("[metrics] token_file: ") && told.contains(message),
            "{told}"
        );
        assert!(help.contains("openssl rand -hex 32"), "{help}");
    }
    fs::remove_file(authority.path("token")).expect("removed");
    assert!(refusal(&with).0.contains("cannot read"));
}

#[test]
fn what_works_and_is_unwise_is_told() {
    let authority = authority();
    let told = |metrics: &Metrics| read(metrics).warnings().join("\n");
    let all = metrics(&authority, PAIR, true, true);
    assert_eq!(told(&all), "");
    let at = |listen: &str, tls, token| Metrics {
        listen: listen.parse().ok(),
        ..metrics(&authority, tls, false, token)
    };
    for loopback in [
        "127.0.0.1:9477",
        "127.1.2.3:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        assert_eq!(told(&at(loopback, None, false)), "", "{loopback}");
    }
    for open in ["0.0.0.0:9477", "[::]:9477", "192.0.2.1:9477"] {
        let warning = told(&at(open, None, false));
        assert!(
            warning.contains("everyone who reaches it"),
            "{open}: {warning}"
        );
        let warning = told(&at(open, None, true));
        assert!(
            warning.contains("the token crosses the network"),
            "{open}: {warning}"
        );
        assert_eq!(told(&at(open, PAIR, false)), "", "{open}");
    }
    for name in ["token", "server.key"] {
        let path = authority.path(name);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("its owner");
        let warning = told(&all);
        assert!(
            warning.contains(&format!("may read {}", path.display())),
            "{warning}"
        );
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("its owner");
    }
    fs::write(authority.path("token"), "short").expect("written");
    assert!(told(&all).contains("has 5 characters"));
    for (dates, expected) in [(EXPIRED, "expired "), (EARLY, "becomes valid in ")] {
        authority.make("old", dates);
        fs::set_permissions(authority.path("old.key"), PermissionsExt::from_mode(0o600))
            .expect("its owner");
        let old = metrics(&authority, Some(("old.crt", "old.key")), false, false);
        let warning = told(&old);
        assert!(
            warning.contains(expected) && warning.contains("crosspoint reload"),
            "{warning}"
        );
    }
}

/// The answer to `GET path` by way of `openssl s_client` at `source`, an address of this host, and how long it took.
fn ask_by_tls(
    authority: &Authority,
    server: &MetricsServer,
    source: &str,
    path: &str,
) -> (String, Duration) {
    let start = Instant::now();
    let url = format!("https://{}{path}", server.local_addr());
    let output = Command::new("curl")
        .args([
            "-sS",
            "-m",
            "10",
            "--cacert",
            "ca.crt",
            "--interface",
            source,
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            &url,
        ])
        .current_dir(authority.folder())
        .output()
        .expect("apt-get install curl");
    let why = String::from_utf8_lossy(&output.stderr);
    let status = String::from_utf8_lossy(&output.stdout);
    (format!("{status}{why}"), start.elapsed())
}

#[test]
fn handshakes_that_do_not_go_on_keep_no_other_from_health_and_metrics() {
    let authority = authority();
    let server = start(&metrics(&authority, PAIR, false, false));
    let hello = client_hello(&authority);
    let before = gave_way();
    // Nothing; half a ClientHello; a whole one, after which the client falls silent; and what is no TLS.
    let parts: [&[u8]; 4] = [
        b"",
        &hello[..hello.len() / 2],
        &hello,
        b"GET /metrics HTTP/1.1\r\n\r\n",
    ];
    for part in parts {
        let held: Vec<TcpStream> = (0..HELD)
            .map(|_| {
                let mut client = connect(&server);
                // It may have been disconnected already.
                let _ = client.write_all(part);
                client
            })
            .collect();
        for source in ["127.0.0.2", "127.0.0.1"] {
            for path in ["/healthz", "/readyz", "/metrics"] {
                let (told, took) = ask_by_tls(&authority, &server, source, path);
                let is_answer = told == "200" || told == "503";
                assert!(
                    is_answer,
                    "{} bytes, {path} from {source}: {told:?}",
                    part.len()
                );
                assert!(
                    took < PROMPT,
                    "{} bytes, {path} from {source}: {took:?}",
                    part.len()
                );
            }
        }
        drop(held);
    }
    assert!(gave_way() > before);
}

#[test]
fn a_handshake_has_two_seconds() {
    let authority = authority();
    let server = start(&metrics(&authority, PAIR, false, false));
    let hello = client_hello(&authority);
    for part in [&b""[..], &hello[..20]] {
        let mut client = connect(&server);
        client.write_all(part).expect("the server reads");
        let start = Instant::now();
        let _ = client.read_to_end(&mut Vec::new());
        let took = start.elapsed();
        assert!(
            (1800..3500).contains(&took.as_millis()),
            "{} bytes: {took:?}",
            part.len()
        );
    }
    // One that sends a byte now and then gets no more time.
    let mut client = connect(&server);
    let start = Instant::now();
    for byte in &hello {
        if client.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn clients_that_shake_hands_all_the_time_keep_no_other_from_health() {
    let authority = authority();
    authority.make_of_kind("server", "rsa:2048", VALID);
    let server = start(&metrics(&authority, PAIR, false, false));
    let hello = client_hello(&authority);
    let over = std::sync::atomic::AtomicBool::new(false);
    let count = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        use std::sync::atomic::Ordering::Relaxed;
        scope.spawn(|| {
            // Each costs the server a signature of RSA, and is closed before it has one.
            while !over.load(Relaxed) {
                let mut client = connect_from([127, 0, 0, 3], &server);
                let _ = client.write_all(&hello);
                count.fetch_add(1, Relaxed);
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            let (told, took) = ask_by_tls(&authority, &server, "127.0.0.1", "/healthz");
            longest = longest.max(took);
            if !(told == "200" || told == "503") || took > Duration::from_secs(5) {
                over.store(true, Relaxed);
                panic!("{told:?} after {took:?}, with {count:?} handshakes");
            }
        }
        over.store(true, Relaxed);
        println!("the longest of 10 probes: {longest:?}, with {count:?} handshakes");
    });
}

/// What a TLS client sends first: that of openssl.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let address = listener.local_addr().expect("an address").to_string();
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_3", "-connect", &address])
        .current_dir(authority.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("apt-get install openssl");
    let (mut stream, _) = listener.accept().expect("it connects");
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).expect("a header");
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + len, 0);
    stream.read_exact(&mut record[5..]).expect("a record");
    drop(stream);
    let _ = client.wait();
    record
}
