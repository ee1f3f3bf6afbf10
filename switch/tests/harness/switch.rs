//! The daemon under test.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Host, Lab, Ledger, Metrics, Process, run, s, wait_until};

/// The address of the metrics. Every lab has its own loopback interface.
const METRICS: &str = "127.0.0.1:9477";
/// The address of a second switch in the same lab.
const METRICS_OF_SECOND: &str = "127.0.0.1:9478";

/// A `[[port]]` for a wire's end. More keys may be appended.
pub fn xdp(name: &str, host: &Host<'_>) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\ntype = \"xdp\"\ninterface = \"{}\"\n",
        host.interface
    )
}

/// A `[[port]]` for a guest. More keys may be appended.
pub fn guest(lab: &Lab, name: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\ntype = \"vhost\"\nsocket = {:?}\n",
        lab.socket(name)
    )
}

/// A running `crosspoint run`. When dropped, it must stop properly: see [`Switch::stop`].
pub struct Switch<'a> {
    lab: &'a Lab,
    config: String,
    control: PathBuf,
    metrics: &'static str,
    process: Process,
    /// The supervisors that have followed `process`, each after the death of the one before.
    next: Mutex<Vec<Process>>,
    stopped: bool,
}

impl<'a> Switch<'a> {
    /// Starts the daemon with workers on `cores` and these ports. Waits until it is ready, and its uplinks are up.
    pub fn start(lab: &'a Lab, cores: &[usize], ports: &[String]) -> Self {
        let switch = Self::start_early(lab, cores, ports);
        switch.wait_uplinks();
        switch
    }

    /// Like [`Switch::start_early`], by `crosspoint supervise`. Its process is the supervisor.
    pub fn start_supervised(lab: &'a Lab, cores: &[usize], ports: &[String]) -> Self {
        Self::start_supervised_by(Path::new(binary()), lab, cores, ports)
    }

    /// Like [`Switch::start_supervised`], by another program.
    pub fn start_supervised_by(
        program: &Path,
        lab: &'a Lab,
        cores: &[usize],
        ports: &[String],
    ) -> Self {
        let (control, words) = (lab.socket("control"), supervise(lab));
        let written = write_config(lab, cores, METRICS, &control, ports);
        let mut command = lab.command(program);
        command.args(words).arg("--config").arg(&written.1);
        let mut switch = Self::of(lab, "control", METRICS, written.0, &command);
        switch.wait_ready();
        switch.wait_uplinks();
        switch
    }

    /// Kills the supervisor, runs `meanwhile`, and starts another supervisor.
    pub fn replace_supervisor(&self, meanwhile: impl FnOnce()) {
        self.kill_supervisor();
        meanwhile();
        let mut command = self.lab.command(binary());
        command.args(supervise(self.lab)).arg("--config");
        command.arg(self.config_path());
        let mut next = self.next.lock().expect("no panic");
        let name = format!("crosspoint-control-{}", 2 + next.len());
        let mut process = Process::start(self.lab.dir(), &name, &command);
        process.wait_for("goes on with the switch", s(10));
        next.push(process);
    }

    /// Kills the supervisor, and waits for its end.
    pub fn kill_supervisor(&self) {
        let id = self.id();
        let pid = Pid::from_raw(id as i32).expect("a process");
        kill_process(pid, Signal::KILL).expect("it runs");
        wait_until("the end of the supervisor", s(5), || {
            let state = fs::read_to_string(format!("/proc/{id}/stat"));
            state
                .is_ok_and(|state| state.contains(") Z "))
                .then_some(())
        });
    }

    /// `crosspoint upgrade WORDS`: the exit status and the output.
    pub fn upgrade(&self, words: &[&str]) -> (ExitStatus, String) {
        let socket = self.lab.socket("supervisor");
        let socket = [
            "--supervisor-socket",
            socket.to_str().expect("a plain path"),
        ];
        Self::command(self.lab, &[&["upgrade"], words, &socket[..]].concat())
    }

    /// Upgrades, and checks that another process serves the ports. Returns what `crosspoint upgrade` prints.
    pub fn must_upgrade(&self) -> String {
        let before = self.supervised_id();
        let (status, text) = self.upgrade(&[]);
        assert!(status.success(), "{text}\n{}", self.log());
        assert_ne!(self.supervised_id(), before, "another process: {text}");
        text
    }

