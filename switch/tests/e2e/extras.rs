//! Faults outside the ports must not affect ports: a log that is not read, a metrics address that does not exist, a control
//! socket that cannot be created, a configuration that cannot be read.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Host, Lab, Process, guest, run, s, wait_until};

const METRICS: &str = "127.0.0.1:9477";
/// Limit for each answer: far more than it takes.
const PATIENCE: Duration = s(20);

/// A daemon whose standard error is chosen by the test.
struct Daemon<'a> {
    lab: &'a Lab,
    child: Child,
    control: PathBuf,
}

impl<'a> Daemon<'a> {
    /// Starts it with one guest port, "web", and these tables.
    fn start(lab: &'a Lab, tables: &str, stderr: Stdio) -> Self {
        Self::start_by(lab, &[], tables, stderr)
    }

    /// The same, started through a command that becomes the daemon.
    fn start_by(lab: &'a Lab, by: &[&str], tables: &str, stderr: Stdio) -> Self {
        let control = lab.socket("control");
        let config = format!(
            "version = 1\n[workers]\ncores = [1]\npoll = \"adaptive\"\n[control]\nsocket = {control:?}\n{tables}\n{}",
            guest(lab, "web")
        );
        let path = lab.dir().join("switch.toml");
        fs::write(&path, config).expect("the configuration is written");
        let mut words = by.iter().copied().chain([env!("CARGO_BIN_EXE_crosspoint")]);
        let mut command = lab.command(words.next().expect("at least one"));
        command.args(words).args(["run", "--config"]).arg(path);
        command.env("CROSSPOINT_LOG", "debug").stderr(stderr);
        let child = command.spawn().expect("it starts");
        Daemon {
            lab,
            child,
            control,
        }
    }

    fn ask(&self, words: &[&str]) -> (ExitStatus, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crosspoint"));
        command.args(words).arg("--socket").arg(&self.control);
        run(self.lab.dir(), &command, PATIENCE)
    }

    /// Waits until a command succeeds and prints `text`.
    fn wait_for(&self, words: &[&str], text: &str) {
        wait_until(&format!("{words:?}: {text:?}"), PATIENCE, || {
            let (ended, said) = self.ask(words);
            (ended.success() && said.contains(text)).then_some(())
        });
    }

