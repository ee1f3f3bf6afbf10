//! `outage`: what two guests notice while something is done to their switch: lost frames, and the longest gap between two.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::shell;
use crate::load::addresses;
use crate::load::connect::to_listener;
use clap::Args;
use crosspoint_guest::{Guest, GuestError, GuestOptions, Listener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Time before the change, and after it.
const SETTLE: Duration = Duration::from_secs(1);
/// The longest wait for the first frame, and after the change for frames that arrive again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a frame's number begins: behind its header.
const NUMBER_AT: usize = 14;
const FRAME_LEN: usize = 60;

/// Options of `outage`. It prints lines for `compare`.
#[derive(Args, Clone, Debug)]
pub struct OutageOptions {
    /// The sockets of two ports
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub sockets: Vec<PathBuf>,
    /// The guests listen there, and the switch connects, again and again
    #[arg(long)]
    pub listen: bool,
    /// Frames per second from the first guest to the second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub pps: u32,
    /// What is done to the switch
    #[arg(long, value_name = "COMMAND")]
    pub change: String,
}

/// A guest, and where it listens, if it does.
struct Station {
    guest: Guest,
    listener: Option<Listener>,
}

impl Station {
    fn new(socket: &PathBuf, listens: bool) -> Result<Self, BenchError> {
        let options = GuestOptions::default();
        if !listens {
            return Ok(Self {
                guest: to_listener(socket, &options)?,
                listener: None,
            });
        }
        let listener = Listener::bind(socket).map_err(BenchError::io("a socket"))?;
        Ok(Self {
            guest: Guest::new(options)?,
            listener: Some(listener),
        })
    }

    /// Lets a switch in that connects, or has connected.
    fn answer(&mut self, waits: bool) {
        let Some(listener) = &self.listener else {
            return;
        };
        if (waits || listener.is_ready().is_ok_and(|ready| ready))
            && let Ok(session) = listener.accept(PATIENCE)
        {
            self.guest.disconnect();
            if let Err(why) = self.guest.attach(session) {
                eprintln!("  a switch connects, and leaves: {why}");
            }
        }
    }
}

/// What arrived.
#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    gap: Duration,
    frames: u64,
}

impl Seen {
    fn add(&mut self, frames: usize) {
        if frames == 0 {
            return;
        }
        let now = Instant::now();
        let since = self.last.map(|last| now - last).unwrap_or_default();
        self.gap = self.gap.max(since);
        (self.last, self.frames) = (Some(now), self.frames + frames as u64);
    }
}

/// Runs `crosspoint-bench outage`.
pub fn run(options: &OutageOptions) -> Result<(), BenchError> {
    let new = |socket| Station::new(socket, options.listen);
    let stations = options.sockets.iter().map(new);
    let mut stations = stations.collect::<Result<Vec<_>, _>>()?;
    let [a, b] = &mut stations[..] else {
        return crate::options::usage("--sockets names two");
    };
    if options.listen {
        a.answer(true);
        b.answer(true);
    }
    await_first(a, b)?;
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let mut sent = 0;
    let mut change = None;
    let mut ends = None;
    let pause = Duration::from_secs(1) / options.pps;
    while ends.is_none_or(|ends| Instant::now() < ends) {
        interrupt::check()?;
        let due = (begun.elapsed().as_nanos() / pause.as_nanos()) as u64;
        if sent < due && send(&mut a.guest, sent)? {
            sent += 1;
        }
        seen.add(numbers(&mut b.guest)?.len());
        a.answer(false);
        b.answer(false);
        match &mut change {
            None if begun.elapsed() > SETTLE => {
                let mut command = shell(&options.change);
                let command = command.stdout(Stdio::null()).stderr(Stdio::null());
                change = Some(command.spawn().map_err(BenchError::io("the change"))?);
            }
            Some(running) if ends.is_none() => {
                let status = running.try_wait().map_err(BenchError::io("the change"))?;
                if status.is_some_and(|status| !status.success()) {
                    return Err(BenchError::backend("the change", "it fails"));
                }
                // Frames must arrive again.
                let is_back = seen.last.is_some_and(|last| last.elapsed() < pause * 100);
                ends = status.filter(|_| is_back).map(|_| Instant::now() + SETTLE);
            }
            _ => {}
        }
        if begun.elapsed() > 2 * PATIENCE {
            return Err(BenchError::backend(
                "the switch",
                "no frame arrives any more",
            ));
        }
    }
    let lost = sent.saturating_sub(seen.frames);
    println!("RESULT gap_ms={:.3}", seen.gap.as_secs_f64() * 1e3);
    println!("RESULT lost={lost}");
    println!("RESULT sent={sent}");
    Ok(())
}

/// Exchanges frames until one arrives: addresses are then learned.
fn await_first(a: &mut Station, b: &mut Station) -> Result<(), BenchError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut back = frame(u64::MAX);
        back[..6].copy_from_slice(&addresses::of(0));
        back[6..12].copy_from_slice(&addresses::of(1));
        b.guest.send(0, &[&back[..]])?;
        send(&mut a.guest, u64::MAX)?;
        std::thread::sleep(Duration::from_millis(10));
        a.guest.receive(0)?;
        if !numbers(&mut b.guest)?.is_empty() {
            std::thread::sleep(Duration::from_millis(100));
            numbers(&mut b.guest)?;
            return Ok(());
        }
        a.answer(false);
        b.answer(false);
    }
    Err(BenchError::backend("the switch", "no frame arrives"))
}

fn frame(number: u64) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&addresses::of(1));
    frame[6..12].copy_from_slice(&addresses::of(0));
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Sends a frame, if the ring has room.
fn send(guest: &mut Guest, number: u64) -> Result<bool, GuestError> {
    Ok(guest.send(0, &[&frame(number)[..]])? == 1)
}

/// The numbers of the first guest's frames that have arrived.
fn numbers(guest: &mut Guest) -> Result<Vec<u64>, GuestError> {
    let frames = guest.receive(0)?;
    let of_first = frames
        .iter()
        .filter(|(_, bytes)| bytes.get(6..12) == Some(&addresses::of(0)));
    let number = |bytes: &[u8]| bytes.get(NUMBER_AT..NUMBER_AT + 8)?.try_into().ok();
    let numbers = of_first.filter_map(|(_, bytes)| number(bytes));
    Ok(numbers.map(u64::from_be_bytes).collect())
}
