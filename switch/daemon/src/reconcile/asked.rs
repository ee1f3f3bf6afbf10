//! Requests from the control socket.

use std::path::Path;
use std::sync::Arc;

use crosspoint_config::plan::{How, Plan};
use crosspoint_config::{Config, Port, PortTable, port_file, remove_port_file, write_port_file};
use crosspoint_model::health::Health;
use crosspoint_model::plan::{Failure, PlanAnswer, ReloadAnswer};
use crosspoint_model::request::ChangeError;
use crosspoint_model::status::{DaemonStatus, FdbEntry, FdbMover, Status};

use super::guests;
use super::reload::ReloadError;
use super::{Changing, Running};
use crate::api::Source;
use crate::dataplane::{Dataplane, MoveError};

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
        Ok(answer)
    }

    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        let done = Running::reload(self)?;
        Ok(ReloadAnswer {
            plan: done.answer,
            failed: done.failed,
        })
    }

    fn port_add(&self, table: &PortTable, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let wanted = changing.config.with_port(table)?;
        let Some(port) = wanted.ports.last() else {
            return Ok(ReloadAnswer::default());
        };
        self.check_worker(port)?;
        if keep {
            self.own_file(&changing, &port.name)?;
        }
        let mut done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() {
            changing.by_hand.insert(port.name.clone(), port.clone());
            if keep {
                self.keep(&mut changing, port, &mut done);
            }
        }
        Ok(done)
    }

    fn port_remove(&self, name: &str, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let wanted = changing.config.without_port(name)?;
        if keep {
            let ports_dir = changing.config.ports_dir.as_deref();
            remove_port_file(self.main_file()?, ports_dir, name)?;
        }
        changing.by_hand.remove(name);
        Ok(self.do_by_hand(&mut changing, &wanted))
    }

    fn port_set(
        &self,
        name: &str,
        set: &PortTable,
        keep: bool,
    ) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let wanted = changing.config.with_port_set(name, set)?;
        let after = wanted.ports.iter().find(|port| port.name == name);
        let Some(after) = after else {
            return Ok(ReloadAnswer::default());
        };
        self.check_worker(after)?;
        if keep {
            self.own_file(&changing, name)?;
        }
        let mut done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() {
            if let Some(known) = changing.by_hand.get_mut(name) {
                known.clone_from(after);
            }
            if keep {
                self.keep(&mut changing, after, &mut done);
            }
        }
        Ok(done)
    }
}

impl Running {
    fn main_file(&self) -> Result<&Path, ChangeError> {
        self.path.as_deref().ok_or(ReloadError::NoFile.into())
    }

    /// Checks, before any change, that the port has or can have a file of its own.
    fn own_file(&self, changing: &Changing, name: &str) -> Result<(), ChangeError> {
        let ports_dir = changing.config.ports_dir.as_deref();
        port_file(self.main_file()?, ports_dir, name)?;
        Ok(())
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

    /// Writes the port to its own file; from then on it belongs to the files. If that fails, the port still runs.
    fn keep(&self, changing: &mut Changing, port: &Port, done: &mut ReloadAnswer) {
        let ports_dir = changing.config.ports_dir.clone();
        let kept = self.main_file().and_then(|main| {
            write_port_file(main, ports_dir.as_deref(), port)?;
            Ok(())
        });
        match kept {
            Ok(()) => drop(changing.by_hand.remove(&port.name)),
            Err(why) => done.failed.push(Failure {
                what: port.name.clone(),
                error: format!("the port runs, but was not saved: {}", why.error),
            }),
        }
    }

    fn do_by_hand(&self, changing: &mut Changing, wanted: &Config) -> ReloadAnswer {
        let plan = Plan::between(&changing.config, wanted);
        let answer = self.warn_of(&plan);
        let failed = self.apply(changing, wanted, &plan);
        ReloadAnswer {
            plan: answer,
            failed,
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
