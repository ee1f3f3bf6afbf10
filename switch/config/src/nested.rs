//! The tables inside a port's table that are as they are written, and small checks of them.

use crosspoint_engine::bridge::storm::StormLimits;

use super::key::Reader;
use super::rules::Nested;
use super::{LoopProtect, Offloads, Slo};

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
