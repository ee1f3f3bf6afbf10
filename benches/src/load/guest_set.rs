//! The connected guests of a scenario, and the threads that drive them.

use super::{Load, Offered};
use crate::error::BenchError;
use crate::lab::{Ports, Thread, pin};
use crate::load::connect::connect;
use crate::load::{
    AWAY, GuestQueue, Job, Quiet, Role, Scenario, Sender, Sink, addresses, generator,
};
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions, RxPump, TxPump, TxPumpOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for a path from every sender to its receiver.
const LEARN_MAX: Duration = Duration::from_secs(10);
/// Frames per second of each sender, while the switch learns.
const LEARN_RATE: f64 = 2000.0;
const LEARN_TRIAL: Duration = Duration::from_millis(10);
/// Time from the call to the first frame: by then every thread is awake.
const START_IN: Duration = Duration::from_millis(1);
/// Longest wait until a switch has taken a receiver's announcements, and the time added for each of its addresses.
const TEACH_MAX: Duration = Duration::from_millis(200);
const TEACH_ADDRESS_MAX: Duration = Duration::from_micros(300);
/// The same if there are many addresses.
const COVER_RATE: f64 = 200_000.0;
/// Properties of guests that do not depend on the scenario.
#[derive(Clone, Debug)]
pub struct GuestSetOptions {
    /// A core for each thread that drives guests.
    pub cores: Vec<usize>,
    /// Frames that a sender makes available at once.
    pub burst: usize,
    /// At a given rate: frames that a sender keeps while its ring is full.
    pub backlog: u64,
    /// Bytes of a receive buffer.
    pub rx_buffer: usize,
    /// Guest memory on 2 MiB pages.
    pub huge_pages: bool,
    /// Entries of the rings of guests that only receive, if they differ from the scenario's. Such guests are visited before
    /// the senders, so that the frames in flight fit their rings wherever a generator loses its core.
    pub receiver_ring: Option<u16>,
}

impl GuestSetOptions {
    /// Bursts of 32, and usual rings, on one core.
    pub fn on(core: usize) -> Self {
        Self {
            cores: vec![core],
            burst: 32,
            backlog: 1000,
            rx_buffer: 2048,
            huge_pages: false,
            receiver_ring: None,
        }
    }
}

/// A guest, with those queues that no generator has.
struct Member {
    role: Role,
    /// For a guest that only receives: sends its announcements.
    greeter: Option<TxPump>,
    /// For a guest that only sends: receives the announcements.
    greeted: Option<RxPump>,
    guest: Guest,
}

/// A thread that drives guests. It ends when dropped.
struct Generator {
    core: usize,
    thread: Thread,
    jobs: Option<mpsc::Sender<Job>>,
    outcomes: mpsc::Receiver<Result<Offered, BenchError>>,
    handle: Option<JoinHandle<()>>,
}

/// All guests of a scenario.
pub struct GuestSet {
    // First: the threads must end before the guests' sessions.
    generators: Vec<Generator>,
    members: Vec<Member>,
    /// Sessions of guests without traffic.
    _quiet: Vec<Guest>,
    /// Number of addresses on each side of a stream.
    addresses: u32,
    settings: GuestSetOptions,
    clock: Clock,
}

impl GuestSet {
    /// Connects all guests to the switch's ports, and waits until every sender's frames arrive.
    pub fn connect(
        ports: &Ports,
        scenario: &Scenario,
        settings: &GuestSetOptions,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let roles = scenario.roles(settings.cores.len());
        let options = guest_options(scenario, settings);
        let each = roles.iter().map(|role| {
            let ring = settings.receiver_ring.filter(|_| !role.sends);
            let ring_size = ring.unwrap_or(scenario.ring);
            let own = options.clone();
            (role.port, GuestOptions { ring_size, ..own })
        });
        let guests = connect(ports, &each.collect::<Vec<_>>())?;
        let member = |(role, guest): (&Role, Guest)| Member {
            role: *role,
            greeter: None,
            greeted: None,
            guest,
        };
        let mut members: Vec<Member> = roles.iter().zip(guests).map(member).collect();
        let mut shares: Vec<Vec<GuestQueue>> = settings.cores.iter().map(|_| Vec::new()).collect();
        let senders = roles.iter().filter(|role| role.sends).count();
        for number in visits(&roles) {
            let member = &mut members[number];
            let phase = number as f64 / senders as f64;
            let share = &mut shares[member.role.generator];
            share.extend(queues_of(
                member, number, &roles, scenario, settings, phase,
            )?);
        }
        let mut quiet = Vec::new();
        let visited = Quiet::connect(ports, scenario, &options, clock, &mut quiet)?;
        shares[0].extend(visited.map(|quiet| GuestQueue::Quiet(Box::new(quiet))));
        if settings.receiver_ring.is_some() {
            shares.iter_mut().for_each(|share| share.reverse());
        }
        let start =
            |(share, core): (Vec<GuestQueue>, &usize)| Generator::start(share, *core, clock);
        let generators: Result<_, _> = shares.into_iter().zip(&settings.cores).map(start).collect();
        let mut set = Self {
            generators: generators?,
            members,
            _quiet: quiet,
            addresses: scenario.addresses,
            settings: settings.clone(),
            clock,
        };
        set.learn(scenario)?;
        Ok(set)
    }

