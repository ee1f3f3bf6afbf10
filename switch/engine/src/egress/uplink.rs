//! Shares an uplink that is full among the ports that send through it.
//!
//! An uplink is full while less than a quarter of a worker's transmit ring is free, or a burst might not fit, or while its
//! rate (`limit.in`) is used up. Then the guests that send through it are polled in proportion to their weights, by bytes, across all workers; the
//! others wait, and their frames with them, in their rings. No frame is lost for that. A guest that waits for an uplink
//! waits with all its frames, also with those for other ports: what a ring holds is not known before it is read. Frames of
//! another uplink cannot wait; those of an uplink that is ahead are dropped while the rate is used up (`stages/meter.rs`).
//!
//! Each sender has an account of virtual time: bytes over its weight, as in start-time fair queueing (Goyal et al., SIGCOMM
//! '96). The least account among the senders that compete is the *horizon*. A sender that is more than [`SLACK`] ahead of it
//! waits.
//!
//! - A sender competes if its last burst was for the uplink alone and left frames behind. A guest that sends little through
//!   the uplink, and much elsewhere, holds up no other.
//! - A sender that joins starts level with the horizon: unused time is not saved up. If its worker lost its core for less
//!   than [`FULL_FOR`], it did not leave: what the others sent meanwhile, they wait for now. So parts are exact over a second
//!   also where other programs use the workers' cores.
//! - The uplink is kept busy: [`HOLD`] after it was last found full, no sender waits.
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
use crate::stages::meter::Size;
use crate::stream::Stream;

/// Senders that are ahead wait for this long after the uplink was found full, or after its rate allows more.
const HOLD: Duration = Duration::from_millis(2);
/// A worker that does not look at a waiting stream for this long was away. If the uplink was full before, it counts as full
/// now: unused rate goes to the sender that is behind first, not in equal parts to all.
const AWAY: Duration = Duration::from_millis(1);
/// The accounts are kept for this long after that: a worker that slept, or lost its core, finds them as they were.
const FULL_FOR: Duration = Duration::from_millis(100);
/// A sender stops competing this long after it last wanted to send: its worker is away. One that has nothing to send stops at
/// once.
const CLAIM: Duration = Duration::from_millis(10);
/// The horizon is computed again after this time.
const RENEW: Duration = Duration::from_micros(5);
/// A ring whose room does not change for this long is stuck: its senders go on, their frames for it are dropped, and their
/// other frames arrive.
const STUCK: Duration = Duration::from_millis(100);
/// How far a sender of weight 1 may be ahead of the horizon, bytes: some full frames, so that bursts are worth their cost.
const SLACK: u64 = 32 << 10;
/// Binary places of virtual time, so that large weights are exact.
const SHIFT: u32 = 8;
/// Most frames in a burst of a guest whose uplink is full: turns are short, and shares exact over a short time.
const FULL_BURST: usize = 16;
/// Descriptors that a large frame may take: 64 KiB in segments of 1448 bytes.
const FRAME_DESCRIPTORS: usize = 46;

/// One sender's account.
#[derive(Debug, Default)]
struct Sender {
    /// Virtual time. It may wrap: times are compared by their difference.
    sent: AtomicU64,
    /// When it last wanted to send, cycles; 0 after it had nothing to send.
    claimed_at: AtomicU64,
}

/// The accounts of an uplink's senders, shared by all workers.
#[derive(Debug)]
pub struct UplinkShare {
    /// Until when the uplink was full, cycles; 0: it never was.
    full_until: CachePadded<AtomicU64>,
    horizon: CachePadded<AtomicU64>,
    renewed_at: AtomicU64,
    /// Senders that compete, a bit for each.
    competing: [AtomicU64; MAX_PORTS / 64],
    senders: Box<[Sender]>,
    /// [`HOLD`], [`AWAY`], [`FULL_FOR`], [`CLAIM`], [`RENEW`] and [`STUCK`], cycles.
    hold: u64,
    away: u64,
    full_for: u64,
    claim: u64,
    renew: u64,
    stuck: u64,
}

