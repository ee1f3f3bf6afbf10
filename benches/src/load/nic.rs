//! Traffic between far ends of interfaces, or between a guest and a far end: a [`Load`].

use crate::error::BenchError;
use crate::lab::{FAR, NEAR, Ports, wire};
use crate::load::connect::connect;
use crate::load::nic_programs::now_ns;
use crate::load::{End, Load, Offered, Programs, Sending, addresses, times};
use clap::ValueEnum;
use crosspoint_guest::{Guest, GuestOptions, RxPump, TxPump, TxPumpOptions};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Frames that a guest makes available at once.
const GUEST_BURST: u16 = 32;
/// Runs of the generator in one call if the thread has nothing else to do: about 10 ms; the call itself costs some 20 µs.
const LONG_CALL: u32 = 16_384;
/// The same if the thread also receives: half a guest's ring.
const SHORT_CALL: u32 = 128;
/// Longest wait for a path in both directions.
const LEARN_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the last frames of a trial.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// After this long without a frame, none is in flight.
const DRAIN_QUIET: Duration = Duration::from_millis(5);

/// A path of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Path {
    /// From one interface to the other.
    NicToNic,
    /// From a guest to an interface.
    GuestToNic,
    /// From an interface to a guest.
    NicToGuest,
}

impl Path {
    /// Whether a guest is at one end.
    pub fn has_guest(self) -> bool {
        self != Self::NicToNic
    }

    /// Its name in tables.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// The traffic.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source and destination.
    pub path: Path,
    /// Bytes of each frame, without FCS.
    pub len: usize,
    /// Flows, by UDP ports.
    pub flows: u32,
}

/// A connected generator and sink. Belongs to the thread that made it.
pub struct NicLoad {
    traffic: Programs,
    flow: Flow,
    /// What the generator sends.
    sending: Sending,
    guest: Option<GuestEnd>,
}

struct GuestEnd {
    tx: TxPump,
    rx: RxPump,
    /// Times of stamped frames, ns.
    latency: Histogram<u64>,
    _guest: Guest,
}

impl NicLoad {
    /// Attaches sinks to the interfaces' far ends, connects the guest to the first port if there is one, and waits until the
    /// switch has learned both addresses.
    pub fn connect(flow: Flow, ports: &Ports) -> Result<Self, BenchError> {
        let mut traffic = Programs::load()?;
        if flow.path != Path::NicToGuest {
            traffic.attach(FAR[1], End::Sink)?;
        }
        let has_guest = flow.path.has_guest();
        let guest = has_guest.then(|| GuestEnd::connect(&flow, ports));
        let guest = guest.transpose()?;
        let from = if flow.path == Path::NicToNic { 0 } else { 1 };
        let mut this = Self {
            traffic,
            flow,
            sending: sending(&flow, from)?,
            guest,
        };
        this.learn()?;
        Ok(this)
    }

    /// The same without a switch: the generator's frames are counted where a switch's program would be.
    pub fn without_switch(flow: Flow) -> Result<Self, BenchError> {
        let mut traffic = Programs::load()?;
        wire::take_bursts(NEAR[0])?;
        traffic.attach(NEAR[0], End::SinkXdp)?;
        Ok(Self {
            traffic,
            flow,
            sending: sending(&flow, 0)?,
            guest: None,
        })
    }

    /// Sends single frames in both directions, until one has arrived in the measured direction.
    fn learn(&mut self) -> Result<(), BenchError> {
        let back = sending(&self.flow, 1)?;
        let deadline = Instant::now() + LEARN_MAX;
        loop {
            self.traffic.clear()?;
            self.send_one(&back)?;
            std::thread::sleep(Duration::from_millis(2));
            if self.flow.path == Path::NicToNic {
                self.send_one(&self.sending.clone())?;
            }
            let mut arrived = 0;
            if let Some(guest) = &mut self.guest {
                guest.tx.poll_stamped(1, 0)?;
                std::thread::sleep(Duration::from_millis(2));
                arrived = u64::from(guest.rx.poll()?.frames);
            }
            std::thread::sleep(Duration::from_millis(2));
            if self.flow.path != Path::NicToGuest {
                arrived = self.traffic.arrived()?;
            }
            if arrived > 0 {
                break;
            }
            if Instant::now() > deadline {
                let what = "no frame arrives through the switch";
                return Err(BenchError::backend(&self.flow.path.name(), what));
            }
        }
        self.drain(0)?;
        Ok(())
    }

    fn send_one(&mut self, sending: &Sending) -> Result<(), BenchError> {
        self.traffic.plan(sending, None, Duration::from_secs(1))?;
        self.traffic.generate(1)?;
        Ok(())
    }

