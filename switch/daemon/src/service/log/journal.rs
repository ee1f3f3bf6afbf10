//! The journal's layer. Its fields are for filters; most readers see only the message, as `journalctl` shows it. So the
//! message must include the port and the error.

use std::sync::Arc;

use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::entry::Entry;
use super::queue::{Item, Queue};

/// A layer that passes events to a queue's thread as [`Entry`].
pub(super) struct Entries(pub Arc<Queue>);

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.push(Item::Entry(Entry::of(event)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tracing::Dispatch;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::entry::Texts;
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
