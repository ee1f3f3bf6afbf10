//! All ports at once, for a hand-over to another process.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::ports::PortHandle;
use super::{Changing, Running};
use crate::dataplane::{Dataplane, SuspendedNics};
use crate::ports::nic::Uplinks;
use crate::ports::vhost::{Positions, VhostPort};
use crosspoint_engine::stream::Stream;

/// Pause between two attempts to get the lock on what is being changed.
const PAUSE: Duration = Duration::from_millis(2);

/// The NIC queues that start with guests' rings.
pub(crate) enum Nics<'a> {
    /// None: they are opened later.
    None,
    /// Those that were suspended.
    Own(SuspendedNics),
    /// Those of the predecessor, as it has written of them.
    Taken(&'a [u8]),
}

/// The ports of a switch whose ports and sessions do not change.
pub(crate) struct HeldPorts<'a> {
    dataplane: &'a Dataplane,
    changing: MutexGuard<'a, Changing>,
}

impl Changing {
    /// Changes by commands that are in no file, as text: a successor starts from the files.
    fn unkept_text(&self) -> Option<String> {
        let ports = self.unkept().into_keys().map(|name| format!("port {name}"));
        let entries = self.fdb_by_hand.iter();
        let addresses = entries.map(|entry| format!("static address {}", entry.name()));
        let sets = self.sets_by_hand.names().map(|name| format!("set {name}"));
        let all: Vec<String> = ports.chain(addresses).chain(sets).collect();
        (!all.is_empty()).then(|| {
            format!(
                "changes by commands are in no file, and would be lost: {}; `crosspoint keep` writes ports to their files, `crosspoint reload` takes the files as they are",
                all.join(", ")
            )
        })
    }

    fn guests(&self) -> impl Iterator<Item = (&String, &VhostPort)> {
        let ports = self.ports.iter();
        ports.filter_map(|(name, port)| Some((name, port.guest()?)))
    }

    fn uplinks(&self) -> impl Iterator<Item = (&String, &Uplinks)> {
        let ports = self.ports.iter();
        ports.filter_map(|(name, port)| Some((name, port.uplinks()?)))
    }

    /// Lets the threads of all ports go on.
    fn release(&self) {
        self.guests().for_each(|(_, port)| port.release());
        self.uplinks().for_each(|(_, port)| port.release());
    }

    /// Stops the threads of all ports between two messages or events. A front end that does not end a message in time is
    /// disconnected.
    fn hold(&self, deadline: Instant, shut_time: Duration) -> Result<(), String> {
        // First all gates, so that a slow front end costs others nothing.
        self.guests().for_each(|(_, port)| port.begin_hold());
        self.uplinks().for_each(|(_, port)| port.begin_hold());
        let inside = |deadline: Instant| {
            let guests = self.guests();
            let slow = guests.filter(|(_, port)| !port.is_outside(deadline));
            slow.collect::<Vec<_>>()
        };
        inside(deadline).iter().for_each(|(_, port)| port.shut());
        if let Some((name, _)) = inside(Instant::now() + shut_time).first() {
            return Err(format!(
                "the front end of port {name} blocks the port's thread through a descriptor that it gave"
            ));
        }
        let mut uplinks = self.uplinks();
        match uplinks.find(|(_, port)| !port.is_outside(deadline)) {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "a change of the interface of port {name} is not done after some seconds: `crosspoint upgrade` can be tried again"
            )),
        }
    }
}

