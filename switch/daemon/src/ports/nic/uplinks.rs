//! The thread that keeps NIC ports in line with their interfaces.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crosspoint_config::XdpPort;
use crosspoint_netdev::{Events, LinkError, Links, Stopper, Wake};

use super::NicPortError;
use super::uplink::Uplink;
use crate::dataplane::Dataplane;
use crate::ports::gate::Gate;
use crate::service::progress::Beat;

/// Pause between attempts to follow changes again, after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// A NIC port of the dataplane.
#[derive(Clone, Debug)]
pub struct UplinkOptions {
    /// Its number in the dataplane.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: XdpPort,
    /// Queues of its interface that guests own.
    pub direct: Vec<u32>,
}

/// All open NIC ports. Dropping it closes them and restores their interfaces' settings.
pub struct Uplinks {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
    /// Whether opening took the link of one of them down.
    pub lost_carrier: bool,
}

impl Uplinks {
    /// Opens the ports whose interfaces exist, and starts the thread that opens the others when their interfaces appear
    /// and closes ports whose interfaces go. The interfaces are those of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If this process may not open such ports at all, or a thread or socket cannot be created. Every other error is
    /// shown as the port's state, and retried.
    pub fn start(
        dataplane: &Arc<Dataplane>,
        ports: Vec<UplinkOptions>,
    ) -> Result<Uplinks, NicPortError> {
        // Before the first query, so that no later change is missed.
        let (events, stopper) = Events::open().map_err(NicPortError::Follow)?;
        let mut links = Links::open().map_err(NicPortError::Follow)?;
        let ports = ports.into_iter();
        let mut uplinks: Vec<Uplink> = ports
            .map(|options| Uplink::new(dataplane.clone(), options))
            .collect();
        for uplink in &mut uplinks {
            match uplink.reconcile(&mut links) {
                Err(why) if why.is_permission() => return Err(why),
                // The error is shown and retried.
                _ => {}
            }
        }
        let lost_carrier = uplinks.iter().any(|uplink| uplink.lost_carrier);
        let thread = Builder::new().name("uplinks".to_owned());
        let gate = Arc::new(Gate::new(false));
        let of_thread = gate.clone();
        let thread = thread.spawn(move || run(events, links, uplinks, &of_thread));
        let thread = thread.map_err(|why| {
            let what = "starting a thread";
            let said = None;
            NicPortError::Follow(LinkError { what, why, said })
        })?;
        Ok(Uplinks {
            stopper,
            thread: Some(thread),
            gate,
            lost_carrier,
        })
    }

    /// Follows no further change of an interface until [`release`](Self::release).
    pub(crate) fn begin_hold(&self) {
        self.gate.hold();
    }

    /// Whether the thread follows no change, for which this waits until `deadline`.
    pub(crate) fn is_outside(&self, deadline: Instant) -> bool {
        self.gate.is_outside(deadline)
    }

    /// Lets the thread go on.
    pub(crate) fn release(&self) {
        self.gate.release();
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        self.stopper.stop();
        self.gate.release();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut events: Events, mut links: Links, mut uplinks: Vec<Uplink>, gate: &Gate) {
    let beat = Beat::new("a thread that follows interfaces");
    loop {
        beat.rest();
        let due = uplinks.iter().filter_map(Uplink::due).min();
        let limit = due.map(|due| due.saturating_duration_since(Instant::now()));
        let wake = match events.wait(limit) {
            Ok(wake) => wake,
            Err(why) => {
                tracing::error!(error = %why, "interfaces are not followed for a while; trying again");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        if wake == Wake::Stop {
            return;
        }
        gate.enter();
        let now = Instant::now();
        for uplink in &mut uplinks {
            beat.begin();
            let is_due = uplink.due().is_some_and(|due| due <= now);
            let is_concerned =
                matches!(&wake, Wake::Changed(changes) if uplink.is_concerned(changes));
            if is_due || is_concerned {
                // The error is shown and retried.
                let _ = uplink.reconcile(&mut links);
            }
        }
        gate.leave();
    }
}
