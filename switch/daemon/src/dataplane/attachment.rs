//! Attachment of a guest port's thread: while it is valid, the thread may change the port.
//!
//! A front end can hold up the thread of a port (see [`caller`](super::caller)); the thread is then left behind when
//! the port goes. When it resumes, it must change nothing, since another port may have its number by then. So each
//! change is made under the port table's lock, and only while its attachment is valid.

mod link;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crosspoint_engine::snapshot::Egress;
use crosspoint_engine::stream::Stream;
use crosspoint_model::status::DeviceStatus;
use crosspoint_packet::Mac;
use crosspoint_vring::CallBudget;
use crosspoint_vring::calls::{CALL_TIME_MAX, Spent};
use link::Link;

use super::caller::Caller;
use super::{Dataplane, Port, PortChange, PortState};

/// Interval between two reviews of what calls cost.
const REVIEW: Duration = Duration::from_millis(100);

/// The right of a guest port's thread to change its port.
pub(crate) struct Attachment {
    number: u16,
    is_over: AtomicBool,
    pub(crate) caller: Arc<Caller>,
    pub(crate) link: Link,
}

impl Attachment {
    /// The port's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Meaningful only under the port table's lock, which [`Dataplane::detach`] takes.
    fn holds(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }
}

/// State of a port's calls.
pub(super) struct Calls {
    pub(super) budget: Arc<CallBudget>,
    spent: Spent,
    /// Whether the switch to the caller thread has been logged.
    is_said: bool,
    attachment: Option<Arc<Attachment>>,
}

impl Calls {
    pub(super) fn new(hz: f64) -> Calls {
        Calls {
            budget: CallBudget::new(hz),
            spent: Spent::default(),
            is_said: false,
            attachment: None,
        }
    }

    /// Tells the attached thread, if there is one, whether the guest's link is down.
    pub(super) fn set_link(&self, is_down: bool) {
        if let Some(attachment) = &self.attachment {
            attachment.link.set(is_down);
        }
    }

    /// Text that tells that the caller thread makes the calls, if it does.
    pub(super) fn text(&self) -> Option<String> {
        let is_used = |attachment: &Arc<Attachment>| attachment.caller.is_used();
        match self.budget.longest_ns() / 1000 {
            0 if self.budget.is_by_caller() => {
                Some("made by a thread of the port, until it is removed: they blocked a worker, or took too much of it".to_owned())
            }
            us if self.budget.is_by_caller() => {
                Some(format!("made by a thread of the port, until it is removed: one took {us} us of a worker"))
            }
            _ if self.attachment.as_ref().is_some_and(is_used) => {
                Some("made by a thread of the port: a call descriptor is not an eventfd".to_owned())
            }
            _ => None,
        }
    }

    /// Reviews what calls cost in `window`. Returns the attachment if it needs a caller thread.
    fn review(&mut self, name: &str, window: Duration, cycle_ns: f64) -> Option<Arc<Attachment>> {
        self.budget.review(&mut self.spent, window, cycle_ns);
        if !self.budget.is_by_caller() {
            return None;
        }
        if !std::mem::replace(&mut self.is_said, true) {
            tracing::warn!(
                port = name,
                "its calls take too much of a worker (the longest {} us; a worker gives one {} us): a thread of the port makes them until the port is removed",
                self.budget.longest_ns() / 1000,
                CALL_TIME_MAX.as_micros()
            );
        }
        self.attachment.clone()
    }
}

impl Dataplane {
    /// Attaches a thread to guest port `number`, which has `vrings` vrings. Ends the previous attachment.
    pub(crate) fn attach(&self, number: u16, vrings: usize) -> io::Result<Arc<Attachment>> {
        let mut state = self.lock();
        let port = state.ports.get_mut(usize::from(number));
        let Some(Some(port)) = port else {
            return Err(io::Error::other("no such port"));
        };
        let budget = port.calls.budget.clone();
        let attachment = Arc::new(Attachment {
            number,
            is_over: AtomicBool::new(false),
            caller: Caller::new(&port.options.name, budget, vrings)?,
            link: Link::new(port.options.disabled)?,
        });
        let before = port.calls.attachment.replace(attachment.clone());
        if let Some(before) = &before {
            before.is_over.store(true, Ordering::Relaxed);
        }
        drop(state);
        drop(before);
        Ok(attachment)
    }

