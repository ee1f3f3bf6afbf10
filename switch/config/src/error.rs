//! Configuration errors: what is wrong, where, and how to fix it.

use std::{collections::BTreeSet, fmt, sync::Arc};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};
use thiserror::Error;

use super::limits::PROBLEMS_MAX;

/// The longest excerpt around a mistake. A file may be a single line of a million bytes.
const EXCERPT_BYTES_MAX: usize = 4096;

/// A file's name and text, shared by everything that points into it.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    pub name: Arc<str>,
    pub text: Arc<str>,
    /// The original text, before it was made [`printable`].
    pub raw: Arc<str>,
    /// 0 for the main file, then the sorted position in `ports_dir`; unique. Problems and ports are kept in this order.
    pub order: usize,
    /// The position in the order of checks: if values of two files clash, the file with the higher rank is to blame.
    pub rank: usize,
}

impl SourceFile {
    pub(super) fn new(name: &str, text: &str) -> Self {
        // No position can be marked in an empty text, not even its beginning.
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

    /// Whether miette's excerpt of a span (its lines and one on either side) is too long for a reader.
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

    /// Line and column, both counted from one, the column in characters.
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

/// Replaces control characters by '?', byte for byte, so that positions stay valid. (miette would also start a line at
/// a carriage return, and so count lines differently.)
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

/// [`printable`] for a single line, such as a file's name, which can be chosen by anyone who can create the file.
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

/// A mistake in a configuration.
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
    /// The other place, if two values clash.
    #[label("first used here")]
    pub(super) first: Option<SourceSpan>,
    /// The other place if it is in another file; at most one.
    #[related]
    pub(super) elsewhere: Vec<Elsewhere>,
    /// The file's name, even if it has no text.
    pub(super) name: Arc<str>,
    /// [`SourceFile::order`] of the file.
    pub(super) order: usize,
}

/// The first of two clashing values, in another file.
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
    /// A problem without a place in a file.
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

    /// The problem.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to fix it.
    pub fn help_text(&self) -> &str {
        &self.help
    }

    /// The problem without its place: the value's mistake, and the port with which it clashes.
    pub fn in_one_line(&self) -> String {
        let label = match self.message.contains(" must be ") {
            true => format!(": {}", self.label),
            false => String::new(),
        };
        let by = match self.first_port() {
            Some(port) => format!(" by port {port:?}"),
            None => String::new(),
        };
        format!("{}{label}{by}", self.message)
    }

    /// The name of the port whose table has the first of two clashing values.
    fn first_port(&self) -> Option<&str> {
        let first = self.elsewhere.first()?;
        let text = &*first.file.text;
        let begin = text.get(..first.span.offset())?.rfind("[[port]]")?;
        let mut lines = text.get(begin..)?.lines();
        let name = lines.find_map(|line| line.strip_prefix("name = "))?;
        Some(name.trim_matches('"'))
    }

    /// The name of its file.
    pub fn file_name(&self) -> &str {
        &self.name
    }

    /// File name, line and column of the other value, if it clashes with a value in another file.
    pub fn first_elsewhere(&self) -> Option<(&str, usize, usize)> {
        let first = self.elsewhere.first()?;
        let (line, column) = first.file.line_and_column(first.span.offset());
        Some((&first.file.name, line, column))
    }

    /// Line and column of the mistake, counted from one (columns in characters); `None` for a file that cannot be read.
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

/// Why files are not a valid configuration: at least one [`Problem`].
///
/// As a [`Diagnostic`] a single problem stands for itself; several get a heading.
#[derive(Clone, Debug)]
pub struct ConfigError {
    name: String,
    first: Box<Problem>,
    rest: Vec<Problem>,
    /// Number of problems beyond [`super::limits::PROBLEMS_MAX`], which are not listed.
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

    /// An error if there are problems; they are listed in the order of the files. `name` is the main file's.
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

    /// Combines both errors.
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

    /// The problems, at least one, in the order of the files.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        std::iter::once(&*self.first).chain(&self.rest)
    }

    /// The problems as text for people: each with file, line, column, excerpt and how to fix it. Without colour, and
    /// the same on every terminal.
    pub fn render(&self) -> String {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .with_links(false)
            .with_width(100)
            .without_syntax_highlighting();
        let mut report = String::new();
        for problem in self.problems() {
            // Writing to a string does not fail; if miette failed, the plain message is used.
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
