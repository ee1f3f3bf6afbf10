//! What runs, and how it becomes what is wanted: ports opened and closed, settings changed, one change at a time.
//!
//! A change is a [`Plan`]: the difference of what runs and what is wanted, carried out in an order in which no new port
//! finds its socket, interface or queue in the hands of one that goes. What it does not name is not touched. A port that
//! cannot be opened is a [`Failure`]; it costs the others nothing, and is not part of what runs, so the next reload tries it
//! again.

mod about;
mod asked;
mod ports;
mod reload;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::api::Source;
use crate::config::watch::PortsWatch;
use crate::config::{Config, Loaded, Port};
use crate::daemon::StartError;
use crate::fabric::Fabric;
use crate::health::Health;
use crate::metrics::MetricsServer;
use crate::plan::{Failure, How, Plan, PortDiff};
use crate::status::DaemonStatus;
use crate::{log, progress};
use ports::Attached;

/// How long a start waits for the rings of guests whose front ends are there. One that has no driver yet is not waited for
/// any longer.
const RINGS_TIME_MAX: Duration = Duration::from_secs(1);
/// How long it waits for links that went down because XDP was attached: NICs take some seconds.
const LINK_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const COMING_UP_PAUSE: Duration = Duration::from_millis(5);

/// The switch as it runs.
pub(crate) struct Running {
    pub fabric: Arc<Fabric>,
    /// The file that it was started with, if it was.
    path: Option<PathBuf>,
    /// The cores that the process may use.
    affinity: Vec<usize>,
    /// Itself, for those who ask it.
    me: Weak<Running>,
    started: Instant,
    /// Who asks for it does not wait for a change.
    about: Mutex<DaemonStatus>,
    /// Held from when the files are read until the switch is what they say, so that what was read first is not carried out
    /// last. It is taken before `changing`: a file system that does not answer holds up no other change.
    reading: Mutex<()>,
    /// What no port needs and is missing, and why.
    missing: Mutex<BTreeMap<&'static str, String>>,
    /// The folder has to be looked at again: it was read, and then something else changed the switch.
    folder_again: AtomicBool,
    changing: Mutex<Changing>,
}

/// What a change changes.
struct Changing {
    /// What runs: settings that wait for a restart have their old values, and ports that could not be opened are not in it.
    config: Config,
    /// What was last read of the file and its folder.
    loaded: Option<Loaded>,
    /// Ports that were asked for by the control socket and are in no file.
    by_hand: BTreeMap<String, Port>,
    /// When the folder is looked at again though nothing in it has changed: something was wrong.
    again_at: Option<Instant>,
    /// What was last said to be wrong with it.
    said: Option<String>,
    /// The folder that is watched, if one is.
    watch: Option<Watched>,
    ports: BTreeMap<String, Attached>,
    metrics: Option<MetricsServer>,
}

/// What the metrics server is called where it is missing.
const METRICS: &str = "the metrics server";

/// A folder, and the watch on it where the kernel has one for us.
type Watched = (PathBuf, Option<PortsWatch>);

impl Running {
    /// A switch that runs `config`'s settings, and none of its ports yet. `file` is what that was read from, if it was.
    pub fn new(
        fabric: Arc<Fabric>,
        config: &Config,
        file: Option<(PathBuf, Loaded)>,
        affinity: &[usize],
    ) -> Arc<Running> {
        let config = Config {
            ports: Vec::new(),
            ..config.clone()
        };
        let (path, loaded) = file.unzip();
        let about = about::at_start(path.as_deref(), &config);
        Arc::new_cyclic(|me| Running {
            fabric,
            path,
            affinity: affinity.to_owned(),
            me: me.clone(),
            started: Instant::now(),
            about: Mutex::new(about),
            reading: Mutex::new(()),
            missing: Mutex::default(),
            folder_again: AtomicBool::new(false),
            changing: Mutex::new(Changing {
                config,
                loaded,
                by_hand: BTreeMap::new(),
                again_at: None,
                said: None,
                watch: None,
                ports: BTreeMap::new(),
                metrics: None,
            }),
        })
    }

