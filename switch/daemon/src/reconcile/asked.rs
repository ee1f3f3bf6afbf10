//! Requests from the control socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crosspoint_config::plan::{How, Plan};
use crosspoint_config::{
    Config, ConfigError, FileChanges, KeepError, Port, PortKind, PreparedChanges, StaticEntry,
};
use crosspoint_model::health::Health;
use crosspoint_model::plan::{Failure, KeepAnswer, PlanAnswer, ReloadAnswer, Unkept};
use crosspoint_model::request::{
    ChangeError, ConnectionsWanted, FdbAdd, FdbAnswer, FdbFlush, FdbRemove, PortAdd, PortRemove,
    PortSet, SetAnswer, SetChange,
};
use crosspoint_model::rows::{ConnectionTable, GroupTables, MulticastTable, PortRow};
use crosspoint_model::status::{
    DaemonStatus, FdbEntry, FdbMover, IpfixStatus, SflowStatus, Status,
};

use serde_json::Value;

use super::files::differing;
use super::reload::ReloadError;
use super::{Changing, Running};
use super::{addresses, guests};
use crate::api::Source;
use crate::dataplane::{Dataplane, MoveError};
use crate::ports::nic;

impl From<ReloadError> for ChangeError {
    fn from(error: ReloadError) -> ChangeError {
        match error {
            ReloadError::NoFile => ChangeError::new(
                "this switch was started without a file",
                "name one: crosspoint plan --config FILE",
            ),
            ReloadError::Config(error) => error.into(),
        }
    }
}

impl Source for Running {
    fn status(&self) -> Status {
        self.dataplane.status()
    }

    fn daemon(&self) -> DaemonStatus {
        let uptime = self.started.elapsed();
        DaemonStatus {
            uptime_ns: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
            ..self.about().clone()
        }
    }

    fn missing(&self) -> Vec<String> {
        Running::missing(self)
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.dataplane.fdb()
    }

    fn movers(&self) -> Vec<FdbMover> {
        self.dataplane.movers()
    }

    fn multicast(&self) -> MulticastTable {
        self.dataplane.multicast()
    }

    fn group_tables(&self) -> GroupTables {
        self.dataplane.group_tables()
    }

    fn connections(&self, wanted: &ConnectionsWanted) -> Result<ConnectionTable, ChangeError> {
        self.connections_of(wanted)
    }

    fn sflow(&self) -> SflowStatus {
        self.sflow.status()
    }

    fn ipfix(&self) -> IpfixStatus {
        self.ipfix.status()
    }

    fn health(&self) -> Health {
        Running::health(self)
    }

    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError> {
        self.dataplane.move_stream(port, queue, worker)
    }

    fn dataplane(&self) -> Option<Arc<Dataplane>> {
        Some(self.dataplane.clone())
    }

