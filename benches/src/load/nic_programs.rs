//! Frames generated and counted in the kernel, by the loaded programs of [`crosspoint_ebpf::traffic`].

use super::times;
use crate::error::BenchError;
use crate::lab::SPARE;
use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp,
    XdpMode,
};
use aya::util::nr_cpus;
use crosspoint_ebpf::traffic::{
    ARRIVED, ArrivedValue, GENERATE, HistogramValue, LATENCIES, NEXT_UNKNOWN, OBJECT, PLANS,
    PlanValue, SENT, SINK, SINK_XDP, SentValue, bucket_value,
};
use crosspoint_packet::checksum::{fold, sum};
use hdrhistogram::Histogram;
use std::io;
use std::time::Duration;

/// Frames that the kernel passes on together, as in its own batches.
const BATCH: u32 = 64;
/// Length of the Ethernet header before the IPv4 header.
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
/// 10.0.0.1 to 10.0.0.2, time to live 64, UDP; no length, no checksum.
const IPV4: [u8; IPV4_LEN] = [
    0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
];

/// Handling of frames at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Counted and dropped after the kernel has made packet buffers of them.
    Sink,
    /// Counted and dropped in the driver.
    SinkXdp,
}

/// Frames to send.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// The interface on which they are sent.
    pub interface: u32,
    /// Source and destination address.
    pub addresses: [[u8; 6]; 2],
    /// Bytes of each frame, without FCS.
    pub len: usize,
    /// Number of different UDP ports.
    pub flows: u32,
}

/// The programs and their maps. Sinks are removed when it is dropped.
pub struct Programs {
    ebpf: Ebpf,
    plans: Array<MapData, PlanValue>,
    sent: Array<MapData, SentValue>,
    arrived: PerCpuArray<MapData, ArrivedValue>,
    latencies: PerCpuArray<MapData, HistogramValue>,
    cores: usize,
    frame: Vec<u8>,
}

