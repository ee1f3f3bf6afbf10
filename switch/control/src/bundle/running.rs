//! What the running switch tells of itself.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{Archive, FILE_BYTES_MAX};
use crate::api::{self, Request};
use crate::show::Topic;

/// The longest that the metrics may take.
const METRICS_TIME_MAX: Duration = Duration::from_secs(10);
/// Of the running process, by their names in its folder of /proc.
const PROCESS_FILES: [&str; 6] = ["cmdline", "status", "limits", "cgroup", "mountinfo", "stat"];

/// Asks the switch at this control socket, and scrapes the metrics.
pub(super) fn gather(archive: &mut Archive, socket: &Path, metrics: Option<SocketAddr>) {
    let from = format!("control socket {}", socket.display());
    match api::request(socket, &Request::Health {}) {
        // An older daemon knows nothing of health, and much else.
        Err(why @ api::ClientError::Refused { .. }) => archive.miss("health.json", &from, why),
        Err(why) => {
            for path in ["health.json", "show", "metrics.txt", "process"] {
                archive.miss(path, &from, format!("no switch is running: {why}"));
            }
            return;
        }
        Ok(health) => archive.add("health.json", &from, pretty(&health)),
    }
    for topic in Topic::ALL {
        let path = format!("show/{topic}.json");
        let answer = api::request(socket, &Request::Show(topic));
        if let (Topic::Ports, Ok(ports)) = (topic, &answer) {
            gather_ports(archive, socket, &from, ports);
        }
        archive.take(&path, &from, answer.map(|value| pretty(&value)));
    }
    match metrics {
        Some(address) => {
            let from = format!("http://{address}/metrics");
            archive.take("metrics.txt", &from, scrape(address));
        }
        None => archive.miss("metrics.txt", "[metrics] listen", "it is \"off\""),
    }
    match process(socket) {
        Ok(process) => gather_process(archive, process),
        Err(why) => archive.miss("process", &from, why),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn gather_ports(archive: &mut Archive, socket: &Path, from: &str, ports: &Value) {
    let rows = ports.as_array().into_iter().flatten();
    for name in rows.filter_map(|row| row["name"].as_str()) {
        // A name has no slash.
        let path = format!("show/port/{name}.json");
        let answer = api::request(socket, &Request::Port(name.to_owned()));
        archive.take(&path, from, answer.map(|value| pretty(&value)));
    }
}

/// The metrics as text. The address may be that of all interfaces.
fn scrape(address: SocketAddr) -> Result<Vec<u8>, String> {
    let mut target = address;
    if address.ip().is_unspecified() {
        target.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let reply = exchange(target).map_err(|error| error.to_string())?;
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or("what answers does not speak HTTP")?;
    let head = String::from_utf8_lossy(&reply[..end]);
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(reply[end + 4..].to_vec()),
        _ => Err(format!("the answer is {status:?}")),
    }
}

fn exchange(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, METRICS_TIME_MAX)?;
    stream.set_read_timeout(Some(METRICS_TIME_MAX))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.take(FILE_BYTES_MAX as u64).read_to_end(&mut reply)?;
    Ok(reply)
}

/// The process that serves the control socket.
fn process(socket: &Path) -> io::Result<u32> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd())?;
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

fn gather_process(archive: &mut Archive, process: u32) {
    let folder = Path::new("/proc").join(process.to_string());
    for name in PROCESS_FILES {
        archive.add_file(&format!("process/{name}"), &folder.join(name));
    }
    let tasks = folder.join("task");
    let threads = threads(&tasks);
    archive.take("process/threads.txt", &tasks.display().to_string(), threads);
}

/// Each thread: number, name, state, cores that it may use, context switches.
fn threads(tasks: &Path) -> io::Result<String> {
    let wanted = |line: &&str| {
        let keys = [
            "Name:",
            "State:",
            "Pid:",
            "Cpus_allowed_list:",
            "voluntary_",
            "nonvoluntary_",
        ];
        keys.iter().any(|key| line.starts_with(key))
    };
    let mut text = String::new();
    for task in fs::read_dir(tasks)? {
        // One that has ended meanwhile is no loss.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let words = status
            .lines()
            .filter(wanted)
            .map(|line| line.replace('\t', " "));
        text.push_str(&words.collect::<Vec<_>>().join("  "));
        text.push('\n');
    }
    Ok(text)
}
