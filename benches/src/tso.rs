//! `tso`: large TCP frames between two guests.

use crate::backend::{Backend, Switch};
use crate::error::BenchError;
use crate::interrupt;
use crate::large_guests::LargeGuests;
use crate::options::{PlanOptions, RunOptions, Toggle, ring_size};
use crate::samples::{Sample, tables};
use crate::tcp::{HEADERS_LEN, MSS};
use crate::threads::Thread;
use crate::trial::{Discard, Observed, Traffic};
use crate::turns;
use crate::watch::Watch;
use clap::Args;
use crosspoint_frame::Clock;
use std::time::Duration;

const KIB: f64 = 1024.0;

/// Options of `tso`.
#[derive(Args, Clone, Debug)]
pub struct TsoOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub plan: PlanOptions,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub run: RunOptions,
    /// Segments of 1448 bytes in a frame: 45 make 65226 bytes with headers, the largest that Linux sends
    #[arg(long, value_delimiter = ',', default_value = "45",
          value_parser = clap::value_parser!(u16).range(2..=45))]
    pub segments: Vec<u16>,
    /// Size of the payload's pieces in bytes: 4096 as with sendfile, 32768 as with write
    #[arg(long, value_delimiter = ',', default_value = "4096,32768",
          value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub pieces: Vec<u32>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "would become the help's heading")]
    pub guests: LargeOptions,
}

/// Properties of guests with large frames.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LargeOptions {
    /// Bytes of a receive buffer: Linux posts up to 4096 each; from 65238 on, one for each frame and not mergeable
    #[arg(long, default_value_t = 4096, value_parser = rx_buffer)]
    pub rx_buffer: usize,
    /// Most frames in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub in_flight: u16,
    /// Number of different frames, sent in turn: 128 of the largest are 8 MiB
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(64..=4096))]
    pub frames: u16,
    /// The sender writes the payload of each frame, like a program that calls write
    #[arg(long)]
    pub write_payload: bool,
    /// Indirect descriptors, if the switch supports them
    #[arg(long, value_enum, default_value = "on")]
    pub indirect: Toggle,
    /// Entries of each virtqueue, a power of two
    #[arg(long, default_value_t = 256, value_parser = ring_size)]
    pub ring: u16,
    /// Guest memory on 2 MiB pages
    #[arg(long, value_enum, default_value = "off")]
    pub huge_pages: Toggle,
}

impl Default for LargeOptions {
    /// The options' defaults.
    fn default() -> Self {
        Self {
            rx_buffer: 4096,
            in_flight: 8,
            frames: 128,
            write_payload: false,
            indirect: Toggle::On,
            ring: 256,
            huge_pages: Toggle::Off,
        }
    }
}

fn rx_buffer(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(len) if (1536..=65562).contains(&len) => Ok(len),
        _ => Err("1536 to 65562".into()),
    }
}

/// The shape of frames.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Payload, in units of 1448 bytes.
    pub segments: u16,
    /// Size of the payload's pieces in bytes.
    pub piece: usize,
}

impl Shape {
    /// The largest frame that Linux sends, in pages.
    pub const LARGEST: Self = Self {
        segments: 45,
        piece: 4096,
    };

    /// Length in bytes, headers included.
    pub fn frame_len(self) -> usize {
        HEADERS_LEN + usize::from(self.segments) * MSS
    }

    /// Number of the payload's pieces.
    pub fn pieces(self) -> usize {
        (self.frame_len() - HEADERS_LEN).div_ceil(self.piece)
    }

    /// Gb/s, and cycles per KiB.
    fn values(self, traffic: &Traffic, observed: &Observed, clock: Clock) -> Vec<(String, f64)> {
        let name = |what| {
            let (len, piece) = (self.frame_len(), self.piece);
            format!("{len} bytes in pieces of {piece}: {what}")
        };
        let (bytes, kib) = (self.frame_len() as f64, self.frame_len() as f64 / KIB);
        let frames_per_s = traffic.mpps * 1e6;
        let mut values = vec![
            (name("Gb/s"), frames_per_s * bytes * 8.0 / 1e9),
            (name("core cycles/KiB"), clock.hz() / (frames_per_s * kib)),
            (name("lost frames per million"), traffic.loss() * 1e6),
        ];
        let busy = observed.busy_cycles;
        values.extend(busy.map(|cycles| (name("busy cycles/KiB"), cycles / kib)));
        values
    }
}

