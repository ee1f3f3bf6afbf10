//! Changes to settings of the whole switch while it runs.

use std::sync::Arc;

use crosspoint_config::plan::{SettingDiff, When};
use crosspoint_config::{Balance, Config, Connections};
use miette::Diagnostic;

use super::{Changing, Running};
use crate::api::Source;
use crate::metrics::{MetricsError, MetricsServer};

/// Serves the metrics, if the configuration asks for that.
pub(super) fn serve(
    config: &Config,
    source: Arc<dyn Source>,
) -> Result<Option<MetricsServer>, MetricsError> {
    let listen = config.metrics.listen;
    listen
        .map(|address| MetricsServer::start(address, source))
        .transpose()
}

/// Serves the metrics if they are configured and not served yet: at the start, and periodically after that. An address
/// may appear later, or another program may release it; no guest's network waits for that. `Err` has the missing part
/// and the reason, as text.
pub(super) fn serve_if_missing(
    changing: &mut Changing,
    source: Arc<dyn Source>,
) -> Result<(), String> {
    if changing.metrics.is_some() {
        return Ok(());
    }
    let served = serve(&changing.config, source).map_err(|why| {
        let help = why.help().map_or(String::new(), |help| format!("; {help}"));
        format!("{why}; trying again every few seconds{help}")
    })?;
    if let Some(server) = &served {
        tracing::info!("metrics are served on {}", server.local_addr());
    }
    changing.metrics = served;
    Ok(())
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
        "workers.balance" | "workers.balance_interval" => {
            config.workers.balance = wanted.workers.balance;
            config.workers.balance_interval = wanted.workers.balance_interval;
            let auto = wanted.workers.balance == Balance::Auto;
            let interval = wanted.workers.balance_interval;
            running.dataplane.set_balance(auto, interval);
        }
        "metrics.listen" => {
            let source = running.source().map_err(|why| why.to_string())?;
            serve_elsewhere(changing, wanted, &source).map_err(|why| why.to_string())?;
            changing.config.metrics.listen = wanted.metrics.listen;
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

/// Serves the metrics at the new address; if that fails, at the old one as before.
fn serve_elsewhere(
    changing: &mut Changing,
    wanted: &Config,
    source: &Arc<dyn Source>,
) -> Result<(), MetricsError> {
    // The new server first, so that the old address answers until there is another.
    let mut server = serve(wanted, source.clone());
    if server.is_err() && changing.metrics.is_some() {
        // The old server may be in its way, since one of the two may listen on all addresses of the host.
        drop(changing.metrics.take());
        server = serve(wanted, source.clone());
    }
    match server {
        Ok(server) => {
            changing.metrics = server;
            Ok(())
        }
        Err(why) => {
            if changing.metrics.is_none() {
                changing.metrics = serve(&changing.config, source.clone()).ok().flatten();
            }
            Err(why)
        }
    }
}
