//! NIC ports: the XDP program on an interface, and a socket on each of its queues.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crosspoint_engine::stream::Source;
use crosspoint_engine::view::Egress;
use crosspoint_packet::ETHERNET_LEN;
use crosspoint_xsk::attach::AttachError;
use crosspoint_xsk::interface::Interface;
use crosspoint_xsk::{Attachment, BindMode, Pages, SINGLE_BUFFER_MTU, SocketError, SocketOptions};
use thiserror::Error;

use crate::config::{HugePages, Queues, XdpMode, XdpPort};
use crate::fabric::{Fabric, NewStream, PortChange, PortState};

/// Why a NIC port cannot be opened; each names the port and says what to do.
#[derive(Debug, Error)]
pub enum NicPortError {
    /// There is no such interface.
    #[error(
        "port `{port}`: there is no interface `{interface}` in this network namespace: see `ip link`"
    )]
    Missing {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
    },
    /// It is not up.
    #[error("port `{port}`: interface `{interface}` is down: `ip link set {interface} up`")]
    Down {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
    },
    /// The configuration names a queue that is not there.
    #[error(
        "port `{port}`: interface `{interface}` has {count} receive queue(s), so there is no queue {queue}"
    )]
    NoQueue {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
        /// How many there are.
        count: u32,
        /// The one that was asked for.
        queue: u32,
    },
    /// Another process has the queue.
    #[error(
        "port `{port}`: queue {queue} of interface `{interface}` is used by another AF_XDP socket: end the process that holds it"
    )]
    Busy {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// Zero-copy was asked for.
    #[error(
        "port `{port}`: interface `{interface}` cannot do zero-copy: set `mode = \"auto\"` or \"copy\""
    )]
    NoZeroCopy {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
    },
    /// The program.
    #[error("port `{port}`: {why}")]
    Attach {
        /// The port's name.
        port: String,
        /// What happened.
        why: AttachError,
    },
    /// A socket.
    #[error("port `{port}`: queue {queue} of interface `{interface}`: {why}")]
    Socket {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What happened.
        why: SocketError,
    },
    /// Asking the kernel failed.
    #[error("port `{port}`: interface `{interface}`: {why}")]
    Kernel {
        /// The port's name.
        port: String,
        /// The interface.
        interface: String,
        /// What the kernel said.
        why: io::Error,
    },
}

/// How many queues a port will have, for its counters. An interface that is not there has one.
pub fn queue_count(config: &XdpPort) -> usize {
    let of_interface =
        || Interface::find(&config.interface).map_or(1, |found| found.rx_queues as usize);
    match &config.queues {
        Queues::All => of_interface(),
        Queues::List(list) => list.iter().max().map_or(1, |last| *last as usize + 1),
    }
}

/// A NIC port at work. Dropping it detaches the program and closes the sockets.
pub struct NicPort {
    fabric: Arc<Fabric>,
    number: u16,
    queues: Vec<u16>,
    /// Dropped first, so that no frame goes to a socket that closes.
    attachment: Option<Attachment>,
}

