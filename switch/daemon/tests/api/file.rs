//! The socket's file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crosspoint_daemon::api::{ControlServer, SocketError};
use crosspoint_model::client::request;
use crosspoint_model::request::Request;
use crosspoint_model::topic::Topic;
use miette::Diagnostic;

use crate::picture::picture;
use crate::socket;

fn start(path: &Path) -> Result<ControlServer, SocketError> {
    ControlServer::start(path, Arc::new(picture()))
}

fn answers(path: &Path) -> bool {
    request(path, &Request::Show(Topic::Ports)).is_ok()
}

#[test]
fn the_directory_is_made_and_only_owner_and_group_may_connect() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(&directory.path().join("run/crosspoint"));
    let server = start(&path).expect("nothing is in the way");
    let mode = fs::metadata(&path)
        .expect("the socket is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(answers(&path));
    server.stop();
    assert!(!path.exists());
}

#[test]
fn the_socket_of_a_dead_process_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    drop(UnixListener::bind(&path).expect("nothing is in the way"));
    assert!(path.exists());
    let _server = start(&path).expect("no process answers there");
    assert!(answers(&path));
}

#[test]
fn the_socket_of_a_living_process_is_not_taken() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let server = start(&path).expect("nothing is in the way");
    let error = start(&path).expect_err("somebody answers there");
    let message = format!("a running process answers on {}", path.display());
    assert_eq!(error.to_string(), message);
    assert!(
        error
            .help()
            .expect("there is help")
            .to_string()
            .contains("[control] socket")
    );
    assert!(answers(&path), "the first is still there");
    server.stop();
    start(&path).expect("no process answers any more");
}

#[test]
fn a_living_process_that_does_not_answer_is_not_taken_for_dead() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let listener = UnixListener::bind(&path).expect("nothing is in the way");
    // A backlog of 0 has room for one connection.
    rustix::net::listen(&listener, 0).expect("it listens");
    let _in_queue = std::os::unix::net::UnixStream::connect(&path).expect("there is room");
    let error = start(&path).expect_err("somebody is there");
    assert!(matches!(error, SocketError::Busy { .. }), "{error}");
}

#[test]
fn the_socket_of_another_program_of_another_type_is_not_taken() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let _datagrams = UnixDatagram::bind(&path).expect("nothing is in the way");
    let error = start(&path).expect_err("somebody is there");
    assert!(matches!(error, SocketError::Busy { .. }), "{error}");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    fs::write(&path, "precious").expect("it can be written");
    let error = start(&path).expect_err("it is in the way");
    assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).expect("it is there"), b"precious");
}

#[test]
fn a_file_that_took_the_sockets_place_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    let server = start(&path).expect("nothing is in the way");
    fs::remove_file(&path).expect("it is there");
    let _another = UnixListener::bind(&path).expect("nothing is in the way");
    server.stop();
    assert!(path.exists());
}

#[test]
fn a_path_that_cannot_be_is_named() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let long = directory.path().join("x".repeat(120));
    let error = start(&long).expect_err("too long");
    assert!(
        error.to_string().contains(&long.display().to_string()),
        "{error}"
    );
    let error = start(Path::new("/proc/crosspoint/control.sock")).expect_err("no place for it");
    assert!(
        error
            .to_string()
            .starts_with("cannot create the directory /proc/crosspoint: ")
    );
}

#[test]
fn of_daemons_that_start_at_once_one_has_the_socket() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = socket(directory.path());
    for _ in 0..20 {
        drop(UnixListener::bind(&path).expect("nothing is in the way"));
        let together = Barrier::new(8);
        let race = || {
            together.wait();
            start(&path)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(
            results.iter().filter(|result| result.is_ok()).count(),
            1,
            "{results:?}"
        );
        assert!(answers(&path));
    }
}

#[test]
fn a_lock_on_the_directory_that_is_never_released_is_an_error_in_time() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let lock = fs::File::open(directory.path()).expect("it is there");
    let exclusive = rustix::fs::FlockOperation::LockExclusive;
    rustix::fs::flock(&lock, exclusive).expect("no other process locks it");
    let begin = Instant::now();
    let error = start(&socket(directory.path())).expect_err("it is locked");
    assert!(error.to_string().starts_with("cannot lock "), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}
