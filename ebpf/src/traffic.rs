//! Traffic programs of `crosspoint-bench`, which send and count frames inside the kernel: a second object, from
//! `src/bpf/crosspoint_traffic.bpf.c`. The switch does not use it.

use crate::Aligned;

static ELF: &Aligned<[u8]> = &Aligned(*include_bytes!("../crosspoint_traffic.bpf.o"));

/// The compiled object: an ELF file for little-endian machines, aligned to 8 bytes.
pub const OBJECT: &[u8] = &ELF.0;

/// The XDP program that generates frames, run by BPF_PROG_TEST_RUN with live frames.
pub const GENERATE: &str = "generate";
/// The tc program that counts frames and drops them.
pub const SINK: &str = "sink";
/// The tc program that sends frames back with swapped addresses.
pub const REFLECT: &str = "reflect";
/// [`SINK`] as an XDP program.
pub const SINK_XDP: &str = "sink_xdp";

/// The map with the generator's [plan](PlanValue).
pub const PLANS: &str = "plans";
/// Interface, start and end (CLOCK_MONOTONIC, ns), time between frames (1/65536 ns; 0: none), flows, bytes of a frame (0:
/// IMIX), sum of the IPv4 header's words without length and checksum.
pub type PlanValue = [u64; 7];

/// The map with the generator's [progress](SentValue).
pub const SENT: &str = "sent";
/// Frames sent, and whether the plan has ended.
pub type SentValue = [u64; 2];

/// The map with the sinks' counters, per core.
pub const ARRIVED: &str = "arrived";
/// Frames, bytes, and the next sequence number, which is [unknown](NEXT_UNKNOWN) at first.
pub type ArrivedValue = [u64; 3];
/// No sequence number.
pub const NEXT_UNKNOWN: u64 = 1 << 16;

/// The map with latencies from stamp to sink, in nanoseconds, per core.
pub const LATENCIES: &str = "latencies";
/// The map with lengths of runs of lost frames, per core.
pub const LOSS_RUNS: &str = "loss_runs";
/// Counts by bucket, 16 for each power of two; [`bucket_value`] returns a bucket's value.
pub type HistogramValue = [u64; BUCKETS];
/// Number of buckets of a histogram.
pub const BUCKETS: usize = 1024;

/// Returns the middle of a bucket's values, accurate to 1/32.
pub fn bucket_value(bucket: usize) -> u64 {
    let (power, part) = (bucket / 16 + 3, bucket as u64 % 16);
    if power < 4 {
        return part;
    }
    let width = 1_u64.checked_shl(power as u32 - 4).unwrap_or(0);
    ((16 + part) * width) + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes the bucket as the BPF program does.
    fn bucket(value: u64) -> usize {
        if value < 16 {
            return value as usize;
        }
        let power = value.ilog2() as usize;
        (power - 3) * 16 + (value >> (power - 4) & 15) as usize
    }

    #[test]
    fn every_bucket_stands_for_values_that_are_counted_in_it() {
        for of in 0..(u32::MAX.ilog2() as usize - 2) * 16 {
            assert_eq!(bucket(bucket_value(of)), of);
        }
    }
}