    /// Who is asked for the metrics.
    fn source(&self) -> Result<Arc<dyn Source>, StartError> {
        match self.me.upgrade() {
            Some(me) => Ok(me),
            None => Err(StartError::Ending),
        }
    }

    fn about(&self) -> MutexGuard<'_, DaemonStatus> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for other changes.
    fn lock(&self) -> MutexGuard<'_, Changing> {
        // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens all ports of a switch that starts, or says why the first that fails does; and serves its metrics, if it can.
    pub fn open_all(&self, wanted: &Config) -> Result<(), StartError> {
        let mut changing = self.lock();
        for port in &wanted.ports {
            let attached = Attached::open(&self.fabric, wanted, port)?;
            changing.ports.insert(port.name.clone(), attached);
            changing.config.ports.push(port.clone());
        }
        // Last: who can read the metrics finds every port in them.
        let served = settings::serve_if_missing(&mut changing, self.source()?);
        self.note_missing(METRICS, served.err());
        Self::wait_for_those_there(&self.fabric, &changing);
        Ok(())
    }

    /// Waits until frames go to every port whose interface or front end is there, but no longer than a guest's driver or a
    /// NIC may take: who starts something as soon as the switch is ready has its first frame arrive.
    fn wait_for_those_there(fabric: &Fabric, changing: &Changing) {
        let start = Instant::now();
        let is_waited_for = |attached: &Attached| {
            let limit = match attached.is_guest() {
                true => RINGS_TIME_MAX,
                false => LINK_TIME_MAX,
            };
            start.elapsed() < limit && attached.is_coming_up(fabric)
        };
        while changing.ports.values().any(is_waited_for) {
            std::thread::sleep(COMING_UP_PAUSE);
        }
    }

    /// Serves the metrics if they are missing, unless the switch is being changed. Does not wait.
    pub fn retry_metrics(&self) {
        let (Ok(mut changing), Ok(source)) = (self.changing.try_lock(), self.source()) else {
            return;
        };
        let served = settings::serve_if_missing(&mut changing, source);
        self.note_missing(METRICS, served.err());
    }

    /// Notes that `what` is missing, or is there; the log has it when that is new.
    pub fn note_missing(&self, what: &'static str, why: Option<String>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.get(what) == why.as_ref() {
            return;
        }
        match why {
            Some(why) => {
                tracing::error!("{what} is missing, and the switch goes on without: {why}");
                missing.insert(what, why);
            }
            None => drop(missing.remove(what)),
        }
    }

    /// What is missing, for people.
    fn missing(&self) -> Vec<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = missing.iter().map(|(what, why)| format!("{what}: {why}"));
        let lost = Some(log::lost_lines()).filter(|lines| *lines > 0);
        let lost = lost.map(|lines| {
            format!("log: {lines} lines were lost, since what reads it did not keep up")
        });
        let journal = log::missing().map(str::to_owned);
        missing.chain(journal).chain(lost).collect()
    }

    /// Whether it works: workers, ports, and the threads that control them.
    pub fn health(&self) -> Health {
        self.fabric.health().but(progress::stuck())
    }

    /// Carries out `plan`, which turns what runs into `wanted`, but for what needs a restart. Returns what failed.
    fn apply(&self, changing: &mut Changing, wanted: &Config, plan: &Plan) -> Vec<Failure> {
        let reopened = || plan.change.iter().filter(|diff| diff.how == How::Reopen);
        let gone = reopened().map(|diff| &diff.name).chain(&plan.remove);
        let comes_again = |name: &str| reopened().any(|diff| diff.name == name);
        let gone: Vec<String> = gone.cloned().collect();
        changing.close_all(&self.fabric, &gone, &comes_again);
        for name in &plan.remove {
            tracing::info!(port = %name, "removed");
        }
        for diff in plan.change.iter().filter(|diff| diff.how == How::InPlace) {
            changing.set(&self.fabric, diff);
            tracing::info!(port = %diff.name, "changed in place: {}", keys(diff));
        }
        let mut failed = Vec::new();
        for port in &plan.add {
            let opened = changing.open(&self.fabric, wanted, port);
            note(&port.name, opened, "added", &mut failed);
        }
        for diff in reopened() {
            let opened = changing.open(&self.fabric, wanted, &diff.after);
            let is_open = opened.is_ok();
            let what = format!("reopened: {}", keys(diff));
            note(&diff.name, opened, &what, &mut failed);
            // As it was, rather than not at all.
            if !is_open && changing.open(&self.fabric, wanted, &diff.before).is_ok() {
                tracing::warn!(port = %diff.name, "is open again as it was");
            }
        }
        for setting in &plan.settings {
            let key = setting.diff.key;
            match settings::apply(self, changing, wanted, setting) {
                Ok(said) => tracing::info!("{key}: {said}"),
                Err(error) => {
                    tracing::error!("{key} is not changed: {error}");
                    let what = key.to_owned();
                    failed.push(Failure { what, error });
                }
            }
        }
        let is_wanted = |name: &str| wanted.ports.iter().any(|port| port.name == name);
        self.fabric.forget_set_aside(is_wanted);
        changing.in_order_of(wanted);
        about::note(&mut self.about(), &changing.config);
        failed
    }

    /// Closes everything.
    pub fn close(&self) {
        let mut changing = self.lock();
        drop(changing.metrics.take());
        let all: Vec<String> = changing.ports.keys().cloned().collect();
        changing.close_all(&self.fabric, &all, &|_| false);
    }
}

