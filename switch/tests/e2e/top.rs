//! `crosspoint top` in a real terminal: tmux's.

use std::fs;

use crosspoint_guest::{Guest, GuestOptions};
use rustix::process::Signal;

use crate::harness::{Host, Lab, Process, Switch, guest, run, s, wait_until, xdp};

/// A private tmux server, with one window in which a shell runs.
struct Tmux<'a> {
    lab: &'a Lab,
    _server: Process,
}

impl<'a> Tmux<'a> {
    fn start(lab: &'a Lab) -> Self {
        let mut server = lab.command("tmux");
        // Not daemonized: it ends with the test, and so does the shell.
        server
            .args(["-D", "-f", "/dev/null", "-S"])
            .arg(lab.dir().join("tmux"));
        server.env("LC_ALL", "C.UTF-8").env("PS1", "shell> ");
        let server = Process::start(lab.dir(), "tmux", &server);
        wait_until("tmux: apt install tmux", s(10), || {
            lab.dir().join("tmux").exists().then_some(())
        });
        let tmux = Self {
            lab,
            _server: server,
        };
        tmux.run(&["new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        tmux
    }

    fn run(&self, words: &[&str]) -> String {
        let mut command = self.lab.command("tmux");
        let socket = self.lab.dir().join("tmux");
        command.arg("-S").arg(socket).args(words);
        command.env("LC_ALL", "C.UTF-8");
        let (status, text) = run(self.lab.dir(), &command, s(10));
        assert!(status.success(), "tmux {words:?}: apt install tmux\n{text}");
        text
    }

    /// Types keys, given by tmux's names.
    fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// Waits until `is` accepts the screen.
    fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        wait_until(what, s(10), || {
            last = self.screen();
            let found = is(&last);
            // A failure needs the last screen.
            fs::write(self.lab.dir().join("screen"), &last).expect("written");
            found.then(|| last.clone())
        })
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let screen = self.lab.dir().join("screen");
            eprintln!("{}", fs::read_to_string(screen).unwrap_or_default());
        }
    }
}

/// The cells of the line that begins with `name`.
fn cells<'t>(screen: &'t str, name: &str) -> Vec<&'t str> {
    let lines = screen.lines();
    let mut lines = lines.filter(|line| line.split_whitespace().next() == Some(name));
    lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect()
}

/// Two hosts that ping each other through the switch, a guest, and a guest port without a guest.
#[test]
fn top_shows_what_happens_obeys_keys_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new(s(60));
    let (a, b) = (Host::new(&lab, "a", 1), Host::new(&lab, "b", 2));
    let ports = [
        xdp("a", &a),
        xdp("b", &b),
        guest(&lab, "g0"),
        guest(&lab, "absent"),
    ];
    let switch = Switch::start(&lab, &[1], &ports);
    let _g0 =
        Guest::connect(lab.socket("g0"), GuestOptions::default()).expect("the guest connects");
    switch.wait_up(&["a", "b", "g0"]);
    let pings = a.ping_in_background(&b, 3000);
    let tmux = Tmux::start(&lab);
    looks_and_obeys(&lab, &tmux);
    batches(&lab, &pings);
    restarts(&lab, &tmux, switch, &ports[2..]);
    ends(&tmux);
    drop(pings);
}

fn top(lab: &Lab) -> String {
    let binary = env!("CARGO_BIN_EXE_crosspoint");
    let socket = lab.socket("control");
    format!("{binary} top --interval 0.2 --socket {}", socket.display())
}

fn looks_and_obeys(lab: &Lab, tmux: &Tmux<'_>) {
    tmux.keys(&[&top(lab), "Enter"]);
    let moves = |screen: &str| {
        let rate = cells(screen, "a").get(3).copied().unwrap_or_default();
        rate.parse::<f64>().is_ok_and(|rate| rate > 5.0)
    };
    let screen = tmux.wait("a rate that is not zero", moves);
    assert!(cells(&screen, "absent").contains(&"down"), "{screen}");
    assert!(
        screen.contains("3/4 ports up") && screen.contains("q quit"),
        "{screen}"
    );

    tmux.keys(&["Right", "r"]);
    let reversed = |screen: &str| {
        let at = |name| screen.lines().position(|line| line.starts_with(name));
        screen.contains("PORT\u{25be}") && at("g0 ") < at("absent ")
    };
    tmux.wait("ports from the last name to the first", reversed);
    tmux.keys(&["/", "g", "0", "Enter"]);
    tmux.wait("only g0", |screen| {
        screen.contains("only \"g0\"") && !screen.contains("absent")
    });
    tmux.keys(&["Enter"]);
    tmux.wait("g0 in full", |screen| {
        screen.contains("port g0") && screen.contains("front ends")
    });
    tmux.keys(&["Escape"]);
    tmux.wait("the list again", |screen| screen.contains("ADDRS"));
    tmux.keys(&["Escape"]);
    // Wait before the next key: directly after an escape it would be a key with Alt.
    tmux.wait("all ports again", |screen| screen.contains("absent"));
    tmux.keys(&["3"]);
    tmux.wait("the worker's streams", |screen| {
        cells(screen, "0").iter().any(|cell| cell.contains(":0"))
    });
    tmux.keys(&["1"]);
    tmux.run(&["resize-window", "-x", "50", "-y", "12"]);
    tmux.wait("a smaller screen", |screen| {
        screen.contains("q quit") || screen.contains("sort PORT")
    });
    tmux.run(&["resize-window", "-x", "100", "-y", "30"]);
    tmux.wait("a larger one", |screen| {
        screen.contains("ADDRS") && screen.contains("q quit")
    });
}

fn batches(lab: &Lab, _pings: &Process) {
    let socket = lab.socket("control");
    let socket = socket.to_str().expect("a plain path");
    let words = ["top", "--batch", "-n", "2", "-i", "0.2", "--socket", socket];
    let (status, text) = Switch::command(lab, &words);
    assert!(status.success(), "{text}");
    assert_eq!(text.matches("RX-PPS").count(), 2, "{text}");
    assert_eq!(text.matches("\n\n").count(), 1, "{text}");
    assert_ne!(cells(&text, "a").get(3), Some(&"0"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

/// The daemon is killed, and another started: the screen shows this, and continues by itself.
fn restarts(lab: &Lab, tmux: &Tmux<'_>, switch: Switch<'_>, ports: &[String]) {
    switch.kill();
    tmux.wait("that there is no answer", |screen| {
        screen.contains("trying again")
    });
    let switch = Switch::start(lab, &[1], ports);
    tmux.wait("two ports of the new daemon", |screen| {
        screen.contains("/2 ports up")
    });
    switch.stop(Signal::TERM);
}

fn ends(tmux: &Tmux<'_>) {
    tmux.keys(&["q"]);
    tmux.wait("the shell's screen", |screen| {
        !screen.contains("trying again")
    });
    // As before: echo, line mode, with a cursor.
    tmux.keys(&[
        "stty -a | tr ';' '\\n' | grep -c -w -e '-echo' -e '-icanon'; echo done",
        "Enter",
    ]);
    let screen = tmux.wait("the shell's answer", |screen| {
        screen.lines().any(|line| line == "done")
    });
    assert!(screen.lines().any(|line| line == "0"), "{screen}");
    let flags = tmux.run(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
    assert_eq!(flags.trim(), "0 1", "{screen}");
}
