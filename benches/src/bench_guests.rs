//! Two guests in this process: generator and sink in one tight loop on one thread.

mod lane;
mod pace;

use crate::error::BenchError;
use crate::guest;
use crate::load::{Load, Offered, times};
use crate::options::{Direction, PairOptions, Ports};
use crate::trial::Configuration;
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::GuestOptions;
use crosspoint_guest::{Guest, net::features};
use hdrhistogram::Histogram;
use lane::Lane;
use pace::Pace;
use std::path::Path;
use std::time::{Duration, Instant};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Longest wait for a path in both directions.
const LEARN_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the last frames of a trial.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// After this long without a frame, none is in flight.
const DRAIN_QUIET: Duration = Duration::from_millis(2);
/// Without a rate: the time of a frame is taken in one of this many iterations.
const SAMPLE_EVERY: u64 = 8;
/// An iteration during which this thread did not run: it takes longer than half a ring of frames. That limit is at least the
/// first and at most the second of these.
const STALL: [Duration; 2] = [Duration::from_micros(10), Duration::from_micros(200)];
/// Two guests, connected.
pub struct BenchGuests {
    lanes: [Lane; 2],
    /// Number of lanes that carry traffic.
    active: usize,
    burst: usize,
    ring: u16,
    clock: Clock,
    latency: Histogram<u64>,
    _guests: [Guest; 2],
}

impl BenchGuests {
    /// Connects, and waits until the switch has learned both addresses.
    pub fn connect(
        ports: &Ports,
        configuration: &Configuration,
        options: &PairOptions,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let mut guests = guest::connect(ports, &guest_options(options))?;
        let mut tx = |from: usize| {
            let pump = lane::pump(configuration, options, MACS[from], MACS[1 - from]);
            guests[from].take_tx_pump(0, &pump)
        };
        let (tx_a, tx_b) = (tx(0)?, tx(1)?);
        let (rx_a, rx_b) = (
            guests[0].take_rx_pump(0, true)?,
            guests[1].take_rx_pump(0, true)?,
        );
        let mut this = Self {
            lanes: [
                Lane::new(tx_a, rx_b, MACS[0]),
                Lane::new(tx_b, rx_a, MACS[1]),
            ],
            active: if options.direction == Direction::Both {
                2
            } else {
                1
            },
            burst: options.burst.into(),
            ring: options.ring,
            clock,
            latency: times(),
            _guests: guests,
        };
        this.learn(&ports.sockets.0[0])?;
        Ok(this)
    }

    /// Number of directions that carry traffic.
    pub fn directions(&self) -> usize {
        self.active
    }

    /// Sends single frames in both directions, until one has arrived in each.
    fn learn(&mut self, socket: &Path) -> Result<(), BenchError> {
        let deadline = Instant::now() + LEARN_MAX;
        let mut arrived = [0, 0];
        while arrived.contains(&0) {
            if Instant::now() > deadline {
                let what = format!("frames do not arrive; in both directions: {arrived:?}");
                return Err(BenchError::backend(&socket.display().to_string(), what));
            }
            for (lane, arrived) in self.lanes.iter_mut().zip(&mut arrived) {
                *arrived += lane.try_one()?;
            }
        }
        self.drain(&mut [Pace::unpaced(), Pace::unpaced()])?;
        Ok(())
    }

    /// Sends as much as the switch takes. Sequence numbers are not checked, and few frames' times are taken: what the sink
    /// does for each frame is part of the rate.
    fn flood(&mut self, end: u64) -> Result<Turned, BenchError> {
        let mut turned = Turned::at(tsc());
        while turned.now < end {
            let sampled = turned.count.is_multiple_of(SAMPLE_EVERY);
            for lane in &mut self.lanes[..self.active] {
                let sent = lane.send(self.burst, turned.now, 0.0)?;
                turned.sent_some(self.burst, sent);
                turned.received += if sampled {
                    lane.receive_sampled(self.clock, &mut self.latency)?
                } else {
                    lane.receive()?
                };
            }
            turned.next();
        }
        Ok(turned)
    }

    /// Sends at the rates of `paces`, each frame when it is due. While this thread was off its core, nothing is due.
    fn paced(&mut self, end: u64, paces: &mut [Pace; 2]) -> Result<Turned, BenchError> {
        let [least, most] = STALL.map(|time| self.clock.cycles(time));
        let half_ring = paces[0].cycles_per_frame() * f64::from(self.ring) / 2.0;
        let stall = (half_ring as u64).clamp(least, most);
        let mut turned = Turned::at(tsc());
        // A trial ends even if the thread hardly runs.
        let stalled_max = end.saturating_sub(turned.now);
        while turned.now < end + turned.stalled.min(stalled_max) {
            for (lane, pace) in self.lanes[..self.active].iter_mut().zip(&mut *paces) {
                let limit = pace.owed(turned.now).min(self.burst);
                let sent = lane.send(limit, pace.first_due(), pace.cycles_per_frame())?;
                pace.sent(sent.frames);
                if (sent.frames as usize) < limit {
                    pace.turn_away();
                }
                turned.sent_some(limit, sent);
                turned.received += lane.receive_tracked(self.clock, &mut self.latency)?;
            }
            let turn = turned.next();
            if turn > stall {
                turned.stalled += turn;
                paces.iter_mut().for_each(|pace| pace.put_off(turn));
            }
        }
        // Otherwise a rate beyond the generator's ability would be sent afterwards, without loss.
        paces.iter_mut().for_each(Pace::turn_away);
        Ok(turned)
    }

