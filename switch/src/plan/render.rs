//! Renders a plan as text: one line per change, up to 80 columns if values allow.

use std::fmt::Write as _;

use crosspoint_model::plan::{
    AddedPort, Applied, ChangedEntry, ChangedPort, EntryChange, HowChanged, Key, PlanAnswer,
    ReloadAnswer, Setting,
};
use serde_json::Value;

use crate::show::indented_paragraph;

/// The longest line that is made of several keys.
const COLUMNS: usize = 80;

/// Renders the planned changes:
///
/// ```text
/// + port web-3 (vhost, /run/crosspoint/guests/web-3.sock)
/// - port web-1
/// ~ port web-2: mac_limit 1024 -> 10 (in place)
/// ~ port up0: channels none -> 4 (reopens: its traffic stops for a moment)
/// ~ port web-4: queue_pairs 2 -> 1 (reopens: its traffic stops)
///     ! its front end has 2 queue pairs, and cannot reconnect with fewer: ...
/// ~ metrics.listen: "off" -> "[::]:9477"
/// + fdb 52:54:00:00:00:01 vlan 100 (port = "web-3")
/// - fdb 52:54:00:00:00:02
/// ~ fdb 52:54:00:00:00:03: port "web-1" -> "web-2"
/// ! workers.cores: "auto" -> [2, 3] (needs a restart)
///   port web-5 stays (not in any file)
/// ```
pub fn render(plan: &PlanAnswer) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for name in &plan.remove {
        let _ = writeln!(text, "- port {}", shown(name));
    }
    for port in &plan.change {
        text.push_str(&changed(port));
    }
    for port in &plan.add {
        text.push_str(&added(port));
    }
    for entry in &plan.entries {
        text.push_str(&changed_entry(entry));
    }
    for setting in &plan.settings {
        text.push_str(&set(setting));
    }
    if plan.is_empty() {
        text.push_str("no change\n");
    }
    for name in &plan.not_in_files {
        let _ = writeln!(text, "  port {} stays (not in any file)", shown(name));
    }
    for name in &plan.fdb_not_in_files {
        let _ = writeln!(text, "  fdb {} stays (not in any file)", shown(name));
    }
    text
}

/// Renders the result: the plan, and what of it failed.
pub fn render_reload(answer: &ReloadAnswer) -> String {
    let mut text = render(&answer.plan);
    for failure in &answer.failed {
        let (what, error) = (shown(&failure.what), shown(&failure.error));
        let _ = writeln!(text, "! {what}: failed: {error}");
    }
    for note in &answer.notes {
        let _ = writeln!(text, "  note: {}", shown(note));
    }
    text
}

fn added(port: &AddedPort) -> String {
    let place = port.keys.get("socket").or(port.keys.get("interface"));
    let place = place.and_then(Value::as_str).map(shown);
    let place = place.map_or(String::new(), |place| format!(", {place}"));
    format!(
        "+ port {} ({}{place})\n",
        shown(&port.name),
        shown(&port.kind)
    )
}

fn changed(port: &ChangedPort) -> String {
    let how = match port.how {
        HowChanged::InPlace => "(in place)",
        HowChanged::Reopen if port.warnings.is_empty() => {
            "(reopens: its traffic stops for a moment)"
        }
        HowChanged::Reopen => "(reopens: its traffic stops)",
    };
    let mut keys: Vec<String> = port.keys.iter().map(|key| key_text(key, " ")).collect();
    if keys.is_empty() {
        keys.push("its uplink changes".to_owned());
    }
    let begin = format!("~ port {}:", shown(&port.name));
    let line = format!("{begin} {} {how}", keys.join(", "));
    let warnings = port.warnings.iter();
    let warnings: String = warnings
        .map(|warning| format!("    ! {}\n", shown(warning)))
        .collect();
    if line.chars().count() <= COLUMNS {
        return format!("{line}\n{warnings}");
    }
    let keys: String = keys.iter().map(|key| indented_paragraph(key, 4)).collect();
    format!("{begin} {how}\n{keys}{warnings}")
}

/// A line for a table of a list. Values that its name has are not repeated.
fn changed_entry(entry: &ChangedEntry) -> String {
    let what = format!("{} {}", shown(&entry.list), shown(&entry.name));
    match entry.change {
        EntryChange::Remove => format!("- {what}\n"),
        EntryChange::Change => {
            let keys: Vec<String> = entry.keys.iter().map(|key| key_text(key, " ")).collect();
            indented_paragraph(&format!("~ {what}: {}", keys.join(", ")), 0)
        }
        EntryChange::Add => {
            let in_name = |value: &str| entry.name.split(' ').any(|word| word == value);
            let plain = |key: &Key| {
                key.after
                    .as_str()
                    .map_or(key.after.to_string(), str::to_owned)
            };
            let others = entry.keys.iter().filter(|key| !in_name(&plain(key)));
            let text = |key: &Key| format!("{} = {}", shown(&key.key), value_text(&key.after));
            let others: Vec<String> = others.map(text).collect();
            match others.is_empty() {
                true => format!("+ {what}\n"),
                false => indented_paragraph(&format!("+ {what} ({})", others.join(", ")), 0),
            }
        }
    }
}

fn set(setting: &Setting) -> String {
    let key = key_text(&setting.key, ": ");
    match setting.applied {
        Applied::AtOnce => indented_paragraph(&format!("~ {key}"), 0),
        Applied::Restart => indented_paragraph(&format!("! {key} (needs a restart)"), 0),
    }
}

fn key_text(key: &Key, between: &str) -> String {
    let (before, after) = (value_text(&key.before), value_text(&key.after));
    format!("{}{between}{before} -> {after}", shown(&key.key))
}

/// The value in TOML.
fn value_text(value: &Value) -> String {
    match toml::Value::try_from(value) {
        Ok(value) => shown(&value.to_string()),
        Err(_) => "none".to_owned(),
    }
}

/// Replaces control characters, so that the daemon's text cannot control the terminal.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
