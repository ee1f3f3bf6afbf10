//! Replaces files atomically.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::KeepError;

/// Of new files. World-readable, as other files of the configuration may be.
const MODE: u32 = 0o644;

/// A change of a file that is ready to take effect.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The file, as its reader names it.
    path: PathBuf,
    /// The file that is replaced: another one if `path` is a symbolic link.
    target: PathBuf,
    /// Its new text, in a file beside it; `None` if it is removed.
    new: Option<NamedTempFile>,
}

impl Prepared {
    /// Writes the new text beside the file, on the disk. Without a text, the file will be removed.
    pub(super) fn new(path: &Path, text: Option<&str>) -> Result<Self, KeepError> {
        let failed = |cause| KeepError::io("write", path, cause);
        let mut target = path.to_owned();
        let mut new = None;
        if let Some(text) = text {
            let old = match fs::metadata(path) {
                Ok(old) => Some(old),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
            if old.is_some() {
                target = fs::canonicalize(path).map_err(failed)?;
            }
            new = Some(write_beside(&target, old.as_ref(), text).map_err(failed)?);
        }
        let path = path.to_owned();
        Ok(Self { path, target, new })
    }

    /// Puts the change into effect, completely or not at all, even after a power cut.
    pub(super) fn commit(self) -> Result<(), KeepError> {
        let (what, done) = match self.new {
            Some(new) => {
                let done = new.persist(&self.target).map(drop);
                ("write", done.map_err(|refused| refused.error))
            }
            None => ("remove", fs::remove_file(&self.target)),
        };
        let done = done.and_then(|()| File::open(folder(&self.target))?.sync_all());
        done.map_err(|cause| KeepError::io(what, &self.path, cause))
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

/// Writes a file whose name begins with a dot, so that readers of the folder ignore it. It has the mode and the owner of
/// the old one.
fn write_beside(path: &Path, old: Option<&Metadata>, text: &str) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .tempfile_in(folder(path))?;
    file.write_all(text.as_bytes())?;
    if let Some(old) = old {
        // Only root may give a file away. Another user's file then belongs to the switch's user, with the group if possible.
        let group = Some(old.gid());
        if fchown(file.as_file(), Some(old.uid()), group).is_err() {
            let _ = fchown(file.as_file(), None, group);
        }
    }
    // Not at its creation, where the umask would apply; and not before the change of the owner, which may reset it.
    let mode = old.map_or(MODE, |old| old.permissions().mode() & 0o7777);
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}
