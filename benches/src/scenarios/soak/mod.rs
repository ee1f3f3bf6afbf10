//! `soak`: all that can happen to a switch, in random order, for as long as one likes.
//!
//! [`world`] is the switch with its guests, [`traffic`] what these send, [`disturb`] what happens. Here is what must hold.

mod disturb;
mod traffic;
mod world;

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::crosspoint;
use crate::lab::process::wait_until;
use crate::options::usage;
use crate::random::Random;
use crate::report::table::Table;
use clap::Args;
use disturb::{Cost, Disturbance, Stage, TABLE};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use world::{PORTS, SENDERS, World, counted, imbalance, read_metrics};

/// After a disturbance every flow goes on within this time.
const RESUME_MAX: Duration = Duration::from_secs(10);
/// The longest gap of guests that a disturbance does not concern; and if the switch's process ends.
const GAP_MAX: Duration = Duration::from_secs(2);
const GAP_MAX_CRASH: Duration = Duration::from_secs(5);
/// The longest wait until counters balance.
const BALANCE_MAX: Duration = Duration::from_secs(4);
/// As many crashes are allowed within this time; the supervisor gives up after six in a minute.
const CRASHES_MAX: usize = 3;
const CRASHES_WITHIN: Duration = Duration::from_secs(70);
/// What a process may use more than after the first disturbances: KiB (packet memory of interfaces that were made anew is freed
/// late, 32 MiB each time), descriptors, threads.
const GROWTH_MAX: [u64; 3] = [96 << 10, 16, 4];
const WARM_UP: usize = 10;
/// Lines of the log with one of these are faults, unless they are expected.
const SERIOUS: [&str; 4] = ["ERROR", "panic", "error:", "the sandbox refused"];
/// A log that is larger is emptied.
const LOG_MAX: usize = 1 << 20;

/// Options of `soak`.
#[derive(Args, Clone, Debug)]
pub struct SoakOptions {
    /// How long, in hours
    #[arg(long, default_value_t = 0.0)]
    hours: f64,
    /// How long, in minutes; added to --hours
    #[arg(long, default_value_t = 0.0)]
    minutes: f64,
    /// Determines what happens in which order. Default: another each time; it is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only disturbances whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Also step the host's clock by this many seconds, and back, which everything on the host notices
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    clock: i64,
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    switch: Option<PathBuf>,
    /// Write the switch's log to this file too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Be a guest that sends until it is killed
    #[arg(long, hide = true, value_name = "SOCK")]
    child: Option<PathBuf>,
}

/// What a disturbance has cost guests that it did not concern.
#[derive(Clone, Copy, Default)]
struct Row {
    times: u64,
    gap: Duration,
    lost: u64,
    repeated: u64,
}

/// What a station has sent, and its peer received; frames that came again; what the switch has received from it, and dropped.
type Counts = [u64; 5];

struct Soak<'a> {
    stage: &'a mut Stage,
    log: Option<std::fs::File>,
    log_at: usize,
    rows: Vec<Row>,
    counts: Vec<Counts>,
    crashes: Vec<Instant>,
}

/// Runs `crosspoint-bench soak`.
pub fn run(options: &SoakOptions) -> Result<(), BenchError> {
    if let Some(socket) = &options.child {
        return disturb::send_until_killed(socket);
    }
    let time = Duration::from_secs_f64(options.hours * 3600.0 + options.minutes * 60.0);
    let is_chosen = |what: &Disturbance| {
        what.name.contains(&options.only) && (options.clock != 0 || what.name != "clock steps")
    };
    let chosen = (0..TABLE.len()).filter(|number| is_chosen(&TABLE[*number]));
    let chosen: Vec<usize> = chosen.collect();
    let is_crash = |number: &usize| TABLE[*number].cost == Cost::Crash;
    if time.is_zero() || chosen.iter().all(is_crash) {
        return usage("--hours or --minutes; and --only must leave something that is no crash");
    }
    interrupt::catch()?;
    let seed = options.seed.unwrap_or_else(|| std::process::id().into());
    println!("--seed {seed}");
    let log = options.log.as_ref().map(std::fs::File::create).transpose();
    let log = log.map_err(BenchError::io("--log"))?;
    let world = World::start(crosspoint::binary(options.switch.as_ref()), seed % 2 == 1)?;
    let mut stage = Stage::new(world, Random(seed), options.clock);
    let traffic = std::sync::Arc::clone(&stage.world.traffic);
    std::thread::scope(|scope| {
        scope.spawn(|| traffic.work());
        let mut soak = Soak {
            stage: &mut stage,
            log,
            log_at: 0,
            rows: vec![Row::default(); TABLE.len()],
            counts: Vec::new(),
            crashes: Vec::new(),
        };
        let done = soak.run(time, &chosen);
        traffic.over.store(true, Relaxed);
        done
    })
}

