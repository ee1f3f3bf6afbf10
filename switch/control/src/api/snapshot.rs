//! Answers `{"snapshot":{}}`.

use super::Source;
use crate::status::Snapshot;

/// Everything known at this moment.
pub(super) fn of(source: &dyn Source) -> Snapshot {
    let status = source.status();
    // Read after the counters, which may have waited for a change of a port.
    Snapshot {
        daemon: source.daemon(),
        status,
        movers: source.movers(),
    }
}
