//! Shares an uplink that is full among the guests that send through it.
//!
//! An uplink is full while less than a quarter of a worker's transmit ring is free, or while its rate (`limit.in`) is used
//! up. Then the guests that send through it are polled in proportion to their weights, by bytes, across all workers; the
//! others wait, and their frames with them, in their rings. No frame is lost for that. A guest that waits for an uplink
//! waits with all its frames, also with those for other ports: what a ring holds is not known before it is read.
//!
//! Each sender has an account of virtual time: bytes over its weight, as in start-time fair queueing (Goyal et al., SIGCOMM
//! '96). The least account among the senders that want to send is the *horizon*. A sender that is more than
//! [`SLACK`] ahead of it waits. Unused time is not saved up: a sender that joins starts level with the horizon.
//!
//! While an uplink is not full, nothing is charged and no stream waits; a burst for it pays one look at the ring's room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use crosspoint_frame::{BURST, Clock};

use crate::MAX_PORTS;
use crate::egress::tx::Tx;
use crate::snapshot::{Egress, PortSnapshot, Snapshot};
use crate::stream::Stream;

/// An uplink counts as full for this long after it was found full, or after its rate allows more: a worker that slept, or
/// lost its core, finds the accounts as they were.
const FULL_FOR: Duration = Duration::from_millis(10);
/// A sender stops competing this long after it last wanted to send, for the same reason. One that has nothing to send stops
/// at once.
const CLAIM: Duration = Duration::from_millis(10);
/// The horizon is computed anew after this time.
const RENEW: Duration = Duration::from_micros(5);
/// A NIC that takes nothing for this long is stuck, and its senders go on: their frames for it are dropped, and their other
/// frames arrive.
const STUCK: Duration = Duration::from_millis(100);
/// How far a sender of weight 1 may be ahead of the horizon, bytes: some full frames, so that bursts are worth their cost.
const SLACK: u64 = 32 << 10;
/// Binary places of virtual time, so that large weights are exact.
const SHIFT: u32 = 8;
/// Most frames in a burst of a guest whose uplink is full: turns are short, and shares exact over a short time.
pub(crate) const FULL_BURST: usize = 16;

/// One sender's account.
#[derive(Debug, Default)]
struct Sender {
    /// Virtual time.
    sent: AtomicU64,
    /// When it last wanted to send, cycles.
    claimed_at: AtomicU64,
}

/// The accounts of an uplink's senders, shared by all workers.
#[derive(Debug)]
pub struct UplinkShare {
    /// Cycles; 0: it was never full.
    full_until: CachePadded<AtomicU64>,
    horizon: CachePadded<AtomicU64>,
    renewed_at: AtomicU64,
    /// Senders that compete, a bit for each.
    competing: [AtomicU64; MAX_PORTS / 64],
    senders: Box<[Sender]>,
    /// [`FULL_FOR`], [`CLAIM`], [`RENEW`] and [`STUCK`], cycles.
    full_for: u64,
    claim: u64,
    renew: u64,
    stuck: u64,
}

impl UplinkShare {
    /// Creates empty accounts.
    pub fn new(clock: &Clock) -> UplinkShare {
        UplinkShare {
            full_until: CachePadded::default(),
            horizon: CachePadded::default(),
            renewed_at: AtomicU64::new(0),
            competing: [const { AtomicU64::new(0) }; MAX_PORTS / 64],
            senders: (0..MAX_PORTS).map(|_| Sender::default()).collect(),
            full_for: clock.cycles(FULL_FOR),
            claim: clock.cycles(CLAIM),
            renew: clock.cycles(RENEW),
            stuck: clock.cycles(STUCK),
        }
    }

    /// Notes at `now` that the uplink is full, for the next `wait` cycles at least.
    fn note_full(&self, now: u64, wait: u64) {
        let until = now.saturating_add(wait).saturating_add(self.full_for);
        self.full_until.store(until, Ordering::Relaxed);
    }

    /// Returns whether it was found full a short time ago.
    fn is_full(&self, now: u64) -> bool {
        now < self.full_until.load(Ordering::Relaxed)
    }

