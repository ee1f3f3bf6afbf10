//! Who suffers: two guests, or an interface, on a switch of which other ports are the attacker's.

use super::FairnessOptions;
use super::attacker::Attack;
use crate::backend::crosspoint::{Setup, Started, start_as};
use crate::error::BenchError;
use crate::load::{Load, Offered};
use crate::nic::load::{Flow, NicLoad};
use crate::nic::{Path, wire};
use crate::options::{Direction, beside_this_one};
use crate::placement::Placement;
use crate::suite::fleet::{Fleet, Manner};
use crate::suite::scenario::Scenario;
use crate::threads::Thread;
use crate::watch::Crew;
use clap::ValueEnum;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::path::PathBuf;

/// Frames of 64 bytes with their check sequence, on the ring.
const FRAME_LEN: usize = 60;
/// The VLANs of victims and of attackers: what an attacker floods does not fill a victim's ring.
const VLANS: [u16; 2] = [8, 7];

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// Two guests that exchange frames.
    Guest,
    /// An interface whose frames go to a guest.
    Nic,
}

impl Victim {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Nic => "nic",
        }
    }

    /// Guest ports that it has.
    fn guests(self) -> usize {
        match self {
            Self::Guest => 2,
            Self::Nic => 1,
        }
    }

    /// Its part of a worker, while one port attacks and all weights are 1: 0 to 1. An interface at a fixed rate wants
    /// less than its own.
    pub fn fair_part(self, direction: Direction) -> Option<f64> {
        match (self, direction) {
            (Self::Nic, _) => None,
            (Self::Guest, Direction::OneWay) => Some(1.0 / 2.0),
            (Self::Guest, Direction::Both) => Some(2.0 / 3.0),
        }
    }

    /// A switch with ports for the victim and for `attack`.
    pub fn start_switch(
        self,
        options: &FairnessOptions,
        attack: &Attack,
    ) -> Result<Started, BenchError> {
        let [own, others] = VLANS.map(|id| match attack.is_beside_victim {
            true => String::new(),
            false => format!("vlan = {{ access = {id} }}\n"),
        });
        let pairs = |pairs: u16| format!("queue_pairs = {pairs}\n{others}");
        let mut lines = vec![own.clone(); self.guests()];
        lines.push(pairs(attack.queue_pairs));
        lines.extend((0..attack.sinks).map(|_| pairs(attack.sink_queue_pairs)));
        let interfaces = match self {
            Self::Guest => Vec::new(),
            Self::Nic => {
                wire::lay()?;
                vec![wire::NEAR[1].to_owned()]
            }
        };
        let setup = Setup {
            guests: lines.len(),
            guest_lines: lines,
            interfaces,
            interface_lines: own,
            ..Setup::busy(options.switch_core)
        };
        start_as(&beside_this_one(options.switch.as_ref()), &setup)
    }

    /// The ports of `started` that are the attacker's.
    pub fn attackers_sockets(self, started: &Started) -> &[PathBuf] {
        &started.sockets[self.guests()..]
    }

    /// Connects what it is. Call on the generator's core.
    pub fn connect(
        self,
        options: &FairnessOptions,
        started: &Started,
        clock: Clock,
    ) -> Result<Connected, BenchError> {
        let crew = |generators| Crew {
            near_ns: options.near_ns,
            far_ns: options.far_ns,
            realtime: options.realtime,
            clock,
            metrics: Some(started.metrics),
            generators,
            workers: vec![(options.switch_core, started.backend.worker)],
        };
        match self {
            Self::Guest => {
                let fleet = connect_guests(options, started, clock)?;
                Ok(Connected {
                    crew: crew(fleet.threads()),
                    load: Box::new(fleet),
                    is_saturating: true,
                })
            }
            Self::Nic => {
                let flow = Flow {
                    path: Path::NicToGuest,
                    len: Some(FRAME_LEN),
                    flows: 1,
                };
                Ok(Connected {
                    load: Box::new(NicLoad::connect(flow, &started.sockets[0])?),
                    crew: crew(vec![(options.generator_core, Thread::current())]),
                    is_saturating: false,
                })
            }
        }
    }
}

fn connect_guests(
    options: &FairnessOptions,
    started: &Started,
    clock: Clock,
) -> Result<Fleet, BenchError> {
    let scenario = match options.direction {
        Direction::OneWay => "pair-64",
        Direction::Both => "both-64",
    };
    let scenario: Scenario = scenario.parse().map_err(BenchError::Usage)?;
    let manner = Manner {
        cores: vec![options.generator_core],
        burst: 32,
        backlog: 1000,
        rx_buffer: 2048,
        huge_pages: false,
    };
    Fleet::connect(&started.sockets, &scenario, &manner, clock)
}

/// A victim, connected.
pub struct Connected {
    load: Box<dyn Load>,
    crew: Crew,
    /// It can take all that its share gives.
    is_saturating: bool,
}

/// How it fared for a while.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Millions of frames per second that arrived: of as many as the switch took, or of those at the fixed rate.
    pub mpps: f64,
    /// At the fixed rate: frames that were due.
    pub due: u64,
    /// Of these, those that arrived.
    pub arrived: u64,
    /// At the fixed rate: half of those that arrived took less, microseconds; none where none arrived.
    pub p50_us: Option<f64>,
    /// 99 in 100 took less.
    pub p99_us: Option<f64>,
    /// How far apart the cores were, in all trials of it.
    pub placement: Placement,
    /// Percent of the time that the generator waited for its core, at most.
    pub generator_wait: Option<f64>,
    /// The same of the worker.
    pub switch_wait: Option<f64>,
}

impl Phase {
    /// Part of the frames due that did not arrive: 0 to 1.
    pub fn loss(&self) -> f64 {
        self.due.saturating_sub(self.arrived) as f64 / self.due.max(1) as f64
    }
}

impl Connected {
    /// Watches it for a while.
    pub fn observe(&mut self, options: &FairnessOptions) -> Result<Phase, BenchError> {
        let Self { load, crew, .. } = self;
        let time = options.time();
        let saturated = match self.is_saturating {
            true => Some(crew.observe(|| load.offer(None, time))?),
            false => None,
        };
        let (offered, observed) = crew.observe(|| load.offer(Some(options.rate as f64), time))?;
        let us = |part| us(&offered, part);
        let (mpps, before) = match &saturated {
            Some((offered, observed)) => (offered.mpps(), *observed),
            None => (offered.mpps(), observed),
        };
        let longer = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        Ok(Phase {
            mpps,
            due: offered.due,
            arrived: offered.arrived.min(offered.due),
            p50_us: us(0.5),
            p99_us: us(0.99),
            placement: match before.placement == observed.placement {
                true => observed.placement,
                false => Placement::Mixed,
            },
            generator_wait: longer(before.generator_wait, observed.generator_wait),
            switch_wait: longer(before.switch_wait, observed.switch_wait),
        })
    }
}

fn us(offered: &Offered, part: f64) -> Option<f64> {
    let latency = &offered.latency_ns;
    (!latency.is_empty()).then(|| latency.value_at_quantile(part) as f64 / 1000.0)
}