/// Whether virtual time `a` is later than `b`.
fn is_later(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Moves virtual time forward to `to`. Two workers may do it at once: the next one that does it repairs it.
fn advance(time: &AtomicU64, to: u64) {
    if is_later(to, time.load(Ordering::Relaxed)) {
        time.store(to, Ordering::Relaxed);
    }
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
            hold: clock.cycles(HOLD),
            away: clock.cycles(AWAY),
            full_for: clock.cycles(FULL_FOR),
            claim: clock.cycles(CLAIM),
            renew: clock.cycles(RENEW),
            stuck: clock.cycles(STUCK),
        }
    }

    /// Notes at `now` that the uplink is full, for the next `wait` cycles at least.
    fn note_full(&self, now: u64, wait: u64) {
        self.full_until
            .store(now.saturating_add(wait), Ordering::Relaxed);
    }

    /// Returns whether it was full at most `grace` cycles ago.
    fn was_full(&self, now: u64, grace: u64) -> bool {
        let until = self.full_until.load(Ordering::Relaxed);
        until != 0 && now < until.saturating_add(grace)
    }

    /// Notes that a worker looks at a waiting stream at `now`, and did so `before`.
    fn note_look(&self, before: u64, now: u64) {
        if now.saturating_sub(before) > self.away && self.was_full(before, self.hold) {
            self.note_full(now, 0);
        }
    }

    /// Notes that a sender wants to send at `now`.
    fn claim(&self, port: u16, now: u64) {
        let index = usize::from(port);
        let (Some(sender), Some(word)) = (self.senders.get(index), self.competing.get(index / 64))
        else {
            return;
        };
        let before = sender.claimed_at.load(Ordering::Relaxed);
        sender.claimed_at.store(now, Ordering::Relaxed);
        let bit = 1 << (index % 64);
        if word.load(Ordering::Relaxed) & bit == 0 {
            if before == 0 || now.saturating_sub(before) > self.full_for {
                advance(&sender.sent, self.horizon.load(Ordering::Relaxed));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Notes that a sender does not compete.
    fn release(&self, port: u16) {
        let index = usize::from(port);
        let (Some(sender), Some(word)) = (self.senders.get(index), self.competing.get(index / 64))
        else {
            return;
        };
        // Also of a sender that stopped competing: it has nothing to catch up on.
        if sender.claimed_at.load(Ordering::Relaxed) != 0 {
            sender.claimed_at.store(0, Ordering::Relaxed);
        }
        let bit = 1 << (index % 64);
        if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Charges a sender with what it has sent. `competes`: it wants to send more.
    fn charge(&self, port: u16, weight: u32, bytes: u64, competes: bool, now: u64) {
        self.claim(port, now);
        if let Some(sender) = self.senders.get(usize::from(port)) {
            let time = (bytes << SHIFT) / u64::from(weight.max(1));
            sender.sent.fetch_add(time, Ordering::Relaxed);
        }
        if !competes {
            self.release(port);
        }
    }

    /// Returns whether a sender waits for the others.
    pub(crate) fn is_ahead(&self, port: u16, now: u64) -> bool {
        if !self.was_full(now, self.hold) {
            return false;
        }
        let renewed_at = self.renewed_at.load(Ordering::Relaxed);
        if now.saturating_sub(renewed_at) >= self.renew {
            self.renewed_at.store(now, Ordering::Relaxed);
            self.renew_horizon(now);
        }
        let horizon = self.horizon.load(Ordering::Relaxed);
        let sender = self.senders.get(usize::from(port));
        let sent = sender.map_or(0, |sender| sender.sent.load(Ordering::Relaxed));
        is_later(sent, horizon.wrapping_add(SLACK << SHIFT))
    }

    /// Finds the least account among the senders that compete. At most [`MAX_PORTS`] are looked at.
    fn renew_horizon(&self, now: u64) {
        let mut least: Option<u64> = None;
        for (number, word) in self.competing.iter().enumerate() {
            let mut left = word.load(Ordering::Relaxed);
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let Some(sender) = self.senders.get(number * 64 + bit as usize) else {
                    continue;
                };
                let claimed_at = sender.claimed_at.load(Ordering::Relaxed);
                if now.saturating_sub(claimed_at) > self.claim {
                    word.fetch_and(!(1 << bit), Ordering::Relaxed);
                    continue;
                }
                let sent = sender.sent.load(Ordering::Relaxed);
                if least.is_none_or(|least| is_later(least, sent)) {
                    least = Some(sent);
                }
            }
        }
        // It may go back, to a sender whose worker was away.
        if let Some(least) = least {
            self.horizon.store(least, Ordering::Relaxed);
        }
    }
}

/// A stream whose last burst went through an uplink that was full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UplinkWait {
    /// The uplink's port.
    port: u16,
    /// The ring's room when it was last looked at, and since when it is that; cycles.
    room: usize,
    since: u64,
    /// When the worker last looked at the stream, cycles.
    looked_at: u64,
    /// Most frames of the next burst.
    pub(crate) frames_max: usize,
}

/// What the last burst sent through one uplink.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    port: u16,
    size: Size,
}

/// What the last burst sent through uplinks.
#[derive(Clone, Debug)]
pub(crate) struct NicUse {
    /// Whether copies went to a NIC.
    pub(crate) is_used: bool,
    /// Copies that went to NIC queues whose doorbells this worker rings.
    pub(crate) copies: u32,
    /// What NICs took, by port.
    sent: Vec<Sent>,
}

