//! A listening socket's file and the folders that contain it: whether they still exist, and their original attributes.
//!
//! A process keeps listening when the file or the folder is removed, but clients no longer find the socket. So the file
//! is checked periodically ([`Place::is_there`]) and created again.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::geteuid;

/// How long a start waits for the process that still listens on a socket: a switch that was just killed takes a moment to
/// end.
pub(crate) const ENDING_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause between two attempts.
pub(crate) const ENDING_PAUSE: Duration = Duration::from_millis(20);
/// Mode of a new folder until it has its owner and group.
const NEW_FOLDER_MODE: u32 = 0o700;
/// Mode bits that chmod() sets.
const MODE_BITS: u32 = 0o7777;

/// Path and identity of a socket's file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode number, which distinguish this file from another with the same name.
    identity: (u64, u64),
}

impl Place {
    /// Device and inode number of the file.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Whether the file is still the one at its path.
    pub(crate) fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|now| now == self.identity)
    }
}

/// A listening socket's file. It is removed on drop, unless another file has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile(Place);

impl SocketFile {
    /// The file at `path`. Its socket must stay open as long as this exists, so that the inode is not reused.
    pub(crate) fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile(Place {
            path: path.to_owned(),
            identity: identity(path)?,
        }))
    }

    /// The file at `path` that another process has created. It may be gone.
    pub(crate) fn known(path: &Path, identity: (u64, u64)) -> SocketFile {
        SocketFile(Place {
            path: path.to_owned(),
            identity,
        })
    }

    /// Its place.
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.is_there() {
            // If removing fails, the next daemon finds it stale and replaces it.
            let _ = fs::remove_file(&self.0.path);
        }
    }
}

/// Opens the file at `path`, which must be a socket of ours. Other users may be able to write to the folder, and must
/// not make us give away a file that they put in its place.
pub(crate) fn own_socket(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    match is_socket && found.st_uid == geteuid().as_raw() {
        true => Ok(file),
        false => Err(replaced()),
    }
}

/// Sets the mode of the socket's file itself, whatever is at its path by now. fchmod() does not accept an O_PATH
/// descriptor.
pub(crate) fn set_mode(file: &OwnedFd, mode: u32) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn replaced() -> io::Error {
    io::Error::other("another process has put something else in its place")
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A folder, its owner and its mode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    path: PathBuf,
    mode: u32,
    owner: u32,
    group: u32,
}

impl Folder {
    fn of(path: &Path) -> Option<Folder> {
        let found = fs::metadata(path).ok()?;
        Some(Folder {
            path: path.to_owned(),
            mode: found.mode() & MODE_BITS,
            owner: found.uid(),
            group: found.gid(),
        })
    }

    /// Creates it as it was, or not at all: with other permissions, clients could be locked out or others let in.
    fn make(&self) -> io::Result<()> {
        match DirBuilder::new().mode(NEW_FOLDER_MODE).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        let made = self.restore();
        if made.is_err() {
            let _ = fs::remove_dir(&self.path);
        }
        made
    }

    /// Restores owner, group and mode. Other users may be able to write to the parent folder, and must not make us give
    /// away a folder that they put in its place: so it is opened once, and must be the one that was just created.
    fn restore(&self) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let folder = File::from(rustix::fs::open(&self.path, flags, Mode::empty())?);
        let now = folder.metadata()?;
        let is_new = now.uid() == geteuid().as_raw() && now.mode() & 0o777 == NEW_FOLDER_MODE;
        if !is_new {
            return Err(replaced());
        }
        if (now.uid(), now.gid()) != (self.owner, self.group) {
            let owner = (now.uid() != self.owner).then_some(self.owner);
            fchown(&folder, owner, Some(self.group))?;
        }
        folder.set_permissions(Permissions::from_mode(self.mode))?;
        // Because the kernel may silently drop a bit, such as setgid.
        let now = folder.metadata()?;
        let is_as_it_was =
            (now.mode() & MODE_BITS, now.uid(), now.gid()) == (self.mode, self.owner, self.group);
        match is_as_it_was {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// The folders that contain a file, outermost first, as they were when the file was created.
#[derive(Debug, Default)]
pub(crate) struct Folders(Vec<Folder>);

/// Why a folder cannot be created again, with the command to do it.
#[derive(Debug, thiserror::Error)]
#[error(
    "its folder {path} is gone and cannot be made as it was: {why}; make it: install -d -m {mode:o} -o {owner} -g {group} {path}"
)]
pub(crate) struct Lost {
    path: String,
    mode: u32,
    owner: u32,
    group: u32,
    why: io::Error,
}

