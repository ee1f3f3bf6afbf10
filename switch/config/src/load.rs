//! Loads files into a [`Config`], or into a list of all their mistakes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::de::DeTable;

use super::check::{Checker, Place};
use super::error::{ConfigError, SourceFile};
use super::field::{Field, Table};
use super::files::{self, Text, Unread};
use super::raw::{RawConfig, RawPort};
use super::{Config, CoreSpans, Cores, Port, cores, keys, ports, sections, syntax};

type RawPorts = Field<Vec<Field<Table<RawPort>>>>;

/// An error, and the files that are to blame, by their [`SourceFile::order`].
pub(super) type Blamed = (ConfigError, BTreeSet<usize>);

impl Config {
    /// Reads and checks the file at `path` and those of its `ports_dir`: every *.toml, in the order of their names.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, is not a regular file, is longer than
    /// [`FILE_BYTES_MAX`](super::limits::FILE_BYTES_MAX), is not UTF-8, or is not a valid configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (file, folder) = main_file(path)?;
        let mut main = Main::read(&file, &folder)?;
        let drop_ins = match main.drop_ins() {
            Ok(drop_ins) => drop_ins,
            Err(problem) => {
                main.note_folder(problem);
                Vec::new()
            }
        };
        let in_order = drop_ins.into_iter().enumerate();
        let drop_ins = in_order.map(|(index, drop_in)| {
            let name = drop_in.path.display().to_string();
            DropIn::new(&name, drop_in.text, index + 1, index + 1)
        });
        main.finish(drop_ins.collect(), None)
            .map_err(|(error, _)| error)
    }

    /// Reads and checks standard input, like [`parse`](Self::parse).
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_stdin() -> Result<Self, ConfigError> {
        const NAME: &str = "standard input";
        match files::text(std::io::stdin()) {
            Ok(text) => Self::parse(NAME, &text),
            Err(unread) => Err(unread_main(NAME, &unread)),
        }
    }

    /// Checks a text; `name` is its name in messages. Its `ports_dir`, if any, is not read.
    ///
    /// # Errors
    ///
    /// The first syntax error, or all other mistakes in the order of the file.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let folder = Path::new(name).parent().unwrap_or(Path::new(""));
        let main = Main::read(&SourceFile::new(name, text), folder)?;
        main.finish(Vec::new(), None).map_err(|(error, _)| error)
    }
}

/// The main file's text, and the absolute path of its folder.
pub(super) fn main_file(path: &Path) -> Result<(SourceFile, PathBuf), ConfigError> {
    let name = path.display().to_string();
    let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = folder.parent().unwrap_or(Path::new("/")).to_owned();
    match files::read(path) {
        Ok(text) => Ok((SourceFile::new(&name, &text), folder)),
        Err(unread) => Err(unread_main(&name, &unread)),
    }
}

fn unread_main(name: &str, unread: &Unread) -> ConfigError {
    let mut checker = Checker::new(SourceFile::new(name, unread.text()));
    unread.note(&mut checker);
    checker.into_error()
}

/// A file of `ports_dir` to be checked.
pub(super) struct DropIn {
    file: SourceFile,
    text: Text,
}

impl DropIn {
    /// `order` and `rank`: see [`SourceFile`].
    pub(super) fn new(name: &str, text: Text, order: usize, rank: usize) -> Self {
        let shown = match &text {
            Ok(text) => text,
            Err(unread) => unread.text(),
        };
        let file = SourceFile::new(name, shown).at(order, rank);
        Self { file, text }
    }

    /// The unchecked ports; `None` if the file's syntax or version is wrong.
    fn read(&self, checker: &mut Checker) -> Option<RawPorts> {
        checker.enter(self.file.clone());
        let text = match &self.text {
            Ok(text) => text,
            Err(unread) => {
                unread.note(checker);
                return None;
            }
        };
        let raw = read(checker, text, keys::sift_unknown_of_drop_in)?;
        sections::version(checker, raw.version, false).then_some(raw.port)
    }
}

/// A text's keys and values, without unknown ones; `None` if its syntax is wrong.
fn read(
    checker: &mut Checker,
    text: &str,
    sift: fn(&mut Checker, &mut DeTable<'_>),
) -> Option<RawConfig> {
    let mut document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            syntax::problem(checker, &error);
            return None;
        }
    };
    sift(checker, document.get_mut());
    match RawConfig::deserialize(toml::Deserializer::from(document)) {
        Ok(raw) => Some(raw),
        Err(error) => {
            syntax::problem(checker, &error);
            None
        }
    }
}

/// A configuration whose parts other than ports are checked.
pub(super) struct Main {
    checker: Checker,
    /// Has no ports yet.
    config: Config,
    taken: ports::Taken,
    ports: RawPorts,
    ports_dir: Option<Place>,
    are_all: bool,
}

