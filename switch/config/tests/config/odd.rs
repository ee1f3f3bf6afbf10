//! Paths to anything but a regular file: refused by name and kind, without waiting.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crosspoint_config as config;
use crosspoint_config::Config;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::{TempDir, tempdir};

/// Far longer than any of them takes: none waits for a writer, a reader, or an end of file.
const PATIENCE: Duration = Duration::from_secs(30);

/// One path of each kind, and the expected message.
fn odd_ones(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| folder.join(name);
    mknodat(CWD, at("fifo.toml"), FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
    let _bound = UnixListener::bind(at("socket.toml")).expect("a socket");
    fs::create_dir(at("folder.toml")).expect("a folder");
    symlink("nowhere", at("dangling.toml")).expect("a link");
    symlink("loop.toml", at("loop.toml")).expect("a link");
    symlink("/dev/zero", at("zero.toml")).expect("a link");
    symlink("/dev/tty", at("tty.toml")).expect("a link");
    symlink("fifo.toml", at("to-fifo.toml")).expect("a link");
    let huge = File::create(at("huge.toml")).expect("a file");
    huge.set_len(1 << 40).expect("a sparse file");
    vec![
        (at("fifo.toml"), "it is a FIFO, not a regular file"),
        (at("to-fifo.toml"), "it is a FIFO, not a regular file"),
        (at("socket.toml"), "it is a socket, not a regular file"),
        (at("folder.toml"), "it is a directory, not a regular file"),
        (at("dangling.toml"), "it is a link to nowhere: No such file"),
        (at("loop.toml"), "os error 40"),
        (at("zero.toml"), "it is a device, not a regular file"),
        (at("tty.toml"), "it is a device, not a regular file"),
        (at("huge.toml"), "is longer than 1048576 bytes"),
    ]
}

#[test]
fn what_is_no_regular_file_is_refused_by_its_name_and_kind() {
    let folder = tempdir().expect("a folder");
    let start = Instant::now();
    for (path, what) in odd_ones(folder.path()) {
        let shown = path.display().to_string();
        let error = Config::load(&path).expect_err(&shown).render();
        assert!(error.contains(&shown) && error.contains(what), "{error}");
        assert!(error.contains("help: "), "{error}");
        let error = config::read_named(&path).expect_err(&shown);
        assert!(error.contains(&shown) && error.contains(what), "{error}");
    }
    let fifo = folder.path().join("fifo.toml");
    let error = Config::load(&fifo).expect_err("a FIFO").render();
    assert!(error.contains("check --config -"), "{error}");
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn in_a_folder_of_ports_each_is_a_problem_of_its_own() {
    let folder = tempdir().expect("a folder");
    let ports = folder.path().join("ports.d");
    fs::create_dir(&ports).expect("a folder");
    let odd = odd_ones(&ports);
    let main = folder.path().join("switch.toml");
    fs::write(&main, "version = 1\nports_dir = \"ports.d\"\n").expect("it is ours");
    let error = Config::load(&main).expect_err("mistakes").render();
    for (path, what) in odd {
        let named = path.display().to_string();
        assert!(
            error.contains(&named) && error.contains(what),
            "{what}: {error}"
        );
    }
}

/// A file system whose server never answers.
struct Stalled {
    folder: TempDir,
    /// Dropping it releases all waiting reads.
    _server: File,
}

impl Stalled {
    /// `None` if it cannot be mounted: without root, or in a container.
    fn mount() -> Option<Stalled> {
        let folder = tempdir().expect("a folder");
        let mut options = File::options();
        let server = options.read(true).write(true).open("/dev/fuse").ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o"]);
        mount.arg("fd=0,rootmode=40000,user_id=0,group_id=0");
        mount.arg("fuse").arg(folder.path());
        mount.stdin(server.try_clone().ok()?);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Stalled {
            folder,
            _server: server,
        })
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let umount = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .output();
        assert!(umount.is_ok_and(|output| output.status.success()));
    }
}

#[test]
fn a_file_system_that_does_not_answer_is_given_up() {
    let Some(stalled) = Stalled::mount() else {
        println!("nothing is tested: FUSE cannot be mounted here");
        return;
    };
    let start = Instant::now();
    let path = stalled.folder.path().join("switch.toml");
    let error = Config::load(&path).expect_err("no answer").render();
    assert!(error.contains("has not answered for 5 s"), "{error}");
    let folder = tempdir().expect("a folder");
    let main = folder.path().join("switch.toml");
    let ports_dir = stalled.folder.path().join("ports.d");
    let text = format!(
        "version = 1\nports_dir = {:?}\n",
        ports_dir.display().to_string()
    );
    fs::write(&main, text).expect("it is ours");
    let error = Config::load(&main).expect_err("no answer").render();
    assert!(error.contains("no answer"), "{error}");
    assert!(start.elapsed() < PATIENCE);
}
