//! An open NIC port.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crosspoint_config::{HugePages, Queues, Tso, XdpMode, XdpPort};
use crosspoint_engine::snapshot::Egress;
use crosspoint_netdev::attach::AttachError;
use crosspoint_netdev::{self as netdev, Attachment};
use crosspoint_netdev::{Ethtool, Interface, Reach};
use crosspoint_packet::ETHERNET_LEN;
use crosspoint_xsk::{
    BindMode, Pages, SINGLE_BUFFER_MTU, SocketError, SocketOptions, XskRx, XskSocket, XskTx,
};

use serde::{Deserialize, Serialize};

use super::{NicPortError, taken};
use crate::dataplane::{Dataplane, PortChange, numa};
use crate::handover;

/// An open NIC port. Dropping it detaches the program and closes the sockets. `Uplink` sets the state that is shown, up
/// or down.
pub(super) struct NicPort {
    dataplane: Arc<Dataplane>,
    name: String,
    number: u16,
    queues: Vec<u32>,
    sockets: Vec<Arc<XskSocket>>,
    multi_buffer: bool,
    /// Text about its state while it is up.
    pub detail: String,
    /// Shortcomings to warn about.
    pub warnings: Vec<String>,
    properties: BTreeMap<String, String>,
    /// The interface at the last call of [`follow`](Self::follow).
    interface: Interface,
    /// Dropped first, so that no frame goes to a closed socket.
    attachment: Option<Attachment>,
}

impl NicPort {
    /// Opens port `number` of the dataplane on an interface that is up, with the `queues` from [`queues_of`]. No frame is
    /// sent before [`follow`](Self::follow).
    pub fn open(
        dataplane: &Arc<Dataplane>,
        number: u16,
        config: &XdpPort,
        interface: &Interface,
        queues: Vec<u32>,
    ) -> Result<NicPort, NicPortError> {
        let port_name = dataplane.port_name(number);
        let (mut attachment, multi_buffer, zero_copy) = match resume(&port_name, config, interface)
        {
            Some((attachment, record)) => (attachment, record.multi_buffer, Some(record.zero_copy)),
            None => {
                let (attachment, multi_buffer) = attach(config, interface)?;
                (attachment, multi_buffer, None)
            }
        };
        // In generic mode the kernel's large packets arrive unsegmented.
        let takes_large = attachment.mode == netdev::XdpMode::Generic;
        let options = socket_options(config, interface, multi_buffer, zero_copy);
        // Before the first socket, since the node decides which worker's memory it gets.
        dataplane.set_node(number, numa::of_interface(&interface.name));
        let at = (&**dataplane, number);
        let running = running(at, interface.index, &queues, &options);
        let is_running = running.is_some();
        let (mut halves, sockets) = match running {
            Some(sockets) => (Vec::new(), sockets),
            None => open_all(at, interface, &queues, &options)?,
        };
        for (queue, socket) in queues.iter().zip(&sockets) {
            let redirected = attachment.redirect(*queue, &**socket);
            redirected.map_err(|why| NicPortError::Kernel {
                interface: interface.name.clone(),
                why,
            })?;
        }
        if takes_large {
            halves.iter_mut().for_each(|(_, rx, _)| rx.expect_large());
        }
        let is_copied = !sockets.iter().all(|socket| socket.zero_copy());
        let whole = config.tso == Tso::Auto && is_copied && sends_large(interface);
        let opened = match whole && !is_running {
            true => send_large(&mut halves, interface),
            false => Ok(()),
        };
        let is_sent = match is_running {
            true => dataplane.running_nic_sends_large(number),
            false => whole && opened.is_ok(),
        };
        let texts = Texts::new(interface, &attachment, queues.len(), (is_copied, is_sent));
        let mut port = NicPort {
            dataplane: dataplane.clone(),
            name: port_name,
            number,
            queues,
            sockets,
            multi_buffer,
            detail: texts.detail,
            warnings: warnings(interface, opened.err(), takes_large && !multi_buffer),
            properties: texts.properties,
            interface: interface.clone(),
            attachment: Some(attachment),
        };
        port.record(!is_copied);
        let is_taken = takes_large;
        port.record_sockets(config, taken::Large { is_taken, is_sent });
        match is_running {
            true => {
                dataplane.own_nic(number);
                port.show_properties();
            }
            false => port.begin(halves),
        }
        Ok(port)
    }

    /// Records the sockets, for a successor of this process.
    fn record_sockets(&self, config: &XdpPort, large: taken::Large) {
        let port = (&*self.dataplane, self.number);
        for (queue, socket) in self.queues.iter().zip(&self.sockets) {
            let of_queue = (*queue as u16, socket);
            taken::record(port, (self.interface.index, config), of_queue, large);
        }
    }

