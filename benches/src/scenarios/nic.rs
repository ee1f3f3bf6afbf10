//! `nic`: frames from NIC to NIC, and between a guest and a NIC, through a switch and its peers in turn; and the kernel's
//! part of the cost.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Crew, NicSwitch, Place, Running, Thread, in_turn, on_core, peers_dir, wire};
use crate::load::{Flow, NicLoad, Path};
use crate::options::{CoreOptions, CrosspointOptions, FCS_LEN, RoundOptions};
use crate::report::{Results, summary, write, write_json};
use crate::trials::{Jury, Lengths, Measurement, measure};
use clap::Args;
use crosspoint_frame::Clock;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `nic`.
#[derive(Args, Clone, Debug)]
pub struct NicOptions {
    #[command(flatten)]
    pub rounds: RoundOptions,
    #[command(flatten)]
    pub cores: CoreOptions,
    #[command(flatten)]
    pub crosspoint: CrosspointOptions,
    /// Switches; ratios are those of the first
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "crosspoint,ovs,testpmd,bridge,bridge-rps,none"
    )]
    pub switches: Vec<NicSwitch>,
    /// Paths of frames
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "nic-to-nic,guest-to-nic,nic-to-guest"
    )]
    pub paths: Vec<Path>,
    /// Frame sizes with the 4-byte FCS
    #[arg(long, value_delimiter = ',', default_value = "64,512,1518",
          value_parser = clap::value_parser!(u16).range(64..=1518))]
    pub sizes: Vec<u16>,
    /// Numbers of flows (by UDP ports)
    #[arg(long, value_delimiter = ',', default_value = "1,1000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: Vec<u32>,
    /// Length of a trial, milliseconds; times of /proc are in steps of 10 ms
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub trial_ms: u64,
    /// Directory of the peers' scripts; default: benches/peers in a directory above this binary
    #[arg(long, value_name = "DIR")]
    pub peers_dir: Option<PathBuf>,
    /// Measure latency too: at 10 000 frames per second, and at 10, 50 and 90 % of the maximum receive rate
    #[arg(long)]
    pub latency: bool,
    /// Write report.md and results.json to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl NicOptions {
    /// The measurements on `path`, with their names.
    fn flows_on(&self, path: Path) -> Vec<(String, Flow)> {
        let of_size = |size: &u16| {
            let size = *size;
            self.flows.iter().map(move |flows| {
                let several = match flows {
                    1 => String::new(),
                    flows => format!("-{flows}"),
                };
                let flow = Flow {
                    path,
                    len: usize::from(size - FCS_LEN),
                    flows: *flows,
                };
                (format!("{}-{size}{several}", path.name()), flow)
            })
        };
        self.sizes.iter().flat_map(of_size).collect()
    }

    /// The settings of trials, as text.
    fn settings(&self) -> String {
        let (cores, rounds) = (&self.cores, &self.rounds);
        format!(
            "veth pairs, worker on {}, generator on {}, {} x {} trials of {} ms, realtime {}",
            cores.switch_core,
            cores.generator_core,
            rounds.rounds,
            rounds.trials,
            self.trial_ms,
            self.crosspoint.realtime,
        )
    }
}

/// Runs `crosspoint-bench nic`.
pub fn run(options: &NicOptions) -> Result<(), BenchError> {
    options.cores.check()?;
    options.rounds.bounds.check()?;
    interrupt::catch()?;
    wire::enter_namespace()?;
    let place = Place {
        binary: options.crosspoint.binary(),
        peers_dir: peers_dir(options.peers_dir.as_ref()),
        cores: vec![options.cores.switch_core],
        other_core: options.cores.generator_core,
    };
    let clock = Clock::calibrate();
    let mut results = Results::new(
        options.cores.machine(clock),
        options.rounds.bounds,
        options.settings(),
        options.switches.iter().map(|s| s.name()).collect(),
    );
    for round in 0..options.rounds.rounds {
        for path in &options.paths {
            let able = options.switches.iter().copied();
            let able = able.filter(|switch| switch.has_guests() || !path.has_guest());
            let able: Vec<NicSwitch> = able.collect();
            for switch in in_turn(&able, round) {
                eprintln!("round {round}: {}, {}", path.name(), switch.name());
                let running = switch.start(path.has_guest(), &place)?;
                for (scenario, flow) in options.flows_on(*path) {
                    results.measurements.push(Measurement {
                        scenario,
                        switch: switch.name(),
                        round,
                        ..measure_flow(options, clock, *switch, &running, flow)?
                    });
                }
            }
        }
        if let Some(directory) = &options.out {
            write(&results, directory)?;
        }
    }
    print!("{}", summary::report(&results));
    match &options.crosspoint.output.json {
        Some(path) => write_json(path, &results.machine, &results.measurements),
        None => Ok(()),
    }
}

/// Measures one flow through one switch in one round.
fn measure_flow(
    options: &NicOptions,
    clock: Clock,
    switch: NicSwitch,
    running: &Running,
    flow: Flow,
) -> Result<Measurement, BenchError> {
    let (core, realtime) = (options.cores.generator_core, options.crosspoint.realtime);
    on_core(core, realtime, || {
        let mut load = connect(switch, running, flow)?;
        let jury = Jury {
            crew: Crew {
                bounds: options.rounds.bounds,
                realtime,
                clock,
                metrics: running.metrics,
                generators: vec![(core, Thread::current())],
                workers: running.workers.clone(),
            },
            passes: usize::from(switch != NicSwitch::None),
            has_shares: true,
            any_placement: false,
        };
        let lengths = Lengths {
            trial: Duration::from_millis(options.trial_ms),
            trials: options.rounds.trials,
            rate: None,
            latency: options.latency,
        };
        measure(lengths, |rate, time| jury.trial(&mut load, rate, time))
    })
}

fn connect(switch: NicSwitch, running: &Running, flow: Flow) -> Result<NicLoad, BenchError> {
    match switch {
        NicSwitch::None => NicLoad::without_switch(flow),
        _ => NicLoad::connect(flow, &running.ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;

    /// Most trials on a busy machine, until one is undisturbed.
    const TRIALS_MAX: usize = 20;

    /// The kernel's bridge, or no switch, between two far ends: needs root, takes a second.
    #[test]
    fn frames_that_are_sent_at_a_low_rate_all_arrive() {
        wire::enter_namespace().expect("run as root");
        let place = Place {
            binary: PathBuf::new(),
            peers_dir: PathBuf::new(),
            cores: vec![1],
            other_core: 0,
        };
        for switch in [NicSwitch::None, NicSwitch::Bridge] {
            let running = switch.start(false, &place).unwrap();
            for len in [60, 1514] {
                let (path, flows) = (Path::NicToNic, 1000);
                let mut load = connect(switch, &running, Flow { path, len, flows }).unwrap();
                // A generator that has lost its core catches up in one burst, which may exceed an interface's ring. One
                // trial of many may lose frames for this reason.
                let mut trial = || {
                    let time = Duration::from_millis(100);
                    let offered = load.offer(Some(20_000.0), time).unwrap();
                    assert_eq!(offered.due, 2000, "{switch:?}");
                    // Fewer, if another thread had the core at the end.
                    assert!((1..=2000).contains(&offered.sent), "{switch:?}");
                    offered
                };
                let mut trials = (0..TRIALS_MAX).map(|_| trial());
                let whole = trials.find(|offered| offered.arrived == offered.sent);
                let offered = whole.unwrap_or_else(|| panic!("each trial loses: {switch:?}"));
                assert!(offered.latency_ns.len() >= offered.sent / 8, "{switch:?}");
            }
        }
    }
}
