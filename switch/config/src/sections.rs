//! Checks keys that occur once: `version`, `ports_dir`, `watch_ports`, and the sections `[workers]`, `[switch]`,
//! `[metrics]`, `[control]`, `[log]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::check::{Checker, Place};
use super::cores::CoreSpans;
use super::field::{Field, Span};
use super::limits::*;
use super::raw::{RawControl, RawLog, RawMetrics, RawSwitch, RawWorkers};
use super::values::{Number, NumberList};
use super::{Control, Cores, Log, Metrics, Poll, Switch, Workers};

/// Records a `required` version that is missing, or an unknown version. Returns whether the file has this version.
pub(super) fn version(checker: &mut Checker, field: Field<i64>, required: bool) -> bool {
    if matches!(field, Field::Missing) {
        if !required {
            return true;
        }
        checker.problem(
            0..0,
            "`version` is missing".to_owned(),
            "belongs here",
            format!("add this line at the top: version = {VERSION}"),
        );
        return true;
    }
    let must = VERSION.to_string();
    let help = format!("write: version = {VERSION}");
    match checker.value(field, "version", &must, &help) {
        Some((VERSION, _)) => true,
        Some((other, span)) => {
            // Unknown keys may belong to the other version.
            checker.forget();
            let message = format!("version {other} of the configuration is not known");
            let help = format!(
                "this switch reads version {VERSION}: write `version = {VERSION}`, or update the switch"
            );
            checker.problem(span, message, "not a version this switch reads", help);
            false
        }
        None => true,
    }
}

/// `[workers]`, and the places of its cores.
pub(super) fn workers(checker: &mut Checker, raw: RawWorkers) -> (Workers, CoreSpans) {
    let cores = checker.word_or_numbers(
        raw.cores,
        &NumberList {
            key: "cores",
            word: "auto",
            items: "core number",
            range: 0..=i64::from(CORE_MAX),
            items_max: WORKERS_MAX,
            example: "cores = [2, 3]",
        },
    );
    let (cores, spans) = match cores {
        None => (Cores::Auto, CoreSpans::default()),
        Some(cores) => {
            let (numbers, spans): (Vec<i64>, Vec<Span>) = cores.into_iter().unzip();
            let numbers = numbers
                .into_iter()
                .filter_map(|core| usize::try_from(core).ok())
                .collect();
            let places = spans.into_iter().map(|span| checker.place(span));
            (Cores::List(numbers), CoreSpans::new(places.collect()))
        }
    };
    let poll: Option<Poll> = checker.word(raw.poll, "poll");
    let idle_spin = checker.duration(
        raw.idle_spin,
        "idle_spin",
        IDLE_SPIN_MIN..=IDLE_SPIN_MAX,
        "50us",
    );
    let balance = checker.word(raw.balance, "balance");
    let balance_interval = checker.duration(
        raw.balance_interval,
        "balance_interval",
        BALANCE_INTERVAL_MIN..=BALANCE_INTERVAL_MAX,
        "5s",
    );
    let default = Workers::default();
    let workers = Workers {
        cores,
        poll: poll.unwrap_or_default(),
        idle_spin: idle_spin.unwrap_or(default.idle_spin),
        balance: balance.unwrap_or(default.balance),
        balance_interval: balance_interval.unwrap_or(default.balance_interval),
    };
    (workers, spans)
}

/// `[switch]`.
pub(super) fn switch(checker: &mut Checker, raw: RawSwitch) -> Switch {
    let ageing = checker.duration(
        raw.fdb_ageing,
        "fdb_ageing",
        FDB_AGEING_MIN..=FDB_AGEING_MAX,
        "300s",
    );
    let moves_max = checker.number(
        raw.fdb_moves_max,
        &Number {
            subject: "`fdb_moves_max`",
            range: 0..=FDB_MOVES_MAX_MAX.into(),
            example: "fdb_moves_max = 5, or 0 for any number",
        },
    );
    let moves_window = checker.duration(
        raw.fdb_moves_window,
        "fdb_moves_window",
        FDB_MOVES_WINDOW_MIN..=FDB_MOVES_WINDOW_MAX,
        "180s",
    );
    let capacity = checker.number(
        raw.fdb_capacity,
        &Number {
            subject: "`fdb_capacity`",
            range: FDB_CAPACITY_MIN.into()..=FDB_CAPACITY_MAX.into(),
            example: "fdb_capacity = 28672",
        },
    );
    Switch {
        fdb_ageing: ageing.unwrap_or(FDB_AGEING_DEFAULT),
        fdb_moves_max: moves_max
            .and_then(|moves| u8::try_from(moves).ok())
            .unwrap_or(FDB_MOVES_MAX_DEFAULT),
        fdb_moves_window: moves_window.unwrap_or(FDB_MOVES_WINDOW_DEFAULT),
        fdb_capacity: capacity
            .and_then(|entries| u32::try_from(entries).ok())
            .map_or(FDB_CAPACITY_DEFAULT, whole_buckets),
    }
}