    /// Records the attached program, for a successor of this process: XDP is then not detached and attached again.
    fn record(&self, zero_copy: bool) {
        if let Some(attachment) = &self.attachment {
            let record = Record {
                index: self.interface.index,
                native: attachment.mode == netdev::XdpMode::Native,
                multi_buffer: self.multi_buffer,
                zero_copy,
            };
            handover::put(&record_name(&self.name), &record, &attachment.record());
        }
    }

    /// Gives the sockets' halves to workers.
    fn begin(&mut self, halves: Vec<(u16, XskRx, XskTx)>) {
        let senders = self.interface.tx_queues;
        let halves = halves.into_iter().map(|(queue, rx, tx)| {
            // A receive-only queue has a socket too, which sends nothing.
            (queue, rx, (u32::from(queue) < senders).then_some(tx))
        });
        let change = PortChange {
            properties: Some(self.properties.clone()),
            ..PortChange::of_nic(halves)
        };
        let _ = self.dataplane.change(self.number, change);
    }

    fn show_properties(&self) {
        let change = PortChange {
            properties: Some(self.properties.clone()),
            ..PortChange::default()
        };
        let _ = self.dataplane.change(self.number, change);
    }

    /// Whether the port must be reopened to match its interface: its frames now take more than one buffer, or the port
    /// takes all queues and these have changed.
    pub fn must_reopen(&self, config: &XdpPort, now: &Interface) -> bool {
        let has_other_queues =
            config.queues == Queues::All && now.rx_queues != self.interface.rx_queues;
        let sends_elsewhere = now.tx_queues != self.interface.tx_queues;
        has_other_queues || sends_elsewhere || (now.mtu > SINGLE_BUFFER_MTU && !self.multi_buffer)
    }

    /// Whether the program runs in the kernel's generic mode.
    pub fn is_generic(&self) -> bool {
        let attachment = self.attachment.as_ref();
        attachment.is_some_and(|attachment| attachment.mode == netdev::XdpMode::Generic)
    }

    /// The interface at the last call of [`follow`](Self::follow).
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Adapts the port to a changed MTU of the interface.
    pub fn follow(&mut self, now: &Interface) {
        if now.mtu != self.interface.mtu {
            for socket in &self.sockets {
                socket.set_frame_len_max(frame_len_max(now));
            }
            let mtu = ("mtu".to_owned(), now.mtu.to_string());
            self.properties.extend([mtu]);
            self.show_properties();
        }
        self.interface = now.clone();
    }
}

impl Drop for NicPort {
    fn drop(&mut self) {
        drop(self.attachment.take());
        handover::forget(&record_name(&self.name));
        let queues = std::mem::take(&mut self.queues);
        for queue in &queues {
            taken::forget(&self.name, *queue as u16);
        }
        let _ = self.dataplane.change(
            self.number,
            PortChange {
                egress: Some(Egress::Down),
                remove: queues.into_iter().map(|queue| queue as u16).collect(),
                nic: Some(Vec::new()),
                ..PortChange::default()
            },
        );
        taken::close(&self.dataplane, self.number);
        self.dataplane.forget_addresses(self.number);
    }
}

/// A queue's number, and the two halves of its socket.
type Halves = (u16, XskRx, XskTx);

/// Opens a socket on each queue.
fn open_all(
    (dataplane, number): (&Dataplane, u16),
    interface: &Interface,
    queues: &[u32],
    options: &SocketOptions,
) -> Result<(Vec<Halves>, Vec<Arc<XskSocket>>), NicPortError> {
    let (mut halves, mut sockets) = (Vec::new(), Vec::new());
    for queue in queues {
        let opened = dataplane.open_socket((number, *queue), interface.index, options);
        let (rx, tx) = opened
            .map_err(|why| NicPortError::of_socket(&interface.name, *queue, options.bind, why))?;
        sockets.push(rx.socket().clone());
        halves.push((*queue as u16, rx, tx));
    }
    Ok((halves, sockets))
}

/// What is shown of an open port.
struct Texts {
    detail: String,
    properties: BTreeMap<String, String>,
}

