//! The host, and the configuration that is meant for it.

use crosspoint_config::{Config, Cores, Port, PortKind, Queues, VhostPort, XdpPort};
use crosspoint_xsk::{FRAME_SIZE, RING_SIZE};

use super::{Host, Nic};
use crosspoint_config::Cpus;

/// Bytes of packet memory for one NIC queue.
pub(super) const QUEUE_BYTES: u64 = 2 * RING_SIZE as u64 * FRAME_SIZE as u64;

/// A host, and the configuration that is meant for it.
pub(super) struct Subject<'a> {
    pub host: &'a Host,
    pub config: Option<&'a Config>,
    /// The cores that are online.
    pub online: Cpus,
    /// The cores that the kernel keeps other tasks off.
    pub isolated: Cpus,
    /// The workers' cores that are online; without a configuration, the isolated cores.
    pub cores: Cpus,
    /// The cores of the configuration that are not online.
    pub absent: Cpus,
}

impl<'a> Subject<'a> {
    pub fn new(host: &'a Host, config: Option<&'a Config>) -> Subject<'a> {
        let list = |path: &str| Cpus::from_list(&host.read(path).unwrap_or_default());
        let booted = list("/sys/devices/system/cpu/isolated");
        // Isolated partitions of cgroups, which need no boot parameter.
        let isolated = booted.or(&list("/sys/fs/cgroup/cpuset.cpus.isolated"));
        let cores: Cpus = match config.map(|config| &config.workers.cores) {
            None => isolated.clone(),
            Some(Cores::List(cores)) => cores.iter().copied().collect(),
            // Cores that the process may not use matter only to `List`.
            Some(Cores::Auto) => config
                .and_then(|config| config.resolve_cores(&host.affinity).ok())
                .into_iter()
                .flatten()
                .collect(),
        };
        let online = list("/sys/devices/system/cpu/online");
        Subject {
            host,
            config,
            cores: cores.and(&online),
            absent: cores.without(&online),
            online,
            isolated,
        }
    }

    /// The cores that are left to other tasks.
    pub fn others(&self) -> Cpus {
        self.online.without(&self.cores)
    }

    /// The guest ports of the configuration, each with its name.
    pub fn guests(&self) -> impl Iterator<Item = (&'a str, &'a VhostPort)> {
        let ports = self.config.map_or(&[][..], |config| &config.ports);
        ports.iter().filter_map(|port| match &port.kind {
            PortKind::Vhost(guest) => Some((port.name.as_str(), guest)),
            PortKind::Xdp(_) => None,
        })
    }

    /// The NIC ports of the configuration.
    pub fn uplinks(&self) -> impl Iterator<Item = &'a XdpPort> {
        let ports = self.config.map_or(&[][..], |config| &config.ports);
        ports.iter().filter_map(|port| match &port.kind {
            PortKind::Vhost(_) => None,
            PortKind::Xdp(uplink) => Some(uplink),
        })
    }

    /// The configuration of `nic`, and whether it is a port; if it is not, the default configuration.
    pub fn port_of(&self, nic: &Nic) -> (XdpPort, bool) {
        let configured = self.uplinks().find(|port| port.interface == nic.name);
        let plain = || XdpPort {
            interface: nic.name.clone(),
            gro: false,
            ..XdpPort::default()
        };
        let port = configured.cloned().unwrap_or_else(plain);
        (port, configured.is_some())
    }

    /// The number of an interface's queues that belong to guests.
    pub fn direct_queues(&self, interface: &str) -> u64 {
        let is_it = |port: &&Port| matches!(&port.kind, PortKind::Xdp(uplink) if uplink.interface == interface);
        let ports = self.config.map_or(&[][..], |config| &config.ports);
        let port = self.config.zip(ports.iter().find(is_it));
        port.map_or(0, |(config, port)| {
            config.direct_queues(&port.name).len() as u64
        })
    }

    /// The number of queues that a port takes, as far as it is known.
    pub fn queues_of(&self, port: &XdpPort) -> u64 {
        let nic = self.host.nics.iter().find(|nic| nic.name == port.interface);
        let of_interface = nic
            .and_then(|nic| nic.interface.as_ref())
            .map_or(1, |found| found.rx_queues);
        match &port.queues {
            Queues::List(list) => list.len() as u64,
            Queues::All => u64::from(port.channels.unwrap_or(of_interface)),
        }
    }

    /// The kernel's version: the first two numbers.
    pub fn kernel(&self) -> (u32, u32) {
        let release = self.host.read("/proc/sys/kernel/osrelease");
        let release = release.unwrap_or_default();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|word| word.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// A count in the singular or the plural: `1 queue`, `2 queues`.
pub(super) fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}