    /// Ends an attachment: it changes nothing from now on, and the port gets no frames.
    pub(crate) fn detach(&self, attachment: &Arc<Attachment>) {
        let mut state = self.lock();
        if !attachment.holds() {
            return;
        }
        attachment.is_over.store(true, Ordering::Relaxed);
        let Some(Some(port)) = state.ports.get_mut(usize::from(attachment.number)) else {
            return;
        };
        let held = port.calls.attachment.take();
        let change = PortChange {
            egress: Some(Egress::Down),
            remove: port.queues_with_streams(),
            state: Some((PortState::Down, "nothing is attached".to_owned())),
            properties: Some(BTreeMap::new()),
            memory: Some(None),
            inflight: Some(None),
            ..PortChange::default()
        };
        let changed = self.change_locked(&mut state, attachment.number, change);
        self.forget(&state, attachment.number);
        drop(state);
        drop((changed, held));
    }

    /// Like [`change`](Dataplane::change), but only while the attachment is valid.
    pub(crate) fn change_attached(
        &self,
        attachment: &Attachment,
        change: PortChange,
    ) -> io::Result<Vec<Stream>> {
        self.change_if(attachment.number, change, || attachment.holds())
    }

    /// Records the status of the port's device, for `show`.
    pub(crate) fn describe(&self, attachment: &Attachment, device: DeviceStatus) {
        let before = self
            .with_port(attachment, |port| port.device.replace(device))
            .flatten();
        drop(before);
    }

    /// Records the port's properties, for `show`.
    pub(crate) fn show_properties(
        &self,
        attachment: &Attachment,
        properties: BTreeMap<String, String>,
    ) {
        let show = |port: &mut Port| std::mem::replace(&mut port.properties, properties);
        drop(self.with_port(attachment, show));
    }

    /// The detail of the port's state.
    pub(crate) fn port_detail(&self, attachment: &Attachment) -> String {
        let detail = self.with_port(attachment, |port| port.detail.clone());
        detail.unwrap_or_default()
    }

    /// Appends to the detail of the port's state.
    pub(crate) fn add_detail(&self, attachment: &Attachment, text: &str) {
        self.with_port(attachment, |port| {
            port.detail.push_str("; ");
            port.detail.push_str(text);
        });
    }

    /// Forgets every address learned on the port.
    pub(crate) fn forget_attached(&self, attachment: &Attachment) {
        let state = self.lock();
        if attachment.holds() {
            self.forget(&state, attachment.number);
        }
    }

    /// Announces `mac` on the port.
    pub(crate) fn announce(&self, attachment: &Attachment, mac: Mac) {
        let mut state = self.lock();
        if attachment.holds() {
            self.announce_locked(&mut state, attachment.number, mac);
        }
    }

    fn with_port<T>(&self, attachment: &Attachment, f: impl FnOnce(&mut Port) -> T) -> Option<T> {
        let mut state = self.lock();
        let port = state
            .ports
            .get_mut(usize::from(attachment.number))?
            .as_mut();
        port.filter(|_| attachment.holds()).map(f)
    }

    /// Reviews what calls have cost the workers since the last review, and starts threads for ports whose calls workers
    /// no longer make.
    pub(super) fn review_calls(&self) {
        let mut state = self.lock();
        let window = state.calls_reviewed.elapsed();
        if window < REVIEW {
            return;
        }
        state.calls_reviewed = Instant::now();
        let cycle_ns = 1e9 / self.clock.hz();
        let ports = state.ports.iter_mut().flatten();
        let due: Vec<_> = ports
            .filter_map(|port| port.calls.review(&port.options.name, window, cycle_ns))
            .collect();
        drop(state);
        for attachment in due {
            attachment.caller.start();
        }
    }
}
