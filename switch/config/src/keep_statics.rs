//! Static addresses in the file of `ports_dir` that the switch writes itself, `fdb.toml`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crosspoint_packet::Mac;

use super::files;
use super::keep::{KeepError, replace, sync_folder};
use super::texts::parse_mac;
use super::{Config, StaticEntry};

const FILE: &str = "fdb.toml";
const HEAD: &str = "# Written by crosspoint, and again by each `crosspoint fdb ... --keep`.\n";

/// Writes static addresses to the file `fdb.toml` of `ports_dir`, besides those that it has. An entry there for the same
/// address and VLAN is replaced. The file is written completely or not at all, even after a power cut. Returns its path.
///
/// `main` is the main file, `running` the configuration of the running switch.
///
/// # Errors
///
/// If there is no `ports_dir`, another file has the address in this VLAN, or `fdb.toml` has something else in it; and
/// errors of the file system.
pub fn write_statics(
    main: &Path,
    running: &Config,
    new: &[StaticEntry],
) -> Result<PathBuf, KeepError> {
    let files = StaticFiles::read(main, running)?;
    let is_new = |old: &StaticEntry| new.iter().any(|new| files.is_same(old, new));
    files.refuse_others(is_new)?;
    let mut entries = files.own.clone();
    entries.retain(|old| !is_new(old));
    entries.extend_from_slice(new);
    files.write(&entries)
}

/// Removes the static entries of an address, in one VLAN or in all, from the file `fdb.toml` of `ports_dir`. Returns its
/// path.
///
/// # Errors
///
/// As [`write_statics`]; and if no file has the address.
pub fn remove_statics(
    main: &Path,
    running: &Config,
    mac: Mac,
    vlan: Option<u16>,
) -> Result<PathBuf, KeepError> {
    let files = StaticFiles::read(main, running)?;
    let is_meant = |entry: &StaticEntry| {
        entry.mac == mac && (vlan.is_none() || running.vlan_of(entry) == vlan)
    };
    files.refuse_others(is_meant)?;
    let mut entries = files.own.clone();
    entries.retain(|entry| !is_meant(entry));
    if entries.len() == files.own.len() {
        let folder = running.ports_dir.clone().unwrap_or_default();
        let name = mac.to_string();
        return Err(KeepError::StaticNowhere { name, folder });
    }
    files.write(&entries)
}

/// The static addresses of all files.
struct StaticFiles<'a> {
    running: &'a Config,
    /// The path of `fdb.toml`.
    path: PathBuf,
    /// Those of `fdb.toml`.
    own: Vec<StaticEntry>,
    /// Those of other files, with the files.
    others: Vec<(StaticEntry, PathBuf)>,
}

impl<'a> StaticFiles<'a> {
    fn read(main: &Path, running: &'a Config) -> Result<Self, KeepError> {
        let folder = running.ports_dir.as_deref().ok_or(KeepError::NoFolder)?;
        let mut all = StaticFiles {
            running,
            path: folder.join(FILE),
            own: Vec::new(),
            others: Vec::new(),
        };
        // A file that cannot be read has no entries.
        if let Ok(text) = files::read(main) {
            all.others_of(&text, main);
        }
        let in_folder = files::read_folder(folder).map_err(|problem| KeepError::Io {
            what: "list",
            path: folder.to_owned(),
            cause: io::Error::other(problem.message),
        })?;
        for file in in_folder {
            let text = file.text.unwrap_or_default();
            if file.name != FILE {
                all.others_of(&text, &file.path);
                continue;
            }
            let path = file.path;
            all.own = own_entries(&text).ok_or(KeepError::StaticsInTheWay { path })?;
        }
        Ok(all)
    }

    fn others_of(&mut self, text: &str, path: &Path) {
        let entries = tables(text).into_iter().flatten();
        let entries = entries.filter_map(|table| entry(&table));
        self.others
            .extend(entries.map(|entry| (entry, path.to_owned())));
    }

    /// Whether both are for one address and VLAN.
    fn is_same(&self, one: &StaticEntry, other: &StaticEntry) -> bool {
        let vlan = |entry| self.running.vlan_of(entry);
        one.mac == other.mac && (one.vlan == other.vlan || vlan(one) == vlan(other))
    }

    /// Refuses to go on if another file has such an entry.
    fn refuse_others(&self, is_meant: impl Fn(&StaticEntry) -> bool) -> Result<(), KeepError> {
        let mut others = self.others.iter();
        match others.find(|(entry, _)| is_meant(entry)) {
            None => Ok(()),
            Some((entry, path)) => Err(KeepError::StaticElsewhere {
                name: entry.name(),
                path: path.clone(),
            }),
        }
    }

    /// Writes `fdb.toml`; without entries, removes it.
    fn write(self, entries: &[StaticEntry]) -> Result<PathBuf, KeepError> {
        let path = self.path;
        let done = match entries {
            [] => fs::remove_file(&path).and_then(|()| sync_folder(&path)),
            entries => {
                let tables = entries.iter().map(|entry| format!("\n{}", entry.to_toml()));
                replace(&path, &format!("{HEAD}{}", tables.collect::<String>()))
            }
        };
        match done {
            Ok(()) => Ok(path),
            Err(cause) => Err(KeepError::Io {
                what: "write",
                path,
                cause,
            }),
        }
    }
}

/// The tables `[[fdb]]` of a text; `None` if it is not TOML, or `fdb` is something else.
fn tables(text: &str) -> Option<Vec<toml::Table>> {
    let mut file: toml::Table = text.parse().ok()?;
    let list = match file.remove("fdb") {
        None => return Some(Vec::new()),
        Some(toml::Value::Array(list)) => list,
        Some(_) => return None,
    };
    let table = |item| match item {
        toml::Value::Table(table) => Some(table),
        _ => None,
    };
    list.into_iter().map(table).collect()
}

fn entry(table: &toml::Table) -> Option<StaticEntry> {
    let vlan = match table.get("vlan") {
        None => None,
        Some(vlan) => Some(u16::try_from(vlan.as_integer()?).ok()?),
    };
    Some(StaticEntry {
        mac: parse_mac(table.get("mac")?.as_str()?)?,
        vlan,
        port: table.get("port")?.as_str()?.to_owned(),
    })
}

/// The entries of `fdb.toml`; `None` if it has anything else, which writing it again would lose.
fn own_entries(text: &str) -> Option<Vec<StaticEntry>> {
    let file: toml::Table = text.parse().ok()?;
    let is_known = |key: &String| key == "fdb" || key == "version";
    if !file.keys().all(is_known) {
        return None;
    }
    tables(text)?.iter().map(entry).collect()
}
