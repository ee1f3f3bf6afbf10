//! How the running switch differs from its files, and writing the difference to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use crosspoint_config::plan::{self, KeyDiff, Plan};
use crosspoint_config::{
    ConfigError, KeepError, Port, Problem, StaticEntry, write_port_file, write_statics,
};
use crosspoint_model::plan::{KeepAnswer, KeptPort, NotKept, Unkept};
use crosspoint_model::request::ChangeError;
use miette::Diagnostic;

use super::asked::in_files_help;
use super::{Changing, Running};

/// How the switch differs from its files, as the last change left it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Differences {
    /// Ports, by name.
    pub unkept: BTreeMap<String, Unkept>,
    /// Mistakes that the last reading found: a line for each.
    pub problems: Vec<String>,
    /// Settings that wait for a restart: a line for each.
    pub restart: Vec<String>,
}

impl Changing {
    /// Records the ports of the files, after they were read.
    pub(super) fn note_files(&mut self, ports: &[Port]) {
        let ports = ports.iter().map(|port| (port.name.clone(), port.clone()));
        self.in_files = ports.collect();
    }

    /// The running ports that are in no file, or differ from their file, and the ports of files that do not run. None if the
    /// switch has no file.
    fn unkept(&self) -> BTreeMap<String, Unkept> {
        if self.loaded.is_none() {
            return BTreeMap::new();
        }
        let of_port = |port: &Port| {
            let unkept = match self.in_files.get(&port.name) {
                None => Unkept::NotInFiles,
                Some(known) if known != port => Unkept::Changed,
                Some(_) => return None,
            };
            Some((port.name.clone(), unkept))
        };
        let mut unkept: BTreeMap<_, _> = self.config.ports.iter().filter_map(of_port).collect();
        let absent = self
            .in_files
            .keys()
            .filter(|name| self.port(name).is_none());
        unkept.extend(absent.map(|name| (name.clone(), Unkept::NotRunning)));
        unkept
    }
}

impl Running {
    /// How the switch differs from its files. Does not wait for a change.
    pub(super) fn differences(&self) -> MutexGuard<'_, Differences> {
        let differences = self.differences.lock();
        differences.unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the list of ports that are not kept. Call it after each change.
    pub(super) fn note_unkept(&self, changing: &Changing) {
        self.differences().unkept = changing.unkept();
    }

    /// Records what the last reading of the files left undone. `plan`: what it changed; `None` if nothing was changed.
    pub(super) fn note_undone(&self, problems: Vec<String>, plan: Option<&Plan>) {
        let mut differences = self.differences();
        differences.problems = problems;
        if let Some(plan) = plan {
            let waiting = plan.needs_restart().map(|setting| setting.diff.text());
            differences.restart = waiting.collect();
        }
    }

    /// The running configuration as a file.
    pub(super) fn text_of_config(&self) -> String {
        let changing = self.lock();
        let unkept = changing.unkept();
        let note = |port: &Port| {
            let unkept = unkept.get(&port.name)?;
            Some(format!("Port {}: {}", port.name, unkept.remark()))
        };
        // The ports of that folder are in this text, too: who reads both finds each of them twice.
        let note_of_folder = "\n# The ports of this folder are below. Remove them there before you use the folder again.";
        let folder = format!("{note_of_folder}\n# ports_dir = ");
        let mut text = changing.config.to_toml(note);
        text = text.replacen("\nports_dir = ", &folder, 1);
        text = text.replacen("\nwatch_ports = true\n", "\n# watch_ports = true\n", 1);
        for entry in &changing.fdb_by_hand {
            text.push_str(&format!(
                "\n# Address {}: {}\n{}",
                entry.name(),
                Unkept::NotInFiles.remark(),
                entry.to_toml()
            ));
        }
        text
    }

