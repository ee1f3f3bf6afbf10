//! Guests of this process that exchange numbered frames, and what arrives.

use super::disturb::VICTIM;
use crate::error::BenchError;
use crate::load::{addresses, times};
use crosspoint_guest::Guest;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two rounds of sending and receiving.
const ROUND: Duration = Duration::from_micros(400);
/// A round that takes longer was kept from its core: no gap is counted for that time.
const AWAY: Duration = Duration::from_millis(2);
/// Offsets behind the headers of Ethernet, IPv4 and UDP.
const NUMBER_AT: usize = 42;
const STAMP_AT: usize = 50;
const FILL_AT: usize = 58;

/// What a station sends to its peer.
pub struct Flow {
    /// The number of the next frame that is sent, and the one after the highest that has arrived.
    pub sent: u64,
    next: u64,
    pub arrived: u64,
    /// Frames that came late or a second time.
    pub repeated: u64,
    last_at: Instant,
    longest: Duration,
}

impl Flow {
    /// The longest time without a frame since [`Traffic::begin`].
    pub fn gap(&self) -> Duration {
        self.longest.max(self.last_at.elapsed())
    }
}

/// What is known of the traffic, and of all promises that were broken.
pub struct State {
    /// By the station that sends. Stations 0 and 1 are peers, 2 and 3, and so on; those after them only listen.
    pub flows: Vec<Flow>,
    pub latency_ns: Histogram<u64>,
    pub faults: Vec<String>,
    /// After a crash frames that a worker had in hand may come again.
    may_repeat: bool,
}

/// The stations. A thread drives them by [`Traffic::work`].
pub struct Traffic {
    stations: Vec<Mutex<Guest>>,
    state: Mutex<State>,
    pub over: AtomicBool,
    pub quiet: AtomicBool,
    epoch: Instant,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Stations of which the first `senders` send, from when [`work`](Self::work) is called.
    pub fn new(stations: Vec<Guest>, senders: usize) -> Self {
        let epoch = Instant::now();
        let flow = |_| Flow {
            sent: 0,
            next: 0,
            arrived: 0,
            repeated: 0,
            last_at: epoch,
            longest: Duration::ZERO,
        };
        let state = State {
            flows: (0..senders).map(flow).collect(),
            latency_ns: times(),
            faults: Vec::new(),
            may_repeat: false,
        };
        Self {
            stations: stations.into_iter().map(Mutex::new).collect(),
            state: Mutex::new(state),
            over: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            epoch,
        }
    }

    /// A station, which neither sends nor receives meanwhile.
    pub fn station(&self, number: usize) -> MutexGuard<'_, Guest> {
        lock(&self.stations[number])
    }

    /// What is known.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A promise was broken.
    pub fn fault(&self, what: String) {
        self.state().fault(what);
    }

    /// Sends again, and measures gaps anew.
    pub fn begin(&self, may_repeat: bool) {
        self.quiet.store(false, Relaxed);
        let mut state = self.state();
        state.may_repeat = may_repeat;
        for flow in &mut state.flows {
            (flow.longest, flow.last_at) = (Duration::ZERO, Instant::now());
        }
    }

    /// Stops sending, and waits until the switch has taken all that was sent. Returns the stations whose frames it leaves.
    pub fn drain(&self, longest: Duration) -> Vec<usize> {
        self.quiet.store(true, Relaxed);
        let all = 0..self.stations.len();
        let is_left = |number: &usize| {
            let drained = self.station(*number).drain_transmit(0, longest);
            !drained.unwrap_or(false)
        };
        all.filter(is_left).collect()
    }

    /// Sends and receives until all is over.
    pub fn work(&self) {
        let mut last = Instant::now();
        while !self.over.load(Relaxed) {
            std::thread::sleep(ROUND);
            let mut state = lock(&self.state);
            let now = Instant::now();
            let away = now - std::mem::replace(&mut last, now);
            for flow in state.flows.iter_mut().filter(|_| away > AWAY) {
                flow.last_at += away.min(now.saturating_duration_since(flow.last_at));
            }
            for (number, station) in self.stations.iter().enumerate() {
                let Ok(mut guest) = station.try_lock() else {
                    continue; // something is done to it
                };
                if let Err(why) = self.serve(number, &mut guest, &mut state) {
                    state.fault(format!("station {number}: {why}"));
                }
            }
        }
    }

    fn serve(&self, at: usize, guest: &mut Guest, state: &mut State) -> Result<(), BenchError> {
        for (_, bytes) in guest.receive(0)? {
            state.hear(at, &bytes, self.epoch);
        }
        let quiet = self.quiet.load(Relaxed);
        if let Some(flow) = state.flows.get_mut(at).filter(|_| !quiet) {
            // One to eight at a time.
            let numbers = flow.sent..flow.sent + 1 + (flow.sent / 7) % 8;
            let stamp = self.epoch.elapsed().as_nanos() as u64;
            let frames: Vec<_> = numbers.map(|n| frame(at, n, stamp)).collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            flow.sent += guest.send(0, &frames)? as u64;
        }
        Ok(())
    }
}