    /// Ends the process that serves the ports by a signal, and waits for the next one.
    pub fn end_supervised(&self, signal: Signal) {
        let id = self.supervised_id();
        let pid = Pid::from_raw(id as i32).expect("a process");
        kill_process(pid, signal).expect("it runs");
        if signal == Signal::SEGV {
            // Rust's handler takes the first for a fault that comes again.
            std::thread::sleep(s(1) / 20);
            kill_process(pid, signal).expect("it runs");
        }
        wait_until("a new process", s(5), || {
            (self.try_supervised_id().is_some_and(|now| now != id)).then_some(())
        });
    }

    /// The process ID of the process that serves the ports, under a supervisor.
    pub fn supervised_id(&self) -> u32 {
        self.try_supervised_id().expect("a process")
    }

    /// Like [`supervised_id`](Self::supervised_id), while there may be none.
    pub fn try_supervised_id(&self) -> Option<u32> {
        let id = self.id();
        let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let list = list.unwrap_or_default();
        let mut ids = list.split_whitespace().filter_map(|id| id.parse().ok());
        // The process of a supervisor that has died is no child of the next one.
        ids.next_back().or_else(|| self.processes().pop())
    }

    /// How many processes run this switch's configuration.
    pub fn count_processes(&self) -> usize {
        self.processes().len()
    }

