//! Prometheus' text format, written directly.
//!
//! For the families of queues, which have tens of thousands of series on a large host: the `prometheus` crate makes several
//! strings for each before it writes the first, which takes longer than all the rest of a scrape.

use std::fmt::{Display, Write};

use prometheus::proto::MetricType;

use super::families::Family;

/// Labels in their written form: `port="web-1",queue="0"`.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(String);

impl Labels {
    /// Adds a label.
    pub fn with(mut self, name: &str, value: &str) -> Labels {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }
}

/// The text written so far.
#[derive(Debug, Default)]
pub(super) struct Text {
    text: String,
    /// Where the header lines of the current family begin, if it has no sample yet.
    empty: Option<usize>,
    name: &'static str,
}

impl Text {
    /// Continues after `text`.
    pub fn after(text: String) -> Text {
        Text {
            text,
            empty: None,
            name: "",
        }
    }

    /// Begins a family.
    pub fn begin(&mut self, family: &Family) {
        self.drop_empty();
        (self.empty, self.name) = (Some(self.text.len()), family.name);
        let kind = match family.kind {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            _ => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.text,
            "# HELP {0} {1}\n# TYPE {0} {kind}",
            family.name, family.help
        );
    }

    /// Writes one sample of the family.
    pub fn add(&mut self, labels: &Labels, value: impl Display) {
        self.line("", labels, "", value);
    }

    /// Writes a histogram of the family: bounds, as text, with the counts of values that do not exceed them, and the count
    /// and the sum of all values.
    pub fn add_histogram(
        &mut self,
        labels: &Labels,
        buckets: impl Iterator<Item = (impl AsRef<str>, u64)>,
        (count, sum): (u64, impl Display),
    ) {
        for (bound, count) in buckets {
            self.line("_bucket", labels, bound.as_ref(), count);
        }
        self.line("_bucket", labels, "+Inf", count);
        self.line("_sum", labels, "", sum);
        self.line("_count", labels, "", count);
    }

    fn line(&mut self, suffix: &str, labels: &Labels, bound: &str, value: impl Display) {
        self.empty = None;
        let text = &mut self.text;
        for part in [self.name, suffix, "{", &labels.0] {
            text.push_str(part);
        }
        if !bound.is_empty() {
            for part in [",le=\"", bound, "\""] {
                text.push_str(part);
            }
        }
        let _ = writeln!(text, "}} {value}");
    }

    /// Removes the header of a family without samples.
    fn drop_empty(&mut self) {
        if let Some(begin) = self.empty.take() {
            self.text.truncate(begin);
        }
    }

    /// Returns the whole text.
    pub fn finish(mut self) -> String {
        self.drop_empty();
        self.text
    }
}
