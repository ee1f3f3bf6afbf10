//! Loading that lets no bad file of `ports_dir` cost the ports of another.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use super::error::{ConfigError, SourceFile};
use super::files::{InFolder, Text};
use super::load::{DropIn, Main, main_file};

/// A configuration from which mistakes in `ports_dir` have been left out: see [`Config::load_lenient`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is to run.
    pub config: Config,
    /// What is wrong with files of `ports_dir`. Such a file is left out, or stands as it was when it was last good.
    pub problems: Option<ConfigError>,
    folder: Option<PathBuf>,
    /// The text of each file of the folder that is in `config`.
    good: BTreeMap<OsString, Arc<str>>,
}

impl Config {
    /// [`Config::load`], but for a mistake in a file of `ports_dir` that file pays alone: in its place stands its text as it
    /// was in `previous`, if that goes with the others; or else it is left out. A file that is gone from the folder is gone.
    ///
    /// Where values of two files clash, the one later in the order of names is the bad one, unless it is as it was in
    /// `previous` and the other is not: what runs stays. (For a guest's `direct` and the uplink that it names that is so,
    /// too; but a guest whose uplink is no more is left out.) The main file is right against all others; so what a guest in the main file names as `direct` belongs there too.
    ///
    /// `affinity` lists the cores that the process may use, by which a `worker` that there is not is found also where
    /// `cores` is "auto"; it may be empty, and then that is left to [`Config::resolve_cores`].
    ///
    /// # Errors
    ///
    /// Where the main file is wrong, cannot be read, or names a `ports_dir` that cannot be read.
    pub fn load_lenient(
        path: &Path,
        previous: Option<&Loaded>,
        affinity: &[usize],
    ) -> Result<Loaded, ConfigError> {
        let (main, folder) = main_file(path)?;
        let first = Main::read(&main, &folder)?;
        let read = match first.drop_ins() {
            Ok(read) => read,
            Err(problem) => return Err(first.without_folder(problem)),
        };
        let ports_dir = first.ports_dir().map(Path::to_owned);
        let previous = previous.filter(|previous| previous.folder == ports_dir);
        let candidates = read
            .into_iter()
            .map(|file| Candidate::new(file, previous))
            .collect();
        let round = Round {
            main: &main,
            folder: &folder,
            workers: first.workers(affinity),
        };
        let (config, candidates, problems) = round.settle(candidates)?;
        let good = candidates.into_iter().filter_map(Candidate::into_good);
        Ok(Loaded {
            config,
            problems,
            folder: ports_dir,
            good: good.collect(),
        })
    }
}

impl Loaded {
    /// The names of the files of `ports_dir` that are in the configuration, as they are now or as they were.
    pub fn files(&self) -> impl Iterator<Item = &OsString> {
        self.good.keys()
    }
}

/// Which text of a file is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The one that it has.
    Now,
    /// The one that it had when it was last good.
    Before,
    /// None.
    Out,
}

/// A file of the folder.
struct Candidate {
    name: OsString,
    path: PathBuf,
    now: Option<Text>,
    before: Option<Arc<str>>,
    is_unchanged: bool,
    stage: Stage,
}

impl Candidate {
    fn new(file: InFolder, previous: Option<&Loaded>) -> Self {
        let before = previous.and_then(|previous| previous.good.get(&file.name));
        let is_unchanged = match (&file.text, before) {
            (Ok(now), Some(before)) => **now == **before,
            _ => false,
        };
        Self {
            name: file.name,
            path: file.path,
            now: Some(file.text),
            before: before.cloned(),
            is_unchanged,
            stage: Stage::Now,
        }
    }

    /// Does it stand for what runs?
    fn is_old(&self) -> bool {
        self.is_unchanged || self.stage == Stage::Before
    }

    /// What is to be checked now.
    fn drop_in(&mut self, order: usize, rank: usize) -> Option<DropIn> {
        let name = self.path.display().to_string();
        match (self.stage, &self.before) {
            (Stage::Now, _) => {
                let text = match &self.now {
                    Some(Ok(text)) => Ok(text.clone()),
                    // It is checked once: it is not good.
                    _ => self.now.take()?,
                };
                Some(DropIn::new(&name, text, order, rank))
            }
            (Stage::Before, Some(before)) => {
                let name = format!("{name} (as it was)");
                Some(DropIn::new(&name, Ok(before.to_string()), order, rank))
            }
            _ => None,
        }
    }

    /// The text that was tried last is bad.
    fn step_down(&mut self) {
        self.stage = match self.stage {
            Stage::Now if self.before.is_some() && !self.is_unchanged => Stage::Before,
            _ => Stage::Out,
        };
    }

    fn into_good(self) -> Option<(OsString, Arc<str>)> {
        let text = match (self.stage, self.now) {
            (Stage::Now, Some(Ok(text))) => Some(text.into()),
            (Stage::Before, _) => self.before,
            _ => None,
        };
        text.map(|text| (self.name, text))
    }
}

/// What is the same in every round.
struct Round<'a> {
    main: &'a SourceFile,
    folder: &'a Path,
    workers: Option<usize>,
}

type Settled = (Config, Vec<Candidate>, Option<ConfigError>);

impl Round<'_> {
    /// Checks all, takes the files that are to blame a step down, and again. Each round takes one down at least, and a file
    /// has two steps; after [`ROUNDS_MAX`] it is one.
    fn settle(&self, mut candidates: Vec<Candidate>) -> Result<Settled, ConfigError> {
        let mut problems: Option<ConfigError> = None;
        let mut round = 0;
        loop {
            let main = Main::read(self.main, self.folder)?;
            let (error, bad) = match main.finish(drop_ins(&mut candidates), self.workers) {
                Ok(config) => return Ok((config, candidates, problems)),
                Err(blamed) => blamed,
            };
            let files = bad.into_iter().map(|order| order.checked_sub(1));
            let Some(files) = files.collect::<Option<Vec<usize>>>() else {
                return Err(error);
            };
            for file in files {
                candidates[file].step_down();
                if round == ROUNDS_MAX {
                    candidates[file].stage = Stage::Out;
                }
            }
            problems = Some(match problems {
                Some(before) => before.and(error),
                None => error,
            });
            round = ROUNDS_MAX.min(round + 1);
        }
    }
}

/// After so many rounds, files that are to blame are left out at once: those who change files in turns must not hold up
/// the switch for long.
const ROUNDS_MAX: usize = 8;

/// What is to be checked: first what runs, and then what is new, each in the order of names.
fn drop_ins(candidates: &mut [Candidate]) -> Vec<DropIn> {
    let mut ranked: Vec<(usize, &mut Candidate)> = candidates.iter_mut().enumerate().collect();
    ranked.sort_by_key(|(index, candidate)| (!candidate.is_old(), *index));
    let ranked = ranked.into_iter().enumerate();
    ranked
        .filter_map(|(rank, (index, candidate))| candidate.drop_in(index + 1, rank + 1))
        .collect()
}
