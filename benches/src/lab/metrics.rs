//! The switch's metrics, read like Prometheus does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The switch's counters that the bench needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Cycles that workers spent in poll iterations with work.
    pub busy_cycles: f64,
    /// Frames from guests.
    pub rx_frames: f64,
}

impl Counters {
    /// Reads them.
    pub fn read(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::parse(&get(address, "/metrics")?))
    }

    /// Takes them from a text exposition.
    pub fn parse(exposition: &str) -> Self {
        let sum = |name, label| sum(exposition, name, label);
        Self {
            busy_cycles: sum("crosspoint_worker_cycles_total", "state=\"busy\""),
            rx_frames: sum("crosspoint_queue_packets_total", "direction=\"rx\""),
        }
    }

    /// The difference from `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy_cycles: self.busy_cycles - earlier.busy_cycles,
            rx_frames: self.rx_frames - earlier.rx_frames,
        }
    }

    /// Busy cycles per frame from a guest; `None` if there was no frame.
    pub fn cycles_per_frame(self) -> Option<f64> {
        (self.rx_frames > 0.0).then(|| self.busy_cycles / self.rx_frames)
    }
}

/// The current sum of metric `name` over all series with `label`.
pub fn read_sum(address: SocketAddr, name: &str, label: &str) -> io::Result<f64> {
    Ok(sum(&get(address, "/metrics")?, name, label))
}

/// The sum of metric `name` over all series with `label`, such as `direction="rx"`, or over all series if it is empty. No
/// label value that the switch uses here contains a comma or a brace.
pub fn sum(exposition: &str, name: &str, label: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        let (labels, value) = rest.split_once('}')?;
        if !label.is_empty() && !labels.split(',').any(|l| l == label) {
            return None;
        }
        value.split_whitespace().next()?.parse::<f64>().ok()
    };
    exposition.lines().filter_map(value).sum()
}

/// The body of the answer to `GET path`. HTTP 1.0, so that the server sends it in one piece and hangs up.
pub fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    body(&answer).map(str::to_owned)
}

fn body(answer: &str) -> io::Result<&str> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("not an HTTP answer"))?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body),
        _ => Err(invalid(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = "\
# HELP crosspoint_queue_packets_total Frames
crosspoint_queue_packets_total{port=\"a\",queue=\"0\",direction=\"rx\"} 1000
crosspoint_queue_packets_total{port=\"b\",queue=\"0\",direction=\"rx\"} 5
crosspoint_queue_packets_total{port=\"b\",queue=\"0\",direction=\"tx\"} 990
crosspoint_worker_cycles_total{worker=\"0\",state=\"busy\"} 1.005e5
crosspoint_worker_cycles_total{worker=\"0\",state=\"idle\"} 77
crosspoint_worker_cycles_total_of_something_else{state=\"busy\"} 1
";

    #[test]
    fn counters_are_sums_over_the_right_series() {
        let counters = Counters::parse(EXPOSITION);
        assert_eq!(counters.rx_frames, 1005.0);
        assert_eq!(counters.busy_cycles, 100_500.0);
        assert_eq!(counters.cycles_per_frame(), Some(100.0));
        assert_eq!(counters.since(counters).cycles_per_frame(), None);
    }
}
