//! What is wrong with a file, where, and how to mend it.

use std::{collections::BTreeSet, fmt, sync::Arc};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use thiserror::Error;

use super::limits::PROBLEMS_MAX;

/// The most text shown around a mistake. A file may consist of one line of a million bytes.
const EXCERPT_BYTES_MAX: usize = 4096;

/// A file's name and text, shared by all that points into it.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    pub name: Arc<str>,
    pub text: Arc<str>,
    /// The text before it was made [`printable`].
    pub raw: Arc<str>,
    /// 0 for the main file, and then as the files of `ports_dir` are sorted: problems are listed, and ports kept, in this
    /// order. No two files have the same.
    pub order: usize,
    /// When it is checked: of two files whose values clash, the one of the higher rank is to blame.
    pub rank: usize,
}

impl SourceFile {
    pub(super) fn new(name: &str, text: &str) -> Self {
        // Nothing can be pointed at in an empty text, not even its beginning.
        let shown = if text.is_empty() { "\n" } else { text };
        Self {
            name: one_line(name).into(),
            text: printable(shown).into(),
            raw: text.into(),
            order: 0,
            rank: 0,
        }
    }

    pub(super) fn at(self, order: usize, rank: usize) -> Self {
        Self {
            order,
            rank,
            ..self
        }
    }

    /// Is what miette would show of a span, its lines and one more on either side, more than a person reads?
    fn is_long(&self, span: SourceSpan) -> bool {
        let text = self.text.as_bytes();
        let (start, end) = (
            span.offset().min(text.len()),
            (span.offset() + span.len()).min(text.len()),
        );
        let newline = |byte: &u8| *byte == b'\n';
        let before = text[..start]
            .rsplit(newline)
            .take(2)
            .map(<[u8]>::len)
            .sum::<usize>();
        let after = text[end..]
            .split(newline)
            .take(2)
            .map(<[u8]>::len)
            .sum::<usize>();
        before + (end - start) + after > EXCERPT_BYTES_MAX
    }

    /// Line and column, counted from one, the column in characters.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line_start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = self
            .text
            .get(line_start..before.len())
            .map_or(0, |text| text.chars().count())
            + 1;
        (line, column)
    }
}

/// Shows what a terminal would obey as '?': one byte for one byte, so that places stay right. (miette would also begin a
/// line at a carriage return, and then count other lines than we do.)
fn printable(text: &str) -> String {
    let mut chars = text.chars().peekable();
    let mut shown = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        let line_end = c == '\n' || (c == '\r' && chars.peek() == Some(&'\n'));
        shown.push(if c.is_ascii_control() && c != '\t' && !line_end {
            '?'
        } else {
            c
        });
    }
    shown
}

/// [`printable`] of what is in a line: a file's name is its maker's, too.
pub(super) fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

impl SourceCode for SourceFile {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let contents = self
            .text
            .read_span(span, context_lines_before, context_lines_after)?;
        // miette counts columns in bytes; people and editors count characters.
        let column = match context_lines_before {
            0 => self.line_and_column(span.offset()).1 - 1,
            _ => contents.column(),
        };
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.to_string(),
            contents.data(),
            *contents.span(),
            contents.line(),
            column,
            contents.line_count(),
        )))
    }
}

/// One mistake in a configuration.
#[derive(Clone, Debug, Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    pub(super) message: String,
    pub(super) label: String,
    #[help]
    pub(super) help: String,
    #[source_code]
    pub(super) file: Option<SourceFile>,
    #[label(primary, "{label}")]
    pub(super) span: Option<SourceSpan>,
    /// The other place, where two values clash.
    #[label("first used here")]
    pub(super) first: Option<SourceSpan>,
    /// The other place, where it is in another file: no more than one.
    #[related]
    pub(super) elsewhere: Vec<Elsewhere>,
    /// The file's name, also where there is no text.
    pub(super) name: Arc<str>,
    /// [`SourceFile::order`] of the file.
    pub(super) order: usize,
}

/// The first of two places in different files, where two values clash.
#[derive(Clone, Debug, Error, Diagnostic)]
#[error("first used in {}", file.name)]
#[diagnostic(severity(Advice))]
pub(super) struct Elsewhere {
    #[source_code]
    pub file: SourceFile,
    #[label("first used here")]
    pub span: SourceSpan,
}

impl Problem {
    /// A mistake that has no place in a file.
    pub(super) fn unplaced(name: &str, message: String, help: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            order: 0,
            elsewhere: Vec::new(),
            message,
            label: String::new(),
            help: help.into(),
            file: None,
            span: None,
            first: None,
        }
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to mend it.
    pub fn help_text(&self) -> &str {
        &self.help
    }

