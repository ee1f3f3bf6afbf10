//! Reloading of the configuration.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crosspoint_config::plan::Plan;
use crosspoint_config::watch::PortsWatch;
use crosspoint_config::{Config, ConfigError, Loaded, Port};
use crosspoint_model::plan::{Failure, PlanAnswer};
use crosspoint_model::status::ConfigStatus;

use super::files::lines_of;
use super::settings::{self, ReadAccess};
use super::{Changing, Running};
use crate::dataplane::seconds_since_1970;
use crate::service::notify;

/// Time until a watched folder that had problems is read again.
const AGAIN: Duration = Duration::from_secs(5);

/// Why a reload, or its plan, was refused. The running switch is unchanged.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// The switch was started without a file.
    NoFile,
    /// The files are not a valid configuration.
    Config(ConfigError),
}

/// Result of reading the configuration again.
pub(super) struct Reloaded {
    pub plan: Plan,
    /// The plan's answer.
    pub answer: PlanAnswer,
    /// Parts of the plan that failed.
    pub failed: Vec<Failure>,
    /// About the ports that were opened.
    pub notes: Vec<String>,
    /// Problems of files that were left out of the plan.
    left_out: Vec<ConfigError>,
}

impl Running {
    /// The plan of a reload, if the file were the one at `path`, or with the current file.
    pub(super) fn plan(&self, path: Option<&Path>) -> Result<Plan, ReloadError> {
        let path = self.file(path)?;
        // Without the lock: the path comes from a client, and its file system may be slow.
        let loaded = self.read_strictly(path)?;
        let changing = self.lock();
        let wanted = changing.with_those_by_hand(loaded.config)?;
        Ok(Plan::between(&changing.config, &wanted))
    }

    /// Reads the file again and applies it. Nothing changes if the file, or any file of its folder, has a mistake.
    pub(super) fn reload(&self) -> Result<Reloaded, ReloadError> {
        let reading = self.reading.lock();
        let _reading = reading.unwrap_or_else(PoisonError::into_inner);
        self.reload_in_turn()
    }

    /// Like [`reload`](Self::reload), for a caller that holds `reading`.
    fn reload_in_turn(&self) -> Result<Reloaded, ReloadError> {
        let path = self.file(None)?;
        notify::reloading();
        // Without the lock: a file system may be slow.
        let done = self.read_strictly(path).and_then(|loaded| {
            let access = ReadAccess::of(&loaded.config.metrics);
            let mut changing = self.lock();
            let wanted = changing.with_those_by_hand(loaded.config.clone())?;
            changing.access = access;
            let mut done = self.become_what_is(wanted, &mut changing, loaded);
            let settings = done.plan.settings.iter();
            if !settings.map(|it| it.diff.key).any(settings::is_of_metrics) {
                done.failed.extend(settings::serve_as_read(&changing));
            }
            Ok(done)
        });
        self.note_outcome(&done);
        notify::ready(&self.dataplane.health().summary());
        done
    }

    /// Like [`reload`](Self::reload), and logs the result.
    pub fn reload_and_say(&self) {
        say(&self.reload());
    }

    /// Like [`reload_and_say`](Self::reload_and_say), but returns `false` and does nothing while the switch is being
    /// changed. It does not wait for that.
    pub fn try_reload_and_say(&self) -> bool {
        let Ok(_reading) = self.reading.try_lock() else {
            return false;
        };
        if self.changing.try_lock().is_err() {
            return false;
        }
        say(&self.reload_in_turn());
        true
    }

    /// Logs which files were left out at the start.
    pub fn say_what_was_left_out(&self) {
        let changing = self.lock();
        let problems = changing.loaded.as_ref();
        if let Some(problems) = problems.and_then(|loaded| loaded.problems.clone()) {
            self.dataplane.set_config_status(ConfigStatus {
                last_reload_successful: false,
                problems: problems.problems().count() as u64,
                ..self.dataplane.config_status()
            });
            self.note_undone(lines_of(&problems), None);
            say_problems(&problems, "a file that is wrong is left out");
        }
    }

