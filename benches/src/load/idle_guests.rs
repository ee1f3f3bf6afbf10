//! Guests attached beside the busy ones, and quiet: each in turn sends one frame to the first of them.

use crate::error::BenchError;
use crate::lab::Ports;
use crate::load::connect::connect;
use crate::load::{Scenario, addresses};
use crate::random::Random;
use crosspoint_frame::{Clock, tsc};
use crosspoint_guest::{Guest, GuestOptions, RxPump, TxPump, TxPumpOptions};
use hdrhistogram::Histogram;
use std::time::Duration;

/// Mean time between two of these frames. With 64 guests, each is quiet for 64 times as long.
const PAUSE: Duration = Duration::from_micros(500);
/// A frame that takes longer is lost.
const LOST_AFTER: Duration = Duration::from_millis(20);

/// A generator's work for the quiet guests.
pub struct Quiet {
    /// Transmit pumps of all but the first.
    senders: Vec<TxPump>,
    /// Pumps of the first: receives the frames, and announces itself.
    receiver: RxPump,
    greeter: TxPump,
    /// The guest whose frame is next.
    next: usize,
    /// Time stamp at which it is due.
    due: u64,
    /// Time stamp of the frame in flight.
    sent_at: Option<u64>,
    random: Random,
    clock: Clock,
}

impl Quiet {
    /// Connects the quiet guests of `scenario` to the ports after those with traffic. `guests` keeps them connected.
    pub fn connect(
        ports: &Ports,
        scenario: &Scenario,
        options: &GuestOptions,
        clock: Clock,
        guests: &mut Vec<Guest>,
    ) -> Result<Option<Self>, BenchError> {
        if scenario.quiet == 0 {
            return Ok(None);
        }
        let first = scenario.busy_ports();
        let numbers = first..scenario.ports();
        let each: Vec<_> = numbers.map(|number| (number, options.clone())).collect();
        guests.extend(connect(ports, &each)?);
        let pump = |number: usize, to: usize| TxPumpOptions {
            source: addresses::of(number),
            destination: addresses::of(to),
            batch: 1,
            ..TxPumpOptions::default()
        };
        let (receiver, others) = guests.split_first_mut().expect("two at least");
        let mut senders = Vec::with_capacity(others.len());
        for (index, guest) in others.iter_mut().enumerate() {
            senders.push(guest.take_tx_pump(0, &pump(first + 1 + index, first))?);
        }
        Ok(Some(Self {
            senders,
            greeter: receiver.take_tx_pump(0, &pump(first, first + 1))?,
            receiver: receiver.take_rx_pump(0, true)?,
            next: 0,
            due: 0,
            sent_at: None,
            random: Random(first as u64),
            clock,
        }))
    }

    /// Announces the receiver, and begins with a pause.
    pub fn begin(&mut self, now: u64) -> Result<(), BenchError> {
        self.greeter.poll_stamped(1, 0)?;
        while self.receiver.poll()?.frames > 0 {}
        self.sent_at = None;
        self.pause(now);
        Ok(())
    }

    /// Sends a frame if one is due, or checks whether the frame in flight has arrived. Its time is added to `times`.
    #[inline(always)]
    pub fn visit(&mut self, now: u64, times: &mut Histogram<u64>) -> Result<(), BenchError> {
        match self.sent_at {
            None if now < self.due => {}
            None => self.send()?,
            Some(sent_at) => self.look(sent_at, times)?,
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), BenchError> {
        let stamp = tsc();
        let sent = self.senders[self.next].poll_stamped(1, stamp)?;
        self.next = (self.next + 1) % self.senders.len();
        self.sent_at = (sent.frames > 0).then_some(stamp);
        Ok(())
    }

    fn look(&mut self, sent_at: u64, times: &mut Histogram<u64>) -> Result<(), BenchError> {
        let mut has_come = false;
        self.receiver
            .poll_each(|head| has_come |= head.stamp() == sent_at)?;
        let now = tsc();
        let took = now.saturating_sub(sent_at);
        if has_come || took > self.clock.cycles(LOST_AFTER) {
            let ns = self.clock.ns(took) as u64;
            times.saturating_record(ns.max(1));
            self.sent_at = None;
            self.pause(now);
        }
        Ok(())
    }

    /// A pause of 0.5 to 1.5 times [`PAUSE`].
    fn pause(&mut self, now: u64) {
        let part = self.random.between(0.5, 1.5);
        self.due = now + (self.clock.cycles(PAUSE) as f64 * part) as u64;
    }
}
