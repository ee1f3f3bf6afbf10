//! Placement of streams and NIC queues on workers.

use std::sync::Arc;

use crosspoint_engine::egress::tx::NicTx;
use crosspoint_engine::worker::WorkerLink;
use crosspoint_xsk::XskTx;

use super::planner::Permille;
use super::{Port, WorkerChange};

/// A worker, as a candidate for a new stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its busy share.
    pub busy: Permille,
    /// Streams that it has had for less than a window, so their cost is not known yet.
    pub fresh: usize,
    /// All its streams, including the fresh ones.
    pub streams: usize,
    /// The memory node of its core.
    pub node: Option<u32>,
    /// Whether it is stalled.
    pub stalled: bool,
}

/// Assumed cost of a stream before it is measured. Smaller differences of load are ignored.
const STEP: Permille = 100;

/// The worker for a new stream whose memory is on node `node`. Prefers workers that are not stalled, then those that
/// are busy for no more than `busy_max`, then those on that node, then the least loaded, then the one with the fewest
/// streams, then the lowest number.
pub(super) fn guest_worker(workers: &[Candidate], node: Option<u32>, busy_max: Permille) -> usize {
    let rank = |worker: &Candidate| {
        let load = worker.busy / STEP + worker.fresh as u32;
        let is_far = node.is_some() && worker.node != node;
        let is_overloaded = worker.busy > busy_max;
        (worker.stalled, is_overloaded, is_far, load, worker.streams)
    };
    let best = workers.iter().enumerate().min_by_key(|(_, one)| rank(one));
    best.map_or(0, |(worker, _)| worker)
}

/// The worker of a NIC's queue: queues are distributed in rotation over the workers on the NIC's node, or over all
/// workers if there are none. The first worker differs from port to port.
pub(super) fn nic_worker(port: u16, queue: u16, nodes: &[Option<u32>], node: Option<u32>) -> usize {
    let at = |number: usize, of: usize| number % of.max(1);
    let number = usize::from(port) + usize::from(queue);
    let near = || (0..nodes.len()).filter(|worker| node.is_some() && nodes[*worker] == node);
    let near_one = near().nth(at(number, near().count()));
    near_one.unwrap_or_else(|| at(number, nodes.len()))
}

/// Gives each worker its way to a NIC: a queue of its own or, if there are fewer queues than workers, a handoff to a
/// worker that owns one. With no queues, removes all of them. Each queue comes with its worker.
pub(super) fn share_out(
    port: &mut Port,
    number: u16,
    queues: Vec<(usize, (u16, XskTx))>,
    updates: &mut [WorkerChange],
    links: &[Arc<WorkerLink>],
) {
    let workers = updates.len();
    let mut own: Vec<Option<XskTx>> = (0..workers).map(|_| None).collect();
    port.spare.clear();
    for (worker, (_, tx)) in queues {
        let slot = &mut own[worker];
        match slot {
            None => *slot = Some(tx),
            Some(_) => port.spare.push(tx),
        }
    }
    let owners: Vec<usize> = (0..workers).filter(|w| own[*w].is_some()).collect();
    // The owner that each other worker hands frames to.
    let owner_of = |worker: usize| owners.get(worker % owners.len().max(1)).copied();
    let others: Vec<usize> = (0..workers).filter(|w| own[*w].is_none()).collect();
    for (worker, update) in updates.iter_mut().enumerate() {
        let owner = owner_of(worker).filter(|_| others.contains(&worker));
        let way = owner.and_then(|owner| {
            let count = others.iter().filter(|w| owner_of(**w) == Some(owner));
            let handoff = own[owner].as_mut()?.make_handoff(count.count());
            let waker = links[owner].waker.clone();
            Some(Box::new(NicTx::Remote(handoff, waker)))
        });
        update.nics.push((number, way));
    }
    // Last, since all of an owner's handoffs must be made before its queue is given to it.
    for (worker, tx) in own.into_iter().enumerate() {
        if let (Some(tx), Some((_, way))) = (tx, updates[worker].nics.last_mut()) {
            *way = Some(Box::new(NicTx::Own(tx)));
        }
    }
}

/// An unpredictable word: the standard library's hasher is seeded by the kernel.
pub(super) fn random_word() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(busy: Permille, fresh: usize, streams: usize, node: u32) -> Candidate {
        Candidate {
            busy,
            fresh,
            streams,
            node: Some(node),
            stalled: false,
        }
    }

    fn place(workers: &[Candidate], node: Option<u32>) -> usize {
        guest_worker(workers, node, 800)
    }

    #[test]
    fn a_new_stream_goes_to_the_least_loaded_worker_then_to_the_one_with_the_fewest_streams() {
        let place = |workers: &[Candidate]| place(workers, None);
        assert_eq!(place(&[worker(500, 0, 1, 0), worker(300, 0, 9, 0)]), 1);
        // Nearly equal loads.
        assert_eq!(place(&[worker(310, 0, 3, 0), worker(390, 0, 2, 0)]), 1);
        assert_eq!(place(&[worker(0, 0, 0, 0), worker(0, 0, 0, 0)]), 0);
        // Fresh streams count, although they are not measured yet.
        assert_eq!(place(&[worker(0, 4, 4, 0), worker(300, 0, 1, 0)]), 1);
        assert_eq!(place(&[]), 0);
    }

    #[test]
    fn a_new_stream_goes_to_the_node_of_its_memory_unless_all_there_are_overloaded() {
        let workers = [
            worker(0, 0, 0, 0),
            worker(700, 0, 5, 1),
            worker(750, 0, 4, 1),
        ];
        assert_eq!(place(&workers, Some(1)), 2);
        assert_eq!(place(&workers, Some(0)), 0);
        // No node, or a node without workers.
        assert_eq!(place(&workers, None), 0);
        assert_eq!(place(&workers, Some(3)), 0);
        let full = [
            worker(200, 0, 0, 0),
            worker(850, 0, 5, 1),
            worker(990, 0, 4, 1),
        ];
        assert_eq!(place(&full, Some(1)), 0);
        assert_eq!(guest_worker(&full, Some(1), 900), 1);
        // A stalled worker is not chosen.
        let mut stalled = workers;
        stalled[2].stalled = true;
        assert_eq!(place(&stalled, Some(1)), 1);
    }

    #[test]
    fn nic_queues_go_round_among_the_workers_on_the_nics_node() {
        let nodes = [Some(0), Some(1), Some(0), Some(1)];
        let places = |port, node| [0, 1, 2, 3].map(|queue| nic_worker(port, queue, &nodes, node));
        assert_eq!(places(0, Some(1)), [1, 3, 1, 3]);
        assert_eq!(places(1, Some(0)), [2, 0, 2, 0]);
        assert_eq!(places(1, None), [1, 2, 3, 0]);
        assert_eq!(places(0, Some(9)), [0, 1, 2, 3]);
        assert_eq!(nic_worker(3, 1, &[], Some(0)), 0);
    }
}
