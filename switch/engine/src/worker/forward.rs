//! A burst's way through the stages, from its parsing to its delivery.

use crosspoint_frame::{Burst, Verdict};
use crosspoint_packet::TAG_LEN;

use crate::bridge::flood;
use crate::egress::deliver::deliver;
use crate::egress::tx::Tx;
use crate::groups::stage as groups;
use crate::observe;
use crate::observe::counters::QueueCounters;
use crate::observe::mirror;
use crate::snapshot::Snapshot;
use crate::stages::Keys;
use crate::stages::admit;
use crate::stages::lookup;
use crate::stages::meter;
use crate::stages::parse;
use crate::stream::StreamId;

/// Takes a burst received on queue `id` through all stages.
#[inline(always)]
pub(super) fn forward(
    burst: &mut Burst,
    id: StreamId,
    view: &Snapshot,
    tick: u8,
    keys: &mut Keys,
    tx: &mut Tx,
    counters: &QueueCounters,
) {
    let ingress = id.0;
    parse(burst);
    admit(burst, ingress, view);
    if view.has_groups {
        groups::send(burst, ingress, view, tx.worker, &mut tx.packets);
    }
    if lookup(burst, ingress, view, tick, keys) {
        flood::police(burst, ingress, view, tx);
    }
    if view.refuses {
        refuse(burst, ingress, view, tx);
    }
    if view.is_observed() {
        observe::received(burst, id, view, tx);
    }
    match view.mirrors.is_empty() {
        true => deliver(burst, ingress, view, tx, counters),
        false => mirror::deliver_with_copies(burst, ingress, view, tx, counters),
    }
}

/// Finds the frames that their receivers' groups or rates do not let pass. Frames that groups refuse use up no rate.
#[inline(never)]
fn refuse(burst: &mut Burst, ingress: u16, view: &Snapshot, tx: &mut Tx) {
    tx.forget_refused();
    if view.has_groups {
        groups::receive(burst, ingress, view, tx.worker, &mut tx.packets);
    }
    if view.polices {
        meter::police(burst, ingress, view, tx);
    }
}

/// Sends a burst of untagged frames out of `id`'s port, in `vlan`.
#[cold]
#[inline(never)]
pub(super) fn send_out(
    burst: &mut Burst,
    id: StreamId,
    vlan: u16,
    view: &Snapshot,
    tx: &mut Tx,
    counters: &QueueCounters,
) {
    parse(burst);
    if let (true, Some(port)) = (view.has_bridges, view.port(id.0)) {
        burst.set_bridge(port.bridge, [0; TAG_LEN]);
    }
    for frame in burst.frames_mut() {
        (frame.vlan, frame.tci) = (vlan, vlan);
        frame.verdict = Verdict::port(id.0);
    }
    // What the switch says itself is refused by no port, and by no mark of the burst before.
    tx.forget_refused();
    if view.is_observed() {
        observe::received(burst, id, view, tx);
    }
    deliver(burst, id.0, view, tx, counters);
}
