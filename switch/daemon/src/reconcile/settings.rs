//! Changes to settings of the whole switch while it runs.

use std::sync::Arc;

use crosspoint_config::plan::{SettingDiff, When};
use crosspoint_config::{Balance, Config, Connections, Metrics};
use crosspoint_model::plan::Failure;
use miette::Diagnostic;

use super::{Changing, Running};
use crate::api::Source;
use crate::metrics::{Access, AccessError, MetricsError, MetricsServer};

/// What the files of `[metrics]` say, read without the lock on what is being changed, since a file system may be slow.
pub(super) struct ReadAccess {
    /// The settings that name them.
    of: Metrics,
    read: Result<Access, AccessError>,
}

impl Default for ReadAccess {
    fn default() -> ReadAccess {
        ReadAccess {
            of: Metrics::default(),
            read: Ok(Access::default()),
        }
    }
}

impl ReadAccess {
    pub(super) fn of(metrics: &Metrics) -> ReadAccess {
        ReadAccess {
            of: metrics.clone(),
            read: Access::read(metrics),
        }
    }

    /// What they say for these settings: they are read now if they are not those of before.
    fn for_settings(&self, metrics: &Metrics) -> Result<Access, AccessError> {
        match self.of == *metrics {
            true => self.read.clone(),
            false => Access::read(metrics),
        }
    }
}

/// Serves the metrics, if the configuration asks for that.
fn serve(
    metrics: &Metrics,
    access: &ReadAccess,
    source: &Arc<dyn Source>,
) -> Result<Option<MetricsServer>, MetricsError> {
    let Some(address) = metrics.listen else {
        return Ok(None);
    };
    let access = access.for_settings(metrics)?;
    let server = MetricsServer::start(address, access.clone(), Arc::clone(source))?;
    tracing::info!("metrics are served on {}", server.local_addr());
    say_warnings(&access);
    Ok(Some(server))
}

fn say_warnings(access: &Access) {
    for line in access.warnings() {
        tracing::warn!("{line}");
    }
}

/// Serves the metrics if they are configured and not served yet: at the start, and periodically after that. An address
/// may appear later, or another program may release it, or a file be written; no guest's network waits for that. `Err`
/// has the missing part and the reason, as text.
pub(super) fn serve_if_missing(
    changing: &mut Changing,
    source: &Arc<dyn Source>,
) -> Result<(), String> {
    if changing.metrics.is_some() {
        return Ok(());
    }
    let served = serve(&changing.config.metrics, &changing.access, source).map_err(|why| {
        let help = why.help().map_or(String::new(), |help| format!("; {help}"));
        format!("{why}; trying again every few seconds{help}")
    })?;
    changing.metrics = served;
    Ok(())
}

/// Serves the metrics as their files say now, after a reload. If one is wrong, as before.
pub(super) fn serve_as_read(changing: &Changing) -> Option<Failure> {
    let (metrics, access) = (&changing.config.metrics, &changing.access);
    let server = changing.metrics.as_ref()?;
    if !Access::has_files(metrics) || *metrics != access.of {
        return None;
    }
    match &access.read {
        Ok(access) => {
            server.set_access(access.clone());
            say_warnings(access);
            None
        }
        Err(why) => {
            let (what, error) = ("metrics".to_owned(), kept(why));
            tracing::error!("{error}");
            Some(Failure { what, error })
        }
    }
}

/// Why a file's contents are not used.
fn kept(why: &dyn Diagnostic) -> String {
    let help = why
        .help()
        .map_or(String::new(), |help| format!(" ({help})"));
    format!("{why}{help}; the metrics are served as before")
}

/// Whether it is a key of `[metrics]`.
pub(super) fn is_of_metrics(key: &str) -> bool {
    key.starts_with("metrics.")
}