    /// Runs the generator, or the guest's driver, and receives what has come to the guest.
    fn run(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let from_guest = self.flow.path == Path::GuestToNic;
        if !from_guest {
            self.traffic.plan(&self.sending, rate, time)?;
        }
        let calls = if self.guest.is_some() {
            SHORT_CALL
        } else {
            LONG_CALL
        };
        let start = now_ns();
        let (mut sent, mut received, mut polls, mut full) = (0, 0, 0_u64, 0_u64);
        let due = |ns: u64| rate.map(|rate| (ns as f64 * rate / 1e9) as u64);
        let passed = loop {
            let passed = now_ns() - start;
            let mut is_over = passed >= time.as_nanos() as u64;
            if !from_guest {
                is_over = !self.traffic.generate(calls)?;
            }
            if let Some(guest) = &mut self.guest {
                if from_guest && !is_over {
                    let held = due(passed).map(|due| due.saturating_sub(sent) as usize);
                    let limit = held.unwrap_or(GUEST_BURST.into());
                    let poll = guest.tx.poll_stamped(limit, start + passed)?;
                    sent += u64::from(poll.frames);
                    full += u64::from(poll.full && limit > 0);
                    polls += 1;
                }
                received += guest.receive_all(!from_guest)?;
            }
            if is_over {
                break now_ns() - start;
            }
        };
        if !from_guest {
            sent = self.traffic.sent()?;
        }
        Ok(Offered {
            seconds: passed as f64 / 1e9,
            due: due(passed.min(time.as_nanos() as u64)).unwrap_or(sent),
            sent,
            arrived_within: match self.flow.path {
                Path::NicToGuest => received,
                _ => self.traffic.arrived()?,
            },
            polls,
            polls_full: full,
            ..Offered::default()
        })
    }

    /// Waits until nothing is in flight. Returns the number of frames that arrived, including `received` by the guest
    /// before.
    fn drain(&mut self, received: u64) -> Result<u64, BenchError> {
        let deadline = Instant::now() + DRAIN_MAX;
        let (mut at_guest, mut at_sink) = (received, self.traffic.arrived()?);
        let mut quiet_since = Instant::now();
        loop {
            let mut more = false;
            if let Some(guest) = &mut self.guest {
                let frames = guest.receive(false)?;
                at_guest += frames;
                more = frames > 0 || guest.tx.drain()? > 0;
            }
            let arrived = self.traffic.arrived()?;
            more |= arrived != std::mem::replace(&mut at_sink, arrived);
            let now = Instant::now();
            if more {
                quiet_since = now;
            }
            if now - quiet_since > DRAIN_QUIET || now > deadline {
                break;
            }
        }
        Ok(match self.flow.path {
            Path::NicToNic | Path::GuestToNic => at_sink,
            Path::NicToGuest => at_guest,
        })
    }
}

impl Load for NicLoad {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        self.traffic.clear()?;
        if let Some(guest) = &mut self.guest {
            guest.latency.reset();
            if self.flow.path == Path::NicToGuest {
                // Keeps its address learned, and the other's: it sends nothing else.
                guest.tx.poll_stamped(1, 0)?;
            }
        }
        let offered = self.run(rate, time)?;
        let arrived = self.drain(offered.arrived_within)?;
        let latency_ns = match (&self.guest, self.flow.path) {
            (Some(guest), Path::NicToGuest) => guest.latency.clone(),
            _ => self.traffic.latencies()?,
        };
        Ok(Offered {
            arrived,
            latency_ns,
            ..offered
        })
    }
}

impl GuestEnd {
    fn connect(flow: &Flow, ports: &Ports) -> Result<Self, BenchError> {
        let mut guests = connect(ports, &[(0, GuestOptions::default())])?;
        let mut guest = guests.swap_remove(0);
        let pump = TxPumpOptions {
            frame_len: flow.len,
            source: addresses::of(0),
            destination: addresses::of(1),
            flows: flow.flows,
            batch: GUEST_BURST.into(),
            ..TxPumpOptions::default()
        };
        Ok(Self {
            tx: guest.take_tx_pump(0, &pump)?,
            rx: guest.take_rx_pump(0, true)?,
            latency: times(),
            _guest: guest,
        })
    }

    fn receive(&mut self, is_sampled: bool) -> Result<u64, BenchError> {
        if !is_sampled {
            return Ok(self.rx.poll()?.frames.into());
        }
        let (latency, mut seen) = (&mut self.latency, false);
        let received = self.rx.poll_each(|head| {
            let stamp = head.stamp();
            if stamp > 0 && !seen {
                seen = true;
                latency.saturating_record(now_ns().saturating_sub(stamp).max(1));
            }
        })?;
        Ok(received.frames.into())
    }

    fn receive_all(&mut self, is_sampled: bool) -> Result<u64, BenchError> {
        let mut frames = 0;
        loop {
            match self.receive(is_sampled)? {
                0 => return Ok(frames),
                more => frames += more,
            }
        }
    }
}

/// Frames from the far end of the interface `from` to the other port.
fn sending(flow: &Flow, from: usize) -> Result<Sending, BenchError> {
    Ok(Sending {
        interface: wire::index(FAR[from])?,
        addresses: [addresses::of(from), addresses::of(1 - from)],
        len: flow.len,
        flows: flow.flows,
    })
}