impl Texts {
    /// Of a port with `queues` queues. `is_copied`: the kernel copies its frames; `is_sent`: large frames are sent whole.
    fn new(
        interface: &Interface,
        attachment: &Attachment,
        queues: usize,
        (is_copied, is_sent): (bool, bool),
    ) -> Texts {
        let (name, mode) = (&interface.name, attachment.mode.as_str());
        let copy = if is_copied { "copy" } else { "zero-copy" };
        let beside = own_address_alone(interface).into_iter();
        let beside = beside.chain(takes_tags(interface));
        let beside: String = beside.map(|what| format!("; {what}")).collect();
        let properties = [
            ("interface", name.as_str()),
            ("xdp", mode),
            ("copy", copy),
            ("tso", if is_sent { "whole" } else { "cut" }),
            ("af_xdp", crosspoint_xsk::BACKEND),
            ("mtu", &interface.mtu.to_string()),
        ];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Texts {
            detail: format!("{name}, {mode} XDP, {copy}, {queues} queue(s){beside}"),
            properties: properties.into(),
        }
    }
}

/// Shortcomings of a port to warn about: `large` is why large frames are not sent whole, `drops_long` whether long frames are
/// dropped.
fn warnings(interface: &Interface, large: Option<SocketError>, drops_long: bool) -> Vec<String> {
    let name = &interface.name;
    let large = large.map(|why| format!("large frames to `{name}` are cut: {why}"));
    let dropped = drops_long.then(|| format!(
        "generic XDP on `{name}`: this kernel gives frames of at most {} bytes (Linux 6.6 gives longer ones); a TCP packet that its sender leaves longer is dropped: `ethtool -K SENDER tso off gso off`",
        crosspoint_xsk::FRAME_SIZE
    ));
    let own = own_address_alone(interface);
    let all = [large, own, takes_tags(interface), dropped];
    all.into_iter().flatten().collect()
}

/// The predecessor's sockets of these queues, which run; `None` if there are none. If they are others than the port needs, they
/// are closed.
fn running(
    (dataplane, number): (&Dataplane, u16),
    ifindex: u32,
    queues: &[u32],
    options: &SocketOptions,
) -> Option<Vec<Arc<XskSocket>>> {
    let running = dataplane.running_nic(number, ifindex);
    let fits = running.len() == queues.len();
    let sockets = queues.iter().map(|queue| running.get(&(*queue as u16)));
    let sockets = sockets.map(|socket| {
        let socket = socket?;
        (socket.multi_buffer() == options.multi_buffer).then(|| socket.clone())
    });
    let sockets = sockets.collect::<Option<Vec<_>>>().filter(|_| fits);
    match &sockets {
        Some(sockets) => {
            let limit = options.frame_len_max;
            sockets.iter().for_each(|one| one.set_frame_len_max(limit));
        }
        None => {
            if !running.is_empty() {
                tracing::info!(
                    port = dataplane.port_name(number),
                    "its sockets are opened anew, and frames are lost for a moment: the number of queues has changed, or frames need several buffers now"
                );
            }
            taken::close(dataplane, number);
        }
    }
    sockets
}

/// Body of the record of an attached program. Its descriptors are those of [`Attachment::record`].
#[derive(Serialize, Deserialize)]
struct Record {
    /// The interface's number.
    index: u32,
    native: bool,
    multi_buffer: bool,
    zero_copy: bool,
}

/// Name of the record of an attached program.
pub(super) fn record_name(port: &str) -> String {
    format!("xdp/{port}")
}

/// The program that the predecessor has attached, if it is the one that the port is to have.
fn resume(port: &str, config: &XdpPort, interface: &Interface) -> Option<(Attachment, Record)> {
    let taken = handover::take(&record_name(port))?;
    let record: Record = serde_json::from_slice(&taken.body).ok()?;
    let mode = match record.native {
        true => netdev::XdpMode::Native,
        false => netdev::XdpMode::Generic,
    };
    let fits = match config.mode {
        XdpMode::Generic => !record.native,
        XdpMode::Auto => true,
        XdpMode::ZeroCopy | XdpMode::Copy => record.native,
    };
    let needs_several = interface.mtu > SINGLE_BUFFER_MTU && !record.multi_buffer;
    let fds = <[OwnedFd; 3]>::try_from(taken.fds).ok()?;
    let resumed = Attachment::resume(record.index, mode, fds);
    // It is recorded again if it is used.
    handover::forget(&record_name(port));
    // Otherwise it is detached here.
    let resumed = resumed
        .ok()
        .filter(|_| fits && !needs_several && record.index == interface.index);
    Some((resumed?, record))
}

