//! DPDK's guests: `dpdk-testpmd` with two `net_virtio_user` devices, on one core.
//!
//! Frames that testpmd sends once (`tx_first`) circulate: guest, switch, other guest, and testpmd's io mode returns them to
//! the first. They are fewer than a ring has entries, so none is dropped. The rate is that of the loop, limited by the
//! slower of generator and switch.

use super::{Load, Offered};
use crate::error::BenchError;
use crate::lab::{TESTPMD_THREADS, Thread};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "dpdk-testpmd";
/// Frames that testpmd sends together.
const BURST: u16 = 32;
/// Time from the start of the devices to the first frame.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest wait for its end.
const END_MAX: Duration = Duration::from_secs(5);

/// Entries of each virtqueue.
const RING: u16 = 256;
/// Bytes of a frame, without FCS.
const FRAME_LEN: u16 = 60;

/// The arguments, separated by spaces.
fn arguments(sockets: &[PathBuf], core: usize) -> String {
    let device = |(number, socket): (usize, &PathBuf)| {
        let (path, last) = (socket.display(), number + 1);
        format!(
            "--vdev=net_virtio_user{number},path={path},mac=02:00:00:00:00:0{last},queues=1,queue_size={RING},mrg_rxbuf=1"
        )
    };
    let devices: Vec<String> = sockets.iter().take(2).enumerate().map(device).collect();
    format!(
        "--lcores=0@{core},1@{core} --no-pci --single-file-segments -m 512 --no-huge --no-shconf {} -- -i --forward-mode=io \
         --nb-cores=1 --burst={BURST} --rxd={RING} --txd={RING} --total-num-mbufs=16384 --txpkts={FRAME_LEN} \
         --eth-peer=0,02:00:00:00:00:02 --eth-peer=1,02:00:00:00:00:01",
        devices.join(" "),
    )
}

/// A running testpmd that forwards. It ends when dropped.
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// The thread that forwards.
    pub worker: Thread,
}

impl Testpmd {
    /// Starts it on `core`, connected to the first two sockets, and starts the circulating frames. Its errors go to this
    /// process's.
    pub fn connect(sockets: &[PathBuf], core: usize) -> Result<Self, BenchError> {
        // Into a pipe, testpmd's answers would be delayed until a buffer is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", NAME]);
        command.args(arguments(sockets, core).split(' '));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(BenchError::io(NAME))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.expect("both were asked for");
        let mut this = Self {
            child,
            input,
            output: BufReader::new(output).lines(),
            worker: Thread::current(), // until the forwarding thread exists
        };
        this.statistics()?; // answered once everything has started
        std::thread::sleep(SETTLE);
        let bursts = RING / BURST * 3 / 4;
        this.command(&format!("start tx_first {bursts}"))?;
        let id = this.child.id();
        let mut names = TESTPMD_THREADS.iter();
        let worker = names.find_map(|name| Thread::named(id, name));
        this.worker = worker.ok_or_else(|| BenchError::backend(NAME, "has no worker thread"))?;
        this.statistics()?; // answered once it forwards
        Ok(this)
    }

    fn command(&mut self, line: &str) -> Result<(), BenchError> {
        writeln!(self.input, "{line}").map_err(BenchError::io(NAME))
    }

    /// Sums over both ports: frames received, and frames per second since the last query.
    fn statistics(&mut self) -> Result<[u64; 2], BenchError> {
        self.command("show port stats 0")?;
        self.command("show port stats 1")?;
        let (mut sums, mut ports) = ([0; 2], 0);
        while ports < 2 {
            let line = self.output.next().transpose();
            let line = line.map_err(BenchError::io(NAME))?;
            let line = line.ok_or_else(|| BenchError::backend(NAME, "ended: see above"))?;
            sums[0] += number(&line, "RX-packets:").unwrap_or(0);
            if let Some(rate) = number(&line, "Rx-pps:") {
                sums[1] += rate;
                ports += 1;
            }
        }
        Ok(sums)
    }
}

/// The number behind `key` on a line.
fn number(line: &str, key: &str) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Load for Testpmd {
    /// Counts the frames that arrive, by testpmd's own clock. Frames circulate, so there is only the maximum rate, a lost
    /// frame is never sent again, and no times are measured.
    fn offer(&mut self, _rate: Option<f64>, time: Duration) -> Result<Offered, BenchError> {
        let [before, _] = self.statistics()?;
        let start = Instant::now();
        std::thread::sleep(time);
        let [after, rate] = self.statistics()?;
        let seconds = start.elapsed().as_secs_f64();
        let arrived = after - before;
        Ok(Offered {
            seconds,
            due: arrived,
            sent: arrived,
            arrived,
            arrived_within: (rate as f64 * seconds) as u64,
            ..Offered::default()
        })
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.command("quit");
        let deadline = Instant::now() + END_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill(); // it has ended, unless it hangs
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_follows_its_key() {
        let line = "  RX-packets: 1234       RX-missed: 5          RX-bytes:  74040";
        assert_eq!(number(line, "RX-packets:"), Some(1234));
        assert_eq!(number(line, "Rx-pps:"), None);
    }
}
