//! The running configuration, and how it is changed to the wanted one: ports are opened and closed, settings changed,
//! one change at a time.
//!
//! A change is a [`Plan`]: the difference between the running and the wanted configuration. It is carried out in an
//! order in which no new port finds its socket, interface or queue still used by one that goes. Ports and settings that
//! it does not name are not touched. A port that cannot be opened is a [`Failure`]; the others are not affected. It is
//! not part of the running configuration, so the next reload tries it again.

mod about;
mod addresses;
mod asked;
mod files;
mod groups;
pub mod guests;
mod held;
mod notes;
mod ports;
mod reload;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crosspoint_config::plan::{How, Plan, PortDiff};
use crosspoint_config::watch::PortsWatch;
use crosspoint_config::{Config, Loaded, Port, PortKind, StaticEntry};
use crosspoint_model::health::Health;
use crosspoint_model::plan::Failure;
use crosspoint_model::status::DaemonStatus;

use crate::api::Source;
use crate::dataplane::Dataplane;
use crate::export::ipfix::IpfixExport;
use crate::export::sflow::SflowExport;
use crate::handover;
use crate::metrics::MetricsServer;
use crate::service::{log, progress, sandbox};
use crate::start_error::StartError;
use files::Differences;
pub(crate) use held::{HeldPorts, Nics};
use ports::PortHandle;
use settings::ReadAccess;

/// How long a start waits for the rings of guests whose front ends are connected. The start does not wait longer for a
/// guest that has no driver yet.
const RINGS_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a start waits for links that went down because XDP was attached: NICs need some seconds.
const LINK_TIME_MAX: Duration = Duration::from_secs(5);
/// Interval between two checks.
const COMING_UP_PAUSE: Duration = Duration::from_millis(5);

/// The running switch.
pub(crate) struct Running {
    pub dataplane: Arc<Dataplane>,
    /// The file that it was started with, if any.
    path: Option<PathBuf>,
    /// The cores that the process may use.
    affinity: Vec<usize>,
    sflow: SflowExport,
    ipfix: IpfixExport,
    /// A reference to itself, for its servers.
    me: Weak<Running>,
    started: Instant,
    /// Separate from `changing`, so that a query does not wait for a change.
    about: Mutex<DaemonStatus>,
    /// Held from reading the files until they are applied, so that an older reading is never applied after a newer one.
    /// It is taken before `changing`, so a file system that does not answer delays no other change.
    reading: Mutex<()>,
    /// Parts that no port needs and that are missing, and why.
    missing: Mutex<BTreeMap<&'static str, String>>,
    /// Set when the folder was read but the switch was being changed, so it must be read again.
    folder_again: AtomicBool,
    /// Separate from `changing`, so that a query does not wait for a change.
    differences: Mutex<Differences>,
    changing: Mutex<Changing>,
}

/// State that a change modifies.
struct Changing {
    /// The running configuration: settings that wait for a restart have their old values, and ports that could not be
    /// opened are left out.
    config: Config,
    /// The last result of reading the file and its folder.
    loaded: Option<Loaded>,
    /// Ports that were added by the control socket and are in no file.
    by_hand: BTreeMap<String, Port>,
    /// Static addresses of commands that are in no file, each with its VLAN. Those of the files are in `config`.
    fdb_by_hand: Vec<StaticEntry>,
    /// What commands have added to sets and removed from them.
    sets_by_hand: groups::SetChanges,
    /// The ports of the files, as they were last read or written.
    in_files: BTreeMap<String, Port>,
    /// When to read the folder again without a change in it, because something was wrong.
    again_at: Option<Instant>,
    /// The last logged problems of the folder.
    said: Option<String>,
    /// The watched folder, if any.
    watch: Option<Watched>,
    ports: BTreeMap<String, PortHandle>,
    metrics: Option<MetricsServer>,
    /// What the files of `[metrics]` said when they were last read.
    access: ReadAccess,
}

