//! Descriptors whose locks the front end holds as long as it likes, and descriptors that are costly to write to. The
//! attacker runs in its own process, user and mount namespace (tests/attacker/descriptors.c), with a file system whose
//! pages never arrive.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crosspoint_daemon::dataplane::PortState;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::rig::{PATIENCE, Target, attack, attack_held, until};

const SOURCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/attacker/descriptors.c"
);

/// The running attacker. It holds everything until this is dropped.
struct Attacker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Attacker {
    fn start(socket: &Path, attack: &str) -> Attacker {
        let program = built();
        let mut child = Command::new(&program)
            .arg(socket)
            .arg(attack)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("it starts");
        let mut attacker = Attacker {
            input: child.stdin.take().expect("piped"),
            output: BufReader::new(child.stdout.take().expect("piped")),
            child,
        };
        attacker.wait_for("ready");
        let _ = std::fs::remove_file(program);
        attacker
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it speaks");
        assert_eq!(line.trim(), word, "see what it says above");
    }

    /// Closes its connection, and nothing else.
    fn hang_up(&mut self) {
        self.input.write_all(b"on\n").expect("it listens");
        self.wait_for("gone");
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // Together with the server of its file system, for which it waits.
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The attacker's program.
fn built() -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("descriptors-{}", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-pthread", "-o"]).arg(&path);
    let status = compiler.arg(SOURCE).status().expect("cc is there");
    assert!(status.success(), "{SOURCE} does not compile");
    path
}

/// While the attacker holds its descriptors, the honest pair goes on, and another port comes and goes. An honest front
/// end uses the port as soon as the attacker has hung up, and the switch ends.
fn held(what: &str) {
    let mut attacker = None;
    attack_held(|target| {
        let held = attacker.insert(Attacker::start(&target.path(), what));
        target.send_to_it(20);
        target.others_go_on();
        target.another_port_works();
        target.send_to_it(20);
        target.others_go_on();
        held.hang_up();
    });
    drop(attacker);
}

#[test]
fn the_mutex_of_a_pipe_that_is_called_is_held() {
    held("pipe_call");
}

#[test]
fn the_lock_of_a_socket_that_is_called_is_held() {
    held("tcp_call");
}

#[test]
fn the_mutex_of_an_epoll_that_is_the_kick_is_held() {
    held("epoll_kick");
}

#[test]
fn the_last_end_of_a_pipe_is_given_and_its_mutex_held() {
    held("last_pipe");
}

#[test]
fn memory_is_a_file_whose_server_is_silent() {
    held("silent_memory");
}

#[test]
fn the_log_is_a_file_whose_server_is_silent() {
    held("silent_log");
}

#[test]
fn the_inflight_region_is_a_file_whose_server_is_silent() {
    held("silent_inflight");
}

#[test]
fn every_descriptor_is_a_file_whose_server_is_silent() {
    held("silent_everything");
}

#[test]
fn a_call_goes_to_a_thousand_receivers() {
    held("broadcast_call");
}

/// From then on a thread of the port makes its calls, even after a reconnect, and no call is lost.
#[test]
fn hundreds_of_thousands_wait_for_a_call() {
    attack(|target| {
        let attacker = Attacker::start(&target.path(), "crowded_call");
        // No frame has been sent to it yet, so no worker has called.
        assert!(until(PATIENCE, || is_called_by_thread(target)));
        target.send_to_it(1);
        drop(attacker);
        let guest = target.guest();
        assert!(is_called_by_thread(target));
        drop(guest);
    });
}

fn is_called_by_thread(target: &Target<'_>) -> bool {
    let calls = target.property("calls");
    calls.is_some_and(|text| text.contains("until it is removed"))
}

/// A worker that was once blocked in a call is not blocked by the next front end.
#[test]
fn a_port_whose_call_blocked_has_no_worker_call_it_again() {
    attack(|target| {
        let attacker = Attacker::start(&target.path(), "full_call");
        assert!(until(PATIENCE, || {
            target.send_to_it(1);
            std::thread::sleep(Duration::from_millis(1));
            is_called_by_thread(target)
        }));
        target.others_go_on();
        drop(attacker);
    });
}

/// An unexpected descriptor is closed by the port's thread, which waits for the file's server. The port can still be
/// removed, and when the thread resumes it does not affect the port that has its number by then.
#[test]
fn a_port_thread_that_is_held_up_is_left_behind() {
    attack(|target| {
        let attacker = Attacker::start(&target.path(), "hidden_file");
        target.others_go_on();
        target.another_port_works();
        target.replace();
        let both = until(PATIENCE, || target.threads() == 2);
        assert!(both, "one serves, and one is held up: {}", target.threads());
        let guest = target.guest();
        drop(attacker);
        assert!(until(PATIENCE, || target.threads() == 1));
        target.wait_state(PortState::Up);
        assert!(target.property("features").is_some());
        target.send_to_it(20);
        drop(guest);
    });
}