    /// The threads that drive guests, each with its core.
    pub fn threads(&self) -> Vec<(usize, Thread)> {
        let of = |generator: &Generator| (generator.core, generator.thread);
        self.generators.iter().map(of).collect()
    }

    fn senders(&self) -> usize {
        self.members.iter().filter(|m| m.role.sends).count()
    }

    /// Sends a few frames from every sender, and from and to every address, until all arrive, and none is flooded: a switch may
    /// take long for the first one between two addresses.
    fn learn(&mut self, scenario: &Scenario) -> Result<(), BenchError> {
        let deadline = Instant::now() + LEARN_MAX;
        let covering = Duration::from_secs_f64(f64::from(self.addresses) / COVER_RATE * 1.1);
        let (rate, time) = match self.addresses {
            1 => (LEARN_RATE, LEARN_TRIAL),
            _ => (COVER_RATE, covering),
        };
        loop {
            self.teach()?;
            let rate_of_all = rate * self.senders() as f64;
            let job = self.job(Some(rate_of_all), time);
            let Offered { due, arrived, .. } = self.do_all(&job)?;
            if arrived == due {
                return Ok(());
            }
            if Instant::now() < deadline {
                continue;
            }
            let what = format!("{scenario}: {arrived} of {due} frames arrive at {rate} a second");
            if self.addresses == 1 || arrived == 0 {
                return Err(BenchError::backend("the switch", what));
            }
            eprintln!("  {what}");
            return Ok(());
        }
    }

    /// Each guest that only receives sends one frame from each of its addresses, so that no address is aged out meanwhile,
    /// or flooded. The resulting frames are taken from those that only send. The stamp of these frames is 0.
    fn teach(&mut self) -> Result<(), BenchError> {
        for greeter in self.members.iter_mut().filter_map(|m| m.greeter.as_mut()) {
            let deadline = Instant::now() + TEACH_MAX + TEACH_ADDRESS_MAX * self.addresses;
            let mut left = self.addresses;
            while left > 0 && Instant::now() < deadline {
                left -= greeter.poll_stamped(left as usize, 0)?.frames;
            }
            while greeter.drain()? > 0 && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        for greeted in self.members.iter_mut().filter_map(|m| m.greeted.as_mut()) {
            while !greeted.poll()?.empty {}
        }
        Ok(())
    }

    /// Offers `rate` frames per second until `stop` is set, and then waits until nothing is in flight. A generator that was
    /// away for longer than `away` makes no frames for the time beyond.
    pub fn stream(
        &mut self,
        rate: f64,
        away: Duration,
        stop: &Arc<AtomicBool>,
    ) -> Result<Offered, BenchError> {
        self.teach()?;
        let job = Job {
            away,
            until: Some(Arc::clone(stop)),
            ..self.job(Some(rate), Duration::ZERO)
        };
        self.do_all(&job)
    }

    fn job(&self, rate: Option<f64>, time: Duration) -> Job {
        Job {
            start: tsc() + self.clock.cycles(START_IN),
            time,
            until: None,
            away: AWAY,
            rate: rate.map(|rate| rate / self.senders() as f64),
            rate_of_all: rate,
            burst: self.settings.burst,
            backlog: self.settings.backlog,
        }
    }

    /// Runs all generators at the same time.
    fn do_all(&self, job: &Job) -> Result<Offered, BenchError> {
        for generator in &self.generators {
            generator.ask(job);
        }
        // All must end, also if one fails.
        let answers: Vec<_> = self.generators.iter().map(Generator::answer).collect();
        let mut all = Offered::default();
        for offered in answers {
            all.add(&offered?);
        }
        Ok(all)
    }
}

impl Load for GuestSet {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        self.teach()?;
        self.do_all(&self.job(rate, time))
    }
}