    /// Applies the watched folder of ports if it has changed, without the files that have mistakes. Does not wait:
    /// while another change is under way, the folder is read at a later call.
    pub fn look_at_folder(&self) {
        let (Some(path), Ok(_reading)) = (self.path.as_deref(), self.reading.try_lock()) else {
            return;
        };
        let previous = match self.changing.try_lock() {
            Ok(mut changing) => {
                let again = self.folder_again.swap(false, Ordering::Relaxed);
                if !changing.folder_has_changed() && !again {
                    return;
                }
                changing.loaded.clone()
            }
            Err(_) => return,
        };
        let loaded = Config::load_lenient(path, previous.as_ref(), &self.affinity);
        let Ok(mut changing) = self.changing.try_lock() else {
            self.folder_again.store(true, Ordering::Relaxed);
            return;
        };
        let done = loaded.map_err(ReloadError::Config).and_then(|loaded| {
            let (wanted, clashes) = changing.with_those_by_hand_first(loaded.config.clone())?;
            let mut left_out: Vec<ConfigError> = loaded.problems.clone().into_iter().collect();
            left_out.extend(clashes);
            let done = self.become_what_is(wanted, &mut changing, loaded);
            Ok(Reloaded { left_out, ..done })
        });
        self.note_outcome(&done);
        let is_whole = |done: &Reloaded| done.left_out.is_empty() && done.failed.is_empty();
        let is_whole = done.as_ref().is_ok_and(is_whole);
        changing.again_at = (!is_whole).then(|| Instant::now() + AGAIN);
        changing.say_if_new(&done);
    }

    /// Records for the status whether the files were applied completely.
    fn note_outcome(&self, done: &Result<Reloaded, ReloadError>) {
        let count = |error: &ConfigError| error.problems().count();
        let (is_whole, problems) = match done {
            Ok(done) => {
                let left_out: usize = done.left_out.iter().map(count).sum();
                let wrong = done.failed.len() + left_out;
                (wrong == 0, wrong + done.plan.needs_restart().count())
            }
            Err(ReloadError::Config(error)) => (false, count(error)),
            Err(ReloadError::NoFile) => (false, 1),
        };
        let lines: Vec<String> = match done {
            Ok(done) => {
                let failed = done.failed.iter();
                let failed = failed.map(|failure| format!("{}: {}", failure.what, failure.error));
                done.left_out
                    .iter()
                    .flat_map(lines_of)
                    .chain(failed)
                    .collect()
            }
            Err(ReloadError::Config(error)) => lines_of(error),
            Err(ReloadError::NoFile) => Vec::new(),
        };
        self.note_undone(lines, done.as_ref().ok().map(|done| &done.plan));
        let before = self.dataplane.config_status();
        self.dataplane.set_config_status(ConfigStatus {
            last_reload_successful: is_whole,
            last_reload_success_timestamp_s: match is_whole {
                true => seconds_since_1970(),
                false => before.last_reload_success_timestamp_s,
            },
            problems: problems as u64,
        });
    }

    fn file<'a>(&'a self, other: Option<&'a Path>) -> Result<&'a Path, ReloadError> {
        other.or(self.path.as_deref()).ok_or(ReloadError::NoFile)
    }

    fn read_strictly(&self, path: &Path) -> Result<Loaded, ReloadError> {
        let loaded = Config::load_lenient(path, None, &self.affinity);
        let loaded = loaded.map_err(ReloadError::Config)?;
        match loaded.problems {
            None => Ok(loaded),
            Some(problems) => Err(ReloadError::Config(problems)),
        }
    }

    fn become_what_is(&self, wanted: Config, changing: &mut Changing, loaded: Loaded) -> Reloaded {
        let in_files = |name: &String| loaded.config.ports.iter().any(|port| port.name == *name);
        changing.by_hand.retain(|name, _| !in_files(name));
        changing.note_files(&loaded.config.ports);
        changing.note_statics_of_files(&wanted);
        changing.sets_by_hand.forget_those_of(&loaded.config);
        let plan = Plan::between(&changing.config, &wanted);
        let answer = self.warn_of(&plan);
        let (failed, notes) = self.apply_and_note(changing, &wanted, &plan);
        changing.loaded = Some(loaded);
        self.note_unkept(changing);
        Reloaded {
            plan,
            answer,
            failed,
            notes,
            left_out: Vec::new(),
        }
    }
}

impl Changing {
    /// Adds the ports that were added by the control socket and are in no file: they stay until they are removed that
    /// way, or the switch ends.
    fn with_those_by_hand(&self, mut wanted: Config) -> Result<Config, ReloadError> {
        wanted = self.sets_by_hand.applied_to(wanted);
        for port in self.by_hand.values() {
            if wanted.ports.iter().all(|other| other.name != port.name) {
                let more = wanted.with_port(&port.table());
                wanted = more.map_err(ReloadError::Config)?;
            }
        }
        Ok(wanted)
    }