impl Default for NicUse {
    fn default() -> NicUse {
        NicUse {
            is_used: false,
            copies: 0,
            // A burst has at most as many destinations as frames.
            sent: Vec::with_capacity(BURST),
        }
    }
}

impl NicUse {
    /// Forgets the last burst.
    #[inline(always)]
    pub(crate) fn begin(&mut self) {
        (self.is_used, self.copies) = (false, 0);
        self.sent.clear();
    }

    /// Adds what the NIC of a port took.
    #[inline(always)]
    pub(crate) fn add(&mut self, port: u16, frames: u32, bytes: u64) {
        let size = Size {
            bytes,
            packets: u64::from(frames),
        };
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.port == port) {
            sent.size = [sent.size, size].into_iter().sum();
        } else if self.sent.len() < self.sent.capacity() {
            self.sent.push(Sent { port, size });
        }
    }
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

/// Returns whether a ring has so little room that senders share it: less than a quarter; and where a whole burst is more than
/// that, as in a handoff to another worker, so little that the next burst may not fit.
fn is_low(room: usize, size: usize) -> bool {
    room < (size / 4).max(BURST.min(size / 2))
}

/// Returns how many frames may follow into a ring with this room.
fn frames_max(room: usize) -> usize {
    (room / FRAME_DESCRIPTORS).clamp(1, FULL_BURST)
}

/// Pays for what a burst of `count` frames has sent through uplinks, by their rates; and if one of them is full, notes that
/// the stream waits for it.
#[inline(never)]
pub(crate) fn note(stream: &mut Stream, view: &Snapshot, tx: &mut Tx, count: usize, now: u64) {
    let before = stream.uplink.take();
    for index in 0..tx.nic_use.sent.len() {
        let Some(Sent { port, size }) = tx.nic_use.sent.get(index).copied() else {
            break;
        };
        let Some((uplink, share)) = share_of(view, port) else {
            continue;
        };
        // Another uplink's frames have been policed, and paid for.
        if let (Some(meter), false) = (&uplink.meter_in, stream.is_nic()) {
            meter.take(size, now);
        }
        let (room, ring_size) = tx.nic_room(port);
        let rate_wait = rate_wait(uplink, now);
        if is_low(room, ring_size) || rate_wait > 0 {
            share.note_full(now, rate_wait);
        } else if !share.was_full(now, share.full_for) {
            continue;
        }
        let weight = view.port(stream.id.0).map_or(1, |port| port.weight);
        let is_alone = tx.nic_use.sent.len() == 1 && size.packets >= count as u64;
        let competes = is_alone && (stream.has_frames() || stream.is_nic());
        share.charge(stream.id.0, weight, size.bytes, competes, now);
        if !stream.is_nic() {
            stream.uplink = Some(UplinkWait {
                port,
                room,
                since: now,
                looked_at: now,
                frames_max: frames_max(room),
            });
        }
    }
    if let Some(before) = before
        && stream.uplink.is_none_or(|now| now.port != before.port)
    {
        release(stream, view, before);
    }
}

/// Returns whether a stream is not polled now, because the uplink of its last burst is full. Call it for a stream that would
/// be polled otherwise: it competes.
#[cold]
#[inline(never)]
pub(crate) fn waits(stream: &mut Stream, view: &Snapshot, tx: &mut Tx, now: u64) -> bool {
    let (Some(mut wait), id) = (stream.uplink, stream.id.0) else {
        return false;
    };
    let known = share_of(view, wait.port).filter(|(port, _)| matches!(port.egress, Egress::Nic));
    let Some((uplink, share)) = known else {
        stream.uplink = None;
        return false;
    };
    let (room, size) = tx.nic_room(wait.port);
    let rate_wait = rate_wait(uplink, now);
    share.note_look(wait.looked_at, now);
    wait.looked_at = now;
    if is_low(room, size) || rate_wait > 0 {
        share.note_full(now, rate_wait);
    } else if !share.was_full(now, share.full_for) {
        share.release(id);
        stream.uplink = None;
        return false;
    }
    if room != wait.room {
        (wait.room, wait.since) = (room, now);
    }
    wait.frames_max = frames_max(room);
    stream.uplink = Some(wait);
    // A guest with a queue of its own does not use this ring.
    if room < BURST && !stream.is_direct() {
        // Others may have room: they do not wait for this ring.
        share.release(id);
        return now.saturating_sub(wait.since) <= share.stuck;
    }
    if stream.has_frames() {
        share.claim(id, now);
    }
    rate_wait > 0 || share.is_ahead(id, now)
}

