//! Rate limit for log lines: a guest that reconnects in a loop must not fill the log or hide other events in it.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::TARGET;

/// The most events of one kind about one port (or worker) that are written in [`INTERVAL`].
pub const BURST: u32 = 20;
/// The time after which counting starts again.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// The most pairs of kind and port that are counted; further ones are counted by kind alone.
const COUNTS_MAX: usize = 8192;
/// The longest kept name or message, characters.
const TEXT_CHARS_MAX: usize = 120;

/// Counts events, and suppresses those beyond the limit. It is a layer of the log; clones share their state.
///
/// An event's kind is its place in the source. DEBUG and TRACE are not limited, since they are enabled to see
/// everything.
#[derive(Clone, Debug, Default)]
pub struct Limit {
    counts: Arc<Mutex<Counts>>,
}

type Counts = HashMap<(Identifier, String), Count>;

/// Events of one kind about one port.
#[derive(Debug)]
struct Count {
    since: Instant,
    written: u32,
    suppressed: u64,
    /// The first suppressed message.
    message: String,
}

/// Suppressed events of one kind about one port or worker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suppressed {
    about: String,
    message: String,
    count: u64,
}

impl Limit {
    /// Logs what was suppressed, for kinds and ports whose interval is over.
    pub fn tick(&self) {
        say(self.take(Instant::now(), INTERVAL));
    }

    /// Logs everything that was suppressed so far; for the end of the process.
    pub fn finish(&self) {
        say(self.take(Instant::now(), Duration::ZERO));
    }

    /// Removes counts older than `age`, and returns those with suppressed events.
    fn take(&self, now: Instant, age: Duration) -> Vec<Suppressed> {
        let mut counts = self.lock();
        let over = |count: &Count| now.saturating_duration_since(count.since) >= age;
        let old = counts.extract_if(|_, count| over(count));
        let told = old.filter(|(_, count)| count.suppressed > 0);
        let told = told.map(|((_, about), count)| Suppressed {
            about,
            message: count.message,
            count: count.suppressed,
        });
        told.collect()
    }

    /// Counts an event. Returns whether it may be written.
    fn admit(&self, kind: &Identifier, about: About, now: Instant) -> bool {
        let mut counts = self.lock();
        let mut key = (kind.clone(), about.of);
        if counts.len() >= COUNTS_MAX && !counts.contains_key(&key) {
            key.1.clear();
        }
        let count = counts.entry(key).or_insert(Count {
            since: now,
            written: 0,
            suppressed: 0,
            message: String::new(),
        });
        // If events were suppressed, `tick` reports them later, for both intervals together.
        if now.saturating_duration_since(count.since) >= INTERVAL && count.suppressed == 0 {
            (count.since, count.written) = (now, 0);
        }
        if count.written < BURST {
            count.written += 1;
            return true;
        }
        if count.suppressed == 0 {
            count.message = about.message;
        }
        count.suppressed += 1;
        false
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes one line for each; these lines are not counted.
fn say(all: Vec<Suppressed>) {
    for Suppressed {
        about,
        message,
        count: suppressed,
    } in all
    {
        let about = if about.is_empty() {
            "the switch"
        } else {
            &about
        };
        tracing::warn!(
            target: TARGET,
            suppressed,
            "{about}: {suppressed} more lines like this were not written: \"{message}\"",
        );
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut about = About::default();
        event.record(&mut about);
        self.admit(&metadata.callsite(), about, Instant::now())
    }
}

/// Subject and message of an event.
#[derive(Debug, Default)]
struct About {
    /// "port web-1", "worker 2"; empty if it is about neither.
    of: String,
    message: String,
}

impl Visit for About {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let (text, name) = match field.name() {
            name @ ("port" | "worker") => (&mut self.of, name),
            "message" => (&mut self.message, ""),
            _ => return,
        };
        let separator = if text.is_empty() { "" } else { ", " };
        let space = if name.is_empty() { "" } else { " " };
        // The value is truncated, so that it always fits.
        let _ = write!(Short(text), "{separator}{name}{space}{value:?}");
    }
}

/// A text of limited length.
struct Short<'a>(&'a mut String);

