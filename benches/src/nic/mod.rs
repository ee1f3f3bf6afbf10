//! `nic`: frames from NIC to NIC, and between a guest and a NIC, through a switch and its peers in turn; and the kernel's
//! part of the cost.

pub mod load;
pub mod switches;
mod times;
mod traffic;
pub mod wire;

use crate::error::BenchError;
use crate::interrupt;
use crate::load::{Load, Offered};
use crate::machine::Machine;
use crate::measure::{Lengths, measure};
use crate::options::{FCS_LEN, PlanOptions};
use crate::results::{Bounds, Measurement, Results, VERSION};
use crate::scrape::Counters;
use crate::search::options::SearchOptions;
use crate::search::{Judge, Judged};
use crate::summary;
use crate::threads::Thread;
use crate::trial::{Discard, Observed, Shares};
use crate::turns;
use crate::watch::Crew;
use clap::{Args, ValueEnum};
use crosspoint_frame::Clock;
use load::{Flow, NicLoad};
use std::path::PathBuf;
use std::time::Duration;
use switches::{Places, Running, Switch};
use times::Times;

/// Options of `nic`.
#[derive(Args, Clone, Debug)]
pub struct NicOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
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
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub search: SearchOptions,
    /// Write report.md, results.json and plots to this directory, after each round
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A path of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// From one interface to the other.
    NicToNic,
    /// From a guest to an interface.
    GuestToNic,
    /// From an interface to a guest.
    NicToGuest,
    /// From a guest to an interface, reflected there, and back to the guest.
    GuestNicGuest,
}

/// A frame's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(Option<u16>);

impl Path {
    /// Whether a guest is at one end.
    pub fn has_guest(self) -> bool {
        self != Self::NicToNic
    }

    /// Whether the guest sends.
    fn is_from_guest(self) -> bool {
        matches!(self, Self::GuestToNic | Self::GuestNicGuest)
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::NicToNic => "nic-to-nic",
            Self::GuestToNic => "guest-to-nic",
            Self::NicToGuest => "nic-to-guest",
            Self::GuestNicGuest => "guest-nic-guest",
        }
    }
}

fn size(text: &str) -> Result<Size, String> {
    match text.parse::<u16>() {
        _ if text == "imix" => Ok(Size(None)),
        Ok(size) if (64..=1518).contains(&size) => Ok(Size(Some(size))),
        _ => Err("64 to 1518, or imix".into()),
    }
}

