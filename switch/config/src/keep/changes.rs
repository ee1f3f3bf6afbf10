//! Changes of the configuration's files, as texts, until they are written.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crosspoint_packet::Mac;
use serde_json::json;

use super::replace::Prepared;
use super::{KeepError, text};
use crate::error::{ConfigError, Problem, SourceFile};
use crate::files::{self, InFolder};
use crate::lenient::load_texts;
use crate::limits::{FILE_BYTES_MAX, PORTS_DIR_FILES_MAX};
use crate::load::main_file;
use crate::plan::{self, KeyDiff};
use crate::texts::parse_mac;
use crate::{Config, Port, StaticEntry};

/// The lists of tables that are written.
const PORT: &str = "port";
const FDB: &str = "fdb";
/// The file of `ports_dir` for static addresses that are in no file yet.
const FDB_FILE: &str = "fdb.toml";
const HEAD: &str = "# Written by crosspoint: by `crosspoint keep`, or by a command with --keep.\n";

/// Changes of the configuration's files that are not written yet. Each file keeps its other lines and its comments.
pub struct FileChanges<'a> {
    running: &'a Config,
    main: &'a Path,
    /// The main file is the first.
    files: Vec<FileText>,
    /// What the files have to say in the end.
    wanted: Config,
}

/// The text of a file.
struct FileText {
    path: PathBuf,
    /// Its name in `ports_dir`; `None` for the main file.
    name: Option<OsString>,
    /// `None` for a new file.
    before: Option<String>,
    /// `None` for a removed file.
    now: Option<String>,
}

/// A table: the index of its file, and its own in the file's list.
type Place = (usize, usize);

impl<'a> FileChanges<'a> {
    /// Reads the files. `main` is the main file, `running` the configuration of the running switch.
    ///
    /// # Errors
    ///
    /// If the main file has a mistake, or names another `ports_dir` than the one that is in use; or the folder cannot be
    /// read. Mistakes in files of the folder are no error: those files stay as they are.
    pub fn begin(main: &'a Path, running: &'a Config) -> Result<Self, KeepError> {
        let mistake = |error: ConfigError| mistake(main, &error);
        let (file, _) = main_file(main).map_err(mistake)?;
        let mut changes = Self {
            running,
            main,
            files: vec![FileText::new(main.to_owned(), None, file.raw.to_string())],
            wanted: Config::default(),
        };
        if let Some(folder) = &running.ports_dir {
            let read = files::read_folder(folder).map_err(|problem| {
                KeepError::io("list", folder, io::Error::other(problem.message))
            })?;
            // A file that cannot be read is left out, as at a start.
            let read = read.into_iter().filter_map(|file| {
                let text = file.text.ok()?;
                Some(FileText::new(file.path, Some(file.name), text))
            });
            changes.files.extend(read);
        }
        changes.wanted = changes.load().map_err(mistake)?;
        if changes.wanted.ports_dir != running.ports_dir {
            let main = main.to_owned();
            return Err(KeepError::OtherFolder { main });
        }
        Ok(changes)
    }

    /// The configuration that the changed files are.
    fn load(&self) -> Result<Config, ConfigError> {
        let absolute = std::path::absolute(self.main).unwrap_or_else(|_| self.main.to_owned());
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let main = self.files.first().and_then(|main| main.now.as_deref());
        let main = SourceFile::new(&self.main.display().to_string(), main.unwrap_or_default());
        let mut in_folder: Vec<InFolder> =
            self.files.iter().filter_map(FileText::in_folder).collect();
        in_folder.sort_by(|one, other| one.name.cmp(&other.name));
        let loaded = load_texts(&main, folder, None, &[], |_| Ok(in_folder));
        loaded.map(|loaded| loaded.config)
    }

    /// Makes the files say what the port is. A port of a file is changed there; a new one gets a file of its own in
    /// `ports_dir`, or a table in the main file if there is no `ports_dir`. Returns the file.
    ///
    /// `known` is the port of the files as the switch last read or wrote them.
    ///
    /// # Errors
    ///
    /// If the port's table has changed since then, or cannot be changed alone; or a file is in the way.
    pub fn set_port(&mut self, known: Option<&Port>, port: &Port) -> Result<PathBuf, KeepError> {
        let path = match self.port_place(&port.name) {
            Some(place) => self.change_port(place, known, port)?,
            None => {
                let what = format!("port {:?}", port.name);
                self.add(&format!("{}.toml", port.name), what, &port.to_toml_short())?
            }
        };
        let known = self.wanted.ports.iter_mut();
        match known.into_iter().find(|known| known.name == port.name) {
            Some(known) => known.clone_from(port),
            None => self.wanted.ports.push(port.clone()),
        }
        Ok(path)
    }

