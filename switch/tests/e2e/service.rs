//! What service managers, orchestrators and support see.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use crosspoint_guest::{Guest, GuestOptions, Listener};
use rustix::process::Signal;

use crate::harness::{Host, Lab, Process, Switch, guest, run, s, wait_until, xdp};

/// Stops one thread of another process until this program ends.
const HOLD: &str = "
import ctypes, sys, time
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, INTERRUPT = 0x4206, 0x4207
for request in SEIZE, INTERRUPT:
    if ptrace(request, int(sys.argv[1]), None, None):
        sys.exit('ptrace')
print('HELD', flush=True)
time.sleep(60)
";

/// The switch's messages to the service manager since the last call.
fn told(socket: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(len) = socket.recv(&mut bytes) {
        all.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    all
}

/// Waits until `path` answers with this status and a body that contains `text`.
fn wait_for(switch: &Switch<'_>, path: &str, status: u16, text: &str) {
    wait_until(&format!("{path}: {status}, {text:?}"), s(20), || {
        let (now, body) = switch.get(path);
        (now == status && body.contains(text)).then_some(())
    });
}

#[test]
fn probes_and_the_service_manager_are_told_which_port_and_which_worker() {
    const WATCHDOG: Duration = Duration::from_millis(600);
    let lab = Lab::new(s(60));
    let notify = lab.dir().join("notify");
    let socket = UnixDatagram::bind(&notify).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let host = Host::new(&lab, "a", 1);
    let ports = [xdp("a", &host), guest(&lab, "absent")];
    let switch = Switch::start_as_service(&lab, &[1], &ports, &notify, WATCHDOG);

    // A guest that is not connected is no reason.
    wait_for(
        &switch,
        "/readyz",
        200,
        "ready: 1 of 2 ports up (1 of 1 required)",
    );
    let (ended, text) = switch.ask(&["health", "--ready"]);
    assert!(ended.success(), "{text}");
    wait_until("signs of life", s(20), || {
        let told = told(&socket);
        told.iter().any(|one| one == "WATCHDOG=1\n").then_some(())
    });

    host.ip("link set eth0 down");
    wait_for(&switch, "/readyz", 503, "port a is down: ");
    wait_for(&switch, "/healthz", 200, "live: 1 worker(s)");
    let (ended, text) = switch.ask(&["health", "--ready"]);
    assert!(
        ended.code() == Some(1) && text.contains("port a is down: "),
        "{text}"
    );
    assert!(switch.ask(&["health"]).0.success());
    host.ip("link set eth0 up");
    wait_for(&switch, "/readyz", 200, "ready: ");

    // Only the thread of a worker stops.
    let mut hold = lab.command("python3");
    let thread = switch.worker_thread(0).to_string();
    hold.args(["-c", HOLD, &thread]);
    let mut hold = Process::start(lab.dir(), "hold", &hold);
    hold.wait_for("HELD", s(10));
    wait_for(
        &switch,
        "/healthz",
        503,
        "worker-0 (core 1) makes no progress",
    );
    let (ended, text) = switch.ask(&["health"]);
    assert!(
        ended.code() == Some(1) && text.contains("worker-0 (core 1)"),
        "{text}"
    );
    let _ = told(&socket);
    std::thread::sleep(2 * WATCHDOG);
    let silence = told(&socket);
    assert!(
        !silence.iter().any(|one| one.contains("WATCHDOG=1")),
        "{silence:?}"
    );
    hold.kill();
    wait_for(&switch, "/healthz", 200, "live");
    wait_until("signs of life", s(20), || {
        let told = told(&socket);
        told.iter().any(|one| one == "WATCHDOG=1\n").then_some(())
    });
    drop(switch);
    let end = told(&socket);
    assert_eq!(
        end.last().map(String::as_str),
        Some("STOPPING=1\nSTATUS=stopping\n")
    );
}

/// Programs started after the switch rely on it. Each time the interfaces are new, as when a host starts; and a front end
/// listens already.
#[test]
fn the_first_frame_after_ready_arrives() {
    for (queues, keys) in [(1, ""), (4, ""), (1, "mode = \"generic\"\n")] {
        let lab = Lab::new(s(60));
        let path = lab.dir().join("notify");
        let notify = UnixDatagram::bind(&path).expect("a socket");
        notify.set_read_timeout(Some(s(20))).expect("a time");
        let a = Host::with_queues(&lab, "a", 1, queues);
        let b = Host::with_queues(&lab, "b", 2, queues);
        for (host, other) in [(&a, &b), (&b, &a)] {
            let mac = other.mac();
            host.ip(&format!(
                "neigh add {} lladdr {mac} dev eth0",
                other.address
            ));
        }
        let listener = Listener::bind(lab.socket("web")).expect("a socket");
        let web = std::thread::spawn(move || {
            let mut web = Guest::new(GuestOptions::default()).expect("a guest");
            let session = listener.accept(s(20)).expect("the switch connects");
            web.attach(session).expect("its rings run");
            web
        });
        let ports = [
            xdp("a", &a) + keys,
            xdp("b", &b) + keys,
            guest(&lab, "web") + "role = \"client\"\n",
        ];
        let (switch, told) = Switch::start_until_ready(&lab, &[1], &ports, (&notify, &path));
        let ping = a.command(&format!("ping -n -c 1 -W 5 {}", b.address));
        let (status, text) = run(lab.dir(), &ping, s(10));
        let log = switch.log();
        assert!(status.success(), "{queues} {keys:?}: {text}\n{log}");
        assert!(told.contains("STATUS=3 of 3 ports up"), "{told}\n{log}");
        drop(switch);
        drop(web.join().expect("a guest"));
    }
}

/// A main loop that makes no progress: nothing else of the switch is affected, and frames are still switched.
#[test]
fn a_main_loop_that_makes_no_progress_is_told_and_gives_no_signs_of_life() {
    let lab = Lab::new(s(120));
    let switch = Switch::start(&lab, &[1], &[guest(&lab, "absent")]);
    assert_eq!(switch.get("/healthz").0, 200);
    let mut hold = lab.command("python3");
    hold.args(["-c", HOLD, &switch.id().to_string()]);
    let mut hold = Process::start(lab.dir(), "hold", &hold);
    hold.wait_for("HELD", s(10));
    wait_until("503", s(50), || {
        let (status, body) = switch.get("/healthz");
        let says = body.contains("the main loop") && body.contains("has made no progress for");
        (status == 503 && says).then_some(())
    });
    let (ended, text) = switch.ask(&["health"]);
    assert!(
        ended.code() == Some(1) && text.contains("main loop"),
        "{text}"
    );
    hold.kill();
    wait_for(&switch, "/healthz", 200, "live");
}

/// The files of an archive, unpacked.
fn unpack(lab: &Lab, archive: &str) -> std::path::PathBuf {
    let mut tar = lab.command("tar");
    let folder = lab.dir().join(format!("{archive}-unpacked"));
    std::fs::create_dir(&folder).expect("a folder");
    tar.arg("-xzf").arg(lab.dir().join(archive)).arg("-C");
    tar.arg(&folder).arg("--strip-components=1");
    let (status, text) = run(lab.dir(), &tar, s(20));
    assert!(status.success(), "{text}");
    folder
}

#[test]
fn a_report_has_what_it_says_with_and_without_a_daemon() {
    let lab = Lab::new(s(60));
    let host = Host::new(&lab, "a", 1);
    let switch = Switch::start(&lab, &[1], &[xdp("a", &host), guest(&lab, "g0")]);
    let config = switch.config_path();
    let report = |name: &str| {
        let out = lab.dir().join(name);
        let path = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
        let words = ["report", "--out", &path(&out), "--config", &path(&config)];
        let (status, text) = Switch::command(&lab, &words);
        assert!(status.success(), "{text}");
        let mode = std::fs::metadata(&out).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        // An existing archive is not overwritten.
        assert!(!Switch::command(&lab, &words).0.success());
        let folder = unpack(&lab, name);
        let manifest = std::fs::read_to_string(folder.join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
        for file in manifest["files"].as_array().expect("a list") {
            let name = file["path"].as_str().expect("a path");
            let size = std::fs::metadata(folder.join(name)).expect(name).len();
            assert_eq!(Some(size), file["bytes"].as_u64(), "{name}");
            assert!(text.contains(name), "{name} is not told of: {text}");
        }
        (folder, manifest["missing"].clone(), text)
    };
    let start = Instant::now();
    let (folder, _, text) = report("with.tar.gz");
    println!("{text}\n{:?}", start.elapsed());
    let has = |name: &str, words: &str| {
        let text = std::fs::read_to_string(folder.join(name)).expect(name);
        assert!(text.contains(words), "{name}: no {words:?} in {text}");
    };
    has("config/crosspoint.toml", "interface = \"up-a\"");
    has("config/check.txt", "fine, 2 port(s)");
    has("doctor.txt", "up-a");
    has("doctor.json", "\"worst\"");
    has("health.json", "\"ready\": true");
    has("show/ports.json", "\"g0\"");
    has("show/port/g0.json", "\"per_queue\"");
    has("metrics.txt", "\ncrosspoint_ready 1\n");
    has("process/threads.txt", "worker-0");
    has("host/interfaces.txt", "up-a");
    has("host/proc/interrupts", "CPU0");
    has("host/proc/cmdline", "");
    drop(switch);

    let (_, missing, text) = report("without.tar.gz");
    let missing = missing.to_string();
    assert!(
        missing.contains("show") && missing.contains("no switch is running"),
        "{missing}"
    );
    assert!(text.contains("not in it:\n"), "{text}");
}

/// A front end that reconnects in a loop fills no log, and hides no lines of other ports; as JSON, each line is an object.
#[test]
fn a_guest_that_reconnects_in_a_loop_does_not_fill_the_log() {
    const TIMES: usize = 60;
    let lab = Lab::new(s(60));
    let log = "[log]\nformat = \"json\"\n".to_owned();
    let switch = Switch::start(&lab, &[1], &[log, guest(&lab, "loop"), guest(&lab, "web")]);
    let connections = || {
        let (ended, text) = switch.ask(&["show", "port", "loop", "--json"]);
        assert!(ended.success(), "{text}");
        let port: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        port["device"]["connections"].as_u64().expect("a number")
    };
    for _ in 0..TIMES {
        drop(UnixStream::connect(lab.socket("loop")).expect("the switch listens"));
    }
    wait_until("the last one", s(20), || {
        (connections() >= TIMES as u64).then_some(())
    });
    drop(UnixStream::connect(lab.socket("web")).expect("the switch listens"));
    let has = |log: &str, port: &str| {
        let lines = log.lines().map(|line| {
            serde_json::from_str(line).unwrap_or_else(|why| panic!("no JSON: {why}: {line}"))
        });
        let lines: Vec<serde_json::Value> = lines.collect();
        let keys = ["timestamp", "level", "message", "target"];
        assert!(
            lines
                .iter()
                .all(|line| keys.iter().all(|key| line[key].is_string()))
        );
        let of_port = lines.iter().filter(|line| line["port"] == port);
        of_port
            .filter(|line| line["message"] == "front end connected")
            .count()
    };
    wait_until("the other guest's line", s(20), || {
        (has(&switch.log(), "web") == 1).then_some(())
    });
    let count = has(&switch.log(), "loop");
    assert_eq!(count, 20, "{}", switch.log());
    let log = switch.stop_and_tell(Signal::TERM);
    let not_written = format!(
        "port loop: {} more lines like this were not written: ",
        TIMES - count
    );
    assert!(
        log.contains(&not_written) && log.contains(&format!("\"suppressed\":{}", TIMES - count)),
        "{log}"
    );
}