impl Folders {
    /// The folders of the file at `path`.
    pub(crate) fn of(path: &Path) -> Folders {
        let above = path.ancestors().skip(1);
        let mut all: Vec<Folder> = above.filter_map(Folder::of).collect();
        all.reverse();
        Folders(all)
    }

    /// Creates the folders that are missing.
    pub(crate) fn make_again(&self) -> Result<(), Lost> {
        for folder in &self.0 {
            folder.make().map_err(|why| Lost {
                path: folder.path.display().to_string(),
                mode: folder.mode,
                owner: folder.owner,
                group: folder.group,
                why,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_is_known_from_another_of_its_name_and_only_its_own_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let first = UnixListener::bind(&path).expect("nothing is in the way");
        let file = SocketFile::of(&path).expect("it is there");
        assert!(file.place().is_there());
        fs::remove_file(&path).expect("it is there");
        assert!(!file.place().is_there());
        let _second = UnixListener::bind(&path).expect("nothing is in the way");
        assert!(!file.place().is_there());
        drop((file, first));
        let file = SocketFile::of(&path).expect("another's is left alone");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_others_put_in_a_folders_place_is_not_given_away() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder {
            path: root.path().join("folder"),
            mode: 0o777,
            owner: 61_001,
            group: 61_001,
        };
        let precious = root.path().join("precious");
        fs::create_dir(&precious).expect("nothing is in the way");
        let before = Folder::of(&precious);
        // A link, and a folder with other attributes.
        symlink(&precious, &folder.path).expect("nothing is in the way");
        assert!(folder.restore().is_err());
        fs::remove_file(&folder.path).expect("it is there");
        fs::rename(&precious, &folder.path).expect("nothing is in the way");
        assert!(folder.restore().is_err());
        fs::rename(&folder.path, &precious).expect("nothing is in the way");
        assert_eq!(Folder::of(&precious), before);
        let socket = root.path().join("socket");
        symlink(&precious, &socket).expect("nothing is in the way");
        assert!(own_socket(&socket).is_err());
    }

    #[test]
    fn folders_come_back_as_they_were() {
        let root = tempfile::tempdir().expect("a folder");
        let outer = root.path().join("outer");
        let inner = outer.join("inner");
        fs::create_dir_all(&inner).expect("nothing is in the way");
        chown(&inner, None, Some(61_002)).expect("root may");
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
        };
        mode(&outer, 0o711);
        mode(&inner, 0o2770);
        let folders = Folders::of(&inner.join("socket"));
        let before = [Folder::of(&outer), Folder::of(&inner)];
        fs::remove_dir_all(&outer).expect("it is there");
        folders.make_again().expect("root may");
        assert_eq!([Folder::of(&outer), Folder::of(&inner)], before);
        // Existing folders keep the attributes that they have been given since.
        mode(&outer, 0o700);
        folders.make_again().expect("root may");
        assert_eq!(Folder::of(&outer).map(|folder| folder.mode), Some(0o700));
        // A file in the way: nothing is made.
        fs::remove_dir_all(&outer).expect("it is there");
        fs::write(&outer, "").expect("nothing is in the way");
        let lost = folders.make_again().expect_err("a file is no folder");
        assert!(lost.to_string().contains("install -d -m 2770"), "{lost}");
    }
}