    fn change_port(
        &mut self,
        (file, index): Place,
        known: Option<&Port>,
        port: &Port,
    ) -> Result<PathBuf, KeepError> {
        let (name, path) = (port.name.clone(), self.files[file].path.clone());
        let mut in_files = self.wanted.ports.iter();
        let Some(before) = in_files.find(|before| before.name == name) else {
            let problem = format!("in port {name:?} of {}", path.display());
            let main = self.main.to_owned();
            return Err(KeepError::Mistake { problem, main });
        };
        if before == port {
            return Ok(path);
        }
        if Some(before) != known {
            return Err(KeepError::Changed { name, path });
        }
        let keys = plan::differing(before, port);
        let name = format!("port {name:?}");
        self.change(file, name, |text| text::set_keys(text, PORT, index, &keys))
    }

    /// Removes the port's table, with the comments directly above it. A file of `ports_dir` that has nothing else is
    /// removed. Returns the file.
    ///
    /// # Errors
    ///
    /// If the port is in no file, or its table cannot be removed alone.
    pub fn remove_port(&mut self, name: &str) -> Result<PathBuf, KeepError> {
        let Some((file, index)) = self.port_place(name) else {
            let name = name.to_owned();
            return Err(KeepError::Nowhere { name });
        };
        self.wanted.ports.retain(|port| port.name != name);
        self.remove(file, format!("port {name:?}"), PORT, index)
    }

    /// Makes the files say that an address is on a port. An entry for the same address and VLAN is changed; a new one is
    /// added to the file `fdb.toml` of `ports_dir`, or to the main file if there is no `ports_dir`. Returns the file.
    ///
    /// # Errors
    ///
    /// If the table cannot be changed alone, or the file is not one that can be read.
    pub fn set_static(&mut self, entry: &StaticEntry) -> Result<PathBuf, KeepError> {
        let running = self.running;
        let place = running.place_of(entry);
        let is_same = |other: &StaticEntry| {
            let is_same_text = (other.vlan, &other.bridge) == (entry.vlan, &entry.bridge);
            other.mac == entry.mac && (is_same_text || running.place_of(other) == place)
        };
        let name = entry.name();
        let path = match self.static_places(is_same).first() {
            None => self.add(FDB_FILE, format!("static address {name}"), &entry.to_toml())?,
            Some(((file, index), old)) if old.port != entry.port => {
                let key = |key, after| KeyDiff {
                    key,
                    before: None,
                    after: Some(after),
                };
                let mut keys = vec![key("port", json!(entry.port))];
                keys.extend(entry.vlan.map(|vlan| key("vlan", json!(vlan))));
                keys.extend(
                    entry
                        .bridge
                        .as_ref()
                        .map(|bridge| key("bridge", json!(bridge))),
                );
                let name = format!("static address {name}");
                self.change(*file, name, |text| text::set_keys(text, FDB, *index, &keys))?
            }
            Some(((file, _), _)) => return Ok(self.files[*file].path.clone()),
        };
        self.wanted.fdb.retain(|other| !is_same(other));
        self.wanted.fdb.push(entry.clone());
        Ok(path)
    }

    /// Removes the static entries of an address, in one bridge or in all, in one VLAN or in all, from every file.
    ///
    /// # Errors
    ///
    /// If no file has the address, or a table cannot be removed alone.
    pub fn remove_statics(
        &mut self,
        mac: Mac,
        at: (Option<&str>, Option<u16>),
    ) -> Result<(), KeepError> {
        let running = self.running;
        let is_meant = |entry: &StaticEntry| running.is_for(entry, mac, at);
        let places = self.static_places(is_meant);
        if places.is_empty() {
            let name = mac.to_string();
            return Err(KeepError::StaticNowhere { name });
        }
        // From the end, so that the places of the others stay.
        for ((file, index), entry) in places.iter().rev() {
            let name = format!("static address {}", entry.name());
            self.remove(*file, name, FDB, *index)?;
        }
        self.wanted.fdb.retain(|entry| !is_meant(entry));
        Ok(())
    }