fn keys(diff: &PortDiff) -> String {
    let keys = diff.keys.iter().map(|key| key.key);
    let direct = diff.direct.iter().map(|_| "queues of its own guests");
    let all: Vec<&str> = keys.chain(direct).collect();
    match all.is_empty() {
        true => "with its uplink".to_owned(),
        false => all.join(", "),
    }
}

fn note(port: &str, opened: Result<(), StartError>, what: &str, failed: &mut Vec<Failure>) {
    match opened {
        Ok(()) => tracing::info!(port, "{what}"),
        Err(why) => {
            tracing::error!(port, "not {what}: {why}");
            failed.push(Failure {
                what: port.to_owned(),
                error: why.to_string(),
            });
        }
    }
}

impl Changing {
    fn open(
        &mut self,
        fabric: &Arc<Fabric>,
        wanted: &Config,
        port: &Port,
    ) -> Result<(), StartError> {
        let attached = Attached::open(fabric, wanted, port)?;
        self.ports.insert(port.name.clone(), attached);
        self.config.ports.push(port.clone());
        Ok(())
    }

    /// Guests first: a guest that has a NIC's queue for itself keeps that NIC from being put back as it was. What those have
    /// counted that come again is kept.
    fn close_all(&mut self, fabric: &Fabric, names: &[String], comes_again: &dyn Fn(&str) -> bool) {
        for attached in names.iter().filter_map(|name| self.ports.get(name)) {
            attached.begin_end();
        }
        for guests in [true, false] {
            for name in names {
                let known = self.ports.get(name);
                if known.is_some_and(|attached| attached.is_guest() == guests)
                    && let Some(attached) = self.ports.remove(name)
                {
                    attached.close(fabric, comes_again(name));
                }
            }
        }
        self.config.ports.retain(|port| !names.contains(&port.name));
    }

    fn set(&mut self, fabric: &Fabric, diff: &PortDiff) {
        if let Some(attached) = self.ports.get(&diff.name) {
            attached.set(fabric, diff);
        }
        let known = self.config.ports.iter_mut();
        for port in known.filter(|port| port.name == diff.name) {
            *port = diff.after.clone();
        }
    }

    /// Ports are shown and compared in the order of the files.
    fn in_order_of(&mut self, wanted: &Config) {
        let place = |name: &str| wanted.ports.iter().position(|port| port.name == name);
        self.config.ports.sort_by_key(|port| place(&port.name));
    }
}
