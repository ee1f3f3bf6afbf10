//! `cost`: cycles per KiB of the switch's work on bytes, without a switch: copy, checksum, segmentation.

use crate::error::BenchError;
use crate::interrupt;
use crate::lab::machine::Machine;
use crate::lab::schedule::measure_on;
use crate::load::addresses;
use crate::load::tcp::{self, CHECKSUM_OFFSET, HEADERS_LEN, MSS, TCP_AT};
use crate::report::table::{Table, number};
use crate::stats::{Ratio, Spread};
use clap::Args;
use crosspoint_frame::{
    BURST, Burst, Clock, DerivedBurst, Frame, Offload, PartCursor, Segment, SegmentMut, copy_plain,
    copy_plain_finished, tsc,
};
use crosspoint_packet::checksum::{self, Partial};
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, Segmentation};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::ptr;

/// Least number of bytes in one measurement.
const BYTES_MIN: usize = 1 << 20;
/// Bytes of the buffers for segments.
const SEGMENT_ROOM: usize = 1536;
/// `gso_type` of TCP over IPv4.
const GSO_TCPV4: u8 = 1;
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

/// A kind of work that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// `memcpy`, the reference for all others.
    Memcpy,
    /// The switch's copy from guest to guest: virtio-net header and the unchanged frame.
    Copy,
    /// The switch's copy to a network interface that computes no checksums.
    CopyAndChecksum,
    /// The switch's checksum over contiguous bytes, without a copy.
    Checksum,
    /// Segmentation of a large frame into segments of 1448 bytes with checksums.
    Cut,
    /// `memcpy` of the same bytes into the same buffers.
    MemcpyCut,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::Memcpy,
        Self::Copy,
        Self::CopyAndChecksum,
        Self::Checksum,
        Self::Cut,
        Self::MemcpyCut,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Memcpy => "memcpy",
            Self::Copy => "copy",
            Self::CopyAndChecksum => "copy + checksum",
            Self::Checksum => "checksum alone",
            Self::Cut => "cut into segments",
            Self::MemcpyCut => "memcpy into segments",
        }
    }

    /// The work by whose cost its own is divided in the table.
    fn reference(self) -> Self {
        match self {
            Self::Cut => Self::MemcpyCut,
            _ => Self::Memcpy,
        }
    }

    fn applies(self, len: usize) -> bool {
        !matches!(self, Self::Cut | Self::MemcpyCut) || len > HEADERS_LEN + MSS
    }

    /// Whether the result has a complete checksum.
    fn finishes_checksum(self) -> bool {
        matches!(self, Self::CopyAndChecksum | Self::Cut)
    }

    /// Does this work on `frame`, whose bytes are `from`.
    #[inline(always)]
    fn run(self, cutter: &mut Cutter, burst: &Burst, frame: &Frame, pair: &Pair) -> usize {
        match self {
            Self::Memcpy => memcpy(pair.from, pair.to[0]),
            Self::Copy => copy_plain(&[0; 12], frame, burst, pair.to[0]),
            Self::CopyAndChecksum => copy_and_checksum(frame, burst, pair.to[0]),
            Self::Checksum => checksum_alone(pair),
            Self::Cut => cutter.cut(burst, frame, &pair.segments),
            Self::MemcpyCut => memcpy_cut(pair),
        }
    }
}

/// The copy that `crosspoint_xsk` makes for a NIC that computes no checksums.
#[inline(always)]
fn copy_and_checksum(frame: &Frame, burst: &Burst, to: SegmentMut) -> usize {
    copy_plain_finished(&[], frame, burst, to)
}

#[inline(always)]
fn memcpy(from: Segment, to: SegmentMut) -> usize {
    let len = from.len().min(to.len());
    // SAFETY: both segments have the same length, by the contracts of their makers, and are parts of one `Pair` that do not
    // overlap.
    unsafe { ptr::copy_nonoverlapping(from.ptr(), to.ptr(), len) };
    len
}

#[inline(always)]
fn checksum_alone(pair: &Pair) -> usize {
    usize::from(checksum::finish(pair.from.skip(TCP_AT).sum()))
}

#[inline(always)]
fn memcpy_cut(pair: &Pair) -> usize {
    let (headers, mut payload) = (pair.from.first(HEADERS_LEN), pair.from.skip(HEADERS_LEN));
    let mut total = 0;
    for to in &pair.segments {
        let n = memcpy(headers, *to);
        total += n + memcpy(payload.first(MSS), to.skip(n));
        payload = payload.skip(MSS);
    }
    total
}

