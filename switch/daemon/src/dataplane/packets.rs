//! Packet memory: one for the NIC queues of each worker, on the worker's memory node.

use std::sync::{Mutex, PoisonError};

use crosspoint_xsk::{PacketMemory, SocketError, SocketOptions, XskRx, XskTx};

use super::{Dataplane, numa};
use crate::handover;

impl Dataplane {
    /// Opens a socket for queue `queue` of port `number`, whose interface has index `ifindex`, in the packet memory of
    /// the queue's worker.
    pub fn open_socket(
        &self,
        (number, queue): (u16, u32),
        ifindex: u32,
        options: &SocketOptions,
    ) -> Result<(XskRx, XskTx), SocketError> {
        let worker = self.nic_worker(&self.lock(), number, queue as u16);
        // Each worker has one, and there is at least one worker.
        let memory = &self.memories[worker];
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.open(ifindex, queue, options)
    }
}

/// Packet memory for every worker's share of `queues` NIC queues.
pub(super) fn memories(cores: &[usize], queues: usize) -> Vec<Mutex<PacketMemory>> {
    let share = queues.div_ceil(cores.len().max(1));
    let share = u16::try_from(share).unwrap_or(u16::MAX / 2);
    // Only then is there another process that may go on with it.
    let in_files = handover::is_supervised();
    let of_core = |core: &usize| {
        let memory = PacketMemory::new(share, numa::of_core(*core));
        Mutex::new(memory.in_files(in_files))
    };
    cores.iter().map(of_core).collect()
}
