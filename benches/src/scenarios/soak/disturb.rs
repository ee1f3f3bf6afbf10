//! The disturbances.

use super::world::{World, ip, make_wire, options};
use crate::error::BenchError;
use crate::lab::process::{run, shell, wait_until};
use crate::random::Random;
use crosspoint_guest::{Guest, GuestError, GuestOptions, Session};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use rustix::time::{ClockId, clock_gettime, clock_settime};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

type Done = Result<(), BenchError>;

/// Station `d0`, to which things are done. The next one, `d1`, has no other peer.
pub const VICTIM: usize = 6;
/// Longest wait for another process of the switch.
const RESTART_MAX: Duration = Duration::from_secs(20);

/// What a disturbance costs guests that it does not concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing.
    Free,
    /// Their rings stand still for a moment.
    Pause,
    /// Their rings stand still until the next process runs, and what a worker had in hand is lost or comes again.
    Crash,
}
use Cost::{Crash, Free, Pause};

/// Something that happens.
pub struct Disturbance {
    pub name: &'static str,
    /// How often it happens, relative to others.
    pub weight: u64,
    /// The first letters of the stations that it concerns.
    pub concerns: &'static str,
    pub cost: Cost,
    /// Serious lines of the log that it causes contain one of these.
    pub expected: &'static [&'static str],
    pub run: fn(&mut Stage) -> Done,
}

/// What disturbances act on.
pub struct Stage {
    pub world: World,
    pub random: Random,
    /// By how many seconds the clock is stepped; 0: not.
    pub clock_step: i64,
    version: u64,
    is_upgraded: bool,
    /// Where station `d0` is attached.
    place: &'static str,
}

macro_rules! table {
    ($($name:literal $weight:literal $concerns:literal $cost:ident $expected:expr => $run:ident;)*) => {
        /// All disturbances; the last one only with `--clock`.
        pub static TABLE: &[Disturbance] = &[$(Disturbance {
            name: $name, weight: $weight, concerns: $concerns, cost: $cost, expected: $expected, run: $run,
        }),*];
    };
}

table! {
    "guest shut down, attached" 4 "d" Free &[] => shut_down;
    "guest hangs up, attached" 4 "d" Free &[] => hang_up;
    "guest rebooted" 4 "d" Free &[] => reboot;
    "guest killed" 4 "" Free &[] => kill_guest;
    "rings stopped, started" 4 "d" Free &[] => stop_rings;
    "device reset" 3 "d" Free &[] => reset_device;
    "guest migrated" 4 "d" Free &[] => migrate;
    "reload" 3 "" Free &[] => reload;
    "port added, removed" 3 "" Free &[] => add_port;
    "upgrade" 3 "w" Pause &[] => upgrade;
    "upgrade back" 2 "w" Pause &[] => upgrade_back;
    "upgrade during another" 4 "dw" Pause &["no upgrade", "h0"] => upgrade_during;
    "switch killed" 2 "w" Crash &["the switch has ended"] => kill_switch;
    "killed during an upgrade" 2 "w" Crash &["the switch has ended", "no upgrade"] => kill_in_upgrade;
    "supervisor killed" 2 "w" Pause &["no upgrade"] => kill_supervisor;
    "supervisor killed in an upgrade" 2 "w" Pause &["no upgrade", "the supervisor has ended", "the supervisor cannot be understood"] => kill_supervisor_in_upgrade;
    "link down, up" 3 "w" Free &[] => flap;
    "interface made anew" 3 "w" Free &[] => make_anew;
    "memory pressure" 1 "" Free &[] => press_memory;
    "descriptors exhausted" 3 "d" Free &["os error 24"] => exhaust_descriptors;
    "disk full" 3 "dw" Pause &["os error 28"] => fill_disk;
    "hostile guest" 4 "" Free &["h0"] => attack;
    "clock steps" 3 "" Free &[] => step_clock;
}

/// Ends a process at once.
fn kill(id: u32) {
    if let Some(id) = Pid::from_raw(id as i32) {
        let _ = kill_process(id, Signal::KILL); // ended already
    }
}

/// Starts a command whose result does not matter.
fn start(command: &mut Command) -> Result<Child, BenchError> {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(BenchError::io("a command"))
}

impl Stage {
    pub fn new(world: World, random: Random, clock_step: i64) -> Self {
        Self {
            world,
            random,
            clock_step,
            version: 0,
            is_upgraded: false,
            place: "d0",
        }
    }

    fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.next() % most_ms));
    }

    fn coin(&mut self) -> bool {
        self.random.next().is_multiple_of(2)
    }

    /// Does something to station `d0`, which neither sends nor receives meanwhile.
    fn do_to_victim(&self, work: impl FnOnce(&mut Guest) -> Result<(), GuestError>) -> Done {
        Ok(work(&mut self.world.traffic.station(VICTIM))?)
    }

    fn attach_victim(&self) -> Done {
        self.world
            .connect(&mut self.world.traffic.station(VICTIM), self.place)
    }

    /// Lets others be tested after one that failed.
    pub fn recover(&mut self) {
        self.world.traffic.station(VICTIM).disconnect();
        let _ = self.attach_victim().and_then(|()| make_wire());
    }

    /// The process that serves the ports.
    fn switch(&self) -> Result<u32, BenchError> {
        let found = wait_until(RESTART_MAX, || Ok(self.world.children().last().copied()))?;
        found.ok_or_else(|| BenchError::backend("supervisor", "has no process"))
    }
}

fn shut_down(stage: &mut Stage) -> Done {
    stage.do_to_victim(|guest| guest.stop().map(|_| guest.disconnect()))?;
    stage.pause(100);
    stage.attach_victim()
}

fn hang_up(stage: &mut Stage) -> Done {
    stage.world.traffic.station(VICTIM).disconnect();
    stage.pause(100);
    stage.attach_victim()
}

fn reboot(stage: &mut Stage) -> Done {
    let mut guest = stage.world.traffic.station(VICTIM);
    guest.stop()?;
    guest.disconnect();
    guest.reset(0);
    stage.world.connect(&mut guest, stage.place)
}

fn kill_guest(stage: &mut Stage) -> Done {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["soak", "--child"])
        .arg(stage.world.dir.join("c0.sock"));
    let mut child = start(&mut command)?;
    stage.pause(400);
    kill(child.id());
    child.wait().map(|_| ()).map_err(BenchError::io("a child"))
}

fn stop_rings(stage: &mut Stage) -> Done {
    stage.do_to_victim(|guest| guest.stop().and_then(|_| guest.restart()))
}

fn reset_device(stage: &mut Stage) -> Done {
    stage.do_to_victim(|guest| guest.reset_device().and_then(|()| guest.restart()))
}

fn migrate(stage: &mut Stage) -> Done {
    stage.do_to_victim(|guest| guest.start_dirty_log().map(|_| ()))?;
    stage.pause(200);
    stage.do_to_victim(|guest| guest.stop().map(|_| guest.disconnect()))?;
    stage.place = if stage.place == "d0" { "e0" } else { "d0" };
    stage.attach_victim()?;
    stage.do_to_victim(Guest::stop_dirty_log)
}

fn reload(stage: &mut Stage) -> Done {
    stage.version += 1;
    stage.world.reload(stage.version, false)
}

fn add_port(stage: &mut Stage) -> Done {
    stage.world.reload(stage.version, true)?;
    let mut guest = Guest::new(options(stage.coin()))?;
    stage.world.connect(&mut guest, "x0")?;
    guest.send(0, &[&[0xff; 60]])?;
    stage.pause(100);
    stage.world.reload(stage.version, false)
}

fn upgrade(stage: &mut Stage) -> Done {
    stage.world.ask(&["upgrade"])?;
    stage.is_upgraded = true;
    Ok(())
}

fn upgrade_back(stage: &mut Stage) -> Done {
    if !stage.is_upgraded {
        upgrade(stage)?;
    }
    stage.world.ask(&["upgrade", "--back"])
}

/// An upgrade begins, which may be refused, and something else happens before it ends.
fn upgrade_during(stage: &mut Stage) -> Done {
    const OTHERS: [fn(&mut Stage) -> Done; 10] = [
        shut_down,
        hang_up,
        reboot,
        kill_guest,
        stop_rings,
        reset_device,
        migrate,
        flap,
        make_anew,
        attack,
    ];
    let mut upgrade = start(&mut stage.world.command(&["upgrade"]))?;
    stage.pause(150);
    let other = OTHERS[stage.random.next() as usize % OTHERS.len()];
    let done = other(stage);
    let _ = upgrade.wait();
    done
}

fn kill_switch(stage: &mut Stage) -> Done {
    stage.is_upgraded = false; // the supervisor may go back
    stage.switch().map(kill)
}

/// Either the old process or the new one.
fn kill_in_upgrade(stage: &mut Stage) -> Done {
    let mut upgrade = start(&mut stage.world.command(&["upgrade"]))?;
    stage.pause(200);
    match stage.world.children().first() {
        Some(old) if stage.coin() => kill(*old),
        _ => kill_switch(stage)?,
    }
    stage.is_upgraded = false;
    let _ = upgrade.wait();
    Ok(())
}

/// The switch goes on, and so does the next supervisor with it.
fn kill_supervisor(stage: &mut Stage) -> Done {
    kill(stage.world.supervisor.id());
    stage.pause(200);
    stage.is_upgraded = false; // what was before is not known
    stage.world.supervise_anew()
}

