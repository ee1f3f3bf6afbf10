//! `nic`: frames from NIC to NIC, and between a guest and a NIC, through a switch and its peers in turn; and the kernel's
//! part of the cost.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::crosspoint;
use crate::lab::nic_switches::{Places, Switch};
use crate::lab::schedule::{in_turn, on_core};
use crate::lab::switches::Running;
use crate::lab::threads::Thread;
use crate::lab::watch::Crew;
use crate::lab::wire;
use crate::load::nic::{Flow, NicLoad, Path};
use crate::options::{FCS_LEN, PlanOptions};
use crate::report::results::Results;
use crate::report::{summary, write, write_json};
use crate::search::judge::Jury;
use crate::search::measure::{Lengths, Measurement, measure};
use crate::search::options::SearchOptions;
use clap::Args;
use crosspoint_frame::Clock;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `nic`.
#[derive(Args, Clone, Debug)]
pub struct NicOptions {
    #[command(flatten)]
    pub plan: PlanOptions,
    /// Switches; ratios are those of the first
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "crosspoint,ovs,testpmd,bridge,bridge-rps,none"
    )]
    pub switches: Vec<Switch>,
    /// Paths of frames
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "nic-to-nic,guest-to-nic,nic-to-guest,guest-nic-guest"
    )]
    pub paths: Vec<Path>,
    /// Frame sizes with the 4-byte FCS, or "imix": 64, 570 and 1518, 7:4:1, not from guests
    #[arg(long, value_delimiter = ',', default_value = "64,512,1518,imix", value_parser = size)]
    pub sizes: Vec<Size>,
    /// Numbers of flows (by UDP ports)
    #[arg(long, value_delimiter = ',', default_value = "1,1000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: Vec<u32>,
    /// Length of a trial, milliseconds; times of /proc are in steps of 10 ms
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub trial_ms: u64,
    /// Traffic before the first trial of a configuration, not measured
    #[arg(long, default_value_t = 200)]
    pub warmup_ms: u64,
    /// SCHED_FIFO for generator and worker during trials
    #[arg(long)]
    pub realtime: bool,
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// The folder of ovs-dpdk.sh and testpmd.sh
    #[arg(long, value_name = "DIR", default_value = "benches/peers")]
    pub peers: PathBuf,
    /// Start of the name of testpmd's polling thread (DPDK 24 and later: dpdk-worker)
    #[arg(long, value_name = "PREFIX", default_value = "rte-worker")]
    pub testpmd_thread: String,
    #[command(flatten)]
    pub search: SearchOptions,
    /// Write report.md, results.json and plots to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A frame's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(Option<u16>);

fn size(text: &str) -> Result<Size, String> {
    match text.parse::<u16>() {
        _ if text == "imix" => Ok(Size(None)),
        Ok(size) if (64..=1518).contains(&size) => Ok(Size(Some(size))),
        _ => Err("64 to 1518, or imix".into()),
    }
}

impl NicOptions {
    fn places(&self) -> Places {
        Places {
            switch_core: self.plan.switch_core,
            generator_core: self.plan.generator_core,
            crosspoint: crosspoint::binary(self.switch.as_ref()),
            peers: self.peers.clone(),
            testpmd_thread: self.testpmd_thread.clone(),
        }
    }

    /// The measurements on `path`, with their names.
    fn flows_on(&self, path: Path) -> Vec<(String, Flow)> {
        let of_size = |size: &Size| {
            let Size(size) = *size;
            self.flows.iter().map(move |flows| {
                let bytes = size.map_or("imix".to_owned(), |size| size.to_string());
                let several = match flows {
                    1 => String::new(),
                    flows => format!("-{flows}"),
                };
                let flow = Flow {
                    path,
                    len: size.map(|size| usize::from(size - FCS_LEN)),
                    flows: *flows,
                };
                (format!("{}-{bytes}{several}", path.name()), flow)
            })
        };
        let all = self.sizes.iter().flat_map(of_size);
        all.filter(|(_, flow)| flow.len.is_some() || !path.is_from_guest())
            .collect()
    }
}

