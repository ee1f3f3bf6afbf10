//! The port and the bridge of each zone, also of zones that were removed a moment ago.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dataplane::{Dataplane, ZoneNames};

/// Time after which the zones are read again.
const AGE: Duration = Duration::from_secs(1);
/// Zones that were removed and are still known: their last connections end a few seconds later.
const REMOVED_MAX: usize = 4096;

/// What is known of zones.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_zone: HashMap<u32, ZoneNames>,
    read_at: Option<Instant>,
}

impl Names {
    /// Reads the zones that there are, if that was not done a moment ago.
    pub(super) fn refresh(&mut self, dataplane: &Dataplane) {
        if self.read_at.is_some_and(|at| at.elapsed() < AGE) {
            return;
        }
        self.read(dataplane);
    }

    fn read(&mut self, dataplane: &Dataplane) {
        self.read_at = Some(Instant::now());
        let now = dataplane.zone_names();
        if self.by_zone.len() > now.len() + REMOVED_MAX {
            self.by_zone.clear();
        }
        self.by_zone.extend(now);
    }

    /// The port and the bridge of a zone; no names if it is not known.
    pub(super) fn of(&mut self, zone: u32, dataplane: &Dataplane) -> ZoneNames {
        if !self.by_zone.contains_key(&zone) {
            self.read(dataplane);
            // A zone without a name: so that it is not asked for again.
            let none = || (Arc::from(""), Arc::from(""));
            self.by_zone.entry(zone).or_insert_with(none);
        }
        let names = self.by_zone.get(&zone).cloned();
        names.unwrap_or_else(|| (Arc::from(""), Arc::from("")))
    }
}
