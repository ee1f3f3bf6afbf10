//! The machine on which something was measured, described by the properties in which machines differ.

use crate::lab::placement::{Probe, probe};
use crate::lab::threads::pin;
use crosspoint_frame::Clock;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;

/// Where the kernel describes a core's caches.
const CACHES: &str = "/sys/devices/system/cpu/cpu{}/cache";
/// CPUID leaf: the hypervisor's name.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// CPUID leaf 1, register ECX: there is a hypervisor.
const HAS_HYPERVISOR: u32 = 1 << 31;

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's name, as it reports it.
    pub cpu: String,
    /// The processor's family, model and stepping: two processors of one name may differ in these.
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// See `family`.
    pub stepping: u32,
    /// Cores that this process may use.
    pub cores: usize,
    /// Caches of the switch's core, nearest first.
    pub caches: Vec<Cache>,
    /// The core's clock as the kernel knows it, MHz: on virtual machines the nominal clock.
    pub clock_mhz: f64,
    /// Measured clocks of the two cores at the beginning.
    pub clocks_ghz: Option<[f64; 2]>,
    /// Rate of the time stamp counter.
    pub tsc_hz: f64,
    /// Available wider vector instructions.
    pub vectors: Vec<String>,
    /// The cores between which a line's round trip was measured: the generator's and the switch's.
    pub pair: Option<(usize, usize)>,
    /// A line's round trip between them at the beginning, nanoseconds.
    pub round_trip_ns: Option<f64>,
    /// The kernel's release.
    pub kernel: String,
    /// The hypervisor's name, on a virtual machine.
    pub hypervisor: Option<String>,
}

/// A cache of a core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 for the nearest.
    pub level: u32,
    /// For data, instructions, or both.
    pub kind: String,
    /// KiB.
    pub size_kib: u32,
    /// Cores that share it, in the kernel's list format.
    pub cores: String,
}

impl Machine {
    /// This machine, with the round trip between two cores, unless they are the same.
    pub fn here(generator: usize, switch: usize, clock: Clock) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let number = |key: &str| field(&info, key).and_then(|value| value.parse().ok());
        let pair = (generator != switch).then_some((generator, switch));
        let between = |(generator, switch)| {
            let measure = move || {
                pin(generator).ok()?;
                Some(probe(switch, clock))
            };
            std::thread::spawn(measure).join().ok().flatten()
        };
        let probed: Option<Probe> = pair.and_then(between);
        Self {
            cpu: field(&info, "model name").unwrap_or("unknown").into(),
            family: number("cpu family").unwrap_or(0.0) as u32,
            model: number("model").unwrap_or(0.0) as u32,
            stepping: number("stepping").unwrap_or(0.0) as u32,
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            caches: caches(Path::new(&CACHES.replace("{}", &switch.to_string()))),
            clock_mhz: number("cpu MHz").unwrap_or(0.0),
            tsc_hz: clock.hz(),
            vectors: vectors(&info),
            pair,
            round_trip_ns: probed.and_then(|probe| probe.round_trip_ns),
            clocks_ghz: probed.map(|probe| probe.clocks_ghz),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            hypervisor: hypervisor(),
        }
    }
}

impl fmt::Display for Machine {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (family {} model {} stepping {}), {} cores at {:.0} MHz, TSC {:.2} GHz",
            self.cpu,
            self.family,
            self.model,
            self.stepping,
            self.cores,
            self.clock_mhz,
            self.tsc_hz / 1e9
        )?;
        for cache in self.caches.iter().filter(|c| c.kind != "Instruction") {
            let (level, kib, cores) = (cache.level, cache.size_kib, &cache.cores);
            write!(f, ", L{level} {kib} KiB of cores {cores}")?;
        }
        for name in &self.vectors {
            write!(f, ", {name}")?;
        }
        if let (Some((a, b)), Some(ns)) = (self.pair, self.round_trip_ns) {
            write!(f, ", line round trip {ns:.0} ns between cores {a} and {b}")?;
        }
        if let Some([here, there]) = self.clocks_ghz {
            write!(f, ", clocks {here:.2} and {there:.2} GHz")?;
        }
        let hypervisor = self.hypervisor.as_deref();
        let below = hypervisor.map_or("no hypervisor".into(), |name| format!("hypervisor {name}"));
        write!(f, ", Linux {}, {below}", self.kernel)
    }
}

/// The first line of `/proc/cpuinfo` with this key.
fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// The vector instructions that the processor has, of those among which the switch chooses.
fn vectors(info: &str) -> Vec<String> {
    let flags: Vec<&str> = field(info, "flags").map_or(Vec::new(), |f| f.split(' ').collect());
    let known = ["avx2", "avx512bw", "avx512_vnni"];
    let there = known.into_iter().filter(|name| flags.contains(name));
    there.map(Into::into).collect()
}

fn caches(directory: &Path) -> Vec<Cache> {
    let cache = |number: u32| {
        let read = |name: &str| {
            let text = fs::read_to_string(directory.join(format!("index{number}/{name}"))).ok()?;
            Some(text.trim().to_owned())
        };
        Some(Cache {
            level: read("level")?.parse().ok()?,
            kind: read("type")?,
            size_kib: read("size")?.strip_suffix('K')?.parse().ok()?,
            cores: read("shared_cpu_list")?,
        })
    };
    (0..).map_while(cache).collect()
}

#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "newer compilers know that CPUID is safe")]
fn hypervisor() -> Option<String> {
    // SAFETY: every x86-64 processor has CPUID, and its leaf 1.
    let features = unsafe { std::arch::x86_64::__cpuid(1) };
    if features.ecx & HAS_HYPERVISOR == 0 {
        return None;
    }
    // SAFETY: as above; a missing leaf reads as some other one.
    let name = unsafe { std::arch::x86_64::__cpuid(HYPERVISOR_LEAF) };
    let bytes = [name.ebx, name.ecx, name.edx]
        .map(u32::to_le_bytes)
        .concat();
    let name = String::from_utf8_lossy(&bytes);
    Some(name.trim_end_matches('\0').trim().into())
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<String> {
    None
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine that does not exist.
    pub fn made_up() -> Machine {
        Machine {
            cpu: "A CPU".into(),
            family: 25,
            model: 17,
            stepping: 1,
            cores: 2,
            caches: vec![Cache {
                level: 2,
                kind: "Unified".into(),
                size_kib: 1024,
                cores: "0".into(),
            }],
            clock_mhz: 2600.0,
            tsc_hz: 2.6e9,
            vectors: vec!["avx2".into()],
            pair: Some((0, 1)),
            round_trip_ns: Some(87.4),
            clocks_ghz: Some([3.7, 1.85]),
            kernel: "6.1.0".into(),
            hypervisor: Some("KVMKVMKVM".into()),
        }
    }

    #[test]
    fn what_the_kernel_says_is_found_by_its_name() {
        let info = "cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: X 1 @ 2: 3\nflags\t: a avx2 b\n";
        assert_eq!(field(info, "model name"), Some("X 1 @ 2: 3"));
        assert_eq!(field(info, "model"), Some("85"));
        assert_eq!(field("", "model"), None);
        assert_eq!(vectors(info), ["avx2"]);
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_clock_and_says_so_in_one_line() {
        let here = Machine::here(0, 0, Clock::calibrate());
        assert!(here.cores > 0 && here.tsc_hz > 1e8 && !here.kernel.is_empty());
        assert_eq!(here.to_string().lines().count(), 1);
        assert!(here.to_string().contains(&here.kernel), "{here}");
    }
}