impl Write for Short<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_CHARS_MAX.saturating_sub(self.0.chars().count());
        self.0.extend(text.chars().take(room));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Lines written by a test's log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut about = About::default();
            event.record(&mut about);
            let line = format!("{}|{}", about.of, about.message);
            self.0.lock().expect("a test's own").push(line);
        }
    }

    fn logged(test: impl FnOnce(&Limit)) -> Vec<String> {
        let (lines, limit) = (Lines::default(), Limit::default());
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        let subscriber = subscriber.with(limit.clone());
        tracing::subscriber::with_default(subscriber, || test(&limit));
        std::mem::take(&mut *lines.0.lock().expect("a test's own"))
    }

    fn connected(port: &str) {
        tracing::info!(port = %port, "front end connected");
    }

    fn refused(port: &str) {
        tracing::warn!(port, "refused: {}", "it lies");
    }

    #[test]
    fn one_guest_in_a_loop_hides_neither_other_events_nor_other_ports() {
        let lines = logged(|limit| {
            for _ in 0..1000 {
                connected("web-1");
            }
            connected("web-2");
            refused("web-1");
            limit.tick();
            limit.finish();
            connected("web-1");
        });
        let of_loop = "port web-1|front end connected";
        let count = lines.iter().filter(|line| *line == of_loop).count();
        assert_eq!(count as u32, BURST + 1, "{lines:?}");
        assert_eq!(
            lines[BURST as usize..],
            [
                "port web-2|front end connected",
                "port web-1|refused: it lies",
                "|port web-1: 980 more lines like this were not written: \"front end connected\"",
                of_loop,
            ]
        );
    }

    #[test]
    fn what_is_asked_for_by_hand_is_not_limited() {
        let lines = logged(|_| {
            for _ in 0..1000 {
                tracing::debug!(port = "web-1", "why");
            }
        });
        assert_eq!(lines.len(), 1000);
    }

    fn kind() -> Identifier {
        static KIND: Lines0 = Lines0;
        struct Lines0;
        impl tracing::Callsite for Lines0 {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &tracing::Metadata<'_> {
                unreachable!("only its address is used")
            }
        }
        Identifier(&KIND)
    }

    fn about(port: impl fmt::Display) -> About {
        About {
            of: format!("port {port}"),
            message: "a line".to_owned(),
        }
    }

    /// At arbitrary times: no interval has more than a burst, and written and suppressed events add up.
    #[test]
    fn every_event_is_written_or_counted() {
        let (limit, start) = (Limit::default(), Instant::now());
        let mut random = 1_u64;
        let (written, mut told) = (AtomicU64::new(0), 0);
        let (mut now, mut all) = (start, 0);
        for _ in 0..100_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            now += Duration::from_millis((random >> 33) % 40);
            all += 1;
            if limit.admit(&kind(), about("a"), now) {
                written.fetch_add(1, Ordering::Relaxed);
            }
            if random >> 60 == 0 {
                told += limit
                    .take(now, INTERVAL)
                    .iter()
                    .map(|one| one.count)
                    .sum::<u64>();
            }
        }
        told += limit
            .take(now, Duration::ZERO)
            .iter()
            .map(|one| one.count)
            .sum::<u64>();
        let written = written.into_inner();
        assert_eq!(written + told, all);
        let intervals = (now - start).as_secs() / INTERVAL.as_secs() + 1;
        assert!(
            written <= intervals * u64::from(BURST),
            "{written} in {intervals}"
        );
        assert!(written > 100, "{written}");
    }

    #[test]
    fn memory_is_bounded_however_many_ports_there_are() {
        let (limit, now) = (Limit::default(), Instant::now());
        for port in 0..3 * COUNTS_MAX {
            limit.admit(&kind(), about(port), now);
        }
        assert!(limit.lock().len() <= COUNTS_MAX + 1);
        limit.take(now + INTERVAL, INTERVAL);
        assert!(limit.lock().is_empty());
    }
}
