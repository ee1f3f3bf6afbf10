//! Checks ports against their service level objectives.
//!
//! Completion times are counted since the daemon started. The last minute is the difference to the counts of a minute
//! ago, of which housekeeping keeps a copy every [`STEP`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crosspoint_config::Slo;
use crosspoint_engine::observe::Latencies;
use crosspoint_engine::observe::counters::PortCounters;
use crosspoint_frame::Clock;
use crosspoint_model::status::{ObjectiveStatus, SloStatus};

use super::Dataplane;

/// The time over which objectives are measured. The measured time is up to one step longer, once that much has passed.
const WINDOW: Duration = Duration::from_secs(60);
/// Interval between two copies of the counts.
const STEP: Duration = Duration::from_secs(10);

/// A port's objectives, and its queues' counts at the last steps, oldest first; at least one step.
pub(super) struct Objectives {
    slo: Slo,
    steps: VecDeque<Step>,
}

#[derive(Clone)]
struct Step {
    at: Instant,
    counted: Arc<Latencies>,
}

/// The time since the oldest step.
pub(super) struct Window {
    slo: Slo,
    since: Step,
}

impl Objectives {
    /// For a port with these counts at `at`.
    fn new(slo: Slo, at: Instant, counted: Latencies) -> Objectives {
        let counted = Arc::new(counted);
        Objectives {
            slo,
            steps: VecDeque::from([Step { at, counted }]),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let last = self.steps.back();
        last.is_none_or(|step| now.saturating_duration_since(step.at) >= STEP)
    }

    /// Adds a step, and forgets steps that are no longer needed.
    fn note(&mut self, now: Instant, counted: Latencies) {
        let counted = Arc::new(counted);
        self.steps.push_back(Step { at: now, counted });
        let is_old = |step: &Step| now.saturating_duration_since(step.at) >= WINDOW;
        while self.steps.get(1).is_some_and(is_old) {
            self.steps.pop_front();
        }
    }

    /// The window that the current measurement covers.
    pub fn window(&self) -> Window {
        Window {
            slo: self.slo,
            since: self.steps[0].clone(),
        }
    }
}

impl Window {
    /// How well the objectives are met, given the counts at this moment.
    pub fn status(&self, counted: &Latencies, clock: &Clock) -> SloStatus {
        let since = counted.since(&self.since.counted);
        let status = |objective: Option<Duration>, share| {
            let objective_ns = objective?.as_nanos() as u64;
            let measured = since.quantile(share);
            Some(ObjectiveStatus {
                objective_ns,
                measured_ns: measured.map(|cycles| clock.ns(cycles) as u64),
            })
        };
        SloStatus {
            window_s: self.since.at.elapsed().as_secs_f64(),
            completions: since.count(),
            completion_p50: status(self.slo.completion_p50, 0.5),
            completion_p99: status(self.slo.completion_p99, 0.99),
        }
    }
}

fn counted(counters: &PortCounters) -> Latencies {
    let all = (0..counters.queues()).flat_map(|queue| counters.of_queue(queue));
    Latencies::of(all.map(|counters| &counters.completion))
}

impl Dataplane {
    /// Replaces the objectives of port `number`. Measurements so far are kept.
    pub fn set_slo(&self, number: u16, slo: Option<Slo>) {
        let mut state = self.lock();
        let Some(Some(port)) = state.ports.get_mut(usize::from(number)) else {
            return;
        };
        port.objectives = match (slo, port.objectives.take()) {
            (None, _) => None,
            (Some(slo), Some(before)) => Some(Objectives { slo, ..before }),
            (Some(slo), None) => {
                let counted = counted(&port.view.counters);
                Some(Objectives::new(slo, Instant::now(), counted))
            }
        };
    }

    /// Takes the steps that are due. Counters are read without the lock.
    pub(super) fn note_objectives(&self) {
        let now = Instant::now();
        let due = |(number, port): (usize, &Option<super::Port>)| {
            let port = port.as_ref()?;
            let is_due = port.objectives.as_ref()?.is_due(now);
            is_due.then(|| (number, port.view.counters.clone()))
        };
        let due: Vec<_> = {
            let state = self.lock();
            state.ports.iter().enumerate().filter_map(due).collect()
        };
        for (number, counters) in due {
            let counted = counted(&counters);
            let mut state = self.lock();
            // Another port may have the number by now.
            if let Some(Some(port)) = state.ports.get_mut(number)
                && Arc::ptr_eq(&port.view.counters, &counters)
                && let Some(objectives) = &mut port.objectives
            {
                objectives.note(now, counted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crosspoint_engine::observe::Latency;

    use super::*;

    const SLO: Slo = Slo {
        completion_p50: None,
        completion_p99: Some(Duration::from_micros(20)),
    };

    fn p99(objectives: &Objectives, latency: &Latency, clock: &Clock) -> ObjectiveStatus {
        let status = objectives.window().status(&Latencies::of([latency]), clock);
        status.completion_p99.expect("there is this objective")
    }

    #[test]
    fn an_objective_is_met_missed_and_met_again_when_a_minute_has_passed() {
        let (clock, latency, start) = (Clock::calibrate(), Latency::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let record = |us, n| latency.record(clock.cycles(Duration::from_micros(us)), n);
        record(1_000_000, 1_000_000);
        let mut objectives = Objectives::new(SLO, start, Latencies::of([&latency]));
        let met = |objectives: &Objectives| p99(objectives, &latency, &clock).is_met();
        assert_eq!(met(&objectives), None, "what was before does not count");
        record(10, 1000);
        assert_eq!(met(&objectives), Some(true));
        // One in a hundred may take longer, but not two.
        record(100, 10);
        assert_eq!(met(&objectives), Some(true));
        record(100, 10);
        assert_eq!(met(&objectives), Some(false));
        let measured = p99(&objectives, &latency, &clock).measured_ns;
        assert!(
            measured.is_some_and(|ns| ns.abs_diff(100_000) <= 100_000 / 8),
            "{measured:?}"
        );
        for second in (10..70).step_by(10) {
            objectives.note(at(second), Latencies::of([&latency]));
            assert_eq!(met(&objectives), Some(false), "{second} s later");
        }
        objectives.note(at(70), Latencies::of([&latency]));
        assert_eq!(met(&objectives), None, "a minute without a frame");
        record(10, 1);
        assert_eq!(met(&objectives), Some(true));
        assert!(
            objectives.steps.len() <= 8,
            "{} steps",
            objectives.steps.len()
        );
    }

    #[test]
    fn steps_are_due_when_the_last_is_old() {
        let start = Instant::now();
        let objectives = Objectives::new(SLO, start, Latencies::default());
        assert!(!objectives.is_due(start + STEP - Duration::from_millis(1)));
        assert!(objectives.is_due(start + STEP));
    }
}
