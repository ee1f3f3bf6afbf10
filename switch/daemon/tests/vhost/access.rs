//! Permissions to connect to a guest port's socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crosspoint_config::Access;
use crosspoint_daemon::ports::vhost::{VhostPort, VhostPortError};

use super::{Switch, add_port, port_config};

/// An ordinary user and two groups with arbitrary numbers.
const USER: u32 = 61_001;
const GROUP: u32 = 61_002;
const OTHERS: u32 = 61_003;

fn access(mode: &str, group: u32) -> Access {
    Access {
        mode: Some(u32::from_str_radix(mode, 8).expect("octal")),
        group: Some(group.to_string()),
    }
}

/// Whether a process of the ordinary user with this group can connect.
fn connects(socket: &Path, group: u32) -> bool {
    let program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    let mut client = Command::new("/usr/bin/python3");
    client.args(["-c", program]).arg(socket);
    client.uid(USER).gid(group).stderr(Stdio::null());
    client.status().expect("python3 runs").success()
}

#[test]
fn only_its_group_connects_where_the_mode_says_so() {
    for (mode, of_group, of_others) in [
        ("0660", true, false),
        ("0666", true, true),
        ("0640", false, false),
        ("0606", false, true),
    ] {
        let switch = Switch::start(&["a"], |config| config.access = access(mode, GROUP));
        let folder = switch.directory.path();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let socket = folder.join("a");
        let found = fs::metadata(&socket).expect("it is there");
        assert_eq!(found.gid(), GROUP);
        assert_eq!(format!("0{:o}", found.mode() & 0o7777), mode);
        let can = (connects(&socket, GROUP), connects(&socket, OTHERS));
        assert_eq!(can, (of_group, of_others), "{mode}");
    }
}

#[test]
fn without_a_word_the_umask_decides() {
    let switch = Switch::start(&["a"], |_| {});
    let socket = switch.directory.path().join("a");
    let plain = switch.directory.path().join("plain");
    let _plain = std::os::unix::net::UnixListener::bind(&plain).expect("nothing is in the way");
    let look = |path| fs::metadata(path).map(|file| (file.mode(), file.uid(), file.gid()));
    assert_eq!(look(&socket).ok(), look(&plain).ok());
}

/// While ports open and close, an ordinary process that may enter the folder keeps trying.
#[test]
fn no_process_connects_before_the_mode_is_set() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let program = "
import socket, sys
while True:
    try:
        socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    except OSError:
        continue
    sys.exit('it got in')
";
    let socket = folder.path().join("a");
    let mut client = Command::new("/usr/bin/python3");
    client
        .args(["-c", program])
        .arg(&socket)
        .uid(USER)
        .gid(OTHERS);
    let mut client = client.stderr(Stdio::null()).spawn().expect("python3 runs");
    // A umask that lets all users in, so that only the key keeps them out.
    let switch = Switch::start(&[], |_| {});
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let number = add_port(&switch.dataplane, "a", 1);
    let mut config = port_config(socket);
    config.access = access("0600", GROUP);
    for _ in 0..200 {
        let port = VhostPort::open(switch.dataplane.clone(), number, "a", &config);
        drop(port.expect("nothing is in the way"));
    }
    rustix::process::umask(before);
    let ended = client.try_wait().expect("it is ours");
    let _ = client.kill();
    let _ = client.wait();
    assert_eq!(ended, None, "an ordinary process has connected");
}

#[test]
fn a_group_that_is_not_there_is_an_error_that_leaves_nothing() {
    let switch = Switch::start(&[], |_| {});
    let socket = switch.directory.path().join("a");
    let mut config = port_config(socket.clone());
    config.access.group = Some("no-such-group".to_owned());
    let number = add_port(&switch.dataplane, "a", 1);
    let why = VhostPort::open(switch.dataplane.clone(), number, "a", &config).err();
    let why = why.expect("there is no such group");
    assert!(matches!(why, VhostPortError::NoGroup { .. }), "{why}");
    assert!(why.to_string().contains("groupadd --system no-such-group"));
    assert!(!socket.exists());
}
