//! The course of an upgrade; `daemon/src/handover/switchover.rs` has the other sides.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crosspoint_daemon::handover::Closer;
use crosspoint_handover::{Claim, Kind, Link, Message, Start, Store, WAS_STARTED};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::process::{Process, Program};
use super::{Supervisor, Upgrade, say};

/// How long the running process may take to hold its changes: as it waits for front ends, and a moment more.
const HELD_TIME_MAX: Duration = Duration::from_secs(13);
/// How long a new process may take to prepare.
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// The longest time between two looks at whether the supervisor is to end.
const LOOK: Duration = Duration::from_millis(200);
/// How long rings may take to stop, or to start.
const SWITCHOVER_TIME_MAX: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Replaces the running process. Returns a line that tells of the result.
    pub(super) fn upgrade(&mut self, upgrade: Upgrade) -> Result<String, String> {
        let started = Instant::now();
        let result = self.try_upgrade(upgrade);
        // The process may have waited, and said nothing meanwhile.
        self.current.heartbeat_at = Instant::now();
        match &result {
            Ok(text) => say(&format!(
                "{text} ({} ms in all)",
                started.elapsed().as_millis()
            )),
            Err(why) => say(&format!(
                "error: no upgrade, and the switch goes on as before: {why}"
            )),
        }
        result
    }

    fn try_upgrade(&mut self, upgrade: Upgrade) -> Result<String, String> {
        if !self.current.is_ready {
            return Err("the switch is still starting".to_owned());
        }
        if upgrade.if_changed && self.current.runs(&self.program) {
            return Ok("the installed program runs already".to_owned());
        }
        let program = match upgrade.back {
            false => self.program.clone(),
            true => self.former.clone().ok_or("there is no former program: nothing has been upgraded since the supervisor started")?,
        };
        let claim = Claim::new().map_err(|why| why.to_string())?;
        let (own, its) = Link::pair().map_err(|why| why.to_string())?;
        let fds = [claim.as_fd(), own.as_fd()];
        let held = self.current.link.send(Kind::Hold, "", b"", &fds);
        held.map_err(|why| format!("the running process does not hear {:?}: {why}", Kind::Hold))?;
        let mut attempt = Attempt::default();
        let fds = [claim.as_fd(), its.as_fd()];
        let result = self.replace(&program, upgrade, (fds, &mut attempt));
        if attempt.is_done {
            return result;
        }
        // First, since two owners of a ring are one too many.
        let is_gone = attempt.successor.as_mut().is_none_or(Process::kill);
        if attempt.was_started && !is_gone {
            // It cannot be ended, so the old one must not go on. The next process starts as after a crash.
            say("error: the new process neither takes over nor ends");
            self.current.kill();
            return result;
        }
        let text = if attempt.was_started { WAS_STARTED } else { "" };
        self.tell(Kind::Resume, text)?;
        result
    }

    fn replace(
        &mut self,
        program: &Program,
        upgrade: Upgrade,
        ([claim, predecessor], attempt): ([BorrowedFd<'_>; 2], &mut Attempt),
    ) -> Result<String, String> {
        self.await_current(Kind::Held, HELD_TIME_MAX)?;
        let new = Process::start(
            program,
            &self.config,
            (
                self.begin(Start::Prepare),
                &[self.adoption_socket.as_fd(), claim, predecessor],
            ),
            &self.store,
        );
        let new = attempt
            .successor
            .insert(new.map_err(|why| format!("it cannot be started: {why}"))?);
        let mut records = Store::default();
        self.await_new(new, &mut records, Kind::Ready, READY_TIME_MAX)?;
        if upgrade.dry_run {
            return Ok("an upgrade would work: the new process has prepared everything".to_owned());
        }
        let frozen_at = Instant::now();
        self.tell(Kind::Freeze, "")?;
        self.await_current(Kind::Frozen, SWITCHOVER_TIME_MAX)?;
        for name in ["positions", "uplinks", "connections-since"] {
            if let Some(record) = self.store.remove(name) {
                let sent = new.link.send(Kind::Record, name, &record.body, &[]);
                sent.map_err(|why| why.to_string())?;
            }
        }
        attempt.was_started = true;
        new.link
            .send(Kind::Go, "", b"", &[])
            .map_err(|why| why.to_string())?;
        self.await_new(new, &mut records, Kind::Confirmed, SWITCHOVER_TIME_MAX)?;
        let gap = frozen_at.elapsed();
        if let Some(new) = attempt.successor.take() {
            self.take_successor(new, records);
            attempt.is_done = true;
        }
        Ok(format!(
            "upgraded: rings stood still for {} us",
            gap.as_micros()
        ))
    }

    /// The new process has the rings: nothing that fails from now on goes back to the old one.
    fn take_successor(&mut self, mut new: Process, records: Store) {
        new.is_ready = true;
        new.heartbeat_at = Instant::now();
        let mut old = std::mem::replace(&mut self.current, new);
        self.former = old.program();
        (self.upgraded_at, self.upgrades) = (Some(Instant::now()), self.upgrades + 1);
        // What the new process has not recorded yet stays: it may crash at once.
        let replaced = self.store.merge(records);
        replaced
            .into_iter()
            .for_each(|record| self.closer.close(record));
        let _ = old.link.send(Kind::Leave, "", b"", &[]);
        old.hear_to_its_end(SWITCHOVER_TIME_MAX, &self.closer);
        self.tell_manager("WATCHDOG=1\n");
        if !old.kill() {
            say("the former process does not end: a front end blocks one of its threads");
        }
        // What has changed on uplinks since the new process began to prepare.
        let of_uplink = |name: &str| name.starts_with("xdp/") || name.starts_with("settings/");
        let _ = self.store.send_where(&self.current.link, of_uplink);
        let _ = self.tell(Kind::Alone, "");
    }

    fn tell(&self, kind: Kind, text: &str) -> Result<(), String> {
        let sent = self.current.link.send(kind, "", text.as_bytes(), &[]);
        sent.map_err(|why| format!("the running process does not hear {kind:?}: {why}"))
    }

    /// Waits for a message of the running process.
    fn await_current(&mut self, wanted: Kind, time: Duration) -> Result<(), String> {
        let deadline = Instant::now() + time;
        loop {
            if self.is_stopping() {
                return Err("the switch is being stopped".to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(&self.current.link, PollFlags::IN)];
            let timeout = Timespec::try_from(left.min(LOOK)).ok();
            let spoken = poll(&mut polled, timeout.as_ref()) == Ok(1);
            if !spoken && !left.is_zero() {
                continue;
            }
            let message = self.current.link.receive_within(left);
            let message = message
                .map_err(|why| format!("the running process does not say {wanted:?}: {why}"))?;
            let message = message.ok_or("the running process has ended")?;
            match message.kind {
                kind if kind == wanted => return Ok(()),
                Kind::Refused => return Err(message.text()),
                _ => self.take(message),
            }
        }
    }

    /// Waits for a message of the new process, and hears the running one meanwhile.
    fn await_new(
        &mut self,
        new: &Process,
        records: &mut Store,
        wanted: Kind,
        time: Duration,
    ) -> Result<(), String> {
        let deadline = Instant::now() + time;
        let mut told_at = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if told_at.elapsed() > Duration::from_secs(1) {
                told_at = Instant::now();
                self.tell_manager("WATCHDOG=1\n");
            }
            if self.is_stopping() {
                return Err("the switch is being stopped".to_owned());
            }
            if left.is_zero() {
                return Err(format!(
                    "the new process is not ready after {} s",
                    time.as_secs()
                ));
            }
            let mut polled = [
                PollFd::new(&new.link, PollFlags::IN),
                PollFd::new(&self.current.link, PollFlags::IN),
            ];
            let timeout = Timespec::try_from(left.min(LOOK)).ok();
            let _ = poll(&mut polled, timeout.as_ref());
            let [spoken, current] = polled.map(|fd| !fd.revents().is_empty());
            if current {
                match self.current.link.receive() {
                    Ok(Some(message)) => self.take(message),
                    _ => return Err("the running process has ended".to_owned()),
                }
            }
            if !spoken {
                continue;
            }
            let message = new
                .link
                .receive()
                .map_err(|why| format!("the new process: {why}"))?;
            let message: Message =
                message.ok_or("the new process has ended: its reason is in the log")?;
            match message.kind {
                kind if kind == wanted => return Ok(()),
                Kind::Refused => {
                    return Err(format!("the new process refuses: {}", message.text()));
                }
                _ => self.closer.close_some(records.take(message)),
            }
        }
    }
}

impl Process {
    /// Hears a process that was told to leave until it ends, at most for `time`. Nothing of it is kept: its last records go to its
    /// successor.
    fn hear_to_its_end(&mut self, time: Duration, closer: &Closer) {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.link.receive_within(left) {
                Ok(Some(message)) => closer.close(message),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// How far an upgrade has come.
#[derive(Default)]
struct Attempt {
    successor: Option<Process>,
    /// Whether the successor may have used the rings.
    was_started: bool,
    /// Whether the successor is the current process.
    is_done: bool,
}
