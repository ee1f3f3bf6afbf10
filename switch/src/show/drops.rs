//! Drops as a table: grouped by reason, each of which is explained once.

use crosspoint_model::rows::{DropRow, SenderRow};

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
            sender(row),
        ];
        table.add_with_note(cells, heads.meaning);
    }
    table.render() + about_senders(rows.iter())
}

/// The most senders that a line has.
const SENDERS_MAX: usize = 3;

/// The sender of what was dropped; of several, those with most dropped copies.
pub(super) fn sender(row: &DropRow) -> String {
    if row.senders.is_empty() {
        return or_dash(row.sender.as_deref(), str::to_owned);
    }
    let one = |sender: &SenderRow| {
        let name = sender.port.as_deref().unwrap_or("(removed ports)");
        format!("{name} {}", count(sender.dropped))
    };
    let shown = row.senders.iter().take(SENDERS_MAX).map(one);
    let more = (row.senders.len() > SENDERS_MAX).then(|| "...".to_owned());
    let all: Vec<String> = shown.chain(more).collect();
    format!("one of: {}", all.join(", "))
}

/// What the counts of senders are; empty if none is shown.
pub(super) fn about_senders<'r>(mut rows: impl Iterator<Item = &'r DropRow>) -> &'static str {
    match rows.any(|row| !row.senders.is_empty()) {
        true => {
            "\nWhere several ports may be the sender, each has the number of its copies that receivers\ndropped, at any port and for any reason.\n"
        }
        false => "",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_possible_senders_are_named_with_what_they_lost() {
        let sender = |port: Option<&str>, dropped| SenderRow {
            port: port.map(str::to_owned),
            dropped,
        };
        let row = |senders: Vec<SenderRow>| DropRow {
            port: "web".to_owned(),
            reason: "guest_ring_full".to_owned(),
            count: 9,
            senders,
            ..DropRow::default()
        };
        let all = vec![sender(Some("a"), 42), sender(None, 7), sender(Some("b"), 1)];
        let text = drops(&[row(all.clone())]);
        assert!(
            text.contains("one of: a 42, (removed ports) 7, b 1\n"),
            "{text}"
        );
        assert!(text.contains("for any reason"), "{text}");
        let more = drops(&[row([all, vec![sender(Some("c"), 1)]].concat())]);
        assert!(more.contains("b 1, ...\n"), "{more}");
        let none = drops(&[row(Vec::new())]);
        assert!(
            !none.contains("one of") && !none.contains("any reason"),
            "{none}"
        );
    }
}
