//! `nic`: frames from NIC to NIC, and between a guest and a NIC, through a switch and its peers in turn; what the kernel
//! has of the cost.

pub mod load;
mod report;
pub mod switches;
mod times;
mod traffic;
pub mod wire;

use crate::error::BenchError;
use crate::interrupt;
use crate::load::{Load, Offered};
use crate::options::{FCS_LEN, PlanOptions};
use crate::placement::{Placement, round_trip_ns};
use crate::scrape::Counters;
use crate::threads::{PRIORITY_POLL, Thread};
use crate::trial::Discard;
use crate::turns;
use crate::watch::{REALTIME, Wait};
use clap::{Args, ValueEnum};
use crosspoint_frame::Clock;
use load::{Flow, NicLoad};
use report::{Trial, Values, tables};
use std::path::PathBuf;
use std::time::Duration;
use switches::{Places, Running, Switch};
use times::Times;

/// By then the worker has ended the turn that it counts cycles for.
const SETTLE: Duration = Duration::from_millis(2);

/// More than there are configurations of one path.
const ORDER_STEP: usize = 1 << 16;

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
    /// Where frames go
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
    /// Frames per second; without this: as many as the generator makes, or the guest's ring takes
    #[arg(long)]
    pub rate: Option<f64>,
    /// Length of a trial; times of /proc are in steps of 10 ms
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
    /// How the name of testpmd's polling thread starts (DPDK 24 and later: dpdk-worker)
    #[arg(long, value_name = "PREFIX", default_value = "rte-worker")]
    pub testpmd_thread: String,
}

