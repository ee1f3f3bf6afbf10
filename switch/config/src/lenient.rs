//! Partial load: a bad file of `ports_dir` does not affect the ports of other files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use super::error::{ConfigError, SourceFile};
use super::files::{self, FolderProblem, InFolder, Text};
use super::load::{DropIn, Main, main_file};

/// A configuration without the mistakes in `ports_dir`: see [`Config::load_lenient`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration to run.
    pub config: Config,
    /// The mistakes in files of `ports_dir`. Such a file is left out, or its last good text is used.
    pub problems: Option<ConfigError>,
    folder: Option<PathBuf>,
    /// By file of the folder: its text that `config` contains.
    good: BTreeMap<OsString, Arc<str>>,
}

impl Config {
    /// Like [`Config::load`], but a mistake in a file of `ports_dir` affects only that file: its text in `previous` is
    /// used if it does not conflict with the other files; otherwise the file is left out. A file that is removed from
    /// the folder is not used any more.
    ///
    /// If values of two files clash, the file with the later name is the bad one, unless it is unchanged since
    /// `previous` and the other is not: what runs stays. (The same holds for a guest's `direct` and its uplink; but a
    /// guest whose uplink is gone is left out.) The main file takes precedence over all others; so an uplink that a
    /// guest in the main file names in `direct` must also be in the main file.
    ///
    /// `affinity` lists the cores that the process may use. With it, a nonexistent `worker` is detected also if `cores`
    /// is "auto"; if it is empty, [`Config::resolve_cores`] does that later.
    ///
    /// # Errors
    ///
    /// If the main file is wrong, cannot be read, or names a `ports_dir` that cannot be read.
    pub fn load_lenient(
        path: &Path,
        previous: Option<&Loaded>,
        affinity: &[usize],
    ) -> Result<Loaded, ConfigError> {
        let (main, folder) = main_file(path)?;
        load_texts(&main, &folder, previous, affinity, files::read_folder)
    }
}

/// Like [`Config::load_lenient`], of a main file that was read before, which is in `folder`. `read` returns the files of
/// its `ports_dir`.
pub(super) fn load_texts(
    main: &SourceFile,
    folder: &Path,
    previous: Option<&Loaded>,
    affinity: &[usize],
    read: impl FnOnce(&Path) -> Result<Vec<InFolder>, FolderProblem>,
) -> Result<Loaded, ConfigError> {
    let first = Main::read(main, folder)?;
    let read = match first.ports_dir().map_or(Ok(Vec::new()), read) {
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
        main,
        folder,
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

impl Loaded {
    /// The names of the files of `ports_dir` that are part of the configuration, with their current or last good text.
    pub fn files(&self) -> impl Iterator<Item = &OsString> {
        self.good.keys()
    }
}

/// The text of a file that is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The current one.
    Now,
    /// The last good one.
    Before,
    /// None: the file is left out.
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

    /// Whether it stands for what already runs.
    fn is_old(&self) -> bool {
        self.is_unchanged || self.stage == Stage::Before
    }

    /// The file to check in this round.
    fn drop_in(&mut self, order: usize, rank: usize) -> Option<DropIn> {
        let name = self.path.display().to_string();
        match (self.stage, &self.before) {
            (Stage::Now, _) => {
                let text = match &self.now {
                    Some(Ok(text)) => Ok(text.clone()),
                    // It is checked only once, since it is bad.
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

    /// The text that was tried last is bad: try the next one.
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

/// Parameters that are the same in every round.
struct Round<'a> {
    main: &'a SourceFile,
    folder: &'a Path,
    workers: Option<usize>,
}

type Settled = (Config, Vec<Candidate>, Option<ConfigError>);

impl Round<'_> {
    /// Checks all files, moves those that are to blame to their next stage, and repeats. Each round moves at least one
    /// file, and a file has two stages to go; after [`ROUNDS_MAX`] only one.
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

/// After this many rounds, bad files are left out at once: files that are changed in turn must not delay the switch for
/// long.
const ROUNDS_MAX: usize = 8;

/// The files to check: first what already runs, then what is new, each in the order of names.
fn drop_ins(candidates: &mut [Candidate]) -> Vec<DropIn> {
    let mut ranked: Vec<(usize, &mut Candidate)> = candidates.iter_mut().enumerate().collect();
    ranked.sort_by_key(|(index, candidate)| (!candidate.is_old(), *index));
    let ranked = ranked.into_iter().enumerate();
    ranked
        .filter_map(|(rank, (index, candidate))| candidate.drop_in(index + 1, rank + 1))
        .collect()
}
