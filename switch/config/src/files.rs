//! Reads the files of a configuration: the main one, and those of `ports_dir`.
//!
//! Only regular files are read, and no read may block forever: the switch must not hang on a FIFO, a terminal or a
//! device that an operator names, nor on a file system that does not answer.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::check::Checker;
use super::error::one_line;
use super::limits::{FILE_BYTES_MAX, PORTS_DIR_BYTES_MAX, PORTS_DIR_FILES_MAX};
use super::patience::{self, READ_TIME_MAX};
use super::set_cache::Stamp;

/// A file's text, or why it cannot be read.
pub(super) type Text = Result<String, Unread>;

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The kernel refused.
    Io(io::Error),
    /// It is not a regular file, but this.
    NoFile(&'static str),
    /// The file system has not answered within [`READ_TIME_MAX`].
    Stalled,
    /// It is longer than [`FILE_BYTES_MAX`].
    TooLong,
    /// Together with the files before it, it is longer than [`PORTS_DIR_BYTES_MAX`].
    TooMuch,
    /// It is not UTF-8. Valid parts of the text are kept; the first replacement character, at `at`, stands for `byte`.
    NotUtf8 { lossy: String, at: usize, byte: u8 },
}

impl Unread {
    /// The part of the file that can be shown.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::NotUtf8 { lossy, .. } => lossy,
            _ => "",
        }
    }

    /// Records it as a problem of the file that the checker entered last.
    pub(super) fn note(&self, checker: &mut Checker) {
        if let Self::NotUtf8 { at, byte, .. } = self {
            return checker.problem(
                *at..*at + char::REPLACEMENT_CHARACTER.len_utf8(),
                "the file is not UTF-8 text".to_owned(),
                &format!("byte 0x{byte:02x}"),
                NOT_UTF8_HELP,
            );
        }
        let in_folder = checker.file.order > 0;
        let message = self.message(&checker.file.name);
        checker.unplaced(message, self.help(in_folder));
    }

    /// The message for the file named `name`.
    pub(super) fn message(&self, name: &str) -> String {
        self.message_of(name, FILE_BYTES_MAX)
    }

    /// The message for the file named `name`, which may have this many bytes.
    pub(super) fn message_of(&self, name: &str, bytes_max: u64) -> String {
        match self {
            Self::Io(error) => format!("cannot read {name}: {error}"),
            Self::NoFile(kind) => format!("cannot read {name}: it is {kind}, not a regular file"),
            Self::Stalled => format!(
                "cannot read {name}: its file system has not answered for {} s",
                READ_TIME_MAX.as_secs()
            ),
            Self::TooLong => format!("{name} is longer than {bytes_max} bytes"),
            Self::TooMuch => format!(
                "with {name} the files of `ports_dir` are longer than {PORTS_DIR_BYTES_MAX} bytes"
            ),
            Self::NotUtf8 { byte, .. } => format!("{name} is not UTF-8 text: byte 0x{byte:02x}"),
        }
    }

    /// How to fix it, for a file of `ports_dir` or another one.
    pub(super) fn help(&self, in_folder: bool) -> &'static str {
        match self {
            Self::Io(error) => help(error),
            Self::NoFile(_) if in_folder => {
                "remove it from the folder, or give it a name that does not end in .toml"
            }
            Self::NoFile(DIRECTORY) => "give the path of a file in this directory",
            Self::NoFile(FIFO) => {
                "write it to a file; `crosspoint check --config -` reads standard input, as in: COMMAND | crosspoint check --config -"
            }
            Self::NoFile(_) => "give the path of a regular file",
            Self::Stalled => {
                "see whether the server of that file system runs; local files need none"
            }
            Self::TooLong => "a configuration is much smaller: is this the right file?",
            Self::TooMuch => "all ports together are much smaller: are these the right files?",
            Self::NotUtf8 { .. } => NOT_UTF8_HELP,
        }
    }
}

impl Unread {
    /// How to fix it, for a file that the configuration names and that is no part of it.
    pub(super) fn help_of_named(&self) -> &'static str {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => "check the path",
            Self::NoFile(_) => "give the path of a regular file",
            Self::TooLong | Self::TooMuch | Self::NotUtf8 { .. } => "is this the right file?",
            unread => unread.help(false),
        }
    }
}

const NOT_UTF8_HELP: &str = "save it as UTF-8, or remove this character";
const DIRECTORY: &str = "a directory";
const FIFO: &str = "a FIFO";

fn help(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(libc::ELOOP) {
        return "this link leads to itself, perhaps through other links: `namei PATH` shows them";
    }
    match error.kind() {
        io::ErrorKind::NotFound => "check the path; configs/reference.toml is a file to begin with",
        io::ErrorKind::PermissionDenied => {
            "the switch's user must be allowed to read the file and enter its directory; a running switch opens only folders that its configuration named at its start (`[sandbox]`): restart it"
        }
        _ => "check the path and the file system",
    }
}

