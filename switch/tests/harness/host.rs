//! A host on a wire: a network namespace with the kernel's network stack, and a veth pair to the switch.

use std::process::Command;

use super::lab::Namespace;
use super::{Lab, Process, run, s};

/// Interface `eth0` in its own namespace; the other end of the wire is `interface` in the lab.
pub struct Host<'a> {
    lab: &'a Lab,
    namespace: Namespace,
    /// The wire's end at the switch.
    pub interface: String,
    /// Its IPv4 address.
    pub address: String,
}

impl<'a> Host<'a> {
    /// A host with address 10.9.0.`number`, on a wire with one queue.
    pub fn new(lab: &'a Lab, name: &str, number: u8) -> Self {
        Self::with_queues(lab, name, number, 1)
    }

    /// Like [`Host::new`], with this many queues. Nothing is tuned: offloads are as the kernel sets them.
    pub fn with_queues(lab: &'a Lab, name: &str, number: u8, queues: u32) -> Self {
        let namespace = Namespace::new(lab.dir(), name);
        let interface = format!("up-{name}");
        let count = format!("numrxqueues {queues} numtxqueues {queues}");
        let id = namespace.id();
        lab.ip(&format!(
            "link add {interface} {count} type veth peer name eth0 netns {id} {count}"
        ));
        lab.ip(&format!("link set {interface} up"));
        let host = Self {
            lab,
            namespace,
            interface,
            address: format!("10.9.0.{number}"),
        };
        host.ip(&format!("addr add {}/24 dev eth0", host.address));
        host.ip("link set eth0 up");
        host
    }

    /// A command to run on it.
    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = self.namespace.command(words.next().expect("a program"));
        command.args(words);
        command
    }

    /// Runs `ip` with these words, which must succeed.
    pub fn ip(&self, words: &str) -> String {
        let (status, text) = run(self.lab.dir(), &self.command(&format!("ip {words}")), s(10));
        assert!(status.success(), "ip {words}: {text}");
        text
    }

    /// Runs a shell command, which must succeed. Returns its output.
    pub fn must_run(&self, line: &str) -> String {
        let mut command = self.namespace.command("sh");
        command.args(["-c", line]);
        let (status, text) = run(self.lab.dir(), &command, s(20));
        assert!(status.success(), "{line}: {text}");
        text
    }

    /// Its MAC address.
    pub fn mac(&self) -> String {
        let text = self.ip("-o link show eth0");
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "link/ether");
        words.nth(1).expect("a MAC address").to_owned()
    }

    /// Pings `other`: each of five requests must be answered.
    pub fn must_ping(&self, other: &Host<'_>) {
        self.must_ping_address(&other.address);
    }

    /// Like [`Host::must_ping`], for an address that no other host here has.
    pub fn must_ping_address(&self, address: &str) {
        let text = self.ping(address, 3);
        assert!(
            text.contains(" 0% packet loss"),
            "{} pings {address}: {text}",
            self.address
        );
    }

    /// Pings an address for a second; there must be no answer.
    pub fn must_not_ping(&self, address: &str) {
        let text = self.ping(address, 1);
        assert!(
            text.contains(" 100% packet loss"),
            "{} pings {address}: {text}",
            self.address
        );
    }

    /// Pings `address` for a second from `source`, one of its own addresses; there must be no answer.
    pub fn must_not_ping_from(&self, source: &str, address: &str) {
        let line = format!("ping -n -c 5 -i 0.05 -w 1 -I {source} {address}");
        let (_, text) = run(self.lab.dir(), &self.command(&line), s(10));
        assert!(
            text.contains(" 100% packet loss"),
            "{source} pings {address}: {text}"
        );
    }

    /// Pings `other` this many times, fifty times a second, in the background. The last lines of its output contain the
    /// losses.
    pub fn ping_in_background(&self, other: &Host<'_>, times: u32) -> Process {
        let line = format!("ping -n -q -i 0.02 -c {times} {}", other.address);
        let name = format!("ping-{}", self.interface);
        Process::start(self.lab.dir(), &name, &self.command(&line))
    }

    fn ping(&self, address: &str, seconds: u64) -> String {
        let command = self.command(&format!("ping -n -c 5 -i 0.05 -w {seconds} {address}"));
        run(self.lab.dir(), &command, s(10)).1
    }

    /// Starts to listen: prints frames that `filter` selects, as tcpdump's lines.
    pub fn listen(&self, filter: &str) -> Process {
        let name = format!(
            "tcpdump-{}-{}",
            self.interface,
            filter.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        let command = self.command(&format!(
            "tcpdump -i eth0 -Q in -n -e -l --immediate-mode {filter}"
        ));
        let mut process = Process::start(self.lab.dir(), &name, &command);
        process.wait_for("listening on", s(10));
        process
    }

    /// Adds a second wire, which ends in `inside` here. Returns its end at the switch.
    pub fn add_wire(&self, inside: &str) -> String {
        let (interface, id) = (format!("{}-2", self.interface), self.namespace.id());
        self.lab.ip(&format!(
            "link add {interface} type veth peer name {inside} netns {id}"
        ));
        self.lab.ip(&format!("link set {interface} up"));
        interface
    }

    /// Sends these bytes as one frame, unchanged.
    pub fn send_frame(&self, frame: &[u8]) {
        self.send_frame_on("eth0", frame);
    }

    /// The same, on another interface of the host.
    pub fn send_frame_on(&self, interface: &str, frame: &[u8]) {
        let index = self.must_run(&format!("cat /sys/class/net/{interface}/ifindex"));
        let index = index.trim().parse().expect("a number");
        self.inside(|| send_frame(index, frame).expect("sent"));
    }

    /// Runs `job` on a separate thread in this namespace.
    pub fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let namespace = &self.namespace;
        let thread = move || {
            namespace.enter();
            job()
        };
        std::thread::scope(|scope| scope.spawn(thread).join().expect("the job succeeds"))
    }
}

