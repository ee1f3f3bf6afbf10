//! Static addresses, of the files and of commands, and addresses that are flushed, with guests and a daemon.

use std::fs;

use crosspoint_config::Config;
use crosspoint_model::client;
use crosspoint_model::plan::{EntryChange, KeepAnswer, PlanAnswer};
use crosspoint_model::request::{FdbAnswer, Request};
use crosspoint_model::status::Origin;
use serde::de::DeserializeOwned;

use super::reload::Host;
use super::sources::{
    ALL, DISPUTED, OTHER, PEER, fdb, guests, place, receives, send, wait_refused,
};

fn ask_as<T: DeserializeOwned>(host: &Host, request: &str) -> Result<T, String> {
    let socket = host.folder.path().join("control.sock");
    let request: Request = serde_json::from_str(request).expect("a request");
    let answer = client::request(&socket, &request).map_err(|why| why.to_string())?;
    Ok(serde_json::from_value(answer).expect("an answer"))
}

fn ask(host: &Host, request: &str) -> Result<FdbAnswer, String> {
    ask_as(host, request)
}

const ADD: &str = r#"{"fdb_add":{"mac":"52:54:00:09:09:01","port":"owner"}}"#;
const REMOVE: &str = r#"{"fdb_remove":{"mac":"52:54:00:09:09:01"}}"#;

#[test]
fn a_static_address_stays_on_its_port_until_it_is_removed() {
    let host = Host::start(2, "");
    let [mut owner, mut thief, mut peer] = guests(&host);
    send(&mut thief, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL) && receives(&mut owner, DISPUTED, ALL));
    assert_eq!(place(&host).as_deref(), Some("thief"));

    assert_eq!(ask(&host, ADD).expect("it is added").vlan, Some(10));
    assert_eq!(place(&host).as_deref(), Some("owner"));
    send(&mut thief, DISPUTED, ALL);
    wait_refused(&host, "thief", 1);
    send(&mut peer, PEER, DISPUTED);
    assert!(receives(&mut owner, PEER, DISPUTED));
    // Its own port may use other addresses too.
    send(&mut owner, OTHER, ALL);
    assert!(receives(&mut peer, OTHER, ALL) && receives(&mut thief, OTHER, ALL));

    let flushed = ask(&host, r#"{"fdb_flush":{}}"#).expect("all are flushed");
    assert_eq!(flushed.removed, 2, "the static address stays");
    let known = fdb(&host).addresses;
    assert!(known.len() == 1 && known[0].is_static, "{known:?}");

    assert_eq!(ask(&host, REMOVE).expect("it is removed").removed, 1);
    assert_eq!(place(&host), None);
    send(&mut thief, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL));
    assert_eq!(place(&host).as_deref(), Some("thief"));
    assert!(
        ask(&host, REMOVE).is_err(),
        "a learned address is not static"
    );
}

