//! Loads files into a [`Config`], or into a list of all their mistakes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::check::{Checker, Place};
use super::error::{ConfigError, SourceFile};
use super::files::{self, Text, Unread};
use super::lists::Lists;
use super::table::Top;
use super::{Config, CoreSpans, Cores, Port, cores, keys, ports, sections, syntax};

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
        let file = SourceFile::new(name, text);
        let main = Main::read(&file, folder)?;
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

    /// The unchecked document; `None` if the file's syntax or version is wrong.
    fn read(&self, checker: &mut Checker) -> Option<DeTable<'_>> {
        checker.enter(self.file.clone());
        let text = match &self.text {
            Ok(text) => text,
            Err(unread) => {
                unread.note(checker);
                return None;
            }
        };
        let sift = match self.file.order {
            // Text of the running configuration, in place of a main file.
            0 => keys::sift_unknown,
            _ => keys::sift_unknown_of_drop_in,
        };
        let document = read(checker, text, sift)?;
        sections::version(checker, &document, false).then_some(document)
    }
}

/// A text's keys and values, without unknown ones; `None` if its syntax is wrong.
fn read<'a>(
    checker: &mut Checker,
    text: &'a str,
    sift: fn(&mut Checker, &mut DeTable<'_>),
) -> Option<DeTable<'a>> {
    match DeTable::parse(text) {
        Ok(document) => {
            let mut document = document.into_inner();
            sift(checker, &mut document);
            Some(document)
        }
        Err(error) => {
            syntax::problem(checker, &error);
            None
        }
    }
}

/// A configuration whose parts other than ports are checked.
pub(super) struct Main<'a> {
    checker: Checker,
    /// Has no ports yet.
    config: Config,
    taken: ports::Taken,
    /// The file with the ports.
    document: DeTable<'a>,
    ports_dir: Option<Place>,
    /// The folder of the main file.
    folder: PathBuf,
    are_all: bool,
    /// Whether it is the configuration of a running switch, whose ports can be removed and added by commands.
    is_running: bool,
}

impl<'a> Main<'a> {
    /// Reads the main file, which is in `folder`.
    pub(super) fn read(file: &'a SourceFile, folder: &Path) -> Result<Self, ConfigError> {
        let mut checker = Checker::new(file.clone());
        let Some(document) = read(&mut checker, &file.raw, keys::sift_unknown) else {
            return Err(checker.into_error());
        };
        if !sections::version(&mut checker, &document, true) {
            return Err(checker.into_error());
        }
        let settings = sections::settings(&mut checker, &document, folder);
        let Top {
            version: _,
            workers,
            switch,
            metrics,
            sflow,
            ipfix,
            multicast,
            connections,
            control,
            log,
            sandbox,
            ports_dir,
            watch_ports,
            port: (),
            bridge: (),
            fdb: (),
            mirror: (),
            group: (),
            set: (),
        } = settings.top;
        Ok(Self {
            checker,
            taken: ports::Taken::new(control.socket.clone(), settings.control_socket),
            config: Config {
                workers,
                switch,
                metrics,
                sflow,
                ipfix,
                multicast,
                connections,
                control,
                log,
                sandbox,
                ports_dir,
                watch_ports,
                ports: Vec::new(),
                bridges: Vec::new(),
                fdb: Vec::new(),
                mirrors: Vec::new(),
                groups: Vec::new(),
                sets: Vec::new(),
                set_files: BTreeMap::new(),
                core_spans: settings.cores,
            },
            document,
            ports_dir: settings.ports_dir,
            folder: folder.to_owned(),
            are_all: true,
            is_running: false,
        })
    }

    /// A configuration that was checked before, with the ports and lists of tables of `ports` instead.
    pub(super) fn again(config: &Config, ports: &'a DropIn) -> Self {
        let mut checker = Checker::new(ports.file.clone());
        let document = ports.read(&mut checker);
        Self {
            are_all: document.is_some(),
            document: document.unwrap_or_default(),
            checker,
            config: Config {
                ports: Vec::new(),
                core_spans: CoreSpans::default(),
                ..config.clone()
            },
            taken: ports::Taken::new(config.control.socket.clone(), None),
            ports_dir: None,
            folder: PathBuf::new(),
            is_running: true,
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
        ports::ports(&mut self.checker, &self.document, &mut self.taken);
        Lists::default().read(&mut self.checker, &self.document);
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
        let mut of_files = vec![(0, ports::ports(checker, &self.document, taken))];
        let mut lists = Lists::default();
        lists.read(checker, &self.document);
        match self.is_running {
            false => lists.read_set_files(checker, &self.folder),
            true => lists.keep_set_files(&self.config.set_files),
        }
        for drop_in in drop_ins {
            match drop_in.read(checker) {
                Some(document) => {
                    let ports = ports::ports(checker, &document, taken);
                    match drop_in.file.order {
                        // Text of the running configuration, in place of a main file.
                        0 => lists.read(checker, &document),
                        _ => lists.read_drop_in(checker, &document),
                    }
                    of_files.push((drop_in.file.order, ports));
                }
                None => self.are_all = false,
            }
        }
        of_files.sort_by_key(|(order, _)| *order);
        let ports: Vec<Port> = of_files.into_iter().flat_map(|(_, ports)| ports).collect();
        taken.against_each_other(checker, &ports, self.are_all);
        let may_come = !self.are_all || self.is_running || self.config.ports_dir.is_some();
        lists.check(checker, &taken.known(&ports, may_come));
        if let Some(workers) = workers {
            cores::check_workers(checker, &ports, &taken.workers, workers);
        }
        let mut checker = self.checker;
        match checker.finish() {
            Ok(()) => {
                let mut config = Config {
                    core_spans: self.config.core_spans.with_workers(self.taken.workers),
                    ports,
                    ..self.config
                };
                lists.put_into(&mut config);
                Ok(config)
            }
            Err(error) => Err((error, checker.bad_files().clone())),
        }
    }
}
