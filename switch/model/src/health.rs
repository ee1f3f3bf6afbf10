//! Health and readiness of the switch, for orchestrators, service managers and operators.
//!
//! - *Live*: every worker makes progress, or sleeps because there is no work. A worker without progress for 100 ms is
//!   stalled, and its ports pass no frames. A short loss of a core is reported too, so a probe should fail several
//!   times before it causes a restart. The threads that control the switch also make progress: none is busy with the
//!   same thing, or waits for the port table, for 20 s.
//! - *Ready*: live, and every port with `required = true` is up, except those that the operator has disabled. A port
//!   that is blocked because of a loop through another port counts as up, since what is behind it is reached through that
//!   port. A port that is blocked because its own probes came back does not.
//! - *Warnings*: loops. The switch works.
//!
//! `GET /healthz` and `GET /readyz` of the [metrics server](crosspoint_daemon::metrics) answer 200 or 503, with
//! [`Health::live_text`] or [`Health::ready_text`]; `crosspoint health` asks the [control socket](crosspoint_daemon::api); the
//! [watchdog](crosspoint_daemon::service::notify) is notified only while the switch is live.

use serde::{Deserialize, Serialize};

use crate::status::{ShownState, Status};

/// The most reasons that are listed.
const REASONS_MAX: usize = 16;
/// The longest reason, characters.
const REASON_CHARS_MAX: usize = 300;

/// Health of the switch. JSON keys may be added; none is renamed or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether every worker makes progress.
    pub live: bool,
    /// Whether it is live, and every required port is up.
    pub ready: bool,
    /// Number of workers.
    pub workers: usize,
    /// Number of ports.
    pub ports: usize,
    /// Number of ports that are up.
    pub ports_up: usize,
    /// Number of ports that the operator has disabled. They do not count as required.
    #[serde(default)]
    pub ports_disabled: usize,
    /// Number of required ports.
    pub required: usize,
    /// Number of required ports that are up.
    pub required_up: usize,
    /// Why it is not live, as text: at most 17 lines.
    pub not_live: Vec<String>,
    /// Why it is not ready, besides the reasons in `not_live`.
    pub not_ready: Vec<String>,
    /// Problems that affect neither: loops. At most 17 lines.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Whether the ports could not be read because of a change; then it is not ready, and nothing is known about ports.
    pub changing: bool,
}

/// The part of a worker's state that matters for health.
pub struct WorkerLook {
    /// Its number.
    pub worker: usize,
    /// The core that it is pinned to.
    pub core: usize,
    /// Whether it is stalled.
    pub stalled: bool,
}

/// The part of a port's state that matters for health.
pub struct PortLook<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its state.
    pub state: ShownState,
    /// Why it is not up, as text.
    pub detail: &'a str,
    /// Whether the switch is ready only while it is up.
    pub required: bool,
    /// The other end of the loop that it is blocked for; its own name if its own probe came back to it.
    pub blocked_with: Option<&'a str>,
    /// Whether a loop goes through it.
    pub looping: bool,
}