/// The kind of a file that is not regular.
fn kind(found: FileType) -> Option<&'static str> {
    match found {
        found if found.is_file() => None,
        found if found.is_dir() => Some(DIRECTORY),
        found if found.is_fifo() => Some(FIFO),
        found if found.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Opens a regular file, and nothing else. Waits only for the file system.
fn open(path: &Path) -> Result<File, Unread> {
    let refuse =
        |found: fs::Metadata| kind(found.file_type()).map_or(Ok(()), |k| Err(Unread::NoFile(k)));
    // Before opening it, since opening some devices has effects.
    refuse(fs::metadata(path).map_err(|error| Unread::Io(explain(path, error)))?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(Unread::Io)?;
    // It may be another file by now.
    refuse(file.metadata().map_err(Unread::Io)?)?;
    Ok(file)
}

/// Distinguishes a dangling link from a missing file.
fn explain(path: &Path, error: io::Error) -> io::Error {
    match fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            let target = one_line(&target.display().to_string());
            io::Error::new(error.kind(), format!("it is a link to {target}: {error}"))
        }
        _ => error,
    }
}

/// Reads the regular file at `path`.
pub(super) fn read(path: &Path) -> Text {
    read_up_to(path, FILE_BYTES_MAX)
}

/// Reads the regular file at `path`, which may have this many bytes.
pub(super) fn read_up_to(path: &Path, bytes_max: u64) -> Text {
    let read = move |path: &Path| text_up_to(open(path)?, bytes_max);
    let read = patience::within(path, READ_TIME_MAX, read);
    read.unwrap_or(Err(Unread::Stalled))
}

/// Reads the regular file at `path`, which may have this many bytes, unless it still is the one of `known`.
pub(super) fn read_if_changed(
    path: &Path,
    bytes_max: u64,
    known: Option<Stamp>,
) -> Result<Option<(String, Stamp)>, Unread> {
    let read = move |path: &Path| {
        let file = open(path)?;
        let stamp = Stamp::of(&file.metadata().map_err(Unread::Io)?);
        if known == Some(stamp) {
            return Ok(None);
        }
        Ok(Some((text_up_to(file, bytes_max)?, stamp)))
    };
    let read = patience::within(path, READ_TIME_MAX, read);
    read.unwrap_or(Err(Unread::Stalled))
}

/// Reads a file that an operator has named and that is not a whole configuration; `-` is standard input.
///
/// # Errors
///
/// Why it cannot be read, and how to fix it.
pub fn read_named(path: &Path) -> Result<String, String> {
    let (name, text) = match is_stdin(path) {
        true => ("standard input".to_owned(), text(io::stdin())),
        false => (path.display().to_string(), read(path)),
    };
    text.map_err(|unread| format!("{}\nhelp: {}", unread.message(&name), unread.help(false)))
}

/// Why a file that the configuration names cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong, with the file's name.
    pub message: String,
    /// How to fix it.
    pub help: &'static str,
}

/// Reads a regular file of at most `bytes_max` bytes that the configuration names and that is no part of it, such as a
/// certificate. Gives up if the file system does not answer.
///
/// # Errors
///
/// Why it cannot be read.
pub fn read_file(path: &Path, bytes_max: u64) -> Result<String, Unreadable> {
    read_up_to(path, bytes_max).map_err(|unread| Unreadable {
        message: unread.message_of(&path.display().to_string(), bytes_max),
        help: unread.help_of_named(),
    })
}

/// Whether the path means standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads a text up to the maximum length of a configuration.
pub(super) fn text(file: impl Read) -> Text {
    text_up_to(file, FILE_BYTES_MAX)
}

fn text_up_to(file: impl Read, bytes_max: u64) -> Text {
    let mut bytes = Vec::new();
    // One byte more than the limit, to detect a longer file.
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(Unread::Io)?;
    if bytes.len() as u64 > bytes_max {
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

/// Why a folder's files cannot be read.
pub(super) struct FolderProblem {
    pub message: String,
    pub label: &'static str,
    pub help: String,
}

/// The files of `folder` with ports, in the order of their names.
pub(super) fn read_folder(folder: &Path) -> Result<Vec<InFolder>, FolderProblem> {
    let read = patience::within(folder, READ_TIME_MAX, read_folder_now);
    read.unwrap_or_else(|| Err(folder_problem(folder, &io::ErrorKind::TimedOut.into())))
}

fn read_folder_now(folder: &Path) -> Result<Vec<InFolder>, FolderProblem> {
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

/// The sorted names of the files to read; if there are too many, at least one more than [`PORTS_DIR_FILES_MAX`].
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

/// `None` if it was removed meanwhile.
fn read_in_folder(path: &Path) -> Option<Text> {
    match open(path) {
        Ok(file) => Some(text(file)),
        // A dangling link is a mistake, however.
        Err(Unread::Io(_)) if fs::symlink_metadata(path).is_err() => None,
        Err(unread) => Some(Err(unread)),
    }
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
            "the switch's user must be allowed to list the folder and to read its files; a running switch opens only folders that its configuration named at its start (`[sandbox]`): restart it".to_owned(),
        ),
        io::ErrorKind::TimedOut => (
            "no answer",
            "see whether the server of that file system runs; local folders need none".to_owned(),
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