/// Segments frames as the switch does (`crosspoint_engine::egress::gso`).
struct Cutter {
    parts: DerivedBurst,
    cursor: PartCursor,
    headers: [u8; HEADERS_MAX],
}

impl Cutter {
    #[inline(always)]
    fn cut(&mut self, burst: &Burst, frame: &Frame, to: &[SegmentMut]) -> usize {
        let len = burst.read_beginning(frame, &mut self.headers);
        let headers = self.headers.get(..len).unwrap_or(&[]);
        let request = GsoRequest {
            gso_type: GSO_TCPV4,
            gso_size: MSS as u16,
            checksum: Some(Partial {
                start: frame.offload.csum_start,
                offset: frame.offload.csum_offset,
            }),
        };
        let Ok(plan) = Segmentation::new(headers, frame.len as usize, request, || unreachable!())
        else {
            return 0;
        };
        let (mut total, mut out) = (0, to.iter());
        for from in (0..plan.count()).step_by(BURST) {
            self.make(&plan, burst, frame, from);
            let made = self.parts.burst();
            for (segment, to) in made.frames().iter().zip(&mut out) {
                total += copy_and_checksum(segment, made, *to);
            }
        }
        total
    }

    fn make(&mut self, plan: &Segmentation, burst: &Burst, frame: &Frame, from: usize) {
        self.parts.clear();
        let mut header = [0; HEADERS_MAX];
        for index in from..plan.count().min(from + BURST) {
            let Some(info) = plan.segment(index, &self.headers, &mut header) else {
                return;
            };
            let Some(place) = info.checksum else {
                return;
            };
            let offload = Offload {
                csum_start: place.start,
                csum_offset: place.offset,
                ..OFFLOAD
            };
            let made = header.get(..info.header_len).unwrap_or(&[]);
            let payload = (info.payload_offset, info.payload_len);
            let cursor = &mut self.cursor;
            self.parts
                .push(made, (burst, frame), payload, offload, cursor);
        }
    }
}

/// A frame, and its destination.
struct Pair {
    from: Segment,
    to: [SegmentMut; 1],
    segments: Vec<SegmentMut>,
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
        let segments = (len.saturating_sub(HEADERS_LEN)).div_ceil(MSS).max(1);
        let cut = Work::Cut.applies(len);
        let room = (12 + len).max(if cut { segments * SEGMENT_ROOM } else { 0 });
        let (from_len, stride) = (64 * lines(len), 64 * (lines(len) + lines(room)));
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
                let to = base.add(at + from_len);
                let segment = |n| SegmentMut::new(to.add(n * SEGMENT_ROOM), SEGMENT_ROOM as u32);
                Pair {
                    from: Segment::new(base.add(at), len as u32),
                    to: [SegmentMut::new(to, (12 + len) as u32)],
                    segments: (0..if cut { segments } else { 0 }).map(segment).collect(),
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
        let first = if self.next >= self.pairs.len() {
            0
        } else {
            self.next
        };
        self.next = first + count.min(self.pairs.len() - first);
        first..self.next
    }
}

/// The state of a run.
struct Bench {
    burst: Burst,
    cutter: Cutter,
}

impl Bench {
    fn new() -> Self {
        Self {
            burst: Burst::new(),
            cutter: Cutter {
                parts: DerivedBurst::default(),
                cursor: PartCursor::default(),
                headers: [0; HEADERS_MAX],
            },
        }
    }

    /// Cycles per KiB of `work` over at least `bytes` bytes. Frames are received in bursts; this is not measured, and reads
    /// the first line of each frame, as in every switch. Then the work is done on each.
    fn measure(&mut self, work: Work, arena: &mut Arena, bytes: usize) -> f64 {
        let len = arena.pairs[0].from.len();
        // With a single pair, a burst is the same frame many times.
        let per_burst = (64 * 1024 / len).clamp(1, BURST);
        let (mut cycles, mut done) = (0, 0);
        while done < bytes {
            let range = arena.take(per_burst);
            let repeat = if arena.pairs.len() == 1 { per_burst } else { 1 };
            self.burst.clear();
            for pair in &arena.pairs[range.clone()] {
                for _ in 0..repeat {
                    self.burst.push_contiguous(pair.from, OFFLOAD);
                }
            }
            let start = tsc();
            let mut frames = self.burst.frames().iter();
            for pair in &arena.pairs[range] {
                for frame in frames.by_ref().take(repeat) {
                    black_box(work.run(&mut self.cutter, &self.burst, frame, pair));
                }
            }
            cycles += tsc() - start;
            done += len * self.burst.len();
        }
        cycles as f64 / (done as f64 / 1024.0)
    }