fn kill_supervisor_in_upgrade(stage: &mut Stage) -> Done {
    let mut upgrade = start(&mut stage.world.command(&["upgrade"]))?;
    stage.pause(100);
    let done = kill_supervisor(stage);
    let _ = upgrade.wait();
    // The process that does not take over says so.
    std::thread::sleep(Duration::from_millis(200));
    done
}

fn flap(stage: &mut Stage) -> Done {
    ip("link set u0 down")?;
    stage.pause(300);
    ip("link set u0 up")
}

fn make_anew(stage: &mut Stage) -> Done {
    ip("link del u0")?;
    stage.pause(300);
    make_wire()
}

/// Half a gigabyte, which `tail` keeps as one line.
fn press_memory(_: &mut Stage) -> Done {
    let line = "ulimit -v 700000; head -c 512M /dev/zero | timeout 5 tail -n 1 > /dev/null; true";
    run(&mut shell(line), "memory")
}

/// The process may open nothing for a while. Guests and commands that come then are served when it may again.
fn exhaust_descriptors(stage: &mut Stage) -> Done {
    let set = |limit: Rlimit| {
        let pid = stage.switch().map(|id| Pid::from_raw(id as i32))?;
        prlimit(pid, Resource::Nofile, limit).map_err(|why| BenchError::io("limit")(why.into()))
    };
    let few = stage.random.clone().next() % 60;
    stage.world.traffic.station(VICTIM).disconnect();
    let usual = set(Rlimit {
        current: Some(few),
        maximum: getrlimit(Resource::Nofile).maximum,
    })?;
    let waiting = Session::connect(stage.world.dir.join("c0.sock"), RESTART_MAX);
    let mut reload = start(&mut stage.world.command(&["reload"]))?;
    std::thread::sleep(Duration::from_millis(10 * few));
    set(usual)?;
    let _ = reload.wait();
    drop(waiting);
    stage.attach_victim()
}

/// Log, configuration and sockets are on this file system.
fn fill_disk(stage: &mut Stage) -> Done {
    let filler = stage.world.dir.join("filler");
    run(
        &mut shell(&format!(
            "head -c 1G /dev/zero > {} 2> /dev/null; true",
            filler.display()
        )),
        "fill",
    )?;
    let done = hang_up(stage);
    let other = match stage.random.next() % 3 {
        0 => stage.world.ask(&["reload"]),
        1 => flap(stage),
        _ => upgrade(stage),
    };
    let _ = std::fs::remove_file(filler);
    done.and(other)
}

/// A guest that writes nonsense into its rings, and then into its connection.
fn attack(stage: &mut Stage) -> Done {
    let mut guest = Guest::new(options(stage.coin()))?;
    stage.world.connect(&mut guest, "h0")?;
    for _ in 0..1 + stage.random.next() % 60 {
        let [at, value] = [stage.random.next(), stage.random.next()];
        let layout = match at >> 32 & 3 {
            0 => guest.receive_queue(0)?.virtqueue().layout(),
            _ => guest.transmit_queue(0)?.virtqueue().layout(),
        };
        let address = match at % 4 {
            0 => layout.available + 2,
            1 => layout.available + at / 4 % 512,
            _ => layout.descriptors + at / 4 % (16 * u64::from(layout.size)),
        };
        let bytes = &value.to_le_bytes()[..2 + (value % 3) as usize * 2];
        guest
            .memory()
            .write(address, bytes)
            .map_err(GuestError::from)?;
        guest.kick((at / 8 % 2) as usize)?;
        stage.pause(3);
    }
    let head = [stage.random.next() as u32 % 45, 1, 28]
        .map(u32::to_le_bytes)
        .concat();
    let body: Vec<u8> = (0..28).map(|_| stage.random.next() as u8).collect();
    let session = guest.session()?;
    let _ = session.send_bytes(&[head, body].concat(), &[]); // it may be disconnected already
    Ok(())
}

fn step_clock(stage: &mut Stage) -> Done {
    for step in [stage.clock_step, -stage.clock_step] {
        let mut now = clock_gettime(ClockId::Realtime);
        now.tv_sec += step;
        let set = clock_settime(ClockId::Realtime, now);
        set.map_err(|why| BenchError::io("the clock")(why.into()))?;
        stage.pause(500);
    }
    Ok(())
}

/// A guest of its own process, which sends to station `s1` and to all until it is killed.
pub fn send_until_killed(socket: &std::path::Path) -> Done {
    let mut guest = crate::load::connect::to_listener(socket, &GuestOptions::default())?;
    let mut frame = [0x5a; 200];
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 7, 7, 0x88, 0xb5]);
    loop {
        for to in [[0xff; 6], crate::load::addresses::of(1)] {
            frame[..6].copy_from_slice(&to);
            guest.send(0, &[&frame[..]; 3])?;
        }
        guest.receive(0)?;
        std::thread::sleep(Duration::from_micros(400));
    }
}
