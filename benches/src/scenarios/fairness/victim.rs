//! The victims: pairs of guests, or an interface, on a switch whose other ports belong to the attacker.

use super::attacker::Attack;
use super::options::{FairnessOptions, Victim};
use crate::error::BenchError;
use crate::lab::crosspoint::{self, Crosspoint, Setup};
use crate::lab::metrics::{get, sum};
use crate::lab::placement::Placement;
use crate::lab::threads::Thread;
use crate::lab::watch::Crew;
use crate::lab::wire;
use crate::load::Load;
use crate::load::guest_set::{GuestSet, GuestSetOptions};
use crate::load::nic::{Flow, NicLoad, Path};
use crate::load::scenario::Scenario;
use crate::load::testpmd::{Testpmd, TestpmdOptions};
use crate::options::Direction;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Length on the ring of frames of 64 bytes with their check sequence.
const FRAME_LEN: usize = 60;
const FRAMES: &str = "crosspoint_queue_packets_total";
/// The VLANs of victims and of attackers: frames that an attacker floods do not fill a victim's ring.
const VLANS: [u16; 2] = [8, 7];

impl Victim {
    /// Number of its guest ports.
    fn guests(self, options: &FairnessOptions) -> usize {
        match self {
            Self::Guest => options.guests.into(),
            Self::Nic => 1,
            Self::Dpdk => 2,
        }
    }

    /// Its fair part of a worker, while one port attacks and all weights are 1: 0 to 1. An interface at a fixed rate needs
    /// less than its part.
    pub fn fair_part(self, options: &FairnessOptions) -> Option<f64> {
        let guests = self.guests(options);
        let senders = match (self, options.direction()) {
            (Self::Nic, _) => return None,
            (Self::Guest, Direction::OneWay) => guests / 2,
            (Self::Guest, Direction::Both) | (Self::Dpdk, _) => guests,
        };
        Some(senders as f64 / (senders + 1) as f64)
    }

    /// A switch with ports for the victim and for `attack`.
    pub fn start_switch(
        self,
        options: &FairnessOptions,
        attack: &Attack,
    ) -> Result<Crosspoint, BenchError> {
        let [own, others] = VLANS.map(|id| match attack.is_beside_victim {
            true => String::new(),
            false => format!("vlan = {{ access = {id} }}\n"),
        });
        let pairs = |pairs: u16| format!("queue_pairs = {pairs}\n{others}");
        let mut lines = vec![own.clone(); self.guests(options)];
        lines.push(pairs(attack.queue_pairs));
        lines.extend((0..attack.sinks).map(|_| pairs(attack.sink_queue_pairs)));
        let interfaces = match self {
            Self::Guest | Self::Dpdk => Vec::new(),
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
        crosspoint::start(&crosspoint::binary(options.switch.as_ref()), &setup)
    }

    /// The sockets of `started` that belong to the attacker.
    pub fn attackers_sockets<'s>(
        self,
        options: &FairnessOptions,
        started: &'s Crosspoint,
    ) -> &'s [PathBuf] {
        &started.ports.sockets[self.guests(options)..]
    }

    /// Connects the victim. Call on the generator's core.
    pub fn connect(
        self,
        options: &FairnessOptions,
        started: &Crosspoint,
        clock: Clock,
    ) -> Result<Connected, BenchError> {
        let crew = |generators| Crew {
            bounds: options.bounds(),
            realtime: options.realtime,
            clock,
            metrics: Some(started.metrics),
            generators,
            workers: vec![(options.switch_core, Some(started.worker))],
        };
        match self {
            Self::Guest => {
                let scenario = scenario(options)?;
                let settings = GuestSetOptions::on(options.generator_core);
                let guests = GuestSet::connect(&started.ports, &scenario, &settings, clock)?;
                Ok(Connected {
                    crew: crew(guests.threads()),
                    load: Box::new(guests),
                    is_saturating: true,
                    is_paced: true,
                    equals: Equals::of(&scenario, started),
                })
            }
            Self::Nic => {
                let flow = Flow {
                    path: Path::NicToGuest,
                    len: Some(FRAME_LEN),
                    flows: 1,
                };
                Ok(Connected {
                    load: Box::new(NicLoad::connect(flow, &started.ports)?),
                    crew: crew(vec![(options.generator_core, Thread::current())]),
                    is_saturating: false,
                    is_paced: true,
                    equals: Equals::default(),
                })
            }
            Self::Dpdk => {
                let testpmd = TestpmdOptions {
                    core: options.generator_core,
                    size: 64,
                    flows: 1,
                    ring: 256,
                    mergeable: true,
                    huge_pages: false,
                    realtime: false,
                };
                let guests = Testpmd::connect(&started.ports.sockets, &testpmd)?;
                Ok(Connected {
                    crew: crew(vec![(options.generator_core, guests.worker)]),
                    load: Box::new(guests),
                    is_saturating: true,
                    is_paced: false,
                    equals: Equals::default(),
                })
            }
        }
    }
}

