//! Collects the problems of one file.

use super::error::{ConfigError, Problem, SourceFile};
use super::field::{Field, Span};
use super::limits::PROBLEMS_MAX;

/// The problems found so far in one file.
pub(super) struct Checker {
    pub file: SourceFile,
    problems: Vec<Problem>,
    unlisted: usize,
}

impl Checker {
    pub(super) fn new(file: SourceFile) -> Self {
        Self {
            file,
            problems: Vec::new(),
            unlisted: 0,
        }
    }

    /// Notes a problem.
    pub(super) fn problem(
        &mut self,
        span: Span,
        message: String,
        label: &str,
        help: impl Into<String>,
    ) {
        self.note(span, None, message, label, help.into());
    }

    /// Notes a clash with a value given before.
    pub(super) fn clash(&mut self, span: Span, first: Option<Span>, message: String, help: &str) {
        self.note(span, first, message, "used again here", help.to_owned());
    }

    /// Are there as many problems as a report lists?
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() == PROBLEMS_MAX
    }

    /// Counts a problem that is not listed any more.
    pub(super) fn count_unlisted(&mut self) {
        self.unlisted += 1;
    }

    /// Forgets what was noted, where a later finding makes it moot.
    pub(super) fn forget(&mut self) {
        self.problems.clear();
        self.unlisted = 0;
    }

    /// Has a problem been noted in this stretch of the file?
    pub(super) fn has_problem_in(&self, stretch: &Span) -> bool {
        let mut spans = self.problems.iter().filter_map(|problem| problem.span);
        spans.any(|span| stretch.contains(&span.offset()))
    }

    fn note(
        &mut self,
        span: Span,
        first: Option<Span>,
        message: String,
        label: &str,
        help: String,
    ) {
        if self.is_full() {
            return self.count_unlisted();
        }
        self.problems.push(Problem {
            message,
            label: label.to_owned(),
            help,
            file: Some(self.file.clone()),
            span: Some(self.visible(span).into()),
            first: first.map(|first| self.visible(first).into()),
        });
    }

    /// A span that can be underlined: within the text, and not empty unless the text ends there. TOML's own spans
    /// may point behind the last byte.
    fn visible(&self, span: Span) -> Span {
        let text = &*self.file.text;
        let last_start = text
            .char_indices()
            .next_back()
            .map_or(0, |(start, _)| start);
        let mut start = span.start.min(last_start);
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = span.end.min(text.len()).max(start);
        while !text.is_char_boundary(end) {
            end += 1;
        }
        start..end
    }

    /// The error, if there was any problem.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        match ConfigError::from_problems(&self.file.name, self.problems, self.unlisted) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The error, where a problem has just been noted.
    pub(super) fn into_error(self) -> ConfigError {
        let name = self.file.name.clone();
        ConfigError::from_problems(&name, self.problems, self.unlisted).unwrap_or_else(|| {
            ConfigError::one(
                &name,
                Problem::unplaced("not a configuration".to_owned(), ""),
            )
        })
    }

    /// What kind of TOML value stands at `span`, for the label under it.
    pub(super) fn kind_at(&self, span: &Span) -> &'static str {
        let text = &*self.file.text;
        let (before, value) = (
            text.get(..span.start).unwrap_or_default(),
            text.get(span.clone()).unwrap_or_default(),
        );
        // The place of a section is its header, which begins as a list does.
        let begins_line = before.trim_end_matches([' ', '\t']).ends_with('\n');
        let named = value
            .trim_start_matches('[')
            .starts_with(|c: char| c.is_ascii_alphabetic());
        match value.as_bytes() {
            [b'"' | b'\'', ..] => "this is a string",
            [b'[', b'[', ..] if begins_line && named => "this is a list of tables",
            [b'[', ..] if begins_line && named => "this is a table",
            [b'[', ..] => "this is a list",
            [b'{', ..] => "this is a table",
            [b't' | b'f', ..] => "this is a boolean",
            [b'0'..=b'9' | b'+' | b'-', ..] if value.contains('.') => "this has a fraction",
            [b'0'..=b'9' | b'+' | b'-', ..] => "this is a number",
            _ => "not this",
        }
    }

    /// The value and its place; a value of the wrong type is a problem.
    pub(super) fn value<T>(
        &mut self,
        field: Field<T>,
        key: &str,
        must: &str,
        help: &str,
    ) -> Option<(T, Span)> {
        self.typed(field, &format!("`{key}`"), must, help)
    }

    /// [`Self::value`] of what has no key, such as an item of a list.
    pub(super) fn typed<T>(
        &mut self,
        field: Field<T>,
        subject: &str,
        must: &str,
        help: &str,
    ) -> Option<(T, Span)> {
        match field {
            Field::Missing => None,
            Field::Given(value, span) => Some((value, span)),
            Field::Wrong(span) => {
                let label = self.kind_at(&span);
                self.problem(span, format!("{subject} must be {must}"), label, help);
                None
            }
        }
    }
}