    /// Ends it, as a service manager does.
    fn end(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_until("its end", PATIENCE, || {
            self.child.try_wait().expect("a child")
        })
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer of a metrics address, if there is one.
fn get(address: &str, path: &str) -> Option<String> {
    let mut client = TcpStream::connect(address).ok()?;
    client.set_read_timeout(Some(PATIENCE)).expect("a time");
    write!(client, "GET {path} HTTP/1.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    match client.read_to_string(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{path}: {error}"),
        _ => (!answer.is_empty()).then_some(answer),
    }
}

/// A front end connects to the port, and asks for its features (vhost-user's GET_FEATURES).
fn front_end_is_answered(socket: &Path) {
    let mut client = wait_until("the port's socket", PATIENCE, || {
        UnixStream::connect(socket).ok()
    });
    client.set_read_timeout(Some(PATIENCE)).expect("a time");
    let request = [1_u32, 1, 0].map(u32::to_le_bytes).concat();
    client.write_all(&request).expect("the switch reads");
    let mut answer = [0; 20];
    client.read_exact(&mut answer).expect("the switch answers");
    assert_eq!(answer[..4], request[..4]);
}

/// All means of control work, many times over, since each writes lines of the log; and the daemon ends.
fn everything_works_and_ends(daemon: Daemon<'_>) {
    let web = daemon.lab.socket("web");
    for _ in 0..30 {
        front_end_is_answered(&web);
    }
    for _ in 0..3 {
        daemon.wait_for(&["show", "ports"], "web");
        daemon.wait_for(&["reload"], "");
        daemon.wait_for(&["health"], "");
        daemon.signal(Signal::HUP);
        let healthz = get(METRICS, "/healthz").expect("an answer");
        assert!(healthz.starts_with("HTTP/1.1 200 "), "{healthz}");
    }
    let ended = daemon.end();
    assert!(ended.success(), "{ended:?}");
}

#[test]
fn a_standard_error_that_is_not_read_holds_up_nothing() {
    let lab = Lab::new(s(120));
    let (unread, stderr) = pipe().expect("a pipe");
    let size = fcntl_setpipe_size(&stderr, 4096).expect("a small pipe");
    let mut stderr = File::from(stderr);
    stderr.write_all(&vec![b'.'; size]).expect("there is room");
    let daemon = Daemon::start(&lab, "", stderr.try_clone().expect("its end").into());
    everything_works_and_ends(daemon);
    // A daemon that cannot start because of a mistake in its configuration ends too.
    let mut daemon = Daemon::start(&lab, "[nothing]", stderr.into());
    let ended = wait_until("its end", PATIENCE, || {
        daemon.child.try_wait().expect("a child")
    });
    assert!(!ended.success());
    drop(unread);
}

#[test]
fn a_journal_that_hangs_holds_up_nothing() {
    const JOURNAL: &str =
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && exec python3 -c \"
import socket, time
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind('/run/systemd/journal/socket')
print('JOURNAL-READY', flush=True)
time.sleep(600)\"";
    let lab = Lab::new(s(120));
    let mut command = lab.command("sh");
    command.args(["-c", JOURNAL]);
    let mut journal = Process::start(lab.dir(), "journal", &command);
    journal.wait_for("JOURNAL-READY", PATIENCE);
    let path = lab.dir().join("stderr");
    let log = File::create(&path).expect("a file");
    let daemon = Daemon::start(&lab, "[log]\ntarget = \"journald\"", log.into());
    everything_works_and_ends(daemon);
    let said = fs::read_to_string(path).expect("a file");
    assert!(said.is_empty(), "it is the journal's: {said}");
    journal.kill();
}

/// A journal that starts after the switch: earlier lines go to standard error, with the reason.
#[test]
fn a_journal_that_is_not_there_yet_is_written_to_later() {
    const JOURNAL: &str = "
import socket
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind('/run/systemd/journal/socket')
while True:
    print(journal.recv(65536), flush=True)";
    let lab = Lab::new(s(120));
    let mut mount = lab.command("sh");
    mount.args([
        "-c",
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal",
    ]);
    let (status, text) = run(lab.dir(), &mount, PATIENCE);
    assert!(status.success(), "{text}");
    let path = lab.dir().join("stderr");
    let log = File::create(&path).expect("a file");
    let daemon = Daemon::start(&lab, "[log]\ntarget = \"journald\"", log.into());
    daemon.wait_for(&["show", "switch"], "the journal: it cannot be written to");
    let said = || fs::read_to_string(&path).expect("a file");
    for text in ["the journal cannot be written to", "ready: 1 port(s)"] {
        wait_until(text, PATIENCE, || said().contains(text).then_some(()));
    }

    let mut command = lab.command("python3");
    command.args(["-c", JOURNAL]);
    let mut journal = Process::start(lab.dir(), "journal", &command);
    journal.wait_for("the journal can be written to again", PATIENCE);
    let before = said();
    daemon.wait_for(&["port", "set", "web", "mac_limit=5"], "web");
    journal.wait_for("web: changed in place", PATIENCE);
    assert_eq!(said(), before, "it is the journal's");
    let (_, shown) = daemon.ask(&["show", "switch"]);
    assert!(!shown.contains("missing"), "{shown}");
    everything_works_and_ends(daemon);
    journal.kill();
}

#[test]
fn metrics_that_cannot_be_served_yet_cost_no_port_and_are_served_later() {
    let lab = Lab::new(s(120));
    for (address, busy) in [("10.99.99.99:9477", false), (METRICS, true)] {
        let other = busy.then(|| TcpListener::bind(address).expect("it is free"));
        let tables = format!("[metrics]\nlisten = \"{address}\"");
        let log = lab.dir().join("stderr");
        let daemon = Daemon::start(&lab, &tables, File::create(&log).expect("a file").into());
        front_end_is_answered(&lab.socket("web"));
        daemon.wait_for(
            &["show", "switch"],
            "the metrics server: cannot serve metrics on",
        );
        let said = fs::read_to_string(&log).expect("a file");
        assert!(
            said.contains("the metrics server is not available"),
            "{said}"
        );
        match busy {
            true => drop(other),
            false => drop(lab.ip("address add 10.99.99.99/32 dev lo")),
        }
        wait_until("metrics", PATIENCE, || {
            let metrics = get(address, "/metrics")?;
            metrics.contains("crosspoint_build_info").then_some(())
        });
        let (_, shown) = daemon.ask(&["show", "switch"]);
        assert!(!shown.contains("missing"), "{shown}");
        assert!(daemon.end().success());
    }
}

#[test]
fn a_control_socket_that_cannot_be_made_yet_costs_no_port_and_is_made_later() {
    let lab = Lab::new(s(120));
    let control = lab.socket("control");
    fs::write(&control, "not a socket").expect("it is ours");
    let log = File::create(lab.dir().join("stderr")).expect("a file");
    let daemon = Daemon::start(&lab, "", log.into());
    front_end_is_answered(&lab.socket("web"));
    fs::remove_file(&control).expect("it is there");
    daemon.wait_for(&["show", "ports"], "web");
    assert!(daemon.end().success());
}

/// The kernel's "No buffer space available" does not suggest a limit of the service.
#[test]
fn a_limit_of_locked_memory_is_named_with_what_was_asked_for() {
    let lab = Lab::new(s(60));
    let _host = Host::new(&lab, "a", 1);
    let uplink = "[[port]]\nname = \"up0\"\ntype = \"xdp\"\ninterface = \"up-a\"";
    let limited = [
        "prlimit",
        "--memlock=1048576",
        "setpriv",
        "--bounding-set=-ipc_lock",
        "--inh-caps=-ipc_lock",
    ];
    let log = File::create(lab.dir().join("stderr")).expect("a file");
    let daemon = Daemon::start_by(&lab, &limited, uplink, log.into());
    let ports = ["show", "ports", "--json"];
    daemon.wait_for(&ports, "RLIMIT_MEMLOCK) is 1 MiB");
    let (_, shown) = daemon.ask(&ports);
    for part in ["16 MiB more", "LimitMEMLOCK=infinity", "CAP_IPC_LOCK"] {
        assert!(shown.contains(part), "{shown}");
    }
    front_end_is_answered(&lab.socket("web"));
    assert!(daemon.end().success());
}

/// Connected clients stay connected, and keep their answers.
#[test]
fn sockets_that_somebody_removes_are_made_again() {
    let lab = Lab::new(s(120));
    let log = lab.dir().join("stderr");
    let daemon = Daemon::start(&lab, "", File::create(&log).expect("a file").into());
    let (control, web) = (lab.socket("control"), lab.socket("web"));
    daemon.wait_for(&["show", "ports"], "web");
    let rights = |path: &Path| {
        let found = fs::metadata(path).expect("it is there");
        (found.mode(), found.gid())
    };
    let before = [&control, &web].map(|path| rights(path));
    let mut connected = UnixStream::connect(&control).expect("it answers");
    for path in [&control, &web] {
        fs::remove_file(path).expect("it is there");
    }
    front_end_is_answered(&web);
    daemon.wait_for(&["show", "ports"], "web");
    assert_eq!([&control, &web].map(|path| rights(path)), before);
    connected.set_read_timeout(Some(PATIENCE)).expect("a time");
    connected.write_all(b"{\"health\":{}}\n").expect("it reads");
    let mut answer = [0; 6];
    connected.read_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"{\"ok\":");
    let said = fs::read_to_string(&log).expect("a file");
    for what in ["its socket", "the control socket"] {
        assert!(
            said.contains(what) && said.contains("created again"),
            "{said}"
        );
    }