    /// Like [`with_those_by_hand`](Self::with_those_by_hand), but if a new port of the files clashes with a running
    /// one, only the new one is left out.
    fn with_those_by_hand_first(
        &self,
        wanted: Config,
    ) -> Result<(Config, Vec<ConfigError>), ReloadError> {
        if let Ok(wanted) = self.with_those_by_hand(wanted.clone()) {
            return Ok((wanted, Vec::new()));
        }
        let runs = |port: &Port| {
            self.config
                .ports
                .iter()
                .any(|other| other.name == port.name)
        };
        let (known, new): (Vec<Port>, Vec<Port>) = wanted.ports.iter().cloned().partition(runs);
        let with = |ports: Vec<Port>| {
            let known = Config {
                ports,
                ..wanted.clone()
            };
            self.with_those_by_hand(known)
        };
        // A running port may now clash too; then all running ports stay as they are.
        let is_wanted = |port: &&Port| known.iter().any(|other| other.name == port.name);
        let as_it_runs = || {
            self.config
                .ports
                .iter()
                .filter(is_wanted)
                .cloned()
                .collect()
        };
        let mut left_out = Vec::new();
        let mut wanted = match with(known.clone()) {
            Ok(wanted) => wanted,
            Err(ReloadError::Config(error)) => {
                left_out.push(error);
                with(as_it_runs())?
            }
            Err(error) => return Err(error),
        };
        for port in new {
            match wanted.with_port(&port.table()) {
                Ok(more) => wanted = more,
                Err(error) => left_out.push(error),
            }
        }
        Ok((wanted, left_out))
    }

    /// Whether there is a watched folder, and something in it has changed. A folder that was not watched before may
    /// have changed since it was read.
    fn folder_has_changed(&mut self) -> bool {
        let wanted = match self.config.watch_ports {
            true => self.config.ports_dir.as_deref(),
            false => None,
        };
        if self.watch.as_ref().map(|(folder, _)| folder.as_path()) != wanted {
            self.watch = wanted.map(|folder| (folder.to_owned(), watch(folder)));
            return self.watch.is_some();
        }
        let watch = self.watch.as_mut().and_then(|(_, watch)| watch.as_mut());
        let has_changed = watch.is_some_and(PortsWatch::has_changed);
        // The problem may have been fixed elsewhere: in the main file, or by the control socket.
        has_changed || self.again_at.is_some_and(|at| at <= Instant::now())
    }

    /// Logs the result if something changed, unless it is the same as the last time.
    fn say_if_new(&mut self, done: &Result<Reloaded, ReloadError>) {
        let wrong = match done {
            Ok(done) if done.left_out.is_empty() => None,
            Ok(done) => Some(done.left_out.iter().map(ConfigError::render).collect()),
            Err(ReloadError::Config(error)) => Some(error.render()),
            Err(ReloadError::NoFile) => None,
        };
        let is_known = wrong == self.said;
        self.said = wrong;
        let did_nothing = done.as_ref().map_or(true, |done| done.plan.is_empty());
        if !(is_known && did_nothing) {
            say(done);
        }
    }
}

fn watch(folder: &Path) -> Option<PortsWatch> {
    let watch = PortsWatch::new(folder);
    let say = |why: &std::io::Error| {
        let folder = folder.display();
        tracing::error!(
            "{folder} cannot be watched; changes there take effect with `crosspoint reload`: {why}"
        );
    };
    watch.inspect_err(say).ok()
}

/// Logs the result.
fn say(done: &Result<Reloaded, ReloadError>) {
    match done {
        Ok(done) => {
            say_done(&done.plan, &done.failed);
            for problems in &done.left_out {
                say_problems(
                    problems,
                    "wrong parts are left out, or keep their former settings",
                );
            }
        }
        Err(ReloadError::NoFile) => tracing::error!("there is no file to read again"),
        Err(ReloadError::Config(error)) => say_problems(error, "nothing was changed"),
    }
}

fn say_done(plan: &Plan, failed: &[Failure]) {
    let (added, removed, changed) = (plan.add.len(), plan.remove.len(), plan.change.len());
    tracing::info!(
        "the configuration was read again: {added} port(s) added, {removed} removed, {changed} changed, {} failed",
        failed.len()
    );
}

fn say_problems(error: &ConfigError, what: &str) {
    tracing::error!("the configuration was read, and {what}: {error}");
    for (line, problem) in lines_of(error).iter().zip(error.problems()) {
        tracing::error!("{line}; {}", problem.help_text());
    }
}
