//! Ports in files of `ports_dir` that the switch writes and removes itself.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use super::Port;
use super::files;

/// World-readable, as other files of the configuration may be.
const MODE: u32 = 0o644;

/// Why a port's file cannot be written or removed.
#[derive(Debug, Error, Diagnostic)]
pub enum KeepError {
    /// The configuration has no `ports_dir`.
    #[error("the configuration has no `ports_dir`, so there is no place to keep it")]
    #[diagnostic(help(
        "write in the main file, for example: ports_dir = \"/etc/crosspoint/ports.d\", and make that folder; or leave out --keep"
    ))]
    NoFolder,
    /// The port is in the main file, which belongs to the administrator.
    #[error("port {name:?} is in the main file, {}", path.display())]
    #[diagnostic(help("change that file by hand, and then: crosspoint reload"))]
    InMain {
        /// The port.
        name: String,
        /// The main file.
        path: PathBuf,
    },
    /// The port's file contains other ports too.
    #[error("port {name:?} is in a file with other ports, {}", path.display())]
    #[diagnostic(help("change that file by hand, and then: crosspoint reload"))]
    WithOthers {
        /// The port.
        name: String,
        /// That file.
        path: PathBuf,
    },
    /// The port's file name is taken by another file.
    #[error("{} exists already, and does not hold port {name:?} alone", path.display())]
    #[diagnostic(help("move that file to another name"))]
    InTheWay {
        /// The port.
        name: String,
        /// That file.
        path: PathBuf,
    },
    /// The port is in no file.
    #[error("port {name:?} is in no file of {}", folder.display())]
    #[diagnostic(help("it was added without --keep, so there is no file to remove"))]
    Nowhere {
        /// The port.
        name: String,
        /// The folder.
        folder: PathBuf,
    },
    /// A static address is in a file that the switch does not write.
    #[error("static address {name} is in {}", path.display())]
    #[diagnostic(help("change that file by hand, and then: crosspoint reload"))]
    StaticElsewhere {
        /// The address, and perhaps its VLAN.
        name: String,
        /// That file.
        path: PathBuf,
    },
    /// The file for static addresses has something else in it.
    #[error("{} has more in it than [[fdb]] tables, or wrong ones", path.display())]
    #[diagnostic(help("move that to another file, so that the switch can write this one"))]
    StaticsInTheWay {
        /// That file.
        path: PathBuf,
    },
    /// A static address is in no file.
    #[error("static address {name} is in no file of {}", folder.display())]
    #[diagnostic(help("it was added without --keep, so there is no file to change"))]
    StaticNowhere {
        /// The address.
        name: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {cause}", path.display())]
    #[diagnostic(help("the switch's user must be able to write the folder `ports_dir`"))]
    Io {
        /// The attempted action.
        what: &'static str,
        /// The file, or the folder.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        cause: io::Error,
    },
}

/// The file that contains a port.
enum Home {
    Nowhere,
    Main,
    /// A file of the folder, and its number of ports.
    InFolder(PathBuf, usize),
}

/// The port's own file, existing or possible. Changes nothing; [`write_port_file`] and [`remove_port_file`] begin with
/// it.
///
/// `main` is the main file, `ports_dir` the folder that it names.
///
/// # Errors
///
/// If the port is in the main file or in a file with other ports, or another file is in the way.
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

/// Writes the port to its own file. Replaces an existing file, including its comments. The file is written completely
/// or not at all, even after a power cut. Returns its path.
///
/// # Errors
///
/// Those of [`port_file`], and errors of the file system.
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

/// Removes the port's own file. Returns its former path.
///
/// # Errors
///
/// Those of [`port_file`]; if there is no such file; and errors of the file system.
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

/// Finds the port by its name alone, so its other keys may be wrong. A file that is not TOML has no ports.
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

/// The names of a text's ports, empty for a port without one.
fn names(text: &str) -> Vec<String> {
    let file: toml::Table = text.parse().unwrap_or_default();
    let ports = file.get("port").and_then(toml::Value::as_array);
    let name = |port: &toml::Value| {
        let name = port.get("name").and_then(toml::Value::as_str);
        name.unwrap_or_default().to_owned()
    };
    ports.into_iter().flatten().map(name).collect()
}

/// Replaces the file by a temporary one, whose name begins with a dot so that readers of the folder ignore it.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    // Not at its creation, where the umask would apply.
    file.as_file()
        .set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|refused| refused.error)?;
    sync_folder(path)
}

/// Makes a new or removed name survive a power cut.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
