//! Checks a port's `slo = { ... }`.

use super::Slo;
use super::check::Checker;
use super::field::{Field, Table};
use super::limits::{SLO_MAX, SLO_MIN};
use super::raw::RawSlo;

const HELP: &str = "for example: slo = { completion_p99 = \"20us\" }";

/// The objectives of a port, if it has any.
pub(super) fn slo(checker: &mut Checker, field: Field<Table<RawSlo>>) -> Option<Slo> {
    let must = "a table with `completion_p50` or `completion_p99`";
    let (Table(raw), span) = checker.value(field, "slo", must, HELP)?;
    let is_empty = raw.completion_p50.span().is_none() && raw.completion_p99.span().is_none();
    // A misspelt key has been reported already.
    if is_empty && !checker.has_problem_in(&span) {
        let message = "`slo` has neither `completion_p50` nor `completion_p99`".to_owned();
        checker.problem(span, message, "nothing in it", HELP);
        return None;
    }
    let mut time = |field, key| checker.duration(field, key, SLO_MIN..=SLO_MAX, "20us");
    let slo = Slo {
        completion_p50: time(raw.completion_p50, "completion_p50"),
        completion_p99: time(raw.completion_p99, "completion_p99"),
    };
    if let (Some(p50), Some(p99)) = (slo.completion_p50, slo.completion_p99)
        && p50 > p99
    {
        let message = "`completion_p50` is longer than `completion_p99`".to_owned();
        let help = "p50 cannot be longer than p99: exchange the two values";
        checker.problem(span, message, "the wrong way round", help);
    }
    Some(slo)
}