/// Name of the metrics server when it is missing.
const METRICS: &str = "the metrics server";
/// Name of the export to an sFlow collector when it is missing.
const SFLOW: &str = "the export to the sFlow collector";
/// The same of IPFIX.
const IPFIX: &str = "the export to the collector of IPFIX";

/// A folder, and its watch, if the kernel could provide one.
type Watched = (PathBuf, Option<PortsWatch>);

impl Running {
    /// A switch that runs `config`'s settings, but none of its ports yet. `file` is where the configuration was read
    /// from, if any.
    pub fn new(
        dataplane: Arc<Dataplane>,
        config: &Config,
        file: Option<(PathBuf, Loaded)>,
        affinity: &[usize],
    ) -> Arc<Running> {
        let config = Config {
            ports: Vec::new(),
            fdb: Vec::new(),
            ..config.clone()
        };
        let (path, loaded) = file.unzip();
        let about = about::at_start(path.as_deref(), &config);
        Arc::new_cyclic(|me| Running {
            dataplane,
            path,
            affinity: affinity.to_owned(),
            sflow: SflowExport::default(),
            ipfix: IpfixExport::default(),
            me: me.clone(),
            started: Instant::now(),
            about: Mutex::new(about),
            reading: Mutex::new(()),
            missing: Mutex::default(),
            folder_again: AtomicBool::new(false),
            differences: Mutex::default(),
            changing: Mutex::new(Changing {
                config,
                loaded,
                by_hand: BTreeMap::new(),
                fdb_by_hand: Vec::new(),
                sets_by_hand: groups::SetChanges::default(),
                in_files: BTreeMap::new(),
                again_at: None,
                said: None,
                watch: None,
                ports: BTreeMap::new(),
                metrics: None,
                access: ReadAccess::default(),
            }),
        })
    }

    /// The source of the metrics.
    fn source(&self) -> Result<Arc<dyn Source>, StartError> {
        match self.me.upgrade() {
            Some(me) => Ok(me),
            None => Err(StartError::Ending),
        }
    }

    fn about(&self) -> MutexGuard<'_, DaemonStatus> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for other changes to finish.
    fn lock(&self) -> MutexGuard<'_, Changing> {
        // The daemon aborts on panic, so a poisoned lock is only ever seen by tests.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens all ports of a starting switch, and serves its metrics if possible. Returns the error of the first port
    /// that fails.
    pub fn open_all(&self, wanted: &Config) -> Result<(), StartError> {
        let mut changing = self.lock();
        // First, so that no port learns another port's address.
        changing.take_bridges(wanted, &self.dataplane);
        self.dataplane.set_multicast(wanted.multicast);
        self.dataplane
            .set_neighbor_suppression(wanted.switch.suppress_neighbors);
        self.dataplane
            .set_dhcp_snooping(wanted.switch.dhcp_snooping);
        changing.take_mirrors(wanted, &self.dataplane);
        // A port whose groups cannot be compiled lets nothing pass; that is logged.
        changing.take_groups(wanted, &self.dataplane);
        changing.take_lists(wanted, &self.dataplane);
        for port in &wanted.ports {
            let is_uplink = matches!(port.kind, PortKind::Xdp(_));
            let opened = match is_uplink && handover::is_taking_over() {
                true => PortHandle::reserve(&self.dataplane, wanted, port),
                false => PortHandle::open(&self.dataplane, wanted, port),
            };
            let handle = match opened {
                Err(why) if handover::is_preparing() => handover::refuse_and_end(&why.to_string()),
                // After a crash the guests of other ports must go on. A reload tries it again.
                Err(why) if handover::is_taking_over() => {
                    tracing::error!(port = port.name, "not opened: {why}");
                    continue;
                }
                opened => opened?,
            };
            changing.ports.insert(port.name.clone(), handle);
            changing.config.ports.push(port.clone());
        }
        changing.note_files(&wanted.ports);
        // Last, so that the metrics contain every port.
        changing.access = ReadAccess::of(&changing.config.metrics);
        if handover::is_preparing() {
            // The predecessor serves them, and no ring runs here yet.
            return Ok(());
        }
        let served = settings::serve_if_missing(&mut changing, &self.source()?);
        self.note_missing(METRICS, served.err());
        self.retry_exports(&changing);
        if !handover::is_taking_over() {
            Self::wait_for_those_there(&self.dataplane, &changing);
        }
        Ok(())
    }

