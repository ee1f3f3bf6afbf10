//! Traffic between far ends of interfaces, or between a guest and a far end: a [`Load`].

use crate::error::BenchError;
use crate::lab::{FAR, NEAR, Ports, wire};
use crate::load::connect::connect;
use crate::load::nic_programs::now_ns;
use crate::load::{End, Load, Offered, Programs, Sending, addresses, part_of, times};
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

/// The results of one kind of generator.
#[derive(Default)]
struct Done {
    sent: u64,
    /// Frames that the rate asked for.
    due: Option<u64>,
    arrived_within: u64,
    ring_full: f64,
    seconds: f64,
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

    /// Runs the generator; this thread has nothing to receive.
    fn offer_from_nic(&mut self, rate: Option<f64>, time: Duration) -> Result<Done, BenchError> {
        self.traffic.plan(&self.sending, rate, time)?;
        let start = now_ns();
        while self.traffic.generate(LONG_CALL)? {}
        let arrived_within = self.traffic.arrived()?;
        self.done(rate, time, start, arrived_within)
    }

    /// Runs the generator and the guest's driver in turn.
    fn offer_to_guest(&mut self, rate: Option<f64>, time: Duration) -> Result<Done, BenchError> {
        let Some(guest) = &mut self.guest else {
            return Ok(Done::default());
        };
        self.traffic.plan(&self.sending, rate, time)?;
        let (start, mut arrived_within) = (now_ns(), 0);
        while self.traffic.generate(SHORT_CALL)? {
            arrived_within += guest.receive_all()?;
        }
        self.done(rate, time, start, arrived_within)
    }

    /// The generator's results since `start`, nanoseconds.
    fn done(
        &self,
        rate: Option<f64>,
        time: Duration,
        start: u64,
        arrived_within: u64,
    ) -> Result<Done, BenchError> {
        Ok(Done {
            sent: self.traffic.sent()?,
            due: rate.map(|rate| (rate * time.as_secs_f64()) as u64),
            arrived_within,
            seconds: (now_ns() - start) as f64 / 1e9,
            ..Done::default()
        })
    }

    /// Runs only the guest's driver.
    fn offer_from_guest(&mut self, rate: Option<f64>, time: Duration) -> Result<Done, BenchError> {
        let Some(guest) = &mut self.guest else {
            return Ok(Done::default());
        };
        let start = now_ns();
        let end = start + time.as_nanos() as u64;
        let (mut now, mut sent, mut polls, mut full) = (start, 0, 0_u64, 0_u64);
        let due = |now: u64| rate.map(|rate| ((now - start) as f64 * rate / 1e9) as u64);
        while now < end {
            let limit =
                due(now).map_or(GUEST_BURST.into(), |due| due.saturating_sub(sent) as usize);
            let poll = guest.tx.poll_stamped(limit, now)?;
            sent += u64::from(poll.frames);
            full += u64::from(poll.full && limit > 0);
            guest.receive(false)?;
            polls += 1;
            now = now_ns();
        }
        let arrived_within = self.traffic.arrived()?;
        Ok(Done {
            sent,
            due: due(now),
            arrived_within,
            ring_full: part_of(full, polls),
            seconds: (now - start) as f64 / 1e9,
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
        let done = match self.flow.path {
            Path::NicToNic => self.offer_from_nic(rate, time)?,
            Path::NicToGuest => self.offer_to_guest(rate, time)?,
            Path::GuestToNic => self.offer_from_guest(rate, time)?,
        };
        let arrived = self.drain(done.arrived_within)?;
        let latency_ns = match (&self.guest, self.flow.path) {
            (Some(guest), Path::NicToGuest) => guest.latency.clone(),
            _ => self.traffic.latencies()?,
        };
        Ok(Offered {
            seconds: done.seconds,
            due: done.due.unwrap_or(done.sent),
            sent: done.sent,
            arrived,
            arrived_within: done.arrived_within,
            ring_full: done.ring_full,
            latency_ns,
            ..Offered::default()
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

    fn receive_all(&mut self) -> Result<u64, BenchError> {
        let mut frames = 0;
        loop {
            match self.receive(true)? {
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
