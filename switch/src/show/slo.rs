//! Service level objectives, in words.

use crosspoint_model::rows::SloRow;

use super::format::{count, or_dash, time_ns};

/// In words: "missed: p99 31 us of 20 us".
pub(super) fn in_words(row: &SloRow) -> String {
    let one = |name: &str, measured, objective: Option<u64>| {
        let measured = or_dash(measured, time_ns);
        objective.map(|objective| format!("{name} {measured} of {}", time_ns(objective)))
    };
    let all = [
        one(
            "p50",
            row.completion_p50_ns,
            row.completion_p50_objective_ns,
        ),
        one(
            "p99",
            row.completion_p99_ns,
            row.completion_p99_objective_ns,
        ),
    ];
    let all = all.into_iter().flatten().collect::<Vec<_>>().join(", ");
    format!("{}: {all}", row.state)
}

/// The same, with the time and the number of completions that it is based on.
pub(super) fn in_full(row: &SloRow) -> String {
    format!(
        "{} ({} completed in the last {:.0} s)",
        in_words(row),
        count(row.completions),
        row.window_s
    )
}