    /// The name of the file that it is in.
    pub fn file_name(&self) -> &str {
        &self.name
    }

    /// Where a value clashes with one of another file: that file's name, line and column.
    pub fn first_elsewhere(&self) -> Option<(&str, usize, usize)> {
        let first = self.elsewhere.first()?;
        let (line, column) = first.file.line_and_column(first.span.offset());
        Some((&first.file.name, line, column))
    }

    /// Line and column of the mistake, counted from one (columns in characters); none for a file that cannot
    /// be read.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        Some(self.file.as_ref()?.line_and_column(self.span?.offset()))
    }

    fn is_long(&self) -> bool {
        let spans = [self.span, self.first];
        let here = self
            .file
            .as_ref()
            .is_some_and(|file| spans.into_iter().flatten().any(|span| file.is_long(span)));
        let mut elsewhere = self.elsewhere.iter();
        here || elsewhere.any(|first| first.file.is_long(first.span))
    }

    fn without_excerpt(&self) -> String {
        let place = match (&self.file, self.line_and_column()) {
            (Some(file), Some((line, column))) => format!("   ╭─[{}:{line}:{column}]\n", file.name),
            _ => String::new(),
        };
        let first = self
            .first_elsewhere()
            .map(|(name, line, column)| format!("  first used here: [{name}:{line}:{column}]\n"))
            .unwrap_or_default();
        format!(
            "  × {}\n{place}   ╰── {}\n{first}  help: {}\n",
            self.message, self.label, self.help
        )
    }
}

/// Why a file is no configuration: one [`Problem`] or more.
///
/// As a [`Diagnostic`] it is the problem itself if there is one, and otherwise a heading over them.
#[derive(Clone, Debug)]
pub struct ConfigError {
    name: String,
    first: Box<Problem>,
    rest: Vec<Problem>,
    /// Problems beyond [`super::limits::PROBLEMS_MAX`], which are only counted.
    unlisted: usize,
}

impl ConfigError {
    pub(super) fn one(problem: Problem) -> Self {
        Self {
            name: problem.name.to_string(),
            first: Box::new(problem),
            rest: Vec::new(),
            unlisted: 0,
        }
    }

    /// An error if there is a problem; they are listed in the order of the files. `name` is that of the main file.
    pub(super) fn from_problems(
        name: &str,
        mut problems: Vec<Problem>,
        unlisted: usize,
    ) -> Option<Self> {
        problems.sort_by_key(|problem| (problem.order, problem.span.map(|span| span.offset())));
        let mut problems = problems.into_iter();
        let first = Box::new(problems.next()?);
        Some(Self {
            name: name.to_owned(),
            first,
            rest: problems.collect(),
            unlisted,
        })
    }

    /// Both of them.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.unlisted += other.unlisted;
        for problem in std::iter::once(*other.first).chain(other.rest) {
            if self.rest.len() + 1 < PROBLEMS_MAX {
                self.rest.push(problem);
            } else {
                self.unlisted += 1;
            }
        }
        self
    }

    /// The main file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The problems, in the order of the files. There is always one.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        std::iter::once(&*self.first).chain(&self.rest)
    }

    /// The problems as a person reads them: each with file, line, column, the text itself and a way to mend it.
    /// No colour, and the same on every terminal.
    pub fn render(&self) -> String {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .with_links(false)
            .with_width(100)
            .without_syntax_highlighting();
        let mut report = String::new();
        for problem in self.problems() {
            // Writing to a string does not fail; if miette itself did, the bare message still says it.
            if problem.is_long() || handler.render_report(&mut report, problem).is_err() {
                report.push_str(&problem.without_excerpt());
            }
            report.push('\n');
        }
        if !self.rest.is_empty() {
            report.push_str(&format!("{self}\n"));
        }
        report
    }

    fn only(&self) -> Option<&Problem> {
        self.rest.is_empty().then_some(&*self.first)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = self.only() {
            return problem.fmt(f);
        }
        let listed = 1 + self.rest.len();
        write!(f, "{} problems in ", listed + self.unlisted)?;
        let files: BTreeSet<&str> = self.problems().map(|problem| &*problem.name).collect();
        match files.len() {
            1 => f.write_str(&self.first.name)?,
            n => write!(f, "{n} files")?,
        }
        match self.unlisted {
            0 => Ok(()),
            _ => write!(f, " ({listed} are listed)"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Diagnostic for ConfigError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only().and_then(Problem::help)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.only().and_then(Diagnostic::source_code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.only().and_then(Diagnostic::labels)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        match self.only() {
            Some(problem) if problem.elsewhere.is_empty() => None,
            Some(problem) => problem.related(),
            None => Some(Box::new(
                self.problems().map(|problem| problem as &dyn Diagnostic),
            )),
        }
    }
}
