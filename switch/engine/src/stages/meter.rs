//! Rates of a port: what its guest may send, and what may be sent to it.
//!
//! What a guest sends is *shaped*: while it has no credit its rings are not polled, and its frames wait there. No frame is
//! lost and no timer is needed, and the guest's own queueing sees the back-pressure. A burst that is taken is paid for
//! afterwards, so the credit can become negative; the debt delays the next poll, and the rate over a second is exact.
//! Carousel (Saeed et al., SIGCOMM '17) shapes in a similar way, by deferred completions.
//!
//! What is sent to a guest cannot be pushed back. It is *policed* with a phantom queue, which drains at the rate: above
//! [`MARK_AFTER`] of backlog, frames of senders that understand ECN are marked (RFC 3168), and above the burst, frames are
//! dropped.
//!
//! Both are a clock of virtual time for each bucket (GCRA, ITU-T I.371): one atomic number, shared by all queues and workers.

use std::iter::Sum;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use crosspoint_frame::{Burst, Decision, Frame, tsc};
use crosspoint_packet::headers::Headers;

use crate::egress::deliver::unicast;
use crate::egress::tx::Tx;
use crate::snapshot::{PortSnapshot, Snapshot};

/// Backlog of the phantom queue above which frames are marked: what a queue of a millisecond would hold.
pub const MARK_AFTER: Duration = Duration::from_millis(1);
/// A burst beyond the credit that is taken at once: so that a fast port is polled for bursts, and not for single frames.
const DEBT_MAX: Duration = Duration::from_micros(100);
/// The shortest burst of a limit of packets: the longest burst that a worker takes.
const PACKETS_BURST_MIN: u64 = crosspoint_frame::BURST as u64;
/// A burst of packets lasts no less than a second divided by this.
const PACKETS_BURSTS_PER_SECOND: u64 = 200;
/// Fractions of a time stamp counter's cycle in which virtual time is counted. At 5 GHz the count lasts for seven years.
const TICKS_PER_CYCLE: u64 = 16;
/// Binary places of the ticks that one byte or packet takes.
const COST_SHIFT: u32 = 16;

/// A rate limit; the default is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RateLimit {
    /// Bits per second of whole Ethernet frames, without preamble and checksum; 0 for no limit.
    pub bits_per_s: u64,
    /// Bytes that may be sent at once after a pause, or that may wait in the phantom queue.
    pub burst_bytes: u64,
    /// Packets per second, a large frame counted as the segments that it is cut into; 0 for no limit.
    pub packets_per_s: u64,
}

impl RateLimit {
    /// Returns whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.bits_per_s == 0 && self.packets_per_s == 0
    }
}

/// Limits of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RateLimits {
    /// What the guest sends.
    pub out: RateLimit,
    /// What is sent to the guest.
    pub in_: RateLimit,
}

/// The buckets of one limit, shared by all queues of a port and all workers.
#[derive(Debug)]
pub struct Meter {
    limit: RateLimit,
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
    /// [`MARK_AFTER`] and [`DEBT_MAX`], ticks.
    mark_after: u64,
    debt_max: u64,
}

/// What to do with a frame for a port with a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policed {
    /// Deliver it.
    Pass,
    /// Deliver it, marked if it can be.
    Mark,
    /// Drop it.
    Drop,
}

/// A bucket as a clock: the time until which everything that was taken has been paid for.
#[derive(Debug)]
struct Bucket {
    /// Ticks that one byte or packet takes, with [`COST_SHIFT`] binary places.
    cost: u64,
    /// Ticks that a full bucket lasts.
    depth: u64,
    paid_until: CachePadded<AtomicU64>,
}

impl Bucket {
    /// A bucket of `depth` units for `rate` units per second, full at `now`, ticks; `hz` is ticks per second.
    fn new(rate: u64, depth: u64, hz: u64, now: u64) -> Option<Bucket> {
        let rate = u128::from(rate);
        let cost = (u128::from(hz) << COST_SHIFT).checked_div(rate)?;
        let depth = u128::from(depth) * u128::from(hz) / rate;
        let depth = u64::try_from(depth).unwrap_or(u64::MAX);
        Some(Bucket {
            cost: u64::try_from(cost).unwrap_or(u64::MAX),
            depth,
            paid_until: CachePadded::new(AtomicU64::new(now.saturating_sub(depth))),
        })
    }

