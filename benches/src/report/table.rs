//! The writer of Markdown tables.

use std::fmt::{self, Display, Write};

/// A table. Its cells are given as text with ` | ` between them.
pub struct Table {
    text: String,
    columns: usize,
    rows: usize,
}

impl Table {
    /// A table with these titles. Those that begin with `>` are of columns of numbers.
    pub fn new(titles: &str) -> Self {
        let (names, aligns): (Vec<&str>, Vec<&str>) = titles
            .split(" | ")
            .map(|title| match title.strip_prefix('>') {
                Some(name) => (name, "--:"),
                None => (title, "---"),
            })
            .unzip();
        Self {
            text: format!("| {} |\n|{}|\n", names.join(" | "), aligns.join("|")),
            columns: aligns.len(),
            rows: 0,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl Display) {
        let from = self.text.len();
        let _ = writeln!(self.text, "| {cells} |");
        let columns = self.text[from..].matches(" | ").count() + 1;
        debug_assert_eq!(columns, self.columns, "{}", &self.text[from..]);
        self.rows += 1;
    }

    /// The table under a heading, if it has rows.
    pub fn under(self, heading: &str) -> String {
        match self.rows {
            0 => String::new(),
            _ => format!("{heading}\n{}", self.text),
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A value with this many digits, if there is one.
pub fn fixed(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

/// A number with three digits, or with all digits before the point.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// A part, 0 to 1, in percent.
pub fn percent(part: Option<f64>) -> String {
    match part {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(part) if part < 1e-3 => format!("{:.0e} %", part * 100.0),
        Some(part) => format!("{:.1} %", part * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_numbers_are_on_the_right_and_small_parts_are_short() {
        let mut table = Table::new("switch | >a <b> / c");
        table.row(format_args!("a | {}", percent(Some(2e-6))));
        assert_eq!(
            table.under("# A"),
            "# A\n| switch | a <b> / c |\n|---|--:|\n| a | 2e-4 % |\n"
        );
        assert_eq!(Table::new("x").under("# A"), "");
        assert_eq!(
            [0.1234, 12.34, 1234.5].map(number),
            ["0.123", "12.3", "1234"]
        );
    }
}