/// The FDB finds a bucket by masking a hash, so the number of buckets is a power of two.
fn whole_buckets(entries: u32) -> u32 {
    FDB_BUCKET_ENTRIES * entries.div_ceil(FDB_BUCKET_ENTRIES).next_power_of_two()
}

/// `[metrics]`.
pub(super) fn metrics(checker: &mut Checker, raw: RawMetrics) -> Metrics {
    let must = "an IP address and a port, or \"off\"";
    let help = format!(
        "for example: listen = \"{METRICS_LISTEN_DEFAULT}\", listen = \"[::]:9477\" or listen = \"off\""
    );
    let Some((text, span)) = checker.value(raw.listen, "listen", must, &help) else {
        return Metrics::default();
    };
    if text == "off" {
        return Metrics { listen: None };
    }
    let listen: Option<SocketAddr> = text.parse().ok();
    if listen.is_none() {
        // A host name would need a lookup, and the switch must start without a network.
        let label = if text.contains(':') {
            "not an IP address and a port"
        } else {
            "has no port"
        };
        checker.problem(span, format!("`listen` must be {must}"), label, help);
    }
    Metrics { listen }
}

/// `[control]`, and the place of its socket.
pub(super) fn control(checker: &mut Checker, raw: RawControl) -> (Control, Option<Place>) {
    match checker.socket(raw.socket) {
        Some((socket, span)) => (Control { socket }, Some(checker.place(span))),
        None => (
            Control {
                socket: PathBuf::from(CONTROL_SOCKET_DEFAULT),
            },
            None,
        ),
    }
}

/// `[log]`.
pub(super) fn log(checker: &mut Checker, raw: RawLog) -> Log {
    let target = checker.word(raw.target, "target");
    let format = checker.word(raw.format, "format");
    let level = checker.word(raw.level, "level");
    Log {
        target: target.unwrap_or_default(),
        format: format.unwrap_or_default(),
        level: level.unwrap_or_default(),
    }
}

/// `ports_dir`, joined to `folder`, the main file's folder; and its place.
pub(super) fn ports_dir(
    checker: &mut Checker,
    field: Field<String>,
    folder: &Path,
) -> Option<(PathBuf, Place)> {
    let must = "the path of a folder";
    let help =
        "for example: ports_dir = \"/etc/crosspoint/ports.d\", or \"ports.d\" beside this file";
    let (path, span) = checker.value(field, "ports_dir", must, help)?;
    let label = if path.is_empty() {
        "empty"
    } else if path.contains('\0') {
        "no path has a zero byte in it"
    } else if path.len() > PATH_BYTES_MAX {
        "longer than the kernel accepts"
    } else {
        return Some((folder.join(path), checker.place(span)));
    };
    checker.problem(span, format!("`ports_dir` must be {must}"), label, help);
    None
}

/// `watch_ports`, which requires `ports_dir` (`has_dir`: whether that key is present, right or wrong).
pub(super) fn watch_ports(checker: &mut Checker, field: Field<bool>, has_dir: bool) -> bool {
    let span = field.span().unwrap_or_default();
    let watch = checker.switch(field, "watch_ports").unwrap_or(false);
    if watch && !has_dir {
        let message = "`watch_ports` goes with `ports_dir`".to_owned();
        let help = "name the folder too: ports_dir = \"/etc/crosspoint/ports.d\"";
        checker.problem(span, message, "there is no `ports_dir`", help);
    }
    watch
}
