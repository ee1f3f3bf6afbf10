//! Checks a port's `storm = { ... }`.

use crosspoint_engine::bridge::storm::StormLimits;

use super::check::Checker;
use super::field::{Field, Table};
use super::limits::STORM_MAX;
use super::raw::RawStorm;
use super::values::Number;

const HELP: &str = "for example: storm = { broadcast = 100000, unknown_unicast = 0 }";

/// A port's limits; missing ones are taken from `default`.
pub(super) fn storm(
    checker: &mut Checker,
    field: Field<Table<RawStorm>>,
    default: StormLimits,
) -> StormLimits {
    let must = "a table with `broadcast`, `multicast` or `unknown_unicast`";
    let Some((Table(raw), _)) = checker.value(field, "storm", must, HELP) else {
        return default;
    };
    let mut limit = |field, key: &str, default: u32| {
        let number = Number {
            subject: &format!("`{key}`"),
            range: 0..=STORM_MAX.into(),
            example: &format!("{key} = 100000, or 0 for no limit"),
        };
        let copies = checker.number(field, &number);
        copies
            .and_then(|copies| u32::try_from(copies).ok())
            .unwrap_or(default)
    };
    StormLimits {
        broadcast: limit(raw.broadcast, "broadcast", default.broadcast),
        multicast: limit(raw.multicast, "multicast", default.multicast),
        unknown_unicast: limit(
            raw.unknown_unicast,
            "unknown_unicast",
            default.unknown_unicast,
        ),
    }
}