    /// Ticks that `units` take.
    fn ticks(&self, units: u64) -> u64 {
        let ticks = (u128::from(units) * u128::from(self.cost)) >> COST_SHIFT;
        // No burst takes longer than a day, whatever the rate: the sum below stays far from overflow.
        u64::try_from(ticks).unwrap_or(u64::MAX).min(1 << 53)
    }

    /// Takes `ticks`, whether they are there or not. No more than `depth` ticks before `now` are left to be used later.
    fn take(&self, ticks: u64, now: u64, depth: u64) {
        let floor = now.saturating_sub(depth);
        if self.paid_until.load(Ordering::Relaxed) < floor {
            self.paid_until.fetch_max(floor, Ordering::Relaxed);
        }
        self.paid_until.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Ticks after `now` until which everything taken has been paid for.
    #[inline(always)]
    fn backlog(&self, now: u64) -> u64 {
        self.paid_until.load(Ordering::Relaxed).saturating_sub(now)
    }
}

/// The time stamp counter's value in ticks.
#[inline(always)]
fn ticks_of(cycles: u64) -> u64 {
    cycles.wrapping_mul(TICKS_PER_CYCLE)
}

impl Meter {
    /// The meter of a limit, with full buckets; `None` if nothing is limited. `hz` is the time stamp counter's frequency
    /// and `now` its value.
    pub fn new(limit: RateLimit, hz: f64, now: u64) -> Option<Meter> {
        let hz = (hz.max(1.0) * TICKS_PER_CYCLE as f64) as u64;
        let now = ticks_of(now);
        let ticks = |time: Duration| (u128::from(hz) * time.as_nanos() / 1_000_000_000) as u64;
        let packets_burst =
            (limit.packets_per_s / PACKETS_BURSTS_PER_SECOND).max(PACKETS_BURST_MIN);
        let meter = Meter {
            limit,
            bytes: Bucket::new(limit.bits_per_s / 8, limit.burst_bytes, hz, now),
            packets: Bucket::new(limit.packets_per_s, packets_burst, hz, now),
            mark_after: ticks(MARK_AFTER),
            debt_max: ticks(DEBT_MAX),
        };
        (!limit.is_unlimited()).then_some(meter)
    }

    /// Returns the limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.bytes.iter().chain(&self.packets)
    }

    /// Returns the cycles after `now` until which nothing may be taken; 0 if something may be.
    #[inline(always)]
    pub fn wait(&self, now: u64) -> u64 {
        let now = ticks_of(now);
        let backlogs = self.buckets().map(|bucket| bucket.backlog(now));
        backlogs.max().unwrap_or(0).div_ceil(TICKS_PER_CYCLE)
    }

    /// Returns how many frames of size `mean` a burst may have at `now`, at least one: what there is credit for, and what is
    /// earned in [`DEBT_MAX`].
    pub fn frames(&self, mean: Size, now: u64) -> usize {
        let now = ticks_of(now);
        let units = [(&self.bytes, mean.bytes), (&self.packets, mean.packets)];
        let frames = units.into_iter().filter_map(|(bucket, units)| {
            let bucket = bucket.as_ref()?;
            let credit = now.saturating_sub(bucket.paid_until.load(Ordering::Relaxed));
            (credit.min(bucket.depth) + self.debt_max).checked_div(bucket.ticks(units))
        });
        let most = frames.min().unwrap_or(u64::MAX);
        most.clamp(1, crosspoint_frame::BURST as u64) as usize
    }

    /// Pays for a burst that was taken, at `now`.
    pub fn take(&self, size: Size, now: u64) {
        let now = ticks_of(now);
        let units = [(&self.bytes, size.bytes), (&self.packets, size.packets)];
        for (bucket, units) in units {
            if let Some(bucket) = bucket {
                bucket.take(bucket.ticks(units), now, bucket.depth);
            }
        }
    }

    /// Decides about a frame, or several together, for the port at `now`, and counts what passes.
    pub fn police(&self, size: Size, now: u64) -> Policed {
        let mut policing = self.policing(now);
        let policed = policing.decide(size);
        policing.finish();
        policed
    }

    /// Begins to decide about frames that follow each other, at `now`.
    fn policing(&self, now: u64) -> Policing<'_> {
        let now = ticks_of(now);
        let backlog = |bucket: &Option<Bucket>| bucket.as_ref().map_or(0, |one| one.backlog(now));
        Policing {
            meter: self,
            now,
            backlogs: [backlog(&self.bytes), backlog(&self.packets)],
            taken: [0; 2],
        }
    }
}

