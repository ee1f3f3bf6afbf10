//! The log: one line, or one journal entry, per event. Workers never log.
//!
//! It is written as text, as JSON with one object per line and the keys below, or to systemd's journal with the fields
//! below. Keys may be added; none is renamed or removed. An event has the keys for which it has a value.
//!
//! | JSON | journal | is |
//! |---|---|---|
//! | `timestamp` | (the journal's own) | when, in UTC: `2026-01-31T12:00:00.123456Z` |
//! | `level` | `PRIORITY` | `ERROR` (3), `WARN` (4), `INFO` (6), `DEBUG` or `TRACE` (7) |
//! | `message` | `MESSAGE` | what has happened, and what to do about it; in the journal with port or worker before it, and the error behind it |
//! | `target` | `TARGET` | the part of the program |
//! | `port` | `PORT` | the port's name |
//! | `queue` | `QUEUE` | the queue's number |
//! | `worker`, `core` | `WORKER`, `CORE` | the worker's number, and its core |
//! | `error` | `ERROR` | what the kernel or a library says |
//! | `pid`, `uid` | `PID`, `UID` | the process that asked for it |
//! | `suppressed` | `SUPPRESSED` | how many lines were not written (below) |
//!
//! A guest can cause the same event over and over. So at most [`BURST`] events of one kind about one port are written
//! in [`INTERVAL`], and then the number of those that were not: see [`Limit`].

//!
//! A thread that logs never waits. A separate thread writes; lines that it cannot write in time are lost and counted,
//! see [`drain`].

mod entry;
mod journal;
mod limit;
mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, stderr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crosspoint_config::{Log, LogFormat, LogLevel, LogTarget};
use journal::Entries;
pub use limit::{BURST, INTERVAL, Limit};
pub(crate) use queue::lost_lines;
use queue::{Item, Lines, Queue};
pub use queue::{drain, print};
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Time between two attempts to reach the journal.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Whether lines for the journal go elsewhere, since the journal was not available at the start.
static JOURNAL_MISSING: AtomicBool = AtomicBool::new(false);
/// Target of the lines that report suppressed events.
const TARGET: &str = "crosspoint_daemon::log";
/// The journal's socket (sd_journal_print(3)).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The environment variable whose filter overrides the configuration's level.
const FILTER: &str = "CROSSPOINT_LOG";

type Output = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging for the whole process, as `log` configures it. Call [`Limit::tick`] of the returned value about once
/// a second.
pub fn start(log: &Log) -> Limit {
    let filter = EnvFilter::try_from_env(FILTER);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(level(log.level).to_string()));
    let (output, warning) = output(log);
    let (output, later) = reload::Layer::new(output);
    let limit = Limit::default();
    let layers = tracing_subscriber::registry().with(output);
    // The outermost layer is asked first, so the limit does not count what the filter rejects.
    let set = layers.with(limit.clone()).with(filter).try_init();
    if set.is_err() {
        print("warning: there is a log already; [log] has no effect\n");
    }
    if let Some(error) = warning {
        tracing::warn!(
            %error,
            "the journal cannot be written to: lines go to standard error; trying again every few seconds"
        );
        wait_for_journal(later);
    }
    limit
}

/// Tries periodically to reach the journal, on its own thread, and switches the log to it once it is there.
fn wait_for_journal(output: reload::Handle<Output, Registry>) {
    JOURNAL_MISSING.store(true, Ordering::Relaxed);
    let wait = move || {
        let journal = loop {
            std::thread::sleep(RETRY_INTERVAL);
            if let Ok(journal) = to_journal_if_there() {
                break journal;
            }
        };
        // This fails only if there is no log any more.
        if output.reload(journal).is_ok() {
            JOURNAL_MISSING.store(false, Ordering::Relaxed);
            tracing::info!(
                "the journal can be written to again: earlier lines went to standard error"
            );
        }
    };
    let started = std::thread::Builder::new()
        .name("cp-log-retry".to_owned())
        .spawn(wait);
    if let Err(error) = started {
        tracing::warn!(%error, "the journal is not tried again");
    }
}

/// The missing part of the log, as text.
pub(crate) fn missing() -> Option<&'static str> {
    let is_missing = JOURNAL_MISSING.load(Ordering::Relaxed);
    is_missing.then_some(
        "the journal: it cannot be written to, and lines go to standard error; trying again every few seconds",
    )
}

/// Makes panics print to standard error through `print`, which waits for its reader no longer than a second.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        // If RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => format!("stack backtrace:\n{backtrace}"),
            _ => String::new(),
        };
        print(&format!("\nthread '{name}' {panic}\n{backtrace}"));
    }));
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// The log's output, and why it is not the journal, if it should be.
fn output(log: &Log) -> (Output, Option<io::Error>) {
    let to_journal = match log.target {
        LogTarget::Stderr => false,
        LogTarget::Journald => true,
        LogTarget::Auto => std::env::var("JOURNAL_STREAM").is_ok_and(|text| is_stderr(&text)),
    };
    if !to_journal {
        return (to_stderr(log.format), None);
    }
    match to_journal_if_there() {
        Ok(journal) => (journal, None),
        Err(why) => (to_stderr(log.format), Some(why)),
    }
}

/// Opens the journal's output, if there is a journal. The queue's thread writes the entries, since the journal may hang
/// from the first one on.
fn to_journal_if_there() -> io::Result<Output> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    // The journal ignores an empty datagram.
    match socket.send_to(&[], JOURNAL) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
        _ => {}
    }
    let mut journal = None;
    let queue = Queue::start(move |item| {
        let journal = match &mut journal {
            Some(journal) => journal,
            None => journal.insert(self::journal()?),
        };
        match item {
            Item::Entry(entry) => entry.give(journal),
            Item::Line(line) => queue::write_all(stderr(), line)?,
        }
        Ok(())
    })?;
    queue.publish();
    Ok(Entries(queue).boxed())
}

fn journal() -> io::Result<Dispatch> {
    // Standard levels: tracing-journald's default maps "info" to notice.
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer()?;
    let layer = layer.with_field_prefix(None);
    let layer = layer.with_priority_mappings(priorities);
    // No filter here: events are already filtered, and a second filter would be evaluated for all events of the
    // process.
    Ok(Dispatch::new(
        tracing_subscriber::registry()
            .with(layer)
            .with(LevelFilter::ERROR),
    ))
}

fn to_stderr(format: LogFormat) -> Output {
    let queue = Queue::start(|item| match item {
        Item::Line(line) => queue::write_all(stderr(), line),
        Item::Entry(_) => Ok(()),
    });
    let queue = queue.unwrap_or_else(|_| Arc::new(Queue::default()));
    queue.publish();
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines(queue));
    match format {
        LogFormat::Text => layer
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    }
}

/// Whether JOURNAL_STREAM, `DEVICE:INODE` of the journal's end, names standard error. A process whose standard error
/// was redirected still inherits the variable.
fn is_stderr(journal_stream: &str) -> bool {
    let Ok(stat) = rustix::fs::fstat(stderr().as_fd()) else {
        return false;
    };
    journal_stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_what_standard_error_is() {
        let stat = rustix::fs::fstat(stderr().as_fd()).expect("it is open");
        assert!(is_stderr(&format!("{}:{}", stat.st_dev, stat.st_ino)));
        assert!(!is_stderr(&format!("{}:{}", stat.st_dev, stat.st_ino + 1)));
        assert!(!is_stderr(""));
    }
}