impl NicPort {
    /// Opens port `number` of the fabric on an interface.
    pub fn open(
        fabric: Arc<Fabric>,
        number: u16,
        name: &str,
        config: &XdpPort,
    ) -> Result<NicPort, NicPortError> {
        let (port, interface) = (name.to_owned(), config.interface.clone());
        let found = Interface::find(&interface).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => NicPortError::Missing {
                port: port.clone(),
                interface: interface.clone(),
            },
            _ => NicPortError::Kernel {
                port: port.clone(),
                interface: interface.clone(),
                why,
            },
        })?;
        if !found.up {
            return Err(NicPortError::Down { port, interface });
        }
        let queues = queues_of(&port, &found, &config.queues)?;
        let (generic, fallback) = (
            config.mode == XdpMode::Generic,
            config.mode == XdpMode::Auto,
        );
        let multi_buffer = found.mtu > SINGLE_BUFFER_MTU;
        let attachment = Attachment::new(&found, generic, fallback, multi_buffer);
        let mut attachment = attachment.map_err(|why| NicPortError::Attach {
            port: port.clone(),
            why,
        })?;
        let bind = match config.mode {
            XdpMode::Auto => BindMode::Auto,
            XdpMode::ZeroCopy => BindMode::ZeroCopy,
            XdpMode::Copy | XdpMode::Generic => BindMode::Copy,
        };
        let options = SocketOptions {
            bind,
            multi_buffer,
            busy_poll: config.busy_poll,
            pages: match config.huge_pages {
                HugePages::Transparent => Pages::Transparent,
                HugePages::Reserved => Pages::Reserved,
                HugePages::Never => Pages::Small,
            },
            frame_len_max: found.mtu + ETHERNET_LEN as u32,
        };
        let (mut add, mut nic, mut zero_copy) = (Vec::new(), Vec::new(), true);
        for queue in &queues {
            let socket_error = |why| socket_error(&port, &interface, *queue, bind, why);
            let opened = fabric.open_socket((number, *queue), found.index, &options);
            let (rx, tx) = opened.map_err(socket_error)?;
            zero_copy &= rx.socket().zero_copy();
            attachment
                .redirect(*queue, &**rx.socket())
                .map_err(|why| NicPortError::Kernel {
                    port: port.clone(),
                    interface: interface.clone(),
                    why,
                })?;
            let queue = *queue as u16;
            add.push(NewStream {
                queue,
                source: Source::Nic(rx),
                kick: None,
            });
            nic.push((queue, tx));
        }
        let copy = if zero_copy { "zero-copy" } else { "copy" };
        let mode = attachment.mode.as_str();
        let detail = format!("{interface}, {mode} XDP, {copy}, {} queue(s)", queues.len());
        tracing::info!(port = name, "{detail}");
        if attachment.mode == crosspoint_xsk::XdpMode::Generic {
            tracing::warn!(
                port = name,
                "generic XDP: a veth peer or local sender keeps its segmentation offload, and \
                 segments above {} bytes are dropped: `ethtool -K PEER tso off gso off`",
                crosspoint_xsk::FRAME_SIZE
            );
        }
        let properties: BTreeMap<String, String> = [
            ("interface", interface),
            ("xdp", mode.to_owned()),
            ("copy", copy.to_owned()),
            ("mtu", found.mtu.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let _ = fabric.change(
            number,
            PortChange {
                egress: Some(Egress::Nic),
                add,
                nic: Some(nic),
                state: Some((PortState::Up, detail)),
                properties: Some(properties),
                ..PortChange::default()
            },
        );
        let queues = queues.into_iter().map(|queue| queue as u16).collect();
        Ok(NicPort {
            fabric,
            number,
            queues,
            attachment: Some(attachment),
        })
    }
}

impl Drop for NicPort {
    fn drop(&mut self) {
        drop(self.attachment.take());
        let _ = self.fabric.change(
            self.number,
            PortChange {
                egress: Some(Egress::Down),
                remove: std::mem::take(&mut self.queues),
                nic: Some(Vec::new()),
                state: Some((PortState::Down, "closed".to_owned())),
                ..PortChange::default()
            },
        );
        self.fabric.forget_addresses(self.number);
    }
}

fn queues_of(port: &str, found: &Interface, wanted: &Queues) -> Result<Vec<u32>, NicPortError> {
    // A socket sends and receives, so a queue number must have both kinds of queue.
    let count = found.rx_queues;
    match wanted {
        Queues::All => Ok((0..count).collect()),
        Queues::List(list) => match list.iter().find(|queue| **queue >= count) {
            None => Ok(list.clone()),
            Some(queue) => Err(NicPortError::NoQueue {
                port: port.to_owned(),
                interface: found.name.clone(),
                count,
                queue: *queue,
            }),
        },
    }
}

fn socket_error(
    port: &str,
    interface: &str,
    queue: u32,
    mode: BindMode,
    why: SocketError,
) -> NicPortError {
    let (port, interface) = (port.to_owned(), interface.to_owned());
    match why
        .why
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::BUSY) => NicPortError::Busy {
            port,
            interface,
            queue,
        },
        Some(rustix::io::Errno::OPNOTSUPP) if mode == BindMode::ZeroCopy => {
            NicPortError::NoZeroCopy { port, interface }
        }
        Some(rustix::io::Errno::NETDOWN) => NicPortError::Down { port, interface },
        _ => NicPortError::Socket {
            port,
            interface,
            queue,
            why,
        },
    }
}
