//! NIC ports: the XDP program on an interface, and a socket on each of its queues. A port follows its interface: it
//! waits for a missing interface, goes down when the interface goes away or loses its carrier, and comes up again when
//! it is back.
//!
//! [`Uplinks`] is the thread that does so, `uplink` the state of one port, `port` an open port.

mod error;
mod port;
pub(crate) mod taken;
mod uplink;
mod uplinks;

use std::thread::available_parallelism;

use crosspoint_config::{Queues, XdpPort};
use crosspoint_netdev::{HostUse, Links};
pub use error::NicPortError;
pub use uplinks::{UplinkOptions, Uplinks};

/// Maximum number of queues of a port.
const QUEUES_MAX: u32 = 256;

/// Why a port may not take its interface as it is now: the host would lose its network. `None` if it may, or if that cannot
/// be found out.
pub fn refusal(config: &XdpPort) -> Option<NicPortError> {
    if config.take_over {
        return None;
    }
    let found = Links::open().ok()?.find(&config.interface).ok()??;
    let host_use = HostUse::of(found.index).ok()?;
    let what = host_use.text().filter(|_| host_use.is_vital())?;
    Some(NicPortError::HostsOwn {
        interface: config.interface.clone(),
        what,
    })
}

/// What the host loses with the interface as it is now; `None` if it loses nothing, if the configuration says that this is
/// intended or the port is refused ([`refusal`]), or if it cannot be found out.
pub fn loss(config: &XdpPort) -> Option<String> {
    if config.take_over {
        return None;
    }
    let found = Links::open().ok()?.find(&config.interface).ok()??;
    let host_use = HostUse::of(found.index).ok()?;
    let used = host_use.text().filter(|_| !host_use.is_vital())?;
    Some(loss_text(&config.interface, &used))
}

fn loss_text(interface: &str, used: &str) -> String {
    format!(
        "the host itself uses interface `{interface}`: {used}. Its frames go to the switch now, so the host receives nothing more through it, except by queues that the port's `queues` leave out"
    )
}

/// The number of queues for which a port has counters. For a missing interface it is the number of cores, since most
/// drivers create that many. Further queues are counted with the last one.
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