    /// Sends what is still due, as long as the ring is not full, and receives until nothing is in flight. Returns the number
    /// of frames that arrived meanwhile.
    fn drain(&mut self, paces: &mut [Pace; 2]) -> Result<u64, BenchError> {
        let deadline = Instant::now() + DRAIN_MAX;
        let (mut frames, mut quiet_since) = (0, Instant::now());
        loop {
            let mut quiet = true;
            for (lane, pace) in self.lanes.iter_mut().zip(&mut *paces) {
                let limit = pace.left().min(self.burst);
                if limit > 0 {
                    let sent = lane.send(limit, pace.first_due(), pace.cycles_per_frame())?;
                    pace.sent(sent.frames);
                    quiet &= sent.frames == 0;
                }
                let arrived = lane.receive_tracked(self.clock, &mut self.latency)?;
                frames += arrived;
                quiet &= arrived == 0 && (pace.left() > 0 || lane.reclaim()? == 0);
            }
            // Read after a poll: this thread may have been off its core meanwhile.
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

    /// Paces from `start` on, for each lane.
    fn paces(&self, start: u64, rate: Option<f64>) -> [Pace; 2] {
        let Some(rate) = rate else {
            return [Pace::unpaced(), Pace::unpaced()];
        };
        let cycles = self.clock.hz() * self.active as f64 / rate;
        let backlog = u64::from(self.ring);
        // Half a frame apart, so that two directions do not send at the same time.
        let pace = |lane: f64| Pace::new(start, lane * cycles / 2.0, cycles, backlog);
        [pace(0.0), pace(1.0)]
    }
}

impl Load for BenchGuests {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        // Otherwise frames that a switch held back longer than the last trial waited would be counted in this one.
        self.drain(&mut [Pace::unpaced(), Pace::unpaced()])?;
        self.latency.reset();
        let start = tsc();
        let end = start + self.clock.cycles(time);
        let per_direction = rate.map(|rate| rate / self.active as f64);
        for lane in &mut self.lanes {
            lane.begin(start, per_direction);
        }
        let mut paces = self.paces(start, rate);
        let turned = match rate {
            None => self.flood(end)?,
            Some(_) => self.paced(end, &mut paces)?,
        };
        let late = self.drain(&mut paces)?;
        let mut loss_runs = Histogram::new_with_bounds(1, u16::MAX.into(), 3).expect("valid");
        let lanes = &mut self.lanes[..self.active];
        if rate.is_some() {
            let runs = lanes.iter_mut().map(Lane::end);
            runs.for_each(|runs| loss_runs.add(runs).expect("the same bounds"));
        }
        let sent = lanes.iter().map(Lane::sent).sum();
        let due: u64 = paces[..self.active].iter().map(Pace::due).sum();
        Ok(Offered {
            seconds: turned.ran(start).max(1) as f64 / self.clock.hz(),
            due: if rate.is_some() { due } else { sent },
            sent,
            arrived: turned.received + late,
            arrived_within: turned.received,
            ring_full: turned.ring_full(),
            latency_ns: self.latency.clone(),
            first_ns: times(),
            loss_runs,
            turns_ns: times(),
        })
    }
}

/// Iterations of the generator.
struct Turned {
    now: u64,
    count: u64,
    received: u64,
    /// Number of polls with frames to send, and of those that found the ring full.
    tried: u64,
    full: u64,
    /// Cycles of iterations during which this thread did not run.
    stalled: u64,
}

impl Turned {
    fn at(now: u64) -> Self {
        Self {
            now,
            count: 0,
            received: 0,
            tried: 0,
            full: 0,
            stalled: 0,
        }
    }

    #[inline(always)]
    fn sent_some(&mut self, limit: usize, sent: crosspoint_guest::Sent) {
        self.tried += u64::from(limit > 0);
        self.full += u64::from(sent.full);
    }

    /// Returns the cycles of this iteration, and starts the next one.
    #[inline(always)]
    fn next(&mut self) -> u64 {
        let now = tsc();
        let turn = now - self.now;
        self.now = now;
        self.count += 1;
        turn
    }

    /// Cycles since `start` in which this thread ran.
    fn ran(&self, start: u64) -> u64 {
        (self.now - start).saturating_sub(self.stalled)
    }

    fn ring_full(&self) -> f64 {
        self.full as f64 / self.tried.max(1) as f64
    }
}

fn guest_options(options: &PairOptions) -> GuestOptions {
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
