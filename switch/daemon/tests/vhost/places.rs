//! Sockets that are removed, moved or replaced while the switch listens.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use crosspoint_config::{Access, VhostPort as PortConfig};
use crosspoint_guest::message::request;
use crosspoint_guest::{GuestOptions, Session};
use crosspoint_model::status::ShownState;

use super::{PATIENCE, Switch};

const GROUP: u32 = 61_002;

/// Waits until a front end can connect and gets an answer.
fn is_served(socket: &Path) -> Session {
    let start = Instant::now();
    loop {
        let session = Session::connect(socket, PATIENCE);
        if let Ok(mut session) = session
            && session.query_u64(request::GET_FEATURES).is_ok()
        {
            return session;
        }
        assert!(start.elapsed() < PATIENCE, "no one connects");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Mode, owner and group.
fn rights(path: &Path) -> (u32, u32, u32) {
    let found = fs::symlink_metadata(path).expect("it is there");
    (found.mode(), found.uid(), found.gid())
}

/// Puts the socket into its own folder, which gives sockets its group, as with the packaged unit.
fn in_folder(config: &mut PortConfig) {
    let name = config.socket.file_name().expect("a name").to_owned();
    config.socket.pop();
    config.socket.push("guests");
    fs::create_dir_all(&config.socket).expect("nothing is in the way");
    chown(&config.socket, None, Some(GROUP)).expect("root may");
    let mode = fs::Permissions::from_mode(0o2770);
    fs::set_permissions(&config.socket, mode).expect("it is ours");
    config.socket.push(name);
}

#[test]
fn a_socket_that_is_removed_comes_back_as_it_was() {
    let switch = Switch::start(&["a"], |config| {
        config.access = Access {
            mode: Some(0o660),
            group: Some(GROUP.to_string()),
        };
    });
    let socket = switch.socket("a");
    let before = rights(&socket);
    fs::remove_file(&socket).expect("it is there");
    drop(is_served(&socket));
    assert_eq!(rights(&socket), before);
    assert_eq!(before.2, GROUP);
    // Repeatedly, and also if the socket was moved away.
    fs::rename(&socket, switch.socket("moved")).expect("it is there");
    drop(is_served(&socket));
    assert_eq!(rights(&socket), before);
    switch.wait("a", |port| {
        port.detail.starts_with("no front end is connected")
    });
    assert_eq!(switch.device("a").socket_problem, None);
}

#[test]
fn a_folder_that_is_removed_comes_back_as_it_was_for_all_its_sockets() {
    let switch = Switch::start(&["a", "b"], in_folder);
    let folder = switch.directory.path().join("guests");
    let sockets = [folder.join("a"), folder.join("b")];
    let all = || [rights(&folder), rights(&sockets[0]), rights(&sockets[1])];
    let before = all();
    fs::remove_dir_all(&folder).expect("it is there");
    drop(sockets.each_ref().map(|socket| is_served(socket)));
    assert_eq!(all(), before);
}

#[test]
fn the_front_end_at_hand_stays_and_the_next_one_finds_the_socket() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let mut a = switch.guest("a", GuestOptions::default());
    let mut b = switch.guest("b", GuestOptions::default());
    let socket = switch.socket("a");
    fs::remove_file(&socket).expect("it is there");
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < PATIENCE, "it is not made again");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(switch.port("a").state, ShownState::Up);
    let mut frame = [0xff; 60];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    assert_eq!(b.send(0, &[&frame]).ok(), Some(1));
    let got = a.receive_at_least(0, 1, PATIENCE).expect("a ring");
    assert!(!got.is_empty());
    a.disconnect();
    switch.wait("a", |port| port.state == ShownState::Down);
    drop(is_served(&socket));
}

#[test]
fn what_others_put_in_its_place_is_told_left_alone_and_followed_when_it_goes() {
    let switch = Switch::start(&["a"], |_| ());
    let socket = switch.socket("a");
    fs::remove_file(&socket).expect("it is there");
    let other = UnixListener::bind(&socket).expect("nothing is in the way");
    switch.wait("a", |port| {
        port.detail.contains("another process listens on")
            && port.detail.contains("no front end can connect")
    });
    // It ends without removing its file.
    drop(other);
    drop(is_served(&socket));
    switch.wait("a", |port| {
        port.detail.starts_with("no front end is connected")
    });

    fs::remove_file(&socket).expect("it is there");
    fs::write(&socket, "mine").expect("nothing is in the way");
    switch.wait("a", |port| port.detail.contains("is not a socket"));
    assert_eq!(fs::read(&socket).expect("it is there"), b"mine");
    fs::remove_file(&socket).expect("it is there");
    drop(is_served(&socket));
}

#[test]
fn a_port_that_goes_removes_its_own_socket_and_no_other() {
    let switch = Switch::start(&["a", "b"], |_| ());
    let (own, others) = (switch.socket("a"), switch.socket("b"));
    fs::remove_file(&others).expect("it is there");
    let _other = UnixListener::bind(&others).expect("nothing is in the way");
    let Switch {
        _ports, directory, ..
    } = switch;
    drop(_ports);
    assert!(!own.exists());
    assert!(others.exists());
    drop(directory);
}
