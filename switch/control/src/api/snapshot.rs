//! `{"snapshot":{}}`.

use super::Source;
use crate::status::Snapshot;

/// What there is to know at this moment.
pub(super) fn of(source: &dyn Source) -> Snapshot {
    let status = source.status();
    // After the counters: they may have had to wait for a port that changes.
    Snapshot {
        daemon: source.daemon(),
        status,
        movers: source.movers(),
    }
}
