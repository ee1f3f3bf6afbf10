//! A guest's own queue of an uplink: opened when the guest's first transmit ring starts, closed when it stops.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config as config;
use crosspoint_engine::egress::direct::Direct;
use crosspoint_engine::egress::direct::DirectGuest;
use crosspoint_engine::stream::Source;
use crosspoint_memory::{GuestMemory, RegionSpec};
use crosspoint_netdev::Interface;
use crosspoint_vring::GuestTx;
use crosspoint_xsk::{BindMode, DirectStatus, DirectTx, SocketError};
use rustix::io::Errno;

use super::Device;
use crate::dataplane::Uplink;
use crate::handover::{is_supervised, is_taking_over};

/// The vring that may have a NIC queue of its own: the first transmit ring. Other rings are copied.
pub(super) const VRING: usize = 1;
/// How long a stopping ring waits for the NIC to send what it has.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// The longest time that a NIC may take to send a frame before the queue is given up.
const SEND_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a starting ring waits for an uplink that is opened after the guest's port.
const UPLINK_WAIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// State of the queue.
#[derive(Default)]
pub(super) struct DirectQueue {
    /// The files that the guest's memory is mapped from; kept only for a guest with such a queue, and for the session's record.
    pub(super) files: Vec<(RegionSpec, File)>,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    Open(Arc<DirectStatus>),
    Failed(String),
}

impl DirectQueue {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub(super) fn close(&mut self) {
        self.state = State::Closed;
    }

    /// Its state as text, for `show`; `None` if the guest has no queue configured.
    pub(super) fn text(&self, config: Option<&config::Direct>) -> Option<String> {
        let config::Direct { uplink, queue } = config?;
        Some(match &self.state {
            State::Closed => "closed: the ring does not run".to_owned(),
            State::Open(status) if status.is_lost() => {
                "given up, frames are copied: the uplink sends nothing".to_owned()
            }
            State::Open(status) => {
                let how = if status.zero_copy() {
                    "zero-copy"
                } else {
                    "copy"
                };
                format!("{uplink} queue {queue}, {how}")
            }
            State::Failed(why) => format!("not possible, frames are copied: {why}"),
        })
    }
}

impl Device {
    /// Duplicates of a memory table's files, if the guest is to have a queue of its own or its session is recorded. A file that cannot be
    /// duplicated is left out, which fails the opening of the queue.
    pub(super) fn copies_of(&self, table: &[(RegionSpec, File)]) -> Vec<(RegionSpec, File)> {
        if self.config.direct.is_none() && !is_supervised() {
            return Vec::new();
        }
        let copy = |(spec, file): &(RegionSpec, File)| Some((*spec, file.try_clone().ok()?));
        table.iter().filter_map(copy).collect()
    }

    /// The source for vring `index` with ring `tx`: with a queue of its own if that is configured and possible.
    pub(super) fn with_direct(
        &mut self,
        index: usize,
        tx: Box<GuestTx>,
        memory: &GuestMemory,
    ) -> Source {
        let Some(config) = self.config.direct.as_ref().filter(|_| index == VRING) else {
            return Source::Guest(tx);
        };
        let opened = match is_taking_over() {
            // The uplink is opened last.
            true => {
                Err("the switch was replaced: it is opened when the ring starts again".to_owned())
            }
            false => self.open_direct(config, memory),
        };
        match opened {
            Ok(direct) => {
                self.direct.state = State::Open(direct.status().clone());
                let text = self.direct.text(self.config.direct.as_ref());
                tracing::info!(port = self.name, "own queue: {}", text.unwrap_or_default());
                Source::Direct(Box::new(DirectGuest::new(tx, Box::new(direct))))
            }
            Err(why) => {
                tracing::warn!(
                    port = self.name,
                    "no queue of its own, frames are copied: {why}"
                );
                self.direct.state = State::Failed(why);
                Source::Guest(tx)
            }
        }
    }

    fn open_direct(&self, config: &config::Direct, memory: &GuestMemory) -> Result<Direct, String> {
        let uplink = self.wait_uplink(&config.uplink)?;
        let found = Interface::find(&uplink.interface)
            .map_err(|why| format!("interface {}: {why}", uplink.interface))?
            .ok_or_else(|| format!("interface {} is gone", uplink.interface))?;
        // A socket can also bind to a queue that only receives, and then sends nothing.
        let queues = found.tx_queues;
        if config.queue >= queues {
            return Err(format!(
                "interface {} has {queues} transmit queue(s), so there is no queue {}: name another, or `ethtool -L`",
                uplink.interface, config.queue
            ));
        }
        let bind = match uplink.zero_copy {
            true => BindMode::Auto,
            false => BindMode::Copy,
        };
        let run = memory.contiguous(DirectTx::OWN_LEN, &self.direct.files);
        let run = run.map_err(|why| why.to_string())?;
        let to = (found.index, config.queue);
        let tx = DirectTx::open(to, bind, run, uplink.frame_len_max)
            .map_err(|why| explained(&why, &uplink.interface, config.queue))?;
        let patience = self.dataplane.cycles(SEND_TIME_MAX);
        Ok(Direct::new(tx, uplink.number, patience))
    }

    /// Waits for the uplink, which may be opened after this port.
    fn wait_uplink(&self, name: &str) -> Result<Uplink, String> {
        let started = Instant::now();
        loop {
            match self.dataplane.uplink(name) {
                Some(Some(uplink)) => return Ok(uplink),
                _ if started.elapsed() < UPLINK_WAIT => std::thread::sleep(LOOK),
                Some(None) => return Err(format!("port {name} is not open")),
                None => return Err(format!("there is no port {name}")),
            }
        }
    }
}

/// The kernel's error with advice.
fn explained(why: &SocketError, interface: &str, queue: u32) -> String {
    let advice = match why.why.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => {
            "another AF_XDP socket has the queue: leave it out of the uplink's `queues`, or end that process"
        }
        // The error itself names the limit, and how to raise it.
        Some(Errno::NOBUFS) => "all of the guest's memory is pinned for it",
        Some(Errno::NOMEM | Errno::PERM) => {
            "all of the guest's memory is pinned for it: raise the limit of locked memory (LimitMEMLOCK), or give CAP_IPC_LOCK"
        }
        _ => "the driver may not support this: remove `direct`",
    };
    format!("queue {queue} of interface {interface}: {why}; {advice}")
}
