//! A NIC port, open or waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::Rss;
use crosspoint_engine::snapshot::Egress;
use crosspoint_netdev::{
    Changes, Frames, HostUse, Interface, LinkError, Links, Reach, Settings, SettingsRecord, Wanted,
};

use super::port::{NicPort, queues_of};
use super::{NicPortError, UplinkOptions, loss_text, taken};
use crate::dataplane::{Dataplane, PortChange, PortState};
use crate::handover;

/// First and longest wait between attempts to open a port; each wait is twice as long as the one before.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// When to try again, and the current wait.
struct Retry {
    at: Instant,
    wait: Duration,
    /// The interface at the last failure: while it is unchanged, no attempt is made before the time is over, since
    /// every attempt causes events itself.
    interface: Option<Interface>,
}

/// A NIC port and its interface.
pub(super) struct Uplink {
    dataplane: Arc<Dataplane>,
    options: UplinkOptions,
    port: Option<NicPort>,
    /// Settings of the interface. They also stay between attempts to open the port, so that they are not set again each
    /// time.
    settings: Option<Settings>,
    /// Those of the record, for a successor of this process.
    recorded: Option<SettingsRecord>,
    retry: Option<Retry>,
    shown: Option<(PortState, String)>,
    /// Whether opening the port took the link down: some drivers restart the NIC for an XDP program.
    pub lost_carrier: bool,
    /// Whether the port has been open.
    was_open: bool,
}

impl Uplink {
    pub fn new(dataplane: Arc<Dataplane>, options: UplinkOptions) -> Uplink {
        // By this process's predecessor.
        let was_open = handover::has(&super::port::record_name(&options.name));
        // Also if the interface is down now: its settings are restored at the end.
        let found = Interface::find(&options.config.interface).ok().flatten();
        // Before anything is set on the interface.
        taken::forget_unused(&dataplane, options.number);
        let settings = found.and_then(|found| resumed(&options.name, &found));
        Uplink {
            dataplane,
            options,
            port: None,
            settings,
            recorded: None,
            retry: None,
            shown: None,
            lost_carrier: false,
            was_open,
        }
    }

    /// When the next retry is due.
    pub fn due(&self) -> Option<Instant> {
        self.retry.as_ref().map(|retry| retry.at)
    }

    /// Whether the changes may concern this port's interface.
    pub fn is_concerned(&self, changes: &Changes) -> bool {
        let index = self.settings.as_ref().map(Settings::index);
        // An event about an interface below it may name only that one.
        let is_on_others = |port: &NicPort| port.interface().takes_tags.is_some();
        self.port.as_ref().is_some_and(is_on_others)
            || changes.concern(&self.options.config.interface, index)
    }