impl State {
    fn fault(&mut self, what: String) {
        eprintln!("fault: {what}");
        self.faults.push(what);
    }

    /// A frame has arrived at station `at`. Those for others were flooded; a mirror's copies are for others too.
    fn hear(&mut self, at: usize, bytes: &[u8], epoch: Instant) {
        if bytes.len() < FILL_AT || bytes[..6] != addresses::of(at) || bytes[12..14] != [8, 0] {
            return;
        }
        let word = |from: usize| {
            let bytes = bytes[from..from + 8].iter();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let (from, number, stamp) = (at ^ 1, word(NUMBER_AT), word(STAMP_AT));
        let flow = &mut self.flows[from];
        if number >= flow.sent || frame(from, number, stamp) != bytes {
            return self.fault(format!("to station {at}: a wrong byte in {bytes:x?}"));
        }
        let now = Instant::now();
        flow.longest = flow
            .longest
            .max(now.saturating_duration_since(flow.last_at));
        flow.last_at = flow.last_at.max(now);
        if number < flow.next {
            flow.repeated += 1;
            let next = flow.next;
            if !self.may_repeat {
                self.fault(format!("to station {at}: frame {number} after {next}"));
            }
            return;
        }
        (flow.next, flow.arrived) = (number + 1, flow.arrived + 1);
        if at >= VICTIM {
            return; // its frames wait while it is away
        }
        let took = (now - epoch).as_nanos() as u64;
        self.latency_ns
            .saturating_record(took.saturating_sub(stamp));
    }
}

/// Frame `number` from a station to its peer. Its length and its bytes follow from the number.
fn frame(from: usize, number: u64, stamp: u64) -> Vec<u8> {
    let to = from ^ 1;
    let len = FILL_AT + (number as usize * 37) % 1400;
    let [a, b] = [from, to].map(|station| 0x0a09_0000 + station as u32);
    let words = [
        0x4500_0000 + len as u32 - 14,
        0x4000,
        0x4011_0000,
        a,
        b,
        // Both directions of a pair are one connection.
        (1000 + from as u32) << 16 | (1000 + to as u32),
        (len as u32 - 34) << 16,
    ];
    let halves = words[..5].iter().map(|word| (word >> 16) + (word & 0xffff));
    let sum: u32 = halves.sum();
    let mut bytes = [&addresses::of(to)[..], &addresses::of(from), &[8, 0]].concat();
    bytes.extend(words.into_iter().flat_map(u32::to_be_bytes));
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes.extend([number, stamp].into_iter().flat_map(u64::to_be_bytes));
    bytes.extend((FILL_AT..len).map(|at| (at as u64 * 31 + number) as u8));
    bytes
}
