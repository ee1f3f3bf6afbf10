//! Which worker gets what.

use std::sync::Arc;

use crosspoint_engine::deliver::NicTx;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_xsk::XskTx;

use super::{Port, WorkerChange};

/// The worker with the fewest streams; the lowest of several.
pub(super) fn least_loaded(streams: &[usize]) -> usize {
    let least = streams
        .iter()
        .enumerate()
        .min_by_key(|(_, streams)| **streams);
    least.map_or(0, |(worker, _)| worker)
}

/// The worker of a NIC's queue: queues go round, beginning at a worker that differs from port
/// to port.
pub(super) fn nic_worker(port: u16, queue: u16, workers: usize) -> usize {
    (usize::from(port) + usize::from(queue)) % workers.max(1)
}

/// Gives each worker its way to a NIC: a queue of its own, or, where there are fewer queues
/// than workers, a handover to the owner of one. With no queues, takes every way back.
pub(super) fn share_out(
    port: &mut Port,
    number: u16,
    queues: Vec<(u16, XskTx)>,
    updates: &mut [WorkerChange],
    links: &[Arc<WorkerLink>],
) {
    let workers = updates.len();
    let mut own: Vec<Option<XskTx>> = (0..workers).map(|_| None).collect();
    port.spare.clear();
    for (queue, tx) in queues {
        let slot = &mut own[nic_worker(number, queue, workers)];
        match slot {
            None => *slot = Some(tx),
            Some(_) => port.spare.push(tx),
        }
    }
    let owners: Vec<usize> = (0..workers).filter(|w| own[*w].is_some()).collect();
    for worker in 0..workers {
        let way = match (
            own[worker].is_some(),
            owners.get(worker % owners.len().max(1)),
        ) {
            (false, Some(owner)) => own[*owner].as_mut().map(|tx| {
                let handover = tx.make_handover();
                Box::new(NicTx::Remote(handover, links[*owner].waker.clone()))
            }),
            _ => None,
        };
        updates[worker].nics.push((number, way));
    }
    // Last: an owner's handovers are all made before it is handed over itself.
    for (worker, tx) in own.into_iter().enumerate() {
        if let (Some(tx), Some((_, way))) = (tx, updates[worker].nics.last_mut()) {
            *way = Some(Box::new(NicTx::Own(tx)));
        }
    }
}

/// A word that nobody can foretell: the standard library's hasher is seeded by the kernel.
pub(super) fn random_word() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u64)
}