impl Health {
    /// Health of these workers and ports; `None` if the ports could not be read.
    pub fn new<'a>(
        workers: impl Iterator<Item = WorkerLook>,
        ports: Option<impl Iterator<Item = PortLook<'a>>>,
    ) -> Health {
        let mut health = Health {
            changing: ports.is_none(),
            ..Health::default()
        };
        let (mut not_live, mut not_ready) = (Reasons::default(), Reasons::default());
        let mut warnings = Reasons::default();
        for WorkerLook {
            worker,
            core,
            stalled,
        } in workers
        {
            health.workers += 1;
            if stalled {
                not_live.add(|| {
                    format!(
                        "worker-{worker} (core {core}) makes no progress, so its ports forward nothing"
                    )
                });
            }
        }
        for port in ports.into_iter().flatten() {
            let is_blocked = port.state == ShownState::Blocked;
            // What is behind it is reached through the loop's other port, if there is one.
            let is_reached = is_blocked && port.blocked_with != Some(port.name);
            let up = port.state == ShownState::Up || is_reached;
            if is_blocked {
                warnings.add(|| format!("warning: port {} is blocked: {}", port.name, port.detail));
            } else if port.looping {
                warnings.add(|| format!("warning: a loop goes through port {}", port.name));
            }
            let is_required = port.required && port.state != ShownState::Disabled;
            health.ports += 1;
            health.ports_disabled += usize::from(port.state == ShownState::Disabled);
            health.ports_up += usize::from(up);
            health.required += usize::from(is_required);
            health.required_up += usize::from(is_required && up);
            if is_required && !up {
                let PortLook {
                    name,
                    state,
                    detail,
                    ..
                } = port;
                not_ready.add(|| match detail {
                    "" => format!("port {name} is {state}"),
                    _ => format!("port {name} is {state}: {detail}"),
                });
            }
        }
        if health.changing {
            not_ready
                .add(|| "the ports are being changed, so their states cannot be read".to_owned());
        }
        (health.not_live, health.not_ready) = (not_live.finish(), not_ready.finish());
        health.warnings = warnings.finish();
        health.live = health.not_live.is_empty();
        health.ready = health.live && health.not_ready.is_empty();
        health
    }

    /// Adds reasons for which it is not live.
    pub fn but(mut self, stuck: Vec<String>) -> Health {
        if !stuck.is_empty() {
            (self.live, self.ready) = (false, false);
            self.not_live.extend(stuck.into_iter().take(REASONS_MAX));
        }
        self
    }

    /// Health according to a status.
    pub fn of(status: &Status) -> Health {
        let workers = status.workers.iter().map(|worker| WorkerLook {
            worker: worker.worker,
            core: worker.core,
            stalled: worker.stalled,
        });
        let ports = status.ports.iter().map(|port| PortLook {
            name: &port.name,
            state: port.state,
            detail: &port.detail,
            required: port.required,
            blocked_with: port.blocked_with.as_deref(),
            looping: port.looping,
        });
        Health::new(workers, Some(ports))
    }

    /// Whether it is live and why not: a line, and one for each reason.
    pub fn live_text(&self) -> String {
        let head = match self.live {
            true => format!("live: {} worker(s)", self.workers),
            false => "not live".to_owned(),
        };
        lines(head, self.not_live.iter().chain(&self.warnings))
    }

    /// Whether it is ready and why not: a line, and one for each reason.
    pub fn ready_text(&self) -> String {
        let word = if self.ready { "ready" } else { "not ready" };
        let head = match self.changing {
            true => word.to_owned(),
            false => format!("{word}: {}", self.summary()),
        };
        let reasons = self.not_live.iter().chain(&self.not_ready);
        lines(head, reasons.chain(&self.warnings))
    }

    /// A summary of ports and workers in a few words.
    pub fn summary(&self) -> String {
        let Health {
            workers,
            ports,
            ports_up,
            required,
            required_up,
            ports_disabled,
            ..
        } = self;
        let of_required = match required {
            0 => String::new(),
            _ => format!(" ({required_up} of {required} required)"),
        };
        let of_disabled = match ports_disabled {
            0 => String::new(),
            _ => format!(", {ports_disabled} disabled"),
        };
        format!("{ports_up} of {ports} ports up{of_required}{of_disabled}, {workers} worker(s)")
    }
}

fn lines<'a>(head: String, reasons: impl Iterator<Item = &'a String>) -> String {
    reasons.fold(head + "\n", |text, reason| text + reason + "\n")
}

/// A list of reasons, limited in number and length.
#[derive(Default)]
struct Reasons {
    listed: Vec<String>,
    unlisted: usize,
}

impl Reasons {
    fn add(&mut self, reason: impl FnOnce() -> String) {
        if self.listed.len() == REASONS_MAX {
            self.unlisted += 1;
            return;
        }
        // Some of the text comes from a guest or the kernel.
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let text = reason();
        let text = text.chars().map(shown).take(REASON_CHARS_MAX);
        self.listed.push(text.collect());
    }