    /// The processes that run this switch's configuration, whatever their parent.
    fn processes(&self) -> Vec<u32> {
        let path = self.config_path();
        let wanted = format!("run\0--config\0{}\0", path.display());
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let runs = |process: &fs::DirEntry| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).ends_with(&wanted)
        };
        let ids = processes.filter(runs);
        ids.filter_map(|process| process.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Like [`Switch::start`], for a second one beside it.
    pub fn start_second(lab: &'a Lab, cores: &[usize], ports: &[String]) -> Self {
        let switch = Self::start_second_early(lab, cores, ports);
        switch.wait_uplinks();
        switch
    }

    /// Like [`Switch::start`], for interfaces that may be missing or in use: it does not wait for ports.
    pub fn start_early(lab: &'a Lab, cores: &[usize], ports: &[String]) -> Self {
        Self::start_as(lab, "control", METRICS, cores, ports)
    }

    /// Like [`Switch::start_early`], for a second one.
    pub fn start_second_early(lab: &'a Lab, cores: &[usize], ports: &[String]) -> Self {
        Self::start_as(lab, "second", METRICS_OF_SECOND, cores, ports)
    }

    fn start_as(
        lab: &'a Lab,
        name: &str,
        metrics: &'static str,
        cores: &[usize],
        ports: &[String],
    ) -> Self {
        Self::start_in(lab, name, metrics, cores, ports, &[])
    }

    /// Like [`Switch::start`], as systemd does it: `notify` is its socket, and it expects a sign of life in each `watchdog`.
    pub fn start_as_service(
        lab: &'a Lab,
        cores: &[usize],
        ports: &[String],
        notify: &Path,
        watchdog: Duration,
    ) -> Self {
        let watchdog = watchdog.as_micros().to_string();
        let notify = notify.to_str().expect("a plain path");
        let variables = [("NOTIFY_SOCKET", notify), ("WATCHDOG_USEC", &watchdog)];
        let switch = Self::start_in(lab, "control", METRICS, cores, ports, &variables);
        switch.wait_uplinks();
        switch
    }

    /// Starts the daemon, and returns at the moment when it reports to `notify`, its service manager's socket at `path`,
    /// that it is ready. Also returns the other messages.
    pub fn start_until_ready(
        lab: &'a Lab,
        cores: &[usize],
        ports: &[String],
        (notify, path): (&UnixDatagram, &Path),
    ) -> (Self, String) {
        let path = path.to_str().expect("a plain path");
        let variables = [("NOTIFY_SOCKET", path)];
        let switch = Self::spawn(lab, "control", METRICS, cores, ports, &variables);
        let mut bytes = [0; 4096];
        loop {
            let told = notify.recv(&mut bytes);
            let told = told.unwrap_or_else(|why| panic!("{why}\n{}", switch.process.log()));
            let text = String::from_utf8_lossy(&bytes[..told]);
            if text.starts_with("READY=1") {
                return (switch, text.into_owned());
            }
        }
    }

    fn start_in(
        lab: &'a Lab,
        name: &str,
        metrics: &'static str,
        cores: &[usize],
        ports: &[String],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut switch = Self::spawn(lab, name, metrics, cores, ports, variables);
        switch.wait_ready();
        switch
    }

    fn spawn(
        lab: &'a Lab,
        name: &str,
        metrics: &'static str,
        cores: &[usize],
        ports: &[String],
        variables: &[(&str, &str)],
    ) -> Self {
        let (config, path) = write_config(lab, cores, metrics, &lab.socket(name), ports);
        let mut command = lab.command(binary());
        command.arg("run").arg("--config").arg(path);
        command.envs(variables.iter().copied());
        Self::of(lab, name, metrics, config, &command)
    }

    fn of(
        lab: &'a Lab,
        name: &str,
        metrics: &'static str,
        config: String,
        command: &Command,
    ) -> Self {
        let process = Process::start(lab.dir(), &format!("crosspoint-{name}"), command);
        Self {
            lab,
            config,
            control: lab.socket(name),
            metrics,
            process,
            next: Mutex::default(),
            stopped: false,
        }
    }

    /// Starts the daemon with a file whose metrics cannot be served, and ends it. Returns its log.
    pub fn refused_metrics(lab: &Lab, config: &Path) -> String {
        let mut command = lab.command(binary());
        command.arg("run").arg("--config").arg(config);
        let mut process = Process::start(lab.dir(), "crosspoint-refused", &command);
        process.wait_for("ready", s(10));
        process.wait_for("the metrics server is not available", s(10));
        let address = METRICS.parse().expect("an address");
        let answer = super::metrics::get(address, "/metrics");
        assert!(answer.is_none(), "it serves without protection: {answer:?}");
        process.signal(Signal::TERM);
        let status = process.wait(s(10));
        assert!(
            status.is_some_and(|status| status.success()),
            "{}",
            process.log()
        );
        process.log()
    }

    /// Runs `crosspoint` with these arguments to its end.
    pub fn command(lab: &Lab, words: &[&str]) -> (ExitStatus, String) {
        let mut command = lab.command(binary());
        command.args(words);
        run(lab.dir(), &command, s(10))
    }

    /// The control socket and the metrics answer before the ports exist, so the log decides.
    fn wait_ready(&mut self) {
        let deadline = Instant::now() + s(10);
        let ready = |switch: &Self| switch.process.log().contains("ready");
        while !(ready(self) && self.control.exists() && self.scrape().is_some()) {
            assert!(
                self.process.ended().is_none(),
                "the switch ended\n{}\n{}",
                self.config,
                self.process.log()
            );
            assert!(
                Instant::now() < deadline,
                "the switch is not ready\n{}",
                self.process.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for uplinks. Guests may be missing, but wires are there from the start (except with [`Switch::start_early`]).
    fn wait_uplinks(&self) {
        let name = |port: &'_ str| {
            port.lines()
                .find_map(|line| line.strip_prefix("name = ").map(str::to_owned))
        };
        let uplinks = self
            .config
            .split("[[port]]")
            .filter(|port| port.contains("type = \"xdp\""))
            .filter_map(name);
        uplinks.for_each(|name| self.wait_up(&[name.trim_matches('"')]));
    }

    fn scrape(&self) -> Option<Metrics> {
        Metrics::scrape(self.metrics.parse::<SocketAddr>().expect("an address"))
    }

    /// A scrape.
    pub fn metrics(&self) -> Metrics {
        self.scrape().expect("the metrics answer")
    }

    /// The output of `crosspoint show TOPIC`.
    pub fn show(&self, topic: &str) -> String {
        self.show_with(topic, &[])
    }

    /// `crosspoint show TOPIC --json`.
    pub fn show_json(&self, topic: &str) -> serde_json::Value {
        let text = self.show_with(topic, &["--json"]);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("show {topic} --json: {error}\n{text}"))
    }

    /// A port's property `key` in `show ports`, as words: "features", "ring_sizes".
    pub fn property(&self, port: &str, key: &str) -> Vec<String> {
        let ports = self.show_json("ports");
        let rows = ports.as_array().expect("a list of ports");
        let row = rows.iter().find(|row| row["name"] == port);
        let row = row.unwrap_or_else(|| panic!("no port {port:?} in {ports}"));
        let text = row["properties"][key].as_str().unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Whether a feature, such as "RING_PACKED", was negotiated with the guest at `port`.
    pub fn negotiated(&self, port: &str, name: &str) -> bool {
        self.property(port, "features")
            .iter()
            .any(|has| has == name)
    }

    /// The port on which the switch has learned the address, given as "52:54:00:09:00:01".
    pub fn port_of(&self, address: &str) -> Option<String> {
        let fdb = self.show_json("fdb");
        let mut addresses = fdb["addresses"].as_array().expect("a list").iter();
        let entry = addresses.find(|entry| entry["mac"] == address)?;
        Some(entry["port"].as_str()?.to_owned())
    }

    fn show_with(&self, topic: &str, more: &[&str]) -> String {
        let socket = &self.control;
        let words = [
            "show",
            topic,
            "--socket",
            socket.to_str().expect("a plain path"),
        ];
        let (status, text) = Self::command(self.lab, &[&words[..], more].concat());
        assert!(status.success(), "show {topic} {more:?}: {text}");
        text
    }

    /// Starts `crosspoint` with these arguments and this switch's socket.
    pub fn start_command(&self, name: &str, words: &[&str]) -> Process {
        let mut command = self.lab.command(binary());
        command.args(words).arg("--socket").arg(&self.control);
        Process::start(self.lab.dir(), name, &command)
    }

    /// The state and detail of port `name`, as in `show ports`: "down: waiting for interface `up0`".
    pub fn state(&self, name: &str) -> String {
        let ports = self.show_json("ports");
        let mut rows = ports.as_array().expect("a list of ports").iter();
        let row = rows.find(|row| row["name"] == name).expect("the port");
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", word("state"), word("detail"))
    }

    /// Waits until [`Switch::state`] of port `name` contains `text`.
    pub fn wait_state(&self, name: &str, text: &str) {
        let what = format!("{name} with {text:?}");
        wait_until(&what, s(20), || {
            self.state(name).contains(text).then_some(())
        });
    }

    /// `GET path` of the metrics' address: the status and the body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let address = self.metrics.parse().expect("an address");
        super::metrics::get(address, path).expect("it answers")
    }

    /// Runs `crosspoint WORDS --socket` with its socket. Returns the exit status and the output.
    pub fn ask(&self, words: &[&str]) -> (ExitStatus, String) {
        let socket = self.control.to_str().expect("a plain path");
        Self::command(self.lab, &[words, &["--socket", socket]].concat())
    }

    /// The path of its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.control.with_extension("toml")
    }

    /// Its process ID, which is also its main thread's.
    pub fn id(&self) -> u32 {
        let next = self.next.lock().expect("no panic");
        next.last().unwrap_or(&self.process).id()
    }

    /// The thread ID of a worker.
    pub fn worker_thread(&self, worker: usize) -> u32 {
        let name = format!("worker-{worker}\n");
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id()));
        let mut tasks = tasks
            .expect("it runs")
            .map(|task| task.expect("one").path());
        let has_name =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|is| is == name);
        let task = tasks.find(has_name).expect("the worker");
        let id = task.file_name().and_then(|id| id.to_str()?.parse().ok());
        id.expect("a number")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        let next = self.next.lock().expect("no panic");
        let logs = next.iter().map(Process::log);
        [self.process.log()].into_iter().chain(logs).collect()
    }

    /// Waits until a guest is quarantined for this reason.
    pub fn wait_quarantined(&self, why: &str) {
        wait_until("a guest's quarantine", s(10), || {
            let ports = self.show("ports");
            (ports.contains("quarantined") && ports.contains(why)).then_some(())
        });
    }

    /// Waits until these ports are up.
    pub fn wait_up(&self, ports: &[&str]) {
        self.wait_ports(ports, 1);
    }

    /// Waits until these ports are down.
    pub fn wait_down(&self, ports: &[&str]) {
        self.wait_ports(ports, 0);
    }

    fn wait_ports(&self, ports: &[&str], up: u64) {
        wait_until(
            &format!("{ports:?} with crosspoint_port_up {up}"),
            s(20),
            || {
                let metrics = self.metrics();
                let is = |port: &&str| metrics.sum("crosspoint_port_up", &[("port", port)]) == up;
                ports.iter().all(is).then_some(())
            },
        );
    }

    /// The ledger, which must balance once nothing is in flight: when two readings are equal.
    pub fn ledger(&self) -> Ledger {
        let deadline = Instant::now() + s(10);
        let mut before = Ledger::new(&self.metrics());
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let ledger = Ledger::new(&self.metrics());
            let quiet = ledger == before && ledger.fault().is_none();
            if quiet || Instant::now() > deadline {
                let fault = ledger.fault();
                assert!(
                    fault.is_none(),
                    "the ledger does not balance: {}\n{ledger}",
                    fault.unwrap_or_default()
                );
                return ledger;
            }
            before = ledger;
        }
    }

    /// Sends a signal that does not end it.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends the daemon with `signal`. It must exit with success, and leave neither a socket nor an XDP program.
    pub fn stop(mut self, signal: Signal) {
        self.stop_by(signal);
    }

    /// Like [`Switch::stop`]. Returns its whole log.
    pub fn stop_and_tell(mut self, signal: Signal) -> String {
        self.stop_by(signal);
        self.process.log()
    }

    /// SIGKILL: the daemon cannot clean up.
    pub fn kill(mut self) {
        self.stopped = true;
        self.process.kill();
    }

    /// Like [`Switch::stop`], if another switch waits for its interfaces and may have taken them already.
    pub fn stop_for_another(mut self, signal: Signal) {
        self.end_by(signal);
    }

    /// Checks that a switch which has ended by itself has left nothing behind.
    pub fn assert_left_nothing(mut self) {
        self.stopped = true;
        self.assert_all_gone();
    }

    fn stop_by(&mut self, signal: Signal) {
        self.end_by(signal);
        self.assert_all_gone();
    }

    fn assert_all_gone(&self) {
        for port in self.config.split("[[port]]").skip(1) {
            self.assert_gone(port);
        }
    }

    fn end_by(&mut self, signal: Signal) {
        self.stopped = true;
        let next = self.next.get_mut().expect("no panic");
        let process = next.last_mut().unwrap_or(&mut self.process);
        process.signal(signal);
        let status = process.wait(s(10));
        let log = self.log();
        assert!(
            status.is_some_and(|status| status.success()),
            "{signal:?} ended the switch with {status:?}\n{log}"
        );
        assert!(!self.control.exists(), "the control socket is left behind");
        assert!(
            !log.contains("the sandbox refused"),
            "a thread made a system call that is not on its list\n{log}"
        );
    }

    /// Checks that the socket which the switch created (a client's belongs to the other side), or the program on the
    /// interface, is gone.
    fn assert_gone(&self, port: &str) {
        let value = |key| {
            port.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim_matches('"'))
        };
        if let Some(interface) = value("interface = ") {
            let link = self.lab.ip(&format!("link show {interface}"));
            assert!(
                !link.contains("xdp"),
                "an XDP program is left on {interface}: {link}"
            );
        }
        if let Some(socket) = value("socket = ").filter(|_| value("role = ") != Some("client")) {
            assert!(!Path::new(socket).exists(), "{socket} is left behind");
        }
    }
}

impl Drop for Switch<'_> {
    fn drop(&mut self) {
        if !self.stopped && !std::thread::panicking() {
            self.stop_by(Signal::TERM);
        }
    }
}

/// `crosspoint supervise` for a switch of this lab, which goes on for some seconds without it.
fn supervise(lab: &Lab) -> [String; 4] {
    let socket = lab.socket("supervisor").display().to_string();
    [
        "supervise",
        "--supervisor-socket",
        &socket,
        "--without-supervisor=8",
    ]
    .map(str::to_owned)
}

/// The program.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_crosspoint")
}

fn write_config(
    lab: &Lab,
    cores: &[usize],
    metrics: &str,
    control: &Path,
    ports: &[String],
) -> (String, PathBuf) {
    let ports = ports.concat();
    let config = format!(
        "version = 1\n[workers]\ncores = {cores:?}\n[metrics]\nlisten = \"{metrics}\"\n[control]\nsocket = {control:?}\n{ports}",
    );
    let name = control.file_stem().unwrap_or_default().to_string_lossy();
    let path = lab.dir().join(format!("{name}.toml"));
    fs::write(&path, &config).expect("the configuration is written");
    (config, path)
}
