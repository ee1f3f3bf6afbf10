//! Notifications to the service manager (sd_notify(3)): ready, reloading, status and watchdog. Without a service
//! manager, which sets NOTIFY_SOCKET in the environment, all functions do nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crosspoint_model::health::Health;
use sd_notify::NotifyState;

use crate::handover;

/// Shortest time between two status messages.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Watchdog messages per watchdog timeout.
const SIGNS: u32 = 3;
/// How long to wait for the service manager to have room for a message.
const SEND_TIME_MAX: Duration = Duration::from_millis(200);
/// Pause between two attempts to send.
const SEND_PAUSE: Duration = Duration::from_millis(10);

/// Reports that every port is open or waits for what it needs, or that a reload is done. `status` is shown to people.
pub fn ready(status: &str) {
    // A line of the protocol is one assignment.
    let status = status.replace(char::is_control, " ");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Reports that a reload begins. It must end with [`ready`], whatever its result.
pub fn reloading() {
    let status = NotifyState::Status("reading the configuration again");
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, status]),
        // Without the time, systemd would wait for it.
        Err(error) => {
            tracing::warn!(%error, "the service manager cannot be notified of the reload")
        }
    }
}

/// Reports that the switch is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState<'_>]) {
    let lines = states.iter().map(|state| format!("{state}\n"));
    let lines = lines.collect::<String>();
    if handover::notify(&lines) {
        return;
    }
    if let Err(error) = forward(lines.as_bytes()) {
        tracing::warn!(%error, "the service manager cannot be notified of the switch's status");
    }
}

/// Tells the service manager of this process `lines`, as sd_notify(3) has them. Does nothing without one.
pub fn forward(lines: &[u8]) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(address) => send(&address, lines),
        None => Ok(()),
    }
}

/// Like sd_notify(3), but waits no longer than [`SEND_TIME_MAX`] for a service manager that does not read.
fn send(address: &OsStr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let deadline = Instant::now() + SEND_TIME_MAX;
    loop {
        match socket.send_to_addr(message, &address) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                std::thread::sleep(SEND_PAUSE);
            }
            sent => return sent.map(drop),
        }
    }
}

/// Periodic notifications by the thread that calls [`tick`](Service::tick): if that thread makes no progress, no
/// watchdog message is sent.
#[derive(Debug)]
pub struct Service {
    status: String,
    status_next: Instant,
    /// The watchdog interval, and when the next message is due; `None` if the watchdog is off.
    signs: Option<(Duration, Instant)>,
}

impl Service {
    /// Reports that the switch is ready, and its status.
    pub fn ready(health: &Health) -> Service {
        let now = Instant::now();
        let status = health.summary();
        ready(&status);
        let patience = sd_notify::watchdog_enabled();
        Service {
            status,
            status_next: now + STATUS_INTERVAL,
            signs: patience.map(|patience| (patience / SIGNS, now)),
        }
    }

    /// Sends a changed status and the watchdog message, if they are due. `health` is called only then.
    ///
    /// No watchdog message is sent while a worker is stalled. One is sent as soon as it makes progress again.
    pub fn tick(&mut self, health: impl FnOnce() -> Health) {
        let now = Instant::now();
        let sign_due = self.signs.is_some_and(|(_, next)| now >= next);
        if !sign_due && now < self.status_next {
            return;
        }
        let health = health();
        if now >= self.status_next {
            self.status_next = now + STATUS_INTERVAL;
            self.tell_status(&health);
        }
        if let Some((interval, next)) = &mut self.signs
            && sign_due
            && health.live
        {
            tell(&[NotifyState::Watchdog]);
            *next = now + *interval;
        }
    }