impl NicOptions {
    fn places(&self) -> Places {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("crosspoint"));
        let crosspoint = self.switch.clone().or_else(beside);
        Places {
            crosspoint: crosspoint.unwrap_or_else(|| "crosspoint".into()),
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
    let mut results = Results {
        version: VERSION,
        arguments: std::env::args().collect(),
        settings: settings(options),
        machine: Machine::here(options.plan.generator_core, options.plan.switch_core, clock),
        bounds: Bounds::of(&options.plan),
        switches: options.switches.iter().map(|s| s.name()).collect(),
        measurements: Vec::new(),
        skipped: Vec::new(),
        failed: Vec::new(),
    };
    for round in 0..options.plan.rounds {
        for path in &options.paths {
            let able = options.switches.iter().copied().filter(|s| s.has(*path));
            let able: Vec<Switch> = able.collect();
            for switch in turns::in_turn(&able, round) {
                eprintln!("round {round}: {}, {}", path.name(), switch.name());
                let running = switch.start(*path, &options.plan, &places)?;
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
            results.write(directory)?;
        }
    }
    print!("{}", summary::report(&results, &[]));
    turns::write_json(&options.plan, &results.machine, &results.measurements)
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
    turns::on_generator_core(plan, options.realtime, || {
        let mut load = match switch {
            Switch::None => NicLoad::without_switch(flow)?,
            _ => NicLoad::connect(flow, &running.socket)?,
        };
        let mut jury = Jury {
            crew: Crew {
                near_ns: plan.near_ns,
                far_ns: plan.far_ns,
                realtime: options.realtime,
                clock,
                metrics: running.metrics,
                generators: vec![(plan.generator_core, Thread::current())],
                workers: vec![(plan.switch_core, running.worker)],
            },
            // Without a switch, its core has nothing to do.
            has_switch: switch != Switch::None,
            wait_max: plan.wait_max,
        };
        let lengths = Lengths {
            warmup: Duration::from_millis(options.warmup_ms),
            trial: Duration::from_millis(options.trial_ms),
            trials: plan.trials,
        };
        measure(&mut load, &mut jury, &options.search, lengths)
    })
}

/// Judges the trials of one switch.
struct Jury {
    crew: Crew,
    has_switch: bool,
    wait_max: f64,
}

impl Judge for Jury {
    fn trial(
        &mut self,
        load: &mut dyn Load,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<Judged, BenchError> {
        let (core, worker) = self.crew.workers[0];
        let times = || Times::now(worker, core).filter(|_| self.has_switch);
        let counted = self.counters();
        let mut spent = None;
        let (offered, observed) = self.crew.observe(|| {
            let started = times();
            let offered = load.offer(rate, time)?;
            let ended = times();
            spent = started.zip(ended).map(|(from, to)| to.since(from));
            Ok(offered)
        })?;
        let busy = counted.zip(self.counters());
        let costs = Costs {
            spent,
            busy: busy.map(|(before, after)| after.since(before)),
            hz: self.crew.clock.hz(),
        };
        let per_s = offered.mpps() * 1e6;
        Ok(Judged {
            core_cycles: (per_s > 0.0 && self.has_switch).then(|| costs.hz / per_s),
            observed: Observed {
                shares: Some(shares(&offered, &costs)),
                ..observed
            },
            discarded: Discard::of(offered.arrived, &observed, self.wait_max),
            offered,
        })
    }
}

impl Jury {
    fn counters(&self) -> Option<Counters> {
        Counters::read(self.crew.metrics?).ok()
    }
}

/// The cost of a trial to the switch's core.
struct Costs {
    spent: Option<Times>,
    /// crosspoint's own counters.
    busy: Option<Counters>,
    /// Rate of the time stamp counter.
    hz: f64,
}

/// The shares of that cost.
fn shares(offered: &Offered, costs: &Costs) -> Shares {
    let arrived = offered.arrived.max(1) as f64;
    let cycles = |of: fn(Times) -> Option<f64>| Some(of(costs.spent?)? * costs.hz / arrived);
    let kernel = cycles(|spent| Some(spent.kernel));
    let user = match costs.busy {
        // Poll iterations with work, minus their time in the kernel: empty polls are left out.
        Some(busy) => kernel.map(|kernel| (busy.busy_cycles / arrived - kernel).max(0.0)),
        None => cycles(|spent| spent.user),
    };
    Shares {
        user,
        kernel,
        softirq: cycles(|spent| Some(spent.softirq)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    fn offered() -> Offered {
        Offered {
            seconds: 1.0,
            due: 2_000_000,
            sent: 2_000_000,
            arrived: 1_000_000,
            arrived_within: 1_000_000,
            ring_full: 0.0,
            latency_ns: Histogram::new(3).unwrap(),
            first_ns: crate::load::times(),
            loss_runs: Histogram::new(3).unwrap(),
            turns_ns: Histogram::new(3).unwrap(),
        }
    }

    #[test]
    fn the_kernels_share_is_taken_out_of_busy_cycles_but_not_out_of_user_time() {
        let spent = Times {
            user: Some(0.5),
            kernel: 0.4,
            softirq: 0.3,
        };
        let costs = |busy: Option<Counters>| Costs {
            spent: Some(spent),
            busy,
            hz: 2e9,
        };
        let busy = Counters {
            busy_cycles: 900e6,
            ..Counters::default()
        };
        for (costs, user) in [(costs(Some(busy)), 100.0), (costs(None), 1000.0)] {
            let shares = shares(&offered(), &costs);
            assert!((shares.user.unwrap() - user).abs() < 1e-6);
            assert!((shares.kernel.unwrap() - 800.0).abs() < 1e-6);
            assert!((shares.softirq.unwrap() - 600.0).abs() < 1e-6);
        }
    }

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
            let plan = PlanOptions {
                rounds: 1,
                trials: 1,
                switch_core: 1,
                generator_core: 0,
                near_ns: 150.0,
                far_ns: 250.0,
                wait_max: 2.0,
                json: None,
            };
            let places = Places {
                crosspoint: PathBuf::new(),
                peers: PathBuf::new(),
                testpmd_thread: String::new(),
            };
            let running = switch.start(Path::NicToNic, &plan, &places).unwrap();
            for len in [Some(60), Some(1514), None] {
                let flow = Flow {
                    path: Path::NicToNic,
                    len,
                    flows: 1000,
                };
                let mut load = match switch {
                    Switch::None => NicLoad::without_switch(flow).unwrap(),
                    _ => NicLoad::connect(flow, &running.socket).unwrap(),
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
                let whole = |offered: &Offered| {
                    offered.arrived == offered.sent && offered.loss_runs.is_empty()
                };
                let offered = (0..TRIALS_MAX).map(|_| trial()).find(whole);
                let offered = offered.unwrap_or_else(|| panic!("each trial loses: {switch:?}"));
                assert!(offered.latency_ns.len() >= offered.sent / 8, "{switch:?}");
            }
        }
    }
}
