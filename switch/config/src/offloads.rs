//! Checks a port's `offloads = { ... }`.

use super::Offloads;
use super::check::Checker;
use super::field::{Field, Table};
use super::raw::RawOffloads;

const HELP: &str = "for example: offloads = { receive = false }";

/// The offloads that a guest is offered; missing keys mean that it is.
pub(super) fn offloads(checker: &mut Checker, field: Field<Table<RawOffloads>>) -> Offloads {
    let must = "a table with `receive` or `transmit`";
    let Some((Table(raw), _)) = checker.value(field, "offloads", must, HELP) else {
        return Offloads::default();
    };
    let mut switch = |field, key| checker.switch(field, key).unwrap_or(true);
    Offloads {
        receive: switch(raw.receive, "receive"),
        transmit: switch(raw.transmit, "transmit"),
    }
}
