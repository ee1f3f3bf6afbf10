//! The machine on which something was measured, described by the properties in which machines differ.

use crate::lab::{Probe, pin, probe};
use crosspoint_frame::Clock;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::process::Command;

/// What lscpu says of a processor. Two processors of one name may differ in family, model and stepping.
const KEYS: [&str; 9] = [
    "Model name",
    "CPU family",
    "Model",
    "Stepping",
    "L1d cache",
    "L2 cache",
    "L3 cache",
    "CPU max MHz",
    "Hypervisor vendor",
];
/// The vector instructions among which the switch chooses.
const VECTORS: [&str; 3] = ["avx2", "avx512bw", "avx512_vnni"];

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The processor, its caches and its hypervisor: see [`KEYS`].
    pub cpu: String,
    /// Available wider vector instructions.
    pub vectors: Vec<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Rate of the time stamp counter.
    pub tsc_hz: f64,
    /// The cores between which a line's round trip was measured: the generator's and the switch's.
    pub pair: Option<(usize, usize)>,
    /// A line's round trip between them at the beginning, nanoseconds.
    pub round_trip_ns: Option<f64>,
    /// Measured clocks of the two cores at the beginning.
    pub clocks_ghz: Option<[f64; 2]>,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// This machine, with the round trip between two cores, unless they are the same.
    pub fn here(generator: usize, switch: usize, clock: Clock) -> Self {
        let pair = (generator != switch).then_some((generator, switch));
        let between = |(generator, switch)| {
            let measure = move || {
                pin(generator).ok()?;
                Some(probe(switch, clock))
            };
            std::thread::spawn(measure).join().ok().flatten()
        };
        let probed: Option<Probe> = pair.and_then(between);
        let output = Command::new("lscpu").env("LC_ALL", "C").output();
        let lscpu = output.map_or(Vec::new(), |output| output.stdout);
        let lscpu = String::from_utf8_lossy(&lscpu);
        let flags = field(&lscpu, "Flags").unwrap_or_default();
        let has = |name: &&str| flags.split(' ').any(|flag| flag == *name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        Self {
            cpu: describe(&lscpu),
            vectors: VECTORS
                .iter()
                .filter(|v| has(v))
                .map(|v| (*v).into())
                .collect(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            tsc_hz: clock.hz(),
            pair,
            round_trip_ns: probed.and_then(|probe| probe.round_trip_ns),
            clocks_ghz: probed.map(|probe| probe.clocks_ghz),
            kernel: kernel.unwrap_or_default().trim().into(),
        }
    }
}

/// The value of a key in lscpu's output.
fn field<'a>(lscpu: &'a str, key: &str) -> Option<&'a str> {
    lscpu.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn describe(lscpu: &str) -> String {
    let known = KEYS.iter().filter_map(|key| {
        let value = field(lscpu, key)?;
        Some(format!("{key} {value}"))
    });
    known.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Machine {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cores, ghz, kernel) = (self.cores, self.tsc_hz / 1e9, &self.kernel);
        write!(f, "{}, {cores} cores, TSC {ghz:.2} GHz", self.cpu)?;
        for name in &self.vectors {
            write!(f, ", {name}")?;
        }
        if let (Some((a, b)), Some(ns)) = (self.pair, self.round_trip_ns) {
            write!(f, ", line round trip {ns:.0} ns between cores {a} and {b}")?;
        }
        if let Some([here, there]) = self.clocks_ghz {
            write!(f, ", clocks {here:.2} and {there:.2} GHz")?;
        }
        write!(f, ", Linux {kernel}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_in_one_line() {
        let lscpu = "Model name:  X 1 @ 2: 3\nModel:  85\nHypervisor vendor: KVM\n";
        let described = "Model name X 1 @ 2: 3, Model 85, Hypervisor vendor KVM";
        assert_eq!(describe(lscpu), described);
        let here = Machine::here(0, 0, Clock::calibrate());
        assert!(here.cores > 0 && here.tsc_hz > 1e8 && !here.kernel.is_empty());
        assert_eq!(here.to_string().lines().count(), 1);
    }
}
