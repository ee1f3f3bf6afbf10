//! Information from the running switch.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crosspoint_config::{Metrics, read_named};
use crosspoint_model::client::{self, ClientError};
use crosspoint_model::request::Request;
use crosspoint_model::rows::SwitchRow;
use crosspoint_model::topic::Topic;
use serde::Deserialize;
use serde_json::Value;

use super::{Archive, FILE_BYTES_MAX};

/// The longest that the metrics may take.
const METRICS_TIME_MAX: Duration = Duration::from_secs(10);
/// Files of the running process, in its folder of /proc.
const PROCESS_FILES: [&str; 6] = ["cmdline", "status", "limits", "cgroup", "mountinfo", "stat"];

/// What a running switch says of itself.
pub(super) struct Found {
    /// The file that it was started with.
    pub config: Option<PathBuf>,
    /// Where it serves metrics.
    pub metrics: Option<SocketAddr>,
}

/// Asks the switch at this control socket for its configuration and its address; `None` if none answers.
pub(super) fn find(socket: &Path) -> Option<Found> {
    let answer = client::request(socket, &Request::Show(Topic::Switch)).ok()?;
    let row = SwitchRow::deserialize(&answer).ok()?;
    Some(Found {
        config: row.config.map(PathBuf::from),
        metrics: row.metrics.and_then(|address| address.parse().ok()),
    })
}

/// Asks the switch at this control socket, and scrapes its metrics.
pub(super) fn gather(archive: &mut Archive, socket: &Path, metrics: &Metrics) {
    let mut asked = Asked {
        archive,
        socket,
        from: format!("control socket {}", socket.display()),
        silent: false,
    };
    match asked.ask("health.json", &Request::Health {}) {
        // An older daemon does not know `health`, or some later requests.
        Ok(_) | Err(ClientError::Refused { .. } | ClientError::Silent { .. }) => {}
        Err(why) => {
            let why = format!("no switch is running: {why}");
            for path in ["show", "metrics.txt", "process"] {
                asked.archive.miss(path, &asked.from, &why);
            }
            return;
        }
    }
    // An older daemon does not know it.
    let _ = asked.ask("config/running.json", &Request::Config {});
    for topic in Topic::ALL {
        let answer = asked.ask(&format!("show/{topic}.json"), &Request::Show(topic));
        if let (Topic::Ports, Ok(ports)) = (topic, answer) {
            asked.ask_ports(&ports);
        }
    }
    let Asked { archive, from, .. } = asked;
    match (metrics.listen, &metrics.tls) {
        (Some(address), None) => {
            let from = format!("http://{address}/metrics");
            let token = metrics.token_file.as_deref();
            archive.take("metrics.txt", &from, scrape(address, token));
        }
        (Some(address), Some(_)) => archive.miss(
            "metrics.txt",
            &format!("https://{address}/metrics"),
            "[metrics] has `tls`; get them with a client that has its certificate: curl --cacert FILE",
        ),
        (None, _) => archive.miss("metrics.txt", "[metrics] listen", "it is \"off\""),
    }
    match process(socket) {
        Ok(process) => gather_process(archive, process),
        Err(why) => archive.miss("process", &from, why),
    }
}

/// The daemon that is asked, and the archive for its answers.
struct Asked<'a> {
    archive: &'a mut Archive,
    socket: &'a Path,
    from: String,
    /// Whether it has failed to answer in time. Then it is not asked again, since each attempt takes long.
    silent: bool,
}

impl Asked<'_> {
    /// Adds the answer, or notes the error.
    fn ask(&mut self, path: &str, request: &Request) -> Result<Value, ClientError> {
        let answer = match self.silent {
            true => Err(ClientError::Silent {
                path: self.socket.to_owned(),
            }),
            false => client::request(self.socket, request),
        };
        match &answer {
            Ok(value) => self.archive.add(path, &self.from, format!("{value:#}\n")),
            Err(why) => self.archive.miss(path, &self.from, why),
        }
        self.silent |= matches!(answer, Err(ClientError::Silent { .. }));
        answer
    }

    fn ask_ports(&mut self, ports: &Value) {
        // Ports that are only in the files have nothing more to show.
        let runs = |row: &&Value| row["unkept"] != "not_running";
        let rows = ports.as_array().into_iter().flatten().filter(runs);
        for name in rows.filter_map(|row| row["name"].as_str()) {
            // A port's name has no slash.
            let request = Request::Port(name.to_owned());
            let _ = self.ask(&format!("show/port/{name}.json"), &request);
        }
    }
}

/// The metrics as text. `address` may be the wildcard address. `token` is the file with the token, if one is needed.
fn scrape(address: SocketAddr, token: Option<&Path>) -> Result<Vec<u8>, String> {
    let token = token.map(|file| read_named(file).map(|text| text.trim().to_owned()));
    let token = token.transpose()?;
    let mut target = address;
    if address.ip().is_unspecified() {
        target.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let reply = exchange(target, token.as_deref()).map_err(|error| error.to_string())?;
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or("the answer is not HTTP")?;
    let head = String::from_utf8_lossy(&reply[..end]);
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(reply[end + 4..].to_vec()),
        _ => Err(format!("the answer is {status:?}")),
    }
}

fn exchange(address: SocketAddr, token: Option<&str>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, METRICS_TIME_MAX)?;
    stream.set_read_timeout(Some(METRICS_TIME_MAX))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    write!(
        stream,
        "GET /metrics HTTP/1.0\r\nHost: {address}\r\n{token}\r\n"
    )?;
    let mut reply = Vec::new();
    stream
        .take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut reply)?;
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

/// Each thread: number, name, state, allowed cores, context switches.
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
        // A thread that has ended meanwhile is left out.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_does_not_run_costs_its_own_files_alone() {
        let mut archive = Archive::default();
        let metrics = Metrics::default();
        gather(&mut archive, Path::new("/nowhere/control.sock"), &metrics);
        assert_eq!(archive.files().count(), 0);
        let told = |missing: &super::super::archive::Missing| {
            missing
                .why
                .contains("there is no control socket /nowhere/control.sock")
        };
        assert_eq!(archive.missing().len(), 4);
        assert!(
            archive.missing().iter().all(told),
            "{:?}",
            archive.missing()
        );
    }

    #[test]
    fn one_that_hangs_is_not_asked_again() {
        let mut archive = Archive::default();
        let mut asked = Asked {
            archive: &mut archive,
            // Does not exist, so that a request would fail with another error.
            socket: Path::new("/nowhere/control.sock"),
            from: "a test".to_owned(),
            silent: true,
        };
        let answer = asked.ask("show/ports.json", &Request::Health {});
        assert!(
            matches!(answer, Err(ClientError::Silent { .. })),
            "{answer:?}"
        );
        assert_eq!(archive.missing().len(), 1);
    }
}
