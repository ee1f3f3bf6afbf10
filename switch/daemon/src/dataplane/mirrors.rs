//! Mirrors: from the names in the configuration to what workers see.

use std::sync::Arc;

use crosspoint_config::pattern;
use crosspoint_engine::observe::mirror::{
    MIRRORS_MAX, Mirror, MirrorCounters, MirrorOptions, PortSet,
};
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::stages::guard::SourceGuard;
use crosspoint_model::status::MirrorStatus;
use crosspoint_packet::DropReason;
use crosspoint_packet::filter::Filter;

use super::{Dataplane, Port};

/// A mirror of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct MirrorEntry {
    /// Its name.
    pub name: String,
    /// Names or patterns of the ports whose frames are copied.
    pub ports: Vec<String>,
    /// Whether frames from them are copied, and frames for them.
    pub received: bool,
    /// See `received`.
    pub sent: bool,
    /// Only frames of these VLANs.
    pub vlans: Option<Vec<u16>>,
    /// Only frames that this filter accepts: its text.
    pub filter: Option<String>,
    /// The name of the port that gets the copies. There need not be such a port now.
    pub to: String,
    /// The VLAN of the copies. `None`: the port is the mirror's own.
    pub to_vlan: Option<u16>,
}

/// The running mirrors.
#[derive(Default)]
pub(super) struct Mirrors(Vec<Known>);

struct Known {
    entry: MirrorEntry,
    counters: Arc<MirrorCounters>,
}

impl Known {
    fn options(&self, ports: &[Option<Port>]) -> Option<MirrorOptions> {
        let entry = &self.entry;
        let (mut chosen, mut output) = (PortSet::default(), None);
        for (number, port) in (0u16..).zip(ports) {
            let Some(port) = port else { continue };
            let name = &port.options.name;
            if *name == entry.to {
                output = Some(number);
            } else if entry.ports.iter().any(|one| pattern::matches(one, name)) {
                chosen.add(number);
            }
        }
        let of = |is_chosen: bool| match is_chosen {
            true => chosen.clone(),
            false => PortSet::default(),
        };
        Some(MirrorOptions {
            received: of(entry.received),
            sent: of(entry.sent),
            vlans: entry.vlans.as_deref().map(bits),
            // The configuration was checked, so it can be parsed.
            filter: entry
                .filter
                .as_deref()
                .and_then(|text| Filter::parse(text).ok()),
            output: output?,
            vlan: entry.to_vlan,
        })
    }

    /// Whether the port has no other traffic than this mirror's copies.
    fn owns(&self, port: &str) -> bool {
        self.entry.to_vlan.is_none() && self.entry.to == port
    }
}

/// A bit for each VLAN.
fn bits(vlans: &[u16]) -> Box<[u64; 64]> {
    let mut bits = Box::new([0; 64]);
    for vlan in vlans {
        if let Some(word) = bits.get_mut(usize::from(*vlan) / 64) {
            *word |= 1 << (vlan % 64);
        }
    }
    bits
}

impl Mirrors {
    /// The mirrors for the next snapshot, of the ports that there are.
    pub(super) fn resolve(
        &self,
        ports: &[Option<Port>],
        views: &[Option<PortSnapshot>],
    ) -> Box<[Mirror]> {
        let made = self.0.iter().filter_map(|known| {
            let options = known.options(ports)?;
            Some(Mirror::new(options, views, known.counters.clone()))
        });
        made.take(MIRRORS_MAX).collect()
    }

    /// Blocks each port that a mirror has for itself: no other frame is sent to it, and none from it is forwarded.
    pub(super) fn reserve(&self, views: &mut [Option<PortSnapshot>]) {
        for view in views.iter_mut().flatten() {
            if self.owner(&view.name).is_some() {
                let addresses = view
                    .sources
                    .as_ref()
                    .map(|guard| guard.addresses().to_vec());
                let guard = SourceGuard::new(addresses.unwrap_or_default());
                view.sources = Some(Arc::new(guard.blocked(DropReason::MirrorPort)));
            }
        }
    }

    /// The mirror that has the port for itself, if any.
    pub(super) fn owner(&self, port: &str) -> Option<&str> {
        let owner = self.0.iter().find(|known| known.owns(port))?;
        Some(&owner.entry.name)
    }

    /// The status of each mirror.
    pub(super) fn status(&self, ports: &[Option<Port>]) -> Vec<MirrorStatus> {
        let status = self.0.iter().map(|known| {
            let (copied, missed) = known.counters.get();
            let entry = &known.entry;
            let direction = match (entry.received, entry.sent) {
                (true, false) => "received",
                (false, true) => "sent",
                _ => "both",
            };
            let mut ports = ports.iter().flatten();
            MirrorStatus {
                name: entry.name.clone(),
                ports: entry.ports.clone(),
                direction: direction.to_owned(),
                vlans: entry.vlans.clone(),
                filter: entry.filter.clone(),
                to: entry.to.clone(),
                to_vlan: entry.to_vlan,
                is_active: ports.any(|port| port.options.name == entry.to),
                copied,
                missed,
            }
        });
        status.collect()
    }
}

impl Dataplane {
    /// Replaces the mirrors. One whose name stays keeps its counts.
    pub fn set_mirrors(&self, entries: Vec<MirrorEntry>) {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.mirrors.0);
        if before.iter().map(|known| &known.entry).eq(&entries) {
            state.mirrors.0 = before;
            return;
        }
        let known = entries.into_iter().map(|entry| {
            let same = before.iter().find(|known| known.entry.name == entry.name);
            let counters = match same {
                Some(known) => known.counters.clone(),
                None => MirrorCounters::new(self.workers()),
            };
            Known { entry, counters }
        });
        state.mirrors.0 = known.collect();
        drop(self.publish(&mut state, Vec::new()));
    }
}