/// Runs `crosspoint-bench nic`.
pub fn run(options: &NicOptions) -> Result<(), BenchError> {
    options.plan.check()?;
    interrupt::catch()?;
    wire::enter_namespace()?;
    let places = options.places();
    let clock = Clock::calibrate();
    let mut results = Results::new(
        options.plan.machine(clock),
        options.plan.bounds,
        settings(options),
        options.switches.iter().map(|s| s.name()).collect(),
    );
    for round in 0..options.plan.rounds {
        for path in &options.paths {
            let able = options.switches.iter().copied();
            let able = able.filter(|switch| switch.has_guests() || !path.has_guest());
            let able: Vec<Switch> = able.collect();
            for switch in in_turn(&able, round) {
                eprintln!("round {round}: {}, {}", path.name(), switch.name());
                let running = switch.start(path.has_guest(), &places)?;
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
    print!("{}", summary::report(&results, &[]));
    write_json(
        options.plan.json.as_ref(),
        &results.machine,
        &results.measurements,
    )
}

/// The settings of trials, as text.
fn settings(options: &NicOptions) -> String {
    let plan = &options.plan;
    format!(
        "veth pairs, worker on {}, generator on {}, {} x {} trials of {} ms, realtime {}",
        plan.switch_core,
        plan.generator_core,
        plan.rounds,
        plan.trials,
        options.trial_ms,
        options.realtime,
    )
}

/// Measures one flow through one switch in one round.
fn measure_flow(
    options: &NicOptions,
    clock: Clock,
    switch: Switch,
    running: &Running,
    flow: Flow,
) -> Result<Measurement, BenchError> {
    let plan = &options.plan;
    on_core(plan.generator_core, options.realtime, || {
        let mut load = match switch {
            Switch::None => NicLoad::without_switch(flow)?,
            _ => NicLoad::connect(flow, &running.ports)?,
        };
        let mut jury = Jury {
            crew: Crew {
                bounds: plan.bounds,
                realtime: options.realtime,
                clock,
                metrics: running.metrics,
                generators: vec![(plan.generator_core, Thread::current())],
                workers: running.workers.clone(),
            },
            passes: usize::from(switch != Switch::None),
            has_shares: true,
            any_placement: false,
        };
        let lengths = Lengths {
            warmup: Duration::from_millis(options.warmup_ms),
            trial: Duration::from_millis(options.trial_ms),
            trials: plan.trials,
            rate: None,
        };
        measure(&mut load, &mut jury, &options.search, lengths)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;

    #[test]
    fn sizes_are_numbers_or_imix() {
        assert_eq!(size("64"), Ok(Size(Some(64))));
        assert_eq!(size("imix"), Ok(Size(None)));
        assert!(size("63").is_err() && size("1519").is_err());
    }

    /// Most trials on a busy machine, until one is undisturbed.
    const TRIALS_MAX: usize = 20;

    /// The kernel's bridge, or no switch, between two far ends: needs root, takes a second.
    #[test]
    fn frames_that_are_sent_at_a_low_rate_all_arrive_in_order() {
        wire::enter_namespace().expect("run as root");
        for switch in [Switch::None, Switch::Bridge] {
            let places = Places {
                switch_core: 1,
                generator_core: 0,
                crosspoint: PathBuf::new(),
                peers: PathBuf::new(),
                testpmd_thread: String::new(),
            };
            let running = switch.start(false, &places).unwrap();
            for len in [Some(60), Some(1514), None] {
                let flow = Flow {
                    path: Path::NicToNic,
                    len,
                    flows: 1000,
                };
                let mut load = match switch {
                    Switch::None => NicLoad::without_switch(flow).unwrap(),
                    _ => NicLoad::connect(flow, &running.ports).unwrap(),
                };
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
                let whole = |offered: &crate::load::Offered| {
                    offered.arrived == offered.sent && offered.loss_runs.is_empty()
                };
                let offered = (0..TRIALS_MAX).map(|_| trial()).find(whole);
                let offered = offered.unwrap_or_else(|| panic!("each trial loses: {switch:?}"));
                assert!(offered.latency_ns.len() >= offered.sent / 8, "{switch:?}");
            }
        }
    }
}
