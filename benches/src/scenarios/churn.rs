//! `churn`: the cost of guests and interfaces that come and go to those that stay.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Crosspoint, FAVOUR, Machine, Setup, Thread, Wait, crosspoint, process, shell};
use crate::load::{ChurnPeers, GuestSet, GuestSetOptions, Interface, Load, Offered, Scenario};
use crate::options::{OutputOptions, usage};
use crate::report::Table;
use clap::Args;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Trials of the maximum; the first does not count.
const MAXIMUM_TRIALS: usize = 9;
const MAXIMUM_TRIAL: Duration = Duration::from_millis(200);
/// Guests: two measured ones, and two that come and go.
const GUESTS: usize = 4;
/// The receiver's ring has twice as many entries, and no ring may have more than 32768.
const RING_MAX: u16 = 16384;
/// Frames that become available at once.
const BURST: usize = 64;
/// Nice values of `--favour`: before all other ordinary threads; and leaving a tenth of its core to one of these.
const NICE_WORKER: i32 = -20;
/// See [`NICE_WORKER`].
const NICE_GENERATOR: i32 = -10;
const SETTLE: Duration = Duration::from_millis(100);

/// Options of `churn`.
#[derive(Args, Clone, Debug)]
pub struct ChurnOptions {
    /// The crosspoint binary; default: beside this one
    #[arg(long, value_name = "PATH")]
    pub switch: Option<PathBuf>,
    /// Cores of crosspoint's workers, one each; all but the first may share the generator's core, if there are only two
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub switch_core: Vec<usize>,
    /// The core of generator and sink
    #[arg(long, default_value_t = 0)]
    pub generator_core: usize,
    /// Frames per second; default: --part of the lowest of several maxima
    #[arg(long)]
    pub rate: Option<u64>,
    /// Part of the maximum, percent
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub part: u32,
    /// Frame size with the 4-byte FCS
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1518))]
    pub size: u16,
    /// Entries of the rings of the sender, a power of two; the receiver's have twice as many
    #[arg(long, default_value_t = 1024)]
    pub ring: u16,
    /// Number of times that a third and a fourth guest are attached, get frames, and are shut down
    #[arg(long, default_value_t = 100)]
    pub attach: u32,
    /// Number of times that they are attached, and killed with frames in flight
    #[arg(long, default_value_t = 100)]
    pub kill: u32,
    /// Number of times that their rings are stopped and started
    #[arg(long, default_value_t = 100)]
    pub pause: u32,
    /// Number of times that they reboot
    #[arg(long, default_value_t = 100)]
    pub reboot: u32,
    /// Number of times that a veth interface that is a port is created and removed
    #[arg(long, default_value_t = 20)]
    pub interface: u32,
    /// A shell command that changes something; $CROSSPOINT_SOCKET is the switch's control socket, $CROSSPOINT_CONFIG its
    /// configuration. May be repeated
    #[arg(long, value_name = "COMMAND")]
    pub event_command: Vec<String>,
    /// Number of times that each command is run
    #[arg(long, default_value_t = 100)]
    pub events: u32,
    /// Pause before each event of any kind, milliseconds
    #[arg(long, default_value_t = 20)]
    pub pause_ms: u64,
    /// Nice values of -20 for the switch's worker and -10 for the generator, so that other programs do not keep their cores
    /// for long
    #[arg(long)]
    pub favour: bool,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// An event beside the measured guests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Attach,
    Kill,
    Pause,
    Reboot,
    Interface,
    Command(String),
}

impl Event {
    fn name(&self) -> &str {
        match self {
            Self::Attach => "attach, shut down",
            Self::Kill => "attach, kill",
            Self::Pause => "stop and start rings",
            Self::Reboot => "reboot",
            Self::Interface => "interface made, removed",
            Self::Command(line) => line,
        }
    }
}

impl ChurnOptions {
    /// The events, and how often each happens.
    fn plan(&self) -> Vec<(Event, u32)> {
        let mut plan = vec![
            (Event::Attach, self.attach),
            (Event::Kill, self.kill),
            (Event::Pause, self.pause),
            (Event::Reboot, self.reboot),
            (Event::Interface, self.interface),
        ];
        let commands = self.event_command.iter().cloned();
        plan.extend(commands.map(|line| (Event::Command(line), self.events)));
        plan.retain(|(_, count)| *count > 0);
        plan
    }