    /// Notes that a sender wants to send at `now`.
    fn claim(&self, port: u16, now: u64) {
        let index = usize::from(port);
        let (Some(sender), Some(word)) = (self.senders.get(index), self.competing.get(index / 64))
        else {
            return;
        };
        sender.claimed_at.store(now, Ordering::Relaxed);
        let bit = 1 << (index % 64);
        if word.load(Ordering::Relaxed) & bit == 0 {
            let horizon = self.horizon.load(Ordering::Relaxed);
            sender.sent.fetch_max(horizon, Ordering::Relaxed);
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Notes that a sender has nothing to send.
    fn release(&self, port: u16) {
        if let Some(word) = self.competing.get(usize::from(port) / 64) {
            word.fetch_and(!(1 << (port % 64)), Ordering::Relaxed);
        }
    }

    /// Charges a sender with what it has sent.
    fn charge(&self, port: u16, weight: u32, bytes: u64, now: u64) {
        self.claim(port, now);
        if let Some(sender) = self.senders.get(usize::from(port)) {
            let time = (bytes << SHIFT) / u64::from(weight.max(1));
            sender.sent.fetch_add(time, Ordering::Relaxed);
        }
    }

    /// Returns whether a sender waits for the others.
    fn is_ahead(&self, port: u16, now: u64) -> bool {
        let renewed_at = self.renewed_at.load(Ordering::Relaxed);
        if now.saturating_sub(renewed_at) >= self.renew {
            self.renewed_at.store(now, Ordering::Relaxed);
            self.renew_horizon(now);
        }
        let horizon = self.horizon.load(Ordering::Relaxed);
        let sender = self.senders.get(usize::from(port));
        let sent = sender.map_or(0, |sender| sender.sent.load(Ordering::Relaxed));
        sent > horizon + (SLACK << SHIFT)
    }

    /// Finds the least account among the senders that compete. At most [`MAX_PORTS`] are looked at.
    fn renew_horizon(&self, now: u64) {
        let mut least = u64::MAX;
        for (number, word) in self.competing.iter().enumerate() {
            let mut left = word.load(Ordering::Relaxed);
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let port = number * 64 + bit as usize;
                let Some(sender) = self.senders.get(port) else {
                    continue;
                };
                let claimed_at = sender.claimed_at.load(Ordering::Relaxed);
                if now.saturating_sub(claimed_at) > self.claim {
                    word.fetch_and(!(1 << bit), Ordering::Relaxed);
                } else {
                    least = least.min(sender.sent.load(Ordering::Relaxed));
                }
            }
        }
        if least != u64::MAX {
            self.horizon.fetch_max(least, Ordering::Relaxed);
        }
    }
}

/// A stream whose last burst went through an uplink that was full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UplinkWait {
    /// The uplink's port.
    port: u16,
    /// When the stream was last polled, cycles.
    since: u64,
}

/// What the last burst sent through uplinks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NicUse {
    /// Whether copies went to a NIC.
    pub(crate) is_used: bool,
    /// Copies that went to NIC queues whose doorbells this worker rings.
    pub(crate) copies: u32,
    /// Bytes that NICs took.
    pub(crate) bytes: u64,
    /// The port of the last one.
    pub(crate) port: u16,
}

/// The uplink of a port number and its accounts.
fn share_of(view: &Snapshot, number: u16) -> Option<(&PortSnapshot, &Arc<UplinkShare>)> {
    let port = view.port(number)?;
    Some((port, port.uplink_share.as_ref()?))
}

/// Cycles until an uplink's rate allows more; 0 if it allows more now.
fn rate_wait(port: &PortSnapshot, now: u64) -> u64 {
    let meter = port.meter_in.as_ref();
    meter.map_or(0, |meter| meter.wait(now))
}

/// Notes what a guest's burst has sent through an uplink: if that is full, the guest is charged.
#[inline(never)]
pub(crate) fn note(stream: &mut Stream, view: &Snapshot, tx: &mut Tx, now: u64) {
    let NicUse { port, bytes, .. } = tx.nic_use;
    let Some((uplink, share)) = share_of(view, port) else {
        return;
    };
    // What a guest's own queue takes is not shared.
    if stream.is_nic() || bytes == 0 {
        return;
    }
    let (room, size) = tx.nic_room(port);
    let rate_wait = rate_wait(uplink, now);
    if room < size / 4 || rate_wait > 0 {
        share.note_full(now, rate_wait);
    } else if !share.is_full(now) {
        stream.uplink = None;
        return;
    }
    let weight = view.port(stream.id.0).map_or(1, |port| port.weight);
    share.charge(stream.id.0, weight, bytes, now);
    stream.uplink = Some(UplinkWait { port, since: now });
}

