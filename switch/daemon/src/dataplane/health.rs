//! Health of the dataplane. The caller never blocks: the port table's lock may be held by a change that waits for the very
//! worker that is stalled.

use std::sync::TryLockError;

use crosspoint_model::health::{Health, PortLook, WorkerLook};
use crosspoint_model::status::ShownState;

use super::{Dataplane, Port, PortState};

impl Dataplane {
    /// Whether workers make progress, and required ports are up.
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
        let ports = (0..).zip(&state.ports);
        let ports: Vec<(u16, &Port, Option<String>)> = ports
            .filter_map(|(number, port)| {
                let port = port.as_ref()?;
                let is_up = port.state == PortState::Up;
                Some((number, port, is_up.then(|| port.why_blocked()).flatten()))
            })
            .collect();
        let looks = ports.iter().map(|(number, port, blocked)| PortLook {
            name: &port.options.name,
            state: match blocked {
                _ if port.options.disabled => ShownState::Disabled,
                Some(_) => ShownState::Blocked,
                None => port.state.shown(),
            },
            detail: blocked.as_ref().unwrap_or(&port.detail),
            required: port.options.required,
            blocked_with: port.blocked_with(),
            looping: state.is_looping(*number),
        });
        Health::new(workers, Some(looks))
    }
}
