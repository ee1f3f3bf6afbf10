//! Health as the servers report it.

use std::time::{Duration, Instant};

use crosspoint_model::health::Health;

use super::Source;

/// How long to wait for a change of the port table before the ports are reported as unknown.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause between two attempts.
const CHANGE_PAUSE: Duration = Duration::from_millis(10);

/// Reads the health; while the ports are being changed, retries for a limited time.
pub(crate) async fn look(source: &dyn Source) -> Health {
    let deadline = Instant::now() + CHANGE_TIME_MAX;
    loop {
        let health = source.health();
        // A switch that is not live already reports its reason, and the change waits for that.
        if !health.changing || !health.live || Instant::now() >= deadline {
            return health;
        }
        tokio::time::sleep(CHANGE_PAUSE).await;
    }
}
