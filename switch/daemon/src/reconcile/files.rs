//! How the running switch differs from its files, and writing the difference to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use crosspoint_config::plan::{self, KeyDiff, Plan};
use crosspoint_config::{ConfigError, FileChanges, KeepError, Port, Problem, StaticEntry};
use crosspoint_model::plan::{KeepAnswer, KeptPort, NotKept, Unkept};
use crosspoint_model::request::ChangeError;
use crosspoint_model::rows::PortRow;
use crosspoint_model::status::ShownState;
use miette::Diagnostic;

use super::asked::in_files_help;
use super::ports::vlan_policy;
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
    /// Ports of the files that do not run.
    pub absent: Vec<PortRow>,
}

impl Changing {
    /// Records the ports of the files, after they were read.
    pub(super) fn note_files(&mut self, ports: &[Port]) {
        let ports = ports.iter().map(|port| (port.name.clone(), port.clone()));
        self.in_files = ports.collect();
    }

    /// The running ports that are in no file, or differ from their file, and the ports of files that do not run. None if the
    /// switch has no file.
    pub(super) fn unkept(&self) -> BTreeMap<String, Unkept> {
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

impl Changing {
    /// The ports of the files that do not run.
    fn absent(&self) -> Vec<PortRow> {
        let ports = self.in_files.values();
        let ports = ports.filter(|port| self.loaded.is_some() && self.port(&port.name).is_none());
        let row = |port: &Port| PortRow {
            name: port.name.clone(),
            kind: port.kind_name().to_owned(),
            state: ShownState::Down,
            detail: in_files_help(&port.name),
            required: port.required,
            unkept: Some(Unkept::NotRunning),
            vlan: vlan_policy(&port.vlan).1,
            ..PortRow::default()
        };
        ports.map(row).collect()
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
        let (unkept, absent) = (changing.unkept(), changing.absent());
        let mut differences = self.differences();
        (differences.unkept, differences.absent) = (unkept, absent);
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

    /// Writes all ports and static addresses that are not kept to their files.
    pub(super) fn keep_all(&self) -> Result<KeepAnswer, ChangeError> {
        let mut changing = self.lock();
        let main = self.main_file()?;
        let mut answer = KeepAnswer::default();
        let mut all = Vec::new();
        for name in changing.unkept().into_keys() {
            match changing.port(&name) {
                Some(port) => all.push(Unsaved::Port(Box::new(port.clone()))),
                None => answer.not_kept.push(NotKept {
                    error: "it is in the files, and does not run".to_owned(),
                    help: in_files_help(&name),
                    table: String::new(),
                    name,
                }),
            }
        }
        let statics = changing.fdb_by_hand.iter().cloned();
        all.extend(statics.map(Unsaved::Static));
        let saved = changing.save_all(main, &all);
        for (one, saved) in all.into_iter().zip(saved) {
            match (one, saved) {
                (Unsaved::Port(port), Ok(path)) => {
                    changing.note_kept(&port);
                    let name = port.name;
                    tracing::info!(port = %name, "written to {}", path.display());
                    answer.kept.push(KeptPort { name, path });
                }
                (Unsaved::Port(port), Err(why)) => {
                    answer.not_kept.push(not_kept(&changing, &port, &why));
                }
                (Unsaved::Static(entry), Ok(path)) => {
                    let name = entry.name();
                    changing.note_kept_static(entry);
                    tracing::info!("static address {name} written to {}", path.display());
                    answer.kept_fdb.push(KeptPort { name, path });
                }
                (Unsaved::Static(entry), Err(why)) => answer.not_kept_fdb.push(NotKept {
                    name: entry.name(),
                    error: why.to_string(),
                    help: help_of(&why),
                    table: entry.to_toml(),
                }),
            }
        }
        changing.set_statics(&self.dataplane);
        changing.keep_sets(main, &mut answer);
        self.note_unkept(&changing);
        Ok(answer)
    }
}

/// What runs and is not in the files.
enum Unsaved {
    Port(Box<Port>),
    Static(StaticEntry),
}

impl Changing {
    /// Writes to the files; the results are in the same order. If the files would not be right with all of it, each part is
    /// tried alone.
    fn save_all(&self, main: &Path, all: &[Unsaved]) -> Vec<Result<PathBuf, KeepError>> {
        match self.save_together(main, all) {
            Ok(saved) => saved,
            Err(_) => {
                let alone = all.iter().map(|one| {
                    let mut saved = self.save_together(main, std::slice::from_ref(one))?;
                    saved.pop().unwrap_or_else(|| Ok(main.to_owned()))
                });
                alone.collect()
            }
        }
    }

    fn save_together(
        &self,
        main: &Path,
        all: &[Unsaved],
    ) -> Result<Vec<Result<PathBuf, KeepError>>, KeepError> {
        let mut changes = FileChanges::begin(main, &self.config)?;
        let saved = all.iter().map(|one| match one {
            Unsaved::Port(port) => changes.set_port(self.in_files.get(&port.name), port),
            Unsaved::Static(entry) => changes.set_static(entry),
        });
        let saved = saved.collect();
        changes.prepare()?.commit()?;
        Ok(saved)
    }

    /// Records that a file has the static address of a command.
    fn note_kept_static(&mut self, entry: StaticEntry) {
        let config = &self.config;
        let is_it = |other: &StaticEntry| {
            other.mac == entry.mac && config.place_of(other) == config.place_of(&entry)
        };
        let mut fdb = config.fdb.clone();
        fdb.retain(|other| !is_it(other));
        let mut by_hand = self.fdb_by_hand.clone();
        by_hand.retain(|other| !is_it(other));
        fdb.push(entry);
        (self.config.fdb, self.fdb_by_hand) = (fdb, by_hand);
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

pub(super) fn help_of(why: &KeepError) -> String {
    why.help().map(|help| help.to_string()).unwrap_or_default()
}

fn not_kept(changing: &Changing, port: &Port, why: &KeepError) -> NotKept {
    // What differs is less to type than the whole table.
    let differs = changing.in_files.get(&port.name).map(|known| {
        let keys = differing(known, port);
        format!("; its file and the switch differ in: {keys}")
    });
    NotKept {
        name: port.name.clone(),
        error: format!("{why}{}", differs.unwrap_or_default()),
        help: help_of(why),
        table: port.to_toml_short(),
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
