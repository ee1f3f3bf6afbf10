//! Reads the files of a configuration: the main one, and those of `ports_dir`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::check::Checker;
use super::error::one_line;
use super::limits::{FILE_BYTES_MAX, PORTS_DIR_BYTES_MAX, PORTS_DIR_FILES_MAX};

/// A file's text, or why there is none.
pub(super) type Text = Result<String, Unread>;

/// Why a file has no text.
#[derive(Debug)]
pub(super) enum Unread {
    /// The kernel refuses.
    Io(io::Error),
    /// A FIFO, a device or the like, where only files are read.
    NoFile,
    /// It is longer than [`FILE_BYTES_MAX`].
    TooLong,
    /// The files before it and it are longer than [`PORTS_DIR_BYTES_MAX`].
    TooMuch,
    /// What is valid of it is as it was: the first replacement character, which is at `at`, stands where `byte` did.
    NotUtf8 { lossy: String, at: usize, byte: u8 },
}

impl Unread {
    /// What can be shown of the file.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::NotUtf8 { lossy, .. } => lossy,
            _ => "",
        }
    }

    /// Notes it as a problem of the file that the checker has entered last.
    pub(super) fn note(&self, checker: &mut Checker) {
        let name = &checker.file.name;
        match self {
            Self::Io(error) => {
                checker.unplaced(format!("cannot read {name}: {error}"), help(error.kind()));
            }
            Self::NoFile => checker.unplaced(
                format!("{name} is no regular file"),
                "remove it from the folder, or give it a name that does not end in .toml",
            ),
            Self::TooLong => checker.unplaced(
                format!("{name} is longer than {FILE_BYTES_MAX} bytes"),
                "a configuration is much smaller: is this the right file?",
            ),
            Self::TooMuch => checker.unplaced(
                format!(
                    "with {name} the files of `ports_dir` are longer than {PORTS_DIR_BYTES_MAX} bytes"
                ),
                "all ports together are much smaller: are these the right files?",
            ),
            Self::NotUtf8 { at, byte, .. } => checker.problem(
                *at..*at + char::REPLACEMENT_CHARACTER.len_utf8(),
                "the file is not UTF-8 text".to_owned(),
                &format!("byte 0x{byte:02x}"),
                "save it as UTF-8, or remove this character",
            ),
        }
    }
}

fn help(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "check the path; configs/reference.toml is a file to begin with",
        io::ErrorKind::PermissionDenied => {
            "the switch's user must be allowed to read the file and enter its directory"
        }
        io::ErrorKind::IsADirectory => "give the path of a file in this directory",
        _ => "check the path and the file system",
    }
}

/// The text of the file at `path`, of whatever kind it is.
pub(super) fn read(path: &Path) -> Text {
    text(File::open(path).map_err(Unread::Io)?)
}

fn text(file: File) -> Text {
    let mut bytes = Vec::new();
    // One byte more than the limit, to tell a file that has just the limit from a longer one.
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(Unread::Io)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Unread::TooLong);
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        Unread::NotUtf8 {
            lossy: String::from_utf8_lossy(bytes).into_owned(),
            at,
            byte: bytes.get(at).copied().unwrap_or_default(),
        }
    })
}

/// A file of `ports_dir`.
pub(super) struct InFolder {
    pub name: OsString,
    pub path: PathBuf,
    pub text: Text,
}

/// Why the files of a folder are not read.
pub(super) struct FolderProblem {
    pub message: String,
    pub label: &'static str,
    pub help: String,
}

/// The files of `folder` that have ports, in the order of their names.
pub(super) fn read_folder(folder: &Path) -> Result<Vec<InFolder>, FolderProblem> {
    let names = names(folder).map_err(|error| folder_problem(folder, &error))?;
    if names.len() > PORTS_DIR_FILES_MAX {
        return Err(FolderProblem {
            message: format!(
                "there are more than {PORTS_DIR_FILES_MAX} *.toml in {}",
                one_line(&folder.display().to_string())
            ),
            label: "too many files",
            help: "a file may have many ports: join some, and remove those that are not needed"
                .to_owned(),
        });
    }
    let mut bytes = 0;
    let read = names.into_iter().filter_map(|name| {
        let path = folder.join(&name);
        let mut text = read_in_folder(&path)?;
        bytes += text.as_ref().map_or(0, |text| text.len() as u64);
        if bytes > PORTS_DIR_BYTES_MAX {
            text = Err(Unread::TooMuch);
        }
        Some(InFolder { name, path, text })
    });
    Ok(read.collect())
}

/// The names of the files to read, sorted, or at least one more than [`PORTS_DIR_FILES_MAX`].
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let bytes = name.as_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
        if names.len() > PORTS_DIR_FILES_MAX {
            break;
        }
    }
    names.sort();
    Ok(names)
}

/// `None`: it is gone again.
fn read_in_folder(path: &Path) -> Option<Text> {
    // So that a FIFO that nobody writes does not hold up the switch.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Ok(file) => file,
        // But a link to nowhere is a mistake.
        Err(_) if fs::symlink_metadata(path).is_err() => return None,
        Err(error) => return Some(Err(Unread::Io(error))),
    };
    Some(match file.metadata() {
        Ok(metadata) if metadata.is_file() => text(file),
        Ok(_) => Err(Unread::NoFile),
        Err(error) => Err(Unread::Io(error)),
    })
}

fn folder_problem(folder: &Path, error: &io::Error) -> FolderProblem {
    let shown = one_line(&folder.display().to_string());
    let (label, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            "no such folder",
            format!("make it: mkdir -p {shown}; or remove `ports_dir`"),
        ),
        io::ErrorKind::NotADirectory => (
            "not a folder",
            "name the folder that the files are in, not one of them".to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            "no permission",
            "the switch's user must be allowed to list the folder and to read its files".to_owned(),
        ),
        _ => (
            "not readable",
            "check the path and the file system".to_owned(),
        ),
    };
    FolderProblem {
        message: format!("cannot read the folder {shown}: {error}"),
        label,
        help,
    }
}
