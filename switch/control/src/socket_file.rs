//! A listening socket's file, and the folders that it is in: whether it is still there, and how they were.
//!
//! Who listens keeps listening when somebody removes the file, or the folder; but nobody finds the socket any more. So it
//! is looked at again and again ([`Place::is_there`]) and made anew.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Bits of a file's mode that chmod() sets.
const MODE_BITS: u32 = 0o7777;

/// Where a socket's file is, and which file it is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode number, which tell this file from another of its name.
    identity: (u64, u64),
}

impl Place {
    /// Whether the file is still what stands at its path.
    pub(crate) fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|now| now == self.identity)
    }
}

/// A listening socket's file. It is removed on drop, unless somebody has put another file in its place.
#[derive(Debug)]
pub(crate) struct SocketFile(Place);

impl SocketFile {
    /// The file at `path`. Its socket must stay open as long as this is there: until then its inode is not used again.
    pub(crate) fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile(Place {
            path: path.to_owned(),
            identity: identity(path)?,
        }))
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.is_there() {
            // If it stays, the next daemon finds it stale and replaces it.
            let _ = fs::remove_file(&self.0.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A folder, and whose it was.
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

    /// Makes it as it was, or not at all: with other rights, those who are to connect could not, or others could.
    fn make(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        let made = self.restore();
        if made.is_err() {
            let _ = fs::remove_dir(&self.path);
        }
        made
    }

    fn restore(&self) -> io::Result<()> {
        let now = fs::symlink_metadata(&self.path)?;
        if (now.uid(), now.gid()) != (self.owner, self.group) {
            let owner = (now.uid() != self.owner).then_some(self.owner);
            chown(&self.path, owner, Some(self.group))?;
        }
        fs::set_permissions(&self.path, Permissions::from_mode(self.mode))?;
        // Where the kernel takes a bit away without a word, as that of the group.
        match Folder::of(&self.path) {
            Some(now) if now == *self => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// The folders that a file is in, from the outermost on, as they were when it was made.
#[derive(Debug, Default)]
pub(crate) struct Folders(Vec<Folder>);

/// Why a folder cannot be made again: it says how to.
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
    /// Those of the file at `path`.
    pub(crate) fn of(path: &Path) -> Folders {
        let above = path.ancestors().skip(1);
        let mut all: Vec<Folder> = above.filter_map(Folder::of).collect();
        all.reverse();
        Folders(all)
    }

    /// Makes those that are no longer there.
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
        // Those that are there stay as somebody has made them since.
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
