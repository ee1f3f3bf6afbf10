//! DPDK's guests: `dpdk-testpmd` with two `net_virtio_user` devices, on one core.
//!
//! Frames that testpmd sends once (`tx_first`) circulate: guest, switch, other guest, and testpmd's io mode returns them to
//! the first. They are fewer than a ring has entries, so none is dropped. The rate is that of the loop, limited by the
//! slower of generator and switch.

use super::{Load, Offered};
use crate::error::BenchError;
use crate::lab::{PRIORITY_MEASURE, REALTIME, TESTPMD_THREADS, Thread};
use crate::options::FCS_LEN;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "dpdk-testpmd";
/// Frames that testpmd sends together.
const BURST: u16 = 32;
/// Time from the start of the devices to the first frame.
const SETTLE: Duration = Duration::from_millis(500);
/// Lines of testpmd's errors in an error message: the first ones, since a page of usage follows.
const COMPLAINTS: usize = 6;

/// Settings of testpmd and of its devices.
#[derive(Clone, Debug)]
pub struct TestpmdOptions {
    /// Its core.
    pub core: usize,
    /// Frame size with FCS.
    pub size: u16,
    /// Flows.
    pub flows: u32,
    /// Entries of each virtqueue.
    pub ring: u16,
    /// Mergeable receive buffers.
    pub mergeable: bool,
    /// Its memory is on 2 MiB pages.
    pub huge_pages: bool,
    /// `SCHED_FIFO` for its threads.
    pub realtime: bool,
}

impl TestpmdOptions {
    /// Frames of 64 bytes of one flow, on this core.
    pub fn on(core: usize) -> Self {
        Self {
            core,
            size: 64,
            flows: 1,
            ring: 256,
            mergeable: true,
            huge_pages: false,
            realtime: false,
        }
    }
}

/// A running testpmd that forwards. It ends when dropped.
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Its error output.
    log: File,
    /// The thread that forwards.
    pub worker: Thread,
}

impl Testpmd {
    /// Connects it, and starts the circulating frames.
    pub fn connect(sockets: &[PathBuf], options: &TestpmdOptions) -> Result<Self, BenchError> {
        // Into a pipe, testpmd's answers would be delayed until a buffer is full.
        let mut command = Command::new("stdbuf");
        command
            .arg("-oL")
            .arg(NAME)
            .args(arguments(sockets, options));
        let log = tempfile::tempfile().map_err(BenchError::io("temporary file"))?;
        let errors = log.try_clone().map_err(BenchError::io("temporary file"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(BenchError::io(NAME))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::backend(NAME, "has no standard streams"));
        };
        let worker = Thread::current(); // until the forwarding thread exists
        let mut this = Self {
            child,
            input,
            output: BufReader::new(output).lines(),
            log,
            worker,
        };
        this.statistics()?; // answered once everything has started
        std::thread::sleep(SETTLE);
        let bursts = (options.ring / BURST * 3 / 4).max(1);
        this.command(&format!("start tx_first {bursts}"))?;
        let id = this.child.id();
        let mut names = TESTPMD_THREADS.iter();
        let worker = names.find_map(|name| Thread::named(id, name));
        this.worker = worker.ok_or_else(|| BenchError::backend(NAME, "has no worker thread"))?;
        this.statistics()?; // answered once it forwards
        if options.realtime {
            // The thread that answers shares its core with the forwarding thread.
            let set = Thread::main_of(id).set_fifo(PRIORITY_MEASURE);
            set.map_err(BenchError::io(REALTIME))?;
        }
        Ok(this)
    }

    fn command(&mut self, line: &str) -> Result<(), BenchError> {
        writeln!(self.input, "{line}").map_err(|_| self.ended())
    }

    /// The error with which it ended.
    fn ended(&mut self) -> BenchError {
        let mut text = String::new();
        let read = self.log.rewind();
        let _ = read.and_then(|()| self.log.read_to_string(&mut text)); // on failure the text stays empty
        let complaints: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .take(COMPLAINTS)
            .collect();
        BenchError::backend(NAME, format!("ended\n{}", complaints.join("\n")))
    }