/// Runs `crosspoint-bench tso`.
pub fn run(options: &TsoOptions) -> Result<(), BenchError> {
    let (plan, run) = (&options.plan, &options.run);
    plan.check()?;
    run.check()?;
    interrupt::catch()?;
    let switches = turns::switches(run)?;
    let names: Vec<String> = switches.iter().map(Switch::name).collect();
    let clock = Clock::calibrate();
    let mut samples = Vec::new();
    for round in 0..plan.rounds {
        for switch in turns::in_turn(&switches, round) {
            eprintln!("round {round}: {}", switch.name());
            let backend = switch.start(plan, run)?;
            for shape in shapes(options) {
                let trials = turns::on_generator_core(plan, run.realtime, || {
                    trials(options, shape, &backend, clock)
                })?;
                for (traffic, observed) in trials {
                    let discarded = Discard::judge(&traffic, &observed, plan.wait_max);
                    let sample = |(what, value)| Sample {
                        switch: switch.name(),
                        round,
                        what,
                        value,
                        placement: observed.placement,
                        discarded,
                    };
                    let values = shape.values(&traffic, &observed, clock);
                    samples.extend(values.into_iter().map(sample));
                }
            }
        }
    }
    let machine = plan.machine(clock);
    println!("{machine}.\n\n{}", heading(options, clock));
    print!("{}", tables(&samples, &names));
    turns::write_json(plan, &machine, &samples)
}

fn shapes(options: &TsoOptions) -> Vec<Shape> {
    let of_segments = |segments: &u16| {
        let segments = *segments;
        options.pieces.iter().map(move |piece| Shape {
            segments,
            piece: *piece as usize,
        })
    };
    options.segments.iter().flat_map(of_segments).collect()
}

fn trials(
    options: &TsoOptions,
    shape: Shape,
    backend: &Backend,
    clock: Clock,
) -> Result<Vec<(Traffic, Observed)>, BenchError> {
    let mut guests = LargeGuests::connect(&backend.ports, shape, &options.guests, clock)?;
    let watch = Watch {
        plan: &options.plan,
        realtime: options.run.realtime,
        clock,
        backend,
        generator: Thread::current(),
    };
    let warmup = Duration::from_millis(options.run.warmup_ms);
    watch.observe(|| guests.run(warmup))?;
    let trial = |_| {
        interrupt::check()?;
        watch.observe(|| guests.run(options.run.trial()))
    };
    (0..options.plan.trials).map(trial).collect()
}

/// A line above the tables with the settings.
fn heading(options: &TsoOptions, clock: Clock) -> String {
    format!(
        "ring {}, receive buffers of {}, {} frames in flight at most, payload written: {}, indirect {:?}, \
         2 MiB pages {:?}, {} x {} trials of {} ms, TSC {:.2} GHz, realtime {}\n",
        options.guests.ring,
        options.guests.rx_buffer,
        options.guests.in_flight,
        options.guests.write_payload,
        options.guests.indirect,
        options.guests.huge_pages,
        options.plan.rounds,
        options.plan.trials,
        options.run.trial_ms,
        clock.hz() / 1e9,
        options.run.realtime,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    #[test]
    fn large_guests_are_by_default_as_without_options() {
        let command = LargeOptions::augment_args(clap::Command::new("tso"));
        let matches = command.get_matches_from(["tso"]);
        let parsed = LargeOptions::from_arg_matches(&matches).unwrap();
        assert_eq!(parsed, LargeOptions::default());
    }

    #[test]
    fn the_largest_frame_is_that_of_the_help() {
        let shape = Shape {
            segments: 45,
            piece: 4096,
        };
        assert_eq!((shape.frame_len(), shape.pieces()), (65226, 16));
    }
}
