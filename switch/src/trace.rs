//! `crosspoint trace`: wiring; the text is made in `crosspoint_model::trace`.

use std::io::{self, Write, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crosspoint_model::capture;
use crosspoint_model::capture::{CaptureError, TraceWanted};
use crosspoint_model::client::Traces;

use crate::capture::{complain, duration, end_by_signal, refuse};
use crate::completions::ports;
use crate::show::printable;

/// What happens to the next frames that come in on a port, stage by stage; or to a made-up frame.
#[derive(clap::Args)]
pub(crate) struct Trace {
    /// The port on which the frames come in
    #[arg(add = ports())]
    port: String,
    /// Trace this many frames
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    count: u64,
    /// Only frames that match this filter, in tcpdump's syntax: `icmp and host 10.0.0.1`
    #[arg(long, value_name = "EXPRESSION", default_value = "")]
    filter: String,
    /// Explain this frame, given in hexadecimal, instead of frames that come in
    #[arg(long, value_name = "HEX", conflicts_with_all = ["filter", "count"])]
    frame: Option<String>,
    /// With --frame: insert a tag of this VLAN
    #[arg(long, value_name = "ID", requires = "frame", value_parser = clap::value_parser!(u16).range(0..4096))]
    vlan: Option<u16>,
    /// End after this time: `10s`, `500ms`, `5m`; without it, wait until the frames have come, or Ctrl-C
    #[arg(long, value_name = "TIME", conflicts_with = "frame", value_parser = duration)]
    duration: Option<Duration>,
    /// Print JSON, a line for each frame
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: crate::control::Socket,
}

/// How long no frame comes before the command says that it waits.
const QUIET: Duration = Duration::from_secs(1);
/// Position of a tag: after both addresses, two digits per byte.
const TAG_AT: usize = 24;

/// The frame's digits, with a tag of `vlan` inserted.
fn tagged(frame: &str, vlan: u16) -> String {
    let mut digits: String = frame.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() >= TAG_AT {
        digits.insert_str(TAG_AT, &format!("8100{vlan:04x}"));
    }
    digits
}

impl Trace {
    /// Prints the traces; exits with 0 if as many frames as requested were traced.
    pub(crate) fn run(self) -> ExitCode {
        if let Err(why) = without_queue(&self.port) {
            return refuse(&why);
        }
        if let Err(why) = capture::filter(&self.filter) {
            return refuse(&why);
        }
        if let Some(Err(why)) = self.frame.as_deref().map(capture::frame_bytes) {
            return refuse(&why);
        }
        let frame = match (self.frame, self.vlan) {
            (Some(frame), Some(vlan)) => Some(tagged(&frame, vlan)),
            (frame, _) => frame,
        };
        let wanted = TraceWanted {
            port: self.port,
            count: self.count,
            filter: self.filter,
            frame,
        };
        let traces = match Traces::ask(&self.socket.socket, &wanted) {
            Ok(traces) => traces,
            Err(error) => return complain(&error),
        };
        if let Err(why) = traces
            .closer()
            .and_then(|closer| end_by_signal(closer, self.duration))
        {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
        let has_come = Arc::new(AtomicBool::new(false));
        if !self.json {
            say_what_it_waits_for(waits_for(&wanted, self.duration), has_come.clone());
        }
        let mut left = self.count;
        for trace in traces {
            has_come.store(true, Ordering::Relaxed);
            let trace = match trace {
                Ok(trace) => trace,
                Err(error) => return complain(&error),
            };
            if print(&trace, self.json).is_err() {
                // The reader has closed the pipe.
                return ExitCode::SUCCESS;
            }
            left = left.saturating_sub(1);
        }
        match left {
            0 => ExitCode::SUCCESS,
            left => {
                let within = self.duration;
                let within = within.map_or(String::new(), |time| format!(" within {time:?}"));
                eprintln!(
                    "error: {left} of {} frames were not received{within}",
                    self.count
                );
                ExitCode::FAILURE
            }
        }
    }
}

/// Refuses `PORT:QUEUE`, which a capture takes.
fn without_queue(text: &str) -> Result<(), CaptureError> {
    match text.split_once(':') {
        None => Ok(()),
        Some((port, _)) => Err(CaptureError::new(
            format!("`{text}`: a trace is of a whole port, not of a queue"),
            format!("name the port alone: crosspoint trace {port}"),
        )),
    }
}

/// Says on standard error what the command waits for, unless a frame comes at once.
fn say_what_it_waits_for(text: String, has_come: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        std::thread::sleep(QUIET);
        if !has_come.load(Ordering::Relaxed) {
            eprintln!("{text}");
        }
    });
}

fn waits_for(wanted: &TraceWanted, time: Option<Duration>) -> String {
    let frames = match wanted.count {
        1 => "a frame that comes in".to_owned(),
        count => format!("{count} frames that come in"),
    };
    let matching = match wanted.filter.as_str() {
        "" => String::new(),
        filter => format!(" matching `{filter}`"),
    };
    let limit = match time {
        Some(time) => format!("for {time:?} at most"),
        None => "without a time limit (--duration sets one)".to_owned(),
    };
    let port = printable(&wanted.port);
    format!("waiting for {frames} on {port}{matching}, {limit}; Ctrl-C ends it")
}

fn print(trace: &crosspoint_model::trace::Trace, json: bool) -> io::Result<()> {
    let mut out = stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(trace)?)?,
        false => write!(out, "{trace}")?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said_with_the_time() {
        let mut wanted = TraceWanted {
            port: "web-1".to_owned(),
            count: 1,
            filter: "icmp".to_owned(),
            frame: None,
        };
        assert_eq!(
            waits_for(&wanted, Some(Duration::from_secs(10))),
            "waiting for a frame that comes in on web-1 matching `icmp`, for 10s at most; Ctrl-C ends it"
        );
        (wanted.count, wanted.filter) = (3, String::new());
        assert_eq!(
            waits_for(&wanted, None),
            "waiting for 3 frames that come in on web-1, without a time limit (--duration sets one); Ctrl-C ends it"
        );
    }

    #[test]
    fn a_queue_is_refused_with_the_command_without_it() {
        assert_eq!(without_queue("web-1"), Ok(()));
        let why = without_queue("web-1:7").expect_err("it is refused");
        assert!(why.help.ends_with("crosspoint trace web-1"), "{why:?}");
    }

    #[test]
    fn a_tag_goes_behind_the_addresses() {
        let frame = "ff:ff:ff:ff:ff:ff 02:00:00:00:00:01 08:06";
        assert_eq!(tagged(frame, 100), "ffffffffffff020000000001810000640806");
        assert_eq!(tagged("ffff", 100), "ffff");
    }
}