/// Decisions about frames for one port that follow each other in a burst. The meter is read once and written once, not for
/// each frame: its cache line is shared. So several workers may together exceed the burst by a burst of frames each.
struct Policing<'m> {
    meter: &'m Meter,
    now: u64,
    /// Of bytes and of packets: ticks until everything taken has been paid for, and what these frames have taken.
    backlogs: [u64; 2],
    taken: [u64; 2],
}

impl Policing<'_> {
    fn decide(&mut self, size: Size) -> Policed {
        let buckets = [&self.meter.bytes, &self.meter.packets];
        let depths = buckets.map(|bucket| bucket.as_ref().map_or(u64::MAX, |one| one.depth));
        let [bytes, packets] = self.backlogs;
        if bytes > depths[0] || packets > depths[1] {
            return Policed::Drop;
        }
        let units = [size.bytes, size.packets];
        let counts = self.backlogs.iter_mut().zip(&mut self.taken);
        for ((bucket, units), (backlog, taken)) in buckets.into_iter().zip(units).zip(counts) {
            let ticks = bucket.as_ref().map_or(0, |one| one.ticks(units));
            *backlog += ticks;
            *taken += ticks;
        }
        match self
            .backlogs
            .iter()
            .any(|backlog| *backlog > self.meter.mark_after)
        {
            true => Policed::Mark,
            false => Policed::Pass,
        }
    }

    /// Counts what has passed.
    fn finish(self) {
        let buckets = [&self.meter.bytes, &self.meter.packets];
        for (bucket, ticks) in buckets.into_iter().zip(self.taken) {
            if let (Some(bucket), true) = (bucket, ticks > 0) {
                bucket.take(ticks, self.now, 0);
            }
        }
    }
}

/// What a limit counts of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Bytes on the wire, without preamble and checksum.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

impl Size {
    /// The size of one frame: a large one as the segments that it is cut into, each with its headers.
    pub fn of(frame: &Frame) -> Size {
        let (len, offload) = (u64::from(frame.len), &frame.offload);
        if offload.gso_type == 0 {
            return Size {
                bytes: len,
                packets: 1,
            };
        }
        let headers = u64::from(offload.hdr_len);
        let payload = len.saturating_sub(headers);
        let packets = payload.div_ceil(u64::from(offload.gso_size.max(1))).max(1);
        Size {
            bytes: len + (packets - 1) * headers,
            packets,
        }
    }

    /// The size of all frames of a burst.
    pub fn of_burst(burst: &Burst) -> Size {
        burst.frames().iter().map(Size::of).sum()
    }