    fn check(&self) -> Result<(), BenchError> {
        if self.switch_core.first() == Some(&self.generator_core) {
            return usage("--generator-core has to differ from the first --switch-core");
        }
        if self.ring > RING_MAX || !self.ring.is_power_of_two() {
            return usage("--ring: a power of two, no more than 16384");
        }
        Ok(())
    }
}

/// Name of the interface that comes and goes.
fn interface() -> String {
    format!("cpb{}", std::process::id())
}

/// Runs `crosspoint-bench churn`.
pub fn run(options: &ChurnOptions) -> Result<(), BenchError> {
    options.check()?;
    interrupt::catch()?;
    let clock = Clock::calibrate();
    let switch = start(options)?;
    let mut guests = connect(&switch, options, clock)?;
    if options.favour {
        let set = switch.worker.set_nice(NICE_WORKER);
        set.map_err(BenchError::io(FAVOUR))?;
    }
    for (_, thread) in guests.threads().iter().filter(|_| options.favour) {
        let set = thread.set_nice(NICE_GENERATOR);
        set.map_err(BenchError::io(FAVOUR))?;
    }
    let rate = match options.rate {
        Some(rate) => rate as f64,
        None => maximum(&mut guests)? * f64::from(options.part) / 100.0,
    };
    // A pause whose frames would fill more than a quarter of the ring makes none.
    let away = Duration::from_secs_f64(f64::from(options.ring / 4) / rate);
    let mut rows = Vec::new();
    for (event, count) in options.plan() {
        eprintln!("{}, {count} times", event.name());
        let begun = Instant::now();
        let mut stream = |name: &str, count, work: &dyn Fn() -> Result<(), BenchError>| {
            beside(&mut guests, (rate, away), switch.worker, work)
                .map(|(stream, worker_wait)| Row::new(name, count, &stream, worker_wait))
        };
        rows.push(stream(event.name(), count, &|| {
            repeat(&switch, &event, count, options)
        })?);
        let time = begun.elapsed();
        rows.push(stream("nothing", 0, &|| interruptible_sleep(time))?);
    }
    let machine = Machine::here(options.generator_core, options.switch_core[0], clock);
    let (mpps, size, ring) = (rate / 1e6, options.size, options.ring);
    let text = format!(
        "{mpps:.3} million frames of {size} bytes per second, rings of {ring}\n\n{}",
        table(&rows)
    );
    options.output.finish(&machine, &text, &rows)
}

fn interruptible_sleep(time: Duration) -> Result<(), BenchError> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        interrupt::check()?;
        std::thread::sleep(SETTLE.min(deadline.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// The lowest of several maxima: the cores may be closer to each other now than later.
fn maximum(guests: &mut GuestSet) -> Result<f64, BenchError> {
    let mut least = f64::INFINITY;
    for trial in 0..MAXIMUM_TRIALS {
        let mpps = guests.offer(None, MAXIMUM_TRIAL)?.mpps();
        eprintln!("maximum: {mpps:.3} Mpps");
        if trial > 0 {
            least = least.min(mpps);
        }
    }
    Ok(least * 1e6)
}

/// Offers frames at a rate while `work` is done. Returns also the percentage of that time that the worker waited for its
/// core.
fn beside(
    guests: &mut GuestSet,
    (rate, away): (f64, Duration),
    worker: Thread,
    work: &dyn Fn() -> Result<(), BenchError>,
) -> Result<(Offered, Option<f64>), BenchError> {
    let over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| guests.stream(rate, away, &over));
        std::thread::sleep(SETTLE);
        let wait = Wait::start([worker]);
        let done = work();
        let worker_wait = wait.percent();
        std::thread::sleep(SETTLE);
        over.store(true, Ordering::Relaxed);
        let stream = generator.join();
        done?;
        let stream = stream.expect("the release profile aborts on panics")?;
        Ok((stream, worker_wait))
    })
}

/// A switch with ports for the measured guests, for those that come and go, and for an interface.
fn start(options: &ChurnOptions) -> Result<Crosspoint, BenchError> {
    let interfaces = (options.interface > 0).then(interface);
    let setup = Setup {
        cores: options.switch_core.clone(),
        guests: GUESTS,
        interfaces: interfaces.into_iter().collect(),
        ..Setup::busy(options.switch_core[0])
    };
    crosspoint::start(&crosspoint::binary(options.switch.as_ref()), &setup)
}

