//! The configuration read again.

use std::path::Path;

use super::{Changing, Running};
use crate::config::watch::PortsWatch;
use crate::config::{Config, ConfigError, Loaded, Port};
use crate::fabric::seconds_since_1970;
use crate::notify;
use crate::plan::{Failure, Plan};
use crate::status::ConfigStatus;

/// Why a reload, or the plan of one, comes to nothing. What runs is as it was.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// There is no file to read.
    NoFile,
    /// The files are no configuration.
    Config(ConfigError),
}

/// What came of a configuration that was read again.
pub(super) struct Reloaded {
    pub plan: Plan,
    /// What of the plan was not carried out.
    pub failed: Vec<Failure>,
    /// What is wrong with what was left out of the plan.
    left_out: Vec<ConfigError>,
}

impl Running {
    /// What a reload would do, if the file were the one at `path`, or is as it is.
    pub(super) fn plan(&self, path: Option<&Path>) -> Result<Plan, ReloadError> {
        let path = self.file(path)?;
        let changing = self.lock();
        let wanted = changing.with_those_by_hand(self.read_strictly(path)?.config)?;
        Ok(Plan::between(&changing.config, &wanted))
    }

    /// Reads the file again, and makes the switch what it says. Nothing changes where it, or any file of the folder that it
    /// names, is wrong.
    pub(super) fn reload(&self) -> Result<Reloaded, ReloadError> {
        let path = self.file(None)?;
        let mut changing = self.lock();
        notify::reloading();
        let done = self.read_strictly(path).and_then(|loaded| {
            let wanted = changing.with_those_by_hand(loaded.config.clone())?;
            Ok(self.become_what_is(wanted, &mut changing, loaded))
        });
        self.note_outcome(&done);
        notify::ready(&self.fabric.health().summary());
        done
    }

    /// The same, and has the log tell what comes of it.
    pub fn reload_and_say(&self) {
        say(&self.reload());
    }

    /// Has the log tell which files are not part of what was started.
    pub fn say_what_was_left_out(&self) {
        let changing = self.lock();
        let problems = changing.loaded.as_ref();
        if let Some(problems) = problems.and_then(|loaded| loaded.problems.clone()) {
            self.fabric.set_config_status(ConfigStatus {
                last_reload_successful: false,
                problems: problems.problems().count() as u64,
                ..self.fabric.config_status()
            });
            say_problems(&problems, "a file that is wrong is left out");
        }
    }

    /// Where the folder of ports is watched and has changed: makes the switch what it says, but for files that are wrong.
    /// Does not wait: while something else changes the switch, the folder's turn is later.
    pub fn look_at_folder(&self) {
        let (Some(path), Ok(mut changing)) = (self.path.as_deref(), self.changing.try_lock())
        else {
            return;
        };
        if !changing.folder_has_changed() {
            return;
        }
        let loaded = Config::load_lenient(path, changing.loaded.as_ref(), &self.affinity);
        let done = loaded.map_err(ReloadError::Config).and_then(|loaded| {
            let (wanted, clashes) = changing.with_those_by_hand_first(loaded.config.clone())?;
            let mut left_out: Vec<ConfigError> = loaded.problems.clone().into_iter().collect();
            left_out.extend(clashes);
            let done = self.become_what_is(wanted, &mut changing, loaded);
            Ok(Reloaded { left_out, ..done })
        });
        self.note_outcome(&done);
        let is_nothing = |done: &Reloaded| done.plan.is_empty() && done.left_out.is_empty();
        if !done.as_ref().is_ok_and(is_nothing) {
            say(&done);
        }
    }

    /// Notes for the status what came of reading the files: all of it taken over, or not.
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
        let before = self.fabric.config_status();
        self.fabric.set_config_status(ConfigStatus {
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
        changing.by_hand.retain(|name| !in_files(name));
        let plan = Plan::between(&changing.config, &wanted);
        let failed = self.apply(changing, &wanted, &plan);
        changing.loaded = Some(loaded);
        Reloaded {
            plan,
            failed,
            left_out: Vec::new(),
        }
    }
}

impl Changing {
    /// Adds the ports that were added by hand and are in no file: they stay until they are removed so, or the switch ends.
    fn with_those_by_hand(&self, mut wanted: Config) -> Result<Config, ReloadError> {
        let by_hand = self.config.ports.iter();
        for port in by_hand.filter(|port| self.by_hand.contains(&port.name)) {
            if wanted.ports.iter().all(|other| other.name != port.name) {
                let more = wanted.with_port(&port.table());
                wanted = more.map_err(ReloadError::Config)?;
            }
        }
        Ok(wanted)
    }

    /// The same; but where a port that is new in the files clashes with one that runs, the new one is left out, and the
    /// others are not.
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
        let known = Config {
            ports: known,
            ..wanted
        };
        let (mut wanted, mut left_out) = (self.with_those_by_hand(known)?, Vec::new());
        for port in new {
            match wanted.with_port(&port.table()) {
                Ok(more) => wanted = more,
                Err(error) => left_out.push(error),
            }
        }
        Ok((wanted, left_out))
    }

    /// Whether there is a folder to watch, and something in it is other than it was. One that was not watched before may
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
        watch.is_some_and(PortsWatch::has_changed)
    }
}

fn watch(folder: &Path) -> Option<PortsWatch> {
    let watch = PortsWatch::new(folder);
    let say = |why: &std::io::Error| {
        let folder = folder.display();
        tracing::error!("{folder} cannot be watched, `crosspoint reload` reads it: {why}");
    };
    watch.inspect_err(say).ok()
}

/// Has the log tell what came of it.
fn say(done: &Result<Reloaded, ReloadError>) {
    match done {
        Ok(done) => {
            say_done(&done.plan, &done.failed);
            for problems in &done.left_out {
                say_problems(problems, "what is wrong is left out, or stays as it was");
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
    for problem in error.problems() {
        let place = match problem.line_and_column() {
            Some((line, column)) => format!("{}:{line}:{column}", problem.file_name()),
            None => problem.file_name().to_owned(),
        };
        tracing::error!("{place}: {problem}; {}", problem.help_text());
    }
}