    fn tell_status(&mut self, health: &Health) {
        let status = match health.not_live.first() {
            _ if health.changing => return,
            Some(reason) => reason.clone(),
            None => health.summary(),
        };
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;

    use crosspoint_model::health::{PortLook, WorkerLook};
    use crosspoint_model::status::ShownState;

    use super::*;

    /// Set when this test runs as the service.
    const SERVICE: &str = "CROSSPOINT_TEST_SERVICE";
    const MS: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_millis(300);

    fn health(stalled: bool) -> Health {
        let worker = WorkerLook {
            worker: 0,
            core: 1,
            stalled,
        };
        let port = PortLook {
            name: "up0",
            state: ShownState::Up,
            detail: "",
            blocked_with: None,
            looping: false,
            required: true,
        };
        Health::new([worker].into_iter(), Some([port].into_iter()))
    }

    /// Runs a main loop for `time`.
    fn run(service: &mut Service, stalled: bool, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            service.tick(|| health(stalled));
            sleep(10 * MS);
        }
    }

    fn be_the_service() {
        let mut service = Service::ready(&health(false));
        run(&mut service, false, 4 * PATIENCE);
        reloading();
        ready("done\nREADY=no");
        // Long enough for a status message too.
        run(&mut service, true, 4 * PATIENCE);
        run(&mut service, false, 4 * PATIENCE);
        stopping();
    }

    #[test]
    fn a_service_manager_that_does_not_read_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let sent = || send(path.as_os_str(), b"WATCHDOG=1\n");
        let full = (0..10_000)
            .find_map(|_| sent().err())
            .expect("it is full some time");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        socket.recv(&mut [0; 100]).expect("it was told");
        assert!(sent().is_ok());
    }

    /// Notifications of a separate process, which gets its settings in the environment.
    #[test]
    fn the_service_manager_is_told_how_the_switch_is_and_of_life_only_while_workers_make_progress()
    {
        if std::env::var_os(SERVICE).is_some() {
            return be_the_service();
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time");
        let this = "service::notify::tests::the_service_manager_is_told_how_the_switch_is_and_of_life_only_while_workers_make_progress";
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([this, "--exact", "--nocapture"])
            .env(SERVICE, "yes")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", PATIENCE.as_micros().to_string())
            .env_remove("WATCHDOG_PID")
            .spawn()
            .expect("this program runs");
        let mut told = Vec::new();
        while !told.iter().any(|one: &String| one.contains("STOPPING=1")) {
            let mut bytes = [0; 4096];
            let len = socket.recv(&mut bytes).expect("the service speaks");
            told.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
        }
        assert!(child.wait().expect("a child").success());

        let up = "STATUS=1 of 1 ports up (1 of 1 required), 1 worker(s)\n";
        let sign = "WATCHDOG=1\n";
        assert_eq!(told[0], format!("READY=1\n{up}"));
        let alive = told[1..].iter().take_while(|one| *one == sign).count();
        // One at once, and one per third of the timeout: fewer on a busy machine.
        assert!((4..=13).contains(&alive), "{told:#?}");
        let [reload, done, rest @ ..] = &told[1 + alive..] else {
            panic!("{told:#?}")
        };
        let time = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time = time.and_then(|rest| rest.split_once("\nSTATUS="));
        assert!(time.is_some_and(|(time, _)| time.parse::<u64>().is_ok_and(|time| time > 0)));
        assert_eq!(done, "READY=1\nSTATUS=done READY=no\n");
        // The worker stalls, and makes progress again.
        let [stalled, alive @ .., stopping] = rest else {
            panic!("{told:#?}")
        };
        assert!(
            stalled.starts_with("STATUS=worker-0 (core 1) makes no progress"),
            "{told:#?}"
        );
        assert_eq!(alive[0], sign, "{told:#?}");
        assert_eq!(
            alive.iter().filter(|one| **one == up).count(),
            1,
            "{told:#?}"
        );
        let others = alive.iter().filter(|one| **one != up && *one != sign);
        assert_eq!(others.count(), 0, "{told:#?}");
        assert_eq!(stopping, "STOPPING=1\nSTATUS=stopping\n");
    }
}
