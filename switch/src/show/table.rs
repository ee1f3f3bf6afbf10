//! Aligned tables for a terminal of 80 columns.

/// The width of a table, if its cells allow it.
const WIDTH: usize = 80;
/// The last column is wrapped, but never narrower than this.
const LAST_WIDTH_MIN: usize = 16;
/// The gap between two columns.
const GAP: &str = "  ";
/// Indentation of notes.
const NOTE_INDENT: usize = 4;

/// Alignment of a column's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Rows under a heading. Every column is as wide as its widest cell; only the last is wrapped, between words.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<Row<N>>,
    /// Whether the last column is not wrapped.
    in_one_line: bool,
}

#[derive(Debug)]
struct Row<const N: usize> {
    cells: [String; N],
    note: String,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [(&str, Align); N]) -> Table<N> {
        let heading = Row {
            cells: columns.map(|(name, _)| name.to_owned()),
            note: String::new(),
        };
        Table {
            align: columns.map(|(_, align)| align),
            rows: vec![heading],
            in_one_line: false,
        }
    }

    /// The same table with the last column as wide as its widest cell: each row is one line.
    pub(super) fn in_one_line(self) -> Table<N> {
        Table {
            in_one_line: true,
            ..self
        }
    }

    /// Adds a row.
    pub(super) fn add(&mut self, cells: [String; N]) {
        self.add_with_note(cells, String::new());
    }

    /// Adds a row with a note below it.
    pub(super) fn add_with_note(&mut self, cells: [String; N], note: String) {
        let cells = cells.map(|cell| printable(&cell));
        let note = printable(&note);
        self.rows.push(Row { cells, note });
    }

    /// The text; it ends in a newline.
    pub(super) fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(&row.cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        let before_last = widths.iter().take(N.saturating_sub(1));
        let last_start: usize = before_last.map(|width| width + GAP.len()).sum();
        let last_width = WIDTH.saturating_sub(last_start).max(LAST_WIDTH_MIN);
        if let Some(width) = widths.last_mut()
            && !self.in_one_line
        {
            *width = last_width.min(*width);
        }

        let mut text = String::new();
        for row in &self.rows {
            self.render_row(&row.cells, &widths, last_start, &mut text);
            for line in wrap(&row.note, WIDTH - NOTE_INDENT) {
                push_line(&mut text, &format!("{:NOTE_INDENT$}{line}", ""));
            }
        }
        text
    }

    fn render_row(
        &self,
        cells: &[String; N],
        widths: &[usize; N],
        last_start: usize,
        text: &mut String,
    ) {
        let mut rest = Vec::new();
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let mut cell = cell.as_str();
            if i + 1 == N {
                let mut lines = wrap(cell, *width).into_iter();
                cell = lines.next().unwrap_or("");
                rest = lines.collect();
            }
            let gap = if i == 0 { "" } else { GAP };
            line.push_str(gap);
            line.push_str(&match self.align.get(i) {
                Some(Align::Right) => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
        }
        push_line(text, &line);
        for line in rest {
            push_line(text, &format!("{:last_start$}{line}", ""));
        }
    }
}

/// A text in lines that fit the terminal; all but the first are indented.
pub(super) fn paragraph(text: &str) -> String {
    indented_paragraph(text, 0)
}

/// A text in lines that fit the terminal. The first has this indentation, the others more.
pub(crate) fn indented_paragraph(text: &str, first: usize) -> String {
    let mut lines = String::new();
    let width = WIDTH - first - NOTE_INDENT;
    for (number, line) in wrap(text, width).into_iter().enumerate() {
        let indent = first + if number == 0 { 0 } else { NOTE_INDENT };
        push_line(&mut lines, &format!("{:indent$}{line}", ""));
    }
    lines
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Replaces control characters, invisible characters and those that change the direction of text, whatever the text's
/// source.
pub fn printable(text: &str) -> String {
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let visible = |c: char| if unseen(c) { '\u{fffd}' } else { c };
    text.chars().map(visible).collect()
}

/// Breaks a text into lines of at most `width` characters: between words and, in a longer word, after commas. What is still
/// longer has a line to itself.
fn wrap(text: &str, width: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let (mut start, mut end) = (0, 0);
    for word in text
        .split_inclusive(' ')
        .flat_map(|word| parts(word, width))
    {
        let after = end + word.len();
        let line = text.get(start..after).unwrap_or("");
        if end > start && line.trim_end().chars().count() > width {
            lines.push(text.get(start..end).unwrap_or("").trim_end());
            start = end;
        }
        end = after;
    }
    if end > start {
        lines.push(text.get(start..end).unwrap_or("").trim_end());
    }
    lines
}

/// A word's parts that a line may end with.
fn parts(word: &str, width: usize) -> impl Iterator<Item = &str> {
    let is_long = word.trim_end().chars().count() > width;
    word.split_inclusive(move |c| is_long && c == ',')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wrapping_keeps_every_word_and_the_width(text in "([a-zé]{1,9} ){0,30}[a-z]{1,9}", width in 10usize..60) {
            let lines = wrap(&text, width);
            prop_assert_eq!(lines.join(" "), text.as_str());
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width), "{:?}", lines);
        }

        #[test]
        fn a_long_list_keeps_the_width(ids in prop::collection::vec(1u16..4095, 1..400), width in 10usize..60) {
            let ids: Vec<String> = ids.iter().map(u16::to_string).collect();
            let text = format!("trunk {} native 1", ids.join(","));
            let lines = wrap(&text, width);
            prop_assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width), "{:?}", lines);
        }

        #[test]
        fn columns_are_aligned_and_nothing_controls_the_terminal(cells in prop::collection::vec(("\\PC{0,12}", any::<String>()), 1..10)) {
            let mut table = Table::new([("A", Align::Left), ("B", Align::Right), ("C", Align::Left)]);
            for (first, last) in cells {
                table.add([first, "1".to_owned(), last]);
            }
            let text = table.render();
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
            let column = |line: &str| line.chars().position(|c| c == 'B');
            prop_assert!(text.lines().next().and_then(column).is_some());
        }
    }

    #[test]
    fn the_last_column_continues_below_itself() {
        let mut table = Table::new([("N", Align::Right), ("TEXT", Align::Left)]);
        table.add(["10".to_owned(), "word ".repeat(20)]);
        let text = table.render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], " N  TEXT");
        assert!(lines[1].starts_with("10  word") && lines[1].len() <= WIDTH);
        assert!(lines[2].starts_with("    word"));
    }
}
