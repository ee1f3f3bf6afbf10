//! Writes what runs to the files: to the main file, and to those of `ports_dir`.
//!
//! [`FileChanges`] changes texts in memory: `text` does that, and leaves every other line as it is. Before anything is
//! written, the new files are read as at a start, and must say what runs. `replace` puts them into place.

mod changes;
mod replace;
mod sets;
mod text;

use std::io;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

pub use changes::{FileChanges, PreparedChanges};
pub use sets::{PreparedSet, prepare_set};

/// Why the files cannot be changed.
#[derive(Debug, Error, Diagnostic)]
pub enum KeepError {
    /// The files cannot be read, or have mistakes.
    #[error("the configuration's files have a mistake: {problem}")]
    #[diagnostic(help(
        "`crosspoint check --config {}` shows every mistake",
        main.display()
    ))]
    Mistake {
        /// The first mistake, in one line.
        problem: String,
        /// The main file.
        main: PathBuf,
    },
    /// The main file names another folder than the one in use.
    #[error("`ports_dir` was changed in {}, and the switch still uses the former value", main.display())]
    #[diagnostic(help("first `crosspoint reload`"))]
    OtherFolder {
        /// The main file.
        main: PathBuf,
    },
    /// The port's table was changed, and not read again.
    #[error("port {name:?} was changed in {} since the switch read that file", path.display())]
    #[diagnostic(help(
        "`crosspoint plan` shows the changes, and `crosspoint reload` applies them"
    ))]
    Changed {
        /// The port.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// The text cannot be changed in one place alone.
    #[error("{name} cannot be changed in {} without changes elsewhere in that file", path.display())]
    #[diagnostic(help(
        "change that file by hand, and then: crosspoint reload; a file with one kind of line ends, and with the keys of each port below its [[port]], can be changed"
    ))]
    NotAlone {
        /// The port or the address.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// The changed files would not say what runs.
    #[error("the changed file would not be right: {problem}")]
    #[diagnostic(help("change the files by hand, and then: crosspoint reload"))]
    Refused {
        /// Why, in one line.
        problem: String,
    },
    /// The file to write is another one.
    #[error("{} exists already, and is not a file for {what}", path.display())]
    #[diagnostic(help("move that file to another name"))]
    InTheWay {
        /// The port or the address.
        what: String,
        /// That file.
        path: PathBuf,
    },
    /// The port is in no file.
    #[error("port {name:?} is in no file")]
    #[diagnostic(help(
        "it was added without --keep, so there is nothing to remove from the files"
    ))]
    Nowhere {
        /// The port.
        name: String,
    },
    /// A static address is in no file.
    #[error("static address {name} is in no file")]
    #[diagnostic(help(
        "it was added without --keep, so there is nothing to remove from the files"
    ))]
    StaticNowhere {
        /// The address.
        name: String,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {cause}", path.display())]
    #[diagnostic(help("{help}"))]
    Io {
        /// The attempted action.
        what: &'static str,
        /// The file, or the folder.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        cause: io::Error,
        /// How to fix it.
        help: String,
    },
}

impl KeepError {
    fn io(what: &'static str, path: &Path, cause: io::Error) -> Self {
        let cause = of_kernel(cause);
        let folder = path.parent().unwrap_or(path).display();
        let help = match cause.kind() {
            io::ErrorKind::ReadOnlyFilesystem => format!(
                "the file system is read-only for the switch; the packaged unit (ProtectSystem=strict) lets it write only the folder ports.d: `systemctl edit crosspoint`, add `[Service]` and `ReadWritePaths={folder}`, and restart the switch; or change the file by hand, and then: crosspoint reload"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "the switch's user must be able to write the folder: chgrp crosspoint {folder} && chmod g+w {folder}; a running switch writes only folders that its configuration named at its start (`[sandbox]`); or change the file by hand, and then: crosspoint reload"
            ),
            _ => "check the path and the file system".to_owned(),
        };
        Self::Io {
            what,
            path: path.to_owned(),
            cause,
            help,
        }
    }
}

/// The kernel's error without the name of a temporary file.
fn of_kernel(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.source());
    let inner = inner.and_then(|inner| inner.downcast_ref::<io::Error>());
    match inner.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_is_told_of_with_what_the_switch_needs() {
        let path = Path::new("/etc/crosspoint/crosspoint.toml");
        let told = |code| {
            let why = KeepError::io("write", path, io::Error::from_raw_os_error(code));
            format!("{why}; {}", why.help().expect("help"))
        };
        let read_only = told(libc::EROFS);
        assert!(
            read_only.contains("ReadWritePaths=/etc/crosspoint"),
            "{read_only}"
        );
        assert!(told(libc::EACCES).contains("chmod g+w /etc/crosspoint"));
        // The temporary file's name is not in the message.
        let missing = tempfile::tempfile_in("/nowhere").expect_err("no such folder");
        let why = KeepError::io("write", path, missing);
        let expected =
            "cannot write /etc/crosspoint/crosspoint.toml: No such file or directory (os error 2)";
        assert_eq!(why.to_string(), expected);
    }
}
