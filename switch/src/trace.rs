//! `crosspoint trace`: wiring; the text is made in `crosspoint_model::trace`.

use std::io::{self, Write, stdout};
use std::process::ExitCode;

use crosspoint_model::capture;
use crosspoint_model::capture::TraceWanted;
use crosspoint_model::client::Traces;

use crate::capture::{complain, end_by_signal, refuse};

/// What happens to the next frames that come in on a port, stage by stage; or to a made-up frame.
#[derive(clap::Args)]
pub(crate) struct Trace {
    /// The port on which the frames come in
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
    /// Print JSON, a line for each frame
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: crate::control::Socket,
}

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
        if let Err(why) = capture::filter(&self.filter) {
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
            .and_then(|closer| end_by_signal(closer, None))
        {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
        let mut left = self.count;
        for trace in traces {
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
                eprintln!("error: {left} of {} frames were not received", self.count);
                ExitCode::FAILURE
            }
        }
    }
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
    fn a_tag_goes_behind_the_addresses() {
        let frame = "ff:ff:ff:ff:ff:ff 02:00:00:00:00:01 08:06";
        assert_eq!(tagged(frame, 100), "ffffffffffff020000000001810000640806");
        assert_eq!(tagged("ffff", 100), "ffff");
    }
}
