//! Mirrors: from the names in the configuration to what workers see.

use std::sync::Arc;

use crosspoint_config::{Mirror as MirrorConfig, MirrorDirection, pattern};
use crosspoint_engine::observe::mirror::{
    MIRRORS_MAX, Mirror, MirrorCounters, MirrorOptions, PortSet,
};
use crosspoint_engine::snapshot::PortSnapshot;
use crosspoint_engine::stages::guard::SourceGuard;
use crosspoint_model::status::MirrorStatus;
use crosspoint_packet::DropReason;
use crosspoint_packet::filter::Filter;

use super::{Dataplane, Port};

/// The running mirrors.
#[derive(Default)]
pub(super) struct Mirrors(Vec<Known>);

struct Known {
    entry: MirrorConfig,
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
            received: of(entry.direction != MirrorDirection::Sent),
            sent: of(entry.direction != MirrorDirection::Received),
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
                let guard = match &view.sources {
                    Some(guard) => (**guard).clone(),
                    None => SourceGuard::new(Vec::new()),
                };
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
            let direction = match entry.direction {
                MirrorDirection::Both => "both",
                MirrorDirection::Received => "received",
                MirrorDirection::Sent => "sent",
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
    pub fn set_mirrors(&self, entries: Vec<MirrorConfig>) {
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
        let is_owned = |known: &[Known], port: &str| known.iter().any(|one| one.owns(port));
        let known: Vec<Known> = known.collect();
        let numbers = (0u16..).zip(&state.ports);
        let reserved = numbers.filter_map(|(number, port)| {
            let name = &port.as_ref()?.options.name;
            (is_owned(&known, name) && !is_owned(&before, name)).then_some(number)
        });
        let reserved: Vec<u16> = reserved.collect();
        state.mirrors.0 = known;
        drop(self.publish(&mut state, Vec::new()));
        // What was learned there would still be sent there.
        for number in reserved {
            self.forget(&state, number);
        }
    }
}