/// The order in which guests are visited: each sender is followed by the guests that its frames pass through.
fn visits(roles: &[Role]) -> Vec<usize> {
    let mut order = Vec::new();
    for (number, role) in roles.iter().enumerate().filter(|(_, role)| role.sends) {
        order.push(number);
        let mut next = role.to;
        while let Some(number) = next.filter(|next| !order.contains(next)) {
            if roles[number].sends {
                break; // visited later
            }
            order.push(number);
            next = roles[number].to;
        }
    }
    order
}

/// The queues of guest `number`.
fn queues_of(
    member: &mut Member,
    number: usize,
    roles: &[Role],
    scenario: &Scenario,
    settings: &GuestSetOptions,
    phase: f64,
) -> Result<Vec<GuestQueue>, BenchError> {
    let (role, guest) = (member.role, &mut member.guest);
    let own = addresses::of(number);
    let next = role.to.map(addresses::of);
    if let (Some(next), false) = (next, role.sends) {
        let pump = guest.take_forward_pump(0, next, own)?;
        return Ok(vec![GuestQueue::Forward(Box::new(pump))]);
    }
    let mut list = Vec::new();
    if let Some(destination) = next {
        let (frame_len, mix) = scenario.frame_lens();
        let options = TxPumpOptions {
            frame_len,
            mix,
            source: own,
            destination,
            flows: scenario.flows,
            addresses: scenario.addresses,
            batch: settings.burst,
            ..TxPumpOptions::default()
        };
        let tx = guest.take_tx_pump(0, &options)?;
        list.push(GuestQueue::Send(Sender::new(tx, phase)));
    }
    if role.receives {
        let rx = guest.take_rx_pump(0, true)?;
        list.push(GuestQueue::Receive(Sink::new(rx)));
    } else {
        member.greeted = Some(guest.take_rx_pump(0, true)?);
    }
    if role.to.is_none() {
        let to = roles
            .iter()
            .position(|other| other.sends && other.to == Some(number));
        let options = TxPumpOptions {
            source: own,
            destination: addresses::of(to.unwrap_or(0)),
            addresses: scenario.addresses,
            ..TxPumpOptions::default()
        };
        member.greeter = Some(guest.take_tx_pump(0, &options)?);
    }
    Ok(list)
}

fn guest_options(scenario: &Scenario, settings: &GuestSetOptions) -> GuestOptions {
    let mut options = GuestOptions {
        ring_size: scenario.ring,
        packed: scenario.packed,
        huge_pages: settings.huge_pages,
        rx_buffer_len: settings.rx_buffer,
        ..GuestOptions::default()
    };
    if !scenario.mergeable {
        options.features &= !features::MRG_RXBUF;
    }
    options
}

impl Generator {
    /// Starts a thread on `core`, with its share of all guests.
    fn start(mut share: Vec<GuestQueue>, core: usize, clock: Clock) -> Result<Self, BenchError> {
        let (jobs, to_do) = mpsc::channel::<Job>();
        let (done, outcomes) = mpsc::channel();
        let (hello, thread) = mpsc::channel();
        let work = move || {
            let pinned = pin(core).map_err(BenchError::io(format!("core {core}")));
            let _ = hello.send(pinned.map(|()| Thread::current()));
            while let Ok(job) = to_do.recv() {
                if done.send(generator::run(&mut share, &job, clock)).is_err() {
                    return;
                }
            }
        };
        let name = format!("generator-{core}");
        let handle = std::thread::Builder::new().name(name).spawn(work);
        let handle = handle.map_err(BenchError::io("a thread"))?;
        let thread = thread.recv().expect("it says hello first")?;
        Ok(Self {
            core,
            thread,
            jobs: Some(jobs),
            outcomes,
            handle: Some(handle),
        })
    }

    fn ask(&self, job: &Job) {
        let jobs = self.jobs.as_ref().expect("there until it is dropped");
        let _ = jobs.send(job.clone()); // if it has ended, its answer is missing
    }

    fn answer(&self) -> Result<Offered, BenchError> {
        let ended = || BenchError::backend("the generator", "ended");
        self.outcomes.recv().map_err(|_| ended())?
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(handle) = self.handle.take() {
            let _ = handle.join(); // the error was reported already
        }
    }
}

#[cfg(test)]
mod tests;
