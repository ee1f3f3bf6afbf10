//! The stages between receiving and delivering: each a loop over a burst.

use crosspoint_frame::{Burst, Frame, Verdict};
use crosspoint_packet::{DropReason, ETHERNET_LEN, MAX_FRAME_LEN, Parsed};

use crate::fdb::Key;
use crate::view::{PortView, View};

/// Reads the link layer of every frame, and weeds out what is no frame.
#[inline(always)]
pub fn parse(burst: &mut Burst) {
    for frame in burst.frames_mut() {
        let len = frame.len as usize;
        if len < ETHERNET_LEN {
            frame.drop_for(DropReason::Runt);
            continue;
        }
        if len > MAX_FRAME_LEN {
            frame.drop_for(DropReason::Oversize);
            continue;
        }
        if frame.offload.needs_csum || frame.offload.gso_type != 0 {
            check_offload(frame);
        }
    }
}

/// What a frame asks for must lie within it. Segmentation is not offered, so nobody may ask.
#[cold]
fn check_offload(frame: &mut Frame) {
    let offload = &frame.offload;
    let end = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
    // Before the end of the link header there is nothing to sum, and a tag may be moved there.
    let start_ok = usize::from(offload.csum_start)
        >= ETHERNET_LEN + 4 * usize::from(frame.head[12..14] == [0x81, 0]);
    if offload.gso_type != 0 || end > frame.len || !start_ok {
        frame.drop_for(DropReason::BadOffload);
    }
}

/// Places every frame in its VLAN, or turns it away.
#[inline(always)]
pub fn admit(burst: &mut Burst, port: Option<&PortView>) {
    let Some(port) = port else {
        // A stream goes before its port does, so this does not happen; if it did, it is counted.
        burst
            .frames_mut()
            .iter_mut()
            .for_each(|frame| frame.drop_for(DropReason::NoDestination));
        return;
    };
    for frame in burst.frames_mut() {
        if frame.verdict != Verdict::Pending {
            continue;
        }
        let parsed = Parsed::new(&frame.head, frame.len as usize);
        frame.dst = parsed.dst;
        frame.src = parsed.src;
        if !parsed.src.is_valid_source() {
            frame.drop_for(DropReason::BadSource);
            continue;
        }
        match port.vlan.admit(&parsed) {
            Ok(admitted) => {
                frame.vlan = admitted.vlan;
                frame.tci = admitted.tci;
                frame.tagged = admitted.tagged;
                if admitted.rewrite {
                    frame.head[14..16].copy_from_slice(&admitted.tci.to_be_bytes());
                }
            }
            Err(reason) => frame.drop_for(reason),
        }
    }
}

/// Learns where frames come from, and finds where they go.
#[inline(always)]
pub fn lookup(burst: &mut Burst, ingress: u16, view: &View, tick: u8) {
    let mut keys = [None::<(Key, Key)>; crosspoint_frame::BURST];
    prepare(burst, view, &mut keys);
    let quotas = |port| view.port(port).map(|port| &*port.quota);
    let mut last = Verdict::Pending;
    for (frame, keys) in burst.frames_mut().iter_mut().zip(keys) {
        if frame.verdict != Verdict::Pending {
            continue;
        }
        // No keys: addresses and VLAN are those of the frame before, and so is the answer.
        if let Some((src, dst)) = keys {
            view.fdb.learn(src, ingress, tick, quotas);
            last = if !frame.dst.is_group() {
                match view.fdb.lookup(dst) {
                    Some(port) if port == ingress => Verdict::Drop(DropReason::Hairpin),
                    Some(port) => Verdict::Port(port),
                    None => Verdict::Flood,
                }
            } else if frame.dst.is_link_local_control() {
                Verdict::Drop(DropReason::LinkLocal)
            } else {
                Verdict::Flood
            };
        }
        frame.verdict = last;
    }
}

/// Hashes addresses and asks for their cache lines: a whole burst's misses overlap. A frame
/// with the addresses of the one before it needs neither.
#[inline(always)]
fn prepare(burst: &mut Burst, view: &View, keys: &mut [Option<(Key, Key)>]) {
    let mut before = None;
    for (frame, slot) in burst.frames().iter().zip(keys) {
        if frame.verdict != Verdict::Pending {
            continue;
        }
        let this = Some((frame.src, frame.dst, frame.vlan));
        if this == before {
            continue;
        }
        before = this;
        let src = view.fdb.key(frame.src, frame.vlan);
        let dst = view.fdb.key(frame.dst, frame.vlan);
        view.fdb.prefetch(src);
        view.fdb.prefetch(dst);
        *slot = Some((src, dst));
    }
}