/// Returns whether a stream is not polled now, because the uplink of its last burst is full.
#[cold]
#[inline(never)]
pub(crate) fn waits(stream: &mut Stream, view: &Snapshot, tx: &mut Tx, now: u64) -> bool {
    let (Some(wait), id) = (stream.uplink, stream.id.0) else {
        return false;
    };
    let known = share_of(view, wait.port).filter(|(port, _)| matches!(port.egress, Egress::Nic));
    let Some((uplink, share)) = known else {
        stream.uplink = None;
        return false;
    };
    let (room, size) = tx.nic_room(wait.port);
    let rate_wait = rate_wait(uplink, now);
    if room < size / 4 || rate_wait > 0 {
        share.note_full(now, rate_wait);
    } else if !share.is_full(now) {
        share.release(id);
        stream.uplink = None;
        return false;
    }
    share.claim(id, now);
    let is_stuck = now.saturating_sub(wait.since) > share.stuck;
    if rate_wait > 0 || (room < BURST && !is_stuck) || share.is_ahead(id, now) {
        return true;
    }
    stream.uplink = Some(UplinkWait { since: now, ..wait });
    false
}

/// Notes that a stream whose uplink is full has no frames.
#[cold]
pub(crate) fn note_empty(stream: &Stream, view: &Snapshot) {
    if let Some(wait) = stream.uplink
        && let Some((_, share)) = share_of(view, wait.port)
    {
        share.release(stream.id.0);
    }
}

/// Cycles after `now` until the rate of a stream's uplink allows more; 0 if it does not wait for a rate.
pub(crate) fn rate_wait_of(stream: &Stream, view: &Snapshot, now: u64) -> u64 {
    let uplink = stream.uplink.and_then(|wait| view.port(wait.port));
    uplink.map_or(0, |port| rate_wait(port, now))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::calibrate);

    proptest! {
        /// While all want to send, each gets bytes in proportion to its weight, whatever the sizes of the bursts.
        #[test]
        fn senders_share_by_weight(
            weights in prop::collection::vec(1u32..=8, 2..6),
            sizes in prop::collection::vec(60u64..24_000, 50),
        ) {
            let share = UplinkShare::new(&CLOCK);
            let mut sent = vec![0u64; weights.len()];
            let mut now = 1_000_000;
            let mut sizes = sizes.iter().cycle();
            for _ in 0..10_000 {
                now += share.renew;
                share.note_full(now, 0);
                for port in 0..weights.len() {
                    share.claim(port as u16, now);
                    if !share.is_ahead(port as u16, now) {
                        let bytes = *sizes.next().unwrap();
                        share.charge(port as u16, weights[port], bytes, now);
                        sent[port] += bytes;
                    }
                }
            }
            let per_weight = sent.iter().zip(&weights).map(|(sent, weight)| sent / u64::from(*weight));
            let (least, most) = (per_weight.clone().min().unwrap(), per_weight.max().unwrap());
            prop_assert!(most - least <= SLACK + 24_000, "{sent:?} by {weights:?}");
        }
    }

    /// A sender that pauses does not hold up the others, and has saved nothing up when it returns.
    #[test]
    fn a_pause_is_not_saved_up() {
        let share = UplinkShare::new(&CLOCK);
        let mut now = 1_000_000;
        let mut send = |ports: &[u16], rounds: usize| {
            let mut sent = [0u64; 2];
            for _ in 0..rounds {
                now += share.renew;
                for port in ports {
                    share.claim(*port, now);
                    if !share.is_ahead(*port, now) {
                        share.charge(*port, 1, 1500, now);
                        sent[usize::from(*port)] += 1500;
                    }
                }
            }
            sent
        };
        send(&[0, 1], 100);
        // Longer than the other's claim lasts.
        let rounds = (share.claim / share.renew) as usize + 5000;
        let alone = send(&[0], rounds);
        assert!(alone[0] > 1500 * 4900, "{alone:?}");
        let both = send(&[0, 1], 1000);
        assert!(both[0].abs_diff(both[1]) <= SLACK + 1500, "{both:?}");
    }
}