#[test]
fn addresses_are_flushed_by_port_and_by_address() {
    let host = Host::start(1, "");
    let [mut owner, mut thief, mut peer] = guests(&host);
    for (guest, src) in [
        (&mut owner, DISPUTED),
        (&mut thief, OTHER),
        (&mut peer, PEER),
    ] {
        send(guest, src, ALL);
    }
    host.wait("all are known", |host| fdb(host).addresses.len() == 3);
    let removed = |request: &str| ask(&host, request).map(|answer| answer.removed);
    assert_eq!(removed(r#"{"fdb_flush":{"port":"owner","vlan":7}}"#), Ok(0));
    assert_eq!(removed(r#"{"fdb_flush":{"port":"owner"}}"#), Ok(1));
    assert_eq!(
        removed(r#"{"fdb_flush":{"mac":"52:54:00:09:09:02"}}"#),
        Ok(1)
    );
    let known = fdb(&host).addresses;
    assert!(known.len() == 1 && known[0].port == "thief", "{known:?}");
    assert!(removed(r#"{"fdb_flush":{"port":"nobody"}}"#).is_err());
    assert!(removed(r#"{"fdb_flush":{"mac":"web-1"}}"#).is_err());
}

/// Writes a file of the folder with static addresses, each with its port.
fn write_statics(host: &Host, name: &str, entries: &[(&str, &str)]) {
    let table = |(mac, port): &(&str, &str)| format!("[[fdb]]\nmac = {mac:?}\nport = {port:?}\n");
    let text: String = entries.iter().map(table).collect();
    let path = host.folder.path().join("ports.d").join(name);
    fs::write(path, text).expect("the file");
}

/// Who has put the address on its port, and which that is.
fn origin(host: &Host, mac: &str) -> Option<(Origin, String)> {
    let known = fdb(host).addresses;
    let entry = known.into_iter().find(|entry| entry.mac == mac)?;
    Some((entry.origin?, entry.port))
}

const FIRST: &str = "52:54:00:09:09:01";
const LATER: &str = "52:54:00:09:09:04";

#[test]
fn addresses_of_the_files_are_static_and_change_with_a_reload() {
    let host = Host::start(2, "");
    let [mut owner, mut thief, mut peer] = guests(&host);
    write_statics(&host, "static.toml", &[(FIRST, "owner"), (LATER, "late")]);
    let plan: PlanAnswer = ask_as(&host, r#"{"plan":{}}"#).expect("a plan");
    let changes: Vec<_> = plan
        .entries
        .iter()
        .map(|one| (one.change, &*one.name))
        .collect();
    assert_eq!(
        changes,
        [(EntryChange::Add, FIRST), (EntryChange::Add, LATER)]
    );

    host.daemon.reload();
    let of_file = |port: &str| Some((Origin::File, port.to_owned()));
    assert_eq!(origin(&host, FIRST), of_file("owner"));
    assert_eq!(origin(&host, LATER), None, "its port is not there yet");
    send(&mut thief, DISPUTED, ALL);
    wait_refused(&host, "thief", 1);
    send(&mut peer, PEER, DISPUTED);
    assert!(receives(&mut owner, PEER, DISPUTED));

    host.write("late", "");
    write_statics(&host, "static.toml", &[(FIRST, "thief"), (LATER, "late")]);
    let plan: PlanAnswer = ask_as(&host, r#"{"plan":{}}"#).expect("a plan");
    let changes: Vec<_> = plan
        .entries
        .iter()
        .map(|one| (one.change, &*one.name))
        .collect();
    assert_eq!(changes, [(EntryChange::Change, FIRST)]);
    host.daemon.reload();
    assert_eq!(origin(&host, FIRST), of_file("thief"));
    assert_eq!(origin(&host, LATER), of_file("late"));

    write_statics(&host, "static.toml", &[]);
    host.daemon.reload();
    assert_eq!(place(&host), None, "it is no longer known");
    send(&mut owner, DISPUTED, ALL);
    assert!(receives(&mut peer, DISPUTED, ALL) && receives(&mut thief, DISPUTED, ALL));
    assert_eq!(place(&host).as_deref(), Some("owner"));
}

#[test]
fn what_a_command_keeps_is_in_a_file_that_can_be_read() {
    let host = Host::start(1, "");
    let _guests = guests(&host);
    let main = host.folder.path().join("main.toml");
    let file = host.folder.path().join("ports.d/fdb.toml");
    let in_files = || {
        let config = Config::load(&main).unwrap_or_else(|why| panic!("{}", why.render()));
        config
            .fdb
            .iter()
            .map(|entry| entry.name())
            .collect::<Vec<String>>()
    };
    let [first, later] = [FIRST, LATER].map(|mac| format!("{mac} vlan 10"));
    let add = |mac: &str, keep: bool| {
        let request = format!(r#"{{"fdb_add":{{"mac":"{mac}","port":"owner","keep":{keep}}}}}"#);
        ask(&host, &request)
    };
    assert_eq!(add(FIRST, true).expect("it is added").vlan, Some(10));
    add(LATER, false).expect("it is added");
    assert_eq!(in_files(), std::slice::from_ref(&first));
    assert_eq!(origin(&host, FIRST).map(|(of, _)| of), Some(Origin::File));
    assert_eq!(
        origin(&host, LATER).map(|(of, _)| of),
        Some(Origin::Command)
    );

    // A reload changes neither, and tells which one is in no file.
    let plan: PlanAnswer = ask_as(&host, r#"{"plan":{}}"#).expect("a plan");
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(plan.fdb_not_in_files, std::slice::from_ref(&later));
    host.daemon.reload();
    assert_eq!(
        origin(&host, LATER).map(|(of, _)| of),
        Some(Origin::Command)
    );

    let kept: KeepAnswer = ask_as(&host, r#"{"keep":{}}"#).expect("an answer");
    assert_eq!(kept.kept_fdb.len(), 1, "{kept:?}");
    assert_eq!(in_files(), [first, later.clone()]);
    assert_eq!(origin(&host, LATER).map(|(of, _)| of), Some(Origin::File));

    let remove = |mac: &str, keep: bool| {
        let request = format!(r#"{{"fdb_remove":{{"mac":"{mac}","keep":{keep}}}}}"#);
        ask(&host, &request)
    };
    assert_eq!(remove(FIRST, true).expect("it is removed").removed, 1);
    assert_eq!(in_files(), [later]);
    // Without --keep it comes back.
    assert_eq!(remove(LATER, false).expect("it is removed").removed, 1);
    assert_eq!(origin(&host, LATER), None);
    host.daemon.reload();
    assert_eq!(origin(&host, LATER).map(|(of, _)| of), Some(Origin::File));
    remove(LATER, true).expect("it is removed");
    assert!(!file.exists(), "nothing is left to keep");

    // Where it is in another file, it is removed from that.
    write_statics(&host, "static.toml", &[(FIRST, "owner")]);
    host.daemon.reload();
    assert_eq!(remove(FIRST, true).expect("it is removed").removed, 1);
    assert!(!host.folder.path().join("ports.d/static.toml").exists());
    host.daemon.reload();
    assert_eq!(origin(&host, FIRST), None);
}

#[test]
fn an_address_that_is_bound_to_another_port_cannot_be_added() {
    let host = Host::start(1, "");
    host.write("bound", "addresses = { mac = [\"52:54:00:09:09:01\"] }");
    let _guests = guests(&host);
    let refused = ask(&host, ADD).expect_err("it is bound");
    assert!(refused.contains("bound to port"), "{refused}");
}
