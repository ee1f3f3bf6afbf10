//! Requests that change the switch, or ask what a change would do.
//!
//! ```text
//! {"plan":{"config":"/etc/crosspoint/new.toml"}}   what reading that file (null: the current one again) would change
//! {"reload":{}}                                    reads the configuration again, and applies the differences
//! {"port_add":{"name":"web-1","type":"vhost","socket":"/run/crosspoint/guests/web-1.sock"}}
//! {"port_set":{"name":"web-1","set":{"mac_limit":10,"vlan":{"access":5}}}}
//! {"keep":{}}                                      writes ports that are in no file, or differ from it, to their files
//! {"port_remove":"web-1"}                          or {"port_remove":{"name":"web-1","keep":true}}
//! {"fdb_flush":{"port":"web-1"}}                   keys: mac, port, vlan; none: all learned addresses
//! {"fdb_add":{"mac":"52:54:00:00:00:01","port":"web-1","vlan":100}}
//! {"fdb_remove":{"mac":"52:54:00:00:00:01"}}       and perhaps the vlan
//! {"set_add":{"set":"admins","addresses":["192.0.2.1"]}}
//! {"set_remove":{"set":"admins","addresses":["192.0.2.1"]}}
//! ```
//!
//! The answer's `ok` is a [`PlanAnswer`](crosspoint_model::plan::PlanAnswer) of `plan`, and a
//! [`ReloadAnswer`](crosspoint_model::plan::ReloadAnswer) of the others; of `keep`, a
//! [`KeepAnswer`](crosspoint_model::plan::KeepAnswer), and of those about the forwarding database, a
//! [`FdbAnswer`](crosspoint_model::request::FdbAnswer), of those about sets a
//! [`SetAnswer`](crosspoint_model::request::SetAnswer). A refusal has `error`, `help` and perhaps a `report`: which
//! lines of a configuration are wrong and why, as text for a person.
//!
//! Only root and the daemon's user may send these. They run one at a time; each waits for the one before it, up to
//! [`TURN_TIME_MAX`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crosspoint_model::request::{
    ChangeError, FdbAdd, FdbFlush, FdbRemove, PortAdd, PortRemove, PortSet, SetChange,
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::Source;
use super::asked::{Asked, line_of, may_change};

/// The longest that a change waits for the one before it.
pub const TURN_TIME_MAX: Duration = Duration::from_secs(5);

/// A change, or a plan of one.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Plan(Option<PathBuf>),
    Reload,
    Add(PortAdd),
    Remove(PortRemove),
    Set(PortSet),
    Keep,
    FdbFlush(FdbFlush),
    FdbAdd(FdbAdd),
    FdbRemove(FdbRemove),
    SetAdd(SetChange),
    SetRemove(SetChange),
}

impl Change {
    /// The change's name in the log, and the port's name.
    fn words(&self) -> (&'static str, &str) {
        match self {
            Change::Plan(_) => ("plan", ""),
            Change::Reload => ("reload", ""),
            Change::Add(add) => {
                let name = add.port.get("name").and_then(Value::as_str);
                ("port add", name.unwrap_or_default())
            }
            Change::Remove(remove) => ("port remove", &remove.name),
            Change::Set(set) => ("port set", &set.name),
            Change::Keep => ("keep", ""),
            Change::FdbFlush(flush) => ("fdb flush", flush.port.as_deref().unwrap_or_default()),
            Change::FdbAdd(add) => ("fdb add", &add.port),
            Change::FdbRemove(_) => ("fdb remove", ""),
            Change::SetAdd(_) => ("set add", ""),
            Change::SetRemove(_) => ("set remove", ""),
        }
    }

    /// Carries it out; this may take seconds.
    fn run(&self, source: &dyn Source) -> Result<Value, ChangeError> {
        let reloaded = match self {
            Change::Plan(config) => return source.plan(config.as_deref()).map(value_of),
            Change::Reload => source.reload(),
            Change::Keep => return source.keep().map(value_of),
            Change::Add(add) => source.port_add(add),
            Change::Remove(remove) => source.port_remove(remove),
            Change::Set(set) => source.port_set(set),
            Change::FdbFlush(flush) => return source.fdb_flush(flush).map(value_of),
            Change::FdbAdd(add) => return source.fdb_add(add).map(value_of),
            Change::FdbRemove(remove) => return source.fdb_remove(remove).map(value_of),
            Change::SetAdd(change) => return source.set_add(change).map(value_of),
            Change::SetRemove(change) => return source.set_remove(change).map(value_of),
        };
        reloaded.map(value_of)
    }
}

/// The answers are trees of maps with string keys, which serde_json cannot fail to make.
fn value_of(answer: impl Serialize) -> Value {
    serde_json::to_value(answer).unwrap_or_default()
}

#[derive(Serialize)]
struct Answer {
    ok: Value,
}

/// Answers a change request. It waits for workers, NICs and files, so it runs on a separate thread.
pub(super) async fn answer(change: Change, asked: &Asked) -> serde_json::Result<Vec<u8>> {
    let uid = asked.peer.map(|peer| peer.uid());
    if !may_change(uid, rustix::process::geteuid().as_raw()) {
        return line_of(&ChangeError::new(
            "only root and the daemon's user may change anything, or plan it",
            "`crosspoint show` works for every user who may connect",
        ));
    }
    let turn = Arc::clone(&asked.moving).lock_owned();
    let Ok(turn) = timeout(TURN_TIME_MAX, turn).await else {
        return line_of(&ChangeError::new(
            "another change is in progress",
            "try again",
        ));
    };
    let (wanted, source) = (change.clone(), Arc::clone(&asked.source));
    let task = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        wanted.run(&*source)
    });
    let result = task.await.unwrap_or_else(|why| {
        let error = format!("the change ended unexpectedly: {why}");
        Err(ChangeError::new(error, "see the daemon's log"))
    });
    let pid = asked.peer.and_then(|peer| peer.pid());
    let (what, port) = change.words();
    let error = result
        .as_ref()
        .err()
        .map(|refused| refused.error.escape_debug());
    let error = error.map(tracing::field::display);
    // Not every change concerns one port.
    let port = (!port.is_empty()).then(|| tracing::field::display(port.escape_debug()));
    let end = if result.is_ok() { "" } else { " and refused" };
    tracing::info!(pid, uid, port, error, "{what} was requested{end}");
    match result {
        Ok(ok) => line_of(&Answer { ok }),
        Err(refused) => line_of(&refused),
    }
}