impl Soak<'_> {
    fn run(&mut self, time: Duration, chosen: &[usize]) -> Result<(), BenchError> {
        self.settle(&[])?;
        self.counts = self.count();
        let (begun, mut used, mut done) = (Instant::now(), None, 0);
        while begun.elapsed() < time && interrupt::check().is_ok() {
            let number = self.draw(chosen);
            eprintln!("{done:>5} {}", TABLE[number].name);
            self.happen(number)?;
            done += 1;
            if done == WARM_UP {
                used = self.usage();
            }
        }
        println!("{done} disturbances in {} s\n", begun.elapsed().as_secs());
        self.report(used)
    }

    /// The next one: by weight, and no more crashes than the supervisor accepts.
    fn draw(&mut self, chosen: &[usize]) -> usize {
        self.crashes.retain(|at| at.elapsed() < CRASHES_WITHIN);
        let may_crash = self.crashes.len() < CRASHES_MAX;
        let may = |number: &&usize| may_crash || TABLE[**number].cost != Cost::Crash;
        let tickets = chosen
            .iter()
            .filter(may)
            .flat_map(|n| (0..TABLE[*n].weight).map(|_| *n));
        let tickets: Vec<usize> = tickets.collect();
        tickets[self.stage.random.next() as usize % tickets.len()]
    }

    /// Lets something happen, and checks everything.
    fn happen(&mut self, number: usize) -> Result<(), BenchError> {
        let what = &TABLE[number];
        if what.cost == Cost::Crash {
            self.crashes.push(Instant::now());
        }
        self.stage.world.traffic.begin(what.cost == Cost::Crash);
        if let Err(why) = (what.run)(self.stage) {
            let fault = format!("{}: {why}", what.name);
            self.stage.world.traffic.fault(fault);
            self.stage.recover();
        }
        self.settle(what.expected)?;
        let state = self.stage.world.traffic.state();
        let others = others(what).map(|station| &state.flows[station]);
        let gap = others.map(traffic::Flow::gap).max().unwrap_or_default();
        drop(state);
        let is_free = what.cost == Cost::Free;
        if gap > [GAP_MAX_CRASH, GAP_MAX][usize::from(is_free)] {
            let fault = format!("{}: others have a gap of {gap:?}", what.name);
            self.stage.world.traffic.fault(fault);
        }
        self.rows[number].gap = self.rows[number].gap.max(gap);
        self.account(number);
        Ok(())
    }

    /// Waits until all flows go on, and reads the log.
    fn settle(&mut self, expected: &[&str]) -> Result<(), BenchError> {
        let world = &mut self.stage.world;
        let arrived = || {
            world
                .traffic
                .state()
                .flows
                .iter()
                .map(|flow| flow.arrived)
                .collect::<Vec<_>>()
        };
        let before = arrived();
        let still = || {
            let now = arrived();
            (0..SENDERS)
                .filter(|from| now[*from] == before[*from])
                .collect::<Vec<_>>()
        };
        if wait_until(RESUME_MAX, || Ok(still().is_empty().then_some(())))?.is_none() {
            let what = format!("stations {:?} are not heard for {RESUME_MAX:?}", still());
            world.traffic.fault(what);
        }
        let path = world.dir.join("log");
        let all = std::fs::read(&path).unwrap_or_default();
        let new = &all[self.log_at.min(all.len())..];
        if let Some(log) = &mut self.log {
            std::io::Write::write_all(log, new).map_err(BenchError::io("--log"))?;
        }
        let text = String::from_utf8_lossy(new);
        for line in text.lines().filter(|line| is_serious(line, expected)) {
            world.traffic.fault(format!("the log says: {line}"));
        }
        self.log_at = all.len();
        if all.len() > LOG_MAX {
            // The switch appends to it.
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            let emptied = file.and_then(|file| file.set_len(0));
            self.log_at = emptied.map_or(self.log_at, |()| 0);
        }
        match world.supervisor.ended() {
            None => Ok(()),
            Some(status) => Err(BenchError::backend(
                "supervisor",
                status.to_string() + &text,
            )),
        }
    }

    /// Compares the switch's counters with each other, and with what guests have sent and received.
    fn account(&mut self, number: usize) {
        let what = &TABLE[number];
        let counts = self.count();
        let before = std::mem::replace(&mut self.counts, counts);
        let row = &mut self.rows[number];
        row.times += 1;
        let mut faults = Vec::new();
        for station in others(what) {
            let (name, now, then) = (PORTS[station], self.counts[station], before[station]);
            let since = |what: usize| now[what].wrapping_sub(then[what]);
            let [sent, arrived, repeated, received, dropped] = [0, 1, 2, 3, 4].map(since);
            let lost = sent.saturating_sub(arrived);
            (row.lost, row.repeated) = (row.lost + lost, row.repeated + repeated);
            // On the wire frames are lost to the kernel; after a crash counters are those of a second before.
            let is_exact = !name.starts_with('w') && what.cost != Cost::Crash;
            if is_exact && (received != sent || dropped < lost) {
                faults.push(format!("{}: {name} sent {sent} and lost {lost}, the switch received {received} and dropped {dropped}", what.name));
            }
        }
        let traffic = &self.stage.world.traffic;
        faults.into_iter().for_each(|fault| traffic.fault(fault));
    }

    /// Stops the traffic, and counts when the ledger balances and nothing is in flight.
    fn count(&self) -> Vec<Counts> {
        let traffic = &self.stage.world.traffic;
        for station in traffic.drain(BALANCE_MAX) {
            traffic.fault(format!("{}: the switch leaves its frames", PORTS[station]));
        }
        let (deadline, mut last) = (Instant::now() + BALANCE_MAX, String::new());
        loop {
            std::thread::sleep(Duration::from_millis(120));
            let text = read_metrics().unwrap_or_default();
            let packets = |text: &str| -> String {
                text.lines()
                    .filter(|line| line.contains("queue_packets"))
                    .collect()
            };
            let fault = imbalance(&text);
            let is_over = Instant::now() > deadline;
            if let Some(why) = fault.as_ref().filter(|_| is_over) {
                traffic.fault(format!("the ledger does not balance: {why}"));
            }
            if is_over || fault.is_none() && packets(&text) == packets(&last) {
                let state = traffic.state();
                let flows = state.flows.iter().zip(PORTS);
                let counts = flows.map(|(flow, port)| {
                    let [received, dropped] = counted(&text, port);
                    [flow.sent, flow.arrived, flow.repeated, received, dropped]
                });
                return counts.collect();
            }
            last = text;
        }
    }

    /// What the switch and its supervisor use, when there is one process of the switch.
    fn usage(&self) -> Option<[[u64; 3]; 2]> {
        let world = &self.stage.world;
        let only = || Ok(<[u32; 1]>::try_from(world.children()).ok());
        let Ok(Some([switch])) = wait_until(RESUME_MAX, only) else {
            let left = world.children();
            world
                .traffic
                .fault(format!("processes of the switch: {left:?}"));
            return None;
        };
        Some([switch, world.supervisor.id()].map(world::usage))
    }

    fn report(&self, used: Option<[[u64; 3]; 2]>) -> Result<(), BenchError> {
        let mut table = Table::new("disturbance | >times | >longest gap ms | >lost | >repeated");
        for (row, what) in self.rows.iter().zip(TABLE).filter(|(row, _)| row.times > 0) {
            let gap = row.gap.as_secs_f64() * 1e3;
            table.row(format_args!(
                "{} | {} | {gap:.1} | {} | {}",
                what.name, row.times, row.lost, row.repeated
            ));
        }
        println!("{table}");
        let traffic = &self.stage.world.traffic;
        if let (Some(then), Some(now)) = (used, self.usage()) {
            for ((name, then), now) in ["switch", "supervisor"].into_iter().zip(then).zip(now) {
                println!("{name}: memory in KiB, descriptors and threads {then:?} to {now:?}");
                if (0..3).any(|what| now[what] > then[what] + GROWTH_MAX[what]) {
                    traffic.fault(format!("{name} grows"));
                }
            }
        }
        let state = traffic.state();
        let sum = |of: fn(&traffic::Flow) -> u64| state.flows.iter().map(of).sum::<u64>();
        let us = |part: f64| state.latency_ns.value_at_quantile(part) / 1000;
        let (sent, arrived) = (sum(|flow| flow.sent), sum(|flow| flow.arrived));
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(us);
        println!("{sent} frames sent, {arrived} arrived");
        println!("latency in us: p50 {p50}, p99 {p99}, p99.9 {p999}, max {max}");
        state
            .faults
            .iter()
            .for_each(|fault| println!("fault: {fault}"));
        match state.faults.len() {
            0 => println!("no promise was broken"),
            count => return Err(BenchError::Usage(format!("{count} promises were broken"))),
        }
        Ok(())
    }
}

/// The stations that it does not concern, of those that send.
fn others(what: &Disturbance) -> impl Iterator<Item = usize> {
    (0..SENDERS).filter(|station| !what.concerns.contains(&PORTS[*station][..1]))
}

fn is_serious(line: &str, expected: &[&str]) -> bool {
    let has = |text: &&str| line.contains(*text);
    SERIOUS.iter().any(has) && !expected.iter().any(has)
}
