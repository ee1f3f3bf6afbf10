//! Collects the problems of a configuration: of its main file, and of the files of its `ports_dir`.

use std::collections::BTreeSet;

use super::error::{ConfigError, Elsewhere, Problem, SourceFile};
use super::field::{Field, Span};
use super::limits::PROBLEMS_MAX;

/// A stretch of one of the files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: SourceFile,
    pub span: Span,
}

impl Place {
    /// A span that can be underlined: within the text, and not empty unless the text ends there. TOML's own spans
    /// may point behind the last byte.
    fn visible(&self) -> Span {
        let (text, span) = (&*self.file.text, &self.span);
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
}

/// The problems found so far. One file after the other is entered; a bare [`Span`] is of the one entered last.
pub(super) struct Checker {
    pub file: SourceFile,
    /// The name of the main file.
    name: String,
    problems: Vec<Problem>,
    unlisted: usize,
    /// The files that are to blame for a problem, listed or not, by their [`SourceFile::order`].
    bad: BTreeSet<usize>,
    /// `problems`, `unlisted` when the file was entered.
    entered: (usize, usize),
}

impl Checker {
    pub(super) fn new(file: SourceFile) -> Self {
        Self {
            name: file.name.to_string(),
            file,
            problems: Vec::new(),
            unlisted: 0,
            bad: BTreeSet::new(),
            entered: (0, 0),
        }
    }

    /// Goes on to another file.
    pub(super) fn enter(&mut self, file: SourceFile) {
        self.file = file;
        self.entered = (self.problems.len(), self.unlisted);
    }

    /// Where `span` of the file entered last is.
    pub(super) fn place(&self, span: Span) -> Place {
        Place {
            file: self.file.clone(),
            span,
        }
    }

    /// The files that are to blame for a problem, by their [`SourceFile::order`].
    pub(super) fn bad_files(&self) -> &BTreeSet<usize> {
        &self.bad
    }

    /// Notes a problem.
    pub(super) fn problem(
        &mut self,
        span: Span,
        message: String,
        label: &str,
        help: impl Into<String>,
    ) {
        self.problem_at(self.place(span), message, label, help);
    }

    /// Notes a problem in any file.
    pub(super) fn problem_at(
        &mut self,
        place: Place,
        message: String,
        label: &str,
        help: impl Into<String>,
    ) {
        self.bad.insert(place.file.order);
        self.note(place, None, message, label, help.into());
    }

    /// [`Self::problem_at`] a place for which another file may be to blame.
    pub(super) fn problem_by(
        &mut self,
        blamed: &SourceFile,
        place: Place,
        message: String,
        label: &str,
        help: &str,
    ) {
        self.bad.insert(blamed.order);
        self.note(place, None, message, label, help.to_owned());
    }

    /// Notes a problem of a file whose text cannot be read, or that has no place in a text.
    pub(super) fn unplaced(&mut self, message: String, help: &str) {
        self.bad.insert(self.file.order);
        if self.is_full() {
            return self.unlisted += 1;
        }
        let problem = Problem::unplaced(&self.file.name, message, help);
        self.problems.push(Problem {
            order: self.file.order,
            ..problem
        });
    }

    /// Notes a clash with a value given before.
    pub(super) fn clash(&mut self, span: Span, first: Option<Place>, message: String, help: &str) {
        self.clash_at(self.place(span), first, message, help);
    }

    /// [`Self::clash`] in any file.
    pub(super) fn clash_at(
        &mut self,
        place: Place,
        first: Option<Place>,
        message: String,
        help: &str,
    ) {
        self.bad.insert(place.file.order);
        self.note(place, first, message, "used again here", help.to_owned());
    }

    /// Are there as many problems as a report lists?
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() == PROBLEMS_MAX
    }

    /// Counts a problem that is not listed any more.
    pub(super) fn count_unlisted(&mut self) {
        self.bad.insert(self.file.order);
        self.unlisted += 1;
    }

    /// Forgets what was noted of this file, where a later finding makes it moot.
    pub(super) fn forget(&mut self) {
        let (listed, unlisted) = self.entered;
        self.problems.truncate(listed);
        self.unlisted = unlisted;
    }

    /// Has a problem been noted in this stretch of the file?
    pub(super) fn has_problem_in(&self, stretch: &Span) -> bool {
        let of_file = &self.problems[self.entered.0..];
        let mut spans = of_file.iter().filter_map(|problem| problem.span);
        spans.any(|span| stretch.contains(&span.offset()))
    }

    fn note(
        &mut self,
        place: Place,
        first: Option<Place>,
        message: String,
        label: &str,
        help: String,
    ) {
        if self.is_full() {
            return self.unlisted += 1;
        }
        let (here, elsewhere): (Option<Place>, Option<Place>) = match first {
            Some(first) if first.file.order == place.file.order => (Some(first), None),
            first => (None, first),
        };
        let elsewhere = elsewhere.map(|first| Elsewhere {
            span: first.visible().into(),
            file: first.file,
        });
        self.problems.push(Problem {
            message,
            label: label.to_owned(),
            help,
            name: place.file.name.clone(),
            order: place.file.order,
            span: Some(place.visible().into()),
            first: here.map(|first| first.visible().into()),
            file: Some(place.file),
            elsewhere: Vec::from_iter(elsewhere),
        });
    }

    /// The error, if there was any problem.
    pub(super) fn finish(&mut self) -> Result<(), ConfigError> {
        let problems = std::mem::take(&mut self.problems);
        match ConfigError::from_problems(&self.name, problems, self.unlisted) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The error, where a problem has just been noted.
    pub(super) fn into_error(self) -> ConfigError {
        let name = self.name;
        ConfigError::from_problems(&name, self.problems, self.unlisted).unwrap_or_else(|| {
            ConfigError::one(Problem::unplaced(
                &name,
                "not a configuration".to_owned(),
                "",
            ))
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