/// CLOCK_MONOTONIC, ns: the clock that the programs use.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Programs {
    /// Loads the programs.
    pub fn load() -> Result<Self, BenchError> {
        let mut ebpf = Ebpf::load(OBJECT).map_err(failed("loading eBPF programs"))?;
        let map = |ebpf: &mut Ebpf, name| {
            let found = ebpf.take_map(name);
            found.ok_or_else(|| failed("eBPF maps")(io::Error::from(io::ErrorKind::NotFound)))
        };
        macro_rules! map {
            ($kind:ident, $name:expr) => {
                $kind::try_from(map(&mut ebpf, $name)?).map_err(failed("eBPF maps"))?
            };
        }
        let (plans, sent) = (map!(Array, PLANS), map!(Array, SENT));
        let (arrived, latencies) = (map!(PerCpuArray, ARRIVED), map!(PerCpuArray, LATENCIES));
        let generate: &mut Xdp = program(&mut ebpf, GENERATE)?;
        generate.load().map_err(failed("loading the generator"))?;
        // An attached program is ready to be called. Otherwise each run would prepare it, and wait twice for all cores to
        // see it (bpf_dispatcher_change_prog): 40 ms.
        let attached = generate.attach(SPARE, XdpMode::Skb);
        attached.map_err(failed("attaching the generator"))?;
        Ok(Self {
            ebpf,
            plans,
            sent,
            arrived,
            latencies,
            cores: nr_cpus().map_err(|(what, why)| failed(what)(why))?,
            frame: Vec::new(),
        })
    }

    /// Sets how frames that arrive at `interface` are handled.
    pub fn attach(&mut self, interface: &str, end: End) -> Result<(), BenchError> {
        let failed = |why: ProgramError| failed("attaching to an interface")(why);
        match end {
            End::SinkXdp => {
                let sink: &mut Xdp = program(&mut self.ebpf, SINK_XDP)?;
                sink.load().map_err(failed)?;
                sink.attach(interface, XdpMode::Driver).map_err(failed)?;
            }
            End::Sink => {
                let sink: &mut SchedClassifier = program(&mut self.ebpf, SINK)?;
                sink.load().map_err(failed)?;
                sink.attach(interface, TcAttachType::Ingress)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Resets the counts of earlier arrivals.
    pub fn clear(&mut self) -> Result<(), BenchError> {
        let failed = failed("clearing eBPF maps");
        let arrived = PerCpuValues::try_from(vec![[0, 0, NEXT_UNKNOWN]; self.cores])
            .and_then(|values| self.arrived.set(0, values, 0).map_err(io::Error::other));
        let latencies = PerCpuValues::try_from(vec![[0; _]; self.cores])
            .and_then(|zero| self.latencies.set(0, zero, 0).map_err(io::Error::other));
        arrived.and(latencies).map_err(failed)
    }

    /// Prepares sending for `time` from now on, `rate` frames per second or as many as [`Self::generate`] makes.
    pub fn plan(
        &mut self,
        sending: &Sending,
        rate: Option<f64>,
        time: Duration,
    ) -> Result<(), BenchError> {
        self.frame = frame(sending);
        let step = rate.map_or(0, |rate| (65536e9 / rate.max(1.0)) as u64);
        let start = now_ns();
        let plan = [
            sending.interface.into(),
            start,
            start + time.as_nanos() as u64,
            step,
            sending.flows.into(),
            sending.len as u64,
            fold(sum(&IPV4, 0)).into(),
        ];
        let set = self.sent.set(0, [0, 0], 0);
        set.and_then(|()| self.plans.set(0, plan, 0))
            .map_err(failed("the generator's plan"))
    }

    /// Runs the generator `times` times. Returns whether the plan has not ended yet.
    pub fn generate(&mut self, times: u32) -> Result<bool, BenchError> {
        let generate: &mut Xdp = program(&mut self.ebpf, GENERATE)?;
        let run = generate.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            repeat: times,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        run.map_err(failed("running the generator (live frames: Linux 5.18)"))?;
        Ok(self.progress()?[1] == 0)
    }

    /// Frames sent since [`Self::plan`].
    pub fn sent(&self) -> Result<u64, BenchError> {
        Ok(self.progress()?[0])
    }

    fn progress(&self) -> Result<SentValue, BenchError> {
        self.sent
            .get(&0, 0)
            .map_err(failed("the generator's progress"))
    }

    /// Frames that arrived since [`Self::clear`].
    pub fn arrived(&self) -> Result<u64, BenchError> {
        let arrived = self
            .arrived
            .get(&0, 0)
            .map_err(failed("the sink's count"))?;
        Ok(arrived.iter().map(|of_core| of_core[0]).sum())
    }

    /// Times from stamp to sink, ns.
    pub fn latencies(&self) -> Result<Histogram<u64>, BenchError> {
        let mut histogram = times();
        let of_cores = self.latencies.get(&0, 0);
        for buckets in of_cores.map_err(failed("the sink's histograms"))?.iter() {
            for (bucket, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
                histogram.saturating_record_n(bucket_value(bucket).max(1), *count);
            }
        }
        Ok(histogram)
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, BenchError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let found = ebpf.program_mut(name);
    let found = found
        .ok_or_else(|| failed::<io::Error>("eBPF programs")(io::ErrorKind::NotFound.into()))?;
    found.try_into().map_err(failed("eBPF programs"))
}

/// An error of aya, with all its causes.
fn failed<E: std::error::Error>(what: &str) -> impl Fn(E) -> BenchError + '_ {
    move |why| {
        let mut text = why.to_string();
        let mut source = why.source();
        while let Some(inner) = source {
            text += &format!(": {inner}");
            source = inner.source();
        }
        BenchError::io(what)(io::Error::other(text))
    }
}

/// The template of the generator's frames.
fn frame(sending: &Sending) -> Vec<u8> {
    let [source, destination] = sending.addresses;
    let mut frame = [&destination[..], &source, &[8, 0], &IPV4].concat();
    frame.resize(sending.len, 0);
    // In case the program does not write it: a datagram that ends with the frame.
    let len = (frame.len() - ETHERNET_LEN) as u16;
    frame[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&len.to_be_bytes());
    frame
}