impl Main {
    /// Reads the main file, which is in `folder`.
    pub(super) fn read(file: &SourceFile, folder: &Path) -> Result<Self, ConfigError> {
        let mut checker = Checker::new(file.clone());
        let Some(raw) = read(&mut checker, &file.raw, keys::sift_unknown) else {
            return Err(checker.into_error());
        };
        if !sections::version(&mut checker, raw.version, true) {
            return Err(checker.into_error());
        }
        let workers = checker.section(raw.workers, "workers");
        let (workers, core_spans) = sections::workers(&mut checker, workers);
        let switch = checker.section(raw.switch, "switch");
        let switch = sections::switch(&mut checker, switch);
        let metrics = checker.section(raw.metrics, "metrics");
        let metrics = sections::metrics(&mut checker, metrics);
        let control = checker.section(raw.control, "control");
        let (control, control_place) = sections::control(&mut checker, control);
        let log = checker.section(raw.log, "log");
        let log = sections::log(&mut checker, log);
        let has_dir = raw.ports_dir.span().is_some();
        let ports_dir = sections::ports_dir(&mut checker, raw.ports_dir, folder);
        let (ports_dir, dir_place) = ports_dir.unzip();
        let watch_ports = sections::watch_ports(&mut checker, raw.watch_ports, has_dir);
        let taken = ports::Taken::new(control.socket.clone(), control_place);
        Ok(Self {
            checker,
            config: Config {
                workers,
                switch,
                metrics,
                control,
                log,
                ports_dir,
                watch_ports,
                ports: Vec::new(),
                core_spans,
            },
            taken,
            ports: raw.port,
            ports_dir: dir_place,
            are_all: true,
        })
    }

    /// A configuration that was checked before, with the ports of `text` instead, which messages call `name`.
    pub(super) fn again(config: &Config, name: &str, text: &str) -> Self {
        let ports = DropIn::new(name, Ok(text.to_owned()), 0, 0);
        let mut checker = Checker::new(ports.file.clone());
        let raw = ports.read(&mut checker);
        Self {
            are_all: raw.is_some(),
            ports: raw.unwrap_or_default(),
            checker,
            config: Config {
                ports: Vec::new(),
                core_spans: CoreSpans::default(),
                ..config.clone()
            },
            taken: ports::Taken::new(config.control.socket.clone(), None),
            ports_dir: None,
        }
    }

    /// The number of workers, if known. With `cores` "auto" it is derived from `affinity`, the cores that the process
    /// may use.
    pub(super) fn workers(&self, affinity: &[usize]) -> Option<usize> {
        match &self.config.workers.cores {
            Cores::List(cores) => Some(cores.len()),
            Cores::Auto if affinity.is_empty() => None,
            Cores::Auto => Some(cores::auto(affinity).len()),
        }
    }

    /// The folder `ports_dir`.
    pub(super) fn ports_dir(&self) -> Option<&Path> {
        self.config.ports_dir.as_deref()
    }

    /// The files of `ports_dir`; none without that key.
    pub(super) fn drop_ins(&self) -> Result<Vec<files::InFolder>, files::FolderProblem> {
        self.ports_dir().map_or(Ok(Vec::new()), files::read_folder)
    }

    /// Records that the folder cannot be read.
    pub(super) fn note_folder(&mut self, problem: files::FolderProblem) {
        self.are_all = false;
        let place = self.ports_dir.clone();
        let place = place.unwrap_or_else(|| self.checker.place(0..0));
        self.checker
            .problem_at(place, problem.message, problem.label, problem.help);
    }

    /// The error if the folder cannot be read, together with the other mistakes of this file.
    pub(super) fn without_folder(mut self, problem: files::FolderProblem) -> ConfigError {
        self.note_folder(problem);
        ports::ports(&mut self.checker, self.ports, &mut self.taken);
        self.checker.into_error()
    }

    /// Checks all ports: first those of the main file, then those of `drop_ins`, in the order of their ranks. Returns
    /// the ports in the order of the files.
    pub(super) fn finish(
        mut self,
        drop_ins: Vec<DropIn>,
        workers: Option<usize>,
    ) -> Result<Config, Blamed> {
        let workers = self.workers(&[]).or(workers).filter(|count| *count > 0);
        let (checker, taken) = (&mut self.checker, &mut self.taken);
        let mut lists = vec![(0, ports::ports(checker, self.ports, taken))];
        for drop_in in drop_ins {
            match drop_in.read(checker) {
                Some(raw) => lists.push((drop_in.file.order, ports::ports(checker, raw, taken))),
                None => self.are_all = false,
            }
        }
        lists.sort_by_key(|(order, _)| *order);
        let ports: Vec<Port> = lists.into_iter().flat_map(|(_, ports)| ports).collect();
        taken.against_each_other(checker, &ports, self.are_all);
        if let Some(workers) = workers {
            cores::check_workers(checker, &ports, &taken.workers, workers);
        }
        let mut checker = self.checker;
        match checker.finish() {
            Ok(()) => Ok(Config {
                core_spans: self.config.core_spans.with_workers(self.taken.workers),
                ports,
                ..self.config
            }),
            Err(error) => Err((error, checker.bad_files().clone())),
        }
    }
}
