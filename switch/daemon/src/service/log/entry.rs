//! An event that is kept until the log's thread writes it.

use std::fmt::{self, Write};

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata};

/// The most fields of an event; further ones are left out.
const FIELDS_MAX: usize = 16;

/// An event to be written later. Its message begins with the port (or the worker) and ends with the error.
#[derive(Debug)]
pub(super) struct Entry {
    metadata: &'static Metadata<'static>,
    texts: Texts,
}

impl Entry {
    pub(super) fn of(event: &Event<'_>) -> Entry {
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
pub(super) struct Texts(pub(super) Vec<(Field, String)>);

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
