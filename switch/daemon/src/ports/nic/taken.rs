//! Records of a port's sockets, with which a successor of this process goes on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crosspoint_config::{Config, PortKind, XdpPort};
use crosspoint_xsk::{SocketRecord, XskSocket};
use serde::{Deserialize, Serialize};

use super::QUEUES_MAX;
use crate::dataplane::{Dataplane, TakenSocket};
use crate::handover;

/// Body of the record of a queue's socket. Its descriptors are the socket and its packet memory.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The interface's number.
    index: u32,
    worker: usize,
    frame_len_max: u32,
    takes_large: bool,
    sends_large: bool,
    socket: SocketRecord,
    /// What the configuration says of sockets: with another one they are opened anew.
    configured: String,
}

/// How a port sends and receives large frames.
#[derive(Clone, Copy)]
pub(super) struct Large {
    pub(super) is_taken: bool,
    pub(super) is_sent: bool,
}

fn record_name(port: &str, queue: u16) -> String {
    format!("xsk/{port}/{queue}")
}

/// The part of a port's configuration that decides how its sockets are opened, as text.
fn configured(config: &XdpPort, worker: Option<usize>) -> String {
    let XdpPort {
        interface,
        queues,
        mode,
        busy_poll,
        huge_pages,
        channels,
        tso,
        ..
    } = config;
    format!(
        "{interface} {queues:?} {mode:?} {busy_poll} {huge_pages:?} {channels:?} {tso:?} {worker:?}"
    )
}

/// Records the socket of a queue.
pub(super) fn record(
    (dataplane, number): (&Dataplane, u16),
    (index, config): (u32, &XdpPort),
    (queue, socket): (u16, &Arc<XskSocket>),
    large: Large,
) {
    let Some((of_socket, fds)) = socket.record() else {
        return;
    };
    let (worker, pinned) = dataplane.worker_of_nic(number, queue);
    let record = Record {
        index,
        worker,
        frame_len_max: socket.frame_len_max(),
        takes_large: large.is_taken,
        sends_large: large.is_sent,
        socket: of_socket,
        configured: configured(config, pinned),
    };
    handover::put(
        &record_name(&dataplane.port_name(number), queue),
        &record,
        &fds,
    );
}

/// Ends the record of a queue's socket.
pub(super) fn forget(port: &str, queue: u16) {
    handover::forget(&record_name(port, queue));
}

/// Ends the records of port `number`'s sockets that were not taken over: otherwise the supervisor would keep their queues busy.
/// For the time after the predecessor's end.
pub(super) fn forget_unused(dataplane: &Dataplane, number: u16) {
    let name = dataplane.port_name(number);
    for queue in dataplane.take_unused_records(number) {
        forget(&name, queue);
    }
}

/// Closes the sockets that were taken over for port `number` and that its thread does not have, and ends their records.
pub(crate) fn close(dataplane: &Dataplane, number: u16) {
    let name = dataplane.port_name(number);
    for queue in dataplane.close_taken_nic(number) {
        forget(&name, queue);
    }
}

/// Maps the sockets of the predecessor for port `number`, which is port `name` of `config`. What cannot be mapped is opened
/// anew when the predecessor has ended.
pub(crate) fn map(dataplane: &Dataplane, number: u16, config: &Config, name: &str) {
    let port = config.ports.iter().find(|port| port.name == name);
    let Some((port, PortKind::Xdp(xdp))) = port.map(|port| (port, &port.kind)) else {
        return;
    };
    let direct = config.direct_queues(name);
    for queue in 0..QUEUES_MAX as u16 {
        let Some(taken) = handover::take(&record_name(name, queue)) else {
            continue;
        };
        if !handover::is_preparing() {
            // After a crash it is not known where the frames are.
            forget(name, queue);
            continue;
        }
        dataplane.note_recorded(number, queue);
        if direct.contains(&queue.into()) {
            continue;
        }
        let mapped = socket_of(taken, queue, &configured(xdp, port.worker)).and_then(|socket| {
            let mapped = dataplane.map_nic(number, socket);
            mapped.map_err(|why| why.to_string())
        });
        if let Err(why) = mapped {
            tracing::info!(
                port = name,
                queue,
                "its socket is opened anew, and frames are lost for a moment: {why}"
            );
        }
    }
}

fn socket_of(
    taken: crosspoint_handover::Message,
    queue: u16,
    wanted: &str,
) -> Result<TakenSocket, String> {
    let record = serde_json::from_slice::<Record>(&taken.body).map_err(|why| why.to_string())?;
    if record.configured != wanted {
        return Err("`interface`, `queues`, `mode`, `busy_poll`, `huge_pages`, `channels`, `tso` or `worker` has changed".to_owned());
    }
    let fds = <[OwnedFd; 2]>::try_from(taken.fds);
    Ok(TakenSocket {
        queue,
        worker: record.worker,
        ifindex: record.index,
        frame_len_max: record.frame_len_max,
        takes_large: record.takes_large,
        sends_large: record.sends_large,
        record: record.socket,
        fds: fds.map_err(|_| "it has other descriptors".to_owned())?,
    })
}
