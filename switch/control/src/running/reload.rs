//! The configuration read again.

use std::path::Path;

use super::{Changing, Running};
use crate::config::watch::PortsWatch;
use crate::config::{Config, ConfigError, Loaded};
use crate::notify;
use crate::plan::{Failure, Plan};

/// Why a reload, or the plan of one, comes to nothing. What runs is as it was.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// There is no file to read.
    NoFile,
    /// The files are no configuration.
    Config(ConfigError),
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
    pub(super) fn reload(&self) -> Result<(Plan, Vec<Failure>), ReloadError> {
        let path = self.file(None)?;
        let mut changing = self.lock();
        notify::reloading();
        let done = self
            .read_strictly(path)
            .and_then(|loaded| self.become_what_was_loaded(&mut changing, loaded));
        notify::ready(&self.fabric.health().summary());
        done
    }

    /// The same, and has the log tell what comes of it.
    pub fn reload_and_say(&self) {
        match self.reload() {
            Ok((plan, failed)) => say_done(&plan, &failed),
            Err(error) => say_error(&error, "nothing was changed"),
        }
    }

    /// Has the log tell which files are not part of what was started.
    pub fn say_what_was_left_out(&self) {
        let changing = self.lock();
        let problems = changing.loaded.as_ref();
        if let Some(problems) = problems.and_then(|loaded| loaded.problems.clone()) {
            say_error(
                &ReloadError::Config(problems),
                "a file that is wrong is left out",
            );
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
        let problems = loaded
            .as_ref()
            .ok()
            .and_then(|loaded| loaded.problems.clone());
        let done = loaded
            .map_err(ReloadError::Config)
            .and_then(|loaded| self.become_what_was_loaded(&mut changing, loaded));
        match done {
            Ok((plan, failed)) => say_done(&plan, &failed),
            Err(error) => say_error(&error, "nothing was changed"),
        }
        if let Some(problems) = problems {
            say_error(
                &ReloadError::Config(problems),
                "a file that is wrong is left out, or counts as it was before",
            );
        }
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

    fn become_what_was_loaded(
        &self,
        changing: &mut Changing,
        loaded: Loaded,
    ) -> Result<(Plan, Vec<Failure>), ReloadError> {
        let wanted = changing.with_those_by_hand(loaded.config.clone())?;
        let in_files = |name: &String| loaded.config.ports.iter().any(|port| port.name == *name);
        changing.by_hand.retain(|name| !in_files(name));
        let plan = Plan::between(&changing.config, &wanted);
        let failed = self.apply(changing, &wanted, &plan);
        changing.loaded = Some(loaded);
        Ok((plan, failed))
    }
}

impl Changing {
    /// Adds the ports that were added by hand and are in no file: they stay until they are removed so, or the switch ends.
    fn with_those_by_hand(&self, mut wanted: Config) -> Result<Config, ReloadError> {
        for port in self
            .config
            .ports
            .iter()
            .filter(|port| self.by_hand.contains(&port.name))
        {
            if wanted.ports.iter().all(|other| other.name != port.name) {
                wanted = wanted
                    .with_port(&port.table())
                    .map_err(ReloadError::Config)?;
            }
        }
        Ok(wanted)
    }

    /// Whether there is a folder to watch, and something in it is other than it was. A folder that was not watched before
    /// has just been read.
    fn folder_has_changed(&mut self) -> bool {
        let wanted = match self.config.watch_ports {
            true => self.config.ports_dir.as_deref(),
            false => None,
        };
        if self.watch.as_ref().map(|(folder, _)| folder.as_path()) != wanted {
            self.watch = wanted.map(|folder| (folder.to_owned(), watch(folder)));
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

fn say_done(plan: &Plan, failed: &[Failure]) {
    let (added, removed, changed) = (plan.add.len(), plan.remove.len(), plan.change.len());
    tracing::info!(
        "the configuration was read again: {added} port(s) added, {removed} removed, {changed} changed, {} failed",
        failed.len()
    );
}

fn say_error(error: &ReloadError, what: &str) {
    match error {
        ReloadError::NoFile => tracing::error!("there is no file to read again"),
        ReloadError::Config(error) => {
            tracing::error!("the configuration was read, and {what}: {error}");
            for problem in error.problems() {
                let place = match problem.line_and_column() {
                    Some((line, column)) => format!("{}:{line}:{column}", problem.file_name()),
                    None => problem.file_name().to_owned(),
                };
                tracing::error!("{place}: {problem}; {}", problem.help_text());
            }
        }
    }
}
