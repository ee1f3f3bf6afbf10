//! Findings, and how they are displayed.

use serde::Serialize;

/// The width of a report, columns.
const WIDTH: usize = 80;

/// How bad a finding is. Later ones are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and may be intentional; it could be better.
    Note,
    /// It works, but costs frames, rate or latency.
    Warning,
    /// It does not work as configured.
    Error,
}

impl Severity {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    /// The command's exit status where no finding is worse. 1 and 2 are for the command's own failures.
    pub const fn exit_status(self) -> u8 {
        match self {
            Severity::Ok => 0,
            Severity::Note => 3,
            Severity::Warning => 4,
            Severity::Error => 5,
        }
    }

    /// Its colour on a terminal (SGR).
    const fn colour(self) -> &'static str {
        match self {
            Severity::Ok => "\x1b[32m",
            Severity::Note => "\x1b[36m",
            Severity::Warning => "\x1b[33m",
            Severity::Error => "\x1b[31m",
        }
    }
}

/// A check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, which never changes.
    pub id: &'static str,
    /// What it checks, in a sentence for the documentation.
    pub looks_at: &'static str,
}

impl Check {
    /// Finding that all is well.
    pub(super) fn ok(&self, subject: &str, found: impl Into<String>) -> Finding {
        self.finding(Severity::Ok, subject, found.into(), "", Vec::new())
    }

    /// Finding of a problem, or of something that could be better.
    pub(super) fn finding(
        &self,
        severity: Severity,
        subject: &str,
        found: impl Into<String>,
        cost: &str,
        fix: Vec<String>,
    ) -> Finding {
        Finding {
            id: self.id,
            severity,
            subject: subject.to_owned(),
            found: found.into(),
            cost: cost.to_owned(),
            fix,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// `host`, or the interface or folder concerned.
    pub subject: String,
    /// The state that was found.
    pub found: String,
    /// What that costs. Empty for [`Severity::Ok`].
    pub cost: String,
    /// The commands that fix it, in order. A line that begins with `#` describes a step that no command can do.
    #[serde(rename = "mend")]
    pub fix: Vec<String>,
}

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order of [`CHECKS`](super::CHECKS).
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst severity.
    pub fn worst(&self) -> Severity {
        let all = self.findings.iter().map(|finding| finding.severity);
        all.max().unwrap_or(Severity::Ok)
    }

    /// For programs: see the [module](super).
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "worst": self.worst(), "findings": self.findings })
    }

    /// For people: 80 columns, except for commands, which are never broken.
    pub fn text(&self, colour: bool) -> String {
        let widest = self.findings.iter().map(|finding| finding.id.len()).max();
        let id_width = widest.unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            finding.render(id_width, colour, &mut text);
        }
        text.push_str(&self.summary());
        text
    }

    fn summary(&self) -> String {
        let count = |severity| {
            let same = self.findings.iter().filter(|one| one.severity == severity);
            format!("{} {}", same.count(), severity.word())
        };
        let all = [
            Severity::Error,
            Severity::Warning,
            Severity::Note,
            Severity::Ok,
        ];
        format!("\n{}\n", all.map(count).join(", "))
    }
}

impl Finding {
    fn render(&self, id_width: usize, colour: bool, text: &mut String) {
        const SEVERITY_WIDTH: usize = 7;
        let word = format!("{:SEVERITY_WIDTH$}", self.severity.word());
        let word = match colour {
            true => format!("{}{word}\x1b[0m", self.severity.colour()),
            false => word,
        };
        let found = match self.subject.as_str() {
            "host" => self.found.clone(),
            subject => format!("{subject}: {}", self.found),
        };
        let start = SEVERITY_WIDTH + 2 + id_width + 2;
        let mut lines = wrap(&found, WIDTH - start).into_iter();
        let first = lines.next().unwrap_or_default();
        push(text, &format!("{word}  {:id_width$}  {first}", self.id));
        for line in lines {
            push(text, &format!("{:start$}{line}", ""));
        }
        let (indent, label) = (SEVERITY_WIDTH + 2, 7);
        for (index, line) in wrap(&self.cost, WIDTH - indent - label).iter().enumerate() {
            let label = if index == 0 { "costs  " } else { "       " };
            push(text, &format!("{:indent$}{label}{line}", ""));
        }
        for (index, line) in self.fix.iter().enumerate() {
            let label = if index == 0 { "fix    " } else { "       " };
            push(text, &format!("{:indent$}{label}{line}", ""));
        }
    }
}

/// Adds a line, without control characters other than those of our own colours.
fn push(text: &mut String, line: &str) {
    let visible = |c: char| c == '\x1b' || !c.is_control();
    text.extend(line.trim_end().chars().filter(|c| visible(*c)));
    text.push('\n');
}

/// Breaks a text into lines of at most `width` columns, between words. A longer word has a line to itself.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
