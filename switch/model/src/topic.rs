//! The output of `crosspoint show`: JSON for programs, and tables for people.
//!
//! Both are made from the rows in [`rows`](crate::rows), whose fields are the keys of the JSON:
//!
//! | topic | JSON |
//! |---|---|
//! | `switch` | one [`SwitchRow`](crate::rows::SwitchRow) |
//! | `ports` | array of [`PortRow`](crate::rows::PortRow), in the order of the configuration |
//! | `queues` | array of [`QueueRow`](crate::rows::QueueRow), by port and number |
//! | `workers` | array of [`WorkerRow`](crate::rows::WorkerRow), by number |
//! | `fdb` | one [`Fdb`](crate::rows::Fdb): addresses by VLAN and address, and a list of those that moved recently |
//! | `drops` | array of [`DropRow`](crate::rows::DropRow) that are not zero, by port, queue and reason |
//! | `latency` | array of [`LatencyRow`](crate::rows::LatencyRow), by port and queue; queues of NICs have no such times |
//! | `guests` | array of [`GuestRow`](crate::rows::GuestRow), in the order of the configuration |
//! | `xdp` | array of [`XdpRow`](crate::rows::XdpRow), by port and queue, of queues with a socket |
//! | `mirrors` | array of [`MirrorStatus`](crate::status::MirrorStatus), in the order of the configuration |
//! | `bridges` | array of [`BridgeStatus`](crate::status::BridgeStatus), the default bridge first |
//! | `bindings` | array of [`BindingRow`](crate::rows::BindingRow), by port |
//! | `multicast` | one [`MulticastTable`](crate::rows::MulticastTable) |
//! | `groups` | array of [`GroupRow`](crate::rows::GroupRow), in the order of the configuration |
//! | `rules` | array of [`RuleRow`](crate::rows::RuleRow), by group |
//! | `sets` | array of [`SetRow`](crate::rows::SetRow), in the order of the configuration |
//! | `connections` | one [`ConnectionTable`](crate::rows::ConnectionTable) |
//! | `sflow` | one [`SflowStatus`](crate::status::SflowStatus) |
//! | `ipfix` | one [`IpfixStatus`](crate::status::IpfixStatus) |
//! | `port NAME` | one [`PortDetail`](crate::rows::PortDetail) |
//!
//! `deploy/show-schema.json` has the same as a JSON schema: [`schema`](crate::schema).
//!
//! Counts are since the daemon started; shares of workers' time are of the last seconds. JSON is exact; tables show large
//! counts with three digits (`1.23M`). Keys may be added; none is renamed or removed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A topic of `show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// The switch as a whole.
    Switch,
    /// Ports: their state and totals.
    Ports,
    /// Every queue's counts and completion times.
    Queues,
    /// Workers: how busy they are, and with what.
    Workers,
    /// The learned addresses.
    Fdb,
    /// Drops by place and reason.
    Drops,
    /// How long guests' descriptors take to completion.
    Latency,
    /// Guests: their devices and front ends.
    Guests,
    /// The kernel's counters of the sockets of NIC queues.
    Xdp,
    /// Mirrors.
    Mirrors,
    /// Bridges.
    Bridges,
    /// Addresses that are bound to ports.
    Bindings,
    /// Multicast groups and queriers.
    Multicast,
    /// Security groups.
    Groups,
    /// Their rules.
    Rules,
    /// Sets of addresses.
    Sets,
    /// Connections of ports with security groups.
    Connections,
    /// The export to an sFlow collector.
    Sflow,
    /// The export to a collector of IPFIX.
    Ipfix,
}

impl Topic {
    /// All topics.
    pub const ALL: [Topic; 19] = [
        Topic::Switch,
        Topic::Ports,
        Topic::Queues,
        Topic::Workers,
        Topic::Fdb,
        Topic::Drops,
        Topic::Latency,
        Topic::Guests,
        Topic::Xdp,
        Topic::Mirrors,
        Topic::Bridges,
        Topic::Bindings,
        Topic::Multicast,
        Topic::Groups,
        Topic::Rules,
        Topic::Sets,
        Topic::Connections,
        Topic::Sflow,
        Topic::Ipfix,
    ];

    /// Its name in commands and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Topic::Ports => "ports",
            Topic::Queues => "queues",
            Topic::Workers => "workers",
            Topic::Fdb => "fdb",
            Topic::Drops => "drops",
            Topic::Switch => "switch",
            Topic::Latency => "latency",
            Topic::Guests => "guests",
            Topic::Xdp => "xdp",
            Topic::Mirrors => "mirrors",
            Topic::Bridges => "bridges",
            Topic::Bindings => "bindings",
            Topic::Multicast => "multicast",
            Topic::Groups => "groups",
            Topic::Rules => "rules",
            Topic::Sets => "sets",
            Topic::Connections => "connections",
            Topic::Sflow => "sflow",
            Topic::Ipfix => "ipfix",
        }
    }

    /// What it shows, in a few words for `--help`.
    pub const fn help(self) -> &'static str {
        match self {
            Topic::Ports => "the state and the totals of every port",
            Topic::Queues => "every queue's counts and completion times",
            Topic::Workers => "how busy every worker is, and with what",
            Topic::Fdb => "the known addresses, and their ports",
            Topic::Drops => "where frames were dropped, and why",
            Topic::Switch => "version, configuration and totals",
            Topic::Latency => "how long guests' descriptors take to completion, by queue",
            Topic::Guests => "guests' devices and front ends",
            Topic::Xdp => "what the kernel counts at the sockets of NIC queues",
            Topic::Mirrors => "what mirrors copy, and what they missed",
            Topic::Bridges => "bridges, their ports, and how full their forwarding databases are",
            Topic::Bindings => {
                "the addresses allowed at ports, and which of them are bound to one port"
            }
            Topic::Multicast => "multicast groups, their ports, and the queriers",
            Topic::Groups => "security groups, and the ports that have them",
            Topic::Rules => {
                "the rules of security groups, and how often each has allowed something"
            }
            Topic::Sets => "sets of addresses",
            Topic::Connections => "the connections of guests with security groups",
            Topic::Sflow => "what is sent to the sFlow collector",
            Topic::Ipfix => "what is sent to the collector of IPFIX",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such topic.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a topic; there are {topics}", topics = Topic::ALL.map(Topic::name).join(", "))]
pub struct UnknownTopic(String);

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(name: &str) -> Result<Topic, UnknownTopic> {
        let topic = Topic::ALL.into_iter().find(|topic| topic.name() == name);
        topic.ok_or_else(|| UnknownTopic(name.to_owned()))
    }
}