    /// Checks that the changed files say what they should, and writes their new texts beside them. Nothing has an effect
    /// before [`PreparedChanges::commit`].
    ///
    /// # Errors
    ///
    /// If the changed files would be wrong, or cannot be written.
    pub fn prepare(self) -> Result<PreparedChanges, KeepError> {
        let is_changed = |file: &&FileText| file.now != file.before;
        let changed: Vec<&FileText> = self.files.iter().filter(is_changed).collect();
        if !changed.is_empty() {
            let checked = self.check(&changed);
            checked.map_err(|problem| KeepError::Refused { problem })?;
        }
        let prepared = changed
            .into_iter()
            .map(|file| Prepared::new(&file.path, file.now.as_deref()));
        Ok(PreparedChanges(prepared.collect::<Result<_, _>>()?))
    }

    fn check(&self, changed: &[&FileText]) -> Result<(), String> {
        let is_long = |text: &String| text.len() as u64 > FILE_BYTES_MAX;
        let mut files = changed.iter();
        if let Some(file) = files.find(|file| file.now.as_ref().is_some_and(is_long)) {
            let path = file.path.display();
            return Err(format!(
                "{path} would be longer than {FILE_BYTES_MAX} bytes"
            ));
        }
        if self.files.iter().filter_map(FileText::in_folder).count() > PORTS_DIR_FILES_MAX {
            return Err(format!(
                "`ports_dir` would have more than {PORTS_DIR_FILES_MAX} files"
            ));
        }
        let is_as_wanted = |config| in_one_order(config) == in_one_order(self.wanted.clone());
        match self.load() {
            Ok(config) if is_as_wanted(config.clone()) => Ok(()),
            // Files with mistakes are left out, so a clash of two files looks like a missing port.
            Ok(config) => Err(first_difference(&self.wanted, &config)),
            Err(error) => Err(first(&error)),
        }
    }

    /// What the files have to say in the end.
    pub(super) fn wanted(&self) -> &Config {
        &self.wanted
    }

    /// Replaces what the files have to say in the end.
    pub(super) fn want(&mut self, wanted: Config) {
        self.wanted = wanted;
    }

    /// Changes the table of this name in a list.
    pub(super) fn change_named(
        &mut self,
        list: &'static str,
        name: &str,
        change: impl FnOnce(&str, usize) -> Option<String>,
    ) -> Result<PathBuf, KeepError> {
        let is_it =
            |table: &toml::Table| table.get("name").and_then(toml::Value::as_str) == Some(name);
        let place = self.tables(list).find(|(_, table)| is_it(table));
        let what = format!("{list} {name:?}");
        match place {
            Some(((file, index), _)) => self.change(file, what, |text| change(text, index)),
            None => {
                let path = self.main.to_owned();
                Err(KeepError::NotAlone { name: what, path })
            }
        }
    }

    fn port_place(&self, name: &str) -> Option<Place> {
        let is_it =
            |table: &toml::Table| table.get("name").and_then(toml::Value::as_str) == Some(name);
        self.tables(PORT)
            .find(|(_, table)| is_it(table))
            .map(|(place, _)| place)
    }

    fn static_places(&self, is_meant: impl Fn(&StaticEntry) -> bool) -> Vec<(Place, StaticEntry)> {
        let entries = self
            .tables(FDB)
            .filter_map(|(at, table)| Some((at, entry(&table)?)));
        entries.filter(|(_, entry)| is_meant(entry)).collect()
    }

    /// The tables of a list in all files. Other keys of them may be wrong. A file that is not TOML has none.
    fn tables(&self, list: &'static str) -> impl Iterator<Item = (Place, toml::Table)> {
        let files = self.files.iter().enumerate();
        files.flat_map(move |(file, text)| {
            let tables = text.tables(list).into_iter().enumerate();
            tables.map(move |(index, table)| ((file, index), table))
        })
    }

    /// Adds a table to the file of this name in `ports_dir`, or to the main file.
    fn add(&mut self, name: &str, what: String, table: &str) -> Result<PathBuf, KeepError> {
        let Some(folder) = &self.running.ports_dir else {
            return self.change(0, what, |text| Some(text::append(text, table)));
        };
        let path = folder.join(name);
        let mut files = self.files.iter();
        match files.position(|file| file.path == path) {
            Some(file) if self.files[file].is_free_for(name) => {
                self.change(file, what, |text| Some(text::append(text, table)))
            }
            None if is_missing(&path) => {
                self.files.push(FileText {
                    path: path.clone(),
                    name: Some(name.into()),
                    before: None,
                    now: Some(text::append(HEAD, table)),
                });
                Ok(path)
            }
            _ => Err(KeepError::InTheWay { what, path }),
        }
    }

