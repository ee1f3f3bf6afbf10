//! Notices changes in the folder `ports_dir`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::patience;

/// Time without changes before a change is reported; a process that writes a file in several steps takes no longer than
/// this for one of them.
const QUIET: Duration = Duration::from_millis(200);
/// The longest delay of a change while others follow it.
const KEPT_BACK_MAX: Duration = Duration::from_secs(1);

/// The longest time to wait for the folder's file system in a check whether the folder exists.
const STAT_TIME_MAX: Duration = Duration::from_secs(1);

/// Events that may change the meaning of a file in the folder, or the set of files.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO);

/// A watched folder, which may not exist.
///
/// The target of a link in it is not watched, only the link itself.
#[derive(Debug)]
pub struct PortsWatch {
    folder: PathBuf,
    inotify: OwnedFd,
    watched: Option<Watched>,
    /// Times of the first and the last change that have not been reported yet.
    changes: Option<(Instant, Instant)>,
    /// Whether it was logged that the folder cannot be watched.
    has_warned: bool,
}

/// The folder currently at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watched {
    device: u64,
    inode: u64,
    watch: i32,
}

impl PortsWatch {
    /// Watches from now on. The folder may be created later.
    ///
    /// # Errors
    ///
    /// If the kernel gives no inotify instance: their number per user is limited.
    pub fn new(folder: &Path) -> io::Result<PortsWatch> {
        let mut watch = PortsWatch {
            folder: folder.to_owned(),
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            watched: None,
            changes: None,
            has_warned: false,
        };
        watch.follow();
        Ok(watch)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether anything has changed since this last returned true. It returns true once the folder has been quiet for
    /// [`QUIET`], so that a file is not read while it is being written, and at the latest [`KEPT_BACK_MAX`] after the
    /// first change. Removal and creation of the folder count as changes. Call it about ten times a second; it does not
    /// wait.
    pub fn has_changed(&mut self) -> bool {
        self.has_changed_at(Instant::now())
    }

    fn has_changed_at(&mut self, now: Instant) -> bool {
        let is_other = self.follow();
        if self.read_events() || is_other {
            let first = self.changes.map_or(now, |(first, _)| first);
            self.changes = Some((first, now));
        }
        let is_due = |(first, last): (Instant, Instant)| {
            now.duration_since(last) >= QUIET || now.duration_since(first) >= KEPT_BACK_MAX
        };
        let is_due = self.changes.is_some_and(is_due);
        if is_due {
            self.changes = None;
        }
        is_due
    }

    /// Watches the folder that is at the path now. Returns whether it is another one than before.
    fn follow(&mut self) -> bool {
        // The kernel does not report a move of the path's parent folders.
        let stat = |path: &Path| rustix::fs::stat(path).ok();
        // No wait for a file system that does not answer; then no change is assumed.
        let Some(found) = patience::within(&self.folder, STAT_TIME_MAX, stat) else {
            return false;
        };
        let found = found.map(|stat| (stat.st_dev, stat.st_ino));
        if found == self.watched.map(|old| (old.device, old.inode)) {
            return false;
        }
        let old = self.watched.take();
        if let Some(old) = old {
            // This fails if the folder is gone, and its watch with it.
            let _ = inotify::remove_watch(&self.inotify, old.watch);
        }
        if let Some((device, inode)) = found {
            let flags = EVENTS | WatchFlags::ONLYDIR;
            match inotify::add_watch(&self.inotify, &self.folder, flags) {
                Ok(watch) => {
                    self.watched = Some(Watched {
                        device,
                        inode,
                        watch,
                    });
                }
                Err(error) => self.warn(error),
            }
        }
        self.watched != old
    }

    fn warn(&mut self, error: Errno) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                folder = %self.folder.display(), %error,
                "ports_dir cannot be watched; trying again (for ENOSPC, raise fs.inotify.max_user_watches)"
            );
        }
    }

    /// Reads all pending events. Returns whether one concerned the folder.
    fn read_events(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut any = false;
        while let Ok(event) = reader.next() {
            let is_end = event.events().contains(ReadFlags::IGNORED);
            let watched = self.watched.as_mut().filter(|w| w.watch == event.wd());
            match watched {
                // The folder was removed and recreated before this check; it may even have the same inode.
                Some(watched) if is_end => {
                    watched.inode = 0;
                    any = true;
                }
                Some(_) => any = true,
                None => any |= event.events().contains(ReadFlags::QUEUE_OVERFLOW),
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TURN: Duration = Duration::from_millis(100);

    /// A watch of an existing folder, with its own time.
    struct Fixture {
        directory: tempfile::TempDir,
        watch: PortsWatch,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().expect("a folder can be made");
            let folder = directory.path().join("ports.d");
            fs::create_dir(&folder).expect("it is not there");
            Fixture {
                watch: PortsWatch::new(&folder).expect("there is an inotify instance"),
                directory,
                now: Instant::now(),
            }
        }

        fn write(&self) {
            fs::write(self.watch.folder().join("a.toml"), "[[port]]").expect("the folder is there");
        }

        /// The next poll iterations in which it returns true.
        fn turns(&mut self, turns: usize, mut before_each: impl FnMut(&Self)) -> Vec<usize> {
            let changed = (0..turns).filter(|_| {
                before_each(self);
                self.now += TURN;
                self.watch.has_changed_at(self.now)
            });
            changed.collect()
        }

        fn quiet(&mut self) -> Vec<usize> {
            self.turns(20, |_| {})
        }
    }

    #[test]
    fn a_change_is_told_once_when_the_folder_has_become_quiet() {
        let mut fixture = Fixture::new();
        assert!(fixture.quiet().is_empty());
        fixture.write();
        assert_eq!(fixture.quiet(), [2]);
        fs::remove_file(fixture.watch.folder().join("a.toml")).expect("it is there");
        assert_eq!(fixture.quiet(), [2]);
    }

    #[test]
    fn a_folder_that_is_never_quiet_is_told_of_every_second() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.turns(33, Fixture::write), [10, 21, 32]);
    }

    #[test]
    fn a_folder_may_go_and_come_again() {
        let mut fixture = Fixture::new();
        let folder = fixture.watch.folder().to_owned();
        for _ in 0..3 {
            fs::remove_dir_all(&folder).expect("it is there");
            assert_eq!(fixture.quiet(), [2]);
            fs::create_dir(&folder).expect("it is gone");
            assert_eq!(fixture.quiet(), [2]);
            fixture.write();
            assert_eq!(fixture.quiet(), [2]);
            // Between two checks.
            fs::remove_dir_all(&folder).expect("it is there");
            fs::create_dir(&folder).expect("it is gone");
            assert_eq!(fixture.quiet().len(), 1);
            fixture.write();
            assert_eq!(fixture.quiet(), [2]);
        }
    }

    #[test]
    fn a_folder_that_takes_the_others_place_is_the_one_that_is_watched() {
        let mut fixture = Fixture::new();
        let (folder, other) = (
            fixture.watch.folder().to_owned(),
            fixture.directory.path().join("other"),
        );
        fs::create_dir(&other).expect("it is not there");
        fs::rename(&folder, fixture.directory.path().join("old")).expect("it is there");
        fs::rename(&other, &folder).expect("it is there");
        assert_eq!(fixture.quiet(), [2]);
        fs::write(fixture.directory.path().join("old/b.toml"), "").expect("it is there");
        assert!(fixture.quiet().is_empty());
        fixture.write();
        assert_eq!(fixture.quiet(), [2]);
    }
}
