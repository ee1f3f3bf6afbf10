//! Whether the fabric works. Whoever asks is never held up: the port table's lock may be held by a change that waits for
//! the very worker that does not come round.

use std::sync::TryLockError;

use super::Fabric;
use crate::health::{Health, PortLook, WorkerLook};

impl Fabric {
    /// Whether workers come round, and required ports are up.
    pub fn health(&self) -> Health {
        let cores = self.options.cores.iter().enumerate();
        let workers = cores.map(|(worker, core)| WorkerLook {
            worker,
            core: *core,
            stalled: self.watch.stalls(worker).0,
        });
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Health::new(workers, None::<std::iter::Empty<_>>);
            }
        };
        let ports = state.ports.iter().flatten().map(|port| PortLook {
            name: &port.options.name,
            state: port.state.as_str(),
            detail: &port.detail,
            required: port.options.required,
        });
        Health::new(workers, Some(ports))
    }
}