    /// Waits until frames flow to every port whose interface or front end is there, within time limits for a guest's
    /// driver and a NIC: so the first frame that is sent after the switch is ready arrives.
    fn wait_for_those_there(dataplane: &Dataplane, changing: &Changing) {
        let start = Instant::now();
        let is_waited_for = |attached: &PortHandle| {
            let limit = match attached.is_guest() {
                true => RINGS_TIME_MAX,
                false => LINK_TIME_MAX,
            };
            start.elapsed() < limit && attached.is_coming_up(dataplane)
        };
        while changing.ports.values().any(is_waited_for) {
            std::thread::sleep(COMING_UP_PAUSE);
        }
    }

    /// Tries to serve the metrics, and to export samples, if they are missing, unless the switch is being changed. Does not wait.
    pub fn retry_missing(&self) {
        let missing = match self.changing.try_lock() {
            Ok(changing) if changing.metrics.is_none() => changing.config.metrics.clone(),
            Ok(changing) => return self.retry_exports(&changing),
            Err(_) => return,
        };
        let access = ReadAccess::of(&missing);
        let (Ok(mut changing), Ok(source)) = (self.changing.try_lock(), self.source()) else {
            return;
        };
        // Otherwise the files are others, and read at the next call.
        if changing.config.metrics == missing {
            changing.access = access;
            let served = settings::serve_if_missing(&mut changing, &source);
            self.note_missing(METRICS, served.err());
        }
        self.retry_exports(&changing);
    }

    /// Exports samples and connections as configured, if that has not begun.
    fn retry_exports(&self, changing: &Changing) {
        let set = self.sflow.set(&self.dataplane, &changing.config.sflow);
        self.note_missing(SFLOW, set.err().map(|why| why.to_string()));
        let set = self.ipfix.set(&self.dataplane, &changing.config.ipfix);
        self.note_missing(IPFIX, set.err().map(|why| why.to_string()));
    }