    /// Writes all ports that are not kept to their files.
    pub(super) fn keep_all(&self) -> Result<KeepAnswer, ChangeError> {
        let mut changing = self.lock();
        let main = self.main_file()?;
        let ports_dir = changing.config.ports_dir.clone();
        let mut answer = KeepAnswer::default();
        for name in changing.unkept().into_keys() {
            let mut ports = changing.config.ports.iter();
            let Some(port) = ports.find(|port| port.name == name).cloned() else {
                answer.not_kept.push(NotKept {
                    error: "it is in the files, and does not run".to_owned(),
                    help: in_files_help(&name),
                    table: String::new(),
                    name,
                });
                continue;
            };
            match write_port_file(main, ports_dir.as_deref(), &port) {
                Ok(path) => {
                    changing.note_kept(&port);
                    tracing::info!(port = %name, "written to {}", path.display());
                    answer.kept.push(KeptPort { name, path });
                }
                Err(why) => answer.not_kept.push(not_kept(&changing, &port, &why)),
            }
        }
        keep_statics(main, &mut changing, &mut answer);
        changing.set_statics(&self.dataplane);
        self.note_unkept(&changing);
        Ok(answer)
    }
}

/// Writes the static addresses of commands to their file. After a failure the others are tried one by one.
fn keep_statics(main: &Path, changing: &mut Changing, answer: &mut KeepAnswer) {
    for entry in std::mem::take(&mut changing.fdb_by_hand) {
        let name = entry.name();
        match write_statics(main, &changing.config, std::slice::from_ref(&entry)) {
            Ok(path) => {
                tracing::info!("static address {name} written to {}", path.display());
                answer.kept_fdb.push(KeptPort { name, path });
                let vlan = entry.vlan;
                let config = &changing.config;
                let is_other =
                    |old: &StaticEntry| old.mac != entry.mac || config.vlan_of(old) != vlan;
                let mut fdb: Vec<StaticEntry> = config
                    .fdb
                    .iter()
                    .filter(|old| is_other(old))
                    .cloned()
                    .collect();
                fdb.push(entry);
                changing.config.fdb = fdb;
            }
            Err(why) => {
                answer.not_kept_fdb.push(NotKept {
                    name,
                    error: why.to_string(),
                    help: why.help().map(|help| help.to_string()).unwrap_or_default(),
                    table: entry.to_toml(),
                });
                changing.fdb_by_hand.push(entry);
            }
        }
    }
}

impl Changing {
    /// The running port of this name.
    pub(super) fn port(&self, name: &str) -> Option<&Port> {
        self.config.ports.iter().find(|port| port.name == name)
    }

    /// Records that the port's file says what runs. From then on it belongs to the files.
    pub(super) fn note_kept(&mut self, port: &Port) {
        self.by_hand.remove(&port.name);
        self.in_files.insert(port.name.clone(), port.clone());
    }
}

fn not_kept(changing: &Changing, port: &Port, why: &KeepError) -> NotKept {
    let help = why.help().map(|help| help.to_string()).unwrap_or_default();
    // What differs is less to type than the whole table.
    let differs = changing.in_files.get(&port.name).map(|known| {
        let keys = differing(known, port);
        format!("; its file and the switch differ in: {keys}")
    });
    NotKept {
        name: port.name.clone(),
        error: format!("{why}{}", differs.unwrap_or_default()),
        help,
        table: port.to_toml(),
    }
}

/// The keys that differ, with both values.
pub(super) fn differing(before: &Port, after: &Port) -> String {
    let keys = plan::differing(before, after);
    keys.iter()
        .map(KeyDiff::text)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The problems as lines, each with its place.
pub(super) fn lines_of(error: &ConfigError) -> Vec<String> {
    let line = |problem: &Problem| {
        let place = match problem.line_and_column() {
            Some((line, column)) => format!("{}:{line}:{column}", problem.file_name()),
            None => problem.file_name().to_owned(),
        };
        format!("{place}: {problem}")
    };
    error.problems().map(line).collect()
}