    fn finish(mut self) -> Vec<String> {
        if self.unlisted > 0 {
            self.listed.push(format!("and {} more", self.unlisted));
        }
        self.listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(worker: usize, stalled: bool) -> WorkerLook {
        WorkerLook {
            worker,
            core: worker + 2,
            stalled,
        }
    }

    fn port<'a>(name: &'a str, state: ShownState, detail: &'a str, required: bool) -> PortLook<'a> {
        PortLook {
            name,
            state,
            detail,
            required,
            blocked_with: None,
            looping: false,
        }
    }

    #[test]
    fn ports_that_are_not_required_are_only_counted() {
        let ports = [
            port("up0", ShownState::Up, "", true),
            port("web", ShownState::Down, "nobody", false),
        ];
        let health = Health::new([worker(0, false)].into_iter(), Some(ports.into_iter()));
        assert!(health.live && health.ready);
        assert_eq!(health.live_text(), "live: 1 worker(s)\n");
        assert_eq!(
            health.ready_text(),
            "ready: 1 of 2 ports up (1 of 1 required), 1 worker(s)\n"
        );
    }

    #[test]
    fn a_disabled_port_is_not_required_and_does_not_count_as_broken() {
        let ports = [
            port("up0", ShownState::Up, "", true),
            port("up1", ShownState::Disabled, "by the operator", true),
        ];
        let health = Health::new([worker(0, false)].into_iter(), Some(ports.into_iter()));
        assert!(health.live && health.ready);
        assert_eq!(
            health.ready_text(),
            "ready: 1 of 2 ports up (1 of 1 required), 1 disabled, 1 worker(s)\n"
        );
    }

    #[test]
    fn a_required_port_that_is_not_up_and_a_worker_that_stalls_are_named() {
        let ports = [
            port("up0", ShownState::Down, "waiting for\ninterface `x`", true),
            port("web", ShownState::Connected, "", true),
        ];
        let workers = [worker(0, false), worker(1, true)];
        let health = Health::new(workers.into_iter(), Some(ports.into_iter()));
        assert_eq!(
            health.live_text(),
            "not live\nworker-1 (core 3) makes no progress, so its ports forward nothing\n"
        );
        assert_eq!(
            health.ready_text(),
            "not ready: 0 of 2 ports up (0 of 2 required), 2 worker(s)\n\
             worker-1 (core 3) makes no progress, so its ports forward nothing\n\
             port up0 is down: waiting for interface `x`\nport web is connected\n"
        );
        let json = serde_json::to_string(&health).expect("JSON");
        assert_eq!(serde_json::from_str::<Health>(&json).ok(), Some(health));
    }

    #[test]
    fn loops_are_warned_of_and_keep_it_from_nothing() {
        let ports = [
            PortLook {
                looping: true,
                ..port("up0", ShownState::Up, "", true)
            },
            PortLook {
                looping: true,
                ..port(
                    "up1",
                    ShownState::Blocked,
                    "a loop through it and port up0",
                    true,
                )
            },
        ];
        let health = Health::new([worker(0, false)].into_iter(), Some(ports.into_iter()));
        assert!(health.live && health.ready);
        let warnings = "warning: a loop goes through port up0\n\
                        warning: port up1 is blocked: a loop through it and port up0\n";
        assert_eq!(health.live_text(), format!("live: 1 worker(s)\n{warnings}"));
        assert!(health.ready_text().ends_with(warnings));
    }

    #[test]
    fn a_port_whose_own_probes_came_back_is_not_up() {
        let ports = [PortLook {
            blocked_with: Some("up0"),
            ..port("up0", ShownState::Blocked, "a loop behind it", true)
        }];
        let health = Health::new([worker(0, false)].into_iter(), Some(ports.into_iter()));
        assert!(health.live && !health.ready);
        assert_eq!(
            health.ready_text(),
            "not ready: 0 of 1 ports up (0 of 1 required), 1 worker(s)\n\
             port up0 is blocked: a loop behind it\n\
             warning: port up0 is blocked: a loop behind it\n"
        );
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_ready_and_still_live() {
        let health = Health::new([worker(0, false)].into_iter(), None::<std::iter::Empty<_>>);
        assert!(health.live && !health.ready && health.changing);
        assert!(health.ready_text().contains("being changed"));
    }

    #[test]
    fn the_text_is_short_however_much_is_wrong() {
        let detail = "x".repeat(5000);
        let ports = (0..1000).map(|_| port("up0", ShownState::Down, &detail, true));
        let workers = (0..64).map(|number| worker(number, true));
        let text = Health::new(workers, Some(ports)).ready_text();
        assert!(text.len() < 16 << 10, "{}", text.len());
        assert!(text.contains("and 48 more\n") && text.ends_with("and 984 more\n"));
    }
}
