//! Answers `{"snapshot":{}}`.

use crosspoint_model::status::StatusReport;

use super::Source;

/// Everything known at this moment.
pub(super) fn of(source: &dyn Source) -> StatusReport {
    let status = source.status();
    // Read after the counters, which may have waited for a change of a port.
    StatusReport {
        daemon: source.daemon(),
        status,
        movers: source.movers(),
    }
}
