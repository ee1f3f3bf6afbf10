//! What the service manager is told (sd_notify(3)): that the switch is ready, that it reads its configuration anew, how
//! it is, and that it is alive. Without a service manager, in whose environment NOTIFY_SOCKET is, all of it does nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::health::Health;

/// The status is told no more often than this.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// So many signs of life for each time after which the service manager takes us for dead.
const SIGNS: u32 = 3;
/// How long the service manager may take to have room for what it is told.
const SEND_TIME_MAX: Duration = Duration::from_millis(200);
/// Between two tries to tell it.
const SEND_PAUSE: Duration = Duration::from_millis(10);

/// Every port is open, or waits for what it needs; or a reload is done. `status` is for people.
pub fn ready(status: &str) {
    // A line of the protocol is one statement.
    let status = status.replace(char::is_control, " ");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// A reload begins. It must end with [`ready`], whatever comes of it.
pub fn reloading() {
    let status = NotifyState::Status("reading the configuration anew");
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, status]),
        // Without the time, systemd would wait for it.
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
    }
}

/// The switch ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState<'_>]) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let lines = states.iter().map(|state| format!("{state}\n"));
    if let Err(error) = send(&address, lines.collect::<String>().as_bytes()) {
        tracing::warn!(%error, "the service manager cannot be told how the switch is");
    }
}

/// As sd_notify(3), but for one thing: a service manager that does not read is not waited for longer than
/// [`SEND_TIME_MAX`].
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

/// What is told again and again, by the thread that calls [`tick`](Service::tick): if that does not come round, neither do
/// signs of life.
#[derive(Debug)]
pub struct Service {
    status: String,
    status_next: Instant,
    /// How often the service manager wants a sign of life, and when the next sign is due; `None` where nobody wants any.
    signs: Option<(Duration, Instant)>,
}

impl Service {
    /// Says that the switch is ready, and how it is.
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

    /// Says what has changed, and that the switch is alive, if either is due. `health` is asked for only then.
    ///
    /// No sign is given while a worker does not come round. It is given as soon as it does.
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

    use super::*;
    use crate::health::{PortLook, WorkerLook};

    /// Set where this test runs as the service.
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
            state: "up",
            detail: "",
            blocked_with: None,
            looping: false,
            required: true,
        };
        Health::new([worker].into_iter(), Some([port].into_iter()))
    }

    /// A main loop, for so long.
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
        // Long enough for a status, too.
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

    /// What a service manager is told, by a process of its own: what it needs to know is in the environment.
    #[test]
    fn the_service_manager_is_told_how_the_switch_is_and_of_life_only_while_workers_come_round() {
        if std::env::var_os(SERVICE).is_some() {
            return be_the_service();
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time");
        let this = "notify::tests::the_service_manager_is_told_how_the_switch_is_and_of_life_only_while_workers_come_round";
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
        // One at once, and one for each third: fewer on a machine that is busy with other things.
        assert!((4..=13).contains(&alive), "{told:#?}");
        let [reload, done, rest @ ..] = &told[1 + alive..] else {
            panic!("{told:#?}")
        };
        let time = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time = time.and_then(|rest| rest.split_once("\nSTATUS="));
        assert!(time.is_some_and(|(time, _)| time.parse::<u64>().is_ok_and(|time| time > 0)));
        assert_eq!(done, "READY=1\nSTATUS=done READY=no\n");
        // The worker stalls, and comes round again.
        let [stalled, alive @ .., stopping] = rest else {
            panic!("{told:#?}")
        };
        assert!(
            stalled.starts_with("STATUS=worker-0 (core 1) does not come round"),
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