/// Changes one setting to its value in `wanted`, or records that it has to wait. Returns how it was applied, or the
/// error.
pub(super) fn apply(
    running: &Running,
    changing: &mut Changing,
    wanted: &Config,
    setting: &SettingDiff,
) -> Result<&'static str, String> {
    if setting.when == When::NeedsRestart {
        return Ok("takes effect when the switch is restarted");
    }
    let config = &mut changing.config;
    match setting.diff.key {
        "switch.fdb_ageing" => {
            config.switch.fdb_ageing = wanted.switch.fdb_ageing;
            running.dataplane.set_ageing(wanted.switch.fdb_ageing);
        }
        "switch.fdb_moves_max" | "switch.fdb_moves_window" => {
            config.switch.fdb_moves_max = wanted.switch.fdb_moves_max;
            config.switch.fdb_moves_window = wanted.switch.fdb_moves_window;
            running.dataplane.set_damping(wanted.switch.damping());
        }
        "switch.suppress_neighbors" => {
            config.switch.suppress_neighbors = wanted.switch.suppress_neighbors;
            let suppresses = wanted.switch.suppress_neighbors;
            running.dataplane.set_neighbor_suppression(suppresses);
        }
        "switch.dhcp_snooping" => {
            config.switch.dhcp_snooping = wanted.switch.dhcp_snooping;
            let snoops = wanted.switch.dhcp_snooping;
            running.dataplane.set_dhcp_snooping(snoops);
        }
        "workers.balance" | "workers.balance_interval" => {
            config.workers.balance = wanted.workers.balance;
            config.workers.balance_interval = wanted.workers.balance_interval;
            let auto = wanted.workers.balance == Balance::Auto;
            let interval = wanted.workers.balance_interval;
            running.dataplane.set_balance(auto, interval);
        }
        // Together: an address that others can reach may come with a token.
        key if is_of_metrics(key) => {
            let source = running.source().map_err(|why| why.to_string())?;
            serve_otherwise(changing, &wanted.metrics, &source)?;
        }
        key if key.starts_with("multicast.") => {
            config.multicast = wanted.multicast;
            running.dataplane.set_multicast(wanted.multicast);
        }
        key if key.starts_with("sflow.") => {
            config.sflow.clone_from(&wanted.sflow);
            let set = running.sflow.set(&running.dataplane, &wanted.sflow);
            set.map_err(|why| format!("the thread cannot be started: {why}"))?;
        }
        key if key.starts_with("ipfix.") => {
            config.ipfix.clone_from(&wanted.ipfix);
            let set = running.ipfix.set(&running.dataplane, &wanted.ipfix);
            set.map_err(|why| format!("the thread cannot be started: {why}"))?;
        }
        // The timeouts and `on_change` came into use with the groups.
        key if key.starts_with("connections.") => {
            config.connections = Connections {
                max: config.connections.max,
                ..wanted.connections
            };
        }
        // The next check of the folder reads them.
        "ports_dir" => config.ports_dir.clone_from(&wanted.ports_dir),
        "watch_ports" => config.watch_ports = wanted.watch_ports,
        key => return Err(format!("{key} cannot be changed while the switch runs")),
    }
    Ok("changed")
}

/// Serves the metrics as wanted; if that fails, as before.
fn serve_otherwise(
    changing: &mut Changing,
    wanted: &Metrics,
    source: &Arc<dyn Source>,
) -> Result<(), String> {
    let running = &changing.config.metrics;
    if running == wanted {
        return Ok(());
    }
    let known = changing
        .access
        .for_settings(wanted)
        .map_err(|why| kept(&why))?;
    match &changing.metrics {
        Some(server) if running.listen == wanted.listen => {
            server.set_access(known.clone());
            say_warnings(&known);
        }
        _ => serve_elsewhere(changing, wanted, source).map_err(|why| why.to_string())?,
    }
    changing.config.metrics = wanted.clone();
    Ok(())
}

/// Serves the metrics at the new address; if that fails, at the old one as before.
fn serve_elsewhere(
    changing: &mut Changing,
    wanted: &Metrics,
    source: &Arc<dyn Source>,
) -> Result<(), MetricsError> {
    // The new server first, so that the old address answers until there is another.
    let mut server = serve(wanted, &changing.access, source);
    if server.is_err() && changing.metrics.is_some() {
        // The old server may be in its way, since one of the two may listen on all addresses of the host.
        drop(changing.metrics.take());
        server = serve(wanted, &changing.access, source);
    }
    match server {
        Ok(server) => {
            changing.metrics = server;
            Ok(())
        }
        Err(why) => {
            if changing.metrics.is_none() {
                let before = serve(&changing.config.metrics, &changing.access, source);
                changing.metrics = before.ok().flatten();
            }
            Err(why)
        }
    }
}