impl Running {
    /// Calls `with` while no port and no front end's session changes. A front end that does not end a message within `time`
    /// is disconnected.
    pub(crate) fn while_held(
        &self,
        time: Duration,
        shut_time: Duration,
        with: impl FnOnce(&HeldPorts<'_>),
    ) -> Result<(), String> {
        let deadline = Instant::now() + time;
        let changing = loop {
            match self.changing.try_lock() {
                Ok(changing) => break changing,
                Err(TryLockError::Poisoned(changing)) => break changing.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                    return Err("another change of the switch does not end".to_owned());
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        };
        if let Some(unkept) = changing.unkept_text() {
            return Err(unkept);
        }
        let is_held = changing.hold(deadline, shut_time);
        let dataplane = &*self.dataplane;
        let ports = HeldPorts {
            dataplane,
            changing,
        };
        if is_held.is_ok() {
            // What has changed without a message, such as a quarantine.
            ports
                .changing
                .guests()
                .for_each(|(_, port)| port.describe());
            with(&ports);
        }
        ports.changing.release();
        is_held
    }

    /// All ports, whose threads have not begun yet.
    pub(crate) fn held(&self) -> HeldPorts<'_> {
        HeldPorts {
            dataplane: &self.dataplane,
            changing: self.lock(),
        }
    }

    /// Opens the uplinks of a process that has taken over: until then its predecessor had their interfaces. `alive` is called
    /// before each. An uplink that cannot be opened is down, and the others are not affected.
    pub(crate) fn open_uplinks(&self, alive: &dyn Fn()) {
        let mut changing = self.lock();
        let Changing { config, ports, .. } = &mut *changing;
        let mut failed = Vec::new();
        for port in &config.ports {
            let Some(handle) = ports.get_mut(&port.name) else {
                continue;
            };
            alive();
            if let Err(why) = handle.open_reserved(&self.dataplane, config, port) {
                tracing::error!(
                    port = port.name,
                    "not opened: {why}; a reload tries it again"
                );
                failed.push(port.name.clone());
            }
        }
        for name in &failed {
            if let Some(handle) = ports.remove(name) {
                handle.close(&self.dataplane, true);
            }
        }
        config.ports.retain(|port| !failed.contains(&port.name));
    }

    /// Lets the threads of all ports go on.
    pub(crate) fn release_all(&self) {
        self.lock().release();
    }

    /// Opens all uplinks again: another process may have used their sockets.
    pub(crate) fn reopen_uplinks(&self, alive: &dyn Fn()) {
        self.lock()
            .ports
            .values_mut()
            .for_each(PortHandle::close_nic);
        self.open_uplinks(alive);
    }
}

impl HeldPorts<'_> {
    /// The most rings that all guests can have.
    pub(crate) fn ring_count(&self) -> usize {
        self.changing
            .guests()
            .map(|(_, port)| port.ring_count())
            .sum()
    }

    /// Stops all rings and NIC queues at once, and returns the rings' positions and the queues.
    pub(crate) fn freeze_all(&self) -> (BTreeMap<String, Positions>, SuspendedNics) {
        self.dataplane.begin_batch();
        for (_, port) in self.changing.guests() {
            port.begin_freeze();
        }
        self.dataplane.begin_suspend_nics();
        let mut given_up = self.dataplane.end_batch(true);
        let nics = self.dataplane.end_suspend_nics(&mut given_up);
        let mut streams: BTreeMap<u16, Vec<Stream>> = BTreeMap::new();
        for stream in given_up.streams {
            streams.entry(stream.id.0).or_default().push(stream);
        }
        let positions = |(name, port): (&String, &VhostPort)| {
            let streams = streams.remove(&port.number()).unwrap_or_default();
            (name.clone(), port.end_freeze(streams))
        };
        let all = self.changing.guests().map(positions).collect();
        (all, nics)
    }

    /// Starts all rings at once: at `positions`, or where they are; and NIC queues. `was_started`: another process may have
    /// used the rings since they were frozen.
    pub(crate) fn thaw_all(
        &self,
        positions: Option<&BTreeMap<String, Positions>>,
        was_started: bool,
        nics: Nics<'_>,
    ) {
        self.dataplane.begin_batch();
        for (name, port) in self.changing.guests() {
            port.thaw(positions.and_then(|all| all.get(name)), was_started);
        }
        match nics {
            Nics::None => {}
            Nics::Own(suspended) => self.dataplane.take_back_nics(suspended),
            Nics::Taken(text) => self.dataplane.resume_nics(text),
        }
        drop(self.dataplane.end_batch(false));
    }

    /// After [`thaw_all`](Self::thaw_all): records and shows the ports, and calls each guest once, since a call may have been
    /// lost with the process that owed it.
    pub(crate) fn settle_all(&self) {
        self.changing.guests().for_each(|(_, port)| port.settle());
    }
}
