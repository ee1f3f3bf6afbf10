//! Drops as a table: grouped by reason, each of which is explained once.

use crosspoint_model::rows::DropRow;

use super::format::{count, or_dash};
use super::render::stream;
use super::table::Align::{Left, Right};
use super::table::Table;

pub(super) fn drops(rows: &[DropRow]) -> String {
    if rows.is_empty() {
        return "Nothing was dropped.\n".to_owned();
    }
    let mut table = Table::new([
        ("REASON", Left),
        ("QUEUE", Left),
        ("COUNT", Right),
        ("SENDER", Left),
    ]);
    for (row, heads) in by_reason(rows, |row| row, |row| row.count as f64) {
        let cells = [
            heads.reason,
            stream(&row.port, row.queue),
            count(row.count),
            or_dash(row.sender.as_deref(), str::to_owned),
        ];
        table.add_with_note(cells, heads.meaning);
    }
    table.render()
}

/// What is said of a reason once, at its first and its last line.
pub(super) struct Heads {
    /// The reason at the first line, else empty.
    pub(super) reason: String,
    /// Its meaning at the last line, else empty.
    pub(super) meaning: String,
}

/// The rows grouped by reason: the reason with most drops, by `number`, first. Reasons with as many drops keep their order.
pub(super) fn by_reason<T>(
    rows: &[T],
    row: impl Fn(&T) -> &DropRow,
    number: impl Fn(&T) -> f64,
) -> Vec<(&T, Heads)> {
    let mut groups: Vec<(f64, Vec<&T>)> = Vec::new();
    for one in rows {
        let this = row(one);
        let same = |group: &&mut (f64, Vec<&T>)| {
            let first = group.1.first();
            first.is_some_and(|first| row(first).reason == this.reason)
        };
        match groups.iter_mut().find(same) {
            Some((sum, group)) => {
                *sum += number(one);
                group.push(one);
            }
            None => groups.push((number(one), vec![one])),
        }
    }
    groups.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let lines = groups.iter().flat_map(|(_, group)| {
        let last = group.len() - 1;
        group
            .iter()
            .enumerate()
            .map(move |(index, one)| (*one, index, last))
    });
    let heads = lines.map(|(one, index, last)| {
        let only = |is: bool, text: &str| if is { text.to_owned() } else { String::new() };
        let this = row(one);
        let heads = Heads {
            reason: only(index == 0, &this.reason),
            meaning: only(index == last, &this.help),
        };
        (one, heads)
    });
    heads.collect()
}