    /// Opens, closes or adapts the port to match its interface's current state.
    pub fn reconcile(&mut self, links: &mut Links) -> Result<(), NicPortError> {
        let interface = self.options.config.interface.clone();
        let result = match links.find(&interface) {
            Err(why) => Err(NicPortError::Link { interface, why }),
            Ok(None) => {
                self.close();
                self.retry = None;
                let text = format!("waiting for interface `{interface}`");
                self.show(PortState::Down, text);
                return Ok(());
            }
            Ok(Some(found)) if self.is_early(&found) => return Ok(()),
            Ok(Some(found)) => self.bring_up(links, &found),
        };
        match result {
            Ok(()) => self.retry = None,
            // An event reports when it is up.
            Err(ref why @ NicPortError::Down { .. }) => {
                self.retry = None;
                self.show(PortState::Down, why.to_string());
            }
            Err(why) => {
                // An open port stays open if only the query failed.
                if self.port.is_none() {
                    self.show(PortState::Down, why.to_string());
                }
                self.try_later(links);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Whether the last attempt failed with the same interface, and the next is not due yet.
    fn is_early(&self, found: &Interface) -> bool {
        self.retry.as_ref().is_some_and(|retry| {
            retry.interface.as_ref() == Some(found) && Instant::now() < retry.at
        })
    }

    fn try_later(&mut self, links: &mut Links) {
        let wait = match &self.retry {
            Some(retry) => (retry.wait * 2).min(RETRY_LAST),
            None => RETRY_FIRST,
        };
        self.retry = Some(Retry {
            at: Instant::now() + wait,
            wait,
            interface: links.find(&self.options.config.interface).ok().flatten(),
        });
    }

    fn bring_up(&mut self, links: &mut Links, found: &Interface) -> Result<(), NicPortError> {
        let is_other = |settings: &Settings| settings.index() != found.index;
        if self.settings.as_ref().is_some_and(is_other) {
            self.close();
        }
        let must_reopen = |port: &NicPort| port.must_reopen(&self.options.config, found);
        if self.port.as_ref().is_some_and(must_reopen) {
            self.drop_port();
        }
        let now = match self.port {
            Some(_) => found.clone(),
            None => self.open(links, found)?,
        };
        self.follow(&now);
        Ok(())
    }

    /// Applies the settings to the interface, and opens the port on it. Returns the interface's state after that.
    fn open(&mut self, links: &mut Links, found: &Interface) -> Result<Interface, NicPortError> {
        let interface = found.name.clone();
        if !found.up {
            return Err(NicPortError::Down { interface });
        }
        if let Reach::None(what) = found.reach {
            return Err(NicPortError::NoReach { interface, what });
        }
        let host_use = self.host_use(found)?;
        let config = &self.options.config;
        let wanted = Wanted {
            mtu: config.mtu.map(u32::from),
            channels: config.channels,
        };
        let fail = |why: LinkError| match why.is_gone() {
            // An event reports it, or has reported it.
            true => NicPortError::Down {
                interface: interface.clone(),
            },
            false => NicPortError::Link {
                interface: interface.clone(),
                why,
            },
        };
        let name = &self.options.name;
        let settings = self.settings.get_or_insert_with(|| resume(name, found));
        settings.apply(wanted, found).map_err(fail)?;
        let now = links.find(&interface).map_err(fail)?;
        let now = now.ok_or(NicPortError::Down {
            interface: interface.clone(),
        })?;
        let queues = queues_of(&now, &config.queues, &self.options.direct)?;
        if config.rss == Rss::Queues {
            match settings.spread(&queues) {
                // Without an RSS table, the interface spreads its frames over all its queues.
                Err(why) if why.is_unsupported() && queues.len() == now.rx_queues as usize => {}
                Err(why) if why.is_unsupported() => return Err(NicPortError::NoRss { interface }),
                other => other.map_err(fail)?,
            }
        }
        let (dataplane, number) = (&self.dataplane, self.options.number);
        let port = NicPort::open(dataplane, number, config, &now, queues)?;
        for warning in &port.warnings {
            tracing::warn!(port = self.options.name, "{warning}");
        }
        say_host_use(&self.options, host_use.filter(|_| !self.was_open));
        self.was_open = true;
        self.port = Some(port);
        self.keep_frames(&now);
        self.record();
        // An event reports when it is back.
        let then = links.find(&interface).ok().flatten().unwrap_or(now);
        self.lost_carrier = found.carrier && !then.carrier;
        Ok(then)
    }

    /// What the host itself uses the interface for, as text. An error if the host would lose its network, unless the port
    /// may do that, or has had the interface before.
    fn host_use(&self, interface: &Interface) -> Result<Option<String>, NicPortError> {
        let found = HostUse::of(interface.index).unwrap_or_default();
        let is_allowed = self.options.config.take_over || self.was_open;
        match found.text() {
            Some(what) if found.is_vital() && !is_allowed => Err(NicPortError::HostsOwn {
                interface: interface.name.clone(),
                what,
            }),
            text => Ok(text),
        }
    }

    /// Records the settings that are to be restored, for a successor of this process.
    fn record(&mut self) {
        let record = self.settings.as_ref().map(Settings::record);
        if !handover::is_supervised() || self.recorded == record {
            return;
        }
        match &record {
            Some(record) => {
                handover::put(&record_name(&self.options.name), record, &[]);
            }
            None => handover::forget(&record_name(&self.options.name)),
        }
        self.recorded = record;
    }

    /// Makes senders through the interface keep each frame whole, with nothing passed beside its data.
    fn keep_frames(&mut self, now: &Interface) {
        let is_generic = self.port.as_ref().is_some_and(NicPort::is_generic);
        let settings = self.settings.get_or_insert_with(|| Settings::new(now));
        let mut kept = vec![settings.keep_frames(now, is_generic)];
        if is_generic {
            kept.extend(settings.keep_frames_below(now));
        }
        for frames in kept {
            match frames {
                Frames::Whole => {}
                Frames::Changed(what) => tracing::info!(port = self.options.name, "{what}"),
                Frames::Lacking(what) => tracing::warn!(port = self.options.name, "{what}"),
            }
        }
    }

    /// Updates the open port from its interface: peer, MTU, up and down.
    fn follow(&mut self, now: &Interface) {
        let Some(port) = &mut self.port else { return };
        let before = port.interface().clone();
        port.follow(now);
        let (state, text) = match (now.up, now.carrier) {
            (true, true) => (PortState::Up, port.detail.clone()),
            (true, false) => (
                PortState::Down,
                format!("interface `{}` has no carrier", now.name),
            ),
            (false, _) => {
                let interface = now.name.clone();
                (
                    PortState::Down,
                    NicPortError::Down { interface }.to_string(),
                )
            }
        };
        if now.peer != before.peer || now.peers_below != before.peers_below {
            self.keep_frames(now);
            self.record();
        }
        if now.mtu != before.mtu {
            tracing::info!(port = self.options.name, "its MTU is {} now", now.mtu);
        }
        self.show(state, text);
    }

    /// Closes the port. Its egress is then down, whatever state was shown before.
    fn drop_port(&mut self) {
        if self.port.take().is_some() {
            self.shown = None;
        }
    }

    /// Closes the port, and restores the interface's settings.
    fn close(&mut self) {
        self.drop_port();
        // Those of the predecessor, if the port was never opened.
        taken::close(&self.dataplane, self.options.number);
        let left = self.settings.take().map(|mut settings| settings.put_back());
        for why in left.into_iter().flatten() {
            let interface = &self.options.config.interface;
            tracing::warn!(
                port = self.options.name,
                "not restored on interface `{interface}`: {why}"
            );
        }
        self.record();
    }

    /// Shows a new state of the port, and starts or stops frames to it.
    fn show(&mut self, state: PortState, text: String) {
        let shown = Some((state, text));
        if self.shown == shown {
            return;
        }
        self.shown = shown.clone();
        let name = &self.options.name;
        let egress = match &shown {
            Some((PortState::Up, text)) => {
                tracing::info!(port = name, "up: {text}");
                Egress::Nic
            }
            _ => {
                let text = shown.as_ref().map_or("", |(_, text)| text);
                tracing::warn!(port = name, "down: {text}");
                Egress::Down
            }
        };
        let change = PortChange {
            egress: Some(egress),
            state: shown,
            ..PortChange::default()
        };
        let _ = self.dataplane.change(self.options.number, change);
        if state == PortState::Down {
            self.dataplane.forget_addresses(self.options.number);
        }
    }
}

fn record_name(port: &str) -> String {
    format!("settings/{port}")
}

/// The predecessor's changes of the interface, which are restored at the end.
fn resumed(port: &str, interface: &Interface) -> Option<Settings> {
    let record = handover::take(&record_name(port))?;
    let record = serde_json::from_slice(&record.body).ok()?;
    Settings::resume(interface, record)
}

/// The predecessor's changes of the interface, or none yet.
fn resume(port: &str, interface: &Interface) -> Settings {
    resumed(port, interface).unwrap_or_else(|| Settings::new(interface))
}

/// Logs what the host itself uses the port's interface for: a warning, unless the configuration says that it is intended.
fn say_host_use(options: &UplinkOptions, host_use: Option<String>) {
    let Some(used) = host_use else { return };
    let name = &options.name;
    let text = loss_text(&options.config.interface, &used);
    match options.config.take_over {
        true => tracing::info!(port = name, "{text}"),
        false => tracing::warn!(port = name, "{text}"),
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.close();
    }
}
