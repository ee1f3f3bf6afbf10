//! Two guests in this process: generator and sink on one thread, as tight as they can be.

use crate::error::BenchError;
use crate::guest;
use crate::options::{Direction, FCS_LEN, Ports, VmOptions};
use crate::trial::{Configuration, Traffic};
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::net::features;
use crosspoint_guest::{Guest, GuestOptions, RxPump, TxPump, TxPumpOptions};
use hdrhistogram::Histogram;
use std::path::Path;
use std::time::{Duration, Instant};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Longest wait for a path in both directions.
const LEARN_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the last frames of a trial.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Without a frame for so long, there is none on its way.
const DRAIN_QUIET: Duration = Duration::from_millis(2);
/// Of so many polls, one takes the time of a frame.
const SAMPLE_EVERY: u64 = 8;

/// One direction.
struct Lane {
    tx: TxPump,
    rx: RxPump,
}

/// Two guests, connected.
pub struct BenchGuests {
    lanes: [Lane; 2],
    /// Of these, so many carry traffic.
    active: usize,
    burst: usize,
    /// Cycles from one frame to the next, for a rate below the maximum.
    cycles_per_frame: Option<f64>,
    clock: Clock,
    /// Cycles from guest to guest.
    latency: Histogram<u64>,
    _guests: [Guest; 2],
}

impl BenchGuests {
    /// Connects, and waits until the switch has learned both addresses.
    pub fn connect(
        ports: &Ports,
        configuration: &Configuration,
        options: &VmOptions,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let mut guests = guest::connect(ports, &guest_options(options))?;
        let mut tx = |from: usize| {
            let pump = TxPumpOptions {
                frame_len: usize::from(configuration.size - FCS_LEN),
                source: MACS[from],
                destination: MACS[1 - from],
                flows: configuration.flows,
                batch: options.burst.into(),
                ..TxPumpOptions::default()
            };
            guests[from].take_tx_pump(0, &pump)
        };
        let (tx_a, tx_b) = (tx(0)?, tx(1)?);
        let (rx_a, rx_b) = (
            guests[0].take_rx_pump(0, true)?,
            guests[1].take_rx_pump(0, true)?,
        );
        let (forth, back) = (Lane { tx: tx_a, rx: rx_b }, Lane { tx: tx_b, rx: rx_a });
        let latency_max = clock.cycles(Duration::from_secs(10));
        let mut this = Self {
            lanes: [forth, back],
            active: if options.direction == Direction::Both {
                2
            } else {
                1
            },
            burst: options.burst.into(),
            cycles_per_frame: options.rate.map(|rate| clock.hz() / rate as f64),
            clock,
            latency: Histogram::new_with_bounds(1, latency_max, 3).expect("valid bounds"),
            _guests: guests,
        };
        this.learn(&ports.sockets.0[0])?;
        Ok(this)
    }

    /// Single frames in both directions, until one has arrived in each.
    fn learn(&mut self, socket: &Path) -> Result<(), BenchError> {
        let deadline = Instant::now() + LEARN_MAX;
        let mut arrived = [0, 0];
        while arrived.contains(&0) {
            if Instant::now() > deadline {
                let what = format!("frames do not arrive; in both directions: {arrived:?}");
                return Err(BenchError::backend(&socket.display().to_string(), what));
            }
            for (lane, arrived) in self.lanes.iter_mut().zip(&mut arrived) {
                lane.tx.poll_stamped(1, 0)?;
                std::thread::sleep(Duration::from_millis(1));
                *arrived += u64::from(lane.rx.poll()?.frames);
            }
        }
        self.drain()?;
        Ok(())
    }

    /// Traffic for `time`, and then until nothing is on its way.
    pub fn run(&mut self, time: Duration) -> Result<Traffic, BenchError> {
        self.latency.reset();
        let sent_before = self.sent();
        let (start, mut polls, mut received) = (tsc(), 0_u64, 0);
        let end = start + self.clock.cycles(time);
        let mut now = start;
        let mut sent = [0_u64; 2];
        while now < end {
            let due = self
                .cycles_per_frame
                .map(|cycles| ((now - start) as f64 / cycles) as u64);
            for (lane, sent) in self.lanes[..self.active].iter_mut().zip(&mut sent) {
                let limit = due.map_or(self.burst, |due| due.saturating_sub(*sent) as usize);
                *sent += u64::from(lane.tx.poll_stamped(limit, now)?.frames);
                received += if polls.is_multiple_of(SAMPLE_EVERY) {
                    lane.receive_sampled(&mut self.latency)?
                } else {
                    u64::from(lane.rx.poll()?.frames)
                };
            }
            polls += 1;
            now = tsc();
        }
        let seconds = (now - start) as f64 / self.clock.hz();
        let late = self.drain()?;
        Ok(Traffic {
            seconds,
            sent: self.sent() - sent_before,
            arrived: received + late,
            mpps: received as f64 / seconds / 1e6,
            p50_us: self.latency_us(0.5),
            p99_us: self.latency_us(0.99),
        })
    }

    fn sent(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.tx.sent()).sum()
    }

    fn latency_us(&self, part: f64) -> Option<f64> {
        let cycles = self.latency.value_at_quantile(part);
        (!self.latency.is_empty()).then(|| self.clock.ns(cycles) / 1000.0)
    }

    /// Receives until nothing is on its way. Returns how many frames still came.
    fn drain(&mut self) -> Result<u64, BenchError> {
        let deadline = Instant::now() + DRAIN_MAX;
        let (mut frames, mut quiet_since) = (0, Instant::now());
        loop {
            let mut quiet = true;
            for lane in &mut self.lanes {
                let arrived = u64::from(lane.rx.poll()?.frames);
                frames += arrived;
                quiet &= arrived == 0 && lane.tx.drain()? == 0;
            }
            // Looked at after a poll: this thread may have been off its core meanwhile.
            let now = Instant::now();
            if !quiet {
                quiet_since = now;
            }
            if now - quiet_since > DRAIN_QUIET || now > deadline {
                break;
            }
        }
        Ok(frames)
    }
}

impl Lane {
    /// Receives one batch, and takes the time of its first frame.
    fn receive_sampled(&mut self, latency: &mut Histogram<u64>) -> Result<u64, BenchError> {
        let mut sampled = false;
        let received = self.rx.poll_each(|head| {
            if !sampled {
                sampled = true;
                latency.saturating_record(tsc().saturating_sub(head.stamp()).max(1));
            }
        })?;
        Ok(u64::from(received.frames))
    }
}

fn guest_options(options: &VmOptions) -> GuestOptions {
    let mut guest = GuestOptions {
        ring_size: options.ring,
        huge_pages: options.huge_pages.is_on(),
        ..GuestOptions::default()
    };
    if !options.mergeable.is_on() {
        guest.features &= !features::MRG_RXBUF;
    }
    guest
}