    fn change(
        &mut self,
        file: usize,
        name: String,
        change: impl FnOnce(&str) -> Option<String>,
    ) -> Result<PathBuf, KeepError> {
        let file = &mut self.files[file];
        let path = file.path.clone();
        match change(file.now.as_deref().unwrap_or(HEAD)) {
            Some(text) => {
                file.now = Some(text);
                Ok(path)
            }
            None => Err(KeepError::NotAlone { name, path }),
        }
    }

    fn remove(
        &mut self,
        file: usize,
        name: String,
        list: &str,
        index: usize,
    ) -> Result<PathBuf, KeepError> {
        let path = self.change(file, name, |text| text::remove_table(text, list, index))?;
        let file = &mut self.files[file];
        if file.name.is_some() && file.is_empty() {
            file.now = None;
        }
        Ok(path)
    }
}

/// New files, written beside the old ones.
#[derive(Debug)]
pub struct PreparedChanges(Vec<Prepared>);

impl PreparedChanges {
    /// Puts each file into its place, completely or not at all, even after a power cut.
    ///
    /// # Errors
    ///
    /// Errors of the file system.
    pub fn commit(self) -> Result<(), KeepError> {
        self.0.into_iter().try_for_each(Prepared::commit)
    }
}

impl FileText {
    fn new(path: PathBuf, name: Option<OsString>, text: String) -> Self {
        Self {
            path,
            name,
            before: Some(text.clone()),
            now: Some(text),
        }
    }

    fn in_folder(&self) -> Option<InFolder> {
        Some(InFolder {
            name: self.name.clone()?,
            path: self.path.clone(),
            text: Ok(self.now.clone()?),
        })
    }

    fn parsed(&self) -> Option<toml::Table> {
        self.now.as_deref()?.parse().ok()
    }

    /// The tables of a list.
    fn tables(&self, list: &str) -> Vec<toml::Table> {
        let tables = self.parsed().and_then(|mut file| match file.remove(list)? {
            toml::Value::Array(tables) => Some(tables),
            _ => None,
        });
        let table = |item| match item {
            toml::Value::Table(table) => table,
            _ => toml::Table::new(),
        };
        tables.into_iter().flatten().map(table).collect()
    }

    /// Whether it has no table.
    fn is_empty(&self) -> bool {
        let is_left = |(key, value): (&String, &toml::Value)| {
            key != "version" && value.as_array().is_none_or(|list| !list.is_empty())
        };
        self.parsed().is_some_and(|file| !file.iter().any(is_left))
    }

    /// Whether what belongs into a file of this name can be added: a port to a file without ports, static addresses to
    /// every file.
    fn is_free_for(&self, name: &str) -> bool {
        let is_text = self.now.is_none() || self.parsed().is_some();
        is_text && (name == FDB_FILE || self.tables(PORT).is_empty())
    }
}

fn is_missing(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn entry(table: &toml::Table) -> Option<StaticEntry> {
    let vlan = match table.get("vlan") {
        None => None,
        Some(vlan) => Some(u16::try_from(vlan.as_integer()?).ok()?),
    };
    let bridge = match table.get("bridge") {
        None => None,
        Some(bridge) => Some(bridge.as_str()?.to_owned()),
    };
    Some(StaticEntry {
        mac: parse_mac(table.get("mac")?.as_str()?)?,
        vlan,
        bridge,
        port: table.get("port")?.as_str()?.to_owned(),
    })
}

fn mistake(main: &Path, error: &ConfigError) -> KeepError {
    KeepError::Mistake {
        problem: first(error),
        main: main.to_owned(),
    }
}

fn first(error: &ConfigError) -> String {
    error
        .problems()
        .next()
        .map(Problem::in_one_line)
        .unwrap_or_default()
}

/// The order of tables in the files changes nothing.
fn in_one_order(mut config: Config) -> Config {
    config.ports.sort_by(|one, other| one.name.cmp(&other.name));
    config.fdb.sort_by_key(StaticEntry::name);
    config
}

/// What a configuration has other than wanted, in one line.
fn first_difference(wanted: &Config, config: &Config) -> String {
    let find = |name: &str| config.ports.iter().find(|port| port.name == name);
    let differs = |port: &&Port| find(&port.name) != Some(*port);
    match wanted.ports.iter().find(differs).map(|port| &port.name) {
        Some(name) => {
            let how = match find(name) {
                None => "would clash with another table",
                Some(_) => "would differ from the running one",
            };
            format!("port {name:?} {how}")
        }
        None => "it would say something else than what runs".to_owned(),
    }
}