    // Another file in the control socket's place is left alone, and reported by health and the metrics.
    fs::remove_file(&control).expect("it is there");
    fs::write(&control, "mine").expect("nothing is in the way");
    wait_until("a line of the log", PATIENCE, || {
        let said = fs::read_to_string(&log).expect("a file");
        said.contains("the control socket is not available")
            .then_some(())
    });
    fs::remove_file(&control).expect("it is there");
    daemon.wait_for(&["show", "ports"], "web");
    assert!(daemon.end().success());
    assert!(!control.exists() && !web.exists());
}

/// A FIFO without a writer, and a file system that does not answer, in the configuration's place.
#[test]
fn a_configuration_that_cannot_be_read_holds_up_no_other_request() {
    const STALLED: &str = "exec 0<>/dev/fuse && mkdir -p \"$1\" && \
        mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0 fuse \"$1\" && \
        echo STALLED-READY; exec sleep 600";
    let lab = Lab::new(s(120));
    let folder = lab.dir().join("stalled");
    let mut command = lab.command("sh");
    command.args(["-c", STALLED, "sh"]).arg(&folder);
    let mut stalled = Process::start(lab.dir(), "stalled", &command);
    stalled.wait_for("STALLED-READY", PATIENCE);
    let log = File::create(lab.dir().join("stderr")).expect("a file");
    let daemon = Daemon::start(&lab, "", log.into());
    daemon.wait_for(&["show", "ports"], "web");

    let path = folder.join("switch.toml");
    let path = path.to_str().expect("a plain path");
    let (ended, said) = daemon.ask(&["plan", "--config", path]);
    assert!(
        !ended.success() && said.contains("has not answered"),
        "{said}"
    );

    let config = lab.dir().join("switch.toml");
    let text = fs::read(&config).expect("it is there");
    fs::remove_file(&config).expect("it is there");
    let mode = rustix::fs::Mode::RWXU;
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &config,
        rustix::fs::FileType::Fifo,
        mode,
        0,
    );
    made.expect("a FIFO");
    let config_path = config.to_str().expect("a plain path");
    for words in [
        &["reload"][..],
        &["plan"],
        &["plan", "--config", config_path],
    ] {
        let (ended, said) = daemon.ask(words);
        assert!(
            !ended.success() && said.contains("it is a FIFO"),
            "{words:?}: {said}"
        );
    }
    daemon.signal(Signal::HUP);
    daemon.wait_for(&["port", "set", "web", "mac_limit=5"], "web");
    fs::remove_file(&config).expect("it is there");
    fs::write(&config, text).expect("it is ours");
    daemon.wait_for(&["reload"], "web");
    assert!(daemon.end().success());
    stalled.kill();
}
