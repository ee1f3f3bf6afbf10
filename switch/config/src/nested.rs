//! The tables inside a table that are as they are written, and small checks of them.

use crosspoint_engine::bridge::storm::StormLimits;
use crosspoint_engine::stages::meter::{RateLimit, RateLimits};

use super::key::Reader;
use super::limits::{LIMIT_BURST_DEFAULT_MAX, LIMIT_BURST_DEFAULT_MIN, LIMIT_BURSTS_PER_SECOND};
use super::rules::Nested;
use super::table::RateKeys;
use super::{LoopProtect, MetricsTls, Offloads, Slo};

impl Nested for MetricsTls {
    type Keys = Self;
    const MUST: &'static str = "a table with `certificate` and `key`";
    const HELP: &'static str =
        "for example: tls = { certificate = \"metrics.crt\", key = \"metrics.key\" }";

    fn check(reader: &mut Reader<'_>, keys: Self) -> Option<Self> {
        reader.is_whole.then_some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl Nested for Offloads {
    type Keys = Self;
    const MUST: &'static str = "a table with `receive` or `transmit`";
    const HELP: &'static str = "for example: offloads = { receive = false }";

    fn check(_: &mut Reader<'_>, keys: Self) -> Option<Self> {
        Some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(*self)
    }
}

impl Nested for StormLimits {
    type Keys = Self;
    const MUST: &'static str = "a table with `broadcast`, `multicast` or `unknown_unicast`";
    const HELP: &'static str = "for example: storm = { broadcast = 100000, unknown_unicast = 0 }";

    fn check(_: &mut Reader<'_>, keys: Self) -> Option<Self> {
        Some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(*self)
    }
}

impl Nested for LoopProtect {
    type Keys = Self;
    const MUST: &'static str = "a table with `action` or `block_time`, or an empty one";
    const HELP: &'static str =
        "for example: loop_protect = { action = \"block\" }, or {} to have loops reported";

    fn check(_: &mut Reader<'_>, keys: Self) -> Option<Self> {
        Some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(*self)
    }
}

impl Nested for Slo {
    type Keys = Self;
    const MUST: &'static str = "a table with `completion_p50` or `completion_p99`";
    const HELP: &'static str = "for example: slo = { completion_p99 = \"20us\" }";

    fn check(reader: &mut Reader<'_>, keys: Self) -> Option<Self> {
        if reader.is_without(&["completion_p50", "completion_p99"]) {
            let message = "`slo` has neither `completion_p50` nor `completion_p99`".to_owned();
            reader.problem(message, "nothing in it", Self::HELP);
            return None;
        }
        if let (Some(p50), Some(p99)) = (keys.completion_p50, keys.completion_p99)
            && p50 > p99
        {
            let message = "`completion_p50` is longer than `completion_p99`".to_owned();
            let help = "p50 cannot be longer than p99: exchange the two values";
            reader.problem(message, "the wrong way round", help);
        }
        Some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(*self)
    }
}

impl Nested for RateLimits {
    type Keys = Self;
    const MUST: &'static str = "a table with `out` or `in`";
    const HELP: &'static str = "for example: limit = { out = { rate = \"1Gbit/s\" } }";

    fn check(reader: &mut Reader<'_>, keys: Self) -> Option<Self> {
        if reader.is_without(&["out", "in"]) {
            let message = "`limit` has neither `out` nor `in`".to_owned();
            reader.problem(message, "nothing in it", Self::HELP);
        }
        Some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        (*self != RateLimits::default()).then_some(*self)
    }
}

impl Nested for RateLimit {
    type Keys = RateKeys;
    const MUST: &'static str = "a table with `rate`, `packets` or both";
    const HELP: &'static str = "for example: out = { rate = \"1Gbit/s\", packets = \"500k/s\" }";

    fn check(reader: &mut Reader<'_>, keys: RateKeys) -> Option<Self> {
        if reader.is_without(&["rate", "packets"]) {
            let message = "a limit has neither `rate` nor `packets`".to_owned();
            reader.problem(message, "no limit in it", Self::HELP);
        }
        let bits_per_s = keys.rate.unwrap_or(0);
        Some(RateLimit {
            bits_per_s,
            burst_bytes: keys.burst.unwrap_or_else(|| burst_default(bits_per_s)),
            packets_per_s: keys.packets.unwrap_or(0),
        })
    }

    fn to_keys(&self) -> Option<RateKeys> {
        let some = |value| Some(value).filter(|value| *value > 0);
        let keys = RateKeys {
            rate: some(self.bits_per_s),
            // A burst that follows from the rate goes on to do so when the rate is changed alone.
            burst: some(self.burst_bytes).filter(|burst| *burst != burst_default(self.bits_per_s)),
            packets: some(self.packets_per_s),
        };
        (!self.is_unlimited()).then_some(keys)
    }
}

/// The burst of a rate that has none of its own: what it sends in 5 ms, within bounds; none of no rate.
fn burst_default(bits_per_s: u64) -> u64 {
    match bits_per_s {
        0 => 0,
        rate => (rate / 8 / LIMIT_BURSTS_PER_SECOND)
            .clamp(LIMIT_BURST_DEFAULT_MIN, LIMIT_BURST_DEFAULT_MAX),
    }
}