/// Notes that a stream whose uplink is full has no frames for it.
#[cold]
pub(crate) fn note_unused(stream: &mut Stream, view: &Snapshot) {
    if let Some(wait) = stream.uplink {
        release(stream, view, wait);
    }
}

fn release(stream: &Stream, view: &Snapshot, wait: UplinkWait) {
    if let Some((_, share)) = share_of(view, wait.port) {
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
                        share.charge(port as u16, weights[port], bytes, true, now);
                        sent[port] += bytes;
                    }
                }
            }
            let per_weight = sent.iter().zip(&weights).map(|(sent, weight)| sent / u64::from(*weight));
            let (least, most) = (per_weight.clone().min().unwrap(), per_weight.max().unwrap());
            prop_assert!(most - least <= SLACK + 24_000, "{sent:?} by {weights:?}");
        }
    }

    /// Both senders of weight 1 want to send in each of these rounds, or one. Returns what each has sent in them.
    fn send(share: &UplinkShare, now: &mut u64, ports: &[u16], rounds: u64) -> [u64; 2] {
        let mut sent = [0u64; 2];
        for _ in 0..rounds {
            *now += share.renew;
            share.note_full(*now, 0);
            for port in ports {
                share.claim(*port, *now);
                if !share.is_ahead(*port, *now) {
                    share.charge(*port, 1, 1500, true, *now);
                    sent[usize::from(*port)] += 1500;
                }
            }
        }
        sent
    }

    /// A sender that pauses does not hold up the others, and has saved nothing up when it returns.
    #[test]
    fn a_pause_is_not_saved_up() {
        let share = UplinkShare::new(&CLOCK);
        let mut now = 1_000_000;
        let mut send = |ports: &[u16], rounds| send(&share, &mut now, ports, rounds);
        send(&[0, 1], 100);
        // Longer than the other's account is kept.
        let rounds = share.full_for / share.renew + 5000;
        let alone = send(&[0], rounds);
        assert!(alone[0] > 1500 * 4900, "{alone:?}");
        let both = send(&[0, 1], 1000);
        assert!(both[0].abs_diff(both[1]) <= SLACK + 1500, "{both:?}");
    }

    /// A sender whose worker was away is behind the others, and catches up. One that had nothing to send does not.
    #[test]
    fn a_sender_whose_worker_was_away_catches_up() {
        for has_left in [false, true] {
            let share = UplinkShare::new(&CLOCK);
            let mut now = 1_000_000;
            let mut send = |ports: &[u16], rounds| send(&share, &mut now, ports, rounds);
            let round = |time: u64| time / share.renew;
            send(&[0, 1], 100);
            if has_left {
                share.release(1);
            }
            // Longer than a claim lasts.
            let alone = send(&[0], round(3 * share.claim));
            assert!(alone[0] > 1500 * 3000, "{alone:?}");
            let [one, other] = send(&[0, 1], 2 * round(3 * share.claim));
            let due = if has_left { 0 } else { alone[0] };
            let rest = (other as i64 - one as i64).abs_diff(due as i64);
            assert!(rest <= SLACK + 1500, "{has_left}: {rest}");
        }
    }

    /// A sender that does not compete, since it sends elsewhere too, holds up no other, and is charged for what it sends.
    #[test]
    fn a_sender_that_does_not_compete_holds_up_no_other() {
        let share = UplinkShare::new(&CLOCK);
        let (mut now, mut sent) = (1_000_000, [0u64; 2]);
        for _ in 0..5000 {
            now += share.renew;
            share.note_full(now, 0);
            if !share.is_ahead(0, now) {
                share.charge(0, 1, 60, false, now);
                sent[0] += 60;
            }
            share.claim(1, now);
            if !share.is_ahead(1, now) {
                share.charge(1, 1, 1500, true, now);
                sent[1] += 1500;
            }
        }
        assert_eq!(sent, [5000 * 60, 5000 * 1500]);
    }

    /// When the uplink is not full any more, no sender waits, and accounts that wrap are compared as others are.
    #[test]
    fn no_sender_waits_for_an_uplink_with_room_and_accounts_may_wrap() {
        let share = UplinkShare::new(&CLOCK);
        let now = 1_000_000;
        for sender in &share.senders {
            sender.sent.store(u64::MAX - 10, Ordering::Relaxed);
        }
        share.horizon.store(u64::MAX - 10, Ordering::Relaxed);
        share.note_full(now, 0);
        share.claim(1, now);
        share.charge(0, 1, 1 << 20, true, now);
        assert!(share.is_ahead(0, now + share.renew) && !share.is_ahead(1, now + share.renew));
        assert!(!share.is_ahead(0, now + share.hold));
    }
}
