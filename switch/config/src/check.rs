//! Collects the problems of a configuration: of its main file and of the files of its `ports_dir`.

use std::collections::BTreeSet;

use super::error::{ConfigError, Elsewhere, Problem, SourceFile};
use super::field::{FromToml, Item, Span};
use super::limits::PROBLEMS_MAX;

/// A range of text in one of the files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: SourceFile,
    pub span: Span,
}

impl Place {
    /// A span that can be underlined: within the text, and not empty unless it is at the end. TOML's own spans may end
    /// behind the last byte.
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

/// The problems found so far. Files are entered one after the other; a bare [`Span`] refers to the last one entered.
pub(super) struct Checker {
    pub file: SourceFile,
    /// The name of the main file.
    name: String,
    problems: Vec<Problem>,
    unlisted: usize,
    /// The files that are to blame for a problem, listed or not, by their [`SourceFile::order`].
    bad: BTreeSet<usize>,
    /// `problems` and `unlisted` when the current file was entered.
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

    /// Enters another file.
    pub(super) fn enter(&mut self, file: SourceFile) {
        self.file = file;
        self.entered = (self.problems.len(), self.unlisted);
    }

    /// The place of `span` in the current file.
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

    /// Records a problem in the current file.
    pub(super) fn problem(
        &mut self,
        span: Span,
        message: String,
        label: &str,
        help: impl Into<String>,
    ) {
        self.problem_at(self.place(span), message, label, help);
    }

    /// Records a problem in any file.
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

    /// Like [`Self::problem_at`], but another file may be to blame.
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

    /// Records a problem of a file whose text cannot be read, or that has no place in the text.
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

    /// Records a clash with an earlier value.
    pub(super) fn clash(&mut self, span: Span, first: Option<Place>, message: String, help: &str) {
        self.clash_at(self.place(span), first, message, help);
    }

    /// Like [`Self::clash`], in any file.
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

    /// Whether the list of problems is full.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() == PROBLEMS_MAX
    }

    /// Counts a problem that is no longer listed.
    pub(super) fn count_unlisted(&mut self) {
        self.bad.insert(self.file.order);
        self.unlisted += 1;
    }

    /// Forgets this file's problems, which a later finding makes irrelevant.
    pub(super) fn forget(&mut self) {
        let (listed, unlisted) = self.entered;
        self.problems.truncate(listed);
        self.unlisted = unlisted;
    }

    /// Whether a problem was recorded in this range of the current file.
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

    /// The error, if there is any problem.
    pub(super) fn finish(&mut self) -> Result<(), ConfigError> {
        let problems = std::mem::take(&mut self.problems);
        match ConfigError::from_problems(&self.name, problems, self.unlisted) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The error, when a problem has just been recorded.
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

    /// The kind of TOML value at `span`, for its label.
    pub(super) fn kind_at(&self, span: &Span) -> &'static str {
        let text = &*self.file.text;
        let (before, value) = (
            text.get(..span.start).unwrap_or_default(),
            text.get(span.clone()).unwrap_or_default(),
        );
        // A section's place is its header, which begins like a list.
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

    /// A key's value and its place; records a value of the wrong type.
    pub(super) fn value<'a, T: FromToml<'a>>(
        &mut self,
        item: &'a Item<'a>,
        key: &str,
        must: &str,
        help: &str,
    ) -> Option<(T, Span)> {
        self.typed(item, &format!("`{key}`"), must, help)
    }

    /// Like [`Self::value`], for a value without a key, such as a list item.
    pub(super) fn typed<'a, T: FromToml<'a>>(
        &mut self,
        item: &'a Item<'a>,
        subject: &str,
        must: &str,
        help: &str,
    ) -> Option<(T, Span)> {
        let value = T::from_toml(item.get_ref());
        if value.is_none() {
            let label = self.kind_at(&item.span());
            self.problem(
                item.span(),
                format!("{subject} must be {must}"),
                label,
                help,
            );
        }
        value.map(|value| (value, item.span()))
    }
}