    /// Records whether `what` is missing; logs it if that is new.
    pub fn note_missing(&self, what: &'static str, why: Option<String>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.get(what) == why.as_ref() {
            return;
        }
        match why {
            Some(why) => {
                tracing::error!("{what} is not available, and the switch runs without it: {why}");
                missing.insert(what, why);
            }
            None => drop(missing.remove(what)),
        }
    }

    /// The missing parts, as text.
    fn missing(&self) -> Vec<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = missing.iter().map(|(what, why)| format!("{what}: {why}"));
        let lost = Some(log::lost_lines()).filter(|lines| *lines > 0);
        let lost = lost.map(|lines| {
            format!("log: {lines} lines were lost, because the reader of the log did not keep up")
        });
        let journal = log::missing().map(str::to_owned);
        missing.chain(journal).chain(lost).collect()
    }

    /// Health of workers, ports, and the threads that control them.
    pub fn health(&self) -> Health {
        sandbox::warn(self.dataplane.health().but(progress::stuck()))
    }

    /// Carries out `plan`, which turns the running configuration into `wanted`, except for what needs a restart.
    /// Returns what failed.
    fn apply(&self, changing: &mut Changing, wanted: &Config, plan: &Plan) -> Vec<Failure> {
        let reopened = || plan.change.iter().filter(|diff| diff.how == How::Reopen);
        let gone = reopened().map(|diff| &diff.name).chain(&plan.remove);
        let comes_again = |name: &str| reopened().any(|diff| diff.name == name);
        let gone: Vec<String> = gone.cloned().collect();
        changing.close_all(&self.dataplane, &gone, &comes_again);
        for name in &plan.remove {
            tracing::info!(port = %name, "removed");
        }
        changing.take_bridges(wanted, &self.dataplane);
        for diff in plan.change.iter().filter(|diff| diff.how == How::InPlace) {
            changing.set(&self.dataplane, diff);
            tracing::info!(port = %diff.name, "changed in place: {}", keys(diff));
        }
        changing.take_mirrors(wanted, &self.dataplane);
        let mut failed = changing.take_groups(wanted, &self.dataplane);
        for port in &plan.add {
            let opened = changing.open(&self.dataplane, wanted, port);
            note(&port.name, opened, "added", &mut failed);
        }
        for diff in reopened() {
            let opened = changing.open(&self.dataplane, wanted, &diff.after);
            let is_open = opened.is_ok();
            let what = format!("reopened: {}", keys(diff));
            note(&diff.name, opened, &what, &mut failed);
            // It reopens with its old configuration rather than not at all.
            if !is_open && changing.open(&self.dataplane, wanted, &diff.before).is_ok() {
                tracing::warn!(port = %diff.name, "is open again with its former settings");
            }
        }
        changing.take_lists(wanted, &self.dataplane);
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
        self.dataplane.forget_set_aside(is_wanted);
        self.dataplane.forget_groups(is_wanted);
        changing.in_order_of(wanted);
        about::note(&mut self.about(), &changing.config);
        failed
    }

    /// Reports the connections that there are to their collector, in this time: a successor counts them anew.
    pub(crate) fn end_exports(&self, within: Duration) {
        self.ipfix.stop_within(within);
    }

    /// Ends the exports, and closes all ports and the metrics server.
    pub fn close(&self) {
        // First, while there are ports that the last samples and records are of.
        self.sflow.stop();
        self.ipfix.stop();
        let mut changing = self.lock();
        drop(changing.metrics.take());
        let all: Vec<String> = changing.ports.keys().cloned().collect();
        changing.close_all(&self.dataplane, &all, &|_| false);
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
        dataplane: &Arc<Dataplane>,
        wanted: &Config,
        port: &Port,
    ) -> Result<(), StartError> {
        let attached = PortHandle::open(dataplane, wanted, port)?;
        self.ports.insert(port.name.clone(), attached);
        self.config.ports.push(port.clone());
        Ok(())
    }

    /// Closes guests first: while a guest has a NIC's queue of its own, the NIC's settings cannot be restored. The
    /// counts of ports that come again are kept.
    fn close_all(
        &mut self,
        dataplane: &Dataplane,
        names: &[String],
        comes_again: &dyn Fn(&str) -> bool,
    ) {
        for attached in names.iter().filter_map(|name| self.ports.get(name)) {
            attached.begin_end();
        }
        for guests in [true, false] {
            for name in names {
                let known = self.ports.get(name);
                if known.is_some_and(|attached| attached.is_guest() == guests)
                    && let Some(attached) = self.ports.remove(name)
                {
                    attached.close(dataplane, comes_again(name));
                }
            }
        }
        self.config.ports.retain(|port| !names.contains(&port.name));
    }

    fn set(&mut self, dataplane: &Dataplane, diff: &PortDiff) {
        if let Some(attached) = self.ports.get(&diff.name) {
            attached.set(dataplane, diff);
        }
        let known = self.config.ports.iter_mut();
        for port in known.filter(|port| port.name == diff.name) {
            *port = diff.after.clone();
        }
    }

    /// Puts ports into the order of the files, in which they are shown and compared.
    fn in_order_of(&mut self, wanted: &Config) {
        let place = |name: &str| wanted.ports.iter().position(|port| port.name == name);
        self.config.ports.sort_by_key(|port| place(&port.name));
    }
}
