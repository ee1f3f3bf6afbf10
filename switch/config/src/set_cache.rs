//! The addresses of sets' files as they were last read: a file that has not changed is not read again. With a watched folder
//! the configuration is read at each change in it, and sets may have files of megabytes.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crosspoint_packet::IpNet;

/// What tells that a file is another one, or was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Times of the last changes of the contents and of the inode, which is set by no program: seconds, nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &Metadata) -> Stamp {
        Stamp {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Whether it may be written again with the same stamp: the kernel's clock of files goes in steps of milliseconds.
    fn is_young(&self) -> bool {
        let (seconds, nanoseconds) = self.changed.max(self.modified);
        let time = Duration::new(
            seconds.try_into().unwrap_or(0),
            nanoseconds.try_into().unwrap_or(0),
        );
        let age = SystemTime::now().duration_since(UNIX_EPOCH + time);
        age.ok().is_none_or(|age| age < YOUNG)
    }
}

/// The age from which a change of a file has another time.
const YOUNG: Duration = Duration::from_secs(1);

/// Configurations hold the addresses; those that none holds are forgotten.
type Files = HashMap<PathBuf, (Stamp, Weak<[IpNet]>)>;

static FILES: Mutex<Option<Files>> = Mutex::new(None);

/// What a file had when it was last read, if a configuration still has it.
pub(super) fn known(path: &Path) -> Option<(Stamp, Arc<[IpNet]>)> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let (stamp, addresses) = files.as_ref()?.get(path)?;
    Some((*stamp, addresses.upgrade()?))
}

/// Remembers what a file has. One that was changed a moment ago is read again.
pub(super) fn remember(path: &Path, stamp: Stamp, addresses: &Arc<[IpNet]>) {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let files = files.get_or_insert_default();
    files.retain(|_, (_, addresses)| addresses.strong_count() > 0);
    if !stamp.is_young() {
        files.insert(path.to_owned(), (stamp, Arc::downgrade(addresses)));
    }
}
