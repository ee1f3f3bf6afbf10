//! NIC ports: the XDP program on an interface, and a socket on each of its queues. They follow their interfaces: one
//! that is not there is waited for, one that goes away or loses its carrier takes its port down, one that comes back
//! brings it up again.
//!
//! [`Uplinks`] is the thread that does so, `uplink` what it knows of one port, `port` a port that is open.

mod error;
mod port;
mod uplink;
mod uplinks;

pub use error::NicPortError;
pub use uplinks::{UplinkOptions, Uplinks};

use std::thread::available_parallelism;

use crosspoint_link::Links;

use crate::config::{Queues, XdpPort};

/// The most queues of a port.
const QUEUES_MAX: u32 = 256;

/// How many queues a port will have, for its counters. Of an interface that is not there, as many as the machine has
/// cores: most drivers make so many. What has no counters of its own is counted with the last queue.
pub fn queue_count(config: &XdpPort) -> usize {
    let of_interface = || {
        let found = Links::open().and_then(|mut links| links.find(&config.interface));
        match found {
            Ok(Some(found)) => found.rx_queues,
            _ => available_parallelism().map_or(1, |cores| cores.get() as u32),
        }
    };
    let count = match (&config.queues, config.channels) {
        (Queues::List(list), _) => list.iter().max().map_or(1, |last| *last + 1),
        (Queues::All, Some(channels)) => channels,
        (Queues::All, None) => of_interface(),
    };
    count.clamp(1, QUEUES_MAX) as usize
}
