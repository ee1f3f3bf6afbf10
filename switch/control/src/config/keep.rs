//! Ports in files of `ports_dir` that the switch itself writes and removes.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use super::Port;
use super::files;

/// Everybody may read it, as they may other files of the configuration.
const MODE: u32 = 0o644;

/// Why a port's file cannot be written or removed.
#[derive(Debug, Error, Diagnostic)]
pub enum KeepError {
    /// The configuration has no folder.
    #[error("the configuration has no `ports_dir`, so there is no place to keep a port")]
    #[diagnostic(help(
        "write in the main file, for example: ports_dir = \"/etc/crosspoint/ports.d\", and make that folder; or leave out --keep"
    ))]
    NoFolder,
    /// It is the administrator's.
    #[error("port {name:?} is in the main file, {}", path.display())]
    #[diagnostic(help("change that file by hand, and then: crosspoint reload"))]
    InMain {
        /// The port.
        name: String,
        /// The main file.
        path: PathBuf,
    },
    /// Its file has others.
    #[error("port {name:?} is in a file with other ports, {}", path.display())]
    #[diagnostic(help("change that file by hand, and then: crosspoint reload"))]
    WithOthers {
        /// The port.
        name: String,
        /// That file.
        path: PathBuf,
    },
    /// The file that would be its own is another's.
    #[error("{} is there already, and is not of port {name:?} alone", path.display())]
    #[diagnostic(help("move that file to another name"))]
    InTheWay {
        /// The port.
        name: String,
        /// That file.
        path: PathBuf,
    },
    /// It is in no file.
    #[error("port {name:?} is in no file of {}", folder.display())]
    #[diagnostic(help("it was added without --keep, so there is no file to remove"))]
    Nowhere {
        /// The port.
        name: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot {what} {}: {cause}", path.display())]
    #[diagnostic(help("the switch's user must be able to write the folder `ports_dir`"))]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file, or the folder.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        cause: io::Error,
    },
}

/// Where a port is written.
enum Home {
    Nowhere,
    Main,
    /// In a file of the folder, which has this many ports.
    InFolder(PathBuf, usize),
}

/// Where the port can be kept, or is: its own file. It changes nothing; [`write_port_file`] and [`remove_port_file`] begin
/// with it.
///
/// `main` is the main file, `ports_dir` the folder that it names.
///
/// # Errors
///
/// Where the port is in the main file or in a file with other ports, or another file is in the way.
pub fn port_file(main: &Path, ports_dir: Option<&Path>, name: &str) -> Result<PathBuf, KeepError> {
    let folder = ports_dir.ok_or(KeepError::NoFolder)?;
    let port = name.to_owned();
    let path = match home(main, folder, name)? {
        Home::Main => {
            let path = main.to_owned();
            return Err(KeepError::InMain { name: port, path });
        }
        Home::InFolder(path, 1) => return Ok(path),
        Home::InFolder(path, _) => return Err(KeepError::WithOthers { name: port, path }),
        Home::Nowhere => folder.join(format!("{name}.toml")),
    };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        _ => Err(KeepError::InTheWay { name: port, path }),
    }
}

/// Writes the port to a file of its own, in place of the one that it has, if it has one (with its comments). The file is
/// there as a whole or not at all, also after a power cut. Returns its path.
///
/// # Errors
///
/// As [`port_file`]; and where the file system refuses.
pub fn write_port_file(
    main: &Path,
    ports_dir: Option<&Path>,
    port: &Port,
) -> Result<PathBuf, KeepError> {
    let path = port_file(main, ports_dir, &port.name)?;
    let text = format!(
        "# Written by crosspoint, and again by each `crosspoint port set {} ... --keep`.\n\n{}",
        port.name,
        port.to_toml()
    );
    replace(&path, &text).map_err(|cause| KeepError::Io {
        what: "write",
        path: path.clone(),
        cause,
    })?;
    Ok(path)
}

/// Removes the port's own file. Returns the path that it had.
///
/// # Errors
///
/// As [`port_file`]; where there is none; and where the file system refuses.
pub fn remove_port_file(
    main: &Path,
    ports_dir: Option<&Path>,
    name: &str,
) -> Result<PathBuf, KeepError> {
    let path = port_file(main, ports_dir, name)?;
    match fs::remove_file(&path).and_then(|()| sync_folder(&path)) {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeepError::Nowhere {
            name: name.to_owned(),
            folder: ports_dir.unwrap_or(Path::new("")).to_owned(),
        }),
        Err(cause) => Err(KeepError::Io {
            what: "remove",
            path,
            cause,
        }),
    }
}

/// Finds the port by its name alone: its other keys may be wrong. A file that is not TOML has no ports.
fn home(main: &Path, folder: &Path, name: &str) -> Result<Home, KeepError> {
    if let Ok(text) = files::read(main)
        && names(&text).iter().any(|other| other == name)
    {
        return Ok(Home::Main);
    }
    let files = files::read_folder(folder).map_err(|problem| KeepError::Io {
        what: "list",
        path: folder.to_owned(),
        cause: io::Error::other(problem.message),
    })?;
    for file in files {
        let names = file.text.map(|text| names(&text)).unwrap_or_default();
        if names.iter().any(|other| other == name) {
            return Ok(Home::InFolder(file.path, names.len()));
        }
    }
    Ok(Home::Nowhere)
}

/// The names of a text's ports; empty for those that have none.
fn names(text: &str) -> Vec<String> {
    let file: toml::Table = text.parse().unwrap_or_default();
    let ports = file.get("port").and_then(toml::Value::as_array);
    let name = |port: &toml::Value| {
        let name = port.get("name").and_then(toml::Value::as_str);
        name.unwrap_or_default().to_owned()
    };
    ports.into_iter().flatten().map(name).collect()
}

/// The folder's readers take no notice of a file that begins with a dot.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    // Not when it is made, since the umask would have a say then.
    file.as_file()
        .set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|refused| refused.error)?;
    sync_folder(path)
}

/// Makes a new, or a missing, name survive a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
