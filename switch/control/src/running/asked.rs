//! What the control socket asks for.

use std::path::Path;
use std::sync::Arc;

use super::reload::ReloadError;
use super::{Changing, Running};
use crate::api::{ChangeError, Source};
use crate::config::{Config, PortTable, port_file, remove_port_file, write_port_file};
use crate::fabric::{Fabric, MoveError};
use crate::health::Health;
use crate::plan::{Failure, Plan, PlanAnswer, ReloadAnswer};
use crate::status::{DaemonStatus, FdbEntry, Status};

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
        self.fabric.status()
    }

    fn daemon(&self) -> DaemonStatus {
        let uptime = self.started.elapsed();
        DaemonStatus {
            uptime_ns: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
            ..self.about().clone()
        }
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.fabric.fdb()
    }

    fn health(&self) -> Health {
        self.fabric.health()
    }

    fn move_stream(&self, port: &str, queue: u16, worker: usize) -> Result<(), MoveError> {
        self.fabric.move_stream(port, queue, worker)
    }

    fn fabric(&self) -> Option<Arc<Fabric>> {
        Some(self.fabric.clone())
    }

    fn plan(&self, config: Option<&Path>) -> Result<PlanAnswer, ChangeError> {
        let plan = Running::plan(self, config)?;
        Ok(PlanAnswer::from(&plan))
    }

    fn reload(&self) -> Result<ReloadAnswer, ChangeError> {
        let (plan, failed) = Running::reload(self)?;
        Ok(answer(&plan, failed))
    }

    fn port_add(&self, table: &PortTable, keep: bool) -> Result<ReloadAnswer, ChangeError> {
        let mut changing = self.lock();
        let wanted = changing.config.with_port(table)?;
        let Some(port) = wanted.ports.last() else {
            return Ok(ReloadAnswer::default());
        };
        if keep {
            self.own_file(&changing, &port.name)?;
        }
        let done = self.do_by_hand(&mut changing, &wanted);
        if done.failed.is_empty() {
            match keep {
                true => self.keep(&changing, &port.name)?,
                false => drop(changing.by_hand.insert(port.name.clone())),
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
        if keep {
            self.own_file(&changing, name)?;
        }
        let done = self.do_by_hand(&mut changing, &wanted);
        if keep && done.failed.is_empty() {
            self.keep(&changing, name)?;
            changing.by_hand.remove(name);
        }
        Ok(done)
    }
}

impl Running {
    fn main_file(&self) -> Result<&Path, ChangeError> {
        self.path.as_deref().ok_or(ReloadError::NoFile.into())
    }

    /// Whether the port has, or can have, a file of its own; before anything is done.
    fn own_file(&self, changing: &Changing, name: &str) -> Result<(), ChangeError> {
        let ports_dir = changing.config.ports_dir.as_deref();
        port_file(self.main_file()?, ports_dir, name)?;
        Ok(())
    }

    /// Writes the port, as it runs, to its own file.
    fn keep(&self, changing: &Changing, name: &str) -> Result<(), ChangeError> {
        let config = &changing.config;
        if let Some(port) = config.ports.iter().find(|port| port.name == name) {
            write_port_file(self.main_file()?, config.ports_dir.as_deref(), port)?;
        }
        Ok(())
    }

    fn do_by_hand(&self, changing: &mut Changing, wanted: &Config) -> ReloadAnswer {
        let plan = Plan::between(&changing.config, wanted);
        let failed = self.apply(changing, wanted, &plan);
        answer(&plan, failed)
    }
}

fn answer(plan: &Plan, failed: Vec<Failure>) -> ReloadAnswer {
    ReloadAnswer {
        plan: PlanAnswer::from(plan),
        failed,
    }
}