    fn plan(&self, config: Option<&Path>) -> Result<PlanAnswer, ChangeError> {
        let plan = Running::plan(self, config)?;
        let mut answer = PlanAnswer::from(&plan);
        guests::warn(&mut answer, &plan, &self.dataplane.status().ports);
        let unkept = self.differences().unkept.clone().into_iter();
        let not_in_files = unkept.filter(|(_, unkept)| *unkept == Unkept::NotInFiles);
        answer.not_in_files = not_in_files.map(|(name, _)| name).collect();
        let fdb_by_hand = &self.lock().fdb_by_hand;
        answer.fdb_not_in_files = fdb_by_hand.iter().map(StaticEntry::name).collect();
        Ok(answer)
    }

    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        let done = Running::reload(self)?;
        Ok(ReloadAnswer {
            plan: done.answer,
            failed: done.failed,
            notes: done.notes,
        })
    }

    fn port_add(&self, add: &PortAdd) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let name = add.port.get("name").and_then(Value::as_str);
        let name = name.unwrap_or_default();
        let known = changing.port(name).cloned();
        let wanted = match &known {
            None => changing.config.with_port(&add.port),
            Some(_) => changing.config.with_port_replaced(name, &add.port),
        };
        let wanted = wanted.map_err(of_command)?;
        let Some(port) = wanted.ports.iter().find(|port| port.name == name) else {
            return Ok(ReloadAnswer::default());
        };
        if let Some(known) = known.as_ref().filter(|known| *known != port)
            && !add.may_exist
        {
            let keys = differing(known, port);
            return Err(ChangeError::new(
                format!("port {name:?} exists already, with other keys: {keys}"),
                "`crosspoint port set` changes a port; `port add --may-exist` makes it what the command says",
            ));
        }
        self.check_worker(port)?;
        check_interface(known.as_ref(), port)?;
        let is_kept = changing.in_files.get(name) == Some(port);
        let prepared = match add.keep && !is_kept {
            true => Some(self.prepare(&changing, port)?),
            false => None,
        };
        let mut done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() {
            if !changing.in_files.contains_key(name) {
                changing.by_hand.insert(port.name.clone(), port.clone());
            }
            if let Some(prepared) = prepared {
                changing.keep(port, prepared, &mut done);
            }
            // Also if nothing has changed.
            let note = self.note_of_new(port);
            let note = note.filter(|note| !done.notes.contains(note));
            done.notes.extend(note);
        }
        self.note_unkept(&changing);
        Ok(done)
    }

    fn port_remove(&self, remove: &PortRemove) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let name = remove.name.as_str();
        if changing.port(name).is_none() {
            return self.remove_absent(&mut changing, remove);
        }
        let wanted = changing.config.without_port(name).map_err(of_command)?;
        if remove.keep {
            changing.remove_from_files(self.main_file()?, name)?;
        }
        changing.by_hand.remove(name);
        let mut done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() && changing.in_files.contains_key(name) {
            let note = format!("port {name} is still in the files: {}", in_files_help(name));
            done.notes.push(note);
        }
        self.note_unkept(&changing);
        Ok(done)
    }

    fn fdb_flush(&self, flush: &FdbFlush) -> Result<FdbAnswer, ChangeError> {
        addresses::flush(&self.dataplane, flush)
    }

    fn fdb_add(&self, add: &FdbAdd) -> Result<FdbAnswer, ChangeError> {
        self.add_static(add)
    }

    fn fdb_remove(&self, remove: &FdbRemove) -> Result<FdbAnswer, ChangeError> {
        self.remove_static(remove)
    }

    fn set_add(&self, change: &SetChange) -> Result<SetAnswer, ChangeError> {
        self.change_set(change, true)
    }

    fn set_remove(&self, change: &SetChange) -> Result<SetAnswer, ChangeError> {
        self.change_set(change, false)
    }

    fn keep(&self) -> Result<KeepAnswer, ChangeError> {
        self.keep_all()
    }

    fn config_text(&self) -> Option<String> {
        Some(self.text_of_config())
    }

    fn unkept(&self) -> BTreeMap<String, Unkept> {
        self.differences().unkept.clone()
    }

    fn absent(&self) -> Vec<PortRow> {
        self.differences().absent.clone()
    }

    fn config_problems(&self) -> Vec<String> {
        self.differences().problems.clone()
    }

    fn restart_pending(&self) -> Vec<String> {
        self.differences().restart.clone()
    }

    fn port_set(&self, set: &PortSet) -> Result<ReloadAnswer, ChangeError> {
        let PortSet { name, set, keep } = set;
        let mut changing = self.lock();
        let wanted = changing
            .config
            .with_port_set(name, set)
            .map_err(of_command)?;
        let after = wanted.ports.iter().find(|port| port.name == *name);
        let Some(after) = after else {
            return Ok(ReloadAnswer::default());
        };
        self.check_worker(after)?;
        check_interface(changing.port(name), after)?;
        let prepared = match keep {
            true => Some(self.prepare(&changing, after)?),
            false => None,
        };
        let mut done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() {
            if let Some(known) = changing.by_hand.get_mut(name) {
                known.clone_from(after);
            }
            if let Some(prepared) = prepared {
                changing.keep(after, prepared, &mut done);
            }
        }
        self.note_unkept(&changing);
        Ok(done)
    }
}

fn of_command(error: ConfigError) -> ChangeError {
    ChangeError::of_command(&error)
}

/// What to do about a port of the files that does not run.
pub(super) fn in_files_help(name: &str) -> String {
    format!(
        "the next reload or restart adds it; `crosspoint port remove {name} --keep` removes it from the files"
    )
}

/// Refuses a port that would take the host's network away, unless it has the interface already.
fn check_interface(before: Option<&Port>, after: &Port) -> Result<(), ChangeError> {
    let PortKind::Xdp(wanted) = &after.kind else {
        return Ok(());
    };
    let has_it = before.is_some_and(
        |before| matches!(&before.kind, PortKind::Xdp(had) if had.interface == wanted.interface),
    );
    match nic::refusal(wanted).filter(|_| !has_it) {
        None => Ok(()),
        Some(why) => Err(ChangeError::new(
            why.to_string(),
            "`crosspoint doctor --all` shows what the host uses each interface for",
        )),
    }
}

