//! Data about the daemon itself, for `show switch`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crosspoint_config::{Balance, Config, Poll};
use crosspoint_model::status::DaemonStatus;

use crate::service::sandbox;

/// The status at the start with `config`, read from `file`.
pub(super) fn at_start(file: Option<&Path>, config: &Config) -> DaemonStatus {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut about = DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_ms: ms(since_1970.unwrap_or_default()),
        config: file.map(|file| file.display().to_string()),
        sandbox: sandbox::in_force(),
        ..DaemonStatus::default()
    };
    note(&mut about, config);
    about
}

/// Updates the settings that are in use.
pub(super) fn note(about: &mut DaemonStatus, config: &Config) {
    about.control = config.control.socket.display().to_string();
    about.metrics = config.metrics.listen.map(|address| address.to_string());
    let poll = match config.workers.poll {
        Poll::Busy => "busy",
        Poll::Adaptive => "adaptive",
    };
    let balance = match config.workers.balance {
        Balance::Auto => "auto",
        Balance::Off => "off",
    };
    (about.poll, about.balance) = (poll.to_owned(), balance.to_owned());
    about.balance_interval_ms = ms(config.workers.balance_interval);
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
