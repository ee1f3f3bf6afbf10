//! `cost`: cycles per KiB of the switch's work on bytes, without a switch: copy and checksum.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::{Machine, measure_on};
use crate::load::{CHECKSUM_OFFSET, TCP_AT, addresses, tcp};
use crate::report::{Table, number};
use crate::stats::{Ratio, Spread};
use clap::Args;
use crosspoint_frame::{
    BURST, Burst, Clock, Frame, Offload, Segment, SegmentMut, copy_plain, copy_plain_finished, tsc,
};
use crosspoint_packet::checksum;
use std::hint::black_box;
use std::ptr;
use std::time::Duration;

/// Least number of bytes in one measurement.
const BYTES_MIN: usize = 1 << 20;
/// Bytes of a virtio-net header.
const HEADER_LEN: usize = 12;
const OFFLOAD: Offload = Offload {
    needs_csum: true,
    finish: false,
    any_size: false,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: TCP_AT as u16,
    csum_offset: CHECKSUM_OFFSET as u16,
};

/// Options of `cost`.
#[derive(Args, Clone, Debug)]
pub struct CostOptions {
    /// Frame lengths without FCS
    #[arg(long, value_delimiter = ',', default_value = "64,128,256,512,1024,1514,4096,9014,16384,32768,65226",
          value_parser = clap::value_parser!(u32).range(60..=65226))]
    pub sizes: Vec<u32>,
    /// MiB of frames and buffers that are used in turn; 0: one pair, repeatedly
    #[arg(long, value_delimiter = ',', default_value = "0,16",
          value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub memory: Vec<u32>,
    /// Rounds: each contains every measurement
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Core to measure on
    #[arg(long, default_value_t = 0)]
    pub core: usize,
    /// SCHED_FIFO during measurements
    #[arg(long)]
    pub realtime: bool,
}

/// All kinds of work: `memcpy`, the reference for all others; the switch's copy from guest to guest, virtio-net header and
/// unchanged frame; its copy to a network interface that computes no checksums; its checksum over contiguous bytes.
const WORKS: [&str; 4] = ["memcpy", "copy", "copy + checksum", "checksum alone"];

/// Cycles per KiB of the work with this number in [`WORKS`]. Each has a loop of its own, without a call for each frame.
fn measure_work(number: usize, burst: &mut Burst, arena: &mut Arena, bytes: usize) -> f64 {
    match number {
        0 => measure(burst, arena, bytes, |_, _, pair| memcpy(pair)),
        1 => measure(burst, arena, bytes, |frame, burst, pair| {
            copy_plain(&[0; HEADER_LEN], frame, burst, pair.to)
        }),
        2 => measure(burst, arena, bytes, copy_and_checksum),
        _ => measure(burst, arena, bytes, |_, _, pair| {
            checksum::finish(pair.from.skip(TCP_AT).sum()).into()
        }),
    }
}

/// The copy that `crosspoint_xsk` makes for a NIC that computes no checksums.
#[inline(always)]
fn copy_and_checksum(frame: &Frame, burst: &Burst, pair: &Pair) -> usize {
    copy_plain_finished(&[], frame, burst, pair.to)
}

#[inline(always)]
fn memcpy(pair: &Pair) -> usize {
    let len = pair.from.len();
    // SAFETY: both are at least as long, by the contracts of their makers, and do not overlap.
    unsafe { ptr::copy_nonoverlapping(pair.from.ptr(), pair.to.ptr(), len) };
    len
}

/// A frame, and its destination.
struct Pair {
    from: Segment,
    to: SegmentMut,
}

/// Frames and buffers in one piece of memory. During measurements only pointers into it are used.
struct Arena {
    pairs: Vec<Pair>,
    next: usize,
    _memory: Vec<u8>,
}

impl Arena {
    fn new(len: usize, memory: usize) -> Self {
        // The buffer follows the frame, and the number of lines is odd, so that pairs spread over all sets of a cache.
        let lines = |bytes: usize| bytes.div_ceil(64) | 1;
        let (from_len, to_len) = (64 * lines(len), HEADER_LEN + len);
        let stride = from_len + 64 * lines(to_len);
        let count = (memory / stride).max(1);
        let mut bytes = vec![0_u8; count * stride + 64];
        let start = bytes.as_ptr().align_offset(64);
        for i in 0..count {
            let frame = tcp::frame(len, addresses::of(0), addresses::of(1), i as u16);
            bytes[start + i * stride..][..len].copy_from_slice(&frame);
        }
        let base = bytes.as_mut_ptr();
        let pair = |i: usize| {
            let at = start + i * stride;
            // SAFETY: from + to are `stride` bytes, of which there are `count` behind `start`; the vector is never touched again
            // but freed, after the last use of its pairs.
            unsafe {
                Pair {
                    from: Segment::new(base.add(at), len as u32),
                    to: SegmentMut::new(base.add(at + from_len), to_len as u32),
                }
            }
        };
        Self {
            pairs: (0..count).map(pair).collect(),
            next: 0,
            _memory: bytes,
        }
    }