impl Running {
    /// Removes a port that does not run: with `keep`, its file, which would bring it back at the next reload.
    fn remove_absent(
        &self,
        changing: &mut Changing,
        remove: &PortRemove,
    ) -> Result<ReloadAnswer, ChangeError> {
        let name = remove.name.as_str();
        let is_in_files = changing.in_files.contains_key(name);
        let mut done = ReloadAnswer::default();
        if let (true, Some(main)) = (remove.keep, self.path.as_deref()) {
            match changing.remove_from_files(main, name) {
                Ok(path) => {
                    self.note_unkept(changing);
                    let path = path.display();
                    done.notes.push(format!(
                        "port {name} did not run; it is removed from {path}"
                    ));
                    return Ok(done);
                }
                Err(KeepError::Nowhere { .. }) => {}
                Err(why) if is_in_files => return Err(why.into()),
                Err(_) => {}
            }
        }
        let is_left = is_in_files && !remove.keep;
        let error = format!("port {name:?} does not run, and is still in the files");
        match (remove.if_exists, is_left) {
            (true, true) => done.notes.push(format!("{error}: {}", in_files_help(name))),
            (true, false) => {}
            (false, true) => return Err(ChangeError::new(error, in_files_help(name))),
            (false, false) => {
                changing.config.without_port(name).map_err(of_command)?;
            }
        }
        Ok(done)
    }

    pub(super) fn main_file(&self) -> Result<&Path, ChangeError> {
        self.path.as_deref().ok_or(ReloadError::NoFile.into())
    }

    /// Prepares the port's file before any change, so that what cannot be kept is not changed either.
    fn prepare(&self, changing: &Changing, port: &Port) -> Result<PreparedChanges, ChangeError> {
        let prepared = changing.prepare(self.main_file()?, port);
        prepared.map_err(|why| {
            let why = ChangeError::from(why);
            let help = format!(
                "nothing was changed; without --keep the switch changes and no file does; for the file: {}",
                why.help
            );
            ChangeError::new(why.error, help)
        })
    }

    /// Checks that the port's worker exists; with "auto" cores the configuration does not tell how many workers there
    /// are.
    fn check_worker(&self, port: &Port) -> Result<(), ChangeError> {
        match port.worker {
            Some(worker) if worker >= self.dataplane.workers() => Err(ChangeError::new(
                format!("port {:?}: there is no worker {worker}", port.name),
                format!("the workers are 0 to {}", self.dataplane.workers() - 1),
            )),
            _ => Ok(()),
        }
    }

    fn do_by_hand(&self, changing: &mut Changing, wanted: &Config) -> ReloadAnswer {
        let plan = Plan::between(&changing.config, wanted);
        let answer = self.warn_of(&plan);
        let (failed, notes) = self.apply_and_note(changing, wanted, &plan);
        ReloadAnswer {
            plan: answer,
            failed,
            notes,
        }
    }

    /// The plan's answer, with warnings about what it takes from running guests; the warnings are also logged. Call it
    /// before the plan is carried out, while these guests are still there.
    pub(super) fn warn_of(&self, plan: &Plan) -> PlanAnswer {
        let mut answer = PlanAnswer::from(plan);
        if plan.change.iter().any(|diff| diff.how == How::Reopen) {
            guests::warn(&mut answer, plan, &self.dataplane.status().ports);
        }
        for port in &answer.change {
            for warning in &port.warnings {
                tracing::warn!(port = %port.name, "{warning}");
            }
        }
        answer
    }
}

impl Changing {
    fn prepare(&self, main: &Path, port: &Port) -> Result<PreparedChanges, KeepError> {
        let mut changes = FileChanges::begin(main, &self.config)?;
        changes.set_port(self.in_files.get(&port.name), port)?;
        changes.prepare()
    }

    /// Puts the port's file into place; from then on the port belongs to the files. If that fails, it still runs.
    fn keep(&mut self, port: &Port, prepared: PreparedChanges, done: &mut ReloadAnswer) {
        match prepared.commit() {
            Ok(()) => self.note_kept(port),
            Err(why) => done.failed.push(Failure {
                what: port.name.clone(),
                error: format!("the port runs, but was not saved: {why}"),
            }),
        }
    }

    /// Removes the port from the files. Returns its file.
    fn remove_from_files(&mut self, main: &Path, name: &str) -> Result<PathBuf, KeepError> {
        let mut changes = FileChanges::begin(main, &self.config)?;
        let path = changes.remove_port(name)?;
        changes.prepare()?.commit()?;
        self.in_files.remove(name);
        Ok(path)
    }
}
