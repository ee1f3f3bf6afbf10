//! Checks a port's `loop_protect = { ... }`.

use super::LoopProtect;
use super::check::Checker;
use super::field::{Field, Table};
use super::limits::{LOOP_BLOCK_TIME_DEFAULT, LOOP_BLOCK_TIME_MAX, LOOP_BLOCK_TIME_MIN};
use super::raw::RawLoopProtect;

const HELP: &str =
    "for example: loop_protect = { action = \"block\" }, or {} to have loops reported";

/// A port's loop protection; `None` without the key, so that the port sends no probes.
pub(super) fn loop_protect(
    checker: &mut Checker,
    field: Field<Table<RawLoopProtect>>,
) -> Option<LoopProtect> {
    let must = "a table with `action` or `block_time`, or an empty one";
    let (Table(raw), _) = checker.value(field, "loop_protect", must, HELP)?;
    let action = checker.word(raw.action, "action").unwrap_or_default();
    let range = LOOP_BLOCK_TIME_MIN..=LOOP_BLOCK_TIME_MAX;
    let block_time = checker.duration(raw.block_time, "block_time", range, "60s");
    Some(LoopProtect {
        action,
        block_time: block_time.unwrap_or(LOOP_BLOCK_TIME_DEFAULT),
    })
}