/// Attaches the program as configured. Returns whether it is the one for frames of several buffers.
fn attach(config: &XdpPort, interface: &Interface) -> Result<(Attachment, bool), NicPortError> {
    let (generic, fallback) = (
        config.mode == XdpMode::Generic,
        config.mode == XdpMode::Auto,
    );
    let mut multi_buffer = interface.mtu > SINGLE_BUFFER_MTU;
    let attach = |multi_buffer| Attachment::new(interface, generic, fallback, multi_buffer);
    let mut attachment = match attach(multi_buffer) {
        // The other end of a veth has a large MTU, while this end does not.
        Err(AttachError::Mtu { .. }) if !multi_buffer => {
            multi_buffer = true;
            attach(true)?
        }
        other => other?,
    };
    // In generic mode the kernel's large packets arrive unsegmented.
    let takes_large = attachment.mode == netdev::XdpMode::Generic;
    if takes_large && !multi_buffer && several_buffers_work() {
        drop(attachment);
        (multi_buffer, attachment) = match attach(true) {
            Ok(attachment) => (true, attachment),
            Err(_) => (false, attach(false)?),
        };
    }
    Ok((attachment, multi_buffer))
}

/// The queues that a port takes: the configured ones, or all of the interface's that no guest has.
pub(super) fn queues_of(
    found: &Interface,
    wanted: &Queues,
    direct: &[u32],
) -> Result<Vec<u32>, NicPortError> {
    // A socket sends and receives, so a queue number must exist in both directions.
    let count = found.rx_queues;
    let interface = found.name.clone();
    let queues: Vec<u32> = match wanted {
        Queues::All => (0..count).filter(|queue| !direct.contains(queue)).collect(),
        Queues::List(list) => match list.iter().find(|queue| **queue >= count) {
            None => list.clone(),
            Some(queue) => {
                return Err(NicPortError::NoQueue {
                    interface,
                    count,
                    queue: *queue,
                });
            }
        },
    };
    match queues.is_empty() {
        true => Err(NicPortError::AllDirect { interface, count }),
        false => Ok(queues),
    }
}

/// `zero_copy`: whether the NIC reads and writes the memory itself, if that is known and need not be tried.
fn socket_options(
    config: &XdpPort,
    interface: &Interface,
    multi_buffer: bool,
    zero_copy: Option<bool>,
) -> SocketOptions {
    SocketOptions {
        bind: match (config.mode, zero_copy) {
            (XdpMode::Auto, None) => BindMode::Auto,
            (XdpMode::Auto, Some(true)) | (XdpMode::ZeroCopy, _) => BindMode::ZeroCopy,
            (XdpMode::Auto, Some(false)) | (XdpMode::Copy | XdpMode::Generic, _) => BindMode::Copy,
        },
        multi_buffer,
        busy_poll: config.busy_poll,
        pages: match config.huge_pages {
            HugePages::Transparent => Pages::Transparent,
            HugePages::Reserved => Pages::Reserved,
            HugePages::Never => Pages::Small,
        },
        frame_len_max: frame_len_max(interface),
    }
}

/// Whether sockets may receive frames that take several buffers (Linux 6.6).
fn several_buffers_work() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|word| word.trim().parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 6),
        _ => false,
    }
}

/// Whether large TCP frames may leave through an interface unsegmented: it must accept them, and have a single transmit
/// queue, so that they stay in order with other frames.
fn sends_large(interface: &Interface) -> bool {
    let Ok(mut ethtool) = Ethtool::open() else {
        return false;
    };
    let mut has = |name| {
        let feature = ethtool.feature(interface.index, name);
        feature.is_ok_and(|feature| feature.active)
    };
    interface.software
        && interface.tx_queues == 1
        && has("tx-tcp-segmentation")
        && has("tx-tcp6-segmentation")
}

/// Makes all transmitting sockets accept large frames. After an error none may be used for that.
fn send_large(
    halves: &mut [(u16, XskRx, XskTx)],
    interface: &Interface,
) -> Result<(), SocketError> {
    let mut senders = halves
        .iter_mut()
        .filter(|(queue, ..)| u32::from(*queue) < interface.tx_queues);
    senders.try_for_each(|(_, _, tx)| tx.send_large(interface.index))
}

/// A warning for an interface that gets only frames for its own address.
fn own_address_alone(interface: &Interface) -> Option<String> {
    let Reach::OwnAddress(what) = interface.reach else {
        return None;
    };
    let name = &interface.name;
    Some(format!(
        "`{name}` is {what}: the kernel gives it only frames for its own address, so no guest with another address gets an answer: name the interface below it, or make it with mode passthru"
    ))
}

/// A warning for an interface that gets frames without their tags.
fn takes_tags(interface: &Interface) -> Option<String> {
    let (what, name) = (interface.takes_tags?, &interface.name);
    Some(format!(
        "`{name}` is {what}: the kernel takes the outer VLAN tag out of each frame before it gets there, so tagged frames count as untagged, and VLANs are not kept apart: where frames have tags, make the interfaces below it ports"
    ))
}

/// The longest frame that the interface sends, bytes, without up to two tags.
fn frame_len_max(interface: &Interface) -> u32 {
    interface.mtu + ETHERNET_LEN as u32
}