/// The guests' scenario.
fn scenario(options: &FairnessOptions) -> Result<Scenario, BenchError> {
    let name = match (options.guests, options.direction()) {
        (2, Direction::OneWay) => "pair-64".to_owned(),
        (2, Direction::Both) => "both-64".to_owned(),
        (guests, _) => format!("pairs{}-64", guests / 2),
    };
    name.parse().map_err(BenchError::Usage)
}

/// A connected victim.
pub struct Connected {
    load: Box<dyn Load>,
    crew: Crew,
    /// Whether it can use all of its share.
    is_saturating: bool,
    /// Whether it can send at a given rate, and measures times.
    is_paced: bool,
    equals: Equals,
}

/// Guests that send the same amount, and so should get the same.
#[derive(Default)]
struct Equals {
    /// Names of their ports.
    ports: Vec<String>,
    metrics: Option<SocketAddr>,
}

impl Equals {
    fn of(scenario: &Scenario, started: &Crosspoint) -> Self {
        let senders = scenario.roles(1).into_iter().filter(|role| role.sends);
        let name = |socket: &PathBuf| Some(socket.file_stem()?.to_str()?.to_owned());
        Self {
            ports: senders
                .filter_map(|role| started.ports.sockets.get(role.port).and_then(name))
                .collect(),
            metrics: Some(started.metrics),
        }
    }

    /// Number of frames of each so far.
    fn frames(&self) -> Result<Vec<f64>, BenchError> {
        let Some(metrics) = self.metrics else {
            return Ok(Vec::new());
        };
        let text = get(metrics, "/metrics").map_err(BenchError::io("scrape"))?;
        let of = |port: &String| sum(&text, FRAMES, &format!("port=\"{port}\""));
        Ok(self.ports.iter().map(of).collect())
    }
}

/// Jain's index of what each got: 1 if all got the same, 1 / n if one got all. `None` for fewer than two, and if all got
/// nothing.
fn jain(parts: &[f64]) -> Option<f64> {
    let (sum, squares) = parts.iter().fold((0.0, 0.0), |(sum, squares), part| {
        (sum + part, squares + part * part)
    });
    (parts.len() > 1 && squares > 0.0).then(|| sum * sum / (parts.len() as f64 * squares))
}

/// A victim's results over some time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Millions of frames per second that arrived, at full load or at the fixed rate.
    pub mpps: f64,
    /// At the fixed rate: frames that were due.
    pub due: u64,
    /// Of these, those that arrived.
    pub arrived: u64,
    /// At the fixed rate: the median time of those that arrived, microseconds; none if none arrived.
    pub p50_us: Option<f64>,
    /// 99 in 100 took less.
    pub p99_us: Option<f64>,
    /// Jain's index of the sending guests' frames at full load, if there are several.
    pub jain: Option<f64>,
    /// Distance of the cores, in all its trials.
    pub placement: Placement,
    /// Percent of the time that the generator waited for its core, the maximum.
    pub generator_wait: Option<f64>,
    /// The same for the worker.
    pub switch_wait: Option<f64>,
}

impl Phase {
    /// Part of the frames due that did not arrive: 0 to 1.
    pub fn loss(&self) -> f64 {
        self.due.saturating_sub(self.arrived) as f64 / self.due.max(1) as f64
    }
}

impl Connected {
    /// Measures the victim for some time.
    pub fn observe(&mut self, options: &FairnessOptions) -> Result<Phase, BenchError> {
        let Self { load, crew, .. } = self;
        let time = options.time();
        let before = self.equals.frames()?;
        let saturated = match self.is_saturating {
            true => Some(crew.observe(|| load.offer(None, time))?),
            false => None,
        };
        let after = self.equals.frames()?;
        let frames: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let paced = match self.is_paced {
            true => Some(crew.observe(|| load.offer(Some(options.rate as f64), time))?),
            false => None,
        };
        let (Some((first, before)), Some((offered, observed))) = (
            saturated.as_ref().or(paced.as_ref()),
            paced.as_ref().or(saturated.as_ref()),
        ) else {
            return Err(BenchError::backend("the victim", "can do nothing"));
        };
        let mpps = first.mpps();
        let longer = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        Ok(Phase {
            mpps,
            due: offered.due,
            arrived: offered.arrived.min(offered.due),
            p50_us: offered.latency_us(0.5),
            p99_us: offered.latency_us(0.99),
            jain: jain(&frames),
            placement: match before.placement == observed.placement {
                true => observed.placement,
                false => Placement::Mixed,
            },
            generator_wait: longer(before.generator_wait, observed.generator_wait),
            switch_wait: longer(before.switch_wait, observed.switch_wait),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_that_get_alike_have_an_index_of_one() {
        assert_eq!(jain(&[5.0; 7]), Some(1.0));
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!((jain(&[3.0]), jain(&[0.0, 0.0])), (None, None));
    }
}
