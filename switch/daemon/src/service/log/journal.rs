//! The journal's layer. Its fields are for filters; most readers see only the message, as `journalctl` shows it. So the
//! message must include the port and the error.

use std::fmt::{self, Write};
use std::sync::Arc;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::queue::{Item, Queue};

/// The most fields of an event; further ones are left out.
const FIELDS_MAX: usize = 16;

/// A layer that passes events to a queue's thread as [`Entry`].
pub(super) struct Entries(pub Arc<Queue>);

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.push(Item::Entry(Entry::of(event)));
    }
}

/// An event to be written later. Its message begins with the port (or the worker) and ends with the error.
#[derive(Debug)]
pub(super) struct Entry {
    metadata: &'static Metadata<'static>,
    texts: Texts,
}

impl Entry {
    fn of(event: &Event<'_>) -> Entry {
        let mut texts = Texts::default();
        event.record(&mut texts);
        let message = texts.message();
        let mut all = texts.0.iter_mut();
        if let Some((_, text)) = all.find(|(field, _)| field.name() == "message") {
            *text = message;
        }
        Entry {
            metadata: event.metadata(),
            texts,
        }
    }

    /// Approximate size in bytes.
    pub(super) fn len(&self) -> usize {
        let texts = self.texts.0.iter();
        texts
            .map(|(_, text)| text.len() + size_of::<(Field, String)>())
            .sum()
    }

    /// Sends the event to `output`.
    pub(super) fn give(&self, output: &Dispatch) {
        let names = self.metadata.fields();
        let Some(first) = names.iter().next() else {
            return;
        };
        // Absent fields have no value, so their name does not matter.
        let mut fields = vec![(first, None); FIELDS_MAX];
        for (place, (field, text)) in fields.iter_mut().zip(&self.texts.0) {
            *place = (field.clone(), Some(text));
        }
        let values: [_; FIELDS_MAX] = std::array::from_fn(|number| {
            let (field, text) = &fields[number];
            (field, text.map(|text| text as &dyn Value))
        });
        let values = names.value_set(&values);
        output.event(&Event::new(self.metadata, &values));
    }
}

/// An event's fields as text.
#[derive(Debug, Default)]
struct Texts(Vec<(Field, String)>);

impl Texts {
    fn of(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        let (_, text) = fields.find(|(field, _)| field.name() == name)?;
        Some(text)
    }

    /// `web-1:0: what has happened: why`.
    fn message(&self) -> String {
        let mut text = String::new();
        match (self.of("port"), self.of("queue"), self.of("worker")) {
            (Some(port), Some(queue), _) => text = format!("{port}:{queue}: "),
            (Some(port), ..) => text = format!("{port}: "),
            (None, _, Some(worker)) => text = format!("worker-{worker}: "),
            _ => {}
        }
        text.push_str(self.of("message").unwrap_or_default());
        if let Some(error) = self.of("error") {
            // Writing to a string does not fail.
            let _ = write!(text, ": {error}");
        }
        text
    }
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.clone(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.clone(), format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut texts = Texts::default();
            event.record(&mut texts);
            let fields = texts
                .0
                .iter()
                .map(|(field, text)| format!("{field}={text}"));
            let line = fields.collect::<Vec<_>>().join("|");
            self.0.lock().expect("a test's own").push(line);
        }
    }

    #[test]
    fn a_message_says_of_whom_it_is_and_why_and_the_fields_stay() {
        let seen = Seen::default();
        let output = Dispatch::new(tracing_subscriber::registry().with(seen.clone()));
        let queue = Queue::start(move |item| {
            if let Item::Entry(entry) = item {
                entry.give(&output);
            }
            Ok(())
        });
        let queue = queue.expect("a thread");
        let subscriber = tracing_subscriber::registry().with(Entries(Arc::clone(&queue)));
        tracing::subscriber::with_default(subscriber, || {
            let name = "web-1";
            tracing::info!(port = %name, "front end connected");
            tracing::warn!(port = name, queue = 3_u16, worker = 1, "stays {}", "here");
            tracing::warn!(worker = 2_usize, core = 7, error = %"no room", "is lost");
            tracing::error!("ended");
        });
        queue.drain(Duration::from_secs(60));
        let seen = std::mem::take(&mut *seen.0.lock().expect("a test's own"));
        assert_eq!(
            seen,
            [
                "message=web-1: front end connected|port=web-1",
                "message=web-1:3: stays here|port=web-1|queue=3|worker=1",
                "message=worker-2: is lost: no room|worker=2|core=7|error=no room",
                "message=ended",
            ]
        );
    }
}