    /// Checks once that each work has the right result.
    fn check(&mut self, len: usize) -> Result<(), BenchError> {
        let arena = Arena::new(len, 0);
        let pair = &arena.pairs[0];
        self.burst.clear();
        self.burst.push_contiguous(pair.from, OFFLOAD);
        let works = Work::ALL.into_iter().filter(|work| work.applies(len));
        for work in works.filter(|work| work.finishes_checksum()) {
            let frame = &self.burst.frames()[0];
            let total = work.run(&mut self.cutter, &self.burst, frame, pair);
            let (outputs, payload) = match work {
                Work::Cut => (&pair.segments[..], len - HEADERS_LEN),
                _ => (&pair.to[..], len),
            };
            let mut left = payload;
            for to in outputs {
                let n = match work {
                    Work::Cut => HEADERS_LEN + left.min(MSS),
                    _ => len,
                };
                left = left.saturating_sub(MSS);
                // SAFETY: n bytes lie within the segment, and nothing writes to them meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(to.ptr(), n) };
                if total < len || !tcp::checksum_is_right(bytes) {
                    let what = format!("{}, {len} bytes: wrong result", work.name());
                    return Err(BenchError::backend("cost", what));
                }
            }
        }
        Ok(())
    }
}

/// Runs `crosspoint-bench cost`.
pub fn run(options: &CostOptions) -> Result<(), BenchError> {
    interrupt::catch()?;
    measure_on(options.core, options.realtime)?;
    let mut bench = Bench::new();
    let machine = Machine::here(options.core, options.core, Clock::calibrate());
    let mut table =
        Table::new("memory | >frame | work | >cycles/KiB | IQR | >over memcpy | IQR over rounds");
    for memory in &options.memory {
        for len in &options.sizes {
            let len = *len as usize;
            bench.check(len)?;
            let mut arena = Arena::new(len, (*memory as usize) << 20);
            let bytes = BYTES_MIN.max(len * arena.pairs.len());
            let cycles = rounds(&mut bench, &mut arena, options.rounds, bytes)?;
            add_rows(&mut table, *memory, len, &cycles);
        }
    }
    print!("{machine}.\n\n{table}");
    Ok(())
}

/// Cycles per KiB by work, each with its round.
type Cycles = BTreeMap<Work, Vec<(u32, f64)>>;

/// Does every work in turn, beginning with a different one in each round.
fn rounds(
    bench: &mut Bench,
    arena: &mut Arena,
    count: u32,
    bytes: usize,
) -> Result<Cycles, BenchError> {
    let len = arena.pairs[0].from.len();
    let works: Vec<Work> = Work::ALL.into_iter().filter(|w| w.applies(len)).collect();
    let mut cycles = Cycles::new();
    for round in 0..=count {
        interrupt::check()?;
        for i in 0..works.len() {
            let work = works[(round as usize + i) % works.len()];
            let value = bench.measure(work, arena, bytes);
            if round > 0 {
                cycles.entry(work).or_default().push((round, value)); // the first round warms up
            }
        }
        // Ordinary threads get the core here, and not during a measurement.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(cycles)
}

fn add_rows(table: &mut Table, memory: u32, len: usize, cycles: &Cycles) {
    let memory = match memory {
        0 => "one pair".into(),
        memory => format!("{memory} MiB"),
    };
    for (work, values) in cycles {
        let Some(spread) = Spread::of(values.iter().map(|(_, value)| *value)) else {
            continue;
        };
        let ratio = Ratio::of(values, &cycles[&work.reference()]);
        let ratio = ratio.map_or(" | ".into(), |r| {
            format!("{:.2} | {}", r.of_medians, r.iqr())
        });
        let [median, lower, upper] = [spread.median, spread.lower, spread.upper].map(number);
        let name = work.name();
        table.row(format_args!(
            "{memory} | {len} | {name} | {median} | {lower}-{upper} | {ratio}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_does_its_work() {
        let mut bench = Bench::new();
        for len in [60, 66, 1514, 9014, 65226] {
            bench.check(len).unwrap();
            let mut arena = Arena::new(len, 1 << 20);
            for work in Work::ALL.into_iter().filter(|work| work.applies(len)) {
                assert!(bench.measure(work, &mut arena, 1 << 20) > 0.0);
            }
        }
    }
}
