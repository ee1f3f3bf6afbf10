//! The victims: pairs of guests, or an interface, on a switch whose other ports belong to the attacker.

use super::attacker::Attack;
use super::options::{FairnessOptions, Victim};
use crate::error::BenchError;
use crate::lab::metrics::{get, sum};
use crate::lab::{Crew, Crosspoint, Placement, Setup, Thread, wire};
use crate::load::{Flow, GuestSet, GuestSetOptions, Load, NicLoad, Path, Scenario, Testpmd};
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
        let senders = match (self, self.guests(options)) {
            (Self::Nic, _) => return None,
            (_, 2) => 2,
            (_, guests) => guests / 2,
        };
        Some(senders as f64 / (senders + 1) as f64)
    }

    /// A switch with ports for the victim and for `attack`.
    pub fn setup(self, options: &FairnessOptions, attack: &Attack) -> Result<Setup, BenchError> {
        let [own, others] = VLANS.map(|id| match attack.is_beside_victim {
            true => String::new(),
            false => format!("vlan = {{ access = {id} }}\n"),
        });
        let pairs = |pairs: u16| format!("queue_pairs = {pairs}\n{others}");
        let mut lines = vec![own.clone(); self.guests(options)];
        lines.push(pairs(attack.queue_pairs));
        lines.extend((0..attack.sinks).map(|_| pairs(attack.sink_queue_pairs)));
        let mut setup = Setup {
            guests: lines.len(),
            guest_lines: lines,
            ..Setup::busy(options.cores.switch_core)
        };
        if self == Self::Nic {
            wire::lay()?;
            setup.interfaces = vec![wire::NEAR[1].to_owned()];
            setup.interface_lines = own;
        }
        Ok(setup)
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
        let core = options.cores.generator_core;
        let mut equals = Equals::default();
        let (load, generators): (Box<dyn Load>, _) = match self {
            Self::Guest => {
                let name = match options.guests {
                    2 => "both-64".to_owned(),
                    guests => format!("pairs{}-64", guests / 2),
                };
                let scenario: Scenario = name.parse().map_err(BenchError::Usage)?;
                let settings = GuestSetOptions::on(core);
                let guests = GuestSet::connect(&started.ports, &scenario, &settings, clock)?;
                equals = Equals::of(&scenario, started);
                let threads = guests.threads();
                (Box::new(guests), threads)
            }
            Self::Nic => {
                let flow = Flow {
                    path: Path::NicToGuest,
                    len: FRAME_LEN,
                    flows: 1,
                };
                let nic = NicLoad::connect(flow, &started.ports)?;
                (Box::new(nic), vec![(core, Thread::current())])
            }
            Self::Dpdk => {
                let guests = Testpmd::connect(&started.ports.sockets, core)?;
                let threads = vec![(core, guests.worker)];
                (Box::new(guests), threads)
            }
        };
        Ok(Connected {
            load,
            crew: Crew {
                bounds: options.bounds(),
                realtime: options.crosspoint.realtime,
                clock,
                metrics: Some(started.metrics),
                generators,
                workers: vec![(options.cores.switch_core, Some(started.worker))],
            },
            is_saturating: self != Self::Nic,
            is_paced: self != Self::Dpdk,
            equals,
        })
    }
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
        let mut offer = |rate| crew.observe(|| load.offer(rate, time));
        let saturated = self.is_saturating.then(|| offer(None)).transpose()?;
        let after = self.equals.frames()?;
        let frames: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let rate = Some(options.rate as f64);
        let paced = self.is_paced.then(|| offer(rate)).transpose()?;
        let (Some((first, before)), Some((offered, observed))) = (
            saturated.as_ref().or(paced.as_ref()),
            paced.as_ref().or(saturated.as_ref()),
        ) else {
            return Err(BenchError::backend("the victim", "can do nothing"));
        };
        Ok(Phase {
            mpps: first.mpps(),
            due: offered.due,
            arrived: offered.arrived.min(offered.due),
            p50_us: offered.latency_us(0.5),
            p99_us: offered.latency_us(0.99),
            jain: jain(&frames),
            placement: match before.placement == observed.placement {
                true => observed.placement,
                false => Placement::Mixed,
            },
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