/// TCP from `client` to `server`, and back: both must exceed 10 Mb/s, whatever the machine.
pub fn iperf3(client: &Host<'_>, server: &Host<'_>) {
    iperf3_with(client, server, "-t 1");
    iperf3_with(client, server, "-t 1 -R");
}

/// Sends a frame through interface number `index` of this thread's namespace.
fn send_frame(index: i32, frame: &[u8]) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, SocketType};
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None)?;
    // SAFETY: plain integers: all zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (to.sll_family, to.sll_ifindex) = (libc::AF_PACKET as u16, index);
    // SAFETY: `frame` is readable for its length, and `to` is a sockaddr_ll of the length given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of_val(&to) as u32,
        )
    };
    match usize::try_from(sent) {
        Ok(len) if len == frame.len() => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// An iperf3 run with more options.
pub fn iperf3_with(client: &Host<'_>, server: &Host<'_>, options: &str) {
    iperf3_at_least(10.0, client, server, &server.address, options);
}

/// An iperf3 run to this address of the server, which must reach this rate in Mb/s.
pub fn iperf3_at_least(
    rate_min: f64,
    client: &Host<'_>,
    server: &Host<'_>,
    address: &str,
    options: &str,
) {
    let dir = client.lab.dir();
    let mut service = Process::start(
        dir,
        "iperf3-server",
        &server.command("iperf3 -s -1 --forceflush"),
    );
    service.wait_for("Server listening", s(10));
    let line = format!("iperf3 -J -c {address} --connect-timeout 5000 {options}");
    let (status, text) = run(dir, &client.command(&line), s(20));
    assert!(status.success(), "{line}: {text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J prints JSON");
    let rate = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or_default()
        / 1e6;
    eprintln!("{line}: {rate:.0} Mb/s");
    assert!(rate > rate_min, "{line}: {rate:.1} Mb/s\n{text}");
}