    fn statistics(&mut self) -> Result<Statistics, BenchError> {
        self.command("show port stats 0")?;
        self.command("show port stats 1")?;
        let (mut sum, mut ports) = (Statistics::default(), 0);
        while ports < 2 {
            let line = self.output.next();
            let Some(Ok(line)) = line else {
                return Err(self.ended());
            };
            ports += usize::from(sum.add(&line));
        }
        Ok(sum)
    }
}

impl Load for Testpmd {
    /// Counts the frames that arrive, by testpmd's own clock. Frames circulate, so there is only the maximum rate, a lost
    /// frame is never sent again, and no times are measured.
    fn offer(&mut self, _rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let before = self.statistics()?;
        let start = Instant::now();
        std::thread::sleep(time);
        let after = self.statistics()?;
        let seconds = start.elapsed().as_secs_f64();
        let arrived = after.received - before.received;
        Ok(Offered {
            seconds,
            due: arrived,
            sent: arrived,
            arrived,
            arrived_within: (after.rate as f64 * seconds) as u64,
            ..Offered::default()
        })
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // It waits for the forwarding thread by polling, which must not keep that thread from the core.
        let _ = Thread::main_of(self.child.id()).set_normal(); // it ended
        let _ = self.command("quit");
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill(); // it has ended, unless it hangs
        let _ = self.child.wait();
    }
}

fn arguments(sockets: &[PathBuf], options: &TestpmdOptions) -> Vec<String> {
    let (core, ring) = (options.core, options.ring);
    let mergeable = u8::from(options.mergeable);
    let mut list = vec![
        format!("--lcores=0@{core},1@{core}"),
        "--no-pci".into(),
        "--single-file-segments".into(),
        "-m".into(),
        "512".into(),
    ];
    // --in-memory requires huge pages.
    list.extend(match options.huge_pages {
        true => vec!["--in-memory".into()],
        false => vec!["--no-huge".into(), "--no-shconf".into()],
    });
    for (number, socket) in sockets.iter().take(2).enumerate() {
        list.push(format!(
            "--vdev=net_virtio_user{number},path={},mac=02:00:00:00:00:0{},queues=1,queue_size={ring},mrg_rxbuf={mergeable}",
            socket.display(),
            number + 1,
        ));
    }
    list.extend([
        "--".into(),
        "-i".into(),
        "--forward-mode=io".into(),
        "--nb-cores=1".into(),
        format!("--burst={BURST}"),
        format!("--rxd={ring}"),
        format!("--txd={ring}"),
        "--total-num-mbufs=16384".into(),
        format!("--txpkts={}", options.size - FCS_LEN),
        "--eth-peer=0,02:00:00:00:00:02".into(),
        "--eth-peer=1,02:00:00:00:00:01".into(),
    ]);
    if options.flows > 1 {
        list.push("--txonly-multi-flow".into());
    }
    list
}

/// The output of `show port stats` for several ports.
#[derive(Clone, Copy, Debug, Default)]
struct Statistics {
    /// Frames.
    received: u64,
    /// Frames per second since the last query.
    rate: u64,
}

impl Statistics {
    /// Adds the values on `line`. Returns true for the last relevant line of a port.
    fn add(&mut self, line: &str) -> bool {
        let number = |key: &str| {
            let rest = line.split_once(key)?.1.trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<u64>().ok()
        };
        self.received += number("RX-packets:").unwrap_or(0);
        let rate = number("Rx-pps:");
        self.rate += rate.unwrap_or(0);
        rate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_sums_over_ports() {
        let output = "testpmd> show port stats 0\n\n  RX-packets: 1234       RX-missed: 5          RX-bytes:  74040\n  \
                      TX-packets: 99         TX-errors: 0\n  Rx-pps:      4000000          Rx-bps:   1920000000\n  \
                      Tx-pps:           77          Tx-bps:            0\n";
        let mut sum = Statistics::default();
        let ends = output.lines().filter(|line| sum.add(line)).count();
        assert_eq!((ends, sum.received, sum.rate), (1, 1234, 4_000_000));
    }
}