/// Where frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// In at one interface, out at the other.
    NicToNic,
    /// From a guest, out at an interface.
    GuestToNic,
    /// In at an interface, to a guest.
    NicToGuest,
    /// From a guest, out at an interface, back in there, to the guest.
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

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::NicToNic => "NIC to NIC",
            Self::GuestToNic => "guest to NIC",
            Self::NicToGuest => "NIC to guest",
            Self::GuestNicGuest => "guest to NIC and back",
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

    /// What is measured on `path`, with what it is called.
    fn flows_on(&self, path: Path) -> Vec<(String, Flow)> {
        let of_size = |size: &Size| {
            let Size(size) = *size;
            self.flows.iter().map(move |flows| {
                let bytes = size.map_or("IMIX".to_owned(), |size| format!("{size} B"));
                let flow = Flow {
                    path,
                    len: size.map(|size| usize::from(size - FCS_LEN)),
                    flows: *flows,
                };
                (format!("{}, {bytes}, {flows} flows", path.name()), flow)
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
    let names: Vec<String> = options
        .switches
        .iter()
        .map(|switch| switch.name())
        .collect();
    let clock = Clock::calibrate();
    let mut trials = Vec::new();
    for round in 0..options.plan.rounds {
        for (of_path, path) in options.paths.iter().enumerate() {
            let able: Vec<Switch> = options
                .switches
                .iter()
                .copied()
                .filter(|s| s.has(*path))
                .collect();
            for switch in turns::in_turn(&able, round) {
                eprintln!("round {round}: {}, {}", path.name(), switch.name());
                let running = switch.start(*path, &options.plan, &places)?;
                for (number, (what, flow)) in options.flows_on(*path).into_iter().enumerate() {
                    let series = Series {
                        options,
                        clock,
                        switch: *switch,
                        running: &running,
                        round,
                        order: of_path * ORDER_STEP + number,
                        what,
                    };
                    trials.extend(series.run(flow)?);
                }
            }
        }
    }
    print!("{}", tables(&trials, &names));
    turns::write_json(&options.plan, clock, &trials)
}

/// The trials of one flow through one switch in one round.
struct Series<'a> {
    options: &'a NicOptions,
    clock: Clock,
    switch: Switch,
    running: &'a Running,
    round: u32,
    order: usize,
    what: String,
}

impl Series<'_> {
    fn run(&self, flow: Flow) -> Result<Vec<Trial>, BenchError> {
        let options = self.options;
        turns::on_generator_core(&options.plan, options.realtime, || {
            let mut load = match self.switch {
                Switch::None => NicLoad::without_switch(flow)?,
                _ => NicLoad::connect(flow, &self.running.socket)?,
            };
            load.offer(options.rate, Duration::from_millis(options.warmup_ms))?;
            let trial = |_| {
                interrupt::check()?;
                self.trial(&mut load)
            };
            (0..options.plan.trials).map(trial).collect()
        })
    }

    fn trial(&self, load: &mut NicLoad) -> Result<Trial, BenchError> {
        let (options, plan, worker) = (self.options, &self.options.plan, self.running.worker);
        let probe = || round_trip_ns(plan.switch_core, self.clock);
        let before = probe();
        let counted = self.counters();
        let realtime = Realtime::start(worker.filter(|_| options.realtime))?;
        // Without a switch, nobody has anything to do on its core.
        let times = || Times::now(worker, plan.switch_core).filter(|_| self.switch != Switch::None);
        let waits = [Wait::start([Thread::current()]), Wait::start(worker)];
        let started = times();
        let offered = load.offer(options.rate, Duration::from_millis(options.trial_ms))?;
        let (waits, ended) = (waits.map(|wait| wait.percent()), times());
        drop(realtime);
        std::thread::sleep(SETTLE);
        let costs = Costs {
            spent: started
                .zip(ended)
                .map(|(started, ended)| ended.since(started)),
            busy: counted
                .zip(self.counters())
                .map(|(before, after)| after.since(before)),
            hz: self.clock.hz(),
        };
        let placement = Placement::classify([before, probe()], plan.near_ns, plan.far_ns);
        Ok(Trial {
            switch: self.switch.name(),
            round: self.round,
            order: self.order,
            what: self.what.clone(),
            values: values(&offered, &costs),
            placement,
            waits,
            discarded: discard(&offered, waits, placement, plan.wait_max),
        })
    }

    fn counters(&self) -> Option<Counters> {
        Counters::read(self.running.metrics?).ok()
    }
}

/// Why a trial does not count.
fn discard(
    offered: &Offered,
    waits: [Option<f64>; 2],
    placement: Placement,
    wait_max: f64,
) -> Option<Discard> {
    if offered.arrived == 0 {
        Some(Discard::NoTraffic)
    } else if waits.into_iter().flatten().any(|wait| wait > wait_max) {
        Some(Discard::Waited)
    } else {
        (placement == Placement::Mixed).then_some(Discard::Placement)
    }
}

/// What a trial cost the switch's core.
struct Costs {
    spent: Option<Times>,
    /// crosspoint's own counters.
    busy: Option<Counters>,
    /// Of the time stamp counter.
    hz: f64,
}

/// What the tables have of a trial.
fn values(offered: &Offered, costs: &Costs) -> Values {
    let arrived = offered.arrived.max(1) as f64;
    let cycles = |of: fn(Times) -> Option<f64>| Some(of(costs.spent?)? * costs.hz / arrived);
    let kernel_cycles = cycles(|spent| Some(spent.kernel));
    let user_cycles = match costs.busy {
        // Turns that found work, less what of them was spent in the kernel: polls in vain are left out.
        Some(busy) => kernel_cycles.map(|kernel| (busy.busy_cycles / arrived - kernel).max(0.0)),
        None => cycles(|spent| spent.user),
    };
    let latency_us = |part| {
        let ns = offered.latency_ns.value_at_quantile(part);
        (!offered.latency_ns.is_empty()).then_some(ns as f64 / 1e3)
    };
    Values {
        mpps: offered.mpps(),
        sent_mpps: offered.sent as f64 / offered.seconds / 1e6,
        loss: offered.loss(),
        loss_run_max: offered.loss_runs.max(),
        user_cycles,
        kernel_cycles,
        softirq_cycles: cycles(|spent| Some(spent.softirq)),
        ring_full: Some(offered.ring_full).filter(|part| *part > 0.0),
        p50_us: latency_us(0.5),
        p99_us: latency_us(0.99),
    }
}

/// `SCHED_FIFO` for the switch's worker, until dropped.
struct Realtime(Option<Thread>);

impl Realtime {
    fn start(worker: Option<Thread>) -> Result<Self, BenchError> {
        if let Some(worker) = worker {
            let set = worker.set_fifo(PRIORITY_POLL);
            set.map_err(BenchError::io(REALTIME))?;
        }
        Ok(Self(worker))
    }
}

impl Drop for Realtime {
    fn drop(&mut self) {
        if let Some(worker) = self.0 {
            let _ = worker.set_normal(); // it ended meanwhile
        }
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
            loss_runs: Histogram::new(3).unwrap(),
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
            let values = values(&offered(), &costs);
            assert!((values.user_cycles.unwrap() - user).abs() < 1e-6);
            assert!((values.kernel_cycles.unwrap() - 800.0).abs() < 1e-6);
            assert!((values.softirq_cycles.unwrap() - 600.0).abs() < 1e-6);
            assert_eq!(values.loss, 0.5);
        }
    }

    #[test]
    fn sizes_are_numbers_or_imix() {
        assert_eq!(size("64"), Ok(Size(Some(64))));
        assert_eq!(size("imix"), Ok(Size(None)));
        assert!(size("63").is_err() && size("1519").is_err());
    }

    /// A kernel's bridge, or nothing, between two far ends: needs root, takes a second.
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
                let offered = load
                    .offer(Some(20_000.0), Duration::from_millis(100))
                    .unwrap();
                assert_eq!(offered.due, 2000, "{switch:?}");
                // Fewer, where another thread had the core at the end.
                assert!((1..=2000).contains(&offered.sent), "{switch:?}");
                assert_eq!(offered.arrived, offered.sent, "{switch:?}");
                assert_eq!(offered.loss_runs.len(), 0, "{switch:?}");
                assert!(offered.latency_ns.len() >= offered.sent / 8, "{switch:?}");
            }
        }
    }
}