    /// The mean of `count` frames that have this size together, rounded up.
    pub(crate) fn mean(self, count: usize) -> Size {
        let count = count.max(1) as u64;
        Size {
            bytes: self.bytes.div_ceil(count),
            packets: self.packets.div_ceil(count),
        }
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Size>>(sizes: I) -> Size {
        sizes.fold(Size::default(), |all, one| Size {
            bytes: all.bytes + one.bytes,
            packets: all.packets + one.packets,
        })
    }
}

/// Polices the frames of a burst that go to one port each: marks frames, and notes in `tx` which ones are dropped. What a
/// guest sends to an uplink passes: the guest waits for the uplink's rate, and pays for what the NIC took (`egress/uplink.rs`).
/// Another uplink cannot wait; its frames are dropped while it has had more than its share of a rate that is used up.
#[cold]
#[inline(never)]
pub(crate) fn police(burst: &mut Burst, ingress: u16, view: &Snapshot, tx: &mut Tx) {
    let now = tsc();
    let source = view.port(ingress);
    let is_guest = source.is_some_and(|port| !port.is_uplink);
    let (mut run, mut is_ahead): (Option<(u16, Policing<'_>)>, _) = (None, false);
    for (index, frame) in burst.frames_mut().iter_mut().enumerate() {
        let Decision::Port(number) = frame.verdict.decision() else {
            continue;
        };
        if tx.packets.refusal(index).is_some() {
            continue;
        }
        let Some((port, meter)) = metered(view, number) else {
            continue;
        };
        // What does not arrive for another reason uses up no rate.
        let arrives = unicast(frame, (source, number), view).is_ok();
        if !arrives || (is_guest && port.is_uplink) {
            continue;
        }
        if run.as_ref().is_none_or(|(of, _)| *of != number) {
            let share = port.uplink_share.as_ref();
            is_ahead =
                meter.wait(now) > 0 && share.is_some_and(|share| share.is_ahead(ingress, now));
            let before = run.replace((number, meter.policing(now)));
            before
                .into_iter()
                .for_each(|(_, policing)| policing.finish());
        }
        if is_ahead {
            tx.over_rate |= 1 << index;
            continue;
        }
        match run
            .as_mut()
            .map(|(_, policing)| policing.decide(Size::of(frame)))
        {
            None | Some(Policed::Pass) => {}
            Some(Policed::Mark) => {
                let is_marked = mark_congestion(frame);
                let counters = port.counters.at(tx.worker, 0);
                counters.ecn_marked.add(u64::from(is_marked));
            }
            // A burst has no more frames than the mask has bits.
            Some(Policed::Drop) => tx.over_rate |= 1 << index,
        }
    }
    run.into_iter().for_each(|(_, policing)| policing.finish());
}

/// The port and its meter of what is sent to it, if it has one.
fn metered(view: &Snapshot, number: u16) -> Option<(&PortSnapshot, &Meter)> {
    let port = view.port(number)?;
    Some((port, port.meter_in.as_deref()?))
}

/// The ECN codepoint "congestion experienced" (RFC 3168, 5).
const CONGESTION: u8 = 3;

/// Marks a frame whose sender says that its transport understands ECN: "ECT" becomes "congestion experienced". An IPv4
/// header's checksum is adjusted (RFC 1624, equation 3). Returns whether it was marked.
fn mark_congestion(frame: &mut Frame) -> bool {
    let headers = Headers::parse(frame.headers());
    // With two tags, the addresses end at byte 62, so what is read here lies within the head.
    let network = headers.network;
    let head = &mut frame.head;
    match headers.ip_version {
        4 if matches!(head[network + 1] & 3, 1 | 2) => {
            let word = |head: &[u8], at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let before = word(&head[..], network);
            head[network + 1] |= CONGESTION;
            let after = word(&head[..], network);
            let sum =
                u32::from(!word(&head[..], network + 10)) + u32::from(!before) + u32::from(after);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [head[network + 10], head[network + 11]] = (!(sum as u16)).to_be_bytes();
            true
        }
        // The traffic class lies across two bytes; its last two bits are bits 5 and 4 of the second byte.
        6 if matches!(head[network + 1] >> 4 & 3, 1 | 2) => {
            head[network + 1] |= CONGESTION << 4;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HZ: u64 = 2_600_000_000;

    fn meter(bits_per_s: u64, burst_bytes: u64, packets_per_s: u64) -> Meter {
        let limit = RateLimit {
            bits_per_s,
            burst_bytes,
            packets_per_s,
        };
        Meter::new(limit, HZ as f64, 1 << 40).unwrap()
    }

    fn size(bytes: u64) -> Size {
        Size { bytes, packets: 1 }
    }

    proptest! {
        /// A sender that always has frames gets its rate over a second to within 0.5 % and one burst of what a poll takes,
        /// whatever it sends and however long polls are apart.
        #[test]
        fn a_shaped_sender_gets_exactly_its_rate(
            megabits in prop_oneof![1u64..1000, 1000u64..100_000],
            polls in prop::collection::vec((100u64..200_000, 60u64..100_000), 50..100),
        ) {
            let meter = meter(megabits * 1_000_000, 4 << 20, 0);
            let start = 1u64 << 40;
            let (mut now, mut sent) = (start, 0u64);
            // The burst that it may send after a pause.
            for (gap, bytes) in polls.iter().cycle() {
                if now > start + HZ {
                    break;
                }
                now += gap;
                if meter.wait(now) == 0 {
                    meter.take(size(*bytes), now);
                    sent += bytes;
                } else if meter.wait(now) > *gap {
                    now += meter.wait(now);
                }
            }
            let seconds = (now - start) as f64 / HZ as f64;
            let fair = megabits as f64 * 125_000.0 * seconds;
            // What it takes without a pause bounds it from above at high rates.
            prop_assert!(sent as f64 <= fair * 1.005 + (4 << 20) as f64 + 100_000.0, "{} of {}", sent, fair);
            let able: f64 = polls.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>()
                / polls.iter().map(|(gap, _)| *gap as f64).sum::<f64>() * HZ as f64 * seconds;
            prop_assert!(sent as f64 >= fair.min(able) * 0.98 - 200_000.0, "{} of {} or {}", sent, fair, able);
        }

        /// The phantom queue holds no more than the burst and one frame; marks come before drops.
        #[test]
        fn what_passes_keeps_to_the_rate_and_marks_come_before_drops(
            frames in prop::collection::vec((0u64..20_000, 60u64..1514), 100..600),
        ) {
            let meter = meter(1_000_000_000, 256 << 10, 0);
            let start = 1u64 << 40;
            let (mut now, mut passed, mut marked) = (start, 0u64, false);
            for (gap, bytes) in frames {
                now += gap;
                match meter.police(size(bytes), now) {
                    Policed::Pass => passed += bytes,
                    Policed::Mark => {
                        passed += bytes;
                        marked = true;
                    }
                    Policed::Drop => prop_assert!(marked),
                }
                let most = (now - start) as f64 / HZ as f64 * 125e6 + (256 << 10) as f64 + 1514.0;
                prop_assert!(passed as f64 <= most + 1.0, "{} of {}", passed, most);
            }
        }
    }

    #[test]
    fn packets_are_limited_beside_bytes() {
        let meter = meter(0, 0, 1_000_000);
        let now = 1u64 << 40;
        let burst = Size {
            bytes: 1 << 20,
            packets: 5000 + 1000,
        };
        assert_eq!(meter.wait(now), 0);
        meter.take(burst, now);
        // A full bucket of 5000, and 1000 more: a millisecond.
        let wait = meter.wait(now) as f64;
        assert!((wait - HZ as f64 / 1000.0).abs() < 100.0, "{wait}");
    }

    #[test]
    fn a_large_frame_counts_as_its_segments() {
        let mut burst = Burst::new();
        burst.push_short(&[0; 60]);
        let frame = &mut burst.frames_mut()[0];
        frame.len = 54 + 10 * 1448 + 1;
        frame.offload.gso_type = 1;
        frame.offload.gso_size = 1448;
        frame.offload.hdr_len = 54;
        let expected = Size {
            bytes: 54 + 10 * 1448 + 1 + 10 * 54,
            packets: 11,
        };
        assert_eq!(Size::of(frame), expected);
    }

    /// Marks are what etherparse reads, checksum included, with and without tags.
    #[test]
    fn marks_are_as_another_parser_reads_them() {
        use etherparse::{IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket};
        let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]];
        for (ecn, tags, v6) in (0..4u8).flat_map(|ecn| {
            tags.iter()
                .flat_map(move |tag| [(ecn, *tag, false), (ecn, *tag, true)])
        }) {
            let mut bytes = [&[2; 12][..], tags].concat();
            if v6 {
                bytes.extend([0x86, 0xdd]);
                let header = Ipv6Header {
                    traffic_class: 0x28 | ecn,
                    next_header: IpNumber::IPV6_NO_NEXT_HEADER,
                    ..Ipv6Header::default()
                };
                bytes.extend(header.to_bytes());
            } else {
                bytes.extend([8, 0]);
                let number = IpNumber::EXPERIMENTAL_AND_TESTING_0;
                let mut header = Ipv4Header::new(0, 64, number, [1; 4], [2; 4]).unwrap();
                header.ecn = ecn.try_into().unwrap();
                header.header_checksum = header.calc_header_checksum();
                bytes.extend(header.to_bytes());
            }
            let mut short = [0; 64];
            short[..bytes.len()].copy_from_slice(&bytes);
            let mut burst = Burst::new();
            burst.push_short(&[0; 64]);
            let frame = &mut burst.frames_mut()[0];
            frame.head = short;
            assert_eq!(mark_congestion(frame), matches!(ecn, 1 | 2));
            let wanted = if matches!(ecn, 1 | 2) { 3 } else { ecn };
            let sliced = SlicedPacket::from_ethernet(&frame.head[..bytes.len()]).unwrap();
            match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.ecn.value(), wanted);
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                NetSlice::Ipv6(ip) => assert_eq!(ip.header().traffic_class(), 0x28 | wanted),
                _ => panic!("IP"),
            }
        }
    }
}