/// Connects the measured guests.
fn connect(
    switch: &Crosspoint,
    options: &ChurnOptions,
    clock: Clock,
) -> Result<GuestSet, BenchError> {
    let name = format!("pair-{}-ring{}", options.size, options.ring);
    let scenario: Scenario = name.parse().map_err(BenchError::Usage)?;
    let settings = GuestSetOptions {
        burst: BURST,
        // Frames for which there is no room are not sent later.
        backlog: 0,
        // Room for all frames in flight, so a lost frame was lost by the switch.
        receiver_ring: Some(2 * options.ring),
        ..GuestSetOptions::on(options.generator_core)
    };
    GuestSet::connect(&switch.ports, &scenario, &settings, clock)
}

/// Repeats `event` `count` times.
fn repeat(
    switch: &Crosspoint,
    event: &Event,
    count: u32,
    options: &ChurnOptions,
) -> Result<(), BenchError> {
    let others = [2, 3].map(|number: usize| switch.ports.sockets[number].as_path());
    let stays = matches!(event, Event::Pause | Event::Reboot);
    let mut peers = stays.then(|| ChurnPeers::attach(others)).transpose()?;
    for _ in 0..count {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(options.pause_ms));
        match (event, &mut peers) {
            (Event::Pause, Some(peers)) => peers.pause()?,
            (Event::Reboot, Some(peers)) => peers.reboot()?,
            (Event::Kill, _) => ChurnPeers::attach(others)?.kill()?,
            (Event::Interface, _) => {
                let metrics = switch.metrics;
                Interface::add(&interface(), metrics)?.remove(metrics)?;
            }
            (Event::Command(line), _) => {
                let mut command = shell(line);
                command.env("CROSSPOINT_SOCKET", &switch.control);
                process::run(command.env("CROSSPOINT_CONFIG", &switch.file), line)?;
            }
            _ => ChurnPeers::attach(others)?.detach()?,
        }
    }
    Ok(())
}

/// The effect of one kind of event on the measured guests; or of nothing, for the same time.
#[derive(Clone, Debug, Serialize)]
struct Row {
    event: String,
    count: u32,
    /// Its length, including times at which the generator did not run.
    seconds: f64,
    /// Frames that became due.
    offered: u64,
    /// Frames that were given to the switch but not delivered.
    lost: u64,
    /// Frames for which the transmit ring had no room.
    refused: u64,
    /// How long a stream at this rate would have to be blocked to lose the same number of frames, seconds.
    blocked_seconds: f64,
    /// The longest time without a frame.
    longest_gap_us: f64,
    /// Part of the time during which the generator did not run: nothing was offered.
    away: f64,
    /// Percent of the time that the worker waited for its core.
    worker_wait: Option<f64>,
}

impl Row {
    fn new(event: &str, count: u32, stream: &Offered, worker_wait: Option<f64>) -> Self {
        let (seconds, away) = (stream.seconds, stream.away_ns as f64 / 1e9);
        let lost = stream.sent.saturating_sub(stream.arrived);
        let rate = stream.due as f64 / (seconds - away);
        Self {
            event: event.into(),
            count,
            seconds,
            offered: stream.due,
            lost,
            refused: stream.refused,
            blocked_seconds: (lost + stream.refused) as f64 / rate.max(1.0),
            longest_gap_us: stream.longest_gap_ns as f64 / 1e3,
            away: away / seconds,
            worker_wait,
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "event | >times | >s | >offered | >lost | >refused | >blocked ms | >longest gap us | \
         >worker waited | >generator away",
    );
    for row in rows {
        let wait = row
            .worker_wait
            .map_or(String::new(), |wait| format!("{wait:.1} %"));
        table.row(format_args!(
            "{} | {} | {:.1} | {} | {} | {} | {:.2} | {:.0} | {wait} | {:.1} %",
            row.event,
            row.count,
            row.seconds,
            row.offered,
            row.lost,
            row.refused,
            row.blocked_seconds * 1e3,
            row.longest_gap_us,
            row.away * 100.0,
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn events_that_are_not_asked_for_are_left_out() {
        let options: ChurnOptions = parse(&["--attach", "0", "--event-command", "true"]);
        let plan = options.plan();
        assert_eq!(plan.first(), Some(&(Event::Kill, 100)));
        assert_eq!(plan.last(), Some(&(Event::Command("true".into()), 100)));
        let wrong = ["--switch-core 0,1", "--ring 1000"];
        for wrong in wrong.map(|line| line.split(' ').collect::<Vec<_>>()) {
            assert!(parse::<ChurnOptions>(&wrong).check().is_err(), "{wrong:?}");
        }
    }
}
