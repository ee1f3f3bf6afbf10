//! Commands that change sets, and the files of sets.

use std::fs;
use std::path::Path;

use crosspoint_model::client::{self, ClientError};
use crosspoint_model::request::{Request, SetChange};
use crosspoint_model::topic::Topic;
use serde_json::Value;

use super::reload::Host;

fn add(host: &Host, address: &str, keep: bool) -> Result<Value, ClientError> {
    let change = SetChange {
        set: "admins".to_owned(),
        addresses: vec![address.to_owned()],
        keep,
    };
    let socket = host.folder.path().join("control.sock");
    client::request(&socket, &Request::SetAdd(change))
}

fn shown(host: &Host) -> Value {
    let socket = host.folder.path().join("control.sock");
    let sets = client::request(&socket, &Request::Show(Topic::Sets)).expect("it answers");
    sets[0]["addresses"].clone()
}

/// A switch with a set in a file, which has this text.
fn with_set(file: &Path, text: &str) -> Host {
    fs::write(file, text).expect("written");
    let settings = format!("[[set]]\nname = \"admins\"\nfile = {file:?}\n");
    Host::start(1, &settings)
}

#[test]
fn a_change_of_a_set_is_kept_if_the_file_is_right_and_otherwise_changes_nothing() {
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("admins.txt");
    let host = with_set(&file, "192.0.2.1 # office\n");
    let answer = add(&host, "192.0.2.2", true).expect("it is kept");
    assert_eq!(answer["changed"], 1);
    let text = "192.0.2.1 # office\n192.0.2.2\n";
    assert_eq!(fs::read_to_string(&file).expect("it is there"), text);

    // Somebody has made a mistake in it meanwhile: the next start would not read it.
    let wrong = format!("{text}office\n");
    fs::write(&file, &wrong).expect("written");
    let why = add(&host, "192.0.2.3", true).expect_err("the file is wrong");
    let why = format!("{why:?}");
    assert!(why.contains("admins.txt:3: a line must be"), "{why}");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), wrong);
    assert_eq!(
        shown(&host).as_array().map(Vec::len),
        Some(2),
        "{}",
        shown(&host)
    );

    // Without `keep` the file does not matter.
    add(&host, "192.0.2.3", false).expect("it is added");
    assert_eq!(
        shown(&host).as_array().map(Vec::len),
        Some(3),
        "{}",
        shown(&host)
    );
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_a_set_has_already_is_added_to_its_file_alone() {
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = folder.path().join("admins.txt");
    let host = with_set(&file, "");
    assert_eq!(
        add(&host, "192.0.2.1", false).expect("it is added")["changed"],
        1
    );
    assert_eq!(
        add(&host, "192.0.2.1", false).expect("it is there")["changed"],
        0
    );
    let answer = add(&host, "192.0.2.1", true).expect("it is kept");
    assert_eq!(
        (&answer["changed"], &answer["addresses"]),
        (&0.into(), &1.into())
    );
    assert_eq!(
        fs::read_to_string(&file).expect("it is there"),
        "192.0.2.1\n"
    );
    host.daemon.reload();
    assert_eq!(
        shown(&host).as_array().map(Vec::len),
        Some(1),
        "{}",
        shown(&host)
    );
}