    /// The next pairs in turn, as many as fit a burst of `count`.
    fn take(&mut self, count: usize) -> std::ops::Range<usize> {
        let first = match self.next {
            next if next >= self.pairs.len() => 0,
            next => next,
        };
        self.next = first + count.min(self.pairs.len() - first);
        first..self.next
    }
}

/// Cycles per KiB of `work` over at least `bytes` bytes. Frames are received in bursts; this is not measured, and reads the
/// first line of each frame, as in every switch. Then the work is done on each.
#[inline(always)]
fn measure(
    burst: &mut Burst,
    arena: &mut Arena,
    bytes: usize,
    work: impl Fn(&Frame, &Burst, &Pair) -> usize,
) -> f64 {
    let len = arena.pairs[0].from.len();
    // With a single pair, a burst is the same frame many times.
    let per_burst = (64 * 1024 / len).clamp(1, BURST);
    let repeat = if arena.pairs.len() == 1 { per_burst } else { 1 };
    let (mut cycles, mut done) = (0, 0);
    while done < bytes {
        let range = arena.take(per_burst);
        burst.clear();
        for pair in &arena.pairs[range.clone()] {
            for _ in 0..repeat {
                burst.push_contiguous(pair.from, OFFLOAD);
            }
        }
        let start = tsc();
        let mut frames = burst.frames().iter();
        for pair in &arena.pairs[range] {
            for frame in frames.by_ref().take(repeat) {
                black_box(work(frame, burst, pair));
            }
        }
        cycles += tsc() - start;
        done += len * burst.len();
    }
    cycles as f64 / (done as f64 / 1024.0)
}

/// Checks that the copy with a checksum has the right one.
fn check(burst: &mut Burst, len: usize) -> Result<(), BenchError> {
    let arena = Arena::new(len, 0);
    let pair = &arena.pairs[0];
    burst.clear();
    burst.push_contiguous(pair.from, OFFLOAD);
    let copied = copy_and_checksum(&burst.frames()[0], burst, pair);
    // SAFETY: `len` bytes lie within the buffer, and nothing writes to them meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(pair.to.ptr(), len) };
    match copied >= len && tcp::checksum_is_right(bytes) {
        true => Ok(()),
        false => Err(BenchError::backend(
            "cost",
            format!("{len} bytes: wrong result"),
        )),
    }
}

/// Runs `crosspoint-bench cost`.
pub fn run(options: &CostOptions) -> Result<(), BenchError> {
    interrupt::catch()?;
    measure_on(options.core, options.realtime)?;
    let mut burst = Burst::new();
    let machine = Machine::here(options.core, options.core, Clock::calibrate());
    let mut table =
        Table::new("memory | >frame | work | >cycles/KiB | IQR | >over memcpy | IQR over rounds");
    for memory in &options.memory {
        for len in &options.sizes {
            let len = *len as usize;
            check(&mut burst, len)?;
            let mut arena = Arena::new(len, (*memory as usize) << 20);
            let cycles = rounds(&mut burst, &mut arena, options.rounds)?;
            add_rows(&mut table, *memory, len, &cycles);
        }
    }
    print!("{machine}.\n\n{table}");
    Ok(())
}

/// Cycles per KiB of each work, each with its round.
type Cycles = [Vec<(u32, f64)>; WORKS.len()];

/// Does every work in turn, beginning with a different one in each round.
fn rounds(burst: &mut Burst, arena: &mut Arena, count: u32) -> Result<Cycles, BenchError> {
    let bytes = BYTES_MIN.max(arena.pairs[0].from.len() * arena.pairs.len());
    let mut cycles = Cycles::default();
    for round in 0..=count {
        interrupt::check()?;
        for i in 0..WORKS.len() {
            let number = (round as usize + i) % WORKS.len();
            let value = measure_work(number, burst, arena, bytes);
            if round > 0 {
                cycles[number].push((round, value)); // the first round warms up
            }
        }
        // Ordinary threads get the core here, and not during a measurement.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(cycles)
}

fn add_rows(table: &mut Table, memory: u32, len: usize, cycles: &Cycles) {
    let memory = match memory {
        0 => "one pair".into(),
        memory => format!("{memory} MiB"),
    };
    for (name, values) in WORKS.iter().zip(cycles) {
        let Some(spread) = Spread::of(values.iter().map(|(_, value)| *value)) else {
            continue;
        };
        let ratio = Ratio::of(values, &cycles[0]);
        let over = ratio.map_or(" | ".into(), |r| {
            format!("{:.2} | {}", r.of_medians, r.iqr())
        });
        let [median, lower, upper] = [spread.median, spread.lower, spread.upper].map(number);
        table.row(format_args!(
            "{memory} | {len} | {name} | {median} | {lower}-{upper} | {over}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_does_its_work() {
        let mut burst = Burst::new();
        for len in [60, 66, 1514, 9014, 65226] {
            check(&mut burst, len).unwrap();
            let mut arena = Arena::new(len, 1 << 20);
            for work in 0..WORKS.len() {
                assert!(measure_work(work, &mut burst, &mut arena, 1 << 20) > 0.0);
            }
        }
    }
}
